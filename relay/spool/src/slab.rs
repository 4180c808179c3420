//! Which messages are in the store, and where: a slot of 40 bytes each. Floor 1.
//!
//! Slots lie in chunks, so that growing copies nothing and wastes nothing. A slot's number is
//! part of the journal's entries, so that reading the journal needs no map.

use crate::format::{MessageKey, Place};

/// The most messages in one store. An entry that says a higher slot is damage.
pub const MESSAGE_LIMIT: u32 = 1 << 24;

const CHUNK: u32 = 4096;
const EXTERNAL: u32 = 1 << 31;
/// The end of the chain of free slots.
const NONE: u32 = u32::MAX;

/// A message in an open store. Its index is used again after removal; a handle that was removed
/// is recognised and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle {
    index: u32,
    generation: u32,
}

impl Handle {
    /// The number of its slot, for tables of the caller: small, and the lowest ones are used first.
    pub fn index(self) -> usize {
        self.index as usize
    }

    pub(crate) fn slot(self) -> u32 {
        self.index
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: MessageKey,
    /// Of the entry that holds its state. It may wrap: a journal is far shorter than that.
    seq: u32,
    generation: u32,
    /// 0: the slot is free.
    segment: u32,
    /// Of a free slot: the next free one.
    offset: u32,
    length: u32,
    body_at: u32,
}

/// What is known of a live message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) key: MessageKey,
    pub(crate) place: Place,
    pub(crate) seq: u32,
}

#[derive(Debug)]
pub(crate) struct Slab {
    chunks: Vec<Box<[Slot]>>,
    slots: u32,
    live: u32,
    free: u32,
    generation: u32,
}

impl Slab {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), slots: 0, live: 0, free: NONE, generation: 0 }
    }

    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.chunks.get((index / CHUNK) as usize).map(|chunk| &chunk[(index % CHUNK) as usize])
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        let chunk = self.chunks.get_mut((index / CHUNK) as usize)?;
        Some(&mut chunk[(index % CHUNK) as usize])
    }

    /// What is in a slot.
    pub(crate) fn at(&self, index: u32) -> Option<Live> {
        self.slot(index).filter(|slot| slot.segment != 0).map(Slot::live)
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<Live> {
        let slot = self.slot(handle.index)?;
        (slot.segment != 0 && slot.generation == handle.generation).then(|| slot.live())
    }

    pub(crate) fn handle(&self, index: u32) -> Option<Handle> {
        let slot = self.slot(index).filter(|slot| slot.segment != 0)?;
        Some(Handle { index, generation: slot.generation })
    }

    /// All slots in use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Live)> {
        (0..self.slots).filter_map(|index| self.at(index).map(|live| (index, live)))
    }

    /// Takes a free slot for what will be put there. `None`: `MESSAGE_LIMIT`.
    pub(crate) fn reserve(&mut self) -> Option<u32> {
        if self.free != NONE {
            let index = self.free;
            self.free = self.slot(index).map_or(NONE, |slot| slot.offset);
            return Some(index);
        }
        let index = self.slots;
        self.grow(index).then_some(index)
    }

    /// Gives back what was reserved and not used.
    pub(crate) fn unreserve(&mut self, index: u32) {
        let next = self.free;
        if let Some(slot) = self.slot_mut(index) {
            slot.offset = next;
            self.free = index;
        }
    }

    /// Makes slots up to this one; the new ones are not in the chain of free ones.
    fn grow(&mut self, index: u32) -> bool {
        if index >= MESSAGE_LIMIT {
            return false;
        }
        while self.chunks.len() <= (index / CHUNK) as usize {
            self.chunks.push(vec![Slot::default(); CHUNK as usize].into_boxed_slice());
        }
        self.slots = self.slots.max(index + 1);
        true
    }

    /// A message is live from now on. `false`: the index is beyond `MESSAGE_LIMIT`.
    pub(crate) fn put(&mut self, index: u32, live: Live) -> bool {
        let Live { key, place, seq } = live;
        if place.segment == 0 || !self.grow(index) {
            return false;
        }
        let generation = self.generation.wrapping_add(1);
        let Some(slot) = self.slot_mut(index) else { return false };
        let fresh = slot.segment == 0;
        if fresh {
            slot.generation = generation;
        }
        slot.set(place);
        slot.key = key;
        slot.seq = seq;
        if fresh {
            self.generation = generation;
            self.live += 1;
        }
        true
    }

    /// Says where the record is now.
    pub(crate) fn set_place(&mut self, index: u32, place: Place) {
        if let Some(slot) = self.slot_mut(index).filter(|slot| slot.segment != 0) {
            slot.set(place);
        }
    }

    /// Says which entry has its state now.
    pub(crate) fn set_seq(&mut self, index: u32, seq: u32) {
        if let Some(slot) = self.slot_mut(index).filter(|slot| slot.segment != 0) {
            slot.seq = seq;
        }
    }

    /// Frees a slot and chains it.
    pub(crate) fn remove(&mut self, index: u32) {
        if self.clear(index) {
            self.unreserve(index);
        }
    }

    /// Frees a slot without chaining it: `chain` follows.
    pub(crate) fn clear(&mut self, index: u32) -> bool {
        let Some(slot) = self.slot_mut(index).filter(|slot| slot.segment != 0) else {
            return false;
        };
        slot.segment = 0;
        self.live -= 1;
        true
    }

    /// Chains all free slots, the lowest first.
    pub(crate) fn chain(&mut self) {
        self.free = NONE;
        for index in (0..self.slots).rev() {
            if self.at(index).is_none() {
                self.unreserve(index);
            }
        }
    }
}

impl Slot {
    fn live(&self) -> Live {
        Live { key: self.key, place: self.place(), seq: self.seq }
    }

    fn place(&self) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset,
            length: self.length,
            body_at: self.body_at & !EXTERNAL,
            external: self.body_at & EXTERNAL != 0,
        }
    }

    fn set(&mut self, place: Place) {
        self.segment = place.segment;
        self.offset = place.offset;
        self.length = place.length;
        self.body_at = place.body_at | if place.external { EXTERNAL } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_costs_40_bytes() {
        assert_eq!(size_of::<Slot>(), 40);
    }

    fn live(segment: u32) -> Live {
        let place = Place { segment, offset: 64, length: 100, body_at: 70, external: true };
        Live { key: [7; 16], place, seq: segment }
    }

    #[test]
    fn a_handle_is_refused_after_removal_though_its_index_is_used_again() {
        let mut slab = Slab::new();
        let index = slab.reserve().unwrap_or(9);
        assert!(slab.put(index, live(1)));
        let old = slab.handle(index);
        slab.remove(index);
        assert_eq!(slab.reserve(), Some(index));
        assert!(slab.put(index, live(2)));
        let new = slab.handle(index);
        assert_eq!(old.and_then(|handle| slab.get(handle)), None);
        assert_eq!(new.and_then(|handle| slab.get(handle)), Some(live(2)));
    }

    #[test]
    fn the_limit_and_one_past_it() {
        let mut slab = Slab::new();
        assert!(slab.put(MESSAGE_LIMIT - 1, live(1)));
        assert!(!slab.put(MESSAGE_LIMIT, live(2)));
        assert_eq!(slab.reserve(), None);
    }
}
