//! What events are counted in: a ledger an instance, counters an upstream and a listener, each
//! found by name. Floor 4.
//!
//! Names come from the configuration, so there are few. The number that ever existed is bounded
//! all the same: beyond it everything new is counted together as [`OTHER`].

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use prometheus::{Histogram, HistogramOpts};

use crate::{
    event::{LoginFailure, Outcome},
    tls::Counts,
};

/// The label of what has no name: mail of no instance, mail that never got a route. No name in
/// a configuration has parentheses.
pub(super) const NONE: &str = "(none)";
/// The label of all names beyond the bound.
pub(super) const OTHER: &str = "(other)";
/// Seconds from the end of data to the reply: from a fast upstream to one that takes a
/// minute.
const HANDOFF_SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];

/// Something counted by name. Entries are never taken away: a counter must not go back.
pub(super) struct Table<T> {
    limit: usize,
    entries: RwLock<BTreeMap<Arc<str>, Arc<T>>>,
}

impl<T: Default> Table<T> {
    /// An empty table of at most `limit` names, and [`OTHER`].
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, entries: RwLock::default() }
    }

    /// The entry of a name, made where it is new.
    pub(super) fn of(&self, name: &str) -> Arc<T> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(name) {
            return Arc::clone(entry);
        }
        drop(entries);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        // It may have come meanwhile; and `OTHER` has its place beyond the bound.
        let known = entries.contains_key(name) || entries.len() < self.limit;
        let name = if known { name } else { OTHER };
        Arc::clone(entries.entry(name.into()).or_default())
    }

    /// All entries by name.
    pub(super) fn all(&self) -> Vec<(Arc<str>, Arc<T>)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(name, entry)| (Arc::clone(name), Arc::clone(entry))).collect()
    }
}

/// What was received of one instance and what became of it: always one moment's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Messages received.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their recipients.
    pub received: u64,
    /// What became of recipients, in the order of [`Outcome::ALL`].
    outcomes: [u64; Outcome::ALL.len()],
}

impl Account {
    /// Recipients that came to this end.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Recipients that were received and have no end yet. Below zero only if the relay settled
    /// what it had not received, which would be a bug and is better seen than hidden.
    pub fn in_flight(&self) -> i64 {
        self.received.wrapping_sub(self.outcomes.iter().sum()).cast_signed()
    }
}

/// The ledger of one instance.
#[derive(Default)]
pub(super) struct Ledger {
    /// One lock, so that a reading sees each message either in flight or settled.
    account: Mutex<Account>,
    pub(super) against_plan: AtomicU64,
    pub(super) in_doubt: AtomicU64,
}

impl Ledger {
    pub(super) fn receive(&self, recipients: u64, bytes: u64) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.messages += 1;
        account.bytes += bytes;
        account.received += recipients;
    }

    pub(super) fn settle(&self, outcome: Outcome, recipients: u64) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.outcomes[outcome as usize] += recipients;
    }

    pub(super) fn account(&self) -> Account {
        *self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is counted about one upstream. Its pool counts its connections itself.
pub(super) struct UpstreamCounts {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    pub(super) retried: AtomicU64,
    pub(super) verified: Verified,
    pub(super) handoff: Histogram,
}

/// What came of asking about recipients.
#[derive(Default)]
pub(super) struct Verified {
    pub(super) taken: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) unanswered: AtomicU64,
}

impl UpstreamCounts {
    pub(super) fn settle(&self, outcome: Outcome, recipients: u64) {
        self.outcomes[outcome as usize].fetch_add(recipients, Relaxed);
    }

    pub(super) fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Relaxed)
    }
}

impl Default for UpstreamCounts {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            retried: AtomicU64::default(),
            verified: Verified::default(),
            handoff: histogram(&HANDOFF_SECONDS),
        }
    }
}

/// What is counted about one listener.
#[derive(Default)]
pub(super) struct ListenerCounts {
    /// Bound sockets: a reload may bind the next before it closes the last.
    pub(super) sockets: AtomicI64,
    pub(super) connections: AtomicI64,
    pub(super) opened: AtomicU64,
    pub(super) tls: Counts,
    pub(super) logins: AtomicU64,
    /// In the order of [`LoginFailure::ALL`].
    pub(super) logins_failed: [AtomicU64; LoginFailure::ALL.len()],
}

/// A histogram with these buckets. Name and labels are put to it when it is read.
pub(super) fn histogram(buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new("seconds", "Seconds.").buckets(buckets.to_vec());
    Histogram::with_opts(options).expect("buckets go up and the name is a name")
}
