//! Redirected traffic: what `[[listener]]` and `[[upstream]]` say of it, and what must hold between
//! them. Floor 1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{
    ListenerConfig, UpstreamConfig, UpstreamTls, UpstreamTlsMode,
    diagnostic::{Place, Report},
    reader::Section,
    relay::{Draft, UpstreamPlaces},
    values,
};

/// The ports that are redirected where nothing else is said.
const PORTS: [u16; 1] = [25];
/// Destinations of an upstream that are known at once where nothing else is said: as many next hops
/// as a platform has at a time, each with connections of its own.
const DESTINATIONS: usize = 256;
/// The name of the type of upstream.
const TYPE: &str = "original-destination";

/// What of `[[listener]]` is about connections that the host redirects here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `redirect_ports`: where clients connected to; at least one.
    pub ports: Vec<u16>,
    /// `redirect_traffic`: whose connections.
    pub traffic: Traffic,
}

/// Whose connections are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Both.
    All,
    /// Those that this host forwards.
    Forwarded,
    /// Those of this host itself.
    Local,
}

impl Traffic {
    /// Whether connections are meant that this host forwards.
    pub fn is_forwarded(self) -> bool {
        self != Self::Local
    }

    /// Whether connections of this host itself are meant.
    pub fn is_local(self) -> bool {
        self != Self::Forwarded
    }
}

/// What of `[[upstream]]` is about mail that goes where its client wanted to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// `destinations`: how many are known at once.
    pub destinations: usize,
    /// `networks`: where it may go; empty: anywhere but to this host by a loopback address.
    pub networks: Vec<IpNet>,
    /// `fallback`: the upstream of mail that was not redirected.
    pub fallback: Option<String>,
}

impl Original {
    /// Whether mail may go there.
    pub fn allows(&self, destination: SocketAddr) -> bool {
        let to = destination.ip().to_canonical();
        match &self.networks[..] {
            [] => !(to.is_loopback() || to.is_unspecified() || to.is_multicast()),
            networks => networks.iter().any(|network| network.contains(&to)),
        }
    }
}

/// Reads what a listener says, which is at this address.
pub(super) fn listener(section: &Section<'_>, address: Option<SocketAddr>) -> Option<Redirect> {
    let modes = [("smtp", false), ("redirect", true)];
    let mode = section.choice("mode", "a mode of a listener", &modes);
    let ports = ports(section);
    let kinds =
        [("all", Traffic::All), ("forwarded", Traffic::Forwarded), ("local", Traffic::Local)];
    let traffic = section.choice("redirect_traffic", "a kind of traffic", &kinds);
    if !mode.is_some_and(|mode| mode.value) {
        for key in ["redirect_ports", "redirect_traffic"] {
            if let Some(value) = section.get(key) {
                value.error("has no effect without `mode = \"redirect\"`; give both or neither");
            }
        }
        return None;
    }
    if let Some(proxies) = section.get("proxies") {
        proxies.error(
            "cannot be with `mode = \"redirect\"`: where a client wanted to go is known of its own \
             connection only; give proxies a listener of their own",
        );
    }
    let traffic = traffic.map_or(Traffic::All, |found| found.value);
    if let Some(address) = address {
        check_address(section, address, traffic);
    }
    Some(Redirect { ports, traffic })
}

fn ports(section: &Section<'_>) -> Vec<u16> {
    let Some(value) = section.get("redirect_ports") else { return PORTS.to_vec() };
    let wanted = "a list of ports such as [25, 587]";
    let elements = value.elements(wanted).unwrap_or_default();
    let mut ports = Vec::new();
    for element in &elements {
        match element.integer().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) {
            None => element.error("is not a port; give a whole number from 1 to 65535"),
            Some(port) if ports.contains(&port) => {
                element.error("is in this list twice; remove one");
            }
            Some(port) => ports.push(port),
        }
    }
    if ports.is_empty() && elements.is_empty() {
        value.error("is empty; leave it out for 25, or give the ports that clients connect to");
    }
    ports
}

/// Where the kernel redirects to: the address of the interface that a forwarded connection comes in
/// by, a loopback address for the host's own.
fn check_address(section: &Section<'_>, address: SocketAddr, traffic: Traffic) {
    let Some(value) = section.get("address") else { return };
    let port = address.port();
    if port == 0 {
        value.error("has port 0, which no rule can redirect to; give a port of your choice");
        return;
    }
    let reached = address.ip().is_unspecified()
        || (traffic == Traffic::Local && address.ip().is_loopback())
        || (traffic == Traffic::Forwarded && !address.ip().is_loopback());
    if !reached {
        value.error(format!(
            "is not where all redirected connections come in: forwarded ones do at the address of \
             their interface, this host's own at a loopback address; write \"[::]:{port}\" (IPv4 \
             too), or \"{}:{port}\" (IPv4 only)",
            Ipv4Addr::UNSPECIFIED
        ));
    }
}

/// Reads what an upstream of this type says.
pub(super) fn upstream(section: &Section<'_>) -> Original {
    if let Some(targets) = section.get("targets") {
        targets.error(format!(
            "cannot be with `type = \"{TYPE}\"`: its mail goes where its client wanted to go; \
             remove one"
        ));
    }
    if let Some(value) = section.empty_list("networks") {
        value.error("is empty, so that mail could go nowhere; leave it out for anywhere");
    }
    let networks = section.list("networks", "\"192.0.2.0/24\"", values::network);
    Original {
        destinations: section.integer("destinations", DESTINATIONS, 1..=10_000),
        networks: networks.unwrap_or_default().into_iter().map(|found| found.value).collect(),
        fallback: None,
    }
}

/// Each destination has a name of its own, so none can be asked for.
pub(super) fn check_tls(section: &Section<'_>, tls: Option<&UpstreamTls>) {
    let named = tls.is_some_and(|tls| tls.mode != UpstreamTlsMode::Opportunistic && tls.verify);
    if named && let Some(value) = section.get("tls") {
        value.error(format!(
            "cannot ask for one name with `type = \"{TYPE}\"`, whose destinations have each their \
             own; use \"opportunistic\""
        ));
    }
}

/// Whether it is of this type.
fn is_original((upstream, _): &&(UpstreamConfig, UpstreamPlaces)) -> bool {
    upstream.original.is_some()
}

/// Names of the upstreams of this type.
pub(super) fn names(draft: &Draft) -> Vec<String> {
    draft.upstreams.iter().filter(is_original).map(|(one, _)| one.name.clone()).collect()
}

/// What to say where mail of an instance would go there after its window.
pub(super) fn no_after(name: &str) -> String {
    format!(
        "\"{name}\" is of `type = \"{TYPE}\"`, which cannot be asked whether it would take an \
         instance's mail; name an upstream with `targets`, the new infrastructure"
    )
}

/// Checks what must hold between listeners, upstreams and the migration.
pub(super) fn check(draft: &Draft, report: &Report) {
    let originals = names(draft);
    let after = draft.migration.as_ref().and_then(|migration| migration.after.as_ref());
    if let Some(after) = after.filter(|after| originals.contains(&after.value)) {
        report.error(&after.place, no_after(&after.value));
    }
    for (upstream, places) in draft.upstreams.iter().filter(is_original) {
        match &places.fallback {
            Some(fallback) if originals.contains(&fallback.value) => report.error(
                &fallback.place,
                format!("is itself of `type = \"{TYPE}\"`; name an upstream with `targets`"),
            ),
            Some(_) => {}
            None => warn_of_no_fallback(upstream, places.kind.as_ref(), report),
        }
    }
    check_listeners(draft, report);
}

fn warn_of_no_fallback(upstream: &UpstreamConfig, place: Option<&Place>, report: &Report) {
    let Some(place) = place else { return };
    report.warn(
        place,
        format!(
            "mail of \"{}\" that was not redirected, such as notifications that the relay itself \
             sends, has nowhere to go and waits; give `fallback`, the name of an upstream",
            upstream.name
        ),
    );
}

fn check_listeners(draft: &Draft, report: &Report) {
    let all: Vec<_> = draft
        .listeners
        .iter()
        .filter_map(|(listener, places)| Some((listener, listener.redirect.as_ref()?, places)))
        .collect();
    for (index, (_, redirect, places)) in all.iter().enumerate() {
        let twice = all[..index].iter().find_map(|(other, theirs, _)| {
            let port = theirs.ports.iter().find(|port| redirect.ports.contains(port))?;
            let both = |test: fn(Traffic) -> bool| test(redirect.traffic) && test(theirs.traffic);
            let same = both(Traffic::is_forwarded) || both(Traffic::is_local);
            same.then_some((port, other))
        });
        if let (Some((port, other)), Some(place)) = (twice, &places.address) {
            let other = &other.name;
            let text = format!(
                "connections to port {port} are redirected to listener \"{other}\" already; give \
                 each `redirect_ports` or `redirect_traffic` of its own"
            );
            report.error(place, text);
        }
    }
    if all.is_empty() {
        for (_, places) in draft.upstreams.iter().filter(is_original) {
            let Some(place) = &places.kind else { continue };
            report.warn(
                place,
                "no listener has `mode = \"redirect\"`, so no new mail has an original destination",
            );
        }
    }
}

/// What clients on this host come from, in `allow`, whatever address they would have left by.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl ListenerConfig {
    /// Whether a client on this host may relay that was redirected here.
    pub fn allows_local(&self) -> bool {
        self.allow.iter().any(|network| LOOPBACK.iter().any(|own| network.contains(own)))
    }

    /// Whether mail that comes in here may go to this upstream.
    pub fn reaches(&self, upstream: &str) -> bool {
        self.upstreams.is_empty() || self.upstreams.iter().any(|name| name == upstream)
    }
}
