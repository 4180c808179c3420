//! The bytes of a message between its receipt and its hand-off. Floor 2.
//!
//! A small message stays in memory; a larger one, or any one while the memory of all sessions
//! together is used up, goes to a spill file, which the spool can take over as it is. The third
//! place is the spool itself. Spill files are written and read without a thread of their own:
//! the page cache takes them, nothing is synced, because nothing is promised.

use std::{
    fmt,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tempfile::NamedTempFile;

use crate::budget::{Budget, Level, Use};

/// Bytes that are reserved for a message at its first byte; most marketing mail fits.
const FIRST_RESERVE: usize = 16 * 1024;

/// Where bodies live, and how much of each place is in use. One a process.
#[derive(Debug)]
pub struct BodyStore {
    directory: PathBuf,
    memory_limit: AtomicUsize,
    memory_used: AtomicUsize,
    message_memory: AtomicUsize,
    spill_limit: AtomicU64,
    spill_used: AtomicU64,
    budget: Arc<Budget>,
}

/// Why a body could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Memory and spill space are used up, or the disk is full.
    #[error("no room: {used} bytes of spill files, limit {limit} (limits.spill)")]
    Full {
        /// Bytes in use.
        used: u64,
        /// The bound.
        limit: u64,
    },
    /// The spill file cannot be used.
    #[error("spill file in {directory}: {source}")]
    Io {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BodyStore {
    /// A store that spills into `directory`, which must exist.
    pub fn new(
        directory: &Path,
        message_memory: usize,
        memory_limit: usize,
        spill_limit: u64,
        budget: &Arc<Budget>,
    ) -> Arc<Self> {
        Arc::new(Self {
            directory: directory.to_owned(),
            memory_limit: memory_limit.into(),
            memory_used: 0.into(),
            message_memory: message_memory.into(),
            spill_limit: spill_limit.into(),
            spill_used: 0.into(),
            budget: Arc::clone(budget),
        })
    }

    /// Changes the bounds, as a reload may.
    pub fn resize(&self, message_memory: usize, memory_limit: usize, spill_limit: u64) {
        self.message_memory.store(message_memory, Ordering::Relaxed);
        self.memory_limit.store(memory_limit, Ordering::Relaxed);
        self.spill_limit.store(spill_limit, Ordering::Relaxed);
    }

    /// Takes away what an earlier process left: nobody was promised anything of it.
    pub fn clear(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// A body that is in the spool: a small one is read into memory, if there is room. One that
    /// cannot be read is found out when it is written to somebody.
    pub fn read(self: &Arc<Self>, stored: Arc<dyn Stored>) -> Body {
        let body =
            Body { store: Arc::clone(self), place: Place::Stored(stored), reserved: 0, beside: 0 };
        let length = usize::try_from(body.len()).unwrap_or(usize::MAX);
        if length > self.message_memory.load(Ordering::Relaxed) || !self.reserve_memory(length) {
            return body;
        }
        let mut bytes = vec![0; length];
        if body.read_full(0, &mut bytes).is_ok_and(|count| count == length) {
            let (store, place) = (Arc::clone(self), Place::Memory(bytes));
            return Body { store, place, reserved: length, beside: 0 };
        }
        self.give_memory(length);
        body
    }

    /// Whether less than half of the memory for messages is in use, and the relay is not short of
    /// memory: then one that is in the spool may stay in memory too, for the attempt that comes at
    /// once.
    pub fn has_room(&self) -> bool {
        self.memory_used() < self.memory_limit.load(Ordering::Relaxed) / 2
            && self.budget.level() == Level::Calm
    }

    /// Begins a body.
    pub fn writer(self: &Arc<Self>) -> BodyWriter {
        let (store, place) = (Arc::clone(self), Place::Memory(Vec::new()));
        let body = Body { store, place, reserved: 0, beside: 0 };
        BodyWriter { body }
    }

    /// Bytes of bodies in memory.
    pub fn memory_used(&self) -> usize {
        self.memory_used.load(Ordering::Relaxed)
    }

    /// Bytes of spill files.
    pub fn spill_used(&self) -> u64 {
        self.spill_used.load(Ordering::Relaxed)
    }

    fn reserve_memory(&self, more: usize) -> bool {
        let limit = self.memory_limit.load(Ordering::Relaxed);
        let before = self.memory_used.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) <= limit && self.budget.try_take(Use::Messages, more) {
            return true;
        }
        self.memory_used.fetch_sub(more, Ordering::Relaxed);
        false
    }

    fn give_memory(&self, less: usize) {
        self.memory_used.fetch_sub(less, Ordering::Relaxed);
        self.budget.give(Use::Messages, less);
    }

    fn reserve_spill(&self, more: u64) -> Result<(), BodyError> {
        let limit = self.spill_limit.load(Ordering::Relaxed);
        let used = self.spill_used.fetch_add(more, Ordering::Relaxed);
        if used.saturating_add(more) <= limit {
            return Ok(());
        }
        self.spill_used.fetch_sub(more, Ordering::Relaxed);
        Err(BodyError::Full { used, limit })
    }

    fn io(&self, source: io::Error) -> BodyError {
        BodyError::Io { directory: self.directory.clone(), source }
    }
}

/// A body that is being received.
#[derive(Debug)]
pub struct BodyWriter {
    body: Body,
}

impl BodyWriter {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        self.body.push(bytes)
    }

    /// Memory that is held beside the bytes for as long as they are: the envelope.
    pub fn accompany(&mut self, bytes: usize) {
        self.body.accompany(bytes);
    }

    /// The body as received.
    pub fn finish(self) -> Body {
        self.body
    }
}

/// A received body; gives back what it holds when dropped.
#[derive(Debug)]
pub struct Body {
    store: Arc<BodyStore>,
    place: Place,
    /// Bytes of the store's memory budget that this body holds.
    reserved: usize,
    /// Bytes of what goes with it.
    beside: usize,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    Spill { file: NamedTempFile, length: u64 },
    Stored(Arc<dyn Stored>),
}

/// Bytes that the spool keeps.
pub trait Stored: fmt::Debug + Send + Sync {
    /// How many.
    fn len(&self) -> u64;
    /// Whether there is not one.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads bytes from `offset` on; 0 at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Body {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match &self.place {
            Place::Memory(bytes) => bytes.len() as u64,
            Place::Spill { length, .. } => *length,
            Place::Stored(stored) => stored.len(),
        }
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole body, where it is in memory.
    pub fn as_memory(&self) -> Option<&[u8]> {
        match &self.place {
            Place::Memory(bytes) => Some(bytes),
            Place::Spill { .. } | Place::Stored(_) => None,
        }
    }

    /// Whether less than half of the memory for messages is in use.
    pub fn has_room(&self) -> bool {
        self.store.has_room()
    }

    /// Memory that is held beside the bytes for as long as they are: the envelope.
    pub fn accompany(&mut self, bytes: usize) {
        self.store.budget.take(Use::Messages, bytes);
        self.beside += bytes;
    }

    /// The file that the body is in, where it has one of its own.
    pub fn as_file(&self) -> Option<&Path> {
        match &self.place {
            Place::Spill { file, .. } => Some(file.path()),
            Place::Memory(_) | Place::Stored(_) => None,
        }
    }

    /// Reads bytes from `offset` on; 0 at the end.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.place {
            Place::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let count = buffer.len().min(bytes.len() - start);
                buffer[..count].copy_from_slice(&bytes[start..start + count]);
                Ok(count)
            }
            Place::Spill { file, .. } => file.as_file().read_at(buffer, offset),
            Place::Stored(stored) => stored.read_at(offset, buffer),
        }
    }

    /// Reads from `offset` on until the buffer is full or the body ends.
    pub fn read_full(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let count = self.read_at(offset + filled as u64, &mut buffer[filled..])?;
            if count == 0 {
                break;
            }
            filled += count;
        }
        Ok(filled)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        if let Place::Memory(memory) = &mut self.place {
            let needed = memory.len() + bytes.len();
            if needed <= self.reserved {
                memory.extend_from_slice(bytes);
                return Ok(());
            }
            let most = self.store.message_memory.load(Ordering::Relaxed);
            let target = needed.next_power_of_two().max(FIRST_RESERVE).min(most);
            if needed <= most && self.store.reserve_memory(target - self.reserved) {
                self.reserved = target;
                memory.reserve_exact(target - memory.len());
                memory.extend_from_slice(bytes);
                return Ok(());
            }
            self.spill()?;
        }
        self.append(bytes)
    }

    /// Moves what is in memory to a spill file.
    fn spill(&mut self) -> Result<(), BodyError> {
        let file = NamedTempFile::new_in(&self.store.directory).map_err(|e| self.store.io(e))?;
        let old = std::mem::replace(&mut self.place, Place::Spill { file, length: 0 });
        self.store.give_memory(self.reserved);
        self.reserved = 0;
        match old {
            Place::Memory(bytes) => self.append(&bytes),
            Place::Spill { .. } | Place::Stored(_) => unreachable!("spilled twice"),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        let Place::Spill { file, length } = &mut self.place else {
            unreachable!("appended to a file that is not there")
        };
        self.store.reserve_spill(bytes.len() as u64)?;
        *length += bytes.len() as u64;
        file.write_all(bytes).map_err(|e| self.store.io(e))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.store.give_memory(self.reserved);
        self.store.budget.give(Use::Messages, self.beside);
        if let Place::Spill { length, .. } = &self.place {
            self.store.spill_used.fetch_sub(*length, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read_all(body: &Body) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 7];
        loop {
            let count = body.read_at(all.len() as u64, &mut buffer).unwrap();
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&buffer[..count]);
        }
    }

    fn store(message: usize, memory: usize, spill: u64) -> (tempfile::TempDir, Arc<BodyStore>) {
        let directory = tempfile::tempdir().unwrap();
        let budget = Budget::new(None);
        let store = BodyStore::new(directory.path(), message, memory, spill, &budget);
        (directory, store)
    }

    #[test]
    fn what_a_short_budget_does_not_give_spills_and_all_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let budget = Budget::new(Some(10 * FIRST_RESERVE));
        let store = BodyStore::new(directory.path(), 1 << 20, 1 << 30, 1000, &budget);
        let mut writers: Vec<_> = (0..8).map(|_| store.writer()).collect();
        for writer in &mut writers {
            writer.push(b"x").unwrap();
            writer.accompany(100);
        }
        // Seven tenths for bodies, less what goes with them.
        assert_eq!(store.memory_used(), 6 * FIRST_RESERVE);
        assert_eq!((store.spill_used(), budget.used()), (2, 6 * FIRST_RESERVE + 800));
        assert!(store.has_room());
        budget.set(Use::Spool, FIRST_RESERVE);
        assert!(!store.has_room());
        budget.set(Use::Spool, 0);
        drop(writers);
        assert_eq!((budget.used(), store.memory_used()), (0, 0));
    }

    #[test]
    fn small_stays_in_memory_and_large_spills_with_the_same_bytes() {
        let (_directory, store) = store(100, 1 << 20, 1000);
        let mut writer = store.writer();
        let mut expected = Vec::new();
        for i in 0..30_u8 {
            let piece = [i; 9];
            expected.extend_from_slice(&piece);
            writer.push(&piece).unwrap();
            assert_eq!(writer.body.as_memory().is_some(), expected.len() <= 100);
        }
        let body = writer.finish();
        assert_eq!(body.len(), 270);
        assert_eq!(read_all(&body), expected);
        assert_eq!((store.memory_used(), store.spill_used()), (0, 270));
        drop(body);
        assert_eq!(store.spill_used(), 0);
    }

    #[test]
    fn without_memory_everything_spills_and_at_the_spill_limit_it_is_refused() {
        let (_directory, store) = store(100, 0, 10);
        let mut writer = store.writer();
        writer.push(&[1; 10]).unwrap();
        assert!(matches!(writer.push(&[1]), Err(BodyError::Full { used: 10, limit: 10 })));
        drop(writer);
        assert_eq!(store.spill_used(), 0);
    }

    #[test]
    fn the_memory_of_all_sessions_is_bounded() {
        let (_directory, store) = store(1 << 20, 2 * FIRST_RESERVE, 1000);
        let mut writers: Vec<_> = (0..3).map(|_| store.writer()).collect();
        for writer in &mut writers {
            writer.push(b"x").unwrap();
        }
        assert_eq!(store.memory_used(), 2 * FIRST_RESERVE);
        assert_eq!(store.spill_used(), 1);
    }
}
