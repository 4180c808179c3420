//! When it is quiet, over changes of the clocks too.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::testing::{instance, transaction};
use wavegate_policy::{configured, freeze::Policy as _};

/// Night in Berlin, every day.
const NIGHT: &str = r#""zone":"Europe/Berlin","from":"22:00","to":"07:00""#;

fn policy(rule: &str) -> QuietHours {
    configured::<QuietHours>(&format!(r#"{{"rules":[{{{rule}}}]}}"#), &[]).unwrap()
}

fn ms(time: &str) -> u64 {
    time.parse::<Timestamp>().unwrap().as_millisecond().try_into().unwrap()
}

/// A message that came in just now.
fn at(time: &str) -> Transaction {
    Transaction { now: ms(time), received: ms(time), ..transaction() }
}

/// Until when a message is held.
fn until(policy: &QuietHours, message: &Transaction) -> Option<u64> {
    match policy.decide(message) {
        Decision::Proceed => None,
        Decision::Hold(hold) => hold.until,
        other => panic!("{other:?}"),
    }
}

fn check(rule: &str, cases: &[(&str, Option<&str>)]) {
    let policy = policy(rule);
    for (now, expected) in cases {
        assert_eq!(until(&policy, &at(now)), expected.map(ms), "{rule} at {now}");
    }
}

#[test]
fn nights_end_in_the_morning() {
    check(
        NIGHT,
        &[
            ("2026-01-14T20:59:59Z", None),
            ("2026-01-14T21:00:00Z", Some("2026-01-15T06:00:00Z")),
            ("2026-01-15T00:30:00Z", Some("2026-01-15T06:00:00Z")),
            ("2026-01-15T05:59:59.999Z", Some("2026-01-15T06:00:00Z")),
            ("2026-01-15T06:00:00Z", None),
            // Summer.
            ("2026-07-14T20:00:00Z", Some("2026-07-15T05:00:00Z")),
        ],
    );
}

#[test]
fn clocks_that_are_changed_move_the_morning() {
    // 2026-03-29, 02:00 to 03:00 is not there; 2026-10-25, 02:00 to 03:00 is there twice.
    check(
        NIGHT,
        &[
            ("2026-03-28T21:00:00Z", Some("2026-03-29T05:00:00Z")),
            ("2026-10-24T20:00:00Z", Some("2026-10-25T06:00:00Z")),
        ],
    );
    let between = r#""zone":"Europe/Berlin","from":"02:15","to":"02:45""#;
    check(
        between,
        &[
            // The hour that is not there: as long as it can be meant.
            ("2026-03-29T00:14:59Z", None),
            ("2026-03-29T00:15:00Z", Some("2026-03-29T01:45:00Z")),
            ("2026-03-29T01:45:00Z", None),
            // The hour that is there twice.
            ("2026-10-25T00:15:00Z", Some("2026-10-25T01:45:00Z")),
            ("2026-10-25T00:50:00Z", Some("2026-10-25T01:45:00Z")),
            ("2026-10-25T01:45:00Z", None),
            // And an ordinary day.
            ("2026-10-26T01:15:00Z", Some("2026-10-26T01:45:00Z")),
        ],
    );
}

#[test]
fn far_zones_have_days_of_their_own() {
    check(
        r#""zone":"Pacific/Auckland","from":"00:00","to":"00:00","days":["sat","sun"]"#,
        &[
            ("2026-06-12T11:59:59Z", None),
            ("2026-06-12T12:00:00Z", Some("2026-06-13T12:00:00Z")),
            ("2026-06-13T12:00:00Z", Some("2026-06-14T12:00:00Z")),
            ("2026-06-14T12:00:00Z", None),
        ],
    );
    // Half an hour of daylight saving, and a day that never was (2011-12-30 in Samoa).
    check(
        r#""zone":"Australia/Lord_Howe","from":"22:00","to":"07:00""#,
        &[("2026-04-04T12:00:00Z", Some("2026-04-04T20:30:00Z"))],
    );
    check(
        r#""zone":"Pacific/Apia","from":"22:00","to":"07:00""#,
        &[("2011-12-30T09:00:00Z", Some("2011-12-30T17:00:00Z"))],
    );
}

#[test]
fn a_night_belongs_to_the_day_on_which_it_begins() {
    let friday = r#""zone":"Europe/Berlin","from":"22:00","to":"07:00","days":["fri"]"#;
    check(
        friday,
        &[
            ("2026-01-16T03:00:00Z", None),
            ("2026-01-16T21:00:00Z", Some("2026-01-17T06:00:00Z")),
            ("2026-01-17T03:00:00Z", Some("2026-01-17T06:00:00Z")),
            ("2026-01-17T21:00:00Z", None),
        ],
    );
}

#[test]
fn only_the_mail_that_a_rule_is_about() {
    let night = "2026-01-15T00:00:00Z";
    let of =
        |rule: &str, message: &Transaction| until(&policy(&format!("{NIGHT},{rule}")), message);
    let german = r#""recipient_domains":["*.de"]"#;
    assert_eq!(of(german, &at(night)), None);
    let both = vec!["a@x.example".to_owned(), "b@post.DE".to_owned()];
    assert!(of(german, &Transaction { recipients: both, ..at(night) }).is_some());
    let acme = r#""instances":["acme-*"]"#;
    assert_eq!(of(acme, &at(night)), None, "no instance");
    let message = Transaction { instance: Some(instance("migrated")), ..at(night) };
    assert!(of(acme, &message).is_some());
    assert_eq!(of(r#""instances":["blue-*"]"#, &message), None);
}

#[test]
fn of_several_rules_the_latest_end_counts() {
    let settings = format!(
        r#"{{"rules":[{{{NIGHT}}},{{"zone":"America/New_York","from":"20:00","to":"08:00"}}]}}"#
    );
    let policy = configured::<QuietHours>(&settings, &[]).unwrap();
    // 01:30 there; here the night has half an hour to go.
    let message = at("2026-01-15T05:30:00Z");
    assert_eq!(until(&policy, &message), Some(ms("2026-01-15T13:00:00Z")));
    match policy.decide(&message) {
        Decision::Hold(hold) => {
            assert_eq!(hold.reason, "quiet hours until 08:00 in America/New_York");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_held_longer_than_max_hold() {
    let settings = format!(r#"{{"rules":[{{{NIGHT}}}],"max_hold":"2h"}}"#);
    let policy = configured::<QuietHours>(&settings, &[]).unwrap();
    let received = ms("2026-01-15T00:00:00Z");
    let later = |hours: u64| {
        let now = received + hours * 3_600_000;
        until(&policy, &Transaction { now, received, ..transaction() })
    };
    assert_eq!(later(0), Some(received + 2 * 3_600_000));
    assert_eq!(later(1), Some(received + 2 * 3_600_000));
    assert_eq!(later(2), None);
    assert_eq!(later(5), None, "still night, but it has waited long enough");
    // Just before the morning the end of the night is nearer.
    let dawn = Transaction { received: ms("2026-01-15T05:00:00Z"), ..at("2026-01-15T05:00:00Z") };
    assert_eq!(until(&policy, &dawn), Some(ms("2026-01-15T06:00:00Z")));
}

#[test]
fn times_beyond_all_calendars_are_no_trap() {
    let policy = policy(NIGHT);
    for now in [0, u64::MAX, i64::MAX as u64, 253_402_207_200_000] {
        let message = Transaction { now, received: now, ..transaction() };
        if let Some(until) = until(&policy, &message) {
            assert!(until > now, "{now}");
        }
    }
}

#[test]
fn what_is_wrong_is_reported_where_it_is() {
    for (rule, path, message) in [
        (r#""from":"22:00","to":"07:00""#, "rules[0]", "no zone"),
        (r#""zone":"Europe/Berln","from":"22:00","to":"07:00""#, "rules[0].zone", "time zone"),
        (r#""zone":"UTC","from":"24:00","to":"07:00""#, "rules[0].from", "23:59"),
        (r#""zone":"UTC","from":"7:00","to":"07:00""#, "rules[0].from", "23:59"),
        (r#""zone":"UTC","from":"+7:00","to":"07:00""#, "rules[0].from", "23:59"),
        (r#""zone":"UTC","from":"07:60","to":"07:00""#, "rules[0].from", "23:59"),
        (r#""zone":"UTC","from":"07:00","to":"07:00","days":["Mo"]"#, "rules[0].days[0]", "mon"),
        (r#""zone":"UTC","from":"07:00","to":"07:00","day":[]"#, "rules[0].day", "unknown"),
    ] {
        let settings = format!(r#"{{"rules":[{{{rule}}}]}}"#);
        let problems = configured::<QuietHours>(&settings, &[]).err().unwrap();
        assert_eq!(problems[0].path, path, "{settings}: {problems:?}");
        assert!(problems[0].message.contains(message), "{settings}: {}", problems[0].message);
    }
    let many = vec![format!("{{{NIGHT}}}"); 257].join(",");
    assert!(configured::<QuietHours>(&format!(r#"{{"rules":[{many}]}}"#), &[]).is_err());
}
