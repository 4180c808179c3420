//! Clients that nobody here wrote: their mail goes through unchanged, and they hear what the next hop
//! said. Postfix and swaks are in `real.rs`.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
};

use wavegate_tests::{
    harness::{Config, Relay, sink},
    sink::Extensions,
    tool,
};

/// What is sent, as a file with Unix line ends has it. It has all that clients add where it is
/// missing.
const MAIL: &str = "From: News <news@mkt.acme.example>\nTo: customer@example.org\n\
    Date: Sat, 21 Nov 2026 12:00:00 +0000\nMessage-ID: <1@mkt.acme.example>\n\
    Subject: Gr\u{fc}\u{df}e\nX-Folded: one\n\ttwo \n three\n\n\
    .\n..\n.dots\ntrailing blanks  \t\n\nGr\u{fc}\u{df}e, \u{4e16}\u{754c}\n\n\n";

/// How a client is run.
type Run = fn(&Path, SocketAddr) -> Output;

/// Sends through each mode of hand-off, and once to a next hop that refuses.
fn check(tool: &str, run: Run) {
    let Some(program) = tool::require(tool) else { return };
    let expected = MAIL.replace('\n', "\r\n").into_bytes();
    for handoff in ["direct", "queued"] {
        let sink = sink(Extensions::default(), &[]);
        let relay = relay(&sink.addr(), handoff);
        let output = run(&program, relay.addr());
        assert!(output.status.success(), "{}", said(&output));
        assert!(sink.wait_messages(1, wavegate_tests::harness::PATIENCE));
        let content = sink.messages().pop().unwrap().content.unwrap();
        assert!(content.ends_with(&expected), "{handoff}: {}", content.escape_ascii());
        let own = String::from_utf8(content[..content.len() - expected.len()].to_vec()).unwrap();
        assert!(own.starts_with("Received: from "), "{own}");
        assert_eq!(own.matches("\r\n").count(), own.matches("\r\n\t").count() + 1, "{own}");
        assert_eq!(sink.counts().violations, 0);
    }
    let refusing = sink(Extensions::default(), &["end:1=550 5.7.1 not this one"]);
    let relay = relay(&refusing.addr(), "direct");
    let output = run(&program, relay.addr());
    assert!(!output.status.success());
    assert!(said(&output).contains("not this one"), "{}", said(&output));
}

fn relay(target: &SocketAddr, handoff: &str) -> Relay {
    let config = Config::to(&[*target]).upstream(&format!("handoff = \"{handoff}\""));
    let relay = Relay::start(&config);
    relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
    relay
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Runs a command with this on its standard input.
fn fed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn curl() {
    check("curl", |program, relay| {
        let mut command = Command::new(program);
        command
            .args(["--silent", "--show-error", "--verbose", "--crlf", "--max-time", "20"])
            .args(["--url", &format!("smtp://{relay}/client.example")])
            .args(["--mail-from", "news@mkt.acme.example"])
            .args(["--mail-rcpt", "customer@example.org", "--upload-file", "-"]);
        fed(&mut command, MAIL)
    });
}

#[test]
fn msmtp() {
    check("msmtp", |program, relay| {
        let mut command = Command::new(program);
        command
            .args(["--file=/dev/null", "--host=127.0.0.1", "--timeout=20"])
            .arg(format!("--port={}", relay.port()))
            .args(["--domain=client.example", "--from=news@mkt.acme.example"])
            .arg("customer@example.org");
        fed(&mut command, MAIL)
    });
}

#[test]
fn python_smtplib() {
    check("python3", |program, relay| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/send.py");
        let mut command = Command::new(program);
        command.arg(script).arg(relay.port().to_string());
        fed(&mut command, MAIL)
    });
}

#[test]
fn nodemailer() {
    check("node", |program, relay| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/send.js");
        let mut command = Command::new(program);
        // Where Debian has it; a Node.js of another origin does not look there.
        command.env("NODE_PATH", "/usr/share/nodejs").arg(script).arg(relay.port().to_string());
        fed(&mut command, MAIL)
    });
}
