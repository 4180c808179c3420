//! Reading messages, from any thread, while the store is written. Floor 2.
//!
//! A record never changes in place, but the slot that says where it is may: compaction copies it,
//! removal frees it. So the slot is looked at before and after each read, and a read during which
//! it changed is done again or refused.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{
    disk::{Disk, How, read_full},
    error::ReadError,
    format::{self, FileKind, MessageKey, Place, RECORD_HEADER, RecordHeader, Salt, crc},
    segment,
    slab::{Handle, Live, Slab},
};

/// Segments that are kept open for reading.
const OPEN_SEGMENTS: usize = 128;
/// How often a read is begun again because its message moved. It can move once in a compaction.
const TRIES: usize = 8;

/// What the writer and the readers share.
#[derive(Debug)]
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pub(crate) salt: Salt,
    slots: RwLock<Slab>,
    files: RwLock<BTreeMap<u32, Arc<D::File>>>,
}

impl<D: Disk> Shared<D> {
    pub(crate) fn new(disk: D, salt: Salt, slots: Slab) -> Self {
        Self { disk, salt, slots: RwLock::new(slots), files: RwLock::default() }
    }

    pub(crate) fn slots(&self) -> RwLockReadGuard<'_, Slab> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn slots_mut(&self) -> RwLockWriteGuard<'_, Slab> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seed(&self, segment: u32) -> u32 {
        format::seed(FileKind::Segment, segment, &self.salt)
    }

    pub(crate) fn segment(&self, number: u32) -> io::Result<Arc<D::File>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&number) {
            return Ok(Arc::clone(file));
        }
        drop(files);
        let file = Arc::new(self.disk.open(Path::new(&segment::name(number)), How::Read)?);
        self.keep(number, Arc::clone(&file));
        Ok(file)
    }

    /// The segment of a place. That it is gone is damage, unless the message moved meanwhile.
    pub(crate) fn segment_of(&self, place: &Place) -> Result<Arc<D::File>, ReadError> {
        self.segment(place.segment).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(place),
            _ => ReadError::io(segment::name(place.segment))(error),
        })
    }

    /// Keeps a file open for readers.
    pub(crate) fn keep(&self, number: u32, file: Arc<D::File>) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= OPEN_SEGMENTS {
            files.pop_first();
        }
        files.insert(number, file);
    }

    pub(crate) fn forget(&self, number: u32) {
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    /// The header of the record at a place, if it is that one.
    pub(crate) fn header(&self, live: &Live) -> Result<RecordHeader, ReadError> {
        let Live { place, key, .. } = live;
        let path = segment::name(place.segment);
        let file = self.segment_of(place)?;
        let offset = u64::from(place.offset);
        let header = segment::read_header(&*file, self.seed(place.segment), offset)
            .map_err(ReadError::io(&path))?;
        header
            .filter(|header| header.key == *key)
            .filter(|header| segment::place(place.segment, offset, header) == Some(*place))
            .ok_or_else(|| damaged(place))
    }
}

/// Reads messages of a store. Clones are cheap.
#[derive(Debug)]
pub struct Reader<D: Disk> {
    shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<D: Disk> Reader<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>) -> Self {
        Self { shared }
    }

    /// The message's name. Nothing is read for it.
    pub fn key(&self, handle: Handle) -> Result<MessageKey, ReadError> {
        self.live(handle).map(|live| live.key)
    }

    /// The envelope, checked.
    pub fn envelope(&self, handle: Handle) -> Result<Vec<u8>, ReadError> {
        self.stable(handle, |live| {
            let header = self.shared.header(live)?;
            let mut envelope = vec![0; header.envelope_len as usize];
            self.read_record(&live.place, RECORD_HEADER as u64, &mut envelope)?;
            let seed = self.shared.seed(live.place.segment);
            let good = crc(seed, &envelope) == header.envelope_crc;
            if good { Ok(envelope) } else { Err(damaged(&live.place)) }
        })
    }

    /// The length of the body.
    pub fn body_len(&self, handle: Handle) -> Result<u64, ReadError> {
        self.stable(handle, |live| match live.place.external {
            false => Ok(u64::from(live.place.length - live.place.body_at)),
            true => Ok(self.shared.header(live)?.body_len()),
        })
    }

    /// Reads from `offset` of the body on; 0 is its end. A call that asks for the whole of a body
    /// that lies in a segment checks it; otherwise call [`Reader::check`] first.
    pub fn read_body(
        &self,
        handle: Handle,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ReadError> {
        self.stable(handle, |live| {
            let place = &live.place;
            let inline = u64::from(place.length - place.body_at);
            if offset >= inline && place.external {
                return self.read_external(live, offset - inline, buffer);
            }
            let left = usize::try_from(inline.saturating_sub(offset)).unwrap_or(usize::MAX);
            let take = left.min(buffer.len());
            let buffer = &mut buffer[..take];
            self.read_record(place, u64::from(place.body_at) + offset, buffer)?;
            if offset == 0 && take as u64 == inline {
                let header = self.shared.header(live)?;
                if crc(self.shared.seed(place.segment), buffer) != header.inline_crc {
                    return Err(damaged(place));
                }
            }
            Ok(take)
        })
    }

    /// Reads the whole message and compares all checksums.
    pub fn check(&self, handle: Handle) -> Result<(), ReadError> {
        self.stable(handle, |live| check(&self.shared, live))
    }

    fn live(&self, handle: Handle) -> Result<Live, ReadError> {
        self.shared.slots().get(handle).ok_or(ReadError::Removed)
    }

    /// Does a read that is only believed if the message stayed where it was.
    fn stable<T>(
        &self,
        handle: Handle,
        mut read: impl FnMut(&Live) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let mut live = self.live(handle)?;
        for _ in 1..TRIES {
            let result = read(&live);
            let now = self.live(handle)?;
            if now.place == live.place {
                return result;
            }
            live = now;
        }
        read(&live)
    }

    fn read_record(&self, place: &Place, at: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let path = segment::name(place.segment);
        let file = self.shared.segment_of(place)?;
        let read = read_full(&*file, u64::from(place.offset) + at, buffer)
            .map_err(ReadError::io(&path))?;
        if read == buffer.len() { Ok(()) } else { Err(damaged(place)) }
    }

    fn read_external(
        &self,
        live: &Live,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ReadError> {
        let path = segment::body_name(&live.key);
        let file = open_body(&self.shared, live)?;
        let (length, _) = self.shared.header(live)?.external.unwrap_or_default();
        let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let take = left.min(buffer.len());
        let read = read_full(&file, offset, &mut buffer[..take]).map_err(ReadError::io(&path))?;
        if read == take {
            return Ok(read);
        }
        Err(ReadError::Damaged { file: path, offset: 0 })
    }
}

fn open_body<D: Disk>(shared: &Shared<D>, live: &Live) -> Result<D::File, ReadError> {
    let path = segment::body_name(&live.key);
    shared.disk.open(Path::new(&path), How::Read).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ReadError::Damaged { file: path, offset: 0 },
        _ => ReadError::Io { path, source: error },
    })
}

/// Compares all checksums of a message.
pub(crate) fn check<D: Disk>(shared: &Shared<D>, live: &Live) -> Result<(), ReadError> {
    use crate::disk::DiskFile as _;
    let place = &live.place;
    let path = segment::name(place.segment);
    let header = shared.header(live)?;
    let file = shared.segment_of(place)?;
    let seed = shared.seed(place.segment);
    let good = segment::check_parts(&*file, seed, u64::from(place.offset), &header)
        .map_err(ReadError::io(&path))?;
    if !good {
        return Err(damaged(place));
    }
    if let Some((length, sum)) = header.external {
        let path = segment::body_name(&live.key);
        let file = open_body(shared, live)?;
        let now = file.length().map_err(ReadError::io(&path))?;
        let crc = segment::file_crc(&file, 0, 0, length).map_err(ReadError::io(&path))?;
        if now != length || crc != Some(sum) {
            return Err(ReadError::Damaged { file: path, offset: 0 });
        }
    }
    Ok(())
}

fn damaged(place: &Place) -> ReadError {
    ReadError::Damaged { file: segment::name(place.segment), offset: u64::from(place.offset) }
}
