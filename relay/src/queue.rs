//! The messages that wait: the spool and the scheduler as one, and what each instance was
//! promised. Floor 3.
//!
//! One lock holds turns and accounts together, so that a reading sees every recipient in exactly
//! one place: accepted = delivered + bounced + expired + removed + in flight + spooled. What is
//! written to the spool is ordered under the same lock, so that what a crash leaves adds up too.

mod account;
mod bytes;
mod control;
mod recover;
mod state;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use tokio::sync::Notify;
use wavegate_spool::Op;

pub use crate::event::End as Ended;
pub use account::Account;
pub use control::{Act, Applied, Listing, Match, Refusal, Selection, Standing};
pub use recover::{Found, OpenedQueue};

use self::{bytes::body_of, state::State};
use crate::{
    answer::Kept as Answered,
    envelope::{Envelope, Progress},
    limits::Charge,
    message::MessageId,
    parcel::Message,
    plan::Timestamp,
    scheduler::{self, Entry, InstanceKey, Pace, Slot, UpstreamKey, Wait},
    spool::{Handle, Mark, NewEntry, Receipt, Spool, SpoolError},
    upstream::connection::current_worker,
    waves::{self, Record},
    world::WallClock,
};

/// The upstream of a doubt that nobody knows one for.
const UNKNOWN: &str = "unknown";

/// Key of the value that says that everything is held.
const ALL_HELD: &[u8] = b"all-held";

/// All messages that wait.
pub struct Queue {
    spool: Spool,
    clock: Arc<dyn WallClock>,
    state: Mutex<State>,
    /// What an earlier process wrote down of waves, and of the clock.
    found: Kept,
    /// One a worker: something may have its turn.
    turns: Vec<Notify>,
    /// How often what messages wait for as [`Wait::Change`] has come about.
    changes: AtomicU64,
    /// Something changed that the keeper of phases should look at.
    pub(crate) changed: Notify,
    /// An attempt has ended.
    settled: Notify,
}

/// Key of the value that says when wall clock and boot clock agreed.
const AGREED: &[u8] = b"clock";

/// What an earlier process wrote down beside messages.
#[derive(Default)]
struct Kept {
    lives: Vec<Record>,
    agreed: Option<Vec<u8>>,
}

/// Messages that wait for their first attempt and are in doubt after a crash although it had not
/// begun: about so many at most.
const NOTED: usize = 256;

/// A line that is served: whoever waits for an upstream or a limit.
pub(crate) type Line = Wait;

/// A message for the queue.
pub struct NewMessage {
    /// The message.
    pub message: Arc<Message>,
    /// Its envelope.
    pub envelope: Arc<Envelope>,
    /// How far it has come.
    pub progress: Progress,
    /// What it waits for.
    pub wait: Wait,
    /// What the gate said of it, if it has its turn.
    pub answer: Option<Answered>,
}

/// A message that was made durable.
pub struct Accepted {
    /// Its place.
    pub slot: Slot,
    /// The proof.
    pub receipt: Receipt,
}

/// A message whose turn it is.
pub struct Taken {
    /// Its place.
    pub slot: Slot,
    /// Where the spool has it.
    pub handle: Handle,
    /// How far it has come.
    pub progress: Progress,
    /// It and its envelope, where they are in memory.
    pub message: Option<(Arc<Message>, Arc<Envelope>)>,
    /// What the gate said of it when it came.
    pub answer: Option<Answered>,
    /// An earlier process may have delivered it.
    pub doubtful: bool,
    /// The spool says already that it may have been delivered.
    pub noted: bool,
}

/// What became of recipients of a message at an attempt, and of the message.
pub struct Settlement {
    /// Recipients that came to an end.
    pub ends: Vec<(Ended, u64)>,
    /// What the others wait for; none when there is no other.
    pub wait: Option<Wait>,
    /// Notes that an attempt was under way.
    pub marks: Vec<Mark>,
}

/// One moment's figures.
pub struct Snapshot {
    /// By instance; none for mail of no instance.
    pub instances: Vec<(Option<Arc<str>>, Account, scheduler::Figures)>,
    /// All together.
    pub total: scheduler::Figures,
    /// Lines and how many wait in each.
    pub lines: Vec<(Wait, usize)>,
    /// Why nothing may leave.
    pub all_held: Option<Arc<str>>,
}

impl NewMessage {
    /// Recipients that have no end yet.
    fn pending(&self) -> u32 {
        let pending = self.envelope.recipients.len() - self.progress.ended.len();
        u32::try_from(pending).unwrap_or(u32::MAX)
    }

    /// Whether its first attempt comes as soon as it is durable.
    fn goes_at_once(&self) -> bool {
        self.wait == Wait::Turn && self.answer.is_some()
    }
}

impl Queue {
    /// Makes messages durable and has them wait, all or none.
    pub async fn accept(&self, new: Vec<NewMessage>) -> Result<Vec<Accepted>, SpoolError> {
        let now = self.clock.now();
        let notes = self.room_for_notes();
        let entries = new.iter().map(|new| {
            let mut progress = new.progress.clone();
            progress.pending = new.pending();
            if notes && new.goes_at_once() {
                progress.in_doubt = Some(UNKNOWN.to_owned());
            }
            progress.held_since = new.wait.is_hold().then_some(now.0);
            NewEntry {
                id: new.message.id,
                envelope: new.envelope.encode(),
                state: progress.encode(),
                body: body_of(&new.message, self.spool.is_at_once()),
            }
        });
        let taken = self.spool.accept(entries.collect(), Vec::new()).await?;
        let mut state = self.lock();
        let accepted = new.into_iter().zip(taken).map(|(mut new, (handle, receipt))| {
            new.progress.pending = new.pending();
            let noted = notes && new.goes_at_once();
            let slot = state.enter(new, handle, now);
            if noted {
                state.noted.insert(slot);
            }
            Accepted { slot, receipt }
        });
        let accepted = accepted.collect();
        drop(state);
        self.notify();
        Ok(accepted)
    }

    /// Whether messages that go at once may be noted as in doubt. Where many wait they do not go
    /// at once.
    fn room_for_notes(&self) -> bool {
        let state = self.lock();
        state.noted.len() < NOTED && state.all_held.is_none()
    }

    /// The next message whose turn it is; it is in flight from now on.
    pub fn take(&self) -> Option<Taken> {
        let mut state = self.lock();
        if state.all_held.is_some() {
            return None;
        }
        let slot = state.scheduler.take(self.clock.now())?;
        state.taken(slot)
    }

    /// A message whose attempt goes on although others think that it waits.
    pub(crate) fn of(&self, slot: Slot) -> Option<Taken> {
        self.lock().taken(slot)
    }

    /// The next message of a line; it is in flight from now on.
    pub(crate) fn take_waiting(&self, line: &Line) -> Option<Taken> {
        let mut state = self.lock();
        if state.all_held.is_some() {
            return None;
        }
        let slot = state.scheduler.take_waiting(line, self.clock.now())?;
        state.taken(slot)
    }

    /// Waits until something may have its turn on the calling worker.
    pub(crate) async fn turn(&self) {
        let told = self.turns[self.worker()].notified();
        let wake = {
            let state = self.lock();
            // While everything is held no time makes anything ready.
            state.scheduler.next_wake().filter(|_| state.all_held.is_none())
        };
        let Some(wake) = wake else { return told.await };
        let pause = std::time::Duration::from_millis(wake.0.saturating_sub(self.clock.now().0));
        tokio::select! {
            biased;
            () = told => {}
            // The clock may step: whoever sleeps for long looks again in between.
            () = tokio::time::sleep(pause.min(LONGEST_SLEEP)) => {}
        }
    }

    /// Has the worker with the next number look too: this one has its hands full.
    pub(crate) fn pass_on(&self) {
        if self.turns.len() > 1 && self.lock().scheduler.has_waiting(&Wait::Turn) {
            self.turns[(self.worker() + 1) % self.turns.len()].notify_one();
        }
    }

    /// A message that was in flight waits for this now.
    pub(crate) fn block(&self, taken: Taken, wait: Wait) {
        self.settle(taken, Settlement { ends: Vec::new(), wait: Some(wait), marks: Vec::new() });
    }

    /// What became of a message that was in flight.
    pub fn settle(&self, taken: Taken, settlement: Settlement) {
        let now = self.clock.now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let Settlement { ends, wait, marks } = settlement;
        let mut ops = Vec::with_capacity(2);
        let Taken { slot, handle, mut progress, .. } = taken;
        let Some((entry, _)) = state.scheduler.get(slot) else { return };
        let instance = entry.instance;
        // An operator may have held it, or let it go, while it was in flight.
        progress.operator = state.notes.get(&slot).and_then(|note| note.operator.clone());
        let wait = match wait {
            Some(wait) if progress.operator.is_some() && wait != Wait::Reply => {
                Some(Wait::Operator)
            }
            wait => wait,
        };
        match wait {
            None => {
                state.leave(slot);
                ops.push(Op::Remove { handle });
            }
            Some(wait) => {
                let ended: u64 = ends.iter().map(|(_, count)| count).sum();
                if wait.is_hold() {
                    progress.held_since.get_or_insert(now.0);
                    // One that waits for long does not wait in memory.
                    state.cached.remove(&slot);
                }
                let ended = u32::try_from(ended).unwrap_or(u32::MAX);
                let attempts = progress.attempts;
                state.scheduler.update(slot, |entry| {
                    entry.attempts = attempts;
                    entry.recipients = entry.recipients.saturating_sub(ended);
                    progress.pending = entry.recipients;
                });
                let note = state.keep_note(slot, &progress);
                if state.noted.remove(&slot) || note || wait.is_hold() {
                    ops.push(Op::State { handle, state: progress.encode() });
                }
                if let Wait::Retry(_) = wait {
                    state.cached.remove(&slot);
                }
                state.scheduler.block(slot, wait, now);
            }
        }
        if !ends.is_empty() {
            let account = state.accounts.entry(instance).or_default();
            ends.iter().for_each(|&(end, count)| account.end(end, count));
            ops.push(state.account_op(instance));
        }
        // Under the lock, so that the spool hears of things in the order in which they happened.
        self.spool.submit(ops, marks);
        drop(guard);
        self.settled.notify_waiters();
        self.notify();
    }

    /// Waits until no attempt is under way.
    pub async fn quiet(&self) {
        loop {
            let settled = self.settled.notified();
            if self.lock().scheduler.stats().total.in_flight.messages == 0 {
                return;
            }
            settled.await;
        }
    }

    /// Whoever waits for a turn is to look whether the relay stops.
    pub fn stop(&self) {
        self.changed.notify_one();
        self.notify_all();
    }

    /// Whether a new message would have to stand in line behind spooled ones: for this upstream,
    /// or for one of these limits.
    pub fn must_wait(&self, upstream: &str, charges: &[Charge]) -> bool {
        let state = self.lock();
        if state.scheduler.is_empty() {
            return false;
        }
        state.line_of(upstream, charges).is_some()
    }

    /// The line in which a message with this upstream and these limits has to stand, if there is
    /// one already.
    pub(crate) fn line_of(&self, upstream: &str, charges: &[Charge]) -> Option<Line> {
        self.lock().line_of(upstream, charges)
    }

    /// Registers a server of a line, if there are fewer than `most` and somebody waits.
    pub(crate) fn begin_serving(&self, line: &Line, most: usize) -> bool {
        let mut state = self.lock();
        if !state.scheduler.has_waiting(line) {
            return false;
        }
        let servers = state.servers.entry(line.clone()).or_default();
        let more = *servers < most;
        *servers += usize::from(more);
        more
    }

    /// A server found nobody in its line: whether it may go. Somebody may have come meanwhile.
    pub(crate) fn end_serving(&self, line: &Line) -> bool {
        let mut state = self.lock();
        if state.scheduler.has_waiting(line) && state.all_held.is_none() {
            return false;
        }
        if let Some(servers) = state.servers.get_mut(line) {
            *servers -= 1;
            if *servers == 0 {
                state.servers.remove(line);
            }
        }
        true
    }

    /// Recipients of a new message that an upstream took while the client waited.
    pub(crate) fn note_direct(&self, instance: Option<&str>, delivered: u64) {
        if delivered == 0 {
            return;
        }
        self.note(instance, Ended::Delivered, delivered);
    }

    /// Recipients of a new message that were accepted and came to this end at once.
    pub(crate) fn note(&self, instance: Option<&str>, end: Ended, recipients: u64) {
        let mut state = self.lock();
        let key = state.scheduler.instance(instance);
        let account = state.accounts.entry(key).or_default();
        account.accept(recipients);
        account.end(end, recipients);
        account.dirty = true;
    }

    /// Writes down the accounts that direct hand-off has changed.
    pub fn save_accounts(&self) {
        let mut state = self.lock();
        let dirty: Vec<_> = state
            .accounts
            .iter()
            .filter(|(_, account)| account.dirty)
            .map(|(key, _)| *key)
            .collect();
        let ops = dirty.into_iter().map(|key| state.account_op(key)).collect();
        self.spool.submit(ops, Vec::new());
    }

    /// The wait for the end of an instance's window.
    pub fn wait_for_phase(&self, instance: &str) -> Wait {
        Wait::Phase(self.lock().scheduler.instance(Some(instance)))
    }

    /// Notes on disk that the end of a message's data is about to be written.
    pub(crate) fn mark(&self, id: MessageId) -> Result<Mark, SpoolError> {
        self.spool.mark(id)
    }

    /// Writes down that what waits was not delivered, and closes the spool. Blocks.
    pub fn close(&self) {
        let mut state = self.lock();
        let slots: Vec<Slot> = state.noted.iter().copied().collect();
        let waits = |view: &scheduler::WaitView| matches!(view.state, scheduler::State::Waiting(_));
        let slots = slots.into_iter().filter_map(|slot| {
            let (_, view) = state.scheduler.get(slot)?;
            let handle = state.handles.get(slot as usize).copied().flatten()?;
            let progress = waits(&view).then(|| state.progress_of(slot))??;
            Some((slot, Op::State { handle, state: progress.encode() }))
        });
        let (slots, ops): (Vec<_>, Vec<_>) = slots.collect();
        slots.iter().for_each(|slot| _ = state.noted.remove(slot));
        self.spool.submit(ops, Vec::new());
        drop(state);
        self.spool.close();
    }

    /// Why nothing may leave, if nothing may.
    pub fn all_held(&self) -> Option<Arc<str>> {
        self.lock().all_held.clone()
    }

    /// Nothing leaves from now on, or everything may again. Durable when this returns.
    pub async fn hold_all(&self, reason: Option<&str>) -> Result<(), SpoolError> {
        let now = self.clock.now();
        {
            let mut state = self.lock();
            state.all_held = reason.map(Into::into);
            if reason.is_none() {
                state
                    .wake_lines(now, |wait| matches!(wait, Wait::Upstream(_) | Wait::Limit { .. }));
            }
            let value = reason.map(|reason| reason.as_bytes().to_vec());
            let op = Op::Value { key: ALL_HELD.to_vec(), value };
            self.spool.submit(vec![op], Vec::new());
        }
        self.notify_all();
        self.written().await
    }

    /// What earlier processes wrote down of waves.
    pub fn lives(&self) -> Vec<Record> {
        self.found.lives.clone()
    }

    /// What an earlier process wrote down of when the clocks agreed.
    pub(crate) fn agreed(&self) -> Option<&[u8]> {
        self.found.agreed.as_deref()
    }

    /// Writes down lives of waves, forgets those of others, and says when the clocks agreed. All
    /// of it is durable when this returns without an error.
    pub(crate) async fn keep_lives(
        &self,
        lives: &[Arc<Record>],
        forgotten: &[String],
        agreed: Option<Vec<u8>>,
    ) -> Result<(), SpoolError> {
        let lives = lives.iter().filter(|life| !forgotten.contains(&life.wave));
        let lives = lives.map(|life| (waves::key(&life.wave), Some(life.encode())));
        let gone = forgotten.iter().map(|wave| (waves::key(wave), None));
        let agreed = agreed.map(|agreed| (AGREED.to_vec(), Some(agreed)));
        let all = lives.chain(gone).chain(agreed);
        self.spool.apply(all.map(|(key, value)| Op::Value { key, value }).collect()).await
    }

    /// Has what is on disk of these waves be that again, as soon as that can be: something else
    /// was tried to be written, and it is not known whether it was.
    pub(crate) fn restore_lives(&self, lives: &[(String, Option<Arc<Record>>)]) {
        let op = |(wave, life): &(String, Option<Arc<Record>>)| Op::Value {
            key: waves::key(wave),
            value: life.as_ref().map(|life| life.encode()),
        };
        self.spool.submit(lives.iter().map(op).collect(), Vec::new());
    }

    /// How many messages of these instances that were received before a time still wait for the
    /// attempt that a release lets them make. A pass over all messages, in pieces.
    pub(crate) fn waiting_since_before(
        &self,
        wanted: &HashMap<Arc<str>, Timestamp>,
    ) -> HashMap<Arc<str>, u64> {
        let mut found: HashMap<Arc<str>, u64> = HashMap::new();
        let mut at = 0;
        loop {
            let state = self.lock();
            let to = state.handles.len().min(at + PIECE);
            for slot in (at..to).filter_map(|index| Slot::try_from(index).ok()) {
                let Some((entry, view)) = state.scheduler.get(slot) else { continue };
                let Some(name) = state.scheduler.instance_name(entry.instance) else { continue };
                if wanted.get(name).is_some_and(|before| entry.received < *before)
                    && awaits_release(&view.state, entry.progress.attempts)
                {
                    *found.entry(Arc::clone(name)).or_default() += 1;
                }
            }
            if to == state.handles.len() {
                return found;
            }
            at = to;
        }
    }

    /// The instances that messages wait for the window of, by name.
    pub(crate) fn phases(&self) -> Vec<(InstanceKey, Arc<str>)> {
        let state = self.lock();
        let keys = state.scheduler.lines().filter_map(|(wait, _)| match wait {
            Wait::Phase(key) => Some(*key),
            _ => None,
        });
        keys.filter_map(|key| Some((key, Arc::clone(state.scheduler.instance_name(key)?))))
            .collect()
    }

    /// An instance's window has ended: its mail is let out, oldest first, at this pace.
    pub(crate) fn release(&self, instance: InstanceKey, pace: Pace) -> usize {
        let now = self.clock.now();
        let released = self.lock().scheduler.release(&Wait::Phase(instance), pace, now);
        self.notify_all();
        released
    }

    /// The plan or the generation has changed: what waits for that, or for something that may
    /// not be there any more, is asked about again.
    pub fn plan_changed(&self) {
        self.change(|wait| matches!(wait, Wait::Change | Wait::Upstream(_) | Wait::Limit { .. }));
    }

    /// A phase has changed: what waits for a change is asked about again.
    pub(crate) fn phases_changed(&self) {
        self.change(|wait| *wait == Wait::Change);
    }

    fn change(&self, wakes: impl Fn(&Wait) -> bool) {
        let now = self.clock.now();
        let mut state = self.lock();
        self.changes.fetch_add(1, Release);
        state.wake_lines(now, wakes);
        drop(state);
        self.changed.notify_one();
        self.notify_all();
    }

    /// How often something has changed. To be read before what may change is looked at, see
    /// [`Queue::look_again`].
    pub fn changes(&self) -> u64 {
        self.changes.load(Acquire)
    }

    /// A message that was asked about when there had been so many changes waits for another one. If
    /// that has come since, it has its turn: nobody else would say so.
    pub(crate) fn look_again(&self, slot: Slot, changes: u64) {
        let mut state = self.lock();
        let waits = state.waits_for(slot, &Wait::Change);
        if waits && self.changes() != changes && state.scheduler.retry_now(slot, self.clock.now()) {
            drop(state);
            self.notify();
        }
    }

    /// All that wait in a line have their turn.
    pub(crate) fn wake(&self, line: &Line) {
        let now = self.clock.now();
        self.lock().scheduler.wake(line, now);
        self.notify_all();
    }

    /// Messages whose time is over; they are in flight from now on. A pass over all messages.
    pub(crate) fn expired(
        &self,
        expiry: impl Fn(Option<&str>) -> std::time::Duration,
    ) -> Vec<Taken> {
        let now = self.clock.now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let names: HashMap<UpstreamKey, Arc<str>> = state
            .scheduler
            .entries()
            .filter_map(|(_, entry, _)| entry.progress.upstream)
            .collect::<HashSet<_>>()
            .into_iter()
            .filter_map(|key| Some((key, Arc::clone(state.scheduler.upstream_name(key)?))))
            .collect();
        let of = |entry: &Entry| {
            let upstream = entry.progress.upstream.and_then(|key| names.get(&key));
            expiry(upstream.map(|name| &**name))
        };
        let slots = state.scheduler.expired(now, of);
        slots.into_iter().filter_map(|slot| state.taken(slot)).collect()
    }

    /// The upstream that a message was to go to, where one is noted.
    pub(crate) fn upstream_of(&self, slot: Slot) -> Option<Arc<str>> {
        let state = self.lock();
        let (entry, _) = state.scheduler.get(slot)?;
        state.scheduler.upstream_name(entry.progress.upstream?).cloned()
    }

    /// Notes which upstream a message was to go to.
    pub(crate) fn note_upstream(&self, slot: Slot, upstream: &str) {
        let mut state = self.lock();
        let key = state.scheduler.upstream(upstream);
        state.scheduler.update(slot, |progress| progress.upstream = Some(key));
    }

    /// One moment's figures.
    pub fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        let stats = state.scheduler.stats();
        let known: Vec<InstanceKey> = state.accounts.keys().copied().collect();
        for key in known {
            debug_assert!(stats.instances.iter().any(|(other, _)| *other == key));
        }
        let instances = stats.instances.into_iter().map(|(key, figures)| {
            let name = state.scheduler.instance_name(key).cloned();
            let account = state.accounts.get(&key).copied().unwrap_or_default();
            (name, account, figures)
        });
        let instances = instances.collect();
        let lines = state.scheduler.lines().map(|(wait, count)| (wait.clone(), count)).collect();
        let all_held = state.all_held.clone();
        state.cached.shrink_to(64);
        Snapshot { instances, total: stats.total, lines, all_held }
    }

    /// Messages that wait or are attempted.
    pub fn len(&self) -> usize {
        self.lock().scheduler.len()
    }

    /// Whether no message waits, and none is attempted.
    pub fn is_empty(&self) -> bool {
        self.lock().scheduler.is_empty()
    }

    /// The spool.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Whoever waits for a turn on the calling worker looks again.
    pub(crate) fn notify(&self) {
        self.turns[self.worker()].notify_one();
    }

    /// Whoever waits for a turn looks again.
    pub(crate) fn notify_all(&self) {
        self.turns.iter().for_each(Notify::notify_one);
    }

    /// Workers are numbered from 1; whoever is none of them counts as the first.
    fn worker(&self) -> usize {
        current_worker().saturating_sub(1).min(self.turns.len() - 1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages looked at under one lock.
const PIECE: usize = 4096;

/// Whether a message waits for what a release lets it do. One that was tried and failed waits for
/// something else.
fn awaits_release(state: &scheduler::State, attempts: u32) -> bool {
    match state {
        scheduler::State::Paced | scheduler::State::Waiting(Wait::Phase(_) | Wait::Turn) => true,
        scheduler::State::InFlight
        | scheduler::State::Waiting(Wait::Upstream(_) | Wait::Limit { .. }) => attempts == 0,
        scheduler::State::Waiting(_) => false,
    }
}

/// Whoever waits for a time looks at the clock this often, because clocks step.
const LONGEST_SLEEP: std::time::Duration = std::time::Duration::from_secs(1);
