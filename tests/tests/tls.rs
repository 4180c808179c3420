//! TLS with clients, through real sockets: what they get, and what hostile ones do not.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{HandshakeKind, ProtocolVersion};
use wavegate_tests::harness::{
    Client, Config, PATIENCE, Relay, TLS_FILES, recording, sink, tls_client, until,
};
use wavegate_tests::sink::{Extensions, SinkHandle};
use wavegate_tests::tool;

const MX: &str = "{ certificate = \"mx.pem\", key = \"mx.key\" }";
const BOTH: &str = "{ certificate = \"mx.pem\", key = \"mx.key\" }, { certificate = \"other.pem\", \
                    key = \"other.key\" }";

/// `listener-1` with STARTTLS, `implicit` without, in front of a recording sink.
fn start(tls: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .admin()
        .limits("tls_timeout = \"1s\"\nmessage_size = \"50MiB\"")
        .listener(&format!("tls = {{ certificates = [{BOTH}]{tls} }}"))
        .section(&format!(
            "[[listener]]\nname = \"implicit\"\naddress = \"127.0.0.1:0\"\n\
             tls = {{ mode = \"implicit\", certificates = [{MX}]{tls} }}"
        ));
    (Relay::start_with(&config.to_string(), &TLS_FILES), sink)
}

fn secure(relay: &Relay) -> Client {
    let mut client = relay.client();
    client.start_tls(&tls_client(&[&TLS13], None), "mx.example").unwrap();
    client
}

/// Waits until handshakes of a listener have failed for this reason.
fn assert_failed(relay: &Relay, listener: &str, reason: &str, count: u32) {
    let labels = [format!("listener=\"{listener}\""), format!("reason=\"{reason}\"")];
    relay.wait_metrics(&format!("{count} times {reason} at {listener}"), |metrics| {
        let labels = labels.each_ref().map(String::as_str);
        metrics.sum("tls_failures_total", &labels) == f64::from(count)
    });
}

#[test]
fn starttls_is_offered_once_and_what_was_said_before_is_forgotten() {
    let (relay, sink) = start("");
    let mut client = relay.client();
    assert!(client.ehlo().contains(&"STARTTLS".to_owned()));
    client.envelope("news@mkt.acme.example", "customer@example.org");
    client.expect("STARTTLS", "220 2.0.0");
    client.begin_tls(&tls_client(&[&TLS13, &TLS12], None), "mx.example").unwrap();
    client.expect("RCPT TO:<customer@example.org>", "503 5.5.1");
    client.expect("MAIL FROM:<news@mkt.acme.example>", "503 5.5.1");
    assert!(!client.ehlo().contains(&"STARTTLS".to_owned()));
    client.expect("STARTTLS", "503 5.5.1");
    assert!(client.small().starts_with("250"));
    client.expect("QUIT", "221");
    client.expect_closed();
    let content = String::from_utf8(sink.messages()[0].content.clone().unwrap()).unwrap();
    let expected = "\tby edge-1.example.net with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n\tid ";
    assert!(content.contains(expected), "{content}");
    let labels =
        ["listener=\"listener-1\"", "version=\"TLSv1.3\"", "cipher=\"TLS_AES_256_GCM_SHA384\""];
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("tls_sessions_total", &labels), 1.0);
    assert_eq!(metrics.sum("tls_sessions_total", &[]), 1.0);
}

#[test]
fn implicit_tls_and_both_versions() {
    let (relay, sink) = start("");
    for (version, spoken, name) in [
        (&TLS13, ProtocolVersion::TLSv1_3, "TLSv1.3"),
        (&TLS12, ProtocolVersion::TLSv1_2, "TLSv1.2"),
    ] {
        let mut client = Client::connect(relay.listener("implicit"));
        client.begin_tls(&tls_client(&[version], None), "localhost").unwrap();
        client.expect_reply("220 edge-1.example.net ESMTP");
        assert!(!client.ehlo().contains(&"STARTTLS".to_owned()));
        client.expect("STARTTLS", "503 5.5.1");
        assert!(client.small().starts_with("250"));
        assert_eq!(client.tls().protocol_version(), Some(spoken));
        let message = sink.messages().pop().unwrap().content.unwrap();
        let text = String::from_utf8(message).unwrap();
        assert!(text.contains(&format!("with ESMTPS ({name} ")), "{text}");
    }
}

#[test]
fn large_messages_pass_byte_for_byte() {
    let (relay, sink) = start("");
    let mut client = secure(&relay);
    client.expect("EHLO client.example", "250");
    let line = "0123456789abcdef".repeat(60);
    let content: String = (0..6000).map(|number| format!("{number} {line}\r\n")).collect();
    let message = format!("Subject: large\r\n\r\n{content}");
    let reply = client.transact(format!("{message}.\r\n").as_bytes());
    assert!(reply.starts_with("250"), "{reply}");
    client.envelope("news@mkt.acme.example", "customer@example.org");
    client.send(format!("BDAT {} LAST\r\n{message}", message.len()));
    assert!(client.reply().starts_with("250"));
    for got in sink.messages() {
        assert!(got.content.unwrap().ends_with(message.as_bytes()));
    }
    // Sessions that send one byte at a time, each a record of its own.
    client.begin_data();
    for byte in b"Subject: small\r\n\r\n..hello\r\n.\r\n" {
        client.send([*byte]);
    }
    assert!(client.reply().starts_with("250"));
    let last = sink.messages().pop().unwrap().content.unwrap();
    assert!(last.ends_with(b"Subject: small\r\n\r\n.hello\r\n"));
}

#[test]
fn certificates_go_by_name_and_the_first_to_all_others() {
    let (relay, _sink) = start("");
    let shown = |name: &str| {
        let mut client = relay.client();
        client.start_tls(&tls_client(&[&TLS13], None), name).map(|()| {
            let chain = client.tls().peer_certificates().unwrap();
            chain[0].len()
        })
    };
    let (mx, other) = (shown("mx.example").unwrap(), shown("other.example").unwrap());
    assert_ne!(mx, other);
    assert_eq!(shown("a.wild.example").unwrap(), other);
    assert_eq!(shown("localhost").unwrap(), mx);
    // None is for this name: it gets the first, and does not believe it.
    let error = shown("unknown.example").unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    assert_failed(&relay, "listener-1", "certificate", 1);
}

#[test]
fn sessions_are_resumed() {
    let (relay, sink) = start("");
    for version in [&TLS13, &TLS12] {
        let config = tls_client(&[version], None);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut client = relay.client();
            client.start_tls(&config, "mx.example").unwrap();
            client.expect("EHLO client.example", "250");
            assert!(client.small().starts_with("250"));
            assert_eq!(client.tls().handshake_kind(), Some(kind));
        }
    }
    assert_eq!(sink.messages().len(), 6);
    assert_eq!(relay.metrics().sum("tls_resumed_total", &["listener-1"]), 4.0);
}

#[test]
fn nothing_but_tls_where_it_is_required() {
    let (relay, sink) = start(", required = true");
    let mut client = relay.hello();
    client.expect("MAIL FROM:<news@mkt.acme.example>", "530 5.7.0");
    client.expect("VRFY postmaster", "530 5.7.0");
    client.expect("NOOP", "250");
    client.expect("RSET", "250");
    client.expect("STARTTLS", "220");
    client.begin_tls(&tls_client(&[&TLS13], None), "mx.example").unwrap();
    client.expect("EHLO client.example", "250");
    assert!(client.small().starts_with("250"));
    assert_eq!(sink.messages().len(), 1);
}

#[test]
fn an_old_version_is_refused_where_a_newer_one_is_wanted() {
    let (relay, _sink) = start(", min_version = \"1.3\"");
    let mut client = relay.client();
    client.start_tls(&tls_client(&[&TLS12], None), "mx.example").unwrap_err();
    assert_failed(&relay, "listener-1", "nothing_in_common", 1);
    drop(secure(&relay));
}

/// What an attacker on the way puts behind STARTTLS must not be heard as if the client had said it
/// under TLS.
#[test]
fn what_stands_behind_starttls_is_never_heard() {
    let (mut relay, sink) = start("");
    let mut client = relay.hello();
    let injected = "MAIL FROM:<evil@example.com>\r\nRCPT TO:<a@example.org>\r\n";
    client.send(format!("STARTTLS\r\n{injected}"));
    client.expect_reply("554 5.5.0");
    client.expect_closed();
    // In a packet of its own, before the handshake: it is no handshake.
    let mut client = relay.hello();
    client.send_split(format!("STARTTLS\r\n{injected}").as_bytes(), [10]);
    client.expect_reply("220 2.0.0");
    assert_failed(&relay, "listener-1", "not_tls", 1);
    assert_eq!(sink.messages().len(), 0);
    relay.assert_alive();
}

#[test]
fn half_a_handshake_and_silence_is_closed_in_time() {
    let (relay, _sink) = start("");
    let mut silent = relay.hello();
    silent.expect("STARTTLS", "220 2.0.0");
    // The head of a record of 512 bytes, and the first of them.
    silent.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    silent.expect_closed();
    assert_failed(&relay, "listener-1", "timeout", 1);
    // Each byte buys no more time.
    let mut stream = TcpStream::connect(relay.listener("implicit")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"\x16\x03\x01\x02\x00").unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    assert_failed(&relay, "implicit", "timeout", 1);
}

#[test]
fn garbage_and_a_client_without_tls_are_closed() {
    let (mut relay, _sink) = start("");
    let mut client = relay.hello();
    client.expect("STARTTLS", "220 2.0.0");
    client.send([0_u8; 300]);
    assert_failed(&relay, "listener-1", "not_tls", 1);
    let mut plain = TcpStream::connect(relay.listener("implicit")).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"EHLO client.example\r\n").unwrap();
    let mut got = Vec::new();
    let _reset = plain.read_to_end(&mut got);
    // An alert at most: nothing in the clear.
    assert!(got.is_empty() || got[0] == 0x15, "{got:?}");
    assert_failed(&relay, "implicit", "not_tls", 1);
    let mut gone = relay.hello();
    gone.expect("STARTTLS", "220 2.0.0");
    gone.cut();
    assert_failed(&relay, "listener-1", "closed", 1);
    // TLS where SMTP in the clear is spoken.
    let mut wrong = relay.client();
    wrong.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    wrong.expect_closed();
    relay.assert_alive();
}

/// Whoever cuts the connection on the way cannot make a shorter message of a longer one.
#[test]
fn a_message_that_is_cut_short_is_never_taken() {
    let (relay, sink) = start("");
    for end in [&b".\r\n"[..2], b".", b""] {
        let mut client = secure(&relay);
        client.expect("EHLO client.example", "250");
        client.begin_data();
        client.send(b"Subject: cut\r\n\r\nhello\r\n");
        client.send(end);
        client.cut();
    }
    let mut client = secure(&relay);
    client.expect("EHLO client.example", "250");
    client.envelope("news@mkt.acme.example", "customer@example.org");
    client.send(b"BDAT 30 LAST\r\nSubject: cut\r\n\r\n");
    client.cut();
    relay.wait_metrics("all have gone", |metrics| metrics.sum("connections", &[]) == 0.0);
    assert_eq!(sink.messages().len(), 0);
}

#[test]
fn certificates_are_exchanged_while_sessions_go_on() {
    let (relay, sink) = start("");
    let mut before = secure(&relay);
    before.expect("EHLO client.example", "250");
    let mut waiting = relay.hello();
    // Once it has answered this it watches.
    relay.reload();
    relay.write("mx.pem", TLS_FILES[3].1);
    // Nobody tells the relay: it watches the files.
    until("the refusal", || (relay.reloads().1 > 0).then_some(()));
    assert!(relay.log().contains("mx.key: is not the key of"), "{}", relay.log());
    assert!(before.small().starts_with("250"));
    drop(secure(&relay));
    relay.write("mx.key", TLS_FILES[4].1);
    until("the reload", || (relay.reloads().0 > 1).then_some(()));
    assert!(before.small().starts_with("250"));
    // One that was connected before gets what is in force now.
    waiting.expect("STARTTLS", "220");
    waiting.begin_tls(&tls_client(&[&TLS13], None), "other.example").unwrap();
    waiting.expect("EHLO client.example", "250");
    assert!(waiting.small().starts_with("250"));
    assert_eq!(sink.messages().len(), 3);
}

#[test]
fn bad_certificates_keep_a_configuration_from_being_used() {
    let sink = sink(Extensions::default(), &[]);
    let (relay, _sink) = start("");
    let bad = Config::to(&[sink.addr()]).listener(
        "tls = { certificates = [{ certificate = \"expired.pem\", key = \"expired.key\" }, { \
         certificate = \"mx.pem\", key = \"other.key\" }, { certificate = \"none.pem\", key = \
         \"mx.key\" }] }",
    );
    relay.write("bad.toml", bad.to_string());
    for command in [&["config", "check"][..], &["run"]] {
        let output = Command::new(wavegate_tests::harness::binary())
            .args(command)
            .arg("--config")
            .arg(relay.folder().join("bad.toml"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        for part in [
            "expired.pem: has expired on 2021-01-01T00:00:01Z; renew it",
            "other.key: is not the key of",
            "none.pem: the certificate cannot be read",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
    }
}

#[test]
fn openssl_and_swaks() {
    let (relay, sink) = start("");
    let ca = relay.folder().join("ca.pem");
    if let Some(openssl) = tool::require("openssl") {
        for version in ["-tls1_3", "-tls1_2"] {
            let mut child = Command::new(&openssl)
                .args(["s_client", "-starttls", "smtp", "-quiet", "-verify_return_error", version])
                .args(["-servername", "mx.example", "-verify_hostname", "mx.example", "-CAfile"])
                .arg(&ca)
                .args(["-connect", &relay.addr().to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let words = "NOOP\r\nQUIT\r\n";
            child.stdin.as_mut().unwrap().write_all(words.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains("221 2.0.0 Bye"), "{version}: {output:?}");
        }
    }
    if let Some(swaks) = tool::require("swaks") {
        let ways = [("--tls", relay.addr()), ("--tls-on-connect", relay.listener("implicit"))];
        for (way, address) in ways {
            let output = Command::new(&swaks)
                .args([way, "--server", "127.0.0.1", "--port", &address.port().to_string()])
                .args(["--tls-verify", "--tls-ca-path"])
                .arg(&ca)
                .args(["--from", "a@example.com", "--to", "b@example.org"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(sink.messages().len(), 2);
    }
}

#[test]
fn clients_show_certificates() {
    let versions = [&TLS13, &TLS12];
    for version in versions {
        let config = |name: Option<&str>| tls_client(&[version], name);
        let (relay, sink) = start(", client_ca = \"ca.pem\", client = \"require\"");
        let known = config(Some("client"));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut client = relay.client();
            client.start_tls(&known, "mx.example").unwrap();
            client.expect("EHLO client.example", "250");
            assert!(client.small().starts_with("250"));
            assert_eq!(client.tls().handshake_kind(), Some(kind));
        }
        for (count, name) in [(1, None), (2, Some("stranger"))] {
            let mut client = relay.client();
            // Under TLS 1.3 the client hears of it only after its handshake.
            if client.start_tls(&config(name), "mx.example").is_ok() {
                let _refused = client.try_send(b"EHLO client.example\r\n");
                assert_eq!(client.try_reply(), None, "{name:?}");
            }
            assert_failed(&relay, "listener-1", "certificate", count);
        }
        assert_eq!(sink.messages().len(), 2);
        let (relay, sink) = start(", client_ca = \"ca.pem\", client = \"request\"");
        for name in [None, Some("client")] {
            let mut client = relay.client();
            client.start_tls(&config(name), "mx.example").unwrap();
            client.expect("EHLO client.example", "250");
            assert!(client.small().starts_with("250"));
        }
        let mut client = relay.client();
        if client.start_tls(&config(Some("stranger")), "mx.example").is_ok() {
            let _refused = client.try_send(b"EHLO client.example\r\n");
            assert_eq!(client.try_reply(), None);
        }
        assert_failed(&relay, "listener-1", "certificate", 1);
        assert_eq!(sink.messages().len(), 2);
    }
}
