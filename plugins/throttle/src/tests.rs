//! The throttle policy's limits, keys and lessons.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::configured;
use wavegate_policy::testing::{instance, transaction};
use wavegate_policy::types::Transaction;

fn upstreams() -> Vec<String> {
    ["legacy", "cloud"].map(String::from).to_vec()
}

fn policy(settings: &str) -> Throttle {
    configured::<Throttle>(settings, &upstreams()).unwrap()
}

/// An attempt at `cloud` with all those recipients.
fn attempt(recipients: &[&str]) -> Attempt {
    let recipients: Vec<String> = recipients.iter().map(|to| String::from(*to)).collect();
    Attempt {
        upstream: "cloud".into(),
        recipients: (0..).zip(&recipients).map(|(index, _)| index).collect(),
        transaction: Transaction {
            recipients,
            instance: Some(instance("scheduled")),
            ..transaction()
        },
    }
}

fn limits(settings: &str, attempt: &Attempt) -> LimitSet {
    throttling::Policy::limits(&policy(settings), attempt)
}

/// Keys and costs.
fn charges(settings: &str, attempt: &Attempt) -> Vec<(String, u64)> {
    limits(settings, attempt).rates.into_iter().map(|rate| (rate.key, rate.cost)).collect()
}

const DOMAINS: [&str; 4] = ["a@x.example", "b@Y.example", "c@X.EXAMPLE", "d@z.example"];

#[test]
fn the_documented_settings() {
    let settings = r#"{ "limits": [ { "per": ["upstream","recipient-domain"], "rate": "5000/s", "burst": 500 } ] }"#;
    let set = limits(settings, &attempt(&["jo@Example.com"]));
    assert!(set.concurrency.is_empty());
    let [rate] = set.rates.as_slice() else { panic!("{set:?}") };
    assert_eq!(rate.key, "0:upstream=cloud,recipient-domain=example.com");
    assert_eq!((rate.quantity, rate.per_ms, rate.burst, rate.cost), (5000, 1000, 500, 1));
}

#[test]
fn no_settings_no_limits() {
    for settings in ["", "{}", r#"{"limits":[]}"#] {
        let set = limits(settings, &attempt(&DOMAINS));
        assert!(set.rates.is_empty() && set.concurrency.is_empty());
    }
}

#[test]
fn every_part_has_its_value() {
    let cases = [
        (r#""upstream""#, "0:upstream=cloud"),
        (r#""recipient-domain""#, "0:recipient-domain=b.example"),
        (r#""recipient""#, "0:recipient=jo@b.example"),
        (r#""instance""#, "0:instance=acme-prod-1"),
        (r#""environment""#, "0:environment=production"),
        (r#""product""#, "0:product=campaign-classic"),
        (r#""sender-domain""#, "0:sender-domain=mkt.acme.example"),
        (r#""sender""#, "0:sender=news@mkt.acme.example"),
        (r#""client""#, "0:client=192.0.2.7"),
        (r#""client","upstream""#, "0:client=192.0.2.7,upstream=cloud"),
        ("", "0:"),
    ];
    for (per, key) in cases {
        let settings = format!(r#"{{"limits":[{{"per":[{per}],"rate":"1/s"}}]}}"#);
        assert_eq!(charges(&settings, &attempt(&["Jo@B.example"])), [(key.into(), 1)]);
    }
}

#[test]
fn mail_of_no_instance_has_keys_too() {
    let settings = r#"{"limits":[{"per":["instance","product","environment"],"rate":"1/s"}]}"#;
    let mut attempt = attempt(&["jo@b.example"]);
    attempt.transaction.instance = None;
    assert_eq!(charges(settings, &attempt), [("0:instance=,product=,environment=".into(), 1)]);
}

#[test]
fn a_distinct_key_is_charged_once_or_by_recipients() {
    let by = |count: &str| {
        format!(
            r#"{{"limits":[{{"per":["recipient-domain"],"rate":"9/s","count":"{count}"}},
                          {{"rate":"9/s","burst":3,"count":"{count}"}}]}}"#
        )
    };
    let key = |domain: &str| format!("0:recipient-domain={domain}.example");
    let expected = |x, all| vec![(key("x"), x), (key("y"), 1), (key("z"), 1), ("1:".into(), all)];
    assert_eq!(charges(&by("messages"), &attempt(&DOMAINS)), expected(1, 1));
    // The last one is four recipients against a burst of three: it must be able to pass.
    assert_eq!(charges(&by("recipients"), &attempt(&DOMAINS)), expected(2, 3));
}

#[test]
fn only_the_recipients_of_the_attempt_count() {
    let settings = r#"{"limits":[{"per":["recipient-domain"],"rate":"9/s"}]}"#;
    let attempt = Attempt { recipients: vec![3, 99], ..attempt(&DOMAINS) };
    assert_eq!(charges(settings, &attempt), [("0:recipient-domain=z.example".into(), 1)]);
}

#[test]
fn filters_say_what_a_limit_is_about() {
    let cases = [
        (r#""upstreams":["cloud"]"#, 4),
        (r#""upstreams":["legacy"]"#, 0),
        (r#""instances":["acme-*"]"#, 4),
        (r#""instances":["other"]"#, 0),
        (r#""recipient_domains":["?.example","Z.Example"]"#, 1),
        (r#""recipient_domains":["*.example"]"#, 4),
        (r#""recipient_domains":["none.example"]"#, 0),
        (r#""upstreams":["cloud"],"recipient_domains":["x.example"]"#, 2),
    ];
    for (filter, recipients) in cases {
        let settings = format!(r#"{{"limits":[{{"rate":"9/s","count":"recipients",{filter}}}]}}"#);
        let expected = if recipients == 0 { vec![] } else { vec![("0:".to_owned(), recipients)] };
        assert_eq!(charges(&settings, &attempt(&DOMAINS)), expected, "{filter}");
    }
    let settings = r#"{"limits":[{"rate":"9/s","instances":["*"]}]}"#;
    let mut of_none = attempt(&DOMAINS);
    of_none.transaction.instance = None;
    assert!(charges(settings, &of_none).is_empty());
}

#[test]
fn concurrency_stands_alone_or_beside_a_rate() {
    let settings = r#"{"limits":[{"per":["upstream"],"concurrency":20},
        {"per":["recipient-domain"],"rate":"1/min","concurrency":2}]}"#;
    let set = limits(settings, &attempt(&["a@x.example"]));
    let [first, second] = set.concurrency.as_slice() else { panic!("{set:?}") };
    assert_eq!((first.key.as_str(), first.limit), ("0:upstream=cloud", 20));
    assert_eq!((second.key.as_str(), second.limit), ("1:recipient-domain=x.example", 2));
    let [rate] = set.rates.as_slice() else { panic!("{set:?}") };
    assert_eq!((rate.key.as_str(), rate.per_ms, rate.burst), (second.key.as_str(), 60_000, 1));
}

#[test]
fn rates() {
    let cases = [
        ("5000/s", Some((5000, 1000))),
        ("100/min", Some((100, 60_000))),
        ("1/10s", Some((1, 10_000))),
        ("7/h", Some((7, 3_600_000))),
        ("7/2d", Some((7, 172_800_000))),
        ("5/100ms", Some((5, 100))),
        ("4294967295/s", Some((4_294_967_295, 1000))),
        ("4294967296/s", None),
        ("1/50d", None),
        ("0/s", None),
        ("1/0s", None),
        ("+1/s", None),
        ("1/+1s", None),
        ("1/m", None),
        ("1", None),
        ("/s", None),
        ("1/", None),
        ("", None),
        ("1.5/s", None),
        ("1 / s", None),
        ("99999999999999999999/s", None),
        ("1/99999999999999999999s", None),
        ("1/18446744073709551615d", None),
    ];
    for (text, expected) in cases {
        assert_eq!(settings::rate(text), expected, "{text}");
    }
}

#[test]
fn the_default_burst_is_what_a_second_brings() {
    for (rate, burst) in [("5000/s", 5000), ("90/min", 1), ("600/min", 10), ("1/h", 1)] {
        let settings = format!(r#"{{"limits":[{{"rate":"{rate}"}}]}}"#);
        assert_eq!(limits(&settings, &attempt(&DOMAINS)).rates[0].burst, burst, "{rate}");
    }
}

#[test]
fn an_address_cannot_write_another_ones_key() {
    let settings = r#"{"limits":[{"per":["sender","recipient"],"rate":"1/s"}]}"#;
    let mut forged = attempt(&["b"]);
    forged.transaction.sender = "a,recipient=b%2c \u{e9}".into();
    let [(key, _)] = charges(settings, &forged).try_into().unwrap();
    assert_eq!(key, "0:sender=a%2crecipient=b%252c%20\u{e9},recipient=b");
}

#[test]
fn long_keys_are_bounded_and_stay_apart() {
    let settings = r#"{"limits":[{"per":["recipient"],"rate":"1/s"}]}"#;
    let long = |last: &str| format!("{}{last}@x.example", "\u{20ac}".repeat(5000));
    let (one, two) = (long("1"), long("2"));
    let keys = charges(settings, &attempt(&[&one, &two, &one]));
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0].0, keys[1].0);
    assert!(keys.iter().all(|(key, _)| key.len() <= 128 && key.len() > 120), "{keys:?}");
    let fits = format!("{}@x", "a".repeat(128 - "0:recipient=@x".len()));
    assert_eq!(charges(settings, &attempt(&[&fits]))[0].0, format!("0:recipient={fits}"));
}

#[test]
fn no_answer_is_larger_than_the_contract_allows() {
    let recipients: Vec<String> = (0..1000).map(|n| format!("a@{n}.example")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    for count in [1, 3, 8] {
        let limit = r#"{"per":["recipient-domain"],"rate":"1/s","concurrency":1}"#;
        let settings = format!(r#"{{"limits":[{}]}}"#, vec![limit; count].join(","));
        let set = limits(&settings, &attempt(&recipients));
        assert_eq!(set.rates.len(), 64 / count * count);
        assert_eq!(set.concurrency.len(), 16 / count * count);
        for index in 0..count {
            let of_limit = |key: &str| key.starts_with(&format!("{index}:"));
            assert!(set.rates.iter().any(|rate| of_limit(&rate.key)));
            assert!(set.concurrency.iter().any(|limit| of_limit(&limit.key)));
        }
    }
}

fn outcome(code: u16, keys: &[&str]) -> Outcome {
    let keys = keys.iter().map(|key| String::from(*key)).collect();
    Outcome { upstream: "cloud".into(), keys, code, text: String::new(), now: 1_000_000 }
}

/// Lessons, one line each.
fn lessons(settings: &str, outcome: &Outcome) -> Vec<String> {
    let line = |lesson| match lesson {
        Lesson::Pause(Pause { key, until }) => format!("pause {key} {until}"),
        Lesson::Slow(Slow { key, factor, until }) => format!("slow {key} {factor} {until}"),
    };
    throttling::Policy::observe(&policy(settings), outcome).into_iter().map(line).collect()
}

#[test]
fn a_limit_learns_from_the_replies_that_it_listens_to() {
    let settings = r#"{"limits":[
        {"per":["upstream"],"rate":"9/s"},
        {"per":["recipient-domain"],"rate":"9/s","learn":{"pause":"30s","slow":2.5,"for":"5min"}},
        {"rate":"9/s","learn":{"codes":[554],"slow":2}}]}"#;
    let keys = ["0:upstream=cloud", "1:recipient-domain=a", "1:recipient-domain=b", "2:"];
    let expected = [
        "pause 1:recipient-domain=a 1030000",
        "pause 1:recipient-domain=b 1030000",
        "slow 1:recipient-domain=a 2500 1300000",
        "slow 1:recipient-domain=b 2500 1300000",
    ];
    for code in [421, 450, 451, 452] {
        assert_eq!(lessons(settings, &outcome(code, &keys)), expected);
    }
    assert_eq!(lessons(settings, &outcome(554, &keys)), ["slow 2: 2000 1300000"]);
    for code in [0, 250, 454, 550] {
        assert!(lessons(settings, &outcome(code, &keys)).is_empty());
    }
}

#[test]
fn a_key_of_no_limit_teaches_nothing() {
    let settings = r#"{"limits":[{"rate":"9/s","learn":{"pause":"1s"}}]}"#;
    for key in ["", ":", "1:", "x", "-1:", "99999999999999999999:"] {
        assert!(lessons(settings, &outcome(421, &[key])).is_empty(), "{key}");
    }
}

#[test]
fn lessons_are_bounded_and_times_do_not_overflow() {
    let settings = r#"{"limits":[{"rate":"9/s","learn":{"pause":"1s","slow":2}}]}"#;
    let keys = ["0:"; 20];
    let lessons_of = |outcome: &Outcome| lessons(settings, outcome);
    assert_eq!(lessons_of(&outcome(421, &keys)), vec!["pause 0: 1001000"; 16]);
    let late = Outcome { now: u64::MAX, ..outcome(421, &keys[..1]) };
    assert_eq!(lessons_of(&late)[0], format!("pause 0: {}", u64::MAX));
}

#[test]
fn outcomes_are_asked_for_where_something_learns() {
    assert!(!policy(r#"{"limits":[{"rate":"9/s"}]}"#).needs().outcomes);
    assert!(policy(r#"{"limits":[{"rate":"9/s","learn":{"slow":1.5}}]}"#).needs().outcomes);
}

#[test]
fn wrong_settings_are_named() {
    let cases = [
        (r#""rates":"1/s","rate":"1/s""#, "limits[0].rates", "unknown; known here: rate, burst"),
        (r#""per":["upstream"]"#, "limits[0]", "neither rate nor concurrency"),
        (r#""per":["domain"],"rate":"1/s""#, "limits[0].per[0]", "none of: upstream, recip"),
        (r#""per":["client","client"],"rate":"1/s""#, "limits[0].per[1]", "twice"),
        (r#""rate":"1/m""#, "limits[0].rate", "\"1/m\" is no rate"),
        (r#""rate":5"#, "limits[0].rate", "must be a string"),
        (r#""rate":"1/s","burst":0"#, "limits[0].burst", "1 to 4294967295"),
        (r#""concurrency":1,"burst":1"#, "limits[0].burst", "without a rate"),
        (r#""concurrency":0"#, "limits[0].concurrency", "1 to"),
        (r#""concurrency":1.5"#, "limits[0].concurrency", "not 1.5"),
        (r#""rate":"1/s","count":"bytes""#, "limits[0].count", "messages, recipients"),
        (r#""rate":"1/s","upstreams":["x"]"#, "limits[0].upstreams[0]", "legacy, cloud"),
        (r#""rate":"1/s","learn":{}"#, "limits[0].learn", "neither pause nor slow"),
        (r#""rate":"1/s","learn":{"pause":"1"}"#, "limits[0].learn.pause", "units"),
        (r#""rate":"1/s","learn":{"slow":0.5}"#, "limits[0].learn.slow", "1 to 1000"),
        (r#""rate":"1/s","learn":{"slow":2,"codes":[250]}"#, "limits[0].learn.codes[0]", "400"),
        (r#""rate":"1/s","learn":{"slow":2,"x":1}"#, "limits[0].learn.x", "unknown"),
    ];
    for (limit, path, message) in cases {
        let settings = format!(r#"{{"limits":[{{{limit}}}]}}"#);
        let Err(problems) = configured::<Throttle>(&settings, &upstreams()) else {
            panic!("{settings}")
        };
        assert_eq!(problems.len(), 1, "{settings}: {problems:?}");
        assert_eq!(problems[0].path, path, "{settings}");
        assert!(problems[0].message.contains(message), "{settings}: {}", problems[0].message);
    }
}

#[test]
fn limits_at_and_one_past() {
    let of = |limit: &str, count| {
        let settings = format!(r#"{{"limits":[{}]}}"#, vec![limit; count].join(","));
        configured::<Throttle>(&settings, &upstreams()).is_ok()
    };
    assert!(of(r#"{"rate":"1/s"}"#, 32) && !of(r#"{"rate":"1/s"}"#, 33));
    assert!(of(r#"{"concurrency":1}"#, 8) && !of(r#"{"concurrency":1}"#, 9));
}

fn limits_of(settings: &str) -> LimitSet {
    throttling::Policy::limits(&policy(settings), &attempt(&["a@x.example"]))
}

#[test]
fn a_share_is_that_part_of_every_limit() {
    let of = |share: &str, limit: &str| {
        limits_of(&format!(r#"{{"share":"{share}","limits":[{{{limit}}}]}}"#))
    };
    let rate = |share: &str, limit: &str| {
        let answer = of(share, limit);
        (answer.rates[0].quantity * 1000, answer.rates[0].per_ms, answer.rates[0].burst)
    };
    // A quarter of 5000 a second is 1250 a second, and of a burst of 500 it is 125.
    let (quantity, per_ms, burst) = rate("25%", r#""rate":"5000/s","burst":500"#);
    assert_eq!((quantity / per_ms, burst), (1250, 125));
    assert_eq!(rate("25%", r#""rate":"5000/s""#).2, 1250);
    // One a second over four hosts is one in four seconds each: nothing is rounded up.
    assert_eq!(rate("1/4", r#""rate":"1/s""#), (1000, 4000, 1));
    assert_eq!(rate("2/3", r#""rate":"1/s""#), (2000, 3000, 1));
    assert_eq!(of("1/4", r#""concurrency":10"#).concurrency[0].limit, 2);
    let whole = of("100%", r#""rate":"7/s","burst":3,"concurrency":5"#);
    assert_eq!(whole.rates[0].quantity * 1000 / whole.rates[0].per_ms, 7);
    assert_eq!((whole.rates[0].burst, whole.concurrency[0].limit), (3, 5));
}

#[test]
fn hosts_together_never_have_more_than_there_is() {
    for hosts in 1..=40_u64 {
        for total in [1_u64, 3, 10, 39, 40, 5000] {
            let settings = format!(
                r#"{{"share":"1/{hosts}","limits":[{{"rate":"{total}/s","concurrency":{total}}}]}}"#
            );
            let Ok(policy) = configured::<Throttle>(&settings, &upstreams()) else {
                assert!(total < hosts, "{settings}");
                continue;
            };
            let answer = throttling::Policy::limits(&policy, &attempt(&["a@x.example"]));
            let RateLimit { quantity, per_ms, .. } = answer.rates[0];
            assert_eq!(quantity * hosts * 1000, total * per_ms, "{settings}");
            assert!(u64::from(answer.concurrency[0].limit) * hosts <= total, "{settings}");
        }
    }
}

#[test]
fn a_share_that_is_none_is_refused() {
    for share in ["0%", "101%", "25", "%", "1/0", "0/4", "5/4", "1/10001", "1/4/2", "+1/4", ""] {
        let settings = format!(r#"{{"share":"{share}","limits":[{{"rate":"1/s"}}]}}"#);
        assert!(configured::<Throttle>(&settings, &upstreams()).is_err(), "{share}");
    }
    let one = r#"{"share":"1/4","limits":[{"concurrency":3}]}"#;
    assert!(configured::<Throttle>(one, &upstreams()).is_err(), "less than one");
    let burst = r#"{"share":"1/4","limits":[{"rate":"5/s","burst":3}]}"#;
    assert!(configured::<Throttle>(burst, &upstreams()).is_err(), "less than one");
}
