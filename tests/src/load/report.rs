//! What a load run found: counts, times, errors; as JSON and as text.
//!
//! Owns the figures; the sessions fill them in. Floor: none (pure).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::histogram::Histogram;

/// Counts of one worker thread while it runs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) latency: Histogram,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    pub(super) sessions: u64,
    pub(super) bytes: u64,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn error(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.latency.merge(&other.latency);
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.lost += other.lost;
        self.sessions += other.sessions;
        self.bytes += other.bytes;
        for (what, n) in other.errors {
            *self.errors.entry(what).or_default() += n;
        }
    }
}

/// The result of a load run. `accepted + refused + lost + unfinished` is what was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Messages with a positive final reply.
    pub accepted: u64,
    /// Messages with a negative reply; `errors` says where.
    pub refused: u64,
    /// Messages whose connection failed, or whose reply was malformed.
    pub lost: u64,
    /// Messages not begun or not ended at the time limit.
    pub unfinished: u64,
    /// Connections that were greeted.
    pub sessions: u64,
    /// Content bytes of the accepted messages.
    pub bytes: u64,
    /// From the first connection to the last reply, seconds.
    pub seconds: f64,
    /// Accepted messages a second.
    pub rate: f64,
    /// Median time of a message, microseconds.
    pub p50_us: f64,
    /// 90 of 100 messages took at most this, microseconds.
    pub p90_us: f64,
    /// 99 of 100 messages took at most this, microseconds.
    pub p99_us: f64,
    /// 999 of 1000 messages took at most this, microseconds.
    pub p999_us: f64,
    /// The slowest message, microseconds.
    pub max_us: f64,
    /// Every reply that was not the expected one, by stage and code; every lost connection, by stage.
    pub errors: BTreeMap<String, u64>,
}

impl Report {
    pub(super) fn new(tally: Tally, asked: u64, took: Duration) -> Self {
        let us = |permille| tally.latency.quantile(permille) as f64 / 1000.0;
        let seconds = took.as_secs_f64();
        Self {
            accepted: tally.accepted,
            refused: tally.refused,
            lost: tally.lost,
            unfinished: asked.saturating_sub(tally.accepted + tally.refused + tally.lost),
            sessions: tally.sessions,
            bytes: tally.bytes,
            seconds,
            rate: tally.accepted as f64 / seconds.max(1e-9),
            p50_us: us(500),
            p90_us: us(900),
            p99_us: us(990),
            p999_us: us(999),
            max_us: tally.latency.max() as f64 / 1000.0,
            errors: tally.errors,
        }
    }

    /// Whether every message was accepted and nothing unexpected was said.
    pub fn is_clean(&self) -> bool {
        self.refused == 0 && self.lost == 0 && self.unfinished == 0 && self.errors.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} accepted in {:.3} s: {:.0} messages/s over {} sessions",
            self.accepted, self.seconds, self.rate, self.sessions
        )?;
        writeln!(
            f,
            "latency us: p50 {:.0}, p90 {:.0}, p99 {:.0}, max {:.0}",
            self.p50_us, self.p90_us, self.p99_us, self.max_us
        )?;
        if !self.is_clean() {
            writeln!(
                f,
                "refused {}, lost {}, unfinished {}",
                self.refused, self.lost, self.unfinished
            )?;
        }
        for (what, n) in &self.errors {
            writeln!(f, "  {n} x {what}")?;
        }
        Ok(())
    }
}
