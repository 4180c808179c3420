//! Holds mail of instances that are being upgraded, and of sender domains that the operator
//! names.

use wavegate_policy::freeze::{self, Decision, Hold};
use wavegate_policy::settings::Table;
use wavegate_policy::types::Transaction;
use wavegate_policy::{Policy, text};

struct MyPolicy {
    /// Patterns of sender domains, such as `*.shop.example`.
    domains: Vec<String>,
    reason: String,
}

wavegate_policy::export!(MyPolicy: freeze);

impl Policy for MyPolicy {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, _upstreams: &[String]) -> Self {
        let reason = settings.get("reason").and_then(|field| field.text());
        MyPolicy {
            domains: settings.get("domains").map_or_else(Vec::new, |field| field.texts()),
            reason: reason.unwrap_or("held by the operator").to_owned(),
        }
    }
}

impl freeze::Policy for MyPolicy {
    fn decide(&self, message: &Transaction) -> Decision {
        if let Some(instance) = &message.instance {
            // A phase that is not known here is a later relay's: holding loses nothing.
            let phase = instance.phase.as_str();
            let known = ["unscheduled", "scheduled", "releasing", "migrated", "rolled-back"];
            if !known.contains(&phase) {
                let closes = instance.window.as_ref().map(|window| window.closes);
                let reason = format!("instance {} is being upgraded", instance.name);
                return Decision::Hold(Hold { until: closes.filter(|&at| at > message.now), reason });
            }
        }
        let domain = text::domain_of(&message.sender);
        if self.domains.iter().any(|pattern| text::matches(pattern, domain)) {
            // Until something changes, such as these settings.
            return Decision::Hold(Hold { until: None, reason: self.reason.clone() });
        }
        Decision::Proceed
    }
}

#[cfg(test)]
mod tests {
    use wavegate_policy::{configured, freeze::Policy as _, testing};

    use super::*;

    #[test]
    fn the_empty_sender_is_of_no_domain() {
        let policy: MyPolicy = configured(r#"{ "domains": ["*.example"] }"#, &[]).unwrap();
        let bounce = Transaction { sender: String::new(), ..testing::transaction() };
        assert!(matches!(policy.decide(&bounce), Decision::Proceed));
    }
}
