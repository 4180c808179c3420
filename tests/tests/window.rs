//! The window of an instance in real time: where its mail goes before, that none leaves in it, and
//! where it goes after. Through real sockets to the real relay.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::sync::{Mutex, mpsc};

use wavegate_tests::harness::{Config, PATIENCE, Relay, Script, now_ms, recording, rfc3339, until};

const POLICIES: &str =
    "[[policy]]\nplugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"\n";

/// A plan whose window opens and closes so many milliseconds from now.
fn plan(lead: &str, opens: i64, closes: i64) -> String {
    let at = |offset: i64| rfc3339(now_ms().checked_add_signed(offset).unwrap());
    format!(
        "freeze_lead = \"{lead}\"\n[[instance]]\nname = \"acme-prod-1\"\nproduct = \"classic\"\n\
         environment = \"production\"\nmatch = {{ senders = [\"mkt.acme.example\"] }}\n\
         [[wave]]\nid = \"prod-01\"\nenvironment = \"production\"\ninstances = [\"acme-prod-1\"]\n\
         opens = \"{}\"\ncloses = \"{}\"\n",
        at(opens),
        at(closes)
    )
}

const HOUR: i64 = 3_600_000;

/// The spool has it, and the reply is the relay's own.
fn is_held(reply: &str) -> bool {
    reply.starts_with("250 2.0.0 wavegate: queued as ")
}

fn config(legacy: std::net::SocketAddr, cloud: std::net::SocketAddr) -> String {
    Config::default()
        .relay("plan = \"waves.toml\"\nreceived = false")
        .and_upstream("legacy", &[legacy], "extensions = []")
        .and_upstream("cloud", &[cloud], "extensions = []")
        .section("[migration]\nbefore = \"legacy\"\nafter = \"cloud\"\n")
        .section(POLICIES)
        .to_string()
}

#[test]
fn the_day_1970_and_a_leap_day_are_written_rightly() {
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(rfc3339(1_709_210_096_789), "2024-02-29T12:34:56.789Z");
}

#[test]
fn before_freezing_frozen_and_after() {
    let (legacy, cloud) = (recording(), recording());
    let waves = plan("60s", HOUR, 2 * HOUR);
    let config = config(legacy.addr(), cloud.addr());
    let relay = Relay::start_with(&config, &[("waves.toml", waves.as_bytes())]);
    let mut client = relay.hello();
    assert!(client.small().starts_with("250"));
    assert_eq!((legacy.counts().messages, cloud.counts().messages), (1, 0));
    relay.write("waves.toml", plan("60s", 30_000, HOUR));
    // The first one may have passed the gate before, and is held at its attempt.
    until("freezing", || is_held(&client.small()).then_some(()));
    assert!(is_held(&client.small()));
    // Other mail goes on: this is of no instance.
    client.expect("MAIL FROM:<a@other.example>", "250");
    client.expect("RCPT TO:<b@example.org>", "250");
    client.expect("DATA", "354");
    client.send("x\r\n.\r\n");
    client.expect_reply("250");
    let left = (legacy.counts().messages, cloud.counts().messages);
    assert!(is_held(&client.small()), "still held");
    // What has begun is not moved away: the reload is refused, and the plan in force stays.
    relay.write("waves.toml", plan("60s", HOUR, 2 * HOUR));
    until("the refusal", || relay.log().contains("which is freezing").then_some(()));
    assert!(is_held(&client.small()), "no plan thaws it");
    assert_eq!((legacy.counts().messages, cloud.counts().messages), left, "none left");
}

#[test]
fn after_a_window_that_is_over_mail_goes_to_the_cloud() {
    let (legacy, cloud) = (recording(), recording());
    let config = config(legacy.addr(), cloud.addr());
    let past = plan("60s", -2 * HOUR, -1000);
    let relay = Relay::start_with(&config, &[("waves.toml", past.as_bytes())]);
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!((legacy.counts().messages, cloud.counts().messages), (0, 1));
}

#[test]
fn a_window_opens_and_closes_by_the_clock() {
    let (legacy, cloud) = (recording(), recording());
    let far = plan("60s", HOUR, 2 * HOUR);
    let config = config(legacy.addr(), cloud.addr());
    let relay = Relay::start_with(&config, &[("waves.toml", far.as_bytes())]);
    let mut client = relay.hello();
    assert!(client.small().starts_with("250"));
    let begun = now_ms();
    let (opens, closes) = (begun + 1500, begun + 2500);
    let text = plan("500ms", 0, 1);
    let times = |line: &&str| !line.starts_with("opens") && !line.starts_with("closes");
    let mut text = text.lines().filter(times).collect::<Vec<_>>().join("\n");
    text += &format!("\nopens = \"{}\"\ncloses = \"{}\"\n", rfc3339(opens), rfc3339(closes));
    relay.write("waves.toml", text);
    let mut held = 0;
    until("mail goes to the cloud", || {
        let said = client.small();
        assert!(said.starts_with("250"), "{said}");
        held += u64::from(is_held(&said));
        (cloud.counts().messages > 0).then_some(())
    });
    assert!(held > 0, "the window was not seen");
    until("what was held is at the cloud", || (cloud.counts().messages >= held).then_some(()));
    // A message before the reload may be late in neither direction but by the clock.
    let late = legacy.messages().iter().map(|message| message.at_ms).max().unwrap();
    assert!(late < opens, "left at {late}, the window opened at {opens}");
    let early = cloud.messages()[0].at_ms;
    assert!(early >= closes, "left at {early}, the window closed at {closes}");
}

#[test]
fn a_message_begun_before_the_window_does_not_leave_in_it() {
    let (go, wait) = mpsc::channel::<()>();
    let (begun, has_begun) = mpsc::channel::<()>();
    let (ended, has_ended) = mpsc::channel::<Option<Vec<u8>>>();
    let wait = Mutex::new(wait);
    let legacy = Script::start(move |number, peer| {
        if number > 1 {
            return peer.accept_all(&[], |_| b"250 taken\r\n".to_vec());
        }
        let mut play = || {
            peer.greet(&[])?;
            peer.envelope()?;
            begun.send(()).ok()?;
            wait.lock().unwrap().recv_timeout(PATIENCE).ok()?;
            peer.say("354 go on\r\n");
            ended.send(peer.content()).ok()
        };
        let _closed: Option<()> = play();
    });
    let cloud = recording();
    let far = plan("0s", HOUR, 2 * HOUR);
    let config = config(legacy.addr(), cloud.addr());
    let relay = Relay::start_with(&config, &[("waves.toml", far.as_bytes())]);
    let mut client = relay.hello();
    client.begin_data();
    client.send("Subject: late\r\n\r\nx\r\n.\r\n");
    has_begun.recv_timeout(PATIENCE).unwrap();
    // Now the window opens; another client sees that it has.
    relay.write("waves.toml", plan("0s", -1000, HOUR));
    let mut other = relay.hello();
    until("the window is open", || is_held(&other.small()).then_some(()));
    go.send(()).unwrap();
    let said = client.reply();
    assert!(is_held(&said), "{said}");
    // The upstream never saw the end of data.
    assert_eq!(has_ended.recv_timeout(PATIENCE).unwrap(), None);
    assert_eq!(cloud.counts().messages, 0);
}
