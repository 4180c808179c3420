//! Too much at once: memory has a budget over everything, and clients have a rate. What was
//! accepted is safe, operators get in, and the process stays within its bound.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(clippy::cast_possible_truncation, reason = "bytes of memory, of which there are fewer")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio_rustls::rustls::version::TLS13;
use wavegate_tests::harness::{
    Client, Closed, Config, Metrics, PATIENCE, Relay, TLS_FILES, assert_promise, binary, recording,
    sink_at, tls_client, until,
};
use wavegate_tests::sink::Extensions;

const MIB: u64 = 1 << 20;
/// What the allocator keeps and what is not charged, see `limits.memory_total` in the README.
const MARGIN: u64 = 64 * MIB;
/// A listener that begins with TLS.
const IMPLICIT: &str = "[[listener]]\nname = \"implicit\"\naddress = \"127.0.0.1:0\"\n\
    tls = { mode = \"implicit\", certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }] }";

/// A hello of 60 kB, of which the end does not come.
fn half_a_handshake() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut hello = vec![0x01, 0x00, 0xf0, 0x00, 0x03, 0x03];
    hello.resize(60_000, 0);
    for part in hello.chunks(16_000) {
        bytes.extend_from_slice(&[0x16, 0x03, 0x01]);
        bytes.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// So many recipients of the longest names, as lines.
fn recipients(count: usize) -> String {
    let domain = [&"b".repeat(60)[..]; 4].join(".");
    let line = |number| format!("RCPT TO:<{}{number:04}@{domain}>\r\n", "a".repeat(240));
    (0..count).map(line).collect()
}

fn charged(metrics: &Metrics) -> u64 {
    metrics.sum("memory_charged_bytes", &[]) as u64
}

fn refused(metrics: &Metrics, family: &str, reason: &str) -> f64 {
    metrics.sum(family, &[&format!("reason=\"{reason}\"")])
}

/// The base is measured once the workers are warm.
fn warm(relay: &Relay) -> Metrics {
    relay.wait_metrics("the base is known", |metrics| {
        metrics.value("memory_charged_bytes{use=\"base\"}") > 0.0
    })
}

#[test]
fn what_is_charged_is_never_less_than_what_is_taken() {
    // The kernel may give memory in pages of 2 MiB, of which not all is used.
    const HUGE_PAGES: u64 = 4 << 20;
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .admin()
        .section(IMPLICIT)
        .limits("tls_timeout = \"10min\"\nconnections_per_client = 20000\nmemory_total = \"4GiB\"");
    let config = config.listener("name = \"listener-1\"").to_string();
    let check = |what: &str, count: u64, open: &dyn Fn(SocketAddr, SocketAddr) -> Client| {
        // A process for each kind: what one gives back would be there for the next.
        let relay = Relay::start_logging(&config, &TLS_FILES, "info");
        warm(&relay);
        let (at, implicit) = (relay.addr(), relay.listener("implicit"));
        let open = || open(at, implicit);
        // What the first of a kind makes is there for the others too.
        let first = open();
        let (before, memory) = (charged(&relay.metrics()), relay.memory());
        let clients: Vec<_> = (0..count).map(|_| open()).collect();
        let metrics = relay.metrics();
        let (taken, charge) = (relay.memory().saturating_sub(memory), charged(&metrics) - before);
        report(what, taken / count, charge / count);
        // The count is in the charge, so it is the connections that are compared.
        assert!(charge >= count * 4096, "{what}: {charge} is too little for {count}");
        assert!(
            taken <= charge + HUGE_PAGES,
            "{what}: {count} took {taken} bytes, and {charge} are charged"
        );
        drop((first, clients));
        until("they have gone", || (relay.metrics().sum("connections", &[]) == 0.0).then_some(()));
    };
    check("idle", 2000, &|at, _| Client::greeted(at));
    let tls = tls_client(&[&TLS13], None);
    check("idle under TLS", 400, &|_, implicit| {
        let mut client = Client::connect(implicit);
        client.begin_tls(&tls, "mx.example").unwrap();
        client.expect_reply("220");
        client
    });
    let half = half_a_handshake();
    check("half a handshake", 150, &|_, implicit| {
        let mut client = Client::connect(implicit);
        client.send(&half);
        client.drained();
        client
    });
    let many = recipients(200);
    check("recipients", 500, &|at, _| {
        let mut client = Client::greeted(at);
        client.expect("EHLO client.example", "250");
        client.expect("MAIL FROM:<a@example.com>", "250");
        client.send(&many);
        (0..200).for_each(|_| _ = client.expect_reply("250"));
        client
    });
}

#[allow(clippy::print_stderr, reason = "for whoever reads the output of a test")]
fn report(what: &str, taken: u64, charged: u64) {
    eprintln!("{what}: {taken} bytes taken, {charged} charged");
}

/// A relay whose budget a reload can change.
struct Short {
    relay: Relay,
    config: Config,
}

impl Short {
    /// Changes the budget so that so much of a hundred is in use.
    fn use_of(&self, percent: f64) {
        let bytes = charged(&self.relay.metrics()) as f64 * 100.0 / percent;
        let config = self.config.clone().limits(&format!("memory_total = {}", bytes as u64));
        self.relay.write("relay.toml", config.to_string());
        self.relay.reload();
    }

    fn pressure(&self) -> f64 {
        self.relay.metrics().value("memory_pressure")
    }
}

#[test]
fn each_step_takes_what_it_says_and_gives_it_back() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).admin().limits("message_memory = \"1MiB\"");
    let short = Short { relay: Relay::start(&config), config };
    warm(&short.relay);
    assert_eq!(short.pressure(), 0.0);
    let mut early = short.relay.hello();
    let mut begun = short.relay.hello();
    begun.begin_data();
    begun.send("Subject: x\r\n\r\n");
    begun.drained();

    // What comes now of a message goes to a file, and nothing else changes.
    short.use_of(80.0);
    assert_eq!(short.pressure(), 1.0);
    let mut large = short.relay.hello();
    large.begin_data();
    large.send(format!("Subject: x\r\n\r\n{}", "x\r\n".repeat(30_000)));
    large.drained();
    assert!(short.relay.metrics().value("spill_bytes") >= 80_000.0);
    large.send(".\r\n");
    large.expect_reply("250");

    // Nobody new, and those who are there go on.
    short.use_of(90.0);
    assert_eq!(short.pressure(), 2.0);
    let mut late = Client::connect(short.relay.addr());
    late.expect_reply("421 4.3.2 wavegate: the relay is short of memory");
    late.expect_closed();
    assert!(early.small().starts_with("250"));

    // No new messages, and what has begun comes to its end.
    let mut rcpt = early;
    rcpt.expect("MAIL FROM:<a@example.com>", "250");
    rcpt.expect("RCPT TO:<b@example.org>", "250");
    short.use_of(97.0);
    assert_eq!(short.pressure(), 3.0);
    rcpt.expect("RCPT TO:<c@example.org>", "452 4.3.1");
    rcpt.expect("DATA", "354");
    rcpt.send("Subject: x\r\n\r\nx\r\n.\r\n");
    rcpt.expect_reply("250");
    rcpt.expect("MAIL FROM:<a@example.com>", "452 4.3.1");
    begun.send("x\r\n.\r\n");
    begun.expect_reply("250");
    // Operators get in.
    let output = Command::new(binary())
        .args(["queue", "list", "--config"])
        .arg(short.relay.folder().join("relay.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    short.use_of(30.0);
    assert_eq!(short.pressure(), 0.0);
    assert!(rcpt.small().starts_with("250"));
    assert!(short.relay.hello().small().starts_with("250"));
    let metrics = short.relay.metrics();
    assert_eq!(refused(&metrics, "connections_refused_total", "memory"), 1.0);
    assert_eq!(refused(&metrics, "transactions_refused_total", "memory"), 2.0);
    assert_eq!(sink.messages().len(), 6);
}

#[test]
fn idle_clients_are_sent_away_sooner_when_memory_is_short() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).admin().limits("command_timeout = \"60s\"");
    let short = Short { relay: Relay::start(&config), config };
    warm(&short.relay);
    let mut idle = short.relay.hello();
    // A tenth of a minute: less than the patience of this test.
    short.use_of(80.0);
    idle.expect_reply("421 4.4.2");
    idle.expect_closed();
    assert!(short.relay.log().contains("how short of memory the relay is has changed"));
}

/// What hostile clients do; none where it was turned away.
fn hostile(number: u64, at: SocketAddr, implicit: SocketAddr) -> Option<Client> {
    if number.is_multiple_of(4) {
        let mut client = Client::connect(implicit);
        return client.try_send(&half_a_handshake()).then_some(client);
    }
    let mut client = Client::connect(at);
    client.try_reply().filter(|greeting| greeting.starts_with("220"))?;
    client.try_send(b"EHLO client.example\r\n");
    client.try_reply().filter(|reply| reply.starts_with("250"))?;
    let mut say = |line: &[u8]| client.try_send(line);
    let _sent = match number % 4 {
        1 => {
            // A message that stops in the middle; without waiting for a word.
            say(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nBDAT 90000\r\n")
                && say(&b"x: y\r\n".repeat(8000))
        }
        2 => say(b"MAIL FROM:<a@example.com>\r\n") && say(recipients(900).as_bytes()),
        _ => say(&b"NOOP x\r\nRCPT TO:<>\r\n\xff\0\r\n".repeat(3000)),
    };
    Some(client)
}

/// Ends the watching, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn floods_stay_within_the_budget_and_cost_no_accepted_mail() {
    const TOTAL: u64 = 160 * MIB;
    let down = Closed::new();
    let config = Config::to(&[down.addr()])
        .admin()
        .section(IMPLICIT)
        .listener("name = \"listener-1\"")
        .limits(&format!("memory_total = {TOTAL}\nconnections_per_client = 20000"))
        .upstream("handoff = \"queued\"\nretry_first = \"100ms\"\nretry_max = \"200ms\"");
    let mut relay = Relay::start_logging(&config.to_string(), &TLS_FILES, "info");
    warm(&relay);
    let (at, implicit) = (relay.addr(), relay.listener("implicit"));
    let mut honest = relay.hello();
    let mut taken = 0;
    let (most, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let queue = || {
        let mut command = Command::new(binary());
        let path = relay.folder().join("relay.toml");
        command.args(["queue", "list", "--config"]).arg(path).output().unwrap()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                most.fetch_max(relay.memory(), Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        let stopping = Stop(&stop);
        let mut clients = Vec::new();
        for number in 0..1200 {
            clients.extend(hostile(number, at, implicit));
            if number % 40 == 0 {
                let reply = honest.command("MAIL FROM:<a@example.com>");
                if reply.starts_with("250") {
                    honest.expect("RCPT TO:<b@example.org>", "250");
                    honest.expect("DATA", "354");
                    honest.send(format!("Subject: {number}\r\n\r\nx\r\n.\r\n"));
                    honest.expect_reply("250");
                    taken += 1;
                } else {
                    assert!(reply.starts_with("452 4.3.1"), "{reply}");
                }
            }
        }
        let metrics = relay.metrics();
        assert!(metrics.value("memory_pressure") >= 1.0, "that was no flood");
        assert!(refused(&metrics, "connections_refused_total", "memory") > 0.0);
        let output = queue();
        assert!(output.status.success(), "{output:?}");
        drop((stopping, clients));
    });
    let most = most.into_inner();
    report("the flood", most, TOTAL);
    assert!(most <= TOTAL + MARGIN, "{most} bytes are resident, {TOTAL} are the budget");
    until("there is memory again", || {
        (relay.metrics().value("memory_pressure") == 0.0).then_some(())
    });
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    assert!(taken > 0 && sink.wait_messages(taken, PATIENCE), "{:?}", sink.counts());
    assert_eq!(sink.counts().messages, taken);
    let metrics = relay
        .wait_metrics("the spool is empty", |metrics| metrics.sum("spool_recipients", &[]) == 0.0);
    assert_promise(&metrics);
    relay.assert_alive();
}

#[test]
fn a_client_that_comes_or_sends_too_often_is_told_so_and_others_are_not() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).admin().limits(
        "client_connection_rate = \"3/1h\"\nclient_message_rate = \"2/1h\"\n\
         client_rate_exceptions = [\"127.0.0.2\"]",
    );
    let relay = Relay::start(&config);
    let mut clients: Vec<_> = (0..3).map(|_| relay.hello()).collect();
    let mut fourth = Client::connect(relay.addr());
    fourth.expect_reply("421 4.7.0 wavegate: you connect too often (client_connection_rate)");
    fourth.expect_closed();
    assert!(clients[0].small().starts_with("250"));
    assert!(clients[1].small().starts_with("250"));
    clients[2].expect("MAIL FROM:<a@example.com>", "450 4.7.1 wavegate: you send too often");
    clients[2].expect("NOOP", "250");
    let other = |last: u8| Client::connect_from([127, 0, 0, last].into(), relay.addr());
    other(3).expect_reply("220");
    (0..8).for_each(|_| _ = other(2).expect_reply("220"));
    let metrics = relay.metrics();
    assert_eq!(refused(&metrics, "connections_refused_total", "client_rate"), 1.0);
    assert_eq!(refused(&metrics, "transactions_refused_total", "client_rate"), 1.0);
    // A reload takes the limit away.
    relay.write("relay.toml", Config::to(&[sink.addr()]).admin().to_string());
    relay.reload();
    assert!(relay.hello().small().starts_with("250"));
}
