//! Both sides against each other over connections that split and break: each message is handed on
//! once, whatever becomes of its answers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::{RECIPIENTS, SIZE, message, rcpt, reply, split};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use wavegate_link::{
    Answer, Answering, Answers, Envelope, How, Incoming, Step, answer::write_answers,
};

/// A gateway as it is to the edge: what it has handed on, and what it answered.
#[derive(Default)]
struct Gateway {
    handed: Vec<(Envelope, Vec<u8>)>,
    seen: BTreeMap<[u8; 16], Answer>,
}

impl Gateway {
    /// One stream: what it writes once all of this has come.
    fn take(&mut self, wire: &[u8], lengths: &[usize]) -> Vec<u8> {
        let mut incoming = Incoming::new(RECIPIENTS, SIZE);
        let (mut envelope, mut content, mut out) = (None, Vec::new(), Vec::new());
        for mut piece in split(wire, lengths) {
            loop {
                let (used, step) = incoming.step(piece).unwrap();
                piece = &piece[used..];
                match step {
                    Step::NeedInput => break,
                    Step::Envelope(came) => envelope = Some(*came),
                    Step::Data(data) => content.extend_from_slice(data),
                    Step::End => {
                        let content = std::mem::take(&mut content);
                        let answer = self.hand_on(envelope.take().unwrap(), content);
                        write_answers(&[answer], &mut out);
                    }
                }
            }
        }
        assert_eq!(incoming.end().is_ok(), !out.is_empty());
        out
    }

    fn hand_on(&mut self, envelope: Envelope, content: Vec<u8>) -> Answer {
        if let Some(answer) = self.seen.get(&envelope.id) {
            return Answer { known: true, ..answer.clone() };
        }
        let text = format!("2.0.0 Message {}", self.handed.len());
        let answer = Answer::of_all(How::NextHop, reply(250, &text));
        self.seen.insert(envelope.id, answer.clone());
        self.handed.push((envelope, content));
        answer
    }
}

/// How far each way of one attempt comes; no place is all the way.
type Attempt = (Option<Index>, Option<Index>);

fn some_of<'a>(bytes: &'a [u8], cut: Option<&Index>) -> &'a [u8] {
    cut.map_or(bytes, |at| &bytes[..at.index(bytes.len() + 1).min(bytes.len())])
}

fn attempt(
    gateway: &mut Gateway,
    wire: &[u8],
    count: u32,
    (out, back): &Attempt,
    lengths: &[usize],
) -> Option<Answers> {
    let answers = gateway.take(some_of(wire, out.as_ref()), lengths);
    let mut answering = Answering::new(count);
    split(some_of(&answers, back.as_ref()), lengths)
        .find_map(|piece| answering.receive(piece).unwrap())
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 1),
        vec(any::<u8>(), 2..300),
        Just(b"\r\n.\r\nQUIT\r\n\x12\0\0\0\x08\0\0\0\0\0\0\0\0".to_vec()),
    ]
}

proptest! {
    #[test]
    fn each_message_is_handed_on_once(
        contents in vec(contents(), 1..5),
        attempts in vec(any::<Attempt>(), 0..12),
        piece in select(vec![1, 7, 1000]),
        recipients in 1u32..4,
        lengths in vec(1usize..50, 1..6),
    ) {
        let mut gateway = Gateway::default();
        let mut attempts = attempts.into_iter();
        let to: Vec<_> = (0..recipients).map(|at| rcpt(&format!("{at}@x.example"))).collect();
        for (number, content) in contents.iter().enumerate() {
            let id = format!("{number:016}").into_bytes().try_into().unwrap();
            let size = content.len() as u64;
            let envelope = Envelope { id, recipients: to.clone(), ..common::envelope(size) };
            let wire = message(&envelope, content, piece);
            let mut tried = 0;
            let answers = loop {
                tried += 1;
                let next = attempts.next().unwrap_or((None, None));
                if let Some(answers) = attempt(&mut gateway, &wire, recipients, &next, &lengths) {
                    break answers;
                }
            };
            let settled = answers.settled().unwrap();
            let said = format!("Message {number}");
            prop_assert_eq!(settled.reply.lines().next(), Some(&*said));
            prop_assert!(tried > 1 || !answers.of(0).unwrap().known);
            prop_assert_eq!(gateway.handed.len(), number + 1);
            let (came, bytes) = &gateway.handed[number];
            prop_assert_eq!((came, bytes), (&envelope, content));
        }
    }
}

#[test]
fn a_message_that_is_cut_anywhere_is_nothing() {
    let content = b"From: a\r\n\r\nHello\r\n";
    let wire = message(&common::envelope(content.len() as u64), content, 5);
    for cut in 0..wire.len() {
        let mut gateway = Gateway::default();
        assert_eq!(gateway.take(&wire[..cut], &[3]), b"");
        assert!(gateway.handed.is_empty(), "{cut}");
    }
    let mut gateway = Gateway::default();
    gateway.take(&wire, &[wire.len()]);
    assert_eq!(gateway.handed.len(), 1);
}
