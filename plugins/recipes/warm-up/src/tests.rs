//! The quantity of each day, and that it is never exceeded.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::testing::transaction;
use wavegate_policy::types::Transaction;
use wavegate_policy::{configured, throttling::Policy as _};

/// 2026-03-01T06:00:00Z.
const START: u64 = 1_772_344_800_000;

fn upstreams() -> Vec<String> {
    ["legacy", "cloud"].map(String::from).to_vec()
}

fn policy(more: &str) -> WarmUp {
    let settings = format!(
        r#"{{"start":"2026-03-01T06:00:00Z","first_day":1000,"growth":1.5,"full":5000{more}}}"#
    );
    configured::<WarmUp>(&settings, &upstreams()).unwrap()
}

fn attempt(now: u64, recipients: &[&str]) -> Attempt {
    let recipients: Vec<String> = recipients.iter().map(|to| String::from(*to)).collect();
    Attempt {
        upstream: "cloud".into(),
        recipients: (0..).zip(&recipients).map(|(index, _)| index).collect(),
        transaction: Transaction { now, recipients, ..transaction() },
    }
}

/// The quantity that a day may have in all.
fn of_day(policy: &WarmUp, now: u64) -> Option<u64> {
    let rates = policy.limits(&attempt(now, &["a@x.example"])).rates;
    rates.first().map(|rate| rate.quantity + rate.burst - 1)
}

#[test]
fn each_day_has_more_until_the_ramp_ends() {
    let policy = policy("");
    assert_eq!(policy.start, START);
    let days: Vec<_> = (0..6).map(|day| of_day(&policy, START + day * DAY_MS)).collect();
    assert_eq!(days, [Some(1000), Some(1500), Some(2250), Some(3375), None, None]);
    assert_eq!(of_day(&policy, START + DAY_MS - 1), Some(1000));
    assert_eq!(of_day(&policy, START - 1), Some(1000), "before the start it is slow");
    assert_eq!(of_day(&policy, 0), Some(1000));
    assert_eq!(of_day(&policy, u64::MAX), None);
}

/// The relay's own arithmetic (GCRA), as the contract describes it: `quantity` for each `per_ms`,
/// at most `burst` at once. Somebody always wants to send.
#[test]
fn no_day_gets_more_than_its_quantity() {
    for first in [1_u64, 2, 23, 24, 25, 49, 1000] {
        let settings = format!(
            r#"{{"start":"2026-03-01T06:00:00Z","first_day":{first},"growth":1.7,"full":3000}}"#
        );
        let policy = configured::<WarmUp>(&settings, &upstreams()).unwrap();
        // Thousandths of a millisecond, at which the next is due; a queue that never ends.
        let mut arrival = START * 1000;
        for (day, of_day) in (0..).zip(&policy.days) {
            let (begin, end) = (START + day * DAY_MS, START + (day + 1) * DAY_MS);
            let rate = policy.limits(&attempt(begin, &["a@x.example"])).rates.remove(0);
            let one = DAY_MS * 1000 / rate.quantity;
            let mut sent = 0;
            let mut now = begin * 1000;
            loop {
                let ready = (arrival.max(now) + one).saturating_sub(rate.burst * one);
                now = now.max(ready);
                if now >= end * 1000 - rate.quantity {
                    break;
                }
                arrival = arrival.max(now) + one;
                sent += 1;
            }
            assert!(sent <= *of_day, "day {day}: {sent} of {of_day}");
            assert!(sent + 1 + of_day.div_ceil(24) >= *of_day, "day {day}: {sent} of {of_day}");
        }
    }
}

#[test]
fn recipients_are_counted_by_upstream_or_domain() {
    let to = ["a@x.example", "b@Y.example", "c@X.EXAMPLE"];
    let charged = |more: &str| -> Vec<(String, u64)> {
        let rates = policy(more).limits(&attempt(START, &to)).rates;
        rates.into_iter().map(|rate| (rate.key, rate.cost)).collect()
    };
    assert_eq!(charged(""), [("upstream=cloud".to_owned(), 3)]);
    assert_eq!(
        charged(r#","per":"recipient-domain""#),
        [
            ("upstream=cloud,recipient-domain=x.example".to_owned(), 2),
            ("upstream=cloud,recipient-domain=y.example".to_owned(), 1)
        ]
    );
    assert_eq!(charged(r#","recipient_domains":["y.*"]"#), [("upstream=cloud".to_owned(), 1)]);
    assert_eq!(charged(r#","upstreams":["legacy"]"#), []);
    assert_eq!(charged(r#","upstreams":["cloud"]"#).len(), 1);
}

#[test]
fn a_message_fits_whole_and_never_costs_more_than_the_day() {
    let many: Vec<String> = (0..1200).map(|n| format!("{n}@x.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let rate = policy("").limits(&attempt(START, &many)).rates.remove(0);
    assert_eq!((rate.cost, rate.burst), (1000, 1000));
    let rate = policy("").limits(&attempt(START, &many[..100])).rates.remove(0);
    assert_eq!((rate.cost, rate.burst), (100, 100));
    let rate = policy("").limits(&attempt(START, &many[..5])).rates.remove(0);
    assert_eq!((rate.cost, rate.burst), (5, 42));
}

#[test]
fn answers_fit_the_contract() {
    let many: Vec<String> = (0..100).map(|n| format!("a@{}{n}.example", "x".repeat(300))).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.extend(["b@1.example", "postmaster"]);
    let by_domain = policy(r#","per":"recipient-domain""#);
    let rates = by_domain.limits(&attempt(START, &many)).rates;
    assert!(rates.iter().all(|rate| rate.key.len() <= MAX_KEY));
    let far: Vec<String> = (0..100).map(|n| format!("a@{n}.example")).collect();
    let far: Vec<&str> = far.iter().map(String::as_str).collect();
    assert_eq!(by_domain.limits(&attempt(START, &far)).rates.len(), MAX_RATES);
}

#[test]
fn hosts_share_the_day() {
    assert_eq!(of_day(&policy(r#","hosts":4"#), START), Some(250));
    assert_eq!(of_day(&policy(r#","hosts":1000"#), START + DAY_MS), Some(1));
}

#[test]
fn what_is_wrong_is_reported_where_it_is() {
    let good = r#""start":"2026-03-01T06:00:00Z","first_day":10,"growth":2,"full":100"#;
    let cases = [
        (r#""first_day":10,"growth":2,"full":100"#.to_owned(), "", "no start"),
        (good.replace("2026-03-01T06", "2026-02-30T06"), "start", "no time"),
        (good.replace("day\":10", "day\":0"), "first_day", "whole number"),
        (good.replace(":2,", ":1,"), "growth", "3 decimals"),
        (good.replace(":2,", ":1.01,").replace(":100", ":9999999"), "", "366 days"),
        (format!("{good},\"hosts\":11"), "", "less than one"),
        (format!("{good},\"upstreams\":[\"clout\"]"), "upstreams[0]", "there are: legacy"),
        (format!("{good},\"x\":1"), "x", "unknown"),
    ];
    for (settings, path, message) in cases {
        let Err(problems) = configured::<WarmUp>(&format!("{{{settings}}}"), &upstreams()) else {
            panic!("{settings}")
        };
        assert_eq!(problems[0].path, path, "{settings}: {problems:?}");
        assert!(problems[0].message.contains(message), "{settings}: {}", problems[0].message);
    }
}
