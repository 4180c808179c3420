//! When a message that could not be delivered is tried again. Floor 0.
//!
//! Exponential back-off with jitter, as a pure function of the number of attempts and of a random
//! number that the caller brings. RFC 5321 4.5.4.1 asks for at least 30 minutes between attempts
//! "in general" and allows a shorter interval where the reason is known; relays of our day begin
//! with minutes, because most refusals are greylisting or a moment's load.
//!
//! Not here: when a message expires, and who waits for what (`scheduler`).

use std::time::Duration;

/// Delay after the first attempt: long enough for a restart of the upstream, short enough that
/// greylisting costs little.
pub const FIRST: Duration = Duration::from_secs(60);
/// Growth of the delay with every further attempt, in percent.
pub const FACTOR_PERCENT: u32 = 200;
/// The longest delay before jitter: after an outage nothing waits longer than about this.
pub const MAXIMUM: Duration = Duration::from_secs(3600);
/// Share by which a delay is shortened or lengthened, in percent. It keeps the messages of one
/// outage from coming back in one moment.
pub const JITTER_PERCENT: u32 = 20;

/// How the delays between attempts grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Delay after the first attempt.
    pub first: Duration,
    /// Growth with every further attempt in percent; below 100 counts as 100.
    pub factor_percent: u32,
    /// The longest delay, before jitter.
    pub maximum: Duration,
    /// Jitter to either side in percent; more than 100 counts as 100.
    pub jitter_percent: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            first: FIRST,
            factor_percent: FACTOR_PERCENT,
            maximum: MAXIMUM,
            jitter_percent: JITTER_PERCENT,
        }
    }
}

/// The delay after `attempts` attempts; `random` is spread evenly over all its values. At least
/// one millisecond, so that no schedule makes a loop without pause.
pub fn delay(schedule: &Schedule, attempts: u32, random: u64) -> Duration {
    let base = base_ms(schedule, attempts);
    let jitter = u128::from(schedule.jitter_percent.min(100));
    let span = u128::from(base) * jitter / 100;
    // The random number scaled to [0, 2 * span]: the high half of a product, without remainder.
    let offset = (u128::from(random) * (2 * span + 1)) >> 64;
    let ms = u128::from(base) - span + offset;
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX).max(1))
}

/// The delay without jitter, in milliseconds.
fn base_ms(schedule: &Schedule, attempts: u32) -> u64 {
    let maximum = millis(schedule.maximum);
    let factor = u64::from(schedule.factor_percent.max(100));
    let mut ms = millis(schedule.first).max(1);
    for _ in 1..attempts {
        // Once at the maximum, or not growing any more, further rounds change nothing.
        let next = ms.saturating_mul(factor) / 100;
        if ms >= maximum || next <= ms {
            break;
        }
        ms = next;
    }
    ms.min(maximum)
}

fn millis(duration: Duration) -> u64 {
    // Kept far below the end of the range, so that a time plus a delay cannot overflow.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn even() -> Schedule {
        Schedule { jitter_percent: 0, ..Schedule::default() }
    }

    #[test]
    fn the_default_doubles_from_a_minute_to_an_hour() {
        let minutes = |attempts| delay(&even(), attempts, 0).as_secs() / 60;
        assert_eq!((0..=9).map(minutes).collect::<Vec<_>>(), [1, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(minutes(u32::MAX), 60);
    }

    #[test]
    fn jitter_reaches_both_ends() {
        let schedule = Schedule::default();
        assert_eq!(delay(&schedule, 1, 0), Duration::from_secs(48));
        assert_eq!(delay(&schedule, 1, u64::MAX), Duration::from_secs(72));
        assert_eq!(delay(&schedule, 1, u64::MAX / 2), Duration::from_secs(60));
    }

    #[test]
    fn no_schedule_makes_a_loop_without_pause() {
        let zero = Schedule {
            first: Duration::ZERO,
            factor_percent: 0,
            maximum: Duration::ZERO,
            jitter_percent: u32::MAX,
        };
        assert_eq!(delay(&zero, 5, 0), Duration::from_millis(1));
    }

    proptest! {
        #[test]
        fn within_the_share_of_the_base_and_bounded(
            first in 0_u64..10_000_000, factor in 0_u32..2000, maximum in 0_u64..100_000_000,
            jitter in 0_u32..150, attempts: u32, random: u64,
        ) {
            let schedule = Schedule {
                first: Duration::from_millis(first),
                factor_percent: factor,
                maximum: Duration::from_millis(maximum),
                jitter_percent: jitter,
            };
            let base = delay(&Schedule { jitter_percent: 0, ..schedule }, attempts, random);
            let got = delay(&schedule, attempts, random);
            let share = base.as_millis() * u128::from(jitter.min(100)) / 100;
            prop_assert!(base.as_millis() <= u128::from(maximum.max(1)));
            prop_assert!(got.as_millis().abs_diff(base.as_millis()) <= share.max(1));
            prop_assert!(got >= Duration::from_millis(1));
        }

        #[test]
        fn never_shrinks_with_attempts(
            first in 1_u64..10_000_000, factor in 0_u32..2000, maximum in 1_u64..100_000_000,
            attempts in 0_u32..1000,
        ) {
            let schedule = Schedule {
                first: Duration::from_millis(first),
                factor_percent: factor,
                maximum: Duration::from_millis(maximum),
                jitter_percent: 0,
            };
            prop_assert!(delay(&schedule, attempts, 0) <= delay(&schedule, attempts + 1, 0));
        }

        #[test]
        fn absurd_schedules_do_not_overflow(attempts: u32, random: u64, factor: u32) {
            let schedule = Schedule {
                first: Duration::MAX,
                factor_percent: factor,
                maximum: Duration::MAX,
                jitter_percent: 100,
            };
            prop_assert!(delay(&schedule, attempts, random) >= Duration::from_millis(1));
        }
    }
}
