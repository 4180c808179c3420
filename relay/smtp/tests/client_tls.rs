//! The client and STARTTLS: when it asks, and that nothing from before the handshake is heard
//! after it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use wavegate_smtp::client::Misbehaviour;
use wavegate_smtp::{Client, ClientError, ClientEvent, Extension, Upgrade};

const OFFER: &[u8] = b"250-up.example\r\n250-PIPELINING\r\n250-SIZE 10\r\n250 STARTTLS\r\n";

fn output(client: &mut Client) -> String {
    let output = String::from_utf8(client.output().to_vec()).unwrap();
    client.written(output.len());
    output
}

/// Up to what is said after EHLO was answered so.
fn greeted(upgrade: Upgrade, reply: &[u8]) -> Client {
    let mut client = Client::new("relay.example".into()).starttls(upgrade);
    client.receive(b"220 up.example\r\n").unwrap();
    assert_eq!(output(&mut client), "EHLO relay.example\r\n");
    client.receive(reply).unwrap();
    client
}

fn asked(upgrade: Upgrade) -> Client {
    let mut client = greeted(upgrade, OFFER);
    assert_eq!(client.poll(), None);
    assert_eq!(output(&mut client), "STARTTLS\r\n");
    client
}

#[test]
fn what_counts_is_said_under_tls() {
    for upgrade in [Upgrade::IfOffered, Upgrade::Demanded] {
        let mut client = asked(upgrade);
        client.receive(b"220 2.0.0 go\r\n").unwrap();
        assert_eq!(client.poll(), Some(ClientEvent::StartTls));
        assert!(!client.is_ready());
        client.secured();
        assert_eq!(output(&mut client), "EHLO relay.example\r\n");
        // Offered once more: it is not asked for again.
        client.receive(b"250-up.example\r\n250-STARTTLS\r\n250 CHUNKING\r\n").unwrap();
        let Some(ClientEvent::Ready(extensions)) = client.poll() else { panic!("not ready") };
        assert!(extensions.has(Extension::Chunking) && !extensions.has(Extension::Pipelining));
        assert_eq!(extensions.size(), None);
        assert!(client.is_ready() && client.output().is_empty());
    }
}

#[test]
fn it_is_not_asked_for_where_nobody_wants_it() {
    let mut client = greeted(Upgrade::Never, OFFER);
    assert!(matches!(client.poll(), Some(ClientEvent::Ready(_))));
    assert!(client.is_ready() && client.output().is_empty());
}

#[test]
fn an_upstream_without_it() {
    for reply in [&b"250 up.example\r\n"[..], b"502 what\r\n"] {
        let mut client = greeted(Upgrade::IfOffered, reply);
        if output(&mut client) == "HELO relay.example\r\n" {
            client.receive(b"250 up.example\r\n").unwrap();
        }
        assert!(matches!(client.poll(), Some(ClientEvent::Ready(_))));
        let mut client = greeted(Upgrade::Demanded, reply);
        if output(&mut client) == "HELO relay.example\r\n" {
            client.receive(b"250 up.example\r\n").unwrap();
        }
        assert_eq!(client.poll(), Some(ClientEvent::NoTls(None)));
        assert!(client.is_closed());
    }
}

#[test]
fn an_upstream_that_refuses() {
    for reply in [&b"454 4.7.0 not now\r\n"[..], b"502 5.5.1 no\r\n"] {
        let mut client = asked(Upgrade::IfOffered);
        client.receive(reply).unwrap();
        let Some(ClientEvent::Ready(extensions)) = client.poll() else { panic!("not ready") };
        assert!(extensions.has(Extension::Pipelining), "what it said before holds");
        let mut client = asked(Upgrade::Demanded);
        client.receive(reply).unwrap();
        assert!(matches!(client.poll(), Some(ClientEvent::NoTls(Some(_)))));
        assert!(client.is_closed());
    }
    // It closes then, whatever is wanted.
    let mut client = asked(Upgrade::IfOffered);
    client.receive(b"421 4.3.2 closing\r\n").unwrap();
    assert!(matches!(client.poll(), Some(ClientEvent::Refused(_))));
    let mut client = asked(Upgrade::IfOffered);
    let error = client.receive(b"250 what\r\n").unwrap_err();
    assert_eq!(error, ClientError::PeerMisbehaved(Misbehaviour::Code(250)));
}

#[test]
fn what_stands_behind_its_answer_is_never_heard() {
    let behind = ClientError::PeerMisbehaved(Misbehaviour::BehindStartTls);
    for input in [&b"220 go\r\n250 up.example\r\n"[..], b"220 go\r\n2", b"220 go\r\n\x16\x03"] {
        let mut client = asked(Upgrade::IfOffered);
        assert_eq!(client.receive(input), Err(behind));
        assert_eq!(client.poll(), None, "no handshake is asked for");
        assert!(client.is_closed());
    }
    let mut client = asked(Upgrade::Demanded);
    client.receive(b"220 go\r\n").unwrap();
    assert_eq!(client.receive(b"250 up.example\r\n"), Err(behind));
    assert_eq!(client.poll(), None);
}
