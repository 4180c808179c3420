//! Links. Floor 4.

use super::families::Families;
use crate::links::{EdgeLink, GatewayLink, Links};

/// Links to gateways, and those of edges.
pub(super) fn collect(families: &mut Families, links: &Links) {
    edges(families, &links.edges);
    gateways(families, &links.gateways);
}

fn edges(families: &mut Families, all: &[EdgeLink]) {
    let mut family =
        families.gauge("wavegate_link_up", "1 while a gateway of the link can be reached.");
    for one in all {
        family.value(&[("upstream", &one.upstream)], f64::from(u8::from(!one.down)));
    }
    type Read = fn(&EdgeLink) -> u64;
    let gauges: [(&str, &str, Read); 4] = [
        ("connections", "Connections to gateways.", |one| one.connections.len() as u64),
        ("streams", "Messages on their way.", |one| one.streams),
        ("streams_limit", "Most messages at once.", |one| one.streams_limit),
        ("in_doubt", "Messages whose answer was lost and is asked for.", |one| one.in_doubt),
    ];
    for (name, help, read) in gauges {
        let mut family = families.gauge(&format!("wavegate_link_{name}"), help);
        all.iter().for_each(|one| family.count(&[("upstream", &one.upstream)], read(one)));
    }
    let counters: [(&str, &str, Read); 8] = [
        ("reconnects", "Connections opened in place of one that was lost.", |one| one.reconnects),
        ("fallbacks", "Messages that went to the fallback.", |one| one.fallbacks),
        ("resumed", "Times a message was asked about again.", |one| one.resumed),
        ("known", "Messages that the gateway had answered before.", |one| one.known),
        ("packets", "Packets sent.", |one| one.packets),
        ("packets_lost", "Packets sent and lost.", |one| one.lost),
        ("bytes_sent", "Bytes of datagrams sent.", |one| one.sent),
        ("bytes_received", "Bytes of datagrams received.", |one| one.received),
    ];
    for (name, help, read) in counters {
        let mut family = families.counter(&format!("wavegate_link_{name}_total"), help);
        all.iter().for_each(|one| family.count(&[("upstream", &one.upstream)], read(one)));
    }
    let mut family = families
        .gauge("wavegate_link_round_trip_seconds", "Longest round trip of a link's connections.");
    for one in all {
        let longest = one.connections.iter().map(|one| one.path.rtt_us).max();
        if let Some(longest) = longest {
            family.value(&[("upstream", &one.upstream)], microseconds(longest));
        }
    }
    let mut family = families.gauge(
        "wavegate_link_window_bytes",
        "Bytes that may be on their way, over all connections.",
    );
    for one in all {
        let sum = one.connections.iter().map(|one| one.path.window).sum();
        family.count(&[("upstream", &one.upstream)], sum);
    }
}

fn gateways(families: &mut Families, all: &[GatewayLink]) {
    type Read = fn(&GatewayLink) -> u64;
    let gauges: [(&str, &str, Read); 4] = [
        ("connections", "Connections of edges.", |one| one.connections.len() as u64),
        ("in_progress", "Messages of edges that are being handed on.", |one| one.in_progress),
        ("seen", "Messages whose answers are remembered.", |one| one.seen),
        ("seen_limit", "Most messages whose answers are remembered.", |one| one.seen_limit),
    ];
    for (name, help, read) in gauges {
        let mut family = families.gauge(&format!("wavegate_gateway_{name}"), help);
        all.iter().for_each(|one| family.count(&[("listener", &one.listener)], read(one)));
    }
    let counters: [(&str, &str, Read); 3] = [
        ("messages", "Messages of edges that came whole.", |one| one.messages),
        ("known", "Recipients answered from memory.", |one| one.known),
        ("turned_away", "Messages refused early for want of room.", |one| one.turned_away),
    ];
    for (name, help, read) in counters {
        let mut family = families.counter(&format!("wavegate_gateway_{name}_total"), help);
        all.iter().for_each(|one| family.count(&[("listener", &one.listener)], read(one)));
    }
    let mut family = families.counter(
        "wavegate_gateway_refused_total",
        "Connections of edges that were refused, by why.",
    );
    for (one, found) in all.iter().flat_map(|one| one.refused.iter().map(move |it| (one, it))) {
        family.count(&[("listener", &one.listener), ("reason", &found.what)], found.count);
    }
    let mut family = families.counter(
        "wavegate_gateway_errors_total",
        "Streams and connections of edges that broke the protocol, by how.",
    );
    for (one, found) in all.iter().flat_map(|one| one.errors.iter().map(move |it| (one, it))) {
        family.count(&[("listener", &one.listener), ("code", &found.what)], found.count);
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below what a float is exact for")]
fn microseconds(value: u64) -> f64 {
    value as f64 / 1e6
}
