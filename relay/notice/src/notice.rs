//! A draft that was looked through: every value parsed, every line harmless. Owns what is refused.

use std::sync::OnceLock;

use jiff::{
    SignedDuration, Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

use crate::{
    Destination, Draft, Language, NoticeError,
    draft::Wave,
    letter::Letter,
    line::{Address, Care, Line},
    text::{Environment, Texts},
    when::Window,
};

/// How many instances one notice names. Hundreds are the most that one customer has; a list of
/// thousands is not read, and would be a mail of megabytes.
pub const INSTANCE_LIMIT: usize = 1_000;

/// One notice that can be rendered.
#[derive(Clone, Debug)]
pub struct Notice {
    pub(crate) language: Language,
    pub(crate) program: Option<Line>,
    pub(crate) provider: Line,
    pub(crate) care: Care,
    pub(crate) sender: Option<Address>,
    pub(crate) reply_to: Option<Address>,
    pub(crate) destination: Destination,
    pub(crate) wave: Line,
    pub(crate) environment: Environment,
    pub(crate) window: Window,
    pub(crate) zone: TimeZone,
    pub(crate) estimate: Option<SignedDuration>,
    pub(crate) notice: Option<SignedDuration>,
    pub(crate) announced: Option<Timestamp>,
    pub(crate) sequence: u32,
    pub(crate) instances: Vec<Instance>,
    pub(crate) contact: Option<Line>,
    pub(crate) email: Address,
    pub(crate) stages: Vec<Stage>,
    pub(crate) scope: Vec<Scope>,
    pub(crate) issued: Timestamp,
}

#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) name: Line,
    pub(crate) product: Option<Line>,
    pub(crate) hosting: Option<Line>,
}

#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) environment: Environment,
    pub(crate) earliest: Timestamp,
    pub(crate) notice: Option<SignedDuration>,
}

/// One product, with all ways of hosting it that the program upgrades.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) product: Line,
    pub(crate) hosting: Vec<Line>,
}

impl Notice {
    /// Looks a draft through. The error names the value and what is wrong with it.
    pub fn new(draft: &Draft) -> Result<Self, NoticeError> {
        let Draft { program, wave, contact, .. } = draft;
        let address = |value: &Option<String>, what| {
            value.as_deref().map(|value| Address::parse(value, what)).transpose()
        };
        Ok(Self {
            language: Language::parse(&contact.language)?,
            program: Line::some(&program.name),
            provider: Line::required(&program.provider, "the program's provider")?,
            care: Care::parse(&program.care)?,
            sender: address(&program.sender, "sender")?,
            reply_to: address(&program.reply_to, "reply_to")?,
            destination: program.destination,
            wave: Line::required(&wave.id, "the wave's id")?,
            environment: Environment::of(&wave.environment),
            window: window(wave)?,
            zone: zone(&contact.time_zone)?,
            estimate: sensible(wave.estimate, "the estimated duration")?,
            notice: sensible(wave.notice, "the notice period")?,
            announced: wave.announced.map(|at| modern(at, "announced")).transpose()?,
            sequence: wave.sequence,
            instances: instances(&draft.instances)?,
            contact: Line::some(&contact.name),
            email: Address::parse(&contact.email, "the contact's email")?,
            stages: draft.stages.iter().map(stage).collect::<Result<_, _>>()?,
            scope: scope(&draft.scope),
            issued: modern(draft.issued, "issued")?,
        })
    }

    /// The language that it is written in.
    pub fn language(&self) -> Language {
        self.language
    }

    /// What it is about, in one line.
    pub fn subject(&self) -> String {
        Letter::of(self).subject
    }

    pub(crate) fn texts(&self) -> &'static Texts {
        Texts::of(self.language)
    }
}

/// The time zones that are part of the program, never those of the host: the same draft is the same
/// notice everywhere.
fn zones() -> &'static TimeZoneDatabase {
    static ZONES: OnceLock<TimeZoneDatabase> = OnceLock::new();
    ZONES.get_or_init(TimeZoneDatabase::bundled)
}

fn zone(name: &str) -> Result<TimeZone, NoticeError> {
    zones().get(name).map_err(|_| NoticeError::TimeZone(name.to_owned()))
}

fn window(wave: &Wave) -> Result<Window, NoticeError> {
    let (opens, closes) = (modern(wave.opens, "opens")?, wave.closes);
    Window::new(opens, closes).ok_or(NoticeError::Window { opens, closes })
}

/// RFC 5322 4.3 and RFC 5545 3.3.4 have years of four digits; what is before 1970 is a slip.
fn modern(at: Timestamp, what: &'static str) -> Result<Timestamp, NoticeError> {
    if at < Timestamp::UNIX_EPOCH { Err(NoticeError::Time { what, at }) } else { Ok(at) }
}

/// A century: far above all that is meant, far below where sums overflow.
const LONGEST: SignedDuration = SignedDuration::from_hours(100 * 366 * 24);

fn sensible(
    duration: Option<SignedDuration>,
    what: &'static str,
) -> Result<Option<SignedDuration>, NoticeError> {
    match duration {
        Some(duration) if !duration.is_positive() || duration > LONGEST => {
            Err(NoticeError::Duration(what))
        }
        duration => Ok(duration),
    }
}

fn instances(drafts: &[crate::draft::Instance]) -> Result<Vec<Instance>, NoticeError> {
    if drafts.is_empty() {
        return Err(NoticeError::NoInstances);
    }
    if drafts.len() > INSTANCE_LIMIT {
        return Err(NoticeError::TooManyInstances(drafts.len()));
    }
    let instance = |draft: &crate::draft::Instance| {
        Ok(Instance {
            name: Line::required(&draft.name, "an instance's name")?,
            product: Line::some(&draft.product),
            hosting: Line::some(&draft.hosting),
        })
    };
    drafts.iter().map(instance).collect()
}

fn stage(draft: &crate::draft::Stage) -> Result<Stage, NoticeError> {
    Ok(Stage {
        environment: Environment::of(&draft.environment),
        earliest: modern(draft.earliest, "the earliest start of an environment")?,
        notice: sensible(draft.notice, "the notice period of an environment")?,
    })
}

/// Products in the order in which they first come, each once.
fn scope(drafts: &[crate::draft::Scope]) -> Vec<Scope> {
    let mut found: Vec<Scope> = Vec::new();
    for draft in drafts {
        let Some(product) = Line::some(&draft.product) else { continue };
        let at = found.iter().position(|scope| scope.product == product).unwrap_or_else(|| {
            found.push(Scope { product, hosting: Vec::new() });
            found.len() - 1
        });
        if let Some(hosting) = Line::some(&draft.hosting)
            && !found[at].hosting.contains(&hosting)
        {
            found[at].hosting.push(hosting);
        }
    }
    found
}
