//! An upstream that takes its time over the final reply, or never gives it: the client is not kept
//! waiting, and a message arrives twice only where the relay said that it may.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::sync::{Arc, Mutex, mpsc};

use wavegate_tests::harness::{Config, Metrics, PATIENCE, Peer, Relay, Script, Watch, until};

/// What the upstream does with the first message, once it is told to go on.
#[derive(Clone, Copy)]
enum Late {
    Reply(&'static str),
    Close,
}

/// Senders, each with the content that came.
type Contents = Vec<(String, Vec<u8>)>;

/// An upstream whose first message waits for its reply; it takes all others at once.
struct Slow {
    script: Script,
    reached: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
    contents: Arc<Mutex<Contents>>,
}

impl Slow {
    fn start(late: Late) -> Self {
        let (reach, reached) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let contents = Arc::new(Mutex::new(Contents::new()));
        let taken = Arc::clone(&contents);
        let wait = Mutex::new(Some(wait));
        let script = Script::start(move |_, peer| {
            let _closed = serve(peer, &taken, &reach, &wait, late);
        });
        Self { script, reached, go, contents }
    }

    /// The bodies that it has taken or was given, each with its sender.
    fn contents(&self) -> Vec<(String, String)> {
        let contents = self.contents.lock().unwrap();
        let text = |content: &[u8]| String::from_utf8(content.to_vec()).unwrap();
        contents.iter().map(|(from, content)| (from.clone(), text(content))).collect()
    }
}

type Wait = Mutex<Option<mpsc::Receiver<()>>>;

fn serve(
    peer: &mut Peer,
    taken: &Mutex<Contents>,
    reach: &mpsc::Sender<()>,
    wait: &Wait,
    late: Late,
) -> Option<()> {
    peer.greet(&[])?;
    loop {
        let mut from = String::new();
        loop {
            let line = peer.line()?;
            match line.get(..4)? {
                "DATA" => break,
                "MAIL" => line["MAIL FROM:".len()..].clone_into(&mut from),
                _ => {}
            }
            peer.say("250 2.0.0 ok\r\n");
        }
        peer.say("354 go on\r\n");
        let content = peer.content()?;
        taken.lock().unwrap().push((from, content));
        let first = wait.lock().unwrap().take();
        let Some(first) = first else {
            peer.say("250 2.0.0 taken\r\n");
            continue;
        };
        reach.send(()).ok()?;
        first.recv_timeout(PATIENCE).ok()?;
        match late {
            Late::Reply(words) => peer.say(format!("{words}\r\n")),
            Late::Close => return None,
        }
    }
}

fn config(upstream: &Slow) -> Config {
    Config::to(&[upstream.script.addr()])
        .upstream("extensions = [\"8BITMIME\"]\nretry_first = \"50ms\"\nretry_max = \"100ms\"")
        .limits("direct_deadline = \"300ms\"")
        .relay("received = false")
        .admin()
}

fn in_state(metrics: &Metrics, state: &str) -> f64 {
    metrics.sum("spool_recipients", &[&format!("state=\"{state}\"")])
}

fn empty(relay: &Relay) {
    relay.wait_metrics("the spool is empty", |metrics| metrics.sum("spool_recipients", &[]) == 0.0);
}

/// A message whose final reply is late: the client gets 250, the spool has it as one in doubt.
fn hang(relay: &Relay, upstream: &Slow) -> String {
    let mut client = relay.hello();
    client.begin_data();
    client.send("Subject: small\r\n\r\nhello\r\n.\r\n");
    upstream.reached.recv_timeout(PATIENCE).unwrap();
    let reply = client.reply();
    let id =
        reply.strip_prefix("250 2.0.0 wavegate: queued as ").unwrap_or_else(|| panic!("{reply}"));
    relay.wait_metrics("one is in doubt", |metrics| in_state(metrics, "in_doubt") == 1.0);
    id.to_owned()
}

fn is_said_to_come_twice(relay: &Relay, id: &str) {
    let log = relay.log();
    let said = log.lines().any(|line| line.contains("may arrive twice") && line.contains(id));
    assert!(said, "{log}");
}

#[test]
fn a_late_250_delivers_it_once() {
    let upstream = Slow::start(Late::Reply("250 2.0.0 at last"));
    let relay = Relay::start(&config(&upstream));
    let watch = Watch::over(&relay, None);
    hang(&relay, &upstream);
    upstream.go.send(()).unwrap();
    empty(&relay);
    let metrics = watch.finish();
    assert_eq!(metrics.sum("recipients_ended_total", &["\"delivered\""]), 1.0);
    assert_eq!(metrics.sum("in_doubt_total", &[]), 0.0);
    assert_eq!(upstream.contents().len(), 1);
}

#[test]
fn a_late_550_bounces_it() {
    let upstream = Slow::start(Late::Reply("550 5.7.1 not wanted after all"));
    let relay = Relay::start(&config(&upstream));
    let watch = Watch::over(&relay, None);
    hang(&relay, &upstream);
    upstream.go.send(()).unwrap();
    until("the bounce", || (upstream.contents().len() == 2).then_some(()));
    empty(&relay);
    let (from, bounce) = upstream.contents().remove(1);
    assert!(from.starts_with("<>"), "{from}");
    for words in ["Status: 5.7.1", "not wanted after all", "customer@example.org"] {
        assert!(bounce.contains(words), "{words}: {bounce}");
    }
    let metrics = watch.finish();
    assert_eq!(metrics.sum("recipients_ended_total", &["\"bounced\""]), 1.0);
    assert_eq!(metrics.sum("in_doubt_total", &[]), 0.0);
}

#[test]
fn a_late_451_has_it_tried_again() {
    let upstream = Slow::start(Late::Reply("451 4.3.0 not now"));
    let relay = Relay::start(&config(&upstream));
    let watch = Watch::over(&relay, None);
    hang(&relay, &upstream);
    upstream.go.send(()).unwrap();
    until("it comes again", || (upstream.contents().len() == 2).then_some(()));
    empty(&relay);
    let contents = upstream.contents();
    assert_eq!(contents[0], contents[1], "the same bytes");
    let metrics = watch.finish();
    assert_eq!(metrics.sum("recipients_ended_total", &["\"delivered\""]), 1.0);
    assert_eq!(metrics.sum("in_doubt_total", &[]), 0.0, "it was answered");
}

#[test]
fn a_reply_that_is_lost_has_it_tried_again_and_says_so() {
    let upstream = Slow::start(Late::Close);
    let relay = Relay::start(&config(&upstream));
    let watch = Watch::over(&relay, None);
    let id = hang(&relay, &upstream);
    upstream.go.send(()).unwrap();
    until("it comes again", || (upstream.contents().len() == 2).then_some(()));
    empty(&relay);
    let contents = upstream.contents();
    assert_eq!(contents[0], contents[1], "the same bytes");
    let metrics = watch.finish();
    assert_eq!(metrics.sum("in_doubt_total", &[]), 1.0);
    assert_eq!(metrics.sum("recipients_ended_total", &["\"delivered\""]), 1.0);
    is_said_to_come_twice(&relay, &id);
}

#[test]
fn what_is_in_doubt_at_a_crash_is_said_to_be() {
    let upstream = Slow::start(Late::Close);
    let mut relay = Relay::start(&config(&upstream));
    let id = hang(&relay, &upstream);
    relay.crash();
    relay.restart();
    let watch = Watch::over(&relay, None);
    until("it comes again", || (upstream.contents().len() == 2).then_some(()));
    empty(&relay);
    let metrics = watch.finish();
    assert_eq!(metrics.sum("in_doubt_total", &[]), 1.0);
    is_said_to_come_twice(&relay, &id);
}

#[test]
fn a_restart_in_order_does_not_wait_for_ever_and_says_what_is_in_doubt() {
    let upstream = Slow::start(Late::Close);
    let mut relay = Relay::start(&config(&upstream).limits("shutdown_timeout = \"300ms\""));
    let id = hang(&relay, &upstream);
    assert_eq!(relay.terminate().code(), Some(0));
    relay.restart();
    until("it comes again", || (upstream.contents().len() == 2).then_some(()));
    empty(&relay);
    assert_eq!(relay.metrics().sum("in_doubt_total", &[]), 1.0);
    is_said_to_come_twice(&relay, &id);
}
