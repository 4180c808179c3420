//! Whatever a side may do wrong has a named error; and each bound, at it and one past it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{
    RECIPIENTS, SIZE, answered, borrowed, came, client, envelope, frame, message, rcpt, reply,
    said, write,
};
use wavegate_link::{
    Answer, Client, Code, Control, Envelope, EnvelopeRef, Hello, How, LinkError, Offer,
    answer::{For, write_answers, write_done},
    control::Side,
    limits,
};
use wavegate_smtp::{Enhanced, Extension, Extensions, Reply, ReversePath};

fn value(what: &'static str) -> LinkError {
    LinkError::Value(what)
}

fn too_large(what: &'static str, length: u64, most: u64) -> LinkError {
    LinkError::TooLarge { what, length, most }
}

/// An ENVELOPE of `common::envelope(5)` in which these bytes are others.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut wire = write(&envelope(5));
    wire[5 + at..5 + at + bytes.len()].copy_from_slice(bytes);
    wire
}

/// An ENVELOPE with these lines, of so many recipients.
fn lines(count: u32, lines: &[u8]) -> Vec<u8> {
    let whole = write(&envelope(5));
    let head = &whole[5..whole.len() - b"MAIL FROM:<> SIZE=5\r\nRCPT TO:<a@x.example>\r\n".len()];
    frame(16, &[&head[..head.len() - 4], &count.to_be_bytes(), lines].concat())
}

// Places in the content of that ENVELOPE.
const INSTANCE: usize = 32;
const FLAGS: usize = 52;
const SUITE: usize = 53;
const NAME: usize = 54;
const COUNT: usize = 60;

#[test]
fn what_may_be_wrong_with_an_envelope() {
    let line = value("a line of the envelope");
    let tls = value("TLS of a client without");
    let length = LinkError::Length("ENVELOPE");
    let table = [
        (frame(16, b""), LinkError::Length("ENVELOPE")),
        (frame(16, &[b'a'; 31]), length),
        (changed(3, b"-"), value("the id")),
        (changed(0, b"\0"), value("the id")),
        // A text that says it is longer than all of it, and than any may be; that is none.
        (changed(INSTANCE, &[4, 0]), length),
        (changed(INSTANCE, &[4, 1]), too_large("the instance", 1025, 1024)),
        (changed(NAME, &[0, 2, 0xff]), value("a host name")),
        (changed(NAME, &[0, 1, b'\n']), value("a host name")),
        (changed(NAME + 2, &[0, 1, 0x7f]), value("HELO")),
        (changed(NAME + 4, &[0, 1, 0]), value("a user")),
        (changed(FLAGS, &[16]), value("the client's flags")),
        (changed(FLAGS, &[0x80]), value("the client's flags")),
        (changed(FLAGS, &[4]), tls),
        (changed(SUITE, &[1]), tls),
        (changed(COUNT, &[0; 4]), value("a list of no recipients")),
        (changed(COUNT, &[0xff; 4]), too_large("a list of recipients", u32::MAX.into(), 100)),
        (changed(COUNT, &[0, 0, 0, 2]), line),
        (lines(1, b""), line),
        (lines(1, b"MAIL FROM:<>\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\nRCPT TO:<a@x>"), line),
        (lines(1, b"MAIL FROM:<>\r\nRCPT TO:<a@x>\n"), line),
        (lines(1, b"MAIL FROM:<>\nRCPT TO:<a@x>\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\r\nRCPT TO:<a@x>\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\n\r\nRCPT TO:<a@x>\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\nRCPT TO:<a@x>\r\n\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\nRCPT TO:<a@x>\r\nDATA\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\n"), line),
        (lines(1, b"RCPT TO:<a@x>\r\nMAIL FROM:<>\r\n"), line),
        (lines(1, b"MAIL FROM:<>\r\nMAIL FROM:<>\r\n"), line),
        (lines(1, b"MAIL FROM:<> AUTH=<>\r\nRCPT TO:<a@x>\r\n"), line),
        (lines(1, b"MAIL FROM:<> X=1\r\nRCPT TO:<a@x>\r\n"), line),
        (lines(1, "MAIL FROM:<ü@x>\r\nRCPT TO:<a@x>\r\n".as_bytes()), line),
        (lines(1, "MAIL FROM:<>\r\nRCPT TO:<ü@x>\r\n".as_bytes()), line),
        (lines(1, b"MAIL FROM:<>\r\nRCPT TO:<a@x\0>\r\n"), line),
        (lines(1, b"MAIL FROM:<> SIZE=6\r\nRCPT TO:<a@x>\r\n"), value("SIZE")),
    ];
    for (wire, error) in table {
        let came = came([&*wire].into_iter());
        assert_eq!((came.envelope, came.wrong), (None, Some(error)), "{}", wire.escape_ascii());
    }
    // What SMTP takes is taken.
    let wire = lines(1, b"mail from: <a@x>  ret=full\r\nRcpt To:<b@x> notify=NEVER\r\n");
    assert_eq!(came([&*wire].into_iter()).wrong, None);
}

#[test]
fn what_may_be_wrong_with_a_message() {
    let before = write(&envelope(5));
    let with = |rest: &[u8]| [&before, rest].concat();
    let end = |size: u64| frame(18, &size.to_be_bytes());
    let content = |came| LinkError::Content { came, size: 5 };
    let data = |content: &[u8]| frame(17, content);
    let whole = message(&envelope(5), b"Hello", 9);
    let table = [
        (frame(17, b"a"), LinkError::Unexpected(17)),
        (end(0), LinkError::Unexpected(18)),
        (frame(1, b""), LinkError::Unexpected(1)),
        (b"GET / HTTP/1.1\r\n".to_vec(), LinkError::Unexpected(b'G')),
        (vec![0; 5], LinkError::Unexpected(0)),
        (with(&before), LinkError::Unexpected(16)),
        (with(&frame(33, b"")), LinkError::Unexpected(33)),
        (with(&data(b"")), value("DATA without content")),
        (with(&data(b"Hello!")), too_large("DATA", 6, 5)),
        (with(&[&data(b"Hel")[..], &data(b"lo!")].concat()), too_large("DATA", 3, 2)),
        (with(&[&data(b"Hello")[..], &data(b"!")].concat()), too_large("DATA", 1, 0)),
        (with(b"\x11\xff\xff\xff\xff"), too_large("DATA", u32::MAX.into(), 5)),
        (with(&[data(b"Hell"), end(5)].concat()), content(4)),
        (with(&[data(b"Hell"), end(4)].concat()), content(4)),
        (with(&end(5)), content(0)),
        (with(&[data(b"Hello"), end(6)].concat()), value("the size that END says")),
        (with(&[data(b"Hello"), frame(18, b"")].concat()), LinkError::Length("END")),
        (with(&[data(b"Hello"), frame(18, &[0; 7])].concat()), LinkError::Length("END")),
        (with(b"\x12\0\0\0\x09"), too_large("END", 9, 8)),
        ([&whole[..], b"\x12"].concat(), LinkError::Unexpected(18)),
        ([&whole[..], b"\0"].concat(), LinkError::Unexpected(0)),
    ];
    for (wire, error) in table {
        let came = came([&*wire].into_iter());
        assert_eq!(came.wrong, Some(error), "{}", wire.escape_ascii());
    }
    // And where the stream ends.
    for (length, end) in [
        (0, Some(LinkError::Cut("ENVELOPE"))),
        (4, Some(LinkError::Cut("ENVELOPE"))),
        (before.len() - 1, Some(LinkError::Cut("ENVELOPE"))),
        (before.len(), Some(LinkError::Cut("END"))),
        (before.len() + 7, Some(LinkError::Cut("END"))),
        (whole.len() - 1, Some(LinkError::Cut("END"))),
        (whole.len(), None),
    ] {
        let came = came([&whole[..length]].into_iter());
        assert_eq!((came.wrong, came.end, came.whole), (None, end, end.is_none()), "{length}");
    }
}

/// An ANSWER of these parts.
fn answer(how: u8, flags: u8, named: &[u32], reply: &[u8]) -> Vec<u8> {
    let count = u32::try_from(named.len()).unwrap().to_be_bytes();
    let named: Vec<u8> = named.iter().flat_map(|one| one.to_be_bytes()).collect();
    frame(32, &[&[how, flags][..], &count, &named, reply].concat())
}

#[test]
fn what_may_be_wrong_with_answers() {
    const OK: &[u8] = b"250 Ok\r\n";
    let done = frame(33, b"");
    let one = |how, flags, named: &[u32]| answer(how, flags, named, OK);
    let text = |text: &[u8]| answer(0, 2, &[], text);
    let kind = value("a reply of another kind than its answer");
    let whom = value("whom an answer is for");
    let table = [
        (frame(16, b""), LinkError::Unexpected(16)),
        (vec![34, 0, 0, 0, 0], LinkError::Unexpected(34)),
        (b"\x21\0\0\0\x01".to_vec(), too_large("DONE", 1, 0)),
        (done.clone(), LinkError::Answers(0)),
        ([one(0, 0, &[1]), done.clone()].concat(), LinkError::Answers(0)),
        ([one(0, 0, &[0]), done].concat(), LinkError::Answers(1)),
        ([one(0, 0, &[0, 1]), one(0, 0, &[1])].concat(), LinkError::Answers(1)),
        (one(0, 0, &[1, 1]), LinkError::Answers(1)),
        (one(0, 0, &[2]), value("the position of a recipient")),
        (one(0, 0, &[u32::MAX]), value("the position of a recipient")),
        (one(0, 0, &[0, 1, 2]), too_large("a list of recipients", 3, 2)),
        ([one(0, 2, &[]), one(1, 2, &[])].concat(), value("a second answer for all others")),
        (one(0, 0, &[]), whom),
        (one(0, 2, &[1]), whom),
        (one(4, 2, &[]), value("who an answer is from")),
        (one(0, 8, &[0]), value("an answer's flags")),
        (one(0, 0x82, &[]), value("an answer's flags")),
        (frame(32, b""), LinkError::Length("ANSWER")),
        (frame(32, &[0, 0, 0, 0, 0, 1, 0]), LinkError::Length("ANSWER")),
        (text(b""), value("a reply")),
        (text(b"250 Ok"), value("a reply")),
        (text(b"250-Ok\r\n"), value("a reply")),
        (text(b"250 Ok\r\n250 Ok\r\n"), value("a reply")),
        (text(b"Hello\r\n"), value("a reply")),
        (text(b"354 Go on\r\n"), value("a reply")),
        (text(b"199 No\r\n"), value("a reply")),
        (answer(1, 2, &[], b"451 No\r\n"), kind),
        (answer(3, 2, &[], OK), kind),
    ];
    for (wire, error) in table {
        assert_eq!(answered([&*wire].into_iter(), 2), Err(error), "{}", wire.escape_ascii());
    }
    // Nothing is settled without its end; behind that nothing is looked at.
    let mut wire = one(0, 2, &[]);
    assert_eq!(answered([&*wire].into_iter(), 2), Ok(None));
    write_done(&mut wire);
    wire.extend_from_slice(b"garbage");
    for pieces in [vec![&wire[..]], wire.chunks(1).collect()] {
        assert!(answered(pieces.into_iter(), 2).unwrap().is_some());
    }
}

fn hello(name: &str, speaker: Side) -> Vec<u8> {
    let (eight_bit, smtputf8, dsn) = (true, true, true);
    let offer = Offer { eight_bit, smtputf8, dsn, size: 0, recipients: 1 };
    let offer = (speaker == Side::Gateway).then_some(offer);
    let mut out = Vec::new();
    let hello = Hello { name: name.to_owned(), incarnation: [7; 16], offer };
    Control::Hello(hello).write(&mut out);
    out
}

#[test]
fn what_may_be_wrong_on_the_control_stream() {
    let (edge, gateway) = (hello("e.example", Side::Edge), hello("g.example", Side::Gateway));
    let after = |hello: &[u8], rest: &[u8]| [hello, rest].concat();
    let mut no_recipients = gateway.clone();
    *no_recipients.last_mut().unwrap() = 0;
    let length = LinkError::Length;
    let ping = frame(2, &[0; 8]);
    let table = [
        (Side::Edge, ping.clone(), LinkError::Unexpected(2)),
        (Side::Edge, frame(16, b""), LinkError::Unexpected(16)),
        (Side::Edge, b"\x11\xff\xff\xff\xff".to_vec(), LinkError::Unexpected(17)),
        (Side::Edge, b"EHLO e.example\r\n".to_vec(), LinkError::Unexpected(b'E')),
        (Side::Edge, after(&edge, &edge), LinkError::Unexpected(1)),
        (Side::Edge, after(&edge, &frame(3, &[0; 8])), LinkError::Unexpected(3)),
        (Side::Edge, after(&edge, &frame(4, b"")), LinkError::Unexpected(4)),
        (Side::Edge, after(&edge, &frame(2, &[0; 7])), length("PING")),
        (Side::Edge, after(&edge, &frame(2, b"")), length("PING")),
        (Side::Edge, after(&edge, b"\x02\0\0\0\x09"), too_large("PING", 9, 8)),
        // Each side's HELLO is its own.
        (Side::Edge, gateway.clone(), length("HELLO")),
        (Side::Gateway, edge, length("HELLO")),
        (Side::Gateway, no_recipients, value("an offer of no recipients")),
        (Side::Gateway, after(&gateway, &ping), LinkError::Unexpected(2)),
        (Side::Gateway, after(&gateway, &frame(3, &[0; 1])), length("PONG")),
        (Side::Gateway, after(&gateway, b"\x04\0\0\0\x01"), too_large("STOPPING", 1, 0)),
        (Side::Edge, hello("", Side::Edge), value("the name")),
        (Side::Edge, hello("two words", Side::Edge), value("the name")),
        (Side::Edge, hello("ü.example", Side::Edge), value("the name")),
        (Side::Edge, frame(1, &[0, 1, 0xff]), value("the name")),
        (Side::Edge, frame(1, b"\0\x01a"), length("HELLO")),
        (Side::Edge, frame(1, b""), length("HELLO")),
    ];
    for (speaker, wire, error) in table {
        let (_, wrong) = said([&*wire].into_iter(), speaker);
        assert_eq!(wrong, Some(error), "{}", wire.escape_ascii());
    }
    // What a later gateway offers besides is passed over.
    let mut more = gateway.clone();
    let flags = more.len() - 14;
    more[flags] = 0x80;
    let words = said([&*more].into_iter(), Side::Gateway);
    assert_eq!(words, said([&*gateway].into_iter(), Side::Gateway));
}

#[test]
fn each_error_says_what_the_other_side_is_told() {
    for (error, code, text) in [
        (LinkError::Unexpected(7), Code::Protocol, "a frame of type 7 may not stand here"),
        (too_large("DATA", 6, 5), Code::TooLarge, "DATA of 6 bytes, at most 5 are allowed"),
        (LinkError::Length("END"), Code::Protocol, "END is not as long as what is in it"),
        (value("HELO"), Code::Protocol, "HELO is wrong"),
        (LinkError::Content { came: 4, size: 5 }, Code::Protocol, "4 bytes came of a message of 5"),
        (LinkError::Cut("END"), Code::Protocol, "the stream ended before END"),
        (LinkError::Answers(3), Code::Protocol, "recipient 3 has not exactly one answer"),
    ] {
        assert_eq!((error.code(), &*error.to_string()), (code, text));
    }
}

#[test]
fn names_and_texts_at_their_bounds() {
    let wrong = |wire: Vec<u8>| said([&*wire].into_iter(), Side::Edge).1;
    assert_eq!(wrong(hello(&"a".repeat(limits::NAME), Side::Edge)), None);
    let content = |length: u16| {
        let name = vec![b'a'; length.into()];
        frame(1, &[&length.to_be_bytes()[..], &name, &[0; 16]].concat())
    };
    assert_eq!(wrong(content(255)), None);
    assert_eq!(wrong(content(256)), Some(value("the name")));
    assert_eq!(wrong(frame(1, &[0; limits::HELLO])), Some(value("the name")));
    let past = too_large("HELLO", 1025, 1024);
    assert_eq!(wrong(vec![1, 0, 0, 4, 1]), Some(past));

    // Whoever writes cuts; whoever reads refuses.
    for (length, read) in [(1024, 1024), (1025, 1024), (70_000, 1024)] {
        let client = Client { name: "a".repeat(length), ..client() };
        let wire = write(&Envelope { client, ..envelope(0) });
        let envelope = came([&*wire].into_iter()).envelope.unwrap();
        assert_eq!(envelope.client.name.len(), read);
    }
    let client = Client { name: "a".repeat(1023) + "ü", ..client() };
    let wire = write(&Envelope { client, ..envelope(0) });
    let name = came([&*wire].into_iter()).envelope.unwrap().client.name;
    assert_eq!(name, "a".repeat(1023));
}

#[test]
fn lines_recipients_and_sizes_at_their_bounds() {
    // Spaces behind the colon are allowed, and make a line as long as one likes.
    let padded = |length: usize| {
        let spaces = " ".repeat(length - "RCPT TO:<a@x>".len());
        lines(1, format!("MAIL FROM:<>\r\nRCPT TO:{spaces}<a@x>\r\n").as_bytes())
    };
    let wrong = |wire: Vec<u8>| came([&*wire].into_iter()).wrong;
    assert_eq!(wrong(padded(limits::LINE)), None);
    assert_eq!(wrong(padded(limits::LINE + 1)), Some(value("a line of the envelope")));

    let to = |count: u32| {
        let recipients = (0..count).map(|at| rcpt(&format!("{at}@x.example"))).collect();
        write(&Envelope { recipients, ..envelope(0) })
    };
    assert_eq!(wrong(to(RECIPIENTS)), None);
    let most = RECIPIENTS.into();
    assert_eq!(wrong(to(RECIPIENTS + 1)), Some(too_large("a list of recipients", most + 1, most)));

    assert_eq!(wrong(write(&envelope(SIZE))), None);
    let past = Some(too_large("a message", SIZE + 1, SIZE));
    assert_eq!(wrong(write(&envelope(SIZE + 1))), past);
    let past = Some(too_large("a message", u64::MAX, SIZE));
    assert_eq!(wrong(write(&envelope(u64::MAX))), past);
}

#[test]
fn an_envelope_at_its_bound() {
    let head = write(&envelope(0)).len() - 5 - "RCPT TO:<a@x.example>\r\n".len();
    // Recipients of 500 bytes each, and two that fill what is left.
    let line = |length: usize| rcpt(&format!("{}@x.example", "a".repeat(length - 22)));
    let of = |bytes: usize| {
        let bytes = bytes - head;
        let mut recipients: Vec<_> = (1..bytes / 500).map(|_| line(500)).collect();
        let left = bytes - 500 * recipients.len();
        recipients.extend([line(left / 2), line(left - left / 2)]);
        Envelope { recipients, ..envelope(0) }
    };
    let most = of(limits::ENVELOPE);
    let wire = write(&most);
    assert_eq!(wire.len(), 5 + limits::ENVELOPE);
    let read = Envelope::read(&wire[5..], 10_000).unwrap();
    assert_eq!(read.recipients, most.recipients);
    // As it would come, one byte at a time too: too many recipients for these gateways.
    assert!(matches!(came(wire.chunks(1)).wrong, Some(LinkError::TooLarge { .. })));

    let mut out = b"before".to_vec();
    let past = of(limits::ENVELOPE + 1);
    let written = borrowed(&past).write(&Extensions::full(0), &mut out);
    let length = limits::ENVELOPE as u64 + 1;
    assert_eq!(written, Err(too_large("ENVELOPE", length, length - 1)));
    assert_eq!(out, b"before");
    let header = [&[16][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
    let wrong = came([&*header].into_iter()).wrong;
    assert_eq!(wrong, Some(too_large("ENVELOPE", length, length - 1)));
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let plain = Extensions::full(0).without(Extension::SmtpUtf8);
    let wide = || vec![rcpt("ü@x.example")];
    let declared = |smtputf8| {
        let mut envelope = envelope(0);
        envelope.mail.smtputf8 = smtputf8;
        envelope
    };
    let table = [
        (Envelope { recipients: vec![], ..envelope(0) }, value("a list of no recipients")),
        (Envelope { id: *b"01HX AAAAAAAAAAA", ..envelope(0) }, value("the id")),
        (Envelope { recipients: wide(), ..declared(false) }, value("an address beyond ASCII")),
    ];
    for (envelope, error) in table {
        let mut out = Vec::new();
        assert_eq!(borrowed(&envelope).write(&Extensions::full(0), &mut out), Err(error));
        assert_eq!(out, b"");
    }
    let envelope = Envelope { recipients: wide(), ..declared(true) };
    let mut out = Vec::new();
    assert!(borrowed(&envelope).write(&plain, &mut out).is_err());
    assert!(borrowed(&envelope).write(&Extensions::full(0), &mut out).is_ok());
    // Parameters go where they are offered.
    let mut envelope = declared(true);
    envelope.mail.sender = ReversePath::Null;
    envelope.recipients[0].notify = Some(wavegate_smtp::params::Notify::default());
    let mut out = Vec::new();
    EnvelopeRef { ..borrowed(&envelope) }.write(&Extensions::NONE, &mut out).unwrap();
    assert!(out.ends_with(b"MAIL FROM:<>\r\nRCPT TO:<a@x.example>\r\n"));
}

/// The longest reply that there may be.
fn long(code: u16, mark: &str) -> Answer {
    let line = format!("{}{}", mark, "a".repeat(310));
    Answer::of_all(How::NextHop, reply(code, &vec![line; 100].join("\n")))
}

#[test]
fn answers_at_their_bounds() {
    // The longest reply for as many recipients as stand in one frame, and some more.
    let mut wire = Vec::new();
    let these: Vec<u32> = (0..10_000).collect();
    Answer { recipients: For::These(these), ..long(250, "") }.write(&mut wire);
    write_done(&mut wire);
    let answers = answered(wire.chunks(1000), 10_000).unwrap().unwrap();
    assert_eq!(answers.all().len(), 3);

    // A reply of our own that is as long as may be is longer with its code in each line.
    let text = vec!["a".repeat(326); 100].join("\n");
    let reply = Reply::new(250, Some(Enhanced(2, 0, 0)), text).unwrap();
    let mut wire = Vec::new();
    write_answers(&[Answer::of_all(How::Stored, reply)], &mut wire);
    let settled = answered([&*wire].into_iter(), 1).unwrap().unwrap().settled().unwrap();
    assert_eq!(settled.reply.enhanced(), Some(Enhanced(2, 0, 0)));
    assert_eq!(settled.reply.lines().collect::<Vec<_>>(), ["a".repeat(326)]);

    let header = |length: usize| {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        [&[32][..], &length].concat()
    };
    assert_eq!(answered([&*header(limits::ANSWER)].into_iter(), 1), Ok(None));
    let past = too_large("ANSWER", limits::ANSWER as u64 + 1, limits::ANSWER as u64);
    assert_eq!(answered([&*header(limits::ANSWER + 1)].into_iter(), 1), Err(past));

    // All answers: frames of 32 KiB, of which 128 are all that may be.
    let each = 32 << 10;
    let one = |at: u32| {
        let head = "550-\r\n".repeat(9);
        let mut text = head.into_bytes();
        while each - 10 - text.len() > 4200 {
            text.extend(b"550-");
            text.extend([b'a'; 4000]);
            text.extend(b"\r\n");
        }
        text.extend(b"550-");
        text.extend(vec![b'a'; each - 10 - text.len() - 2 - 6]);
        text.extend(b"\r\n550 \r\n");
        answer(0, 0, &[at], &text)
    };
    assert_eq!(one(0).len(), each + 5);
    let most: Vec<u8> = (0..128).flat_map(one).collect();
    let done = frame(33, b"");
    let all = [&most[..], &done].concat();
    assert!(answered([&*all].into_iter(), 128).unwrap().is_some());
    let small = answer(0, 2, &[], b"250 Ok\r\n");
    let past = [&most[..], &small].concat();
    let (length, bound) = (limits::ANSWERS as u64, limits::ANSWERS as u64);
    let error = too_large("the answers", length + small.len() as u64 - 5, bound);
    assert_eq!(answered([&*past].into_iter(), 129), Err(error));
}

#[test]
fn too_many_long_replies_are_cut_and_all_are_there() {
    let count = 500;
    let answers: Vec<_> = (0..count)
        .map(|at| Answer {
            recipients: For::These(vec![at]),
            ..long(if at % 2 == 0 { 550 } else { 250 }, &format!("5.1.1 {at} ü"))
        })
        .collect();
    let mut wire = Vec::new();
    write_answers(&answers, &mut wire);
    assert!(wire.len() <= limits::ANSWERS + 5 * (count as usize + 1));
    let read = answered(wire.chunks(4096), count).unwrap().unwrap();
    for (at, answer) in (0..).zip(&answers) {
        let cut = read.of(at).unwrap();
        assert_eq!(cut.reply.code(), answer.reply.code());
        assert_eq!(cut.reply.enhanced(), answer.reply.enhanced());
        let line = cut.reply.lines().next().unwrap();
        assert!(line.contains(&format!("{at} ü")) && line.len() > 300, "{line}");
    }
    // One reply for many is not many replies.
    let mut wire = Vec::new();
    let others = Answer { recipients: For::These((1..10_000).collect()), ..long(550, "5.1.1 ") };
    write_answers(&[others, Answer::of_all(How::NextHop, reply(250, "Ok"))], &mut wire);
    let settled = answered([&*wire].into_iter(), 10_000).unwrap().unwrap().settled().unwrap();
    assert_eq!((settled.reply.code(), settled.refused.len()), (250, 9_999));
    let refused = settled.refused.iter();
    let bytes: usize = refused.map(|(_, reply)| reply.lines().map(str::len).sum::<usize>()).sum();
    assert!(bytes <= limits::ANSWERS, "{bytes}");
    assert!(settled.refused.iter().all(|(_, reply)| reply.code() == 550));
}
