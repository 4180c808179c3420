//! Clients that nobody here wrote: their mail goes through unchanged, and they hear what the next hop
//! said. Postfix and swaks are in `real.rs`.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
};

use wavegate_tests::{
    harness::{Config, Relay, sink},
    sink::Extensions,
    tool::{self, MAIL, fed, said},
};

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
