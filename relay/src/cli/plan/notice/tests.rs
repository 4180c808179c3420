//! Who is told what, on standard output and in files; and what was sent, as the file has it. Sending
//! itself is tested with a real relay.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use serde_json::Value;

use super::{
    record::{Record, RecordError, State, record_of},
    *,
};
use crate::{cli::plan::tests::run_in, plan::Announcement};

const PROGRAM: &str = "[program]\nname = \"Upgrade\"\nprovider = \"Example Mail\"\n\
    contact = \"https://care.example.net/\"\nsender = \"migration@example.net\"\n";

fn instance(name: &str, customer: &str, contacts: &str) -> String {
    format!(
        "[[instance]]\nname = \"{name}\"\ncustomer = \"{customer}\"\nproduct = \"classic\"\n\
         environment = \"production\"\ncontacts = [{contacts}]\n\
         match = {{ headers = {{ \"X-Instance\" = \"{name}\" }} }}\n"
    )
}

fn plan() -> String {
    let ada = "{ name = \"Ada\", email = \"ada@acme.example\", language = \"fr\", \
               time_zone = \"Europe/Paris\" }";
    let same = "{ email = \"ADA@acme.example\", language = \"fr\", time_zone = \"Europe/Paris\" }";
    let instances = [
        instance("i1", "acme", ada),
        instance("i2", "acme", &format!("{same}, {{ email = \"bo@acme.example\" }}")),
        instance("i3", "globex", ""),
    ];
    let bounds = "[[environment]]\nname = \"production\"\nnotice = \"30d\"\n";
    format!(
        "{PROGRAM}{bounds}{}[[wave]]\nid = \"w\"\nenvironment = \"production\"\n\
         instances = [\"i1\", \"i2\", \"i3\"]\nopens = \"2126-03-01T06:00:00Z\"\n\
         closes = \"2126-03-01T06:45:00Z\"\n",
        instances.concat()
    )
}

fn site(plan: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("waves.toml"), plan).unwrap();
    dir
}

fn run(plan: &str, arguments: &str) -> (u8, String) {
    run_in(site(plan).path(), format!("notice w {arguments}").trim_end())
}

#[test]
fn an_address_has_one_notice_with_all_its_instances() {
    let (code, text) = run(&plan(), "--at 2126-01-01T00:00:00Z");
    assert_eq!(code, 0, "{text}");
    let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("==> ")).collect();
    assert_eq!(
        heads,
        ["==> ada@acme.example (fr): i1, i2 <==", "==> bo@acme.example (en): i2 <=="]
    );
    let (code, text) = run(&plan(), "--format json --at 2126-01-01T00:00:00Z --lang de-AT");
    assert_eq!(code, 0, "{text}");
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!((&all[0]["language"], &all[1]["language"]), (&"de".into(), &"de".into()));
    assert_eq!(all[0]["instances"].as_array().unwrap().len(), 2);
    assert_eq!(all[0]["contact"]["name"], "Ada");
    assert_eq!(all[0]["opens_local"], "2126-03-01T07:00:00+01:00");
    assert_eq!(all[0]["window_seconds"], 2700);
    assert_eq!(all[0]["notice_seconds"], 30 * 86_400);
    assert_eq!(all[0]["announced"], Value::Null);
}

#[test]
fn one_page_mail_or_entry_can_be_piped() {
    for (format, begins) in
        [("html", "<!DOCTYPE html>"), ("eml", "From: "), ("ics", "BEGIN:VCALENDAR\r\n")]
    {
        let (code, text) = run(&plan(), &format!("--format {format} --contact BO@acme.example"));
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with(begins), "{format}: {text}");
        let (_, both) = run(&plan(), &format!("--format {format}"));
        assert!(both.starts_with("==> ada@acme.example (fr): i1, i2 <==\n"), "{both}");
        assert!(both.contains(&format!("\n==> bo@acme.example (en): i2 <==\n{begins}")), "{both}");
    }
}

#[test]
fn what_the_plan_lacks_is_named() {
    let without = |line: &str| {
        let plan = plan();
        assert!(plan.contains(line), "{line}");
        plan.replace(line, "")
    };
    let sender = without("sender = \"migration@example.net\"\n");
    assert_eq!(run(&sender, "").0, 0, "no mail is made");
    let (code, text) = run(&sender, "--format eml");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("DIR/waves.toml:1:1: program.sender: missing; "), "{text}");
    let care = without("contact = \"https://care.example.net/\"\n");
    let (code, text) = run(&care, "");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("waves.toml:1:1: program.contact: missing; "), "{text}");
    let (code, text) = run(&without(PROGRAM), "");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("waves.toml: program: missing; "), "{text}");
    // What a plan may have and no mail can.
    let quoted = plan().replace("\"bo@acme.example\"", "'\"b o\"@acme.example'");
    let (code, text) = run(&quoted, "");
    assert_eq!(code, exit::CONFIG);
    let place = "instance[1].contacts[1].email: ";
    let line = 1 + quoted.lines().position(|line| line.contains("b o")).unwrap();
    assert!(text.contains(place) && text.contains(&format!("waves.toml:{line}:")), "{text}");
    let nobody = plan().replace("ada@", "\u{0}");
    assert_eq!(run(&nobody, "").0, exit::CONFIG, "not even a plan");
}

#[test]
fn nobody_to_tell() {
    let contacts = |text: String| {
        let lines = text.lines().filter(|line| !line.starts_with("contacts"));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let (code, text) = run(&contacts(plan()), "");
    assert_eq!((code, text.as_str()), (1, "wave w has no contact at all: nobody is told of it"));
    let (code, text) = run(&plan(), "--contact eve@acme.example");
    assert_eq!(code, exit::USAGE);
    assert!(text.ends_with("there are: ada@acme.example, bo@acme.example"), "{text}");
    assert_eq!(run_in(site(&plan()).path(), "notice v").0, exit::USAGE);
}

#[test]
fn entries_of_one_address_that_differ_are_told() {
    let plan = plan().replace("\"ADA@acme.example\", language = \"fr\"", "\"ada@acme.example\"");
    let dir = site(&plan);
    let source = crate::config::PlanSource::Plan(dir.path().join("waves.toml"));
    let when = crate::config::When { now: now(None), checks: Checks::Relay };
    let file = crate::config::read_plan(&source, when).unwrap();
    let (all, warnings) = letters::addressees(&file.plan, &file.plan.waves[0]);
    assert_eq!(all[0].contact.language, "fr");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("has language \"en\"") && warnings[0].contains("\"i2\""));
    assert!(warnings[1].contains("\"i3\" has no contacts"), "{warnings:?}");
}

#[test]
fn files_have_names_of_their_own() {
    let dir = site(&plan());
    let (code, text) = run_in(dir.path(), "notice w --format ics --out /dev/null/x");
    assert_eq!(code, exit::IO, "{text}");
    let out = dir.path().join("deep/out").display().to_string();
    let (code, text) = run_in(dir.path(), &format!("notice w --format json --out {out}"));
    assert_eq!(code, 0, "{text}");
    let mut names: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["w~acme~ada@acme.example.json", "w~acme~bo@acme.example.json"]);
    for name in names {
        let text = fs::read(dir.path().join("deep/out").join(name)).unwrap();
        assert!(serde_json::from_slice::<Value>(&text).unwrap().is_object());
    }
}

#[test]
fn parts_of_file_names_are_harmless_and_differ() {
    assert_eq!(part("prod-01"), "prod-01");
    assert_eq!(part(&"a".repeat(PART_MAX)), "a".repeat(PART_MAX));
    let mut seen = std::collections::HashSet::new();
    let long = ["b".repeat(PART_MAX + 1), "b".repeat(1000)];
    let bad = ["", ".", "..", "../../etc/passwd", "a/b", "a\\b", "a~b", "-rf", "a\0b", "a\nb", "é"];
    for text in bad.into_iter().chain(long.iter().map(String::as_str)) {
        let part = part(text);
        assert!(part.len() <= PART_MAX && !part.starts_with(['.', '-']), "{part}");
        assert!(part.bytes().all(|b| b.is_ascii_alphanumeric() || b"@._-+".contains(&b)), "{part}");
        assert!(seen.insert(part), "{text}");
    }
}

#[test]
fn only_what_was_announced_in_time_is_sent() {
    let dir = site(&plan());
    // Nobody listens there: what is refused is refused before.
    let send = "notice w --send --relay 127.0.0.1:1";
    let (code, text) = run_in(dir.path(), send);
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("`wavegate plan announce w` first"), "{text}");
    let soon = now(None).saturating_add_ms(29 * 86_400_000);
    let dir = site(
        &plan()
            .replace("2126-03-01T06:00:00Z", &soon.to_string())
            .replace("2126-03-01T06:45:00Z", &soon.saturating_add_ms(2_700_000).to_string()),
    );
    let (code, text) = run_in(dir.path(), "announce w --late --reason agreed");
    assert_eq!(code, 0, "{text}");
    let (code, text) = run_in(dir.path(), send);
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("asks for 30d of notice; nothing was sent"), "{text}");
    let (code, text) = run_in(dir.path(), &format!("{send} --late --reason agreed"));
    assert_eq!(code, exit::UNAVAILABLE, "{text}");
    assert!(text.contains("127.0.0.1:1: ") && text.contains("--relay"), "{text}");
    let (code, text) = run_in(dir.path(), "notice w --send");
    assert_eq!((code, text.contains("--relay HOST:PORT")), (exit::USAGE, true), "{text}");
    let lock = fs::read_to_string(record_of(&dir.path().join("waves.toml"))).unwrap();
    assert_eq!(lock, "", "nothing was begun");
}

fn announcement(at: u64) -> Announcement {
    Announcement {
        wave: "w".into(),
        environment: "production".into(),
        opens: Timestamp(1),
        closes: Timestamp(2),
        instances: vec!["i1".into()],
        at: Timestamp(at),
        by: "ada".into(),
        reason: None,
        late: false,
    }
}

#[test]
fn the_record_says_what_came_of_each_address() {
    let dir = site("");
    let plan = dir.path().join("waves.toml");
    let first = announcement(1000);
    let mut record = Record::open(&plan, &first).unwrap();
    assert!(matches!(Record::open(&plan, &first), Err(RecordError::Busy(_))));
    let entry = |record: &Record, sequence, state| {
        vec![record.entry(Timestamp(5000), "ada@acme.example", sequence, state)]
    };
    let last = |record: &Record| record.last("ada@acme.example").map(|last| last.state);
    assert_eq!((last(&record), record.sequence("ada@acme.example")), (None, 0));
    record.append(entry(&record, 0, State::Begun)).unwrap();
    record.append(entry(&record, 0, State::Sent)).unwrap();
    record.append(entry(&record, 1, State::Ordered)).unwrap();
    drop(record);
    let record = Record::read(&plan, Some(&first)).unwrap();
    assert_eq!((last(&record), record.sequence("ada@acme.example")), (Some(State::Ordered), 1));
    assert!(record.is_told("ada@acme.example") && !record.is_told("bo@acme.example"));
    assert_eq!((record.sequence("bo@acme.example"), record.next("ada@acme.example")), (0, 2));
    // A wave that is announced anew is told of anew, and replaces what was told.
    let record = Record::read(&plan, Some(&announcement(2000))).unwrap();
    assert_eq!((last(&record), record.sequence("ada@acme.example")), (None, 2));
    assert!(!record.is_told("ada@acme.example"));
    // What was torn off by a crash is cut off, and only by who sends.
    let path = record_of(&plan);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}{{\"at\":\"20")).unwrap();
    assert_eq!(last(&Record::read(&plan, Some(&first)).unwrap()), Some(State::Ordered));
    assert_ne!(fs::read_to_string(&path).unwrap(), whole);
    let mut record = Record::open(&plan, &first).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    record.append(entry(&record, 1, State::Begun)).unwrap();
    drop(record);
    assert_eq!(last(&Record::read(&plan, Some(&first)).unwrap()), Some(State::Begun));
    fs::write(&path, format!("{whole}?\n")).unwrap();
    let error = Record::open(&plan, &first).unwrap_err().to_string();
    assert!(error.contains("waves.notices:4: is not what was written"), "{error}");
    let odd = dir.path().join("waves.notices");
    assert!(matches!(Record::open(&odd, &first), Err(RecordError::Name(_))));
}
