//! Gives each recipient domain so many messages a second, at each upstream.

use wavegate_policy::settings::Table;
use wavegate_policy::throttling::{self, Attempt, LimitSet, MAX_RATES, RateLimit};
use wavegate_policy::{Policy, text};

struct MyPolicy {
    per_second: u64,
    burst: u64,
}

wavegate_policy::export!(MyPolicy: throttling);

impl Policy for MyPolicy {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, _upstreams: &[String]) -> Self {
        let number = |name| settings.get(name).and_then(|field| field.whole(1..=1_000_000));
        let per_second = number("per_second").unwrap_or(50);
        MyPolicy { per_second, burst: number("burst").unwrap_or(per_second) }
    }
}

impl throttling::Policy for MyPolicy {
    /// Only names the limits. The relay keeps the counts, for all its workers together.
    fn limits(&self, attempt: &Attempt) -> LimitSet {
        let mut rates: Vec<RateLimit> = Vec::new();
        for &index in &attempt.recipients {
            let Some(recipient) = attempt.transaction.recipients.get(index as usize) else {
                continue;
            };
            let domain = text::domain_of(recipient).to_ascii_lowercase();
            let key = format!("{}/{domain}", attempt.upstream);
            if rates.len() < MAX_RATES && rates.iter().all(|rate| rate.key != key) {
                let (quantity, burst) = (self.per_second, self.burst);
                rates.push(RateLimit { key, quantity, per_ms: 1000, burst, cost: 1 });
            }
        }
        LimitSet { rates, concurrency: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use wavegate_policy::{configured, testing, throttling::Policy as _};

    use super::*;

    #[test]
    fn a_domain_is_charged_once_whatever_its_case() {
        let policy: MyPolicy = configured("{}", &[]).unwrap();
        let mut transaction = testing::transaction();
        transaction.recipients = vec!["a@x.example".into(), "b@X.example".into()];
        let attempt = Attempt { transaction, upstream: "cloud".into(), recipients: vec![0, 1] };
        let keys: Vec<_> = policy.limits(&attempt).rates.into_iter().map(|one| one.key).collect();
        assert_eq!(keys, ["cloud/x.example"]);
    }
}
