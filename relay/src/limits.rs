//! The limits that throttling policies name and the host keeps. Floor 3.
//!
//! One mutex around one table: all limits of an attempt are taken at once or none. Whoever does
//! not conform waits in the queue of the *one* limit that blocks it, first come first served,
//! and is asked again when that limit lets the next one through. One whom another limit blocks
//! then moves to that queue, among those who came as early as he. Nothing polls.
//!
//! A key belongs to the policy that named it. Time is `tokio::time::Instant`.

mod table;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use table::{Table, Turn};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    decision::{Lesson, LimitSet},
    plan::Timestamp,
};

/// What one policy wants charged. The scope keeps policies' keys apart.
#[derive(Clone, Debug)]
pub struct Charge {
    /// Name of the policy.
    pub scope: Arc<str>,
    /// Its limits.
    pub limits: LimitSet,
}

/// Why an attempt could not take its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The wait would be, or was, too long.
    #[error("limit {key:?} of policy {scope:?} is reached")]
    Reached {
        /// The policy.
        scope: String,
        /// The key.
        key: String,
    },
    /// Too many attempts wait already.
    #[error("{limit} attempts wait already (limits.direct_queue)")]
    QueueFull {
        /// The bound.
        limit: usize,
    },
    /// Every cell of the table is in use.
    #[error("all {limit} cells of the table of limits are in use (limits.limit_keys)")]
    TableFull {
        /// The bound.
        limit: usize,
    },
}

/// The table of limits, shared by all workers.
pub struct Limits {
    table: Mutex<Table>,
    epoch: Instant,
    waited: AtomicU64,
    blocked: AtomicU64,
}

/// What an attempt holds: concurrency until dropped, and the right to a refund.
pub struct Permit {
    limits: Arc<Limits>,
    taken: Vec<table::Taken>,
}

/// Figures for telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitStats {
    /// Cells in the table.
    pub keys: usize,
    /// Attempts that wait now.
    pub waiting: usize,
    /// Attempts that had to wait, ever.
    pub waited: u64,
    /// Attempts that gave up, ever.
    pub blocked: u64,
}

impl Limits {
    /// An empty table of at most `keys` cells, with at most `queue` waiting attempts.
    pub fn new(keys: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table::new(keys, queue)),
            epoch: Instant::now(),
            waited: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
        })
    }

    /// Changes the bounds, as a reload may.
    pub fn resize(&self, keys: usize, queue: usize) {
        self.lock().resize(keys, queue);
    }

    /// Takes all limits of `charges` now, or none.
    pub fn try_acquire(self: &Arc<Self>, charges: &[Charge]) -> Result<Permit, LimitError> {
        if charges.is_empty() {
            return Ok(Permit { limits: Arc::clone(self), taken: Vec::new() });
        }
        let mut table = self.lock();
        match table.take(charges, self.now(), None) {
            Ok(taken) => Ok(Permit { limits: Arc::clone(self), taken }),
            Err(refusal) => Err(refusal.error),
        }
    }

    /// Takes all limits of `charges`, waiting in line until `deadline` if need be.
    pub async fn acquire(
        self: &Arc<Self>,
        charges: &[Charge],
        deadline: Instant,
    ) -> Result<Permit, LimitError> {
        let mut place = Place { limits: Arc::clone(self), turn: None };
        loop {
            // The lock must not live across the wait, so each round is a step of its own.
            let outcome = match self.step(charges, &mut place) {
                Ok(Progress::Taken(taken)) => {
                    return Ok(Permit { limits: Arc::clone(self), taken });
                }
                Ok(Progress::Wait(wait)) => wait.until(deadline).await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.blocked.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        }
    }

    /// One try; on refusal the attempt stands in the queue of what blocks it.
    fn step(&self, charges: &[Charge], place: &mut Place) -> Result<Progress, LimitError> {
        let mut table = self.lock();
        let refusal = match table.take(charges, self.now(), place.turn) {
            Ok(taken) => return Ok(Progress::Taken(taken)),
            Err(refusal) => refusal,
        };
        let Some(slot) = refusal.slot else { return Err(refusal.error) };
        let (turn, waker) = match place.turn {
            Some(turn) if turn.slot == slot => (turn, table.wait_again(turn)),
            other => {
                match place.turn.take() {
                    Some(turn) => table.leave(turn),
                    None => _ = self.waited.fetch_add(1, Ordering::Relaxed),
                }
                table.enqueue(slot, other)?
            }
        };
        place.turn = Some(turn);
        let ready = refusal.ready.filter(|_| table.is_head(turn)).map(|nanos| self.instant(nanos));
        Ok(Progress::Wait(Wait { waker, ready, error: refusal.error }))
    }

    /// What a policy learned: pauses and slower rates for its own keys.
    pub fn learn(&self, scope: &Arc<str>, lessons: &[Lesson], wall_now: Timestamp) {
        let mut table = self.lock();
        let now = self.now();
        let boot = |until: Timestamp| {
            let ms = until.0.saturating_sub(wall_now.0);
            now.saturating_add(ms.saturating_mul(1_000_000))
        };
        for lesson in lessons {
            match lesson {
                Lesson::Pause { key, until } => table.pause(scope, key, boot(*until), now),
                Lesson::Slow { key, factor, until } => {
                    table.slow(scope, key, *factor, boot(*until), now);
                }
            }
        }
    }

    /// When a key lets somebody through again, if the last one whom it refused was told a time.
    pub fn ready(&self, scope: &str, key: &str) -> Option<Instant> {
        let ready = self.lock().ready(scope, key);
        ready.map(|nanos| self.instant(nanos))
    }

    /// Figures for telemetry.
    pub fn stats(&self) -> LimitStats {
        let table = self.lock();
        LimitStats {
            keys: table.len(),
            waiting: table.waiting(),
            waited: self.waited.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.epoch + std::time::Duration::from_nanos(nanos)
    }
}

impl Permit {
    /// Gives the charged rates back: the attempt sent not one byte.
    pub fn refund(mut self) {
        let limits = Arc::clone(&self.limits);
        limits.lock().refund(&mut self.taken);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.taken.iter().any(table::Taken::is_concurrency) {
            self.limits.lock().release(&self.taken);
        }
    }
}

enum Progress {
    Taken(Vec<table::Taken>),
    Wait(Wait),
}

/// A place in a queue; leaving it lets the next one try.
struct Place {
    limits: Arc<Limits>,
    turn: Option<Turn>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(turn) = self.turn {
            self.limits.lock().leave(turn);
        }
    }
}

struct Wait {
    waker: oneshot::Receiver<()>,
    ready: Option<Instant>,
    error: LimitError,
}

impl Wait {
    /// Waits to be the next, or for the time when the limit conforms again.
    async fn until(self, deadline: Instant) -> Result<(), LimitError> {
        let ready = self.ready.unwrap_or(deadline);
        if ready > deadline {
            return Err(self.error);
        }
        tokio::select! {
            biased;
            _ = self.waker => Ok(()),
            () = tokio::time::sleep_until(ready) => {
                if self.ready.is_some() { Ok(()) } else { Err(self.error) }
            }
        }
    }
}
