//! An instance moves to its new upstream by hundredths of a percent, before its window: what
//! goes wrong there goes wrong for a few first.
//!
//! Owns which messages are among the few. It has no opinion about all others.

use wavegate_policy::Policy;
use wavegate_policy::routing::{self, Decision, Target};
use wavegate_policy::settings::{Field, Table};
use wavegate_policy::types::Transaction;

/// The policy with its settings.
pub struct Canary {
    /// Instance, and how many of the 10,000 buckets have moved.
    moved: Vec<(String, u32)>,
    /// None: each instance's own upstream after its window.
    upstream: Option<String>,
}

wavegate_policy::export!(Canary: routing);

impl Policy for Canary {
    const NAME: &'static str = "canary";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        let percent = settings.get("percent").and_then(|field| field.table());
        Canary {
            moved: percent.map_or_else(Vec::new, |table| {
                table.entries().map(|(name, field)| (name.to_owned(), buckets(&field))).collect()
            }),
            upstream: settings.get("upstream").and_then(|field| field.upstream(upstreams)),
        }
    }
}

impl routing::Policy for Canary {
    fn route(&self, message: &Transaction) -> Decision {
        let Some(instance) = &message.instance else { return Decision::Abstain };
        // From the window on the plan says where mail goes; back to the old upstream, too.
        if !matches!(instance.phase.as_str(), "unscheduled" | "scheduled") {
            return Decision::Abstain;
        }
        let moved = self.moved.iter().find(|(name, _)| *name == instance.name);
        let upstream = self.upstream.as_ref().unwrap_or(&instance.after);
        // The bucket of a message stays the same: raising the number adds messages, and takes
        // none back.
        if moved.is_none_or(|(_, buckets)| message.bucket >= *buckets) || upstream.is_empty() {
            return Decision::Abstain;
        }
        // While the new upstream is down its mail goes where it went before.
        let mut fallbacks = vec![instance.before.clone()];
        fallbacks.retain(|before| !before.is_empty() && before != upstream);
        Decision::All(Target { upstream: upstream.clone(), fallbacks })
    }
}

/// A percentage in buckets: a hundred of them are one percent.
fn buckets(field: &Field<'_>) -> u32 {
    let thousandths = field.thousandths(0..=100_000).unwrap_or(0);
    if !thousandths.is_multiple_of(10) {
        field.wrong("must have at most two decimals: there are 10,000 buckets");
    }
    u32::try_from(thousandths / 10).unwrap_or(0)
}

#[cfg(test)]
mod tests;
