//! The keys of a link: what both sides say, and what each says of its own. Floor 1.

use std::{collections::HashMap, ops::RangeInclusive, path::Path, time::Duration};

use tokio_rustls::rustls::pki_types::ServerName;

use super::{
    CONNECTIONS_OF_A_GATEWAY, Congestion, IDLE_TIMEOUT, KEEP_ALIVE, LinkListener, LinkPeer,
    LinkUpstream, PEER_NAME, Pin, SEEN, STREAMS, Trust,
};
use crate::config::{
    TlsFiles,
    diagnostic::{Located, Place},
    listener::Common,
    reader::Section,
    relay::{TIMEOUT, small},
    target::Target,
    tls,
    values::{quote, show_duration},
};

/// Messages at once: each is a stream with its state.
const STREAMS_BOUNDS: RangeInclusive<usize> = 1..=100_000;
/// Connections of all edges: far more than there are sites.
const CONNECTIONS_BOUNDS: RangeInclusive<usize> = 1..=100_000;
/// Messages that are remembered; at least one in each half of the table.
const SEEN_BOUNDS: RangeInclusive<usize> = 2..=10_000_000;

const LINK_OF_AN_EDGE: &str =
    "`link = { certificate = \"edge.pem\", key = \"edge.key\", ca = \"link-ca.pem\" }`";
const LINK_OF_A_GATEWAY: &str =
    "`link = { certificate = \"gateway.pem\", key = \"gateway.key\", ca = \"link-ca.pem\" }`";

/// Keys that only a listener of a link has.
const OF_A_GATEWAY: [&str; 6] =
    ["link", "connections", "streams", "seen", "idle_timeout", "congestion"];
/// Keys that it has not, and why.
const NOT_OF_A_GATEWAY: [(&str, &str); 8] = [
    ("allow", "`link` says who may come in, by certificates"),
    ("proxies", "edges say themselves who their clients are"),
    ("xclient", "edges say themselves who their clients are"),
    ("mode", "nothing is redirected to it"),
    ("redirect_ports", "nothing is redirected to it"),
    ("redirect_traffic", "nothing is redirected to it"),
    ("tls", "it is always encrypted, by the certificates of `link`"),
    ("auth", "edges show certificates, those of `link`"),
];

/// Whether a listener is one of a link.
pub(in crate::config) fn is_listener(section: &Section<'_>) -> bool {
    let types = [("smtp", false), ("link", true)];
    section.choice("type", "a type of listener", &types).is_some_and(|found| found.value)
}

/// Reports what a listener says of a link though it is none.
pub(in crate::config) fn no_listener(section: &Section<'_>) {
    // Where the type is refused nobody knows what it would have.
    let is_smtp = section.get("type").is_none_or(|value| value.get().as_str() == Some("smtp"));
    for key in OF_A_GATEWAY {
        if let Some(value) = section.get(key).filter(|_| is_smtp) {
            value.error("has no effect without `type = \"link\"`; remove it");
        }
    }
}

/// Reads a listener of a link.
pub(in crate::config) fn listener(
    section: Section<'_>,
    base: &Path,
    common: Common,
) -> LinkListener {
    for (key, why) in NOT_OF_A_GATEWAY {
        if let Some(value) = section.get(key) {
            value.error(format!("has no effect with `type = \"link\"`: {why}; remove it"));
        }
    }
    let table = section.require("link", LINK_OF_A_GATEWAY).and_then(|_| section.section("link"));
    let read = table.map(|table| {
        if let Some(value) = table.get("pins") {
            value.error(
                "belongs to a peer, who has a name: `peers = [{ name = \"edge-1\", pins = [\"…\"] }]`",
            );
        }
        let ca_is_given = table.get("ca").is_some();
        let peers = peers(&table, ca_is_given);
        let pins = peers.iter().flat_map(|peer| peer.pins.iter().copied()).collect();
        let example = "`peers` with the pins of each, or both";
        let (identity, trust) = sides(&table, base, pins, example);
        table.finish();
        (identity, trust, peers)
    });
    let (identity, trust, peers) = read.unwrap_or_default();
    let listener = LinkListener {
        name: common.name,
        address: common.address,
        identity: identity.unwrap_or_else(nothing),
        trust,
        peers,
        connections: section.integer("connections", CONNECTIONS_OF_A_GATEWAY, CONNECTIONS_BOUNDS),
        streams: small(&section, "streams", STREAMS, STREAMS_BOUNDS),
        seen: section.integer("seen", SEEN, SEEN_BOUNDS),
        idle_timeout: section.duration("idle_timeout", IDLE_TIMEOUT, TIMEOUT),
        congestion: congestion(&section),
        upstreams: common.upstreams,
    };
    section.finish();
    listener
}

/// Reads what an upstream says of its link. Where all targets are `named`, each has a name to
/// verify.
pub(in crate::config) fn upstream(
    section: &Section<'_>,
    base: &Path,
    named: bool,
    idle_timeout: Duration,
) -> Option<LinkUpstream> {
    let streams = section.integer("streams", STREAMS, STREAMS_BOUNDS);
    let keep_alive = section.duration("keep_alive", KEEP_ALIVE.min(idle_timeout / 2), TIMEOUT);
    if keep_alive >= idle_timeout {
        let at = ["keep_alive", "idle_timeout"].into_iter().find_map(|key| section.get(key));
        let place = at.map_or(section.place(), |value| value.place());
        let text = format!(
            "a connection where nothing is said would be given up (`idle_timeout`, {}) before the \
             gateway is asked for (`keep_alive`, {}); make `keep_alive` at most half of it",
            show_duration(idle_timeout),
            show_duration(keep_alive)
        );
        section.report().error(&place, text);
    }
    let congestion = congestion(section);
    let given = section.require("link", LINK_OF_AN_EDGE)?;
    let table = section.section("link")?;
    let example = "a host name in quotes, such as \"gateway.example.net\"";
    let name = table.parsed("name", example, |text| match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{} is no host name; give {example}", quote(text))),
    });
    let pins = pins(&table);
    let (identity, trust) = sides(&table, base, pins, "`pins` of the gateways, or both");
    if trust.ca.is_some() && table.get("name").is_none() && !named {
        given.error(
            "needs `name`, what the gateways are called in their certificate: `link = { name = \
             \"gateway.example.net\", … }`; or give names as targets, not addresses",
        );
    }
    if trust.ca.is_none()
        && let Some(value) = table.get("name").filter(|_| !trust.pins.is_empty())
    {
        let text =
            "is only asked for, because pins say who a gateway is; leave it out, or add `ca`";
        section.report().warn(&value.place(), text);
    }
    table.finish();
    Some(LinkUpstream {
        identity: identity?,
        trust,
        name: name.map(|found| found.value),
        streams,
        fallback: None,
        keep_alive,
        idle_timeout,
        congestion,
    })
}

/// Reports targets at which no gateway can be.
pub(in crate::config) fn check_targets(targets: &[Located<Target>], section: &Section<'_>) {
    for target in targets.iter().filter(|one| matches!(one.value, Target::Mx { .. })) {
        section.report().error(
            &target.place,
            "is about mail exchangers, which speak SMTP and not the link; give the gateway's \
             HOST:PORT",
        );
    }
}

fn congestion(section: &Section<'_>) -> Congestion {
    let found = section.choice(
        "congestion",
        "a congestion control",
        &[("bbr", Congestion::Bbr), ("cubic", Congestion::Cubic)],
    );
    found.map_or_else(Congestion::default, |found| found.value)
}

/// What both sides have: what is shown, and who is believed. Who believes nobody is told to give a
/// `ca` or the `example`.
fn sides(
    table: &Section<'_>,
    base: &Path,
    pins: Vec<Pin>,
    example: &str,
) -> (Option<TlsFiles>, Trust) {
    let file = |key| tls::file(table, key, base);
    let identity = file("certificate").zip(file("key"));
    let identity = identity.map(|(certificate, key)| TlsFiles { certificate, key });
    let optional = |key| table.get(key).and_then(|_| file(key));
    let trust = Trust { ca: optional("ca"), crl: optional("crl"), pins };
    let pinned = table.get("pins").or_else(|| table.get("peers")).is_some();
    if table.get("ca").is_none() {
        if !pinned {
            let text =
                format!("says nobody to believe; give `ca`, an authority of yours, {example}");
            table.report().error(&table.place(), text);
        }
        if let Some(value) = table.get("crl") {
            value.error(
                "has no effect without `ca`, whose certificates it revokes; a pin is revoked by \
                 taking it out",
            );
        }
    }
    (identity, trust)
}

fn pins(table: &Section<'_>) -> Vec<Pin> {
    if let Some(value) = table.empty_list("pins") {
        value.error("is empty, so that no key is pinned; leave it out, or give one");
    }
    let found = table.list("pins", "\"sha256/…\"", Pin::parse).unwrap_or_default();
    found.into_iter().map(|found| found.value).collect()
}

fn peers(table: &Section<'_>, has_ca: bool) -> Vec<LinkPeer> {
    if let Some(value) = table.empty_list("peers") {
        value.error("is empty; leave it out to let in whoever `ca` has a certificate for");
    }
    let mut names: HashMap<String, Place> = HashMap::new();
    let mut owners: HashMap<Pin, String> = HashMap::new();
    let mut peers = Vec::new();
    for peer in table.sections("peers") {
        let example = "what the edge is called, such as \"edge-1.example.net\"";
        let name = peer.require("name", example).and_then(|value| value.parse(example, peer_name));
        let pins = pins(&peer);
        if !has_ca && peer.get("pins").is_none() {
            let text = "has no `pins`, and there is no `ca`, so that nobody could be it; give one";
            peer.report().error(&peer.place(), text);
        }
        let place = peer.place();
        peer.finish();
        let Some(name) = name else { continue };
        if let Some(other) = names.insert(name.value.clone(), name.place.clone()) {
            let text = format!("is also the peer at {}; give it all its pins", other.short());
            table.report().error(&name.place, text);
            continue;
        }
        for pin in &pins {
            let before = owners.insert(*pin, name.value.clone());
            if let Some(other) = before.filter(|other| *other != name.value) {
                let text =
                    format!("{pin} is also a pin of \"{other}\"; give each a key of its own");
                table.report().error(&place, text);
            }
        }
        peers.push(LinkPeer { name: name.value, pins });
    }
    peers
}

/// What a peer may be called: as a host is, and shorter words too.
fn peer_name(text: &str) -> Result<String, String> {
    super::is_peer_name(text).then(|| text.to_ascii_lowercase()).ok_or_else(|| {
        format!(
            "{} is no name of a peer; use 1 to {PEER_NAME} letters, digits, \".\", \"_\" and \"-\", the first \
             a letter or digit",
            quote(text)
        )
    })
}

/// Stands in for files that were refused, in a configuration that is then refused too.
fn nothing() -> TlsFiles {
    TlsFiles { certificate: "/".into(), key: "/".into() }
}
