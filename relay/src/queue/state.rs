//! What the queue's one lock holds, and how it changes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use wavegate_spool::Op;

use super::{Account, Line, NewMessage, Taken, UNKNOWN};
use crate::{
    answer::Kept,
    envelope::{Envelope, Progress},
    limits::Charge,
    parcel::Message,
    plan::Timestamp,
    scheduler::{self, Entry, InstanceKey, Scheduler, Slot, UpstreamKey, Wait},
    spool::Handle,
};

pub(super) struct State {
    pub(super) scheduler: Scheduler,
    /// By slot.
    pub(super) handles: Vec<Option<Handle>>,
    /// Messages that are still in memory, because their attempt comes at once.
    pub(super) cached: HashMap<Slot, Cached>,
    /// Messages of which the spool says that they may have been delivered, because their first
    /// attempt comes at once: this spares each of them a note of its own.
    pub(super) noted: HashSet<Slot>,
    /// What is known of messages beyond their entry: of those that were attempted before.
    pub(super) notes: HashMap<Slot, Box<Progress>>,
    /// By slot: an earlier process may have delivered it.
    pub(super) doubtful: Vec<bool>,
    /// In an order, because they are written down in it.
    pub(super) accounts: BTreeMap<InstanceKey, Account>,
    /// Why nothing may leave.
    pub(super) all_held: Option<Arc<str>>,
    /// Tasks that serve a line.
    pub(super) servers: BTreeMap<Line, usize>,
}

/// What is in memory of a message.
pub(super) struct Cached {
    pub(super) message: Arc<Message>,
    pub(super) envelope: Arc<Envelope>,
    /// What the gate said.
    pub(super) answer: Option<Kept>,
}

impl State {
    /// A message is durable: from now on it waits.
    pub(super) fn enter(&mut self, new: NewMessage, handle: Handle, now: Timestamp) -> Slot {
        let NewMessage { message, envelope, progress, wait, answer } = new;
        let slot = self.place(handle);
        let recipients = progress.pending;
        let instance = self.scheduler.instance(progress.instance.as_deref());
        let upstream = match &wait {
            Wait::Upstream(name) => Some(self.scheduler.upstream(name)),
            _ => self.last_upstream(&progress),
        };
        let entry = Entry {
            id: message.id,
            instance,
            received: envelope.received,
            size: envelope.facts.size,
            held_ms: 0,
            progress: scheduler::Progress { recipients, attempts: progress.attempts, upstream },
        };
        self.keep_note(slot, &progress);
        self.accounts.entry(instance).or_default().accept(u64::from(recipients));
        let soon = matches!(wait, Wait::Turn | Wait::Reply);
        if soon && message.parcel.body.as_memory().is_some() && message.has_room() {
            self.cached.insert(slot, Cached { message, envelope, answer });
        }
        self.scheduler.insert(slot, entry, wait, now);
        slot
    }

    /// Whether a message stands in this line.
    pub(super) fn waits_for(&self, slot: Slot, line: &Line) -> bool {
        let view = self.scheduler.get(slot).map(|(_, view)| view.state);
        matches!(view, Some(scheduler::State::Waiting(wait)) if wait == *line)
    }

    /// Where the last attempt went: by that upstream's time the message expires.
    pub(super) fn last_upstream(&mut self, progress: &Progress) -> Option<UpstreamKey> {
        let name = progress.last.as_ref()?.upstream.as_deref()?;
        Some(self.scheduler.upstream(name))
    }

    pub(super) fn place(&mut self, handle: Handle) -> Slot {
        let index = handle.index();
        if self.handles.len() <= index {
            self.handles.resize(index + 1, None);
        }
        self.handles[index] = Some(handle);
        Slot::try_from(index).unwrap_or(Slot::MAX)
    }

    /// A message in flight with what is known of it.
    pub(super) fn taken(&mut self, slot: Slot) -> Option<Taken> {
        let index = slot as usize;
        let handle = self.handles.get(index).copied().flatten()?;
        let mut progress = self.progress_of(slot)?;
        progress.held_since = None;
        let (message, answer) = match self.cached.get_mut(&slot) {
            Some(Cached { message, envelope, answer }) => {
                (Some((Arc::clone(message), Arc::clone(envelope))), answer.take())
            }
            None => (None, None),
        };
        let doubtful = self.doubtful.get_mut(index).is_some_and(std::mem::take);
        let noted = self.noted.contains(&slot);
        Some(Taken { slot, handle, progress, message, answer, doubtful, noted })
    }

    /// How far a message has come.
    pub(super) fn progress_of(&self, slot: Slot) -> Option<Progress> {
        let (entry, _) = self.scheduler.get(slot)?;
        let mut progress = match self.notes.get(&slot) {
            Some(note) => Progress::clone(note),
            None => Progress {
                instance: self.scheduler.instance_name(entry.instance).map(|name| name.to_string()),
                attempts: entry.progress.attempts,
                ..Progress::default()
            },
        };
        progress.held_ms = entry.held_ms;
        progress.pending = entry.progress.recipients;
        Some(progress)
    }

    /// Notes that an earlier process may have delivered it, until that has been said.
    pub(super) fn in_doubt(&mut self, slot: Slot) -> Option<Op> {
        let Taken { handle, mut progress, .. } = self.taken(slot)?;
        progress.in_doubt = Some(UNKNOWN.to_owned());
        self.keep_note(slot, &progress);
        Some(Op::State { handle, state: progress.encode() })
    }

    /// Keeps what the entry does not hold; says whether there is something.
    pub(super) fn keep_note(&mut self, slot: Slot, progress: &Progress) -> bool {
        let plain = progress.attempts == 0
            && progress.operator.is_none()
            && progress.ended.is_empty()
            && progress.in_doubt.is_none()
            && progress.last.is_none();
        if plain {
            self.notes.remove(&slot);
        } else {
            self.notes.insert(slot, Box::new(progress.clone()));
        }
        !plain
    }

    pub(super) fn wake_lines(&mut self, now: Timestamp, which: impl Fn(&Wait) -> bool) {
        let lines = self.scheduler.lines().map(|(wait, _)| wait).filter(|wait| which(wait));
        let lines: Vec<Wait> = lines.cloned().collect();
        for line in lines {
            self.scheduler.wake(&line, now);
        }
    }

    pub(super) fn leave(&mut self, slot: Slot) {
        self.scheduler.remove(slot);
        self.cached.remove(&slot);
        self.noted.remove(&slot);
        self.notes.remove(&slot);
        if let Some(handle) = self.handles.get_mut(slot as usize) {
            *handle = None;
        }
    }

    pub(super) fn line_of(&self, upstream: &str, charges: &[Charge]) -> Option<Line> {
        // The common case costs no allocation: nobody waits for anything.
        if !self
            .scheduler
            .lines()
            .any(|(wait, _)| matches!(wait, Wait::Upstream(_) | Wait::Limit { .. }))
        {
            return None;
        }
        let line = Wait::Upstream(upstream.into());
        if self.scheduler.has_waiting(&line) {
            return Some(line);
        }
        let keys = charges.iter().flat_map(|charge| {
            let rates = charge.limits.rates.iter().map(|limit| &limit.key);
            let caps = charge.limits.concurrency.iter().map(|limit| &limit.key);
            rates.chain(caps).map(|key| (&charge.scope, key))
        });
        keys.map(|(scope, key)| Wait::Limit { scope: Arc::clone(scope), key: key.as_str().into() })
            .find(|line| self.scheduler.has_waiting(line))
    }

    /// Writes an account down as it is now.
    pub(super) fn account_op(&mut self, instance: InstanceKey) -> Op {
        let name = self.scheduler.instance_name(instance).cloned();
        let account = self.accounts.entry(instance).or_default();
        account.dirty = false;
        account.op(name.as_deref())
    }
}
