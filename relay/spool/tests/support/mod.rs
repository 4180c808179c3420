//! A run of random operations, and the truth that any later opening is compared with.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test uses a part")]
#![allow(unreachable_pub, reason = "a module of tests")]

use std::{collections::BTreeMap, io::IoSlice, path::PathBuf, sync::Arc};

use wavegate_spool::*;

pub type Faulty = FaultyDisk<MemoryDisk>;

/// Splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.next() % limit).unwrap()
    }

    pub fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

pub fn options() -> Options {
    Options {
        segment_bytes: 6000,
        quota: 1 << 30,
        reserve: 0,
        journal_bytes: 4000,
        attempt_slots: 4,
        boot_id: [7; 16],
    }
}

/// What is known of a message that was ever offered.
#[derive(Debug, Clone)]
pub struct Message {
    pub envelope: Vec<u8>,
    pub body: Vec<u8>,
    /// All states that were ever asked for.
    pub states: Vec<Vec<u8>>,
    /// Of these the last that was completed, and the last that was durable.
    pub done: usize,
    pub synced: usize,
    pub accepted: bool,
    /// It was refused, and something was made durable after that.
    pub refused_for_good: bool,
    pub removal_asked: bool,
    pub removed: bool,
    pub removal_synced: bool,
}

/// All that a value ever was, the last of these that was completed, and the last durable one.
pub type Value = (Vec<Option<Vec<u8>>>, usize, usize);

#[derive(Debug, Clone, Default)]
pub struct Truth {
    pub messages: BTreeMap<MessageKey, Message>,
    pub values: BTreeMap<Vec<u8>, Value>,
}

/// What an opening found.
#[derive(Debug, Default)]
pub struct Found {
    pub messages: BTreeMap<MessageKey, (Handle, Vec<u8>, u64)>,
    pub doubtful: usize,
}

pub fn open<D: Disk>(disk: D, options: Options) -> Result<(Opened<D>, Found), OpenError> {
    let mut found = Found::default();
    let opened = Store::open(disk, options, |message| {
        let Recovered { handle, key, state, body_len, doubtful } = message;
        found.doubtful += usize::from(doubtful);
        let old = found.messages.insert(key, (handle, state.to_vec(), body_len));
        assert!(old.is_none(), "a message is told twice");
    })?;
    Ok((opened, found))
}

pub fn read<D: Disk>(reader: &Reader<D>, handle: Handle) -> Result<(Vec<u8>, Vec<u8>), ReadError> {
    reader.check(handle)?;
    let mut body = vec![0; usize::try_from(reader.body_len(handle)?).unwrap()];
    let mut done = 0;
    while done < body.len() {
        // Odd pieces, so that head and file, and ends of pieces, are crossed.
        let until = body.len().min(done + 777);
        let read = reader.read_body(handle, done as u64, &mut body[done..until])?;
        assert!(read > 0, "a body ends before its length");
        done += read;
    }
    Ok((reader.envelope(handle)?, body))
}

impl Truth {
    /// Compares with what an opening found. `power`: only what was synced has to be there.
    pub fn check<D: Disk>(&self, opened: &Opened<D>, found: &Found, power: bool) {
        let reader = opened.store.reader();
        for (key, message) in &self.messages {
            let gone = if power { message.removal_synced } else { message.removed };
            let Some((handle, state, body_len)) = found.messages.get(key) else {
                assert!(
                    !message.accepted || message.removal_asked,
                    "message {key:?} is lost: {message:?}"
                );
                continue;
            };
            assert!(!gone, "message {key:?} is back: {message:?}");
            assert!(!message.refused_for_good, "message {key:?} was refused: {message:?}");
            let from = if power { message.synced } else { message.done };
            assert!(
                message.states[from..].contains(state),
                "message {key:?} has an old state {state:?}: {message:?}"
            );
            let (envelope, body) = read(&reader, *handle).unwrap();
            assert_eq!(envelope, message.envelope);
            assert_eq!(body, message.body);
            assert_eq!(*body_len, body.len() as u64);
            assert_eq!(reader.key(*handle).unwrap(), *key);
        }
        for key in found.messages.keys() {
            assert!(self.messages.contains_key(key), "message {key:?} was never offered");
        }
        let values: BTreeMap<_, _> = opened.values.iter().cloned().collect();
        for (key, (all, done, synced)) in &self.values {
            let from = if power { *synced } else { *done };
            let now = values.get(key).cloned();
            assert!(all[from..].contains(&now), "value {key:?} is {now:?}, {from} of {all:?}");
        }
    }

    /// What was found is the truth from now on.
    pub fn settle(&mut self, opened: &Opened<impl Disk>, found: &Found) {
        self.messages.retain(|key, _| found.messages.contains_key(key));
        for (key, message) in &mut self.messages {
            message.states = vec![found.messages[key].1.clone()];
            (message.done, message.synced) = (0, 0);
            (message.accepted, message.refused_for_good) = (true, false);
            (message.removal_asked, message.removed) = (false, false);
            message.removal_synced = false;
        }
        let values: BTreeMap<_, _> = opened.values.iter().cloned().collect();
        for (key, value) in &mut self.values {
            *value = (vec![values.get(key).cloned()], 0, 0);
        }
    }

    pub fn synced(&mut self) {
        for message in self.messages.values_mut() {
            message.synced = message.done;
            message.removal_synced |= message.removed;
            message.refused_for_good |= !message.accepted;
        }
        for (_, done, synced) in self.values.values_mut() {
            *synced = *done;
        }
    }
}

/// A store that is being used.
pub struct Run {
    pub disk: Faulty,
    pub dice: Dice,
    pub truth: Truth,
    pub store: Store<Faulty>,
    pub live: Vec<(MessageKey, Handle)>,
    pub options: Options,
    next: u64,
    /// With faults an error is no surprise.
    pub errors_allowed: bool,
    pub errors: usize,
}

enum Asked {
    Accept(MessageKey),
    State(MessageKey),
    Remove(MessageKey),
    Value(Vec<u8>),
    Sync,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let disk = FaultyDisk::new(MemoryDisk::new());
        Self::on(disk, seed).unwrap()
    }

    /// A new store on a disk that may fail.
    pub fn on(disk: Faulty, seed: u64) -> Result<Self, OpenError> {
        let (opened, _) = open(disk.clone(), options())?;
        Ok(Self {
            disk,
            dice: Dice(seed),
            truth: Truth::default(),
            store: opened.store,
            live: Vec::new(),
            options: options(),
            next: 0,
            errors_allowed: false,
            errors: 0,
        })
    }

    fn accept(&mut self) -> (Op, Asked) {
        self.next += 1;
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.next.to_be_bytes());
        key[15] = 1;
        let envelope = self.dice.bytes(60);
        let state = self.dice.bytes(30);
        let (body, bytes) = if self.dice.below(8) == 0 {
            let (head, file) = (self.dice.bytes(50), self.dice.bytes(9000));
            let path = PathBuf::from(format!("spill/{}", self.next));
            // The caller's own writing is not what is tested.
            let spill = self.disk.inner().open(&path, How::Create).unwrap();
            let mut written = 0;
            while written < file.len() {
                let part = [IoSlice::new(&file[written..])];
                match spill.write_at(written as u64, &part) {
                    Ok(bytes) => written += bytes,
                    Err(_) => break,
                }
            }
            let len = file.len() as u64;
            let bytes = [head.clone(), file].concat();
            (NewBody::File { path, head, len }, bytes)
        } else {
            let pieces: Vec<Vec<u8>> =
                (0..self.dice.below(3)).map(|_| self.dice.bytes(900)).collect();
            let bytes = pieces.concat();
            let parts = pieces.into_iter().map(|piece| Arc::new(piece) as Part).collect();
            (NewBody::Parts(parts), bytes)
        };
        let message = Message {
            envelope: envelope.clone(),
            body: bytes,
            states: vec![state.clone()],
            done: 0,
            synced: 0,
            accepted: false,
            refused_for_good: false,
            removal_asked: false,
            removed: false,
            removal_synced: false,
        };
        self.truth.messages.insert(key, message);
        (Op::Accept { key, envelope, state, body }, Asked::Accept(key))
    }

    fn op(&mut self) -> (Op, Asked) {
        let some = !self.live.is_empty();
        match self.dice.below(20) {
            0..8 if some => {
                let at = self.dice.below(self.live.len() as u64);
                let (key, handle) = self.live[at];
                self.truth.messages.get_mut(&key).unwrap().removal_asked = true;
                self.live.swap_remove(at);
                (Op::Remove { handle }, Asked::Remove(key))
            }
            8..12 if some => {
                let (key, handle) = self.live[self.dice.below(self.live.len() as u64)];
                let state = self.dice.bytes(30);
                self.truth.messages.get_mut(&key).unwrap().states.push(state.clone());
                (Op::State { handle, state }, Asked::State(key))
            }
            12 => {
                let key = vec![b'v', self.dice.next().to_le_bytes()[0] % 4];
                let value = (self.dice.below(3) > 0).then(|| self.dice.bytes(40));
                let all = self.truth.values.entry(key.clone()).or_insert((vec![None], 0, 0));
                all.0.push(value.clone());
                (Op::Value { key: key.clone(), value }, Asked::Value(key))
            }
            13 => (Op::SyncJournal, Asked::Sync),
            _ => self.accept(),
        }
    }

    /// One batch of random operations.
    pub fn batch(&mut self) {
        let count = 1 + self.dice.below(5);
        let (mut ops, mut asked) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (op, ask) = self.op();
            ops.push(op);
            asked.push(ask);
        }
        let results = self.store.commit(ops);
        assert_eq!(results.len(), count);
        let mut synced = false;
        for (ask, result) in asked.iter().zip(results) {
            if let Err(error) = &result {
                assert!(self.errors_allowed, "{error}");
                self.errors += 1;
                continue;
            }
            let message = match ask {
                Asked::Accept(key) | Asked::State(key) | Asked::Remove(key) => {
                    self.truth.messages.get_mut(key)
                }
                _ => None,
            };
            match (ask, result, message) {
                (Asked::Accept(key), Ok(Done::Accepted(handle, _receipt)), Some(message)) => {
                    message.accepted = true;
                    self.live.push((*key, handle));
                }
                (Asked::State(_), Ok(Done::Done), Some(message)) => {
                    // Later ones of this batch are done as well.
                    message.done = message.states.len() - 1;
                }
                (Asked::Remove(_), Ok(Done::Done), Some(message)) => message.removed = true,
                (Asked::Value(key), Ok(Done::Done), _) => {
                    let (all, done, _) = self.truth.values.get_mut(key).unwrap();
                    *done = all.len() - 1;
                }
                (Asked::Sync, Ok(Done::Done), _) => synced = true,
                other => panic!("{:?}", other.1),
            }
        }
        if synced {
            self.truth.synced();
        }
    }

    pub fn sync(&mut self) {
        match self.store.sync_journal() {
            Ok(()) => {
                // What was refused is known to the journal from the next commit on.
                let refused: Vec<_> = self
                    .truth
                    .messages
                    .iter()
                    .filter(|(_, message)| !message.accepted && !message.refused_for_good)
                    .map(|(key, _)| *key)
                    .collect();
                self.truth.synced();
                for key in refused {
                    self.truth.messages.get_mut(&key).unwrap().refused_for_good = false;
                }
            }
            Err(error) => {
                assert!(self.errors_allowed, "{error}");
                self.errors += 1;
            }
        }
    }

    pub fn maintain(&mut self) {
        for _ in 0..50 {
            match self.store.maintain() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    assert!(self.errors_allowed, "{error}");
                    self.errors += 1;
                    return;
                }
            }
        }
    }

    /// One step of a life without crashes.
    pub fn step(&mut self) {
        match self.dice.below(12) {
            0 => self.sync(),
            1 | 2 => self.maintain(),
            _ => self.batch(),
        }
    }

    /// Every live message can be read now.
    pub fn read_all(&self) {
        let reader = self.store.reader();
        for (key, handle) in &self.live {
            let message = &self.truth.messages[key];
            let (envelope, body) = read(&reader, *handle).unwrap();
            assert_eq!((&envelope, &body), (&message.envelope, &message.body));
        }
    }

    /// The store; another one, of no use, is left in its place.
    pub fn take_store(&mut self) -> Store<Faulty> {
        let (other, _) = open(FaultyDisk::new(MemoryDisk::new()), options()).unwrap();
        std::mem::replace(&mut self.store, other.store)
    }

    /// Opens what is on another disk in place of this store.
    pub fn reopen(&mut self, disk: MemoryDisk, power: bool) {
        let boot = if power { self.options.boot_id[0] + 1 } else { self.options.boot_id[0] };
        self.options.boot_id[0] = boot;
        self.disk = FaultyDisk::new(disk);
        let (opened, found) = open(self.disk.clone(), self.options.clone()).unwrap();
        assert_eq!(opened.damage, []);
        self.truth.check(&opened, &found, power);
        self.truth.settle(&opened, &found);
        self.live = found.messages.iter().map(|(key, (handle, ..))| (*key, *handle)).collect();
        self.store = opened.store;
    }
}
