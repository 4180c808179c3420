//! Client and server against each other, over a wire that cuts where it likes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::mem::size_of;
use std::sync::Arc;

use common::{Embedder, Seen, config, split};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use wavegate_smtp::params::{BodyType, Notify, Ret};
use wavegate_smtp::{
    Address, BodyForm, BodyShape, Client, ClientEvent, Closing, Enhanced, Extension, Extensions,
    Limits, Mail, Rcpt, Reply, ReversePath, Server, Settled, Step, stuff,
};

#[derive(Clone, Debug)]
struct Message {
    mail: Mail,
    rcpts: Vec<Rcpt>,
    body: Vec<u8>,
}

/// The wire: moves bytes both ways until nobody has anything to say.
struct Duet<'a> {
    client: Client,
    upstream: Embedder,
    lengths: &'a [usize],
    body: Vec<u8>,
    settled: Option<Settled>,
    ready: bool,
}

impl<'a> Duet<'a> {
    fn new(extensions: Extensions, lengths: &'a [usize]) -> Duet<'a> {
        let mut upstream = Embedder::new(config(extensions, Limits::default()));
        upstream.refuse = refuse;
        let client = Client::new("relay.example".into());
        let mut duet =
            Duet { client, upstream, lengths, body: Vec::new(), settled: None, ready: false };
        duet.run();
        assert!(duet.ready);
        duet
    }

    fn run(&mut self) {
        loop {
            while let Some(event) = self.client.poll() {
                self.event(event);
            }
            let to_client = self.upstream.take_output();
            for piece in split(&to_client, self.lengths) {
                self.client.receive(piece).unwrap();
                while let Some(event) = self.client.poll() {
                    self.event(event);
                }
            }
            let to_server = self.client.output().to_vec();
            self.client.written(to_server.len());
            self.feed(&to_server);
            if to_client.is_empty() && to_server.is_empty() {
                return;
            }
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for piece in split(bytes, self.lengths) {
            assert!(self.upstream.feed(piece));
        }
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Ready(extensions) => {
                assert_eq!(extensions, self.client.extensions());
                self.ready = true;
            }
            ClientEvent::SendBody(form) => self.send(form),
            ClientEvent::Settled(settled) => {
                assert_eq!(self.settled.replace(settled), None, "settled twice");
            }
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, form: BodyForm) {
        let mut bytes = self.client.output().to_vec();
        self.client.written(bytes.len());
        match form {
            BodyForm::Data { stuff: true } => {
                bytes.extend(stuff::pieces(&self.body, true).flatten());
                bytes.extend_from_slice(stuff::END);
            }
            BodyForm::Data { stuff: false } => {
                bytes.extend_from_slice(&self.body);
                bytes.extend_from_slice(stuff::END);
            }
            BodyForm::Chunk => bytes.extend_from_slice(&self.body),
        }
        self.client.body_sent();
        self.feed(&bytes);
    }

    /// One message through; nothing if this upstream cannot be given it.
    fn transact(&mut self, message: &Message) -> Option<Settled> {
        let shape = shape(&message.body);
        self.body.clone_from(&message.body);
        self.client.begin(&message.mail, &message.rcpts, &shape).ok()?;
        self.run();
        assert!(self.client.is_ready());
        Some(self.settled.take().expect("not settled"))
    }
}

/// Domains that say what becomes of them.
fn refuse(seen: &Seen) -> Option<Reply> {
    let domain = match seen {
        Seen::Mail(mail) => mail.sender.domain(),
        Seen::Rcpt(rcpt) => rcpt.recipient.domain(),
        _ => return None,
    };
    match domain {
        "no.example" => Some(Reply::fixed(550, Enhanced(5, 1, 1), "No")),
        "later.example" => Some(Reply::fixed(451, Enhanced(4, 7, 0), "Later")),
        _ => None,
    }
}

fn shape(body: &[u8]) -> BodyShape {
    BodyShape {
        size: body.len() as u64,
        eight_bit: !body.is_ascii(),
        leading_dot: body.starts_with(b".") || body.windows(2).any(|pair| pair == b"\n."),
        ends_with_crlf: body.is_empty() || body.ends_with(b"\r\n"),
    }
}

fn address() -> impl Strategy<Value = Address> {
    let local = select(vec!["a", "b.c", "\"q @ .\"", "ä", "VERP+x=y"]);
    let domain = select(vec![
        "x.example",
        "x.example",
        "x.example",
        "no.example",
        "later.example",
        "[1.2.3.4]",
    ]);
    (local, domain)
        .prop_map(|(local, domain)| Address::parse(&format!("{local}@{domain}")).unwrap())
}

fn message() -> impl Strategy<Value = Message> {
    let sender = prop_oneof![
        Just(ReversePath::Null),
        address().prop_map(ReversePath::Address),
        Just(ReversePath::Address(Address::parse("ok@x.example").unwrap())),
    ];
    let notify = (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(success, failure, delay)| Notify { success, failure, delay });
    let orcpt = select(vec![None, Some("rfc822;b+2Bc@x.example")]);
    let rcpt =
        (address(), prop::option::of(notify), orcpt).prop_map(|(recipient, notify, orcpt)| Rcpt {
            recipient,
            notify,
            orcpt: orcpt.map(Into::into),
        });
    let mail = (
        sender,
        select(vec![None, Some(BodyType::SevenBit), Some(BodyType::EightBitMime)]),
        select(vec![None, Some(Ret::Full), Some(Ret::Headers)]),
        select(vec![None, Some("id+2B")]),
    );
    let line = select(vec!["a", ".", "..b", "", "Subject: x", "ä", ".\r\nb"]);
    (mail, vec(rcpt, 1..5), vec(line, 0..8), any::<bool>()).prop_map(|(mail, rcpts, lines, cut)| {
        let (sender, body, ret, envid) = mail;
        let wide = !sender.is_ascii() || rcpts.iter().any(|rcpt| !rcpt.recipient.is_ascii());
        let mail =
            Mail { sender, size: None, body, smtputf8: wide, ret, envid: envid.map(Into::into) };
        let mut body =
            lines.iter().flat_map(|line| [line, "\r\n"]).collect::<String>().into_bytes();
        if cut && body.len() > 3 {
            body.truncate(body.len() - 2);
        }
        Message { mail, rcpts, body }
    })
}

fn extensions() -> impl Strategy<Value = Extensions> {
    (vec(any::<bool>(), 6), select(vec![None, Some(0), Some(20), Some(1_000_000)])).prop_map(
        |(wanted, size)| {
            let pairs = Extension::ALL.iter().zip(wanted);
            pairs.fold(Extensions::NONE.with_size(size), |set, (extension, wanted)| {
                if wanted { set.with(*extension) } else { set }
            })
        },
    )
}

/// What the upstream must have seen of a message.
fn check(
    message: &Message,
    settled: &Settled,
    offered: Extensions,
    seen: &[Seen],
) -> Result<(), TestCaseError> {
    let mut wanted = message.mail.clone();
    wanted.size = offered.size().map(|_| message.body.len() as u64);
    wanted.body = wanted
        .body
        .filter(|body| *body == BodyType::EightBitMime && offered.has(Extension::EightBitMime));
    wanted.smtputf8 = wanted.smtputf8 && offered.has(Extension::SmtpUtf8);
    let dsn = offered.has(Extension::Dsn);
    wanted.ret = wanted.ret.filter(|_| dsn);
    wanted.envid = wanted.envid.filter(|_| dsn);
    prop_assert_eq!(
        seen.iter().find(|seen| matches!(seen, Seen::Mail(_))),
        Some(&Seen::Mail(wanted))
    );
    let sender_refused = refuse(&Seen::Mail(message.mail.clone()));
    let mut taken = 0;
    for (index, rcpt) in (0..).zip(&message.rcpts) {
        let refused = sender_refused.clone().or_else(|| refuse(&Seen::Rcpt(rcpt.clone())));
        taken += u32::from(refused.is_none());
        let wanted = refused.unwrap_or_else(|| common::TAKEN.clone());
        prop_assert_eq!(settled.for_recipient(index).to_string(), wanted.to_string());
    }
    let messages: Vec<&Vec<u8>> = seen
        .iter()
        .filter_map(|seen| if let Seen::Message(body, _) = seen { Some(body) } else { None })
        .collect();
    prop_assert_eq!(messages, if taken > 0 { vec![&message.body] } else { vec![] });
    let dropped = seen.iter().any(|seen| matches!(seen, Seen::Dropped(_) | Seen::Close(_)));
    prop_assert!(!dropped);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sent_arrives(
        offered in extensions(),
        messages in vec(message(), 1..5),
        lengths in prop_oneof![Just(vec![1]), Just(vec![10_000]), vec(1usize..60, 1..8)],
    ) {
        let mut duet = Duet::new(offered, &lengths);
        prop_assert_eq!(duet.client.extensions(), offered);
        for message in &messages {
            duet.upstream.seen.clear();
            if let Some(settled) = duet.transact(message) {
                check(message, &settled, offered, &duet.upstream.seen)?;
            } else {
                prop_assert!(duet.upstream.seen.is_empty());
                prop_assert!(duet.client.is_ready());
            }
        }
        duet.client.quit();
        let output = duet.client.output().to_vec();
        prop_assert!(!duet.upstream.feed(&output));
        duet.client.receive(&duet.upstream.take_output()).unwrap();
        prop_assert!(duet.client.is_closed());
    }
}

#[test]
fn an_idle_session_is_small() {
    // 10,000 idle connections must stay cheap: this, and no heap.
    assert!(size_of::<Server>() <= 300, "{} bytes", size_of::<Server>());
    assert!(size_of::<Step<'_>>() <= 128, "{} bytes", size_of::<Step<'_>>());
    assert!(size_of::<Client>() <= 300, "{} bytes", size_of::<Client>());
}

#[test]
fn talking_before_the_greeting() {
    let mut server = Server::new(Arc::new(config(Extensions::NONE, Limits::default())));
    assert_eq!(server.step(b""), (0, Step::NeedInput));
    assert_eq!(server.step(b"EHLO x\r\n"), (8, Step::Close(Closing::Misbehaved)));
    assert!(server.output().starts_with(b"554 5.5.0 "));
    assert_eq!(server.output().iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn answers_can_come_later_and_be_refusals() {
    let config = config(Extensions::full(0), Limits::default());
    let mut server = Server::new(Arc::new(config));
    server.greet();
    let refusal = Reply::fixed(450, Enhanced(4, 3, 2), "Not now");
    assert!(matches!(server.step(b"EHLO c\r\n"), (8, Step::Helo(_))));
    assert!(server.is_awaiting());
    server.reply(&refusal);
    assert_eq!(server.step(b"MAIL FROM:<>\r\n"), (14, Step::NeedInput), "not greeted");
    let (_, step) = server.step(b"EHLO c\r\n");
    assert!(matches!(step, Step::Helo(_)));
    server.accept_helo(Extensions::NONE.with(Extension::Chunking));
    let envelope = b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 3 LAST\r\nabcMAIL FROM:<>\r\n";
    let mut rest = &envelope[..];
    for refused in [false, false, true] {
        let (used, _) = server.step(rest);
        rest = &rest[used..];
        server.written(server.output().len());
        if refused { server.reply(&refusal) } else { server.accept() }
    }
    // The refused chunk is skipped and answered behind it.
    let (_, step) = server.step(rest);
    assert!(matches!(step, Step::Mail(_)));
    assert_eq!(server.output(), b"450 4.3.2 Not now\r\n");
    server.close(&Reply::fixed(421, Enhanced(4, 4, 2), "Timeout"));
    assert!(!server.is_awaiting());
    assert_eq!(server.step(b"x"), (1, Step::Close(Closing::Told)));
    assert!(server.output().ends_with(b"421 4.4.2 Timeout\r\n"));
}
