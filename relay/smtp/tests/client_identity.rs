//! The client and who it speaks for: XFORWARD, XCLIENT and AUTH, against upstreams that offer
//! them, refuse them, and answer anything.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use wavegate_smtp::client::Misbehaviour;
use wavegate_smtp::{
    Address, BodyShape, Client, ClientError, ClientEvent, Credentials, Identity, Mail, Mechanism,
    Rcpt, ReversePath, Stage,
};

const SHAPE: BodyShape =
    BodyShape { size: 12, eight_bit: false, leading_dot: false, ends_with_crlf: true };
const POSTFIX: &str = "XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT";

fn output(client: &mut Client) -> String {
    let output = String::from_utf8(client.output().to_vec()).unwrap();
    client.written(output.len());
    output
}

fn ehlo(keywords: &[&str]) -> String {
    let lines: String = keywords.iter().map(|keyword| format!("250-{keyword}\r\n")).collect();
    format!("250-up.example\r\n{lines}250 X-LAST\r\n")
}

fn open(keywords: &[&str]) -> Client {
    let mut client = Client::new("relay.example".into());
    client.receive(b"220 up.example\r\n").unwrap();
    assert_eq!(output(&mut client), "EHLO relay.example\r\n");
    client.receive(ehlo(keywords).as_bytes()).unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Ready(_))));
    client
}

fn identity(address: &str) -> Identity<'static> {
    Identity {
        client: address.parse().unwrap(),
        port: Some(4711),
        name: None,
        helo: Some("mta.example"),
        extended: true,
        ident: Some("01HX"),
        login: None,
        destination: None,
    }
}

fn begin(client: &mut Client, identity: &Identity<'_>) {
    let mail = Mail::new(ReversePath::Null);
    let rcpt = Rcpt::new(Address::parse("r@y.example").unwrap());
    client.begin_from(Some(identity), &mail, [&rcpt], &SHAPE).unwrap();
}

const ENVELOPE: &str = "MAIL FROM:<>\r\nRCPT TO:<r@y.example>\r\nDATA\r\n";

#[test]
fn xforward_costs_no_turn_where_commands_are_pipelined() {
    let mut client = open(&["PIPELINING", POSTFIX]);
    begin(&mut client, &identity("2001:db8::7"));
    let xforward = "XFORWARD NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::7 PORT=4711 PROTO=ESMTP \
                    HELO=mta.example IDENT=01HX SOURCE=REMOTE\r\n";
    assert_eq!(output(&mut client), format!("{xforward}{ENVELOPE}"));
    client.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::SendBody(_))));
    // A transaction that is still open is ended first.
    client.body_sent();
    client.receive(b"250 taken\r\n").unwrap();
    client.poll().unwrap();
    begin(&mut client, &identity("192.0.2.7"));
    output(&mut client);
    client.receive(b"250 ok\r\n250 ok\r\n550 no\r\n554 no\r\n").unwrap();
    let Some(ClientEvent::Settled(settled)) = client.poll() else { panic!("not settled") };
    assert_eq!(settled.stage, Stage::Recipients);
    begin(&mut client, &identity("::ffff:127.0.0.1"));
    let said = output(&mut client);
    assert!(said.starts_with("RSET\r\nXFORWARD NAME=[UNAVAILABLE] ADDR=127.0.0.1 "), "{said}");
    assert!(said.contains(" SOURCE=LOCAL\r\nMAIL"), "{said}");
}

#[test]
fn without_pipelining_and_without_an_offer() {
    let mut client = open(&["XFORWARD ADDR"]);
    begin(&mut client, &identity("192.0.2.7"));
    assert_eq!(output(&mut client), "XFORWARD ADDR=192.0.2.7\r\n");
    client.receive(b"250 ok\r\n").unwrap();
    assert_eq!(output(&mut client), "MAIL FROM:<>\r\n");
    for keywords in [&["PIPELINING"][..], &["PIPELINING", "XFORWARD X-ELSE"]] {
        let mut client = open(keywords);
        assert!(!client.forwards());
        begin(&mut client, &identity("192.0.2.7"));
        assert_eq!(output(&mut client), ENVELOPE);
    }
}

#[test]
fn a_refused_xforward_costs_no_message_and_is_not_said_again() {
    let mut client = open(&["PIPELINING", "xforward addr helo"]);
    begin(&mut client, &identity("192.0.2.7"));
    assert!(output(&mut client).starts_with("XFORWARD ADDR=192.0.2.7 HELO=mta.example\r\nMAIL"));
    client.receive(b"550 not you\r\n250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
    let Some(ClientEvent::NotForwarded(reply)) = client.poll() else { panic!("not told") };
    assert_eq!(reply.code(), 550);
    assert!(matches!(client.poll(), Some(ClientEvent::SendBody(_))));
    client.body_sent();
    client.receive(b"250 taken\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Settled(_))));
    assert!(client.is_ready() && !client.forwards());
    begin(&mut client, &identity("192.0.2.7"));
    assert_eq!(output(&mut client), ENVELOPE);
    // A 421 may stand in place of any reply.
    let mut client = open(&["PIPELINING", "XFORWARD ADDR"]);
    begin(&mut client, &identity("192.0.2.7"));
    client.receive(b"421 closing\r\n").unwrap();
    let Some(ClientEvent::Settled(settled)) = client.poll() else { panic!("not settled") };
    assert_eq!((settled.reply.code(), settled.stage), (421, Stage::Mail));
    assert!(client.is_closed());
}

#[test]
fn xclient_makes_the_session_the_clients() {
    let mut client = open(&["PIPELINING", "XCLIENT NAME ADDR PROTO HELO LOGIN", "XFORWARD ADDR"]);
    let first = Identity { name: Some("mta.example"), ..identity("192.0.2.7") };
    client.speak_for(&first);
    assert!(!client.is_ready());
    assert_eq!(
        output(&mut client),
        "XCLIENT NAME=mta.example ADDR=192.0.2.7 PROTO=ESMTP HELO=mta.example \
         LOGIN=[UNAVAILABLE]\r\n"
    );
    client.receive(b"220 up.example\r\n").unwrap();
    assert_eq!(output(&mut client), "EHLO mta.example\r\n");
    // What was offered before counts no more.
    client.receive(ehlo(&["XCLIENT ADDR"]).as_bytes()).unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Ready(_))));
    assert!(client.is_ready() && client.takes_xclient() && !client.forwards());
    // And for the next client, whose name no command could hold.
    let second = Identity { helo: Some("two words"), ..identity("2001:db8::1") };
    client.speak_for(&second);
    assert_eq!(output(&mut client), "XCLIENT ADDR=IPV6:2001:db8::1\r\n");
    client.receive(b"220 up.example\r\n").unwrap();
    assert_eq!(output(&mut client), "EHLO mta.example\r\n");
}

#[test]
fn an_open_transaction_is_ended_before_xclient() {
    let mut client = open(&["XCLIENT ADDR"]);
    begin(&mut client, &identity("192.0.2.7"));
    client.receive(b"250 ok\r\n550 no\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Settled(_))));
    output(&mut client);
    client.speak_for(&identity("192.0.2.8"));
    assert_eq!(output(&mut client), "RSET\r\n");
    client.receive(b"250 ok\r\n").unwrap();
    assert_eq!(output(&mut client), "XCLIENT ADDR=192.0.2.8\r\n");
    client.receive(b"220 up.example\r\n").unwrap();
    client.receive(ehlo(&["XCLIENT ADDR"]).as_bytes()).unwrap();
    output(&mut client);
    client.poll().unwrap();
    begin(&mut client, &identity("192.0.2.8"));
    assert_eq!(output(&mut client), "MAIL FROM:<>\r\n");
}

#[test]
fn xclient_refused_or_not_offered_is_the_end() {
    for keywords in [&["PIPELINING"][..], &["XCLIENT HELO"]] {
        let mut client = open(keywords);
        client.speak_for(&identity("192.0.2.7"));
        assert_eq!(client.poll(), Some(ClientEvent::NoXclient(None)));
        assert!(client.is_closed() && client.output().is_empty());
    }
    let speak = || {
        let mut client = open(&["XCLIENT ADDR"]);
        client.speak_for(&identity("192.0.2.7"));
        client
    };
    let mut client = speak();
    client.receive(b"550 5.7.0 not you\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::NoXclient(Some(_)))));
    assert!(client.is_closed());
    let mut client = speak();
    client.receive(b"354 what\r\n").unwrap_err();
    // This client is not wanted: at once, or when it is greeted.
    let mut client = speak();
    client.receive(b"421 go away\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Refused(_))));
    let mut client = speak();
    client.receive(b"220 up.example\r\n550 5.7.1 blocked\r\n554 5.7.1 blocked\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Refused(_))));
    assert!(client.is_closed());
}

fn credentials() -> Credentials {
    Credentials::new("relay", "pass word").unwrap()
}

#[test]
fn plain_at_once_login_by_turns() {
    let mut client = open(&["AUTH LOGIN PLAIN CRAM-MD5"]);
    assert!(client.takes_logins());
    client.log_in(&credentials(), None);
    assert!(!format!("{client:?}").contains("AHJl"));
    assert_eq!(output(&mut client), "AUTH PLAIN AHJlbGF5AHBhc3Mgd29yZA==\r\n");
    client.receive(b"235 2.7.0 welcome\r\n").unwrap();
    let Some(ClientEvent::Login(reply)) = client.poll() else { panic!("no answer") };
    assert_eq!(reply.to_string(), "235 2.7.0 welcome");
    assert!(client.is_ready());
    begin(&mut client, &identity("192.0.2.7"));
    assert_eq!(output(&mut client), "MAIL FROM:<>\r\n");

    for (keyword, wanted) in
        [("AUTH=LOGIN", None), ("AUTH PLAIN LOGIN", Some(Mechanism::Login)), ("AUTH LOGIN", None)]
    {
        let mut client = open(&[keyword]);
        client.log_in(&credentials(), wanted);
        assert_eq!(output(&mut client), "AUTH LOGIN\r\n");
        client.receive(b"334 VXNlcm5hbWU6\r\n").unwrap();
        assert_eq!(output(&mut client), "cmVsYXk=\r\n");
        client.receive(b"334 UGFzc3dvcmQ6\r\n").unwrap();
        assert_eq!(output(&mut client), "cGFzcyB3b3Jk\r\n");
        client.receive(b"535 5.7.8 no\r\n").unwrap();
        let Some(ClientEvent::Login(reply)) = client.poll() else { panic!("no answer") };
        assert_eq!(reply.code(), 535);
        assert!(client.is_closed());
    }
}

#[test]
fn a_response_that_is_too_long_for_a_command_waits_until_it_is_asked_for() {
    // At the limit: 11 of "AUTH PLAIN ", 496 of the response, 2 of the line end are 509; three
    // more bytes make another four digits.
    for (length, at_once) in [(364, true), (367, false)] {
        let mut client = open(&["AUTH PLAIN"]);
        client.log_in(&Credentials::new("relay", &"x".repeat(length)).unwrap(), None);
        let said = output(&mut client);
        assert!(said.len() <= 512 && at_once == said.starts_with("AUTH PLAIN A"), "{said}");
        if !at_once {
            assert_eq!(said, "AUTH PLAIN\r\n");
            client.receive(b"334 \r\n").unwrap();
            assert_eq!(output(&mut client).len(), 500 + 2);
        }
        client.receive(b"235 ok\r\n").unwrap();
        assert!(matches!(client.poll(), Some(ClientEvent::Login(_))));
    }
}

#[test]
fn what_cannot_be_used_is_not_begun() {
    for (keyword, wanted) in [
        ("AUTH CRAM-MD5", None),
        ("AUTH PLAIN", Some(Mechanism::Login)),
        ("AUTH LOGIN", Some(Mechanism::Plain)),
        ("8BITMIME", None),
    ] {
        let mut client = open(&[keyword]);
        client.log_in(&credentials(), wanted);
        assert_eq!(client.poll(), Some(ClientEvent::NoLogin));
        assert!(client.is_ready() && client.output().is_empty());
    }
    for answer in [&b"250 ok\r\n"[..], b"354 go\r\n", b"334 more\r\n"] {
        let mut client = open(&["AUTH PLAIN"]);
        client.log_in(&credentials(), None);
        let Err(ClientError::PeerMisbehaved(Misbehaviour::Code(_))) = client.receive(answer) else {
            panic!("taken as good")
        };
        assert!(client.is_closed());
    }
}

const FORWARD: [&str; 7] = ["NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"];

/// What a server makes of a command: its attributes, decoded.
fn decode(line: &str) -> BTreeMap<String, Vec<u8>> {
    let (verb, rest) = line.split_once(' ').unwrap();
    assert_eq!(verb, "XFORWARD");
    let attribute = |word: &str| {
        let (name, value) = word.split_once('=').unwrap();
        let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
        while let [first, behind @ ..] = rest {
            assert!(matches!(first, b'!'..=b'~') && *first != b'=');
            rest = behind;
            if *first == b'+' {
                let hex = str::from_utf8(&rest[..2]).unwrap();
                assert_eq!(hex, hex.to_uppercase());
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
                rest = &rest[2..];
            } else {
                bytes.push(*first);
            }
        }
        (name.to_owned(), bytes)
    };
    rest.split(' ').map(attribute).collect()
}

/// Any text: names, spaces, line ends, plus signs, characters beyond ASCII, long ones.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,20}", "\\PC{0,40}", "[a-z.\\-]{1,300}", "[\\x00-\\x7f]{0,300}"]
}

proptest! {
    /// All that is offered and nothing else, in lines that fit, and read back as it was.
    #[test]
    fn any_identity_is_told_whole_and_safely(
        offered in subsequence(&FORWARD[..], 1..=7).prop_shuffle(),
        client in any::<IpAddr>(),
        (port, extended) in (option::of(any::<u16>()), any::<bool>()),
        (name, helo, ident) in (option::of(text()), option::of(text()), option::of(text())),
    ) {
        let keyword = format!("XFORWARD {}", offered.join(" "));
        let mut session = open(&["PIPELINING", &keyword]);
        let (name, helo, ident) = (name.as_deref(), helo.as_deref(), ident.as_deref());
        let identity =
            Identity { client, port, name, helo, extended, ident, login: None, destination: None };
        begin(&mut session, &identity);
        let said = output(&mut session);
        prop_assert!(said.ends_with(ENVELOPE));
        let commands = &said[..said.len() - ENVELOPE.len()];
        let mut all = BTreeMap::new();
        for line in commands.split_inclusive("\r\n") {
            prop_assert!(line.len() <= 512 && line.ends_with("\r\n"));
            for (name, value) in decode(line.trim_end_matches("\r\n")) {
                prop_assert_eq!(all.insert(name, value), None);
            }
        }
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        let mut wanted = offered.clone();
        wanted.sort_unstable();
        prop_assert_eq!(names, wanted);
        for (key, text) in [("HELO", helo), ("IDENT", ident)] {
            let Some(told) = all.get(key) else { continue };
            let whole = text.is_some_and(|text| told == text.as_bytes());
            let short = text.is_some_and(|text| (1..=160).contains(&text.len()));
            prop_assert!(whole || (!short && told == b"[UNAVAILABLE]"), "{key}: {told:?}");
        }
        if let Some(told) = all.get("ADDR") {
            let told = str::from_utf8(told).unwrap();
            let told: IpAddr = told.strip_prefix("IPV6:").unwrap_or(told).parse().unwrap();
            prop_assert_eq!(told, client.to_canonical());
        }
        if let Some(told) = all.get("NAME") {
            let is_name = told == b"[UNAVAILABLE]" || name.is_some_and(|n| n.as_bytes() == told);
            prop_assert!(is_name);
        }
        // Each is answered, and the message goes.
        for _ in commands.lines() {
            session.receive(b"250 ok\r\n").unwrap();
        }
        session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
        let asked = matches!(session.poll(), Some(ClientEvent::SendBody(_)));
        prop_assert!(asked);
    }

    /// Whatever an upstream answers at each step: one end at most, no wrong readiness, and no
    /// message without all that it was to be told before.
    #[test]
    fn any_answers_at_any_step(
        step in 0_u8..3,
        replies in vec(select(&[
            "220 a", "235 ok", "250 ok", "334 more", "354 go", "421 bye", "454 later", "501 what",
            "535 no", "550 no", "250-a\r\n250 XCLIENT ADDR", "", "garbage",
        ][..]), 1..6),
    ) {
        let mut client = open(&["PIPELINING", "AUTH PLAIN LOGIN", "XCLIENT ADDR", POSTFIX]);
        match step {
            0 => client.log_in(&credentials(), Some(Mechanism::Login)),
            1 => client.speak_for(&identity("192.0.2.7")),
            _ => begin(&mut client, &identity("192.0.2.7")),
        }
        let mut said = output(&mut client);
        let mut ends = 0;
        for reply in replies {
            if client.receive(format!("{reply}\r\n").as_bytes()).is_err() {
                prop_assert!(client.is_closed());
                break;
            }
            while let Some(event) = client.poll() {
                match event {
                    ClientEvent::Login(reply) => {
                        prop_assert_eq!(reply.is_positive(), client.is_ready());
                        ends += 1;
                    }
                    ClientEvent::Ready(_) => {
                        prop_assert!(said.ends_with("EHLO mta.example\r\n")
                            || said.ends_with("HELO mta.example\r\n"));
                        ends += 1;
                    }
                    ClientEvent::NoXclient(_) | ClientEvent::Refused(_) => {
                        prop_assert!(client.is_closed());
                        ends += 1;
                    }
                    ClientEvent::Settled(_) => ends += 1,
                    ClientEvent::SendBody(_) => client.body_sent(),
                    ClientEvent::NotForwarded(reply) => prop_assert!(reply.is_negative()),
                    ClientEvent::Closing(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            said.push_str(&output(&mut client));
            if client.is_ready() {
                break;
            }
        }
        prop_assert!(ends <= 1);
    }
}
