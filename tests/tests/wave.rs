//! Orders about waves as an operator gives them: the real program asks real relays over their
//! sockets and their APIs, with real mail between a client and two sinks.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use wavegate_tests::harness::{Config, PATIENCE, Relay, binary, now_ms, recording, rfc3339, until};

/// What the program said, and its exit code.
fn wavegate(line: &str, more: &[&str]) -> (i32, String) {
    let output = Command::new(binary()).args(line.split(' ')).args(more).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code().unwrap(), text)
}

/// Asks a relay by its configuration.
fn on(relay: &Relay, line: &str) -> (i32, String) {
    let config = relay.folder().join("relay.toml");
    wavegate(line, &["--config", config.to_str().unwrap()])
}

#[track_caller]
fn ok(relay: &Relay, line: &str) -> String {
    let (code, text) = on(relay, line);
    assert_eq!(code, 0, "{line}: {text}");
    text
}

#[track_caller]
fn fails(relay: &Relay, line: &str, code: i32, words: &str) {
    let (ended, text) = on(relay, line);
    assert!(ended == code && text.contains(words), "{line}: {ended} {text}");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// `acme` is in a wave that is open, `free` is in none.
fn plan() -> String {
    let instance = |name: &str| {
        format!(
            "[[instance]]\nname = \"{name}\"\nproduct = \"classic\"\nenvironment = \
             \"production\"\nmatch = {{ senders = [\"{name}.example\"] }}\n"
        )
    };
    let (opens, closes) = (rfc3339(now_ms() - 1000), rfc3339(now_ms() + 3_600_000));
    format!(
        "{}{}[[wave]]\nid = \"prod-01\"\nenvironment = \"production\"\ninstances = [\"acme\"]\n\
         opens = \"{opens}\"\ncloses = \"{closes}\"\n",
        instance("acme"),
        instance("free")
    )
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn start(ends: [SocketAddr; 2], host: &str, plan: &str, token: &str) -> Relay {
    let [legacy, cloud] = ends;
    let config = Config::default()
        .relay("plan = \"waves.toml\"")
        .and_upstream("legacy", &[legacy], "extensions = []")
        .and_upstream("cloud", &[cloud], "extensions = []")
        .section("[migration]\nbefore = \"legacy\"\nafter = \"cloud\"")
        .section(
            "[[policy]]\nplugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"",
        )
        .section(&format!("[api]\naddress = \"127.0.0.1:0\"\ntoken_file = \"{token}\""));
    let config = config.to_string().replace("edge-1", host);
    Relay::start_with(&config, &[("waves.toml", plan.as_bytes())])
}

fn token_file(folder: &Path) -> String {
    let path = folder.join("api.token");
    fs::write(&path, TOKEN).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Where a relay's API is.
fn api(relay: &Relay) -> String {
    let address = until("the API is answered", || {
        let log = relay.log();
        let (_, rest) = log.split_once("the API is answered address=")?;
        Some(rest.split_whitespace().next()?.to_owned())
    });
    format!("http://{address}")
}

fn send(relay: &Relay, from: &str) -> String {
    let mut client = relay.hello();
    client.envelope(from, "b@x.example");
    client.expect("DATA", "354");
    client.send("Subject: x\r\n\r\nhello\r\n.\r\n");
    client.expect_reply("250")
}

fn audit(relay: &Relay) -> Vec<Value> {
    let text = fs::read_to_string(relay.folder().join("state/audit.log")).unwrap_or_default();
    text.lines().map(json).collect()
}

#[test]
fn a_wave_is_looked_at_extended_and_completed() {
    let (legacy, cloud) = (recording(), recording());
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    let relay = start([legacy.addr(), cloud.addr()], "edge-1", &plan(), &token);
    assert!(send(&relay, "a@acme.example").contains("queued as"));
    until("the barrier, and a probe", || {
        let wave = json(&ok(&relay, "wave show prod-01 --json"));
        (wave["barrier_at"].is_string() && wave["phase"] == "checked").then_some(())
    });
    let list = ok(&relay, "wave list");
    assert!(list.contains("prod-01") && list.contains("checked, closes in 59m"), "{list}");
    assert!(list.starts_with("edge-1.example.net  "), "{list}");
    let shown = ok(&relay, "wave show prod-01");
    assert!(shown.contains("cloud 127.0.0.1:") && shown.contains(": well, "), "{shown}");
    fails(&relay, "wave show nothing", 66, "there are: prod-01");
    fails(&relay, "wave complete nothing --reason x", 66, "there is no wave \"nothing\"");
    let said = ok(&relay, "wave complete prod-01 --reason x --dry-run");
    assert!(said.contains("dry run: nothing is changed"), "{said}");
    assert_eq!(audit(&relay).len(), 2, "the refusal, and nothing of the dry run");
    let before = json(&ok(&relay, "wave show prod-01 --json"));
    let said = ok(&relay, "wave extend prod-01 --by 15m --reason copying --json");
    assert_eq!(json(&said)["wave"]["extended_ms"], 900_000);
    assert_ne!(json(&said)["wave"]["closes"], before["closes"]);
    fails(&relay, "wave extend prod-01 --until 2026-01-20T06:00:00Z --reason x", 64, "before");
    fails(&relay, "wave release prod-01 --reason x", 75, "the clocks agree");
    assert_eq!((legacy.counts().messages, cloud.counts().messages), (0, 0));
    ok(&relay, "wave complete prod-01 --reason done");
    assert!(cloud.wait_messages(1, PATIENCE));
    let again = ok(&relay, "wave complete prod-01 --reason done");
    assert!(again.contains("(nothing to do)"), "{again}");
    until("it has migrated", || {
        (json(&ok(&relay, "wave show prod-01 --json"))["phase"] == "migrated").then_some(())
    });
    fails(&relay, "wave extend prod-01 --by 15m --reason x", 75, "prod-01 is migrated");
    let log = audit(&relay);
    let lines: Vec<_> = log
        .iter()
        .map(|line| format!("{} {} {}", line["action"], line["state"], line["of"]).replace('"', ""))
        .collect();
    let twice = |order: &str, end: &str, of: &str| {
        [format!("{order} ordered {of}"), format!("{order} {end} {of}")]
    };
    let expected = [
        twice("complete", "refused", "nothing"),
        twice("extend", "done", "prod-01"),
        twice("extend", "refused", "prod-01"),
        twice("release", "refused", "prod-01"),
        twice("complete", "done", "prod-01"),
        twice("complete", "done", "prod-01"),
        twice("extend", "refused", "prod-01"),
    ];
    assert_eq!(lines, expected.concat());
    assert!(log[2]["from"].as_str().unwrap().starts_with("control socket, user "), "{}", log[2]);
    assert_eq!(log[2]["reason"], "copying");
}

#[test]
fn an_instance_is_frozen_without_a_plan() {
    let (legacy, cloud) = (recording(), recording());
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    let relay = start([legacy.addr(), cloud.addr()], "edge-1", &plan(), &token);
    fails(&relay, "wave freeze --instance nobody --for 30m --reason x", 66, "no instance");
    let said = json(&ok(&relay, "wave freeze --instance free --for 30m --reason incident --json"));
    let id = said["wave"]["id"].as_str().unwrap().to_owned();
    assert!(send(&relay, "a@free.example").contains("queued as"));
    assert!(ok(&relay, "wave list").contains(&id));
    until("it has a barrier", || {
        let wave = json(&ok(&relay, &format!("wave show {id} --json")));
        (wave["held"]["messages"] == 1 && wave["barrier_at"].is_string()).then_some(())
    });
    assert_eq!(legacy.counts().messages, 0);
    ok(&relay, &format!("wave complete {id} --reason over"));
    assert!(legacy.wait_messages(1, PATIENCE));
    assert_eq!(cloud.counts().messages, 0);
}

#[test]
fn several_hosts_are_one_and_a_missing_one_is_told() {
    let (legacy, cloud) = (recording(), recording());
    let plan = plan();
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    let ends = [legacy.addr(), cloud.addr()];
    let one = start(ends, "edge-1", &plan, &token);
    let mut other = start(ends, "edge-2", &plan, &token);
    let (first, second) = (api(&one), api(&other));
    let status = |more: &[&str]| {
        let hosts = format!("{first},{second}");
        wavegate("wave status --hosts", &[&[&*hosts, "--token-file", &token], more].concat())
    };
    assert!(send(&one, "a@acme.example").contains("queued as"));
    until("the barrier on both", || {
        let (code, text) = status(&["--json"]);
        assert_eq!(code, 0, "{text}");
        let all = json(&text);
        assert_eq!(all["complete"], true);
        let wave = &all["waves"][0];
        (wave["barrier"] == true && wave["held"]["messages"] == 1).then_some(())
    });
    let (code, text) = status(&[]);
    assert!(code == 0 && text.contains("2 of 2 hosts answered, plan "), "{text}");
    // Twice the same host would count its mail twice.
    let twice = format!("{first},{first}");
    let (code, text) = wavegate("wave status --hosts", &[&twice, "--token-file", &token]);
    assert!(code == 64 && text.contains("is given twice"), "{text}");
    // Without the token there is no answer.
    let wrong = folder.path().join("wrong");
    fs::write(&wrong, TOKEN.replace('0', "x")).unwrap();
    let hosts = format!("{first},{second}");
    let wrong = wrong.to_str().unwrap();
    let (code, text) = wavegate("wave status --hosts", &[&hosts, "--token-file", wrong]);
    assert!(code == 69 && text.contains("401") && text.contains("NOT THE WHOLE"), "{text}");
    // Another plan on one of them.
    let changed = format!(
        "{plan}[[instance]]\nname = \"third\"\nproduct = \"classic\"\nenvironment = \
                           \"production\"\nmatch = {{ senders = [\"third.example\"] }}\n"
    );
    other.write("waves.toml", changed);
    until("the other plan is told", || {
        let (code, text) = status(&[]);
        (code == 78 && text.contains("their plans differ")).then_some(())
    });
    // One that is gone.
    other.crash();
    let (code, text) = status(&[]);
    let address = second.strip_prefix("http://").unwrap();
    assert!(
        code == 69 && text.contains(&format!("PROBLEM: {address} cannot be reached")),
        "{text}"
    );
}
