//! When mail waits, who tries all the same, and how it ends.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::testing::{instance, transaction};
use wavegate_policy::{configured, freeze::Policy as _};

fn policy(more: &str) -> ErrorFreeze {
    let settings = format!(r#"{{"upstream":"cloud"{more}}}"#);
    configured::<ErrorFreeze>(&settings, &["legacy".to_owned(), "cloud".to_owned()]).unwrap()
}

fn state(attempts: u32, deferred: u32, refused: u32, broken: u32) -> UpstreamState {
    UpstreamState { name: "cloud".into(), up: true, attempts, deferred, refused, broken }
}

/// Mail of an instance that goes to the cloud, in a bucket that is no probe.
fn message(state: UpstreamState) -> Transaction {
    let instance = Some(instance("migrated"));
    Transaction { instance, upstreams: vec![state], bucket: 1, ..minute(0) }
}

/// A minute whose probes are buckets 0, 20, 40…
fn minute(more: u64) -> Transaction {
    Transaction { now: (20 * 1_000_000 + more) * MINUTE_MS, ..transaction() }
}

fn waits(policy: &ErrorFreeze, message: &Transaction) -> bool {
    !matches!(policy.decide(message), Decision::Proceed)
}

#[test]
fn it_asks_for_the_upstream() {
    assert_eq!(policy("").needs().upstreams, ["cloud"]);
}

#[test]
fn mail_waits_above_the_bound_and_not_at_it() {
    let policy = policy(r#","above":20,"at_least":10"#);
    let cases = [
        (state(0, 0, 0, 0), false),
        (state(9, 9, 0, 0), false),
        (state(10, 2, 0, 0), false),
        (state(10, 3, 0, 0), true),
        (state(10, 0, 0, 3), true),
        (state(10, 2, 0, 1), true),
        // 5xx is about messages.
        (state(10, 0, 10, 0), false),
        (state(1000, 200, 800, 0), false),
        (state(1000, 201, 0, 0), true),
        (state(u32::MAX, u32::MAX, 0, u32::MAX), true),
    ];
    for (state, expected) in cases {
        let shown = format!("{state:?}");
        assert_eq!(waits(&policy, &message(state)), expected, "{shown}");
    }
}

#[test]
fn the_bound_may_have_decimals() {
    let policy = policy(r#","above":0.5,"at_least":1"#);
    assert!(!waits(&policy, &message(state(1000, 5, 0, 0))));
    assert!(waits(&policy, &message(state(1000, 6, 0, 0))));
}

#[test]
fn mail_that_goes_elsewhere_goes() {
    let ill = || state(100, 100, 0, 0);
    for (phase, expected) in [
        ("unscheduled", false),
        ("scheduled", false),
        ("freezing", false),
        ("rolled-back", false),
        ("releasing", true),
        ("migrated", true),
    ] {
        let message = Transaction { instance: Some(instance(phase)), ..message(ill()) };
        assert_eq!(waits(&policy(""), &message), expected, "{phase}");
        assert!(waits(&policy(r#","mail":"all""#), &message), "{phase}");
    }
    let unmatched = Transaction { instance: None, ..message(ill()) };
    assert!(!waits(&policy(""), &unmatched));
    assert!(waits(&policy(r#","mail":"all""#), &unmatched));
    let unknown = Transaction { upstreams: Vec::new(), ..message(ill()) };
    assert!(!waits(&policy(""), &unknown), "nothing is known of it");
}

#[test]
fn one_in_so_many_tries_and_everybody_in_turn() {
    let policy = policy("");
    let tries = |bucket: u32, more: u64| {
        let message =
            Transaction { bucket, now: minute(more).now, ..message(state(100, 100, 0, 0)) };
        !waits(&policy, &message)
    };
    for more in 0..20 {
        let probes = (0..10_000).filter(|bucket| tries(*bucket, more)).count();
        assert_eq!(probes, 500, "minute {more}");
    }
    for bucket in 0..10_000 {
        let turns = (0..20).filter(|more| tries(bucket, *more)).count();
        assert_eq!(turns, 1, "bucket {bucket}");
    }
}

/// Nobody resets it: with an upstream that is well again the probes say so, and where they are
/// too few to say anything, the minute runs out.
#[test]
fn it_ends_by_itself() {
    let policy = policy(r#","above":20,"at_least":20"#);
    assert!(waits(&policy, &message(state(400, 400, 0, 0))), "all failed");
    // A minute of probes only: a twentieth of the mail, now answered well.
    assert!(waits(&policy, &message(state(30, 15, 0, 0))), "half of them are from before");
    assert!(!waits(&policy, &message(state(20, 4, 0, 0))), "well enough");
    assert!(!waits(&policy, &message(state(3, 3, 0, 0))), "too few to say anything: it is tried");
}

#[test]
fn what_waits_comes_back_at_times_of_its_own() {
    let policy = policy(r#","wait":"10s""#);
    let until = |bucket: u32| {
        let message = Transaction { bucket, ..message(state(100, 100, 0, 0)) };
        match policy.decide(&message) {
            Decision::Hold(hold) => hold.until.unwrap() - message.now,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((until(1), until(5001), until(9999)), (10_001, 15_001, 19_999));
}

#[test]
fn nobody_misses_his_turn() {
    let policy = policy(r#","wait":"1d""#);
    for bucket in 0..10_000 {
        let message = Transaction { bucket, ..message(state(100, 100, 0, 0)) };
        let Decision::Hold(hold) = policy.decide(&message) else { continue };
        let turn = Transaction { now: hold.until.unwrap(), ..message.clone() };
        assert!(turn.now - message.now < 20 * MINUTE_MS, "{bucket}");
        assert!(!waits(&policy, &turn), "{bucket}");
    }
}

#[test]
fn it_says_why() {
    let message = message(state(100, 60, 0, 10));
    let reason = "70 of 100 attempts at cloud failed in a minute";
    match policy("").decide(&message) {
        Decision::Hold(hold) => assert_eq!(hold.reason, reason),
        other => panic!("{other:?}"),
    }
    match policy(r#","answer":"defer""#).decide(&message) {
        Decision::Defer(reply) => assert_eq!((reply.code, reply.text.as_str()), (451, reason)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_wrong_is_reported_where_it_is() {
    for (settings, path) in [
        ("{}", ""),
        (r#"{"upstream":"x"}"#, "upstream"),
        (r#"{"upstream":"cloud","above":101}"#, "above"),
        (r#"{"upstream":"cloud","at_least":0}"#, "at_least"),
        (r#"{"upstream":"cloud","probe":1}"#, "probe"),
        (r#"{"upstream":"cloud","wait":"0s"}"#, "wait"),
        (r#"{"upstream":"cloud","answer":"refuse"}"#, "answer"),
        (r#"{"upstream":"cloud","mail":"some"}"#, "mail"),
    ] {
        let problems = configured::<ErrorFreeze>(settings, &["cloud".to_owned()]).err().unwrap();
        assert_eq!(problems[0].path, path, "{settings}: {problems:?}");
    }
}
