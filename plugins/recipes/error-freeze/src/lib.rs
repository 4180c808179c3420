//! While an upstream answers too many attempts with errors, its mail waits.
//!
//! Owns the bound, and who may try all the same: with nobody sent there would be no attempts,
//! and nobody would learn that it is well again. It keeps no state, so there is nothing to
//! reset: the last minute of the upstream decides.

use wavegate_policy::freeze::{self, Decision, Hold};
use wavegate_policy::settings::Table;
use wavegate_policy::types::{Transaction, UpstreamState};
use wavegate_policy::{Needs, Policy, text};

const MINUTE_MS: u64 = 60_000;
/// Buckets of messages that there are.
const BUCKETS: u64 = 10_000;

/// The policy with its settings.
pub struct ErrorFreeze {
    upstream: String,
    /// Thousandths of a percent of attempts that may fail.
    above: u64,
    at_least: u64,
    /// One bucket in so many goes all the same.
    probe: u64,
    wait_ms: u64,
    defer: bool,
    all_mail: bool,
}

wavegate_policy::export!(ErrorFreeze: freeze);

impl Policy for ErrorFreeze {
    const NAME: &'static str = "error-freeze";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        let upstream = settings.get("upstream");
        if upstream.is_none() {
            settings.wrong("has no upstream");
        }
        let word = |name, known: &[&'static str]| settings.get(name).and_then(|f| f.one_of(known));
        let above = settings.get("above").and_then(|field| field.thousandths(0..=100_000));
        let at_least = settings.get("at_least").and_then(|field| field.whole(1..=1_000_000));
        let probe = settings.get("probe").and_then(|field| field.whole(2..=BUCKETS));
        ErrorFreeze {
            upstream: upstream.and_then(|field| field.upstream(upstreams)).unwrap_or_default(),
            above: above.unwrap_or(20_000),
            at_least: at_least.unwrap_or(20),
            probe: probe.unwrap_or(20),
            wait_ms: settings.get("wait").and_then(|field| field.duration()).unwrap_or(30_000),
            defer: word("answer", &["hold", "defer"]) == Some("defer"),
            all_mail: word("mail", &["planned", "all"]) == Some("all"),
        }
    }

    fn needs(&self) -> Needs {
        let upstreams = vec![self.upstream.clone()];
        Needs { attributes: Vec::new(), upstreams, outcomes: false }
    }
}

impl freeze::Policy for ErrorFreeze {
    fn decide(&self, message: &Transaction) -> Decision {
        let state = message.upstreams.iter().find(|state| state.name == self.upstream);
        let Some(state) = state.filter(|state| self.is_ill(state)) else {
            return Decision::Proceed;
        };
        if !self.is_about(message) || self.is_probe(message) {
            return Decision::Proceed;
        }
        let failed = u64::from(state.deferred) + u64::from(state.broken);
        let (upstream, attempts) = (&self.upstream, state.attempts);
        let reason = format!("{failed} of {attempts} attempts at {upstream} failed in a minute");
        if self.defer {
            return Decision::Defer(text::defer("4.4.5", &reason));
        }
        let until = self.asked_again(message);
        Decision::Hold(Hold { until: Some(until), reason })
    }
}

impl ErrorFreeze {
    /// Answers of 5xx are about messages, not about the upstream: they count as attempts only.
    fn is_ill(&self, state: &UpstreamState) -> bool {
        let attempts = u64::from(state.attempts);
        let failed = u64::from(state.deferred) + u64::from(state.broken);
        attempts >= self.at_least && failed * 100_000 > self.above * attempts
    }

    /// True where the upstream is the one that the plan has for the message in its phase.
    fn is_about(&self, message: &Transaction) -> bool {
        let planned = message.instance.as_ref().is_some_and(|instance| {
            let upstream = match instance.phase.as_str() {
                "frozen" | "checked" | "releasing" | "migrated" => &instance.after,
                _ => &instance.before,
            };
            *upstream == self.upstream
        });
        self.all_mail || planned
    }

    /// Every minute it is the turn of other buckets.
    fn is_probe(&self, message: &Transaction) -> bool {
        (u64::from(message.bucket) + message.now / MINUTE_MS).is_multiple_of(self.probe)
    }

    /// After the time set, or when it is its turn, if that is sooner: so a message waits `probe`
    /// minutes at most before it is tried, whatever the upstream does meanwhile. Each bucket has
    /// a moment of its own, so that what waits does not come back all at once.
    fn asked_again(&self, message: &Transaction) -> u64 {
        let (bucket, minute) = (u64::from(message.bucket), message.now / MINUTE_MS);
        let turn = minute + self.probe - (bucket + minute) % self.probe;
        let turn = turn.saturating_mul(MINUTE_MS).saturating_add(bucket * MINUTE_MS / BUCKETS);
        let spread = self.wait_ms.saturating_mul(bucket) / BUCKETS;
        turn.min(message.now.saturating_add(self.wait_ms).saturating_add(spread))
    }
}

#[cfg(test)]
mod tests;
