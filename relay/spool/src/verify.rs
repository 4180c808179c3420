//! Reads a store that nobody has open, and compares every checksum. Changes nothing. Floor 2.

use std::{collections::BTreeSet, path::Path};

use crate::{
    attempts,
    disk::Disk,
    error::{Damage, OpenError, ReadError, What},
    load::load,
    reader::{self, Shared},
    recover::{lock_error, read_clean},
    slab::Slab,
    store::LOCK,
};

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Live messages that are in the journal.
    pub messages: u64,
    /// Messages that are in a segment and not yet in the journal; the next opening takes them.
    pub beyond: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of segments and journal.
    pub bytes: u64,
    /// The caller's values.
    pub values: u64,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
}

/// Reads all of a store. It must not be open: the damage of a file that is being written is none.
pub fn verify<D: Disk + Clone>(disk: &D) -> Result<Report, OpenError> {
    let _lock = match disk.lock(Path::new(LOCK), false) {
        Ok(lock) => Some(lock),
        Err(crate::LockError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            disk.list(Path::new("")).map_err(OpenError::io("."))?;
            None
        }
        Err(error) => return Err(lock_error(disk, error)),
    };
    let clean = read_clean(disk)?;
    let mut image = load(disk, [0; 16], clean, clean.is_none())?;
    let mut damage = std::mem::take(&mut image.damage);
    let slots = std::mem::replace(&mut image.slots, Slab::new());
    let shared = Shared::new(disk.clone(), image.salt, Slab::new());
    for (_, live) in slots.iter() {
        let Err(error) = reader::check(&shared, &live) else { continue };
        let (file, offset, what) = match error {
            ReadError::Damaged { file, offset } if file.starts_with("seg") => {
                (file, offset, What::Record)
            }
            ReadError::Damaged { file, offset } => (file, offset, What::Body),
            ReadError::Io { path, source } => return Err(OpenError::io(path)(source)),
            ReadError::Removed => continue,
        };
        if damage.iter().any(|known| known.key == Some(live.key)) {
            continue;
        }
        let length = u64::from(live.place.length);
        damage.push(Damage { file, offset, length, what, key: Some(live.key), set_aside: None });
    }
    let mut keys = BTreeSet::new();
    for name in attempts::FILES {
        attempts::read(disk, name, &mut keys, &mut damage).map_err(OpenError::io(name))?;
    }
    let segments = image.segments.values();
    Ok(Report {
        messages: u64::from(slots.live()),
        beyond: image.beyond(),
        segments: image.segments.len() as u64,
        bytes: segments.sum::<u64>() + image.journal.map_or(0, |(_, length, _)| length),
        values: image.values.len() as u64,
        damage,
    })
}
