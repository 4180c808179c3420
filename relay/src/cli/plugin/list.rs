//! `wavegate plugin list`: policies, their plugins and roll-outs. Floor 4.

use std::{io::Write, time::Duration};

use clap::Args;

use super::super::{
    client::Where,
    output::{clean, field, json, list as words, table},
};
use crate::control::wire::{PluginList, PluginStatus, RolloutStatus};

/// Characters of a digest in the table; all are in the JSON, and behind a roll-out.
const DIGEST: usize = 12;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    place: Where,
    /// For programs.
    #[arg(long)]
    json: bool,
}

pub(super) fn list(args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let list: PluginList = args.place.get("/v1/plugins")?;
    match args.json {
        true => json(out, &list)?,
        false => print(out, &list)?,
    }
    Ok(0)
}

fn print(out: &mut dyn Write, list: &PluginList) -> std::io::Result<()> {
    writeln!(out, "{}, generation {}\n", clean(&list.host), list.generation)?;
    let head = [
        "POLICY",
        "MODE",
        "STAGE",
        "HOOKS",
        "PLUGIN",
        "SOURCE",
        "DIGEST",
        "SIGNED BY",
        "CALLS",
        "MEAN",
        "P99",
        "MEMORY",
        "FAILURES",
        "FAIL",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(list.policies.iter().map(row));
    table(out, &rows)?;
    for status in &list.policies {
        if let Some(rollout) = &status.rollout {
            writeln!(out, "\n{}", clean(&status.policy))?;
            print_rollout(out, rollout)?;
        }
    }
    Ok(())
}

fn row(status: &PluginStatus) -> Vec<String> {
    let stage = status.rollout.as_ref().map_or("-", |rollout| &rollout.stage);
    let failures: Vec<String> =
        status.failures.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let modes: Vec<&str> = status.fail_modes.values().map(String::as_str).collect();
    let timed = |ns: Option<u64>| match ns {
        Some(ns) if status.calls > 0 => format!("{:?}", Duration::from_nanos(ns)),
        _ => "-".to_owned(),
    };
    vec![
        status.policy.clone(),
        status.mode.clone(),
        stage.to_owned(),
        words(&status.hooks),
        clean(&format!("{} {}", status.plugin, status.version)),
        status.source.clone(),
        status.digest.chars().take(DIGEST).collect(),
        status.signed_by.clone().unwrap_or_else(|| "-".to_owned()),
        status.calls.to_string(),
        timed(Some(status.mean_ns)),
        timed(status.p99_ns),
        format!("{} MiB", status.memory_limit >> 20),
        words(&failures),
        words(&modes),
    ]
}

fn print_rollout(out: &mut dyn Write, rollout: &RolloutStatus) -> std::io::Result<()> {
    field(out, "roll-out", &rollout.digest)?;
    field(out, "stage", format!("{} since {}", rollout.stage, rollout.since))?;
    field(out, "", clean(&rollout.why))?;
    field(out, "begun", format!("{} by {}", rollout.began, clean(&rollout.by)))?;
    field(out, "reason", clean(&rollout.reason))?;
    if !rollout.skipped.is_empty() {
        field(out, "left out", words(&rollout.skipped))?;
    }
    let RolloutStatus { bounds, compared, different, calls, failures, .. } = rollout;
    match &*rollout.stage {
        "shadow" => field(
            out,
            "compared",
            format!(
                "{compared} of {}, {different} differ (at most {})",
                bounds.shadow_calls, bounds.max_differences
            ),
        ),
        "watched" => field(
            out,
            "calls",
            format!("{calls}, {failures} failed (at most {})", bounds.max_errors),
        ),
        _ => Ok(()),
    }
}
