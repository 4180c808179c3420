//! Who writes: a thread with its batches, or whoever asks, in simulations.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use wavegate_spool::{Disk, Done, NewBody, Op, Store, StoreError, Usage};

use super::{Mark, SYNC_BOUNDS_NS, inbox::Inbox, owed::Owed};

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

impl Request {
    /// Bytes of bodies in it.
    fn bytes(&self) -> u64 {
        let parts = self.ops.iter().filter_map(|op| match op {
            Op::Accept { body: NewBody::Parts(parts), .. } => Some(parts),
            _ => None,
        });
        parts.flatten().map(|part| (**part).as_ref().len() as u64).sum()
    }
}

/// Closes the inbox when it goes.
struct Closing<'a>(&'a Inbox);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

pub(super) enum Order {
    Do(Request),
    Resize {
        quota: u64,
        reserve: u64,
    },
    /// What was in doubt at the opening is dealt with, once these are durable.
    Recovered(Vec<Op>),
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
    store: Store<D>,
    shared: Arc<Shared>,
    /// What failed and must be done all the same.
    owed: Owed,
    /// When that was tried last.
    tried: Instant,
    /// What was in doubt at the opening is written down, but not durable yet.
    recovering: bool,
}

impl<D: Disk> Writer<D> {
    pub(super) fn new(store: Store<D>, shared: Arc<Shared>) -> Self {
        let tried = Instant::now();
        Self { store, shared, owed: Owed::default(), tried, recovering: false }
    }

    pub(super) fn run(mut self, inbox: &Inbox) {
        let mut unsynced = false;
        let mut synced = Instant::now();
        let mut asked = 1;
        // However it ends: nobody waits for a writer that has gone.
        let _end = Closing(inbox);
        loop {
            let owes = self.recovering || !self.owed.is_empty();
            let patience = match (owes, unsynced) {
                (true, _) => Some(RETRY),
                (false, true) => Some(JOURNAL_SYNC),
                (false, false) => None,
            };
            let orders = inbox.take(asked, patience);
            let (requests, closing) = self.sort(orders);
            let now = requests.iter().filter(|request| request.done.is_some()).count();
            // What nobody waited for says nothing of how many come together.
            asked = if now > 0 { now } else { asked };
            unsynced |= self.commit_in_batches(requests);
            self.end_recovery();
            if unsynced && synced.elapsed() >= JOURNAL_SYNC {
                unsynced = self.sync();
                synced = Instant::now();
            }
            self.shared.note_usage(self.store.usage());
            if closing {
                break;
            }
        }
        let (requests, _) = self.sort(inbox.close());
        self.commit_in_batches(requests);
        self.close();
    }

    /// Does what is no request, and says whether it is the end.
    fn sort(&mut self, orders: Vec<Order>) -> (Vec<Request>, bool) {
        let mut requests = Vec::with_capacity(orders.len());
        let mut closing = false;
        for order in orders {
            match order {
                Order::Do(request) => requests.push(request),
                Order::Resize { quota, reserve } => self.store.resize(quota, reserve),
                Order::Recovered(ops) => requests.push(self.recovered(ops)),
                Order::Close => closing = true,
            }
        }
        (requests, closing)
    }

    /// Commits requests and what is owed; says whether there was anything.
    fn commit_in_batches(&mut self, requests: Vec<Request>) -> bool {
        let any = !requests.is_empty() || !self.owed.is_empty();
        let (mut batch, mut ops, mut bytes) = (Vec::with_capacity(requests.len()), 0, 0);
        for request in requests {
            ops += request.ops.len();
            bytes += request.bytes();
            batch.push(request);
            if ops >= BATCH || bytes >= BATCH_BYTES {
                self.commit(std::mem::take(&mut batch));
                (ops, bytes) = (0, 0);
            }
        }
        if any {
            self.commit(batch);
        }
        any
    }

    fn recovered(&mut self, ops: Vec<Op>) -> Request {
        self.recovering = true;
        Request { ops, marks: Vec::new(), done: None }
    }

    /// Has the store forget what was in doubt, once what is to be known of it is durable.
    fn end_recovery(&mut self) {
        if !self.recovering || !self.owed.is_empty() {
            return;
        }
        match self.store.sync_journal().and_then(|()| self.store.end_recovery()) {
            Ok(()) => self.recovering = false,
            Err(error) => tracing::warn!(%error, "the recovery of the spool is not written yet"),
        }
    }

    /// Once more what failed, then the end.
    pub(super) fn close(mut self) {
        let (ops, marks) = self.owed.take();
        if !ops.is_empty() || !marks.is_empty() {
            self.commit(vec![Request { ops, marks, done: None }]);
        }
        self.end_recovery();
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the spool is not closed in order; nothing is lost");
        }
    }

    /// Commits all requests as one batch and answers each.
    fn commit(&mut self, requests: Vec<Request>) {
        let begun = Instant::now();
        let mut requests = self.with_owed(requests);
        if requests.is_empty() {
            return;
        }
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
                None if failures == 0 => {
                    let gone = ops.iter().any(|op| matches!(op, Op::Remove { .. }));
                    marks.into_iter().for_each(if gone { Mark::gone } else { Mark::end });
                }
                None => {
                    let left = ops.into_iter().zip(&results).filter(|(_, result)| is_disk(result));
                    self.owed.add(left.map(|(op, _)| op), marks);
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
            (None, true) if self.owed.is_empty() => {
                self.shared.failing.store(false, Relaxed);
                tracing::info!("the spool can be written again");
            }
            _ => {}
        }
        self.shared.note_batch(count, begun.elapsed());
    }

    /// What is owed goes first, if it was not tried just now; else what nobody waits for joins it.
    fn with_owed(&mut self, mut requests: Vec<Request>) -> Vec<Request> {
        if self.owed.is_empty() {
            return requests;
        }
        if self.tried.elapsed() >= RETRY {
            self.tried = Instant::now();
            let (ops, marks) = self.owed.take();
            requests.insert(0, Request { ops, marks, done: None });
            return requests;
        }
        let mut asked = Vec::with_capacity(requests.len());
        for request in requests {
            if request.done.is_some() {
                self.owed.drop_older(&request.ops);
                asked.push(request);
            } else {
                self.owed.add(request.ops, request.marks);
            }
        }
        asked
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
            Order::Do(request) => self.commit(vec![request]),
            Order::Resize { quota, reserve } => self.store.resize(quota, reserve),
            Order::Recovered(ops) => {
                let request = self.recovered(ops);
                self.commit(vec![request]);
                self.end_recovery();
            }
            Order::Close => {}
        }
        self.shared.note_usage(self.store.usage());
    }

    fn tend(&mut self) {
        if !self.owed.is_empty() {
            self.commit(Vec::new());
        }
        self.end_recovery();
        self.sync();
        self.shared.note_usage(self.store.usage());
    }

    fn close(self: Box<Self>) {
        Self::close(*self);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
