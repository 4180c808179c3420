//! The journal: which messages are live, in what state, and the caller's values. Floor 1.
//!
//! An append-only file. What was written since the last sync is kept in memory too: after a sync
//! that failed the file is not believed beyond the sync before, and the next snapshot is made
//! from the file up to there and from memory behind it.

use std::io::{self, IoSlice};

use crate::{
    disk::{DiskFile, read_full, write_all},
    error::StoreError,
    format::{ENTRY_HEADER, Entry},
};

/// Unsynced bytes at which a commit syncs by itself: bounds memory, and what a power loss undoes.
pub(crate) const UNSYNCED_LIMIT: usize = 4 << 20;

const CHUNK: usize = 1 << 20;

pub(crate) fn name(number: u32) -> String {
    format!("journal-{number:08}")
}

#[derive(Debug)]
pub(crate) struct Journal<F> {
    pub(crate) number: u32,
    pub(crate) file: F,
    pub(crate) seed: u32,
    /// Where the next entry goes.
    pub(crate) end: u64,
    /// Everything before is durable.
    pub(crate) synced: u64,
    /// The bytes from `synced` to `end`.
    unsynced: Vec<u8>,
    /// The file's name is durable.
    pub(crate) named: bool,
    /// Nothing more may be written here: a snapshot must replace it.
    pub(crate) broken: bool,
    /// A sync happened that no entry tells of yet.
    mark_due: bool,
}

impl<F: DiskFile> Journal<F> {
    /// A journal whose file ends at `end` and is durable.
    pub(crate) fn new(number: u32, file: F, seed: u32, end: u64) -> Self {
        Self {
            number,
            file,
            seed,
            end,
            synced: end,
            unsynced: Vec::new(),
            named: true,
            broken: false,
            mark_due: false,
        }
    }

    /// Writes entries, not yet durable. After an error nothing was written.
    pub(crate) fn append(&mut self, entries: &[u8]) -> Result<(), StoreError> {
        if self.broken {
            let error = io::Error::other("the journal waits for its replacement");
            return Err(StoreError::io(name(self.number))(error));
        }
        let mut bytes = Vec::new();
        if self.mark_due {
            Entry::Synced { end: self.synced }.encode(self.seed, &mut bytes);
        }
        bytes.extend_from_slice(entries);
        if let Err(error) = write_all(&self.file, self.end, &mut [IoSlice::new(&bytes)]) {
            // Half an entry may be there. The next one must not be written behind its remains.
            self.broken = self.file.truncate(self.end).is_err();
            return Err(StoreError::io(name(self.number))(error));
        }
        self.adopt(&bytes);
        self.mark_due = false;
        Ok(())
    }

    /// Takes entries into account that could not be written: the next snapshot will have them.
    pub(crate) fn adopt(&mut self, bytes: &[u8]) {
        self.unsynced.extend_from_slice(bytes);
        self.end += bytes.len() as u64;
    }

    /// Forgets entries after `end` that were not synced, because their sync failed.
    pub(crate) fn forget(&mut self, end: u64) {
        let keep = usize::try_from(end.saturating_sub(self.synced)).unwrap_or(usize::MAX);
        self.unsynced.truncate(keep);
        self.end = self.synced + self.unsynced.len() as u64;
        self.broken = true;
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced == self.end && self.named
    }

    pub(crate) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Makes everything durable that was appended. The name is made durable by the caller, before.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        if self.synced == self.end {
            return Ok(());
        }
        if let Err(error) = self.file.sync() {
            self.broken = true;
            return Err(StoreError::io(name(self.number))(error));
        }
        self.synced = self.end;
        self.unsynced.clear();
        self.mark_due = true;
        Ok(())
    }

    /// Its entries from `from` on, as far as they can be believed.
    pub(crate) fn entries(&self, from: u64) -> Entries<'_, F> {
        Entries::new(&self.file, self.seed, from, self.synced, &self.unsynced)
    }
}

/// What stands at some place of a journal.
#[derive(Debug)]
pub(crate) enum Item<'a> {
    Entry { at: u64, entry: Entry<'a> },
    Bad { from: u64, to: u64 },
}

/// Reads a journal from beginning to end: a file up to some place, and memory behind it.
pub(crate) struct Entries<'a, F> {
    file: &'a F,
    seed: u32,
    durable: u64,
    tail: &'a [u8],
    buffer: Vec<u8>,
    /// Where in the journal the buffer begins, and where in the buffer the next entry does.
    base: u64,
    next: usize,
}

impl<'a, F: DiskFile> Entries<'a, F> {
    pub(crate) fn new(file: &'a F, seed: u32, from: u64, durable: u64, tail: &'a [u8]) -> Self {
        Self { file, seed, durable, tail, buffer: Vec::new(), base: from, next: 0 }
    }

    fn end(&self) -> u64 {
        self.durable + self.tail.len() as u64
    }

    /// Where the next item begins.
    pub(crate) fn at(&self) -> u64 {
        self.base + self.next as u64
    }

    /// The next entry, or the next bytes that are none.
    pub(crate) fn item(&mut self) -> io::Result<Option<Item<'_>>> {
        let at = self.at();
        if at >= self.end() {
            return Ok(None);
        }
        if let Some(length) = self.check()? {
            let start = self.next;
            self.next += length;
            let bytes = &self.buffer[start..start + length];
            // `check` has parsed the same bytes.
            return Ok(Entry::parse(bytes).map(|entry| Item::Entry { at, entry }));
        }
        while self.at() < self.end() {
            self.next += 1;
            if self.check()?.is_some() {
                break;
            }
        }
        let to = self.at().min(self.end());
        Ok(Some(Item::Bad { from: at, to }))
    }

    /// The length of the valid entry that begins here.
    fn check(&mut self) -> io::Result<Option<usize>> {
        if !self.fill(ENTRY_HEADER)? {
            return Ok(None);
        }
        let Some(payload) = Entry::payload_len(&self.buffer[self.next..]) else {
            return Ok(None);
        };
        let length = ENTRY_HEADER + payload;
        let whole = self.fill(length)?;
        let bytes = self.buffer.get(self.next..self.next + length).filter(|_| whole);
        Ok(bytes.filter(|bytes| Entry::checks(self.seed, bytes)).map(|_| length))
    }

    /// Makes so many bytes from here on available, if there are as many.
    fn fill(&mut self, length: usize) -> io::Result<bool> {
        if self.buffer.len().saturating_sub(self.next) >= length {
            return Ok(true);
        }
        self.buffer.drain(..self.next.min(self.buffer.len()));
        self.base += self.next as u64;
        self.next = 0;
        while self.buffer.len() < length {
            let at = self.base + self.buffer.len() as u64;
            if at < self.durable {
                let had = self.buffer.len();
                let left = usize::try_from(self.durable - at).unwrap_or(CHUNK);
                self.buffer.resize(had + left.min(CHUNK), 0);
                let read = read_full(self.file, at, &mut self.buffer[had..])?;
                self.buffer.truncate(had + read);
                if read == 0 {
                    return Ok(false);
                }
            } else {
                let from = usize::try_from(at - self.durable).unwrap_or(usize::MAX);
                let Some(rest) = self.tail.get(from..).filter(|rest| !rest.is_empty()) else {
                    return Ok(false);
                };
                self.buffer.extend_from_slice(&rest[..rest.len().min(CHUNK)]);
            }
        }
        Ok(true)
    }
}
