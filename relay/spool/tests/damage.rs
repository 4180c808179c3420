//! Every byte of every file of a small store flipped, and every file cut at every length.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::BTreeMap,
    io::IoSlice,
    path::{Path, PathBuf},
    sync::Arc,
};

use support::*;
use wavegate_spool::*;

type Contents = BTreeMap<MessageKey, (Vec<u8>, Vec<u8>, Vec<u8>)>;

fn key(number: u8) -> MessageKey {
    let mut key = [0x5a; 16];
    key[0] = number;
    key
}

fn accept(number: u8, body: NewBody) -> Op {
    let envelope = vec![number; 12];
    Op::Accept { key: key(number), envelope, state: vec![number, 1], body }
}

fn parts(bytes: &[u8]) -> NewBody {
    NewBody::Parts(vec![Arc::new(bytes.to_vec())])
}

/// Eleven messages in three or four segments, one in a file; two are removed, three have new states.
fn small(disk: &MemoryDisk, close: bool) -> Contents {
    let mut options = options();
    options.segment_bytes = 500;
    let (Opened { mut store, .. }, _) = open(disk.clone(), options).unwrap();
    let mut handles = Vec::new();
    for numbers in [1..=4, 5..=7, 8..=10] {
        let ops = numbers.map(|number| accept(number, parts(&[number; 70]))).collect();
        for done in store.commit(ops) {
            let Done::Accepted(handle, _) = done.unwrap() else { panic!() };
            handles.push(handle);
        }
    }
    let spill = PathBuf::from("spill/1");
    let file = disk.open(&spill, How::Create).unwrap();
    file.write_at(0, &[IoSlice::new(&[11; 90])]).unwrap();
    let body = NewBody::File { path: spill, head: vec![77; 9], len: 90 };
    let done = store.commit(vec![accept(11, body)]).pop().unwrap().unwrap();
    let Done::Accepted(handle, _) = done else { panic!() };
    handles.push(handle);
    let mut ops = vec![Op::Remove { handle: handles[2] }, Op::Remove { handle: handles[6] }];
    for at in [0, 4, 10] {
        ops.push(Op::State { handle: handles[at], state: vec![88; 5] });
    }
    ops.push(Op::Value { key: b"hold".to_vec(), value: Some(b"all".to_vec()) });
    assert!(store.commit(ops).iter().all(Result::is_ok));
    store.sync_journal().unwrap();
    if close {
        store.close().unwrap();
    }
    let (opened, found) = open(disk.copy(), support::options()).unwrap();
    assert_eq!((opened.damage.len(), found.messages.len()), (0, 9));
    assert_eq!(verify(&disk.copy()).unwrap().damage, []);
    contents(&opened, &found)
}

fn contents(opened: &Opened<MemoryDisk>, found: &Found) -> Contents {
    let reader = opened.store.reader();
    let messages = found.messages.iter().map(|(key, (handle, state, _))| {
        let (envelope, body) = read(&reader, *handle).unwrap();
        (*key, (envelope, state.clone(), body))
    });
    messages.collect()
}

/// Opens a damaged store. What it can still read has to be what it was; at most `lose` messages
/// may be missing or unreadable, and that, or anything else that is different, is reported.
fn check(disk: &MemoryDisk, truth: &Contents, about: &str, lose: usize) {
    let offline = verify(&disk.copy()).unwrap();
    let boot = options();
    let (opened, found) = open(disk.copy(), boot.clone()).unwrap();
    let reader = opened.store.reader();
    let (mut missing, mut different, mut unreadable) = (0, 0, 0);
    for (key, (envelope, state, body)) in truth {
        let Some((handle, now, _)) = found.messages.get(key) else {
            missing += 1;
            continue;
        };
        different += usize::from(now != state);
        match read(&reader, *handle) {
            Ok(now) => assert_eq!((&now.0, &now.1), (envelope, body), "{about}"),
            Err(ReadError::Damaged { .. }) => unreadable += 1,
            Err(other) => panic!("{about}: {other}"),
        }
    }
    assert!(missing + unreadable <= lose, "{about}: {missing} missing, {unreadable} unreadable");
    let back = found.messages.keys().filter(|key| !truth.contains_key(*key)).count();
    let reported = !opened.damage.is_empty();
    if missing + different + back > 0 {
        assert!(reported, "{about}: {missing} missing, {different} different, {back} back");
    }
    if unreadable > 0 {
        assert!(!offline.damage.is_empty(), "{about}: verify saw nothing");
    }
    for damage in &opened.damage {
        let _ = damage.to_string();
        if let Some(copy) = &damage.set_aside {
            assert!(disk.open(Path::new(copy), How::Read).is_err(), "only the copy is changed");
        }
    }
    // Reported once: what was set aside is not damage again.
    let again = open(disk.copy(), boot).unwrap().0;
    drop(opened);
    drop(again);
}

/// Damage that was reported is not reported again by the next opening.
fn reported_once(disk: &MemoryDisk, about: &str) {
    let copy = disk.copy();
    let (opened, found) = open(copy.clone(), options()).unwrap();
    let (first, count) = (opened.damage, found.messages.len());
    opened.store.close().unwrap();
    let (opened, found) = open(copy, options()).unwrap();
    let again: Vec<_> = opened
        .damage
        .iter()
        .filter(|damage| !matches!(damage.what, What::Header | What::Attempts))
        .collect();
    assert!(again.is_empty(), "{about}: {first:?}, then {again:?}");
    assert_eq!(found.messages.len(), count, "{about}");
}

fn length(disk: &MemoryDisk, path: &Path) -> u64 {
    disk.open(path, How::Read).unwrap().length().unwrap()
}

fn every_flip(close: bool) {
    let disk = MemoryDisk::new();
    let truth = small(&disk, close);
    for path in disk.files() {
        for at in 0..length(&disk, &path) {
            let damaged = disk.copy();
            let file = damaged.open(&path, How::Write).unwrap();
            let mut byte = [0];
            file.read_at(at, &mut byte).unwrap();
            let flipped = [byte[0] ^ (1 << (at % 8))];
            file.write_at(at, &[IoSlice::new(&flipped)]).unwrap();
            drop(file);
            let about = format!("{} flipped at {at}", path.display());
            // A flipped byte of the journal costs no message; one of a segment or body one.
            let inside = path.starts_with("bodies") || about.starts_with("seg");
            check(&damaged, &truth, &about, usize::from(inside));
            if at % 5 == 0 {
                reported_once(&damaged, &about);
            }
            if inside && at >= 64 {
                let seen = !verify(&damaged).unwrap().damage.is_empty();
                let (opened, found) = open(damaged.copy(), options()).unwrap();
                let reader = opened.store.reader();
                let unread =
                    found.messages.values().any(|(handle, ..)| reader.check(*handle).is_err());
                // Only bytes of removed messages are nobody's.
                assert_eq!(seen, unread || !opened.damage.is_empty(), "{about}");
            }
        }
    }
}

#[test]
fn a_flipped_byte_of_a_closed_store() {
    every_flip(true);
}

#[test]
fn a_flipped_byte_of_a_killed_store() {
    every_flip(false);
}

#[test]
fn every_truncation() {
    for close in [true, false] {
        let disk = MemoryDisk::new();
        let truth = small(&disk, close);
        for path in disk.files() {
            let length = length(&disk, &path);
            for at in 0..length {
                let damaged = disk.copy();
                damaged.open(&path, How::Write).unwrap().truncate(at).unwrap();
                let about = format!("{} cut at {at} of {length}", path.display());
                let name = path.display().to_string();
                if name.starts_with("journal") {
                    if close {
                        check(&damaged, &truth, &about, 0);
                    } else {
                        // The last entries of a killed process look as if they had never been
                        // written; but no message is lost.
                        let (_, found) = open(damaged.copy(), options()).unwrap();
                        assert!(
                            truth.keys().all(|key| found.messages.contains_key(key)),
                            "{about}"
                        );
                    }
                } else {
                    let messages = if name.starts_with("seg") { truth.len() } else { 1 };
                    check(&damaged, &truth, &about, messages);
                }
                if at % 5 == 0 {
                    reported_once(&damaged, &about);
                }
            }
        }
    }
}

#[test]
fn a_file_that_is_gone() {
    let disk = MemoryDisk::new();
    let truth = small(&disk, true);
    for path in disk.files() {
        let damaged = disk.copy();
        damaged.remove(&path).unwrap();
        let about = format!("{} gone", path.display());
        let name = path.display().to_string();
        let lose = if name.starts_with("seg") { 4 } else { usize::from(name.contains("bodies")) };
        check(&damaged, &truth, &about, lose);
        reported_once(&damaged, &about);
    }
}

#[test]
fn a_damaged_message_is_set_aside_and_the_others_stay() {
    let disk = MemoryDisk::new();
    let truth = small(&disk, true);
    let file = disk.open(Path::new("seg-00000001"), How::Write).unwrap();
    // In the body of the first message.
    file.write_at(64 + 68 + 12 + 2 + 30, &[IoSlice::new(b"!")]).unwrap();
    let (mut opened, found) = open(disk.clone(), options()).unwrap();
    let handle = found.messages[&key(1)].0;
    let mut body = [0; 70];
    assert!(opened.store.reader().envelope(handle).is_ok());
    let whole = opened.store.reader().read_body(handle, 0, &mut body);
    assert!(matches!(whole, Err(ReadError::Damaged { .. })));
    let damage = opened.store.set_aside(handle).unwrap();
    let copy = disk.open(Path::new(&damage.set_aside.unwrap()), How::Read).unwrap();
    assert_eq!(copy.length().unwrap(), 68 + 12 + 2 + 70);
    assert_eq!(damage.key, Some(key(1)));
    drop(opened);
    let (opened, found) = open(disk, options()).unwrap();
    assert_eq!(found.messages.len(), truth.len() - 1);
    assert_eq!(contents(&opened, &found).len(), truth.len() - 1);
}

#[test]
fn any_bytes_as_files_do_not_panic() {
    let mut dice = Dice(1);
    for _ in 0..300 {
        let disk = MemoryDisk::new();
        small(&disk, true);
        for path in disk.files() {
            if dice.below(2) == 0 {
                let file = disk.open(&path, How::Create).unwrap();
                let noise = dice.bytes(700);
                file.write_at(0, &[IoSlice::new(&noise)]).unwrap();
            }
        }
        match open(disk.copy(), options()) {
            Ok((opened, found)) => {
                let reader = opened.store.reader();
                for (handle, ..) in found.messages.values() {
                    let _ = read(&reader, *handle);
                }
            }
            Err(error) => assert!(matches!(error, OpenError::Io { .. }), "{error}"),
        }
        verify(&disk).unwrap();
    }
}
