//! A directory of the file system. Floor 1.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

use super::{Disk, DiskFile, How, LockError};

/// `IOV_MAX` of Linux.
const PARTS_A_WRITE: usize = 1024;

/// A directory. Files are for their owner only: they hold other people's mail.
#[derive(Debug, Clone)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The store in this directory, which is made when the store is opened.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn open(&self, path: &Path, how: How) -> io::Result<RealFile> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match how {
            How::Read => {}
            How::Write => {
                options.write(true);
            }
            How::Create => {
                options.write(true).create(true).truncate(true);
            }
        }
        options.open(self.path(path)).map(RealFile)
    }

    fn lock(&self, path: &Path, exclusive: bool) -> Result<RealFile, LockError> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        let operation = if exclusive {
            options.write(true).create(true);
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        let file = options.open(self.path(path)).map_err(LockError::Io)?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(RealFile(file)),
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => Err(LockError::Held),
            Err(error) => Err(LockError::Io(error.into())),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.path(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let path = self.path(path);
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            Err(_) if path.exists() && !path.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
            result => result,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // A name that is not ours need not be text.
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                found.push((name, metadata.len()));
            }
        }
        found.sort();
        Ok(found)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(self.path(path))?.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// An open file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let parts = &parts[..parts.len().min(PARTS_A_WRITE)];
        match parts {
            [part] => self.0.write_at(part, offset),
            parts => Ok(rustix::io::pwritev(&self.0, parts, offset)?),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}
