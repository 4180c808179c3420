//! A new journal that holds what is live, in place of one that has grown. Floor 2.
//!
//! It is made in steps beside the old journal, which goes on being written: what stood in the old
//! one when it began is copied if it is still live, what came after is copied as it is. It gets
//! its name when all of it is synced, and the old one is removed once that name is durable.

use std::{collections::BTreeMap, io, path::Path};

use crate::{
    disk::{Disk, DiskFile, How, write_all},
    error::{Damage, StoreError, What},
    format::{self, Entry, FILE_HEADER, FileKind},
    journal::{self, Item, Journal},
    reader::Shared,
    segment,
    store::Store,
};

/// Bytes of the old journal that one step reads.
const STEP: u64 = 4 << 20;
/// Bytes that are written at once.
const WRITE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Snapshot<F> {
    number: u32,
    seed: u32,
    file: F,
    written: u64,
    buffer: Vec<u8>,
    /// How much of the old journal was read.
    read: u64,
    /// From here on its entries are copied as they are.
    log_from: u64,
    log_begun: bool,
    /// Slots whose state is in the new one, a bit each.
    copied: Vec<u64>,
}

impl<F> Snapshot<F> {
    pub(crate) fn length(&self) -> u64 {
        self.written
    }

    fn mark(&mut self, index: u32) {
        let word = (index / 64) as usize;
        if self.copied.len() <= word {
            self.copied.resize(word + 1, 0);
        }
        self.copied[word] |= 1 << (index % 64);
    }

    fn is_marked(&self, index: u32) -> bool {
        self.copied.get((index / 64) as usize).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }
}

impl<F: DiskFile> Snapshot<F> {
    fn flush(&mut self, at_least: usize) -> io::Result<()> {
        if self.buffer.len() > at_least {
            write_all(&self.file, self.written, &mut [io::IoSlice::new(&self.buffer)])?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Copies what one step may, of the old journal's entries. `true`: it was read to its end.
    fn copy<D: Disk<File = F>>(
        &mut self,
        old: &Journal<F>,
        shared: &Shared<D>,
        budget: u64,
        damage: &mut Vec<Damage>,
    ) -> io::Result<bool> {
        let slots = shared.slots();
        let mut entries = old.entries(self.read);
        let until = self.read.saturating_add(budget);
        while let Some(item) = entries.item()? {
            let (at, entry) = match item {
                Item::Entry { at, entry } => (at, entry),
                Item::Bad { from, to } => {
                    damage.push(Damage {
                        file: journal::name(old.number),
                        offset: from,
                        length: to - from,
                        what: What::Journal,
                        key: None,
                        set_aside: None,
                    });
                    continue;
                }
            };
            let log = at >= self.log_from;
            if log && !self.log_begun {
                Entry::SnapshotEnd.encode(self.seed, &mut self.buffer);
                self.log_begun = true;
            }
            match entry {
                Entry::Put { index, seq, body_len, state, .. } => {
                    let live = slots.at(index).filter(|live| live.seq == seq);
                    if let Some(live) = live {
                        let (key, place) = (live.key, live.place);
                        Entry::Put { seq, index, place, key, body_len, state }
                            .encode(self.seed, &mut self.buffer);
                        self.mark(index);
                    } else if log {
                        entry.encode(self.seed, &mut self.buffer);
                    }
                }
                Entry::Synced { .. } | Entry::SnapshotEnd => {}
                other if log => other.encode(self.seed, &mut self.buffer),
                _ => {}
            }
            self.flush(WRITE)?;
            if entries.at() >= until {
                break;
            }
        }
        self.read = entries.at();
        Ok(self.read >= old.end)
    }
}

impl<D: Disk> Store<D> {
    /// Whether the journal is so much larger than what is live that it is worth a snapshot.
    pub(crate) fn journal_is_large(&self) -> bool {
        let live = u64::from(self.shared.slots().live());
        let values: usize = self.values.iter().map(|(key, value)| key.len() + value.len()).sum();
        let one = self.put_bytes.checked_div(self.puts).unwrap_or(128);
        let content = live * one + values as u64;
        self.journal.end > 2 * content + self.options.journal_bytes
    }

    /// Replaces a journal that is not to be written any more, at once.
    pub(crate) fn repair_journal(&mut self) -> Result<(), StoreError> {
        if !self.journal.broken {
            return Ok(());
        }
        self.drop_snapshot();
        while self.snapshot_step(u64::MAX)? {}
        Ok(())
    }

    /// One step of a snapshot. `false`: it is finished and in force.
    pub(crate) fn maintain_snapshot(&mut self) -> Result<bool, StoreError> {
        self.snapshot_step(STEP)
    }

    fn snapshot_step(&mut self, budget: u64) -> Result<bool, StoreError> {
        let result = self.snapshot_try(budget);
        if result.is_err() {
            self.drop_snapshot();
        }
        result
    }

    fn snapshot_try(&mut self, budget: u64) -> Result<bool, StoreError> {
        let mut snapshot = match self.snapshot.take() {
            Some(snapshot) => snapshot,
            None => self.begin_snapshot()?,
        };
        let path = temporary(snapshot.number);
        let copied = snapshot.copy(&self.journal, &self.shared, budget, &mut self.damage);
        // Kept even after an error, so that its file is removed.
        self.snapshot = Some(snapshot);
        if !copied.map_err(StoreError::io(&path))? {
            return Ok(true);
        }
        self.finish_snapshot()?;
        Ok(false)
    }

    fn begin_snapshot(&mut self) -> Result<Snapshot<D::File>, StoreError> {
        if self.names_changed {
            // The new journal says nothing of segments that were deleted: they must be gone.
            self.shared.disk.sync_dir(Path::new("")).map_err(StoreError::io("."))?;
            self.names_changed = false;
        }
        let number = self.next_journal;
        self.next_journal += 1;
        let path = temporary(number);
        let file = self.shared.disk.open(Path::new(&path), How::Create);
        let file = file.map_err(StoreError::io(&path))?;
        let seed = format::seed(FileKind::Journal, number, &self.shared.salt);
        let known = self.segments.iter().map(|(number, info)| (*number, info.known));
        let mut known: BTreeMap<u32, u64> = known.collect();
        for (number, end) in &self.owed {
            let known = known.entry(*number).or_default();
            *known = (*known).max(*end);
        }
        let buffer = beginning(number, &self.shared.salt, known, &self.values);
        Ok(Snapshot {
            number,
            seed,
            file,
            written: 0,
            buffer,
            read: FILE_HEADER as u64,
            log_from: self.journal.end,
            log_begun: false,
            copied: Vec::new(),
        })
    }

    /// Makes it durable, gives it its name and writes to it from now on.
    fn finish_snapshot(&mut self) -> Result<(), StoreError> {
        self.restore_lost()?;
        let Some(mut snapshot) = self.snapshot.take() else { return Ok(()) };
        let (number, path) = (snapshot.number, temporary(snapshot.number));
        if !snapshot.log_begun {
            Entry::SnapshotEnd.encode(snapshot.seed, &mut snapshot.buffer);
        }
        let end = snapshot.written + snapshot.buffer.len() as u64;
        Entry::Synced { end }.encode(snapshot.seed, &mut snapshot.buffer);
        let written = snapshot.flush(0).and_then(|()| snapshot.file.sync());
        if let Err(error) = written {
            self.snapshot = Some(snapshot);
            return Err(StoreError::io(&path)(error));
        }
        let name = journal::name(number);
        let renamed = self.shared.disk.rename(Path::new(&path), Path::new(&name));
        if let Err(error) = renamed {
            // It may have its name all the same. Then it would win at an opening, so nothing more
            // is written to the old one: the next snapshot, with a higher number, replaces both.
            self.journal.broken = true;
            self.snapshot = Some(snapshot);
            return Err(StoreError::io(&path)(error));
        }
        let Snapshot { file, seed, written, .. } = snapshot;
        let new = Journal::new(number, file, seed, written);
        let old = std::mem::replace(&mut self.journal, new);
        self.journal.named = false;
        self.old_journals.push(old.number);
        // If the name cannot be made durable now, the next sync tries again; until then the old
        // journal is there for a power loss, as it was at its last sync.
        let _ = self.flush_journal();
        Ok(())
    }

    /// Messages whose entry was not found in the old journal, although they are live: they get
    /// the state that they began with.
    fn restore_lost(&mut self) -> Result<(), StoreError> {
        let Some(mut snapshot) = self.snapshot.take() else { return Ok(()) };
        let slots = self.shared.slots();
        let lost: Vec<_> = slots.iter().filter(|(index, _)| !snapshot.is_marked(*index)).collect();
        drop(slots);
        for (index, mut live) in lost {
            live.seq = self.seq();
            let state = initial_state(&self.shared, &live).unwrap_or_default();
            let inline = u64::from(live.place.length - live.place.body_at);
            let body_len = inline + self.externals.get(&index).copied().unwrap_or(0);
            let (seq, place, key) = (live.seq, live.place, live.key);
            Entry::Put { seq, index, place, key, body_len, state: &state }
                .encode(snapshot.seed, &mut snapshot.buffer);
            self.shared.slots_mut().set_seq(index, seq);
            self.damage.push(Damage {
                file: segment::name(place.segment),
                offset: u64::from(place.offset),
                length: u64::from(place.length),
                what: What::Journal,
                key: Some(key),
                set_aside: None,
            });
        }
        self.snapshot = Some(snapshot);
        Ok(())
    }

    fn drop_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            // If it stays, the next opening removes it.
            let _ = self.shared.disk.remove(Path::new(&temporary(snapshot.number)));
        }
    }
}

pub(crate) fn temporary(number: u32) -> String {
    format!("{}.new", journal::name(number))
}

/// Header, ends of segments and values of a new journal.
pub(crate) fn beginning(
    number: u32,
    salt: &format::Salt,
    known: BTreeMap<u32, u64>,
    values: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Vec<u8> {
    let seed = format::seed(FileKind::Journal, number, salt);
    let mut bytes = format::encode_file_header(FileKind::Journal, number, salt).to_vec();
    for (number, end) in known {
        Entry::Segment { number, end }.encode(seed, &mut bytes);
    }
    for (key, value) in values {
        Entry::Value { key, value: Some(value) }.encode(seed, &mut bytes);
    }
    bytes
}

/// The state that a message was accepted with.
pub(crate) fn initial_state<D: Disk>(
    shared: &Shared<D>,
    live: &crate::slab::Live,
) -> Option<Vec<u8>> {
    let header = shared.header(live).ok()?;
    let file = shared.segment(live.place.segment).ok()?;
    let at = u64::from(live.place.offset)
        + format::RECORD_HEADER as u64
        + u64::from(header.envelope_len);
    let mut state = vec![0; header.state_len as usize];
    let read = crate::disk::read_full(&*file, at, &mut state).ok()?;
    let good = format::crc(shared.seed(live.place.segment), &state[..read]) == header.state_crc;
    good.then_some(state)
}
