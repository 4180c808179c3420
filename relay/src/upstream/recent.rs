//! What attempts at an upstream came to in the last minute: what policies may ask for. Floor 2.

use std::sync::{Mutex, PoisonError};

use crate::plan::Timestamp;

/// Seconds that are looked at together.
const SECONDS: usize = 60;

/// How an attempt ended, as far as it says something of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was answered, with this code.
    Answered(u16),
    /// It ended without an answer.
    Broken,
}

/// Attempts that ended, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// All.
    pub attempts: u32,
    /// Answered 4xx.
    pub deferred: u32,
    /// Answered 5xx.
    pub refused: u32,
    /// Not answered.
    pub broken: u32,
}

impl Ends {
    fn count(&mut self, ended: Ended) {
        self.attempts = self.attempts.saturating_add(1);
        let cell = match ended {
            Ended::Answered(400..=499) => &mut self.deferred,
            Ended::Answered(500..=599) => &mut self.refused,
            Ended::Answered(_) => return,
            Ended::Broken => &mut self.broken,
        };
        *cell = cell.saturating_add(1);
    }

    /// These and those.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            attempts: self.attempts.saturating_add(other.attempts),
            deferred: self.deferred.saturating_add(other.deferred),
            refused: self.refused.saturating_add(other.refused),
            broken: self.broken.saturating_add(other.broken),
        }
    }
}

/// The last minute, second by second.
#[derive(Debug)]
pub(super) struct Recent(Mutex<[(u64, Ends); SECONDS]>);

impl Default for Recent {
    fn default() -> Self {
        Self(Mutex::new([(0, Ends::default()); SECONDS]))
    }
}

impl Recent {
    /// Counts an attempt that ended at `now`.
    pub(super) fn count(&self, ended: Ended, now: Timestamp) {
        let second = now.0 / 1000;
        let mut seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[allow(clippy::cast_possible_truncation, reason = "less than SECONDS")]
        let slot = &mut seconds[(second % SECONDS as u64) as usize];
        if slot.0 != second {
            *slot = (second, Ends::default());
        }
        slot.1.count(ended);
    }

    /// The minute that ends with `now`. A second in the future is not of it: the clock was set
    /// back.
    pub(super) fn ends(&self, now: Timestamp) -> Ends {
        let now = now.0 / 1000;
        let seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = |second: u64| second <= now && now - second < SECONDS as u64;
        let recent = seconds.iter().filter(|(second, _)| lately(*second));
        recent.map(|(_, ends)| *ends).fold(Ends::default(), Ends::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_remembered() {
        let recent = Recent::default();
        let at = |second: u64| Timestamp(1_700_000_000_000 + second * 1000);
        assert_eq!(recent.ends(at(0)), Ends::default());
        for ended in [Ended::Answered(250), Ended::Answered(451), Ended::Answered(550)] {
            recent.count(ended, at(0));
        }
        recent.count(Ended::Broken, at(30));
        let all = Ends { attempts: 4, deferred: 1, refused: 1, broken: 1 };
        assert_eq!(recent.ends(at(30)), all);
        assert_eq!(recent.ends(at(59)), all);
        assert_eq!(recent.ends(at(60)), Ends { attempts: 1, broken: 1, ..Ends::default() });
        assert_eq!(recent.ends(at(90)), Ends::default());
        recent.count(Ended::Answered(250), at(60));
        assert_eq!(recent.ends(at(60)).attempts, 2, "its slot was that of second 0");
        assert_eq!(recent.ends(at(29)), Ends::default(), "the clock was set back");
    }
}
