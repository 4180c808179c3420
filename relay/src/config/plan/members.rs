//! Which instances are in which wave: by name, by `select`, and in one wave at a time. Floor 1.

use std::collections::{BTreeMap, HashMap};

use super::{
    instance::DraftInstance,
    unknown,
    wave::{DraftWave, Select},
};
use crate::{
    config::{
        diagnostic::{Located, Place, Report},
        values::quote,
    },
    plan::{Instance, Timestamp},
};

/// How many unknown names get a "did you mean": it costs a look at every name.
const HINTS_MAX: usize = 20;

/// What a criterion of `select` is called, what it asks for, and what an instance has of it.
type Criterion<'a> = (&'static str, &'a Option<Located<String>>, fn(&Instance) -> Option<&str>);

/// Finds the instances that the waves name and select.
pub(super) fn join(instances: &[DraftInstance], waves: &mut [DraftWave], report: &Report) {
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
    for draft in waves {
        // In the order of the plan, whatever the order in the wave.
        let mut members: BTreeMap<usize, Place> = BTreeMap::new();
        for member in &draft.named {
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
            check_environment(&instances[index].instance, member, draft, report);
            members.entry(index).or_insert_with(|| member.place.clone());
        }
        if let Some(select) = &draft.select {
            for index in selected(select, draft, instances, report) {
                members.entry(index).or_insert_with(|| select.place.clone());
            }
        }
        (draft.wave.instances, draft.members) = members.into_iter().unzip();
    }
}

fn check_environment(
    instance: &Instance,
    member: &Located<String>,
    wave: &DraftWave,
    report: &Report,
) {
    if let Some(place) = &wave.environment
        && !instance.environment.is_empty()
        && instance.environment != wave.wave.environment
    {
        let (ours, theirs) = (&wave.wave.environment, &instance.environment);
        let message = format!(
            "is of environment {}, its wave ({}) of {}; put it in another wave",
            quote(theirs),
            place.short(),
            quote(ours)
        );
        report.error(&member.place, message);
    }
}

/// The instances of the wave's environment that `select` means; at least one.
fn selected(
    select: &Select,
    wave: &DraftWave,
    instances: &[DraftInstance],
    report: &Report,
) -> Vec<usize> {
    let criteria: [Criterion<'_>; 3] = [
        ("product", &select.product, |one| Some(one.product.as_str())),
        ("hosting", &select.hosting, |one| one.hosting.as_deref()),
        ("customer", &select.customer, |one| Some(one.customer.as_str())),
    ];
    let mut good = true;
    for (kind, wanted, of) in &criteria {
        let Some(wanted) = wanted else { continue };
        let all = || instances.iter().filter_map(|one| of(&one.instance));
        if !all().any(|value| value == wanted.value) {
            let mut known: Vec<String> = all().map(str::to_owned).collect();
            known.sort_unstable();
            known.dedup();
            report.error(&wanted.place, unknown(kind, &wanted.value, &known));
            good = false;
        }
    }
    let is_meant = |one: &Instance| {
        one.environment == wave.wave.environment
            && criteria.iter().all(|(_, wanted, of)| {
                wanted.as_ref().is_none_or(|wanted| of(one) == Some(wanted.value.as_str()))
            })
    };
    let found: Vec<usize> =
        (0..instances.len()).filter(|index| is_meant(&instances[*index].instance)).collect();
    let any_criterion = criteria.iter().any(|(_, wanted, _)| wanted.is_some());
    if !any_criterion {
        return Vec::new(); // said of the section
    }
    if found.is_empty() && good {
        let environment = quote(&wave.wave.environment);
        let message = format!(
            "selects no instance of environment {environment}; leave a criterion out, or correct \
             the instances"
        );
        report.error(&select.place, message);
    }
    found
}

/// Every instance in one wave that is not over. In none is a warning.
pub(super) fn check(
    instances: &[DraftInstance],
    waves: &[DraftWave],
    now: Timestamp,
    report: &Report,
) {
    let mut wave_of: HashMap<usize, &DraftWave> = HashMap::new();
    let mut in_any: Vec<bool> = vec![false; instances.len()];
    for draft in waves {
        for (index, place) in draft.wave.instances.iter().zip(&draft.members) {
            in_any[*index] = true;
            if !draft.has_window() || draft.wave.window.is_over(now) {
                continue;
            }
            if let Some(other) = wave_of.get(index) {
                let other = other.place.short();
                let message = match &draft.select {
                    Some(select) if select.place.at == place.at => format!(
                        "selects instance {}, which is in the wave at {other} too; leave it in \
                         one wave",
                        quote(&instances[*index].instance.name)
                    ),
                    _ => format!("is in the wave at {other} too; leave it in one wave"),
                };
                report.error(place, message);
            } else {
                wave_of.insert(*index, draft);
            }
        }
    }
    for (draft, in_any) in instances.iter().zip(in_any) {
        if draft.name.is_some() && !in_any {
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
