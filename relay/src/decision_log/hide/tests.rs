//! That nothing of what is hidden is left, and that what is left can be asked again.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{
    decision::{LimitSet, PolicyReply, RateLimit},
    plan::Timestamp,
};

fn hide(local_parts: Told, headers: Told) -> Hide {
    Hide { key: [7; 32], local_parts, headers }
}

fn transaction(sender: &str, recipients: &[&str]) -> TransactionRecord {
    let recipients = recipients.iter().map(|&to| to.to_owned()).collect();
    TransactionRecord { sender: sender.to_owned(), recipients, ..TransactionRecord::default() }
}

fn refusal(text: &str) -> Said {
    let (code, enhanced, text) = (550, "5.7.1".to_owned(), text.to_owned());
    Said::Answer(Answer::Decide(FreezeDecision::Refuse(PolicyReply { code, enhanced, text })))
}

fn text(said: &Said) -> String {
    let mut found = Vec::new();
    texts(&mut said.clone(), &mut |text| found.push(text.clone()));
    found.join("|")
}

/// Hides a question and its answer: transaction, words, what is hidden.
fn hidden(
    with: &Hide,
    transaction: TransactionRecord,
    mut said: Said,
) -> (TransactionRecord, String, Vec<String>) {
    let mut question = Question::Decide { transaction };
    let hidden = with.hide(&mut question, &mut said);
    (question.transaction().unwrap().clone(), text(&said), hidden)
}

#[test]
fn local_parts_are_hashed_and_domains_kept() {
    let with = hide(Told::Hashed, Told::Hashed);
    let to = ["Ada@Example.ORG", "ada@example.org", "\"a b\"@example.org", "Postmaster"];
    let (tx, _, hidden) = hidden(&with, transaction("", &to), refusal("never"));
    assert_eq!((tx.sender.as_str(), tx.recipients[3].as_str()), ("", "Postmaster"));
    assert!(hidden.is_empty());
    let (locals, domains): (Vec<_>, Vec<_>) =
        tx.recipients[..3].iter().map(|to| to.split_once('@').unwrap()).unzip();
    assert_eq!(domains, ["Example.ORG", "example.org", "example.org"]);
    assert!(locals.iter().all(|local| local.len() == 16));
    assert!(tx.recipients.iter().all(|to| to == "Postmaster" || wavegate_smtp_takes(to)));
    let different: BTreeSet<_> = locals.iter().collect();
    assert_eq!(different.len(), 3, "Ada and ada may be two people");
    let other = Hide { key: [8; 32], ..with };
    let (again, ..) = self::hidden(&other, transaction("", &to), refusal("never"));
    assert_ne!(again.recipients[0], tx.recipients[0], "without the key nobody can guess");
}

fn wavegate_smtp_takes(address: &str) -> bool {
    wavegate_smtp::Address::parse(address).is_ok()
}

#[test]
fn an_answer_that_passes_an_address_on_passes_its_hash_on() {
    let with = hide(Told::Hashed, Told::Hashed);
    let asked = transaction("news@acme.example", &["jo%x@customer.example"]);
    for words in [
        "{} may not",
        "not from {}",
        "0:recipient={},upstream=legacy",
        "<{}>: no (mail of customer.example)",
    ] {
        for (given, number) in [("news@acme.example", 0), ("jo%x@customer.example", 1)] {
            let (tx, text, hidden) =
                hidden(&with, asked.clone(), refusal(&words.replace("{}", given)));
            let hash = if number == 0 { &tx.sender } else { &tx.recipients[0] };
            assert_eq!(text, words.replace("{}", hash));
            assert!(hidden.is_empty(), "{words}: {hidden:?}");
        }
    }
    // As the standard throttling policy has it in its keys.
    let (tx, text, hidden) = hidden(&with, asked, refusal("0:to=jo%25x@customer.example"));
    assert_eq!(text, format!("0:to={}", tx.recipients[0]));
    assert!(hidden.is_empty());
}

#[test]
fn a_local_part_alone_is_hidden_and_said_to_be() {
    let with = hide(Told::Hashed, Told::Hashed);
    let asked = transaction("news@acme.example", &["jo@jo.example"]);
    let (_, text, hidden) = hidden(&with, asked.clone(), refusal("Jo, join jo.example! (NEWS)"));
    assert!(!text.contains("Jo") && !text.contains("NEWS"), "{text}");
    assert!(text.contains(", join jo.example! ("), "{text}");
    assert_eq!(hidden, [ANSWER]);
    // Nor does the name of the instance become another.
    let instance = Some(crate::decision::record::InstanceRecord {
        name: "acme-jo-1".to_owned(),
        ..Default::default()
    });
    let (_, text, hidden) = self::hidden(
        &with,
        TransactionRecord { instance, ..asked },
        refusal("instance acme-jo-1 is being upgraded"),
    );
    assert_eq!((text.as_str(), &hidden[..]), ("instance acme-jo-1 is being upgraded", &[][..]));
}

#[test]
fn headers_and_names_of_users_are_hashed_whole() {
    let asked = || TransactionRecord {
        attributes: [
            ("header:subject", "Your invoice, Ada"),
            ("header:from", "Ada <ada.l@example.org>"),
            ("auth-user", "ada"),
            ("helo", "ada.example.org"),
            ("last-reply", "550 <jo@customer.example>: no such user"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        ..transaction("news@acme.example", &["jo@customer.example"])
    };
    let value = |tx: &TransactionRecord, name: &str| {
        tx.attributes.iter().find(|(known, _)| known == name).unwrap().1.clone()
    };
    let words = || refusal("not \"Your invoice, Ada\" of ADA.L@example.org");
    let (tx, text, hidden) = hidden(&hide(Told::Hashed, Told::Hashed), asked(), words());
    assert_eq!(hidden, [ANSWER, "auth-user", "header:from", "header:subject", "last-reply"]);
    assert_eq!(value(&tx, "helo"), "ada.example.org");
    let shown = format!("{tx:?}{text}").to_lowercase();
    for clear in ["invoice", "ada.l", "jo@", "news@", "\"ada\""] {
        assert!(!shown.contains(clear), "{clear}: {shown}");
    }
    assert!(value(&tx, "last-reply").contains(&tx.recipients[0]));

    let (tx, text, hidden) = self::hidden(&hide(Told::Hashed, Told::Plain), asked(), words());
    assert_eq!(value(&tx, "header:subject"), "Your invoice, Ada");
    assert!(!value(&tx, "header:from").contains("ada.l"), "an address is one anywhere");
    assert!(text.contains("Your invoice") && !text.contains("ADA.L"), "{text}");
    assert_eq!(hidden, ["auth-user", "header:from", "last-reply"]);

    let (tx, text, hidden) = self::hidden(&hide(Told::Plain, Told::Plain), asked(), words());
    assert_eq!(tx, asked());
    assert_eq!(text, self::text(&words()));
    assert!(hidden.is_empty());
}

#[test]
fn keys_of_an_outcome_stay_keys_of_the_answer() {
    let with = hide(Told::Hashed, Told::Hashed);
    let key = "3:recipient=ada@example.org,upstream=legacy".to_owned();
    let until = Timestamp(1_768_888_800_000);
    let mut question = Question::Observe {
        upstream: "legacy".to_owned(),
        keys: vec![key.clone(), "3:all".to_owned()],
        code: 450,
        text: "4.2.1 <ada@example.org>: try later".to_owned(),
        now: until,
    };
    let mut said = Said::Answer(Answer::Observe(vec![Lesson::Pause { key, until }]));
    assert!(with.hide(&mut question, &mut said).is_empty());
    let Question::Observe { keys, text: words, .. } = question else { panic!() };
    assert_eq!(text(&said), keys[0]);
    assert_eq!(keys[1], "3:all");
    assert!(keys[0].starts_with("3:") && keys[0].ends_with("@example.org,upstream=legacy"));
    assert!(!keys[0].contains("ada") && !words.contains("ada"), "{keys:?} {words}");
}

#[test]
fn limits_are_hidden_by_their_keys_alone() {
    let with = hide(Told::Hashed, Told::Hashed);
    let rate =
        |key: &str| RateLimit { key: key.to_owned(), quantity: 1, per_ms: 1000, burst: 1, cost: 1 };
    let limits = |key: &str| LimitSet { rates: vec![rate(key)], concurrency: Vec::new() };
    let mut question = Question::Limits {
        transaction: transaction("news@acme.example", &["jo@customer.example"]),
        upstream: "news".to_owned(),
        recipients: vec![0],
    };
    let mut said = Said::Answer(Answer::Limits(limits("0:to=jo@customer.example")));
    assert!(with.hide(&mut question, &mut said).is_empty());
    let Question::Limits { transaction, upstream, .. } = &question else { panic!() };
    assert_eq!(upstream, "news");
    let key = format!("0:to={}", transaction.recipients[0]);
    assert_eq!(said, Said::Answer(Answer::Limits(limits(&key))));
}
