//! A storm between edge and gateway: under load the network is cut, and either side is killed, again
//! and again. What was answered 250 arrives, and what arrives twice an event log has said to.
//!
//! Over the link, and with the same two relays over SMTP with TLS, which is held to the same.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use wavegate_tests::{
    harness::{Metrics, Relay, TLS_FILES, account, http_get, in_doubt_events},
    load::steady::{Steady, SteadyOptions},
    sink::{Extensions, Sink, SinkHandle, SinkOptions},
    wan::{Conditions, FAR, Wan, path::Chance},
};

/// How the edge hands over.
#[derive(Clone, Copy, Debug)]
enum Over {
    Link,
    Smtp,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Storm {
    messages: u64,
    sessions: usize,
    cuts: u64,
    kills: u64,
    seed: u64,
}

/// What happens at once.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// For so long.
    Cut(Duration),
    /// And started again after so long.
    KillEdge(Duration),
    KillGateway(Duration),
}

/// Each host has all ports for itself.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8025);
const CLIENTS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2525);
/// How long nothing may be accepted at all, and how long what waits may take to arrive.
const STUCK: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(5);

/// What both sides have. What is given up is tried again soon.
const COMMON: &str = "[limits]\ndirect_wait = \"2s\"\ndirect_deadline = \"3s\"\n\
    [event_log]\nfile = \"events.jsonl\"\nmax_size = \"1GiB\"\n\
    [admin]\naddress = \"127.0.0.1:8025\"\n";
const PROMPT: &str = "connect_timeout = \"1s\"\nfinal_timeout = \"4s\"\neject_for = \"100ms\"\n\
    eject_max = \"500ms\"\nretry_first = \"100ms\"\nretry_max = \"500ms\"\n";

fn edge(over: Over) -> String {
    let upstream = match over {
        Over::Link => format!(
            "type = \"link\"\ntargets = [\"{FAR}:4433\"]\nkeep_alive = \"500ms\"\nidle_timeout = \"2s\"\n\
             link = {{ certificate = \"client.pem\", key = \"client.key\", ca = \"ca.pem\", name = \"mx.example\" }}"
        ),
        Over::Smtp => format!(
            "targets = [\"{FAR}:465\"]\nconnections = 40\n\
             tls = {{ mode = \"implicit\", name = \"mx.example\", ca = \"ca.pem\" }}"
        ),
    };
    format!(
        "[relay]\nhostname = \"edge-1.example.net\"\n{COMMON}\
         [[listener]]\naddress = \"{CLIENTS}\"\nallow = [\"127.0.0.0/8\"]\n\
         [[upstream]]\nname = \"cloud\"\n{upstream}\n{PROMPT}"
    )
}

fn gateway(over: Over, sink: SocketAddr) -> String {
    let listener = match over {
        Over::Link => format!(
            "type = \"link\"\naddress = \"{FAR}:4433\"\nidle_timeout = \"2s\"\n\
             link = {{ certificate = \"mx.pem\", key = \"mx.key\", ca = \"ca.pem\" }}"
        ),
        Over::Smtp => format!(
            "address = \"{FAR}:465\"\nallow = [\"10.78.0.0/24\"]\ntls = {{ mode = \"implicit\", \
             certificates = [{{ certificate = \"mx.pem\", key = \"mx.key\" }}] }}"
        ),
    };
    format!(
        "[relay]\nhostname = \"gateway-1.example.net\"\n{COMMON}[[listener]]\n{listener}\n\
         [[upstream]]\nname = \"servers\"\ntargets = [\"{sink}\"]\n{PROMPT}"
    )
}

/// Both relays on their hosts, and what they lead to.
struct Ends {
    edge: Relay,
    gateway: Relay,
    sink: SinkHandle,
    wan: Wan,
}

impl Ends {
    fn start(wan: Wan, over: Over) -> Self {
        let options = SinkOptions {
            extensions: Extensions { chunking: true, ..Extensions::default() },
            verify: true,
            record: true,
            keep_header: true,
            ..SinkOptions::default()
        };
        let sink = wan.far.within(|| Sink::start(options).unwrap());
        let start = |config: String| Relay::start_logging(&config, &TLS_FILES, "info");
        let gateway = wan.far.within(|| start(gateway(over, sink.addr())));
        let edge = wan.near.within(|| start(edge(over)));
        Self { edge, gateway, sink, wan }
    }

    fn strike(&mut self, blow: Blow) {
        match blow {
            Blow::Cut(time) => {
                self.wan.cut();
                thread::sleep(time);
                self.wan.mend();
            }
            Blow::KillEdge(time) => {
                self.edge.crash();
                thread::sleep(time);
                self.wan.near.within(|| self.edge.restart());
            }
            Blow::KillGateway(time) => {
                self.gateway.crash();
                thread::sleep(time);
                self.wan.far.within(|| self.gateway.restart());
            }
        }
    }

    /// Messages that wait on either side.
    fn waiting(&self) -> f64 {
        let of = |host: &wavegate_tests::wan::Host| {
            let (_, text) = host.within(|| http_get(ADMIN, "/metrics")).unwrap();
            Metrics::new(text).sum("spool_recipients", &[])
        };
        of(&self.wan.near) + of(&self.wan.far)
    }

    fn in_doubt(&self) -> BTreeSet<String> {
        let relays = [&self.edge, &self.gateway];
        let logs = relays.map(|relay| in_doubt_events(&relay.folder().join("events.jsonl")));
        logs.into_iter().flatten().collect()
    }
}

/// All blows of a storm, in an order that is its seed's.
fn blows(storm: &Storm, chance: &mut Chance) -> Vec<Blow> {
    let ms = |chance: &mut Chance, most| Duration::from_millis(chance.below(most));
    let mut blows = Vec::new();
    for number in 0..storm.cuts {
        // Some that only delay, and some after which connections are given up.
        let most = if number % 4 == 3 { 5000 } else { 900 };
        blows.push(Blow::Cut(Duration::from_millis(100) + ms(chance, most)));
    }
    for number in 0..storm.kills {
        let time = ms(chance, 1000);
        let edge = number % 2 == 0;
        blows.push(if edge { Blow::KillEdge(time) } else { Blow::KillGateway(time) });
    }
    for last in (1..blows.len()).rev() {
        let other = usize::try_from(chance.below(last as u64 + 1)).unwrap();
        blows.swap(last, other);
    }
    blows
}

/// Waits until `is_so`, as long as `progress` goes on.
fn patiently(what: &str, progress: impl Fn() -> u64, is_so: impl Fn() -> bool) {
    let (mut last, mut since) = (progress(), Instant::now());
    while !is_so() {
        let now = progress();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < STUCK, "nothing goes on at {now}; waited for {what}");
        thread::sleep(LOOK);
    }
}

fn endure(over: Over, storm: Storm) {
    let conditions = Conditions {
        loss: 0.005,
        jitter: Duration::from_millis(2),
        reorder: 0.005,
        ..Conditions::round_trip(Duration::from_millis(20))
    };
    let Some(wan) = Wan::require(conditions, storm.seed) else { return };
    let mut ends = Ends::start(wan, over);
    let mut chance = Chance(storm.seed);
    let load = SteadyOptions {
        target: CLIENTS,
        sessions: storm.sessions,
        accepted: storm.messages,
        body: 3000,
        even: false,
    };
    let steady = ends.wan.near.within(|| Steady::start(load.clone()).unwrap());
    let blows = blows(&storm, &mut chance);
    let begun = Instant::now();
    for (number, &blow) in blows.iter().enumerate() {
        // Each somewhere in its own part of the load, which goes on behind the last.
        let part = storm.messages / (blows.len() as u64 + 1);
        let at = part * number as u64 + chance.below(part);
        patiently("the next blow", || steady.accepted(), || steady.accepted() >= at);
        ends.strike(blow);
    }
    patiently("the end of the load", || steady.accepted(), || steady.is_over());
    let said = steady.stop().unwrap();
    patiently("what waits", || ends.sink.counts().messages, || ends.waiting() == 0.0);
    let in_doubt = ends.in_doubt();
    let account = account(&load, &said, &ends.sink.messages(), &in_doubt);
    #[allow(clippy::print_stderr, reason = "what a storm has done is worth a line")]
    {
        eprintln!(
            "over {over:?}, {storm:?}, {:.0} s: {} answered 250, {} others, {} lost, {} twice and said to, \
             {} in doubt",
            begun.elapsed().as_secs_f64(),
            account.accepted,
            account.others,
            account.lost.len(),
            account.explained.len(),
            in_doubt.len()
        );
    }
    assert!(account.accepted as u64 >= storm.messages, "{} are no storm", account.accepted);
    assert!(account.lost.is_empty(), "{storm:?}: lost: {:?}", account.lost);
    assert!(account.damaged.is_empty(), "{storm:?}: damaged: {:?}", account.damaged);
    let twice = &account.unexplained;
    assert!(twice.is_empty(), "{storm:?}: twice without a word: {twice:?}");
    assert_eq!(ends.sink.counts().bad_contents, 0);
    for relay in [&ends.edge, &ends.gateway] {
        let logs = relay.logs();
        let bad: Vec<_> = logs.lines().filter(|line| line.contains("panicked")).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
    if matches!(over, Over::Link) {
        let totals = ends.wan.totals(wavegate_tests::wan::Way::Up);
        assert!(totals.packets.passed > storm.messages, "mail has not gone this way: {totals:?}");
    }
}

/// Less than a minute of it.
fn short(seed: u64) -> Storm {
    Storm { messages: 2000, sessions: 20, cuts: 4, kills: 2, seed }
}

/// As much as the promise is held against.
fn long(seed: u64) -> Storm {
    Storm { messages: 100_000, sessions: 60, cuts: 60, kills: 20, seed }
}

#[test]
fn a_short_storm_over_the_link_loses_nothing() {
    endure(Over::Link, short(1));
}

#[test]
fn a_short_storm_over_smtp_loses_nothing() {
    endure(Over::Smtp, short(2));
}

#[test]
#[ignore = "minutes: tests/run --all"]
fn a_hundred_thousand_messages_in_a_storm_over_the_link() {
    endure(Over::Link, long(3));
}

#[test]
#[ignore = "minutes: tests/run --all"]
fn a_hundred_thousand_messages_in_a_storm_over_smtp() {
    endure(Over::Smtp, long(4));
}
