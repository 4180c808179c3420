//! The standard throttle policy: rates and concurrency by any mixture of upstream, domain,
//! address and instance, and what a 4xx reply teaches about them.
//!
//! Owns the keys that limits are kept by. The relay keeps the counts.

mod key;
mod settings;

use settings::{Count, Limit, Share};
use wavegate_policy::settings::Table;
use wavegate_policy::throttling::{
    self, Attempt, ConcurrencyLimit, Lesson, LimitSet, Outcome, Pause, RateLimit, Slow,
};
use wavegate_policy::{Needs, Policy};

/// The policy with its settings.
pub struct Throttle {
    limits: Vec<Limit>,
    /// Keys that one limit may use in one attempt, so that all limits fit into one answer. What an
    /// attempt has beyond them (by recipient, a message to more than 64 domains) is not counted.
    rate_keys: usize,
    concurrency_keys: usize,
}

wavegate_policy::export!(Throttle: throttling);

impl Policy for Throttle {
    const NAME: &'static str = "throttle";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        let share = settings.get("share").map_or(Some(Share::ALL), |field| Share::read(&field));
        let share = share.unwrap_or(Share::ALL);
        let limits = settings
            .get("limits")
            .map_or_else(Vec::new, |f| settings::limits(&f, upstreams, share));
        let rates = limits.iter().filter(|limit| limit.rate.is_some()).count();
        let concurrency = limits.iter().filter(|limit| limit.concurrency.is_some()).count();
        Throttle {
            rate_keys: throttling::MAX_RATES / rates.max(1),
            concurrency_keys: throttling::MAX_CONCURRENCY / concurrency.max(1),
            limits,
        }
    }

    fn needs(&self) -> Needs {
        let outcomes = self.limits.iter().any(|limit| limit.learn.is_some());
        Needs { attributes: Vec::new(), upstreams: Vec::new(), outcomes }
    }
}

impl throttling::Policy for Throttle {
    fn limits(&self, attempt: &Attempt) -> LimitSet {
        let mut answer = LimitSet { rates: Vec::new(), concurrency: Vec::new() };
        for (index, limit) in self.limits.iter().enumerate() {
            if !limit.applies(attempt) {
                continue;
            }
            let keys = key::keys(index, limit, attempt, self.rate_keys.max(self.concurrency_keys));
            if let Some(most) = limit.concurrency {
                let of_key =
                    |(key, _): &(String, u64)| ConcurrencyLimit { key: key.clone(), limit: most };
                answer.concurrency.extend(keys.iter().take(self.concurrency_keys).map(of_key));
            }
            if let Some(rate) = &limit.rate {
                answer.rates.extend(keys.into_iter().take(self.rate_keys).map(
                    |(key, recipients)| {
                        let cost = match limit.count {
                            Count::Messages => 1,
                            Count::Recipients => recipients.clamp(1, rate.burst),
                        };
                        let (quantity, per_ms, burst) = (rate.quantity, rate.per_ms, rate.burst);
                        RateLimit { key, quantity, per_ms, burst, cost }
                    },
                ));
            }
        }
        answer
    }

    /// A reply that a limit listens to pauses and slows down the keys of that limit. Pauses
    /// first: where there is room for some lessons only, they are the ones that help.
    fn observe(&self, outcome: &Outcome) -> Vec<Lesson> {
        let learns = |key: &&String| {
            let learn = self.limits.get(key::limit_of(key)?)?.learn.as_ref()?;
            learn.codes.contains(&outcome.code).then_some((String::clone(key), learn))
        };
        let learned: Vec<_> = outcome.keys.iter().filter_map(|key| learns(&key)).collect();
        let pauses = learned.iter().filter_map(|(key, learn)| {
            let until = outcome.now.saturating_add(learn.pause_ms?);
            Some(Lesson::Pause(Pause { key: key.clone(), until }))
        });
        let slows = learned.iter().filter_map(|(key, learn)| {
            let until = outcome.now.saturating_add(learn.for_ms);
            Some(Lesson::Slow(Slow { key: key.clone(), factor: learn.slow?, until }))
        });
        pauses.chain(slows).take(throttling::MAX_LESSONS).collect()
    }
}

#[cfg(test)]
mod tests;
