//! Who writes: a thread with its batches, or whoever asks, in simulations.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use wavegate_spool::{Disk, Done, NewBody, Op, Store, StoreError, Usage};

use super::{Mark, SYNC_BOUNDS_NS};

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

/// What is asked of the writer: operations that share their fate with nobody else's.
pub(super) struct Request {
    pub(super) ops: Vec<Op>,
    pub(super) marks: Vec<Mark>,
    pub(super) done: Option<oneshot::Sender<Vec<Result<Done, StoreError>>>>,
}

pub(super) enum Order {
    Do(Request),
    Resize {
        quota: u64,
        reserve: u64,
    },
    /// The messages whose attempts were interrupted are dealt with, once these are durable.
    Forget(Vec<Op>),
    Close,
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) usage: Mutex<Usage>,
    pub(super) batches: AtomicU64,
    pub(super) operations: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) buckets: [AtomicU64; SYNC_BOUNDS_NS.len() + 1],
    pub(super) nanos: AtomicU64,
    pub(super) failing: AtomicBool,
}

impl Shared {
    pub(super) fn note_usage(&self, usage: Usage) {
        *lock(&self.usage) = usage;
    }

    pub(super) fn note_batch(&self, operations: usize, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.batches.fetch_add(1, Relaxed);
        self.operations.fetch_add(operations as u64, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        let bucket = SYNC_BOUNDS_NS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
    }
}

/// What writes.
pub(super) struct Writer<D: Disk> {
    pub(super) store: Store<D>,
    pub(super) shared: Arc<Shared>,
    /// What failed and must be done all the same.
    pub(super) again: Vec<Request>,
}

impl<D: Disk> Writer<D> {
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Order>) {
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

    pub(super) fn close(self) {
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
pub(super) trait Write: Send {
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
