//! The life of both ends of a link under load, as operators know it: reloads, SIGTERM, `kill -9`, a new
//! process that takes over. Each says to the other what it does, so nobody waits for a time-out.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use wavegate_tests::{
    harness::{Metrics, Relay, TLS_FILES, account, in_doubt_events, until},
    load::steady::{Steady, SteadyOptions},
    sink::{Extensions, Sink, SinkHandle, SinkOptions},
};

const COMMON: &str = "[relay]\nhostname = \"relay.example\"\n[event_log]\nfile = \"events.jsonl\"\n\
    [admin]\naddress = \"127.0.0.1:0\"\n";
/// What fails is tried again soon; but nothing is noticed by silence before the test gives up.
const PROMPT: &str = "connect_timeout = \"1s\"\neject_for = \"100ms\"\neject_max = \"500ms\"\n\
    retry_first = \"100ms\"\nretry_max = \"500ms\"\n";

/// Two relays, what they lead to, and where the second is.
struct Ends {
    edge: Relay,
    gateway: Relay,
    sink: SinkHandle,
    at: SocketAddr,
}

/// A UDP port that nobody has.
fn free() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn gateway(at: SocketAddr, sink: SocketAddr, peers: &str) -> String {
    format!(
        "{COMMON}[[listener]]\nname = \"link\"\ntype = \"link\"\naddress = \"{at}\"\n\
         idle_timeout = \"600s\"\n\
         link = {{ certificate = \"mx.pem\", key = \"mx.key\", ca = \"ca.pem\"{peers} }}\n\
         [[upstream]]\nname = \"servers\"\ntargets = [\"{sink}\"]\ndefault = true\n{PROMPT}"
    )
}

fn edge(at: &[SocketAddr]) -> String {
    let targets: Vec<_> = at.iter().map(|at| format!("\"{at}\"")).collect();
    format!(
        "{COMMON}[[listener]]\nname = \"smtp\"\naddress = \"127.0.0.1:0\"\nallow = [\"127.0.0.0/8\"]\n\
         [[upstream]]\nname = \"cloud\"\ntype = \"link\"\ntargets = [{}]\ndefault = true\n\
         idle_timeout = \"600s\"\nkeep_alive = \"10s\"\n{PROMPT}\
         link = {{ certificate = \"client.pem\", key = \"client.key\", ca = \"ca.pem\", \
         name = \"mx.example\" }}\n",
        targets.join(", ")
    )
}

fn start(config: &str) -> Relay {
    Relay::start_logging(config, &TLS_FILES, "info")
}

impl Ends {
    fn start() -> Self {
        let options = SinkOptions {
            extensions: Extensions { chunking: true, ..Extensions::default() },
            verify: true,
            record: true,
            keep_header: true,
            ..SinkOptions::default()
        };
        let sink = Sink::start(options).unwrap();
        let at = free();
        let gateway = start(&gateway(at, sink.addr(), ""));
        let edge = start(&edge(&[at]));
        Self { edge, gateway, sink, at }
    }

    fn load(&self, accepted: u64) -> SteadyOptions {
        let target = self.edge.listener("smtp");
        SteadyOptions { target, sessions: 10, accepted, body: 2000, even: false }
    }

    /// Sends a few messages, which must all be taken and arrive.
    fn goes(&self) {
        let before = self.sink.counts().messages;
        let steady = Steady::start(self.load(20)).unwrap();
        until("messages to go", || steady.is_over().then_some(()));
        until("messages to come", || (self.sink.counts().messages >= before + 20).then_some(()));
    }
}

fn sum(metrics: &Metrics, name: &str) -> f64 {
    metrics.sum(name, &[])
}

/// Waits until so many more were accepted.
fn more(steady: &Steady, count: u64) {
    let wanted = steady.accepted() + count;
    until("more messages", || (steady.accepted() >= wanted).then_some(()));
}

#[test]
fn whatever_becomes_of_a_gateway_every_message_arrives() {
    let mut ends = Ends::start();
    let load = ends.load(u64::MAX);
    let steady = Steady::start(load.clone()).unwrap();
    more(&steady, 200);
    // Ends in peace, and comes again.
    let ended = ends.gateway.terminate();
    assert!(ended.success(), "{ended}");
    ends.gateway.restart();
    more(&steady, 200);
    ends.gateway.crash();
    ends.gateway.restart();
    more(&steady, 200);
    // The next one takes over while it runs.
    let successor = ends.gateway.successor(&[]);
    let before = ends.gateway.succeeded_by(successor);
    assert!(before.success(), "{before}");
    more(&steady, 200);
    // The same of the edge; its clients come again by themselves.
    let successor = ends.edge.successor(&[]);
    let before = ends.edge.succeeded_by(successor);
    assert!(before.success(), "{before}");
    more(&steady, 200);
    ends.gateway.reload();
    ends.edge.reload();
    more(&steady, 200);
    let said = steady.stop().unwrap();
    let spooled = |relay: &Relay| {
        relay.wait_metrics("nothing waits", |all| sum(all, "spool_recipients") == 0.0);
    };
    spooled(&ends.edge);
    spooled(&ends.gateway);
    let relays = [&ends.edge, &ends.gateway];
    let in_doubt = relays.map(|one| in_doubt_events(&one.folder().join("events.jsonl")));
    let in_doubt = in_doubt.into_iter().flatten().collect();
    let account = account(&load, &said, &ends.sink.messages(), &in_doubt);
    assert!(account.lost.is_empty() && account.damaged.is_empty(), "{account:?}");
    assert!(account.unexplained.is_empty(), "{:?}", account.unexplained);
    for relay in relays {
        assert!(!relay.logs().contains("panicked"), "{}", relay.logs());
    }
}

#[test]
fn a_peer_that_a_reload_takes_away_is_sent_away_and_comes_back_with_the_next() {
    let ends = Ends::start();
    ends.goes();
    let config = |peers| gateway(ends.at, ends.sink.addr(), peers);
    ends.gateway.write("relay.toml", config(", peers = [{ name = \"somebody.example\" }]"));
    ends.gateway.reload();
    ends.edge.wait_metrics("the edge is sent away", |all| sum(all, "link_up") == 0.0);
    // It knocks again, and does not get past the handshake.
    let refused = |all: &Metrics| all.sum("gateway_refused_total", &["handshake"]) > 0.0;
    ends.gateway.wait_metrics("it is refused", refused);
    ends.gateway.write("relay.toml", config(""));
    ends.gateway.reload();
    ends.edge.wait_metrics("the edge is back", |all| sum(all, "link_up") == 1.0);
    ends.goes();
}

#[test]
fn each_end_hears_of_the_others_end_at_once() {
    let mut ends = Ends::start();
    ends.goes();
    let connections = |all: &Metrics| sum(all, "gateway_connections");
    assert!(connections(&ends.gateway.metrics()) > 0.0);
    // Its idle time-out is ten minutes.
    assert!(ends.edge.terminate().success());
    ends.gateway.wait_metrics("the edge has gone", |all| connections(all) == 0.0);
    ends.edge.restart();
    ends.goes();
    // The upstream goes with a reload of the edge.
    let other = start(&gateway(free(), ends.sink.addr(), ""));
    ends.edge.write("relay.toml", edge(&[other.listener("link")]));
    ends.edge.reload();
    ends.gateway.wait_metrics("the edge went elsewhere", |all| connections(all) == 0.0);
    ends.goes();
    // What is killed says nothing; the next process does, when it hears of a connection of the last.
    let mut gateway = other;
    gateway.crash();
    gateway.restart();
    ends.goes();
}
