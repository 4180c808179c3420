//! How fast a release lets its messages out: pure arithmetic of one pace.
//!
//! The rate grows linearly from `start` to `rate` over the ramp, then stays. The k-th message is
//! due in the first millisecond in which the integral of the rate has reached k. All in integers,
//! so that a release of a million messages does not drift.

use std::num::NonZeroU32;

use crate::plan::Timestamp;

/// How much of the pace may be caught up after a stall, in milliseconds. A release that could not
/// go on for longer loses the rest, and its ramp goes on where it stood.
const CATCH_UP_MS: u64 = 1000;
/// The longest ramp that is told apart from a longer one: 34 years. Keeps products in 128 bits.
const MAX_RAMP_MS: u64 = 1 << 40;
/// A release older than this stands still: 8,900 years. For the same reason.
const MAX_ELAPSED_MS: u64 = 1 << 48;

/// How fast what waited is let out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Messages per second in the end; none: as fast as turns come.
    pub rate: Option<NonZeroU32>,
    /// Messages per second at the start of the ramp; more than `rate` counts as `rate`.
    pub start: u32,
    /// Time in which the rate grows from `start` to `rate`, in milliseconds.
    pub ramp_ms: u64,
}

/// The place of one release in its pace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    rate: u128,
    start: u128,
    ramp: u128,
    /// The time at which the integral is zero; moves on with every stall.
    origin: u64,
    /// Messages let out.
    out: u64,
    /// The latest time it was asked at.
    seen: u64,
}

impl Pacer {
    /// A release that begins now; none if the pace has no rate.
    pub(super) fn new(pace: Pace, now: Timestamp) -> Option<Self> {
        let rate = u128::from(pace.rate?.get());
        Some(Self {
            rate,
            start: u128::from(pace.start).min(rate),
            ramp: u128::from(pace.ramp_ms.min(MAX_RAMP_MS)),
            origin: now.0,
            out: 0,
            seen: now.0,
        })
    }

    /// How many may be let out now, when `outstanding` of those before still stand in a line.
    pub(super) fn due(&mut self, now: Timestamp, outstanding: u64) -> u64 {
        // A clock that steps back takes the release along, or it would stand for as long.
        self.origin = self.origin.saturating_sub(self.seen.saturating_sub(now.0));
        self.seen = now.0;
        let elapsed = now.0.saturating_sub(self.origin);
        let due = self.integral(elapsed).saturating_sub(self.out);
        let allowed = self.catch_up().saturating_sub(outstanding);
        if due <= allowed {
            return due;
        }
        self.origin = now.0 - self.time_of(self.out + allowed).min(elapsed);
        allowed
    }

    /// So many were let out.
    pub(super) fn let_out(&mut self, count: u64) {
        self.out += count;
    }

    /// Whether so many outstanding stop the release, whatever the time.
    pub(super) fn is_stalled_by(&self, outstanding: u64) -> bool {
        outstanding >= self.catch_up()
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Timestamp {
        Timestamp(self.origin.saturating_add(self.time_of(self.out + 1)))
    }

    /// What may stand in lines at once: what the pace, from where it stands, gives in the time to
    /// catch up.
    fn catch_up(&self) -> u64 {
        self.integral(self.time_of(self.out) + CATCH_UP_MS).saturating_sub(self.out).max(1)
    }

    /// Messages due in the first `ms` milliseconds.
    fn integral(&self, ms: u64) -> u64 {
        u64::try_from(self.scaled(ms) / self.scale()).unwrap_or(u64::MAX)
    }

    /// The first millisecond at which `count` messages are due.
    fn time_of(&self, count: u64) -> u64 {
        let wanted = u128::from(count) * self.scale();
        let (mut low, mut high) = (0, CATCH_UP_MS);
        while self.scaled(high) < wanted && high < MAX_ELAPSED_MS {
            low = high;
            high *= 2;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.scaled(middle) < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The integral of the rate over `ms`, times `scale`.
    fn scaled(&self, ms: u64) -> u128 {
        let ms = u128::from(ms.min(MAX_ELAPSED_MS));
        let ramp = self.ramp;
        if ramp == 0 {
            return 2 * self.rate * ms;
        }
        let (inside, after) = (ms.min(ramp), ms.saturating_sub(ramp));
        2 * self.start * inside * ramp
            + (self.rate - self.start) * inside * inside
            + 2 * self.rate * after * ramp
    }

    fn scale(&self) -> u128 {
        2 * self.ramp.max(1) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pacer(rate: u32, start: u32, ramp_ms: u64) -> Pacer {
        let pace = Pace { rate: NonZeroU32::new(rate), start, ramp_ms };
        Pacer::new(pace, Timestamp(5000)).expect("a rate is given")
    }

    /// Lets out what is due at every step; the time of each message.
    fn run(pacer: &mut Pacer, from: u64, until: u64) -> Vec<u64> {
        let mut times = Vec::new();
        for now in from..until {
            let due = pacer.due(Timestamp(now), 0);
            pacer.let_out(due);
            times.extend((0..due).map(|_| now));
        }
        times
    }

    #[test]
    fn the_k_th_leaves_when_the_integral_reaches_k() {
        let times = run(&mut pacer(4, 0, 0), 5000, 7001);
        assert_eq!(times, [5250, 5500, 5750, 6000, 6250, 6500, 6750, 7000]);
        // A ramp from 0 to 100 over 10 s: t seconds in, 5 t² have left.
        let times = run(&mut pacer(100, 0, 10_000), 5000, 25_000);
        assert_eq!(times[4], 6000);
        assert_eq!(times[499], 15_000);
        assert_eq!(times[599], 16_000);
        assert_eq!(times.iter().filter(|at| **at <= 7000).count(), 20);
    }

    #[test]
    fn the_rate_is_kept_within_five_percent_in_every_second() {
        for (rate, start, ramp) in [(1000, 100, 20_000), (500, 500, 0), (3000, 0, 7000)] {
            let times = run(&mut pacer(rate, start, ramp), 5000, 45_000);
            for second in 0..40_u64 {
                let (from, to) = (5000 + second * 1000, 6000 + second * 1000);
                let got = times.iter().filter(|at| **at > from && **at <= to).count();
                let at = |ms: u64| {
                    let grown = if ramp == 0 { 1.0 } else { (ms as f64 / ramp as f64).min(1.0) };
                    f64::from(start) + f64::from(rate - start) * grown
                };
                let middle = (0..1000).map(|ms| at(second * 1000 + ms)).sum::<f64>() / 1000.0;
                let off = (got as f64 - middle).abs();
                assert!(off <= middle * 0.05 + 1.0, "second {second}: {got}, not {middle}");
            }
        }
    }

    #[test]
    fn next_says_when() {
        for (rate, start, ramp) in [(4, 0, 0), (100, 1, 10_000), (5000, 0, 500)] {
            let mut pacer = pacer(rate, start, ramp);
            for _ in 0..500 {
                let next = pacer.next();
                if next.0 > pacer.seen {
                    assert_eq!(pacer.due(Timestamp(next.0 - 1), 0), 0);
                }
                let due = pacer.due(next, 0);
                assert!(due >= 1);
                pacer.let_out(due);
            }
        }
    }

    #[test]
    fn a_long_stall_catches_up_one_second() {
        let mut pacer = pacer(100, 0, 10_000);
        assert_eq!(run(&mut pacer, 5000, 10_001).len(), 125);
        // An hour later: one second's worth of the full rate at most, and the ramp goes on.
        let burst = pacer.due(Timestamp(3_610_000), 0);
        assert_eq!(burst, 55);
        pacer.let_out(burst);
        let second = run(&mut pacer, 3_610_001, 3_611_001).len();
        assert_eq!(second, 65, "the ramp goes on from 60 a second");
    }

    #[test]
    fn a_short_stall_catches_up_all() {
        let mut pacer = pacer(100, 0, 0);
        assert_eq!(run(&mut pacer, 5000, 6001).len(), 100);
        assert_eq!(run(&mut pacer, 6900, 7001).len(), 100);
    }

    #[test]
    fn what_stands_in_lines_counts_against_the_second() {
        let mut pacer = pacer(100, 0, 0);
        assert_eq!(pacer.due(Timestamp(60_000), 90), 10);
        pacer.let_out(10);
        assert!(pacer.is_stalled_by(100));
        assert!(!pacer.is_stalled_by(99));
        assert_eq!(pacer.due(Timestamp(60_000), 0), 0, "the lost time does not come back");
        assert_eq!(pacer.next(), Timestamp(60_010));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_stop_it() {
        let mut pacer = pacer(10, 0, 0);
        assert_eq!(run(&mut pacer, 5000, 10_001).len(), 50);
        assert_eq!(pacer.due(Timestamp(1000), 0), 0);
        assert!(pacer.next() <= Timestamp(1000 + 5100 + 100));
    }

    #[test]
    fn absurd_paces_do_not_overflow() {
        let mut pacer = pacer(u32::MAX, u32::MAX, u64::MAX);
        let due = pacer.due(Timestamp(u64::MAX), u64::MAX);
        pacer.let_out(due);
        let _ = pacer.next();
    }
}
