//! TLS with upstreams, through real sockets. The upstream is a relay with TLS of its own in front
//! of a sink, or a script where it is one that no relay would be.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::SocketAddr;

use wavegate_tests::harness::{
    Config, Peer, Relay, Script, TLS_FILES, assert_promise, recording, until,
};
use wavegate_tests::sink::SinkHandle;

const MX: &str = "certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }]";
const TRUST: &str = "name = \"mx.example\", ca = \"ca.pem\"";

/// An upstream with these lines of `tls`, in front of a sink.
fn secure_upstream(tls: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .admin()
        .relay("received = false")
        .listener(&format!("tls = {{ {tls} }}"));
    (Relay::start_with(&config.to_string(), &TLS_FILES), sink)
}

fn relay_to(target: SocketAddr, tls: &str, lines: &str) -> Relay {
    let config = Config::to(&[target])
        .admin()
        .relay("received = false")
        .upstream(&format!("tls = {tls}\neject_after = 1\nhandoff = \"direct\"\n{lines}"));
    Relay::start_with(&config.to_string(), &TLS_FILES)
}

fn required() -> String {
    format!("{{ mode = \"required\", {TRUST} }}")
}

fn sum(relay: &Relay, family: &str, labels: &[&str]) -> f64 {
    relay.metrics().sum(family, labels)
}

#[test]
fn starttls_once_a_connection_and_resumed_after_it() {
    let (upstream, sink) = secure_upstream(&format!("{MX}, required = true"));
    let relay = relay_to(upstream.addr(), &required(), "messages_per_connection = 2");
    let mut client = relay.hello();
    for _ in 0..6 {
        let reply = client.small();
        assert!(reply.starts_with("250"), "{reply}");
    }
    assert_eq!(sink.messages().len(), 6);
    let labels = ["version=\"TLSv1.3\"", "cipher=\"TLS_AES_256_GCM_SHA384\""];
    // Three for the messages; whoever asked what it offers had one too.
    let sessions = sum(&relay, "upstream_tls_sessions_total", &labels);
    assert!(sessions >= 3.0, "{sessions}");
    assert_eq!(sessions, sum(&relay, "upstream_tls_sessions_total", &[]));
    assert!(sum(&relay, "upstream_tls_resumed_total", &[]) >= 2.0);
    assert_eq!(sum(&relay, "upstream_tls_failures_total", &[]), 0.0);
    assert_eq!(
        sum(&upstream, "tls_resumed_total", &[]),
        sum(&relay, "upstream_tls_resumed_total", &[])
    );
    assert_promise(&relay.metrics());
}

#[test]
fn implicit_and_opportunistic() {
    let (upstream, sink) = secure_upstream(&format!("mode = \"implicit\", {MX}"));
    let tls = format!("{{ mode = \"implicit\", {TRUST} }}");
    let relay = relay_to(upstream.addr(), &tls, "");
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.messages().len(), 1);
    // Nobody is verified: another name, another authority.
    let (upstream, sink) = secure_upstream(
        "certificates = [{ certificate = \"stranger.pem\", key = \"stranger.key\" }]",
    );
    let relay = relay_to(upstream.addr(), "\"opportunistic\"", "");
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.messages().len(), 1);
    assert!(sum(&relay, "upstream_tls_sessions_total", &[]) >= 1.0);
    assert_eq!(sum(&relay, "upstream_tls_declined_total", &[]), 0.0);
}

#[test]
fn opportunistic_goes_on_where_there_is_none_and_counts_it() {
    let sink = recording();
    let relay = relay_to(sink.addr(), "\"opportunistic\"", "");
    assert!(relay.hello().small().starts_with("250"));
    assert!(sum(&relay, "upstream_tls_declined_total", &[]) >= 1.0);
    // Offered, and then refused.
    let refusing = Script::start(|_, peer| {
        let mut play = || {
            peer.greet(&["STARTTLS"])?;
            assert_eq!(peer.line()?, "STARTTLS");
            peer.say("454 4.7.0 not now\r\n");
            peer.envelope()?;
            peer.say("354 go on\r\n");
            peer.content()?;
            peer.say("250 2.0.0 taken in the clear\r\n");
            Some(())
        };
        let _closed: Option<()> = play();
        peer.closed();
    });
    let relay = relay_to(refusing.addr(), "\"opportunistic\"", "");
    assert_eq!(relay.hello().small(), "250 2.0.0 taken in the clear");
    assert!(sum(&relay, "upstream_tls_declined_total", &[]) >= 1.0);
}

/// Waits until a target counts as down for this reason, and shows that nothing went there.
fn assert_down(relay: &Relay, reason: &str, words: &str) {
    let reply = relay.hello().small();
    assert!(reply.starts_with("451"), "{reply}");
    let label = format!("reason=\"{reason}\"");
    relay.wait_metrics(&format!("a failure for {reason}"), |metrics| {
        metrics.sum("upstream_tls_failures_total", &[&label]) >= 1.0
            && metrics.sum("upstream_target_up", &[]) == 0.0
    });
    until("a word in the log", || relay.log().contains(words).then_some(()));
}

#[test]
fn who_is_not_who_it_should_be_gets_nothing() {
    let (upstream, sink) = secure_upstream(MX);
    let cases = [
        "{ mode = \"required\", name = \"other.example\", ca = \"ca.pem\" }",
        "{ mode = \"required\", name = \"mx.example\", ca = \"stranger.pem\" }",
    ];
    for tls in cases {
        let relay = relay_to(upstream.addr(), tls, "");
        assert_down(&relay, "certificate", "TLS: invalid peer certificate");
    }
    assert_eq!(sink.messages().len(), 0);
}

#[test]
fn required_without_an_offer_is_a_failure_of_the_target() {
    let sink = recording();
    let relay = relay_to(sink.addr(), &required(), "");
    assert_down(&relay, "declined", "it does not offer STARTTLS");
    let refusing = Script::start(|_, peer| {
        let _closed: Option<()> = peer.greet(&["STARTTLS"]).and_then(|()| peer.line()).map(|_| ());
        peer.say("454 4.7.0 not now\r\n");
        peer.closed();
    });
    let relay = relay_to(refusing.addr(), &required(), "");
    assert_down(&relay, "declined", "it refused STARTTLS, which `tls` requires: 454");
    // An upstream that speaks TLS at once, and one that does not, asked the other way.
    let relay = relay_to(sink.addr(), &format!("{{ mode = \"implicit\", {TRUST} }}"), "");
    assert_down(&relay, "not_tls", "TLS: received corrupt message");
    assert_eq!(sink.messages().len(), 0);
}

/// What an attacker on the way puts behind the answer to STARTTLS must not be heard as if the
/// upstream had said it under TLS.
#[test]
fn what_stands_behind_the_answer_to_starttls_is_never_heard() {
    let injecting = Script::start(|_, peer: &mut Peer| {
        let _closed: Option<()> = peer.greet(&["STARTTLS"]).and_then(|()| peer.line()).map(|_| ());
        peer.say("220 go\r\n250-scripted.example\r\n250 SIZE 1\r\n");
        peer.closed();
    });
    for tls in [required(), "\"opportunistic\"".to_owned()] {
        let relay = relay_to(injecting.addr(), &tls, "");
        let reply = relay.hello().small();
        assert!(reply.starts_with("451"), "{reply}");
        until("a word in the log", || {
            relay.log().contains("words behind its answer to STARTTLS").then_some(())
        });
    }
}

#[test]
fn a_handshake_that_breaks_is_no_reason_to_go_on_without() {
    let broken = Script::start(|_, peer| {
        let _closed: Option<()> = peer.greet(&["STARTTLS"]).and_then(|()| peer.line()).map(|_| ());
        peer.say("220 go\r\n");
        peer.line();
        peer.say([0x15, 3, 3, 0, 2, 2, 40]);
        peer.closed();
    });
    let relay = relay_to(broken.addr(), "\"opportunistic\"", "");
    assert_down(&relay, "nothing_in_common", "TLS: received fatal alert");
}

#[test]
fn large_messages_and_many_of_them_from_the_spool() {
    let (upstream, sink) = secure_upstream(MX);
    let config = Config::to(&[upstream.addr()])
        .admin()
        .relay("received = false")
        .limits("message_size = \"50MiB\"")
        .upstream(&format!("tls = {}\nhandoff = \"queued\"", required()));
    let relay = Relay::start_with(&config.to_string(), &TLS_FILES);
    let mut client = relay.hello();
    let line = "0123456789abcdef".repeat(60);
    let content: String = (0..4000).map(|number| format!("{number} {line}\r\n")).collect();
    let message = format!("Subject: large\r\n\r\n{content}");
    for _ in 0..3 {
        let reply = client.transact(format!("{message}.\r\n").as_bytes());
        assert!(reply.starts_with("250"), "{reply}");
    }
    let got = until("three messages", || Some(sink.messages()).filter(|all| all.len() == 3));
    assert!(got.into_iter().all(|one| one.content.unwrap() == message.as_bytes()));
    relay.wait_metrics("none is left", |metrics| metrics.sum("spool_messages", &[]) == 0.0);
    assert_promise(&relay.metrics());
}

#[test]
fn our_certificate_is_shown_to_an_upstream_that_asks_for_it() {
    let wants = format!("{MX}, required = true, client_ca = \"ca.pem\", client = \"require\"");
    let (upstream, sink) = secure_upstream(&wants);
    let with =
        |name: &str| format!("{{ {TRUST}, certificate = \"{name}.pem\", key = \"{name}.key\" }}");
    let relay = relay_to(upstream.addr(), &with("client"), "");
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.messages().len(), 1);
    for tls in [with("stranger"), required()] {
        let relay = relay_to(upstream.addr(), &tls, "");
        let reply = relay.hello().small();
        assert!(reply.starts_with("451"), "{reply}");
    }
    assert_eq!(sink.messages().len(), 1);
    // A certificate of our own that has expired is refused like a listener's.
    let bad = Config::to(&[upstream.addr()]).upstream(&format!("tls = {}", with("expired")));
    relay.write("relay.toml", bad.to_string());
    let said = relay.reload_refused();
    assert!(said.contains("expired.pem: has expired on"), "{said}");
}
