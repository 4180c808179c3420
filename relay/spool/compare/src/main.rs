//! What the store was chosen against: the same work on `fjall` (an LSM tree, bodies separated) and
//! `redb` (a B+ tree, copy on write). INTERNALS.md has the figures.
//!
//! `cargo run --release --manifest-path relay/spool/compare/Cargo.toml [DIRECTORY] [MESSAGES]`. With
//! `COMPARE=ours`, `fjall` or `redb` it measures start-up and memory of many messages in that one. The
//! directory must not exist; it is removed at the end.

use std::{
    collections::{HashMap, VecDeque},
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use redb::{Durability, ReadableTable, TableDefinition};
use wavegate_spool::{Done, Handle, NewBody, Op, Options, Part, RealDisk, Store};

const BODY: usize = 10 * 1024;
const ENVELOPE: usize = 200;
const STATE: usize = 40;

/// What a store is asked for: one batch, durable when the call returns as far as `new` goes.
trait Candidate {
    fn open(directory: &Path) -> Self;
    /// Takes new messages; older ones had two states since and are removed.
    fn batch(&mut self, new: &[u64], old: &[u64], body: &Arc<Vec<u8>>);
    /// About once a second.
    fn tend(&mut self);
    /// Keys and states of all that is there.
    fn count(&self) -> u64;
}

fn key(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

struct Ours {
    store: Store<RealDisk>,
    handles: HashMap<u64, Handle>,
    found: u64,
}

impl Candidate for Ours {
    fn open(directory: &Path) -> Self {
        let mut found = 0;
        let options = Options { quota: u64::MAX, ..Options::default() };
        let opened = Store::open(RealDisk::new(directory), options, |_| found += 1).unwrap();
        Self { store: opened.store, handles: HashMap::new(), found }
    }

    fn batch(&mut self, new: &[u64], old: &[u64], body: &Arc<Vec<u8>>) {
        let mut ops: Vec<Op> = new
            .iter()
            .map(|number| Op::Accept {
                key: key(*number),
                envelope: vec![b'e'; ENVELOPE],
                state: vec![b's'; STATE],
                body: NewBody::Parts(vec![Arc::clone(body) as Part]),
            })
            .collect();
        for number in old {
            let handle = self.handles.remove(number).unwrap();
            ops.push(Op::State { handle, state: vec![b't'; STATE] });
            ops.push(Op::State { handle, state: vec![b'u'; STATE] });
            ops.push(Op::Remove { handle });
        }
        let results = self.store.commit(ops);
        for (number, result) in new.iter().zip(results) {
            let Ok(Done::Accepted(handle, _)) = result else { panic!("{result:?}") };
            if body.len() == BODY {
                self.handles.insert(*number, handle);
            }
        }
    }

    fn tend(&mut self) {
        self.store.sync_journal().unwrap();
        while self.store.maintain().unwrap() {}
    }

    fn count(&self) -> u64 {
        self.found
    }
}

struct Fjall {
    database: Database,
    states: Keyspace,
    bodies: Keyspace,
}

impl Candidate for Fjall {
    fn open(directory: &Path) -> Self {
        let database = Database::builder(directory).open().unwrap();
        let states = database.keyspace("states", KeyspaceCreateOptions::default).unwrap();
        let separated = || {
            KeyspaceCreateOptions::default()
                .with_kv_separation(Some(KvSeparationOptions::default()))
        };
        let bodies = database.keyspace("bodies", separated).unwrap();
        Self { database, states, bodies }
    }

    fn batch(&mut self, new: &[u64], old: &[u64], body: &Arc<Vec<u8>>) {
        for state in [b't', b'u'] {
            let mut batch = self.database.batch();
            for number in old {
                batch.insert(&self.states, key(*number), vec![state; STATE]);
            }
            batch.commit().unwrap();
        }
        let mut batch = self.database.batch();
        for number in old {
            batch.remove(&self.states, key(*number));
            batch.remove(&self.bodies, key(*number));
        }
        for number in new {
            batch.insert(&self.states, key(*number), vec![b's'; STATE]);
            let mut value = vec![b'e'; ENVELOPE];
            value.extend_from_slice(body);
            batch.insert(&self.bodies, key(*number), value);
        }
        batch.durability(Some(PersistMode::SyncData)).commit().unwrap();
    }

    fn tend(&mut self) {}

    fn count(&self) -> u64 {
        self.states.iter().count() as u64
    }
}

struct Redb {
    database: redb::Database,
}

const STATES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("states");
const BODIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bodies");

impl Candidate for Redb {
    fn open(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let database = redb::Database::create(directory.join("store.redb")).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(STATES).unwrap();
        write.open_table(BODIES).unwrap();
        write.commit().unwrap();
        Self { database }
    }

    fn batch(&mut self, new: &[u64], old: &[u64], body: &Arc<Vec<u8>>) {
        let mut write = self.database.begin_write().unwrap();
        write.set_durability(Durability::Immediate).unwrap();
        {
            let mut states = write.open_table(STATES).unwrap();
            let mut bodies = write.open_table(BODIES).unwrap();
            for number in old {
                for state in [b't', b'u'] {
                    states.insert(&key(*number)[..], &[state; STATE][..]).unwrap();
                }
                states.remove(&key(*number)[..]).unwrap();
                bodies.remove(&key(*number)[..]).unwrap();
            }
            let mut value = vec![b'e'; ENVELOPE];
            value.extend_from_slice(body);
            for number in new {
                states.insert(&key(*number)[..], &[b's'; STATE][..]).unwrap();
                bodies.insert(&key(*number)[..], &value[..]).unwrap();
            }
        }
        write.commit().unwrap();
    }

    fn tend(&mut self) {}

    fn count(&self) -> u64 {
        use redb::ReadableDatabase;
        let read = self.database.begin_read().unwrap();
        read.open_table(STATES).unwrap().iter().unwrap().count() as u64
    }
}

fn main() {
    let mut arguments = env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or("compared-store".to_owned()));
    let messages: u64 = arguments.next().map_or(1_000_000, |text| text.parse().unwrap());
    assert!(!directory.exists(), "{} exists", directory.display());
    // Memory is the process's, so each has one of its own for that.
    let Ok(which) = env::var("COMPARE") else { return drain_all(&directory) };
    println!("| store | {messages} messages: memory each | bytes on disk each | start-up |");
    println!("| --- | --- | --- | --- |");
    match which.as_str() {
        "fjall" => many::<Fjall>("fjall", &directory, messages),
        "redb" => many::<Redb>("redb", &directory, messages),
        _ => many::<Ours>("this store", &directory, messages),
    }
}

fn drain_all(directory: &Path) {
    println!(
        "| store | one sync a batch | messages/s | processor time each | bytes written a byte |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for batch in [1, 10, 50] {
        drain::<Ours>("this store", directory, batch);
        drain::<Fjall>("fjall", directory, batch);
        drain::<Redb>("redb", directory, batch);
    }
}

/// Messages come in batches, and each goes two batches later.
fn drain<C: Candidate>(name: &str, directory: &Path, size: u64) {
    let mut store = C::open(directory);
    let body = Arc::new(noise(BODY));
    let count = size * 1000;
    let (start, written, cpu) = (Instant::now(), bytes_written(), cpu_us());
    let mut synced = start;
    let mut waiting: VecDeque<u64> = VecDeque::new();
    let mut number = 0;
    while number < count {
        let new: Vec<u64> = (number..number + size).collect();
        let old: Vec<u64> = waiting.drain(..waiting.len().saturating_sub(size as usize)).collect();
        store.batch(&new, &old, &body);
        waiting.extend(new);
        number += size;
        if synced.elapsed().as_secs() >= 1 {
            store.tend();
            synced = Instant::now();
        }
    }
    store.tend();
    let seconds = start.elapsed().as_secs_f64();
    drop(store);
    println!(
        "| {name} | {size} | {:.0} | {:.0} us | {:.2} |",
        count as f64 / seconds,
        (cpu_us() - cpu) as f64 / count as f64,
        (bytes_written() - written) as f64 / (count * BODY as u64) as f64,
    );
    fs::remove_dir_all(directory).unwrap();
}

fn many<C: Candidate>(name: &str, directory: &Path, messages: u64) {
    let mut store = C::open(directory);
    let before = resident();
    let body = Arc::new(noise(50));
    let mut number = 0;
    while number < messages {
        let new: Vec<u64> = (number..number + 1000.min(messages - number)).collect();
        store.batch(&new, &[], &body);
        number += 1000;
    }
    store.tend();
    let memory = resident().saturating_sub(before);
    drop(store);
    let start = Instant::now();
    let store = C::open(directory);
    assert_eq!(store.count(), messages);
    let opened = start.elapsed().as_secs_f64();
    println!(
        "| {name} | {} bytes | {} | {opened:.2} s |",
        memory / messages,
        size_of(directory) / messages,
    );
    drop(store);
    fs::remove_dir_all(directory).unwrap();
}

fn size_of(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { size_of(&entry.path()) } else { meta.len() }
        })
        .sum()
}

/// Bytes that no layer below could compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..length)
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

fn bytes_written() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

fn resident() -> u64 {
    field("/proc/self/status", "VmRSS:") * 1024
}

/// Processor time of this process with all its threads, in hundredths of a second.
fn cpu_us() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks * 10_000
}
