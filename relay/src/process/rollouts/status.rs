//! What is to be seen of policies and their roll-outs.

use std::collections::BTreeMap;

use super::{
    Rollouts,
    check::{hooks, hooks_of},
};
use crate::{
    config::{FailMode, PluginSource},
    control::wire::{PluginList, PluginStatus, RolloutStatus},
    policy::{FailureKind, Policy, PolicyStats, TIME_BUCKETS_NS, signature::Signed},
    rollout::{CANDIDATE, Entry, Rollout},
};

impl Rollouts {
    pub(super) fn status(&self) -> PluginList {
        let generation = self.relay.generation();
        let state = self.store.state();
        let describe = |policy: &Policy| {
            let name = policy.name();
            let configured = name.strip_suffix(CANDIDATE).unwrap_or(name);
            let entry = state.policies.get(configured);
            let is_candidate = name.ends_with(CANDIDATE);
            let rollout = entry.and_then(|entry| entry.rollout.as_ref());
            let rollout = rollout.filter(|_| !is_candidate);
            PluginStatus {
                rollout: rollout.map(|rollout| self.rollout(configured, rollout)),
                earlier: entry.filter(|_| !is_candidate).map(earlier).unwrap_or_default(),
                generation: generation.number,
                ..described(policy)
            }
        };
        PluginList {
            host: generation.config.relay.hostname.clone(),
            generation: generation.number,
            policies: generation.policies.policies().iter().map(describe).collect(),
        }
    }

    fn rollout(&self, policy: &str, rollout: &Rollout) -> RolloutStatus {
        let counted = match rollout.stage.is_under_way() {
            true => self.counted(policy, rollout),
            false => Default::default(),
        };
        RolloutStatus {
            stage: rollout.stage.as_str().to_owned(),
            since: rollout.since.to_string(),
            digest: rollout.release.digest.clone(),
            began: rollout.release.at.to_string(),
            by: rollout.release.by.clone(),
            reason: rollout.release.reason.clone(),
            skipped: rollout.release.skipped.iter().map(|one| one.as_str().to_owned()).collect(),
            why: rollout.why.clone(),
            bounds: rollout.bounds,
            compared: counted.compared(),
            different: counted.different(),
            calls: counted.calls,
            failures: counted.failures,
        }
    }
}

/// Digests of what a roll-back would bring back, the nearest first.
fn earlier(entry: &Entry) -> Vec<String> {
    entry.installed.iter().rev().skip(1).map(|release| release.digest.clone()).collect()
}

fn described(policy: &Policy) -> PluginStatus {
    let stats = policy.stats();
    let (source, configured) = match policy.source() {
        PluginSource::Builtin(_) => ("builtin", policy.source()),
        PluginSource::File(_) => ("file", policy.source()),
        PluginSource::Installed(_) => ("installed", policy.source().configured()),
    };
    let (signed_by, key) = match policy.signed() {
        Signed::By { name, id, .. } => (Some(name.clone()), Some(id.clone())),
        Signed::Unknown { id } => (None, Some(id.clone())),
        Signed::Builtin | Signed::Not => (None, None),
    };
    let times = stats.time_buckets();
    let timed: u64 = times.iter().sum();
    let failures = FailureKind::ALL.into_iter();
    let failures = failures.map(|kind| (kind.as_str().to_owned(), stats.failures(kind)));
    PluginStatus {
        policy: policy.name().to_owned(),
        hooks: hooks(policy).split(", ").map(str::to_owned).collect(),
        mode: if policy.is_live() { "live" } else { "shadow" }.to_owned(),
        plugin: policy.description().name.clone(),
        version: policy.description().version.clone(),
        source: source.to_owned(),
        configured: configured.to_string(),
        digest: policy.digest().to_owned(),
        signed_by,
        key,
        generation: 0,
        calls: stats.calls(),
        mean_ns: stats.time_sum_ns().checked_div(timed).unwrap_or(0),
        p99_ns: p99(stats),
        memory_limit: policy.memory() as u64,
        failures: failures.filter(|(_, count)| *count > 0).collect(),
        fail_modes: hooks_of(policy)
            .map(|hook| (hook.as_str().to_owned(), word(policy.fail_mode(hook)).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        rollout: None,
        earlier: Vec::new(),
    }
}

fn word(mode: FailMode) -> &'static str {
    match mode {
        FailMode::Hold => "hold",
        FailMode::Defer => "defer",
        FailMode::Ignore => "ignore",
    }
}

/// The bound of the bucket that the slowest call but one in a hundred is in; none without a call,
/// or where that has no bound.
fn p99(stats: &PolicyStats) -> Option<u64> {
    let times = stats.time_buckets();
    let all: u64 = times.iter().sum();
    let wanted = all - all / 100;
    let mut seen = 0;
    let bucket = times.iter().position(|count| {
        seen += count;
        seen >= wanted
    })?;
    TIME_BUCKETS_NS.get(bucket).copied().filter(|_| all > 0)
}
