#![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]

use super::*;
use crate::decision::{PolicyReply, RouteTarget};

fn hold(until: Option<u64>, reason: &str) -> Said {
    let until = until.map(Timestamp);
    Said::Answer(FreezeDecision::Hold { until, reason: reason.to_owned() }.into())
}

fn proceed() -> Said {
    Said::Answer(FreezeDecision::Proceed.into())
}

fn failure() -> Said {
    Said::Failure { kind: "trap".to_owned(), detail: "unreachable".to_owned() }
}

fn route(upstream: &str) -> Said {
    let target = RouteTarget { upstream: upstream.to_owned(), fallbacks: Vec::new() };
    Said::Answer(RouteDecision::All(target).into())
}

#[test]
fn differences_have_a_class() {
    let reply = PolicyReply { code: 451, enhanced: "4.7.1".to_owned(), text: "later".to_owned() };
    let defer = Said::Answer(FreezeDecision::Defer(reply).into());
    for (old, new, class) in [
        (proceed(), proceed(), Class::Same),
        (proceed(), hold(None, "a"), Class::Harder),
        (hold(None, "a"), proceed(), Class::Softer),
        (hold(None, "a"), hold(None, "b"), Class::Text),
        (hold(None, "a"), hold(Some(1), "a"), Class::Softer),
        (hold(Some(1), "a"), hold(Some(2), "b"), Class::Harder),
        (hold(Some(1), "a"), defer, Class::Harder),
        (route("legacy"), route("cloud"), Class::Route),
        (route("legacy"), proceed(), Class::NotReplayable),
        (proceed(), failure(), Class::Error),
        (failure(), proceed(), Class::NotReplayable),
    ] {
        assert_eq!(Class::of(&old, &new), class, "{old:?}, then {new:?}");
    }
}

#[test]
fn a_case_says_only_what_it_is_about() {
    let text = "{\"ask\": \"decide\", \"transaction\": {\"now\": \"2026-03-01T22:00:00Z\", \
                \"instance\": {\"phase\": \"frozen\"}}}";
    let question: Question = serde_json::from_str(text).unwrap();
    let transaction = question.transaction().unwrap();
    assert_eq!(transaction.now, Timestamp(1_772_402_400_000));
    assert_eq!(transaction.instance.as_ref().unwrap().phase, Phase::Frozen);
    assert_eq!(transaction.sender, "news@mkt.acme.example");
    for wrong in [
        "{\"ask\": \"decide\", \"transaction\": {\"senders\": \"a@b\"}}",
        "{\"ask\": \"decided\"}",
        "{\"ask\": \"decide\", \"transaction\": {\"now\": \"tomorrow\"}}",
        "{\"ask\": \"decide\", \"transaction\": {\"instance\": {\"phase\": \"frosty\"}}}",
    ] {
        assert!(serde_json::from_str::<Question>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_question_survives_json_and_being_borrowed() {
    let window =
        WindowRecord { wave: "w".to_owned(), opens: Timestamp(1000), closes: Timestamp(2001) };
    let transaction = TransactionRecord {
        received: Some(Timestamp(77)),
        instance: Some(InstanceRecord { window: Some(window), ..InstanceRecord::default() }),
        attributes: vec![("helo".to_owned(), "mx".to_owned())],
        upstreams: vec![UpstreamState { name: "cloud".to_owned(), ..UpstreamState::default() }],
        ..TransactionRecord::default()
    };
    let (upstream, keys) = ("cloud".to_owned(), vec!["k".to_owned()]);
    for question in [
        Question::Decide { transaction: transaction.clone() },
        Question::Route { transaction: transaction.clone() },
        Question::Limits { transaction, upstream: upstream.clone(), recipients: vec![0] },
        Question::Observe { upstream, keys, code: 450, text: "slow".to_owned(), now: Timestamp(5) },
    ] {
        let json = serde_json::to_string(&question).unwrap();
        assert_eq!(serde_json::from_str::<Question>(&json).unwrap(), question, "{json}");
        assert_eq!(question.with(|ask| ask.to_question()), question);
    }
    for said in [hold(Some(5), "a"), proceed(), failure(), route("cloud")] {
        let json = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<Said>(&json).unwrap(), said, "{json}");
    }
}
