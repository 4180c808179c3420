//! What is done when there is time, in bounded steps: snapshots, deletion, compaction. Floor 2.

use std::{io::IoSlice, path::Path};

use crate::{
    disk::{Disk, How, read_full, write_all},
    error::{Damage, ReadError, StoreError, What},
    format::{Entry, FILE_HEADER, Place, RecordHeader, crc},
    journal, segment,
    slab::{Handle, Live},
    store::{DAMAGED, Info, Op, Options, Store},
};

/// A segment with less than this live, in hundredths, is copied.
const MOSTLY_DEAD: u64 = 30;
/// The same while room is short: it is worth writing more.
const MOSTLY_DEAD_FULL: u64 = 80;
/// The newest segments are left alone while there is room: they empty by themselves while
/// draining keeps up.
const NEWEST: usize = 2;
/// Bytes copied in one step.
const STEP: u64 = 1 << 20;
/// Bytes of damage that are copied at once.
const CHUNK: usize = 256 * 1024;

/// A segment that is being emptied, and which of its messages are left.
#[derive(Debug)]
pub(crate) struct Compaction {
    segment: u32,
    left: Vec<u32>,
}

impl<D: Disk> Store<D> {
    /// Does one bounded step of what is to be done. `true`: there is more.
    pub fn maintain(&mut self) -> Result<bool, StoreError> {
        self.repair_journal()?;
        if self.snapshot.is_some() || self.journal_is_large() {
            self.maintain_snapshot()?;
            return Ok(true);
        }
        let tight = self.is_tight();
        if tight {
            self.seal_if_dead()?;
        }
        if self.delete_empty()? {
            return Ok(true);
        }
        self.compact(tight)
    }

    /// Whether new messages are refused for want of room, or soon will be.
    fn is_tight(&self) -> bool {
        let Options { quota, reserve, segment_bytes, .. } = self.options;
        let free = self.shared.disk.free().unwrap_or(u64::MAX);
        self.disk_bytes() > quota / 4 * 3 || free < reserve.saturating_add(segment_bytes)
    }

    /// The segment that is written is closed if it is mostly dead, so that it can be deleted or
    /// copied like the others. It may be most of what there is: of a small quota or disk.
    fn seal_if_dead(&mut self) -> Result<(), StoreError> {
        let Some(number) = self.current.as_ref().map(|current| current.number) else {
            return Ok(());
        };
        let info = self.segments.get(&number);
        if info.is_some_and(|info| is_dead(info, MOSTLY_DEAD_FULL)) {
            self.flush_journal()?;
            self.current = None;
        }
        Ok(())
    }

    /// Copies a message that cannot be read to `damaged/`, reports it and removes it.
    pub fn set_aside(&mut self, handle: Handle) -> Result<Damage, StoreError> {
        let live = self.shared.slots().get(handle).ok_or(StoreError::Removed)?;
        let Place { segment, offset, length, .. } = live.place;
        let name = segment::name(segment);
        let (from, length) = (u64::from(offset), u64::from(length));
        let copy = set_aside(&self.shared.disk, &name, from, length);
        let copy = copy.map_err(StoreError::io(DAMAGED))?;
        if live.place.external {
            // What is left of it; it may not be there at all.
            let body = segment::body_name(&live.key);
            let kept = format!("{DAMAGED}/body-{}", crate::format::hex(&live.key));
            let _ = self.shared.disk.rename(Path::new(&body), Path::new(&kept));
        }
        let removed = self.commit(vec![Op::Remove { handle }, Op::SyncJournal]);
        removed.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (what, key) = (What::Record, Some(live.key));
        Ok(Damage { file: name, offset: from, length, what, key, set_aside: Some(copy) })
    }

    /// Deletes a segment without live messages. The removals are made durable before.
    fn delete_empty(&mut self) -> Result<bool, StoreError> {
        let current = self.current.as_ref().map(|current| current.number);
        let mut empty = self.segments.iter().filter(|(_, info)| info.live == 0);
        let Some((&number, _)) = empty.find(|(number, _)| Some(**number) != current) else {
            return Ok(false);
        };
        self.flush_journal()?;
        let name = segment::name(number);
        match self.shared.disk.remove(Path::new(&name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io(name)(error));
            }
            _ => {}
        }
        self.names_changed = true;
        self.shared.forget(number);
        self.segments.remove(&number);
        Ok(true)
    }

    fn compact(&mut self, tight: bool) -> Result<bool, StoreError> {
        if self.compaction.is_none() {
            self.compaction = self.choose(tight);
        }
        let Some(mut compaction) = self.compaction.take() else { return Ok(false) };
        let mut copies = Vec::new();
        let mut bytes = 0;
        while let Some(index) = compaction.left.pop() {
            let live = self.shared.slots().at(index);
            let Some(live) = live.filter(|live| live.place.segment == compaction.segment) else {
                continue;
            };
            match self.copy_of(&live) {
                Ok(copy) => {
                    bytes += u64::from(live.place.length);
                    copies.push((index, live, copy));
                }
                Err(error) => self.stick(&live, &error),
            }
            if bytes >= STEP {
                break;
            }
        }
        self.move_records(copies, bytes)?;
        if !compaction.left.is_empty() {
            self.compaction = Some(compaction);
        }
        Ok(true)
    }

    /// The segment that is worth copying most.
    fn choose(&self, tight: bool) -> Option<Compaction> {
        let (threshold, newest) = match tight {
            true => (MOSTLY_DEAD_FULL, 0),
            false => (MOSTLY_DEAD, NEWEST),
        };
        let older = self.segments.len().saturating_sub(newest);
        let current = self.current.as_ref().map(|current| current.number);
        let (segment, _) = self
            .segments
            .iter()
            .take(older)
            .filter(|(number, info)| Some(**number) != current && !info.stuck)
            .filter(|(_, info)| is_dead(info, threshold))
            .min_by_key(|(_, info)| info.live_bytes)?;
        let slots = self.shared.slots();
        let inside = slots.iter().filter(|(_, live)| live.place.segment == *segment);
        let mut left: Vec<_> = inside.map(|(index, live)| (live.place.offset, index)).collect();
        // Popped from the end: the oldest first.
        left.sort_unstable_by_key(|(offset, _)| std::cmp::Reverse(*offset));
        let left = left.into_iter().map(|(_, index)| index).collect();
        Some(Compaction { segment: *segment, left })
    }

    /// A record that checks, and its header.
    fn copy_of(&self, live: &Live) -> Result<(RecordHeader, Vec<u8>), ReadError> {
        let place = &live.place;
        let name = segment::name(place.segment);
        let header = self.shared.header(live)?;
        let file = self.shared.segment_of(place)?;
        let seed = self.shared.seed(place.segment);
        let offset = u64::from(place.offset);
        let mut bytes = vec![0; place.length as usize];
        let read = read_full(&*file, offset, &mut bytes).map_err(ReadError::io(&name))?;
        let good = read == bytes.len()
            && parts(&header, &bytes).zip(sums(&header)).all(|(part, sum)| crc(seed, part) == sum);
        if good { Ok((header, bytes)) } else { Err(ReadError::Damaged { file: name, offset }) }
    }

    /// A message that cannot be copied keeps its segment. Who reads it will meet the damage.
    fn stick(&mut self, live: &Live, error: &ReadError) {
        let place = &live.place;
        if let Some(info) = self.segments.get_mut(&place.segment) {
            info.stuck = true;
        }
        if matches!(error, ReadError::Damaged { .. }) {
            self.damage.push(Damage {
                file: segment::name(place.segment),
                offset: u64::from(place.offset),
                length: u64::from(place.length),
                what: What::Record,
                key: Some(live.key),
                set_aside: None,
            });
        }
    }

    /// Writes copies to the current segment, syncs it, tells the journal, and then the slots.
    fn move_records(
        &mut self,
        copies: Vec<(u32, Live, (RecordHeader, Vec<u8>))>,
        bytes: u64,
    ) -> Result<(), StoreError> {
        if copies.is_empty() {
            return Ok(());
        }
        self.ready_segment(bytes)?;
        let Some((number, seed, start)) =
            self.current.as_ref().map(|current| (current.number, current.seed, current.end))
        else {
            return Ok(());
        };
        let batch = u32::try_from(start).unwrap_or(u32::MAX);
        let records: Vec<Vec<u8>> = copies
            .iter()
            .map(|(_, _, (header, bytes))| reseeded(header, bytes, seed, batch))
            .collect();
        let mut slices: Vec<_> = records.iter().map(|record| IoSlice::new(record)).collect();
        let mut at = self.write_segment(&mut slices, bytes)?;
        let mut entries = Vec::new();
        let mut places = Vec::new();
        for (index, live, _) in &copies {
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            let length = live.place.length;
            Entry::Move { index: *index, segment: number, offset, length }
                .encode(self.journal.seed, &mut entries);
            places.push((*index, live.place, Place { segment: number, offset, ..live.place }));
            at += u64::from(live.place.length);
        }
        if let Err(error) = self.journal.append(&entries) {
            self.owed.push((number, at));
            return Err(error);
        }
        for (index, old, new) in places {
            self.shared.slots_mut().set_place(index, new);
            self.count_out(old.segment, u64::from(old.length));
            self.count_in(new.segment, u64::from(new.length));
        }
        Ok(())
    }
}

/// Whether less than so many hundredths of a segment's records are live. Its header does not count:
/// a copy of what is live must not be worth copying again.
fn is_dead(info: &Info, threshold: u64) -> bool {
    let records = info.length.saturating_sub(FILE_HEADER as u64);
    info.live_bytes * 100 < records * threshold
}

/// Envelope, state and inline body of a whole record.
fn parts<'a>(header: &RecordHeader, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let (_, rest) = bytes.split_at(crate::format::RECORD_HEADER);
    let (envelope, rest) = rest.split_at(header.envelope_len as usize);
    let (state, inline) = rest.split_at(header.state_len as usize);
    [envelope, state, inline].into_iter()
}

fn sums(header: &RecordHeader) -> [u32; 3] {
    [header.envelope_crc, header.state_crc, header.inline_crc]
}

/// The same record, for another segment.
fn reseeded(header: &RecordHeader, bytes: &[u8], seed: u32, batch: u32) -> Vec<u8> {
    let mut header = header.clone();
    let sums: Vec<u32> = parts(&header, bytes).map(|part| crc(seed, part)).collect();
    header.envelope_crc = sums[0];
    header.state_crc = sums[1];
    header.inline_crc = sums[2];
    header.batch = batch;
    let mut record = header.encode(seed).to_vec();
    record.extend_from_slice(&bytes[crate::format::RECORD_HEADER..]);
    record
}

/// Copies bytes of a file to a file of their own; its name.
pub(crate) fn set_aside<D: Disk>(
    disk: &D,
    name: &str,
    from: u64,
    length: u64,
) -> std::io::Result<String> {
    let path = format!("{DAMAGED}/{}-{from}-{length}", name.replace('/', "-"));
    let source = match disk.open(Path::new(name), How::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        source => Some(source?),
    };
    let target = disk.open(Path::new(&path), How::Create)?;
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while let Some(source) = source.as_ref().filter(|_| done < length) {
        let take = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
        let read = read_full(source, from + done, &mut buffer[..take])?;
        if read == 0 {
            break;
        }
        write_all(&target, done, &mut [IoSlice::new(&buffer[..read])])?;
        done += read as u64;
    }
    crate::disk::DiskFile::sync(&target)?;
    disk.sync_dir(Path::new(DAMAGED))?;
    Ok(path)
}

/// Names of journals and segments among files.
pub(crate) fn numbered(files: &[(String, u64)], prefix: &str) -> Vec<(u32, u64)> {
    let numbers = files
        .iter()
        .filter_map(|(name, length)| segment::number(name, prefix).map(|number| (number, *length)));
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// The newest journal among files.
pub(crate) fn newest(files: &[(String, u64)]) -> Option<(u32, u64, String)> {
    let (number, length) = numbered(files, "journal").pop()?;
    Some((number, length, journal::name(number)))
}
