//! A log-linear histogram of durations: what it records it gives back within one per cent.
//!
//! Owns counting and quantiles; knows nothing of what is measured. Floor: none (pure).

/// Linear steps in each power of two: 128 steps bound the error by 1/128.
const STEP_BITS: u32 = 7;
const STEPS: usize = 1 << STEP_BITS;
/// Highest index is that of `u64::MAX`: exponent 56, mantissa 255.
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS;

/// Counts of values in buckets that grow with the value.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Adds one value.
    pub fn record(&mut self, value: u64) {
        self.buckets[index(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// Adds everything that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many values were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The greatest value, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `permille` of 1000 values do not exceed; 0 when nothing was added.
    pub fn quantile(&self, permille: u64) -> u64 {
        let rank = (self.count * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (at, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return highest(at).min(self.max);
            }
        }
        self.max
    }
}

fn index(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    let exponent = bits.saturating_sub(STEP_BITS + 1);
    let mantissa = usize::try_from(value >> exponent).unwrap_or(usize::MAX);
    exponent as usize * STEPS + mantissa
}

/// The greatest value that falls into the bucket `at`.
fn highest(at: usize) -> u64 {
    let exponent = (at / STEPS).saturating_sub(1);
    let mantissa = (at - exponent * STEPS) as u64;
    ((u128::from(mantissa + 1) << exponent) - 1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_values_are_exact() {
        let mut h = Histogram::default();
        (1..=100).for_each(|v| h.record(v));
        assert_eq!([h.quantile(500), h.quantile(900), h.quantile(990)], [50, 90, 99]);
        assert_eq!((h.quantile(1000), h.max(), h.count()), (100, 100, 100));
    }

    #[test]
    fn every_value_lies_within_one_step_below_the_top_of_its_bucket() {
        let mut values = vec![0, u64::MAX];
        for shift in 0..64 {
            let v = 1u64 << shift;
            values.extend([v - 1, v, v + 1, v + v / 3]);
        }
        for v in values {
            let top = highest(index(v));
            assert!(top >= v && top - v <= v / 128, "{v} is in the bucket that ends at {top}");
            assert!(index(v) < BUCKETS);
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        for at in 0..BUCKETS - 1 {
            assert_eq!(index(highest(at)), at);
            assert_eq!(index(highest(at) + 1), at + 1);
        }
    }

    #[test]
    fn merging_is_like_recording_both() {
        let (mut a, mut b, mut both) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for v in (0..1_000_000u64).step_by(997) {
            if v % 2 == 0 {
                a.record(v)
            } else {
                b.record(v)
            }
            both.record(v);
        }
        a.merge(&b);
        assert_eq!((a.count(), a.max()), (both.count(), both.max()));
        assert_eq!(a.quantile(990), both.quantile(990));
    }

    #[test]
    fn nothing_recorded_gives_zero() {
        assert_eq!(Histogram::default().quantile(990), 0);
    }
}
