//! The gateway: real datagrams on the loopback, a small edge, and upstreams in memory.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod edge;
mod wrong;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use wavegate::{
    config::{Congestion, LinkListener, TlsFiles, Trust},
    gateway::{self, Acceptance, Gateway, Port},
    links::{Count, GatewayLink},
    seen::Seen,
};
use wavegate_link::{ALPN, Answers, Code, Control, How};

use crate::sim::{Act, Point, Setup, Sim, Sink};
use edge::{Edge, Letter, Sent, closed, connect};

/// A relay with a gateway.
struct World {
    sim: Sim,
    legacy: Sink,
    gateway: Arc<Gateway>,
    address: SocketAddr,
    serving: JoinHandle<()>,
    directory: tempfile::TempDir,
}

fn settings() -> LinkListener {
    LinkListener {
        name: "link".into(),
        address: "127.0.0.1:0".parse().unwrap(),
        identity: TlsFiles { certificate: "mx.pem".into(), key: "mx.key".into() },
        trust: Trust::default(),
        peers: Vec::new(),
        connections: 10,
        streams: 8,
        seen: 100,
        idle_timeout: Duration::from_secs(5),
        congestion: Congestion::Cubic,
        upstreams: Vec::new(),
    }
}

/// Every certificate that the handshake took is that of `edge-1`, if any is.
fn acceptance(trusted: bool) -> Acceptance {
    let peer = Arc::new(move |_: &[_]| trusted.then(|| "edge-1".to_owned()));
    Acceptance { crypto: edge::server(), peer }
}

impl World {
    fn new(setup: &Setup) -> Self {
        let sim = setup.build();
        let legacy = sim.sink(2601);
        let directory = tempfile::tempdir().unwrap();
        let seen = Seen::open(directory.path(), 100).unwrap();
        let (gateway, address, serving) = open(&sim, &seen, directory.path());
        Self { sim, legacy, gateway, address, serving, directory }
    }

    /// The gateway ends, and another process opens one.
    async fn restart(mut self) -> Self {
        self.gateway.close();
        self.serving.await.unwrap();
        drop(self.gateway);
        let seen = Seen::open(self.directory.path(), 100).unwrap();
        let (gateway, address, serving) = open(&self.sim, &seen, self.directory.path());
        (self.gateway, self.address, self.serving) = (gateway, address, serving);
        self
    }

    fn status(&self) -> GatewayLink {
        self.gateway.status()
    }

    async fn edge(&self) -> Edge {
        Edge::connect(self.address).await
    }

    /// Waits until a message is being handed on.
    async fn begun(&self) {
        while self.status().in_progress == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn open(
    sim: &Sim,
    seen: &Arc<Seen>,
    directory: &std::path::Path,
) -> (Arc<Gateway>, SocketAddr, JoinHandle<()>) {
    let settings = settings();
    let incarnation = sim.relay.world.entropy.next().to_be_bytes().repeat(2);
    let incarnation = incarnation.try_into().unwrap();
    let acceptance = acceptance(true);
    let gateway =
        Gateway::open(&sim.relay, &settings, acceptance, seen, directory, incarnation).unwrap();
    let (address, mut sockets) = gateway::bind(settings.address, 1).unwrap();
    let port = Port { gateway: Arc::clone(&gateway), worker: 0, socket: sockets.remove(0) };
    (gateway, address, tokio::spawn(port.serve()))
}

/// How each recipient was answered, by whom, and whether that was known.
fn told(answers: &Answers, recipients: u32) -> Vec<(How, u16, bool)> {
    let of = |recipient| {
        let answer = answers.of(recipient).unwrap();
        (answer.how, answer.reply.code(), answer.known)
    };
    (0..recipients).map(of).collect()
}

const TAKEN: (How, u16, bool) = (How::NextHop, 250, false);

#[tokio::test]
async fn a_message_goes_through_and_its_answer_is_the_next_hops() {
    let world = World::new(&Setup::default());
    let mut edge = world.edge().await;
    let offer = edge.hello.offer.unwrap();
    assert_eq!((offer.recipients, offer.size), (1000, 50 << 20));
    assert_eq!(edge.hello.name, "edge-1.example.net");
    let mut letter = Letter::new(1, &["x@y.example"]);
    // Larger than a window: what came must be taken before the rest is sent.
    letter.content.extend("line of a large message\r\n".repeat(100_000).bytes());
    assert!(letter.content.len() > 2 * gateway::STREAM_WINDOW as usize);
    assert_eq!(told(&edge.send(&letter).await, 1), [TAKEN]);
    let arrived = world.legacy.arrived().remove(0);
    assert_eq!(
        (arrived.from.as_str(), &arrived.to[..]),
        ("a@globex.example", &["x@y.example".into()][..])
    );
    let content = String::from_utf8(letter.content).unwrap();
    assert!(arrived.body.ends_with(&content) && arrived.body.contains("[10.0.2.1]"));
    // By whom it came, and what he calls it.
    let wanted = ["Received", "edge: \"edge-1\"", "id: \"0000000000000001\"", "listener: \"link\""];
    assert_eq!(world.sim.log.count(&wanted), 1, "{:?}", world.sim.log.lines());
    edge.say(&Control::Ping(77)).await;
    assert_eq!(edge.hear().await, Some(Control::Pong(77)));
    let status = world.status();
    assert_eq!((status.messages, status.seen, status.connections.len()), (1, 1, 1));
    let connection = &status.connections[0];
    assert_eq!((connection.peer.as_str(), connection.edge.as_str()), ("edge-1", "edge-1.example"));
    assert_eq!(connection.path.messages, 1);
}

#[tokio::test]
async fn each_recipient_is_answered_for_itself() {
    let judge = |one: &str| match one {
        one if one.starts_with("no") => Some(550),
        one if one.starts_with("later") => Some(452),
        _ => None,
    };
    let all = ["a@x.example", "no1@x.example", "later@x.example", "b@x.example", "no2@x.example"];
    let letter = Letter::new(1, &all);
    // What is deferred stays here where that is wanted, and is refused to nobody.
    let world = World::new(&Setup { legacy: "deferred = 'spool'", ..Setup::default() });
    world.legacy.judge(judge, |_| None);
    let answers = world.edge().await.send(&letter).await;
    let (refused, stored) = ((How::NextHop, 550, false), (How::Stored, 250, false));
    assert_eq!(told(&answers, 5), [TAKEN, refused, stored, TAKEN, refused]);
    assert_eq!(world.sim.spooled(), 1, "and nothing is bounced here");
    // Else it is passed on.
    let world = World::new(&Setup { legacy: "deferred = 'pass'", ..Setup::default() });
    world.legacy.judge(judge, |_| None);
    let edge = world.edge().await;
    let later = (How::NextHop, 452, false);
    assert_eq!(told(&edge.send(&letter).await, 5), [TAKEN, refused, later, TAKEN, refused]);
    assert_eq!(world.sim.spooled(), 0);
    // It comes again for those that were not taken, and for one that was, under the same id.
    world.legacy.judge(|_| None, |_| None);
    let rest = Letter { to: vec![all[2].into(), all[3].into(), all[1].into()], ..letter };
    let known = (How::NextHop, 250, true);
    assert_eq!(told(&edge.send(&rest).await, 3), [TAKEN, known, TAKEN]);
    let to: Vec<_> = world.legacy.arrived().into_iter().map(|one| one.to).collect();
    assert_eq!(to, [vec![all[0], all[3]], vec![all[2], all[1]]]);
}

#[tokio::test]
async fn a_message_that_comes_twice_is_handed_on_once() {
    let mut world = World::new(&Setup::default());
    let letter = Letter::new(1, &["x@y.example", "z@y.example"]);
    let edge = world.edge().await;
    let known = (How::NextHop, 250, true);
    assert_eq!(told(&edge.send(&letter).await, 2), [TAKEN, TAKEN]);
    assert_eq!(told(&edge.send(&letter).await, 2), [known, known]);
    // Over another connection, and to another process.
    assert_eq!(told(&world.edge().await.send(&letter).await, 2), [known, known]);
    let before = edge.hello.incarnation;
    world = world.restart().await;
    let edge = world.edge().await;
    assert_ne!(edge.hello.incarnation, before);
    assert_eq!(told(&edge.send(&letter).await, 2), [known, known]);
    assert_eq!(world.legacy.arrived().len(), 1);
    assert_eq!(world.status().known, 2);
}

#[tokio::test]
async fn a_connection_that_is_cut_behind_the_end_costs_no_second_message() {
    let world = World::new(&Setup::default());
    world.legacy.at(Point::End, Act::after(300));
    let letter = Letter::new(1, &["x@y.example"]);
    let edge = world.edge().await;
    let sent = edge.post(&letter).await;
    world.begun().await;
    drop(sent);
    edge.cut().await;
    // Twice at once: both are given what comes of the first.
    let (one, two) = (world.edge().await, world.edge().await);
    let (one, two) = tokio::join!(one.send(&letter), two.send(&letter));
    let known = (How::NextHop, 250, true);
    assert_eq!((told(&one, 1), told(&two, 1)), (vec![known], vec![known]));
    assert_eq!(world.legacy.arrived().len(), 1);
}

#[tokio::test]
async fn what_is_in_doubt_behind_the_gateway_is_said() {
    let world = World::new(&Setup::default());
    world.legacy.at(Point::End, Act::CLOSE);
    let edge = world.edge().await;
    let letter = Letter::new(1, &["x@y.example"]);
    assert_eq!(told(&edge.send(&letter).await, 1), [(How::InDoubt, 451, false)]);
    assert_eq!(world.sim.log.count(&["InDoubt {"]), 1);
    // It is not remembered: the edge decides whether it is sent again.
    world.legacy.at(Point::End, Act::GO);
    assert_eq!(told(&edge.send(&letter).await, 1), [TAKEN]);
}

#[tokio::test]
async fn a_hand_off_that_panics_is_in_doubt_and_stays_so() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    let letter = Letter::new(1, &["x@y.example", "z@y.example"]);
    world.sim.log.at("Settled {", || panic!("a fault of the test's"));
    let doubt = (How::InDoubt, 451, false);
    assert_eq!(told(&edge.send(&letter).await, 2), [doubt, doubt]);
    assert_eq!(world.sim.log.count(&["SessionPanicked"]), 1);
    // It was delivered, as it happens. The edge is told that it may have been, and sends it again.
    let answers = edge.send(&letter).await;
    assert_eq!(told(&answers, 2), [TAKEN, TAKEN]);
    assert!((0..2).all(|recipient| answers.of(recipient).unwrap().forgetful));
    assert_eq!(told(&edge.send(&Letter::new(2, &["x@y.example"])).await, 1), [TAKEN]);
    assert_eq!(world.legacy.names(), ["1", "1", "2"]);
}

#[tokio::test]
async fn whose_mail_it_is_says_the_edge() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    // The window of acme; client and sender are globex's.
    world.sim.clock.step(31 * 60 * 1000);
    let said = |number, instance: &str| Letter {
        instance: instance.to_owned(),
        ..Letter::new(number, &["x@y.example"])
    };
    let held = (How::Stored, 250, false);
    assert_eq!(told(&edge.send(&said(1, "acme")).await, 1), [held]);
    // An instance that this plan does not have.
    assert_eq!(told(&edge.send(&said(2, "elsewhere")).await, 1), [TAKEN]);
    assert_eq!((world.sim.spooled(), world.legacy.arrived().len()), (1, 1));
}

#[tokio::test]
async fn who_is_not_known_is_not_let_in() {
    let world = World::new(&Setup::default());
    // TLS 1.3: the client has finished before it hears that its certificate was not taken.
    if let Ok((_endpoint, quic)) = connect(world.address, "stranger", ALPN).await {
        assert_eq!(closed(&quic).await, None, "TLS closes it");
    }
    assert!(connect(world.address, "client", b"wavegate-link/9").await.is_err());
    assert_eq!(count(&world.status().refused, "handshake"), 2);
    assert_eq!(world.sim.log.count(&["TlsFailed", "Certificate"]), 1);
    assert_eq!(world.sim.log.count(&["TlsFailed", "NothingInCommon"]), 1);
    // Somebody whom no configuration names.
    world.gateway.change(&settings(), acceptance(false));
    let (_endpoint, quic) = connect(world.address, "client", ALPN).await.unwrap();
    assert_eq!(closed(&quic).await, Some(Code::NotTrusted));
    assert_eq!(count(&world.status().refused, "not_trusted"), 1);
}

#[tokio::test]
async fn a_reload_judges_open_connections_again() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    world.gateway.change(&settings(), acceptance(true));
    assert_eq!(told(&edge.send(&Letter::new(1, &["x@y.example"])).await, 1), [TAKEN]);
    world.gateway.change(&settings(), acceptance(false));
    assert_eq!(closed(&edge.quic).await, Some(Code::NotTrusted));
    // Trusted again, it comes again.
    world.gateway.change(&settings(), acceptance(true));
    assert_eq!(told(&world.edge().await.send(&Letter::new(2, &["x@y.example"])).await, 1), [TAKEN]);
}

/// A message is being handed on, and that takes a while.
async fn handing_on() -> (World, Edge, Sent) {
    let world = World::new(&Setup::default());
    world.legacy.at(Point::End, Act::after(300));
    let edge = world.edge().await;
    let sent = edge.post(&Letter::new(1, &["x@y.example"])).await;
    world.begun().await;
    (world, edge, sent)
}

#[tokio::test]
async fn an_edge_that_is_called_otherwise_is_asked_to_come_again() {
    let (world, mut edge, mut sent) = handing_on().await;
    let before = edge.hello.incarnation;
    let peer = Arc::new(|_: &[_]| Some("edge-2".to_owned()));
    world.gateway.change(&settings(), Acceptance { peer, ..acceptance(true) });
    assert_eq!(edge.hear().await, Some(Control::Stopping));
    // What came under the old name is answered, and is not known under the new one, which is said.
    assert_eq!(told(&sent.answers().await.unwrap(), 1), [TAKEN]);
    assert_eq!(closed(&edge.quic).await, Some(Code::Stopping));
    let edge = world.edge().await;
    assert_ne!(edge.hello.incarnation, before);
    assert_eq!(edge.hello.incarnation, world.edge().await.hello.incarnation);
}

#[tokio::test]
async fn a_gateway_that_closes_finishes_what_has_begun() {
    let (world, mut edge, mut sent) = handing_on().await;
    world.gateway.close();
    assert_eq!(edge.hear().await, Some(Control::Stopping));
    let mut late = edge.post(&Letter::new(2, &["x@y.example"])).await;
    assert_eq!(late.answers().await, Err(Some(Code::Stopping)));
    assert!(connect(world.address, "client", ALPN).await.is_err());
    assert_eq!(told(&sent.answers().await.unwrap(), 1), [TAKEN]);
    assert_eq!(closed(&edge.quic).await, Some(Code::Stopping));
    world.serving.await.unwrap();
    assert_eq!(world.legacy.names(), ["1"]);
}

/// How often something was.
fn count(all: &[Count], what: &str) -> u64 {
    all.iter().find(|one| one.what == what).unwrap().count
}
