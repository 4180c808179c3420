//! `[[wave]]`: its window and which instances it names. Floor 1.

use std::time::Duration;

use super::{
    DAY, DAY_MS, Known, environment::DraftEnvironment, repeated, required_name, upstream, value_of,
};
use crate::{
    config::{
        diagnostic::{Located, Place, Report},
        reader::Section,
        values::{self, quote},
    },
    plan::{ProbeFailure, Release, Timestamp, Wave, Window},
};

/// A wave and where its values stand.
pub(in crate::config) struct DraftWave {
    pub(in crate::config) wave: Wave,
    /// Of its id.
    pub(in crate::config) place: Place,
    pub(in crate::config) environment: Option<Place>,
    /// None where it was refused.
    pub(in crate::config) opens: Option<Place>,
    pub(in crate::config) closes: Closes,
    pub(super) named: Vec<Located<String>>,
    pub(in crate::config) select: Option<Select>,
    /// Where each of `wave.instances` is named or selected, in the same order.
    pub(in crate::config) members: Vec<Place>,
}

/// Where the end of a window comes from.
pub(in crate::config) enum Closes {
    /// It is given here.
    Given(Place),
    /// It is not given here: it follows from the estimate.
    Estimated(Place),
    /// It was refused.
    Bad,
}

/// `select = { … }`: all that are given must be met.
pub(in crate::config) struct Select {
    pub(super) place: Place,
    pub(super) product: Option<Located<String>>,
    pub(super) hosting: Option<Located<String>>,
    pub(super) customer: Option<Located<String>>,
}

impl DraftWave {
    /// Whether its window is known.
    pub(in crate::config) fn has_window(&self) -> bool {
        self.opens.is_some() && !matches!(self.closes, Closes::Bad)
    }

    /// Where to speak of its end.
    pub(in crate::config) fn end(&self) -> &Place {
        match (&self.closes, &self.opens) {
            (Closes::Given(place), _) => place,
            (_, Some(opens)) => opens,
            _ => &self.place,
        }
    }

    /// What the plan calls it.
    pub(in crate::config) fn id(&self) -> &str {
        &self.wave.window.wave
    }
}

const TIME: &str = "a time with an offset, such as \"2026-01-20T06:00:00Z\"";

/// One `[[wave]]`.
pub(super) fn read(section: Section<'_>, known: &Known) -> DraftWave {
    let id = required_name(&section, "id", "an id, such as \"prod-01\"");
    let environment =
        required_name(&section, "environment", "an environment, such as \"production\"");
    let select = section.section("select").map(read_select);
    let example = "names of instances, such as [\"acme-prod-1\"]";
    if section.get("select").is_none() {
        section.require("instances", &format!("{example}, or `select`"));
    }
    let named = section.list("instances", "\"acme-prod-1\"", values::name).unwrap_or_default();
    if let Some(value) = section.empty_list("instances") {
        value.error(format!("is empty; give {example}"));
    }
    section.require("opens", TIME);
    let opens = time(&section, "opens", TIME, values::time);
    let given = time(&section, "closes", TIME, values::time);
    if let (Some(opens), Some(closes)) = (&opens, &given) {
        check_window(opens, closes, section.report());
    }
    let closes = match (&given, section.get("closes")) {
        (Some(found), _) => Closes::Given(found.place.clone()),
        (None, Some(_)) => Closes::Bad,
        (None, None) => {
            let place = section.place();
            Closes::Estimated(Place { key: format!("{}.closes", place.key), ..place })
        }
    };
    let at = |found: &Option<Located<Timestamp>>| found.as_ref().map(|found| found.value);
    let releases = [("at-close", Release::AtClose), ("on-complete", Release::OnComplete)];
    let failures = [("extend", ProbeFailure::Extend), ("roll-back", ProbeFailure::RollBack)];
    let release = section.choice("release", "a way to end a window", &releases);
    let probe_failure =
        section.choice("probe_failure", "what follows a probe that failed", &failures);
    let draft = DraftWave {
        wave: Wave {
            window: Window {
                wave: value_of(&id),
                opens: at(&opens).unwrap_or_default(),
                closes: at(&given).unwrap_or_default(),
            },
            environment: value_of(&environment),
            instances: Vec::new(),
            before: upstream(&section, "before", known),
            after: upstream(&section, "after", known),
            release: release.map(|found| found.value).unwrap_or_default(),
            probe_failure: probe_failure.map(|found| found.value).unwrap_or_default(),
            announced: None,
        },
        place: id.map_or(section.place(), |found| found.place),
        environment: environment.map(|found| found.place),
        opens: opens.map(|found| found.place),
        closes,
        named,
        select,
        members: Vec::new(),
    };
    section.finish();
    draft
}

fn read_select(section: Section<'_>) -> Select {
    let word = |key| section.parsed(key, "a name in quotes", values::name);
    let select = Select {
        place: section.place(),
        product: word("product"),
        hosting: word("hosting"),
        customer: word("customer"),
    };
    if section.is_empty() {
        let message = "selects by nothing; give `product`, `hosting` or `customer`";
        section.report().error(&select.place, message);
    }
    section.finish();
    select
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
                opens.value.saturating_add_ms(DAY_MS),
            ),
        );
    }
}

/// A time, if the key is there, as a string or as TOML's own date and time.
pub(super) fn time(
    section: &Section<'_>,
    key: &'static str,
    wanted: &str,
    parse: fn(&str) -> Result<Timestamp, String>,
) -> Option<Located<Timestamp>> {
    let value = section.get(key)?;
    match value.get().as_datetime().map(ToString::to_string) {
        None => value.parse(wanted, parse),
        Some(text) => match parse(&text) {
            Ok(time) => Some(Located { value: time, place: value.place() }),
            Err(message) => {
                value.error(message);
                None
            }
        },
    }
}

/// No two waves with one id.
pub(super) fn check_ids(waves: &[DraftWave], report: &Report) {
    repeated(waves.iter().map(|draft| (draft.id(), &draft.place)), |id, place, other| {
        report.error(place, format!("{} is also the wave at {}", quote(id), other.short()));
    });
}

/// Ends the windows whose `closes` is not given.
pub(super) fn close(waves: &mut [DraftWave], environments: &[DraftEnvironment], report: &Report) {
    for draft in waves {
        let Closes::Estimated(place) = &draft.closes else { continue };
        let of_name = |one: &&DraftEnvironment| one.environment.name == draft.wave.environment;
        let environment = environments.iter().find(of_name).map(|one| &one.environment);
        match environment.and_then(|one| one.window_ms(draft.wave.instances.len())) {
            Some(ms) => {
                let window = &mut draft.wave.window;
                window.closes = window.opens.saturating_add_ms(ms);
            }
            None => {
                let environment = quote(&draft.wave.environment);
                let message = format!(
                    "missing; give {TIME}, or a `duration` of `[[environment]]` {environment}, \
                     from which it follows"
                );
                report.error(place, message);
                draft.closes = Closes::Bad;
            }
        }
    }
}
