//! What a language says. Owns the shape that all languages share: one [`Texts`] each, so that a text
//! that is missing does not compile. The words are in one file a language.
//!
//! Texts with values in them are functions: a value that is left out is seen by the compiler, and no
//! value is ever read as a text. Values come in ready to read.
//!
//! Non-breaking spaces are written `\u{a0}`, so that they can be seen.

mod de;
mod en;
mod fr;
mod it;
mod pt_br;
mod sv;

use jiff::civil::{Date, Time};

use crate::{
    Destination, Language,
    line::Line,
    when::{Range, Units, ZoneName},
};

/// A list of one sentence for one instance and one for several.
pub(crate) struct Counted {
    pub(crate) one: &'static str,
    pub(crate) many: fn(usize) -> String,
}

/// A question and its answer.
pub(crate) struct Answered<A = &'static str> {
    pub(crate) question: &'static str,
    pub(crate) answer: A,
}

/// All that one language says.
pub(crate) struct Texts {
    pub(crate) dates: Dates,
    pub(crate) labels: Labels,
    pub(crate) headings: Headings,
    pub(crate) questions: Questions,
    pub(crate) environment: fn(&Environment) -> EnvironmentWords,
    /// What stands between a label and its value, without the space after it.
    pub(crate) colon: &'static str,

    /// From the day.
    pub(crate) subject: fn(&str) -> String,
    /// The subject of a notice that replaces an earlier one.
    pub(crate) changed: fn(&str) -> String,
    /// From the contact's name, where it is known.
    pub(crate) greeting: fn(Option<&str>) -> String,
    pub(crate) lead: fn(&Lead) -> String,
    pub(crate) replaces: &'static str,
    pub(crate) what: fn(Destination) -> &'static str,
    pub(crate) why: &'static str,
    /// What stands above the list of the customer's instances.
    pub(crate) affected: Counted,
    /// From the length of a window in which clocks change.
    pub(crate) clocks_change: fn(&str) -> String,
    /// From an environment's plural and the notice period.
    pub(crate) announced_ahead: fn(&str, &str) -> String,
    /// From the day of the announcement.
    pub(crate) announced_on: fn(&str) -> String,
    /// What stands above the list of stages.
    pub(crate) stages: &'static str,
    /// From an environment's plural, [`Dates::since`] and the notice period.
    pub(crate) stage: fn(&str, &str, Option<&str>) -> String,
    pub(crate) no_sending: Counted,
    pub(crate) all_else_works: &'static str,
    pub(crate) transparent: &'static str,
    pub(crate) closing: &'static str,
    pub(crate) calendar_attached: &'static str,
    pub(crate) automatic: &'static str,
    /// Title of the calendar entry.
    pub(crate) calendar_summary: &'static str,
}

/// How dates, times and durations are written.
pub(crate) struct Dates {
    /// "20 January 2026"
    pub(crate) day: fn(Date) -> String,
    /// "from January 2024", or with the day where it is not the first.
    pub(crate) since: fn(Date) -> String,
    pub(crate) within_a_day: fn(&Range) -> String,
    pub(crate) over_days: fn(&Range) -> String,
    pub(crate) units: Units,
    pub(crate) zone_name: ZoneName,
}

impl Dates {
    pub(crate) fn range(&self, range: &Range) -> String {
        if range.within_a_day() { (self.within_a_day)(range) } else { (self.over_days)(range) }
    }
}

/// What the opening paragraph is made of.
pub(crate) struct Lead {
    pub(crate) date: Date,
    /// [`EnvironmentWords::yours`].
    pub(crate) yours: String,
}

/// Names of facts in the table of the window.
pub(crate) struct Labels {
    pub(crate) local_time: &'static str,
    pub(crate) utc: &'static str,
    pub(crate) estimate: &'static str,
    pub(crate) window: &'static str,
    pub(crate) environment: &'static str,
    pub(crate) program: &'static str,
    pub(crate) reference: &'static str,
    pub(crate) time_zone: &'static str,
}

pub(crate) struct Headings {
    pub(crate) when: &'static str,
    pub(crate) what: &'static str,
    pub(crate) affected: &'static str,
    pub(crate) effect: &'static str,
    pub(crate) questions: &'static str,
}

pub(crate) struct Questions {
    pub(crate) mandatory: Answered,
    pub(crate) customers: Answered,
    /// What stands above the list of products.
    pub(crate) scope: &'static str,
    /// From the duration.
    pub(crate) downtime: Answered<fn(&str) -> String>,
    pub(crate) action: Answered,
    /// The address of customer care follows.
    pub(crate) test: Answered,
    pub(crate) change: Answered,
    /// The address of customer care follows.
    pub(crate) further: Answered,
}

/// What kind of environment a wave is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    Production,
    Staging,
    Development,
    /// One that the languages have no word for.
    Named(Line),
    Unsaid,
}

impl Environment {
    pub(crate) fn of(name: &str) -> Self {
        let Some(name) = Line::some(name) else { return Self::Unsaid };
        match name.as_str().to_ascii_lowercase().as_str() {
            "production" | "prod" => Self::Production,
            "staging" | "stage" => Self::Staging,
            "development" | "dev" => Self::Development,
            _ => Self::Named(name),
        }
    }
}

/// An environment in the forms that the texts need.
pub(crate) struct EnvironmentWords {
    /// By itself, as in a table.
    pub(crate) label: Option<String>,
    /// "of your production environment", in the form that [`Texts::lead`] asks for.
    pub(crate) yours: String,
    /// "production environments".
    pub(crate) plural: String,
}

impl EnvironmentWords {
    pub(crate) fn new(label: &str, yours: &str, plural: &str) -> Self {
        Self {
            label: (!label.is_empty()).then(|| label.to_owned()),
            yours: yours.to_owned(),
            plural: plural.to_owned(),
        }
    }
}

impl Texts {
    pub(crate) fn of(language: Language) -> &'static Self {
        match language {
            Language::English => &en::TEXTS,
            Language::French => &fr::TEXTS,
            Language::German => &de::TEXTS,
            Language::Italian => &it::TEXTS,
            Language::BrazilianPortuguese => &pt_br::TEXTS,
            Language::Swedish => &sv::TEXTS,
        }
    }
}

/// The name of a date's month, from January on.
fn month<'a>(date: Date, names: &[&'a str; 12]) -> &'a str {
    names[usize::from(date.month().unsigned_abs()) - 1]
}

/// The name of a date's day, from Monday on.
fn weekday<'a>(date: Date, names: &[&'a str; 7]) -> &'a str {
    names[usize::from(date.weekday().to_monday_zero_offset().unsigned_abs())]
}

/// `06:00`, and the seconds only where there are any.
fn clock(time: Time, separator: char) -> String {
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    match second {
        0 => format!("{hour:02}{separator}{minute:02}"),
        _ => format!("{hour:02}{separator}{minute:02}{separator}{second:02}"),
    }
}

/// With its first letter as at the beginning of a line.
pub(crate) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
