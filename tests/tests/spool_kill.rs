//! `kill -9` again and again under load, with a spool: what was answered 250 arrives, and arrives
//! twice only if the relay has said of its id that it may.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wavegate_tests::harness::{
    Client, Config, DOUBT, Relay, Watch, arrivals, assert_promise, faults_of, in_doubt, recording,
    until,
};
use wavegate_tests::sink::SinkHandle;

/// Sessions at a time.
const SESSIONS: u64 = 12;
/// A round that gets so few replies in this time is killed all the same.
const ROUND: Duration = Duration::from_millis(400);

/// What goes wrong at the upstream meanwhile: each kind of reply, and late ones.
const FAULTS: [&str; 6] = [
    "end:%97=close",
    "end:%31=delay 250",
    "end:%13=451 4.3.0 later",
    "end:%7=delay 20",
    "rcpt:%41=450 4.2.1 greylisted",
    "mail:%53=close",
];

/// SplitMix64: one seed, one run.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What clients were told, over all rounds.
#[derive(Default)]
struct Told {
    /// The replies to messages that were answered 250, by name.
    answered: Mutex<BTreeMap<String, String>>,
    replies: AtomicU64,
}

/// Sends messages until the connection ends.
fn load(mut client: Client, told: &Told, session: &str) {
    for count in 0.. {
        let name = format!("{session}-{count}");
        match send(&mut client, &name) {
            Some(reply) if reply.starts_with("250") => {
                told.answered.lock().unwrap().insert(name, reply);
            }
            // Where an attempt in doubt could not be spooled, or the relay is busy.
            Some(reply) => assert!(reply.starts_with('4'), "{name}: {reply}"),
            None => return,
        }
        told.replies.fetch_add(1, Ordering::SeqCst);
    }
}

/// The final reply, or nothing when the connection ended before it.
fn send(client: &mut Client, name: &str) -> Option<String> {
    client.try_message(&format!("Message-ID: <{name}@example.com>\r\n\r\nx\r\n"))
}

fn config(sink: &SinkHandle, handoff: &str) -> String {
    Config::to(&[sink.addr()])
        .upstream(&format!("handoff = \"{handoff}\""))
        .upstream("extensions = [\"PIPELINING\"]\nconnections = 8\neject_after = 1000")
        .upstream("retry_first = \"50ms\"\nretry_max = \"200ms\"")
        .limits("direct_deadline = \"100ms\"\nconnections_per_client = 100")
        .admin()
        .to_string()
}

/// One round: load from many sessions, and in the middle of it the end.
fn round(relay: &mut Relay, told: &Told, number: u64, seeded: &mut Seeded) {
    let clients: Vec<_> = (0..SESSIONS).map(|_| relay.hello()).collect();
    let watch = Watch::over(relay, None);
    let before = told.replies.load(Ordering::SeqCst);
    let enough = before + 1 + seeded.below(150);
    let jitter = Duration::from_micros(seeded.below(3000));
    std::thread::scope(|scope| {
        for (session, client) in clients.into_iter().enumerate() {
            scope.spawn(move || load(client, told, &format!("{number}-{session}")));
        }
        let begun = Instant::now();
        until("replies", || {
            let got = told.replies.load(Ordering::SeqCst);
            let late = begun.elapsed() > ROUND && got > before;
            (got >= enough || late).then_some(())
        });
        // Anywhere between two replies.
        std::thread::sleep(jitter);
        relay.crash();
    });
    watch.end();
}

fn waiting(relay: &Relay) -> f64 {
    relay.metrics().sum("spool_recipients", &[])
}

/// Kills it so many times; one seed for all of it.
fn kill(rounds: u64, seed: u64) {
    let sink = recording();
    let mut seeded = Seeded(seed);
    let told = Told::default();
    let mut relay = Relay::start_with(&config(&sink, "queued"), &[]);
    sink.set_faults(faults_of(&FAULTS));
    for number in 0..rounds {
        round(&mut relay, &told, number, &mut seeded);
        let handoff = if seeded.below(2) == 0 { "queued" } else { "auto" };
        relay.write("relay.toml", config(&sink, handoff));
        if seeded.below(4) == 0 {
            // It may be killed while it reads what the last one left, too.
            relay.spawn_again();
            std::thread::sleep(Duration::from_micros(seeded.below(150_000)));
        }
        relay.restart();
    }
    sink.set_faults(Vec::new());
    until("the spool is empty", || (waiting(&relay) == 0.0).then_some(()));
    let metrics = relay.metrics();
    assert_promise(&metrics);
    let lines = relay.log().lines().filter(|line| line.contains(DOUBT)).count();
    assert!(metrics.sum("in_doubt_total", &[]) == lines as f64, "one line for each");
    let log = relay.logs();
    let doubted = in_doubt(&log);
    let arrived = arrivals(&sink);
    let answered = told.answered.into_inner().unwrap();
    let missing: Vec<_> =
        answered.iter().filter(|(name, _)| !arrived.contains_key(*name)).collect();
    if let Some((name, reply)) = missing.first() {
        let id = reply.rsplit(' ').next().unwrap();
        let told: Vec<_> = log.lines().filter(|line| line.contains(id)).collect();
        panic!("seed {seed}: {} lost; first {name}: {reply}: {told:#?}", missing.len());
    }
    let twice = arrived.iter().filter(|(_, ids)| ids.len() > 1);
    let (mut more, mut silent) = (0, Vec::new());
    for (name, ids) in twice {
        more += ids.len() - 1;
        // The id of the log is that of the Received line, and the same each time.
        if !doubted.contains(&*ids[0]) || ids.iter().any(|id| *id != ids[0]) {
            silent.push((name, ids));
        }
    }
    assert!(silent.is_empty(), "seed {seed}: twice without a word: {silent:?}");
    for word in ["ERROR", "panicked"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(word)).collect();
        assert!(lines.is_empty(), "seed {seed}: {lines:?}");
    }
    assert_eq!(sink.counts().bad_contents, 0);
    assert!(answered.len() as u64 > rounds * 10, "{} messages are no load", answered.len());
    report(rounds, answered.len(), more, doubted.len());
}

#[allow(clippy::print_stderr, reason = "for whoever reads the output of a test")]
fn report(rounds: u64, answered: usize, more: usize, doubted: usize) {
    eprintln!(
        "{rounds} kills: {answered} answered 250, 0 lost, {more} more than once, {doubted} in doubt"
    );
}

#[test]
fn what_was_answered_250_outlives_25_kills() {
    kill(25, 1);
}

#[test]
#[ignore = "minutes: tests/run --all"]
fn what_was_answered_250_outlives_200_kills() {
    kill(200, 2);
}
