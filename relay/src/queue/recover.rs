//! What an earlier process left: its messages, accounts and holds.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use tokio::sync::Notify;
use wavegate_spool::{Disk, Op, OpenError, Options, Recovered};

use super::{AGREED, ALL_HELD, Account, Kept, Queue, State};
use crate::{
    config::SpoolConfig,
    envelope::Progress,
    message::MessageId,
    plan::Timestamp,
    scheduler::{self, Entry, Scheduler, Slot, Wait},
    spool::{Damage, Opened, Shutdown, Spool},
    waves::{self, Record},
    world::WallClock,
};

/// What was found in the spool.
#[derive(Debug)]
pub struct Found {
    /// How the last process ended.
    pub shutdown: Shutdown,
    /// Messages.
    pub messages: usize,
    /// Of these, so many may have been delivered by the last process.
    pub doubtful: usize,
    /// What could not be read, and where it was put.
    pub damage: Vec<Damage>,
    /// Waves of which it is not known how far they have come: a later version wrote it.
    pub unknown_waves: Vec<String>,
}

/// An open queue and what was found in it.
pub struct OpenedQueue {
    /// The queue.
    pub queue: Arc<Queue>,
    /// What was found.
    pub found: Found,
}

/// Key of the value that says that all messages up to a time may have been delivered: the machine
/// lost power, or the journal was damaged, and what was known of them with it. It stays, because
/// each is told of when it is tried, and that may be after another restart.
const DOUBT_BEFORE: &[u8] = b"doubt-before";

/// Slots for attempts under way: as many as there may be connections in all.
const ATTEMPT_SLOTS: u32 = 65_536;

impl Queue {
    /// Opens the queue in a directory.
    pub fn open(
        directory: &Path,
        config: &SpoolConfig,
        clock: Arc<dyn WallClock>,
        workers: usize,
    ) -> Result<OpenedQueue, OpenError> {
        let mut recovery = Recovery::new(clock.now());
        let opened = Spool::open(directory, config, ATTEMPT_SLOTS, |one| recovery.message(&one))?;
        Ok(recovery.finish(opened, clock, workers))
    }

    /// An empty queue in memory: for simulations, measurements and explanations, which promise
    /// nothing to anybody.
    pub fn in_memory(clock: Arc<dyn WallClock>) -> Arc<Self> {
        let disk = wavegate_spool::MemoryDisk::new();
        match Self::open_on(disk, Options::default(), clock, 1) {
            Ok(opened) => opened.queue,
            Err(error) => unreachable!("a disk in memory is empty and never fails: {error}"),
        }
    }

    /// Opens the queue on a disk of simulations, which is written at once (`Spool::open_at_once`).
    pub fn open_on<D: Disk>(
        disk: D,
        options: Options,
        clock: Arc<dyn WallClock>,
        workers: usize,
    ) -> Result<OpenedQueue, OpenError> {
        let mut recovery = Recovery::new(clock.now());
        let opened = Spool::open_at_once(disk, options, |one| recovery.message(&one))?;
        Ok(recovery.finish(opened, clock, workers))
    }
}

struct Recovery {
    state: State,
    now: Timestamp,
    doubtful: Vec<Slot>,
    /// The journal has a hole, so that anything may have happened.
    torn: bool,
    unreadable: usize,
}

impl Recovery {
    fn new(now: Timestamp) -> Self {
        let state = State {
            scheduler: Scheduler::new(),
            handles: Vec::new(),
            cached: HashMap::new(),
            noted: HashSet::new(),
            notes: HashMap::new(),
            doubtful: Vec::new(),
            accounts: BTreeMap::new(),
            all_held: None,
            servers: BTreeMap::new(),
        };
        Self { state, now, doubtful: Vec::new(), torn: false, unreadable: 0 }
    }

    /// One message of the spool. One whose progress cannot be read is taken as new.
    fn message(&mut self, one: &Recovered<'_>) {
        let Some(id) = MessageId::from_key(one.key) else {
            self.unreadable += 1;
            return;
        };
        let (progress, readable) = match Progress::decode(one.state) {
            Ok(progress) => (progress, true),
            Err(error) => {
                tracing::error!(%id, %error, "the progress of a spooled message cannot be read");
                (Progress::default(), false)
            }
        };
        let slot = self.state.place(one.handle);
        let instance = self.state.scheduler.instance(progress.instance.as_deref());
        let held = progress.held_since.map_or(0, |since| self.now.0.saturating_sub(since));
        let wait = match (&progress.operator, progress.due) {
            (Some(_), _) => Wait::Operator,
            (None, Some(due)) if progress.due_is_hold => Wait::HoldUntil(Timestamp(due)),
            (None, Some(due)) => Wait::Retry(Timestamp(due)),
            // If it was not that window, or that is over, it is let out at once, at the pace.
            (None, None) if progress.held_since.is_some() && progress.instance.is_some() => {
                Wait::Phase(instance)
            }
            // Whatever it waited for, it is asked about again.
            (None, None) => Wait::Turn,
        };
        let upstream = self.state.last_upstream(&progress);
        let entry = Entry {
            id,
            instance,
            received: id.time(),
            size: one.body_len,
            held_ms: progress.held_ms.saturating_add(held),
            progress: scheduler::Progress {
                recipients: progress.pending,
                attempts: progress.attempts,
                upstream,
            },
        };
        self.state.accounts.entry(instance).or_default().accept(u64::from(progress.pending));
        self.state.keep_note(slot, &progress);
        self.state.scheduler.insert(slot, entry, wait, self.now);
        self.torn |= one.doubtful;
        if !readable || progress.in_doubt.is_some() {
            self.doubtful.push(slot);
        }
    }

    fn finish(self, opened: Opened, clock: Arc<dyn WallClock>, workers: usize) -> OpenedQueue {
        let Self { mut state, mut doubtful, torn, unreadable, now } = self;
        let Opened { spool, shutdown, interrupted, values, damage } = opened;
        if unreadable > 0 {
            tracing::error!(unreadable, "messages of the spool have no id of this relay");
        }
        let mut before = None;
        let mut kept = Kept::default();
        let mut unknown_waves = Vec::new();
        for (key, value) in &values {
            if key == ALL_HELD {
                state.all_held = Some(String::from_utf8_lossy(value).into());
            } else if key == DOUBT_BEFORE {
                before = <[u8; 8]>::try_from(&**value).ok().map(u64::from_le_bytes).map(Timestamp);
            } else if key == AGREED {
                kept.agreed = Some(value.clone());
            } else if waves::is_record(key) {
                match Record::decode(value) {
                    Ok(life) => kept.lives.push(life),
                    Err(error) => {
                        let wave = String::from_utf8_lossy(key).into_owned();
                        tracing::error!(wave, %error, "what was written of a wave is not known");
                        unknown_waves.push(wave);
                    }
                }
            } else if let Some((name, account)) = Account::read(key, value) {
                let instance = state.scheduler.instance(name.as_deref());
                state.accounts.entry(instance).or_default().add(&account);
            }
        }
        let interrupted: HashSet<MessageId> = interrupted.into_iter().collect();
        let mut ops = Vec::new();
        if shutdown == Shutdown::PowerLoss || torn {
            // The clock may have lost the power too.
            let latest = state.scheduler.entries().map(|(_, entry, _)| entry.id.time()).max();
            before = latest.max(Some(now));
            ops.extend(before.map(doubt_before));
        }
        let holds = Holds::new(&kept.lives);
        let old = before.into_iter().flat_map(|before| state.untold(before, &holds));
        let old: Vec<Slot> = old.collect();
        if before.is_some() && old.is_empty() {
            ops.push(Op::Value { key: DOUBT_BEFORE.to_vec(), value: None });
        }
        doubtful.extend(old);
        let entries = state.scheduler.entries();
        let cut_off = entries.filter(|(_, entry, _)| interrupted.contains(&entry.id));
        let cut_off: Vec<Slot> = cut_off.map(|(slot, ..)| slot).collect();
        ops.extend(cut_off.iter().filter_map(|slot| state.in_doubt(*slot)));
        doubtful.extend(cut_off);
        spool.recovered(ops);
        for slot in &doubtful {
            let index = *slot as usize;
            if state.doubtful.len() <= index {
                state.doubtful.resize(index + 1, false);
            }
            state.doubtful[index] = true;
        }
        let found = Found {
            shutdown,
            messages: state.scheduler.len(),
            doubtful: state.doubtful.iter().filter(|doubtful| **doubtful).count(),
            damage,
            unknown_waves,
        };
        let turns = (0..workers.max(1)).map(|_| Notify::new()).collect();
        let state = Mutex::new(state);
        let queue = Arc::new(Queue {
            spool,
            clock,
            state,
            found: kept,
            turns,
            changes: AtomicU64::new(0),
            changed: Notify::new(),
            settled: Notify::new(),
        });
        OpenedQueue { queue, found }
    }
}

impl State {
    /// Messages up to this time of which nothing was said since, and that no window has held all
    /// the time.
    fn untold(&self, before: Timestamp, holds: &Holds) -> impl Iterator<Item = Slot> {
        self.scheduler.entries().filter_map(move |(slot, entry, _)| {
            let last = self.notes.get(&slot).and_then(|note| note.last.as_ref());
            let told = last.is_some_and(|last| last.time >= before.0);
            let instance = self.scheduler.instance_name(entry.instance);
            let held = instance.is_some_and(|name| holds.have(name, entry.id.time()));
            (entry.id.time() <= before && !told && !held).then_some(slot)
        })
    }
}

/// Since when which instances are held, by windows that were never released.
struct Holds(HashMap<String, Timestamp>);

impl Holds {
    fn new(lives: &[Record]) -> Self {
        let lives = lives.iter().filter(|life| life.sure && life.stage.holds());
        let since = lives.filter_map(|life| {
            let begun = life.begun_at?;
            Some(life.members.iter().map(move |name| (name.clone(), begun)))
        });
        Self(since.flatten().collect())
    }

    /// Whether a message that was received then has been held ever since.
    fn have(&self, instance: &str, received: Timestamp) -> bool {
        self.0.get(instance).is_some_and(|since| received >= *since)
    }
}

fn doubt_before(time: Timestamp) -> Op {
    Op::Value { key: DOUBT_BEFORE.to_vec(), value: Some(time.0.to_le_bytes().to_vec()) }
}
