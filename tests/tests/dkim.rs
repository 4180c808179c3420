//! Byte transparency: mail that another program signed with DKIM holds behind the relay, however it
//! came, waited and left.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use wavegate_tests::{
    harness::{Client, Config, PATIENCE, Relay, binary, sink},
    sink::{Extensions, SinkHandle},
    tool,
};

/// The size of the largest message, before it is signed.
const LARGE: usize = 50_000_000;
/// What Debian's library is for.
const PYTHON: &str = "/usr/bin/python3";

/// What happens between the client's end of data and the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Queued,
    Held,
}

/// A message in all its oddity, before it is signed: its name, its content.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let head = "From: News <news@mkt.acme.example>\r\nTo: b@example.org\r\nSubject: odd\r\n";
    let with = |rest: &[u8]| [head.as_bytes(), rest].concat();
    let long = format!("\r\n{}\r\n{}\r\n", "x".repeat(998), "y ".repeat(499));
    vec![
        ("plain", with(b"\r\nHello.\r\n")),
        ("empty-lines", with(b"\r\n\r\nHello.\r\n\r\n\r\n\r\n")),
        (
            "blanks",
            with(b"X-Odd:  a \t b  \r\n\t c\r\n \t\r\n d\r\n\r\n a  b \t\r\n\t\r\n  \r\nc \r\n"),
        ),
        ("dots", with(b"\r\n.\r\n..\r\n...\r\n. \r\n.x\r\n\r\n.\r\n")),
        ("long-lines", with(long.as_bytes())),
        ("eight-bit", with(b"X-Odd: \xe9\xff\r\n\r\n\x80\x81\xfe\xff\r\n\xc3\x28\r\n\x01\x7f\r\n")),
        ("utf8", with("X-Odd: Grüße, 世界 📨\r\n\r\nÅngström\r\n".as_bytes())),
        ("no-last-line-end", with(b"\r\nnone")),
        ("empty", with(b"\r\n")),
        ("headers-only", with(b"")),
    ]
}

/// A message of [`LARGE`] bytes, with lines of every length and dots at their begin.
fn large() -> Vec<u8> {
    let mut content =
        b"From: a@mkt.acme.example\r\nTo: b@example.org\r\nSubject: large\r\n\r\n".to_vec();
    let mut length = 0;
    while content.len() < LARGE {
        content.resize(content.len() + length % 400, b'.');
        content.extend_from_slice(b" end \r\n");
        length += 7;
    }
    content
}

/// A key, and the messages that were signed with it.
struct Signed {
    folder: tempfile::TempDir,
    messages: Vec<(&'static str, Vec<u8>)>,
}

impl Signed {
    /// Those of all tests of this process.
    fn get() -> Option<&'static Self> {
        static SIGNED: OnceLock<Option<Signed>> = OnceLock::new();
        SIGNED
            .get_or_init(|| {
                tool::require("dkimverify")?;
                tool::require("openssl")?;
                Some(Self::sign(messages()))
            })
            .as_ref()
    }

    fn sign(messages: Vec<(&'static str, Vec<u8>)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.pem");
        let made = Command::new("openssl")
            .args(["genrsa", "-traditional", "-out"])
            .arg(&key)
            .arg("2048")
            .output();
        assert!(made.unwrap().status.success());
        let paths: Vec<_> = messages
            .iter()
            .map(|(name, content)| {
                let path = folder.path().join(name);
                fs::write(&path, content).unwrap();
                path
            })
            .collect();
        dkim("sign", &key, &paths);
        let read = |((name, _), path): (&(&'static str, Vec<u8>), &PathBuf)| {
            (*name, fs::read(path).unwrap())
        };
        let messages = messages.iter().zip(&paths).map(read).collect();
        Self { folder, messages }
    }

    /// Every signature of these contents holds.
    fn verify(&self, contents: &[Vec<u8>]) {
        let paths: Vec<_> = contents
            .iter()
            .enumerate()
            .map(|(number, content)| {
                let path = self.folder.path().join(format!("received-{number}"));
                fs::write(&path, content).unwrap();
                path
            })
            .collect();
        let said = dkim("verify", &self.folder.path().join("key.pem"), &paths);
        assert_eq!(said.matches("verified 4").count(), contents.len(), "{said}");
    }
}

/// Runs the library; what it printed.
fn dkim(action: &str, key: &Path, paths: &[PathBuf]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dkim/dkim_mail.py");
    let output =
        Command::new(PYTHON).arg(script).arg(action).arg(key).args(paths).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{action}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

fn wavegate(relay: &Relay, arguments: &[&str]) {
    let config = relay.folder().join("relay.toml");
    let output =
        Command::new(binary()).args(arguments).arg("--config").arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends one by DATA, or in chunks of odd sizes.
fn send(client: &mut Client, content: &[u8], chunks: bool) {
    client.expect("MAIL FROM:<news@mkt.acme.example> BODY=8BITMIME SMTPUTF8", "250");
    client.expect("RCPT TO:<customer@example.org>", "250");
    if chunks {
        let mut rest = content;
        let mut size = 1;
        while !rest.is_empty() {
            let (chunk, next) = rest.split_at(size.min(rest.len()));
            let last = if next.is_empty() { " LAST" } else { "" };
            client.send(format!("BDAT {}{last}\r\n", chunk.len()));
            client.send(chunk);
            client.expect_reply("250");
            rest = next;
            size = size * 3 + 1;
        }
    } else {
        client.expect("DATA", "354");
        let mut wire = Vec::with_capacity(content.len() + content.len() / 50);
        for line in content.split_inclusive(|&byte| byte == b'\n') {
            if line.starts_with(b".") {
                wire.push(b'.');
            }
            wire.extend_from_slice(line);
        }
        // A body that does not end a line cannot be said by DATA without ending it.
        assert!(wire.ends_with(b"\r\n"));
        wire.extend_from_slice(b".\r\n");
        client.send(wire);
        client.expect_reply("250");
    }
}

/// Sends these through a relay; what came out behind the relay's `Received` line, in order.
fn through(way: Way, chunks: (bool, bool), messages: &[(&'static str, Vec<u8>)]) -> Vec<Vec<u8>> {
    let extensions = Extensions { chunking: chunks.1, ..Extensions::default() };
    let sink = sink(extensions, &[]);
    let handoff = if way == Way::Direct { "direct" } else { "queued" };
    let upstream = format!("handoff = \"{handoff}\"\nconnections = 1");
    let config = Config::to(&[sink.addr()]).upstream(&upstream).limits("message_size = \"64MiB\"");
    let relay = Relay::start(&config);
    relay.wait_offer("SMTPUTF8", |lines| lines.iter().any(|line| line == "SMTPUTF8"));
    if way == Way::Held {
        wavegate(&relay, &["hold-all", "--reason", "test"]);
    }
    let mut client = relay.hello();
    for (sent, (_, content)) in messages.iter().enumerate() {
        send(&mut client, content, chunks.0);
        if way != Way::Held {
            arrived(&sink, sent + 1);
        }
    }
    if way == Way::Held {
        assert_eq!(sink.counts().messages, 0);
        wavegate(&relay, &["release-all", "--reason", "test"]);
        arrived(&sink, messages.len());
    }
    let counts = sink.counts();
    assert_eq!(counts.violations, 0);
    let received = sink.messages();
    assert!(received.iter().all(|one| one.chunked == chunks.1));
    received.into_iter().map(|message| message.content.unwrap()).collect()
}

fn arrived(sink: &SinkHandle, count: usize) {
    assert!(sink.wait_messages(count.try_into().unwrap(), PATIENCE));
}

/// What was received is what was sent, under one line of the relay's; signatures hold.
fn check(way: Way, chunks: (bool, bool)) {
    let Some(signed) = Signed::get() else { return };
    // A body without a last line end is for BDAT alone.
    let messages: Vec<_> = signed
        .messages
        .iter()
        .filter(|(_, one)| chunks.0 || one.ends_with(b"\r\n"))
        .cloned()
        .collect();
    assert!(messages.len() >= 8);
    let mut received = through(way, chunks, &messages);
    if way == Way::Held {
        // Several may leave at once.
        received.sort_by_key(|one| messages.iter().position(|(_, sent)| one.ends_with(sent)));
    }
    for ((name, sent), got) in messages.iter().zip(&received) {
        assert!(got.ends_with(sent), "{way:?} {chunks:?} {name}: {}", got.escape_ascii());
        let own = &got[..got.len() - sent.len()];
        assert!(own.starts_with(b"Received: from "), "{name}: {}", own.escape_ascii());
    }
    signed.verify(&received);
}

#[test]
fn signatures_hold_when_mail_goes_direct() {
    for chunks in [(false, false), (false, true), (true, true)] {
        check(Way::Direct, chunks);
    }
}

#[test]
fn signatures_hold_when_mail_is_queued() {
    for chunks in [(false, false), (false, true), (true, true)] {
        check(Way::Queued, chunks);
    }
}

#[test]
fn signatures_hold_after_a_hold() {
    for chunks in [(false, false), (false, true), (true, true)] {
        check(Way::Held, chunks);
    }
}

#[test]
fn fifty_megabytes_hold() {
    if tool::require("dkimverify").is_none() || tool::require("openssl").is_none() {
        return;
    }
    let signed = Signed::sign(vec![("large", large())]);
    for way in [Way::Direct, Way::Queued, Way::Held] {
        let received = through(way, (false, way == Way::Queued), &signed.messages);
        assert!(received[0].ends_with(&signed.messages[0].1), "{way:?}");
        if way == Way::Held {
            signed.verify(&received);
        }
    }
}
