//! Clients that do with TLS what nobody should: each is closed in time, counted, and costs the
//! others nothing.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, HandshakeKind};
use wavegate_tests::harness::{
    Client, Config, PATIENCE, Relay, TLS_FILES, recording, tls_client, until,
};
use wavegate_tests::sink::SinkHandle;
use wavegate_tests::tool;

/// One listener, which begins with TLS.
fn start(limits: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).admin().limits(limits).listener(
        "tls = { mode = \"implicit\", certificates = [{ certificate = \"mx.pem\", key = \
         \"mx.key\" }] }",
    );
    (Relay::start_with(&config.to_string(), &TLS_FILES), sink)
}

fn raw(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect(relay.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn secure(relay: &Relay, config: &Arc<ClientConfig>) -> Client {
    let mut client = Client::connect(relay.addr());
    client.begin_tls(config, "mx.example").unwrap();
    client.expect_reply("220");
    client.expect("EHLO client.example", "250");
    client
}

fn failures(relay: &Relay, reason: &str) -> f64 {
    relay.metrics().sum("tls_failures_total", &[&format!("reason=\"{reason}\"")])
}

/// Nobody is served but in TLS, so an honest one is.
fn assert_serves(relay: &Relay, sink: &SinkHandle) {
    let before = sink.counts().messages;
    assert!(secure(relay, &tls_client(&[&TLS13], None)).small().starts_with("250"));
    assert_eq!(sink.counts().messages, before + 1);
}

/// A hello with this name in it (RFC 8446 4.1.2, RFC 6066 3).
fn hello(name: &[u8]) -> Vec<u8> {
    let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let host = [&[0][..], &two(name.len()), name].concat();
    let list = [&two(host.len())[..], &host].concat();
    let extension = [&[0, 0][..], &two(list.len()), &list].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(two(extension.len()));
    body.extend(extension);
    let mut message = vec![1, 0];
    message.extend(two(body.len()));
    message.extend(body);
    let records =
        message.chunks(16_000).map(|part| [&[22, 3, 1], &two(part.len())[..], part].concat());
    records.collect::<Vec<_>>().concat()
}

#[test]
fn a_handshake_that_drips_gains_no_time() {
    let (relay, sink) = start("tls_timeout = \"1s\"");
    let mut dripping = raw(&relay);
    dripping.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut drips = 0;
    for byte in hello(b"mx.example") {
        if dripping.write_all(&[byte]).is_err() || dripping.read(&mut [0; 64]).is_ok() {
            break;
        }
        drips += 1;
    }
    assert!(drips < 100, "{drips} bytes were waited for, one at a time");
    until("it is counted", || (failures(&relay, "timeout") == 1.0).then_some(()));
    assert_serves(&relay, &sink);
}

#[test]
fn a_flood_of_halves_leaves_room_for_a_whole() {
    let (relay, sink) = start("tls_timeout = \"2s\"");
    let whole = hello(b"mx.example");
    let halves: Vec<_> = (0..300)
        .map(|number| {
            let mut stream = raw(&relay);
            stream.write_all(&whole[..number % whole.len()]).unwrap();
            stream
        })
        .collect();
    assert_serves(&relay, &sink);
    until("all have run out of time", || (failures(&relay, "timeout") == 300.0).then_some(()));
    drop(halves);
    assert_serves(&relay, &sink);
}

#[test]
fn records_and_names_beyond_all_bounds_are_closed() {
    let (mut relay, sink) = start("");
    let mut bad = vec![
        // Longer than a record may be (RFC 8446 5.2), and than any handshake message that is kept.
        b"\x16\x03\x01\xff\xff".to_vec(),
        [&b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"[..], &[0; 16380]].concat(),
        // An empty record, over and over; an unknown kind of record; an alert; application data.
        b"\x16\x03\x01\x00\x00".repeat(100),
        b"\x63\x03\x01\x00\x01\x00".to_vec(),
        b"\x15\x03\x01\x00\x02\x02\x28".to_vec(),
        b"\x17\x03\x03\x00\x10aaaaaaaaaaaaaaaa".to_vec(),
    ];
    for name in [&[b'a'; 256][..], &[b'a'; 60_000], b"", b"nul\0.example", b"\xff\xfe"] {
        bad.push(hello(name));
    }
    for (number, bytes) in bad.into_iter().enumerate() {
        let mut stream = raw(&relay);
        let _refused_early = stream.write_all(&bytes);
        let mut got = Vec::new();
        let _reset = stream.read_to_end(&mut got);
        // An alert at most, and never a word in the clear.
        assert!(got.is_empty() || got[0] == 0x15, "{number}: {got:?}");
    }
    let labels = ["listener=\"listener-1\""];
    until("each is counted", || {
        (relay.metrics().sum("tls_failures_total", &labels) == 11.0).then_some(())
    });
    assert_eq!(relay.metrics().value("session_panics_total"), 0.0);
    assert_serves(&relay, &sink);
    assert!(!relay.log().contains("panicked"));
    relay.crash();
}

#[test]
fn early_data_is_never_invited() {
    let (relay, _sink) = start("");
    let mut config = ClientConfig::clone(&tls_client(&[&TLS13], None));
    config.enable_early_data = true;
    let config = Arc::new(config);
    // A whole session, so that its tickets have come.
    let mut first = secure(&relay, &config);
    assert!(first.small().starts_with("250"));
    first.expect("QUIT", "221");
    first.expect_closed();
    // Its ticket is good for the rest, and there is another one then.
    let mut second = secure(&relay, &config);
    assert_eq!(second.tls().handshake_kind(), Some(HandshakeKind::Resumed));
    second.expect("QUIT", "221");
    second.expect_closed();
    let name = ServerName::try_from("mx.example").unwrap();
    let mut next = ClientConnection::new(Arc::clone(&config), name).unwrap();
    assert!(next.early_data().is_none(), "what is said before the handshake could be said again");
}

#[test]
fn nobody_negotiates_again() {
    let Some(openssl) = tool::require("openssl") else { return };
    let (relay, sink) = start("");
    let mut child = Command::new(openssl)
        .args(["s_client", "-tls1_2", "-connect", &relay.addr().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sessions = || relay.metrics().sum("tls_sessions_total", &[]);
    until("the handshake", || (sessions() == 1.0).then_some(()));
    // Its way of asking for another handshake; then it reads to the end.
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"R\n").unwrap();
    until("the end", || child.try_wait().unwrap());
    drop(input);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("renegotiation") || said.contains("alert"), "{said}");
    assert_eq!(sessions(), 1.0);
    assert_serves(&relay, &sink);
}
