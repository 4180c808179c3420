//! When the spool takes a message, what the client hears of it, and that it then arrives. Through
//! real sockets to the real relay.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::sync::{Mutex, mpsc};

use wavegate_tests::harness::{
    Client, Closed, Config, PATIENCE, Relay, Script, Watch, faults_of, now_ms, recording, sink,
    sink_at,
};
use wavegate_tests::sink::{Extensions, SinkHandle};

const KNOWN: &str = "extensions = [\"8BITMIME\"]";
/// A target that is down is tried again at once.
const EAGER: &str = "eject_after = 1\neject_for = \"20ms\"\neject_max = \"50ms\"";
const RETRY: &str = "retry_first = \"50ms\"\nretry_max = \"100ms\"";

/// An upstream that is not slow, however busy the machine is.
fn to(sink: &SinkHandle) -> Config {
    Config::to(&[sink.addr()]).upstream(KNOWN).upstream("direct_budget = \"20s\"").admin()
}

/// Sends a message, which the spool must take: its id.
#[track_caller]
fn queued(client: &mut Client) -> String {
    let reply = client.small();
    let id = reply.strip_prefix("250 2.0.0 wavegate: queued as ");
    id.unwrap_or_else(|| panic!("not spooled: {reply}")).to_owned()
}

/// Sends a message, which an upstream must take while the client waits.
#[track_caller]
fn passed(client: &mut Client) {
    let reply = client.small();
    assert!(reply.starts_with("250") && !reply.contains("queued as"), "{reply}");
}

/// The ids of what arrived, from the `Received` lines.
fn ids(sink: &SinkHandle) -> Vec<String> {
    let id = |content: Vec<u8>| {
        let text = String::from_utf8(content).unwrap();
        text.split_once(" id ").unwrap().1.split_once(';').unwrap().0.to_owned()
    };
    sink.messages().into_iter().map(|message| id(message.content.unwrap())).collect()
}

/// Waits until all of these and nothing else have arrived and the spool is empty.
#[track_caller]
fn arrive_once(relay: &Relay, sink: &SinkHandle, mut expected: Vec<String>) {
    assert!(sink.wait_messages(expected.len() as u64, PATIENCE), "{:?}", sink.counts());
    empty(relay);
    let mut arrived = ids(sink);
    arrived.sort();
    expected.sort();
    assert_eq!(arrived, expected);
}

fn empty(relay: &Relay) {
    relay.wait_metrics("the spool is empty", |metrics| metrics.sum("spool_recipients", &[]) == 0.0);
}

#[test]
fn queued_the_reply_has_the_id_that_arrives() {
    let sink = recording();
    let relay = Relay::start(&to(&sink).upstream("handoff = \"queued\""));
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    let ids: Vec<_> = (0..20).map(|_| queued(&mut client)).collect();
    arrive_once(&relay, &sink, ids);
    let metrics = watch.finish();
    let delivered = metrics.sum("recipients_ended_total", &["end=\"delivered\""]);
    assert_eq!((delivered, metrics.sum("in_doubt_total", &[])), (20.0, 0.0));
}

#[test]
fn auto_goes_direct_while_nothing_is_in_the_way() {
    let sink = recording();
    let relay = Relay::start(&to(&sink));
    let mut client = relay.hello();
    for sent in 1..=5 {
        passed(&mut client);
        assert_eq!(sink.counts().messages, sent);
    }
}

#[test]
fn auto_spools_while_the_upstream_is_down() {
    let down = Closed::new();
    let config = Config::to(&[down.addr()]).upstream(KNOWN).upstream(EAGER);
    let config = config.upstream("direct_budget = \"20s\"").admin();
    let relay = Relay::start(&config);
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    let ids: Vec<_> = (0..10).map(|_| queued(&mut client)).collect();
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    arrive_once(&relay, &sink, ids);
    // And then it goes direct again.
    passed(&mut client);
    watch.finish();
}

#[test]
fn auto_spools_while_all_connections_are_busy() {
    let (go, wait) = mpsc::channel::<()>();
    let (reached, end_reached) = mpsc::channel();
    let (arrived, arrivals) = mpsc::channel();
    let wait = Mutex::new(wait);
    let upstream = Script::start(move |_, peer| {
        peer.accept_all(&[], |content| {
            if content.starts_with(b"Subject: first") {
                reached.send(()).unwrap();
                let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
            }
            arrived.send(content.to_vec()).unwrap();
            b"250 2.0.0 now\r\n".to_vec()
        });
    });
    let config = Config::to(&[upstream.addr()]).upstream(KNOWN).relay("received = false");
    let relay = Relay::start(&config.upstream("connections = 1").limits("direct_wait = \"50ms\""));
    let mut first = relay.hello();
    first.begin_data();
    first.send("Subject: first\r\n\r\nx\r\n.\r\n");
    end_reached.recv_timeout(PATIENCE).unwrap();
    queued(&mut relay.hello());
    assert!(arrivals.try_recv().is_err());
    go.send(()).unwrap();
    assert_eq!(first.reply(), "250 2.0.0 now");
    let next = || arrivals.recv_timeout(PATIENCE).unwrap();
    assert_eq!(next(), b"Subject: first\r\n\r\nx\r\n");
    assert_eq!(next(), b"Subject: small\r\n\r\nhello\r\n");
}

#[test]
fn auto_spools_what_a_limit_blocks() {
    let sink = recording();
    let throttle = "[[policy]]\nplugin = \"builtin:throttle\"\n\
                    settings = { limits = [{ rate = \"1/3s\", burst = 1 }] }";
    let relay = Relay::start(&to(&sink).limits("direct_wait = \"20ms\"").section(throttle));
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    let begun = now_ms();
    passed(&mut client);
    let id = queued(&mut client);
    assert!(sink.wait_messages(2, PATIENCE));
    empty(&relay);
    assert_eq!(ids(&sink)[1], id);
    let second = sink.messages()[1].at_ms;
    assert!(second >= begun + 3000, "after {} ms the limit was not kept", second - begun);
    watch.finish();
}

#[test]
fn auto_spools_what_the_upstream_defers_or_passes_it_on() {
    for fault in ["end:1=451 4.3.0 not now", "rcpt:1=450 4.2.1 greylisted", "mail:1=452 4.3.1 full"]
    {
        let sink = sink(Extensions::default(), &[fault]);
        let relay = Relay::start(&to(&sink).upstream(RETRY));
        let watch = Watch::over(&relay, None);
        let id = queued(&mut relay.hello());
        arrive_once(&relay, &sink, vec![id]);
        watch.finish();
        sink.set_faults(faults_of(&[fault]));
        let relay = Relay::start(&to(&sink).upstream(RETRY).upstream("deferred = \"pass\""));
        let mut client = relay.hello();
        let words = fault.split_once('=').unwrap().1;
        assert_eq!(client.small(), words);
        passed(&mut client);
        assert_eq!(sink.counts().messages, 2, "what was passed on is not kept");
    }
}

#[test]
fn auto_spools_while_the_upstream_is_slow() {
    let sink = sink(Extensions::default(), &["end:*=delay 60"]);
    let config = Config::to(&[sink.addr()]).upstream(KNOWN).upstream("direct_budget = \"10ms\"");
    let relay = Relay::start(&config.admin());
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    // It takes some before it counts as slow.
    let mut direct = 0;
    let first = loop {
        let reply = client.small();
        if let Some(id) = reply.strip_prefix("250 2.0.0 wavegate: queued as ") {
            break id.to_owned();
        }
        direct += 1;
        assert!(direct < 10, "it never counts as slow");
    };
    let more = (0..5).map(|_| queued(&mut client));
    let mut spooled: Vec<_> = [first].into_iter().chain(more).collect();
    assert!(direct > 0 && sink.wait_messages((direct + spooled.len()) as u64, PATIENCE));
    empty(&relay);
    let mut arrived = ids(&sink).split_off(direct);
    // Ids of one millisecond are in no order.
    arrived.sort();
    spooled.sort();
    assert_eq!(arrived, spooled);
    watch.finish();
}

#[test]
fn direct_keeps_nothing() {
    let direct = "handoff = \"direct\"";
    let down = Closed::new();
    let config = Config::to(&[down.addr()]).upstream(KNOWN).upstream(direct).admin();
    let relay = Relay::start(&config);
    let mut client = relay.hello();
    let said = client.small();
    assert!(said.starts_with("451 4.4.1") && said.contains("up"), "{said}");
    assert_eq!(relay.metrics().sum("recipients_accepted_total", &[]), 0.0);
    let faults = ["end:1=451 4.3.0 not now", "end:2=421 4.3.2 bye"];
    let sink = sink(Extensions::default(), &faults);
    let throttle = "[[policy]]\nplugin = \"builtin:throttle\"\n\
                    settings = { limits = [{ rate = \"1/60s\", burst = 3 }] }";
    let config = to(&sink).upstream(direct).limits("direct_wait = \"20ms\"").section(throttle);
    let relay = Relay::start(&config);
    let mut client = relay.hello();
    assert_eq!(client.small(), "451 4.3.0 not now");
    let said = client.small();
    assert!(said.starts_with("451 4.3.2"), "421 would end the client's session: {said}");
    passed(&mut client);
    let said = client.small();
    assert!(said.starts_with("451 4.7.0"), "{said}");
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("recipients_accepted_total", &[]), 1.0);
    assert_eq!(metrics.sum("spool_recipients", &[]), 0.0);
    assert_eq!(sink.counts().messages, 1);
}
