//! The spool: makes messages durable, and reads them back. Floor 2.
//!
//! Owns the one thread that writes to the store, and the batches that it writes: whatever waits
//! while one sync lasts goes into the next. In simulations there is no thread, and whoever asks
//! has it done at once: beside a clock that stands still a thread has all the time in the world.
//! Knows nothing of turns, attempts or accounts: those are `queue`'s.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use wavegate_spool::{
    AttemptMark, Attempts, Disk, Done, NewBody, Op, OpenError, Options, Part, ReadError, Reader,
    RealDisk, Recovered, Store, StoreError,
};
pub use wavegate_spool::{Damage, Handle, Receipt, Shutdown, Usage};

use crate::{
    body::Stored,
    config::SpoolConfig,
    envelope::{DecodeError, Envelope},
    message::MessageId,
};

/// How long the journal may stay unsynced: what was delivered in this time before a loss of
/// power is delivered twice.
const JOURNAL_SYNC: Duration = Duration::from_secs(1);
/// Operations in one batch: more would only make the first of them wait.
const BATCH: usize = 4096;
/// Bytes of bodies in one batch.
const BATCH_BYTES: u64 = 32 << 20;
/// Steps of housekeeping after each sync of the journal: enough to give back more than a disk
/// can take in that time.
const HOUSEKEEPING: usize = 16;
/// Pause after a failed write of what must be written: the disk may have room again.
const RETRY: Duration = Duration::from_secs(1);

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

/// What is asked of the writer: operations that share their fate with nobody else's.
struct Request {
    ops: Vec<Op>,
    marks: Vec<Mark>,
    done: Option<oneshot::Sender<Vec<Result<Done, StoreError>>>>,
}

enum Order {
    Do(Request),
    Resize {
        quota: u64,
        reserve: u64,
    },
    /// The messages whose attempts were interrupted are dealt with, once these are durable.
    Forget(Vec<Op>),
    Close,
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

#[derive(Default)]
struct Shared {
    usage: Mutex<Usage>,
    batches: AtomicU64,
    operations: AtomicU64,
    failures: AtomicU64,
    buckets: [AtomicU64; SYNC_BOUNDS_NS.len() + 1],
    nanos: AtomicU64,
    failing: AtomicBool,
}

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
    Thread { orders: mpsc::Sender<Order>, writer: Mutex<Option<JoinHandle<()>>> },
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
pub struct Mark(Box<dyn FnOnce() + Send>);

impl Mark {
    /// What came of it is written down, or nothing was sent: the note is taken back.
    pub fn end(self) {
        (self.0)();
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
            boot_id: boot_id(),
            ..Options::default()
        };
        Self::open_with(disk, options, each, |writer| {
            let (orders, inbox) = mpsc::channel();
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
        let orders = start(Writer { store, shared: Arc::clone(&shared), again: Vec::new() })?;
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

    /// Writes down what is to be known of interrupted messages, and then has the store forget that they
    /// were.
    pub fn forget_interrupted(&self, mut ops: Vec<Op>) {
        ops.push(Op::SyncJournal);
        let _ = self.orders.give(Order::Forget(ops));
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
                let _ = orders.send(Order::Close);
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
            Self::Thread { orders, .. } => orders.send(order).map_err(|_| SpoolError::Closed),
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

impl Shared {
    fn note_usage(&self, usage: Usage) {
        *lock(&self.usage) = usage;
    }

    fn note_batch(&self, operations: usize, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.batches.fetch_add(1, Relaxed);
        self.operations.fetch_add(operations as u64, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        let bucket = SYNC_BOUNDS_NS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
    }
}

/// What writes.
struct Writer<D: Disk> {
    store: Store<D>,
    shared: Arc<Shared>,
    /// What failed and must be done all the same.
    again: Vec<Request>,
}

impl<D: Disk> Writer<D> {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let mut unsynced = false;
        let mut synced = Instant::now();
        loop {
            let pause = if self.again.is_empty() { JOURNAL_SYNC } else { RETRY };
            let busy = unsynced || !self.again.is_empty();
            let first = if busy { inbox.recv_timeout(pause).ok() } else { inbox.recv().ok() };
            let mut closing = first.is_none() && !busy;
            let mut batch = std::mem::take(&mut self.again);
            for order in first.into_iter().chain(inbox.try_iter()) {
                match order {
                    Order::Do(request) => batch.push(request),
                    Order::Resize { quota, reserve } => self.store.resize(quota, reserve),
                    Order::Forget(ops) => self.forget(ops),
                    Order::Close => closing = true,
                }
                if closing || is_full(&batch) {
                    break;
                }
            }
            if !batch.is_empty() {
                self.commit(batch);
                unsynced = true;
            }
            if unsynced && synced.elapsed() >= JOURNAL_SYNC {
                unsynced = self.sync();
                synced = Instant::now();
            }
            self.shared.note_usage(self.store.usage());
            if closing {
                break;
            }
        }
        self.close();
    }

    fn forget(&mut self, ops: Vec<Op>) {
        let failed =
            self.store.commit(ops).into_iter().find_map(|result| {
                result.err().filter(|error| !matches!(error, StoreError::Removed))
            });
        // Until it can be written they are named again at each start.
        if let Err(error) = failed.map_or_else(|| self.store.forget_interrupted(), Err) {
            tracing::warn!(%error, "interrupted attempts are not forgotten yet");
        }
    }

    fn close(self) {
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the spool is not closed in order; nothing is lost");
        }
    }

    /// Commits all requests as one batch and answers each.
    fn commit(&mut self, mut requests: Vec<Request>) {
        let begun = Instant::now();
        let counts: Vec<usize> = requests.iter().map(|request| request.ops.len()).collect();
        // What is tried again must not be used up by the first try.
        let mut ops = Vec::with_capacity(counts.iter().sum());
        for request in &mut requests {
            if request.done.is_some() {
                ops.append(&mut request.ops);
            } else {
                ops.extend(request.ops.iter().map(again));
            }
        }
        let count = ops.len();
        let mut results = self.store.commit(ops).into_iter();
        let mut failure = None;
        for (request, count) in requests.into_iter().zip(counts) {
            let results: Vec<_> = results.by_ref().take(count).collect();
            let failures = results.iter().filter(|result| is_disk(result)).count();
            self.shared.failures.fetch_add(failures as u64, Relaxed);
            let mut failed = results.iter().filter(|result| is_disk(result));
            failure = failure.or_else(|| failed.find_map(|result| result.as_ref().err().cloned()));
            let Request { ops, marks, done } = request;
            match done {
                Some(done) => {
                    // Whoever asked may have gone; what is accepted stays accepted.
                    let _ = done.send(results);
                    marks.into_iter().for_each(Mark::end);
                }
                None if failures == 0 => marks.into_iter().for_each(Mark::end),
                None => {
                    let left = ops.into_iter().zip(&results).filter(|(_, result)| is_disk(result));
                    let ops = left.map(|(op, _)| op).collect();
                    self.again.push(Request { ops, marks, done: None });
                }
            }
        }
        match (failure, self.shared.failing.load(Relaxed)) {
            (Some(error), false) => {
                self.shared.failing.store(true, Relaxed);
                tracing::error!(
                    %error,
                    "the spool cannot be written; nothing new is promised until it can"
                );
            }
            (None, true) => {
                self.shared.failing.store(false, Relaxed);
                tracing::info!("the spool can be written again");
            }
            _ => {}
        }
        self.shared.note_batch(count, begun.elapsed());
    }

    /// Syncs the journal and does a piece of housekeeping; says whether more is to do.
    fn sync(&mut self) -> bool {
        let keep = |store: &mut Store<D>| {
            store.sync_journal()?;
            for _ in 0..HOUSEKEEPING {
                if !store.maintain()? {
                    return Ok(false);
                }
            }
            Ok::<bool, StoreError>(true)
        };
        keep(&mut self.store).unwrap_or_else(|error| {
            tracing::warn!(%error, "housekeeping of the spool failed; it is tried again");
            true
        })
    }
}

/// Writing at once, whatever the disk.
trait Write: Send {
    fn take(&mut self, order: Order);
    fn tend(&mut self);
    fn close(self: Box<Self>);
}

impl<D: Disk> Write for Writer<D> {
    fn take(&mut self, order: Order) {
        match order {
            Order::Do(request) => {
                let mut batch = std::mem::take(&mut self.again);
                batch.push(request);
                self.commit(batch);
            }
            Order::Resize { quota, reserve } => self.store.resize(quota, reserve),
            Order::Forget(ops) => self.forget(ops),
            Order::Close => {}
        }
        self.shared.note_usage(self.store.usage());
    }

    fn tend(&mut self) {
        if !self.again.is_empty() {
            let batch = std::mem::take(&mut self.again);
            self.commit(batch);
        }
        self.sync();
        self.shared.note_usage(self.store.usage());
    }

    fn close(mut self: Box<Self>) {
        // As the thread does: once more what failed, then the end.
        self.tend();
        Self::close(*self);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_full(batch: &[Request]) -> bool {
    let ops = || batch.iter().flat_map(|request| &request.ops);
    let bytes = |op: &Op| match op {
        Op::Accept { body: NewBody::Parts(parts), .. } => {
            parts.iter().map(|part| (**part).as_ref().len() as u64).sum()
        }
        _ => 0,
    };
    ops().count() >= BATCH || ops().map(bytes).sum::<u64>() >= BATCH_BYTES
}

/// A failure that time may heal, as against one of an operation that makes no sense any more.
fn is_disk(result: &Result<Done, StoreError>) -> bool {
    matches!(result, Err(StoreError::Io { .. } | StoreError::Full { .. }))
}

/// The same operation once more.
fn again(op: &Op) -> Op {
    match op {
        Op::State { handle, state } => Op::State { handle: *handle, state: state.clone() },
        Op::Remove { handle } => Op::Remove { handle: *handle },
        Op::Value { key, value } => Op::Value { key: key.clone(), value: value.clone() },
        Op::SyncJournal => Op::SyncJournal,
        Op::Accept { .. } => unreachable!("whoever has a message accepted waits for it"),
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

/// The kernel's name for this run of the machine.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut id = [0; 16];
    let digits = text.bytes().filter_map(|byte| char::from(byte).to_digit(16));
    for (at, digit) in digits.take(32).enumerate() {
        id[at / 2] = id[at / 2] << 4 | u8::try_from(digit).unwrap_or(0);
    }
    id
}

/// A part of a body in memory.
pub fn part(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Part {
    Arc::new(bytes)
}

/// Reading, whatever the disk.
trait Read: Send + Sync {
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
trait Marker: Send + Sync {
    fn mark(&self, id: MessageId) -> Result<Mark, StoreError>;
}

impl<D: Disk> Marker for Attempts<D> {
    fn mark(&self, id: MessageId) -> Result<Mark, StoreError> {
        let mark: AttemptMark<D> = self.begin(&id.key())?;
        Ok(Mark(Box::new(move || {
            if let Err(error) = mark.end() {
                tracing::warn!(%error, "that an attempt has ended cannot be noted");
            }
        })))
    }
}

struct StoredBody {
    reader: Arc<dyn Read>,
    handle: Handle,
    length: u64,
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
