//! What a plan says of the whole program and of each environment: bounds of windows, notice, and
//! how long an upgrade takes. Owns the estimate and how a wave is split; knows no wave. Floor 0.

use super::Timestamp;

/// Where the mail goes, as customers are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// "Upgraded", and nothing about where to.
    #[default]
    Unnamed,
    /// To a public cloud.
    Cloud,
}

/// What notices say of the whole migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// What it is called.
    pub name: String,
    /// Who runs it.
    pub provider: String,
    /// URL or mail address of customer care.
    pub contact: Option<String>,
    /// From: of notices.
    pub sender: Option<String>,
    /// Reply-To: of notices.
    pub reply_to: Option<String>,
    /// Where the mail goes.
    pub destination: Destination,
}

/// One environment and its bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Such as `production`.
    pub name: String,
    /// No wave of it opens before.
    pub earliest: Option<Timestamp>,
    /// So long before `opens` a wave is announced, at least.
    pub notice_ms: u64,
    /// A customer's waves here open only after those of his instances there are closed.
    pub after: Option<String>,
    /// The shortest window.
    pub window_min_ms: Option<u64>,
    /// The longest window.
    pub window_max_ms: Option<u64>,
    /// How long an upgrade takes.
    pub duration: Option<Duration>,
}

/// How long the upgrade of so many instances takes: `fixed`, and `each` for every `parallel` of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration {
    /// Whatever the number of instances.
    pub fixed_ms: u64,
    /// For one instance.
    pub each_ms: u64,
    /// So many are upgraded at a time; at least 1.
    pub parallel: u32,
}

impl Duration {
    /// The estimate for so many instances.
    pub fn estimate_ms(&self, instances: usize) -> u64 {
        let rounds = instances.div_ceil(self.parallel() as usize) as u64;
        self.fixed_ms.saturating_add(rounds.saturating_mul(self.each_ms))
    }

    /// As many instances as are done within `bound_ms`; none if not even one is.
    pub fn most_within(&self, bound_ms: u64) -> Option<usize> {
        let left = bound_ms.checked_sub(self.fixed_ms)?;
        let Some(rounds) = left.checked_div(self.each_ms) else {
            return Some(usize::MAX);
        };
        let most = rounds.saturating_mul(u64::from(self.parallel()));
        (most > 0).then_some(usize::try_from(most).unwrap_or(usize::MAX))
    }

    fn parallel(&self) -> u32 {
        self.parallel.max(1)
    }
}

impl Environment {
    /// The window of a wave of so many instances whose `closes` is not given: the estimate, but
    /// not shorter than the shortest window.
    pub fn window_ms(&self, instances: usize) -> Option<u64> {
        let estimate = self.duration?.estimate_ms(instances);
        Some(estimate.max(self.window_min_ms.unwrap_or(0)))
    }

    /// Into how many instances each a wave of `instances` is split, so that every part is done
    /// within `bound_ms`: as few parts as can be, as equal as can be. None if one instance alone
    /// takes longer.
    pub fn split(&self, instances: usize, bound_ms: u64) -> Option<Vec<usize>> {
        let most = match &self.duration {
            Some(duration) => duration.most_within(bound_ms)?,
            None => usize::MAX,
        };
        let parts = instances.div_ceil(most).max(1);
        let (size, larger) = (instances / parts, instances % parts);
        Some((0..parts).map(|part| size + usize::from(part < larger)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000;

    fn environment(fixed: u64, each: u64, parallel: u32) -> Environment {
        let duration = Duration { fixed_ms: fixed * MINUTE, each_ms: each * MINUTE, parallel };
        Environment { duration: Some(duration), ..Environment::default() }
    }

    #[test]
    fn an_estimate_counts_rounds() {
        let duration = environment(15, 5, 4).duration.unwrap();
        let minutes = [(0, 15), (1, 20), (4, 20), (5, 25), (36, 60), (37, 65)];
        for (instances, expected) in minutes {
            assert_eq!(duration.estimate_ms(instances), expected * MINUTE, "{instances}");
        }
        assert_eq!(duration.most_within(60 * MINUTE), Some(36));
        assert_eq!(duration.most_within(60 * MINUTE - 1), Some(32));
        assert_eq!(duration.most_within(20 * MINUTE), Some(4));
        assert_eq!(duration.most_within(20 * MINUTE - 1), None, "not even one");
        assert_eq!(duration.most_within(14 * MINUTE), None);
        let fixed_only = environment(15, 0, 1).duration.unwrap();
        assert_eq!(fixed_only.most_within(15 * MINUTE), Some(usize::MAX));
    }

    #[test]
    fn a_window_without_an_end_is_not_shorter_than_the_shortest() {
        let mut staging = environment(15, 5, 4);
        assert_eq!(staging.window_ms(1), Some(20 * MINUTE));
        staging.window_min_ms = Some(30 * MINUTE);
        assert_eq!(staging.window_ms(1), Some(30 * MINUTE));
        assert_eq!(staging.window_ms(13), Some(35 * MINUTE));
        assert_eq!(Environment::default().window_ms(1), None);
    }

    #[test]
    fn parts_are_few_and_equal() {
        let production = environment(15, 5, 4);
        assert_eq!(production.split(36, 60 * MINUTE), Some(vec![36]));
        assert_eq!(production.split(37, 60 * MINUTE), Some(vec![19, 18]));
        assert_eq!(production.split(100, 60 * MINUTE), Some(vec![34, 33, 33]));
        assert_eq!(production.split(1, 19 * MINUTE), None);
        assert_eq!(Environment::default().split(1000, 1), Some(vec![1000]));
    }

    proptest! {
        #[test]
        fn every_part_fits_and_one_part_fewer_would_not(
            fixed in 0..40_u64, each in 0..20_u64, parallel in 1..9_u32,
            instances in 1..500_usize, bound in 1..240_u64,
        ) {
            let environment = environment(fixed, each, parallel);
            let duration = environment.duration.unwrap();
            let bound = bound * MINUTE;
            let Some(parts) = environment.split(instances, bound) else {
                prop_assert!(duration.estimate_ms(1) > bound);
                return Ok(());
            };
            prop_assert_eq!(parts.iter().sum::<usize>(), instances);
            prop_assert!(parts.iter().all(|part| duration.estimate_ms(*part) <= bound));
            if let Some(fewer) = parts.len().checked_sub(1).filter(|fewer| *fewer > 0) {
                prop_assert!(duration.estimate_ms(instances.div_ceil(fewer)) > bound);
            }
        }
    }
}
