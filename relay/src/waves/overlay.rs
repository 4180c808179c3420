//! The plan as it is in force: what a file says, with the waves that have begun as they were when
//! they began. Pure.

use std::collections::HashMap;

use super::Record;
use crate::plan::{Parts, Plan, Release, Wave};

/// Whether a plan says of a wave that has begun what is so.
pub(super) fn agrees(plan: &Plan, record: &Record) -> bool {
    let wave = plan.waves.iter().find(|wave| record.is_of(wave));
    wave.is_some_and(|wave| members(plan, wave) == members_of(record))
}

/// Why a plan must not replace the one in force: what it says of waves that have begun.
pub(super) fn contradictions(plan: &Plan, record: &Record) -> Vec<String> {
    let Record { wave: id, opens, planned_closes, .. } = record;
    let phase = record.stage.phase();
    let lost = record.members.iter().filter(|name| !has(plan, name));
    let mut found: Vec<String> = lost
        .map(|name| {
            format!("has no instance \"{name}\", whose wave {id} is {phase}; put it back until the wave is over")
        })
        .collect();
    if record.ad_hoc {
        return found;
    }
    let Some(wave) = plan.waves.iter().find(|wave| wave.window.wave == *id) else {
        found.push(format!("has no wave \"{id}\", which is {phase}; put it back until it is over"));
        return found;
    };
    if wave.window.opens != *opens {
        found.push(format!(
            "has wave \"{id}\", which is {phase}, open at {} and not at {opens}; put that back",
            wave.window.opens
        ));
    }
    if wave.window.closes != *planned_closes {
        found.push(format!(
            "has wave \"{id}\", which is {phase}, close at {} and not at {planned_closes}; put that \
             back, and extend or complete the wave instead",
            wave.window.closes
        ));
    }
    if members(plan, wave) != members_of(record) {
        found.push(format!(
            "has other instances in wave \"{id}\", which is {phase}; put its own back until it is \
             over"
        ));
    }
    found
}

fn has(plan: &Plan, name: &str) -> bool {
    plan.instances.iter().any(|instance| instance.name == name)
}

fn members<'a>(plan: &'a Plan, wave: &Wave) -> Vec<&'a str> {
    let mut names: Vec<&str> =
        wave.instances.iter().map(|index| plan.instances[*index].name.as_str()).collect();
    names.sort_unstable();
    names
}

fn members_of(record: &Record) -> Vec<&str> {
    let mut names: Vec<&str> = record.members.iter().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// The plan of a file with waves that have begun and that it says otherwise of, or knows nothing
/// of. An instance that the file has lost is taken from `old`.
pub(super) fn over<'a>(
    plan: &Plan,
    begun: impl Iterator<Item = &'a Record>,
    old: Option<&Plan>,
) -> Plan {
    let Plan { freeze_lead_ms, program, environments, instances, waves, announced, .. } = plan;
    let mut parts = Parts {
        freeze_lead_ms: *freeze_lead_ms,
        program: program.clone(),
        environments: environments.clone(),
        instances: instances.clone(),
        waves: waves.clone(),
        announced: announced.clone(),
    };
    let mut places: HashMap<String, usize> =
        (0..).zip(instances).map(|(index, one)| (one.name.clone(), index)).collect();
    for record in begun {
        let mut mine = Vec::new();
        for name in &record.members {
            let kept = || old?.instances.iter().find(|one| one.name == *name).cloned();
            let place = places.get(name).copied().or_else(|| {
                parts.instances.push(kept()?);
                Some(parts.instances.len() - 1)
            });
            if let Some(place) = place {
                places.insert(name.clone(), place);
                mine.push(place);
            }
        }
        mine.sort_unstable();
        let wave = wave(record, mine, plan, old, &mut parts.waves);
        parts.waves.push(wave);
    }
    Plan::assemble(parts)
}

/// The wave of a record, whose instances no other wave has any more.
fn wave(
    record: &Record,
    mine: Vec<usize>,
    plan: &Plan,
    old: Option<&Plan>,
    waves: &mut Vec<Wave>,
) -> Wave {
    let same = |wave: &&Wave| wave.window.wave == record.wave;
    let known = plan.waves.iter().find(same).or_else(|| old?.waves.iter().find(same));
    // A freeze without a plan changes nothing of where mail goes.
    let beneath = mine.first().and_then(|index| plan.wave(*index)).filter(|_| record.ad_hoc);
    let like = known.or(beneath);
    let (before, after) =
        (like.and_then(|wave| wave.before.clone()), like.and_then(|wave| wave.after.clone()));
    waves.retain(|wave| wave.window.wave != record.wave);
    for wave in &mut *waves {
        wave.instances.retain(|index| mine.binary_search(index).is_err());
    }
    Wave {
        window: record.window(),
        environment: record.environment.clone(),
        instances: mine,
        before,
        after,
        release: if record.on_complete { Release::OnComplete } else { Release::AtClose },
        announced: known.and_then(|wave| wave.announced),
        ..Wave::default()
    }
}
