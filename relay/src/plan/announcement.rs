//! What was announced of a wave: an entry of the lock. Owns what makes a plan say otherwise; the
//! file is `config::lock`'s business. Floor 0.

use std::fmt;

use super::{Instance, Timestamp, Wave};

/// What customers were told of one wave, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The wave's id.
    pub wave: String,
    /// Its environment.
    pub environment: String,
    /// First moment of its window.
    pub opens: Timestamp,
    /// First moment after its window.
    pub closes: Timestamp,
    /// Names of its instances, sorted.
    pub instances: Vec<String>,
    /// When it was announced.
    pub at: Timestamp,
    /// By whom: a login name.
    pub by: String,
    /// Why, where that was given.
    pub reason: Option<String>,
    /// Whether it was announced later than the environment asks, which needs a reason.
    pub late: bool,
}

/// How a wave differs from what was announced of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Its environment; the announced one.
    Environment(String),
    /// When it opens; the announced time.
    Opens(Timestamp),
    /// When it closes; the announced time.
    Closes(Timestamp),
    /// Its instances: those that were not announced, and those that are missing.
    Members {
        /// Names that are new.
        added: Vec<String>,
        /// Names that have gone.
        missing: Vec<String>,
    },
}

impl Announcement {
    /// What there is to announce of a wave; `instances` are the plan's.
    pub fn new(wave: &Wave, instances: &[Instance], at: Timestamp, by: String) -> Self {
        Self {
            wave: wave.window.wave.clone(),
            environment: wave.environment.clone(),
            opens: wave.window.opens,
            closes: wave.window.closes,
            instances: names(wave, instances),
            at,
            by,
            reason: None,
            late: false,
        }
    }

    /// Whether the announced window is over.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.closes <= now
    }

    /// How the wave of this id differs from what was announced; empty if it does not.
    pub fn differences(&self, wave: &Wave, instances: &[Instance]) -> Vec<Difference> {
        let mut found = Vec::new();
        if wave.environment != self.environment {
            found.push(Difference::Environment(self.environment.clone()));
        }
        if wave.window.opens != self.opens {
            found.push(Difference::Opens(self.opens));
        }
        if wave.window.closes != self.closes {
            found.push(Difference::Closes(self.closes));
        }
        let now = names(wave, instances);
        if now != self.instances {
            let without = |these: &[String], those: &[String]| {
                let these = these.iter().filter(|name| those.binary_search(name).is_err());
                these.cloned().collect()
            };
            found.push(Difference::Members {
                added: without(&now, &self.instances),
                missing: without(&self.instances, &now),
            });
        }
        found
    }

    /// Whether both say the same of the wave, whenever and by whomever they were made.
    pub fn is_same_slot(&self, other: &Self) -> bool {
        let slot = |one: &Self| (one.wave.clone(), one.environment.clone(), one.opens, one.closes);
        slot(self) == slot(other) && self.instances == other.instances
    }
}

impl fmt::Display for Announcement {
    /// When and by whom.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.at, self.by)
    }
}

fn names(wave: &Wave, instances: &[Instance]) -> Vec<String> {
    let mut names: Vec<String> =
        wave.instances.iter().map(|index| instances[*index].name.clone()).collect();
    names.sort_unstable();
    names
}
