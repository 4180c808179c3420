//! When messages came to the upstream.
//!
//! Owns the looking at the sink's count, and what follows from the looks. Floor: none.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::bench::process::until;
use crate::sink::SinkHandle;

/// A count of messages that is being looked at.
pub(super) struct Arrivals<'a> {
    sink: &'a SinkHandle,
    before: u64,
}

/// What was seen.
pub(super) struct Seen {
    /// Times and counts, of looks that saw more than the one before. The first is the last look
    /// that saw none, or the beginning.
    looks: Vec<(Instant, u64)>,
}

impl<'a> Arrivals<'a> {
    /// Counts from now on.
    pub(super) fn begin(sink: &'a SinkHandle) -> Self {
        Self { sink, before: sink.counts().messages }
    }

    /// Looks until so many have come.
    pub(super) fn until(self, messages: u64, limit: Duration) -> anyhow::Result<Seen> {
        let mut looks = vec![(Instant::now(), 0)];
        let done = until(limit, || {
            let count = self.sink.counts().messages - self.before;
            let last = looks.last_mut().context("there is a first look")?;
            if count == 0 {
                last.0 = Instant::now();
            } else if count > last.1 {
                looks.push((Instant::now(), count));
            }
            Ok((count >= messages).then_some(()))
        })?;
        let count = looks.last().map_or(0, |last| last.1);
        done.with_context(|| format!("{count} of {messages} came within {limit:?}"))?;
        anyhow::ensure!(count == messages, "{count} messages came, {messages} were expected");
        Ok(Seen { looks })
    }
}

impl Seen {
    /// Messages a second from the first to the last.
    pub(super) fn rate(&self) -> f64 {
        let ends = self.looks.first().zip(self.looks.last());
        ends.map_or(f64::NAN, |((begin, _), (end, count))| {
            *count as f64 / end.duration_since(*begin).as_secs_f64()
        })
    }

    /// How many came in each of `seconds` seconds, from `skip` seconds after the first on.
    pub(super) fn by_second(&self, skip: u64, seconds: u64) -> Vec<u64> {
        let Some((begin, _)) = self.looks.first() else { return Vec::new() };
        let count_at = |second: u64| {
            let time = *begin + Duration::from_secs(second);
            let seen = self.looks.partition_point(|(look, _)| *look <= time);
            self.looks[..seen].last().map_or(0, |look| look.1)
        };
        (skip..skip + seconds).map(|second| count_at(second + 1) - count_at(second)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_counted_from_the_first_message() {
        let begin = Instant::now();
        let look = |ms, count| (begin + Duration::from_millis(ms), count);
        let looks = vec![look(0, 0), look(500, 5), look(1000, 10), look(1999, 30), look(3000, 40)];
        let seen = Seen { looks };
        assert_eq!(seen.by_second(0, 3), [10, 20, 10]);
        assert_eq!(seen.by_second(1, 1), [20]);
        assert!((seen.rate() - 40.0 / 3.0).abs() < 1e-9);
    }
}
