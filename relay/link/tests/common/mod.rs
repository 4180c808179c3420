//! What the tests of the protocol share: values, splits, and histories of what readers make of
//! bytes.
#![allow(dead_code, unreachable_pub, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use wavegate_link::{
    Answering, Answers, Client, Control, Envelope, EnvelopeRef, Incoming, LinkError, Step,
    control::{ControlReader, Side},
};
use wavegate_smtp::{Address, Extensions, Mail, Rcpt, Reply, ReversePath};

/// Recipients, and bytes of content, that the gateways of tests take.
pub const RECIPIENTS: u32 = 100;
pub const SIZE: u64 = 1 << 20;

pub fn client() -> Client {
    Client {
        address: "192.0.2.7".parse().unwrap(),
        port: 0,
        name: String::new(),
        helo: String::new(),
        extended: false,
        secured: None,
        user: String::new(),
        destination: None,
    }
}

pub fn rcpt(address: &str) -> Rcpt {
    Rcpt::new(Address::parse(address).unwrap())
}

pub fn reply(code: u16, text: &str) -> Reply {
    Reply::new(code, None, text.to_owned()).unwrap()
}

/// A small envelope of a message of so many bytes.
pub fn envelope(size: u64) -> Envelope {
    Envelope {
        id: *b"01HXAAAAAAAAAAAA",
        received: 1_700_000_000_000,
        size,
        instance: String::new(),
        client: client(),
        mail: Mail { size: Some(size), ..Mail::new(ReversePath::Null) },
        recipients: vec![rcpt("a@x.example")],
    }
}

/// Written for a gateway that takes everything.
pub fn write(envelope: &Envelope) -> Vec<u8> {
    let mut out = Vec::new();
    borrowed(envelope).write(&Extensions::full(0), &mut out).unwrap();
    out
}

pub fn borrowed(envelope: &Envelope) -> EnvelopeRef<'_, &[Rcpt]> {
    let Envelope { id, received, size, instance, client, mail, recipients } = envelope;
    let (id, received, size) = (*id, *received, *size);
    EnvelopeRef { id, received, size, instance, client, mail, recipients }
}

/// Any frame.
pub fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), content].concat()
}

/// A whole message: its content in pieces of so many bytes.
pub fn message(envelope: &Envelope, content: &[u8], piece: usize) -> Vec<u8> {
    let mut out = write(envelope);
    for piece in content.chunks(piece) {
        out.extend(wavegate_link::message::data(u32::try_from(piece.len()).unwrap()));
        out.extend_from_slice(piece);
    }
    wavegate_link::message::write_end(content.len() as u64, &mut out);
    out
}

/// The bytes in pieces of these lengths, over and over.
pub fn split<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let (mut at, mut lengths) = (0, lengths.iter().cycle());
    std::iter::from_fn(move || {
        if at == bytes.len() {
            return None;
        }
        let end = bytes.len().min(at + lengths.next()?);
        let piece = &bytes[at..end];
        at = end;
        Some(piece)
    })
}

/// What a message's stream was, at the gateway.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Came {
    pub envelope: Option<Envelope>,
    pub content: Vec<u8>,
    pub whole: bool,
    pub wrong: Option<LinkError>,
    /// What the end of the stream after it would mean.
    pub end: Option<LinkError>,
}

/// What comes of these pieces. Whoever reads keeps no more than it may.
pub fn came<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Came {
    let (mut incoming, mut came) = (Incoming::new(RECIPIENTS, SIZE), Came::default());
    let mut all = 0;
    'pieces: for mut piece in pieces {
        all += piece.len();
        loop {
            let (used, step) = match incoming.step(piece) {
                Ok(step) => step,
                Err(error) => {
                    // It stays wrong, whatever comes.
                    assert_eq!(incoming.step(b"\x12"), Err(error));
                    assert_eq!(incoming.end(), Err(error));
                    came.wrong = Some(error);
                    break 'pieces;
                }
            };
            piece = &piece[used..];
            assert!(incoming.weight() <= (2 * all).clamp(8, wavegate_link::limits::ENVELOPE + 5));
            match step {
                Step::NeedInput => break,
                Step::Envelope(envelope) => {
                    assert!(came.envelope.is_none() && incoming.weight() == 0);
                    came.envelope = Some(*envelope);
                }
                Step::Data(data) => {
                    assert!(came.envelope.is_some() && !came.whole && !data.is_empty());
                    came.content.extend_from_slice(data);
                }
                Step::End => {
                    assert!(!came.whole, "it ended twice");
                    came.whole = true;
                }
            }
        }
        assert!(piece.is_empty(), "bytes were left over");
    }
    came.end = incoming.end().err();
    if came.whole {
        assert_eq!(came.envelope.as_ref().map(|one| one.size), Some(came.content.len() as u64));
    }
    came
}

/// What the edge makes of answers for so many recipients.
pub fn answered<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    count: u32,
) -> Result<Option<Answers>, LinkError> {
    let (mut answering, mut answers) = (Answering::new(count), None);
    for piece in pieces {
        match answering.receive(piece) {
            Ok(None) => {}
            Ok(some) => {
                assert!(answers.is_none(), "two ends");
                answers = some;
            }
            Err(error) => {
                assert!(answers.is_none(), "an error of what is settled");
                assert_eq!(answering.receive(b"\x21"), Err(error));
                return Err(error);
            }
        }
        let bounds = wavegate_link::limits::ANSWER + 5 + wavegate_link::limits::ANSWERS;
        assert!(answering.weight() <= bounds);
    }
    Ok(answers)
}

/// What was said on a control stream, and what was wrong with it.
pub fn said<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    speaker: Side,
) -> (Vec<Control>, Option<LinkError>) {
    let (mut reader, mut said) = (ControlReader::new(speaker), Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            match reader.read(piece) {
                Ok((used, word)) => {
                    assert!(used > 0, "it does not go on");
                    piece = &piece[used..];
                    said.extend(word);
                }
                Err(error) => {
                    assert_eq!(reader.read(b"\x04\0\0\0\0"), Err(error));
                    return (said, Some(error));
                }
            }
            assert!(reader.weight() <= wavegate_link::limits::HELLO + 5);
        }
    }
    (said, None)
}
