//! A durable store of messages: what the spool stands on. Floor 1.
//!
//! Owns a directory: body segments, the journal that says which messages are live and in what
//! state, the slots that say which attempts were under way, and what was found damaged. One
//! process owns it, one thread writes ([`Store`]), any number of threads read ([`Reader`]) and
//! mark attempts ([`Attempts`]). It knows nothing of SMTP, of time or of who calls it: envelopes,
//! states and values are bytes.
//!
//! It promises: what [`Store::commit`] gave a [`Receipt`] for is there after any crash, byte for
//! byte, until it is removed; what cannot be read is reported, never skipped. The order of writes
//! and why each crash point is safe is in `INTERNALS.md`.

mod attempts;
mod commit;
mod disk;
mod error;
mod format;
mod journal;
mod load;
mod maintain;
mod reader;
mod recover;
mod segment;
mod slab;
mod snapshot;
mod store;
mod verify;

pub use attempts::{AttemptMark, Attempts};
pub use disk::{
    Disk, DiskFile, How, LockError,
    faulty::{Fault, FaultyDisk, Kind},
    memory::MemoryDisk,
    real::RealDisk,
};
pub use error::{Damage, OpenError, ReadError, StoreError, What};
pub use format::{ENVELOPE_LIMIT, INLINE_LIMIT, MessageKey, STATE_LIMIT};
pub use reader::Reader;
pub use slab::{Handle, MESSAGE_LIMIT};
pub use store::{
    Done, NewBody, Op, Opened, Options, Part, Receipt, Recovered, Shutdown, Store, Usage,
};
pub use verify::{Report, verify};
