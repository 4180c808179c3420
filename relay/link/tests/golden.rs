//! The bytes of each frame, which a file has as `PROTOCOL.md` says them: what is written is that, and
//! what is read of it is what was written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{envelope, rcpt, reply};
use std::collections::BTreeMap;
use wavegate_link::{
    ALPN, Answer, Client, Code, Control, Envelope, Hello, How, Offer,
    answer::{For, write_done},
    control::Side,
};
use wavegate_smtp::{
    Address, Mail, ReversePath,
    params::{BodyType, Notify, Ret},
};

/// Each frame by its heading.
fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let sections = include_str!("golden.txt").split("\n== ").skip(1);
    let section = |text: &'static str| {
        let (name, lines) = text.split_once('\n').unwrap();
        (name, lines.lines().flat_map(bytes).collect())
    };
    sections.map(section).collect()
}

fn bytes(line: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), line.trim_start());
    while !rest.is_empty() && !rest.starts_with('#') {
        let after = match rest.strip_prefix('"') {
            Some(text) => quoted(text, &mut out),
            None => {
                out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                &rest[2..]
            }
        };
        rest = after.trim_start();
    }
    out
}

fn quoted<'a>(text: &'a str, out: &mut Vec<u8>) -> &'a str {
    let mut characters = text.chars();
    loop {
        let next = match characters.next().unwrap() {
            '"' => return characters.as_str(),
            '\\' => match characters.next().unwrap() {
                'r' => '\r',
                'n' => '\n',
                other => other,
            },
            other => other,
        };
        out.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

fn controls() -> Vec<(&'static str, Side, Control)> {
    let incarnation = std::array::from_fn(|at| u8::try_from(at).unwrap());
    let edge = Hello { name: "edge.example".to_owned(), incarnation, offer: None };
    let offer =
        Offer { eight_bit: true, smtputf8: false, dsn: true, size: 0x320_0000, recipients: 1000 };
    let incarnation = [0xff; 16];
    let gateway = Hello { name: "gw.example".to_owned(), incarnation, offer: Some(offer) };
    vec![
        ("HELLO of an edge", Side::Edge, Control::Hello(edge)),
        ("HELLO of a gateway", Side::Gateway, Control::Hello(gateway)),
        ("PING", Side::Edge, Control::Ping(0x0123_4567_89ab_cdef)),
        ("PONG", Side::Gateway, Control::Pong(0x0123_4567_89ab_cdef)),
        ("STOPPING", Side::Gateway, Control::Stopping),
    ]
}

fn with_everything() -> Envelope {
    let mut first = rcpt("\"a b\"@y.example");
    first.notify = Some(Notify { success: true, failure: false, delay: true });
    first.orcpt = Some("rfc822;a@y.example".into());
    let mut second = rcpt("Postmaster");
    second.notify = Some(Notify::default());
    let sender = ReversePath::Address(Address::parse("ü@x.example").unwrap());
    Envelope {
        instance: "shop".to_owned(),
        client: Client {
            address: "2001:db8::7".parse().unwrap(),
            port: 4711,
            name: "mta.example".to_owned(),
            helo: "client.example".to_owned(),
            extended: true,
            secured: Some((2, true)),
            user: "ada".to_owned(),
            destination: Some("198.51.100.1:25".parse().unwrap()),
        },
        mail: Mail {
            size: Some(5),
            body: Some(BodyType::EightBitMime),
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some("QQ+2B1".into()),
            ..Mail::new(sender)
        },
        recipients: vec![first, second],
        ..envelope(5)
    }
}

fn answers() -> Vec<(&'static str, Answer)> {
    let one = |how, code, text: &str| Answer::of_all(how, reply(code, text));
    let stored = one(How::Stored, 250, "2.0.0 Stored\n2.0.0 ");
    let these = |these: &[u32]| For::These(these.to_vec());
    vec![
        ("ANSWER for all, of the next hop", one(How::NextHop, 250, "2.0.0 Ok: queued")),
        (
            "ANSWER for two, stored, known, forgetful",
            Answer { known: true, forgetful: true, recipients: these(&[0, 2]), ..stored },
        ),
        (
            "ANSWER for one, of the gateway",
            Answer { recipients: these(&[1]), ..one(How::Gateway, 550, "") },
        ),
        ("ANSWER for all, in doubt", one(How::InDoubt, 451, "4.4.2 Lost")),
    ]
}

#[test]
fn what_is_said_on_the_control_stream() {
    for (name, speaker, control) in controls() {
        let wire = &golden()[name];
        let mut written = Vec::new();
        control.write(&mut written);
        assert_eq!(&written, wire, "{name}");
        // Whoever does not greet is greeted for.
        let (hello, count) = match control {
            Control::Hello(_) => (Vec::new(), 1),
            _ if speaker == Side::Edge => (golden()["HELLO of an edge"].clone(), 2),
            _ => (golden()["HELLO of a gateway"].clone(), 2),
        };
        let (said, wrong) = common::said([&*hello, wire].into_iter(), speaker);
        assert_eq!((said.len(), said.last(), wrong), (count, Some(&control), None), "{name}");
    }
}

#[test]
fn envelopes_and_content() {
    let least = envelope(0);
    assert_eq!(common::write(&least), golden()["ENVELOPE with the least"]);
    let most = with_everything();
    assert_eq!(common::write(&most), golden()["ENVELOPE with everything"]);
    let content = &golden()["DATA and END"];
    let wire = [&golden()["ENVELOPE with everything"][..], content].concat();
    // "He" and "llo" are two pieces.
    let pieces = [b"He".as_slice(), b"llo"];
    let mut written = common::write(&most);
    for piece in pieces {
        written.extend(wavegate_link::message::data(u32::try_from(piece.len()).unwrap()));
        written.extend_from_slice(piece);
    }
    wavegate_link::message::write_end(5, &mut written);
    assert_eq!(written, wire);
    let came = common::came([&*wire].into_iter());
    assert_eq!((came.envelope, &*came.content, came.whole), (Some(most), &b"Hello"[..], true));
    assert_eq!((came.wrong, came.end), (None, None));
    let came = common::came([&*common::message(&least, b"", 1)].into_iter());
    assert_eq!((came.envelope, came.whole), (Some(least), true));
}

#[test]
fn answers_and_their_end() {
    let done = golden()["DONE"].clone();
    let mut written = Vec::new();
    write_done(&mut written);
    assert_eq!(written, done);
    for (name, answer) in answers() {
        let wire = &golden()[name];
        let mut written = Vec::new();
        answer.write(&mut written);
        assert_eq!(&written, wire, "{name}");
        // Whom it is not for gets another one.
        let mut all = wire.clone();
        if answer.recipients != For::Others {
            Answer::of_all(How::NextHop, reply(250, "Other")).write(&mut all);
        }
        all.extend_from_slice(&done);
        let answers = common::answered([&*all].into_iter(), 3).unwrap().unwrap();
        assert_eq!(answers.all()[0], answer, "{name}");
    }
}

#[test]
fn every_heading_is_compared() {
    let named = controls().len() + answers().len() + ["least", "everything", "DATA", "DONE"].len();
    assert_eq!(golden().len(), named);
}

#[test]
fn numbers_of_codes_and_the_name_of_the_protocol_stay() {
    let names: Vec<_> = Code::ALL.iter().map(|code| (code.number(), code.as_str())).collect();
    let said = [
        (0, "closed"),
        (1, "protocol"),
        (2, "too-large"),
        (3, "timeout"),
        (4, "stopping"),
        (5, "not-trusted"),
        (6, "busy"),
        (7, "cancelled"),
    ];
    assert_eq!(names, said);
    assert!(Code::ALL.iter().all(|code| Code::of(code.number().into()) == Some(*code)));
    assert_eq!((Code::of(8), Code::of(u64::MAX)), (None, None));
    assert_eq!(ALPN, b"wavegate-link/1");
    // The document has the same.
    let document = include_str!("../PROTOCOL.md");
    for (number, name) in said {
        assert!(document.contains(&format!("| {number} | {name} | ")), "{number} {name}");
    }
    assert!(document.contains("ALPN `wavegate-link/1`"));
}
