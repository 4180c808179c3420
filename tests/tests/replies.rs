//! Who says what: the next hop's replies come through as they are, the relay's own are marked, and one id
//! leads from the client to the next hop. And `verify = "rcpt"`, where recipients too are answered as
//! the next hop answers.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{fs, process::Command};

use wavegate_tests::{
    harness::{
        Client, Closed, Config, PATIENCE, Relay, Script, binary, plan_of_held, recording, sink,
    },
    sink::{Extensions, SinkHandle},
};

const MARK: &str = "wavegate: ";
const VERIFY: &str = "verify = \"rcpt\"";

/// The text of a reply behind its two codes.
fn text(reply: &str) -> &str {
    reply.splitn(3, ' ').nth(2).unwrap_or_default()
}

/// Begins a transaction; the id that the relay says.
fn begin(client: &mut Client, from: &str) -> String {
    let reply = client.expect(&format!("MAIL FROM:<{from}>"), "250 2.1.0 wavegate: id ");
    reply.rsplit(' ').next().unwrap().to_owned()
}

fn finish(client: &mut Client) -> String {
    client.expect("RCPT TO:<customer@example.org>", "250");
    client.expect("DATA", "354");
    client.send("Subject: x\r\n\r\nx\r\n.\r\n");
    client.reply()
}

#[test]
fn one_id_leads_from_the_client_to_the_next_hop() {
    let sink = recording();
    let log = "[event_log]\nfile = \"events.jsonl\"\n";
    let config = Config::to(&[sink.addr()]).upstream("handoff = \"queued\"").section(log);
    let relay = Relay::start(&config);
    let mut client = relay.hello();
    let abandoned = begin(&mut client, "news@mkt.acme.example");
    client.expect("RSET", "250");
    let id = begin(&mut client, "news@mkt.acme.example");
    assert_ne!(id, abandoned);
    assert_eq!(finish(&mut client), format!("250 2.0.0 {MARK}queued as {id}"));
    assert!(sink.wait_messages(1, PATIENCE));
    let content = sink.messages().pop().unwrap().content.unwrap();
    let head = String::from_utf8_lossy(&content).into_owned();
    assert!(head.starts_with("Received: ") && head.contains(&format!("id {id};")), "{head}");
    wavegate_tests::harness::until("the event log", || {
        let lines = fs::read_to_string(relay.folder().join("events.jsonl")).ok()?;
        let of_it = lines.lines().filter(|line| line.contains(&id)).count();
        (of_it >= 2).then_some(())
    });
    assert!(!relay.logs().contains(&abandoned), "nothing is told of what was never sent");
}

#[test]
fn a_held_message_is_found_by_the_id_that_its_client_was_told() {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .relay("plan = \"waves.toml\"")
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"")
        .section("[[policy]]\nplugin = \"builtin:freeze\"")
        .to_string();
    let relay = Relay::start_with(&config, &[("waves.toml", plan_of_held().as_bytes())]);
    let mut client = relay.hello();
    let id = begin(&mut client, "ada@held.example");
    assert_eq!(finish(&mut client), format!("250 2.0.0 {MARK}queued as {id}"));
    let shown = Command::new(binary())
        .args(["queue", "show", &id, "--config"])
        .arg(relay.folder().join("relay.toml"))
        .output()
        .unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    assert_eq!(sink.counts().messages, 0);
}

#[test]
fn what_the_relay_refuses_is_marked_and_what_the_next_hop_refuses_is_not() {
    let refusing = sink(Extensions::default(), &["end:1=550 5.7.1 not this one"]);
    let relay = Relay::start(&Config::to(&[refusing.addr()]).limits("message_size = \"2KiB\""));
    let mut client = relay.hello();
    assert_eq!(client.small(), "550 5.7.1 not this one");
    let own = [
        client.command("NONSENSE"),
        client.command("DATA"),
        client.command("MAIL FROM:<a@example.org> SIZE=1000000"),
        client.command("MAIL FROM:<a@example.org> NO=PARAMETER"),
        client.command("EXPN all"),
        {
            client.envelope("a@example.org", "b@example.org");
            client.expect("DATA", "354");
            client.send("bare\nline\r\n.\r\n");
            client.reply()
        },
    ];
    for reply in own {
        assert!(text(&reply).starts_with(MARK), "{reply}");
    }
    let closed = Closed::new();
    let direct = Config::to(&[closed.addr()]).upstream("handoff = \"direct\"");
    let nobody = Relay::start(&direct);
    let reply = nobody.hello().small();
    assert!(reply.starts_with("451 4.4.1 wavegate: "), "{reply}");
}

/// A relay that asks `sink` about recipients.
fn verifying(sink: &SinkHandle, more: &str) -> Relay {
    Relay::start(&Config::to(&[sink.addr()]).upstream(VERIFY).upstream(more).admin())
}

fn verified(relay: &Relay, result: &str) -> f64 {
    let sample =
        format!("upstream_recipients_verified_total{{upstream=\"up\",result=\"{result}\"}}");
    relay.metrics().value(&sample)
}

#[test]
fn recipients_are_answered_as_the_next_hop_answers() {
    for pipelining in [true, false] {
        let faults = ["rcpt:2=550-5.1.1 no\r\n550 5.1.1 such user", "rcpt:3=450 4.2.1 greylisted"];
        let sink = sink(Extensions { pipelining, ..Extensions::default() }, &faults);
        let relay = verifying(&sink, "");
        let mut client = relay.hello();
        begin(&mut client, "news@mkt.acme.example");
        client.expect("RCPT TO:<one@example.org>", "250 ");
        let refused = client.command("RCPT TO:<two@example.org>");
        assert_eq!(refused, "550-5.1.1 no\n550 5.1.1 such user");
        assert_eq!(client.command("RCPT TO:<three@example.org>"), "450 4.2.1 greylisted");
        client.expect("RCPT TO:<four@example.org>", "250 ");
        client.expect("DATA", "354");
        client.send("x\r\n.\r\n");
        client.expect_reply("250");
        let messages = sink.messages();
        assert_eq!(messages.len(), 1, "asking sends nothing");
        let to: Vec<_> = messages[0].to.iter().map(|to| to.address.as_str()).collect();
        assert_eq!(to, ["one@example.org", "four@example.org"]);
        assert_eq!((verified(&relay, "taken"), verified(&relay, "refused")), (2.0, 2.0));
        let counts = sink.counts();
        assert_eq!(counts.violations, 0);
        // One of them asked what it offers.
        assert!(counts.connections <= 2, "on the connection that it has");
    }
}

#[test]
fn nobody_left_is_told_before_the_message_and_a_refused_sender_at_the_recipient() {
    let sink = sink(Extensions::default(), &["mail:1=553 5.1.8 bad sender"]);
    let relay = verifying(&sink, "");
    let mut client = relay.hello();
    begin(&mut client, "news@mkt.acme.example");
    assert_eq!(client.command("RCPT TO:<one@example.org>"), "553 5.1.8 bad sender");
    client.expect("DATA", "554 5.5.1 wavegate: ");
    client.expect("RSET", "250");
    assert!(client.small().starts_with("250"), "the next one goes");
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn a_pipelined_transaction_is_answered_in_order() {
    let faults = ["rcpt:2=550 5.1.1 unknown"];
    let sink = sink(Extensions { chunking: true, ..Extensions::default() }, &faults);
    let relay = verifying(&sink, "");
    let mut client = relay.hello();
    client.send(
        "MAIL FROM:<a@example.org>\r\nRCPT TO:<one@example.org>\r\nRCPT TO:<two@example.org>\r\n\
         BDAT 3 LAST\r\nx\r\nMAIL FROM:<b@example.org>\r\nRCPT TO:<three@example.org>\r\n\
         BDAT 3 LAST\r\ny\r\nNOOP\r\n",
    );
    for begins in ["250", "250", "550 5.1.1 unknown", "250", "250", "250", "250", "250"] {
        client.expect_reply(begins);
    }
    assert_eq!(sink.counts().messages, 2);
}

#[test]
fn where_nobody_can_be_asked_a_recipient_is_taken() {
    // No next hop: the spool takes the message, as it does without asking.
    let closed = Closed::new();
    let nowhere = Config::to(&[closed.addr()]).upstream(VERIFY).admin();
    let relay = Relay::start(&nowhere);
    assert!(relay.hello().small().starts_with("250 2.0.0 wavegate: queued as "));
    assert_eq!(verified(&relay, "unanswered"), 1.0);
    // A next hop that closes, each time.
    let closing = Script::start(|_, peer| {
        if peer.greet(&["PIPELINING"]).is_some() {
            peer.line();
            peer.say("421 4.3.2 going away\r\n");
        }
    });
    let relay = Relay::start(&Config::to(&[closing.addr()]).upstream(VERIFY).admin());
    let mut client = relay.hello();
    begin(&mut client, "news@mkt.acme.example");
    let reply = client.command("RCPT TO:<one@example.org>");
    assert!(reply.starts_with("250") || reply.starts_with("451 4.3.2 "), "{reply}");
}

#[test]
fn a_window_asks_nobody() {
    let sink = sink(Extensions::default(), &["rcpt:1=550 5.1.1 unknown"]);
    let config = Config::to(&[sink.addr()])
        .relay("plan = \"waves.toml\"")
        .upstream(VERIFY)
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"\nprobe = false")
        .section("[[policy]]\nplugin = \"builtin:freeze\"")
        .to_string();
    let relay = Relay::start_with(&config, &[("waves.toml", plan_of_held().as_bytes())]);
    let mut client = relay.hello();
    begin(&mut client, "ada@held.example");
    client.expect("RCPT TO:<customer@example.org>", "250 2.1.5 Ok");
    assert_eq!(sink.counts().recipients, 0);
    client.expect("RSET", "250");
    begin(&mut client, "free@elsewhere.example");
    client.expect("RCPT TO:<customer@example.org>", "550 5.1.1 unknown");
}

#[test]
fn a_header_that_is_not_there_yet_cannot_be_asked_for() {
    let sink = recording();
    let routing = "[[policy]]\nplugin = \"builtin:routing\"\n[[policy.settings.rules]]\n\
        headers = { X-Stream = \"bulk\" }\nupstream = \"up\"\n";
    let config = Config::to(&[sink.addr()]);
    let with = |config: &Config| config.clone().section(routing).to_string();
    let relay = Relay::start_with(&with(&config), &[]);
    relay.write("relay.toml", with(&config.upstream(VERIFY)));
    let refused = relay.reload_refused();
    assert!(refused.contains("header:x-stream") && refused.contains("verify"), "{refused}");
}
