//! The spool: makes messages durable, and reads them back. Floor 2.
//!
//! Owns the one thread that writes to the store, and the batches that it writes: whatever waits
//! while one sync lasts goes into the next. In simulations there is no thread, and whoever asks
//! has it done at once: beside a clock that stands still a thread has all the time in the world.
//! Knows nothing of turns, attempts or accounts: those are `queue`'s.

mod erased;
mod inbox;
mod owed;
mod writer;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    thread::JoinHandle,
};

use tokio::sync::oneshot;
pub use wavegate_spool::{Damage, Handle, Receipt, Shutdown, Usage};
use wavegate_spool::{
    Disk, Done, NewBody, Op, OpenError, Options, Part, ReadError, RealDisk, Recovered, Store,
    StoreError,
};

use self::{
    erased::{Marker, Read, StoredBody},
    inbox::Inbox,
    writer::{Order, Request, Shared, Write, Writer, lock},
};
use crate::{
    body::Stored,
    config::SpoolConfig,
    envelope::{DecodeError, Envelope},
    message::MessageId,
    world::{BootClock, SystemBoot},
};

/// Why the spool did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// No room: the quota, the reserve, or the disk.
    #[error("{0}")]
    Full(StoreError),
    /// The disk failed.
    #[error("{0}")]
    Store(StoreError),
    /// The relay is stopping.
    #[error("the spool is closed")]
    Closed,
}

impl From<StoreError> for SpoolError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::Full(error),
            error => Self::Store(error),
        }
    }
}

/// Why a message of the spool cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its bytes.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its envelope.
    #[error("envelope: {0}")]
    Envelope(#[from] DecodeError),
}

/// Figures for telemetry.
#[derive(Clone, Debug, Default)]
pub struct SpoolStats {
    /// Batches written.
    pub batches: u64,
    /// Operations in them.
    pub operations: u64,
    /// Operations that failed, those tried again included.
    pub failures: u64,
    /// Seconds that batches took, as counts in [`SYNC_BOUNDS_NS`] and beyond.
    pub seconds: Vec<u64>,
    /// Their sum in nanoseconds.
    pub nanos: u64,
}

/// Bounds of the distribution of the time that a batch takes, in nanoseconds.
pub const SYNC_BOUNDS_NS: [u64; 12] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    500_000_000,
    2_000_000_000,
];

/// The spool of this process.
pub struct Spool {
    orders: Orders,
    reader: Arc<dyn Read>,
    marker: Arc<dyn Marker>,
    shared: Arc<Shared>,
}

/// How orders come to the writer.
enum Orders {
    /// It is a thread, and has what waits as one batch.
    Thread { orders: Arc<Inbox>, writer: Mutex<Option<JoinHandle<()>>> },
    /// The caller does it himself, at once; none when it is closed.
    AtOnce(Mutex<Option<Box<dyn Write>>>),
}

/// An open spool and what was found in it.
pub struct Opened {
    /// The spool.
    pub spool: Spool,
    /// How the last process that had it ended.
    pub shutdown: Shutdown,
    /// Messages whose end of data may have been written when that process died.
    pub interrupted: Vec<MessageId>,
    /// Values by key.
    pub values: Vec<(Vec<u8>, Vec<u8>)>,
    /// What could not be read, and where it was put.
    pub damage: Vec<Damage>,
}

/// A message for the spool.
pub struct NewEntry {
    /// Its id.
    pub id: MessageId,
    /// Its encoded envelope.
    pub envelope: Vec<u8>,
    /// Its encoded progress.
    pub state: Vec<u8>,
    /// Its bytes.
    pub body: NewBody,
}

/// A note on disk that a message's end of data may have been written.
pub struct Mark(Box<dyn FnOnce(After) + Send>);

/// What is left when an attempt is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// The message: the note is taken back.
    Message,
    /// Nothing: a note on a message that is gone means nothing.
    Nothing,
}

impl Mark {
    /// What came of it is written down, or nothing was sent: the note is taken back.
    pub fn end(self) {
        (self.0)(After::Message);
    }

    /// That the message is gone is written down.
    fn gone(self) {
        (self.0)(After::Nothing);
    }
}

impl Spool {
    /// Opens the spool in a directory, which is made if it is not there, and starts its writer.
    /// `each` is called for every message.
    pub fn open(
        directory: &Path,
        config: &SpoolConfig,
        slots: u32,
        each: impl FnMut(Recovered<'_>),
    ) -> Result<Opened, OpenError> {
        make_durable(directory)
            .map_err(|source| OpenError::Io { path: directory.display().to_string(), source })?;
        let disk = RealDisk::new(directory);
        let options = Options {
            quota: config.quota,
            reserve: config.reserve,
            attempt_slots: slots,
            boot_id: SystemBoot.boot_id(),
            ..Options::default()
        };
        Self::open_with(disk, options, each, |writer| {
            let orders = Arc::new(Inbox::default());
            let inbox = Arc::clone(&orders);
            let thread = std::thread::Builder::new().name("spool".into());
            let writer = thread
                .spawn(move || writer.run(&inbox))
                .map_err(|source| OpenError::Io { path: "thread".into(), source })?;
            Ok(Orders::Thread { orders, writer: Mutex::new(Some(writer)) })
        })
    }

    /// Opens the spool on any disk, without a thread: what is asked is done when the call
    /// returns, one request after the other. Somebody must call `tend` about once a second.
    pub fn open_at_once<D: Disk>(
        disk: D,
        options: Options,
        each: impl FnMut(Recovered<'_>),
    ) -> Result<Opened, OpenError> {
        Self::open_with(disk, options, each, |writer| {
            Ok(Orders::AtOnce(Mutex::new(Some(Box::new(writer)))))
        })
    }

    fn open_with<D: Disk>(
        disk: D,
        options: Options,
        each: impl FnMut(Recovered<'_>),
        start: impl FnOnce(Writer<D>) -> Result<Orders, OpenError>,
    ) -> Result<Opened, OpenError> {
        let opened = Store::open(disk, options, each)?;
        let store = opened.store;
        let shared = Arc::new(Shared::default());
        shared.note_usage(store.usage());
        let reader = Arc::new(store.reader());
        let marker = Arc::new(store.attempts());
        let orders = start(Writer::new(store, Arc::clone(&shared)))?;
        Ok(Opened {
            spool: Self { orders, reader, marker, shared },
            shutdown: opened.shutdown,
            interrupted: opened.interrupted.into_iter().filter_map(MessageId::from_key).collect(),
            values: opened.values,
            damage: opened.damage,
        })
    }

    /// Makes messages durable, all or none; with them goes `beside`.
    pub async fn accept(
        &self,
        entries: Vec<NewEntry>,
        beside: Vec<Op>,
    ) -> Result<Vec<(Handle, Receipt)>, SpoolError> {
        let count = entries.len();
        let accepts = entries.into_iter().map(|entry| Op::Accept {
            key: entry.id.key(),
            envelope: entry.envelope,
            state: entry.state,
            body: entry.body,
        });
        let results = self.ask(accepts.chain(beside).collect()).await?;
        let mut taken = Vec::with_capacity(count);
        let mut failure = None;
        for result in results.into_iter().take(count) {
            match result {
                Ok(Done::Accepted(handle, receipt)) => taken.push((handle, receipt)),
                Ok(Done::Done) => unreachable!("a message that is accepted has a handle"),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => Ok(taken),
            Some(error) => {
                let undo = taken.into_iter().map(|(handle, _)| Op::Remove { handle });
                self.submit(undo.collect(), Vec::new());
                Err(error.into())
            }
        }
    }

    /// Has operations done, in order, at some time soon; they are tried again until they are.
    /// `marks` are taken back then.
    pub fn submit(&self, ops: Vec<Op>, marks: Vec<Mark>) {
        if ops.is_empty() && marks.is_empty() {
            return;
        }
        // A writer that has ended has closed the store: the relay is stopping.
        let _ = self.orders.give(Order::Do(Request { ops, marks, done: None }));
    }

    /// Whether whoever asks has it done himself: nothing here ever waits for a disk.
    pub fn is_at_once(&self) -> bool {
        matches!(self.orders, Orders::AtOnce(_))
    }

    /// Does what the thread does by itself: tries again what failed, syncs the journal.
    pub fn tend(&self) {
        if let Orders::AtOnce(writer) = &self.orders
            && let Some(writer) = &mut *lock(writer)
        {
            writer.tend();
        }
    }

    /// Has operations done and synced.
    pub async fn apply(&self, mut ops: Vec<Op>) -> Result<(), SpoolError> {
        ops.push(Op::SyncJournal);
        for result in self.ask(ops).await? {
            result?;
        }
        Ok(())
    }

    async fn ask(&self, ops: Vec<Op>) -> Result<Vec<Result<Done, StoreError>>, SpoolError> {
        let (done, answer) = oneshot::channel();
        let request = Request { ops, marks: Vec::new(), done: Some(done) };
        self.orders.give(Order::Do(request))?;
        answer.await.map_err(|_| SpoolError::Closed)
    }

    /// Notes on disk that an attempt is under way. Survives the process, not the machine.
    pub fn mark(&self, id: MessageId) -> Result<Mark, SpoolError> {
        Ok(self.marker.mark(id)?)
    }

    /// The envelope of a message and its bytes. Blocks on the disk.
    pub fn load(&self, handle: Handle) -> Result<(Envelope, Arc<dyn Stored>), LoadError> {
        let envelope = Envelope::decode(&self.reader.envelope(handle)?)?;
        let length = self.reader.body_len(handle)?;
        let reader = Arc::clone(&self.reader);
        Ok((envelope, Arc::new(StoredBody { reader, handle, length })))
    }

    /// Whether all of a message is as it was written. Blocks on the disk.
    pub fn check(&self, handle: Handle) -> Result<(), LoadError> {
        Ok(self.reader.check(handle)?)
    }

    /// Changes the bounds, as a reload may.
    pub fn resize(&self, config: &SpoolConfig) {
        let (quota, reserve) = (config.quota, config.reserve);
        let _ = self.orders.give(Order::Resize { quota, reserve });
    }

    /// Writes down what is to be known of what an earlier process left in doubt. Until that is
    /// durable, the next opening finds it in doubt again.
    pub fn recovered(&self, ops: Vec<Op>) {
        let _ = self.orders.give(Order::Recovered(ops));
    }

    /// What is in it, as of the last batch.
    pub fn usage(&self) -> Usage {
        lock(&self.shared.usage).to_owned()
    }

    /// Figures for telemetry.
    pub fn stats(&self) -> SpoolStats {
        let shared = &self.shared;
        SpoolStats {
            batches: shared.batches.load(Relaxed),
            operations: shared.operations.load(Relaxed),
            failures: shared.failures.load(Relaxed),
            seconds: shared.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
            nanos: shared.nanos.load(Relaxed),
        }
    }

    /// Whether the last batch failed: what must be kept cannot be.
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Relaxed)
    }

    /// Does what was ordered, syncs all, and closes the store. Blocks.
    pub fn close(&self) {
        match &self.orders {
            Orders::Thread { orders, writer } => {
                let _ = orders.push(Order::Close);
                let writer = lock(writer).take();
                if let Some(writer) = writer
                    && writer.join().is_err()
                {
                    tracing::error!("the spool's writer panicked");
                }
            }
            Orders::AtOnce(writer) => {
                let writer = lock(writer).take();
                if let Some(writer) = writer {
                    writer.close();
                }
            }
        }
    }
}

impl Orders {
    fn give(&self, order: Order) -> Result<(), SpoolError> {
        match self {
            Self::Thread { orders, .. } => orders.push(order).map_err(|_| SpoolError::Closed),
            Self::AtOnce(writer) => match &mut *lock(writer) {
                Some(writer) => {
                    writer.take(order);
                    Ok(())
                }
                None => Err(SpoolError::Closed),
            },
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close();
    }
}

/// Makes the directory, and has its name and its parent's outlive a loss of power: what is synced
/// in a directory that is lost is lost too.
fn make_durable(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for parent in directory.ancestors().skip(1).take(2) {
        if parent.as_os_str().is_empty() {
            break;
        }
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// A part of a body in memory.
pub fn part(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Part {
    Arc::new(bytes)
}
