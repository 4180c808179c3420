//! The migration plan: instances, waves, windows, phases. Floor 0.
//!
//! Pure data and pure functions of it. Reading the file is `config::plan`'s business; the state
//! of a wave that is running is `waves`'.

mod announcement;
mod attribution;
mod digest;
mod environment;
pub mod rfc3339;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use self::attribution::Attribution;
pub use self::{
    announcement::{Announcement, Difference},
    attribution::{Conflict, conflicts},
    environment::{Destination, Duration, Environment, Program},
};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This time less `ms` milliseconds, not below the epoch.
    pub fn saturating_sub_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// This time plus `ms` milliseconds.
    pub fn saturating_add_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
            Some(time) => time.fmt(f),
            None => write!(f, "{} ms after 1970", self.0),
        }
    }
}

/// A length of time in words, by its two largest units that count: `1h 15min`, `30d`, `1h 1s`.
pub fn in_words(ms: u64) -> String {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];
    let mut left = ms;
    let mut words = Vec::new();
    for (name, unit) in UNITS {
        if left >= unit && words.len() < 2 {
            words.push(format!("{}{name}", left / unit));
        }
        left %= unit;
    }
    if words.is_empty() { "0s".to_owned() } else { words.join(" ") }
}

/// The phase of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// In no wave.
    Unscheduled,
    /// In a wave whose freezing has not begun.
    Scheduled,
    /// From `opens - freeze_lead` to `opens`: no attempt starts; those begun may still end.
    Freezing,
    /// From `opens`: nothing of the instance leaves.
    Frozen,
    /// Frozen, and the cloud was probed for this instance.
    Checked,
    /// The window is over; what was held is let out.
    Releasing,
    /// The window is over.
    Migrated,
    /// The wave was rolled back.
    RolledBack,
}

impl Phase {
    /// All, in the order of a wave.
    pub const ALL: [Self; 8] = [
        Self::Unscheduled,
        Self::Scheduled,
        Self::Freezing,
        Self::Frozen,
        Self::Checked,
        Self::Releasing,
        Self::Migrated,
        Self::RolledBack,
    ];

    /// The phase that the clock alone gives to an instance with this window.
    pub fn at(window: Option<&Window>, freeze_lead_ms: u64, now: Timestamp) -> Self {
        match window {
            None => Self::Unscheduled,
            Some(window) if now >= window.closes => Self::Migrated,
            Some(window) if now >= window.opens => Self::Frozen,
            Some(window) if now >= window.opens.saturating_sub_ms(freeze_lead_ms) => Self::Freezing,
            Some(_) => Self::Scheduled,
        }
    }

    /// The name that policies, metrics and people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unscheduled => "unscheduled",
            Self::Scheduled => "scheduled",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
            Self::Checked => "checked",
            Self::Releasing => "releasing",
            Self::Migrated => "migrated",
            Self::RolledBack => "rolled-back",
        }
    }

    /// Whether a new attempt may start.
    pub fn may_start(self) -> bool {
        !matches!(self, Self::Freezing | Self::Frozen | Self::Checked)
    }

    /// Whether an attempt that has started may write its end of data.
    pub fn may_commit(self) -> bool {
        !matches!(self, Self::Frozen | Self::Checked)
    }

    /// Whether the instance's mail goes to `after` rather than `before` once it may go.
    pub fn is_after(self) -> bool {
        matches!(self, Self::Frozen | Self::Checked | Self::Releasing | Self::Migrated)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the mail of an instance is recognised: all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matcher {
    /// Networks of its clients; empty: any.
    pub clients: Vec<IpNet>,
    /// Domains of its senders, in lower case; empty: any. One with a dot in front stands for
    /// all domains below it.
    pub senders: Vec<String>,
    /// Names of the listeners that it uses; empty: any.
    pub listeners: Vec<String>,
    /// Header fields, each with its value: the name in lower case, none twice, sorted. All must
    /// be there. Of several fields of one name the first counts.
    pub headers: Vec<(String, String)>,
}

/// Somebody who is told of an instance's windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// How the person is addressed, where that is known.
    pub name: Option<String>,
    /// Mail address.
    pub email: String,
    /// Language tag (BCP 47), such as `fr`.
    pub language: String,
    /// IANA name of the time zone, such as `Europe/Paris`.
    pub time_zone: String,
}

/// One sending platform instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Unique in the plan.
    pub name: String,
    /// Whose it is: what groups staging and production of one customer.
    pub customer: String,
    /// Product, such as `campaign-classic`.
    pub product: String,
    /// Environment, such as `production`.
    pub environment: String,
    /// How it is hosted, in a word of the provider's such as `managed`.
    pub hosting: Option<String>,
    /// Who is told of its windows.
    pub contacts: Vec<Contact>,
    /// How its mail is recognised.
    pub matcher: Matcher,
    /// Upstream before the window, where it differs from `[migration]`.
    pub before: Option<String>,
    /// Upstream after the window, where it differs from `[migration]`.
    pub after: Option<String>,
}

/// The time in which none of an instance's mail may leave: `[opens, closes)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The wave's id.
    pub wave: String,
    /// First moment of the window.
    pub opens: Timestamp,
    /// First moment after the window.
    pub closes: Timestamp,
}

impl Window {
    /// How long it is.
    pub fn length_ms(&self) -> u64 {
        self.closes.0.saturating_sub(self.opens.0)
    }

    /// Whether it is over, as the plan has it.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.closes <= now
    }
}

/// What ends a wave's window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// Its time.
    #[default]
    AtClose,
    /// An operator who completes it; it stays frozen until then.
    OnComplete,
}

/// What becomes of a wave whose targets cannot be reached when it is to be released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeFailure {
    /// Its window is extended.
    #[default]
    Extend,
    /// It is rolled back: its mail goes to `before`.
    RollBack,
}

/// A group of instances upgraded together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wave {
    /// Its window; `window.wave` is the wave's id.
    pub window: Window,
    /// Environment of its instances.
    pub environment: String,
    /// Indexes into `Plan::instances`, ascending.
    pub instances: Vec<usize>,
    /// Upstream before the window for its instances, where it differs.
    pub before: Option<String>,
    /// Upstream after the window for its instances, where it differs.
    pub after: Option<String>,
    /// What ends its window.
    pub release: Release,
    /// What becomes of it when its probes fail.
    pub probe_failure: ProbeFailure,
    /// When it was announced, if it was.
    pub announced: Option<Timestamp>,
}

/// What a plan is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// How long before `opens` freezing begins, in milliseconds.
    pub freeze_lead_ms: u64,
    /// What notices say of the whole migration.
    pub program: Option<Program>,
    /// Environments with bounds.
    pub environments: Vec<Environment>,
    /// All instances.
    pub instances: Vec<Instance>,
    /// All waves.
    pub waves: Vec<Wave>,
    /// What was announced: the lock.
    pub announced: Vec<Announcement>,
}

/// The whole plan, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How long before `opens` freezing begins, in milliseconds.
    pub freeze_lead_ms: u64,
    /// What notices say of the whole migration.
    pub program: Option<Program>,
    /// Environments with bounds.
    pub environments: Vec<Environment>,
    /// All instances.
    pub instances: Vec<Instance>,
    /// All waves, by time.
    pub waves: Vec<Wave>,
    /// For each instance the index of its wave, if it is in one: of several the latest, since
    /// the others are over.
    pub wave_of: Vec<Option<usize>>,
    /// What was announced: the lock.
    pub announced: Vec<Announcement>,
    digest: String,
    attribution: Attribution,
}

impl Default for Plan {
    fn default() -> Self {
        Self::assemble(Parts::default())
    }
}

impl Plan {
    /// A plan of instances and waves alone.
    pub fn new(freeze_lead_ms: u64, instances: Vec<Instance>, waves: Vec<Wave>) -> Self {
        Self::assemble(Parts { freeze_lead_ms, instances, waves, ..Parts::default() })
    }

    /// A plan of checked parts: each instance in at most one wave that is not over, none in
    /// conflict. The waves are put in the order of their windows.
    pub fn assemble(parts: Parts) -> Self {
        let digest = digest::of(&parts);
        let Parts { freeze_lead_ms, program, environments, instances, mut waves, announced } =
            parts;
        waves.sort_by(|a, b| {
            let key = |wave: &Wave| (wave.window.opens, wave.window.closes);
            key(a).cmp(&key(b)).then_with(|| a.window.wave.cmp(&b.window.wave))
        });
        let mut wave_of = vec![None; instances.len()];
        for (index, wave) in waves.iter().enumerate() {
            for instance in &wave.instances {
                wave_of[*instance] = Some(index);
            }
        }
        let matchers: Vec<&Matcher> = instances.iter().map(|one| &one.matcher).collect();
        let attribution = Attribution::new(&matchers, &wave_of);
        Self {
            freeze_lead_ms,
            program,
            environments,
            instances,
            waves,
            wave_of,
            announced,
            digest,
            attribution,
        }
    }

    /// What tells this plan with its lock from others: 16 hexadecimal digits, the same on every
    /// host that understands the same of the files.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether any instance is recognised by a header field, so that the header block is
    /// looked at.
    pub fn wants_headers(&self) -> bool {
        self.attribution.wants_headers()
    }

    /// The environment of this name, if the plan bounds it.
    pub fn environment(&self, name: &str) -> Option<&Environment> {
        self.environments.iter().find(|one| one.name == name)
    }

    /// The estimated duration of a wave, where its environment has a model of it.
    pub fn estimate_ms(&self, wave: &Wave) -> Option<u64> {
        let duration = self.environment(&wave.environment)?.duration?;
        Some(duration.estimate_ms(wave.instances.len()))
    }

    /// The instance that a message belongs to: the one whose criteria are all met, of several
    /// the most specific; of a bounce also the one that alone owns the client's network. The
    /// module `attribution` says it precisely.
    pub fn attribute(&self, origin: &Origin<'_>) -> Option<usize> {
        self.attribution.find(origin).map(|id| id as usize)
    }

    /// An instance for which `is_frozen` is true and whose `clients` hold this address. Mail of
    /// no instance is held while there is one. `is_frozen` is asked about one instance of each
    /// wave that has a network there.
    pub fn owner_of_network(
        &self,
        client: IpAddr,
        is_frozen: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        self.attribution.frozen_owner(client, is_frozen)
    }

    /// Upstream of an instance before its window, where the plan has one: the instance's own
    /// word, then its wave's.
    pub fn before(&self, instance: usize) -> Option<&str> {
        let own = self.instances.get(instance)?.before.as_deref();
        own.or_else(|| self.wave(instance)?.before.as_deref())
    }

    /// Upstream of an instance after its window, where the plan has one.
    pub fn after(&self, instance: usize) -> Option<&str> {
        let own = self.instances.get(instance)?.after.as_deref();
        own.or_else(|| self.wave(instance)?.after.as_deref())
    }

    /// The wave of an instance.
    pub fn wave(&self, instance: usize) -> Option<&Wave> {
        self.wave_of.get(instance).copied().flatten().and_then(|wave| self.waves.get(wave))
    }

    /// The phase of an instance as the clock alone gives it.
    pub fn phase(&self, instance: usize, now: Timestamp) -> Phase {
        Phase::at(self.wave(instance).map(|wave| &wave.window), self.freeze_lead_ms, now)
    }
}

/// What a message is recognised by.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Address of the client.
    pub client: IpAddr,
    /// Domain of the sender in any case; none for the empty reverse path.
    pub sender_domain: Option<&'a str>,
    /// Name of the listener.
    pub listener: &'a str,
    /// Header fields, decoded; may be empty where no instance is recognised by one.
    pub headers: &'a [(String, String)],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_words() {
        for (ms, words) in [
            (0, "0s"),
            (1, "1ms"),
            (45_000, "45s"),
            (45 * 60_000, "45min"),
            (75 * 60_000, "1h 15min"),
            (3_601_000, "1h 1s"),
            (30 * 86_400_000, "30d"),
            (2 * 86_400_000 + 3 * 3_600_000 + 59 * 60_000, "2d 3h"),
        ] {
            assert_eq!(in_words(ms), words);
        }
    }
}
