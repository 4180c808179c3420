#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::decision::{
    ConcurrencyLimit, FreezeDecision, Lesson, LimitSet, PolicyReply, RateLimit, RouteDecision,
    RouteShare, RouteTarget,
};

/// `expect` as it stands in a case.
fn written(expect: &str) -> Value {
    let table: toml::Table = toml::from_str(&format!("x = {expect}")).unwrap();
    serde_json::to_value(&table["x"]).unwrap()
}

/// The members in which an answer differs.
fn differ(expect: &str, answer: impl Into<Answer>) -> Vec<String> {
    let answer = answer.into();
    let observe = matches!(answer, Answer::Observe(_));
    let (_, expected) = parse(&written(expect), None, observe).unwrap();
    expected.differences(&answer).into_iter().map(|one| one.at).collect()
}

fn wrong(expect: &str) -> String {
    parse(&written(expect), None, false).unwrap_err()
}

fn hold() -> FreezeDecision {
    FreezeDecision::Hold { until: Some(Timestamp(1_772_402_400_000)), reason: "being moved".into() }
}

fn target(upstream: &str, fallbacks: &[&str]) -> RouteTarget {
    let fallbacks = fallbacks.iter().map(|&name| name.to_owned()).collect();
    RouteTarget { upstream: upstream.to_owned(), fallbacks }
}

#[test]
fn an_answer_may_be_told_in_part() {
    assert!(differ("\"proceed\"", FreezeDecision::Proceed).is_empty());
    assert_eq!(differ("\"proceed\"", hold()), [""]);
    assert_eq!(differ("\"refuse\"", hold()), [""]);
    for same in [
        "\"hold\"",
        "{ hold = {} }",
        "{ hold = { reason = \"moved\" } }",
        "{ hold = { reason = { exact = \"being moved\" } } }",
        "{ hold = { until = \"2026-03-01T22:00:00Z\" } }",
        "{ hold = { until = 1772402400000, reason = \"being\" } }",
    ] {
        assert!(differ(same, hold()).is_empty(), "{same}");
    }
    assert_eq!(
        differ("{ hold = { until = false, reason = \"Moved\" } }", hold()),
        ["hold.until", "hold.reason"]
    );
    assert_eq!(differ("{ hold = { reason = { exact = \"moved\" } } }", hold()), ["hold.reason"]);
    let endless = FreezeDecision::Hold { until: None, reason: String::new() };
    assert!(differ("{ hold = { until = false, reason = { exact = \"\" } } }", endless).is_empty());
    let reply = PolicyReply { code: 451, enhanced: "4.7.0".into(), text: "later".into() };
    let defer = FreezeDecision::Defer(reply);
    assert!(differ("{ defer = { code = 451 } }", defer.clone()).is_empty());
    let all = "{ defer = { code = 450, enhanced = \"4.7.1\", text = \"soon\" } }";
    assert_eq!(differ(all, defer), ["defer.code", "defer.enhanced", "defer.text"]);
}

#[test]
fn routes_are_compared_by_recipients() {
    let all = RouteDecision::All(target("cloud", &["legacy"]));
    for same in [
        "\"all\"",
        "{ all = \"cloud\" }",
        "{ all = { upstream = \"cloud\" } }",
        "{ all = { fallbacks = [\"legacy\"] } }",
    ] {
        assert!(differ(same, all.clone()).is_empty(), "{same}");
    }
    assert_eq!(
        differ("{ all = { upstream = \"x\", fallbacks = [] } }", all.clone()),
        ["all.upstream", "all.fallbacks"]
    );
    assert_eq!(differ("\"abstain\"", all), [""]);
    let share = |recipients: &[u32], upstream| RouteShare {
        recipients: recipients.to_vec(),
        target: target(upstream, &[]),
    };
    let split = RouteDecision::Split(vec![share(&[2, 0], "cloud"), share(&[1], "legacy")]);
    let same = "{ split = [{ recipients = [1] }, { recipients = [0, 2], target = \"cloud\" }] }";
    assert!(differ(same, split.clone()).is_empty());
    let other = "{ split = [{ recipients = [0] }, { recipients = [1], target = \"cloud\" }] }";
    assert_eq!(
        differ(other, split),
        ["split.recipients [0]", "split.recipients [1].upstream", "split.recipients [0, 2]"]
    );
}

#[test]
fn limits_are_known_by_their_keys() {
    let rate =
        |key: &str, cost| RateLimit { key: key.into(), quantity: 5, per_ms: 1000, burst: 9, cost };
    let limits = LimitSet {
        rates: vec![rate("a", 1), rate("b", 2)],
        concurrency: vec![ConcurrencyLimit { key: "c".into(), limit: 3 }],
    };
    for same in [
        "{ rates = { a = {}, z = false } }",
        "{ rates = { b = { cost = 2 } }, concurrency = { c = { limit = 3 } } }",
        "{ rates = [{ key = \"b\" }, { key = \"a\", quantity = 5, per-ms = 1000, burst = 9 }] }",
    ] {
        assert!(differ(same, limits.clone()).is_empty(), "{same}");
    }
    for (other, at) in [
        (
            "{ rates = { b = { cost = 1, burst = 1 } } }",
            &["rates.\"b\".burst", "rates.\"b\".cost"][..],
        ),
        ("{ rates = { a = false, x = {} } }", &["rates.\"a\"", "rates.\"x\""]),
        ("{ rates = [{ key = \"a\" }] }", &["rates.\"b\""]),
        ("\"none\"", &["rates.\"a\"", "rates.\"b\"", "concurrency.\"c\""]),
        ("{ concurrency = { c = { limit = 4 } } }", &["concurrency.\"c\".limit"]),
    ] {
        assert_eq!(differ(other, limits.clone()), at, "{other}");
    }
    assert!(differ("\"none\"", LimitSet::default()).is_empty());
}

#[test]
fn lessons_stand_in_their_order() {
    let until = Timestamp(1_772_402_400_000);
    let lessons = vec![
        Lesson::Pause { key: "a".into(), until },
        Lesson::Slow { key: "b".into(), factor: 2000, until },
    ];
    let same = "[{ pause = { key = \"a\" } }, { slow = { factor = 2000, \
                until = \"2026-03-01T22:00:00Z\" } }]";
    assert!(differ(same, lessons.clone()).is_empty());
    assert_eq!(
        differ("[{ slow = {} }, { slow = { key = \"a\", factor = 1 } }]", lessons.clone()),
        ["[0]", "[1].slow.key", "[1].slow.factor"]
    );
    assert_eq!(differ("[{ pause = {} }]", lessons.clone()), [""]);
    assert_eq!(differ("\"none\"", lessons), [""]);
    assert!(differ("\"none\"", Vec::new()).is_empty());
}

#[test]
fn what_an_answer_is_told_as_is_what_expects_it() {
    let rate = RateLimit { key: "k".into(), quantity: 1, per_ms: 2, burst: 3, cost: 3 };
    let until = Timestamp(1_772_402_400_000);
    for answer in [
        Answer::from(FreezeDecision::Proceed),
        hold().into(),
        RouteDecision::Abstain.into(),
        RouteDecision::All(target("cloud", &["legacy"])).into(),
        LimitSet { rates: vec![rate], concurrency: Vec::new() }.into(),
        LimitSet::default().into(),
        vec![Lesson::Pause { key: "k".into(), until }].into(),
        Vec::<Lesson>::new().into(),
    ] {
        let observe = matches!(answer, Answer::Observe(_));
        let (_, expected) = parse(&told(&answer), None, observe).unwrap();
        assert_eq!(expected.differences(&answer), [], "{answer:?}");
    }
}

#[test]
fn a_mistake_says_what_would_be_right() {
    for (expect, part) in [
        ("\"procede\"", "proceed, hold, defer, refuse; abstain"),
        ("true", "is no answer"),
        ("{ hold = { untl = 5 } }", "unknown field `untl`, expected `until` or `reason`"),
        ("{ hold = { reason = \"\" } }", "{ exact = \"\" }"),
        ("{ hold = { reason = 5 } }", "a text is what must be in it"),
        ("{ hold = { until = \"tomorrow\" } }", "write it as 2026-"),
        ("{ all = 5 }", "expected"),
        ("{ rates = [{ cost = 1 }] }", "needs its key"),
        ("{ rates = { a = { cots = 1 } } }", "unknown field `cots`"),
        ("[{ pause = { keys = 1 } }]", "unknown field `keys`"),
    ] {
        let text = wrong(expect);
        assert!(text.contains(part), "{expect}: {text}");
    }
    let text = parse(&written("\"abstain\""), Some(Subject::Decide), false).unwrap_err();
    assert_eq!(text, "asks decide, but expects what answers route");
    let problem = |text: &str| problems(&written(text));
    assert!(problem("{ settings = [] }").unwrap_err().contains("list of problems"));
    assert!(problem("{ settings = [{ at = \"x\" }] }").unwrap_err().contains("unknown field `at`"));
    let found = problem("{ settings = [{ path = \"most\", message = \"number\" }, {}] }");
    let found = found.unwrap().unwrap();
    assert!(found[0].is("most", "is no number") && !found[0].is("least", "is no number"));
    assert!(!found[0].is("most", "is missing") && found[1].is("", "anything"));
    assert!(problem("\"hold\"").unwrap().is_none());
}
