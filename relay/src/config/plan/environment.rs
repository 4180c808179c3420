//! `[program]` and `[[environment]]`. Floor 1.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    DAY,
    instance::{self, DraftInstance},
    millis, repeated, required_name, unknown, value_of, wave,
};
use crate::{
    config::{
        diagnostic::{Located, Place, Report},
        reader::Section,
        values::{self, nearest, quote},
    },
    plan::{Destination, Duration as Model, Environment, Program, in_words},
};

/// The longest notice: a longer one is a typing error.
const NOTICE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Bounds of windows and of what takes time in them.
const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
/// The most instances that are upgraded at a time.
const PARALLEL_MAX: usize = 10_000;

/// An environment and where its values stand.
pub(in crate::config) struct DraftEnvironment {
    pub(in crate::config) environment: Environment,
    pub(super) place: Place,
    after: Option<Place>,
    duration: Option<Place>,
}

/// `[program]`.
pub(super) fn read_program(section: Section<'_>) -> Program {
    let required = |key, example: &str| {
        let value = section.require(key, example)?;
        value.parse(example, values::line).map(|found| found.value)
    };
    let mail = |key| {
        let wanted = "a mail address, such as \"migration@example.net\"";
        section.parsed(key, wanted, instance::email).map(|found| found.value)
    };
    let destinations = [("cloud", Destination::Cloud), ("unnamed", Destination::Unnamed)];
    let program = Program {
        name: required("name", "a name, such as \"Sending infrastructure upgrade\"")
            .unwrap_or_default(),
        provider: required("provider", "who runs it, such as \"Example Mail\"").unwrap_or_default(),
        contact: section
            .parsed("contact", "a URL or a mail address in quotes", url_or_email)
            .map(|found| found.value),
        sender: mail("sender"),
        reply_to: mail("reply_to"),
        destination: section
            .choice("destination", "a destination", &destinations)
            .map(|found| found.value)
            .unwrap_or_default(),
    };
    section.finish();
    program
}

fn url_or_email(text: &str) -> Result<String, String> {
    let is_url = ["https://", "http://"].iter().any(|scheme| {
        let rest = text.strip_prefix(scheme).unwrap_or_default();
        !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b))
    });
    if is_url || instance::email(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is neither a URL nor a mail address; write one such as \"https://care.example.net/\" \
         or \"care@example.net\"",
        quote(text)
    ))
}

/// One `[[environment]]`.
pub(super) fn read(section: Section<'_>) -> DraftEnvironment {
    let name = required_name(&section, "name", "a name, such as \"production\"");
    let earliest = wave::time(
        &section,
        "earliest",
        "a date or a time, such as \"2024-01-01\" or \"2024-01-01T06:00:00Z\"",
        values::date_or_time,
    );
    let notice = section.duration("notice", Duration::ZERO, Duration::ZERO..=NOTICE_MAX);
    let after = section.parsed("after", "the name of an environment in quotes", values::name);
    let (min, max) = section.section("window").map(read_window).unwrap_or_default();
    let duration = section.section("duration").map(read_duration);
    let draft = DraftEnvironment {
        environment: Environment {
            name: value_of(&name),
            earliest: earliest.map(|found| found.value),
            notice_ms: millis(notice),
            after: after.as_ref().map(|found| found.value.clone()),
            window_min_ms: min,
            window_max_ms: max,
            duration: duration.as_ref().map(|found| found.value),
        },
        place: name.map_or(section.place(), |found| found.place),
        after: after.map(|found| found.place),
        duration: duration.map(|found| found.place),
    };
    section.finish();
    draft
}

/// `window = { min = …, max = … }`.
fn read_window(section: Section<'_>) -> (Option<u64>, Option<u64>) {
    let bound = |key| {
        let there = section.get(key)?;
        let bound = section.duration(key, *WINDOW.start(), WINDOW);
        Some(Located { value: millis(bound), place: there.place() })
    };
    let (min, max) = (bound("min"), bound("max"));
    if section.is_empty() {
        let place = section.place();
        section.report().error(&place, "has no bound; give `min`, `max` or both");
    }
    if let (Some(min), Some(max)) = (&min, &max)
        && min.value > max.value
    {
        let message = format!("is less than `min` ({}); give a longer one", in_words(min.value));
        section.report().error(&max.place, message);
    }
    section.finish();
    (min.map(|found| found.value), max.map(|found| found.value))
}

/// `duration = { fixed = …, each = …, parallel = … }`.
fn read_duration(section: Section<'_>) -> Located<Model> {
    let fixed = section.duration("fixed", Duration::ZERO, Duration::ZERO..=DAY);
    let each = section.duration("each", Duration::ZERO, Duration::ZERO..=DAY);
    let parallel = section.integer("parallel", 1, 1..=PARALLEL_MAX);
    let place = section.place();
    if section.get("fixed").is_none() && section.get("each").is_none() {
        section.report().error(&place, "says no duration; give `fixed`, `each` or both");
    }
    section.finish();
    let model = Model {
        fixed_ms: millis(fixed),
        each_ms: millis(each),
        parallel: u32::try_from(parallel).unwrap_or(1),
    };
    Located { value: model, place }
}

/// What must hold between environments and of the names that others call them by.
pub(super) fn check(
    environments: &[DraftEnvironment],
    instances: &[DraftInstance],
    report: &Report,
) {
    let names = environments.iter().map(|one| (one.environment.name.as_str(), &one.place));
    repeated(names, |name, place, other| {
        let other = other.short();
        report.error(place, format!("{} is also the environment at {other}", quote(name)));
    });
    for draft in environments {
        check_after(draft, environments, instances, report);
        let Environment { duration: Some(model), window_max_ms: Some(max), .. } = draft.environment
        else {
            continue;
        };
        let one = model.estimate_ms(1);
        if let Some(place) = draft.duration.as_ref().filter(|_| one > max) {
            let message = format!(
                "takes {} for a single instance, and the longest window is {}; raise \
                 `window.max` or lower these",
                in_words(one),
                in_words(max)
            );
            report.error(place, message);
        }
    }
    if !environments.is_empty() {
        check_known(environments, instances, report);
    }
}

fn check_after(
    draft: &DraftEnvironment,
    environments: &[DraftEnvironment],
    instances: &[DraftInstance],
    report: &Report,
) {
    let (Some(after), Some(place)) = (&draft.environment.after, &draft.after) else { return };
    let declared = environments.iter().map(|one| &one.environment.name);
    let used = instances.iter().map(|one| &one.instance.environment);
    if !declared.clone().chain(used.clone()).any(|name| name == after) {
        let mut known: Vec<String> = declared.chain(used).cloned().collect();
        known.sort_unstable();
        known.dedup();
        known.retain(|name| *name != draft.environment.name);
        report.error(place, unknown("environment", after, &known));
    }
    if chain(environments, &draft.environment.name).any(|name| name == draft.environment.name) {
        let name = quote(&draft.environment.name);
        report.error(place, format!("{name} would come after itself; leave `after` out of one"));
    }
}

/// The environments that must be done before this one: its `after`, that one's, and so on; the
/// environment itself too where they go in a circle.
pub(super) fn chain<'a>(
    environments: &'a [DraftEnvironment],
    name: &str,
) -> impl Iterator<Item = &'a str> {
    let after = |name: &str| {
        let found = environments.iter().find(|one| one.environment.name == name);
        found.and_then(|one| one.environment.after.as_deref())
    };
    std::iter::successors(after(name), move |name| after(name)).take(environments.len())
}

/// A plan that bounds environments probably means to bound all of them.
fn check_known(environments: &[DraftEnvironment], instances: &[DraftInstance], report: &Report) {
    let known = || environments.iter().map(|one| one.environment.name.as_str());
    let mut said: Vec<&str> = Vec::new();
    for draft in instances {
        let name = draft.instance.environment.as_str();
        if name.is_empty() || said.contains(&name) || known().any(|known| known == name) {
            continue;
        }
        said.push(name);
        let hint = match nearest(name, known()) {
            Some(near) => format!("did you mean {}?", quote(near)),
            None => "add an `[[environment]]` if it has any".to_owned(),
        };
        let name = quote(name);
        report.warn(
            &draft.environment,
            format!(
                "{name} is no `[[environment]]` of this plan, so that it has no bounds; {hint}"
            ),
        );
    }
}
