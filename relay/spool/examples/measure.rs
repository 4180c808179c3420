//! Measures the store on a directory: durable accepts a second, bytes written for each byte
//! accepted, memory and start-up with a million messages.
//!
//! `cargo run --release -p wavegate-spool --example measure [DIRECTORY] [MESSAGES]`. The directory
//! must not exist; it is removed at the end. INTERNALS.md has figures and says how they were made.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::{collections::VecDeque, env, fs, path::PathBuf, sync::Arc, time::Instant};

use wavegate_spool::*;

const BODY: usize = 10 * 1024;
/// As large as envelopes and states of one recipient are.
const ENVELOPE: usize = 200;
const STATE: usize = 40;

fn main() {
    let mut arguments = env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or("measured-store".to_owned()));
    let messages: u64 = arguments.next().map_or(1_000_000, |text| text.parse().unwrap());
    assert!(!directory.exists(), "{} exists", directory.display());

    println!(
        "| 10 kB, one sync a batch | accepts/s | batches/s | us processor time | bytes written a byte |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for batch in [1, 10, 50] {
        accepts(&directory, batch, batch as u64 * 600);
    }
    println!();
    println!(
        "| draining keeps up (accept, two states, remove) | messages/s | us processor time | bytes written a byte |"
    );
    println!("| --- | --- | --- | --- |");
    for batch in [1, 10, 50] {
        drain(&directory, batch, batch as u64 * 600);
    }
    println!();
    many(&directory, messages);
}

fn accept(number: u64, body: &Arc<Vec<u8>>) -> Op {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    let body = NewBody::Parts(vec![Arc::new(vec![b'r'; 90]), Arc::clone(body) as Part]);
    Op::Accept { key, envelope: vec![b'e'; ENVELOPE], state: vec![b's'; STATE], body }
}

fn open(directory: &PathBuf) -> Store<RealDisk> {
    Store::open(RealDisk::new(directory), Options::default(), |_| {}).unwrap().store
}

fn handle(done: Result<Done, StoreError>) -> Handle {
    let Ok(Done::Accepted(handle, _receipt)) = done else { panic!("{done:?}") };
    handle
}

fn accepts(directory: &PathBuf, batch: usize, count: u64) {
    let mut store = open(directory);
    let body = Arc::new(noise());
    let (start, written, cpu) = (Instant::now(), bytes_written(), cpu_us());
    let mut number = 0;
    while number < count {
        let ops = (0..batch as u64).map(|at| accept(number + at, &body)).collect();
        assert!(store.commit(ops).iter().all(Result::is_ok));
        number += batch as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "| {batch} | {:.0} | {:.0} | {:.0} | {:.2} |",
        number as f64 / seconds,
        number as f64 / seconds / batch as f64,
        (cpu_us() - cpu) as f64 / number as f64,
        (bytes_written() - written) as f64 / (number * BODY as u64) as f64,
    );
    drop(store);
    fs::remove_dir_all(directory).unwrap();
}

fn drain(directory: &PathBuf, batch: usize, count: u64) {
    let mut store = open(directory);
    let body = Arc::new(noise());
    let (start, written, cpu) = (Instant::now(), bytes_written(), cpu_us());
    let mut synced = start;
    let mut waiting: VecDeque<Handle> = VecDeque::new();
    let mut number = 0;
    while number < count {
        let mut ops: Vec<_> = (0..batch as u64).map(|at| accept(number + at, &body)).collect();
        // What was accepted two batches ago was tried once, deferred, tried again and delivered.
        let old = waiting.len().saturating_sub(batch);
        for handle in waiting.drain(..old) {
            ops.push(Op::State { handle, state: vec![b't'; STATE] });
            ops.push(Op::State { handle, state: vec![b'u'; STATE] });
            ops.push(Op::Remove { handle });
        }
        waiting.extend(store.commit(ops).into_iter().take(batch).map(handle));
        number += batch as u64;
        if synced.elapsed().as_secs() >= 1 {
            store.sync_journal().unwrap();
            synced = Instant::now();
        }
        while store.maintain().unwrap() {}
    }
    store.sync_journal().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "| {batch} | {:.0} | {:.0} | {:.2} |",
        number as f64 / seconds,
        (cpu_us() - cpu) as f64 / number as f64,
        (bytes_written() - written) as f64 / (number * BODY as u64) as f64,
    );
    drop(store);
    fs::remove_dir_all(directory).unwrap();
}

fn many(directory: &PathBuf, messages: u64) {
    let options = Options { quota: u64::MAX, ..Options::default() };
    let open = |each: &mut u64| {
        Store::open(RealDisk::new(directory), options.clone(), |_| *each += 1).unwrap()
    };
    let mut store = open(&mut 0).store;
    let before = resident();
    let body = Arc::new(vec![b'x'; 50]);
    let mut number = 0;
    while number < messages {
        let batch = 1000.min(messages - number);
        let ops = (0..batch).map(|at| accept(number + at, &body)).collect();
        assert!(store.commit(ops).iter().all(Result::is_ok));
        number += batch;
    }
    let memory = resident() - before;
    let start = Instant::now();
    while store.maintain().unwrap() {}
    let snapshot = start.elapsed();
    let bytes = store.usage().disk_bytes;
    println!("| {messages} messages | |");
    println!("| --- | --- |");
    println!("| memory a message | {:.0} bytes |", memory as f64 / messages as f64);
    println!("| bytes on disk a message, of which body 140 | {} |", bytes / messages);
    println!("| snapshots still due then | {:.2} s |", snapshot.as_secs_f64());
    drop(store);
    let mut told = 0;
    let start = Instant::now();
    let store = open(&mut told).store;
    println!("| start-up after a kill | {:.2} s |", start.elapsed().as_secs_f64());
    assert_eq!(told, messages);
    store.close().unwrap();
    let start = Instant::now();
    let opened = open(&mut told);
    println!("| start-up after a close | {:.2} s |", start.elapsed().as_secs_f64());
    let mut store = opened.store;
    let start = Instant::now();
    let mut handles = Vec::new();
    drop(store);
    store = Store::open(RealDisk::new(directory), options.clone(), |message| {
        handles.push(message.handle);
    })
    .unwrap()
    .store;
    for some in handles.chunks(1000) {
        let ops = some.iter().map(|handle| Op::Remove { handle: *handle }).collect();
        assert!(store.commit(ops).iter().all(Result::is_ok));
        while store.maintain().unwrap() {}
    }
    println!(
        "| opened and all removed, with maintenance | {:.2} s |",
        start.elapsed().as_secs_f64()
    );
    drop(store);
    fs::remove_dir_all(directory).unwrap();
}

/// A body that no layer below could compress.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    (0..BODY)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()[7]
        })
        .collect()
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What this process sent to the page cache to be written; whole pages.
fn bytes_written() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

fn resident() -> u64 {
    field("/proc/self/status", "VmRSS:") * 1024
}

/// Processor time of this process, with what the kernel did for it.
fn cpu_us() -> u64 {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1000
}
