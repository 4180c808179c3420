//! Shadows: what they would change. Only looked at; they are made by the configuration.

use std::sync::Arc;

use axum::extract::State;

use super::{
    Answer, Control, Json,
    wire::{Shadow, ShadowClass, ShadowExample, ShadowFailures, ShadowList},
};
use crate::{
    config::Mode,
    decision::record::Class,
    policy::{Example, FailureKind, PolicyStats, ShadowReport},
    relay::Relay,
};

pub(super) async fn list(State(shared): State<Arc<Control>>) -> Answer<ShadowList> {
    let relay = &shared.relay;
    let all = relay.policy_host.stats();
    let shadows = all.iter().filter_map(|stats| Some(shadow(relay, stats, stats.shadow_report()?)));
    Ok(Json(ShadowList { shadows: shadows.collect() }))
}

/// A shadow, whether or not it is one now.
fn shadow(relay: &Relay, stats: &PolicyStats, report: ShadowReport) -> Shadow {
    let generation = relay.look();
    let now = generation.policies.policies().iter().find(|policy| policy.name() == stats.name());
    let (percent, replaces) = match now.map(|policy| policy.mode()) {
        Some(Mode::Shadow { percent, replaces }) => (Some(*percent), replaces.clone()),
        Some(Mode::Live) | None => (None, None),
    };
    let ShadowReport { digest, since, counts, failures, time_ns, examples } = report;
    Shadow {
        policy: stats.name().to_owned(),
        percent,
        replaces,
        digest,
        since: since.map(|since| since.to_string()),
        asked: counts.asked,
        dropped: counts.dropped,
        time_us: time_ns / 1000,
        classes: Class::ALL
            .iter()
            .map(|&class| ShadowClass { class, answers: counts.of(class) })
            .collect(),
        failures: FailureKind::ALL
            .iter()
            .zip(failures)
            .filter(|(_, calls)| *calls > 0)
            .map(|(kind, calls)| ShadowFailures { kind: kind.as_str().to_owned(), calls })
            .collect(),
        examples: examples.into_iter().map(example).collect(),
    }
}

fn example(example: Example) -> ShadowExample {
    let Example { class, message, function, at, old, new } = example;
    ShadowExample { class, message, function: function.to_owned(), at: at.to_string(), old, new }
}
