//! What the store refuses: to open, to take, to touch.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{fs, path::Path, sync::Arc};

use support::*;
use wavegate_spool::*;

fn accept(number: u8, body: usize) -> Op {
    let body = NewBody::Parts(vec![Arc::new(vec![number; body])]);
    Op::Accept { key: [number; 16], envelope: vec![1; 10], state: vec![2; 10], body }
}

fn one<D: Disk>(store: &mut Store<D>, op: Op) -> Result<Done, StoreError> {
    store.commit(vec![op]).pop().unwrap()
}

fn handle(done: Result<Done, StoreError>) -> Handle {
    let Ok(Done::Accepted(handle, _)) = done else { panic!("{done:?}") };
    handle
}

#[test]
fn one_process_owns_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::new(directory.path());
    let (opened, _) = open(disk.clone(), options()).unwrap();
    let pid = std::process::id();
    // Locks of open files are told apart by the opening, so a second one in this process counts.
    let second = open(disk.clone(), options()).map(|_| ());
    assert!(matches!(second, Err(OpenError::Owned { pid: Some(found) }) if found == pid));
    assert!(matches!(verify(&disk), Err(OpenError::Owned { .. })));
    // Another process that holds it, and leaves no number.
    drop(opened);
    fs::write(directory.path().join("lock"), "").unwrap();
    let mut child = std::process::Command::new("flock")
        .arg(directory.path().join("lock"))
        .args(["sh", "-c", "echo held; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let second = open(disk.clone(), options()).map(|_| ());
    assert!(matches!(second, Err(OpenError::Owned { pid: None })));
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(open(disk, options()).is_ok());
}

#[test]
fn a_newer_version_is_left_alone() {
    for name in ["seg-00000001", "journal-00000001"] {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(directory.path());
        let (mut opened, _) = open(disk.clone(), options()).unwrap();
        handle(one(&mut opened.store, accept(1, 100)));
        drop(opened);
        let path = directory.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 2;
        let sum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let error = open(disk.clone(), options()).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 2, known: 1 }), "{error}");
        assert!(matches!(verify(&disk), Err(OpenError::Newer { .. })));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn what_is_no_directory_or_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "x").unwrap();
    let error = open(RealDisk::new(&path), options()).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::NotADirectory), "{error:?}");
    let error = open(RealDisk::new(path.join("below")), options()).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::NotADirectory), "{error:?}");

    let disk = MemoryDisk::new();
    drop(open(disk.clone(), options()).unwrap());
    let faulty = FaultyDisk::new(disk);
    let read_only = Fault::Error(std::io::ErrorKind::ReadOnlyFilesystem);
    faulty.fail(Some(Kind::Write), 0, 1000, read_only);
    let error = open(faulty, options()).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error:?}");
}

#[test]
fn the_quota_and_one_past_it() {
    let disk = MemoryDisk::new();
    let (Opened { mut store, .. }, _) = open(disk, options()).unwrap();
    let first = handle(one(&mut store, accept(1, 500)));
    let used = store.usage().disk_bytes;
    // What one more takes: its record, and what is reckoned for its first entry.
    let need = 68 + 20 + 500 + 64 + 10;
    store.resize(used + need - 1, 0);
    assert!(matches!(one(&mut store, accept(2, 500)), Err(StoreError::Full { .. })));
    store.resize(used + need, 0);
    let second = handle(one(&mut store, accept(2, 500)));
    assert!(matches!(one(&mut store, accept(3, 500)), Err(StoreError::Full { .. })));
    // Everything else is still possible, and makes room.
    assert!(one(&mut store, Op::State { handle: first, state: vec![3] }).is_ok());
    assert!(one(&mut store, Op::Value { key: vec![1], value: Some(vec![1]) }).is_ok());
    assert!(one(&mut store, Op::Remove { handle: first }).is_ok());
    assert!(one(&mut store, Op::Remove { handle: second }).is_ok());
    assert_eq!(store.usage().live_bytes, 0);
    store.resize(1 << 30, 0);
    for number in 10..30 {
        handle(one(&mut store, accept(number, 500)));
    }
    assert_eq!(store.usage().messages, 20);
}

#[test]
fn the_reserve_and_one_past_it() {
    let disk = MemoryDisk::new();
    disk.set_room(Some(100_000));
    let (Opened { mut store, .. }, _) = open(disk.clone(), options()).unwrap();
    let first = handle(one(&mut store, accept(1, 500)));
    let free = store.usage().free;
    let need = 68 + 20 + 500 + 64 + 10;
    store.resize(1 << 30, free - need + 1);
    assert!(matches!(one(&mut store, accept(2, 500)), Err(StoreError::Full { .. })));
    assert!(one(&mut store, Op::Remove { handle: first }).is_ok());
    store.resize(1 << 30, store.usage().free - need);
    handle(one(&mut store, accept(2, 500)));
}

/// A store that is drained makes room also where all was in the segment that is written, and
/// housekeeping comes to an end with what is left.
#[test]
fn the_segment_that_is_written_makes_room_too() {
    let options = Options { segment_bytes: 1 << 20, journal_bytes: 1 << 20, ..options() };
    let (Opened { mut store, .. }, _) = open(MemoryDisk::new(), options).unwrap();
    store.resize(store.usage().disk_bytes + 10_000, 0);
    let mut taken = Vec::new();
    for number in 0..200 {
        let Ok(Done::Accepted(handle, _)) = one(&mut store, accept(number, 50)) else { break };
        taken.push(handle);
    }
    assert!((10..200).contains(&taken.len()), "{} fill it", taken.len());
    let kept = taken.pop().unwrap();
    for handle in taken {
        assert!(one(&mut store, Op::Remove { handle }).is_ok());
    }
    let steps = (0..100).take_while(|_| store.maintain().unwrap()).count();
    assert!(steps < 10, "a small message is copied again and again");
    assert!(one(&mut store, accept(200, 1000)).is_ok());
    let (_, body) = read(&store.reader(), kept).unwrap();
    assert_eq!(body.len(), 50);
}

#[test]
fn parts_that_are_too_long() {
    let (Opened { mut store, .. }, _) = open(MemoryDisk::new(), options()).unwrap();
    let op = |envelope: usize, state: usize| Op::Accept {
        key: [1; 16],
        envelope: vec![0; envelope],
        state: vec![0; state],
        body: NewBody::Parts(Vec::new()),
    };
    let large = |done| matches!(done, Err(StoreError::TooLarge { .. }));
    assert!(large(one(&mut store, op(ENVELOPE_LIMIT + 1, 0))));
    assert!(large(one(&mut store, op(0, STATE_LIMIT + 1))));
    let kept = handle(one(&mut store, op(ENVELOPE_LIMIT, STATE_LIMIT)));
    assert!(large(one(&mut store, Op::State { handle: kept, state: vec![0; STATE_LIMIT + 1] })));
    let (key, value) = (vec![1; 1024], vec![2; STATE_LIMIT]);
    assert!(one(&mut store, Op::Value { key: key.clone(), value: Some(value.clone()) }).is_ok());
    let longer = Op::Value { key: vec![1; 1025], value: None };
    assert!(large(one(&mut store, longer)));
    let disk = {
        let reader = store.reader();
        assert_eq!(reader.envelope(kept).unwrap().len(), ENVELOPE_LIMIT);
        store
    };
    assert_eq!(disk.usage().messages, 1);
}

#[test]
fn a_removed_message_is_an_error_and_not_another_message() {
    let (Opened { mut store, .. }, _) = open(MemoryDisk::new(), options()).unwrap();
    let reader = store.reader();
    let old = handle(one(&mut store, accept(1, 100)));
    let twice = store.commit(vec![
        Op::Remove { handle: old },
        Op::Remove { handle: old },
        Op::State { handle: old, state: vec![] },
    ]);
    assert!(matches!(
        twice[..],
        [Ok(Done::Done), Err(StoreError::Removed), Err(StoreError::Removed)]
    ));
    let new = handle(one(&mut store, accept(2, 100)));
    assert_eq!(old.index(), new.index());
    assert!(matches!(reader.envelope(old), Err(ReadError::Removed)));
    assert!(matches!(reader.read_body(old, 0, &mut [0; 5]), Err(ReadError::Removed)));
    assert!(matches!(one(&mut store, Op::Remove { handle: old }), Err(StoreError::Removed)));
    assert_eq!(reader.key(new).unwrap(), [2; 16]);
}

#[test]
fn attempts_survive_the_process_until_they_are_dealt_with() {
    let disk = MemoryDisk::new();
    let opened = open(disk.clone(), options()).unwrap().0;
    assert_eq!((opened.shutdown, opened.interrupted.len()), (Shutdown::New, 0));
    let attempts = opened.store.attempts();
    let marks: Vec<_> = (1..=4).map(|n| attempts.begin(&[n; 16]).unwrap()).collect();
    assert!(matches!(attempts.begin(&[5; 16]), Err(StoreError::NoSlot)));
    marks.into_iter().nth(1).unwrap().end().unwrap();
    let again = attempts.begin(&[6; 16]).unwrap();
    for _ in 0..2 {
        // Until the caller has dealt with them they are told at each opening.
        let opened = open(disk.copy(), options()).unwrap().0;
        assert_eq!(opened.shutdown, Shutdown::Crash);
        assert_eq!(opened.interrupted, [[1; 16], [3; 16], [4; 16], [6; 16]]);
    }
    let copy = disk.copy();
    let mut opened = open(copy.clone(), options()).unwrap().0;
    let mark = opened.store.attempts().begin(&[7; 16]).unwrap();
    drop(opened.store);
    drop(mark);
    opened = open(copy.copy(), options()).unwrap().0;
    assert_eq!(opened.interrupted.len(), 5);
    opened.store.end_recovery().unwrap();
    opened.store.close().unwrap();
    again.end().unwrap();
}

#[test]
fn how_it_was_left_is_told() {
    let disk = MemoryDisk::new();
    let opened = open(disk.clone(), options()).unwrap().0;
    assert_eq!(opened.shutdown, Shutdown::New);
    opened.store.close().unwrap();
    let opened = open(disk.clone(), options()).unwrap().0;
    assert_eq!(opened.shutdown, Shutdown::Clean);
    drop(opened);
    let mut boot = options();
    boot.boot_id = [8; 16];
    // It is said again until it was dealt with.
    for _ in 0..2 {
        let opened = open(disk.clone(), boot.clone()).unwrap().0;
        assert_eq!(opened.shutdown, Shutdown::PowerLoss);
    }
    let mut opened = open(disk.clone(), boot.clone()).unwrap().0;
    opened.store.end_recovery().unwrap();
    drop(opened);
    assert_eq!(open(disk.clone(), boot).unwrap().0.shutdown, Shutdown::Crash);
}

/// The real directory, with seals, snapshots, compaction and large bodies.
#[test]
fn a_life_on_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::new(directory.path());
    let mut dice = Dice(1);
    let mut live: Vec<(u64, Handle)> = Vec::new();
    let (mut next, mut most) = (0_u64, 0);
    for _ in 0..4 {
        let (Opened { mut store, damage, .. }, found) = open(disk.clone(), options()).unwrap();
        assert_eq!((damage, found.messages.len()), (vec![], live.len()));
        for (number, handle) in &mut live {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&number.to_be_bytes());
            *handle = found.messages[&key].0;
        }
        for _ in 0..60 {
            next += 1;
            let mut key = [0; 16];
            key[..8].copy_from_slice(&next.to_be_bytes());
            let body = if next % 9 == 0 {
                let path = directory.path().join(format!("spill-{next}"));
                fs::write(&path, vec![b'f'; 3000]).unwrap();
                NewBody::File { path, head: vec![b'h'; 20], len: 3000 }
            } else {
                NewBody::Parts(vec![Arc::new(vec![b'h'; 20]), Arc::new(vec![b'f'; 300])])
            };
            let op = Op::Accept { key, envelope: dice.bytes(30), state: vec![0; 20], body };
            live.push((next, handle(one(&mut store, op))));
            while live.len() > 12 {
                let (_, old) = live.swap_remove(dice.below(live.len() as u64));
                assert!(one(&mut store, Op::Remove { handle: old }).is_ok());
            }
            while store.maintain().unwrap() {}
            most = most.max(store.usage().segments);
            let reader = store.reader();
            for (number, handle) in &live {
                let (_, body) = read(&reader, *handle).unwrap();
                assert_eq!(body.len(), if number % 9 == 0 { 3020 } else { 320 });
                assert_eq!((body[0], body[20]), (b'h', b'f'));
            }
        }
        store.close().unwrap();
        assert_eq!(verify(&disk).unwrap().damage, []);
    }
    assert!(most < 12, "{most} segments for 12 messages");
    let bodies = fs::read_dir(directory.path().join("bodies")).unwrap().count();
    assert!(bodies <= 12, "{bodies} bodies");
    assert!(Path::new(directory.path()).join("clean").exists());
}

/// Readers never see another message's bytes while messages move, go and come.
#[test]
fn readers_and_compaction() {
    let mut small = options();
    small.segment_bytes = 30_000;
    let (Opened { mut store, .. }, _) = open(MemoryDisk::new(), small).unwrap();
    let live = std::sync::Mutex::new(Vec::<(u8, Handle)>::new());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let reader = store.reader();
    let (mut moved, mut dice) = (0, Dice(3));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (reader, live, stop) = (reader.clone(), &live, &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let some = live.lock().unwrap().clone();
                    for (number, handle) in some {
                        match read(&reader, handle) {
                            Ok((_, body)) => assert_eq!(body, vec![number; 700]),
                            Err(error) => assert!(matches!(error, ReadError::Removed), "{error}"),
                        }
                    }
                }
            });
        }
        for turn in 0..300_u32 {
            let number = u8::try_from(turn % 200).unwrap();
            let ops = (0..4).map(|_| accept(number, 700)).collect();
            let handles = store.commit(ops).into_iter().map(|done| (number, handle(done)));
            live.lock().unwrap().extend(handles);
            while live.lock().unwrap().len() > 30 {
                let at = dice.below(live.lock().unwrap().len() as u64);
                let (_, old) = live.lock().unwrap().swap_remove(at);
                assert!(one(&mut store, Op::Remove { handle: old }).is_ok());
            }
            while store.maintain().unwrap() {
                moved += 1;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(moved > 50, "{moved} steps of maintenance");
    assert_eq!(store.take_damage(), []);
}
