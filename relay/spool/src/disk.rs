//! What the store does to files, as a trait. Floor 1.
//!
//! Paths are relative to the store's directory; an absolute one is taken as it is. Nothing here
//! knows what the bytes mean. Three kinds: a directory ([`real::RealDisk`]), one in memory that
//! can lose power ([`memory::MemoryDisk`]), and one that fails on request ([`faulty::FaultyDisk`]).

use std::{
    io::{self, IoSlice},
    path::Path,
};

pub(crate) mod faulty;
pub(crate) mod memory;
pub(crate) mod real;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A new, empty file to read and write; an old one of this name is emptied.
    Create,
}

/// Why the lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else has it.
    Held,
    /// The disk failed.
    Io(io::Error),
}

/// A directory that can hold a store.
pub trait Disk: std::fmt::Debug + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// Opens a file.
    fn open(&self, path: &Path, how: How) -> io::Result<Self::File>;
    /// Opens or makes a file and locks it against other processes for as long as it is open.
    fn lock(&self, path: &Path, exclusive: bool) -> Result<Self::File, LockError>;
    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory, unless it is there.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// The files of a directory with their lengths, in the order of their names.
    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes that may still be written to the file system.
    fn free(&self) -> io::Result<u64>;
}

/// An open file. All methods may be called from several threads.
pub trait DiskFile: std::fmt::Debug + Send + Sync + 'static {
    /// Writes the parts one after the other from `offset` on; may write less.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Reads from `offset` on; 0 is the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes contents and length durable.
    fn sync(&self) -> io::Result<()>;
    /// The length.
    fn length(&self) -> io::Result<u64>;
    /// Cuts the file off.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// For simulations: what Linux does to dirty pages when a sync fails. They look written
    /// from then on, and no later sync will write them.
    fn forget_unsynced(&self) {}
}

/// Writes all parts, in as few calls as the system allows.
pub(crate) fn write_all(
    file: &impl DiskFile,
    mut offset: u64,
    mut parts: &mut [IoSlice<'_>],
) -> io::Result<()> {
    // Parts that are empty would be told apart from an end of writing only with care.
    while parts.first().is_some_and(|part| part.is_empty()) {
        parts = &mut parts[1..];
    }
    while !parts.is_empty() {
        match file.write_at(offset, parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut parts, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; the bytes read.
pub(crate) fn read_full(file: &impl DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(offset + done as u64, &mut buffer[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
