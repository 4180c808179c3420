//! The table of messages by slot, and the lists that are threaded through it.
//!
//! A message stands in at most one list, so two links in its cell are enough for all of them:
//! nothing is allocated when a message moves, and it leaves the middle of a list at once.

use super::entry::{Entry, Slot};
use crate::plan::Timestamp;

/// Cells allocated and freed together: 24 kB. Growing never copies what is there.
const CHUNK: usize = 256;
/// No slot: the end of a list.
const NONE: Slot = Slot::MAX;

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    InFlight,
    /// In a flow of the line with this number.
    Line(u32),
    Retry(Timestamp),
    HoldUntil(Timestamp),
    /// In the release with this number.
    Release(u32),
}

/// A message and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) entry: Entry,
    pub(super) place: Place,
    pub(super) since: Timestamp,
    /// The release whose pace counts it while it stands in a line; 0: none.
    pub(super) release: u32,
    /// Whether it stands in the flow of the backlog, when it stands in a line.
    pub(super) in_backlog: bool,
    /// Whether it was held or released before.
    pub(super) was_held: bool,
    /// An operator holds it as soon as the attempt under way is over.
    pub(super) hold_follows: bool,
    previous: Slot,
    next: Slot,
}

impl Cell {
    pub(super) fn new(entry: Entry, now: Timestamp) -> Self {
        Self {
            entry,
            place: Place::InFlight,
            since: now,
            release: 0,
            in_backlog: false,
            was_held: false,
            hold_follows: false,
            previous: NONE,
            next: NONE,
        }
    }
}

#[derive(Debug)]
struct Chunk {
    used: usize,
    cells: Box<[Option<Cell>]>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Cells {
    chunks: Vec<Option<Chunk>>,
    len: usize,
}

/// The chunk of a slot, and its index there.
fn split(slot: Slot) -> (usize, usize) {
    let index = slot as usize;
    (index / CHUNK, index % CHUNK)
}

impl Cells {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Cell> {
        let (chunk, index) = split(slot);
        self.chunks.get(chunk)?.as_ref()?.cells[index].as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Cell> {
        let (chunk, index) = split(slot);
        self.chunks.get_mut(chunk)?.as_mut()?.cells[index].as_mut()
    }

    /// A cell that a list or the caller knows to be there.
    pub(super) fn at(&mut self, slot: Slot) -> &mut Cell {
        self.get_mut(slot).expect("a slot in a list holds a message")
    }

    /// Puts a message into a free slot.
    pub(super) fn insert(&mut self, slot: Slot, cell: Cell) {
        assert!(slot != NONE, "the largest slot number is not a place");
        let (chunk, index) = split(slot);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks[chunk]
            .get_or_insert_with(|| Chunk { used: 0, cells: vec![None; CHUNK].into_boxed_slice() });
        assert!(chunk.cells[index].is_none(), "slot {slot} holds a message already");
        chunk.cells[index] = Some(cell);
        chunk.used += 1;
        self.len += 1;
    }

    /// Empties a slot. The message must stand in no list.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Cell> {
        let (at, index) = split(slot);
        let chunk = self.chunks.get_mut(at)?.as_mut()?;
        let cell = chunk.cells[index].take()?;
        chunk.used -= 1;
        if chunk.used == 0 {
            self.chunks[at] = None;
        }
        self.len -= 1;
        Some(cell)
    }

    /// All messages, by slot.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Cell)> {
        let chunks = self.chunks.iter().flat_map(|chunk| match chunk {
            Some(chunk) => &chunk.cells[..],
            None => &[],
        });
        // Empty chunks have no cells, so slots cannot be counted along a flat walk.
        let slots = self.chunks.iter().enumerate().flat_map(|(at, chunk)| {
            let first = at * CHUNK;
            first..first + chunk.as_ref().map_or(0, |chunk| chunk.cells.len())
        });
        slots
            .zip(chunks)
            .filter_map(|(slot, cell)| Some((Slot::try_from(slot).ok()?, cell.as_ref()?)))
    }
}

/// A list of messages, first come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct List {
    head: Slot,
    tail: Slot,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

impl List {
    pub(super) fn is_empty(self) -> bool {
        self.head == NONE
    }

    pub(super) fn push(&mut self, cells: &mut Cells, slot: Slot) {
        let tail = self.tail;
        let cell = cells.at(slot);
        cell.previous = tail;
        cell.next = NONE;
        if tail == NONE {
            self.head = slot;
        } else {
            cells.at(tail).next = slot;
        }
        self.tail = slot;
    }

    pub(super) fn first(self) -> Option<Slot> {
        (self.head != NONE).then_some(self.head)
    }

    /// Takes a message out that stands in this list.
    pub(super) fn unlink(&mut self, cells: &mut Cells, slot: Slot) {
        let cell = cells.at(slot);
        let (previous, next) = (cell.previous, cell.next);
        cell.previous = NONE;
        cell.next = NONE;
        if previous == NONE {
            assert!(self.head == slot, "the message stands in another list");
            self.head = next;
        } else {
            cells.at(previous).next = next;
        }
        if next == NONE {
            assert!(self.tail == slot, "the message stands in another list");
            self.tail = previous;
        } else {
            cells.at(next).previous = previous;
        }
    }

    /// The messages in order.
    pub(super) fn slots(self, cells: &Cells) -> impl Iterator<Item = Slot> {
        let next = |slot: &Slot| cells.get(*slot).map(|cell| cell.next).filter(|one| *one != NONE);
        std::iter::successors(self.first(), next)
    }
}
