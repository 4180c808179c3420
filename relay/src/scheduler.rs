//! Which spooled message may be tried now, and what each of the others waits for. Floor 3.
//!
//! A pure data structure: time and messages come in, slots come out. It owns no clock, no lock,
//! no task and no file; the caller holds it in one mutex, sleeps until `next_wake`, makes the
//! attempts, and keeps what must last on disk. Nothing polls: a message that may not go stands
//! in the line of the *one* thing that blocks it, and is asked again when that changes.
//!
//! The order of calls: `insert` when a message is durable; `take` until it gives none, then
//! sleep until `next_wake` or until something is woken. What was taken is *in flight* and comes
//! back by `block`, or leaves by `remove`. Whoever serves a line (a connection came free, a
//! limit lets one through) asks `take_waiting`.
//!
//! Every line, the ready one too, is a fair round over flows (`line`): the new mail and the
//! backlog of every instance. Backlog is what was tried, held or released before, so new mail
//! never stands behind it.

mod cells;
mod entry;
mod line;
mod names;
mod pace;
mod places;
mod tally;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use self::{
    cells::{Cell, Cells, List},
    entry::Kind,
    line::Line,
    names::Names,
    pace::Pacer,
    tally::Tally,
};
pub use self::{
    entry::{Entry, InstanceKey, Progress, Slot, State, UpstreamKey, Wait, WaitView},
    pace::Pace,
    tally::{Count, Figures, Stats},
};
use crate::{plan::Timestamp, upstream::original};

/// The scheduler. About 100 bytes a message, 40 more while it waits for a time of its own, and
/// 300 bytes a line.
#[derive(Debug)]
pub struct Scheduler {
    cells: Cells,
    /// Instances by name; number 0 is the mail of none.
    instances: Names,
    upstreams: Names,
    /// Lines by number. The ready line has number 0 and stays; others go with their last message.
    lines: Vec<Option<Line>>,
    free_lines: Vec<u32>,
    line_of: BTreeMap<Wait, u32>,
    /// One list for each moment, so that many held until the same time cost one timer.
    retries: BTreeMap<Timestamp, List>,
    holds: BTreeMap<Timestamp, List>,
    releases: BTreeMap<u32, Release>,
    /// When releases that are not stopped let out their next.
    paces: BTreeSet<(Timestamp, u32)>,
    last_release: u32,
    tally: Tally,
}

/// Messages that leave at a pace, oldest first.
#[derive(Debug)]
struct Release {
    list: List,
    pacer: Pacer,
    /// Its messages that were let out and stand in a line.
    outstanding: u64,
    /// Its time in `paces`; none while what is outstanding stops it.
    timed: Option<Timestamp>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl Scheduler {
    /// A scheduler without messages.
    pub fn new() -> Self {
        let mut scheduler = Self {
            cells: Cells::default(),
            instances: Names::default(),
            upstreams: Names::default(),
            lines: Vec::new(),
            free_lines: Vec::new(),
            line_of: BTreeMap::new(),
            retries: BTreeMap::new(),
            holds: BTreeMap::new(),
            releases: BTreeMap::new(),
            paces: BTreeSet::new(),
            last_release: 0,
            tally: Tally::default(),
        };
        // The ready line, which is never dropped.
        let ready = scheduler.line_number(&Wait::Turn);
        assert!(ready == places::READY, "the ready line is the first");
        // No plan has an instance with an empty name: this is the mail of none.
        scheduler.instances.intern("");
        scheduler
    }

    /// The key of an instance by its name; none: mail of no instance. Names are kept for ever:
    /// there are as many as plans ever named.
    pub fn instance(&mut self, name: Option<&str>) -> InstanceKey {
        InstanceKey(self.instances.intern(name.unwrap_or_default()))
    }

    /// The name of an instance; none for the mail of no instance.
    pub fn instance_name(&self, key: InstanceKey) -> Option<&Arc<str>> {
        self.instances.name(key.0).filter(|name| !name.is_empty())
    }

    /// The key of an upstream by its name.
    pub fn upstream(&mut self, name: &str) -> UpstreamKey {
        UpstreamKey(names::after(self.upstreams.intern(original::family(name))))
    }

    /// The name of an upstream.
    pub fn upstream_name(&self, key: UpstreamKey) -> Option<&Arc<str>> {
        self.upstreams.name(key.0.get() - 1)
    }

    /// Adds a message that waits for this. The slot must be free.
    pub fn insert(&mut self, slot: Slot, entry: Entry, wait: Wait, now: Timestamp) {
        self.cells.insert(slot, Cell::new(entry, now));
        self.tally.enter(&entry);
        self.tally.add(&entry, Kind::InFlight);
        self.block(slot, wait, now);
    }

    /// Takes the message whose turn it is; it is in flight from now on.
    pub fn take(&mut self, now: Timestamp) -> Option<Slot> {
        self.ripen(now);
        self.let_out(now);
        self.pop(&Wait::Turn, now)
    }

    /// The time at which time alone makes a message ready, which may be past; none: no time does.
    /// It changes with every call that changes the scheduler.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let pace = self.paces.first().map(|(time, _)| *time);
        self.first_time().into_iter().chain(pace).min()
    }

    /// A message waits for this now, wherever it was before; usually it was in flight. One that
    /// an operator wants held is held instead, unless it is in doubt. False if the slot is empty,
    /// as when it was removed during the attempt: the store must not use a slot again before the
    /// attempt is over.
    pub fn block(&mut self, slot: Slot, wait: Wait, now: Timestamp) -> bool {
        if !self.leave(slot, now) {
            return false;
        }
        self.settle(slot, &wait, now);
        true
    }

    /// What attempts changed. False if the slot is empty.
    pub fn update(&mut self, slot: Slot, change: impl FnOnce(&mut Progress)) -> bool {
        let Some(kind) = self.kind_at(slot) else { return false };
        let entry = &mut self.cells.at(slot).entry;
        self.tally.subtract(entry, kind);
        change(&mut entry.progress);
        self.tally.add(entry, kind);
        true
    }

    /// Whether a message waits for this. A new one that needs the same joins its line then
    /// instead of overtaking.
    pub fn has_waiting(&self, wait: &Wait) -> bool {
        match wait {
            Wait::Retry(time) => self.retries.contains_key(time),
            Wait::HoldUntil(time) => self.holds.contains_key(time),
            _ => self.line(wait).is_some_and(|line| line.len() > 0),
        }
    }

    /// Takes the next of those that wait for this; it is in flight from now on.
    pub fn take_waiting(&mut self, wait: &Wait, now: Timestamp) -> Option<Slot> {
        self.pop(wait, now)
    }

    /// All that wait for this get their turn, in the order in which they came. How many.
    pub fn wake(&mut self, wait: &Wait, now: Timestamp) -> usize {
        if *wait == Wait::Turn {
            return 0;
        }
        let mut slots = self.waiting(wait);
        slots.sort_by_cached_key(|slot| self.cells.get(*slot).map(|cell| cell.since));
        for slot in &slots {
            self.block(*slot, Wait::Turn, now);
        }
        slots.len()
    }

    /// All that wait for this become a backlog, oldest received first, that is let out at a
    /// pace. How many. While the pace makes them wait they are held; at most one second's worth
    /// of them stands in lines, so that a slow upstream does not turn the pace into a burst.
    pub fn release(&mut self, wait: &Wait, pace: Pace, now: Timestamp) -> usize {
        if *wait == Wait::Turn {
            return 0;
        }
        let mut slots = self.waiting(wait);
        slots.sort_by_cached_key(|slot| self.cells.get(*slot).map(|cell| cell.entry.received));
        self.start_release(&slots, pace, now);
        slots.len()
    }

    /// These, which an operator holds and are in the order in which they came, become a backlog
    /// that is let out at a pace.
    pub fn release_these(&mut self, slots: &[Slot], pace: Pace, now: Timestamp) {
        let held = |slot: &&Slot| self.waits_for(**slot, &Wait::Operator);
        let slots: Vec<Slot> = slots.iter().filter(held).copied().collect();
        self.start_release(&slots, pace, now);
    }

    /// Takes this message out of its place: it is in flight from now on. False for one that is
    /// in flight or in doubt already, and for an empty slot.
    pub fn seize(&mut self, slot: Slot, now: Timestamp) -> bool {
        match self.kind_at(slot) {
            None | Some(Kind::InFlight | Kind::InDoubt) => false,
            Some(_) => self.leave(slot, now),
        }
    }

    /// Takes a message out for good, from any state. What is in flight is the caller's to stop.
    pub fn remove(&mut self, slot: Slot) -> Option<Entry> {
        let kind = self.kind_at(slot)?;
        self.unlink(slot);
        let cell = self.cells.remove(slot)?;
        self.tally.subtract(&cell.entry, kind);
        self.tally.leave(&cell.entry);
        Some(cell.entry)
    }

    /// An operator holds a message. One in flight or in doubt is held when that ends: what may
    /// already be delivered must not be let go again by `unhold`. False if the slot is empty.
    pub fn hold(&mut self, slot: Slot, now: Timestamp) -> bool {
        match self.kind_at(slot) {
            None => false,
            Some(Kind::InFlight | Kind::InDoubt) => {
                self.cells.at(slot).hold_follows = true;
                true
            }
            Some(_) if self.waits_for(slot, &Wait::Operator) => true,
            Some(_) => self.block(slot, Wait::Operator, now),
        }
    }

    /// An operator lets a message go: it gets its turn, whatever it waited for before the hold.
    /// False if no operator held it.
    pub fn unhold(&mut self, slot: Slot, now: Timestamp) -> bool {
        let Some(cell) = self.cells.get_mut(slot) else { return false };
        if std::mem::take(&mut cell.hold_follows) {
            return true;
        }
        self.waits_for(slot, &Wait::Operator) && self.block(slot, Wait::Turn, now)
    }

    /// An operator gives a message its turn now, whatever time, line or pace it waited for. False
    /// for one that is in flight, in doubt, ready, or held by an operator.
    pub fn retry_now(&mut self, slot: Slot, now: Timestamp) -> bool {
        let may = match self.kind_at(slot) {
            Some(Kind::Blocked | Kind::Later) => true,
            Some(Kind::Held) => !self.waits_for(slot, &Wait::Operator),
            Some(Kind::Ready | Kind::InFlight | Kind::InDoubt) | None => false,
        };
        may && self.block(slot, Wait::Turn, now)
    }

    /// Messages, whatever they wait for.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A message and what it waits for.
    pub fn get(&self, slot: Slot) -> Option<(&Entry, WaitView)> {
        self.cells.get(slot).map(|cell| (&cell.entry, self.view(cell)))
    }

    /// All messages by slot, and what each waits for.
    pub fn entries(&self) -> impl Iterator<Item = (Slot, &Entry, WaitView)> {
        self.cells.iter().map(|(slot, cell)| (slot, &cell.entry, self.view(cell)))
    }

    /// The lines in which messages wait, and how many in each. Times are not lines.
    pub fn lines(&self) -> impl Iterator<Item = (&Wait, usize)> {
        self.lines.iter().flatten().map(|line| (&line.wait, line.len()))
    }

    /// Figures, as of the latest change. Where the oldest message of an instance has left since
    /// they were last asked for, this is a pass over all messages: 20 ms for a million.
    pub fn stats(&mut self) -> Stats {
        self.tally.stats(self.instances.len(), self.cells.iter().map(|(_, cell)| &cell.entry))
    }

    /// Takes the messages whose expiry clock has run out; they are in flight from now on, so
    /// that nobody tries them meanwhile. The clock of held ones stands still; those in flight
    /// or in doubt are left to their attempt. A pass over all messages.
    pub fn expired(&mut self, now: Timestamp, expiry: impl Fn(&Entry) -> Duration) -> Vec<Slot> {
        let may_expire = |kind| matches!(kind, Kind::Ready | Kind::Blocked | Kind::Later);
        let over = |entry: &Entry| u128::from(entry.clock_ms(now)) >= expiry(entry).as_millis();
        let slots: Vec<Slot> = self
            .cells
            .iter()
            .filter(|(_, cell)| may_expire(self.kind_of(cell.place)) && over(&cell.entry))
            .map(|(slot, _)| slot)
            .collect();
        for slot in &slots {
            self.leave(*slot, now);
        }
        slots
    }
}
