//! The load generator against the sink: every mode delivers exactly what was sent.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::time::Duration;

use wavegate_tests::load::{self, LoadOptions, Transfer};
use wavegate_tests::sink::{Extensions, Sink, SinkHandle, SinkOptions};

const MESSAGES: u64 = 203;
const SIZE: usize = 9_001;

fn sink(options: SinkOptions) -> SinkHandle {
    let extensions = Extensions { chunking: true, ..options.extensions };
    Sink::start(SinkOptions { extensions, verify: true, record: true, ..options }).unwrap()
}

fn load(sink: &SinkHandle) -> LoadOptions {
    LoadOptions {
        sessions: 7,
        body_size: SIZE,
        time_limit: Duration::from_secs(30),
        ..LoadOptions::new(sink.addr(), MESSAGES)
    }
}

fn faulty(rules: &[&str]) -> SinkHandle {
    let faults = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    sink(SinkOptions { faults, ..SinkOptions::default() })
}

#[test]
fn every_mode_delivers_exactly_what_was_sent() {
    let plain = &load::message::build(SIZE, "mkt.acme.example").plain;
    for pipelining in [false, true] {
        for transfer in [Transfer::Data, Transfer::Bdat] {
            for per_session in [None, Some(1), Some(10)] {
                let sink =
                    sink(SinkOptions { keep_content: true, threads: 2, ..SinkOptions::default() });
                let options = LoadOptions { pipelining, transfer, per_session, ..load(&sink) };
                let report = load::run(&options).unwrap();
                let mode = format!("pipelining {pipelining}, {transfer:?}, {per_session:?}");
                assert!(report.is_clean(), "{mode}: {report}");
                assert_eq!(report.accepted, MESSAGES, "{mode}");
                let messages = sink.messages();
                let counts = sink.stop();
                assert_eq!((counts.messages, counts.recipients), (MESSAGES, MESSAGES), "{mode}");
                assert_eq!(counts.connections, report.sessions, "{mode}");
                if per_session == Some(1) {
                    assert_eq!(counts.connections, MESSAGES);
                }
                let chunked = if transfer == Transfer::Bdat { MESSAGES } else { 0 };
                assert_eq!(counts.chunked, chunked, "{mode}");
                assert_eq!(
                    (counts.violations, counts.bad_contents, counts.open),
                    (0, 0, 0),
                    "{mode}"
                );
                assert_eq!(messages.len() as u64, MESSAGES);
                assert!(messages.iter().all(|m| m.content.as_ref() == Some(plain)), "{mode}");
            }
        }
    }
}

#[test]
fn the_mixed_load_uses_all_modes_and_sizes() {
    let sink = sink(SinkOptions::default());
    let report = load::run(&LoadOptions { mixed: true, ..load(&sink) }).unwrap();
    assert!(report.is_clean(), "{report}");
    let mut sizes: Vec<_> = sink.messages().iter().map(|message| message.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!(sizes, [SIZE as u64 / 4, SIZE as u64, 4 * SIZE as u64]);
    let counts = sink.counts();
    assert!(counts.chunked > 0 && counts.chunked < MESSAGES, "{counts:?}");
    assert_eq!((counts.messages, counts.violations), (MESSAGES, 0));
}

#[test]
fn refusals_are_counted_by_stage_and_code_and_the_session_goes_on() {
    for (pipelining, transfer) in [
        (false, Transfer::Data),
        (true, Transfer::Data),
        (false, Transfer::Bdat),
        (true, Transfer::Bdat),
    ] {
        let sink = faulty(&["mail:3=451", "rcpt:5=550", "data:7=452", "end:9=554"]);
        let options = LoadOptions { pipelining, transfer, sessions: 1, ..load(&sink) };
        let report = load::run(&options).unwrap();
        assert_eq!(
            (report.accepted, report.refused, report.lost),
            (MESSAGES - 4, 4, 0),
            "{report}"
        );
        let data = if transfer == Transfer::Bdat { "end 452" } else { "DATA 452" };
        for error in ["MAIL 451", "RCPT 550", "recipient 550", data, "end 554"] {
            assert_eq!(report.errors.get(error), Some(&1), "{error}: {report}");
        }
        assert_eq!((report.sessions, sink.counts().messages), (1, MESSAGES - 4));
    }
}

#[test]
fn lost_connections_cost_one_message_each() {
    let sink = faulty(&["end:4=close", "body:20=close", "mail:30=421"]);
    let report = load::run(&LoadOptions { sessions: 1, ..load(&sink) }).unwrap();
    assert_eq!((report.accepted, report.refused, report.lost), (MESSAGES - 3, 1, 2), "{report}");
    assert_eq!((report.sessions, sink.counts().messages), (4, MESSAGES - 3));
}

#[test]
fn a_silent_server_ends_at_the_time_limit() {
    let sink = faulty(&["end:1=silent"]);
    let options =
        LoadOptions { sessions: 1, time_limit: Duration::from_millis(200), ..load(&sink) };
    let report = load::run(&options).unwrap();
    assert_eq!((report.accepted, report.unfinished), (0, MESSAGES), "{report}");
}

#[test]
fn sessions_end_after_their_share_and_several_recipients_count() {
    let sink = sink(SinkOptions { messages_per_session: Some(20), ..SinkOptions::default() });
    let options =
        LoadOptions { per_session: Some(20), recipients: 3, pipelining: true, ..load(&sink) };
    let report = load::run(&options).unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(sink.wait_messages(MESSAGES, Duration::ZERO));
    assert_eq!(sink.counts().recipients, 3 * MESSAGES);
}

#[test]
fn what_is_not_offered_is_not_used_unseen() {
    let extensions = Extensions { pipelining: false, ..Extensions::default() };
    let sink = Sink::start(SinkOptions { extensions, ..SinkOptions::default() }).unwrap();
    let report = load::run(&LoadOptions { pipelining: true, ..load(&sink) }).unwrap();
    assert_eq!(report.errors.get("lost at EHLO: PIPELINING is not offered"), Some(&MESSAGES));
}

#[test]
fn records_are_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("messages.jsonl");
    let sink = sink(SinkOptions { record_file: Some(path.clone()), ..SinkOptions::default() });
    load::run(&load(&sink)).unwrap();
    sink.stop();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count() as u64, MESSAGES);
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["from"], "bounce@mkt.acme.example");
    assert_eq!(first["size"], SIZE as u64);
}
