//! XCLIENT: the relay goes by the client that a trusted peer names.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::{IpAddr, Ipv4Addr};

use wavegate_tests::{
    harness::{Client, Config, Relay, recording, until},
    sink::SinkHandle,
};

/// One that may say who its client is, and may relay itself.
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// One that may neither.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 8));

const LISTENER: &str = "allow = [\"127.0.0.1\", \"192.0.2.0/24\", \"2001:db8::/32\"]\n\
                        xclient = [\"127.0.0.1\"]\n";

fn relay(sink: &SinkHandle, limits: &str) -> Relay {
    Relay::start(&Config::to(&[sink.addr()]).listener(LISTENER).limits(limits).admin())
}

/// Waits for a place, where one that was given up is not counted off yet.
fn connect(relay: &Relay, from: IpAddr) -> Client {
    until("a place", || {
        let mut client = Client::connect_from(from, relay.addr());
        client.reply().starts_with("220").then_some(client)
    })
}

fn refused(client: &mut Client) {
    client.expect("MAIL FROM:<a@b.example>", "250");
    client.expect("RCPT TO:<c@d.example>", "550 5.7.1");
    client.expect("RSET", "250");
}

fn content(sink: &SinkHandle) -> String {
    String::from_utf8(sink.messages().pop().unwrap().content.unwrap()).unwrap()
}

#[test]
fn a_client_is_who_a_trusted_peer_says() {
    let sink = recording();
    let relay = relay(&sink, "");
    let mut peer = connect(&relay, PEER);
    let offer = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT".to_owned();
    assert!(peer.ehlo().contains(&offer));
    for (said, name) in [
        ("NAME=mta.example ADDR=192.0.2.7 PORT=4711 PROTO=ESMTP HELO=mta", "([192.0.2.7])"),
        ("ADDR=IPV6:2001:db8::7 LOGIN=ada", "([IPv6:2001:db8::7])"),
    ] {
        peer.expect(&format!("XCLIENT {said}"), "220 edge-1.example.net ESMTP");
        peer.expect("MAIL FROM:<a@b.example>", "503 5.5.1");
        assert!(peer.ehlo().contains(&offer));
        assert!(peer.small().starts_with("250"));
        let content = content(&sink);
        assert!(content.contains(name), "{content}");
        assert_eq!(content.contains("with ESMTPA"), said.contains("LOGIN"), "{content}");
    }
    // Who may relay is asked of the client, not of the peer.
    for said in ["ADDR=203.0.113.1", "ADDR=[UNAVAILABLE]"] {
        peer.expect(&format!("XCLIENT {said}"), "220");
        peer.ehlo();
        refused(&mut peer);
    }
    // Unless it has logged in there.
    peer.expect("XCLIENT ADDR=203.0.113.1 LOGIN=ada", "220");
    peer.ehlo();
    assert!(peer.small().starts_with("250"));
    peer.expect("XCLIENT ADDR=203.0.113", "501 5.5.4");
    peer.expect("MAIL FROM:<a@b.example>", "250");
    peer.expect("XCLIENT ADDR=192.0.2.7", "503 5.5.1");
    let mut stranger = connect(&relay, STRANGER);
    assert!(!stranger.ehlo().iter().any(|line| line.starts_with("XCLIENT")));
    stranger.expect("XCLIENT ADDR=192.0.2.7", "550 5.7.0");
    refused(&mut stranger);
}

#[test]
fn clients_are_counted_apart_behind_one_peer() {
    let sink = recording();
    let relay = relay(&sink, "connections_per_client = 1");
    let told = |source: u8| {
        let mut peer = connect(&relay, PEER);
        peer.send(format!("XCLIENT ADDR=192.0.2.{source}\r\n"));
        peer
    };
    let mut first = told(1);
    first.expect_reply("220");
    // The peer's own place is free again.
    let mut second = told(2);
    second.expect_reply("220");
    let mut third = told(1);
    third.expect_reply("421 4.7.0 wavegate: too many connections");
    third.expect_closed();
    drop(first);
    until("the first one is uncounted", || told(1).reply().starts_with("220").then_some(()));
    relay.wait_metrics("refusals are counted", |metrics| {
        metrics.value("connections_refused_total{reason=\"too_many_from_client\"}") >= 1.0
    });
    // One that becomes what it is already keeps its place.
    second.expect("XCLIENT ADDR=192.0.2.2", "220");
    relay.wait_metrics("it alone is left", |metrics| {
        metrics.value("connections{listener=\"listener-1\"}") == 1.0
    });
}
