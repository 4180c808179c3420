//! That it is bounded, that nobody waits for it, and that what is missing is told.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde_json::Value;

use super::*;
use crate::{plan::Timestamp, world::memory::SimulatedClock};

fn config(file: PathBuf, addresses: Addresses) -> EventLogConfig {
    EventLogConfig { file, max_size: 1 << 20, keep: 2, addresses }
}

fn start(config: &EventLogConfig, state: &Path) -> io::Result<EventLog> {
    let clock = Arc::new(SimulatedClock::new(Timestamp(1_768_888_800_000)));
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    EventLog::start(config, state, clock, &|| DRAWN.fetch_add(1, Relaxed))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn window(messages: u64) -> Event<'static> {
    Event::Released { instance: "acme-prod-1", messages }
}

#[test]
fn lines_are_whole_and_in_order_and_old_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log/events.jsonl");
    let log = start(&config(file.clone(), Addresses::Full), folder.path()).unwrap();
    const LINES: u64 = 60_000;
    (0..LINES).for_each(|number| log.observe(&window(number)));
    log.close();
    assert_eq!(log.counts(), (LINES, 0));
    let last = lines(&file);
    assert_eq!(last.last().unwrap()["messages"], LINES - 1);
    assert_eq!(last[0]["event"], "released");
    assert!(last[0]["time"].as_str().unwrap().starts_with("2026-01-20T06:00:"));
    let mut numbers: Vec<u64> = Vec::new();
    for name in ["events.jsonl.2", "events.jsonl.1", "events.jsonl"] {
        let path = file.with_file_name(name);
        assert!(path.metadata().unwrap().len() <= 1 << 20, "{name}");
        numbers.extend(lines(&path).iter().map(|line| line["messages"].as_u64().unwrap()));
    }
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(fs::read_dir(folder.path().join("log")).unwrap().count(), 3);
    // Whoever comes after the end is counted, and does not wait.
    log.observe(&window(0));
    assert_eq!(log.counts(), (LINES, 1));
}

#[test]
fn what_a_crash_left_of_a_line_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.jsonl");
    fs::write(&file, "{\"event\":\"received\"}\n{\"event\":\"rec").unwrap();
    let log = start(&config(file.clone(), Addresses::Full), folder.path()).unwrap();
    log.observe(&window(1));
    log.close();
    let events: Vec<_> = lines(&file).into_iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["received", "released"]);
}

#[test]
fn a_queue_that_is_full_costs_lines_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.jsonl");
    let log = start(&config(file.clone(), Addresses::Full), folder.path()).unwrap();
    // As if the thread were far behind.
    assert!(log.backlog.take(WAITING, WAITING));
    (0..3).for_each(|number| log.observe(&window(number)));
    log.backlog.write(WAITING, 0);
    log.observe(&window(3));
    log.close();
    assert_eq!(log.counts(), (2, 3));
    let found = lines(&file);
    assert_eq!((found[0]["event"].as_str(), found[0]["count"].as_u64()), (Some("lost"), Some(3)));
    assert_eq!(found[1]["messages"], 3);
    assert_eq!(log.waiting(), 0);
}

#[test]
fn a_disk_that_is_full_costs_lines_only() {
    let folder = tempfile::tempdir().unwrap();
    let full = config("/dev/full".into(), Addresses::Full);
    let log = start(&full, folder.path()).unwrap();
    (0..5).for_each(|number| log.observe(&window(number)));
    log.close();
    assert_eq!(log.counts(), (0, 5));
}

#[test]
fn a_file_that_cannot_be_made_is_an_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    assert!(start(&config(folder.path().to_owned(), Addresses::Full), folder.path()).is_err());
    fs::write(folder.path().join(KEY), "short").unwrap();
    let hashed = config(folder.path().join("events.jsonl"), Addresses::Hashed);
    let error = start(&hashed, folder.path()).err().unwrap();
    assert!(error.to_string().contains("not a key of 32 bytes"), "{error}");
}

#[test]
fn addresses_are_told_hashed_or_left_out() {
    use wavegate_smtp::{Address, Rcpt};
    let rcpt =
        |text: &str| Rcpt { recipient: Address::parse(text).unwrap(), notify: None, orcpt: None };
    let to = [rcpt("Ada@Example.ORG"), rcpt("Ada@example.org"), rcpt("ada@example.org")];
    let said = |folder: &Path, addresses| {
        let file = folder.join("events.jsonl");
        let _gone_already = fs::remove_file(&file);
        let log = start(&config(file.clone(), addresses), folder).unwrap();
        let event = Event::Received {
            instance: None,
            id: crate::message::MessageId::new(Timestamp(1), 2),
            recipients: 3,
            size: 10,
            client: "192.0.2.1".parse().unwrap(),
            destination: None,
            listener: "in",
            user: None,
            via: None,
            sender: "news@acme.example",
            to: &to,
        };
        log.observe(&event);
        log.close();
        lines(&file).remove(0)
    };
    let folder = tempfile::tempdir().unwrap();
    let full = said(folder.path(), Addresses::Full);
    assert_eq!(full["sender"], "news@acme.example");
    assert_eq!(full["to"][0], "Ada@Example.ORG");
    assert_eq!(full["recipients"], 3);
    let none = said(folder.path(), Addresses::None);
    assert_eq!((none.get("sender"), none.get("to")), (None, None));
    assert_eq!(none["recipients"], 3);
    let hashed = said(folder.path(), Addresses::Hashed);
    let of = |number: usize| hashed["to"][number].as_str().unwrap().to_owned();
    assert!(of(0).ends_with("@example.org") && of(0).len() == 16 + "@example.org".len());
    assert_eq!(of(0), of(1));
    assert_ne!(of(1), of(2), "local parts are what they are");
    assert!(!hashed.to_string().contains("Ada") && !hashed.to_string().contains("news"));
    // The same after a restart, another on another relay.
    assert_eq!(said(folder.path(), Addresses::Hashed)["to"], hashed["to"]);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(said(other.path(), Addresses::Hashed)["to"], hashed["to"]);
}
