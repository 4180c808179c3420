//! Names as targets, through real sockets: a relay that asks a DNS server on loopback, and sinks at
//! addresses of their own.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wavegate_tests::harness::{
    Config, Dns, Mood, Relay, TLS_FILES, assert_promise, binary, recording, sink_at, until,
};
use wavegate_tests::load::{self, LoadOptions};
use wavegate_tests::sink::{Extensions, SinkHandle};

const HOST: &str = "mail.cloud.example";
/// For tests that wait for the end of a TTL of one second.
const QUICK: &str = "timeout = \"200ms\"\nattempts = 1\nmin_ttl = \"100ms\"";

fn local(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// Sinks at 127.0.0.2, 127.0.0.3 and so on, with one port.
fn sinks<const N: usize>() -> ([SinkHandle; N], u16) {
    let chunking = || Extensions { chunking: true, ..Extensions::default() };
    let first = sink_at(SocketAddr::new(local(2), 0), chunking(), &[]);
    let port = first.addr().port();
    let mut first = Some(first);
    let sinks = std::array::from_fn(|number| {
        let address = SocketAddr::new(local(2 + u8::try_from(number).unwrap()), port);
        first.take().unwrap_or_else(|| sink_at(address, chunking(), &[]))
    });
    (sinks, port)
}

fn config(dns: &Dns, target: &str, upstream: &str, resolver: &str) -> Config {
    let text = format!("[[upstream]]\nname = \"cloud\"\ntargets = [\"{target}\"]\n{upstream}\n");
    Config::default().admin().section(&text).section(&dns.resolver(resolver))
}

fn targets(relay: &Relay) -> Vec<String> {
    relay.metrics().values_of("upstream_target_up", "target").into_iter().collect()
}

#[test]
fn an_address_changes_under_traffic_and_no_message_is_lost() {
    let dns = Dns::start();
    let ([old, new], port) = sinks();
    dns.host(HOST, &[local(2)], 1);
    let target = format!("{HOST}:{port}");
    let mut relay = Relay::start(&config(&dns, &target, "", QUICK));
    let (stop, address) = (AtomicBool::new(false), relay.addr());
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::SeqCst) {
                let options = LoadOptions {
                    sessions: 4,
                    body_size: 2000,
                    time_limit: Duration::from_secs(20),
                    ..LoadOptions::new(address, 100)
                };
                let report = load::run(&options).unwrap();
                assert!(report.is_clean(), "{report}");
                sent += report.accepted;
            }
            sent
        });
        until("mail at the old address", || (old.counts().messages >= 200).then_some(()));
        assert_eq!(targets(&relay), [format!("127.0.0.2:{port}")]);
        dns.host(HOST, &[local(3)], 1);
        let moved = new.counts().messages + 200;
        until("mail at the new address", || (new.counts().messages >= moved).then_some(()));
        let before = old.counts().messages;
        let moved = new.counts().messages + 200;
        until("more mail at the new address", || (new.counts().messages >= moved).then_some(()));
        // Leases that were out may have ended with one message each.
        assert!(old.counts().messages <= before + 4, "mail still goes to the old address");
        stop.store(true, Ordering::SeqCst);
        load.join().unwrap()
    });
    let arrived = || old.counts().messages + new.counts().messages;
    until("what waits in the spool", || (arrived() >= sent).then_some(()));
    assert_eq!(arrived(), sent, "each once");
    assert_eq!(targets(&relay), [format!("127.0.0.3:{port}")]);
    let log = relay.log();
    assert_eq!(log.matches("targets were exchanged").count(), 1, "one line a change, not a query");
    assert!(log.contains(&format!("old=[127.0.0.2:{port}] new=[127.0.0.3:{port}]")), "{log}");
    let metrics = relay.metrics();
    assert!(metrics.sum("resolver_lookups_total", &["result=\"answered\""]) >= 1.0);
    assert_eq!(metrics.sum("resolver_stale_seconds", &[]), 0.0);
    assert_promise(&metrics);
    relay.assert_alive();
}

#[test]
fn a_server_that_stops_answering_costs_nothing_for_a_time() {
    let dns = Dns::start();
    let ([sink], port) = sinks();
    dns.host(HOST, &[local(2)], 1);
    let resolver = format!("{QUICK}\nkeep = \"5s\"");
    let config = config(&dns, &format!("{HOST}:{port}"), "handoff = \"direct\"", &resolver);
    let relay = Relay::start(&config);
    assert!(relay.hello().small().starts_with("250"));
    for (mood, result) in [(Mood::Fails, "the server says"), (Mood::Silent, "no answer within")] {
        dns.is(mood);
        let stale = |old: bool| {
            relay.wait_metrics("what is old", |metrics| {
                (metrics.sum("resolver_stale_seconds", &[]) > 0.0) == old
                    && metrics.sum("upstream_targets", &[]) == 1.0
            });
        };
        stale(true);
        assert!(relay.hello().small().starts_with("250"));
        until("a word in the log", || relay.log().contains(result).then_some(()));
        assert!(relay.log().contains("name is not answered; what it stood for is used"));
        if mood == Mood::Fails {
            dns.is(Mood::Well);
            stale(false);
        }
    }
    relay.wait_metrics("the end of `keep`", |now| now.sum("upstream_targets", &[]) == 0.0);
    let reply = relay.hello().small();
    let expected =
        format!("451 4.4.3 wavegate: upstream cloud has no target: {HOST}:{port} has no answer: ");
    assert!(reply.starts_with(&expected), "{reply}");
    assert!(relay.metrics().sum("resolver_lookups_total", &["result=\"no_answer\""]) >= 2.0);
    dns.is(Mood::Well);
    relay.wait_metrics("a target again", |now| now.sum("upstream_targets", &[]) == 1.0);
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.counts().messages, 4);
    until("a word in the log", || relay.log().contains("name is answered again").then_some(()));
    assert_promise(&relay.metrics());
}

#[test]
fn a_relay_starts_without_a_server_and_goes_on_when_there_is_one() {
    let dns = Dns::start();
    let ([sink], port) = sinks();
    dns.is(Mood::Silent);
    let relay = Relay::start(&config(&dns, &format!("mx:cloud.example:{port}"), "", QUICK));
    assert!(relay.log().contains("upstream[0].targets[0]: mx:cloud.example:"), "{}", relay.log());
    let reply = relay.hello().small();
    assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    dns.exchangers("cloud.example", &[(20, "b.cloud.example"), (10, "a.cloud.example")], 60);
    dns.host("a.cloud.example", &[local(2)], 60);
    // Nobody listens there, and nobody is to be asked.
    dns.host("b.cloud.example", &[local(9)], 60);
    dns.is(Mood::Well);
    until("what waited", || (sink.counts().messages == 1).then_some(()));
    assert_eq!(targets(&relay), [format!("127.0.0.2:{port}"), format!("127.0.0.9:{port}")]);
    assert_promise(&relay.metrics());
}

#[test]
fn what_does_not_exist_is_refused_at_start_at_reload_and_by_the_check() {
    let dns = Dns::start();
    let ([sink], port) = sinks();
    dns.host(HOST, &[local(2)], 60);
    dns.exchangers("null.example", &[(0, ".")], 60);
    let good = config(&dns, &format!("{HOST}:{port}"), "", "").to_string();
    let mut relay = Relay::start_with(&good, &[]);
    assert!(relay.hello().small().starts_with("250"));
    for (target, why) in [
        (
            "gone.cloud.example:25",
            "gone.cloud.example:25 cannot be used: there is no such name; put",
        ),
        ("mx:gone.cloud.example", "mx:gone.cloud.example:25 cannot be used: there is no such name"),
        ("mx:null.example", "cannot be used: the domain takes no mail (a null MX, RFC 7505)"),
    ] {
        relay.write("relay.toml", good.replace(&format!("{HOST}:{port}"), target));
        let said = relay.reload_refused();
        assert!(said.contains("upstream[0].targets[0]: ") && said.contains(why), "{said}");
        assert!(relay.hello().small().starts_with("250"), "the old one goes on");
    }
    let check = |resolve: &[&str]| {
        let file = relay.folder().join("relay.toml");
        let mut command = Command::new(binary());
        command.args(["config", "check", "--config"]).arg(file).args(resolve);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let asked = dns.asked();
    assert_eq!((check(&[]).0, dns.asked()), (Some(0), asked), "it asks nobody");
    let (code, said) = check(&["--resolve"]);
    assert_eq!(code, Some(78));
    assert!(said.contains("null MX"), "{said}");
    let (code, said) = relay.restart_fails();
    assert_eq!(code, Some(78));
    assert!(said.contains("upstream[0].targets[0]: mx:null.example:25 cannot be used"), "{said}");
    // Once it is put right, nobody waits for the TTL of what was not there.
    relay.write("relay.toml", good.replace(HOST, "gone.cloud.example"));
    assert_eq!(relay.restart_fails().0, Some(78));
    dns.host("gone.cloud.example", &[local(2)], 60);
    relay.restart();
    assert!(relay.hello().small().starts_with("250"));
    let file = relay.folder().join("relay.toml");
    let output = Command::new(binary())
        .args(["config", "check", "--resolve", "--config"])
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let expected = format!("cloud at gone.cloud.example:{port}, now 127.0.0.2:{port}");
    assert!(said.contains(&expected), "{said}");
    assert_eq!(sink.counts().messages, 5);
}

#[test]
fn a_name_that_was_taken_keeps_no_other_change_from_being_taken() {
    let dns = Dns::start();
    let ([sink], port) = sinks();
    dns.host(HOST, &[local(2)], 1);
    let good = config(&dns, &format!("{HOST}:{port}"), "", QUICK).to_string();
    let relay = Relay::start_with(&good, &[]);
    assert!(relay.hello().small().starts_with("250"));
    dns.remove(HOST);
    until("a word in the log", || {
        relay
            .log()
            .contains("name stands for nothing any more, and nothing else is left")
            .then_some(())
    });
    relay.write("relay.toml", good.replace("[limits]\n", "[limits]\nrecipients = 200\n"));
    relay.reload();
    assert!(relay.hello().small().starts_with("250"), "what it stood for is used");
    assert_eq!(sink.counts().messages, 2);
}

#[test]
fn tls_verifies_the_name_of_the_host() {
    let mx = "tls = { certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }] }";
    let sink = recording();
    let upstream =
        Relay::start_with(&Config::to(&[sink.addr()]).listener(mx).to_string(), &TLS_FILES);
    let port = upstream.addr().port();
    let dns = Dns::start();
    let tls = "tls = { ca = \"ca.pem\" }\neject_after = 1\nhandoff = \"direct\"";
    for (name, good) in [("mx.example", true), ("other.example", false)] {
        dns.exchangers("cloud.example", &[(10, name)], 60);
        dns.host(name, &[local(1)], 60);
        let target = format!("mx:cloud.example:{port}");
        let config = config(&dns, &target, tls, "").relay("received = false");
        let relay = Relay::start_with(&config.to_string(), &TLS_FILES);
        let reply = relay.hello().small();
        assert_eq!(reply.starts_with("250"), good, "{reply}");
        if !good {
            until("a failure", || {
                let failed =
                    relay.metrics().sum("upstream_tls_failures_total", &["reason=\"certificate\""]);
                (failed >= 1.0).then_some(())
            });
        }
    }
    assert_eq!(sink.counts().messages, 1);
}
