//! A new process takes over from the one that runs, under load: nobody is refused, sessions end
//! between messages, and what was answered 250 is at the sink or in the spool, once.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wavegate_tests::harness::{
    Client, Config, Relay, arrivals, assert_promise, faults_of, in_doubt, plan_of_held, recording,
    until,
};
use wavegate_tests::sink::SinkHandle;

/// Sessions at a time.
const SESSIONS: u64 = 12;
/// Messages that are answered between two upgrades.
const BETWEEN: u64 = 120;
/// Some attempts are late, and some have to come again.
const FAULTS: [&str; 3] =
    ["end:%31=delay 250", "end:%13=451 4.3.0 later", "rcpt:%41=450 4.2.1 greylisted"];

/// What clients were told.
#[derive(Default)]
struct Told {
    /// The names of messages that were answered 250, those of the window apart.
    answered: Mutex<BTreeSet<String>>,
    held: Mutex<BTreeSet<String>>,
    replies: AtomicU64,
    /// Sessions that the relay ended with 421 between two messages.
    ended: AtomicU64,
    stop: AtomicBool,
}

/// What became of a message.
enum Outcome {
    Answered(String),
    /// 421, in place of the answer to MAIL or to the connection.
    Ended,
}

/// One client: it comes again as soon as it is sent away.
fn client(at: SocketAddr, told: &Told, session: u64) {
    let domain = ["example.com", "later.example", "held.example"][(session % 3) as usize];
    let mut count = 0;
    while !told.stop.load(Ordering::SeqCst) {
        // A refused connection is a panic.
        let mut client = Client::connect(at);
        let greeting = client.reply();
        if greeting.starts_with("421 4.3.2") {
            told.ended.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        assert!(greeting.starts_with("220 "), "{greeting}");
        let hello = client.command("EHLO client.example");
        if hello.starts_with("421 4.3.2") {
            told.ended.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        loop {
            if told.stop.load(Ordering::SeqCst) {
                client.try_send(b"QUIT\r\n");
                return;
            }
            let name = format!("{session}-{count}");
            count += 1;
            match send(&mut client, domain, &name) {
                Outcome::Answered(reply) if reply.starts_with("250") => {
                    let kept = if domain == "held.example" { &told.held } else { &told.answered };
                    kept.lock().unwrap().insert(name);
                }
                Outcome::Answered(reply) => assert!(reply.starts_with("45"), "{name}: {reply}"),
                Outcome::Ended => {
                    told.ended.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
            told.replies.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// One message. The connection may be at its end only before it has begun.
fn send(client: &mut Client, domain: &str, name: &str) -> Outcome {
    // What is sent to one who has closed comes back as an error; his last word is there to read.
    client.try_send(format!("MAIL FROM:<a@{domain}>\r\n").as_bytes());
    let reply = client.reply();
    if reply.starts_with("421 4.3.2") {
        client.expect_closed();
        return Outcome::Ended;
    }
    assert!(reply.starts_with("250"), "{reply}");
    client.expect("RCPT TO:<b@example.org>", "250");
    client.expect("DATA", "354");
    client.send(format!("Message-ID: <{name}@example.com>\r\n\r\nx\r\n.\r\n"));
    Outcome::Answered(client.reply())
}

fn config(sink: &SinkHandle) -> String {
    let retry = "extensions = [\"PIPELINING\"]\nconnections = 8\neject_after = 1000\n\
                 retry_first = \"50ms\"\nretry_max = \"200ms\"\n";
    Config::default()
        .relay("plan = \"waves.toml\"")
        .limits("direct_deadline = \"100ms\"\nconnections_per_client = 100")
        .and_upstream("up", &[sink.addr()], &format!("{retry}default = true"))
        .and_upstream("later", &[sink.addr()], &format!("{retry}handoff = \"queued\""))
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"")
        .section("[[policy]]\nplugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"")
        .section(
            "settings = { rules = [ { upstream = \"later\", sender_domains = [\"later.example\"] } ] }",
        )
        .admin()
        .to_string()
}

#[test]
fn ten_upgrades_under_load_lose_nothing_and_refuse_nobody() {
    let sink = recording();
    let plan = plan_of_held();
    let mut relay = Relay::start_with(&config(&sink), &[("waves.toml", plan.as_bytes())]);
    sink.set_faults(faults_of(&FAULTS));
    let (at, admin) = (relay.addr(), relay.admin_addr());
    let told = Told::default();
    std::thread::scope(|scope| {
        let told = &told;
        for session in 0..SESSIONS {
            scope.spawn(move || client(at, told, session));
        }
        for _ in 0..10 {
            let enough = told.replies.load(Ordering::SeqCst) + BETWEEN;
            until("replies", || (told.replies.load(Ordering::SeqCst) >= enough).then_some(()));
            let successor = relay.successor(&[]);
            assert_eq!(relay.succeeded_by(successor).code(), Some(0));
            // The ports are the same ones, though port 0 is configured.
            assert_eq!((relay.addr(), relay.admin_addr()), (at, admin));
        }
        let enough = told.replies.load(Ordering::SeqCst) + BETWEEN;
        until("replies", || (told.replies.load(Ordering::SeqCst) >= enough).then_some(()));
        told.stop.store(true, Ordering::SeqCst);
    });
    sink.set_faults(Vec::new());
    let Told { answered, held, ended, .. } = told;
    let (answered, held) = (answered.into_inner().unwrap(), held.into_inner().unwrap());
    let of_held = ["instance=\"held\""];
    until("only what is held waits", || {
        let metrics = relay.metrics();
        let (all, held) =
            (metrics.sum("spool_recipients", &[]), metrics.sum("spool_recipients", &of_held));
        (all == held).then_some(())
    });
    let metrics = relay.metrics();
    assert_promise(&metrics);
    assert!(metrics.sum("spool_recipients", &of_held) == held.len() as f64, "{}", held.len());
    let log = relay.logs();
    let (arrived, doubted) = (arrivals(&sink), in_doubt(&log));
    let missing: Vec<_> = answered.iter().filter(|name| !arrived.contains_key(*name)).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    assert!(held.iter().all(|name| !arrived.contains_key(name)), "mail left in its window");
    let twice = arrived.iter().filter(|(_, ids)| ids.len() > 1);
    let silent: Vec<_> = twice.filter(|(_, ids)| !doubted.contains(&*ids[0])).collect();
    assert!(silent.is_empty(), "twice without a word: {silent:?}");
    // Each upgrade sent each session away once, but for those that had no other word to say.
    let ended = ended.into_inner();
    assert!(ended >= 10 * SESSIONS / 2, "{ended} sessions were ended with 421");
    for word in ["ERROR", "panicked", "cut off"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(word)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
    assert_eq!(log.matches("it has given the state directory up").count(), 10);
    let audit = fs::read_to_string(relay.folder().join("state/audit.log")).unwrap();
    let lines = |state: &str| {
        let line = |one: &&str| one.contains("\"hand-over\"") && one.contains(state);
        audit.lines().filter(line).count()
    };
    assert_eq!((lines("\"ordered\""), lines("\"done\"")), (10, 10), "{audit}");
    assert!(answered.len() > 400 && held.len() > 100, "{} and {}", answered.len(), held.len());
}

/// A relay with one upstream, and a session in the middle of a message.
fn busy(sink: &SinkHandle, limits: &str) -> (Relay, Client) {
    let relay = Relay::start(&Config::to(&[sink.addr()]).limits(limits));
    let mut busy = relay.hello();
    busy.begin_data();
    busy.send("Subject: half\r\n\r\nhalf a");
    busy.drained();
    (relay, busy)
}

#[test]
fn a_new_process_that_cannot_start_leaves_the_old_one_as_it_was() {
    let sink = recording();
    let (mut relay, mut half) = busy(&sink, "");
    let good = fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let another = format!(
        "{good}[[listener]]\nname = \"more\"\naddress = \"{}\"\n",
        taken.local_addr().unwrap()
    );
    let wrong = format!("{good}[[policy]]\nplugin = \"no.wasm\"\n");
    // Not in the relay's own file, which it watches.
    for (text, code) in [("[relay]\n".to_owned(), 78), (wrong, 78), (another, 69)] {
        let folder = tempfile::tempdir().unwrap();
        let state = format!("state_dir = {:?}\n", relay.folder().join("state"));
        let text = text.replacen("hostname", &format!("{state}hostname"), 1);
        let path = folder.path().join("relay.toml");
        fs::write(&path, text).unwrap();
        let output = std::process::Command::new(wavegate_tests::harness::binary())
            .args(["run", "--take-over", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
    }
    half.send(" message\r\n.\r\n");
    half.expect_reply("250");
    half.expect("NOOP", "250");
    assert!(relay.hello().small().starts_with("250"));
    assert!(!relay.log().contains("handing over"), "{}", relay.log());
    assert!(relay.log().contains("a new process would have taken over, and did not"));
    relay.assert_alive();
}

#[test]
fn without_being_asked_to_a_second_process_leaves_the_first_alone() {
    let sink = recording();
    let (mut relay, mut half) = busy(&sink, "");
    let output = std::process::Command::new(wavegate_tests::harness::binary())
        .args(["run", "--config"])
        .arg(relay.folder().join("relay.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    half.send(" message\r\n.\r\n");
    half.expect_reply("250");
    relay.assert_alive();
}

/// Until the old one has begun to end.
fn begun(relay: &Relay) {
    until("the hand-over", || relay.logs().contains("handing over").then_some(()));
}

#[test]
fn a_new_process_that_is_killed_while_it_waits_costs_no_mail() {
    let sink = recording();
    let (mut relay, mut half) = busy(&sink, "");
    let mut successor = relay.successor(&[]);
    begun(&relay);
    successor.kill().unwrap();
    successor.wait().unwrap();
    // What is under way comes to its end, and the service manager is told that nobody goes on.
    half.send(" message\r\n.\r\n");
    half.expect_reply("250");
    half.expect_reply("421 4.3.2");
    let status = relay.wait_ended();
    assert_eq!(status.code(), Some(75), "{}", relay.logs());
    relay.restart();
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.messages().len(), 2);
    assert!(!relay.logs().contains("Unclean"), "{}", relay.logs());
}

#[test]
fn an_old_process_that_is_killed_in_the_middle_is_taken_over_from() {
    let sink = recording();
    let (mut relay, half) = busy(&sink, "");
    let successor = relay.successor(&[]);
    begun(&relay);
    relay.crash();
    relay.succeeded_by(successor);
    drop(half);
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.messages().len(), 1, "half a message was never sent");
}

#[test]
fn an_old_process_that_does_not_end_is_not_waited_for_longer_than_said() {
    let sink = recording();
    let (mut relay, mut half) = busy(&sink, "shutdown_timeout = \"300ms\"");
    let old = Pid::from_raw(i32::try_from(relay.id()).unwrap());
    let mut successor = relay.successor(&["--wait", "1"]);
    begun(&relay);
    kill(old, Signal::SIGSTOP).unwrap();
    let status = until("the new process gives up", || successor.try_wait().unwrap());
    assert_eq!(status.code(), Some(75), "{}", relay.log());
    assert!(relay.log().contains("has not given the state directory up within 1.3s"));
    kill(old, Signal::SIGCONT).unwrap();
    half.expect_closed();
    assert_eq!(relay.wait_ended().code(), Some(75));
    relay.restart();
    assert!(relay.hello().small().starts_with("250"));
}

#[test]
fn one_that_does_not_end_by_itself_is_cut_off_in_time() {
    let sink = recording();
    let (mut relay, mut half) = busy(&sink, "shutdown_timeout = \"300ms\"");
    let successor = relay.successor(&[]);
    assert_eq!(relay.succeeded_by(successor).code(), Some(0));
    half.expect_closed();
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.messages().len(), 1);
}
