//! The plan file: instances and waves. Owns its keys and the checks within it; names of
//! upstreams and listeners come from the relay's own file. Floor 1.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    diagnostic::{Located, Place, Report},
    reader::Section,
    values::{self, nearest, quote},
};
use crate::plan::{Conflict, Instance, Matcher, Plan, Timestamp, Wave, Window, conflicts};

/// Default of `freeze_lead`.
const FREEZE_LEAD: Duration = Duration::from_secs(60);
/// The longest `freeze_lead` and the longest window: a longer one is a typing error.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the relay's own file says that the plan refers to.
pub(super) struct Known {
    pub(super) upstreams: Vec<String>,
    pub(super) listeners: Vec<String>,
    /// Whether there is a `[migration]`.
    pub(super) migration: bool,
}

/// How many unknown names get a "did you mean": it costs a look at every name.
const HINTS_MAX: usize = 20;

struct DraftInstance {
    instance: Instance,
    place: Place,
    name: Option<Place>,
    matcher: Place,
    /// Whether the matcher was read without an error.
    matcher_good: bool,
}

struct DraftWave {
    wave: Wave,
    place: Place,
    environment: Option<Place>,
    members: Vec<Located<String>>,
}

/// Reads the plan.
pub(super) fn read(root: Section<'_>, known: &Known) -> Plan {
    let report = root.report();
    let lead = root.duration("freeze_lead", FREEZE_LEAD, Duration::ZERO..=DAY);
    let instances: Vec<_> =
        root.sections("instance").into_iter().map(|one| read_instance(one, known)).collect();
    let mut waves: Vec<_> =
        root.sections("wave").into_iter().map(|one| read_wave(one, known)).collect();
    root.finish();
    check_ids(&waves, report);
    join(&instances, &mut waves, report);
    if !known.migration {
        check_next_hops(&instances, &waves, report);
    }
    check_matchers(&instances, report);
    let instances = instances.into_iter().map(|draft| draft.instance).collect();
    let waves = waves.into_iter().map(|draft| draft.wave).collect();
    Plan::new(u64::try_from(lead.as_millis()).unwrap_or(u64::MAX), instances, waves)
}

fn read_instance(section: Section<'_>, known: &Known) -> DraftInstance {
    let report = section.report();
    let name = required_name(&section, "name", "a name, such as \"acme-prod-1\"");
    let product = required_name(&section, "product", "a product, such as \"campaign-classic\"");
    let environment =
        required_name(&section, "environment", "an environment, such as \"production\"");
    let before = upstream(&section, "before", known);
    let after = upstream(&section, "after", known);
    let errors = report.errors();
    let example = "how its mail is known, such as { clients = [\"192.0.2.7\"], senders = \
                   [\"mkt.acme.example\"] }";
    let matcher = section.require("match", example);
    let matcher_place = matcher.map_or(section.place(), |value| value.place());
    let matcher = section.section("match").map(|one| read_matcher(one, known)).unwrap_or_default();
    let draft = DraftInstance {
        instance: Instance {
            name: value_of(&name),
            product: value_of(&product),
            environment: value_of(&environment),
            matcher,
            before,
            after,
        },
        place: section.place(),
        name: name.map(|found| found.place),
        matcher: matcher_place,
        matcher_good: report.errors() == errors,
    };
    section.finish();
    draft
}

fn read_matcher(section: Section<'_>, known: &Known) -> Matcher {
    let report = section.report();
    let clients = section.list("clients", "\"192.0.2.7\"", values::network);
    let senders = section.list("senders", "\"mkt.acme.example\"", values::sender);
    let listeners = section.list("listeners", "\"listener-1\"", values::name);
    for listener in listeners.iter().flatten() {
        if !known.listeners.contains(&listener.value) {
            report.error(&listener.place, unknown("listener", &listener.value, &known.listeners));
        }
    }
    for key in ["clients", "senders", "listeners"] {
        if let Some(value) = section.empty_list(key) {
            value.error("is empty, so that nothing could match; leave it out for any");
        }
    }
    if clients.is_none() && senders.is_none() && listeners.is_none() && section.is_empty() {
        let place = section.place();
        report.error(&place, "has no criterion; give `clients`, `senders` or `listeners`");
    }
    section.finish();
    let values = |list: Option<Vec<Located<String>>>| {
        list.into_iter().flatten().map(|found| found.value).collect()
    };
    Matcher {
        clients: clients.into_iter().flatten().map(|found| found.value).collect(),
        senders: values(senders),
        listeners: values(listeners),
    }
}

fn read_wave(section: Section<'_>, known: &Known) -> DraftWave {
    let id = required_name(&section, "id", "an id, such as \"prod-01\"");
    let environment =
        required_name(&section, "environment", "an environment, such as \"production\"");
    let example = "names of instances, such as [\"acme-prod-1\"]";
    section.require("instances", example);
    let members = section.list("instances", "\"acme-prod-1\"", values::name).unwrap_or_default();
    if let Some(value) = section.empty_list("instances") {
        value.error(format!("is empty; give {example}"));
    }
    let opens = time(&section, "opens");
    let closes = time(&section, "closes");
    if let (Some(opens), Some(closes)) = (&opens, &closes) {
        check_window(opens, closes, section.report());
    }
    let at = |found: Option<Located<Timestamp>>| found.map(|found| found.value).unwrap_or_default();
    let draft = DraftWave {
        wave: Wave {
            window: Window { wave: value_of(&id), opens: at(opens), closes: at(closes) },
            environment: value_of(&environment),
            instances: Vec::new(),
            before: upstream(&section, "before", known),
            after: upstream(&section, "after", known),
        },
        place: id.map_or(section.place(), |found| found.place),
        environment: environment.map(|found| found.place),
        members,
    };
    section.finish();
    draft
}

fn check_window(opens: &Located<Timestamp>, closes: &Located<Timestamp>, report: &Report) {
    let Some(ms) = closes.value.0.checked_sub(opens.value.0).filter(|ms| *ms > 0) else {
        report.error(
            &closes.place,
            format!("is not after `opens` ({}); give a later time", opens.value),
        );
        return;
    };
    if Duration::from_millis(ms) > DAY {
        report.error(
            &closes.place,
            format!(
                "makes a window of {}, longer than 24 h; give a time by {}",
                values::show_duration(Duration::from_millis(ms)).trim_matches('"'),
                opens.value.saturating_add_ms(u64::try_from(DAY.as_millis()).unwrap_or(u64::MAX)),
            ),
        );
    }
}

/// RFC 3339, as a string or as TOML's own date and time.
fn time(section: &Section<'_>, key: &'static str) -> Option<Located<Timestamp>> {
    let example = "a time with an offset, such as \"2026-01-20T06:00:00Z\"";
    let value = section.require(key, example)?;
    match value.get().as_datetime().map(ToString::to_string) {
        None => value.parse(example, values::time),
        Some(text) => match values::time(&text) {
            Ok(time) => Some(Located { value: time, place: value.place() }),
            Err(message) => {
                value.error(message);
                None
            }
        },
    }
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
    let complete = !known.upstreams.iter().any(String::is_empty);
    if complete && !known.upstreams.contains(&found.value) {
        section.report().error(&found.place, unknown("upstream", &found.value, &known.upstreams));
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

/// No two waves with one id.
fn check_ids(waves: &[DraftWave], report: &Report) {
    let mut first: HashMap<&str, &Place> = HashMap::new();
    for draft in waves {
        let id = draft.wave.window.wave.as_str();
        if id.is_empty() {
            continue;
        }
        if let Some(other) = first.get(id) {
            let other = other.short();
            report.error(&draft.place, format!("{} is also the wave at {other}", quote(id)));
        } else {
            first.insert(id, &draft.place);
        }
    }
}

/// Finds the instances that the waves name.
fn join(instances: &[DraftInstance], waves: &mut [DraftWave], report: &Report) {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (index, draft) in instances.iter().enumerate() {
        let Some(place) = &draft.name else { continue };
        let name = draft.instance.name.as_str();
        if let Some(other) = by_name.get(name) {
            let other = instances[*other].place.short();
            report.error(place, format!("{} is also the instance at {other}", quote(name)));
        } else {
            by_name.insert(name, index);
        }
    }
    let names: Vec<String> = instances.iter().map(|one| one.instance.name.clone()).collect();
    let mut hints = HINTS_MAX;
    let mut wave_of: HashMap<usize, (usize, Place)> = HashMap::new();
    for (wave, draft) in waves.iter_mut().enumerate() {
        for member in &draft.members {
            let Some(&index) = by_name.get(member.value.as_str()) else {
                let known = if hints > 0 { names.as_slice() } else { &[] };
                hints = hints.saturating_sub(1);
                let message = match known {
                    [] => format!("{} is not a known instance", quote(&member.value)),
                    known => unknown("instance", &member.value, known),
                };
                report.error(&member.place, message);
                continue;
            };
            let instance = &instances[index].instance;
            if let Some(place) = &draft.environment
                && !instance.environment.is_empty()
                && instance.environment != draft.wave.environment
            {
                let (ours, theirs) = (&draft.wave.environment, &instance.environment);
                let message = format!(
                    "is of environment {}, its wave ({}) of {}; put it in another wave",
                    quote(theirs),
                    place.short(),
                    quote(ours)
                );
                report.error(&member.place, message);
            }
            match wave_of.get(&index) {
                Some((other, _)) if *other == wave => {} // said of the list
                Some((_, other)) => report.error(
                    &member.place,
                    format!("is in the wave at {} too; leave it in one wave", other.short()),
                ),
                None => {
                    wave_of.insert(index, (wave, draft.place.clone()));
                    draft.wave.instances.push(index);
                }
            }
        }
    }
    warn_of_instances(instances, &wave_of, report);
}

fn warn_of_instances(
    instances: &[DraftInstance],
    wave_of: &HashMap<usize, (usize, Place)>,
    report: &Report,
) {
    for (index, draft) in instances.iter().enumerate() {
        if draft.name.is_some() && !wave_of.contains_key(&index) {
            report.warn(&draft.place, "is in no wave: its mail goes to `before` for ever");
        } else if draft.matcher_good && draft.instance.matcher.clients.is_empty() {
            report.warn(
                &draft.matcher,
                "has no `clients`: bounces (`<>`) of this instance cannot be known as its own, and \
                 are not held in its window",
            );
        }
    }
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
    for Conflict { first, second, network, sender, listener } in conflicts(&matchers) {
        let other = good[first];
        let who = format!("instance {} ({})", quote(&other.instance.name), other.matcher.short());
        let mut shared = Vec::new();
        shared.extend(network.map(|net| format!("client {net}")));
        shared.extend(sender.map(|sender| format!("sender {}", quote(&sender))));
        shared.extend(listener.map(|listener| format!("listener {}", quote(&listener))));
        let what = if matchers[first] == matchers[second] {
            format!("is the same as that of {who}")
        } else {
            format!("claims mail of {} with the same right as {who}", shared.join(" and "))
        };
        report.error(&good[second].matcher, format!("{what}; add a criterion to one of them"));
    }
}
