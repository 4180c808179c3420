//! The event log: what became of every message, as JSON Lines in a file. Floor 4.
//!
//! Owns `[event_log] file` and what it grows into, and the format of its lines. Whoever has an
//! event makes the line of it and goes on: a thread writes, and what it cannot keep up with, or
//! cannot write, is left out and counted, in a line of its own too. Nothing here is synced: the
//! spool is what keeps messages, this only tells of them.

mod line;

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use crate::{
    config::{Addresses, EventLogConfig},
    event::{Event, Observer},
    rotation::{Backlog, Rotating},
    world::WallClock,
};
use line::Writer;

/// Bytes of lines that may wait for the thread: what 100,000 messages taken out by an operator at
/// once make, or some seconds of a busy relay.
const WAITING: usize = 32 << 20;
/// Bytes that are written at once.
const BATCH: usize = 256 << 10;
/// Its key for addresses, in the state directory.
const KEY: &str = "events.key";

/// The event log of one process.
pub struct EventLog {
    line: Writer,
    lines: Mutex<Option<Sender<Vec<u8>>>>,
    backlog: Arc<Backlog>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EventLog {
    /// Starts it; `random` makes the key for addresses. A file that cannot be opened now is an
    /// error; later it only costs lines.
    pub fn start(
        config: &EventLogConfig,
        state_dir: &Path,
        clock: Arc<dyn WallClock>,
        random: &dyn Fn() -> u64,
    ) -> io::Result<Self> {
        let key = match config.addresses {
            Addresses::Hashed => Some(key(state_dir, random)?),
            Addresses::Full | Addresses::None => None,
        };
        let file = Rotating::open(config.file.clone(), config.max_size, config.keep)?;
        let (lines, inbox) = mpsc::channel();
        let backlog = Arc::<Backlog>::default();
        let line = Writer::new(clock, config.addresses, key);
        let writing = Writing { inbox, file, backlog: Arc::clone(&backlog), line: line.clone() };
        let thread = std::thread::Builder::new().name("events".into());
        let thread = thread.spawn(move || writing.run())?;
        let (lines, thread) = (Mutex::new(Some(lines)), Mutex::new(Some(thread)));
        Ok(Self { line, lines, backlog, thread })
    }

    /// Whether its file can be written. Changes nothing but that there is one.
    pub fn check(config: &EventLogConfig) -> io::Result<()> {
        Rotating::check(&config.file)
    }

    /// Lines written, and lines left out, so far.
    pub fn counts(&self) -> (u64, u64) {
        self.backlog.counts()
    }

    /// Bytes of lines that wait.
    pub fn waiting(&self) -> usize {
        self.backlog.waiting()
    }

    /// Writes what waits, and takes no more.
    pub fn close(&self) {
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the event log panicked");
        }
    }
}

impl Observer for EventLog {
    fn observe(&self, event: &Event<'_>) {
        let Some(line) = self.line.of(event) else { return };
        let length = line.len();
        if !self.backlog.take(length, WAITING) {
            return;
        }
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.as_ref().is_none_or(|lines| lines.send(line).is_err()) {
            self.backlog.lose(length, 1);
        }
    }
}

/// The thread.
struct Writing {
    inbox: Receiver<Vec<u8>>,
    file: Rotating,
    backlog: Arc<Backlog>,
    line: Writer,
}

impl Writing {
    fn run(mut self) {
        let (mut told, mut failing) = (0, false);
        while let Ok(first) = self.inbox.recv() {
            let mut batch = first;
            let mut lines = 1;
            while batch.len() < BATCH
                && let Ok(line) = self.inbox.try_recv()
            {
                batch.extend_from_slice(&line);
                lines += 1;
            }
            let length = batch.len();
            let lost = self.backlog.lost();
            if lost > told {
                // Before what came after.
                batch.splice(0..0, self.line.lost(lost - told));
            }
            match self.file.append(&batch, false) {
                Ok(()) => {
                    self.backlog.write(length, lines + u64::from(lost > told));
                    told = lost;
                    failing = false;
                }
                Err(error) => {
                    self.backlog.lose(length, lines);
                    if !std::mem::replace(&mut failing, true) {
                        let file = self.file.path().display();
                        tracing::error!(%file, %error, "the event log cannot be written");
                    }
                }
            }
        }
    }
}

/// What stands for the local part of an address. Who is who stays unknown; one address is the same
/// everywhere, however its domain is written.
pub(crate) fn pseudonym(key: &[u8; 32], local: &str, domain: &str) -> String {
    let address = format!("{local}@{}", domain.to_ascii_lowercase());
    let mut hash = blake3::keyed_hash(key, address.as_bytes()).to_hex().to_string();
    hash.truncate(16);
    hash
}

/// The key that makes hashes of addresses useless to whoever has none: made once.
pub(crate) fn key(state_dir: &Path, random: &dyn Fn() -> u64) -> io::Result<[u8; 32]> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let path = state_dir.join(KEY);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            io::Error::other(format!("{} is not a key of 32 bytes; remove it", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            key.chunks_mut(8).for_each(|piece| piece.copy_from_slice(&random().to_le_bytes()));
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&key)?;
            file.sync_all()?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
