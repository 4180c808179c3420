//! Sends large messages to an upstream of their own, and has no opinion about others.

use wavegate_policy::Policy;
use wavegate_policy::routing::{self, Decision, Target};
use wavegate_policy::settings::Table;
use wavegate_policy::types::Transaction;

struct MyPolicy {
    /// None: nothing is sent anywhere else.
    upstream: Option<String>,
    larger_than: u64,
}

wavegate_policy::export!(MyPolicy: routing);

impl Policy for MyPolicy {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        let larger_than = settings.get("larger_than").and_then(|field| field.whole(0..=u64::MAX));
        MyPolicy {
            // A name that is none of the relay's upstreams is reported as wrong.
            upstream: settings.get("upstream").and_then(|field| field.upstream(upstreams)),
            larger_than: larger_than.unwrap_or(1_000_000),
        }
    }
}

impl routing::Policy for MyPolicy {
    fn route(&self, message: &Transaction) -> Decision {
        match &self.upstream {
            Some(upstream) if message.size > self.larger_than => {
                Decision::All(Target { upstream: upstream.clone(), fallbacks: Vec::new() })
            }
            _ => Decision::Abstain,
        }
    }
}

#[cfg(test)]
mod tests {
    use wavegate_policy::configured;

    use super::*;

    #[test]
    fn an_upstream_that_does_not_exist_is_reported() {
        let there = ["legacy".to_owned()];
        let wrong = configured::<MyPolicy>(r#"{ "upstream": "bulk" }"#, &there).err().unwrap();
        assert_eq!(wrong[0].path, "upstream");
    }
}
