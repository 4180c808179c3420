//! Queue control as an operator uses it: the real program asks the real relay over its socket, with
//! real mail between a client and a sink.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, mpsc};

use serde_json::Value;
use tempfile::TempDir;
use wavegate_tests::harness::{
    Client, Closed, Config, PATIENCE, Relay, Script, binary, faults_of, plan_of_held, recording,
    until,
};
use wavegate_tests::sink::SinkHandle;

/// What the program said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    #[track_caller]
    fn fails(self, code: i32, words: &str) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        let all = format!("{}{}", self.out, self.err);
        assert!(all.contains(words), "{all}");
        all
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

/// Runs the program with the configuration of a folder.
fn wavegate(folder: &Path, arguments: &[&str]) -> Said {
    let config = folder.join("relay.toml");
    let output =
        Command::new(binary()).args(arguments).arg("--config").arg(config).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    Said { code: output.status.code().unwrap(), out, err }
}

fn on(relay: &Relay, line: &str) -> Said {
    let arguments: Vec<&str> = line.split(' ').collect();
    wavegate(relay.folder(), &arguments)
}

/// Has the relay take a message; its id.
fn queued(client: &mut Client, from: &str, to: &str) -> String {
    client.envelope(from, to);
    client.expect("DATA", "354");
    client.send(format!("Subject: {to}\r\n\r\nhello\r\n.\r\n"));
    let said = client.expect_reply("250");
    let (_, rest) = said.split_once("queued as ").unwrap_or_else(|| panic!("not queued: {said}"));
    rest[..16].to_owned()
}

fn waiting(relay: &Relay) -> u64 {
    on(relay, "queue list --json").json()["messages"].as_u64().unwrap()
}

/// Everything goes by the spool; what is deferred is not tried again by itself.
fn by_spool(sink: &SinkHandle) -> Config {
    Config::to(&[sink.addr()]).upstream("handoff = \"queued\"\nretry_first = \"1h\"")
}

fn subjects(sink: &SinkHandle) -> Vec<String> {
    let first = |content: Vec<u8>| {
        let text = String::from_utf8_lossy(&content).into_owned();
        text.lines().find_map(|line| line.strip_prefix("Subject: ").map(str::to_owned)).unwrap()
    };
    let mut all: Vec<_> =
        sink.messages().into_iter().map(|one| first(one.content.unwrap())).collect();
    all.sort();
    all
}

/// What `queue show` says that a message waits for.
fn waits_for(relay: &Relay, id: &str) -> String {
    let shown = on(relay, &format!("queue show {id} --json")).json();
    shown["waits_for"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_held_stays_and_leaves_when_it_is_released() {
    let sink = recording();
    let relay = Relay::start(&by_spool(&sink));
    on(&relay, "hold-all --reason first").ok();
    let mut client = relay.hello();
    let held = queued(&mut client, "a@one.example", "held@x.example");
    queued(&mut client, "a@one.example", "free@y.example");
    let said = on(&relay, &format!("queue hold {held} --reason look")).ok();
    assert!(said.contains("hold: 1 message, 1 recipient") && said.contains(&held), "{said}");
    assert!(said.contains("EVERYTHING IS HELD: first"), "{said}");
    on(&relay, "release-all --reason done").ok();
    assert!(sink.wait_messages(1, PATIENCE));
    until("the free one is gone", || (waiting(&relay) == 1).then_some(()));
    assert_eq!(subjects(&sink), ["free@y.example"]);
    assert_eq!(waits_for(&relay, &held), "an operator, who holds it: look");
    let shown = on(&relay, &format!("queue show {held}")).ok();
    for words in
        ["<a@one.example>", "waits  <held@x.example>", "held, since", "not while it is held"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // It has its turn only from the operator who holds it.
    on(&relay, &format!("queue retry {held} --reason try")).ok();
    assert_eq!(waiting(&relay), 1);
    on(&relay, "queue release --instance (none) --reason fine").ok();
    assert!(sink.wait_messages(2, PATIENCE));
    assert_eq!(subjects(&sink), ["free@y.example", "held@x.example"]);
    let log = relay.log();
    let line = log.lines().find(|line| line.contains("operator changed") && line.contains("look"));
    assert!(line.is_some_and(|line| line.contains(&held)), "{log}");
}

#[test]
fn a_deferred_message_is_tried_when_an_operator_says_so() {
    let sink = recording();
    sink.set_faults(faults_of(&["end:1=451 4.3.0 come back"]));
    let relay = Relay::start(&by_spool(&sink));
    let id = queued(&mut relay.hello(), "a@one.example", "b@x.example");
    until("it waits for a retry", || {
        let list = on(&relay, "queue list --state later --upstream up --json").json();
        (list["messages"] == 1).then_some(())
    });
    let said = waits_for(&relay, &id);
    assert!(said.starts_with("attempt 2 at 2") && said.contains("451 4.3.0 come back"), "{said}");
    let shown = on(&relay, &format!("queue show {id} --json")).json();
    assert_eq!(shown["last"]["upstream"], "up");
    assert!(shown["expires"].is_string(), "{shown}");
    assert_eq!(sink.counts().messages, 0);
    on(&relay, "queue retry --state later --reason again").ok();
    assert!(sink.wait_messages(1, PATIENCE));
}

#[test]
fn a_removed_message_is_gone_without_a_word_and_a_bounced_one_with_one() {
    let sink = recording();
    let relay = Relay::start(&by_spool(&sink).admin());
    on(&relay, "hold-all --reason first").ok();
    let mut client = relay.hello();
    let removed = queued(&mut client, "a@one.example", "removed@x.example");
    let bounced = queued(&mut client, "sender@two.example", "bounced@x.example");
    queued(&mut client, "a@one.example", "stays@y.example");
    // By recipient domain both of x.example are meant, by sender only one.
    let dry = on(&relay, "queue remove --domain X.example --reason no --dry-run --json").json();
    assert_eq!((&dry["messages"], &dry["dry_run"]), (&2.into(), &true.into()));
    assert_eq!(waiting(&relay), 3, "a dry run changes nothing");
    let said = on(&relay, "queue remove --domain x.example --sender @one.example --reason no").ok();
    assert!(said.contains("remove: 1 message") && said.contains(&removed), "{said}");
    on(&relay, &format!("queue show {removed}")).fails(66, "no such message");
    on(&relay, &format!("queue remove {removed} --reason no")).fails(66, "no such message");
    let said = on(&relay, "queue bounce --sender sender@two.example --reason unwanted").ok();
    assert!(said.contains("bounce: 1 message") && said.contains(&bounced), "{said}");
    on(&relay, "release-all --reason done").ok();
    assert!(sink.wait_messages(2, PATIENCE));
    until("all have gone", || (waiting(&relay) == 0).then_some(()));
    let messages = sink.messages();
    assert_eq!(messages.len(), 2);
    let bounce = messages.iter().find(|one| one.from.is_empty()).expect("a bounce");
    assert_eq!(bounce.to[0].address, "sender@two.example");
    let text = String::from_utf8(bounce.content.clone().unwrap()).unwrap();
    assert!(text.contains("bounced@x.example") && text.contains("Action: failed"), "{text}");
    assert!(text.contains("unwanted"), "{text}");
    let metrics = relay.metrics();
    for (end, count) in [("removed", 1.0), ("bounced", 1.0), ("delivered", 2.0)] {
        let label = format!("end=\"{end}\"");
        assert!((metrics.sum("recipients_ended_total", &[&label]) - count).abs() < 0.1, "{end}");
    }
}

#[test]
fn the_kill_switch_and_holds_survive_restarts() {
    let sink = recording();
    let state = TempDir::new().unwrap();
    let state_dir = format!("state_dir = {:?}", state.path().join("state"));
    let config = by_spool(&sink).relay(&state_dir);
    let mut relay = Relay::start(&config);
    on(&relay, "hold-all --reason smoke").ok();
    let held = queued(&mut relay.hello(), "a@one.example", "held@x.example");
    queued(&mut relay.hello(), "a@one.example", "free@x.example");
    on(&relay, &format!("queue hold {held} --reason look")).ok();
    // What was answered is durable.
    relay.crash();
    drop(relay);
    let relay = Relay::start(&config);
    let list = on(&relay, "queue list --json").json();
    assert_eq!(list["all_held"], "smoke");
    assert_eq!(list["messages"], 2);
    let shown = on(&relay, &format!("queue show {held}")).ok();
    assert!(shown.contains("EVERYTHING IS HELD: smoke"), "{shown}");
    assert!(shown.contains("an operator, who holds it: look"), "{shown}");
    queued(&mut relay.hello(), "a@one.example", "new@x.example");
    assert_eq!(sink.counts().messages, 0);
    on(&relay, "release-all --reason fine").ok();
    assert!(sink.wait_messages(2, PATIENCE));
    assert!(relay.stop().success());
    let relay = Relay::start(&config);
    assert!(on(&relay, "queue list --json").json()["all_held"].is_null());
    on(&relay, "queue release ALL --reason fine").ok();
    assert!(sink.wait_messages(3, PATIENCE));
    assert_eq!(subjects(&sink), ["free@x.example", "held@x.example", "new@x.example"]);
}

#[test]
fn all_must_be_meant_and_a_reason_given() {
    let sink = recording();
    let relay = Relay::start(&by_spool(&sink));
    on(&relay, "hold-all --reason first").ok();
    queued(&mut relay.hello(), "a@one.example", "b@x.example");
    on(&relay, "queue remove --reason no").fails(64, "ALL in capital letters");
    on(&relay, "queue remove all --reason no").fails(64, "write ALL in capital letters");
    on(&relay, "queue remove ALL --domain x.example --reason no").fails(64, "which is meant");
    on(&relay, "queue remove ALL").fails(64, "--reason");
    on(&relay, "queue remove 123 --reason no").fails(64, "not the id of a message");
    wavegate(relay.folder(), &["queue", "remove", "ALL", "--reason", " "]).fails(64, "say why");
    let long = "x".repeat(501);
    wavegate(relay.folder(), &["queue", "remove", "ALL", "--reason", &long]).fails(64, "500 bytes");
    assert_eq!(waiting(&relay), 1);
    on(&relay, "queue remove ALL --reason really").ok();
    assert_eq!(waiting(&relay), 0);
}

#[test]
fn what_is_in_flight_is_not_removed_and_is_held_at_its_next_block() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (begun, has_begun) = mpsc::channel::<()>();
    let upstream = Script::start(move |_, peer| {
        let mut play = || {
            peer.greet(&[])?;
            peer.envelope()?;
            begun.send(()).ok()?;
            wait.lock().unwrap().recv_timeout(PATIENCE).ok()?;
            peer.say("451 4.3.0 later\r\n");
            peer.closed();
            Some(())
        };
        let _closed: Option<()> = play();
    });
    let lines = "handoff = \"queued\"\nretry_first = \"1h\"\nextensions = []";
    let relay = Relay::start(&Config::to(&[upstream.addr()]).upstream(lines));
    let id = queued(&mut relay.hello(), "a@one.example", "b@x.example");
    has_begun.recv_timeout(PATIENCE).unwrap();
    for action in ["remove", "bounce", "retry"] {
        let said = on(&relay, &format!("queue {action} {id} --reason no"));
        let said = said.fails(75, "an attempt is under way");
        assert!(said.contains(&format!("{action}: 0 messages")), "{said}");
    }
    on(&relay, &format!("queue hold {id} --reason look")).ok();
    let said = waits_for(&relay, &id);
    assert!(said.contains("under way, and then an operator, who holds it: look"), "{said}");
    go.send(()).unwrap();
    until("it is held", || {
        (waits_for(&relay, &id) == "an operator, who holds it: look").then_some(())
    });
    let shown = on(&relay, &format!("queue show {id} --json")).json();
    assert_eq!(shown["attempts"], 1);
    assert!(shown["last"]["text"].as_str().unwrap().contains("451 4.3.0 later"), "{shown}");
}

#[test]
fn show_says_what_a_message_waits_for() {
    let (sink, down) = (recording(), Closed::new());
    let routing = "[[policy]]\nplugin = \"builtin:routing\"\nsettings = { rules = [ { \
                   recipient_domains = [\"down.example\"], upstream = \"down\" } ] }\n";
    let config = by_spool(&sink)
        .relay("plan = \"waves.toml\"")
        .and_upstream("down", &[down.addr()], "handoff = \"queued\"\nextensions = []")
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"\n")
        .section("[[policy]]\nplugin = \"builtin:freeze\"\n")
        .section(routing);
    let plan = plan_of_held();
    let relay = Relay::start_with(&config.to_string(), &[("waves.toml", plan.as_bytes())]);
    let mut client = relay.hello();
    let frozen = queued(&mut client, "a@held.example", "b@x.example");
    let unconnected = queued(&mut client, "a@one.example", "b@down.example");
    queued(&mut client, "a@one.example", "b@x.example");
    assert!(sink.wait_messages(1, PATIENCE));
    let says = |id: &str, words: &[&str]| {
        until(&format!("it waits for {words:?}"), || {
            let said = waits_for(&relay, id);
            let right = words.iter().all(|word| said.contains(word));
            if !right && said.contains("a policy") {
                // On a busy machine a policy may have run out of time, and is asked again.
                on(&relay, &format!("queue retry {id} --reason again")).ok();
            }
            right.then_some(())
        });
    };
    // With `before` for its `after` there is nothing new to probe: the wave is checked at once.
    says(&frozen, &["the end of the window of held (", ", wave w) at 2"]);
    says(&unconnected, &["a connection of upstream down: every target is down"]);
    let list = on(&relay, "queue list --instance held --json").json();
    assert_eq!(list["oldest"][0]["id"], *frozen);
    assert_eq!(list["messages"], 1);
    let list = on(&relay, "queue list --upstream down").ok();
    assert!(list.contains(&unconnected) && !list.contains(&frozen), "{list}");
    // A window is not an operator's hold, and cannot be released so.
    let said = on(&relay, &format!("queue release {frozen} --reason now")).ok();
    assert!(said.contains("not 1 message: no operator holds it"), "{said}");
    on(&relay, &format!("queue retry {frozen} --reason now")).ok();
    says(&frozen, &["the end of the window of held"]);
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn show_names_the_limit_that_a_message_waits_for() {
    let sink = recording();
    let throttle = "[[policy]]\nplugin = \"builtin:throttle\"\nsettings = { limits = [ { per = \
                    [\"recipient-domain\"], rate = \"1/h\", burst = 1 } ] }\n";
    let relay = Relay::start(&by_spool(&sink).section(throttle));
    let mut client = relay.hello();
    queued(&mut client, "a@one.example", "first@slow.example");
    assert!(sink.wait_messages(1, PATIENCE));
    let limited = queued(&mut client, "a@one.example", "second@slow.example");
    // Who stands first in the line of a limit may be in flight; its last word says why.
    let shown = until("the limit is named", || {
        let shown = on(&relay, &format!("queue show {limited} --json")).json();
        shown["last"]["text"].is_string().then_some(shown)
    });
    let text = shown["last"]["text"].as_str().unwrap();
    assert!(text.contains("limit") && text.contains("slow.example"), "{shown}");
    on(&relay, &format!("queue hold {limited} --reason look")).ok();
    until("it is held", || {
        (waits_for(&relay, &limited) == "an operator, who holds it: look").then_some(())
    });
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn a_host_is_emptied_proved_empty_and_its_mail_leaves_elsewhere() {
    let sink = recording();
    let config = by_spool(&sink);
    let ((old, old_folder), (new, new_folder)) = (host(&config), host(&config));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("mail.export");
    let file = file.to_str().unwrap();
    on(&old, "hold-all --reason move").ok();
    on(&new, "hold-all --reason move").ok();
    let mut client = old.hello();
    let mut names: Vec<String> = (0..20).map(|number| format!("r{number:02}@x.example")).collect();
    names.iter().for_each(|name| drop(queued(&mut client, "a@one.example", name)));
    let large = "y".repeat(70) + "\r\n";
    client.envelope("a@one.example", "large@x.example");
    client.expect("DATA", "354");
    client.send(format!("Subject: large@x.example\r\n\r\n{}.\r\n", large.repeat(30_000)));
    client.expect_reply("250");
    names.insert(0, "large@x.example".into());
    drop(client);
    let beside = on(&old, "spool verify --json").json();
    assert_eq!((&beside["messages"], &beside["damage"]), (&21.into(), &Value::Array(Vec::new())));
    on(&old, &format!("spool export --to {file}")).fails(75, "stop the relay first");
    assert!(old.stop().success() && new.stop().success());
    assert!(!old_folder.path().join("state/control.sock").exists());
    let run = |folder: &TempDir, line: &str| {
        wavegate(folder.path(), &line.split(' ').collect::<Vec<_>>())
    };
    let said = run(&old_folder, &format!("spool export --to {file} --remove")).ok();
    assert!(said.contains("21 messages, removed from the spool"), "{said}");
    assert!(run(&old_folder, "spool verify").ok().contains(": 0 messages, good"));
    run(&old_folder, &format!("spool export --to {file}")).fails(64, "is there already");
    damaged_exports_are_refused(Path::new(file), &new_folder);
    let said = run(&new_folder, &format!("spool import {file}")).ok();
    assert!(said.contains("21 messages added, 0 known before"), "{said}");
    let said = run(&new_folder, &format!("spool import {file}")).ok();
    assert!(said.contains("0 messages added, 21 known before"), "{said}");
    assert!(run(&new_folder, "spool verify").ok().contains(": 21 messages, good"));
    let config = config.relay(&format!("state_dir = {:?}", new_folder.path().join("state")));
    let relay = Relay::start(&config);
    on(&relay, "release-all --reason here").ok();
    assert!(sink.wait_messages(21, PATIENCE));
    until("all have gone", || (waiting(&relay) == 0).then_some(()));
    assert_eq!(subjects(&sink), names);
    assert_eq!(sink.counts().bad_contents, 0);
    // Delivered since, and still known: nothing comes twice.
    assert!(relay.stop().success());
    let said = run(&new_folder, &format!("spool import {file}")).ok();
    assert!(said.contains("0 messages added, 21 known before"), "{said}");
}

/// A relay whose configuration and state outlive it.
fn host(config: &Config) -> (Relay, TempDir) {
    let folder = TempDir::new().unwrap();
    let state = format!("state_dir = {:?}", folder.path().join("state"));
    let config = config.clone().relay(&state);
    fs::write(folder.path().join("relay.toml"), config.to_string()).unwrap();
    (Relay::start(&config), folder)
}

/// Cut off or flipped anywhere: said, and nothing is imported.
fn damaged_exports_are_refused(file: &Path, folder: &TempDir) {
    let good = fs::read(file).unwrap();
    let bad = folder.path().join("bad.export");
    let import = || wavegate(folder.path(), &["spool", "import", bad.to_str().unwrap()]);
    for at in [120, 200, 400, good.len() / 2, good.len() - 45, good.len() - 1] {
        fs::write(&bad, &good[..at]).unwrap();
        import().fails(65, "damaged or cut off");
        let mut flipped = good.clone();
        flipped[at] ^= 4;
        fs::write(&bad, &flipped).unwrap();
        import().fails(65, "bad.export");
    }
    fs::write(&bad, [&good[..], b"x"].concat()).unwrap();
    import().fails(65, "damaged or cut off");
    fs::write(&bad, b"From: a\n\nb").unwrap();
    import().fails(65, "is not an export");
    let newer = String::from_utf8_lossy(&good[..60]).replace("\"format\":1", "\"format\":2");
    fs::write(&bad, [newer.as_bytes(), &good[60..]].concat()).unwrap();
    import().fails(65, "use the newer program");
    let said = wavegate(folder.path(), &["spool", "verify"]).ok();
    assert!(said.contains(": 0 messages, good"), "{said}");
}

#[test]
fn damage_in_a_spool_is_told_and_is_exit_code_1() {
    let sink = recording();
    let (relay, folder) = host(&by_spool(&sink));
    on(&relay, "hold-all --reason look").ok();
    let id = queued(&mut relay.hello(), "a@one.example", "b@x.example");
    assert!(relay.stop().success());
    let spool = folder.path().join("state/spool");
    let names = fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path());
    let segment =
        names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("seg"));
    let segment = segment.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(5).position(|five| five == b"hello").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let said = wavegate(folder.path(), &["spool", "verify"]).fails(1, "1 damaged");
    assert!(said.contains("damaged message"), "{said}");
    let to = folder.path().join("out.export");
    let said = wavegate(folder.path(), &["spool", "export", "--to", to.to_str().unwrap()]);
    said.fails(1, &format!("not exported, stays in the spool: {id}"));
}

#[test]
fn where_no_relay_answers_that_is_said() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("none.sock");
    let run = |arguments: &[&str]| {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        Said { code: output.status.code().unwrap(), out: String::new(), err }
    };
    run(&["queue", "list", "--socket", missing.to_str().unwrap()]).fails(69, "is it running");
    // A socket that nobody serves any more.
    let dead = folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let socket = dead.to_str().unwrap();
    run(&["hold-all", "--reason", "x", "--socket", socket]).fails(69, "no relay answers");
    fs::write(folder.path().join("relay.toml"), "[relay]\n").unwrap();
    wavegate(folder.path(), &["queue", "list"]).fails(78, "the configuration");
    run(&["queue", "list"]).fails(64, "--socket");
    let config = by_spool(&recording()).to_string();
    fs::write(folder.path().join("relay.toml"), config).unwrap();
    wavegate(folder.path(), &["spool", "verify"]).fails(66, "is not there");
}

#[test]
fn the_socket_is_for_the_owner_and_is_bounded() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::{fs::PermissionsExt as _, net::UnixStream};
    let sink = recording();
    let relay = Relay::start(&by_spool(&sink));
    let socket = relay.folder().join("state/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |request: String| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may be turned away before all is said.
        let _cut = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        let _reset = stream.read_to_string(&mut answer);
        answer
    };
    let post = |path: &str, body: &str| {
        let length = body.len();
        ask(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"))
    };
    for (body, words) in [
        ("{", "400"),
        ("{\"reason\":\"x\"}", "`all` has to be true"),
        ("{\"reason\":\"\",\"all\":true}", "`reason` is empty"),
        ("{\"reason\":\"x\",\"al\":true}", "unknown field"),
        ("{\"reason\":\"x\",\"selection\":{\"ids\":[\"1\"]}}", "not the id"),
        ("{\"reason\":\"x\",\"selection\":{\"states\":[\"asleep\"]}}", "unknown variant"),
    ] {
        let answer = post("/v1/queue/remove", body);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(words), "{body}: {answer}");
    }
    let large = format!("{{\"reason\":\"{}\"}}", "x".repeat(1 << 20));
    assert!(post("/v1/queue/remove", &large).starts_with("HTTP/1.1 413"));
    assert!(post("/v1/queue/eat", "{}").starts_with("HTTP/1.1 404"));
    let get = |path: &str| ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(get("/v1/other").starts_with("HTTP/1.1 404"));
    assert!(get("/v1/queue?limit=10001").starts_with("HTTP/1.1 400"));
    assert!(get("/v1/queue?colour=red").contains("no such criterion: colour"));
    let header = format!("GET /v1/queue HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert!(ask(header).starts_with("HTTP/1.1 431"));
    assert!(get("/v1/hold-all").contains("\"all_held\":null"));
    assert!(relay.stop().success());
}
