//! Minutes of everything at once: mixed load, reloads good and bad, an upstream target that flaps,
//! hostile clients. At the end the counts add up and nothing has stayed behind.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wavegate_tests::harness::{
    Client, Config, Metrics, Relay, faults_of, plan_of_held, until, variant,
};
use wavegate_tests::load::{self, LoadOptions, Report};
use wavegate_tests::sink::{Sink, SinkHandle, SinkOptions};

/// Everything that grows to its size does so within this.
const WARM_UP: Duration = Duration::from_secs(30);
/// Then it must not grow.
const SOAK: Duration = Duration::from_secs(120);
/// What memory may differ by between two moments of rest: the allocator gives back what it likes.
const GROWTH: u64 = 16 << 20;

const FREEZE: &[u8] = include_bytes!("../../plugins/dist/freeze.wasm");
/// Where the builds of the policy differ.
const WORDS: &str = "instance  is being upgraded";

/// What the flapping target does, a round each.
const FLAPS: [&[&str]; 10] = [
    &[],
    &["connect:*=close"],
    &[],
    &["end:%3=451 4.3.0 later", "rcpt:%5=550 5.1.1 nobody"],
    &["end:%20=close"],
    &["mail:%4=421"],
    &["body:%10=close"],
    &["connect:%2=silent"],
    &["end:%10=delay 300", "ehlo:%3=delay 200"],
    &["end:%100=silent"],
];

fn config(steady: &SinkHandle, flapping: &SinkHandle) -> Config {
    Config::to(&[steady.addr(), flapping.addr()])
        .relay("plan = \"waves.toml\"")
        .limits(
            "message_size = \"1MiB\"\nmessage_memory = \"16KiB\"\nmemory = \"1MiB\"\n\
             command_timeout = \"10s\"\ndata_timeout = \"10s\"",
        )
        .upstream(
            "connections = 12\nidle_timeout = \"1s\"\nconnect_timeout = \"1s\"\n\
             final_timeout = \"5s\"\neject_for = \"100ms\"\neject_max = \"1s\"",
        )
        .admin()
        .section(
            "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"freeze.wasm\"\n\
             [[policy]]\nplugin = \"builtin:routing\"\n[[policy]]\nplugin = \"builtin:throttle\"\n\
             settings = { limits = [ { per = [\"sender\"], rate = \"100000/s\" } ] }",
        )
}

fn sink() -> SinkHandle {
    Sink::start(SinkOptions { verify: true, ..SinkOptions::default() }).unwrap()
}

#[test]
#[ignore = "takes three minutes"]
fn soak_of_load_reloads_flapping_and_hostile_clients() {
    let (steady, flapping) = (sink(), sink());
    let good = config(&steady, &flapping).to_string();
    let files: [(&str, &[u8]); 2] =
        [("freeze.wasm", FREEZE), ("waves.toml", plan_of_held().leak().as_bytes())];
    let mut relay = Relay::start_logging(&good, &files, "info");
    let mut sums = Sums::default();
    run(&relay, &flapping, &good, WARM_UP, &mut sums);
    let memory = rest(&relay, &flapping, None);
    let descriptors = relay.descriptors();
    run(&relay, &flapping, &good, SOAK, &mut sums);
    let after = rest(&relay, &flapping, Some(descriptors));
    sums.assert_add_up(&relay.metrics(), &[&steady, &flapping]);
    #[allow(clippy::print_stdout, reason = "what a long test did is worth a line")]
    {
        println!("{sums:?}; resident {memory}, then {after} bytes; {descriptors} descriptors");
    }
    let grown = after.saturating_sub(memory);
    assert!(grown <= GROWTH, "from {memory} to {after} bytes");
    assert!(!relay.log().contains("panicked"));
    relay.assert_alive();
    assert_eq!(relay.stop().code(), Some(0));
}

/// What those outside have seen.
#[derive(Debug, Default)]
struct Sums {
    accepted: u64,
    refused: u64,
    held: u64,
    rounds: u64,
    hostile: u64,
}

impl Sums {
    /// Nobody was told something else than what happened.
    fn assert_add_up(&self, metrics: &Metrics, sinks: &[&SinkHandle]) {
        let Self { accepted, refused, held, rounds, hostile } = *self;
        assert!(accepted > 10_000 && refused > 100 && held > 100, "{accepted} {refused} {held}");
        assert!(rounds > 50 && hostile > 500, "{rounds} {hostile}");
        let recipients = |outcome: &str| {
            let label = format!("outcome=\"{outcome}\"");
            metrics.sum("recipients_total", &[&label])
        };
        assert_eq!(recipients("delivered"), accepted as f64);
        assert_eq!(metrics.sum("messages_received_total", &[]), (accepted + refused + held) as f64);
        assert_eq!(recipients("held"), held as f64);
        let arrived: u64 = sinks.iter().map(|sink| sink.counts().messages).sum();
        assert_eq!(arrived, accepted, "at the sinks, and by the word of the senders");
        assert!(sinks.iter().all(|sink| sink.counts().bad_contents == 0));
        assert!(sinks.iter().all(|sink| sink.counts().violations == 0));
        assert!(metrics.value("in_doubt_total{instance=\"(none)\"}") > 0.0);
        assert!(metrics.value("sessions_ended_total{reason=\"misbehaved\"}") > 100.0);
        assert!(metrics.value("attempts_retried_total{upstream=\"up\"}") > 0.0);
        assert!(metrics.value("reloads_total{result=\"refused\"}") > 0.0);
        for never in ["session_panics_total", "message_memory_bytes", "spill_bytes"] {
            assert_eq!(metrics.value(never), 0.0, "{never}");
        }
        assert_eq!(metrics.sum("policy_failures_total", &[]), 0.0);
        assert_eq!(metrics.sum("replies_lost_total", &[]), 0.0);
    }
}

/// Everything at once for so long.
fn run(relay: &Relay, flapping: &SinkHandle, good: &str, time: Duration, sums: &mut Sums) {
    let end = Instant::now() + time;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // However this ends, the others end too.
        let _stopping = Stopping(&stop);
        let load = scope.spawn(|| load_until(&stop, relay.addr()));
        let hostile = scope.spawn(|| hostile_until(&stop, relay.addr()));
        while Instant::now() < end {
            round(relay, flapping, good, sums);
            assert!(!load.is_finished() && !hostile.is_finished(), "one has failed");
        }
        stop.store(true, Ordering::SeqCst);
        let (accepted, refused) = load.join().unwrap();
        sums.accepted += accepted;
        sums.refused += refused;
        sums.hostile += hostile.join().unwrap();
    });
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Another mood of the target, another build of a policy, sometimes a configuration that is bad;
/// some held mail, and a look at the metrics.
fn round(relay: &Relay, flapping: &SinkHandle, good: &str, sums: &mut Sums) {
    let number = usize::try_from(sums.rounds).unwrap();
    sums.rounds += 1;
    flapping.set_faults(faults_of(FLAPS[number % FLAPS.len()]));
    relay.write("freeze.wasm", variant(FREEZE, WORDS, number % 20));
    if number % 7 == 3 {
        relay.write("relay.toml", good.replace("hostname", "hostnam"));
        reloaded(relay, "refused");
        relay.write("relay.toml", good);
    }
    reloaded(relay, "done");
    let options =
        LoadOptions { sender_domain: "held.example".into(), ..LoadOptions::new(relay.addr(), 40) };
    let report = load::run(&options).unwrap();
    assert_eq!((report.accepted, report.refused), (0, 40), "{report}");
    sums.held += report.refused;
    assert_balanced(&relay.metrics());
}

/// Reloads, and waits until it has this result.
fn reloaded(relay: &Relay, result: &str) {
    let sample = format!("reloads_total{{result=\"{result}\"}}");
    let before = relay.metrics().value(&sample);
    relay.signal(Signal::SIGHUP);
    until(result, || (relay.metrics().value(&sample) > before).then_some(()));
}

/// What holds in every scrape.
fn assert_balanced(metrics: &Metrics) {
    for instance in ["instance=\"held\"", "instance=\"(none)\""] {
        let sum = |family: &str| metrics.sum(family, &[instance]);
        let accounted = sum("recipients_total") + sum("recipients_in_flight");
        assert_eq!(sum("recipients_received_total"), accounted, "{instance}");
    }
}

/// Mail of all shapes, whose senders are told something of every message.
fn load_until(stop: &AtomicBool, target: SocketAddr) -> (u64, u64) {
    let (mut accepted, mut refused) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        let options = LoadOptions {
            sessions: 16,
            mixed: true,
            per_session: Some(50),
            time_limit: Duration::from_secs(60),
            ..LoadOptions::new(target, 2000)
        };
        let report: Report = load::run(&options).unwrap();
        assert_eq!((report.lost, report.unfinished), (0, 0), "{report}");
        accepted += report.accepted;
        refused += report.refused;
    }
    (accepted, refused)
}

/// Sessions that nobody would miss; none of them ends a good message.
fn hostile_until(stop: &AtomicBool, target: SocketAddr) -> u64 {
    // They say nothing, and are given up when there are too many of them.
    let mut silent = VecDeque::new();
    let mut sessions = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut client = Client::greeted(target);
        match sessions % 10 {
            0 => closed(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            1 => closed(client, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
            2 => closed(client, &b"XYZZY\r\n".repeat(50)),
            3 => closed(client, b"EHLO x\r\nMAIL FROM:<a@example.com>\r\n"),
            4 => drop(begun(client, b"half a mess")),
            5 => {
                client.ehlo();
                client.envelope("a@example.com", "b@example.org");
                client.send("BDAT 100000\r\nhalf");
            }
            6 => {
                let mut client = begun(client, b"smuggled\n.\nMAIL FROM:<a@example.com>\r\n.\r\n");
                client.expect_reply("550 5.6.0");
            }
            7 => {
                let mut client = begun(client, &b"0123456789abcde\r\n".repeat(80_000));
                client.send(".\r\n");
                client.expect_reply("552 5.3.4");
            }
            8 => {
                client.send(vec![b'x'; 100_000]);
                client.send("\r\n");
                client.expect_reply("500 5.5.2");
            }
            _ => {
                client.send("NOO");
                silent.push_back(client);
                if silent.len() > 50 {
                    silent.pop_front();
                }
            }
        }
        sessions += 1;
    }
    sessions
}

/// The relay closes on these bytes.
fn closed(mut client: Client, bytes: &[u8]) {
    client.try_send(bytes);
    while client.try_reply().is_some() {}
}

/// In the middle of a message.
fn begun(mut client: Client, content: &[u8]) -> Client {
    client.ehlo();
    client.begin_data();
    client.send(content);
    client
}

/// Waits until nothing is under way, with no more descriptors than that; gives the memory.
fn rest(relay: &Relay, flapping: &SinkHandle, descriptors: Option<usize>) -> u64 {
    flapping.set_faults(Vec::new());
    until("rest", || {
        let metrics = relay.metrics();
        let none = metrics.sum("recipients_in_flight", &[])
            + metrics.sum("connections", &[])
            + metrics.sum("upstream_connections", &[]);
        let up = metrics.sum("upstream_target_up", &[]);
        (none == 0.0 && up == 2.0).then_some(())
    });
    until("no more descriptors than before", || {
        let now = relay.descriptors();
        descriptors.is_none_or(|before| now <= before).then_some(())
    });
    relay.memory()
}
