//! `kill -9` under load: what was answered 250 is at the next hop; what arrives twice had no reply.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use wavegate_tests::harness::{Client, Config, PATIENCE, Relay, recording};

/// Clients at a time.
const CLIENTS: u32 = 16;

/// Sends one message; the reply's first digit, or nothing when the connection ended before it.
fn send(client: &mut Client, name: &str) -> Option<char> {
    client.try_message(&format!("Subject: {name}\r\n\r\nx\r\n"))?.chars().next()
}

#[test]
fn nothing_answered_250_is_missing_and_only_what_was_not_answered_comes_twice() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).relay("received = false");
    let (answered, unanswered) = (Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
    for round in 0_u64..5 {
        let mut relay = Relay::start(&config);
        let before = sink.counts().messages;
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (relay, answered, unanswered) = (relay.addr(), &answered, &unanswered);
                let mut client = Client::greeted(relay);
                client.expect("EHLO client.example", "250");
                scope.spawn(move || {
                    for count in 0.. {
                        let name = format!("{round}-{number}-{count}");
                        match send(&mut client, &name) {
                            Some('2') => answered.lock().unwrap().push(name),
                            Some(_) => panic!("{name} was refused"),
                            None => {
                                unanswered.lock().unwrap().insert(name);
                                return;
                            }
                        }
                    }
                });
            }
            // In the middle of it, elsewhere each time.
            assert!(sink.wait_messages(before + 200 + 37 * round, PATIENCE));
            relay.crash();
        });
    }
    assert!(!unanswered.lock().unwrap().is_empty());
    // As a sender does: what got no reply is sent again.
    let relay = Relay::start(&config);
    let mut client = relay.hello();
    for name in unanswered.lock().unwrap().iter() {
        assert_eq!(send(&mut client, name), Some('2'));
    }
    let mut arrived: BTreeMap<String, u32> = BTreeMap::new();
    for message in sink.messages() {
        let content = String::from_utf8(message.content.unwrap()).unwrap();
        let name = content.lines().next().unwrap().strip_prefix("Subject: ").unwrap().to_owned();
        *arrived.entry(name).or_default() += 1;
    }
    for name in answered.lock().unwrap().iter() {
        assert_eq!(arrived.get(name), Some(&1), "{name} was answered 250");
    }
    for (name, times) in &arrived {
        let allowed = if unanswered.lock().unwrap().contains(name) { 2 } else { 1 };
        assert!(*times <= allowed, "{name} arrived {times} times");
    }
    assert_eq!(sink.counts().bad_contents, 0);
}
