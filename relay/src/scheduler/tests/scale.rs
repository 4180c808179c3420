//! A million messages: memory and time.

use super::{
    super::cells::{Cell, Cells},
    *,
};

const MILLION: u32 = 1_000_000;

/// What a message costs at worst, in octets: its cell, and a place of its own in the map of times
/// whose nodes are as empty as they may be. A B-tree of the standard library has room for 11 keys
/// in a node and for 12 edges more in an inner one; at least 5 are used, but ascending times
/// leave 6.
#[test]
fn a_message_costs_at_most_150_octets() {
    assert!(size_of::<Entry>() <= 96, "{}", size_of::<Entry>());
    let cell = size_of::<Option<Cell>>();
    let pair = size_of::<Timestamp>() + size_of::<List>();
    let leaf = 11 * pair + 16;
    let inner = leaf + 12 * 8;
    let (per_leaf, per_inner) = (6, 6 * 6);
    let each = cell + leaf.div_ceil(per_leaf) + inner.div_ceil(per_inner);
    assert!(each <= 150, "{each}: a cell has {cell}");
    // Chunks waste nothing worth counting when slots are dense.
    assert!(size_of::<Cells>() < 64);
}

/// The limits are ten times what is measured: they catch a walk over all messages in a step that
/// must not have one, which would take hours.
#[test]
fn a_million_messages_go_through_in_seconds() {
    let mut scheduler = Scheduler::new();
    let keys: Vec<_> = (0..10).map(|at| scheduler.instance(Some(&format!("i{at}")))).collect();
    let begun = tokio::time::Instant::now();
    for slot in 0..MILLION {
        let time = at(u64::from(slot) * 7919 % 3_600_000);
        let wait = match slot % 4 {
            0 => Wait::Turn,
            1 => Wait::Retry(time),
            2 => Wait::Phase(keys[slot as usize % 10]),
            _ => upstream("u"),
        };
        scheduler.insert(slot, entry(keys[slot as usize % 10], time), wait, NOW);
    }
    let inserted = begun.elapsed();
    let stats = scheduler.stats();
    assert_eq!(stats.total.all().messages, u64::from(MILLION));
    for key in &keys {
        scheduler.release(&Wait::Phase(*key), Pace::default(), NOW);
    }
    scheduler.wake(&upstream("u"), NOW);
    let released = begun.elapsed();
    let taken = drain(&mut scheduler, at(3_600_000));
    assert_eq!(taken.len(), MILLION as usize);
    let drained = begun.elapsed();
    for slot in taken {
        scheduler.remove(slot);
    }
    assert!(scheduler.is_empty());
    let removed = begun.elapsed();
    assert!(removed < Duration::from_secs(20), "{inserted:?} {released:?} {drained:?} {removed:?}");
}

/// Lists of slots far apart take memory for the places between them, but end when they are gone.
#[test]
fn empty_places_are_given_back() {
    let mut scheduler = Scheduler::new();
    let one = scheduler.instance(Some("one"));
    for slot in [0, 255, 256, 70_000] {
        scheduler.insert(slot, entry(one, NOW), Wait::Change, NOW);
    }
    scheduler.remove(256);
    let slots: Vec<_> = scheduler.entries().map(|(slot, ..)| slot).collect();
    assert_eq!(slots, [0, 255, 70_000]);
    assert!(scheduler.get(256).is_none() && scheduler.get(Slot::MAX).is_none());
}
