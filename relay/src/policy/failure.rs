//! What can go wrong in a call, and the ladder from one failure to a condemned generation.
//! Floor 2.
//!
//! The steps: a failure costs the instance it happened in; a message that a policy failed on
//! three times is parked (that policy is not asked about it again, and it counts no more); more
//! than 20 distinct messages and 5 % of the calls within a minute condemn the set.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::plan::Timestamp;

/// Failures of one policy on one message that park it.
pub(super) const PARK_AFTER: u8 = 3;
/// A set is condemned only by more distinct messages than this within a minute.
pub(super) const CONDEMN_MESSAGES: usize = 20;
/// And only if more than one call in this many fails (5 %).
pub(super) const CONDEMN_SHARE: u64 = 20;
/// Seconds that are looked at together.
const WINDOW_S: u64 = 60;
/// The same as a length.
const SECONDS: usize = 60;
/// Messages remembered, of each sort; the oldest is forgotten. Far more than condemn a set.
const MAX_REMEMBERED: usize = 1024;

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum FailureKind {
    /// The guest trapped: a panic, an overflow of its stack, a bad instruction.
    Trap,
    /// It did not answer within its time.
    Timeout,
    /// It wanted more memory or table than it has.
    Memory,
    /// It answered what the contract does not allow.
    BadAnswer,
    /// It was not asked: it failed on this message too often.
    Parked,
    /// The host could not make an instance: its pool is full. Not the policy's fault.
    Host,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Trap, Self::Timeout, Self::Memory, Self::BadAnswer, Self::Parked, Self::Host];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::BadAnswer => "bad-answer",
            Self::Parked => "parked",
            Self::Host => "host",
        }
    }

    /// Whether it says something about the policy on this message.
    fn counts(self) -> bool {
        !matches!(self, Self::Parked | Self::Host)
    }
}

/// A call that gave no answer. The caller applies the policy's fail mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.as_str())]
pub struct PolicyFailure {
    /// How.
    pub kind: FailureKind,
    /// What exactly, for people: one line.
    pub detail: String,
}

impl PolicyFailure {
    pub(super) fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self::new(FailureKind::BadAnswer, detail)
    }

    /// An answer of another kind than the question; the host's own fault.
    pub(crate) fn mistaken() -> Self {
        Self::new(FailureKind::Host, "the answer is to another question")
    }

    /// Not done in time, and no place where there is more of it.
    pub(super) fn crowded() -> Self {
        Self::new(FailureKind::Timeout, "it takes long, as too many others do at the moment")
    }

    pub(super) fn parked() -> Self {
        Self::new(FailureKind::Parked, "the policy failed on this message three times")
    }
}

/// Why a set was condemned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condemnation {
    /// [`PolicySet::id`](super::PolicySet::id) of the set.
    pub set: u64,
    /// Distinct messages that policies failed on within the last minute.
    pub messages: usize,
    /// Failures within the last minute.
    pub failures: u64,
    /// Calls within the last minute.
    pub calls: u64,
}

/// What a failure led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// The message is parked from now on.
    pub(super) parked: bool,
    /// The set is condemned from now on.
    pub(super) condemned: Option<Condemnation>,
}

/// The ladder of one set. Workers hand their calls over once a second and every failure at once.
#[derive(Debug)]
pub(super) struct Ladder {
    set: u64,
    condemned: AtomicBool,
    /// How many are parked, so that asking costs nothing while there is none.
    parked: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    seconds: [Second; SECONDS],
    /// Messages failed on, with the last second in which they were.
    messages: HashMap<u64, u64>,
    /// Failures of (policy, message), and the order in which they came.
    failed: HashMap<u64, u8>,
    failed_order: VecDeque<u64>,
    parked: HashSet<u64>,
    parked_order: VecDeque<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    second: u64,
    calls: u64,
    failures: u64,
}

impl Ladder {
    pub(super) fn new(set: u64) -> Self {
        Self {
            set,
            condemned: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                seconds: [Second::default(); SECONDS],
                messages: HashMap::new(),
                failed: HashMap::new(),
                failed_order: VecDeque::new(),
                parked: HashSet::new(),
                parked_order: VecDeque::new(),
            }),
        }
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Relaxed)
    }

    pub(super) fn is_parked(&self, policy: usize, message: &str) -> bool {
        self.parked.load(Relaxed) > 0
            && self
                .inner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .parked
                .contains(&key(policy, message))
    }

    /// Adds the calls that a worker made in one second.
    pub(super) fn add_calls(&self, second: u64, calls: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.second(second).calls += calls;
    }

    /// Notes a failure. `message` is none where the call was not about one.
    pub(super) fn note(
        &self,
        policy: usize,
        message: Option<&str>,
        kind: FailureKind,
        now: Timestamp,
    ) -> Step {
        let Some(message) = message.filter(|_| kind.counts()) else {
            return Step::default();
        };
        let second = now.0 / 1000;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(policy, message);
        if inner.parked.contains(&key) {
            return Step::default();
        }
        inner.second(second).failures += 1;
        inner.remember_message(hash(message), second);
        let parked = inner.park(key);
        self.parked.store(inner.parked.len(), Relaxed);
        let condemned =
            inner.judge(self.set, second).filter(|_| !self.condemned.swap(true, Relaxed));
        Step { parked, condemned }
    }
}

impl Inner {
    fn second(&mut self, second: u64) -> &mut Second {
        #[allow(clippy::cast_possible_truncation, reason = "less than WINDOW_S")]
        let entry = &mut self.seconds[(second % WINDOW_S) as usize];
        if entry.second != second {
            *entry = Second { second, ..Second::default() };
        }
        entry
    }

    fn remember_message(&mut self, message: u64, second: u64) {
        if self.messages.len() >= MAX_REMEMBERED {
            self.messages.retain(|_, last| within(*last, second));
        }
        if self.messages.len() < MAX_REMEMBERED {
            self.messages.insert(message, second);
        }
    }

    /// Counts one more failure of this policy on this message; whether that parks it.
    fn park(&mut self, key: u64) -> bool {
        let failures = self.failed.entry(key).or_insert(0);
        *failures += 1;
        let count = *failures;
        if count == 1 {
            self.failed_order.push_back(key);
            if self.failed_order.len() > MAX_REMEMBERED
                && let Some(oldest) = self.failed_order.pop_front()
            {
                self.failed.remove(&oldest);
            }
        }
        if count < PARK_AFTER {
            return false;
        }
        self.failed.remove(&key);
        self.failed_order.retain(|&other| other != key);
        self.parked.insert(key);
        self.parked_order.push_back(key);
        if self.parked_order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.parked_order.pop_front()
        {
            self.parked.remove(&oldest);
        }
        true
    }

    fn judge(&self, set: u64, now: u64) -> Option<Condemnation> {
        let messages = self.messages.values().filter(|&&last| within(last, now)).count();
        if messages <= CONDEMN_MESSAGES {
            return None;
        }
        let (mut calls, mut failures) = (0, 0);
        for second in self.seconds.iter().filter(|second| within(second.second, now)) {
            calls += second.calls;
            failures += second.failures;
        }
        (failures * CONDEMN_SHARE > calls).then_some(Condemnation {
            set,
            messages,
            failures,
            calls,
        })
    }
}

/// Whether a second lies in the minute that ends with `now`. One in the future does not: the
/// wall clock was set back.
fn within(second: u64, now: u64) -> bool {
    second <= now && now - second < WINDOW_S
}

fn key(policy: usize, message: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (policy, message).hash(&mut hasher);
    hasher.finish()
}

fn hash(message: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(ladder: &Ladder, message: &str, second: u64) -> Step {
        ladder.note(0, Some(message), FailureKind::Trap, Timestamp(second * 1000))
    }

    #[test]
    fn the_third_failure_parks_the_message() {
        let ladder = Ladder::new(1);
        assert!(!fail(&ladder, "a", 1).parked);
        assert!(!fail(&ladder, "a", 2).parked);
        assert!(!ladder.is_parked(0, "a"));
        assert!(fail(&ladder, "a", 3).parked);
        assert!(ladder.is_parked(0, "a"));
        assert!(!ladder.is_parked(1, "a"), "another policy may still be asked");
        assert!(!ladder.is_parked(0, "b"));
        assert_eq!(fail(&ladder, "a", 4), Step::default());
    }

    #[test]
    fn twenty_messages_do_not_condemn_but_twenty_one_do() {
        let ladder = Ladder::new(7);
        ladder.add_calls(100, 21);
        for message in 0..20 {
            assert_eq!(fail(&ladder, &message.to_string(), 100).condemned, None);
        }
        assert!(!ladder.is_condemned());
        let condemned = fail(&ladder, "20", 101).condemned;
        assert_eq!(condemned, Some(Condemnation { set: 7, messages: 21, failures: 21, calls: 21 }));
        assert!(ladder.is_condemned());
        assert_eq!(fail(&ladder, "21", 101).condemned, None, "told once");
    }

    #[test]
    fn five_percent_do_not_condemn() {
        let ladder = Ladder::new(1);
        ladder.add_calls(100, 21 * 20);
        for message in 0..21 {
            assert_eq!(fail(&ladder, &message.to_string(), 100).condemned, None);
        }
        assert!(fail(&ladder, "21", 100).condemned.is_some());
    }

    #[test]
    fn failures_spread_over_more_than_a_minute_do_not_condemn() {
        let ladder = Ladder::new(1);
        for message in 0..200 {
            assert_eq!(fail(&ladder, &message.to_string(), message * 3).condemned, None);
        }
    }

    #[test]
    fn one_poison_message_never_condemns() {
        let ladder = Ladder::new(1);
        for second in 0..1000 {
            assert_eq!(fail(&ladder, "poison", second % 60).condemned, None);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let ladder = Ladder::new(1);
        for message in 0..10 * MAX_REMEMBERED {
            for _ in 0..3 {
                fail(&ladder, &message.to_string(), 1);
            }
            fail(&ladder, &format!("once {message}"), 1);
        }
        let inner = ladder.inner.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(inner.parked.len(), MAX_REMEMBERED);
        assert_eq!(inner.parked_order.len(), MAX_REMEMBERED);
        assert_eq!(inner.failed.len(), inner.failed_order.len());
        assert!(inner.failed.len() <= MAX_REMEMBERED);
        assert!(inner.messages.len() <= MAX_REMEMBERED);
    }

    #[test]
    fn a_full_pool_is_not_the_policys_fault() {
        let ladder = Ladder::new(1);
        for message in 0..100 {
            let step = ladder.note(0, Some(&message.to_string()), FailureKind::Host, Timestamp(0));
            assert_eq!(step, Step::default());
        }
    }
}
