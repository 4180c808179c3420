//! Reading and marking whatever the disk: so that nobody above is generic over it.

use std::{fmt, io, sync::Arc};

use wavegate_spool::{AttemptMark, Attempts, Disk, Handle, ReadError, Reader, StoreError};

use super::{After, Mark};
use crate::{body::Stored, message::MessageId};

/// Reading, whatever the disk.
pub(super) trait Read: Send + Sync {
    fn envelope(&self, handle: Handle) -> Result<Vec<u8>, ReadError>;
    fn body_len(&self, handle: Handle) -> Result<u64, ReadError>;
    fn read_body(&self, handle: Handle, at: u64, buffer: &mut [u8]) -> Result<usize, ReadError>;
    fn check(&self, handle: Handle) -> Result<(), ReadError>;
}

impl<D: Disk> Read for Reader<D> {
    fn envelope(&self, handle: Handle) -> Result<Vec<u8>, ReadError> {
        self.envelope(handle)
    }

    fn body_len(&self, handle: Handle) -> Result<u64, ReadError> {
        self.body_len(handle)
    }

    fn read_body(&self, handle: Handle, at: u64, buffer: &mut [u8]) -> Result<usize, ReadError> {
        self.read_body(handle, at, buffer)
    }

    fn check(&self, handle: Handle) -> Result<(), ReadError> {
        self.check(handle)
    }
}

/// Marking, whatever the disk.
pub(super) trait Marker: Send + Sync {
    fn mark(&self, id: MessageId) -> Result<Mark, StoreError>;
}

impl<D: Disk> Marker for Attempts<D> {
    fn mark(&self, id: MessageId) -> Result<Mark, StoreError> {
        let mark: AttemptMark<D> = self.begin(&id.key())?;
        Ok(Mark(Box::new(move |after| match after {
            After::Nothing => mark.gone(),
            After::Message => {
                if let Err(error) = mark.end() {
                    tracing::warn!(%error, "that an attempt has ended cannot be noted");
                }
            }
        })))
    }
}

pub(super) struct StoredBody {
    pub(super) reader: Arc<dyn Read>,
    pub(super) handle: Handle,
    pub(super) length: u64,
}

impl Stored for StoredBody {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read_body(self.handle, offset, buffer).map_err(io::Error::other)
    }
}

impl fmt::Debug for StoredBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} bytes", self.handle, self.length)
    }
}
