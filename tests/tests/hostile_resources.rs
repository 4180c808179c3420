//! Clients that take more than their share: time, connections, memory, disk. And what EHLO may
//! offer. One test for each row of the list of threats.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::time::{Duration, Instant};

use wavegate_tests::harness::{Client, Config, Relay, Script, recording, sink, until};
use wavegate_tests::load;
use wavegate_tests::sink::Extensions;

#[test]
fn slowloris_at_commands_is_closed() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).limits("command_timeout = \"300ms\"");
    let relay = Relay::start(&config);
    let begun = Instant::now();
    let mut silent = relay.client();
    let mut half = relay.client();
    half.send("EHL");
    for client in [&mut silent, &mut half] {
        client.expect_reply("421 4.4.2");
        client.expect_closed();
    }
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn slowloris_that_drips_a_command_gains_nothing() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).limits("command_timeout = \"300ms\"");
    let relay = Relay::start(&config);
    let mut client = relay.client();
    // One byte at a time, faster than the timeout, never a whole command.
    let mut drips = 0;
    while !client.has_reply_within(Duration::from_millis(50)) {
        client.try_send(b"X");
        drips += 1;
        assert!(drips < 100, "a command may take for ever");
    }
    client.expect_reply("421 4.4.2");
    client.expect_closed();
}

#[test]
fn slowloris_in_a_message_is_closed_and_nothing_of_it_leaves() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).limits("data_timeout = \"300ms\""));
    let mut data = relay.hello();
    data.begin_data();
    data.send("Subject: slow\r\n\r\nhalf");
    let mut bdat = relay.hello();
    bdat.envelope("a@example.com", "b@example.org");
    bdat.send("BDAT 1000 LAST\r\nhalf");
    for client in [&mut data, &mut bdat] {
        client.expect_reply("421 4.4.2");
        client.expect_closed();
    }
    assert_eq!(sink.counts().messages, 0);
}

#[test]
fn a_client_that_does_not_read_is_closed() {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .limits("command_timeout = \"300ms\"\nconnections_per_client = 1");
    let relay = Relay::start(&config);
    let mut deaf = relay.hello();
    // More replies than the sockets can hold would be needed to block it; silence will do.
    deaf.try_send(b"NOOP\r\nNOOP\r\n");
    until("its place is free again", || {
        let mut next = Client::connect(relay.addr());
        next.reply().starts_with("220").then_some(())
    });
}

#[test]
fn a_half_message_of_a_client_that_goes_is_not_sent() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]));
    let mut half = relay.hello();
    half.begin_data();
    half.send("Subject: half\r\n\r\nhalf a message\r\n.\r");
    half.shut();
    half.expect_closed();
    let mut half = relay.hello();
    half.envelope("a@example.com", "b@example.org");
    half.send("BDAT 6\r\nS: s\r\n");
    half.expect_reply("250");
    drop(half);
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn connections_in_all_are_capped() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).limits("connections = 3"));
    let mut held: Vec<_> = (0..3).map(|_| relay.client()).collect();
    let mut more = Client::connect(relay.addr());
    more.expect_reply("421 4.7.0");
    more.expect_closed();
    held[0].expect("NOOP", "250");
    held.pop();
    until("a place is free", || {
        Client::connect(relay.addr()).reply().starts_with("220").then_some(())
    });
}

#[test]
fn connections_of_one_client_are_capped() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).limits("connections_per_client = 2"));
    let _held: Vec<_> = (0..2).map(|_| relay.client()).collect();
    let mut more = Client::connect(relay.addr());
    more.expect_reply("421 4.7.0");
    more.expect_closed();
    Client::connect_from([127, 0, 0, 9].into(), relay.addr()).expect_reply("220");
}

#[test]
fn a_message_that_is_too_big_is_refused_early_or_after_its_end() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).limits("message_size = \"100kB\""));
    let mut client = relay.hello();
    assert!(client.ehlo().contains(&"SIZE 100000".to_owned()));
    client.expect("MAIL FROM:<a@example.com> SIZE=100001", "552 5.3.4");
    client.expect("MAIL FROM:<a@example.com> SIZE=99999999999999999999999", "5");
    let message = load::message::build(100_001, "mkt.acme.example");
    let reply = client.transact(&message.stuffed);
    assert!(reply.starts_with("552 5.3.4"), "{reply}");
    let message = load::message::build(100_000, "mkt.acme.example");
    assert!(client.transact(&message.stuffed).starts_with("250"), "the limit itself is allowed");
    // A declared size that is a lie does not help.
    client.expect("MAIL FROM:<a@example.com> SIZE=10", "250");
    client.expect("RCPT TO:<b@example.org>", "250");
    client.expect("DATA", "354");
    client.send(load::message::build(300_000, "mkt.acme.example").stuffed);
    client.expect_reply("552 5.3.4");
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn spill_space_used_up_is_452_and_comes_back() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).limits(
        "message_size = \"1MB\"\nmessage_memory = \"4KiB\"\nmemory = \"1MiB\"\nspill = \"1MiB\"",
    );
    let mut relay = Relay::start(&config);
    let big = load::message::build(700_000, "mkt.acme.example");
    let (most, rest) = big.stuffed.split_at(big.stuffed.len() - 10);
    let mut first = relay.hello();
    first.begin_data();
    first.send(most);
    first.drained();
    let mut second = relay.hello();
    let reply = second.transact(&big.stuffed);
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(second.small().starts_with("250"), "small ones need no room there");
    first.send(rest);
    first.expect_reply("250");
    assert!(second.transact(&big.stuffed).starts_with("250"), "there is room again");
    assert_eq!(sink.counts().messages, 3);
    relay.assert_alive();
}

#[test]
fn memory_pressure_spills_and_loses_nothing() {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .relay("received = false")
        .limits("message_memory = \"256KiB\"\nmemory = \"1MiB\"");
    let relay = Relay::start(&config);
    let message = load::message::build(200_000, "mkt.acme.example");
    let (most, rest) = message.stuffed.split_at(message.stuffed.len() - 5);
    let mut clients: Vec<_> = (0..100).map(|_| relay.hello()).collect();
    let before = relay.memory();
    for client in &mut clients {
        client.begin_data();
        client.send(most);
        client.drained();
    }
    let grown = relay.memory().saturating_sub(before);
    // A part of what is given back stays with the allocator; it does not grow with the messages.
    assert!(grown < 10_000_000, "20 MB of messages took {grown} bytes of memory");
    for client in &mut clients {
        client.send(rest);
        client.expect_reply("250");
    }
    let messages = sink.messages();
    assert_eq!(messages.len(), 100);
    assert!(messages.iter().all(|one| one.content.as_ref() == Some(&message.plain)));
}

fn offers(lines: &[String], word: &str) -> bool {
    lines.iter().any(|line| line.split(' ').next() == Some(word))
}

#[test]
fn ehlo_offers_what_all_upstreams_offer_and_the_smallest_size() {
    let all = sink(Extensions { size: Some(5_000_000), ..Extensions::default() }, &[]);
    let few =
        Extensions { smtputf8: false, dsn: false, size: Some(70_000), ..Extensions::default() };
    let few = sink(few, &[]);
    let config = Config::to(&[all.addr()]).upstream("default = true");
    let relay = Relay::start(&config.and_upstream("few", &[few.addr()], ""));
    let lines = relay.wait_offer("8BITMIME", |lines| offers(lines, "8BITMIME"));
    assert!(lines.contains(&"SIZE 70000".to_owned()), "{lines:?}");
    for word in ["PIPELINING", "CHUNKING", "ENHANCEDSTATUSCODES", "8BITMIME"] {
        assert!(offers(&lines, word), "{word}: {lines:?}");
    }
    for word in ["SMTPUTF8", "DSN", "STARTTLS", "AUTH", "BINARYMIME", "VRFY"] {
        assert!(!offers(&lines, word), "{word}: {lines:?}");
    }
    let mut client = relay.hello();
    for parameter in ["SMTPUTF8", "RET=HDRS", "BODY=BINARYMIME", "SIZE=70001", "X=Y"] {
        client.expect(&format!("MAIL FROM:<a@example.com> {parameter}"), "5");
    }
    client.expect("MAIL FROM:<a@example.com> BODY=8BITMIME", "250");
    client.expect("RCPT TO:<b@example.org> NOTIFY=NEVER", "5");
}

#[test]
fn without_8bitmime_upstream_it_is_not_offered_and_eight_bits_are_refused() {
    let plain = Extensions { eightbitmime: false, smtputf8: false, ..Extensions::default() };
    let sink = sink(plain, &[]);
    let relay = Relay::start(&Config::to(&[sink.addr()]));
    let lines = relay.wait_offer("DSN", |lines| offers(lines, "DSN"));
    assert!(!offers(&lines, "8BITMIME") && !offers(&lines, "SMTPUTF8"), "{lines:?}");
    let mut client = relay.hello();
    client.expect("MAIL FROM:<a@example.com> BODY=8BITMIME", "5");
    // Sent all the same: refused, never converted.
    let reply = client.transact(b"Subject: \xc3\xa4\r\n\r\n\xe4\r\n.\r\n");
    assert!(reply.starts_with("554 5.6.3"), "{reply}");
    assert!(client.small().starts_with("250"));
    assert_eq!(sink.counts().violations, 0);
}

#[test]
fn an_upstream_that_lost_smtputf8_gets_554_never_a_conversion() {
    // The configuration promises what the upstream has not.
    let sink = sink(Extensions { smtputf8: false, ..Extensions::default() }, &[]);
    let config = Config::to(&[sink.addr()]);
    let relay = Relay::start(&config.upstream("extensions = [\"8BITMIME\", \"SMTPUTF8\"]"));
    let mut client = relay.hello();
    client.expect("MAIL FROM:<\u{e4}@example.com> SMTPUTF8 BODY=8BITMIME", "250");
    client.expect("RCPT TO:<b@example.org>", "250");
    client.expect("DATA", "354");
    client.send("Subject: x\r\n\r\nx\r\n.\r\n");
    client.expect_reply("554 5.6.7");
    assert!(client.small().starts_with("250"));
    assert_eq!((sink.counts().messages, sink.counts().violations), (1, 0));
}

#[test]
fn bdat_without_a_final_line_end_is_refused_where_the_upstream_has_no_bdat() {
    for chunking in [false, true] {
        let sink = sink(Extensions { chunking, ..Extensions::default() }, &[]);
        let relay = Relay::start(&Config::to(&[sink.addr()]).relay("received = false"));
        let mut client = relay.hello();
        client.envelope("a@example.com", "b@example.org");
        client.send("BDAT 9 LAST\r\nS: s\r\n\r\nx");
        if chunking {
            client.expect_reply("250");
            assert_eq!(sink.messages()[0].content.as_deref(), Some(&b"S: s\r\n\r\nx"[..]));
        } else {
            client.expect_reply("550 5.6.0");
            assert!(client.small().starts_with("250"));
            assert_eq!(sink.counts().bad_contents, 0);
        }
    }
}

#[test]
fn control_characters_in_an_upstreams_reply_do_not_reach_the_client() {
    // The client of these tests refuses every reply with a control character in it.
    for said in [
        &b"250 fine\x07\x1b[31m red\r\n"[..],
        b"250 nul \0 inside\r\n",
        b"250 tab\tand \x7f\r\n",
        b"250 a bare\rreturn\r\n",
        b"550 no\n250 yes\r\n",
        b"250-one\n250 two\r\n",
        b"250 \xff\xfe\r\n",
        b"250 ok\r\n250 once more\r\n",
        b"999 what\r\n",
        b"hello\r\n",
        b"250-\r\n550 changed its mind\r\n",
    ] {
        let upstream = Script::start(move |_, peer| peer.accept_all(&[], |_| said.to_vec()));
        let config = Config::to(&[upstream.addr()]).upstream("extensions = []");
        let mut relay = Relay::start(&config);
        let mut client = relay.hello();
        let reply = client.small();
        // Whatever it makes of that, the session is in step.
        client.expect("NOOP", "250");
        let doubtful = ["999", "hello", "250-\r\n", "550 no\n"];
        let is_doubtful = doubtful.iter().any(|one| said.starts_with(one.as_bytes()));
        assert!(!is_doubtful || !reply.starts_with('2'), "{}: {reply}", said.escape_ascii());
        relay.assert_alive();
    }
}

#[test]
fn an_endless_reply_of_an_upstream_ends_somewhere() {
    for said in [vec![b'2'; 5_000_000], b"250-more\r\n".repeat(500_000)] {
        let upstream = Script::start(move |_, peer| peer.accept_all(&[], |_| said.clone()));
        let config = Config::to(&[upstream.addr()]).upstream("extensions = []");
        let mut relay = Relay::start(&config);
        let reply = relay.hello().small();
        assert!(reply.starts_with("451 4.4.2"), "{reply}");
        relay.assert_alive();
    }
}
