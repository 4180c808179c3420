//! What a hostile client may send: one test for each row of the list of threats, through real
//! sockets to the real relay, with a sink that records what comes out at the other end.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use wavegate_tests::harness::{Client, Config, Relay, recording, sink, until};
use wavegate_tests::sink::{Extensions, SinkHandle};

/// A relay without `Received` lines in front of a recording sink.
fn pair() -> (Relay, SinkHandle) {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).relay("received = false"));
    (relay, sink)
}

fn contents(sink: &SinkHandle) -> Vec<Vec<u8>> {
    sink.messages().into_iter().map(|message| message.content.unwrap()).collect()
}

/// What must not end a message. Behind each stands what an attacker would have taken for a second
/// message.
const SMUGGLING: [&[u8]; 14] = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\n\n.\r\n",
    b"\r\n.\n\r\n",
];

#[test]
fn smuggling_never_ends_a_message_and_the_session_stays_in_step() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    for shape in SMUGGLING {
        let mut wire = b"Subject: first\r\n\r\nbody".to_vec();
        wire.extend_from_slice(shape);
        wire.extend_from_slice(
            b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<a@example.org>\r\nDATA\r\n",
        );
        wire.extend_from_slice(b"Subject: smuggled\r\n\r\nevil\r\n.\r\n");
        let reply = client.transact(&wire);
        assert!(reply.starts_with("550 5.6.0"), "{}: {reply}", shape.escape_ascii());
        client.expect("NOOP", "250");
    }
    assert!(client.small().starts_with("250"));
    assert_eq!(contents(&sink), [b"Subject: small\r\n\r\nhello\r\n"]);
    assert_eq!(sink.counts().bad_contents, 0);
}

#[test]
fn smuggling_by_bdat_is_refused_too() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    for shape in SMUGGLING {
        let mut content = b"Subject: first\r\n\r\nbody".to_vec();
        content.extend_from_slice(shape);
        content.extend_from_slice(b"MAIL FROM:<evil@example.com>\r\n");
        client.envelope("news@mkt.acme.example", "customer@example.org");
        client.send(format!("BDAT {} LAST\r\n", content.len()));
        client.send(&content);
        let reply = client.reply();
        assert!(reply.starts_with("550 5.6.0"), "{}: {reply}", shape.escape_ascii());
    }
    // A proper end of data inside a chunk is content: it must not end what goes on by DATA.
    let whole = b"Subject: s\r\n\r\nx\r\n.\r\nMAIL FROM:<evil@example.com>\r\n";
    client.envelope("news@mkt.acme.example", "customer@example.org");
    client.send(format!("BDAT {} LAST\r\n", whole.len()));
    client.send(whole);
    client.expect_reply("250");
    assert_eq!(contents(&sink), [whole]);
}

#[test]
fn bdat_content_with_an_end_of_data_is_stuffed_for_an_upstream_without_bdat() {
    let sink = sink(Extensions::default(), &[]);
    let relay = Relay::start(&Config::to(&[sink.addr()]).relay("received = false"));
    let mut client = relay.hello();
    let whole = b".\r\nSubject: s\r\n\r\nx\r\n.\r\n..\r\nMAIL FROM:<evil@example.com>\r\n";
    client.envelope("news@mkt.acme.example", "customer@example.org");
    client.send(format!("BDAT {} LAST\r\n", whole.len()));
    client.send(whole);
    client.expect_reply("250");
    assert_eq!(contents(&sink), [whole]);
    assert_eq!(sink.counts().violations, 0);
}

#[test]
fn an_empty_message_is_exact_at_every_split() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    for place in 0..=2 {
        client.begin_data();
        client.send_split(b".\r\n", [place]);
        client.expect_reply("250");
    }
    client.begin_data();
    client.send(".\r\nNOOP\r\n");
    client.expect_reply("250");
    client.expect_reply("250");
    assert_eq!(contents(&sink), vec![Vec::<u8>::new(); 4]);
}

#[test]
fn dot_stuffing_is_exact_at_every_split() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    let plain = b".a: b\r\n\r\n.\r\n..\r\nx.\r\n. y\r\n\r\n";
    let wire = b"..a: b\r\n\r\n..\r\n...\r\nx.\r\n.. y\r\n\r\n.\r\n";
    for place in 0..=wire.len() {
        client.begin_data();
        client.send_split(wire, [place]);
        client.expect_reply("250");
    }
    client.begin_data();
    client.send_split(wire, 1..wire.len());
    client.expect_reply("250");
    // A dot in front of anything but a dot is taken away as well (RFC 5321 4.5.2).
    assert!(client.transact(b".x\r\n.\r\n").starts_with("250"));
    let mut contents = contents(&sink);
    assert_eq!(contents.pop().unwrap(), b"x\r\n");
    assert_eq!(contents, vec![plain.to_vec(); wire.len() + 2]);
}

#[test]
fn a_whole_session_one_byte_at_a_time() {
    let (relay, sink) = pair();
    let mut client = relay.client();
    for (line, reply) in [
        ("EHLO client.example\r\n", "250"),
        ("MAIL FROM:<a@example.com>\r\n", "250"),
        ("RCPT TO:<b@example.org>\r\n", "250"),
        ("DATA\r\n", "354"),
        ("S: s\r\n\r\n..x\r\n.\r\n", "250"),
        ("QUIT\r\n", "221"),
    ] {
        client.send_split(line.as_bytes(), 1..line.len());
        client.expect_reply(reply);
    }
    assert_eq!(contents(&sink), [b"S: s\r\n\r\n.x\r\n"]);
}

#[test]
fn bdat_rules() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    // Without MAIL; the chunk is skipped, the session in step.
    client.send("BDAT 6\r\nQUIT\r\n");
    client.expect_reply("503 5.5.1");
    // Without a recipient.
    client.expect("MAIL FROM:<a@example.com>", "250");
    client.send("BDAT 6 LAST\r\nQUIT\r\n");
    client.expect_reply("554 5.5.1");
    client.expect("RSET", "250");
    // Nothing, often, does no harm; MAIL, RCPT and DATA have no place between chunks.
    client.envelope("a@example.com", "b@example.org");
    for _ in 0..50 {
        client.expect("BDAT 0", "250");
    }
    client.send("BDAT 6\r\nS: s\r\n");
    client.expect_reply("250");
    client.expect("MAIL FROM:<a@example.com>", "503");
    client.expect("RCPT TO:<b@example.org>", "503");
    client.expect("DATA", "503");
    client.send("BDAT 3 LAST\r\n\r\nx");
    client.expect_reply("250");
    // RSET ends it.
    client.envelope("a@example.com", "b@example.org");
    client.send("BDAT 6\r\nlost\r\n");
    client.expect_reply("250");
    client.expect("RSET", "250");
    assert!(client.small().starts_with("250"));
    assert_eq!(
        contents(&sink),
        [b"S: s\r\n\r\nx".to_vec(), b"Subject: small\r\n\r\nhello\r\n".to_vec()]
    );
}

#[test]
fn malformed_bdat_closes() {
    let (relay, _sink) = pair();
    for line in [
        "BDAT",
        "BDAT x",
        "BDAT -1",
        "BDAT +1",
        "BDAT 1 LAST 2",
        "BDAT 1 FIRST",
        "BDAT 18446744073709551616",
        "BDAT 99999999999999999999999999999999999999",
        "BDAT 0x10",
    ] {
        let mut client = relay.hello();
        client.envelope("a@example.com", "b@example.org");
        client.expect(line, "521 5.5.4");
        client.expect_closed();
    }
}

#[test]
fn bdat_sizes_do_not_overflow() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).limits("message_size = \"64KiB\"");
    let relay = Relay::start(&config);
    // The greatest number, alone and after other bytes: too large, never a small one.
    let mut client = relay.hello();
    client.envelope("a@example.com", "b@example.org");
    client.send("BDAT 5\r\nS: s\n");
    client.reply();
    client.send("BDAT 18446744073709551615\r\n");
    client.send(vec![b'x'; 200_000]);
    client.shut();
    // Not all of it came: whatever is said, it is no 250.
    if let Some(reply) = client.try_reply() {
        assert!(!reply.starts_with('2'), "{reply}");
    }
    // Too large: skipped, answered, discarded to LAST, in step.
    let mut client = relay.hello();
    client.envelope("a@example.com", "b@example.org");
    client.send(format!("BDAT {}\r\n", 100_000));
    client.send(vec![b'x'; 100_000]);
    client.expect_reply("552 5.3.4");
    client.send("BDAT 6\r\nRSET\r\n");
    assert!(client.reply().starts_with('5'));
    client.send("BDAT 6 LAST\r\nRSET\r\n");
    assert!(client.reply().starts_with('5'));
    assert!(client.small().starts_with("250"));
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn talking_before_the_greeting_closes() {
    let (relay, sink) = pair();
    // The bytes may come right behind the greeting, which is no offence that anybody can see; so
    // one try may be too late, but not all.
    until("an early talker is caught", || {
        let mut client = Client::connect(relay.addr());
        client.send("EHLO early.example\r\n");
        let reply = client.reply();
        if reply.starts_with("220") {
            return None;
        }
        assert!(reply.starts_with("554 5.5.0"), "{reply}");
        client.expect_closed();
        Some(())
    });
    assert_eq!(sink.counts().messages, 0);
}

#[test]
fn wrong_pipelining_closes() {
    let (relay, sink) = pair();
    // RFC 2920 3.1: EHLO and DATA end a group.
    let mut client = relay.client();
    client.send("EHLO client.example\r\nMAIL FROM:<a@example.com>\r\n");
    client.expect_reply("554 5.5.0");
    client.expect_closed();
    let mut client = relay.hello();
    client.envelope("a@example.com", "b@example.org");
    client.send("DATA\r\nSubject: early\r\n\r\nx\r\n.\r\n");
    client.expect_reply("554 5.5.0");
    client.expect_closed();
    assert_eq!(sink.counts().messages, 0);
}

#[test]
fn right_pipelining_works() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    client.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n");
    client.expect_reply("250 2.1.0");
    client.expect_reply("250 2.1.5");
    client.expect_reply("354");
    // The next group may come with the content (RFC 2920 3.1).
    client.send("one\r\n.\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n");
    client.expect_reply("250 2.0.0");
    client.expect_reply("250 2.1.0");
    client.expect_reply("250 2.1.5");
    client.expect_reply("354");
    client.send("two\r\n.\r\nQUIT\r\n");
    client.expect_reply("250");
    client.expect_reply("221");
    client.expect_closed();
    assert_eq!(contents(&sink), [b"one\r\n", b"two\r\n"]);
}

#[test]
fn http_and_tls_are_closed_at_once() {
    let (relay, _sink) = pair();
    for line in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@example.com>\r\n",
        "CONNECT example.com:25 HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
    ] {
        let mut client = relay.client();
        client.try_send(line.as_bytes());
        client.expect_closed();
    }
}

#[test]
fn twenty_errors_close() {
    let (relay, _sink) = pair();
    let mut client = relay.hello();
    for _ in 0..20 {
        assert!(client.command("XYZZY").starts_with("50"));
    }
    client.expect("XYZZY", "421 4.7.0");
    client.expect_closed();
}

#[test]
fn a_hundred_idle_commands_close() {
    let (relay, _sink) = pair();
    let mut client = relay.hello();
    for at in 0..100 {
        client.expect(["NOOP", "RSET", "VRFY x"][at % 3], "25");
    }
    client.expect("NOOP", "421 4.7.0");
    client.expect_closed();
}

#[test]
fn long_command_lines_stay_in_step() {
    let (relay, _sink) = pair();
    let mut client = relay.hello();
    for length in [2047, 5_000, 300_000] {
        client.send("NOOP ");
        client.send(vec![b'x'; length]);
        client.send("\r\n");
        client.expect_reply("500 5.5.2");
    }
    client.expect("NOOP", "250");
    assert!(client.small().starts_with("250"));
}

#[test]
fn long_message_lines_pass_unchanged_to_the_cap() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    let line = |length: usize| {
        let mut wire = b"S: s\r\n\r\n".to_vec();
        wire.resize(8 + length, b'x');
        wire.extend_from_slice(b"\r\n.\r\n");
        wire
    };
    let most = 64 * 1024;
    for length in [998, 999, 5000, most] {
        let wire = line(length);
        assert!(client.transact(&wire).starts_with("250"), "{length}");
        assert_eq!(contents(&sink).pop().unwrap(), wire[..wire.len() - 3]);
    }
    for length in [most + 1, 500_000] {
        let reply = client.transact(&line(length));
        assert!(reply.starts_with("550 5.6.0"), "{length}: {reply}");
        client.expect("NOOP", "250");
    }
    assert_eq!(sink.counts().messages, 4);
}

#[test]
fn nul_and_eight_bit_in_commands_are_refused() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    for line in [
        &b"MAIL FROM:<a\x00b@example.com>\r\n"[..],
        b"MAIL FROM:<\xff@example.com>\r\n",
        b"MAIL FROM:<\xc3\xa4@example.com>\r\n",
        b"NO\x00OP\r\n",
        b"N\xd6OP\r\n",
        b"MAIL FROM:<a@example.com>\rRCPT TO:<b@example.org>\r\n",
        b"MAIL FROM:<a@example.com>\nRCPT TO:<b@example.org>\r\n",
        b"MAIL FROM:<\"a\rb\"@example.com>\r\n",
        b"EHLO a\x00b\r\n",
        b"EHLO evil\nReceived: forged\r\n",
    ] {
        client.send(line);
        let reply = client.reply();
        let refused = reply.starts_with("50") || reply.starts_with("55");
        assert!(refused, "{}: {reply}", line.escape_ascii());
    }
    assert!(client.small().starts_with("250"));
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn nul_in_a_message_is_refused_and_nothing_cut_off() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    for wire in
        [&b"S: s\r\n\r\na\x00b\r\n.\r\n"[..], b"\x00\r\n.\r\n", b"S\x00: s\r\n\r\nx\r\n.\r\n"]
    {
        let reply = client.transact(wire);
        assert!(reply.starts_with("550 5.6.0"), "{reply}");
    }
    assert!(client.small().starts_with("250"));
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn received_lines_of_a_loop_are_refused() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    let with = |lines: usize| {
        let mut wire = b"Received: from a by b; x\r\n".repeat(lines);
        wire.extend_from_slice(b"\r\nReceived: in the body\r\n.\r\n");
        wire
    };
    assert!(client.transact(&with(100)).starts_with("250"));
    let reply = client.transact(&with(101));
    assert!(reply.starts_with("554 5.4.6"), "{reply}");
    assert!(client.transact(b"\r\nReceived: x\r\n.\r\n").starts_with("250"));
    assert_eq!(sink.counts().messages, 2);
}

#[test]
fn header_bombs_are_refused() {
    let (relay, sink) = pair();
    let mut client = relay.hello();
    let header = |bytes: usize| {
        let mut wire = b"X-Pad: 01234567890123456789\r\n".repeat(bytes / 29);
        wire.extend_from_slice(b"\r\nbody\r\n.\r\n");
        wire
    };
    assert!(client.transact(&header(1_000_000)).starts_with("250"));
    let reply = client.transact(&header(1_100_000));
    assert!(reply.starts_with("550 5.6.0"), "{reply}");
    client.expect("NOOP", "250");
    // A body may be as long as it likes.
    let mut wire = b"S: s\r\n\r\n".to_vec();
    wire.extend_from_slice(&b"X-Pad: 01234567890123456789\r\n".repeat(40_000));
    wire.extend_from_slice(b".\r\n");
    assert!(client.transact(&wire).starts_with("250"));
    assert_eq!(sink.counts().messages, 2);
}

#[test]
fn a_header_bomb_of_fields_and_mime_parts_does_not_slow_policies_to_a_halt() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).section(
        "[[policy]]\nplugin = \"builtin:routing\"\n[[policy]]\nplugin = \"builtin:throttle\"",
    );
    let relay = Relay::start(&config.section("[migration]\nbefore = \"up\"\nafter = \"up\""));
    let mut client = relay.hello();
    let mut wire = b"a:b\r\n".repeat(150_000);
    for part in 0..2000 {
        let field = format!("Content-Type: multipart/mixed; boundary=\"{part}\"\r\n");
        wire.extend_from_slice(field.as_bytes());
    }
    wire.extend_from_slice(b"\r\n--0\r\n.\r\n");
    assert!(client.transact(&wire).starts_with("250"));
}

#[test]
fn no_open_relay() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).listener("allow = [\"127.0.0.1/32\"]");
    let relay = Relay::start(&config);
    let mut client = Client::connect_from([127, 0, 0, 2].into(), relay.addr());
    client.expect_reply("220");
    client.expect("EHLO other.example", "250");
    client.expect("MAIL FROM:<a@example.com>", "250");
    client.expect("RCPT TO:<b@example.org>", "550 5.7.1");
    client.expect("DATA", "55");
    // Nor the old ways around: routes, percent, quotes.
    for to in ["@a.example:b@example.org", "b%example.org@edge-1.example.net", "\"b@x.org\"@y.org"]
    {
        let reply = client.command(&format!("RCPT TO:<{to}>"));
        assert!(reply.starts_with("55") || reply.starts_with("50"), "{to}: {reply}");
    }
    assert!(relay.hello().small().starts_with("250"), "a client that is allowed");
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn sessions_that_end_by_misbehaviour_are_counted() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).admin());
    let counted = || relay.metrics().value("sessions_ended_total{reason=\"misbehaved\"}");
    // Neither of these is misbehaviour.
    relay.hello().expect("QUIT", "221");
    drop(relay.hello());
    assert_eq!(counted(), 0.0);
    let ends: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\n\r\n", ""),
        (b"\x16\x03\x01", ""),
        (b"DATA\r\nSubject: early\r\n", "554 5.5.0"),
        (b"BDAT x\r\n", "521 5.5.4"),
    ];
    for (number, (bytes, reply)) in (1..).zip(ends) {
        let mut client = relay.hello();
        client.envelope("a@example.com", "b@example.org");
        client.try_send(bytes);
        if !reply.is_empty() {
            client.expect_reply(reply);
        }
        client.expect_closed();
        assert_eq!(counted(), f64::from(number), "{}", bytes.escape_ascii());
    }
    let mut client = relay.hello();
    for _ in 0..20 {
        client.command("XYZZY");
    }
    assert_eq!(counted(), 4.0, "not yet");
    client.expect("XYZZY", "421 4.7.0");
    client.expect_closed();
    assert_eq!(counted(), 5.0);
}
