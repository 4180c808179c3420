//! Several recipients with several ends, and what the sender hears of those that were given up.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use wavegate_tests::harness::{
    Client, Closed, Config, PATIENCE, Relay, Watch, recording, sink, until,
};
use wavegate_tests::sink::{Extensions, Message, SinkHandle};

const KNOWN: &str = "extensions = [\"DSN\", \"PIPELINING\"]\ndirect_budget = \"20s\"";
const RETRY: &str = "retry_first = \"50ms\"\nretry_max = \"100ms\"";
const SENDER: &str = "news@mkt.acme.example";

/// Both ways in which a message reaches an upstream.
const HANDOFFS: [&str; 2] = ["handoff = \"auto\"", "handoff = \"queued\""];

fn to(sink: &SinkHandle) -> Config {
    Config::to(&[sink.addr()]).upstream(KNOWN).upstream(RETRY).admin()
}

/// MAIL, an RCPT for each, and the content: the final reply.
fn send(client: &mut Client, mail: &str, recipients: &[&str]) -> String {
    client.expect(&format!("MAIL FROM:{mail}"), "250");
    for recipient in recipients {
        client.expect(&format!("RCPT TO:{recipient}"), "250");
    }
    client.expect("DATA", "354");
    client.send("Subject: several\r\n\r\nhello\r\n.\r\n");
    client.reply()
}

fn three(client: &mut Client) -> String {
    let recipients = ["<one@example.org>", "<two@example.org>", "<three@example.org>"];
    send(client, &format!("<{SENDER}>"), &recipients)
}

/// Waits until the spool is empty.
fn settled(relay: &Relay) {
    relay.wait_metrics("the spool is empty", |metrics| {
        metrics.sum("recipients_accepted_total", &[]) > 0.0
            && metrics.sum("spool_recipients", &[]) == 0.0
    });
}

fn to_of(message: &Message) -> Vec<&str> {
    message.to.iter().map(|to| to.address.as_str()).collect()
}

fn text(message: &Message) -> String {
    String::from_utf8(message.content.clone().unwrap()).unwrap()
}

/// Messages from somebody, and bounces.
fn sorted(sink: &SinkHandle) -> (Vec<Message>, Vec<Message>) {
    sink.messages().into_iter().partition(|message| !message.from.is_empty())
}

#[test]
fn all_are_delivered_in_one_message() {
    for handoff in HANDOFFS {
        let sink = recording();
        let relay = Relay::start(&to(&sink).upstream(handoff));
        let watch = Watch::over(&relay, None);
        let reply = three(&mut relay.hello());
        assert!(reply.starts_with("250"), "{reply}");
        assert!(sink.wait_messages(1, PATIENCE));
        settled(&relay);
        let messages = sink.messages();
        assert_eq!(messages.len(), 1, "{handoff}");
        assert_eq!(
            to_of(&messages[0]),
            ["one@example.org", "two@example.org", "three@example.org"]
        );
        assert_eq!(watch.finish().sum("recipients_ended_total", &["\"delivered\""]), 3.0);
    }
}

#[test]
fn all_are_refused_with_the_first_reply_and_nothing_is_kept() {
    let words = "550-5.1.1 no such user\n550 5.1.1 here";
    let sink = sink(Extensions::default(), &["rcpt:*=550-5.1.1 no such user\r\n550 5.1.1 here"]);
    let relay = Relay::start(&to(&sink));
    assert_eq!(three(&mut relay.hello()), words);
    assert_eq!(relay.metrics().sum("recipients_accepted_total", &[]), 0.0);
    // Queued, the sender has its 250 already and gets one bounce for all three.
    let sink = sink_refusing_three();
    let relay = Relay::start(&to(&sink).upstream(HANDOFFS[1]));
    let watch = Watch::over(&relay, None);
    assert!(three(&mut relay.hello()).starts_with("250 2.0.0 wavegate: queued as "));
    assert!(sink.wait_messages(1, PATIENCE));
    settled(&relay);
    let (mail, bounces) = sorted(&sink);
    assert_eq!((mail.len(), bounces.len()), (0, 1));
    assert_eq!(to_of(&bounces[0]), [SENDER]);
    let bounce = text(&bounces[0]);
    for recipient in ["one", "two", "three"] {
        let field = format!("Final-Recipient: rfc822; {recipient}@example.org");
        assert!(bounce.contains(&field), "{bounce}");
    }
    assert_eq!(bounce.matches("Status: 5.1.1").count(), 3, "{bounce}");
    assert_eq!(watch.finish().sum("recipients_ended_total", &["\"bounced\""]), 3.0);
}

fn sink_refusing_three() -> SinkHandle {
    let faults = ["rcpt:1=550 5.1.1 no", "rcpt:2=550 5.1.1 no", "rcpt:3=550 5.1.1 no"];
    sink(Extensions::default(), &faults)
}

#[test]
fn mixed_one_goes_one_bounces_and_one_is_tried_again() {
    for handoff in HANDOFFS {
        let faults = ["rcpt:2=550 5.1.1 no such user", "rcpt:3=450 4.2.1 greylisted"];
        let sink = sink(Extensions::default(), &faults);
        let relay = Relay::start(&to(&sink).upstream(handoff));
        let watch = Watch::over(&relay, None);
        let reply = three(&mut relay.hello());
        assert!(reply.starts_with("250"), "{handoff}: {reply}");
        assert!(sink.wait_messages(3, PATIENCE), "{handoff}: {:?}", sink.counts());
        settled(&relay);
        let (mail, bounces) = sorted(&sink);
        let to: Vec<_> = mail.iter().map(to_of).collect();
        assert_eq!(to, [["one@example.org"], ["three@example.org"]], "{handoff}");
        assert_eq!(mail[0].digest, mail[1].digest, "the same bytes");
        assert_eq!(bounces.len(), 1, "{handoff}");
        assert_eq!(to_of(&bounces[0]), [SENDER]);
        let bounce = text(&bounces[0]);
        for words in ["two@example.org", "Status: 5.1.1", "550 5.1.1 no such user"] {
            assert!(bounce.contains(words), "{handoff}: {words}: {bounce}");
        }
        assert!(!bounce.contains("one@example.org") && !bounce.contains("three@example.org"));
        let metrics = watch.finish();
        let ended = |end: &str| metrics.sum("recipients_ended_total", &[end]);
        // The bounce is a message too.
        assert_eq!((ended("\"delivered\""), ended("\"bounced\"")), (3.0, 1.0), "{handoff}");
    }
}

#[test]
fn two_upstreams_each_get_their_own() {
    let rules = "[[policy]]\nplugin = \"builtin:routing\"\nsettings = { rules = [\
                 { recipient_domains = [\"one.example\"], upstream = \"one\" }, \
                 { upstream = \"two\" }] }";
    let (one, two) = (recording(), recording());
    let config = Config::default()
        .and_upstream("one", &[one.addr()], KNOWN)
        .and_upstream("two", &[two.addr()], KNOWN)
        .upstream("default = true")
        .section(rules)
        .admin();
    let relay = Relay::start(&config);
    let watch = Watch::over(&relay, None);
    let recipients = ["<a@one.example>", "<b@two.example>", "<c@one.example>"];
    let reply = send(&mut relay.hello(), &format!("<{SENDER}>"), &recipients);
    assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    assert!(one.wait_messages(1, PATIENCE) && two.wait_messages(1, PATIENCE));
    settled(&relay);
    let (one, two) = (one.messages(), two.messages());
    assert_eq!((one.len(), two.len()), (1, 1));
    assert_eq!(to_of(&one[0]), ["a@one.example", "c@one.example"]);
    assert_eq!(to_of(&two[0]), ["b@two.example"]);
    assert_eq!(one[0].digest, two[0].digest);
    watch.finish();
}

/// Two upstreams: what goes to `down.example` finds nobody; bounces do.
fn half_down(down: &Closed, sink: &SinkHandle, lines: &str) -> Config {
    let rules = "[[policy]]\nplugin = \"builtin:routing\"\nsettings = { rules = [\
                 { recipient_domains = [\"down.example\"], upstream = \"down\" }, \
                 { upstream = \"up\" }] }";
    let lines = format!("{KNOWN}\nexpire = \"1s\"\neject_after = 1000\n{lines}");
    Config::default()
        .and_upstream("down", &[down.addr()], &lines)
        .and_upstream("up", &[sink.addr()], KNOWN)
        .upstream("default = true")
        .section(rules)
        .admin()
}

fn expired(relay: &Relay, count: f64) {
    relay.wait_metrics("they expire", |metrics| {
        metrics.sum("recipients_ended_total", &["\"expired\""]) == count
    });
}

#[test]
fn what_expires_is_told_to_those_who_want_to_hear_it() {
    let (down, sink) = (Closed::new(), recording());
    let relay = Relay::start(&half_down(&down, &sink, ""));
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    let sender = format!("<{SENDER}>");
    for (mail, recipient) in [
        (&*sender, "<a@down.example>"),
        ("<>", "<b@down.example>"),
        (&*sender, "<c@down.example> NOTIFY=NEVER"),
        (&*sender, "<d@down.example> NOTIFY=SUCCESS,DELAY"),
    ] {
        let reply = send(&mut client, mail, &[recipient]);
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    }
    expired(&relay, 4.0);
    assert!(sink.wait_messages(1, PATIENCE));
    settled(&relay);
    let messages = sink.messages();
    assert_eq!(messages.len(), 1, "one bounce, for one of the four");
    assert_eq!((&*messages[0].from, to_of(&messages[0])), ("", vec![SENDER]));
    let bounce = text(&messages[0]);
    for words in ["Status: 4.4.7", "Action: failed", "Final-Recipient: rfc822; a@down.example"] {
        assert!(bounce.contains(words), "{words}: {bounce}");
    }
    watch.finish();
}

#[test]
fn bounces_can_be_events_only() {
    let (down, sink) = (Closed::new(), recording());
    let relay = Relay::start(&half_down(&down, &sink, "bounces = \"event\""));
    let watch = Watch::over(&relay, None);
    let reply = send(&mut relay.hello(), &format!("<{SENDER}>"), &["<a@down.example>"]);
    assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    expired(&relay, 1.0);
    settled(&relay);
    assert_eq!((sink.counts().messages, sink.counts().connections), (0, 0));
    until("the log names who was given up", || {
        let log = relay.log();
        log.lines()
            .any(|line| line.contains("expired") && line.contains("a@down.example"))
            .then_some(())
    });
    watch.finish();
}

#[test]
#[ignore = "a minute: what stands in line is looked at that often"]
fn what_stands_in_line_for_an_upstream_that_is_down_expires_too() {
    let (down, sink) = (Closed::new(), recording());
    // Nobody serves the line meanwhile: the target is not tried again.
    let ejected = "eject_after = 1\neject_for = \"1h\"\neject_max = \"1h\"";
    let config = half_down(&down, &sink, "").to_string().replace("eject_after = 1000", ejected);
    let relay = Relay::start_with(&config, &[]);
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    // The first one finds out; the others stand in line from the beginning.
    for recipient in ["<a@down.example>", "<b@down.example>", "<c@down.example>"] {
        let reply = send(&mut client, &format!("<{SENDER}>"), &[recipient]);
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    }
    assert!(sink.wait_messages(3, 6 * PATIENCE), "{:?}", sink.counts());
    settled(&relay);
    assert!(sink.messages().iter().all(|bounce| text(bounce).contains("Status: 4.4.7")));
    assert_eq!(watch.finish().sum("recipients_ended_total", &["\"expired\""]), 3.0);
}
