//! Mail of an instance in its window: taken, held, and let out at the end, oldest first and at the
//! pace that was asked for. Through real sockets to the real relay.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use wavegate_tests::harness::{
    Client, Config, PATIENCE, Relay, Watch, now_ms, recording, rfc3339, until,
};
use wavegate_tests::sink::SinkHandle;

const POLICIES: &str =
    "[[policy]]\nplugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"\n";

fn plan(opens: u64, closes: u64) -> String {
    format!(
        "freeze_lead = \"0s\"\n[[instance]]\nname = \"acme-prod-1\"\nproduct = \"classic\"\n\
         environment = \"production\"\nmatch = {{ senders = [\"mkt.acme.example\"] }}\n\
         [[wave]]\nid = \"prod-01\"\nenvironment = \"production\"\ninstances = [\"acme-prod-1\"]\n\
         opens = \"{}\"\ncloses = \"{}\"\n",
        rfc3339(opens),
        rfc3339(closes)
    )
}

fn config(legacy: &SinkHandle, cloud: &SinkHandle, spool: &str) -> String {
    let lines = "extensions = []\nconnections = 1\ndirect_budget = \"20s\"";
    Config::default()
        .relay("plan = \"waves.toml\"\nreceived = false\nworkers = 1")
        // One after the other: attempts at once may overtake each other.
        .limits("spool_attempts = 1")
        .and_upstream("legacy", &[legacy.addr()], lines)
        .and_upstream("cloud", &[cloud.addr()], lines)
        .section("[migration]\nbefore = \"legacy\"\nafter = \"cloud\"\nextend_by = \"1s\"\n")
        .section(&format!("[spool]\n{spool}\n"))
        .section(POLICIES)
        .admin()
        .to_string()
}

fn numbered(client: &mut Client, number: usize) -> String {
    client.transact(format!("Subject: {number}\r\n\r\nx\r\n.\r\n").as_bytes())
}

fn numbers(sink: &SinkHandle) -> Vec<usize> {
    let number = |content: Vec<u8>| {
        let text = String::from_utf8(content).unwrap();
        text.lines().next().unwrap().strip_prefix("Subject: ").unwrap().parse().unwrap()
    };
    sink.messages().into_iter().map(|message| number(message.content.unwrap())).collect()
}

fn held(relay: &Relay) -> f64 {
    let labels = ["instance=\"acme-prod-1\"", "state=\"held\""];
    relay.metrics().sum("spool_recipients", &labels)
}

/// The window closes by the clock so long after it was written: also on a busy machine.
const LATER: u64 = 8000;

#[test]
fn the_windows_mail_waits_for_its_end_and_leaves_in_order_at_its_rate() {
    const MESSAGES: usize = 40;
    let (legacy, cloud) = (recording(), recording());
    let config = config(&legacy, &cloud, "release_rate = 20\nrelease_ramp = \"0s\"");
    let closes = now_ms() + LATER;
    let open = plan(closes - 3_600_000, closes);
    let relay = Relay::start_with(&config, &[("waves.toml", open.as_bytes())]);
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    for number in 0..MESSAGES {
        let reply = numbered(&mut client, number);
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    }
    assert_eq!(held(&relay), MESSAGES as f64);
    assert!(cloud.wait_messages(MESSAGES as u64, PATIENCE), "{:?}", cloud.counts());
    relay.wait_metrics("the spool is empty", |metrics| metrics.sum("spool_recipients", &[]) == 0.0);
    let messages = cloud.messages();
    let first = messages[0].at_ms;
    assert!(first >= closes, "left at {first}, the window closed at {closes}");
    assert_eq!(numbers(&cloud), (0..MESSAGES).collect::<Vec<_>>(), "in order of receipt");
    for (count, message) in messages.iter().enumerate() {
        // So many are let out by then, at 20 a second.
        let due = closes + count as u64 * 50;
        assert!(message.at_ms >= due, "{count} left at {}, due at {due}", message.at_ms);
    }
    assert_eq!(legacy.counts().messages, 0, "nothing went back to where it was");
    watch.finish();
}

#[test]
fn a_restart_in_the_window_forgets_nothing_and_leaks_nothing() {
    let (legacy, cloud) = (recording(), recording());
    let config = config(&legacy, &cloud, "");
    let closes = now_ms() + 3 * LATER;
    let open = plan(closes - 3_600_000, closes);
    let mut relay = Relay::start_with(&config, &[("waves.toml", open.as_bytes())]);
    let mut last = None;
    for number in 0..6 {
        let watch = Watch::over(&relay, last);
        let reply = numbered(&mut relay.hello(), number);
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
        until("all are held", || (held(&relay) == (number + 1) as f64).then_some(()));
        last = Some(watch.finish());
        if number % 2 == 0 {
            assert_eq!(relay.terminate().code(), Some(0));
        } else {
            relay.crash();
        }
        relay.restart();
    }
    until("all are held", || (held(&relay) == 6.0).then_some(()));
    assert_eq!((legacy.counts().messages, cloud.counts().messages), (0, 0));
    let watch = Watch::over(&relay, last);
    // Longer than one patience.
    let left = cloud.wait_messages(6, PATIENCE) || cloud.wait_messages(6, PATIENCE);
    assert!(left, "{:?}", cloud.counts());
    relay.wait_metrics("the spool is empty", |metrics| metrics.sum("spool_recipients", &[]) == 0.0);
    assert_eq!(numbers(&cloud), [0, 1, 2, 3, 4, 5]);
    assert_eq!(watch.finish().sum("in_doubt_total", &[]), 0.0);
    assert_eq!(legacy.counts().messages, 0);
}
