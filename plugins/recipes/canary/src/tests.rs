//! Who moves, and who has no business here.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::testing::{instance, transaction};
use wavegate_policy::{configured, routing::Policy as _};

fn policy(settings: &str) -> Canary {
    let upstreams = ["legacy", "cloud", "third"].map(String::from);
    configured::<Canary>(settings, &upstreams).unwrap()
}

fn message(bucket: u32) -> Transaction {
    Transaction { bucket, instance: Some(instance("scheduled")), ..transaction() }
}

/// Buckets that move.
fn moved(policy: &Canary) -> Vec<u32> {
    let goes = |bucket: &u32| matches!(policy.route(&message(*bucket)), Decision::All(_));
    (0..10_000).filter(goes).collect()
}

#[test]
fn a_hundredth_of_a_percent_is_one_bucket() {
    for (percent, buckets) in
        [("0", 0), ("0.01", 1), ("0.29", 29), ("12.25", 1225), ("100", 10_000)]
    {
        let moved = moved(&policy(&format!(r#"{{"percent":{{"acme-prod-1":{percent}}}}}"#)));
        assert_eq!(moved, (0..buckets).collect::<Vec<_>>(), "{percent}: a step takes none back");
    }
}

#[test]
fn it_goes_to_the_new_upstream_and_falls_back_to_the_old() {
    let target = |settings: &str| match policy(settings).route(&message(0)) {
        Decision::All(target) => (target.upstream, target.fallbacks),
        other => panic!("{other:?}"),
    };
    let (upstream, fallbacks) = target(r#"{"percent":{"acme-prod-1":1}}"#);
    assert_eq!((upstream.as_str(), &*fallbacks), ("cloud", &["legacy".to_owned()][..]));
    let (upstream, _) = target(r#"{"percent":{"acme-prod-1":1},"upstream":"third"}"#);
    assert_eq!(upstream, "third");
    let (upstream, fallbacks) = target(r#"{"percent":{"acme-prod-1":1},"upstream":"legacy"}"#);
    assert_eq!((upstream.as_str(), fallbacks.len()), ("legacy", 0));
}

#[test]
fn from_the_window_on_the_plan_says_where() {
    let policy = policy(r#"{"percent":{"acme-prod-1":100}}"#);
    for phase in ["freezing", "frozen", "checked", "releasing", "migrated", "rolled-back", "new"] {
        let message = Transaction { instance: Some(instance(phase)), ..transaction() };
        assert!(matches!(policy.route(&message), Decision::Abstain), "{phase}");
    }
    let message = Transaction { instance: Some(instance("unscheduled")), ..transaction() };
    assert!(matches!(policy.route(&message), Decision::All(_)));
}

#[test]
fn others_stay_where_they_are() {
    let policy = policy(r#"{"percent":{"acme-prod-1":100,"blue-1":0}}"#);
    assert!(matches!(policy.route(&transaction()), Decision::Abstain), "no instance");
    let mut message = message(0);
    message.instance.as_mut().unwrap().after = String::new();
    assert!(matches!(policy.route(&message), Decision::Abstain), "the plan has no upstream");
    message.instance =
        Some(wavegate_policy::types::Instance { name: "blue-1".into(), ..instance("scheduled") });
    assert!(matches!(policy.route(&message), Decision::Abstain), "none of it");
}

#[test]
fn what_is_wrong_is_reported_where_it_is() {
    for (settings, path) in [
        (r#"{"percent":{"a":0.001}}"#, "percent.a"),
        (r#"{"percent":{"a":100.01}}"#, "percent.a"),
        (r#"{"percent":5}"#, "percent"),
        (r#"{"upstream":"x"}"#, "upstream"),
    ] {
        let problems = configured::<Canary>(settings, &["cloud".to_owned()]).err().unwrap();
        assert_eq!(problems[0].path, path, "{settings}: {problems:?}");
    }
}
