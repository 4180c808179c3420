//! One batch, from its operations to their results. Floor 2.
//!
//! The order is the promise: large bodies synced and renamed, records written, the segment
//! synced, and only then the journal. So the journal never names a body that is not durable. An
//! error leaves the batch, or the part of it that shares the fate, undone and unpromised.

use std::{
    collections::HashSet,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    disk::{Disk, DiskFile, How, write_all},
    error::StoreError,
    format::{
        self, ENVELOPE_LIMIT, Entry, FILE_HEADER, FileKind, INLINE_LIMIT, MessageKey, Place,
        RECORD_HEADER, RecordHeader, STATE_LIMIT, crc,
    },
    journal::UNSYNCED_LIMIT,
    segment,
    slab::{Handle, Live},
    store::{BODIES, Current, Done, Info, NewBody, Op, Part, Store},
};

/// Offsets in a segment are 32 bits; a batch that would go beyond begins a new segment.
const SEGMENT_END: u64 = 1 << 32;
/// The longest key of a value.
const VALUE_KEY_LIMIT: usize = 1024;

/// An operation on its way.
enum Step {
    Failed(StoreError),
    Accept(Box<Accept>),
    State { handle: Handle, state: Vec<u8>, seq: u32 },
    Remove { handle: Handle },
    Value { key: Vec<u8>, value: Option<Vec<u8>> },
    Sync,
}

/// A message that is being taken.
struct Accept {
    key: MessageKey,
    envelope: Vec<u8>,
    state: Vec<u8>,
    parts: Vec<Part>,
    inline_len: u32,
    /// The file, its length and, once it has been read, its checksum.
    external: Option<(PathBuf, u64, u32)>,
    /// Where it lies, once it is durable.
    place: Option<Place>,
    /// Its slot and the number of its entry, once they are reserved.
    slot: Option<(u32, u32)>,
}

impl Accept {
    fn record_len(&self) -> u64 {
        let front = RECORD_HEADER + self.envelope.len() + self.state.len();
        front as u64 + u64::from(self.inline_len)
    }

    fn external_len(&self) -> u64 {
        self.external.as_ref().map_or(0, |(_, length, _)| *length)
    }

    /// Header, envelope and state as they go to the segment, and where the body begins.
    fn front(&self, seed: u32, batch: u32) -> (Vec<u8>, RecordHeader) {
        let mut inline = crc32fast::Hasher::new_with_initial(seed);
        for part in &self.parts {
            inline.update((**part).as_ref());
        }
        #[allow(clippy::cast_possible_truncation, reason = "`admit` has checked both limits")]
        let header = RecordHeader {
            key: self.key,
            envelope_len: self.envelope.len() as u32,
            state_len: self.state.len() as u32,
            inline_len: self.inline_len,
            batch,
            external: self.external.as_ref().map(|(_, length, sum)| (*length, *sum)),
            envelope_crc: crc(seed, &self.envelope),
            state_crc: crc(seed, &self.state),
            inline_crc: inline.finalize(),
        };
        let mut front = header.encode(seed).to_vec();
        front.extend_from_slice(&self.envelope);
        front.extend_from_slice(&self.state);
        (front, header)
    }
}

impl<D: Disk> Store<D> {
    /// Does all operations as one batch, with one sync. One result each, in their order.
    pub fn commit(&mut self, batch: Vec<Op>) -> Vec<Result<Done, StoreError>> {
        if let Err(error) = self.repair_journal() {
            return batch.iter().map(|_| Err(error.clone())).collect();
        }
        let mut steps = self.plan(batch);
        if let Err(error) = self.write_records(&mut steps) {
            self.fail_accepts(&mut steps, &error);
        }
        match self.write_entries(&mut steps) {
            Ok(()) => steps.into_iter().map(|step| self.apply(step)).collect(),
            Err(error) => {
                self.fail_accepts(&mut steps, &error);
                let failed = |step| match step {
                    Step::Failed(error) => Err(error),
                    _ => Err(error.clone()),
                };
                steps.into_iter().map(failed).collect()
            }
        }
    }

    /// Checks each operation against limits and what is there.
    fn plan(&self, batch: Vec<Op>) -> Vec<Step> {
        let mut removed = HashSet::new();
        let accepts = batch.iter().any(|op| matches!(op, Op::Accept { .. }));
        let mut room = if accepts { Room::new(self) } else { Room::default() };
        let slots = self.shared.slots();
        let mut live = |handle: Handle, removes: bool| {
            let there = slots.get(handle).is_some() && !removed.contains(&handle);
            if removes {
                removed.insert(handle);
            }
            if there { Ok(()) } else { Err(StoreError::Removed) }
        };
        let steps = batch
            .into_iter()
            .map(|op| {
                let step = match op {
                    Op::Accept { key, envelope, state, body } => {
                        admit(key, envelope, state, body, &mut room)
                            .map(|accept| Step::Accept(Box::new(accept)))
                    }
                    Op::State { handle, state } => live(handle, false)
                        .and_then(|()| limit("state", state.len(), STATE_LIMIT))
                        .map(|()| Step::State { handle, state, seq: 0 }),
                    Op::Remove { handle } => live(handle, true).map(|()| Step::Remove { handle }),
                    Op::Value { key, value } => limit("key", key.len(), VALUE_KEY_LIMIT)
                        .and_then(|()| {
                            limit("value", value.as_ref().map_or(0, Vec::len), STATE_LIMIT)
                        })
                        .map(|()| Step::Value { key, value }),
                    Op::SyncJournal => Ok(Step::Sync),
                };
                step.unwrap_or_else(Step::Failed)
            })
            .collect();
        if accepts {
            self.free.set(Some(room.free));
        }
        steps
    }

    /// Writes all new messages and makes them durable.
    fn write_records(&mut self, steps: &mut [Step]) -> Result<(), StoreError> {
        self.take_bodies(steps);
        let mut accepts: Vec<&mut Accept> = steps
            .iter_mut()
            .filter_map(|step| match step {
                Step::Accept(accept) => Some(&mut **accept),
                _ => None,
            })
            .collect();
        if accepts.is_empty() {
            return Ok(());
        }
        let length: u64 = accepts.iter().map(|accept| accept.record_len()).sum();
        if length > SEGMENT_END / 2 {
            return Err(StoreError::TooLarge { what: "batch" });
        }
        self.ready_segment(length)?;
        let Some(current) = &self.current else { return Ok(()) };
        let (number, seed) = (current.number, current.seed);
        let batch = u32::try_from(current.end).unwrap_or(u32::MAX);
        let fronts: Vec<_> = accepts.iter().map(|accept| accept.front(seed, batch)).collect();
        let mut slices = Vec::with_capacity(fronts.len() * 3);
        for ((front, _), accept) in fronts.iter().zip(&accepts) {
            slices.push(IoSlice::new(front));
            slices.extend(accept.parts.iter().map(|part| IoSlice::new((**part).as_ref())));
        }
        let mut at = self.write_segment(&mut slices, length)?;
        for ((_, header), accept) in fronts.iter().zip(&mut accepts) {
            accept.place = segment::place(number, at, header);
            assert!(accept.place.is_some(), "`admit` and `ready_segment` keep to the limits");
            at += header.total();
        }
        Ok(())
    }

    /// Appends to the current segment and syncs it; where it was written. After an error the
    /// segment is left as it was before, and nothing is written to it again.
    pub(crate) fn write_segment(
        &mut self,
        slices: &mut [IoSlice<'_>],
        length: u64,
    ) -> Result<u64, StoreError> {
        let Some(current) = &mut self.current else {
            return Err(StoreError::Full { what: "no segment" });
        };
        let at = current.end;
        let written = write_all(&*current.file, at, slices).and_then(|()| current.file.sync());
        if let Err(error) = written {
            let number = current.number;
            self.abandon_segment(at + length);
            return Err(StoreError::io(segment::name(number))(error));
        }
        current.end = at + length;
        let info = self.segments.entry(current.number).or_default();
        info.length = current.end;
        info.known = current.end;
        Ok(at)
    }

    /// After a failed write or sync nothing of the file beyond the last good batch is believed,
    /// not even by a later opening.
    fn abandon_segment(&mut self, end: u64) {
        let Some(current) = self.current.take() else { return };
        // Cutting it off only tidies up: what counts is that the journal is told of the end.
        let _ = current.file.truncate(current.end);
        let length = current.file.length().unwrap_or(end);
        let info = self.segments.entry(current.number).or_default();
        info.length = length;
        info.known = end;
        self.owed.push((current.number, end));
    }

    /// Makes sure that there is a segment with room for this batch.
    pub(crate) fn ready_segment(&mut self, length: u64) -> Result<(), StoreError> {
        let full = |current: &Current<D::File>, limit| {
            current.end >= limit || current.end + length > SEGMENT_END
        };
        if self.current.as_ref().is_some_and(|current| full(current, self.options.segment_bytes)) {
            // The segment is sealed: what the journal knows of it is made durable with it.
            self.flush_journal()?;
            self.current = None;
        }
        if self.current.is_some() {
            return Ok(());
        }
        let number = self.next_segment;
        self.next_segment += 1;
        let name = segment::name(number);
        let made = self.make_segment(number, &name);
        let file = made.map_err(|error| {
            // Best effort: an empty segment is removed at the next opening too.
            let _ = self.shared.disk.remove(Path::new(&name));
            StoreError::io(&name)(error)
        })?;
        let end = FILE_HEADER as u64;
        self.segments.insert(number, Info { length: end, known: end, ..Info::default() });
        let file = Arc::new(file);
        self.shared.keep(number, Arc::clone(&file));
        self.current = Some(Current { number, file, seed: self.shared.seed(number), end });
        Ok(())
    }

    fn make_segment(&self, number: u32, name: &str) -> io::Result<D::File> {
        let file = self.shared.disk.open(Path::new(name), How::Create)?;
        let header = format::encode_file_header(FileKind::Segment, number, &self.shared.salt);
        write_all(&file, 0, &mut [IoSlice::new(&header)])?;
        // The name has to be durable before the first batch is promised; the contents are synced
        // with that batch.
        self.shared.disk.sync_dir(Path::new(""))?;
        Ok(file)
    }

    /// Makes the files of large bodies durable, as our own.
    fn take_bodies(&mut self, steps: &mut [Step]) {
        let mut directories = HashSet::new();
        for step in steps.iter_mut() {
            let Step::Accept(accept) = step else { continue };
            let key = accept.key;
            let Some((path, length, sum)) = &mut accept.external else { continue };
            match take_body(&self.shared.disk, path, *length, &key) {
                Ok(crc) => {
                    *sum = crc;
                    self.bodies_bytes += *length;
                    directories.insert(path.parent().unwrap_or(Path::new("")).to_owned());
                }
                Err(error) => {
                    let error = StoreError::io(path.display().to_string())(error);
                    *step = Step::Failed(error);
                }
            }
        }
        if directories.is_empty() {
            return;
        }
        // The new name first: at no moment is the file durable under neither.
        let disk = &self.shared.disk;
        let synced = disk
            .sync_dir(Path::new(BODIES))
            .and_then(|()| directories.iter().try_for_each(|directory| disk.sync_dir(directory)));
        if let Err(error) = synced {
            let error = StoreError::io(BODIES)(error);
            for step in steps {
                if matches!(step, Step::Accept(accept) if accept.external.is_some()) {
                    self.fail_accept(step, &error);
                }
            }
        }
    }

    /// Writes the journal's entries. After an error none counts.
    fn write_entries(&mut self, steps: &mut [Step]) -> Result<(), StoreError> {
        let before = self.journal.end;
        let mut sync = false;
        let mut entries = Vec::new();
        let seed = self.journal.seed;
        for (number, end) in &self.owed {
            Entry::Segment { number: *number, end: *end }.encode(seed, &mut entries);
        }
        for step in steps.iter_mut() {
            self.entry(step, &mut entries);
            sync |= matches!(step, Step::Sync);
        }
        if !entries.is_empty() {
            self.journal.append(&entries)?;
        }
        self.doomed.append(&mut self.refused);
        if sync || self.journal.unsynced() > UNSYNCED_LIMIT {
            self.flush_journal().inspect_err(|_| self.journal.forget(before))?;
        }
        self.owed.clear();
        Ok(())
    }

    fn entry(&mut self, step: &mut Step, entries: &mut Vec<u8>) {
        let seed = self.journal.seed;
        let before = entries.len();
        match step {
            Step::Failed(_) | Step::Sync => return,
            Step::Accept(accept) => {
                let Some(place) = accept.place else { return };
                let Some(index) = self.shared.slots_mut().reserve() else {
                    self.fail_accept(step, &StoreError::Full { what: "the most messages" });
                    return;
                };
                let body_len = u64::from(accept.inline_len) + accept.external_len();
                let (seq, key) = (self.seq(), accept.key);
                accept.slot = Some((index, seq));
                let state = &accept.state;
                Entry::Put { seq, index, place, key, body_len, state }.encode(seed, entries);
            }
            Step::State { handle, state, seq } => {
                let live = self.shared.slots().get(*handle);
                let Some(Live { key, place, .. }) = live else { return };
                *seq = self.seq();
                let (seq, index) = (*seq, handle.slot());
                let inline = u64::from(place.length - place.body_at);
                let body_len = inline + self.externals.get(&index).copied().unwrap_or(0);
                Entry::Put { seq, index, place, key, body_len, state }.encode(seed, entries);
            }
            Step::Remove { handle } => {
                let live = self.shared.slots().get(*handle);
                let Some(Place { segment, offset, .. }) = live.map(|live| live.place) else {
                    return;
                };
                Entry::Gone { index: handle.slot(), segment, offset }.encode(seed, entries);
                return;
            }
            Step::Value { key, value } => {
                Entry::Value { key, value: value.as_deref() }.encode(seed, entries);
                return;
            }
        }
        self.puts += 1;
        self.put_bytes += (entries.len() - before) as u64;
    }

    /// Everything is written: now it is so.
    fn apply(&mut self, step: Step) -> Result<Done, StoreError> {
        match step {
            Step::Failed(error) => return Err(error),
            Step::Sync => {}
            Step::Accept(accept) => {
                let (Some(place), Some((index, seq))) = (accept.place, accept.slot) else {
                    // Its record was not written, and then it was made a failed step.
                    return Err(StoreError::Full { what: "no segment" });
                };
                let live = Live { key: accept.key, place, seq };
                let mut slots = self.shared.slots_mut();
                assert!(slots.put(index, live), "a reserved slot can be filled");
                let handle = slots.handle(index);
                drop(slots);
                self.count_in(place.segment, u64::from(place.length));
                if place.external {
                    self.externals.insert(index, accept.external_len());
                    self.live_bytes += accept.external_len();
                }
                return handle.map(Done::accepted).ok_or(StoreError::Removed);
            }
            Step::State { handle, seq, .. } => {
                self.shared.slots_mut().set_seq(handle.slot(), seq);
            }
            Step::Remove { handle } => self.drop_message(handle.slot()),
            Step::Value { key, value } => {
                match value {
                    Some(value) => self.values.insert(key, value),
                    None => self.values.remove(&key),
                };
            }
        }
        Ok(Done::Done)
    }

    /// A message whose removal is in the journal leaves the slots and the counts.
    pub(crate) fn drop_message(&mut self, index: u32) {
        let live = self.shared.slots().at(index);
        let Some(Live { key, place, .. }) = live else { return };
        self.shared.slots_mut().remove(index);
        self.count_out(place.segment, u64::from(place.length));
        if let Some(length) = self.externals.remove(&index) {
            self.live_bytes = self.live_bytes.saturating_sub(length);
            self.doomed.push((key, length));
        }
    }

    fn fail_accepts(&mut self, steps: &mut [Step], error: &StoreError) {
        for step in steps {
            if matches!(step, Step::Accept(_)) {
                self.fail_accept(step, error);
            }
        }
    }

    /// Undoes what was done for a message. If its record was written, the journal is told to look
    /// past it, so that no opening finds what was refused.
    fn fail_accept(&mut self, step: &mut Step, error: &StoreError) {
        let Step::Accept(accept) = std::mem::replace(step, Step::Failed(error.clone())) else {
            return;
        };
        if let Some((index, _)) = accept.slot {
            self.shared.slots_mut().unreserve(index);
        }
        if let Some(place) = accept.place {
            self.owed.push((place.segment, place.end()));
        }
        if let Some((_, length, _)) = accept.external {
            self.refused.push((accept.key, length));
        }
    }
}

/// Makes a received file durable and ours; its checksum.
fn take_body<D: Disk>(disk: &D, path: &Path, length: u64, key: &MessageKey) -> io::Result<u32> {
    let file = disk.open(path, How::Write)?;
    if file.length()? != length {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not of the length that was said"));
    }
    let sum = segment::file_crc(&file, 0, 0, length)?
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    file.sync()?;
    disk.rename(path, Path::new(&segment::body_name(key)))?;
    Ok(sum)
}

/// What is left of quota and disk while a batch is planned.
#[derive(Default)]
struct Room {
    used: u64,
    quota: u64,
    free: u64,
    reserve: u64,
}

impl Room {
    fn new<D: Disk>(store: &Store<D>) -> Self {
        Self {
            used: store.disk_bytes(),
            quota: store.options.quota,
            // If it cannot be asked, a write will tell.
            free: store.free().unwrap_or(u64::MAX),
            reserve: store.options.reserve,
        }
    }

    fn take(&mut self, inside: u64, outside: u64) -> Result<(), StoreError> {
        let used = self.used.saturating_add(inside).saturating_add(outside);
        if used > self.quota {
            return Err(StoreError::Full { what: "quota" });
        }
        let free = self.free.saturating_sub(inside);
        if free < self.reserve {
            return Err(StoreError::Full { what: "reserve of free disk" });
        }
        (self.used, self.free) = (used, free);
        Ok(())
    }
}

fn limit(what: &'static str, length: usize, most: usize) -> Result<(), StoreError> {
    if length <= most { Ok(()) } else { Err(StoreError::TooLarge { what }) }
}

/// Checks a new message's parts, and takes the room for it.
fn admit(
    key: MessageKey,
    envelope: Vec<u8>,
    state: Vec<u8>,
    body: NewBody,
    room: &mut Room,
) -> Result<Accept, StoreError> {
    limit("envelope", envelope.len(), ENVELOPE_LIMIT)?;
    limit("state", state.len(), STATE_LIMIT)?;
    let (parts, external) = match body {
        NewBody::Parts(parts) => (parts, None),
        NewBody::File { path, head, len } => {
            let head: Part = Arc::new(head);
            (vec![head], Some((path, len, 0)))
        }
    };
    let inline: u64 = parts.iter().map(|part| (**part).as_ref().len() as u64).sum();
    let inline_len = u32::try_from(inline)
        .ok()
        .filter(|_| inline <= INLINE_LIMIT)
        .ok_or(StoreError::TooLarge { what: "body" })?;
    let accept =
        Accept { key, envelope, state, parts, inline_len, external, place: None, slot: None };
    // With its first entry in the journal.
    room.take(accept.record_len() + 64 + accept.state.len() as u64, accept.external_len())?;
    Ok(accept)
}
