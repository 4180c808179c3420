//! Notices that a real relay carries: what arrives, who is told when something breaks, and that
//! nobody is told twice.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use mail_parser::{MessageParser, MimeHeaders as _};
use wavegate_tests::harness::{
    Closed, Config, Peer, Relay, Script, binary, faults_of, now_ms, recording, rfc3339, until,
};
use wavegate_tests::sink::{Message, SinkHandle};

const DAY: u64 = 24 * 3_600_000;
/// Its lines begin with dots, however they are wrapped.
const DOTS: &str = "....................................................................................\
                    ....................................................................................";

/// A plan of three customers, one with two instances, whose wave opens in so many days.
fn plan(days: u64) -> String {
    let opens = now_ms() + days * DAY;
    let mut plan = format!(
        "[program]\nname = \"{DOTS}\"\nprovider = \"Exämple Mail\"\ncontact = \
         \"https://care.example.net/\"\nsender = \"migration@example.net\"\nreply_to = \
         \"care@example.net\"\n[[environment]]\nname = \"production\"\nnotice = \"30d\"\n"
    );
    for (name, customer, contact, language) in [
        ("acme-1", "acme", "ada@acme.example", "fr"),
        ("acme-2", "acme", "ada@acme.example", "fr"),
        ("globex-1", "globex", "bo@globex.example", "de"),
        ("initech-1", "initech", "cy@initech.example", "sv"),
    ] {
        plan += &format!(
            "[[instance]]\nname = \"{name}\"\ncustomer = \"{customer}\"\nproduct = \"classic\"\n\
             environment = \"production\"\ncontacts = [{{ email = \"{contact}\", language = \
             \"{language}\" }}]\nmatch = {{ headers = {{ \"X-Instance\" = \"{name}\" }} }}\n"
        );
    }
    let (opens, closes) = (rfc3339(opens), rfc3339(opens + 2_700_000));
    plan + &format!(
        "[[wave]]\nid = \"w\"\nenvironment = \"production\"\ninstances = [\"acme-1\", \"acme-2\", \
         \"globex-1\", \"initech-1\"]\nopens = \"{opens}\"\ncloses = \"{closes}\"\n"
    )
}

/// A folder with an announced plan; no relay.
fn site(days: u64) -> tempfile::TempDir {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("waves.toml"), plan(days)).unwrap();
    let late = if days < 30 { " --late --reason agreed" } else { "" };
    let (code, said) = run(site.path(), &format!("announce w --plan waves.toml{late}"));
    assert_eq!(code, 0, "{said}");
    site
}

fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(binary());
    command.arg("plan").args(arguments.split(' ')).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `wavegate plan`: the exit code and all that it said.
fn run(folder: &Path, arguments: &str) -> (i32, String) {
    said(&command(folder, arguments).output().unwrap())
}

fn said(output: &Output) -> (i32, String) {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code().unwrap(), said)
}

/// Sends to a relay at this address.
fn send(folder: &Path, relay: SocketAddr, more: &str) -> (i32, String) {
    run(folder, &format!("notice w --plan waves.toml --send --relay {relay}{more}"))
}

fn record(folder: &Path) -> String {
    fs::read_to_string(folder.join("waves.notices")).unwrap()
}

/// Who got something, in the order of arrival.
fn told(sink: &SinkHandle) -> Vec<String> {
    sink.messages().iter().map(|message| message.to[0].address.clone()).collect()
}

struct Arrived {
    message_id: String,
    calendar: String,
}

/// Reads a notice as its receiver does.
fn read(message: &Message, language: &str, instances: &[&str]) -> Arrived {
    assert!(message.proper);
    assert_eq!((message.from.as_str(), message.to.len()), ("migration@example.net", 1));
    let content = message.content.as_ref().unwrap();
    let mail = MessageParser::default().parse(content).unwrap();
    let from = mail.from().unwrap().first().unwrap();
    assert_eq!(from.address(), Some("migration@example.net"));
    assert_eq!(from.name(), Some("Exämple Mail"));
    let to = mail.to().unwrap().first().unwrap();
    assert_eq!(to.address(), Some(message.to[0].address.as_str()));
    assert_eq!(mail.reply_to().unwrap().first().unwrap().address(), Some("care@example.net"));
    assert!(!mail.subject().unwrap().is_empty());
    assert!(mail.date().unwrap().to_timestamp() > 0);
    assert_eq!(mail.header("Content-Language").unwrap().as_text(), Some(language));
    for part in [mail.body_text(0).unwrap(), mail.body_html(0).unwrap()] {
        instances.iter().for_each(|name| assert!(part.contains(name), "{name}: {part}"));
        assert!(part.contains("https://care.example.net/"), "{part}");
    }
    assert!(mail.body_html(0).unwrap().contains(DOTS), "no dot is lost or doubled");
    let calendar = mail.attachments().next().unwrap();
    assert_eq!(calendar.content_type().unwrap().subtype(), Some("calendar"));
    let calendar = calendar.text_contents().unwrap().to_owned();
    Arrived { message_id: mail.message_id().unwrap().to_owned(), calendar }
}

fn line(calendar: &str, begins: &str) -> String {
    calendar.lines().find(|line| line.starts_with(begins)).unwrap().to_owned()
}

#[test]
fn each_contact_gets_one_mail_and_one_more_only_when_asked() {
    let upstream = recording();
    // A listener on every address, as an installed relay has it.
    let port = Closed::new().free().port();
    let config = Config::to(&[upstream.addr()]).relay("plan = \"waves.toml\"").section(
        "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"builtin:freeze\"",
    );
    let config = config.to_string().replace("127.0.0.1:0", &format!("0.0.0.0:{port}"));
    let plan = plan(40);
    let relay = Relay::start_with(&config, &[("waves.toml", plan.as_bytes())]);
    let folder = relay.folder();
    let plan = |arguments: &str| run(folder, &format!("{arguments} --config relay.toml"));
    assert_eq!(plan("notice w --send").0, 78, "not announced");
    assert_eq!(plan("announce w").0, 0);
    let (code, text) = plan("notice w --send");
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("wave w: 3 notices sent\n"), "{text}");
    assert_eq!(told(&upstream), ["ada@acme.example", "bo@globex.example", "cy@initech.example"]);
    let first = upstream.messages();
    let ada = read(&first[0], "fr", &["acme-1", "acme-2"]);
    read(&first[1], "de", &["globex-1"]);
    read(&first[2], "sv", &["initech-1"]);
    assert_eq!(line(&ada.calendar, "SEQUENCE:"), "SEQUENCE:0");

    let (code, text) = plan("notice w --send");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("ada@acme.example: has it since 20"), "{text}");
    assert!(text.ends_with("wave w: 0 notices sent, 3 sent before\n"), "{text}");
    assert_eq!(upstream.counts().messages, 3);

    let (code, text) = plan("notice w --send --again --contact ada@acme.example");
    assert_eq!(code, 0, "{text}");
    let again = read(&upstream.messages()[3], "fr", &["acme-1", "acme-2"]);
    assert_eq!(upstream.counts().messages, 4);
    assert_eq!(line(&again.calendar, "SEQUENCE:"), "SEQUENCE:1");
    assert_eq!(line(&again.calendar, "UID:"), line(&ada.calendar, "UID:"));
    assert_ne!(again.message_id, ada.message_id);
    // What is shown is what was sent.
    let (_, shown) = plan("notice w --format eml --contact ada@acme.example");
    assert!(shown.contains(&again.message_id), "{shown}");
    assert_eq!(upstream.counts().violations + upstream.counts().bad_contents, 0);
}

#[test]
fn the_queue_id_of_what_the_relay_has_spooled_is_kept() {
    let upstream = recording();
    let relay = Relay::start(&Config::to(&[upstream.addr()]).upstream("handoff = \"queued\""));
    let site = site(40);
    let (code, text) = send(site.path(), relay.addr(), "");
    assert_eq!(code, 0, "{text}");
    until("all arrive", || (upstream.counts().messages == 3).then_some(()));
    let record = record(site.path());
    let sent: Vec<serde_json::Value> = record
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|entry: &serde_json::Value| entry["state"] == "sent")
        .collect();
    assert_eq!(sent.len(), 3, "{record}");
    for entry in sent {
        let id = entry["queue_id"].as_str().unwrap();
        assert!(relay.log().contains(id), "{id}");
        assert_eq!(entry["wave"], "w");
        assert_eq!(entry["sequence"], 0);
    }
}

#[test]
fn a_refusal_of_one_stops_no_other() {
    for (fault, code, words) in [
        ("rcpt:2=550 5.1.1 unknown", 1, "bo@globex.example: refused: 550 5.1.1 unknown"),
        ("rcpt:2=451 4.2.1 later", 75, "bo@globex.example: not now: 451 4.2.1 later"),
        ("mail:2=552 5.3.4 no", 1, "bo@globex.example: refused: 552 5.3.4 no"),
        ("end:2=452 4.3.1 full", 75, "bo@globex.example: not now: 452 4.3.1 full"),
    ] {
        // The sink itself as the relay: what it says is heard at each step.
        let sink = recording();
        sink.set_faults(faults_of(&[fault]));
        let site = site(40);
        let (ended, text) = send(site.path(), sink.addr(), "");
        assert_eq!(ended, code, "{text}");
        assert!(text.contains(words), "{text}");
        assert_eq!(told(&sink), ["ada@acme.example", "cy@initech.example"]);
        let (ended, text) = send(site.path(), sink.addr(), "");
        assert_eq!(ended, 0, "{text}");
        assert!(text.ends_with("wave w: 1 notice sent, 2 sent before\n"), "{text}");
        assert_eq!(told(&sink), ["ada@acme.example", "cy@initech.example", "bo@globex.example"]);
        assert_eq!(sink.counts().violations + sink.counts().bad_contents, 0);
    }
}

#[test]
fn a_late_notice_is_refused_before_anything_is_sent() {
    let sink = recording();
    let site = site(20);
    let (code, text) = send(site.path(), sink.addr(), "");
    assert_eq!(code, 78);
    assert!(text.contains("asks for 30d of notice; nothing was sent"), "{text}");
    assert_eq!(sink.counts().connections, 0);
    let (code, text) = run(
        site.path(),
        &format!(
            "notice w --plan waves.toml --send --relay {} --late --reason agreed",
            sink.addr()
        ),
    );
    assert_eq!(code, 0, "{text}");
    assert_eq!(sink.counts().messages, 3);
    assert_eq!(record(site.path()).matches("\"late\":true,\"reason\":\"agreed\"").count(), 3);
    // Those who were told are not told late again.
    assert_eq!(send(site.path(), sink.addr(), " --again").0, 0);
    assert_eq!(sink.counts().messages, 6);
}

/// Starts sending to a relay that takes the first mail and never answers the end of the second, and
/// kills it there.
fn killed_at_the_second(folder: &Path, more: &str) -> Vec<u8> {
    let (seen, second) = std::sync::mpsc::channel();
    let script = Script::start(move |_, peer: &mut Peer| {
        let mut contents = 0;
        let seen = seen.clone();
        peer.accept_all(&[], |content| {
            contents += 1;
            if contents == 2 {
                seen.send(content.to_vec()).unwrap();
                return Vec::new();
            }
            b"250 2.0.0 wavegate: queued as FIRST\r\n".to_vec()
        });
    });
    let mut child: Child = command(
        folder,
        &format!("notice w --plan waves.toml --send --relay {}{more}", script.addr()),
    )
    .spawn()
    .unwrap();
    let content = second.recv().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    content
}

#[test]
fn after_a_break_in_the_middle_nobody_is_told_twice_and_none_is_lost_from_sight() {
    let sink = recording();
    let site = site(40);
    let content = killed_at_the_second(site.path(), "");
    let lines: Vec<String> = record(site.path()).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].contains("\"queue_id\":\"FIRST\""), "{lines:?}");
    assert!(lines[2].contains("\"state\":\"begun\"") && lines[2].contains("bo@globex.example"));

    let (code, text) = send(site.path(), sink.addr(), "");
    assert_eq!(code, 1, "{text}");
    assert_eq!(told(&sink), ["cy@initech.example"]);
    assert!(text.contains("ada@acme.example: has it since "), "{text}");
    assert!(text.contains("bo@globex.example: in doubt since "), "{text}");
    assert!(text.ends_with("wave w: 1 notice sent, 1 sent before, 1 in doubt\n"), "{text}");
    // It can be looked for by what is said of it.
    let mail = MessageParser::default().parse(&content[..]).unwrap();
    assert!(text.contains(&format!("<{}>", mail.message_id().unwrap())), "{text}");

    let (code, text) = send(site.path(), sink.addr(), " --again --contact bo@globex.example");
    assert_eq!(code, 0, "{text}");
    assert_eq!(told(&sink), ["cy@initech.example", "bo@globex.example"]);
    assert_eq!(send(site.path(), sink.addr(), "").0, 0);
    assert_eq!(sink.counts().messages, 2);
}

#[test]
fn a_second_round_that_breaks_is_ended_and_not_begun_anew() {
    let sink = recording();
    let site = site(40);
    assert_eq!(send(site.path(), sink.addr(), "").0, 0);
    killed_at_the_second(site.path(), " --again");
    let (code, text) = send(site.path(), sink.addr(), " --again");
    assert_eq!(code, 1, "the second is in doubt: {text}");
    let told = told(&sink);
    assert_eq!(told[3..], ["cy@initech.example"]);
    let last = read(&sink.messages()[3], "sv", &["initech-1"]);
    assert_eq!(line(&last.calendar, "SEQUENCE:"), "SEQUENCE:1");
}

#[test]
fn a_relay_that_cannot_be_had_is_told_and_tried_again_from_there() {
    let site = site(40);
    let closed = Closed::new();
    let (code, text) = send(site.path(), closed.addr(), "");
    assert_eq!(code, 69, "{text}");
    assert!(text.contains("0 notices sent, 3 not tried"), "{text}");
    assert!(text.contains(&closed.addr().to_string()), "{text}");
    let sink = recording();
    sink.set_faults(faults_of(&["connect:*=554 5.7.1 not you"]));
    let (code, text) = send(site.path(), sink.addr(), "");
    assert_eq!((code, text.contains("it said 554 5.7.1 not you")), (69, true), "{text}");
    // Broken before the end: tried on another connection, and nothing is in doubt.
    sink.set_faults(faults_of(&["rcpt:2=close", "data:3=421 4.3.2 closing"]));
    let (code, text) = send(site.path(), sink.addr(), "");
    assert_eq!(code, 0, "{text}");
    assert_eq!(told(&sink), ["ada@acme.example", "bo@globex.example", "cy@initech.example"]);
    // Broken after the end: in doubt.
    sink.set_faults(faults_of(&["end:1=close"]));
    let (code, text) = send(site.path(), sink.addr(), " --again");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("ada@acme.example: in doubt: no reply to its end"), "{text}");
    assert_eq!(sink.counts().messages, 5);
}
