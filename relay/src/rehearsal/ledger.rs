//! The books of a rehearsal: what became of each message, and what the relay said of itself.
//! Owns no judgement of it. Floor 4.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::{sync::Notify, time::Instant};

use crate::event::{End, Event, Observer};

/// What became of one message. Times are milliseconds after the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// When the relay took it: its `250`.
    pub taken: Option<u64>,
    /// The relay's `5xx`.
    pub refused: Option<u16>,
    /// The id under which the spool had it.
    pub id: Option<Box<str>>,
    /// When an upstream had its last byte, and which: the first time.
    pub arrived: Option<Arrival>,
    /// When that upstream had answered.
    pub done: Option<u64>,
    /// It was given up: bounced, expired, or taken out.
    pub given_up: bool,
}

/// A message at an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When its last byte was there.
    pub at: u64,
    /// The upstream, by its place in the configuration.
    pub upstream: usize,
}

/// The books, open.
pub(super) struct Ledger {
    begun: Instant,
    books: Mutex<Books>,
    /// Something happened that may change what is in flight, or a phase.
    pub(super) stirred: Notify,
}

/// The books, closed.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// By number of the message.
    pub fates: Vec<Fate>,
    /// Messages that arrived more than once: each time but the first.
    pub again: Vec<(usize, Arrival)>,
    /// Replies of upstreams that were lost.
    pub in_doubt: u64,
    /// Times that a policy let mail of a frozen instance go, and the relay held it.
    pub against_plan: u64,
    /// Failures of policies.
    pub policy_failures: u64,
    /// Answers `4xx` to senders.
    pub deferrals: u64,
    /// Messages in the spool when the books were closed.
    pub spooled: u64,
    /// Ids of spooled messages that were given up.
    pub(super) given_up: Vec<String>,
}

impl Ledger {
    pub(super) fn new(letters: usize) -> Self {
        let books = Books { fates: vec![Fate::default(); letters], ..Books::default() };
        Self { begun: Instant::now(), books: Mutex::new(books), stirred: Notify::new() }
    }

    /// When the rehearsal began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Milliseconds since then.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn taken(&self, letter: usize, id: Option<&str>) {
        let now = self.now();
        self.change(letter, |fate| {
            fate.taken.get_or_insert(now);
            fate.id = id.map(Into::into);
        });
    }

    pub(super) fn refused(&self, letter: usize, code: u16) {
        self.change(letter, |fate| fate.refused = Some(code));
    }

    pub(super) fn deferred(&self) {
        self.lock().deferrals += 1;
    }

    /// An upstream has the last byte of a message.
    pub(super) fn arrived(&self, letter: usize, upstream: usize) {
        let arrival = Arrival { at: self.now(), upstream };
        let mut books = self.lock();
        match books.fates.get_mut(letter) {
            Some(fate) if fate.arrived.is_none() => fate.arrived = Some(arrival),
            Some(_) => books.again.push((letter, arrival)),
            None => {}
        }
    }

    /// And has answered.
    pub(super) fn done(&self, letter: usize) {
        let now = self.now();
        self.change(letter, |fate| _ = fate.done.get_or_insert(now));
    }

    /// What is written so far, with what the spool has now.
    pub(super) fn close(&self, spooled: u64) -> Books {
        let mut books = std::mem::take(&mut *self.lock());
        books.spooled = spooled;
        let given_up: std::collections::HashSet<String> = books.given_up.drain(..).collect();
        for fate in &mut books.fates {
            fate.given_up = fate.id.as_deref().is_some_and(|id| given_up.contains(id));
        }
        books
    }

    fn change(&self, letter: usize, change: impl FnOnce(&mut Fate)) {
        if let Some(fate) = self.lock().fates.get_mut(letter) {
            change(fate);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Ledger {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Ended { id, end, .. } if *end != End::Delivered => {
                self.lock().given_up.push(id.as_str().to_owned());
            }
            Event::InDoubt { .. } => self.lock().in_doubt += 1,
            Event::ProceedAgainstPlan { .. } => self.lock().against_plan += 1,
            Event::PolicyFailed { .. } => self.lock().policy_failures += 1,
            _ => {}
        }
        self.stirred.notify_waiters();
    }
}
