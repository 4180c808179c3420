//! Edges that do not keep to the protocol, or want more than there is: each is told what is wrong,
//! and the rest of its connection goes on.

use std::time::Duration;

use wavegate_link::{
    ALPN, Code, Control, How,
    frame::{Header, Kind},
    message::{data, write_end},
};

use super::{
    Edge, Letter, Setup, TAKEN, World, acceptance, closed, connect, count, edge::connect_from,
    settings, told,
};
use crate::sim::{Act, Point};
use wavegate::{config::LinkListener, gateway};

fn letter() -> Letter {
    Letter::new(1, &["x@y.example"])
}

fn header(kind: Kind, length: u32) -> Vec<u8> {
    Header { kind, length }.bytes().to_vec()
}

/// Bytes of a stream that are no message, and what they are refused with.
fn wrong_streams() -> Vec<(&'static str, Vec<u8>, Code)> {
    let letter = letter();
    let size = letter.content.len();
    let end = |size: usize| {
        let mut out = Vec::new();
        write_end(size as u64, &mut out);
        out
    };
    let with = |rest: Vec<u8>| [letter.beginning(), rest].concat();
    let mut no_name = letter.envelope();
    no_name[5] = b'-';
    let long = u32::try_from(size + 1).unwrap();
    vec![
        ("nothing", vec![], Code::Protocol),
        ("half a header", vec![16, 0], Code::Protocol),
        ("no END", with(vec![]), Code::Protocol),
        ("END of another size", with(end(size - 1)), Code::Protocol),
        ("END too soon", [letter.envelope(), end(size)].concat(), Code::Protocol),
        ("END at once", end(0), Code::Protocol),
        ("DATA before ENVELOPE", [data(3).to_vec(), b"abc".to_vec()].concat(), Code::Protocol),
        ("ENVELOPE twice", with(letter.envelope()), Code::Protocol),
        ("an unknown frame", vec![99, 0, 0, 0, 1, 0], Code::Protocol),
        ("a frame of the other side", header(Kind::Answer, 3), Code::Protocol),
        ("a word of the control stream", header(Kind::Ping, 8), Code::Protocol),
        ("no envelope", [header(Kind::Envelope, 4), vec![1, 2, 3, 4]].concat(), Code::Protocol),
        ("an id that is none", no_name, Code::Protocol),
        ("a huge ENVELOPE", header(Kind::Envelope, u32::MAX), Code::TooLarge),
        (
            "more DATA than announced",
            [letter.envelope(), header(Kind::Data, long)].concat(),
            Code::TooLarge,
        ),
        ("empty DATA", [letter.envelope(), header(Kind::Data, 0)].concat(), Code::Protocol),
        ("a long END", with(header(Kind::End, 9)), Code::TooLarge),
    ]
}

#[tokio::test]
async fn each_wrong_stream_is_refused_by_name_and_the_others_go_on() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    let mut open = Vec::new();
    for (number, (what, bytes, code)) in (100..).zip(wrong_streams()) {
        let mut sent = edge.begin(&bytes, 1).await;
        sent.send.finish().unwrap();
        assert_eq!(sent.answers().await, Err(Some(code)), "{what}");
        // The same, and not finished: what is wrong is told at once, what is missing is waited for.
        let cut_off = ["nothing", "half a header", "no END"].contains(&what);
        if cut_off {
            open.push(edge.begin(&bytes, 1).await);
        }
        let good = Letter::new(number, &["x@y.example"]);
        assert_eq!(told(&edge.send(&good).await, 1), [TAKEN], "{what}");
    }
    assert_eq!(world.legacy.arrived().len(), wrong_streams().len());
    let status = world.status();
    let errors = |what| count(&status.errors, what);
    assert_eq!((errors("protocol"), errors("too-large")), (14, 3));
    // What is open stays so; the others count until their answers have come.
    while world.status().connections[0].path.streams != open.len() as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn too_many_recipients_and_too_large_a_message() {
    let limits = "recipients = 100\nmessage_size = '64KiB'";
    let world = World::new(&Setup { limits, ..Setup::default() });
    let edge = world.edge().await;
    let many = Letter::new(1, &["a@y.example"; 101]);
    assert_eq!(edge.post(&many).await.answers().await, Err(Some(Code::TooLarge)));
    let mut large = Letter::new(2, &["a@y.example"]);
    large.content = b"a: b\r\n\r\n".repeat(20_000);
    assert_eq!(told(&edge.send(&large).await, 1), [(How::Gateway, 552, false)]);
    assert_eq!(told(&edge.send(&Letter::new(3, &["a@y.example"])).await, 1), [TAKEN]);
}

#[tokio::test]
async fn content_that_smtp_forbids_is_answered_as_by_bdat() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    for (number, content) in (1..).zip(["a: b\r\n\r\nbare\nfeed\r\n", "a: b\r\n\r\nn\0l\r\n"]) {
        let letter = Letter { content: content.into(), ..Letter::new(number, &["x@y.example"]) };
        assert_eq!(told(&edge.send(&letter).await, 1), [(How::Gateway, 550, false)]);
    }
    assert_eq!(world.sim.log.count(&["MessageRejected"]), 2);
    // What looks like SMTP is content.
    let content = b"a: b\r\n\r\n.\r\nMAIL FROM:<>\r\n.\r\n..\r\n".to_vec();
    let letter = Letter { content, ..Letter::new(9, &["x@y.example"]) };
    assert_eq!(told(&edge.send(&letter).await, 1), [TAKEN]);
    assert!(world.legacy.arrived()[0].body.ends_with("\r\n\r\n.\r\nMAIL FROM:<>\r\n.\r\n..\r\n"));
}

#[tokio::test]
async fn a_stream_that_never_ends_is_given_up_in_time() {
    let world = World::new(&Setup { limits: "data_timeout = '1s'", ..Setup::default() });
    let edge = world.edge().await;
    let beginnings =
        [letter().envelope()[..20].to_vec(), letter().envelope(), letter().beginning()];
    let mut open = Vec::new();
    for beginning in &beginnings {
        open.push(edge.begin(beginning, 1).await);
    }
    assert_eq!(told(&edge.send(&Letter::new(2, &["x@y.example"])).await, 1), [TAKEN]);
    for sent in &mut open {
        assert_eq!(sent.answers().await, Err(Some(Code::Timeout)));
    }
    assert_eq!(count(&world.status().errors, "timeout"), 3);
    assert_eq!(told(&edge.send(&letter()).await, 1), [TAKEN], "nothing of it counted");
}

#[tokio::test]
async fn a_flood_of_streams_waits_for_its_turn_and_holds_bounded_memory() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    let budget = &world.sim.relay.budget;
    let before = budget.used();
    let mut large = letter();
    large.content = b"a: b\r\n\r\n".repeat(1 << 20);
    let half = large.beginning()[..large.content.len() / 2].to_vec();
    let mut open = Vec::new();
    for _ in 0..settings().streams - 1 {
        open.push(edge.begin(&half, 1).await);
    }
    assert_eq!(told(&edge.send(&Letter::new(2, &["x@y.example"])).await, 1), [TAKEN]);
    open.push(edge.begin(&half, 1).await);
    // Beyond that one has to wait until others are over.
    let patience = Duration::from_millis(200);
    while let Ok(one) = tokio::time::timeout(patience, edge.begin(&half, 1)).await {
        open.push(one);
        assert!(open.len() <= settings().streams as usize + 2, "beyond `streams`");
    }
    // What is beyond the memory for one message is in files.
    let used = budget.used() - before;
    assert!(used < open.len() * (2 << 20), "{used} bytes for halves of 4 MiB each");
    let code = Code::Cancelled.number();
    open.iter_mut().for_each(|one| one.send.reset(code.into()).unwrap());
    assert_eq!(told(&edge.send(&Letter::new(3, &["x@y.example"])).await, 1), [TAKEN]);
}

#[tokio::test]
async fn without_memory_a_message_is_answered_before_it_is_whole() {
    let world = World::new(&Setup::default());
    let edge = world.edge().await;
    world.sim.relay.budget.resize(Some(1));
    let mut sent = edge.begin(&letter().beginning(), 1).await;
    let answers = sent.answers().await.unwrap();
    assert_eq!(told(&answers, 1), [(How::Gateway, 452, false)]);
    let stopped = sent.send.stopped().await.unwrap().map(u64::from);
    assert_eq!(stopped, Some(Code::Busy.number().into()));
    assert_eq!(world.status().turned_away, 1);
    assert!(connect(world.address, "client", ALPN).await.is_err(), "and nobody is let in");
    assert_eq!(count(&world.status().refused, "memory"), 1);
    world.sim.relay.budget.resize(None);
    assert_eq!(told(&edge.send(&letter()).await, 1), [TAKEN]);
}

#[tokio::test]
async fn without_memory_too_nobody_hears_that_a_message_was_not_sent_on_which_is() {
    let world = World::new(&Setup::default());
    world.legacy.at(Point::End, Act::after(300));
    let (first, second) = (world.edge().await, world.edge().await);
    let sent = first.post(&letter()).await;
    world.begun().await;
    world.sim.relay.budget.resize(Some(1));
    let known = (How::NextHop, 250, true);
    assert_eq!(told(&second.send(&letter()).await, 1), [known], "it is under way");
    assert_eq!(told(&second.send(&letter()).await, 1), [known], "it was sent on");
    assert_eq!((world.legacy.arrived().len(), world.status().turned_away), (1, 0));
    drop(sent);
}

#[tokio::test]
async fn connections_are_counted() {
    let world = World::new(&Setup::default());
    let mut edges = Vec::new();
    for _ in 0..settings().connections {
        edges.push(world.edge().await);
    }
    assert!(connect(world.address, "client", ALPN).await.is_err());
    assert_eq!(count(&world.status().refused, "too_many"), 1);
    let held = world.sim.relay.budget.used();
    assert!(held >= settings().connections * gateway::WINDOW as usize, "each is charged for");
    let gone: Edge = edges.remove(0);
    gone.cut().await;
    while world.status().connections.len() == settings().connections {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let edge = world.edge().await;
    assert_eq!(told(&edge.send(&letter()).await, 1), [TAKEN]);
}

/// Whoever does nothing but stand at the door takes half of the places, and keeps nobody out.
#[tokio::test]
async fn one_client_does_not_take_all_places_for_handshakes() {
    let world = World::new(&Setup::default());
    world.gateway.change(&LinkListener { connections: 1000, ..settings() }, acceptance(true));
    let mut standing = Vec::new();
    // Some at a time, and then one after the other: none of them stands there for longer than it may.
    while standing.len() < gateway::HANDSHAKES / 2 {
        let some = (0..8).map(|_| connect(world.address, "client", ALPN));
        let mut some = some.map(tokio::spawn).collect::<Vec<_>>();
        for one in &mut some {
            standing.push(one.await.unwrap().unwrap());
        }
    }
    while let Ok(one) = connect(world.address, "client", ALPN).await {
        standing.push(one);
        assert!(standing.len() <= gateway::HANDSHAKES, "no end of them");
    }
    for host in 2..12 {
        let other = connect_from([127, 0, 0, host], world.address, "client", ALPN).await;
        assert!(other.is_ok(), "another one is let in");
    }
    assert!(connect(world.address, "client", ALPN).await.is_err());
    assert_eq!(count(&world.status().refused, "handshakes"), 2);
    drop(standing);
}

#[tokio::test]
async fn the_control_stream_begins_with_hello_and_takes_no_other_words() {
    let world = World::new(&Setup::default());
    let (_endpoint, quic) = connect(world.address, "client", ALPN).await.unwrap();
    let (mut send, _recv) = quic.open_bi().await.unwrap();
    send.write_all(&letter().bytes()).await.unwrap();
    assert_eq!(closed(&quic).await, Some(Code::Protocol));
    assert_eq!(count(&world.status().refused, "hello"), 1);
    let mut edge = world.edge().await;
    edge.say(&Control::Stopping).await;
    assert_eq!(closed(&edge.quic).await, Some(Code::Protocol));
}
