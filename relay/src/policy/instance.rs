//! One instance of a policy: a store of its own, its limits, and the imports. Floor 2.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use wasmtime::{Engine, Store, Trap, UpdateDeadline, component::Linker};

use super::{
    aside::LEASH,
    bindings::{self, Needs},
    contract::{self, Attempt, Functions, Level},
    engine::{CORE_INSTANCES, MEMORIES, TABLE_ELEMENTS, TABLES, TICK},
    failure::{FailureKind, PolicyFailure},
    set::{Budget, Shared, Template},
    stats::Count,
    stubs,
};
use crate::{
    decision::{
        AttemptOutcome, FreezeDecision, Lesson, LimitSet, RouteDecision, Transaction,
        record::{Answer, Ask, Question},
    },
    world::cpu,
};

/// Bytes that a guest may hand to the host in one call: four times the largest answer that the
/// contract allows. wasmtime's default is 128 MiB.
pub(super) const HOSTCALL_FUEL: usize = 256 * 1024;
/// Log lines of one call.
pub(super) const MAX_LOG_LINES: u32 = 16;
/// Bytes of one log line.
pub(super) const MAX_LOG_LINE: usize = 1024;
/// Bytes of an explanation of a failure.
const MAX_DETAIL: usize = 400;

/// The data of a guest's store: what its imports and limits work with.
pub(super) struct State {
    shared: Arc<Shared>,
    log_lines: u32,
    /// Whether what it logs and counts is thrown away: an audit must not count twice.
    muted: bool,
    /// Bytes of all its linear memories.
    memory: usize,
    /// It was refused memory in this call, so that what comes of that can be called by its name.
    refused: bool,
    /// Whether the call is on a leash.
    leash: bool,
    /// Processor time at the end of its leash.
    at_end: Option<Duration>,
    /// Of an instance that is given processor time.
    patience: Option<Patience>,
    /// Handles of WASI's stubs.
    handles: stubs::Handles,
}

impl State {
    /// Whether a call goes on whose epochs are over.
    fn deadline(&mut self) -> UpdateDeadline {
        let goes_on = match (&mut self.patience, self.at_end) {
            (Some(patience), _) => patience.goes_on(),
            (None, _) if !self.leash => false,
            // A thread that had no processor has not been busy: it is looked at once more.
            (None, None) => {
                self.at_end = Some(cpu::of_thread());
                true
            }
            (None, Some(at_end)) => cpu::of_thread().saturating_sub(at_end) < TICK / 2,
        };
        if goes_on { UpdateDeadline::Continue(1) } else { UpdateDeadline::Interrupt }
    }
}

/// Ticks of the clock for one of processor time, at most: then the machine is so busy that who waits
/// is better told so.
const PATIENCE: u64 = 40;

/// Whose instance it is: what its words count for, and how its time is counted.
pub(super) enum Owner {
    /// A worker's: it answers on the thread that carries mail.
    Worker,
    /// Nobody's who is counted: what it logs and counts is thrown away.
    Muted,
    /// That of a thread of low priority, which may get little of a busy processor: it is given
    /// processor time, until it is told to stop.
    Patient(Arc<AtomicBool>),
}

/// How far a call of a patient instance has come.
struct Patience {
    stop: Arc<AtomicBool>,
    /// Processor time of the thread at which it is over.
    until: Duration,
    /// Ticks of the clock that are left.
    ticks: u64,
}

impl Patience {
    fn begin(&mut self, ticks: u64) {
        let most = TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
        self.until = cpu::of_thread().saturating_add(most);
        self.ticks = ticks.saturating_mul(PATIENCE);
    }

    fn goes_on(&mut self) -> bool {
        self.ticks = self.ticks.saturating_sub(1);
        self.ticks > 0 && !self.stop.load(Relaxed) && cpu::of_thread() < self.until
    }
}

impl State {
    pub(super) fn handles(&mut self) -> &mut stubs::Handles {
        &mut self.handles
    }

    /// What a guest wrote to its standard output or error: one log line for each of its lines.
    pub(super) fn written(&mut self, is_error: bool, bytes: &[u8]) {
        let level = if is_error { Level::Warn } else { Level::Info };
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            // What is over the limit of a line is not decoded either.
            let line = &line[..line.len().min(MAX_LOG_LINE + 1)];
            contract::Imports::log(self, level, &String::from_utf8_lossy(line));
        }
    }
}

/// A linker with everything that the contract lets a policy import, and the stubs of WASI.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    contract::link(&mut linker)?;
    stubs::add_to(&mut linker)?;
    Ok(linker)
}

/// A guest that was configured and waits for calls.
pub(super) struct Instance {
    store: Store<State>,
    functions: Functions,
    /// What one call may take.
    pub(super) budget: Budget,
    /// Calls that it may still answer before it is recycled.
    pub(super) calls_left: u32,
}

impl Instance {
    /// Makes an instance; it is not configured yet.
    pub(super) fn new(template: &Template, owner: Owner) -> Result<Self, PolicyFailure> {
        let shared = Arc::clone(&template.shared);
        let (setup, budget) = (shared.setup, shared.call);
        let muted = matches!(owner, Owner::Muted);
        let patience = match owner {
            Owner::Patient(stop) => Some(Patience { stop, until: Duration::ZERO, ticks: 0 }),
            Owner::Worker | Owner::Muted => None,
        };
        let state = State {
            shared,
            log_lines: MAX_LOG_LINES,
            muted,
            memory: 0,
            refused: false,
            leash: false,
            at_end: None,
            patience,
            handles: stubs::Handles::default(),
        };
        let mut store = Store::new(template.pre.engine(), state);
        store.limiter(|state| state);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().deadline()));
        store.set_hostcall_fuel(HOSTCALL_FUEL);
        bound(&mut store, setup).map_err(|error| failure(&store, &error))?;
        let instance =
            template.pre.instantiate(&mut store).map_err(|error| failure(&store, &error))?;
        let functions = Functions::new(&template.exports, &mut store, &instance)
            .map_err(|error| PolicyFailure::bad(bindings::escaped(&chain(&error), MAX_DETAIL)))?;
        Ok(Self { store, functions, budget, calls_left: 0 })
    }

    /// Makes an instance and configures it. `calls` is how many it may answer.
    pub(super) fn ready(
        template: &Template,
        owner: Owner,
        calls: u32,
    ) -> Result<Self, PolicyFailure> {
        let mut instance = Self::new(template, owner)?;
        instance.calls_left = calls;
        match instance.configure()? {
            Ok(_) => Ok(instance),
            Err(_) => Err(PolicyFailure::bad("configure refused settings that it had accepted")),
        }
    }

    /// Asks the policy what it is.
    pub(super) fn describe(&mut self) -> Result<contract::Description, PolicyFailure> {
        let setup = self.store.data().shared.setup;
        let Self { store, functions, .. } = self;
        enter(store, setup, |store| Some(functions.describe(store)))
    }

    /// Gives the policy its settings.
    pub(super) fn configure(
        &mut self,
    ) -> Result<Result<contract::Needs, Vec<contract::Diagnostic>>, PolicyFailure> {
        let shared = Arc::clone(&self.store.data().shared);
        let upstreams: Vec<&str> = shared.upstreams.iter().map(String::as_str).collect();
        let Self { store, functions, .. } = self;
        enter(store, shared.setup, |store| {
            Some(functions.configure(store, &shared.settings, &upstreams))
        })
    }

    /// Asks any question.
    pub(super) fn ask(
        &mut self,
        question: &Question,
        needs: &Needs,
    ) -> Result<Answer, PolicyFailure> {
        question.with(|ask| match ask {
            Ask::Decide(tx) => self.decide(tx, needs).map(Answer::from),
            Ask::Route(tx) => self.route(tx, needs).map(Answer::from),
            Ask::Limits { tx, upstream, recipients } => {
                self.limits(tx, needs, upstream, recipients).map(Answer::from)
            }
            Ask::Observe(outcome) => self.observe(outcome).map(Answer::from),
        })
    }

    /// Asks the freeze hook.
    pub(super) fn decide(
        &mut self,
        tx: &Transaction<'_>,
        needs: &Needs,
    ) -> Result<FreezeDecision, PolicyFailure> {
        let call = self.budget;
        let Self { store, functions, .. } = self;
        let answer = bindings::with_transaction(tx, needs, |tx| {
            enter(store, call, |store| functions.decide(store, tx))
        })?;
        bindings::freeze_decision(answer)
    }

    /// Asks the routing hook.
    pub(super) fn route(
        &mut self,
        tx: &Transaction<'_>,
        needs: &Needs,
    ) -> Result<RouteDecision, PolicyFailure> {
        let call = self.budget;
        let Self { store, functions, .. } = self;
        let answer = bindings::with_transaction(tx, needs, |tx| {
            enter(store, call, |store| functions.route(store, tx))
        })?;
        bindings::route_decision(answer, tx.recipients.len(), &store.data().shared.upstreams)
    }

    /// Asks the throttling hook for its limits.
    pub(super) fn limits(
        &mut self,
        tx: &Transaction<'_>,
        needs: &Needs,
        upstream: &str,
        recipients: &[u32],
    ) -> Result<LimitSet, PolicyFailure> {
        let call = self.budget;
        let Self { store, functions, .. } = self;
        let answer = bindings::with_transaction(tx, needs, |transaction| {
            let attempt = Attempt { transaction, upstream, recipients };
            enter(store, call, |store| functions.limits(store, attempt))
        })?;
        bindings::limit_set(answer)
    }

    /// Tells the throttling hook what came of an attempt.
    pub(super) fn observe(
        &mut self,
        outcome: &AttemptOutcome<'_>,
    ) -> Result<Vec<Lesson>, PolicyFailure> {
        let call = self.budget;
        let Self { store, functions, .. } = self;
        let answer = bindings::with_outcome(outcome, |outcome| {
            enter(store, call, |store| functions.observe(store, outcome))
        })?;
        bindings::lessons(answer)
    }

    /// Bytes of all its linear memories.
    pub(super) fn memory(&self) -> usize {
        self.store.data().memory
    }

    /// Fuel that the last call took; none where epochs bound it.
    pub(super) fn fuel_used(&self) -> Option<u64> {
        match self.budget {
            Budget::Fuel(given) => {
                self.store.get_fuel().ok().map(|left| given.saturating_sub(left))
            }
            _ => None,
        }
    }
}

/// Calls into the guest with a fresh time budget; there is no call where it has no such hook.
fn enter<R>(
    store: &mut Store<State>,
    budget: Budget,
    call: impl FnOnce(&mut Store<State>) -> Option<wasmtime::Result<R>>,
) -> Result<R, PolicyFailure> {
    let state = store.data_mut();
    state.log_lines = MAX_LOG_LINES;
    state.refused = false;
    bound(store, budget)
        .and_then(|()| call(store).transpose())
        .map_err(|error| failure(store, &error))?
        .ok_or_else(no_hook)
}

fn bound(store: &mut Store<State>, budget: Budget) -> wasmtime::Result<()> {
    let state = store.data_mut();
    state.leash = matches!(budget, Budget::Leash);
    state.at_end = None;
    match (budget, &mut state.patience) {
        (Budget::Ticks(ticks), Some(patience)) => {
            patience.begin(ticks);
            store.set_epoch_deadline(1);
        }
        (Budget::Ticks(ticks), None) => store.set_epoch_deadline(ticks),
        (Budget::Leash, _) => store.set_epoch_deadline(LEASH),
        (Budget::Fuel(fuel), _) => store.set_fuel(fuel)?,
    }
    Ok(())
}

/// Calls an error of wasmtime by its name.
#[cold]
fn failure(store: &Store<State>, error: &wasmtime::Error) -> PolicyFailure {
    let kind = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt | Trap::OutOfFuel) => FailureKind::Timeout,
        // A guest that gets no memory mostly aborts, which is a trap like any other.
        _ if store.data().refused => FailureKind::Memory,
        Some(_) => FailureKind::Trap,
        None if error.is::<stubs::Ended>() => FailureKind::Trap,
        None if error.is::<wasmtime::PoolConcurrencyLimitError>() => FailureKind::Host,
        // What is no trap is an answer that breaks the canonical ABI, or one that is too large.
        None => FailureKind::BadAnswer,
    };
    PolicyFailure::new(kind, bindings::escaped(&chain(error), MAX_DETAIL))
}

/// All causes of an error in one line.
fn chain(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join(": ").replace('\n', " ")
}

fn no_hook() -> PolicyFailure {
    PolicyFailure::new(FailureKind::Host, "the policy has no such hook")
}

impl wasmtime::ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.memory.saturating_sub(current).saturating_add(desired);
        let allowed = all <= self.shared.memory;
        if allowed {
            self.memory = all;
        }
        self.refused |= !allowed;
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired <= TABLE_ELEMENTS;
        self.refused |= !allowed;
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }
}

impl contract::Imports for State {
    fn log(&mut self, level: Level, message: &str) {
        if self.muted {
            return;
        }
        let Some(left) = self.log_lines.checked_sub(1) else {
            self.shared.stats.count(Count::LogDropped);
            return;
        };
        self.log_lines = left;
        if message.len() > MAX_LOG_LINE {
            self.shared.stats.count(Count::LogDropped);
        }
        let policy = self.shared.name.as_str();
        let message = bindings::escaped(message, MAX_LOG_LINE);
        match level {
            Level::Debug => tracing::debug!(target: "wavegate::guest", policy, "{message}"),
            Level::Info => tracing::info!(target: "wavegate::guest", policy, "{message}"),
            Level::Warn => tracing::warn!(target: "wavegate::guest", policy, "{message}"),
            Level::Error => tracing::error!(target: "wavegate::guest", policy, "{message}"),
        }
    }

    fn add(&mut self, name: &str, value: u64) {
        if self.muted {
            return;
        }
        match self.shared.custom.iter().find(|(declared, _)| declared == name) {
            Some((_, cell)) => {
                cell.fetch_add(value, Relaxed);
            }
            None => self.shared.stats.count(Count::MetricIgnored),
        }
    }

    fn lookup(&mut self, table: &str, key: &str) -> Option<String> {
        self.shared.tables.get(table)?.get(key).cloned()
    }
}
