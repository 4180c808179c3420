//! What must hold of everything that happened around a window.

use std::collections::BTreeMap;

use super::{
    book::{Book, Shared, Tally},
    script::{Change, INSTANCES, Reload},
};

/// Checks it all; what the window saw.
pub fn check(book: &Shared) -> Tally {
    let mut guard = book.lock().unwrap();
    let book = &mut *guard;
    check_frozen(book);
    check_side(book);
    let doubled = check_copies(book);
    let arrived =
        |name: &str| book.arrived.iter().any(|(_, one)| one.code == 250 && one.name() == name);
    for (name, told) in &book.letters {
        assert!(told.is_some(), "{name} was never taken");
        assert!(arrived(name), "{name} is lost; its sender was told {told:?}");
    }
    let tally = &mut book.tally;
    tally.windows = 1;
    tally.messages = book.letters.len() as u64;
    tally.arrivals = book.arrived.len() as u64;
    tally.in_doubt = book.doubts.values().sum();
    tally.doubled = doubled;
    tally.clone()
}

/// Nothing of an instance arrives while it is frozen.
fn check_frozen(book: &Book) {
    // A plan may have moved it away before it began.
    let is_moved = is_replanned(book);
    assert!(is_moved || book.frozen.len() >= INSTANCES.len(), "no window: {:?}", book.steps);
    for (_, one) in &book.arrived {
        let instance = one.name().split('/').next().unwrap();
        let leaked = book.frozen.iter().find(|(name, from, to)| {
            name == instance && *from < one.at && to.is_none_or(|to| one.at < to)
        });
        assert_eq!(leaked, None, "{} leaked at {}", one.name(), one.at);
    }
}

/// Mail goes where the phase says. Not asked where a plan took the wave away.
fn check_side(book: &Book) {
    if is_replanned(book) {
        return;
    }
    let time = |step: &str| {
        let found = book.steps.iter().find(|(_, name)| name == step);
        found.map_or(u64::MAX, |(at, _)| *at)
    };
    let (released, rolled_back) = (time("releasing"), time("rolled_back"));
    for (legacy, one) in &book.arrived {
        if one.name().starts_with(super::script::STRANGER) {
            assert!(legacy, "{} is in no wave", one.name());
            continue;
        }
        let after = one.at > released && one.at < rolled_back;
        // At the moment of a step either is right.
        let is_edge = one.at == released || one.at == rolled_back;
        assert!(is_edge || *legacy != after, "{} at {}: legacy {legacy}", one.name(), one.at);
    }
}

/// Nothing arrives twice unless the relay said that it may; how much did.
fn check_copies(book: &Book) -> u64 {
    let mut copies: BTreeMap<&str, u64> = BTreeMap::new();
    // One that was not answered may have been taken.
    for (_, one) in book.arrived.iter().filter(|(_, one)| one.code == 250 || one.code == 0) {
        *copies.entry(one.id()).or_default() += 1;
    }
    let mut doubled = 0;
    for (id, copies) in copies {
        let doubts = book.doubts.get(id).copied().unwrap_or(0);
        assert!(copies <= 1 + doubts, "{id} has {copies} copies, but was in doubt {doubts} times");
        doubled += copies - 1;
    }
    doubled
}

/// Whether a plan said something else of the wave.
fn is_replanned(book: &Book) -> bool {
    let is_other =
        |change: &Change| matches!(change, Change::Reload(reload) if *reload != Reload::Same);
    book.script.changes.iter().any(|(_, change)| is_other(change))
}
