//! `[[upstream]]`: its keys, defaults and bounds, and which of them each type has. Floor 1.

use std::{path::Path, time::Duration};

use crate::config::{
    Bounces, Deferred, Handoff, UpstreamConfig, UpstreamIdentity, Verify,
    diagnostic::{Located, Place},
    identity, link,
    reader::Section,
    redirect,
    relay::{COUNT, DAY, HOUR, MS, SECOND, TIB, TIMEOUT, UpstreamPlaces, small},
    target, tls,
    values::{self, one_of, quote},
};

/// Extensions that an upstream may be said to have; SIZE has a key of its own.
const EXTENSIONS: [&str; 6] =
    ["8BITMIME", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "PIPELINING", "SMTPUTF8"];

/// What kind of next hop an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    /// Servers that speak SMTP.
    Smtp,
    /// Where the client wanted to go.
    Original,
    /// Gateways of a link.
    Link,
}

const KINDS: [(&str, Kind); 3] =
    [("smtp", Kind::Smtp), ("original-destination", Kind::Original), ("link", Kind::Link)];

/// Keys that not all types have, and those that do.
const NOT_OF_ALL: [(&str, &[Kind]); 15] = [
    ("destinations", &[Kind::Original]),
    ("networks", &[Kind::Original]),
    ("fallback", &[Kind::Original, Kind::Link]),
    ("link", &[Kind::Link]),
    ("streams", &[Kind::Link]),
    ("keep_alive", &[Kind::Link]),
    ("congestion", &[Kind::Link]),
    ("verify", &[Kind::Smtp, Kind::Original]),
    ("idle_connections", &[Kind::Smtp, Kind::Original]),
    ("messages_per_connection", &[Kind::Smtp, Kind::Original]),
    ("tls", &[Kind::Smtp, Kind::Original]),
    ("identity", &[Kind::Smtp, Kind::Original]),
    ("auth", &[Kind::Smtp, Kind::Original]),
    ("extensions", &[Kind::Smtp, Kind::Original]),
    ("size", &[Kind::Smtp, Kind::Original]),
];

/// What is usual where nothing else is said.
struct Usual {
    handoff: Handoff,
    connections: usize,
    idle_timeout: Duration,
    connect_timeout: Duration,
    eject_max: Duration,
}

impl Usual {
    fn of(kind: Kind) -> Self {
        let smtp = Self {
            handoff: Handoff::Auto,
            connections: 50,
            idle_timeout: 30 * SECOND,
            connect_timeout: 10 * SECOND,
            eject_max: 60 * SECOND,
        };
        match kind {
            Kind::Smtp => smtp,
            // A client whose mail goes where it wanted to go hears what it would have heard there.
            Kind::Original => Self { handoff: Handoff::Direct, ..smtp },
            // An outage of the network between is noticed soon, and soon is its end.
            Kind::Link => Self {
                connections: link::CONNECTIONS,
                idle_timeout: link::IDLE_TIMEOUT,
                connect_timeout: 3 * SECOND,
                eject_max: 2 * SECOND,
                ..smtp
            },
        }
    }
}

/// Reads one `[[upstream]]`.
pub(in crate::config) fn read(
    section: Section<'_>,
    base: &Path,
) -> (UpstreamConfig, UpstreamPlaces) {
    let example = "a name, such as \"legacy\"";
    let name = section.require("name", example).and_then(|v| v.parse(example, values::name));
    let (kind, place) = kind(&section);
    let targets = match kind {
        Kind::Original => Vec::new(),
        Kind::Smtp | Kind::Link => target::targets(&section),
    };
    let named = !targets.is_empty() && targets.iter().all(|found| found.value.is_name());
    if kind == Kind::Link {
        link::check_targets(&targets, &section);
    }
    let usual = Usual::of(kind);
    let connections = match kind {
        Kind::Link => section.integer("connections", usual.connections, link::OF_A_WORKER),
        Kind::Smtp | Kind::Original => {
            section.integer("connections", usual.connections, 1..=10_000)
        }
    };
    let idle_timeout = section.duration("idle_timeout", usual.idle_timeout, TIMEOUT);
    let eject_for = section.duration("eject_for", SECOND, MS..=HOUR);
    let retry_first = section.duration("retry_first", 60 * SECOND, MS..=DAY);
    let original = (kind == Kind::Original).then(|| redirect::upstream(&section));
    let link = (kind == Kind::Link).then(|| link::upstream(&section, base, named, idle_timeout));
    let fallback = match kind {
        Kind::Smtp => None,
        Kind::Original | Kind::Link => fallback(&section),
    };
    let mut upstream = UpstreamConfig {
        name: name.as_ref().map(|found| found.value.clone()).unwrap_or_default(),
        targets: targets.iter().map(|found| found.value.clone()).collect(),
        original,
        link: link.flatten(),
        handoff: handoff(&section, usual.handoff),
        default: section.boolean("default", false),
        connections,
        idle_connections: connections,
        idle_timeout,
        messages_per_connection: 1000,
        connect_timeout: section.duration("connect_timeout", usual.connect_timeout, TIMEOUT),
        reply_timeout: section.duration("reply_timeout", 60 * SECOND, TIMEOUT),
        final_timeout: section.duration("final_timeout", 600 * SECOND, TIMEOUT),
        eject_after: small(&section, "eject_after", 5, 1..=1000),
        eject_for,
        eject_max: section.duration(
            "eject_max",
            usual.eject_max.max(eject_for),
            eject_for..=24 * HOUR,
        ),
        direct_budget: section.duration("direct_budget", 100 * MS, MS..=HOUR),
        verify: Verify::None,
        deferred: deferred(&section),
        retry_first,
        retry_max: section.duration("retry_max", HOUR.max(retry_first), retry_first..=7 * DAY),
        expire: section.duration("expire", 5 * DAY, SECOND..=60 * DAY),
        bounces: bounces(&section),
        tls: None,
        identity: UpstreamIdentity::None,
        auth: None,
        extensions: None,
        size: None,
    };
    upstream.set_fallback(fallback.as_ref());
    if kind != Kind::Link {
        of_smtp(&section, base, named, &mut upstream);
    }
    let places = UpstreamPlaces {
        name: name.map(|found| found.place),
        default: section.get("default").map_or(section.place(), |value| value.place()),
        targets,
        kind: place,
        fallback,
    };
    section.finish();
    (upstream, places)
}

impl UpstreamConfig {
    fn set_fallback(&mut self, fallback: Option<&Located<String>>) {
        let name = fallback.map(|found| found.value.clone());
        if let Some(original) = &mut self.original {
            original.fallback = name;
        } else if let Some(link) = &mut self.link {
            link.fallback = name;
        }
    }
}

/// The type, and where it stands; reports the keys that it does not have.
fn kind(section: &Section<'_>) -> (Kind, Option<Place>) {
    let found = section.choice("type", "a type of upstream", &KINDS);
    // Of a type that is refused nobody knows what it would have.
    let known = found.is_some() || section.get("type").is_none();
    let (kind, place) = match found {
        Some(found) => (found.value, Some(found.place)),
        None => (Kind::Smtp, None),
    };
    for (key, of) in NOT_OF_ALL {
        if let Some(value) = section.get(key).filter(|_| known && !of.contains(&kind)) {
            value.error(no_effect(key, kind, of));
        }
    }
    (kind, place)
}

/// What to say of a key that a type does not have.
fn no_effect(key: &str, kind: Kind, of: &[Kind]) -> String {
    let name = |kind: Kind| KINDS.iter().find(|(_, one)| *one == kind).map_or("", |(name, _)| name);
    if kind == Kind::Link && of.contains(&Kind::Smtp) {
        let why = match key {
            "tls" => "the link is always encrypted, by the certificates of `link`",
            "auth" => "the relay shows its certificate of `link`",
            "identity" => "the gateway always hears who the client is",
            "verify" => "recipients are answered together with the message",
            "extensions" | "size" => "the gateway says what it takes",
            _ => "connections of a link stay open",
        };
        return format!("has no effect with `type = \"link\"`: {why}; remove it");
    }
    let types: Vec<_> = of.iter().map(|kind| format!("`type = \"{}\"`", name(*kind))).collect();
    format!("has no effect without {}; remove it", types.join(" or "))
}

/// The upstream that takes this one's mail where this one cannot.
fn fallback(section: &Section<'_>) -> Option<Located<String>> {
    section.parsed("fallback", "the name of an upstream in quotes", values::name)
}

fn handoff(section: &Section<'_>, usual: Handoff) -> Handoff {
    let found = section.choice(
        "handoff",
        "a hand-off",
        &[("auto", Handoff::Auto), ("direct", Handoff::Direct), ("queued", Handoff::Queued)],
    );
    found.map_or(usual, |found| found.value)
}

fn deferred(section: &Section<'_>) -> Deferred {
    let found = section.choice(
        "deferred",
        "a way to treat what the upstream defers",
        &[("spool", Deferred::Spool), ("pass", Deferred::Pass)],
    );
    found.map_or(Deferred::Spool, |found| found.value)
}

fn bounces(section: &Section<'_>) -> Bounces {
    let found = section.choice(
        "bounces",
        "a way to tell the sender",
        &[("send", Bounces::Send), ("event", Bounces::Event)],
    );
    found.map_or(Bounces::Send, |found| found.value)
}

/// What only upstreams have that speak SMTP.
fn of_smtp(section: &Section<'_>, base: &Path, named: bool, upstream: &mut UpstreamConfig) {
    let connections = upstream.connections;
    upstream.idle_connections = section.integer("idle_connections", connections, 0..=connections);
    upstream.messages_per_connection = small(section, "messages_per_connection", 1000, COUNT);
    let verify = section.choice(
        "verify",
        "what is verified",
        &[("none", Verify::None), ("rcpt", Verify::Rcpt)],
    );
    upstream.verify = verify.map_or(Verify::None, |found| found.value);
    (upstream.extensions, upstream.size) = extensions(section);
    upstream.tls = tls::upstream(section, base, named);
    upstream.identity = identity::identity(section);
    upstream.auth = identity::auth(section, base, upstream.tls.as_ref(), upstream.identity);
    if upstream.original.is_some() {
        redirect::check_tls(section, upstream.tls.as_ref());
    }
}

fn extensions(section: &Section<'_>) -> (Option<Vec<String>>, Option<u64>) {
    let extensions = section.list("extensions", "\"8BITMIME\"", |text| {
        let upper = text.to_ascii_uppercase();
        if EXTENSIONS.contains(&&*upper) {
            return Ok(upper);
        }
        let hint = if upper.starts_with("SIZE") { " (SIZE has the key `size`)" } else { "" };
        Err(format!("{} is not known; use {}{hint}", quote(text), one_of(EXTENSIONS)))
    });
    let size = section.get("size").map(|value| {
        if section.get("extensions").is_none() {
            value.error("has no effect without `extensions`; give both or neither");
        }
        section.size("size", 0, 0..=TIB)
    });
    (extensions.map(|list| list.into_iter().map(|found| found.value).collect()), size)
}
