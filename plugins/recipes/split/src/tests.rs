//! Which domain goes where, and that every recipient goes somewhere once.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::testing::{instance, transaction};
use wavegate_policy::{configured, routing::Policy as _};

const SETTINGS: &str = r#"{"default":"legacy","domains":{"Gmail.com":"cloud",
    ".example.net":"cloud",".deep.example.net":"third","example.net":"third"}}"#;

fn upstreams() -> Vec<String> {
    ["legacy", "cloud", "third"].map(String::from).to_vec()
}

fn policy(settings: &str) -> Split {
    configured::<Split>(settings, &upstreams()).unwrap()
}

fn to(recipients: &[&str]) -> Transaction {
    let recipients = recipients.iter().map(|to| String::from(*to)).collect();
    Transaction { recipients, ..transaction() }
}

#[test]
fn the_nearest_entry_counts() {
    let policy = policy(SETTINGS);
    let cases = [
        ("a@gmail.com", "cloud"),
        ("a@GMAIL.COM", "cloud"),
        ("a@mail.gmail.com", "legacy"),
        ("a@notgmail.com", "legacy"),
        ("a@example.net", "third"),
        ("a@mx.example.net", "cloud"),
        ("a@b.c.example.net", "cloud"),
        ("a@x.deep.example.net", "third"),
        ("a@deep.example.net", "cloud"),
        ("\"a@gmail.com\"@other.example", "legacy"),
        ("a@[192.0.2.1]", "legacy"),
        ("postmaster", "legacy"),
        ("a@", "legacy"),
    ];
    for (recipient, upstream) in cases {
        let Decision::All(target) = policy.route(&to(&[recipient])) else { panic!("{recipient}") };
        assert_eq!(target.upstream, upstream, "{recipient}");
    }
}

#[test]
fn every_recipient_is_in_one_share() {
    let message =
        to(&["a@gmail.com", "b@x.example", "c@GMAIL.com", "d@example.net", "e@y.example"]);
    let Decision::Split(shares) = policy(SETTINGS).route(&message) else { panic!() };
    let shares: Vec<_> =
        shares.iter().map(|share| (share.target.upstream.as_str(), &*share.recipients)).collect();
    assert_eq!(shares, [("cloud", &[0, 2][..]), ("legacy", &[1, 4]), ("third", &[3])]);
}

#[test]
fn other_instances_are_no_business_of_it() {
    let policy = policy(r#"{"default":"legacy","instances":["acme-*"]}"#);
    assert!(matches!(policy.route(&transaction()), Decision::Abstain));
    let mut message = Transaction { instance: Some(instance("scheduled")), ..transaction() };
    assert!(matches!(policy.route(&message), Decision::All(_)));
    message.instance.as_mut().unwrap().name = "blue-1".into();
    assert!(matches!(policy.route(&message), Decision::Abstain));
}

#[test]
fn what_is_wrong_is_reported_where_it_is() {
    let cases = [
        ("{}", "", "no default"),
        (r#"{"default":"clout"}"#, "default", "is no upstream"),
        (r#"{"default":"cloud","domains":{"a.example":"x"}}"#, "domains.a.example", "upstream"),
        (r#"{"default":"cloud","domains":{"*.example":"cloud"}}"#, "domains.*.example", "domain"),
        (r#"{"default":"cloud","domains":{"..a":"cloud"}}"#, "domains...a", "domain"),
        (r#"{"default":"cloud","domains":{"A.b":"cloud","a.B":"cloud"}}"#, "domains", "twice"),
    ];
    for (settings, path, message) in cases {
        let problems = configured::<Split>(settings, &upstreams()).err().unwrap();
        assert_eq!(problems[0].path, path, "{settings}: {problems:?}");
        assert!(problems[0].message.contains(message), "{settings}: {}", problems[0].message);
    }
}
