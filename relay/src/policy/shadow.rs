//! Shadows: policies that are asked beside the live ones, of traffic as it comes. What they say changes
//! nothing; it is compared with what counts. Floor 2.
//!
//! A worker copies a question into a lane of its own and goes on: it never waits, wakes somebody at
//! most once in [`LINGER`], and allocates nothing once the lane has grown. One thread of low priority
//! takes the lanes in turn and asks, with warm instances of its own. What finds no room is dropped and
//! counted. There is no ladder here: a shadow that fails is counted, and costs only that thread's time.

mod pack;
mod tally;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

pub use self::tally::{Example, ShadowCounts, ShadowReport};
pub(super) use self::{pack::Heard, tally::ShadowStats};
use self::{
    pack::{Packer, Unpacker},
    tally::Told,
};
use super::{
    compile,
    failure::{FailureKind, PolicyFailure},
    instance::{Instance, Owner, Patience},
    set::{Hook, Policy, PolicySet, Shadow},
};
use crate::{
    decision::record::{Answer, Ask, Question, Said},
    world::processor_time,
};

/// Questions that wait in the lane of one worker, and their bytes: an ordinary one has 300. It
/// bounds memory (twice this a worker), and how late a shadow is.
const QUESTIONS: usize = 1024;
const BYTES: usize = 1 << 20;
/// How long the thread waits for more before it looks again. So a worker that is busy wakes it, which
/// is a system call, at most so often.
const LINGER: Duration = Duration::from_millis(5);
/// After so long without a question warm instances are given up.
const KEEP_WARM: Duration = Duration::from_secs(60);
/// Processor time of one shadow before the lane is changed: one that is slow, or loops for ever,
/// leaves the others their turn, and what it was not asked in time is dropped.
const TURN: Duration = Duration::from_millis(250);
/// Looks at a lane that is in use, before a question is dropped. Who uses it is done in a moment, but
/// may be a thread of low priority that has lost its processor.
const TRIES: u32 = 64;

/// Where shadows are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowMode {
    /// By one thread of low priority.
    Thread,
    /// At once, by the caller: for simulation, where nothing may happen by the side.
    Inline,
    /// Not at all.
    Off,
}

/// Asks shadows. Dropping it ends its thread within a moment.
#[derive(Debug)]
pub(super) struct Shadower {
    mode: ShadowMode,
    shared: Arc<Shared>,
    inline: Mutex<Runner>,
    thread: Option<JoinHandle<()>>,
}

/// What workers and the thread share.
#[derive(Debug, Default)]
struct Shared {
    lanes: Mutex<Vec<Arc<Lane>>>,
    stop: Arc<AtomicBool>,
    /// The thread waits to be woken.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// Where one worker leaves questions.
#[derive(Debug, Default)]
pub(super) struct Lane {
    batch: Mutex<Batch>,
}

/// Questions in the order in which they came.
#[derive(Debug, Default)]
struct Batch {
    /// The sets that they are of; mostly one.
    sets: Vec<Arc<PolicySet>>,
    /// Index of the set, index of the shadow, and where what was copied begins.
    questions: Vec<(usize, usize, usize)>,
    bytes: Vec<u8>,
}

impl Shadower {
    pub(super) fn start(mode: ShadowMode, recycle_after: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let runner = || Runner::new(Arc::clone(&shared.stop), recycle_after);
        let inline = Mutex::new(runner());
        let mut thread = None;
        if mode == ShadowMode::Thread {
            let (shared, mut runner) = (Arc::clone(&shared), runner());
            let name = "policy-shadows".to_owned();
            thread = Some(thread::Builder::new().name(name).spawn(move || {
                compile::lower_priority();
                shared.thread.get_or_init(thread::current);
                shared.serve(&mut runner);
            })?);
        }
        Ok(Self { mode, shared, inline, thread })
    }

    /// Has shadows asked what a live policy was asked, or, with no answer, what one more policy
    /// would be asked. `lane` is the caller's, none before its first question.
    pub(super) fn ask(
        &self,
        lane: &mut Option<Arc<Lane>>,
        set: &Arc<PolicySet>,
        shadows: &[Shadow],
        ask: Ask<'_>,
        live: Option<Result<Heard<'_>, &PolicyFailure>>,
    ) {
        let bucket = bucket(&ask);
        for shadow in shadows.iter().filter(|shadow| bucket < shadow.buckets) {
            match self.mode {
                ShadowMode::Off => {}
                ShadowMode::Inline => {
                    let mut runner = self.inline.lock().unwrap_or_else(PoisonError::into_inner);
                    runner.ask(set, shadow.policy, ask.to_question(), live.map(said));
                }
                ShadowMode::Thread => {
                    let lane = lane.get_or_insert_with(|| self.shared.new_lane());
                    if lane.put(set, shadow.policy, ask, live) {
                        self.shared.wake();
                    } else {
                        set.policies()[shadow.policy].stats().shadow.drop_one();
                    }
                }
            }
        }
    }
}

impl Drop for Shadower {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that asks shadows had panicked");
            }
        }
    }
}

/// What decides whether a shadow is asked. An outcome is about no message, so the millisecond in
/// which it came stands for one.
fn bucket(ask: &Ask<'_>) -> u32 {
    match ask {
        Ask::Decide(tx) | Ask::Route(tx) | Ask::Limits { tx, .. } => tx.bucket,
        Ask::Observe(outcome) => u32::try_from(outcome.now.0 % 100 * 100).unwrap_or(0),
    }
}

fn said(live: Result<Heard<'_>, &PolicyFailure>) -> Said {
    live.map(Heard::to_answer).map_err(Clone::clone).into()
}

impl Shared {
    fn new_lane(&self) -> Arc<Lane> {
        let lane = Arc::new(Lane::default());
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&lane));
        lane
    }

    fn wake(&self) {
        // The thread looked at the lane after it set this, or has not looked at it yet: whoever puts
        // something there between sees it set, because both take the lane's lock.
        if self.asleep.load(Relaxed)
            && self.asleep.swap(false, Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Asks until it is stopped.
    fn serve(&self, runner: &mut Runner) {
        let mut batch = Batch::default();
        while !self.stop.load(Relaxed) {
            if self.serve_once(runner, &mut batch) {
                thread::park_timeout(LINGER);
                continue;
            }
            self.asleep.store(true, Relaxed);
            if self.has_questions() {
                self.asleep.store(false, Relaxed);
            } else if runner.is_warm() {
                thread::park_timeout(KEEP_WARM);
                if self.asleep.swap(false, Relaxed) && !self.has_questions() {
                    runner.cool();
                }
            } else {
                thread::park();
            }
        }
    }

    /// Takes each lane once; whether there was anything.
    fn serve_once(&self, runner: &mut Runner, batch: &mut Batch) -> bool {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        // A worker that has gone leaves nothing behind but what is still in its lane.
        lanes.retain(|lane| Arc::strong_count(lane) > 1 || !lane.is_empty());
        let all = lanes.clone();
        drop(lanes);
        let mut any = false;
        for lane in all {
            std::mem::swap(&mut *lane.lock(), batch);
            any |= !batch.questions.is_empty();
            runner.run(batch);
            batch.clear();
        }
        any
    }

    fn has_questions(&self) -> bool {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.iter().any(|lane| !lane.is_empty())
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        self.lock().questions.is_empty()
    }

    /// Copies a question with its answer; whether there was room.
    fn put(
        &self,
        set: &Arc<PolicySet>,
        policy: usize,
        ask: Ask<'_>,
        live: Option<Result<Heard<'_>, &PolicyFailure>>,
    ) -> bool {
        for _ in 0..TRIES {
            match self.batch.try_lock() {
                Ok(mut batch) => return batch.put(set, policy, ask, live),
                Err(TryLockError::Poisoned(batch)) => {
                    return batch.into_inner().put(set, policy, ask, live);
                }
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        false
    }
}

impl Batch {
    fn put(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        ask: Ask<'_>,
        live: Option<Result<Heard<'_>, &PolicyFailure>>,
    ) -> bool {
        if self.questions.len() >= QUESTIONS || self.bytes.len() >= BYTES {
            return false;
        }
        let begin = self.bytes.len();
        let mut packer = Packer(&mut self.bytes);
        packer.question(ask);
        match live {
            None => packer.byte(NEUTRAL),
            Some(Ok(answer)) => {
                packer.byte(ANSWER);
                packer.answer(answer);
            }
            Some(Err(failure)) => {
                packer.byte(FAILURE);
                packer.text(failure.kind.as_str());
                packer.text(&failure.detail);
            }
        }
        if self.bytes.len() > BYTES {
            self.bytes.truncate(begin);
            return false;
        }
        if !self.sets.last().is_some_and(|last| Arc::ptr_eq(last, set)) {
            self.sets.push(Arc::clone(set));
        }
        self.questions.push((self.sets.len() - 1, policy, begin));
        true
    }

    /// Empties it, and keeps its memory.
    fn clear(&mut self) {
        self.sets.clear();
        self.questions.clear();
        self.bytes.clear();
    }

    /// A question, and what counted; none if nothing did.
    fn read(&self, begin: usize) -> Option<(Question, Option<Said>)> {
        let mut from = Unpacker(self.bytes.get(begin..)?);
        let question = from.question()?;
        let said = match from.byte()? {
            NEUTRAL => None,
            ANSWER => Some(Said::Answer(from.answer()?)),
            _ => Some(Said::Failure { kind: from.text()?, detail: from.text()? }),
        };
        Some((question, said))
    }
}

/// What stands behind a question.
const NEUTRAL: u8 = 0;
const ANSWER: u8 = 1;
const FAILURE: u8 = 2;

/// Warm instances, and the asking.
#[derive(Debug)]
struct Runner {
    stop: Arc<AtomicBool>,
    recycle_after: u32,
    /// The set that was asked last, and the one before: messages that were at the gate when one
    /// was replaced end with it.
    warm: Vec<Warm>,
}

struct Warm {
    set: Arc<PolicySet>,
    instances: HashMap<usize, Instance>,
}

impl Runner {
    fn new(stop: Arc<AtomicBool>, recycle_after: u32) -> Self {
        Self { stop, recycle_after, warm: Vec::new() }
    }

    fn is_warm(&self) -> bool {
        !self.warm.is_empty()
    }

    fn cool(&mut self) {
        self.warm.clear();
    }

    /// Asks what is in a batch.
    fn run(&mut self, batch: &Batch) {
        let mut taken: HashMap<(usize, usize), Duration> = HashMap::new();
        for &(set, policy, begin) in &batch.questions {
            let taken = taken.entry((set, policy)).or_default();
            let set = &batch.sets[set];
            let stats = set.policies()[policy].stats();
            if *taken >= TURN || self.stop.load(Relaxed) {
                stats.shadow.drop_one();
                continue;
            }
            let Some((question, live)) = batch.read(begin) else {
                tracing::error!("a question to a shadow cannot be read");
                stats.shadow.drop_one();
                continue;
            };
            *taken += self.ask(set, policy, question, live);
        }
    }

    /// Asks one question; the processor time that it took.
    fn ask(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        question: Question,
        live: Option<Said>,
    ) -> Duration {
        let entry = &set.policies()[policy];
        let stats = &entry.stats().shadow;
        let begun = processor_time();
        let answer = if is_asked(entry, &question) {
            self.answer(set, policy, &question)
        } else {
            Ok(Answer::neutral(&question))
        };
        let took = processor_time().saturating_sub(begun);
        // A full pool is not the shadow's fault, nor is it that the process ends.
        let is_inconclusive = match &answer {
            Err(PolicyFailure { kind: FailureKind::Host, .. }) => true,
            Err(_) => self.stop.load(Relaxed),
            Ok(_) => false,
        };
        if is_inconclusive {
            stats.drop_one();
            return took;
        }
        let old = live.unwrap_or_else(|| Said::Answer(Answer::neutral(&question)));
        let told = Told {
            failure: answer.as_ref().err().cloned(),
            said: answer.into(),
            took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        };
        stats.begin(set.id(), entry, question.with(|ask| ask.now()));
        stats.note(entry.name(), &question, old, &told);
        took
    }

    fn answer(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        question: &Question,
    ) -> Result<Answer, PolicyFailure> {
        let (stop, recycle_after) = (Arc::clone(&self.stop), self.recycle_after);
        let instances = self.instances_of(set);
        let entry = &set.policies()[policy];
        let mut instance = match instances.remove(&policy) {
            Some(instance) => instance,
            None => {
                let owner = Owner::Shadower(Patience::new(&stop));
                Instance::ready(&entry.template, owner, recycle_after)?
            }
        };
        let answer = instance.ask(question, entry.needs())?;
        instance.calls_left = instance.calls_left.saturating_sub(1);
        if instance.calls_left > 0 {
            instances.insert(policy, instance);
        }
        Ok(answer)
    }

    fn instances_of(&mut self, set: &Arc<PolicySet>) -> &mut HashMap<usize, Instance> {
        let at =
            self.warm.iter().position(|warm| Arc::ptr_eq(&warm.set, set)).unwrap_or_else(|| {
                self.warm.truncate(1);
                self.warm.insert(0, Warm { set: Arc::clone(set), instances: HashMap::new() });
                0
            });
        &mut self.warm[at].instances
    }
}

/// Whether a policy has what is asked. What it has not, it cannot change.
fn is_asked(policy: &Policy, question: &Question) -> bool {
    match question {
        Question::Decide { .. } => policy.has(Hook::Freeze),
        Question::Route { .. } => policy.has(Hook::Routing),
        Question::Limits { .. } => policy.has(Hook::Throttling),
        Question::Observe { .. } => policy.needs().outcomes,
    }
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let warm = self.instances.len();
        f.debug_struct("Warm").field("set", &self.set.id()).field("instances", &warm).finish()
    }
}
