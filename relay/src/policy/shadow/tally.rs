//! What is counted of shadows: for telemetry as long as the process lives, for people since the
//! component or its settings were last others. Floor 2.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::super::{
    bindings::escaped,
    failure::{FailureKind, PolicyFailure},
    set::Policy,
};
use crate::{
    decision::record::{Class, Question, Said},
    plan::Timestamp,
};

/// Examples of one class that are kept; the oldest goes.
const EXAMPLES: usize = 5;
/// Bytes of an answer in an example.
const MAX_TEXT: usize = 400;

/// What was counted of one policy name as a shadow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowCounts {
    /// Questions that it was asked and that were compared.
    pub asked: u64,
    /// Questions that it was to be asked while there was no room or no time.
    pub dropped: u64,
    /// Those asked by how its answer differs, in the order of [`Class::ALL`].
    pub classes: [u64; Class::ALL.len()],
}

impl ShadowCounts {
    /// Answers of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.classes[class as usize]
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            asked: self.asked.saturating_sub(before.asked),
            dropped: self.dropped.saturating_sub(before.dropped),
            classes: std::array::from_fn(|class| {
                self.classes[class].saturating_sub(before.classes[class])
            }),
        }
    }
}

/// One answer that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// How.
    pub class: Class,
    /// The message, where it was about one.
    pub message: Option<String>,
    /// The function that was asked.
    pub function: &'static str,
    /// The time of the question.
    pub at: Timestamp,
    /// What counts, for people: one line.
    pub old: String,
    /// What the shadow said, for people: one line.
    pub new: String,
}

/// What came of a shadow since its component or its settings were last others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowReport {
    /// BLAKE3 of the component, in hexadecimal; empty before the first question.
    pub digest: String,
    /// The time of the first question.
    pub since: Option<Timestamp>,
    /// The counts.
    pub counts: ShadowCounts,
    /// Failures, in the order of [`FailureKind::ALL`].
    pub failures: [u64; FailureKind::ALL.len()],
    /// Processor time in nanoseconds of all that were asked.
    pub time_ns: u64,
    /// The last few of each class, the class that matters least first, the oldest first.
    pub examples: Vec<Example>,
}

/// The counts of one policy name.
#[derive(Debug, Default)]
pub(in crate::policy) struct ShadowStats {
    /// A shadow of this name was loaded.
    declared: AtomicBool,
    asked: AtomicU64,
    dropped: AtomicU64,
    classes: [AtomicU64; Class::ALL.len()],
    failures: [AtomicU64; FailureKind::ALL.len()],
    time_ns: AtomicU64,
    /// Second of the last failure that was logged.
    last_log: AtomicU64,
    /// The set that the last question was of.
    set: AtomicU64,
    period: Mutex<Period>,
}

/// Since when people are told.
#[derive(Debug, Default)]
struct Period {
    digest: String,
    settings: String,
    since: Option<Timestamp>,
    /// What was counted before.
    before: ShadowReport,
    examples: [VecDeque<Example>; Class::ALL.len()],
}

impl ShadowStats {
    /// Notes that there is such a shadow.
    pub(in crate::policy) fn declare(&self) {
        self.declared.store(true, Relaxed);
    }

    pub(in crate::policy) fn drop_one(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(in crate::policy) fn counts(&self) -> ShadowCounts {
        ShadowCounts {
            asked: self.asked.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            classes: std::array::from_fn(|class| self.classes[class].load(Relaxed)),
        }
    }

    pub(in crate::policy) fn totals(&self) -> Option<ShadowReport> {
        self.declared.load(Relaxed).then(|| self.total())
    }

    /// All that was counted.
    fn total(&self) -> ShadowReport {
        ShadowReport {
            counts: self.counts(),
            failures: std::array::from_fn(|kind| self.failures[kind].load(Relaxed)),
            time_ns: self.time_ns.load(Relaxed),
            ..ShadowReport::default()
        }
    }

    pub(in crate::policy) fn report(&self) -> Option<ShadowReport> {
        if !self.declared.load(Relaxed) {
            return None;
        }
        let period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, before) = (self.total(), &period.before);
        Some(ShadowReport {
            digest: period.digest.clone(),
            since: period.since,
            counts: total.counts.since(&before.counts),
            failures: std::array::from_fn(|kind| {
                total.failures[kind].saturating_sub(before.failures[kind])
            }),
            time_ns: total.time_ns.saturating_sub(before.time_ns),
            examples: period.examples.iter().flatten().cloned().collect(),
        })
    }

    /// A question of this set comes: where component or settings are others, a period begins.
    pub(super) fn begin(&self, set: u64, policy: &Policy, now: Timestamp) {
        if self.set.swap(set, Relaxed) == set {
            return;
        }
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = &policy.template.shared.settings;
        if period.since.is_none()
            || period.digest != policy.digest()
            || period.settings != *settings
        {
            let first = period.since.is_none();
            *period = Period {
                digest: policy.digest().to_owned(),
                settings: settings.clone(),
                since: Some(now),
                // What was dropped before the first question belongs to it.
                before: if first { ShadowReport::default() } else { self.total() },
                examples: Default::default(),
            };
        }
    }

    /// Notes an answer beside the one that counts.
    pub(super) fn note(&self, policy: &str, question: &Question, old: Said, new: &Told) {
        let Told { said, failure, took_ns } = new;
        let class = Class::of(&old, said);
        let now = question.with(|ask| ask.now());
        self.time_ns.fetch_add(*took_ns, Relaxed);
        let message = question.transaction().map(|tx| escaped(&tx.id, MAX_TEXT));
        if let Some(failure) = failure {
            self.failures[failure.kind as usize].fetch_add(1, Relaxed);
            let second = now.0 / 1000;
            if self.last_log.swap(second, Relaxed) != second {
                let (kind, detail) = (failure.kind.as_str(), &failure.detail);
                tracing::warn!(
                    policy,
                    id = message,
                    kind,
                    detail,
                    "a shadow failed; no mail is affected"
                );
            }
        }
        if class != Class::Same {
            let example = Example {
                class,
                message,
                function: question.function(),
                at: now,
                old: escaped(&old.to_string(), MAX_TEXT),
                new: escaped(&said.to_string(), MAX_TEXT),
            };
            let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
            let examples = &mut period.examples[class as usize];
            if examples.len() == EXAMPLES {
                examples.pop_front();
            }
            examples.push_back(example);
        }
        self.classes[class as usize].fetch_add(1, Relaxed);
        self.asked.fetch_add(1, Relaxed);
    }
}

/// What a shadow said.
pub(super) struct Told {
    pub(super) said: Said,
    pub(super) failure: Option<PolicyFailure>,
    pub(super) took_ns: u64,
}
