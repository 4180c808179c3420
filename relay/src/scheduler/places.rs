//! How messages move: out of the place where they stand, into another.
//!
//! Every move is `leave` (in flight then) and `settle`. Both keep the figures, the time for which
//! a message was held, and what a release has outstanding; nothing else touches a cell's place.

use super::{
    Pace, Release, Scheduler, Slot, State, Wait, WaitView,
    cells::{Cell, List, Place},
    entry::Kind,
    line::Line,
    pace::Pacer,
};
use crate::plan::Timestamp;

/// The number of the ready line.
pub(super) const READY: u32 = 0;
/// Messages whose time has come that one `take` moves at most. A million due at once, as after a
/// long stop, would keep everybody from the scheduler for a second; this is far more than the one
/// that leaves with each `take`, so all are in line soon.
const RIPEN_AT_ONCE: usize = 256;

impl Scheduler {
    /// Takes a message out of its place: it is in flight then. False if the slot is empty.
    pub(super) fn leave(&mut self, slot: Slot, now: Timestamp) -> bool {
        let Some(kind) = self.kind_at(slot) else { return false };
        self.unlink(slot);
        self.left(slot, kind, now);
        true
    }

    /// Puts a message that is in flight into the place where it waits for this.
    pub(super) fn settle(&mut self, slot: Slot, wait: &Wait, now: Timestamp) {
        let cell = self.cells.at(slot);
        let follows = cell.hold_follows && *wait != Wait::Reply;
        if follows {
            cell.hold_follows = false;
        }
        let wait = if follows { &Wait::Operator } else { wait };
        let place = match wait {
            Wait::Retry(time) => Place::Retry(*time),
            Wait::HoldUntil(time) => Place::HoldUntil(*time),
            _ => Place::Line(self.line_number(wait)),
        };
        self.enter(slot, place, wait.kind(), now);
    }

    /// The next of those that wait for this.
    pub(super) fn pop(&mut self, wait: &Wait, now: Timestamp) -> Option<Slot> {
        let first = match wait {
            Wait::Retry(time) => self.retries.get(time)?.first(),
            Wait::HoldUntil(time) => self.holds.get(time)?.first(),
            _ => {
                let number = *self.line_of.get(wait)?;
                let line = self.lines[number as usize].as_mut()?;
                let slot = line.pop(&mut self.cells)?;
                self.drop_if_empty(number);
                self.less_outstanding(slot);
                self.left(slot, wait.kind(), now);
                return Some(slot);
            }
        }?;
        self.leave(first, now);
        Some(first)
    }

    /// Those that wait for this, flow by flow.
    pub(super) fn waiting(&self, wait: &Wait) -> Vec<Slot> {
        let list = |list: Option<&List>| match list {
            Some(list) => list.slots(&self.cells).collect(),
            None => Vec::new(),
        };
        match wait {
            Wait::Retry(time) => list(self.retries.get(time)),
            Wait::HoldUntil(time) => list(self.holds.get(time)),
            _ => self.line(wait).map_or_else(Vec::new, |line| line.slots(&self.cells).collect()),
        }
    }

    /// Gives those whose time has come their turn, the earliest first.
    pub(super) fn ripen(&mut self, now: Timestamp) {
        for _ in 0..RIPEN_AT_ONCE {
            let Some(time) = self.first_time().filter(|time| *time <= now) else { return };
            let retry = Wait::Retry(time);
            let wait = if self.has_waiting(&retry) { retry } else { Wait::HoldUntil(time) };
            if let Some(slot) = self.pop(&wait, now) {
                self.settle(slot, &Wait::Turn, now);
            }
        }
    }

    /// Lets out what the paces of the releases allow.
    pub(super) fn let_out(&mut self, now: Timestamp) {
        while let Some((time, number)) = self.paces.first().copied().filter(|one| one.0 <= now) {
            self.paces.remove(&(time, number));
            let Some(release) = self.releases.get_mut(&number) else { continue };
            release.timed = None;
            let due = release.pacer.due(now, release.outstanding);
            for _ in 0..due {
                // Gone when its last message has left.
                let first = self.releases.get(&number).and_then(|release| release.list.first());
                let Some(slot) = first else { break };
                if let Some(release) = self.releases.get_mut(&number) {
                    release.pacer.let_out(1);
                }
                self.leave(slot, now);
                self.cells.at(slot).release = number;
                self.settle(slot, &Wait::Turn, now);
            }
            self.time_release(number);
        }
    }

    /// Makes these, which are in order, a release.
    pub(super) fn start_release(&mut self, slots: &[Slot], pace: Pace, now: Timestamp) {
        let Some(pacer) = Pacer::new(pace, now).filter(|_| !slots.is_empty()) else {
            for slot in slots {
                self.leave(*slot, now);
                self.cells.at(*slot).was_held = true;
                self.settle(*slot, &Wait::Turn, now);
            }
            return;
        };
        // Numbers are not used twice: messages may still name a release that is over.
        self.last_release = self.last_release.wrapping_add(1).max(1);
        let number = self.last_release;
        let release = Release { list: List::default(), pacer, outstanding: 0, timed: None };
        self.releases.insert(number, release);
        for slot in slots {
            self.leave(*slot, now);
            self.cells.at(*slot).was_held = true;
            if self.cells.at(*slot).hold_follows {
                self.settle(*slot, &Wait::Operator, now);
            } else {
                self.enter(*slot, Place::Release(number), Kind::Held, now);
            }
        }
        self.drop_release_if_empty(number);
        self.time_release(number);
    }

    /// Takes a message out of the list in which it stands; its figures are the caller's.
    pub(super) fn unlink(&mut self, slot: Slot) {
        let Some(place) = self.cells.get(slot).map(|cell| cell.place) else { return };
        match place {
            Place::InFlight => {}
            Place::Line(number) => {
                let line = self.lines[number as usize].as_mut().expect("a line with messages");
                line.unlink(&mut self.cells, slot);
                self.drop_if_empty(number);
            }
            Place::Retry(time) | Place::HoldUntil(time) => {
                let holds = matches!(place, Place::HoldUntil(_));
                let times = if holds { &mut self.holds } else { &mut self.retries };
                let list = times.get_mut(&time).expect("a time for which messages wait");
                list.unlink(&mut self.cells, slot);
                if list.is_empty() {
                    times.remove(&time);
                }
            }
            Place::Release(number) => {
                let release = self.releases.get_mut(&number).expect("a release with messages");
                release.list.unlink(&mut self.cells, slot);
                self.drop_release_if_empty(number);
            }
        }
        if let Place::Line(_) = place {
            self.less_outstanding(slot);
        }
    }

    pub(super) fn line(&self, wait: &Wait) -> Option<&Line> {
        self.lines.get(*self.line_of.get(wait)? as usize)?.as_ref()
    }

    /// The number of a line, which is made if there is none.
    pub(super) fn line_number(&mut self, wait: &Wait) -> u32 {
        if let Some(number) = self.line_of.get(wait) {
            return *number;
        }
        let line = Some(Line::new(wait.clone()));
        let number = match self.free_lines.pop() {
            Some(number) => {
                self.lines[number as usize] = line;
                number
            }
            None => {
                self.lines.push(line);
                u32::try_from(self.lines.len() - 1).expect("fewer lines than slots")
            }
        };
        self.line_of.insert(wait.clone(), number);
        number
    }

    pub(super) fn kind_at(&self, slot: Slot) -> Option<Kind> {
        self.cells.get(slot).map(|cell| self.kind_of(cell.place))
    }

    pub(super) fn kind_of(&self, place: Place) -> Kind {
        match place {
            Place::InFlight => Kind::InFlight,
            Place::Line(number) => self.wait_of(number).kind(),
            Place::Retry(_) => Kind::Later,
            Place::HoldUntil(_) | Place::Release(_) => Kind::Held,
        }
    }

    pub(super) fn waits_for(&self, slot: Slot, wait: &Wait) -> bool {
        self.cells.get(slot).is_some_and(|cell| match cell.place {
            Place::Line(number) => self.wait_of(number) == wait,
            _ => false,
        })
    }

    pub(super) fn view(&self, cell: &Cell) -> WaitView {
        let state = match cell.place {
            Place::InFlight => State::InFlight,
            Place::Line(number) => State::Waiting(self.wait_of(number).clone()),
            Place::Retry(time) => State::Waiting(Wait::Retry(time)),
            Place::HoldUntil(time) => State::Waiting(Wait::HoldUntil(time)),
            Place::Release(_) => State::Paced,
        };
        WaitView { state, since: cell.since, hold_follows: cell.hold_follows }
    }

    /// A message was taken out of a place of this kind: it is in flight.
    fn left(&mut self, slot: Slot, kind: Kind, now: Timestamp) {
        let cell = self.cells.at(slot);
        self.tally.subtract(&cell.entry, kind);
        if kind == Kind::Held {
            let held = now.0.saturating_sub(cell.since.0);
            cell.entry.held_ms = cell.entry.held_ms.saturating_add(held);
            cell.was_held = true;
        }
        cell.place = Place::InFlight;
        cell.since = now;
        self.tally.add(&cell.entry, Kind::InFlight);
    }

    /// Puts a message that is in flight into a place of this kind.
    fn enter(&mut self, slot: Slot, place: Place, kind: Kind, now: Timestamp) {
        let cell = self.cells.at(slot);
        assert!(cell.place == Place::InFlight, "a message stands in one place");
        self.tally.subtract(&cell.entry, Kind::InFlight);
        self.tally.add(&cell.entry, kind);
        cell.place = place;
        cell.since = now;
        cell.in_backlog = cell.was_held || cell.entry.progress.attempts > 0;
        // A release counts what stands in the lines of the way out, and forgets the rest.
        if !matches!(kind, Kind::Ready | Kind::Blocked) {
            cell.release = 0;
        }
        let number = cell.release;
        if let Some(release) = self.releases.get_mut(&number) {
            release.outstanding += 1;
        }
        match place {
            Place::InFlight => {}
            Place::Line(number) => {
                let line = self.lines[number as usize].as_mut().expect("a line that was found");
                line.push(&mut self.cells, slot);
            }
            Place::Retry(time) => {
                self.retries.entry(time).or_default().push(&mut self.cells, slot);
            }
            Place::HoldUntil(time) => {
                self.holds.entry(time).or_default().push(&mut self.cells, slot);
            }
            Place::Release(number) => {
                let release = self.releases.get_mut(&number).expect("a release that begins");
                release.list.push(&mut self.cells, slot);
            }
        }
    }

    /// A message left a line.
    fn less_outstanding(&mut self, slot: Slot) {
        let number = self.cells.at(slot).release;
        if let Some(release) = self.releases.get_mut(&number) {
            release.outstanding -= 1;
            self.time_release(number);
        }
    }

    /// Sets the time of a release's next message, unless what is outstanding stops it.
    fn time_release(&mut self, number: u32) {
        let Some(release) = self.releases.get_mut(&number) else { return };
        if release.timed.is_none() && !release.pacer.is_stalled_by(release.outstanding) {
            let next = release.pacer.next();
            release.timed = Some(next);
            self.paces.insert((next, number));
        }
    }

    fn drop_release_if_empty(&mut self, number: u32) {
        if self.releases.get(&number).is_some_and(|release| release.list.is_empty())
            && let Some(release) = self.releases.remove(&number)
            && let Some(time) = release.timed
        {
            self.paces.remove(&(time, number));
        }
    }

    fn drop_if_empty(&mut self, number: u32) {
        if number != READY
            && self.lines[number as usize].as_ref().is_some_and(|line| line.len() == 0)
            && let Some(line) = self.lines[number as usize].take()
        {
            self.line_of.remove(&line.wait);
            self.free_lines.push(number);
        }
    }

    fn wait_of(&self, number: u32) -> &Wait {
        let line = self.lines[number as usize].as_ref();
        &line.expect("a line in which a message stands").wait
    }

    /// The first moment for which messages wait.
    pub(super) fn first_time(&self) -> Option<Timestamp> {
        let firsts = [&self.retries, &self.holds].into_iter().filter_map(|map| map.keys().next());
        firsts.min().copied()
    }
}
