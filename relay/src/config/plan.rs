//! The plan file: program, environments, instances and waves. Owns its keys and the checks
//! within it; names of upstreams and listeners come from the relay's own file, announcements
//! from the lock beside the plan. Floor 1.
//!
//! `environment`, `instance` and `wave` read sections, `members` finds who is in which wave,
//! `schedule` compares what is known of windows with what environments allow.

mod environment;
mod instance;
mod members;
mod schedule;
mod wave;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use self::instance::DraftInstance;
pub(super) use self::{
    schedule::{Drafts, is_estimated},
    wave::DraftWave,
};
use super::{
    Checks, When,
    diagnostic::{Located, Place, Report},
    lock,
    reader::Section,
    redirect,
    values::{self, nearest, quote},
};
use crate::plan::{Conflict, Matcher, Parts, Plan, conflicts};

/// Default of `freeze_lead`.
const FREEZE_LEAD: Duration = Duration::from_secs(60);
/// The longest `freeze_lead` and the longest window: a longer one is a typing error.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The same in milliseconds.
const DAY_MS: u64 = 24 * 3_600_000;

/// What the relay's own file says that the plan refers to; none where there is no such file, so
/// that names are not checked.
#[derive(Default)]
pub(super) struct Known {
    pub(super) upstreams: Option<Vec<String>>,
    pub(super) listeners: Option<Vec<String>>,
    /// Upstreams whose mail goes where its client wanted to go.
    pub(super) originals: Vec<String>,
    /// Whether every instance must have a `before` and `after` in the plan itself: there is no
    /// `[migration]`.
    pub(super) lacks_migration: bool,
}

/// Reads the plan, with what was announced of it.
pub(super) fn read(root: Section<'_>, known: &Known, lock: Vec<lock::Entry>, when: When) -> Plan {
    let report = root.report();
    let place = root.place();
    let lead = root.duration("freeze_lead", FREEZE_LEAD, Duration::ZERO..=DAY);
    let program = root.section("program").map(environment::read_program);
    let environments: Vec<_> =
        root.sections("environment").into_iter().map(environment::read).collect();
    let instances: Vec<_> =
        root.sections("instance").into_iter().map(|one| instance::read(one, known)).collect();
    let mut waves: Vec<_> =
        root.sections("wave").into_iter().map(|one| wave::read(one, known)).collect();
    root.finish();
    instance::check_headers(&instances, report);
    environment::check(&environments, &instances, report);
    wave::check_ids(&waves, report);
    members::join(&instances, &mut waves, report);
    wave::close(&mut waves, &environments, report);
    members::check(&instances, &waves, when.now, report);
    if known.lacks_migration {
        check_next_hops(&instances, &waves, report);
    }
    check_matchers(&instances, report);
    lock::note(&lock, &mut waves);
    if when.checks != Checks::Values {
        let drafts = Drafts {
            environments: &environments,
            instances: &instances,
            waves: &waves,
            lock: &lock,
        };
        schedule::check(&drafts, when, report);
        lock::check(&lock, &drafts, &place, when.now, report);
    }
    Plan::assemble(Parts {
        freeze_lead_ms: millis(lead),
        program,
        environments: environments.into_iter().map(|draft| draft.environment).collect(),
        instances: instances.into_iter().map(|draft| draft.instance).collect(),
        waves: waves.into_iter().map(|draft| draft.wave).collect(),
        announced: lock.into_iter().map(|entry| entry.announcement).collect(),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn required_name(
    section: &Section<'_>,
    key: &'static str,
    example: &str,
) -> Option<Located<String>> {
    section.require(key, example)?.parse(example, values::name)
}

fn value_of(found: &Option<Located<String>>) -> String {
    found.as_ref().map(|found| found.value.clone()).unwrap_or_default()
}

/// The name of a known upstream.
fn upstream(section: &Section<'_>, key: &'static str, known: &Known) -> Option<String> {
    let found = section.parsed(key, "the name of an upstream in quotes", values::name)?;
    // A refused name of an upstream must not make every reference to it an error of its own.
    if let Some(upstreams) = &known.upstreams
        && !upstreams.iter().any(String::is_empty)
        && !upstreams.contains(&found.value)
    {
        section.report().error(&found.place, unknown("upstream", &found.value, upstreams));
    }
    if key == "after" && known.originals.contains(&found.value) {
        section.report().error(&found.place, redirect::no_after(&found.value));
    }
    Some(found.value)
}

/// What to say of a name that nothing has.
pub(super) fn unknown(kind: &str, name: &str, known: &[String]) -> String {
    const LISTED: usize = 10;
    let known = known.iter().map(String::as_str).filter(|name| !name.is_empty());
    let hint = match nearest(name, known.clone()) {
        Some(near) => format!("did you mean {}?", quote(near)),
        None if known.clone().next().is_none() => format!("there is no {kind} at all; add one"),
        None if known.clone().count() > LISTED => format!("use the name of a known {kind}"),
        None => format!("use {}", values::one_of(known)),
    };
    format!("{} is not a known {kind}; {hint}", quote(name))
}

/// Without `[migration]` every instance must say itself, or by its wave, where its mail goes.
fn check_next_hops(instances: &[DraftInstance], waves: &[DraftWave], report: &Report) {
    let mut before: HashSet<usize> = HashSet::new();
    let mut after: HashSet<usize> = HashSet::new();
    for draft in waves {
        if draft.wave.before.is_some() {
            before.extend(&draft.wave.instances);
        }
        if draft.wave.after.is_some() {
            after.extend(&draft.wave.instances);
        }
    }
    for (index, draft) in instances.iter().enumerate() {
        let lacks = [
            ("before", draft.instance.before.is_none() && !before.contains(&index)),
            ("after", draft.instance.after.is_none() && !after.contains(&index)),
        ];
        for (key, _) in lacks.iter().filter(|(_, lacks)| *lacks) {
            let place = Place { key: format!("{}.{key}", draft.place.key), ..draft.place.clone() };
            report.error(
                &place,
                "missing; give it here, in its wave or in `[migration]` of the relay's file",
            );
        }
    }
}

/// No two instances that claim the same mail with equal right.
fn check_matchers(instances: &[DraftInstance], report: &Report) {
    let good: Vec<&DraftInstance> = instances.iter().filter(|draft| draft.matcher_good).collect();
    let matchers: Vec<&Matcher> = good.iter().map(|draft| &draft.instance.matcher).collect();
    for Conflict { first, second, network, sender, listener, headers } in conflicts(&matchers) {
        let other = good[first];
        let who = format!("instance {} ({})", quote(&other.instance.name), other.matcher.short());
        let mut shared = Vec::new();
        shared.extend(network.map(|net| format!("client {net}")));
        shared.extend(sender.map(|sender| format!("sender {}", quote(&sender))));
        shared.extend(listener.map(|listener| format!("listener {}", quote(&listener))));
        shared.extend(headers.then(|| "the headers of both".to_owned()));
        if shared.is_empty() {
            let headers = matchers[first].headers.iter();
            shared.extend(headers.map(|(name, value)| format!("header {name}: {value}")));
        }
        let what = if matchers[first] == matchers[second] {
            format!("is the same as that of {who}")
        } else {
            format!("claims mail of {} with the same right as {who}", shared.join(" and "))
        };
        report.error(&good[second].matcher, format!("{what}; add a criterion to one of them"));
    }
}

/// Calls `again` for every name that stood somewhere before, with both places.
pub(super) fn repeated<'a>(
    names: impl Iterator<Item = (&'a str, &'a Place)>,
    mut again: impl FnMut(&str, &Place, &Place),
) {
    let mut first: HashMap<&str, &Place> = HashMap::new();
    for (name, place) in names.filter(|(name, _)| !name.is_empty()) {
        match first.get(name) {
            Some(other) => again(name, place, other),
            None => {
                first.insert(name, place);
            }
        }
    }
}

#[cfg(test)]
mod tests;
