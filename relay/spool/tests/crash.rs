//! A recorded run is cut at every change of the disk, and every change of the disk fails once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::ErrorKind;

use support::*;
use wavegate_spool::*;

/// Accepts, states, removals, large bodies, seals, snapshots, compactions and deletions.
fn live(run: &mut Run, steps: usize) {
    for step in 0..steps {
        run.step();
        if step % 7 == 6 {
            run.maintain();
        }
    }
}

/// How many changes the whole run makes, and how many of them are syncs.
fn length(seed: u64, steps: usize) -> (u64, u64) {
    let mut run = Run::new(seed);
    live(&mut run, steps);
    (run.disk.changes(), run.disk.count(Kind::Sync) + run.disk.count(Kind::SyncDir))
}

/// Opens what a power loss or a kill left, and compares.
fn check_after(run: &Run, seed: u64) {
    for (disk, power) in [(run.disk.inner().crash(seed), true), (run.disk.inner().copy(), false)] {
        let mut options = options();
        options.boot_id[0] += u8::from(power);
        let (mut opened, found) = open(disk.clone(), options).unwrap();
        assert_eq!(opened.damage, []);
        run.truth.check(&opened, &found, power);
        // A second power loss right after finds the same.
        let again = open(disk.crash(seed), support::options()).map(|(_, again)| again);
        let keys = |found: &Found| found.messages.keys().copied().collect::<Vec<_>>();
        assert_eq!(keys(&again.unwrap()), keys(&found));
        // And there is service, once there is room.
        disk.set_room(None);
        let key = [9; 16];
        let op =
            Op::Accept { key, envelope: vec![1], state: vec![2], body: NewBody::Parts(Vec::new()) };
        assert!(matches!(opened.store.commit(vec![op])[..], [Ok(Done::Accepted(..))]));
    }
}

/// The process is killed, another one opens the store, and then power is lost: what the second
/// process told must be there.
fn killed_then_power(mut run: Run, seed: u64) {
    run.disk.heal();
    drop(run.take_store());
    let disk = run.disk.inner().clone();
    let (opened, found) = open(disk.clone(), options()).unwrap();
    run.truth.check(&opened, &found, false);
    run.truth.settle(&opened, &found);
    let mut options = options();
    options.boot_id[0] += 1;
    let (after, found) = open(disk.crash(seed), options).unwrap();
    assert_eq!(after.damage, []);
    run.truth.check(&after, &found, true);
}

#[test]
fn power_is_lost_at_every_change() {
    const STEPS: usize = 120;
    for seed in 0..3 {
        let (changes, syncs) = length(seed, STEPS);
        assert!(changes > 250 && syncs > 60, "{changes} changes, {syncs} syncs");
        for cut in 0..changes {
            let disk = FaultyDisk::new(MemoryDisk::new());
            disk.fail(None, cut, 1, Fault::Halt);
            let Ok(mut run) = Run::on(disk.clone(), seed) else {
                // It stopped before there was a store.
                let (opened, found) = open(disk.inner().crash(cut), options()).unwrap();
                assert_eq!((found.messages.len(), opened.damage), (0, vec![]));
                continue;
            };
            run.errors_allowed = true;
            live(&mut run, STEPS);
            for dice in 0..2 {
                check_after(&run, cut * 1000 + dice);
            }
            killed_then_power(run, cut);
        }
    }
}

/// One fault somewhere, and life goes on; then power is lost.
fn with_fault(seed: u64, kind: Option<Kind>, nth: u64, times: u64, fault: Fault) {
    const STEPS: usize = 45;
    let disk = FaultyDisk::new(MemoryDisk::new());
    let mut run = Run::on(disk.clone(), seed).unwrap();
    run.errors_allowed = true;
    disk.fail(kind, nth, times, fault);
    let _about = About(format!("{seed} {kind:?} {nth} {times} {fault:?}"));
    live(&mut run, STEPS);
    for dice in 0..2 {
        check_after(&run, nth * 1000 + dice);
    }
    disk.heal();
    // Service again, at once and without an opening.
    run.errors_allowed = false;
    live(&mut run, 10);
    run.read_all();
    check_after(&run, nth);
}

#[test]
fn every_operation_fails_once() {
    for seed in 0..2 {
        let (changes, _) = length(seed, 45);
        for nth in 0..changes {
            with_fault(seed, None, nth, 1, Fault::Error(ErrorKind::Other));
            with_fault(seed, None, nth, 1, Fault::Short);
        }
    }
}

#[test]
fn every_kind_of_operation_fails_for_a_while() {
    let kinds = [
        Kind::Open,
        Kind::Write,
        Kind::Sync,
        Kind::Truncate,
        Kind::Rename,
        Kind::Remove,
        Kind::SyncDir,
    ];
    for kind in kinds {
        for nth in (0..120).step_by(3) {
            for error in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
                with_fault(3, Some(kind), nth, 1 + nth % 9, Fault::Error(error));
            }
        }
    }
    // Everything at once, as when a device goes away.
    for nth in 0..150 {
        with_fault(4, None, nth, 12, Fault::Error(ErrorKind::Other));
    }
}

#[test]
fn a_full_disk_refuses_and_comes_back() {
    let mut run = Run::new(5);
    run.errors_allowed = true;
    for turn in 0..30 {
        run.disk.inner().set_room(Some(20_000 + 900 * turn));
        live(&mut run, 10);
    }
    assert!(run.errors > 20);
    check_after(&run, 1);
    run.disk.inner().set_room(None);
    run.errors_allowed = false;
    live(&mut run, 20);
    run.read_all();
    check_after(&run, 2);
}

/// Says which case failed.
struct About(String);

impl Drop for About {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "in case {}", self.0);
        }
    }
}
