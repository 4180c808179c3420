//! Direct hand-off: what arrives is what was sent, and what the client hears is what the upstream
//! said. Through real sockets to the real relay.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};

use wavegate_tests::harness::{
    Closed, Config, PATIENCE, Relay, Script, recording, sink, sink_at, until,
};
use wavegate_tests::load;
use wavegate_tests::sink::{Extensions, SinkHandle};

/// What cannot go on at once stays with the sender.
const DIRECT: &str = "handoff = \"direct\"";
const KNOWN: &str = "extensions = [\"8BITMIME\"]";

fn last(sink: &SinkHandle) -> Vec<u8> {
    sink.messages().pop().unwrap().content.unwrap()
}

#[test]
fn bytes_arrive_unchanged_under_one_received_line() {
    for chunking in [false, true] {
        let sink = sink(Extensions { chunking, ..Extensions::default() }, &[]);
        let relay = Relay::start(&Config::to(&[sink.addr()]));
        relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
        let mut client = relay.hello();
        // Folded, odd, 8-bit, trailing blanks, no header at all: nothing of it is ours to touch.
        for (wire, plain) in [
            (&b"Subject: a\r\n\tb \r\nX:y\r\n\r\n\x80\xff \t \r\n\r\n"[..], None),
            (b"no header here\r\n", None),
            (b"\r\n\r\n\r\n", None),
            (b"DKIM-Signature: v=1;\r\n b=AbC=\r\n  =\r\nFrom: <A@B>\r\n\r\nx\r\n", None),
            (b"a: b\r\n\r\n..\r\n...x\r\n", Some(&b"a: b\r\n\r\n.\r\n..x\r\n"[..])),
        ] {
            client.expect("MAIL FROM:<news@mkt.acme.example> BODY=8BITMIME", "250");
            client.expect("RCPT TO:<customer@example.org>", "250");
            client.expect("DATA", "354");
            client.send(wire);
            client.send(".\r\n");
            client.expect_reply("250");
            let content = last(&sink);
            let plain = plain.unwrap_or(wire);
            assert!(content.ends_with(plain), "{}", content.escape_ascii());
            let head = &content[..content.len() - plain.len()];
            let head = std::str::from_utf8(head).unwrap();
            assert!(head.starts_with("Received: from client.example ("), "{head}");
            assert!(head.contains("edge-1.example.net") && head.contains("ESMTP"), "{head}");
            let unfolded = head.replace("\r\n\t", " ").replace("\r\n ", " ");
            assert_eq!(unfolded.matches("\r\n").count(), 1, "{head}");
            assert_eq!(sink.messages().pop().unwrap().chunked, chunking);
        }
        let counts = sink.counts();
        assert_eq!((counts.violations, counts.bad_contents), (0, 0));
    }
}

#[test]
fn no_received_line_where_none_is_wanted() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).relay("received = false"));
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(last(&sink), b"Subject: small\r\n\r\nhello\r\n");
}

#[test]
fn a_large_message_is_spilled_and_arrives_exactly() {
    for chunking in [false, true] {
        let sink = sink(Extensions { chunking, ..Extensions::default() }, &[]);
        let relay = Relay::start(&Config::to(&[sink.addr()]).relay("received = false"));
        let message = load::message::build(20_000_000, "mkt.acme.example");
        let before = relay.memory();
        assert!(relay.hello().transact(&message.stuffed).starts_with("250"));
        assert!(last(&sink) == message.plain, "the bytes differ");
        let grown = relay.memory().saturating_sub(before);
        assert!(grown < 10_000_000, "the message was kept in memory: {grown} more bytes");
    }
}

#[test]
fn many_messages_a_session_use_one_connection() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).upstream(KNOWN));
    let mut client = relay.hello();
    for _ in 0..50 {
        assert!(client.small().starts_with("250"));
    }
    assert_eq!((sink.counts().messages, sink.counts().connections), (50, 1));
}

#[test]
fn several_recipients_go_in_one_transaction() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]));
    let mut client = relay.hello();
    client.envelope("a@example.com", "one@example.org");
    client.expect("RCPT TO:<two@example.org>", "250");
    client.expect("RCPT TO:<three@example.org>", "250");
    client.expect("DATA", "354");
    client.send("x\r\n.\r\n");
    client.expect_reply("250");
    let messages = sink.messages();
    assert_eq!(messages.len(), 1);
    let to: Vec<_> = messages[0].to.iter().map(|to| to.address.as_str()).collect();
    assert_eq!(to, ["one@example.org", "two@example.org", "three@example.org"]);
}

#[test]
fn the_upstreams_replies_come_through_verbatim() {
    for (fault, reply) in [
        ("end:1=250 2.6.0 <x@y> Queued as 4711; thanks", "250 2.6.0 <x@y> Queued as 4711; thanks"),
        ("end:1=250 ok", "250 ok"),
        (
            "end:1=550-5.7.1 This message\r\n550-5.7.1 is not wanted,\r\n550 5.7.1 see https://x",
            "550-5.7.1 This message\n550-5.7.1 is not wanted,\n550 5.7.1 see https://x",
        ),
        ("end:1=452 4.2.2 over quota", "452 4.2.2 over quota"),
        ("mail:1=553 5.1.8 bad sender", "553 5.1.8 bad sender"),
        ("rcpt:1=550 5.1.1 no such user", "550 5.1.1 no such user"),
        ("rcpt:1=450 4.2.1 greylisted", "450 4.2.1 greylisted"),
        ("data:1=451 4.3.0 not now", "451 4.3.0 not now"),
    ] {
        for pipelining in [true, false] {
            let sink = sink(Extensions { pipelining, ..Extensions::default() }, &[fault]);
            let relay = Relay::start(&Config::to(&[sink.addr()]).upstream(DIRECT));
            let mut client = relay.hello();
            assert_eq!(client.small(), reply, "pipelining {pipelining}");
            assert!(client.small().starts_with("250"), "{fault}: in step again");
            let accepted = if reply.starts_with('2') { 2 } else { 1 };
            assert_eq!(sink.counts().messages, accepted, "{fault}");
        }
    }
}

#[test]
fn no_250_before_the_upstreams() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (reached, end_reached) = mpsc::channel();
    let upstream = Script::start(move |_, peer| {
        peer.accept_all(&[], |_| {
            reached.send(()).unwrap();
            let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
            b"250 2.0.0 now\r\n".to_vec()
        });
    });
    let relay = Relay::start(&Config::to(&[upstream.addr()]).upstream(KNOWN));
    let mut client = relay.hello();
    client.begin_data();
    client.send("x\r\n.\r\n");
    end_reached.recv_timeout(PATIENCE).unwrap();
    // All that could be said early would be said by now.
    assert!(!client.has_reply_within(std::time::Duration::from_millis(300)));
    go.send(()).unwrap();
    assert_eq!(client.reply(), "250 2.0.0 now");
}

#[test]
fn what_was_not_committed_is_tried_on_the_other_target_without_a_duplicate() {
    // Dies at each place before the end of data, on its first connection and all others.
    for fault in ["connect:*=close", "ehlo:*=close", "mail:*=close", "rcpt:*=close", "data:*=close"]
    {
        let bad = sink(Extensions::default(), &[fault]);
        let good = recording();
        let config = Config::to(&[bad.addr(), good.addr()]).upstream(KNOWN);
        let relay = Relay::start(&config);
        for _ in 0..4 {
            let reply = relay.hello().small();
            assert!(reply.starts_with("250"), "{fault}: {reply}");
        }
        assert_eq!((bad.counts().messages, good.counts().messages), (0, 4), "{fault}");
    }
}

#[test]
fn a_421_before_the_end_of_data_is_tried_on_the_other_target() {
    for fault in ["connect:*=421", "mail:*=421", "rcpt:*=421", "data:*=421"] {
        let bad = sink(Extensions::default(), &[fault]);
        let good = recording();
        let relay = Relay::start(&Config::to(&[bad.addr(), good.addr()]).upstream(KNOWN));
        for _ in 0..4 {
            let reply = relay.hello().small();
            assert!(reply.starts_with("250"), "{fault}: {reply}");
        }
        assert_eq!((bad.counts().messages, good.counts().messages), (0, 4), "{fault}");
    }
}

#[test]
fn in_doubt_is_said_and_not_tried_again() {
    let (bad, good) = (sink(Extensions::default(), &["end:*=close"]), recording());
    // A fresh connection for each message, or the good target's would be used for all.
    let config = Config::to(&[bad.addr(), good.addr()]).upstream("messages_per_connection = 1");
    let relay = Relay::start(&config.upstream(KNOWN).upstream("eject_after = 1000"));
    let mut doubted = 0;
    let mut client = relay.hello();
    for sent in 1.. {
        let reply = client.small();
        if reply.starts_with("451 4.4.2") {
            doubted += 1;
        } else {
            assert!(reply.starts_with("250"), "{reply}");
        }
        assert_eq!(good.counts().messages + doubted, sent, "each message once, here or there");
        if doubted == 3 {
            break;
        }
        assert!(sent < 100, "the bad target is never used");
    }
    assert_eq!(bad.counts().messages, 0);
}

#[test]
fn a_reply_that_never_comes_is_in_doubt_at_the_final_timeout() {
    let sink = sink(Extensions::default(), &["end:1=silent"]);
    let config = Config::to(&[sink.addr()]).upstream("final_timeout = \"300ms\"").upstream(KNOWN);
    let relay = Relay::start(&config);
    let mut client = relay.hello();
    let reply = client.small();
    assert!(reply.starts_with("451 4.4.2"), "{reply}");
    assert!(client.small().starts_with("250"));
}

#[test]
fn a_stale_pooled_connection_never_costs_a_message() {
    // Each connection takes one message, then is closed without a word; the relay may find out
    // only by using it.
    let connections = Arc::new(AtomicUsize::new(0));
    let messages = Arc::new(AtomicUsize::new(0));
    let (opened, taken) = (Arc::clone(&connections), Arc::clone(&messages));
    let upstream = Script::start(move |_, peer| {
        opened.fetch_add(1, Ordering::SeqCst);
        let mut play = || {
            peer.greet(&["8BITMIME"])?;
            peer.envelope()?;
            peer.say("354 go on\r\n");
            peer.content()?;
            taken.fetch_add(1, Ordering::SeqCst);
            peer.say("250 ok\r\n");
            Some(())
        };
        let _closed: Option<()> = play();
    });
    let relay = Relay::start(&Config::to(&[upstream.addr()]).upstream(KNOWN));
    let mut client = relay.hello();
    for sent in 1..=30 {
        let reply = client.small();
        assert!(reply.starts_with("250"), "message {sent}: {reply}");
    }
    assert_eq!(messages.load(Ordering::SeqCst), 30);
    assert_eq!(connections.load(Ordering::SeqCst), 30);
}

#[test]
fn several_stale_pooled_connections_at_once_cost_no_message() {
    // Six idle connections go stale together, which shows only when one is used: more than an
    // attempt may use up one by one.
    let together = Barrier::new(6);
    let upstream = Script::start(move |number, peer| {
        if number > 6 {
            return peer.accept_all(&[], |_| b"250 fresh\r\n".to_vec());
        }
        let mut play = || {
            peer.greet(&[])?;
            peer.envelope()?;
            peer.say("354 go on\r\n");
            peer.content()?;
            together.wait();
            peer.say("250 old\r\n");
            peer.line()
        };
        let _closed: Option<String> = play();
    });
    let relay = Relay::start(&Config::to(&[upstream.addr()]).upstream("extensions = []"));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert_eq!(relay.hello().small(), "250 old"));
        }
    });
    for _ in 0..6 {
        assert_eq!(relay.hello().small(), "250 fresh");
    }
}

#[test]
fn one_of_two_targets_down_costs_nothing() {
    let (down, up) = (Closed::new(), recording());
    let relay = Relay::start(&Config::to(&[down.addr(), up.addr()]));
    for _ in 0..20 {
        let reply = relay.hello().small();
        assert!(reply.starts_with("250"), "{reply}");
    }
    assert_eq!(up.counts().messages, 20);
}

#[test]
fn all_targets_down_is_said_at_once_and_recovers() {
    let (one, two) = (Closed::new(), Closed::new());
    let config = Config::to(&[one.addr(), two.addr()])
        .upstream("eject_after = 1\neject_for = \"50ms\"\neject_max = \"100ms\"")
        .upstream(KNOWN)
        .upstream(DIRECT);
    let relay = Relay::start(&config);
    let mut client = relay.hello();
    for _ in 0..5 {
        let begun = std::time::Instant::now();
        let reply = client.small();
        assert!(reply.starts_with("451 4.4.1"), "{reply}");
        assert!(reply.contains("up"), "it names what blocks it: {reply}");
        assert!(begun.elapsed().as_secs() < 3, "at once");
    }
    let back = sink_at(two.free(), Extensions::default(), &[]);
    until("the relay finds the target again", || client.small().starts_with("250").then_some(()));
    assert_eq!(back.counts().messages, 1);
}
