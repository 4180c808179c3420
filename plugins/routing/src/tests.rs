//! The routing policy's answers, by phase, by rule and by recipient.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::configured;
use wavegate_policy::testing::{instance, transaction};

fn upstreams() -> Vec<String> {
    ["legacy", "cloud", "spare"].map(String::from).to_vec()
}

fn message(phase: &str) -> Transaction {
    Transaction { instance: Some(instance(phase)), ..transaction() }
}

fn to(recipients: &[&str], message: Transaction) -> Transaction {
    Transaction { recipients: recipients.iter().map(|to| String::from(*to)).collect(), ..message }
}

fn decide(settings: &str, message: &Transaction) -> Decision {
    routing::Policy::route(&configured::<Routing>(settings, &upstreams()).unwrap(), message)
}

/// The one upstream, or `-` for none.
fn route(settings: &str, message: &Transaction) -> String {
    match decide(settings, message) {
        Decision::Abstain => "-".into(),
        Decision::All(target) => target.upstream,
        Decision::Split(shares) => panic!("{shares:?}"),
    }
}

#[test]
fn the_phase_decides_where_no_rule_does() {
    let cases = [
        ("unscheduled", "legacy"),
        ("scheduled", "legacy"),
        ("freezing", "legacy"),
        ("rolled-back", "legacy"),
        ("frozen", "cloud"),
        ("checked", "cloud"),
        ("releasing", "cloud"),
        ("migrated", "cloud"),
        ("a later relay's", "legacy"),
    ];
    let unmet = r#"{"rules":[{"products":["other"],"upstream":"spare"}]}"#;
    for (phase, expected) in cases {
        for settings in ["", "{}", r#"{"rules":[]}"#, unmet] {
            assert_eq!(route(settings, &message(phase)), expected, "{phase} {settings}");
        }
    }
}

#[test]
fn mail_of_no_instance_is_left_to_the_next_policy() {
    assert_eq!(route("", &transaction()), "-");
    let unmet = r#"{"rules":[{"sender_domains":["other.example"],"upstream":"spare"}]}"#;
    assert_eq!(route(unmet, &transaction()), "-");
}

#[test]
fn each_condition_is_met_or_not() {
    let yes = [
        r#""instances":["acme-prod-1"]"#,
        r#""instances":["other","ACME-*"]"#,
        r#""environments":["production"]"#,
        r#""products":["*-classic"]"#,
        r#""phases":["scheduled","migrated"]"#,
        r#""sender_domains":["*.acme.example"]"#,
        r#""recipient_domains":["Customer.Example"]"#,
        r#""headers":{"X-Stream":"*bulk*"}"#,
        r#""headers":{"x-stream":"a bulk one","X-Other":"*"}"#,
        r#""percent":42.01"#,
        r#""percent":100"#,
        r#""instances":["acme-prod-1"],"percent":50,"phases":["scheduled"]"#,
    ];
    let no = [
        r#""instances":["acme-prod-2"]"#,
        r#""environments":["stage"]"#,
        r#""products":["classic"]"#,
        r#""phases":["migrated"]"#,
        r#""sender_domains":["acme.example"]"#,
        r#""recipient_domains":["example"]"#,
        r#""headers":{"X-Stream":"bulk"}"#,
        r#""headers":{"X-Stream":"*","X-Missing":"*"}"#,
        r#""percent":42"#,
        r#""percent":0"#,
        r#""instances":["acme-prod-1"],"phases":["migrated"]"#,
    ];
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let message = Transaction {
        attributes: vec![
            header("header:x-stream", "first"),
            header("header:x-stream", "a BULK one"),
            header("header:x-other", ""),
        ],
        ..message("scheduled")
    };
    for (conditions, expected) in
        yes.map(|c| (c, "spare")).into_iter().chain(no.map(|c| (c, "legacy")))
    {
        let settings = format!(r#"{{"rules":[{{{conditions},"upstream":"spare"}}]}}"#);
        assert_eq!(route(&settings, &message), expected, "{conditions}");
    }
}

#[test]
fn conditions_on_the_instance_leave_out_mail_of_none() {
    for condition in ["instances", "environments", "products", "phases"] {
        let settings = format!(r#"{{"rules":[{{"{condition}":["*"],"upstream":"spare"}}]}}"#);
        assert_eq!(route(&settings, &transaction()), "-", "{condition}");
    }
    assert_eq!(route(r#"{"rules":[{"upstream":"spare"}]}"#, &transaction()), "spare");
}

#[test]
fn bounces_can_be_told_by_their_empty_sender() {
    let settings = r#"{"rules":[{"sender_domains":[""],"upstream":"spare"}]}"#;
    assert_eq!(route(settings, &Transaction { sender: String::new(), ..transaction() }), "spare");
    assert_eq!(route(settings, &transaction()), "-");
}

#[test]
fn a_canary_takes_its_share_and_always_the_same() {
    let settings = r#"{"rules":[{"percent":12.5,"upstream":"cloud"}]}"#;
    let policy = configured::<Routing>(settings, &upstreams()).unwrap();
    let is_canary = |&bucket: &u32| {
        let message = Transaction { bucket, ..message("scheduled") };
        let Decision::All(target) = routing::Policy::route(&policy, &message) else { panic!() };
        target.upstream == "cloud"
    };
    assert_eq!((0..10_000).filter(is_canary).collect::<Vec<_>>(), (0..1_250).collect::<Vec<_>>());
}

#[test]
fn the_first_rule_that_is_met_counts_and_brings_its_fallbacks() {
    let settings = r#"{"rules":[
        {"phases":["migrated"],"upstream":"legacy"},
        {"upstream":"cloud","fallbacks":["spare","legacy"]},
        {"upstream":"spare"}]}"#;
    let Decision::All(target) = decide(settings, &message("scheduled")) else { panic!() };
    assert_eq!(target.upstream, "cloud");
    assert_eq!(target.fallbacks, ["spare", "legacy"]);
}

#[test]
fn recipients_part_where_the_rules_say() {
    let settings = r#"{"rules":[
        {"recipient_domains":["a.example"],"upstream":"spare"},
        {"recipient_domains":["b.example"],"upstream":"cloud"},
        {"recipient_domains":["c.example"],"upstream":"spare"}]}"#;
    let message = to(
        &["1@a.example", "2@other.example", "3@c.example", "4@b.example", "5@A.example"],
        message("scheduled"),
    );
    let Decision::Split(shares) = decide(settings, &message) else { panic!() };
    let shares: Vec<_> =
        shares.iter().map(|s| (s.target.upstream.as_str(), s.recipients.as_slice())).collect();
    assert_eq!(shares, [("spare", &[0, 4, 2][..]), ("cloud", &[3]), ("legacy", &[1])]);
}

#[test]
fn every_recipient_is_in_exactly_one_share() {
    let settings = r#"{"rules":[
        {"recipient_domains":["*a*"],"upstream":"spare"},
        {"recipient_domains":["*b*","*a*"],"upstream":"cloud"},
        {"recipient_domains":["*c*"],"upstream":"spare","fallbacks":["cloud"]}]}"#;
    let names = ["a", "b", "c", "d", "ab", "ca", "bc", "", "d"];
    for length in 1..=names.len() {
        let recipients: Vec<String> = names[..length].iter().map(|n| format!("x@{n}")).collect();
        let message = Transaction { recipients, ..message("scheduled") };
        let Decision::Split(shares) = decide(settings, &message) else {
            assert_eq!(length, 1);
            continue;
        };
        let mut all: Vec<usize> =
            shares.iter().flat_map(|share| &share.recipients).map(|at| *at as usize).collect();
        all.sort_unstable();
        assert_eq!(all, (0..length).collect::<Vec<_>>());
        assert!(shares.len() > 1 && shares.iter().all(|share| !share.recipients.is_empty()));
    }
}

#[test]
fn shares_that_agree_are_one_answer() {
    let settings = r#"{"rules":[{"recipient_domains":["a.example"],"upstream":"legacy"}]}"#;
    let message = to(&["1@a.example", "2@b.example"], message("scheduled"));
    assert_eq!(route(settings, &message), "legacy");
}

#[test]
fn a_split_that_leaves_someone_out_is_no_answer() {
    let settings = r#"{"rules":[{"recipient_domains":["a.example"],"upstream":"cloud"}]}"#;
    assert_eq!(route(settings, &to(&["1@a.example", "2@b.example"], transaction())), "-");
    assert_eq!(route(settings, &to(&["1@a.example"], transaction())), "cloud");
}

#[test]
fn the_headers_that_rules_look_at_are_asked_for_once() {
    let settings = r#"{"rules":[
        {"headers":{"X-B":"1","x-a":"2"},"upstream":"cloud"},
        {"headers":{"x-b":"3"},"upstream":"cloud"}]}"#;
    let needs = configured::<Routing>(settings, &upstreams()).unwrap().needs();
    assert_eq!(needs.attributes, ["header:x-b", "header:x-a"]);
    assert!(!needs.outcomes);
}

/// The paths and messages of the problems with the settings.
fn problems(settings: &str) -> Vec<(String, String)> {
    let Err(problems) = configured::<Routing>(settings, &upstreams()) else { panic!("{settings}") };
    problems.into_iter().map(|problem| (problem.path, problem.message)).collect()
}

#[test]
fn wrong_settings_are_named() {
    let cases = [
        (r#"{"rule":[]}"#, "rule", "unknown; known here: rules"),
        (r#"{"rules":{}}"#, "rules", "must be a list, not a table"),
        (r#"{"rules":[1]}"#, "rules[0]", "must be a table, not 1"),
        (r#"{"rules":[{}]}"#, "rules[0]", "no upstream"),
        (r#"{"rules":[{"upstream":"clod"}]}"#, "rules[0].upstream", "legacy, cloud, spare"),
        (r#"{"rules":[{"upstream":"cloud","to":1}]}"#, "rules[0].to", "unknown"),
        (
            r#"{"rules":[{"upstream":"cloud"},{"upstream":"cloud","fallbacks":["spare","x"]}]}"#,
            "rules[1].fallbacks[1]",
            "\"x\" is no upstream",
        ),
        (
            r#"{"rules":[{"upstream":"cloud","fallbacks":["cloud"]}]}"#,
            "rules[0].fallbacks",
            "its own fallback",
        ),
        (r#"{"rules":[{"upstream":"cloud","percent":101}]}"#, "rules[0].percent", "0 to 100"),
        (r#"{"rules":[{"upstream":"cloud","percent":-1}]}"#, "rules[0].percent", "0 to 100"),
        (r#"{"rules":[{"upstream":"cloud","percent":"5"}]}"#, "rules[0].percent", "not \"5\""),
        (r#"{"rules":[{"upstream":"cloud","percent":0.005}]}"#, "rules[0].percent", "two decimals"),
        (
            r#"{"rules":[{"upstream":"cloud","instances":["a",2]}]}"#,
            "rules[0].instances[1]",
            "must be a string",
        ),
        (
            r#"{"rules":[{"upstream":"cloud","headers":{"a b":"*"}}]}"#,
            "rules[0].headers.a b",
            "no name of a header",
        ),
        (
            r#"{"rules":[{"upstream":"cloud","headers":{"a":true}}]}"#,
            "rules[0].headers.a",
            "not true",
        ),
    ];
    for (settings, path, message) in cases {
        let problems = problems(settings);
        assert_eq!(problems.len(), 1, "{settings}: {problems:?}");
        assert_eq!(problems[0].0, path, "{settings}");
        assert!(problems[0].1.contains(message), "{settings}: {}", problems[0].1);
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let settings = r#"{"rules":[{"upstream":"x","percent":200,"a":1}],"b":2}"#;
    let paths: Vec<_> = problems(settings).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["rules[0].percent", "rules[0].upstream", "rules[0].a", "b"]);
}

#[test]
fn limits_at_and_one_past() {
    let rules = |count| {
        let rules = vec![r#"{"upstream":"cloud"}"#; count].join(",");
        configured::<Routing>(&format!(r#"{{"rules":[{rules}]}}"#), &upstreams()).is_ok()
    };
    assert!(rules(256) && !rules(257));
    let headers = |count| {
        let names: Vec<_> = (0..count).map(|n| format!(r#""x-{n}":"*""#)).collect();
        let settings =
            format!(r#"{{"rules":[{{"upstream":"cloud","headers":{{{}}}}}]}}"#, names.join(","));
        configured::<Routing>(&settings, &upstreams()).is_ok()
    };
    assert!(headers(16) && !headers(17));
    let fallbacks = |count| {
        let names = vec![r#""spare""#; count].join(",");
        let settings = format!(r#"{{"rules":[{{"upstream":"cloud","fallbacks":[{names}]}}]}}"#);
        configured::<Routing>(&settings, &upstreams()).is_ok()
    };
    assert!(fallbacks(8) && !fallbacks(9));
}
