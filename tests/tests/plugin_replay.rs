//! The decision log of the real relay, and what `wavegate plugin replay` finds in it.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use serde_json::Value;
use wavegate_tests::{
    harness::{Client, Config, Relay, binary, recording, until, variant},
    sink::SinkHandle,
};

const LOG: &str = "decisions.jsonl";
const THROTTLE: &[u8] = include_bytes!("../../plugins/dist/throttle.wasm");
const HOSTILE: &[u8] = include_bytes!("../guests/hostile.wasm");
/// Nobody else has these names.
const LOCAL_PARTS: [&str; 3] = ["zebediah.quux", "Ottokar", "wilhelmine+list"];

fn config(sink: &SinkHandle, log: &str, policies: &str) -> String {
    let log = format!("[decision_log]\nfile = \"{LOG}\"\nsample = 1\n{log}");
    Config::to(&[sink.addr()]).admin().section(&log).section(policies).to_string()
}

/// Sends a message from and to people with names.
fn send(client: &mut Client) {
    let [from, to, also] = LOCAL_PARTS;
    client.expect(&format!("MAIL FROM:<{from}@acme.example>"), "250");
    client.expect(&format!("RCPT TO:<{to}@customer.example>"), "250");
    client.expect(&format!("RCPT TO:<{also}@Other.Example>"), "250");
    client.expect("DATA", "354");
    client.send(format!("Subject: for {to}\r\nFrom: {from}@acme.example\r\n\r\nx\r\n.\r\n"));
    let said = client.reply();
    assert!(said.starts_with(['2', '4', '5']), "{said}");
}

fn wait_calls(relay: &Relay, calls: f64) {
    let name = "decision_log_calls_total";
    let all = relay.wait_metrics("calls are logged", |all| all.value(name) >= calls);
    assert_eq!((all.value(name), all.value("decision_log_lost_total")), (calls, 0.0));
}

/// Runs `plugin replay` in a folder: exit code, standard output, standard error.
fn replay(folder: &Path, line: &str) -> (i32, String, String) {
    let mut command = Command::new(binary());
    command.args(["plugin", "replay"]).args(line.split(' ')).current_dir(folder);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn replayed(folder: &Path, line: &str, code: i32) -> Value {
    let (ended, out, said) = replay(folder, &format!("--json {line}"));
    assert_eq!(ended, code, "{line}: {said}{out}");
    serde_json::from_str(&out).unwrap()
}

/// The class that all of so many answers are of.
#[track_caller]
fn all_are(report: &Value, class: &str, count: u64) {
    assert_eq!(report["classes"][class], count, "{report:#}");
    assert_eq!(report["questions"], count, "{report:#}");
}

const STANDARD: &str = "\
[[policy]]
plugin = \"builtin:routing\"
settings = { rules = [{ sender_domains = [\"acme.example\"], upstream = \"up\" }] }
[[policy]]
plugin = \"builtin:throttle\"
settings = { limits = [{ per = [\"recipient\"], rate = \"1000/s\", learn = { codes = [450], slow = 2, for = \"1s\" } }] }
";

#[test]
fn a_pure_policy_answers_its_own_log_alike_and_nobody_is_named() {
    let sink = recording();
    let relay = Relay::start_with(&config(&sink, "", STANDARD), &[]);
    let mut client = relay.hello();
    (0..10).for_each(|_| send(&mut client));
    // Route, limits and outcome of each.
    wait_calls(&relay, 30.0);
    let folder = relay.folder();
    let text = fs::read_to_string(folder.join(LOG)).unwrap();
    for name in LOCAL_PARTS {
        let lower = text.to_lowercase();
        assert!(!lower.contains(&name.to_lowercase()), "{name}");
    }
    assert!(text.contains("@customer.example") && text.contains("@Other.Example"));
    let mode = fs::metadata(folder.join(LOG)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let (code, out, said) = replay(folder, "--log decisions.jsonl builtin:throttle");
    assert_eq!(code, 64, "{out}");
    assert!(said.contains("--policy; the log has: routing, throttle"), "{said}");
    let (code, out, said) =
        replay(folder, "--log decisions.jsonl --policy throttle builtin:throttle");
    assert_eq!(code, 0, "{said}");
    assert!(out.contains("it answers its own log alike: 20 questions, 0 differences"), "{out}");
    let report = replayed(folder, "--log decisions.jsonl --policy routing builtin:routing", 0);
    all_are(&report, "same", 10);
    assert_eq!(report["own"]["questions"], 10);

    // Another build that answers alike, another setting, another plugin.
    relay.write("next.wasm", variant(THROTTLE, "draft/2020-12", 7));
    let by = |more: &str| format!("--log decisions.jsonl --policy throttle next.wasm{more}");
    let report = replayed(folder, &by(" --max-differences 0"), 0);
    all_are(&report, "same", 20);
    assert_eq!((&report["own"]["questions"], &report["ok"]), (&0.into(), &true.into()));
    relay.write("slow.toml", "[[limits]]\nper = [\"recipient\"]\nrate = \"1/s\"\n");
    let report = replayed(folder, &by(" --settings slow.toml --max-differences 100"), 0);
    assert_eq!(report["classes"]["limits-only"], 10, "{report:#}");
    assert_eq!(report["classes"]["same"], 10, "nobody had learned anything: {report:#}");
    assert_eq!(report["examples"].as_array().unwrap().len(), 3);
    replayed(folder, &by(" --settings slow.toml --max-differences 50"), 0);
    let report = replayed(folder, &by(" --settings slow.toml --max-differences 49.9"), 1);
    assert_eq!(report["ok"], false);
    let report = replayed(folder, &by(" --settings slow.toml --limit 5"), 0);
    assert_eq!(report["compared"], 5);
    let (code, _, said) = replay(folder, &by(" --settings missing.json"));
    assert_eq!(code, 66, "{said}");
    relay.write("bad.json", "{\"limts\": []}");
    let (code, _, said) = replay(folder, &by(" --settings bad.json"));
    assert_eq!(code, 78);
    assert!(said.contains("limts"), "{said}");
    let report = replayed(folder, &by(" --config relay.toml"), 0);
    all_are(&report, "same", 20);
    // Who has no hook is not asked, and changes nothing: here the limits go.
    relay.write("none.json", "{}");
    let line = "--log decisions.jsonl --policy throttle --settings none.json builtin:freeze";
    let report = replayed(folder, line, 0);
    assert_eq!(report["classes"]["limits-only"], 10, "{report:#}");
}

/// The policy of the tests, that answers as it is told.
fn guest(what: &str) -> String {
    format!(
        "[[policy]]\nname = \"guest\"\nplugin = \"hostile.wasm\"\nsettings = {{ do = \"{what}\" }}\n"
    )
}

/// A replay of the guest that is told something else.
#[track_caller]
fn told(relay: &Relay, what: &str) -> Value {
    relay.write("do.json", format!("{{\"do\": \"{what}\"}}"));
    replayed(relay.folder(), &format!("--log {LOG} --settings do.json hostile.wasm"), 0)
}

/// Freeze, route, limits and outcome of one message are logged.
fn one_message(subject: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let text = config(&sink, "headers = \"plain\"\n", &guest("abstain"));
    let relay = Relay::start_with(&text, &[("hostile.wasm", HOSTILE)]);
    let mut client = relay.hello();
    client.envelope("zebediah@acme.example", "bob@customer.example");
    client.expect("DATA", "354");
    client.send(format!("Subject: {subject}\r\n\r\nx\r\n.\r\n"));
    client.expect_reply("250");
    wait_calls(&relay, 4.0);
    (relay, sink)
}

#[test]
fn what_a_candidate_would_change_is_told_by_class() {
    let (relay, _sink) = one_message("offer");
    for (what, class) in [
        ("refuse", "harder"),
        ("trap", "error"),
        ("loop", "error"),
        ("many-rates", "error"),
        ("many-lessons", "error"),
    ] {
        let report = told(&relay, what);
        let classes = &report["classes"];
        // It routes too, which the one that was asked had not.
        assert_eq!((&classes[class], &classes["route"]), (&1.into(), &1.into()), "{report:#}");
        assert_eq!((&classes["same"], &report["compared"]), (&2.into(), &4.into()), "{report:#}");
        let examples = report["examples"].as_array().unwrap();
        assert!(examples.iter().any(|one| one["class"] == class), "{report:#}");
    }
    let report = told(&relay, "abstain");
    all_are(&report, "same", 4);
    assert_eq!(report["own"]["questions"], 4);
}

#[test]
fn what_the_log_does_not_tell_truly_is_not_asked() {
    // The header is told, but it names the sender.
    let (relay, _sink) = one_message("from Zebediah");
    let report = told(&relay, "refuse");
    assert_eq!(report["classes"]["not-replayable"], 3, "{report:#}");
    assert_eq!(report["not_replayable"]["the log has no true header:subject"], 3);
    assert_eq!(report["classes"]["same"], 1, "the outcome has no header: {report:#}");
    let text = fs::read_to_string(relay.folder().join(LOG)).unwrap();
    assert!(!text.to_lowercase().contains("zebediah"), "{text}");
    // One that wants to know of a message what nobody had asked for.
    let sink = recording();
    let relay = Relay::start_with(&config(&sink, "", STANDARD), &[("hostile.wasm", HOSTILE)]);
    send(&mut relay.hello());
    wait_calls(&relay, 3.0);
    let line = format!("--log {LOG} --policy routing --max-differences 100 hostile.wasm");
    let report = replayed(relay.folder(), &line, 1);
    assert_eq!(report["not_replayable"]["the log has no helo: no policy had asked for it"], 1);
}

#[test]
fn an_impure_policy_is_found_out() {
    let sink = recording();
    let text = config(&sink, "", &guest("impure"));
    let relay = Relay::start_with(&text, &[("hostile.wasm", HOSTILE)]);
    let mut client = relay.hello();
    // It holds them, and says how many it was asked about.
    for _ in 0..3 {
        client.envelope("ada@acme.example", "bob@customer.example");
        client.expect("DATA", "354");
        client.send("\r\nx\r\n.\r\n");
        client.expect_reply("250");
    }
    relay.wait_metrics("calls are logged", |all| all.value("decision_log_calls_total") >= 3.0);
    let (code, out, said) = replay(relay.folder(), &format!("--log {LOG} hostile.wasm"));
    assert_eq!(code, 0, "{said}");
    assert!(out.contains("it is not pure: of "), "{out}");
    let line = format!("--log {LOG} --max-differences 50 hostile.wasm");
    let report = replayed(relay.folder(), &line, 1);
    // The first instance had been fresh too.
    assert_eq!(report["classes"]["same"], 1, "{report:#}");
    assert_eq!(report["differences"], report["classes"]["text"]);
    let softer = told(&relay, "abstain");
    assert_eq!(softer["classes"]["softer"], softer["questions"]);
}

#[test]
fn damaged_lines_are_named_and_older_files_are_read() {
    let sink = recording();
    let relay = Relay::start_with(&config(&sink, "", STANDARD), &[]);
    send(&mut relay.hello());
    wait_calls(&relay, 3.0);
    let folder = relay.folder();
    let text = fs::read(folder.join(LOG)).unwrap();
    let of =
        |logs: &str| replayed(folder, &format!("{logs} --policy throttle builtin:throttle"), 0);
    relay.write("old", &text);
    relay.write("old.1", [b"\xff{}\n{\"kind\":\"call\"}\n", &text[..], b"{\"kind\":\"ca"].concat());
    relay.write("old.2", &text);
    relay.write("old.4", &text);
    let report = of("--log old");
    all_are(&report, "same", 6);
    assert_eq!(report["damaged"]["count"], 3);
    let first = report["damaged"]["first"].as_array().unwrap();
    assert!(first[0].as_str().unwrap().starts_with("old.1:1: "), "{first:?}");
    assert!(first[2].as_str().unwrap().ends_with("it is cut off"), "{first:?}");
    all_are(&of("--log old --log old.4"), "same", 8);
    // Without the line of its policy a call cannot be asked again, and nothing is shown.
    let calls = text.split_inclusive(|byte| *byte == b'\n');
    let calls: Vec<u8> = calls
        .filter(|line| !line.starts_with(b"{\"kind\":\"policy\""))
        .flatten()
        .copied()
        .collect();
    relay.write("calls", calls);
    let report = of("--log calls");
    all_are(&report, "not-replayable", 2);
    let line = "--log calls --policy throttle builtin:throttle --max-differences 100";
    replayed(folder, line, 1);
    replayed(folder, "--log calls --policy throttle --config relay.toml builtin:throttle", 0);
    relay.write("none", "");
    assert_eq!(replay(folder, "--log none builtin:throttle").0, 65);
    assert_eq!(replay(folder, "--log nowhere builtin:throttle").0, 66);
}

#[test]
fn a_full_disk_costs_calls_and_no_mail() {
    let sink = recording();
    let text = config(&sink, "", STANDARD).replace(LOG, "/dev/full");
    let relay = Relay::start_with(&text, &[]);
    let mut client = relay.hello();
    (0..5).for_each(|_| send(&mut client));
    let lost = "decision_log_lost_total";
    let metrics = relay.wait_metrics("calls are counted as lost", |all| all.value(lost) == 15.0);
    assert_eq!(metrics.value("decision_log_calls_total"), 0.0);
    assert_eq!(sink.counts().messages, 5);
    assert_eq!(relay.log().matches("the decision log cannot be written").count(), 1);
}

#[test]
fn a_file_that_cannot_be_made_keeps_the_relay_from_starting() {
    let sink = recording();
    let mut relay = Relay::start_with(&config(&sink, "", ""), &[]);
    let text = fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
    relay.write("relay.toml", text.replace(LOG, "relay.toml/x"));
    let said = relay.reload_refused();
    assert!(said.contains("[decision_log] has changed, which needs a restart"), "{said}");
    let (code, said) = relay.restart_fails();
    assert_eq!(code, Some(78));
    assert!(said.contains("decision_log.file: cannot be written"), "{said}");
}

#[test]
fn a_kill_leaves_whole_lines_and_the_log_goes_on() {
    let sink = recording();
    let mut relay = Relay::start_with(&config(&sink, "", STANDARD), &[]);
    let log = relay.folder().join(LOG);
    for round in 1..=2 {
        let ended = AtomicBool::new(false);
        let (ended, address) = (&ended, relay.addr());
        let before = fs::read(&log).unwrap().len();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut client = Client::greeted(address);
                client.command("EHLO client.example");
                let content = "Subject: x\r\n\r\nx\r\n";
                while !ended.load(Relaxed) && client.try_message(content).is_some() {}
            });
            until("the log grows", || {
                (fs::read(&log).unwrap().len() > before + 20_000).then_some(())
            });
            relay.crash();
            ended.store(true, Relaxed);
        });
        let text = fs::read(&log).unwrap();
        let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let last = lines.pop().unwrap();
        let is_whole = |line: &[u8]| serde_json::from_slice::<Value>(line).is_ok();
        assert!(lines.iter().all(|line| is_whole(line)), "round {round}");
        let damaged = u64::from(!is_whole(last) || !last.ends_with(b"\n"));
        let report =
            replayed(relay.folder(), &format!("--log {LOG} --policy throttle builtin:throttle"), 0);
        assert_eq!(report["damaged"]["count"], damaged);
        assert_eq!(report["own"]["differences"], 0);
        assert_eq!(report["compared"], report["questions"]);
        relay.restart();
    }
    assert!(relay.terminate().success());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "cut off");
}
