//! The relay's own file: its sections, keys, defaults and bounds. What a value must be by itself
//! is checked here; what must hold between values is `check`'s business. Floor 1.

use std::{
    ffi::OsStr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use wavegate_smtp::Address;

use super::{
    Addresses, AdminConfig, ApiConfig, ConductConfig, DecisionLogConfig, EventLogConfig, Limits,
    LinkListener, ListenerConfig, LogFormat, MigrationConfig, PluginsConfig, PolicyConfig, Rate,
    RelayConfig, ResolverConfig, SpoolConfig, TableConfig, Unmatched, UpstreamConfig, api,
    decision_log,
    diagnostic::{Located, Place},
    listener::{self, Listener},
    plugins, policy,
    reader::Section,
    target::{self, Target},
    upstream,
    values::{self, quote},
};

/// A shorter bound would refuse mail that RFC 5321 4.5.3.1.7 wants accepted.
const MESSAGE_SIZE_RFC: u64 = 64 * 1024;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// Bounds of most timeouts. The low one is for tests on a loopback.
pub(super) const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=HOUR;
/// Bounds of most counts.
pub(super) const COUNT: RangeInclusive<usize> = 1..=1_000_000;
const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const TIB: u64 = 1 << 40;

/// The file as read, with the places that later checks talk about.
pub(super) struct Draft {
    pub(super) place: Place,
    pub(super) relay: RelayConfig,
    pub(super) unmatched: Place,
    pub(super) plan: Option<Located<PathBuf>>,
    pub(super) limits: Limits,
    pub(super) spool: SpoolConfig,
    pub(super) listeners: Vec<(ListenerConfig, ListenerPlaces)>,
    pub(super) links: Vec<(LinkListener, ListenerPlaces)>,
    pub(super) upstreams: Vec<(UpstreamConfig, UpstreamPlaces)>,
    pub(super) resolver: ResolverConfig,
    pub(super) migration: Option<Migration>,
    pub(super) policies: Vec<(PolicyConfig, policy::Places)>,
    pub(super) plugins: PluginsConfig,
    pub(super) tables: Vec<(TableConfig, Option<Place>)>,
    pub(super) admin: Option<(AdminConfig, Place)>,
    pub(super) api: Option<(ApiConfig, Place)>,
    pub(super) event_log: Option<EventLogConfig>,
    pub(super) decision_log: Option<DecisionLogConfig>,
}

impl Draft {
    /// The names of all listeners.
    pub(super) fn listener_names(&self) -> impl Iterator<Item = &str> {
        let links = self.links.iter().map(|(one, _)| one.name.as_str());
        self.listeners.iter().map(|(one, _)| one.name.as_str()).chain(links)
    }

    /// Where their values stand, in the same order.
    pub(super) fn listener_places(&self) -> impl Iterator<Item = &ListenerPlaces> {
        let links = self.links.iter().map(|(_, places)| places);
        self.listeners.iter().map(|(_, places)| places).chain(links)
    }
}

/// Where a listener's values stand; none where a value was refused.
pub(super) struct ListenerPlaces {
    pub(super) name: Option<Place>,
    pub(super) address: Option<Place>,
    pub(super) upstreams: Vec<Located<String>>,
    /// Where it says who judges logins.
    pub(super) auth: Option<Place>,
}

/// Where an upstream's values stand; none where a value was refused.
pub(super) struct UpstreamPlaces {
    pub(super) name: Option<Place>,
    pub(super) default: Place,
    pub(super) targets: Vec<Located<Target>>,
    /// Its `type`.
    pub(super) kind: Option<Place>,
    pub(super) fallback: Option<Located<String>>,
}

/// `[migration]`, where both names are there.
pub(super) struct Migration {
    pub(super) before: Option<Located<String>>,
    pub(super) after: Option<Located<String>>,
    pub(super) conduct: ConductConfig,
}

/// Reads the whole file; `base` is the directory that its paths are relative to.
pub(super) fn read(root: Section<'_>, base: &Path) -> Draft {
    let place = root.place();
    let section = root.section("relay");
    if section.is_none() && root.get("relay").is_none() {
        let place = Place { key: "relay".into(), ..root.place() };
        root.report().error(&place, "missing; give `[relay]` with at least `hostname`");
    }
    let (relay, unmatched, plan) = match section {
        Some(section) => read_relay(section, base),
        None => (default_relay(base), place.clone(), None),
    };
    let limits = root.section("limits").map(read_limits).unwrap_or_default();
    let spool = root.section("spool").map(read_spool).unwrap_or_default();
    let at_least_one = |key, example: &str| {
        if root.get(key).is_none() || root.empty_list(key).is_some() {
            let place = Place { key: key.into(), ..root.place() };
            root.report().error(&place, format!("missing; give at least one {example}"));
        }
    };
    at_least_one("listener", "`[[listener]]` with an `address`");
    at_least_one("upstream", "`[[upstream]]` with `name` and `targets`");
    let (mut listeners, mut links) = (Vec::new(), Vec::new());
    for one in root.sections("listener").into_iter().enumerate() {
        match listener::read(one, base) {
            Listener::Smtp(one) => listeners.push(*one),
            Listener::Link(one) => links.push(*one),
        }
    }
    let upstreams = root.sections("upstream").into_iter();
    let upstreams = upstreams.map(|one| upstream::read::read(one, base)).collect();
    let resolver = root.section("resolver").map(target::resolver).unwrap_or_default();
    let migration = root.section("migration").map(read_migration);
    let policies = root.sections("policy").into_iter().map(|one| policy::read(one, base)).collect();
    let plugins = root.section("plugins").map(|one| plugins::read(one, base)).unwrap_or_default();
    let tables = root.sections("table").into_iter().map(policy::read_table).collect();
    let admin = root.section("admin").and_then(read_admin);
    let api = root.section("api").and_then(|section| api::read(section, base));
    let event_log = root.section("event_log").and_then(|section| read_event_log(section, base));
    let decisions = root.section("decision_log");
    let decision_log = decisions.and_then(|section| decision_log::read(section, base));
    root.finish();
    Draft {
        place,
        relay,
        unmatched,
        plan,
        limits,
        spool,
        listeners,
        links,
        upstreams,
        resolver,
        migration,
        policies,
        plugins,
        tables,
        admin,
        api,
        event_log,
        decision_log,
    }
}

fn default_relay(base: &Path) -> RelayConfig {
    RelayConfig {
        hostname: String::new(),
        state_dir: base.join("state"),
        unmatched: Unmatched::Before,
        received: true,
        workers: std::thread::available_parallelism().map_or(1, usize::from),
        log: LogFormat::Text,
    }
}

fn read_relay(section: Section<'_>, base: &Path) -> (RelayConfig, Place, Option<Located<PathBuf>>) {
    let defaults = default_relay(base);
    let example = "this host's full name, such as \"edge-1.example.net\"";
    let hostname =
        section.require("hostname", example).and_then(|v| v.parse(example, values::hostname));
    let path = |key| section.parsed(key, "a path in quotes", |text| path(text, base));
    let state_dir = path("state_dir").map_or(defaults.state_dir, |found| found.value);
    let plan = path("plan");
    let unmatched = section.choice(
        "unmatched",
        "a way to treat unmatched mail",
        &[("before", Unmatched::Before), ("hold", Unmatched::Hold), ("refuse", Unmatched::Refuse)],
    );
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = section.choice("log", "a form of log lines", &formats);
    let unmatched_place = unmatched.as_ref().map_or(section.place(), |found| found.place.clone());
    let relay = RelayConfig {
        hostname: hostname.map_or(defaults.hostname, |found| found.value),
        state_dir,
        unmatched: unmatched.map_or(defaults.unmatched, |found| found.value),
        received: section.boolean("received", defaults.received),
        workers: section.integer("workers", defaults.workers, 1..=1024),
        log: log.map_or(defaults.log, |found| found.value),
    };
    section.finish();
    (relay, unmatched_place, plan)
}

pub(super) fn path(text: &str, base: &Path) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("{} is not a path; write one relative to this file", quote(text)));
    }
    match text.strip_prefix("credential:") {
        Some(name) => credential(name, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref()),
        None => Ok(base.join(text)),
    }
}

/// Where the service that the units describe has its credentials.
const CREDENTIALS: &str = "/run/credentials/wavegate.service";

/// A file that the service manager gives to this process alone (systemd.exec(5), "Credentials").
/// Outside of a service it is that of the running one: so an operator's command finds the rest of
/// the configuration, and root the file.
fn credential(name: &str, directory: Option<&OsStr>) -> Result<PathBuf, String> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(format!(
            "{} is not the name of a credential; write it as LoadCredential= of the unit has it",
            quote(name)
        ));
    }
    Ok(directory.map_or(Path::new(CREDENTIALS), Path::new).join(name))
}

fn read_limits(section: Section<'_>) -> Limits {
    let d = Limits::default();
    let errors = section.report().errors();
    let limits = Limits {
        connections: section.integer("connections", d.connections, COUNT),
        connections_per_client: section.integer(
            "connections_per_client",
            d.connections_per_client,
            COUNT,
        ),
        message_size: section.size("message_size", d.message_size, KIB..=TIB),
        message_memory: bytes(&section, "message_memory", d.message_memory, KIB..=64 * MIB),
        memory: bytes(&section, "memory", d.memory, MIB..=TIB),
        memory_total: memory_total(&section),
        spill: section.size("spill", d.spill, MIB..=64 * TIB),
        tls_timeout: section.duration("tls_timeout", d.tls_timeout, TIMEOUT),
        command_timeout: section.duration("command_timeout", d.command_timeout, TIMEOUT),
        data_timeout: section.duration("data_timeout", d.data_timeout, TIMEOUT),
        data_rate: section.size("data_rate", d.data_rate, 1..=64 * MIB),
        direct_wait: section.duration("direct_wait", d.direct_wait, MS..=60_000 * MS),
        direct_queue: section.integer("direct_queue", d.direct_queue, COUNT),
        direct_deadline: section.duration("direct_deadline", d.direct_deadline, TIMEOUT),
        recipients: section.integer("recipients", d.recipients, 100..=100_000),
        spool_attempts: section.integer("spool_attempts", d.spool_attempts, 1..=100_000),
        limit_keys: section.integer("limit_keys", d.limit_keys, 1..=10_000_000),
        client_connection_rate: rate(&section, "client_connection_rate"),
        client_message_rate: rate(&section, "client_message_rate"),
        client_rate_exceptions: section
            .list("client_rate_exceptions", "\"192.0.2.7\"", values::network)
            .map_or(d.client_rate_exceptions, |list| {
                list.into_iter().map(|found| found.value).collect()
            }),
        shutdown_timeout: section.duration("shutdown_timeout", d.shutdown_timeout, TIMEOUT),
    };
    if section.report().errors() == errors {
        check_limits(&section, &limits);
    }
    section.finish();
    limits
}

/// The process itself, before anybody connects, takes more than the least.
const MEMORY_TOTAL: RangeInclusive<u64> = 16 * MIB..=TIB;

fn memory_total(section: &Section<'_>) -> Option<usize> {
    section.get("memory_total")?;
    Some(bytes(section, "memory_total", 0, MEMORY_TOTAL))
}

fn rate(section: &Section<'_>, key: &'static str) -> Option<Rate> {
    let found = section.parsed(key, "a rate in quotes, such as \"100/min\"", values::rate);
    found.map(|found| found.value)
}

fn read_spool(section: Section<'_>) -> SpoolConfig {
    let d = SpoolConfig::default();
    let rate = section.integer("release_rate", 0, 0..=1_000_000);
    let spool = SpoolConfig {
        quota: section.size("quota", d.quota, 16 * MIB..=64 * TIB),
        reserve: section.size("reserve", d.reserve, 0..=TIB),
        max_hold: section.duration("max_hold", d.max_hold, TIMEOUT.start().to_owned()..=400 * DAY),
        release_rate: u32::try_from(rate).ok().filter(|rate| *rate > 0),
        release_ramp: section.duration("release_ramp", d.release_ramp, Duration::ZERO..=DAY),
    };
    section.finish();
    spool
}

/// What must hold between limits that are each in their bounds.
fn check_limits(section: &Section<'_>, limits: &Limits) {
    let at = |key| section.get(key).map_or(section.place(), |value| value.place());
    let report = section.report();
    if limits.memory < limits.message_memory {
        report.error(
            &at("memory"),
            format!(
                "is less than `message_memory` ({}); give at least that",
                values::show_size(limits.message_memory as u64)
            ),
        );
    }
    if limits.spill < limits.message_size {
        report.error(
            &at("spill"),
            format!(
                "is less than `message_size` ({}), so that such a message could never come in; \
                 give at least that",
                values::show_size(limits.message_size)
            ),
        );
    }
    if limits.message_size < MESSAGE_SIZE_RFC {
        report.warn(
            &at("message_size"),
            "is less than the 64 KiB that every server should take (RFC 5321 4.5.3.1.7)",
        );
    }
}

/// A size that must fit this machine's memory addresses.
pub(super) fn bytes(
    section: &Section<'_>,
    key: &'static str,
    default: usize,
    bounds: RangeInclusive<u64>,
) -> usize {
    usize::try_from(section.size(key, default as u64, bounds)).unwrap_or(usize::MAX)
}

/// A count that fits 32 bits.
pub(super) fn small(
    section: &Section<'_>,
    key: &'static str,
    default: usize,
    bounds: RangeInclusive<usize>,
) -> u32 {
    u32::try_from(section.integer(key, default, bounds)).unwrap_or(u32::MAX)
}

fn read_migration(section: Section<'_>) -> Migration {
    let d = ConductConfig::default();
    let name = |key| {
        let example = "the name of an upstream in quotes";
        section.require(key, example).and_then(|value| value.parse(example, values::name))
    };
    let (before, after) = (name("before"), name("after"));
    let example = "a mail address in quotes";
    let recipient = section.parsed("probe_recipient", example, |text| {
        let address = Address::parse(text).ok().filter(Address::is_ascii);
        let wrong = || format!("{} is not an ASCII mail address; give one", quote(text));
        address.map(|address| address.as_str().to_owned()).ok_or_else(wrong)
    });
    let conduct = ConductConfig {
        probe: section.boolean("probe", d.probe),
        probe_recipient: recipient.map(|found| found.value),
        probe_every: section.duration("probe_every", d.probe_every, SECOND..=HOUR),
        probe_timeout: section.duration("probe_timeout", d.probe_timeout, TIMEOUT),
        extend_by: section.duration("extend_by", d.extend_by, SECOND..=DAY),
        blocked_after: section.duration("blocked_after", d.blocked_after, SECOND..=DAY),
    };
    let migration = Migration { before, after, conduct };
    section.finish();
    migration
}

impl Migration {
    pub(super) fn config(&self) -> Option<MigrationConfig> {
        let value = |name: &Option<Located<String>>| Some(name.as_ref()?.value.clone());
        Some(MigrationConfig { before: value(&self.before)?, after: value(&self.after)? })
    }
}

fn read_admin(section: Section<'_>) -> Option<(AdminConfig, Place)> {
    let example = "an address, such as \"127.0.0.1:8025\"";
    let address =
        section.require("address", example).and_then(|v| v.parse(example, values::address));
    section.finish();
    address.map(|found| (AdminConfig { address: found.value }, found.place))
}

fn read_event_log(section: Section<'_>, base: &Path) -> Option<EventLogConfig> {
    let example = "a path in quotes, such as \"state/events.jsonl\"";
    let file = section
        .require("file", example)
        .and_then(|value| value.parse(example, |text| path(text, base)));
    let addresses = section.choice(
        "addresses",
        "a way to tell of addresses",
        &[("full", Addresses::Full), ("hashed", Addresses::Hashed), ("none", Addresses::None)],
    );
    let max_size = section.size("max_size", 64_000_000, MIB..=TIB);
    let keep = section.integer("keep", 10, 1..=1000);
    section.finish();
    let addresses = addresses.map_or(Addresses::Full, |found| found.value);
    Some(EventLogConfig { file: file?.value, max_size, keep, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_a_file_of_the_service() {
        let at = |name| credential(name, Some(OsStr::new("/run/credentials/other.service")));
        assert_eq!(at("api.token"), Ok("/run/credentials/other.service/api.token".into()));
        let outside = Ok("/run/credentials/wavegate.service/api.token".into());
        assert_eq!(credential("api.token", None), outside);
        for name in ["", ".", "..", "../shadow", "a/b"] {
            assert!(at(name).is_err_and(|why| why.contains("LoadCredential=")), "{name}");
        }
        assert_eq!(path("a/credential:b", Path::new("/etc")), Ok("/etc/a/credential:b".into()));
    }
}
