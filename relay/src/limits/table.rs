//! The table of limits: cells, counts, queues. Pure: time is an argument (nanoseconds of a
//! monotonic clock), and nothing here waits.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{Charge, LimitError};
use crate::{
    decision::{ConcurrencyLimit, RateLimit},
    gcra::Cell,
};

/// A slot of the table. The serial number tells a slot that was given to another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId {
    index: usize,
    serial: u64,
}

/// A place in the queue of a slot. The ticket is drawn once and kept from queue to queue: whoever
/// has waited longest is kept back by limits only, never by others who wait. Were the order that
/// of each queue, two could stand in each other's way and change places for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) slot: SlotId,
    ticket: u64,
}

/// One limit that an attempt took.
#[derive(Clone, Debug)]
pub(super) enum Taken {
    Rate { slot: SlotId, limit: RateLimit, factor: u32 },
    Concurrency { slot: SlotId },
}

impl Taken {
    pub(super) fn is_concurrency(&self) -> bool {
        matches!(self, Self::Concurrency { .. })
    }
}

/// Why nothing was taken.
pub(super) struct Refusal {
    /// What blocks; none when waiting does not help.
    pub(super) slot: Option<SlotId>,
    /// When it conforms again, where time alone does it.
    pub(super) ready: Option<u64>,
    pub(super) error: LimitError,
}

struct Waiter {
    ticket: u64,
    waker: Option<oneshot::Sender<()>>,
}

struct Slot {
    serial: u64,
    hash: u64,
    scope: Arc<str>,
    key: Box<str>,
    cell: Cell,
    in_use: u32,
    paused_until: u64,
    factor: u32,
    slow_until: u64,
    /// When it conforms again, as of the last refusal.
    ready: u64,
    queue: VecDeque<Waiter>,
}

impl Slot {
    fn factor(&self, now: u64) -> u32 {
        if now < self.slow_until { self.factor } else { NORMAL }
    }

    fn is_idle(&self, now: u64) -> bool {
        self.in_use == 0
            && self.queue.is_empty()
            && self.cell.is_idle(now)
            && self.paused_until <= now
            && self.slow_until <= now
    }
}

/// Thousandths: the rate as the policy named it.
const NORMAL: u32 = 1000;

pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    index: HashMap<u64, Vec<usize>, std::hash::BuildHasherDefault<Identity>>,
    hasher: RandomState,
    keys: usize,
    queue: usize,
    waiting: usize,
    serial: u64,
    swept: u64,
}

/// The hash is the key already.
#[derive(Default)]
pub(super) struct Identity(u64);

impl std::hash::Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A full table looks for idle cells at most this often: 100 ms.
const SWEEP_PAUSE: u64 = 100_000_000;

impl Table {
    pub(super) fn new(keys: usize, queue: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::default(),
            hasher: RandomState::new(),
            keys,
            queue,
            waiting: 0,
            serial: 0,
            swept: 0,
        }
    }

    pub(super) fn resize(&mut self, keys: usize, queue: usize) {
        self.keys = keys;
        self.queue = queue;
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes everything or nothing. Nobody passes one who waits there and has an older ticket.
    pub(super) fn take(
        &mut self,
        charges: &[Charge],
        now: u64,
        turn: Option<Turn>,
    ) -> Result<Vec<Taken>, Refusal> {
        let mut taken = Vec::with_capacity(
            charges.iter().map(|c| c.limits.rates.len() + c.limits.concurrency.len()).sum(),
        );
        let outcome = charges.iter().try_for_each(|charge| {
            charge.limits.rates.iter().try_for_each(|limit| {
                taken.push(self.take_rate(&charge.scope, limit, now, turn)?);
                Ok(())
            })?;
            charge.limits.concurrency.iter().try_for_each(|limit| {
                taken.push(self.take_count(&charge.scope, limit, now, turn)?);
                Ok(())
            })
        });
        match outcome {
            Ok(()) => Ok(taken),
            Err(refusal) => {
                // Nobody is woken: it is as it was.
                taken.iter().for_each(|taken| _ = self.give_back(taken));
                Err(refusal)
            }
        }
    }

    fn take_rate(
        &mut self,
        scope: &Arc<str>,
        limit: &RateLimit,
        now: u64,
        turn: Option<Turn>,
    ) -> Result<Taken, Refusal> {
        let id = self.slot(scope, &limit.key, now)?;
        let slot = self.get(id);
        let factor = slot.factor(now);
        let paused = (slot.paused_until > now).then_some(slot.paused_until);
        let ready = paused.max(slot.cell.blocked_until(limit, now, factor));
        if ready.is_some() || must_queue(slot, turn) {
            slot.ready = ready.unwrap_or(0);
            return Err(refusal(slot, id, ready));
        }
        slot.cell.charge(limit, now, factor);
        Ok(Taken::Rate { slot: id, limit: limit.clone(), factor })
    }

    fn take_count(
        &mut self,
        scope: &Arc<str>,
        limit: &ConcurrencyLimit,
        now: u64,
        turn: Option<Turn>,
    ) -> Result<Taken, Refusal> {
        let id = self.slot(scope, &limit.key, now)?;
        let slot = self.get(id);
        let ready = (slot.paused_until > now).then_some(slot.paused_until);
        if slot.in_use >= limit.limit || ready.is_some() || must_queue(slot, turn) {
            return Err(refusal(slot, id, ready));
        }
        slot.in_use += 1;
        Ok(Taken::Concurrency { slot: id })
    }

    /// Ends the concurrency that was taken.
    pub(super) fn release(&mut self, taken: &[Taken]) {
        for taken in taken.iter().filter(|taken| taken.is_concurrency()) {
            self.give_back(taken).map(wake_head);
        }
    }

    /// Gives charged rates back.
    pub(super) fn refund(&mut self, taken: &mut Vec<Taken>) {
        for taken in taken.iter().filter(|taken| !taken.is_concurrency()) {
            self.give_back(taken).map(wake_head);
        }
        taken.retain(Taken::is_concurrency);
    }

    /// Undoes one taking; the slot, where it is still there.
    fn give_back(&mut self, taken: &Taken) -> Option<&mut Slot> {
        match taken {
            Taken::Rate { slot: id, limit, factor } => {
                let slot = self.find(*id)?;
                slot.cell.refund(limit, *factor);
                Some(slot)
            }
            Taken::Concurrency { slot: id } => {
                let slot = self.get(*id);
                slot.in_use -= 1;
                Some(slot)
            }
        }
    }

    /// Stands in a slot's queue: at its end, or, having waited elsewhere, where his ticket belongs.
    pub(super) fn enqueue(
        &mut self,
        id: SlotId,
        earlier: Option<Turn>,
    ) -> Result<(Turn, oneshot::Receiver<()>), LimitError> {
        let ticket = match earlier {
            Some(turn) => turn.ticket,
            None if self.waiting >= self.queue => {
                return Err(LimitError::QueueFull { limit: self.queue });
            }
            None => {
                self.serial += 1;
                self.serial
            }
        };
        self.waiting += 1;
        let (sender, receiver) = oneshot::channel();
        let queue = &mut self.get(id).queue;
        let at = queue.partition_point(|waiter| waiter.ticket < ticket);
        queue.insert(at, Waiter { ticket, waker: Some(sender) });
        Ok((Turn { slot: id, ticket }, receiver))
    }

    /// A new wake-up for one who keeps his place.
    pub(super) fn wait_again(&mut self, turn: Turn) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let queue = &mut self.get(turn.slot).queue;
        if let Some(waiter) = queue.iter_mut().find(|waiter| waiter.ticket == turn.ticket) {
            waiter.waker = Some(sender);
        }
        receiver
    }

    pub(super) fn is_head(&mut self, turn: Turn) -> bool {
        self.get(turn.slot).queue.front().is_some_and(|head| head.ticket == turn.ticket)
    }

    /// Leaves a queue; the next one is asked.
    pub(super) fn leave(&mut self, turn: Turn) {
        let slot = self.get(turn.slot);
        let Some(at) = slot.queue.iter().position(|waiter| waiter.ticket == turn.ticket) else {
            return;
        };
        slot.queue.remove(at);
        if at == 0 {
            wake_head(slot);
        }
        self.waiting -= 1;
    }

    pub(super) fn pause(&mut self, scope: &Arc<str>, key: &str, until: u64, now: u64) {
        if let Ok(id) = self.slot(scope, key, now) {
            let slot = self.get(id);
            slot.paused_until = slot.paused_until.max(until);
        }
    }

    pub(super) fn slow(&mut self, scope: &Arc<str>, key: &str, factor: u32, until: u64, now: u64) {
        if let Ok(id) = self.slot(scope, key, now) {
            let slot = self.get(id);
            slot.factor = factor.max(NORMAL);
            slot.slow_until = until;
        }
    }

    /// When a key conforms again, where the last one whom it refused was told a time.
    pub(super) fn ready(&self, scope: &str, key: &str) -> Option<u64> {
        let index = self.index_of(self.hash(scope, key), scope, key)?;
        self.slots[index].as_ref().map(|slot| slot.ready).filter(|ready| *ready > 0)
    }

    fn get(&mut self, id: SlotId) -> &mut Slot {
        let slot = self.slots[id.index].as_mut().filter(|slot| slot.serial == id.serial);
        match slot {
            Some(slot) => slot,
            // A slot with users or waiters is never idle, so it is never given away.
            None => unreachable!("a slot in use was evicted"),
        }
    }

    fn find(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots[id.index].as_mut().filter(|slot| slot.serial == id.serial)
    }

    fn hash(&self, scope: &str, key: &str) -> u64 {
        self.hasher.hash_one((scope, key))
    }

    fn index_of(&self, hash: u64, scope: &str, key: &str) -> Option<usize> {
        let is_it = |slot: &Slot| *slot.key == *key && *slot.scope == *scope;
        let mut indexes = self.index.get(&hash)?.iter().copied();
        indexes.find(|index| self.slots[*index].as_ref().is_some_and(is_it))
    }

    /// The slot of a key; a new one if there is none.
    fn slot(&mut self, scope: &Arc<str>, key: &str, now: u64) -> Result<SlotId, Refusal> {
        let hash = self.hash(scope, key);
        if let Some(index) = self.index_of(hash, scope, key)
            && let Some(slot) = &self.slots[index]
        {
            return Ok(SlotId { index, serial: slot.serial });
        }
        if self.len() >= self.keys {
            self.sweep(now);
        }
        if self.len() >= self.keys {
            let error = LimitError::TableFull { limit: self.keys };
            return Err(Refusal { slot: None, ready: None, error });
        }
        self.serial += 1;
        let slot = Slot {
            serial: self.serial,
            hash,
            scope: Arc::clone(scope),
            key: key.into(),
            cell: Cell::default(),
            in_use: 0,
            paused_until: 0,
            factor: NORMAL,
            slow_until: 0,
            ready: 0,
            queue: VecDeque::new(),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(slot);
        self.index.entry(hash).or_default().push(index);
        Ok(SlotId { index, serial: self.serial })
    }

    /// Forgets idle cells: they say nothing more than fresh ones.
    fn sweep(&mut self, now: u64) {
        if now < self.swept.saturating_add(SWEEP_PAUSE) && self.swept != 0 {
            return;
        }
        self.swept = now.max(1);
        for index in 0..self.slots.len() {
            let Some(slot) = &self.slots[index] else { continue };
            if !slot.is_idle(now) {
                continue;
            }
            let hash = slot.hash;
            if let Some(indexes) = self.index.get_mut(&hash) {
                indexes.retain(|other| *other != index);
                if indexes.is_empty() {
                    self.index.remove(&hash);
                }
            }
            self.slots[index] = None;
            self.free.push(index);
        }
    }
}

/// Whether one with an older ticket waits here; who has no turn has the youngest.
fn must_queue(slot: &Slot, turn: Option<Turn>) -> bool {
    let head = slot.queue.front();
    head.is_some_and(|head| turn.is_none_or(|turn| head.ticket < turn.ticket))
}

fn refusal(slot: &Slot, id: SlotId, ready: Option<u64>) -> Refusal {
    let error = LimitError::Reached { scope: slot.scope.to_string(), key: slot.key.to_string() };
    Refusal { slot: Some(id), ready, error }
}

fn wake_head(slot: &mut Slot) {
    if let Some(waker) = slot.queue.front_mut().and_then(|head| head.waker.take()) {
        // One who is just giving up leaves the queue himself and wakes the next.
        let _ = waker.send(());
    }
}
