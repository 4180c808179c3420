//! Behind a proxy: the relay goes by the client that its header names.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::{IpAddr, Ipv4Addr, TcpStream};

use wavegate_tests::{
    harness::{Client, Config, Haproxy, Relay, recording, until},
    sink::SinkHandle,
    tool,
};

/// Loopback addresses of two clients; the first may relay.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 7));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 8));

/// A relay that believes headers from 127.0.0.1, and relays for [`CLIENT`] alone.
fn relay(sink: &SinkHandle) -> Relay {
    let listener =
        "allow = [\"127.0.0.7\", \"192.0.2.0/24\", \"2001:db8::/32\"]\nproxies = [\"127.0.0.1\"]";
    Relay::start(&Config::to(&[sink.addr()]).listener(listener).admin())
}

/// The client may not relay.
fn refused(client: &mut Client) {
    client.expect("MAIL FROM:<a@b.example>", "250");
    client.expect("RCPT TO:<c@d.example>", "550 5.7.1");
}

fn content(sink: &SinkHandle) -> String {
    String::from_utf8(sink.messages().pop().unwrap().content.unwrap()).unwrap()
}

#[test]
fn the_client_is_who_the_header_names() {
    let sink = recording();
    let relay = relay(&sink);
    for (header, name) in [
        (&b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\r\n"[..], "[192.0.2.7]"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 25\r\n", "[IPv6:2001:db8::7]"),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\xc6\x33\x64\x01\xdc\x04\0\x19",
            "[192.0.2.9]",
        ),
    ] {
        let mut client = Client::connect(relay.addr());
        // In pieces: the header is taken to its last byte and no further.
        client.send_split(header, [1, 14, 15, 16, header.len() - 1]);
        client.expect_reply("220");
        client.expect("EHLO client.example", "250");
        assert!(client.small().starts_with("250"));
        assert!(content(&sink).contains(name), "{}", content(&sink));
    }
    // One that talks on at once is answered like any client that does not wait for the greeting.
    let mut hasty = Client::connect(relay.addr());
    hasty.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 25\r\nEHLO client.example\r\n");
    hasty.expect_reply("554 5.5.0");
    // The header decides who may relay, not the proxy's own address.
    let mut stranger = Client::connect(relay.addr());
    stranger.send(b"PROXY TCP4 203.0.113.1 198.51.100.1 56324 25\r\n");
    stranger.expect_reply("220");
    stranger.expect("EHLO client.example", "250");
    refused(&mut stranger);
}

#[test]
fn a_header_that_nobody_trusts_is_a_wrong_command() {
    let sink = recording();
    let relay = relay(&sink);
    let mut client = Client::connect_from(STRANGER, relay.addr());
    client.expect_reply("220");
    client.expect("PROXY TCP4 127.0.0.7 198.51.100.1 56324 25", "500");
    client.expect("EHLO client.example", "250");
    refused(&mut client);
}

#[test]
fn a_wrong_header_is_answered_counted_and_told() {
    let sink = recording();
    let relay = relay(&sink);
    for (wrong, said) in [
        (&b"EHLO client.example\r\n"[..], "is no PROXY header"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 99999\r\n", "a port is not a number"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "longer than 4096 bytes"),
    ] {
        let mut client = Client::connect(relay.addr());
        client.send(wrong);
        client.expect_reply("421 4.7.0");
        client.expect_closed();
        until("the log says why", || relay.logs().contains(said).then_some(()));
    }
    // One that goes without a word is counted too.
    drop(TcpStream::connect(relay.addr()).unwrap());
    relay.wait_metrics("four are counted", |metrics| {
        metrics.value("connections_refused_total{reason=\"proxy_header\"}") == 4.0
    });
    let mut client = Client::connect_from(CLIENT, relay.addr());
    client.expect_reply("220");
    client.expect("EHLO client.example", "250");
    assert!(client.small().starts_with("250"));
}

#[test]
fn clients_are_counted_apart_behind_one_proxy() {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .listener("allow = [\"192.0.2.0/24\"]\nproxies = [\"127.0.0.1\"]")
        .limits("connections_per_client = 1");
    let relay = Relay::start(&config);
    let connect = |source: u8| {
        let mut client = Client::connect(relay.addr());
        client.send(format!("PROXY TCP4 192.0.2.{source} 198.51.100.1 1 25\r\n"));
        client
    };
    let mut first = connect(1);
    first.expect_reply("220");
    connect(2).expect_reply("220");
    connect(1).expect_reply("421 4.7.0 wavegate: too many");
    drop(first);
    until("the first one is uncounted", || connect(1).reply().starts_with("220").then_some(()));
}

#[test]
fn haproxy_names_its_clients_in_both_versions() {
    let Some(program) = tool::require("haproxy") else { return };
    for options in ["send-proxy", "send-proxy-v2", "send-proxy-v2 check inter 50ms"] {
        let sink = recording();
        let relay = relay(&sink);
        let haproxy = Haproxy::start(&program, relay.addr(), "", options);
        let mut client = Client::connect_from(CLIENT, haproxy.addr);
        client.expect_reply("220");
        client.expect("EHLO client.example", "250");
        assert!(client.small().starts_with("250"));
        assert!(content(&sink).contains("[127.0.0.7]"), "{options}: {}", content(&sink));
        let mut stranger = Client::connect_from(STRANGER, haproxy.addr);
        stranger.expect_reply("220");
        stranger.expect("EHLO client.example", "250");
        refused(&mut stranger);
    }
}
