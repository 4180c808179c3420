//! Which attempts are under way, so that a killed process can be told what it may have delivered.
//! Floor 2.
//!
//! A file of fixed slots. A slot is written before the end of a message's data leaves, without
//! a sync: it is there for the next process, not for the next boot, after which everything that
//! was waiting is in doubt anyway. What a process finds in it goes to `attempts.old` and stays
//! there until the caller has dealt with it.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    disk::{Disk, DiskFile, How, read_full, write_all},
    error::{Damage, OpenError, StoreError, What},
    format::{MessageKey, crc, key_at, u32_at},
};

const NOW: &str = "attempts";
const OLD: &str = "attempts.old";
/// A key, its checksum, and zeros up to a size that never crosses a page.
const SLOT: usize = 32;
/// The most bytes of either file that are read: as many slots as anybody would ask for.
const FILE_LIMIT: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct AttemptFile<D: Disk> {
    file: D::File,
    slots: u32,
    free: Mutex<Vec<u32>>,
}

/// Notes attempts. Clones are cheap.
#[derive(Debug)]
pub struct Attempts<D: Disk> {
    file: Arc<AttemptFile<D>>,
}

impl<D: Disk> Clone for Attempts<D> {
    fn clone(&self) -> Self {
        Self { file: Arc::clone(&self.file) }
    }
}

impl<D: Disk> Attempts<D> {
    pub(crate) fn new(file: Arc<AttemptFile<D>>) -> Self {
        Self { file }
    }

    /// Notes that an attempt begins: to be called before the last bytes leave. If it fails, they
    /// must not.
    pub fn begin(&self, key: &MessageKey) -> Result<AttemptMark<D>, StoreError> {
        let slot = self.file.free().pop().ok_or(StoreError::NoSlot)?;
        if let Err(error) = self.file.write(slot, &encode(key)) {
            self.file.free().push(slot);
            return Err(error);
        }
        Ok(AttemptMark { file: Arc::clone(&self.file), slot })
    }
}

/// An attempt that is under way. If it is dropped and not ended, it counts as interrupted at the
/// next opening, and its slot is not used again before.
#[derive(Debug)]
#[must_use = "an attempt that is not ended is reported as interrupted"]
pub struct AttemptMark<D: Disk> {
    file: Arc<AttemptFile<D>>,
    slot: u32,
}

impl<D: Disk> AttemptMark<D> {
    /// The outcome is in the journal: the attempt is over, and there may be others.
    pub fn end(self) -> Result<(), StoreError> {
        self.file.write(self.slot, &[0; SLOT])?;
        self.file.free().push(self.slot);
        Ok(())
    }
}

impl<D: Disk> AttemptMark<D> {
    /// The outcome is in the journal, and it is that the message is gone. What the slot says of it
    /// means nothing any more, so nothing is written.
    pub fn gone(self) {
        self.file.free().push(self.slot);
    }
}

impl<D: Disk> AttemptFile<D> {
    /// Takes what the last process left, and begins a new file.
    pub(crate) fn open(
        disk: &D,
        slots: u32,
        damage: &mut Vec<Damage>,
    ) -> Result<(Self, Vec<MessageKey>), OpenError> {
        let mut keys = BTreeSet::new();
        for name in [OLD, NOW] {
            read(disk, name, &mut keys, damage).map_err(OpenError::io(name))?;
        }
        if !keys.is_empty() {
            // Written beside and renamed: a process that ends here leaves one or the other.
            let bytes: Vec<u8> = keys.iter().flat_map(encode).collect();
            let new = "attempts.new";
            let file = disk.open(Path::new(new), How::Create).map_err(OpenError::io(new))?;
            write_all(&file, 0, &mut [IoSlice::new(&bytes)]).map_err(OpenError::io(new))?;
            disk.rename(Path::new(new), Path::new(OLD)).map_err(OpenError::io(OLD))?;
        }
        let file = disk.open(Path::new(NOW), How::Create).map_err(OpenError::io(NOW))?;
        // All slots exist before the first attempt, so that none fails for want of space.
        let zeros = vec![0; slots as usize * SLOT];
        write_all(&file, 0, &mut [IoSlice::new(&zeros)]).map_err(OpenError::io(NOW))?;
        let free = Mutex::new((0..slots).rev().collect());
        Ok((Self { file, slots, free }, keys.into_iter().collect()))
    }

    pub(crate) fn length(&self) -> u64 {
        u64::from(self.slots) * SLOT as u64
    }

    pub(crate) fn forget_interrupted(&self, disk: &D) -> Result<(), StoreError> {
        match disk.remove(Path::new(OLD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(StoreError::io(OLD)),
        }
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, slot: u32, bytes: &[u8; SLOT]) -> Result<(), StoreError> {
        let at = u64::from(slot) * SLOT as u64;
        write_all(&self.file, at, &mut [IoSlice::new(bytes)]).map_err(StoreError::io(NOW))
    }
}

fn encode(key: &MessageKey) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..16].copy_from_slice(key);
    bytes[16..20].copy_from_slice(&crc(1, key).to_le_bytes());
    bytes
}

/// Adds the keys of one file.
pub(crate) fn read<D: Disk>(
    disk: &D,
    name: &str,
    keys: &mut BTreeSet<MessageKey>,
    damage: &mut Vec<Damage>,
) -> io::Result<()> {
    let file = match disk.open(Path::new(name), How::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let length = file.length()?.min(FILE_LIMIT);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = read_full(&file, 0, &mut bytes)?;
    for (slot, bytes) in bytes[..read].chunks(SLOT).enumerate() {
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        if bytes.len() == SLOT && u32_at(bytes, 16) == crc(1, &bytes[..16]) {
            keys.insert(key_at(bytes, 0));
            continue;
        }
        damage.push(Damage {
            file: name.to_owned(),
            offset: (slot * SLOT) as u64,
            length: bytes.len() as u64,
            what: What::Attempts,
            key: None,
            set_aside: None,
        });
    }
    Ok(())
}

pub(crate) const FILES: [&str; 2] = [OLD, NOW];
