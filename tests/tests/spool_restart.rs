//! The spool over restarts: every byte is still there, everything is delivered once, and what is
//! counted goes on.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::collections::BTreeSet;

use wavegate_tests::harness::{
    Client, Closed, Config, PATIENCE, Relay, Watch, recording, sink, sink_at,
};
use wavegate_tests::load;
use wavegate_tests::sink::{Extensions, SinkHandle};

const KNOWN: &str = "extensions = [\"8BITMIME\"]\nhandoff = \"queued\"";
const EAGER: &str = "eject_after = 1\neject_for = \"20ms\"\neject_max = \"50ms\"";

fn config(target: std::net::SocketAddr) -> Config {
    Config::to(&[target]).upstream(KNOWN).upstream(EAGER).relay("received = false").admin()
}

/// Another sink takes the place of the one that the configuration names.
fn point_to(relay: &Relay, sink: &SinkHandle) {
    relay.write("relay.toml", config(sink.addr()).to_string());
}

fn empty(relay: &Relay) {
    relay.wait_metrics("the spool is empty", |metrics| metrics.sum("spool_recipients", &[]) == 0.0);
}

fn numbered(client: &mut Client, number: usize) {
    let reply = client.transact(format!("Subject: {number}\r\n\r\nx\r\n.\r\n").as_bytes());
    assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
}

/// The numbers of what arrived; each may be there once.
fn numbers(sink: &SinkHandle) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for message in sink.messages() {
        let text = String::from_utf8(message.content.unwrap()).unwrap();
        let number = text.lines().next().unwrap().strip_prefix("Subject: ").unwrap();
        assert!(found.insert(number.parse().unwrap()), "{number} arrived twice");
    }
    found
}

#[test]
fn a_large_message_goes_through_byte_for_byte() {
    let message = load::message::build(5_000_000, "mkt.acme.example");
    for chunking in [false, true] {
        let sink = sink(Extensions { chunking, ..Extensions::default() }, &[]);
        let relay = Relay::start(&config(sink.addr()));
        let watch = Watch::over(&relay, None);
        assert!(
            relay.hello().transact(&message.stuffed).starts_with("250 2.0.0 wavegate: queued as ")
        );
        assert!(sink.wait_messages(1, PATIENCE));
        empty(&relay);
        let messages = sink.messages();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].content.as_deref() == Some(&*message.plain), "the bytes differ");
        watch.finish();
    }
}

#[test]
fn a_large_message_outlives_two_restarts() {
    let message = load::message::build(5_000_000, "mkt.acme.example");
    let down = Closed::new();
    let mut relay = Relay::start(&config(down.addr()));
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    assert!(client.transact(&message.stuffed).starts_with("250 2.0.0 wavegate: queued as "));
    numbered(&mut client, 1);
    drop(client);
    let last = watch.finish();
    // Once in order, once as a crash.
    assert_eq!(relay.terminate().code(), Some(0));
    relay.restart();
    let watch = Watch::over(&relay, Some(last));
    let last = watch.finish();
    assert_eq!(last.sum("spool_recipients", &[]), 2.0);
    relay.crash();
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    relay.restart();
    let watch = Watch::over(&relay, Some(last));
    assert!(sink.wait_messages(2, PATIENCE));
    empty(&relay);
    let mut messages = sink.messages();
    messages.sort_by_key(|message| message.size);
    assert_eq!(messages.len(), 2);
    assert!(messages[1].content.as_deref() == Some(&*message.plain), "the bytes differ");
    let last = watch.finish();
    assert_eq!(last.sum("recipients_ended_total", &["\"delivered\""]), 2.0);
    assert_eq!(last.sum("in_doubt_total", &[]), 0.0);
}

#[test]
fn restarts_in_the_middle_deliver_each_once() {
    const MESSAGES: usize = 60;
    let sink = sink(Extensions::default(), &["end:*=delay 10"]);
    let down = Closed::new();
    let mut relay = Relay::start(&config(down.addr()).upstream("connections = 2"));
    let mut watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    (0..MESSAGES).for_each(|number| numbered(&mut client, number));
    drop(client);
    for part in 1..=3 {
        let last = watch.finish();
        assert_eq!(last.sum("recipients_accepted_total", &[]), MESSAGES as f64);
        assert_eq!(relay.terminate().code(), Some(0));
        relay.write("relay.toml", config(sink.addr()).upstream("connections = 2").to_string());
        relay.restart();
        watch = Watch::over(&relay, Some(last));
        assert!(sink.wait_messages(part * 15, PATIENCE), "{:?}", sink.counts());
    }
    empty(&relay);
    let last = watch.finish();
    assert_eq!(numbers(&sink), (0..MESSAGES).collect());
    let delivered = last.sum("recipients_ended_total", &["\"delivered\""]);
    assert_eq!((delivered, last.sum("in_doubt_total", &[])), (MESSAGES as f64, 0.0));
    assert!(!relay.logs().contains("doubtful=1"));
}

#[test]
fn what_went_direct_is_counted_over_restarts_too() {
    let sink = recording();
    let config = config(sink.addr()).to_string().replace("queued", "direct");
    let mut relay = Relay::start_with(&config, &[]);
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    (0..5).for_each(|_| assert!(client.small().starts_with("250")));
    drop(client);
    let last = watch.finish();
    assert_eq!(last.sum("recipients_accepted_total", &[]), 5.0);
    assert_eq!(relay.terminate().code(), Some(0));
    point_to(&relay, &sink);
    relay.restart();
    let watch = Watch::over(&relay, Some(last));
    numbered(&mut relay.hello(), 1);
    assert!(sink.wait_messages(6, PATIENCE));
    empty(&relay);
    assert_eq!(watch.finish().sum("recipients_ended_total", &["\"delivered\""]), 6.0);
}
