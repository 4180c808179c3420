//! What can go wrong, and whose fault it is. Floor 0.

use std::{io, sync::Arc};

use crate::format::{MessageKey, hex};

/// Why a store could not be opened. Nothing was changed that a later open would miss.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer program wrote it.
    #[error(
        "the store has format {found}, this program knows up to {known}: use the newer program"
    )]
    Newer {
        /// The version in the file.
        found: u32,
        /// The newest version that this code reads.
        known: u32,
    },
    /// Another process has it open.
    #[error("the store is owned by another process{}", pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    Owned {
        /// That process, if it wrote its number down.
        pid: Option<u32>,
    },
    /// The path is something else.
    #[error("the store's path is not a directory")]
    NotADirectory,
    /// Files cannot be written there.
    #[error("the store cannot be written: {path} ({source})")]
    ReadOnly {
        /// The file that was tried.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, source }
            }
            io::ErrorKind::NotADirectory => Self::NotADirectory,
            _ => Self::Io { path, source },
        }
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        let path = "store";
        match error {
            StoreError::Io { path, source } => {
                Self::io(path)(io::Error::new(source.kind(), source.to_string()))
            }
            other => Self::io(path)(io::Error::other(other)),
        }
    }
}

/// Why an operation was not done. The same error goes to all operations that shared the fate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room: the quota, the reserve or the disk. Removing messages makes room.
    #[error("the store is full: {what}")]
    Full {
        /// Which limit.
        what: &'static str,
    },
    /// The caller's fault: a part is longer than the format holds.
    #[error("{what} is too large")]
    TooLarge {
        /// Which part.
        what: &'static str,
    },
    /// The caller's fault: the message was removed before.
    #[error("the message is no longer in the store")]
    Removed,
    /// More attempts at once than there are slots.
    #[error("all attempt slots are in use")]
    NoSlot,
    /// The disk failed. Nothing of the operation is promised; the next one may work.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl StoreError {
    pub(crate) fn io(path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { what: "no space on the disk" }
            }
            _ => Self::Io { path, source: Arc::new(source) },
        }
    }
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was removed, before or during the reading.
    #[error("the message is no longer in the store")]
    Removed,
    /// Its bytes are not those that were stored.
    #[error("{file} at {offset}: damaged record")]
    Damaged {
        /// The file.
        file: String,
        /// Where its record begins.
        offset: u64,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl ReadError {
    pub(crate) fn io(path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Bytes that are not what was written. What else could be read was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file, from the store's directory.
    pub file: String,
    /// Where it begins.
    pub offset: u64,
    /// How long it is; 0 where that cannot be told.
    pub length: u64,
    /// What was there.
    pub what: What,
    /// The message, where it can be told.
    pub key: Option<MessageKey>,
    /// The file in `damaged/` that the bytes were copied to.
    pub set_aside: Option<String>,
}

/// What was damaged, and so what it may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The beginning of a file. Its contents were read all the same.
    Header,
    /// A message in a segment.
    Record,
    /// A message's bytes are cut off or its segment is gone.
    Missing,
    /// The file of a large body is gone, or has another length or other contents.
    Body,
    /// The journal: messages that were removed may have come back, states may be older ones.
    Journal,
    /// An attempt slot: an attempt that was under way may not be among the interrupted ones.
    Attempts,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            What::Header => "damaged file header",
            What::Record => "damaged message",
            What::Missing => "missing message",
            What::Body => "damaged or missing body",
            What::Journal => "damaged journal",
            What::Attempts => "damaged attempt slot",
        };
        write!(f, "{what}: {} at {}, {} bytes", self.file, self.offset, self.length)?;
        if let Some(key) = &self.key {
            write!(f, ", message {}", hex(key))?;
        }
        if let Some(copy) = &self.set_aside {
            write!(f, ", copied to {copy}")?;
        }
        Ok(())
    }
}
