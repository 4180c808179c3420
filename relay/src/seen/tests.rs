//! The table: what it remembers, for how long, and what damage costs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use proptest::prelude::*;
use wavegate_smtp::{Address, Enhanced};

use super::*;

fn id(number: u64) -> [u8; 16] {
    format!("{number:016}").into_bytes().try_into().unwrap()
}

/// What was answered for a recipient.
fn of(pasts: &Pasts, recipient: Recipient) -> Option<&Past> {
    pasts.by_recipient().get(&recipient).map(|&at| &pasts.all()[at])
}

fn rcpt(address: &str) -> Recipient {
    Recipient::new(&Rcpt::new(Address::parse(address).unwrap()))
}

fn past(recipients: &[&str], how: How, code: u16) -> Past {
    let class = u8::try_from(code / 100).unwrap();
    let reply = Reply::new(code, Some(Enhanced(class, 0, 0)), "said so".to_owned()).unwrap();
    Past { recipients: recipients.iter().map(|one| rcpt(one)).collect(), how, reply }
}

/// Hands a message on.
fn deliver(seen: &Arc<Seen>, key: Key, answers: Vec<Past>) {
    let Asked::Free { begun, .. } = seen.ask(key) else { panic!("it is under way") };
    begun.end(answers);
}

fn how_of(seen: &Seen, key: Key, recipient: &str) -> Option<How> {
    of(&seen.known(key).0, rcpt(recipient)).map(|past| past.how)
}

#[test]
fn what_was_answered_positively_is_known_and_the_rest_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::open(folder.path(), 100).unwrap();
    let key = Key::new("edge-1", id(1));
    let answers = vec![
        past(&["a@x.example", "b@x.example"], How::NextHop, 250),
        past(&["c@x.example"], How::NextHop, 550),
        past(&["d@x.example"], How::Stored, 250),
        past(&["e@x.example"], How::InDoubt, 451),
    ];
    deliver(&seen, key, answers);
    let hows = ["a", "b", "c", "d", "e"].map(|one| how_of(&seen, key, &format!("{one}@x.example")));
    assert_eq!(hows, [Some(How::NextHop), Some(How::NextHop), None, Some(How::Stored), None]);
    assert_eq!(how_of(&seen, Key::new("edge-2", id(1)), "a@x.example"), None, "another edge's");
    assert_eq!(how_of(&seen, Key::new("edge-1", id(2)), "a@x.example"), None, "another message");
    // Of the one in doubt it is known that it may have been sent on.
    assert!(seen.known(key).1 && !seen.known(Key::new("edge-1", id(2))).1);
    assert!(matches!(seen.ask(key), Asked::Free { forgetful: true, .. }));
    // The one that was refused is sent again, and taken.
    deliver(&seen, key, vec![past(&["c@x.example"], How::NextHop, 250)]);
    assert_eq!(how_of(&seen, key, "c@x.example"), Some(How::NextHop));
    assert_eq!(seen.usage().entries, 1);
    // The same address with other parameters is another recipient.
    let other = Rcpt {
        orcpt: Some("rfc822;q".into()),
        ..Rcpt::new(Address::parse("a@x.example").unwrap())
    };
    assert_eq!(of(&seen.known(key).0, Recipient::new(&other)), None);
}

#[test]
fn a_restart_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (1..=30).map(|number| Key::new("edge-1", id(number))).collect();
    let seen = Seen::open(folder.path(), 40).unwrap();
    for key in &keys {
        deliver(&seen, *key, vec![past(&["a@x.example"], How::NextHop, 250)]);
    }
    let before = seen.usage();
    drop(seen);
    let seen = Seen::open(folder.path(), 40).unwrap();
    assert_eq!(seen.usage(), before);
    assert!(keys.iter().all(|key| how_of(&seen, *key, "a@x.example").is_some()));
    // And goes on.
    deliver(&seen, Key::new("edge-1", id(31)), vec![past(&["a@x.example"], How::Stored, 250)]);
    drop(seen);
    let seen = Seen::open(folder.path(), 40).unwrap();
    assert_eq!(how_of(&seen, Key::new("edge-1", id(31)), "a@x.example"), Some(How::Stored));
}

#[test]
fn it_is_bounded_and_says_what_it_may_have_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Seen::open(folder.path(), 20).unwrap();
    let forgetful = |seen: &Arc<Seen>, number| match seen.ask(Key::new("edge-1", id(number))) {
        Asked::Free { forgetful, .. } => forgetful,
        Asked::Underway(_) => panic!("it is not under way"),
    };
    for number in 1..=1000 {
        assert!(number > 20 || !forgetful(&seen, number), "nothing is forgotten yet");
        deliver(
            &seen,
            Key::new("edge-1", id(number)),
            vec![past(&["a@x.example"], How::NextHop, 250)],
        );
        assert!(seen.usage().entries <= 20);
        if number == 500 {
            drop(seen);
            seen = Seen::open(folder.path(), 20).unwrap();
        }
    }
    for number in 1..=1000 {
        let known = how_of(&seen, Key::new("edge-1", id(number)), "a@x.example").is_some();
        assert_eq!(known, !forgetful(&seen, number), "{number}");
    }
    assert!(!forgetful(&seen, 1000) && !forgetful(&seen, 990) && forgetful(&seen, 979));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "files of two generations");
    drop(seen);
    let seen = Seen::open(folder.path(), 20).unwrap();
    assert!(!forgetful(&seen, 990) && forgetful(&seen, 979), "a restart remembers that too");
}

#[test]
fn messages_with_many_recipients_are_bounded_by_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::open(folder.path(), 100).unwrap();
    let all: Vec<String> = (0..1000).map(|number| format!("r{number}@x.example")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for number in 0..50 {
        deliver(&seen, Key::new("edge-1", id(number)), vec![past(&all, How::NextHop, 250)]);
        // One message beyond the bound of each generation.
        assert!(seen.usage().bytes <= 2 * (50 * 256 + 8200), "{:?}", seen.usage());
    }
    assert_eq!(how_of(&seen, Key::new("edge-1", id(49)), "r999@x.example"), Some(How::NextHop));
}

#[test]
fn a_torn_tail_is_cut_away_and_a_damaged_line_is_all_that_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (1..=5).map(|number| Key::new("edge-1", id(number))).collect();
    let seen = Seen::open(folder.path(), 100).unwrap();
    for key in &keys {
        deliver(&seen, *key, vec![past(&["a@x.example"], How::NextHop, 250)]);
    }
    drop(seen);
    let file = folder.path().join("0000000000000001.seen");
    let whole = fs::read(&file).unwrap();
    let known = || {
        let seen = Seen::open(folder.path(), 100).unwrap();
        let known = keys.iter().map(|key| how_of(&seen, *key, "a@x.example").is_some());
        known.collect::<Vec<_>>()
    };
    let line = (whole.len() - 32) / 5;
    for cut in 1..line {
        fs::write(&file, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(known(), [true, true, true, true, false], "{cut} bytes are missing");
        assert_eq!(fs::read(&file).unwrap().len(), whole.len() - line, "the tail is cut away");
    }
    for at in 32 + line..32 + 2 * line {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&file, &damaged).unwrap();
        assert_eq!(known(), [true, false, true, true, true], "byte {at} is damaged");
    }
    // What comes behind damage is read too.
    let seen = Seen::open(folder.path(), 100).unwrap();
    deliver(&seen, Key::new("edge-1", id(6)), vec![past(&["a@x.example"], How::NextHop, 250)]);
    drop(seen);
    let seen = Seen::open(folder.path(), 100).unwrap();
    assert!(how_of(&seen, Key::new("edge-1", id(6)), "a@x.example").is_some());
}

#[test]
fn a_file_of_another_version_counts_as_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("0000000000000007.seen");
    fs::write(&file, b"WGSEEN\0\x02 something that only a later version can read").unwrap();
    let seen = Seen::open(folder.path(), 100).unwrap();
    assert_eq!(seen.usage(), Usage::default());
    deliver(&seen, Key::new("edge-1", id(1)), vec![past(&["a@x.example"], How::NextHop, 250)]);
    drop(seen);
    assert_eq!(Seen::open(folder.path(), 100).unwrap().usage().entries, 1);
}

#[tokio::test]
async fn who_asks_again_is_given_what_comes_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::open(folder.path(), 100).unwrap();
    let key = Key::new("edge-1", id(1));
    let Asked::Free { begun, .. } = seen.ask(key) else { panic!("nobody has it") };
    let Asked::Underway(one) = seen.ask(key) else { panic!("it is under way") };
    let Asked::Underway(two) = seen.ask(key) else { panic!("it is under way") };
    assert_eq!(seen.usage().underway, 1);
    let waiting = tokio::spawn(one.ended());
    begun.end(vec![past(&["a@x.example"], How::NextHop, 452)]);
    let code =
        |pasts: Option<Arc<Pasts>>| of(&pasts.unwrap(), rcpt("a@x.example")).unwrap().reply.code();
    assert_eq!(code(waiting.await.unwrap()), 452, "though it is not remembered");
    assert_eq!(code(two.ended().await), 452);
    assert_eq!((seen.usage().underway, seen.usage().entries), (0, 0));
    // Whoever had it has gone without an end.
    let Asked::Free { begun, .. } = seen.ask(key) else { panic!("it is new again") };
    let Asked::Underway(waits) = seen.ask(key) else { panic!("it is under way") };
    drop(begun);
    assert_eq!(waits.ended().await, None);
    assert!(matches!(seen.ask(key), Asked::Free { .. }));
}

#[test]
fn long_replies_are_kept_short() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::open(folder.path(), 100).unwrap();
    let key = Key::new("edge-1", id(1));
    let reply = Reply::new(250, Some(Enhanced(2, 6, 0)), "x".repeat(400)).unwrap();
    let long = Past { recipients: vec![rcpt("a@x.example")], how: How::NextHop, reply };
    deliver(&seen, key, vec![long.clone()]);
    assert_eq!(of(&seen.known(key).0, rcpt("a@x.example")), Some(&long));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0..400_usize) {
        let folder = tempfile::tempdir().unwrap();
        let seen = Seen::open(folder.path(), 100).unwrap();
        for number in 0..4 {
            deliver(&seen, Key::new("e", id(number)), vec![past(&["a@x.example"], How::NextHop, 250)]);
        }
        drop(seen);
        let file = folder.path().join("0000000000000001.seen");
        let mut content = fs::read(&file).unwrap();
        let at = at % content.len();
        content.splice(at..at, bytes);
        fs::write(&file, content).unwrap();
        let usage = Seen::open(folder.path(), 100).unwrap().usage();
        prop_assert!(usage.entries <= 4);
        prop_assert!(at < 32 || usage.entries >= 3, "{usage:?} with bytes at {at}");
    }
}
