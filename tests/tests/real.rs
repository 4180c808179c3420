//! Real mail programs on both sides: Postfix, its smtp-source and smtp-sink, swaks.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use wavegate_tests::harness::{
    Client, Config, Postfix, Relay, TLS_FILES, free, recording, sink, until, user_line,
};
use wavegate_tests::sink::Extensions;
use wavegate_tests::tool;

/// Runs a command to its end; it must succeed.
fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

#[test]
fn postfix_as_sender() {
    let Some(_postfix) = tool::require("postfix") else { return };
    for extensions in [
        Extensions { chunking: true, ..Extensions::default() },
        Extensions { pipelining: false, ..Extensions::default() },
    ] {
        let sink = sink(extensions, &["end:%7=451 4.3.0 later", "rcpt:5=550 5.1.1 unknown"]);
        let relay = Relay::start(&Config::to(&[sink.addr()]).upstream("handoff = \"direct\""));
        relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
        let postfix = Postfix::start(&format!("smtp:[127.0.0.1]:{}", relay.addr().port()));
        let mut client = Client::connect(postfix.addr);
        client.expect_reply("220");
        client.expect("EHLO sender.example", "250");
        for _ in 0..20 {
            client.expect("MAIL FROM:<news@mkt.acme.example> BODY=8BITMIME", "250");
            client.expect("RCPT TO:<a@example.org>", "250");
            client.expect("DATA", "354");
            client.send(b"Subject: \xc3\xa4\r\nFrom: <a@b.example>\r\n\r\n..dot\r\n\xe4\r\n.\r\n");
            client.expect_reply("250");
        }
        // Every message is sent, deferred by the 451s, or bounced by the 550, and Postfix knows.
        let log = until("Postfix has an answer for each", || {
            let log = postfix.log();
            let answers = log.matches("status=sent").count()
                + log.matches("status=deferred").count()
                + log.matches("status=bounced").count();
            (answers >= 20).then_some(log)
        });
        assert!(log.contains("451 4.3.0 later"), "the upstream's words reach Postfix\n{log}");
        assert!(log.contains("550 5.1.1 unknown"), "{log}");
        let sent = log.matches("status=sent").count() as u64;
        assert!(sent >= 15, "{log}");
        assert!(sink.counts().messages >= sent);
        assert_eq!((sink.counts().violations, sink.counts().bad_contents), (0, 0));
        let content = sink.messages().remove(0).content.unwrap();
        assert!(content.ends_with(b"\r\n\r\n.dot\r\n\xe4\r\n"), "{}", content.escape_ascii());
    }
}

#[test]
fn several_recipients_from_postfix_all_arrive() {
    let Some(_postfix) = tool::require("postfix") else { return };
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]));
    let postfix = Postfix::start(&format!("smtp:[127.0.0.1]:{}", relay.addr().port()));
    let mut client = Client::connect(postfix.addr);
    client.expect_reply("220");
    client.expect("EHLO sender.example", "250");
    client.expect("MAIL FROM:<news@mkt.acme.example>", "250");
    for number in 0..3 {
        client.expect(&format!("RCPT TO:<to{number}@example.org>"), "250");
    }
    client.expect("DATA", "354");
    client.send("Subject: x\r\n\r\nx\r\n.\r\n");
    client.expect_reply("250");
    until("all recipients have it", || (sink.counts().recipients == 3).then_some(()));
    until("the queue is empty", || (postfix.queued() == 0).then_some(()));
    let mut to: Vec<_> = sink
        .messages()
        .iter()
        .flat_map(|one| one.to.iter().map(|to| to.address.clone()).collect::<Vec<_>>())
        .collect();
    to.sort();
    to.dedup();
    assert_eq!(to.len(), 3);
}

#[test]
fn postfix_as_upstream() {
    let Some(_postfix) = tool::require("postfix") else { return };
    let postfix = Postfix::start("discard:");
    let relay = Relay::start(&Config::to(&[postfix.addr]).upstream("handoff = \"direct\""));
    let offered = relay.wait_offer("8BITMIME", |lines| lines.iter().any(|l| l == "8BITMIME"));
    assert!(offered.contains(&"SIZE 10240000".to_owned()), "Postfix's: {offered:?}");
    let mut client = relay.hello();
    for _ in 0..20 {
        let reply = client.small();
        let own_words = reply.starts_with("250 2.0.0 Ok: ") && reply.contains("queued as ");
        assert!(own_words, "Postfix's: {reply}");
    }
    // By BDAT, 8-bit, with DSN parameters.
    client.expect("MAIL FROM:<a@example.com> BODY=8BITMIME RET=HDRS ENVID=x", "250");
    client.expect("RCPT TO:<b@example.org> NOTIFY=NEVER ORCPT=rfc822;b@example.org", "250");
    client.send(b"BDAT 17 LAST\r\nSubject: s\r\n\r\n\xe4\r\n");
    client.expect_reply("250 2.0.0 Ok");
    client.expect("MAIL FROM:<a@example.com>", "250");
    client.expect("RCPT TO:<not-a-domain>", "5");
    until("Postfix has them all", || {
        (postfix.log().matches("status=sent").count() == 21).then_some(())
    });
}

#[test]
fn postfix_as_sender_under_tls() {
    let Some(_postfix) = tool::require("postfix") else { return };
    let sink = recording();
    let config = Config::to(&[sink.addr()]).admin().listener(
        "tls = { required = true, certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }] }",
    );
    let relay = Relay::start_with(&config.to_string(), &TLS_FILES);
    let transport = format!("smtp:[127.0.0.1]:{}", relay.addr().port());
    let lines = "smtp_tls_security_level = secure\nsmtp_tls_secure_cert_match = mx.example\n\
                 smtp_tls_CAfile = @TLS@/ca.pem\nsmtp_tls_loglevel = 1\n";
    let postfix = Postfix::start_with(&transport, lines);
    let mut client = Client::connect(postfix.addr);
    client.expect_reply("220");
    client.expect("EHLO sender.example", "250");
    for _ in 0..10 {
        assert!(client.small().starts_with("250"));
    }
    until("all have come", || (sink.counts().messages == 10).then_some(()));
    until("the queue is empty", || (postfix.queued() == 0).then_some(()));
    assert!(postfix.log().contains("Verified TLS connection established"), "{}", postfix.log());
    let content = String::from_utf8(sink.messages().remove(0).content.unwrap()).unwrap();
    assert!(content.contains("with ESMTPS (TLSv1.3 "), "{content}");
    assert_eq!(relay.metrics().sum("tls_failures_total", &[]), 0.0);
}

#[test]
fn postfix_as_sender_that_logs_in() {
    let Some(_postfix) = tool::require("postfix") else { return };
    let sink = recording();
    let config = Config::to(&[sink.addr()]).admin().listener(
        "tls = { certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }] }\n\
         auth = { users = \"users.key\", required = true }",
    );
    let users = user_line("bob", "hello");
    let files = [&TLS_FILES[..], &[("users.key", users.as_bytes())]].concat();
    let relay = Relay::start_with(&config.to_string(), &files);
    let transport = format!("smtp:[127.0.0.1]:{}", relay.addr().port());
    let lines = "smtp_tls_security_level = encrypt\nsmtp_sasl_auth_enable = yes\n\
                 smtp_sasl_password_maps = static:bob:hello\n\
                 smtp_sasl_security_options = noanonymous\n";
    let postfix = Postfix::start_with(&transport, lines);
    let mut client = Client::connect(postfix.addr);
    client.expect_reply("220");
    client.expect("EHLO sender.example", "250");
    for _ in 0..3 {
        assert!(client.small().starts_with("250"));
    }
    until("all have come", || (sink.counts().messages == 3).then_some(()));
    until("the queue is empty", || (postfix.queued() == 0).then_some(()));
    let content = String::from_utf8(sink.messages().remove(0).content.unwrap()).unwrap();
    assert!(content.contains("with ESMTPSA (TLSv1.3 "), "{content}");
    let metrics = relay.metrics();
    assert!(metrics.sum("logins_total", &[]) >= 1.0);
    assert_eq!(metrics.sum("login_failures_total", &[]), 0.0);
}

#[test]
fn postfix_as_upstream_under_tls() {
    let Some(_postfix) = tool::require("postfix") else { return };
    let lines = "smtpd_tls_security_level = encrypt\nsmtpd_tls_cert_file = @TLS@/mx.pem\n\
                 smtpd_tls_key_file = @TLS@/mx.key\nsmtpd_tls_loglevel = 1\n";
    let postfix = Postfix::start_with("discard:", lines);
    let config = Config::to(&[postfix.addr]).admin().upstream(
        "handoff = \"direct\"\nmessages_per_connection = 5\n\
         tls = { name = \"mx.example\", ca = \"ca.pem\" }",
    );
    let relay = Relay::start_with(&config.to_string(), &TLS_FILES);
    relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
    let mut client = relay.hello();
    for _ in 0..20 {
        let reply = client.small();
        assert!(reply.starts_with("250 2.0.0 Ok: "), "Postfix's: {reply}");
    }
    let metrics = relay.metrics();
    assert!(metrics.sum("upstream_tls_sessions_total", &["version=\"TLSv1.3\""]) >= 4.0);
    assert!(metrics.sum("upstream_tls_resumed_total", &[]) >= 1.0);
    let log = postfix.log();
    assert!(log.contains("Anonymous TLS connection established"), "{log}");
}

#[test]
fn swaks_with_eight_bit_and_pipelining() {
    let Some(swaks) = tool::require("swaks") else { return };
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]));
    relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
    let body = "Gr\u{fc}\u{df}e\n.\n..\nend";
    for pipelining in [false, true] {
        let mut command = Command::new(&swaks);
        command
            .args(["--server", &relay.addr().to_string()])
            .args(["--from", "news@mkt.acme.example", "--to", "customer@example.org"])
            .args(["--helo", "swaks.example", "--body", body, "--header", "Subject: \u{e4}"]);
        if pipelining {
            command.arg("--pipeline");
        }
        run(&mut command);
        let message = sink.messages().pop().unwrap();
        let content = String::from_utf8(message.content.unwrap()).unwrap();
        assert!(content.contains("Subject: \u{e4}\r\n"), "{content}");
        assert!(content.contains("\r\nGr\u{fc}\u{df}e\r\n.\r\n..\r\nend\r\n"), "{content}");
        assert!(content.starts_with("Received: from swaks.example "), "{content}");
    }
    assert_eq!(sink.counts().messages, 2);
}

#[test]
fn swaks_hears_the_upstreams_refusal() {
    let Some(swaks) = tool::require("swaks") else { return };
    let sink = sink(Extensions::default(), &["end:1=550 5.7.1 not this one"]);
    let relay = Relay::start(&Config::to(&[sink.addr()]));
    let output = Command::new(&swaks)
        .args(["--server", &relay.addr().to_string(), "--helo", "swaks.example"])
        .args(["--from", "a@example.com", "--to", "b@example.org"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("<** 550 5.7.1 not this one"), "{said}");
}

#[test]
fn smtp_source_to_smtp_sink() {
    let Some(source) = tool::require("smtp-source") else { return };
    let Some(sink) = tool::require("smtp-sink") else { return };
    let addr = free();
    // smtp-sink needs a user to become when it is root's.
    let mut command = Command::new(sink);
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "postfix"]);
    }
    let mut sink = command
        .args(["-c", &addr.to_string(), "100"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("smtp-sink listens", || TcpStream::connect(addr).is_ok().then_some(()));
    let relay = Relay::start(&Config::to(&[addr]));
    for mode in [&["-d"][..], &[]] {
        run(Command::new(&source)
            .args(mode)
            .args([
                "-s",
                "10",
                "-m",
                "500",
                "-l",
                "10000",
                "-f",
                "a@example.com",
                "-t",
                "b@example.org",
            ])
            .arg(format!("inet:{}", relay.addr())));
    }
    sink.kill().unwrap();
    sink.wait().unwrap();
    // smtp-source ends with an error at any reply that is not the one it wants: 1000 were taken.
    assert_eq!(relay.reloads(), (0, 0));
}
