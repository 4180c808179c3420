//! The generic cell rate algorithm: one 64-bit word a key. Floor 0.
//!
//! The word is the *theoretical arrival time*: the time at which the cell would be empty again,
//! in nanoseconds of a monotonic clock. An attempt conforms when charging it does not push that
//! time further ahead of now than the burst allows. Own code, because the known library has one
//! quota a limiter, and here every key brings its own.

use crate::decision::RateLimit;

/// Nanoseconds in a millisecond.
const NANOS_PER_MS: u128 = 1_000_000;

/// Nanoseconds that `cost` units of `limit` take, slowed by `factor` thousandths.
fn span(limit: &RateLimit, units: u64, factor: u32) -> u64 {
    let nanos = u128::from(units) * u128::from(limit.per_ms) * NANOS_PER_MS;
    let slowed = nanos / u128::from(limit.quantity.max(1)) * u128::from(factor.max(1)) / 1000;
    u64::try_from(slowed).unwrap_or(u64::MAX)
}

/// One cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Theoretical arrival time in nanoseconds.
    arrival: u64,
}

impl Cell {
    /// When `limit` would conform, if not at `now`. `factor` is in thousandths; 1000 is normal.
    pub fn blocked_until(self, limit: &RateLimit, now: u64, factor: u32) -> Option<u64> {
        let charged = self.arrival.max(now).saturating_add(span(limit, limit.cost, factor));
        let ready = charged.saturating_sub(span(limit, limit.burst.max(limit.cost), factor));
        (ready > now).then_some(ready)
    }

    /// Charges `limit`; only after `blocked_until` said none.
    pub fn charge(&mut self, limit: &RateLimit, now: u64, factor: u32) {
        self.arrival = self.arrival.max(now).saturating_add(span(limit, limit.cost, factor));
    }

    /// Takes a charge back: for attempts that sent nothing.
    pub fn refund(&mut self, limit: &RateLimit, factor: u32) {
        self.arrival = self.arrival.saturating_sub(span(limit, limit.cost, factor));
    }

    /// Whether the cell says nothing more than a fresh one.
    pub fn is_idle(self, now: u64) -> bool {
        self.arrival <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(quantity: u64, per_ms: u64, burst: u64, cost: u64) -> RateLimit {
        RateLimit { key: "k".into(), quantity, per_ms, burst, cost }
    }

    #[test]
    fn a_burst_passes_and_the_next_waits_one_interval() {
        let limit = limit(10, 1000, 3, 1);
        let mut cell = Cell::default();
        for _ in 0..3 {
            assert_eq!(cell.blocked_until(&limit, 0, 1000), None);
            cell.charge(&limit, 0, 1000);
        }
        assert_eq!(cell.blocked_until(&limit, 0, 1000), Some(100_000_000));
        assert_eq!(cell.blocked_until(&limit, 100_000_000, 1000), None);
    }

    #[test]
    fn slowing_and_refunds() {
        let limit = limit(10, 1000, 1, 1);
        let mut cell = Cell::default();
        cell.charge(&limit, 0, 2000);
        assert_eq!(cell.blocked_until(&limit, 0, 2000), Some(200_000_000));
        cell.refund(&limit, 2000);
        assert!(cell.is_idle(0));
    }

    #[test]
    fn absurd_values_do_not_overflow() {
        let limit = limit(1, u64::MAX, u64::MAX, u64::MAX);
        let mut cell = Cell::default();
        cell.charge(&limit, u64::MAX, u32::MAX);
        let _ = cell.blocked_until(&limit, u64::MAX, u32::MAX);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate(
            quantity in 1_u64..1000, per_ms in 1_u64..10_000, burst in 1_u64..100,
            steps in prop::collection::vec(0_u64..50_000_000, 1..300),
        ) {
            let limit = limit(quantity, per_ms, burst, 1);
            let (mut cell, mut now, mut passed) = (Cell::default(), 0_u64, 0_u64);
            for step in steps {
                now += step;
                if cell.blocked_until(&limit, now, 1000).is_none() {
                    cell.charge(&limit, now, 1000);
                    passed += 1;
                }
            }
            let allowed = u128::from(burst)
                + u128::from(now) * u128::from(quantity) / (u128::from(per_ms) * 1_000_000) + 1;
            prop_assert!(u128::from(passed) <= allowed);
        }

        #[test]
        fn what_is_blocked_conforms_when_it_says(
            quantity in 1_u64..1000, per_ms in 1_u64..10_000, burst in 1_u64..20, n in 1_usize..60,
        ) {
            let limit = limit(quantity, per_ms, burst, 1);
            let mut cell = Cell::default();
            let mut now = 0;
            for _ in 0..n {
                if let Some(ready) = cell.blocked_until(&limit, now, 1000) {
                    prop_assert!(cell.blocked_until(&limit, ready - 1, 1000).is_some());
                    now = ready;
                }
                prop_assert_eq!(cell.blocked_until(&limit, now, 1000), None);
                cell.charge(&limit, now, 1000);
            }
        }
    }
}
