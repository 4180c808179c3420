//! What shadows were asked. Floor 4.

use std::time::Duration;

use super::families::Families;
use crate::{decision::record::Class, policy::FailureKind, relay::Relay};

/// What the shadows were asked, for every policy name that was ever one.
pub(super) fn collect(families: &mut Families, relay: &Relay) {
    let all = relay.policy_host.stats();
    let all: Vec<_> =
        all.iter().filter_map(|stats| Some((stats.name(), stats.shadow_totals()?))).collect();
    let mut family = families.counter(
        "wavegate_policy_shadow_total",
        "Questions to shadows, by how the answer differs from what counted.",
    );
    for (name, totals) in &all {
        for class in Class::ALL {
            family.count(&[("policy", name), ("class", class.as_str())], totals.counts.of(class));
        }
    }
    let mut family = families.counter(
        "wavegate_policy_shadow_dropped_total",
        "Questions not put to shadows for want of room or time.",
    );
    for (name, totals) in &all {
        family.count(&[("policy", name)], totals.counts.dropped);
    }
    let mut family = families.counter(
        "wavegate_policy_shadow_failures_total",
        "Questions to shadows without an answer; no mail is affected.",
    );
    for (name, totals) in &all {
        for (kind, calls) in FailureKind::ALL.iter().zip(totals.failures) {
            family.count(&[("policy", name), ("kind", kind.as_str())], calls);
        }
    }
    let mut family =
        families.counter("wavegate_policy_shadow_seconds_total", "Processor time of shadows.");
    for (name, totals) in &all {
        let seconds = Duration::from_nanos(totals.time_ns).as_secs_f64();
        family.value(&[("policy", name)], seconds);
    }
}
