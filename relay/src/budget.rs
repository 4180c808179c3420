//! The memory that the relay may take, and who has it. Floor 2.
//!
//! Owns one budget over everything that grows with load, what each thing is charged, and how short
//! of memory the relay counts as. What is charged is an estimate that is never too low, so that
//! the budget is kept without asking the allocator for anything; tests hold the estimates against
//! what the process really takes. Charges go in blocks, so a message costs a few additions.
//!
//! Beyond a share of the budget something is done without, in steps ([`Level`]); what was accepted
//! is never part of that. What each step means is the business of those who ask.
//!
//! Not charged, because clients cannot make it grow: guests (`memory` of a policy, for each worker),
//! control requests, upstream connections, and what the allocator keeps. That is the margin that
//! the host needs beyond the budget.

mod host;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

pub use host::{available, resident};

const KIB: usize = 1 << 10;

/// A connection: its state machine, its timers and its places in tables (measured: 4.4 kB).
pub const SESSION: usize = 8 * KIB;
/// A TLS handshake: a message of up to 64 KiB that came in part, in a buffer that grows (measured,
/// with 60 kB of one: 79 to 107 kB).
pub const HANDSHAKE: usize = 104 * KIB;
/// TLS on a connection: keys and tickets (measured: 16 kB just after the handshake), a record of
/// 16 KiB that came in part, and what goes out.
pub const SECURED: usize = 40 * KIB;
/// A message that is handed off while its client waits: the attempt.
pub const HANDOFF: usize = 16 * KIB;
/// A message in the spool: its place in the index and in the scheduler (measured: 188 bytes) and
/// what is known of its attempts.
pub const ENTRY: usize = 256;
/// A cell of a table of limits, with its key.
pub const CELL: usize = 512;
/// What a charge is rounded up to, so that it seldom changes.
const BLOCK: usize = 4 * KIB;

/// Of a budget of a hundred, what is in use when each step begins.
const SAVING: usize = 70;
const CLOSED: usize = 85;
const FULL: usize = 95;

/// How short of memory the relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not at all.
    Calm,
    /// Bodies of messages go to files, and idle clients are sent away sooner.
    Saving,
    /// No new connections either.
    Closed,
    /// No new messages either.
    Full,
}

impl Level {
    /// Its name in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Saving => "saving",
            Self::Closed => "closed",
            Self::Full => "full",
        }
    }
}

/// Who has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The process, before anybody connects.
    Base,
    /// Connections, TLS, envelopes that are being received.
    Sessions,
    /// Messages in memory, with their envelopes.
    Messages,
    /// The index of the messages in the spool.
    Spool,
    /// Tables of limits, lines that wait for the event log.
    Tables,
}

impl Use {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Base, Self::Sessions, Self::Messages, Self::Spool, Self::Tables];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Sessions => "sessions",
            Self::Messages => "messages",
            Self::Spool => "spool",
            Self::Tables => "tables",
        }
    }
}

/// The budget of a process.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    /// What counts where none is configured.
    found: AtomicUsize,
    used: AtomicUsize,
    by_use: [AtomicUsize; Use::ALL.len()],
}

impl Budget {
    /// A budget of so many bytes; without a number there is no bound until one is found.
    pub fn new(configured: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            limit: configured.unwrap_or(usize::MAX).into(),
            found: usize::MAX.into(),
            used: 0.into(),
            by_use: Default::default(),
        })
    }

    /// What counts from now on where none is configured.
    pub fn find(&self, found: usize, configured: Option<usize>) {
        self.found.store(found, Relaxed);
        self.resize(configured);
    }

    /// Changes the bound, as a reload may.
    pub fn resize(&self, configured: Option<usize>) {
        self.limit.store(configured.unwrap_or_else(|| self.found.load(Relaxed)), Relaxed);
    }

    /// The bound.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Bytes in use, in all.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes that one has.
    pub fn used_by(&self, who: Use) -> usize {
        self.by_use[who as usize].load(Relaxed)
    }

    /// How short of memory the relay is.
    pub fn level(&self) -> Level {
        let (used, hundredth) = (self.used(), self.limit() / 100);
        if used < hundredth * SAVING {
            Level::Calm
        } else if used < hundredth * CLOSED {
            Level::Saving
        } else if used < hundredth * FULL {
            Level::Closed
        } else {
            Level::Full
        }
    }

    /// Takes bytes for something that can do without, as long as there is plenty.
    pub fn try_take(&self, who: Use, bytes: usize) -> bool {
        let most = self.limit() / 100 * SAVING;
        if self.used.fetch_add(bytes, Relaxed).saturating_add(bytes) <= most {
            self.by_use[who as usize].fetch_add(bytes, Relaxed);
            return true;
        }
        self.used.fetch_sub(bytes, Relaxed);
        false
    }

    /// Takes bytes for what cannot do without.
    pub fn take(&self, who: Use, bytes: usize) {
        self.used.fetch_add(bytes, Relaxed);
        self.by_use[who as usize].fetch_add(bytes, Relaxed);
    }

    /// Gives them back.
    pub fn give(&self, who: Use, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
        self.by_use[who as usize].fetch_sub(bytes, Relaxed);
    }

    /// One has so much now. For those that are looked at from time to time, by one task.
    pub fn set(&self, who: Use, bytes: usize) {
        let before = self.used_by(who);
        if bytes > before {
            self.take(who, bytes - before);
        } else {
            self.give(who, before - bytes);
        }
    }

    /// What somebody has, given back with it.
    pub fn share(self: &Arc<Self>, who: Use, bytes: usize) -> Share {
        let mut share = Share { budget: Arc::clone(self), who, charged: 0 };
        share.set(bytes);
        share
    }
}

/// What somebody has of a budget.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    who: Use,
    charged: usize,
}

impl Share {
    /// It is so much from now on; rounded up, so that most changes change nothing.
    pub fn set(&mut self, bytes: usize) {
        let bytes = bytes.next_multiple_of(BLOCK);
        if bytes > self.charged {
            self.budget.take(self.who, bytes - self.charged);
        } else if bytes < self.charged {
            self.budget.give(self.who, self.charged - bytes);
        }
        self.charged = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give(self.who, self.charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_begins_at_its_share_and_not_one_byte_before() {
        let budget = Budget::new(Some(1000));
        for (at, before, level) in [
            (700, Level::Calm, Level::Saving),
            (850, Level::Saving, Level::Closed),
            (950, Level::Closed, Level::Full),
        ] {
            budget.set(Use::Spool, at - 1);
            assert_eq!(budget.level(), before);
            budget.set(Use::Spool, at);
            assert_eq!(budget.level(), level);
        }
        budget.set(Use::Spool, 5000);
        assert_eq!(budget.level(), Level::Full);
        budget.resize(Some(1_000_000));
        assert_eq!(budget.level(), Level::Calm);
    }

    #[test]
    fn what_can_do_without_gets_nothing_beyond_the_first_step() {
        let budget = Budget::new(Some(1000));
        assert!(budget.try_take(Use::Messages, 700));
        assert!(!budget.try_take(Use::Messages, 1));
        assert_eq!((budget.used(), budget.used_by(Use::Messages)), (700, 700));
        budget.give(Use::Messages, 1);
        assert!(budget.try_take(Use::Messages, 1));
        assert!(!Budget::new(None).try_take(Use::Messages, usize::MAX));
    }

    #[test]
    fn shares_come_and_go_in_blocks() {
        let budget = Budget::new(None);
        let mut share = budget.share(Use::Sessions, SESSION + 1);
        assert_eq!(budget.used(), SESSION + BLOCK);
        share.set(SESSION + BLOCK);
        assert_eq!(budget.used(), SESSION + BLOCK);
        let other = budget.share(Use::Messages, 1);
        assert_eq!((budget.used(), budget.used_by(Use::Messages)), (SESSION + 2 * BLOCK, BLOCK));
        share.set(0);
        drop(other);
        assert_eq!(budget.used(), 0);
        share.set(HANDSHAKE);
        drop(share);
        assert_eq!((budget.used(), budget.used_by(Use::Sessions)), (0, 0));
    }

    #[test]
    fn what_is_found_counts_where_nothing_is_configured() {
        let budget = Budget::new(None);
        assert_eq!(budget.limit(), usize::MAX);
        budget.find(500, None);
        assert_eq!(budget.limit(), 500);
        budget.resize(Some(700));
        assert_eq!(budget.limit(), 700);
        budget.resize(None);
        assert_eq!(budget.limit(), 500);
    }
}
