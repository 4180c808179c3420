//! The client against scripted upstreams: what it writes, in how many writes,
//! and what it makes of each reply.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use wavegate_smtp::client::{Asked, Misbehaviour, Rehearsed};
use wavegate_smtp::params::BodyType;
use wavegate_smtp::reply::ReplyFault;
use wavegate_smtp::{
    Address, BodyForm, BodyShape, Client, ClientError, ClientEvent, Enhanced, Extension,
    Extensions, Mail, Rcpt, ReversePath, Settled, Stage, Unsupported,
};

const SHAPE: BodyShape =
    BodyShape { size: 12, eight_bit: false, leading_dot: false, ends_with_crlf: true };

fn mail() -> Mail {
    Mail::new(ReversePath::Address(Address::parse("a@x.example").unwrap()))
}

fn rcpts(count: usize) -> Vec<Rcpt> {
    let rcpt = |index| Rcpt::new(Address::parse(&format!("r{index}@y.example")).unwrap());
    (0..count).map(rcpt).collect()
}

fn output(client: &mut Client) -> String {
    let output = String::from_utf8(client.output().to_vec()).unwrap();
    client.written(output.len());
    output
}

fn open(keywords: &[&str]) -> Client {
    let mut client = Client::new("relay.example".into());
    client.receive(b"220-hello\r\n220 you\r\n").unwrap();
    assert_eq!(output(&mut client), "EHLO relay.example\r\n");
    let mut reply = "250-up.example\r\n".to_owned();
    for keyword in keywords {
        reply.push_str(&format!("250-{keyword}\r\n"));
    }
    reply.push_str("250 X-LAST\r\n");
    client.receive(reply.as_bytes()).unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Ready(_))));
    assert!(client.is_ready());
    client
}

fn begin(client: &mut Client, recipients: usize) {
    client.begin(&mail(), &rcpts(recipients), &SHAPE).unwrap();
}

fn settled(client: &mut Client) -> Settled {
    match client.poll() {
        Some(ClientEvent::Settled(settled)) => settled,
        other => panic!("not settled: {other:?}"),
    }
}

fn misbehaved(client: &mut Client, input: &[u8]) -> Misbehaviour {
    let Err(ClientError::PeerMisbehaved(misbehaviour)) = client.receive(input) else {
        panic!("taken as good")
    };
    assert!(client.is_closed());
    misbehaviour
}

#[test]
fn chunking_and_pipelining_make_one_write() {
    let mut client = open(&["pipelining", "CHUNKING", "SIZE 1000"]);
    begin(&mut client, 1);
    // Asked at once: commands and body can go together.
    assert_eq!(client.poll(), Some(ClientEvent::SendBody(BodyForm::Chunk)));
    assert_eq!(
        output(&mut client),
        "MAIL FROM:<a@x.example> SIZE=12\r\nRCPT TO:<r0@y.example>\r\nBDAT 12 LAST\r\n"
    );
    client.body_sent();
    assert!(client.is_in_doubt());
    client
        .receive(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250-2.0.0 Queued\r\n250 2.0.0 as 77\r\n")
        .unwrap();
    let settled = settled(&mut client);
    assert_eq!(settled.stage, Stage::End);
    assert_eq!(settled.reply.lines().collect::<Vec<_>>(), ["Queued", "as 77"]);
    assert_eq!(settled.reply.enhanced(), Some(Enhanced(2, 0, 0)));
    assert!(client.is_ready() && !client.is_in_doubt());
    client.quit();
    assert_eq!(output(&mut client), "QUIT\r\n");
    client.receive(b"221 bye\r\n").unwrap();
    assert!(client.is_closed() && client.eof().is_ok());
}

#[test]
fn pipelining_makes_two_writes() {
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 2);
    let commands =
        "MAIL FROM:<a@x.example>\r\nRCPT TO:<r0@y.example>\r\nRCPT TO:<r1@y.example>\r\nDATA\r\n";
    assert_eq!(output(&mut client), commands);
    assert_eq!(client.poll(), None);
    client.receive(b"250 a\r\n250 b\r\n550 no such\r\n354 go\r\n").unwrap();
    assert_eq!(client.poll(), Some(ClientEvent::SendBody(BodyForm::Data { stuff: false })));
    client.body_sent();
    client.receive(b"250 taken\r\n").unwrap();
    let settled = settled(&mut client);
    assert_eq!(settled.for_recipient(0).code(), 250);
    assert_eq!(settled.for_recipient(1).lines().next(), Some("no such"));
}

#[test]
fn without_extensions_step_by_step() {
    let mut client = open(&[]);
    begin(&mut client, 1);
    for (command, reply) in [
        ("MAIL FROM:<a@x.example>\r\n", "250 ok\r\n"),
        ("RCPT TO:<r0@y.example>\r\n", "250 ok\r\n"),
        ("DATA\r\n", "354 go\r\n"),
    ] {
        assert_eq!(output(&mut client), command);
        assert_eq!(client.poll(), None);
        client.receive(reply.as_bytes()).unwrap();
    }
    assert_eq!(client.poll(), Some(ClientEvent::SendBody(BodyForm::Data { stuff: false })));
}

#[test]
fn chunking_without_pipelining_asks_after_the_recipients() {
    let mut client = open(&["CHUNKING"]);
    begin(&mut client, 1);
    output(&mut client);
    client.receive(b"250 ok\r\n").unwrap();
    output(&mut client);
    client.receive(b"250 ok\r\n").unwrap();
    assert_eq!(output(&mut client), "BDAT 12 LAST\r\n");
    assert_eq!(client.poll(), Some(ClientEvent::SendBody(BodyForm::Chunk)));
}

#[test]
fn all_recipients_refused_behind_a_pipelined_data() {
    // A 354 all the same is ended by a lone dot; the 554 to it closes the
    // transaction.
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 1);
    output(&mut client);
    client.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n").unwrap();
    assert_eq!(client.poll(), None);
    assert_eq!(output(&mut client), ".\r\n");
    client.receive(b"554 none\r\n").unwrap();
    let first = settled(&mut client);
    assert_eq!((first.stage, first.for_recipient(0).code()), (Stage::Recipients, 550));
    // A refused DATA leaves it open: RSET goes with the next one.
    begin(&mut client, 1);
    assert!(output(&mut client).starts_with("MAIL"));
    client.receive(b"250 ok\r\n451 later\r\n554 none\r\n").unwrap();
    assert_eq!(settled(&mut client).for_recipient(0).code(), 451);
    begin(&mut client, 1);
    assert!(output(&mut client).starts_with("RSET\r\nMAIL"));
    client.receive(b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::SendBody(_))));
}

#[test]
fn all_recipients_refused_without_pipelining() {
    let mut client = open(&[]);
    begin(&mut client, 2);
    for reply in ["250 ok\r\n", "550 a\r\n", "551 b\r\n"] {
        output(&mut client);
        client.receive(reply.as_bytes()).unwrap();
    }
    let settled = settled(&mut client);
    assert_eq!(settled.stage, Stage::Recipients);
    assert_eq!(settled.for_recipient(0).code(), 550);
    assert_eq!(settled.for_recipient(1).code(), 551);
    assert!(client.is_ready());
    begin(&mut client, 1);
    assert_eq!(output(&mut client), "RSET\r\n");
    client.receive(b"250 ok\r\n").unwrap();
    assert!(output(&mut client).starts_with("MAIL"));
}

#[test]
fn mail_refused() {
    for (keywords, replies) in [
        (&[][..], "451 4.7.1 Wait\r\n"),
        (&["PIPELINING"][..], "451 4.7.1 Wait\r\n503 no\r\n503 no\r\n"),
        (&["PIPELINING", "CHUNKING"][..], "451 4.7.1 Wait\r\n503 no\r\n503 no\r\n"),
    ] {
        let mut client = open(keywords);
        begin(&mut client, 1);
        output(&mut client);
        if let Some(ClientEvent::SendBody(_)) = client.poll() {
            client.body_sent();
        }
        client.receive(replies.as_bytes()).unwrap();
        let settled = settled(&mut client);
        assert_eq!(settled.stage, Stage::Mail);
        assert_eq!(settled.for_recipient(0).to_string(), "451 4.7.1 Wait");
        assert!(client.is_ready(), "{keywords:?}");
    }
}

#[test]
fn shutdown_421_at_any_time() {
    for before in ["", "250 ok\r\n", "250 ok\r\n250 ok\r\n", "250 ok\r\n250 ok\r\n354 go\r\n"] {
        let mut client = open(&["PIPELINING"]);
        begin(&mut client, 1);
        output(&mut client);
        client.receive(before.as_bytes()).unwrap();
        client.receive(b"421 4.3.2 Down\r\n").unwrap();
        let mut event = client.poll();
        if let Some(ClientEvent::SendBody(_)) = event {
            event = client.poll();
        }
        let Some(ClientEvent::Settled(settled)) = event else { panic!("{before}") };
        assert_eq!(settled.for_recipient(0).code(), 421);
        assert!(client.is_closed());
    }
    let mut client = open(&[]);
    client.receive(b"421 idle too long\r\n").unwrap();
    assert!(!client.is_ready());
    assert!(matches!(client.poll(), Some(ClientEvent::Closing(_))));
}

#[test]
fn replies_that_answer_nothing() {
    assert_eq!(misbehaved(&mut open(&[]), b"250 what\r\n"), Misbehaviour::Unasked(250));
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 1);
    assert_eq!(misbehaved(&mut client, b"354 go\r\n"), Misbehaviour::Code(354));
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 1);
    let early = b"250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n";
    assert_eq!(misbehaved(&mut client, early), Misbehaviour::BeforeBody(250));
    let mut client = open(&["PIPELINING", "CHUNKING"]);
    begin(&mut client, 1);
    let early = b"250 ok\r\n250 ok\r\n250 ok\r\n";
    assert_eq!(misbehaved(&mut client, early), Misbehaviour::BeforeBody(250));
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 1);
    let extra = b"250 ok\r\n250 ok\r\n554 no\r\n250 more\r\n";
    assert_eq!(misbehaved(&mut client, extra), Misbehaviour::Unasked(250));
}

#[test]
fn a_refusal_in_the_middle_of_the_body_costs_the_connection() {
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 1);
    output(&mut client);
    client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::SendBody(_))));
    client.receive(b"552 5.3.4 Too much\r\n").unwrap();
    assert_eq!(settled(&mut client).for_recipient(0).code(), 552);
    assert!(client.is_closed());
}

#[test]
fn not_smtp_and_too_much() {
    let fresh = || Client::new("relay.example".into());
    let fault = |fault| Misbehaviour::Reply(fault);
    assert_eq!(misbehaved(&mut fresh(), b"HTTP/1.1 400\r\n"), fault(ReplyFault::NotSmtp));
    assert_eq!(misbehaved(&mut fresh(), b"220x\r\n"), fault(ReplyFault::NotSmtp));
    assert_eq!(misbehaved(&mut fresh(), b"620 x\r\n"), fault(ReplyFault::NotSmtp));
    assert_eq!(misbehaved(&mut fresh(), b"220-a\r\n221 b\r\n"), fault(ReplyFault::MixedCodes));
    assert_eq!(misbehaved(&mut fresh(), &[b'2'; 5000]), fault(ReplyFault::LongLine));
    assert_eq!(misbehaved(&mut fresh(), &b"220-a\r\n".repeat(101)), fault(ReplyFault::Long));
    let mut long = b"220-".to_vec();
    long.extend_from_slice(&[b'a'; 4000]);
    long.extend_from_slice(b"\r\n");
    assert_eq!(misbehaved(&mut fresh(), &long.repeat(9)), fault(ReplyFault::Long));
    let mut client = fresh();
    client.receive(&b"220-a\r\n".repeat(99)).unwrap();
    client.receive(b"220 at the limit\r\n").unwrap();
    assert_eq!(output(&mut client), "EHLO relay.example\r\n");
}

#[test]
fn refused_sessions_and_helo() {
    let mut client = Client::new("relay.example".into());
    client.receive(b"554 go away\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Refused(reply)) if reply.code() == 554));
    let mut client = Client::new("relay.example".into());
    client.receive(b"220 old\r\n").unwrap();
    output(&mut client);
    client.receive(b"502 what\r\n").unwrap();
    assert_eq!(output(&mut client), "HELO relay.example\r\n");
    client.receive(b"250 hi\r\n").unwrap();
    assert_eq!(client.poll(), Some(ClientEvent::Ready(Extensions::NONE)));
    assert_eq!(client.eof(), Err(ClientError::Closed));
}

#[test]
fn abandoned_before_the_end_of_data() {
    let mut client = open(&["PIPELINING", "CHUNKING"]);
    begin(&mut client, 1);
    assert!(client.abandon(), "nothing was written");
    assert!(client.is_ready());
    begin(&mut client, 1);
    client.written(3);
    assert!(!client.abandon());
    assert!(client.is_closed() && client.output().is_empty() && client.poll().is_none());
    let mut client = open(&["PIPELINING"]);
    begin(&mut client, 1);
    output(&mut client);
    client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
    assert!(!client.abandon());
    assert!(client.output().is_empty(), "anything written now could end the data");
}

#[test]
fn rset_as_a_sign_of_life() {
    let mut client = open(&[]);
    client.rset();
    assert_eq!(output(&mut client), "RSET\r\n");
    client.receive(b"250 ok\r\n").unwrap();
    assert_eq!(client.poll(), Some(ClientEvent::Reset));
    assert!(client.is_ready());
}

#[test]
fn what_an_upstream_cannot_take() {
    let mut client = open(&["SIZE 11"]);
    let mut refused = |mail: &Mail, shape: BodyShape| {
        let unsupported = client.begin(mail, &rcpts(1), &shape).unwrap_err();
        assert!(client.is_ready());
        (unsupported, unsupported.reply().code(), unsupported.reply().enhanced())
    };
    let small = BodyShape { size: 11, ..SHAPE };
    assert_eq!(refused(&mail(), SHAPE), (Unsupported::TooLarge, 552, Some(Enhanced(5, 3, 4))));
    let declared = Mail { body: Some(BodyType::EightBitMime), ..mail() };
    let eight_bit = BodyShape { eight_bit: true, ..small };
    assert_eq!(
        refused(&declared, eight_bit),
        (Unsupported::EightBit, 554, Some(Enhanced(5, 6, 3)))
    );
    let utf8 = Mail { smtputf8: true, ..mail() };
    assert_eq!(refused(&utf8, eight_bit), (Unsupported::SmtpUtf8, 554, Some(Enhanced(5, 6, 7))));
    let address = Address::parse("ä@x.example").unwrap();
    let utf8 = Mail { sender: ReversePath::Address(address), ..utf8 };
    assert_eq!(refused(&utf8, small).0, Unsupported::SmtpUtf8);
    let incomplete = BodyShape { ends_with_crlf: false, ..small };
    assert_eq!(
        refused(&mail(), incomplete),
        (Unsupported::IncompleteLine, 550, Some(Enhanced(5, 6, 0)))
    );
    // Declared, but nothing there that needs it: no byte changes.
    assert_eq!(client.begin(&declared, &rcpts(1), &small), Ok(()));
    assert_eq!(output(&mut client), "MAIL FROM:<a@x.example> SIZE=11\r\n");
}

#[test]
fn parameters_go_where_they_are_offered() {
    let mail = Mail {
        body: Some(BodyType::EightBitMime),
        smtputf8: true,
        ret: Some(wavegate_smtp::params::Ret::Full),
        envid: Some("id".into()),
        ..mail()
    };
    let mut rcpt = rcpts(1);
    rcpt[0].notify = Some(wavegate_smtp::params::Notify::default());
    rcpt[0].orcpt = Some("rfc822;r0@y.example".into());
    let mut client = open(&["PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE"]);
    client.begin(&mail, &rcpt, &SHAPE).unwrap();
    assert_eq!(
        output(&mut client),
        "MAIL FROM:<a@x.example> SIZE=12 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=id\r\n\
         RCPT TO:<r0@y.example> NOTIFY=NEVER ORCPT=rfc822;r0@y.example\r\nDATA\r\n"
    );
    let mut client = open(&["PIPELINING", "DSN"]);
    client.restrict(Extensions::full(0).without(Extension::Dsn));
    client.begin(&mail, &rcpt, &SHAPE).unwrap();
    assert_eq!(
        output(&mut client),
        "MAIL FROM:<a@x.example>\r\nRCPT TO:<r0@y.example>\r\nDATA\r\n"
    );
}

#[test]
fn a_rehearsal_asks_and_sends_nothing() {
    let (mail, rcpt) = (mail(), rcpts(1).remove(0));
    let mut client = open(&["SIZE 1000"]);
    client.rehearse(&mail, &rcpt).unwrap();
    for (command, reply) in [
        ("MAIL FROM:<a@x.example> SIZE=0\r\n", "250 ok\r\n"),
        ("RCPT TO:<r0@y.example>\r\n", "251 forwarded\r\n"),
        ("RSET\r\n", "250 ok\r\n"),
    ] {
        assert_eq!(output(&mut client), command);
        assert_eq!(client.poll(), None);
        client.receive(reply.as_bytes()).unwrap();
    }
    let Some(ClientEvent::Rehearsed(Rehearsed::Taken(reply))) = client.poll() else { panic!() };
    assert_eq!(reply.to_string(), "251 forwarded");
    begin(&mut client, 1);

    for (replies, step) in [(1, Asked::Mail), (2, Asked::Rcpt), (3, Asked::Rset)] {
        let mut client = open(&[]);
        client.rehearse(&Mail::new(ReversePath::Null), &rcpt).unwrap();
        assert_eq!(output(&mut client), "MAIL FROM:<>\r\n");
        for _ in 1..replies {
            client.receive(b"250 ok\r\n").unwrap();
        }
        client.receive(b"450 not now\r\n").unwrap();
        let refused = client.poll();
        let Some(ClientEvent::Rehearsed(Rehearsed::Refused(at, reply))) = refused else { panic!() };
        assert_eq!((at, reply.code()), (step, 450));
        assert_eq!(client.is_closed(), step == Asked::Rset);
    }
    let mut client = open(&[]);
    client.rehearse(&mail, &rcpt).unwrap();
    output(&mut client);
    client.receive(b"421 closing\r\n").unwrap();
    assert!(client.is_closed());
}

#[test]
fn a_rehearsal_is_one_round_trip_with_pipelining() {
    let (mail, rcpt) = (mail(), rcpts(1).remove(0));
    let mut client = open(&["PIPELINING"]);
    let all = "MAIL FROM:<a@x.example>\r\nRCPT TO:<r0@y.example>\r\nRSET\r\n";
    client.rehearse(&mail, &rcpt).unwrap();
    assert_eq!(output(&mut client), all);
    client.receive(b"250 ok\r\n550 5.1.1 unknown\r\n").unwrap();
    assert_eq!(client.poll(), None, "the answer to RSET is missing");
    client.receive(b"250 ok\r\n").unwrap();
    let refused = client.poll();
    let Some(ClientEvent::Rehearsed(Rehearsed::Refused(Asked::Rcpt, reply))) = refused else {
        panic!()
    };
    assert_eq!(reply.to_string(), "550 5.1.1 unknown");
    // The session is good: asked once more, then used.
    client.rehearse(&mail, &rcpt).unwrap();
    assert_eq!(output(&mut client), all);
    client.receive(b"553 5.1.8 bad sender\r\n503 MAIL first\r\n250 ok\r\n").unwrap();
    let refused = client.poll();
    let Some(ClientEvent::Rehearsed(Rehearsed::Refused(Asked::Mail, reply))) = refused else {
        panic!()
    };
    assert_eq!(reply.code(), 553);
    begin(&mut client, 1);
}

#[test]
fn a_rehearsal_cleans_up_what_was_before_it() {
    let rcpt = rcpts(1).remove(0);
    let mut client = open(&[]);
    client.rehearse(&mail(), &rcpt).unwrap();
    output(&mut client);
    client.receive(b"250 ok\r\n").unwrap();
    output(&mut client);
    client.receive(b"550 unknown\r\n").unwrap();
    client.poll();
    client.rehearse(&mail(), &rcpt).unwrap();
    assert_eq!(output(&mut client), "RSET\r\n");
    client.receive(b"250 ok\r\n").unwrap();
    assert_eq!(output(&mut client), "MAIL FROM:<a@x.example>\r\n");
}
