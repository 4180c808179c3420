//! Messages that came over a link and were answered: the table by which none is handed on twice.
//! Floor 2.
//!
//! Owns what was answered positively, or ended in doubt, for which recipient of which message of which
//! edge, in memory and on disk, and who waits for a message that is under way. Owns no message and no connection;
//! how the file is written is `seen/file.rs`'s.
//!
//! The table is bounded: two generations of half its capacity each. When the younger one is full
//! the older one is forgotten, and the greatest id that it had is remembered: ids sort by time, so
//! whoever asks for one as old as that is told that the table may have forgotten it. That greatest
//! id is one for all edges: a clock that is ahead only makes more answers say so.
//!
//! What is remembered is written before the answer is sent, and synced once a second by a thread
//! of its own. So it outlives the process at once, and the host within a second; beyond that the
//! edge learns from the incarnation that it was another process.

mod file;
mod record;

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use wavegate_link::How;
use wavegate_smtp::{Rcpt, Reply};

use file::{Files, Synced};

/// Bytes of a generation for each message that it may have: one or two recipients with the reply
/// of a usual server are half of it. Messages with many recipients fill it sooner.
const BYTES_EACH: usize = 256;

/// A message: who gave it, and what he calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Of the edge's name.
    edge: u64,
    id: [u8; 16],
}

impl Key {
    /// The message that `edge` calls `id`.
    pub fn new(edge: &str, id: [u8; 16]) -> Self {
        Self { edge: short_hash(edge.as_bytes()), id }
    }
}

/// A recipient with its parameters: what two recipients of one message share only if they are the
/// same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipient(u64);

impl Recipient {
    /// This one.
    pub fn new(rcpt: &Rcpt) -> Self {
        let mut text = rcpt.recipient.as_str().as_bytes().to_vec();
        text.push(0);
        text.extend_from_slice(rcpt.orcpt.as_deref().unwrap_or_default().as_bytes());
        let notify = rcpt.notify.map(|one| [one.success, one.failure, one.delay].map(u8::from));
        text.extend_from_slice(&notify.unwrap_or([2; 3]));
        Self(short_hash(&text))
    }
}

fn short_hash(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    hash.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// What was answered for some recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// For whom.
    pub recipients: Vec<Recipient>,
    /// Who the reply was from.
    pub how: How,
    /// The reply.
    pub reply: Reply,
}

/// All that was answered of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pasts(Vec<Past>);

impl Pasts {
    /// The answers.
    pub fn all(&self) -> &[Past] {
        &self.0
    }

    /// Which of the answers each recipient has: the first that is for him.
    pub fn by_recipient(&self) -> HashMap<Recipient, usize> {
        let mut which = HashMap::new();
        for (at, past) in self.0.iter().enumerate() {
            for recipient in &past.recipients {
                which.entry(*recipient).or_insert(at);
            }
        }
        which
    }
}

/// What is known of a message that came.
pub enum Asked {
    /// It is handed on at this moment, for somebody who may have gone.
    Underway(Underway),
    /// Nobody has it: whoever asked hands on what is not known.
    Free {
        /// What was answered before.
        known: Pasts,
        /// To be told what came of it.
        begun: Begun,
        /// It may have been handed on before: the table may have forgotten messages as old as this
        /// one, or that ended in doubt.
        forgetful: bool,
    },
}

/// A message that somebody else hands on.
pub struct Underway(watch::Receiver<Option<Arc<Pasts>>>);

impl Underway {
    /// Waits for its end; nothing where whoever had it has gone without one.
    pub async fn ended(mut self) -> Option<Arc<Pasts>> {
        match self.0.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            Err(_) => None,
        }
    }
}

/// A message that is being handed on. Dropped without an end, it is as if it had not been.
pub struct Begun {
    seen: Arc<Seen>,
    key: Key,
}

impl Begun {
    /// What was answered. Positive answers are remembered, and that there was a doubt; all of them are
    /// told to those who wait.
    pub fn end(self, answers: Vec<Past>) {
        let mut state = self.seen.lock();
        let lasting = |past: &&Past| past.reply.is_positive() || past.how == How::InDoubt;
        let lasting: Vec<Past> = answers.iter().filter(lasting).cloned().collect();
        let mut forgotten = None;
        if !lasting.is_empty() {
            forgotten = state.remember(&self.seen.synced, self.key, &lasting);
        }
        if let Some(told) = state.underway.get(&self.key) {
            told.send_replace(Some(Arc::new(Pasts(answers))));
        }
        drop(state);
        // That may be much, and nobody should wait for it.
        drop(forgotten);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.seen.lock().underway.remove(&self.key);
    }
}

/// How full the table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Messages that are remembered.
    pub entries: u64,
    /// Bytes that they take in memory, about; on disk it is less.
    pub bytes: u64,
    /// Messages that are under way.
    pub underway: u64,
    /// Lines that could not be written; they are in memory only.
    pub unwritten: u64,
}

/// The table.
pub struct Seen {
    state: Mutex<State>,
    synced: Synced,
}

struct State {
    capacity: usize,
    young: Generation,
    old: Generation,
    /// The greatest id that was forgotten.
    forgotten: [u8; 16],
    underway: HashMap<Key, watch::Sender<Option<Arc<Pasts>>>>,
    files: Files,
    unwritten: u64,
}

/// What was remembered in one span of time.
#[derive(Default)]
struct Generation {
    entries: HashMap<Key, Vec<u8>>,
    bytes: usize,
    greatest: [u8; 16],
}

/// What an entry takes beside its bytes: its place in the table and what the allocator adds.
const ENTRY: usize = 80;

impl Generation {
    fn add(&mut self, key: Key, answers: &[u8]) {
        self.greatest = self.greatest.max(key.id);
        self.bytes += answers.len();
        match self.entries.entry(key) {
            Entry::Occupied(mut entry) => entry.get_mut().extend_from_slice(answers),
            Entry::Vacant(entry) => {
                entry.insert(answers.to_vec());
                self.bytes += ENTRY;
            }
        }
    }
}

impl Seen {
    /// The table in this directory, which is made if it is not there. It may have so many messages.
    ///
    /// # Errors
    /// If the directory or a file in it cannot be used. What is in the files is never an error: what
    /// is damaged is left out, and said.
    pub fn open(directory: &Path, capacity: usize) -> io::Result<Arc<Self>> {
        let (mut young, mut old) = (Generation::default(), Generation::default());
        let (files, found) = Files::open(directory)?;
        for (key, answers) in &found.young {
            young.add(*key, answers);
        }
        for (key, answers) in &found.old {
            old.add(*key, answers);
        }
        if found.damaged > 0 {
            let (bytes, place) = (found.damaged, directory.display());
            tracing::error!(bytes, %place, "damage in the table of messages that were seen");
        }
        let synced = Synced::start(files.handle())?;
        let state = State {
            capacity,
            young,
            old,
            forgotten: found.forgotten,
            underway: HashMap::new(),
            files,
            unwritten: 0,
        };
        Ok(Arc::new(Self { state: Mutex::new(state), synced }))
    }

    /// Changes the bound, as a reload may; what is too much goes with the next generation.
    pub fn resize(&self, capacity: usize) {
        self.lock().capacity = capacity;
    }

    /// Somebody has a message whole: may he hand it on?
    pub fn ask(self: &Arc<Self>, key: Key) -> Asked {
        let mut state = self.lock();
        if let Some(underway) = state.underway.get(&key) {
            return Asked::Underway(Underway(underway.subscribe()));
        }
        state.underway.insert(key, watch::Sender::new(None));
        let (known, forgetful) = state.known(key);
        drop(state);
        Asked::Free { known, begun: Begun { seen: Arc::clone(self), key }, forgetful }
    }

    /// What was answered of a message before, and whether it may have been handed on besides.
    pub fn known(&self, key: Key) -> (Pasts, bool) {
        self.lock().known(key)
    }

    /// Somebody who hands it on at this moment, if there is one.
    pub fn underway(&self, key: Key) -> Option<Underway> {
        self.lock().underway.get(&key).map(|underway| Underway(underway.subscribe()))
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage {
            entries: (state.young.entries.len() + state.old.entries.len()) as u64,
            bytes: (state.young.bytes + state.old.bytes) as u64,
            underway: state.underway.len() as u64,
            unwritten: state.unwritten,
        }
    }

    /// Waits until all that is remembered now is on the disk. Blocks.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn sync(&self) -> io::Result<()> {
        let file = self.lock().files.handle();
        file.sync_data()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What was answered for good, and whether anything ended in doubt or may have been forgotten.
    fn known(&self, key: Key) -> (Pasts, bool) {
        let found = [&self.young, &self.old].into_iter().filter_map(|one| one.entries.get(&key));
        let mut all: Vec<Past> = found.flat_map(|answers| record::read(answers)).collect();
        let before = all.len();
        all.retain(|past| past.how != How::InDoubt);
        let forgetful = all.len() < before || key.id <= self.forgotten;
        (Pasts(all), forgetful)
    }

    /// Gives what had to be forgotten for it.
    fn remember(&mut self, synced: &Synced, key: Key, answers: &[Past]) -> Option<Generation> {
        let answers = record::write(answers);
        let (messages, bytes) = (self.capacity / 2, self.capacity / 2 * BYTES_EACH);
        let is_full = self.young.entries.len() >= messages.max(1) || self.young.bytes > bytes;
        let forgotten = is_full.then(|| self.rotate(synced));
        if let Err(error) = self.files.append(key, &answers) {
            if self.unwritten == 0 {
                tracing::error!(%error, "messages that were seen are remembered in memory only");
            }
            self.unwritten += 1;
        }
        synced.changed();
        self.young.add(key, &answers);
        forgotten
    }

    /// Forgets the older generation and begins another.
    fn rotate(&mut self, synced: &Synced) -> Generation {
        let young = std::mem::take(&mut self.young);
        let dropped = std::mem::replace(&mut self.old, young);
        self.forgotten = self.forgotten.max(dropped.greatest);
        match self.files.rotate(self.forgotten) {
            Ok(file) => synced.turn_to(file),
            // It goes on in the same file.
            Err(error) => tracing::error!(%error, "the table of what was seen has no new file"),
        }
        dropped
    }
}

#[cfg(test)]
mod tests;
