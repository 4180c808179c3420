//! Logins of clients, by hand and by clients that nobody here wrote; and what hostile ones do not get.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(clippy::disallowed_methods, reason = "a test measures real time")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use tokio_rustls::rustls::version::TLS13;
use wavegate_tests::{
    harness::{
        Client, Config, Relay, TLS_FILES, binary, recording, tls_client, told, until, user_line,
    },
    sink::{Identity, SinkHandle},
    tool::{self, fed, said},
};

const TLS: &str = "tls = { certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }] }\n";
/// Nobody relays here without a login.
const NOBODY: &str = "allow = [\"192.0.2.1\"]\n";
const ADA: &str = "s\u{e9}cret with spaces";

/// A relay whose users are `ada` and `bob`.
fn start(listener: &str, auth: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .admin()
        .listener(&format!("{listener}auth = {{ users = \"users.key\"{auth} }}"))
        .section("[event_log]\nfile = \"events.jsonl\"");
    let users = user_line("ada", ADA) + &user_line("bob", "hello\n");
    let files = [&TLS_FILES[..], &[("users.key", users.as_bytes())]].concat();
    (Relay::start_with(&config.to_string(), &files), sink)
}

fn secure(relay: &Relay) -> Client {
    let mut client = relay.client();
    client.start_tls(&tls_client(&[&TLS13], None), "mx.example").unwrap();
    client
}

fn base64(text: &str) -> String {
    let output = fed(Command::new("base64").arg("--wrap=0"), text);
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn plain(user: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", base64(&format!("\0{user}\0{password}")))
}

fn failures(relay: &Relay, reason: &str) -> f64 {
    relay.metrics().sum("login_failures_total", &[&format!("reason=\"{reason}\"")])
}

#[test]
fn who_logs_in_may_relay() {
    let (relay, sink) = start(&(NOBODY.to_owned() + TLS), "");
    let mut client = secure(&relay);
    assert!(client.ehlo().contains(&"AUTH PLAIN LOGIN".to_owned()));
    client.expect("MAIL FROM:<news@mkt.acme.example>", "250");
    client.expect("RCPT TO:<customer@example.org>", "550 5.7.1");
    client.expect("RSET", "250");
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6");
    client.expect(&base64("ada"), "334 UGFzc3dvcmQ6");
    client.expect(&base64(ADA), "235 2.7.0");
    client.expect(&plain("ada", ADA), "503 5.5.1");
    assert!(client.small().starts_with("250"));
    let content = String::from_utf8(sink.messages().pop().unwrap().content.unwrap()).unwrap();
    assert!(content.contains(" with ESMTPSA (TLSv1.3 "), "{content}");
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("logins_total", &["listener=\"listener-1\""]), 1.0);
    assert_eq!(metrics.sum("login_failures_total", &[]), 0.0);
    until("the event log", || {
        let events = fs::read_to_string(relay.folder().join("events.jsonl")).ok()?;
        let received = events.lines().find(|line| line.contains("\"event\":\"received\""))?;
        assert!(received.contains("\"user\":\"ada\""), "{received}");
        Some(())
    });
    let log = relay.logs();
    for secret in [ADA, &base64(ADA), &plain("ada", ADA)[11..]] {
        assert!(!log.contains(secret));
    }
}

#[test]
fn a_password_in_the_clear_is_not_taken() {
    let (relay, _sink) = start(TLS, "");
    let mut client = relay.client();
    assert!(!client.ehlo().iter().any(|line| line.starts_with("AUTH")));
    client.expect(&plain("ada", ADA), "538 5.7.11");
    client.expect("AUTH CRAM-MD5", "538 5.7.11");
    let mut client = secure(&relay);
    client.expect(&plain("ada", ADA), "503 5.5.1");
    client.ehlo();
    client.expect("AUTH CRAM-MD5", "504 5.5.4");
    client.expect("AUTH PLAIN YQ", "501 5.5.2");
    client.expect("AUTH PLAIN", "334 ");
    client.expect("*", "501 5.7.0");
    client.expect("AUTH LOGIN", "334");
    client.expect(&"A".repeat(13_000), "500 5.5.6");
    client.expect(&plain("ada", ADA), "235");
    // Nothing of that was a try.
    assert_eq!(relay.metrics().sum("login_failures_total", &[]), 0.0);
}

#[test]
fn a_login_before_starttls_is_forgotten() {
    let (relay, _sink) = start(&(NOBODY.to_owned() + TLS), ", insecure = true");
    let mut client = relay.client();
    assert!(client.ehlo().contains(&"AUTH PLAIN LOGIN".to_owned()));
    client.expect(&plain("ada", ADA), "235");
    client.start_tls(&tls_client(&[&TLS13], None), "mx.example").unwrap();
    client.ehlo();
    client.expect("MAIL FROM:<news@mkt.acme.example>", "250");
    client.expect("RCPT TO:<customer@example.org>", "550 5.7.1");
    client.expect("RSET", "250");
    client.expect(&plain("bob", "hello"), "235");
    assert!(client.small().starts_with("250"));
    // What was sent behind it, without waiting, is not heard.
    let mut hasty = relay.hello();
    hasty.send(format!("{}\r\nMAIL FROM:<a@b.example>\r\n", plain("ada", ADA)));
    hasty.expect_reply("554 5.5.0");
    hasty.expect_closed();
}

#[test]
fn mail_only_after_a_login() {
    let (relay, _sink) = start("", ", insecure = true, required = true");
    let mut client = relay.hello();
    client.expect("MAIL FROM:<news@mkt.acme.example>", "530 5.7.0");
    client.expect("NOOP", "250");
    client.expect(&plain("ada", ADA), "235");
    assert!(client.small().starts_with("250"));
    let ask = |more: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["explain", "--client", "127.0.0.1", "--from", "<>", "--to", "b@c.example"]);
        command.args(more).arg("--config").arg(relay.folder().join("relay.toml"));
        said(&command.output().unwrap())
    };
    let text = ask(&[]);
    assert!(text.contains("530 5.7.0") && text.contains("listener.auth.required"), "{text}");
    let text = ask(&["--user", "ada"]);
    assert!(text.contains("handed to up") && text.contains("as ada"), "{text}");
}

#[test]
fn guessing_is_slow_counted_and_locks_out_nobody_else() {
    let (relay, _sink) = start("", ", insecure = true");
    let begun = Instant::now();
    let mut client = relay.hello();
    for _ in 0..3 {
        client.expect(&plain("ada", "wrong"), "535 5.7.8");
    }
    assert!(begun.elapsed() >= Duration::from_secs(3));
    client.expect(&plain("ada", ADA), "421 4.7.0");
    client.expect_closed();
    let mut client = relay.hello();
    client.expect(&plain("ada", "wrong"), "535 5.7.8");
    client.expect(&plain("ada", "wrong"), "535 5.7.8");
    // From now on it is not looked at, however right it is.
    client.expect(&plain("ada", ADA), "454 4.7.0");
    assert_eq!((failures(&relay, "credentials"), failures(&relay, "too_many")), (5.0, 1.0));
    let mut client = relay.hello();
    client.expect(&plain("bob", "hello"), "235");
    let elsewhere = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    let mut client = Client::connect_from(elsewhere, relay.addr());
    client.expect_reply("220");
    client.ehlo();
    client.expect(&plain("ada", ADA), "235");
    let log = relay.logs();
    let line = log.lines().find(|line| line.contains("a login failed")).unwrap();
    assert!(line.contains("127.0.0.1") && line.contains("user=ada"), "{line}");
    assert!(line.contains("reason=\"credentials\""), "{line}");
}

#[test]
fn a_name_that_nobody_has_takes_as_long() {
    let (relay, _sink) = start("", ", insecure = true");
    let tries = |user: &str| {
        let mut client = relay.hello();
        (0..3)
            .map(|_| {
                let begun = Instant::now();
                client.expect(&plain(user, "wrong"), "535 5.7.8");
                begun.elapsed()
            })
            .min()
            .unwrap()
    };
    let (known, unknown) = (tries("ada"), tries("nobody"));
    // The answer waits a second; what comes on top is the look at the password.
    let least = Duration::from_millis(1008);
    assert!(known > least && unknown > least, "{known:?} {unknown:?}");
}

#[test]
fn a_flood_of_logins_stops_no_mail() {
    let (relay, _sink) = start("", ", insecure = true");
    let command = plain("ada", ADA);
    let mut others: Vec<_> = (0..90).map(|_| relay.hello()).collect();
    let mut sender = relay.hello();
    for other in &mut others {
        other.send(format!("{command}\r\n"));
    }
    for _ in 0..5 {
        assert!(sender.small().starts_with("250"));
    }
    let (mut good, mut busy) = (0.0, 0.0);
    for other in &mut others {
        match &*other.reply() {
            reply if reply.starts_with("235 2.7.0") => good += 1.0,
            reply if reply.starts_with("454 4.7.0 wavegate: too many logins") => busy += 1.0,
            reply => panic!("{reply}"),
        }
    }
    assert!(good >= 66.0, "those that are looked at and those that wait: {good}");
    assert_eq!(failures(&relay, "busy"), busy);
    assert_eq!(relay.metrics().sum("logins_total", &[]), good);
    // A busy relay is nobody's wrong password.
    relay.hello().expect(&command, "235");
}

#[test]
fn a_wrong_file_is_refused_at_start_and_at_reload() {
    let (mut relay, _sink) = start("", ", insecure = true");
    let mut open = relay.hello();
    open.expect(&plain("bob", "hello"), "235");
    relay.write("users.key", "bob:secret\n");
    // The file is watched, and a signal comes too: each is refused.
    let refused = relay.reload_refused();
    assert!(
        refused.contains("users.key:1: ") && refused.contains("wavegate users hash"),
        "{refused}"
    );
    assert!(!refused.contains("secret"), "{refused}");
    relay.hello().expect(&plain("bob", "hello"), "235");
    relay.write("users.key", user_line("ada", ADA));
    until("bob is no user any more", || {
        let mut client = relay.hello();
        client.command(&plain("bob", "hello")).starts_with("535").then_some(())
    });
    relay.hello().expect(&plain("ada", ADA), "235");
    // A session that has logged in goes on to its end.
    assert!(open.small().starts_with("250"));
    relay.write("users.key", "ada\n");
    let (code, log) = relay.restart_fails();
    assert_eq!(code, Some(78));
    assert!(log.contains("users.key:1: is not `name:hash`"), "{log}");
}

/// Has a client send a message after a login, under TLS; then once with a wrong password.
fn check(tool: &str, run: impl Fn(&Path, &Relay, &str) -> Output) {
    let Some(program) = tool::require(tool) else { return };
    let (relay, sink) = start(&(NOBODY.to_owned() + TLS), ", required = true");
    let output = run(&program, &relay, "hello");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(sink.counts().messages, 1);
    let content = String::from_utf8(sink.messages().pop().unwrap().content.unwrap()).unwrap();
    assert!(content.contains(" with ESMTPSA (TLSv1.3 "), "{content}");
    let output = run(&program, &relay, "wrong");
    assert!(!output.status.success(), "{}", said(&output));
    assert!(failures(&relay, "credentials") >= 1.0);
    assert_eq!(sink.counts().messages, 1);
}

const MAIL: &str = "From: a@b.example\nSubject: x\n\nhello\n";

#[test]
fn swaks() {
    for way in ["PLAIN", "LOGIN"] {
        check("swaks", |program, relay, password| {
            let mut command = Command::new(program);
            command
                .args(["--server", "127.0.0.1", "--timeout", "20", "-tls"])
                .args(["--port", &relay.addr().port().to_string(), "--ehlo", "client.example"])
                .args(["--from", "a@b.example", "--to", "customer@example.org"])
                .args(["--auth", way, "--auth-user", "bob", "--auth-password", password]);
            command.output().unwrap()
        });
    }
}

#[test]
fn curl() {
    check("curl", |program, relay, password| {
        let mut command = Command::new(program);
        command
            .args(["--silent", "--show-error", "--crlf", "--max-time", "20", "--ssl-reqd"])
            .arg("--cacert")
            .arg(relay.folder().join("ca.pem"))
            .args(["--resolve", &format!("mx.example:{}:127.0.0.1", relay.addr().port())])
            .args(["--url", &format!("smtp://mx.example:{}/client.example", relay.addr().port())])
            .args(["--user", &format!("bob:{password}"), "--mail-from", "a@b.example"])
            .args(["--mail-rcpt", "customer@example.org", "--upload-file", "-"]);
        fed(&mut command, MAIL)
    });
}

#[test]
fn msmtp() {
    for way in ["plain", "login"] {
        check("msmtp", |program, relay, password| {
            let mut command = Command::new(program);
            command
                .args(["--file=/dev/null", "--host=127.0.0.1", "--timeout=20", "--tls=on"])
                .args(["--tls-starttls=on", "--tls-certcheck=off", "--tls-trust-file="])
                .arg(format!("--port={}", relay.addr().port()))
                .arg(format!("--auth={way}"))
                .args(["--user=bob", &format!("--passwordeval=echo {password}")])
                .args(["--domain=client.example", "--from=a@b.example", "customer@example.org"]);
            fed(&mut command, MAIL)
        });
    }
}

#[test]
fn python_smtplib() {
    check("python3", |program, relay, password| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/login.py");
        let mut command = Command::new(program);
        command.arg(script).arg(relay.addr().port().to_string()).args(["bob", password]);
        fed(&mut command, MAIL)
    });
}

#[test]
fn many_clients_log_in_at_once() {
    let (relay, sink) = start(NOBODY, ", insecure = true");
    let command = plain("bob", "hello");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let mut client = relay.hello();
                    client.expect(&command, "235");
                    assert!(client.small().starts_with("250"));
                    client.expect("QUIT", "221");
                }
            });
        }
    });
    assert_eq!(sink.counts().messages, 40);
    assert_eq!(relay.metrics().sum("logins_total", &[]), 40.0);
}

#[test]
fn an_upstream_judges_where_it_is_told_to() {
    // The address of the relay may send there, who logs in is asked about.
    let auth = Some(("ada".to_owned(), ADA.to_owned()));
    let judge = told(Identity { auth, mechanisms: "PLAIN LOGIN", ..Identity::default() }, &[]);
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .upstream("default = true")
        .and_upstream("legacy", &[judge.addr()], "")
        .admin()
        .listener(&format!("{NOBODY}{TLS}auth = {{ upstream = \"legacy\", insecure = true }}"));
    let relay = Relay::start_with(&config.to_string(), &TLS_FILES);
    for mechanism in ["PLAIN", "LOGIN"] {
        let mut client = secure(&relay);
        client.ehlo();
        let reply = match mechanism {
            "PLAIN" => client.command(&plain("ada", ADA)),
            _ => {
                client.expect("AUTH LOGIN", "334");
                client.expect(&base64("ada"), "334");
                client.command(&base64(ADA))
            }
        };
        assert!(reply.starts_with("235 ") && !reply.contains("wavegate"), "its own words: {reply}");
        assert!(client.small().starts_with("250"));
    }
    assert_eq!(sink.counts().messages, 2);
    let mut client = secure(&relay);
    client.ehlo();
    let reply = client.command(&plain("ada", "wrong"));
    assert!(reply.starts_with("535 ") && !reply.contains("wavegate"), "its own words: {reply}");
    client.expect("MAIL FROM:<news@mkt.acme.example>", "250");
    client.expect("RCPT TO:<customer@example.org>", "550 5.7.1 wavegate: ");
    assert_eq!(failures(&relay, "credentials"), 1.0);
    drop(judge);
    let mut client = secure(&relay);
    client.ehlo();
    client.expect(&plain("bob", "hello"), "454 4.7.0 wavegate: ");
    assert_eq!(failures(&relay, "unavailable"), 1.0);
}
