//! Edges that do to a gateway what nobody should: each is refused with an error that has a name, costs
//! little, and the rest of the link goes on.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::ConnectionError;
use tokio::task::JoinHandle;
use wavegate_link::{ALPN, Code, Control, limits, message::write_end};
use wavegate_tests::harness::{
    Coming, Config, Edge, Letter, Outcome, PATIENCE, Relay, alert, aside, closed_with, frame_of,
    link_files, on_link, outcome, recording, until,
};
use wavegate_tests::sink::SinkHandle;

/// What the gateway may grow by, whatever it is sent: half a dozen connections, each with what it may
/// have on its way (4 MiB), and 19 envelopes of 2 MiB, for a moment with the half that they grew from.
const GROWTH: u64 = 96 << 20;
/// And by handshakes that nobody goes on with: 32 of each worker, before peers have to show that their
/// addresses are theirs.
const HALVES: u64 = 24 << 20;

const PROTOCOL: Outcome = Outcome::Reset(Code::Protocol as u64);
const TOO_LARGE: Outcome = Outcome::Reset(Code::TooLarge as u64);
const BUSY: Outcome = Outcome::Reset(Code::Busy as u64);
const TIMEOUT: Outcome = Outcome::Reset(Code::Timeout as u64);

/// A gateway, its next hop, and how it is told.
struct Site {
    relay: Relay,
    sink: SinkHandle,
    before: u64,
}

fn config(sink: &SinkHandle, limits: &str, lines: &str, link: &str) -> String {
    let listener = format!(
        "[[listener]]\nname = \"wan\"\ntype = \"link\"\naddress = \"127.0.0.1:0\"\n{lines}\n\
         link = {{ certificate = \"gateway.pem\", key = \"gateway.key\", ca = \"ca.pem\"{link} }}"
    );
    Config::to(&[sink.addr()]).admin().limits(limits).section(&listener).to_string()
}

impl Site {
    fn start(limits: &str, lines: &str) -> Self {
        let sink = recording();
        let config = config(&sink, limits, lines, "");
        let files = link_files();
        let files: Vec<_> = files.iter().map(|(name, bytes)| (&**name, &**bytes)).collect();
        let relay = Relay::start_with(&config, &files);
        let mut site = Self { relay, sink, before: 0 };
        // What its next hop offers is learned: it would send edges away to tell them of it.
        until("the offer of the next hop", || site.edge().offer.dsn.then_some(()));
        // What is made once is made.
        site.edge().small();
        site.before = site.relay.memory();
        site
    }

    fn addr(&self) -> SocketAddr {
        self.relay.listener("wan")
    }

    fn edge(&self) -> Edge {
        Coming::default().greeted(self.addr())
    }

    /// A new edge and this one are served, and nothing has fallen over.
    fn assert_serves(&mut self, other: &Edge) {
        let before = self.sink.counts().messages;
        other.small();
        self.edge().small();
        assert_eq!(self.sink.counts().messages, before + 2);
        assert_eq!(self.relay.metrics().value("session_panics_total"), 0.0);
        self.relay.assert_alive();
        assert!(!self.relay.log().contains("panicked"));
        let grown = self.relay.memory().saturating_sub(self.before);
        assert!(grown < GROWTH, "{} MiB more than before", grown >> 20);
    }

    fn refusals(&self) -> f64 {
        self.relay.metrics().sum("tls_failures_total", &["listener=\"wan\""])
    }
}

/// A frame that says it is so long.
fn lying(kind: u8, length: u32, content: &[u8]) -> Vec<u8> {
    [&[kind][..], &length.to_be_bytes(), content].concat()
}

#[test]
fn who_is_not_trusted_is_refused_and_the_others_go_on() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    // Alerts of TLS (RFC 8446 6.2): a certificate is required, its authority is unknown, it has
    // expired, it is of no use here.
    let table: [(_, &[u64]); 4] = [
        (None, &[116]),
        (Some("stranger"), &[48]),
        (Some("expired"), &[45]),
        (Some("nameless"), &[42, 46]),
    ];
    for (number, (certificate, alerts)) in table.into_iter().enumerate() {
        let why = Coming { certificate, ..Coming::default() }.refused(site.addr());
        let said = alert(&why).is_some_and(|alert| alerts.contains(&alert));
        assert!(said, "{certificate:?}: {why}");
        let count = f64::from(u32::try_from(number).unwrap() + 1);
        until("it is counted", || (site.refusals() == count).then_some(()));
        site.assert_serves(&honest);
    }
}

#[test]
fn a_revoked_edge_is_sent_away_at_a_reload() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    let coming = Coming { certificate: Some("revoked"), ..Coming::default() };
    let revoked = coming.greeted(site.addr());
    revoked.small();
    let stricter = config(&site.sink, "", "", ", crl = \"crl.pem\"");
    site.relay.write("relay.toml", stricter);
    site.relay.reload();
    let why = on_link("the end of its connection", revoked.quic.closed());
    assert_eq!(closed_with(&why), Some(Code::NotTrusted as u64), "{why}");
    let why = coming.refused(site.addr());
    assert_eq!(alert(&why), Some(44), "{why}");
    // The one that is still trusted has the same connection.
    assert_eq!(honest.quic.close_reason(), None);
    site.assert_serves(&honest);
}

#[test]
fn another_protocol_has_nothing_in_common() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    let named = |names: &[&[u8]]| names.iter().map(|name| name.to_vec()).collect();
    let others: [Vec<Vec<u8>>; 4] =
        [named(&[b"wavegate-link/2"]), named(&[b"h3"]), named(&[b"WAVEGATE-LINK/1"]), vec![]];
    for alpn in others {
        let why = Coming { alpn, ..Coming::default() }.refused(site.addr());
        assert_eq!(alert(&why), Some(120), "{why}");
    }
    // Who speaks several has one in common.
    let alpn = named(&[b"wavegate-link/2", ALPN]);
    Coming { alpn, ..Coming::default() }.greeted(site.addr()).small();
    site.assert_serves(&honest);
}

#[test]
fn frames_that_lie_end_their_stream_and_no_other() {
    let mut site = Site::start("", "");
    let (hostile, honest) = (site.edge(), site.edge());
    let count = site.sink.counts().messages;
    let whole = Letter::default().wire();
    let ten = || Letter { size: 10, ..Letter::default() };
    let with = |rest: &[u8]| [ten().envelope(), rest.to_vec()].concat();
    let end = |size| {
        let mut end = Vec::new();
        write_end(size, &mut end);
        end
    };
    let mut other_size = Letter::default().envelope();
    let at = other_size.windows(5).position(|five| five == b"SIZE=").unwrap() + 5;
    other_size[at] ^= 1;
    let past = u32::try_from(limits::ENVELOPE).unwrap() + 1;
    let table = [
        ("an unknown frame", lying(99, 0, b""), PROTOCOL),
        ("another protocol", b"EHLO client.example\r\n".to_vec(), PROTOCOL),
        ("a word of the control stream", lying(2, 8, &[0; 8]), PROTOCOL),
        ("content without an envelope", frame_of(b"Hello"), PROTOCOL),
        ("an end without a beginning", end(0), PROTOCOL),
        ("an envelope beyond its bound", lying(16, past, b""), TOO_LARGE),
        ("an envelope of 4 GiB", lying(16, u32::MAX, &[b'a'; 1000]), TOO_LARGE),
        ("an envelope of zeros", lying(16, 200, &[0; 200]), PROTOCOL),
        ("an envelope that says less than is in it", with_length(&whole, -1), PROTOCOL),
        ("an envelope that says more than is in it", with_length(&whole, 1), PROTOCOL),
        ("two envelopes", with(&ten().envelope()), PROTOCOL),
        ("two sizes", other_size, PROTOCOL),
        ("content of 4 GiB", with(&lying(17, u32::MAX, b"Hello")), TOO_LARGE),
        ("one byte too many", with(&frame_of(b"Hello world")), TOO_LARGE),
        ("no content in a frame", with(&frame_of(b"")), PROTOCOL),
        ("less content than announced", with(&[frame_of(b"Hello"), end(5)].concat()), PROTOCOL),
        ("another size at the end", with(&[frame_of(b"Hello worl"), end(9)].concat()), PROTOCOL),
        ("an end that is too long", with(&lying(18, 9, &[0; 9])), TOO_LARGE),
        ("nothing", Vec::new(), PROTOCOL),
        ("half a frame", whole[..20].to_vec(), PROTOCOL),
        ("all but the last byte", whole[..whole.len() - 1].to_vec(), PROTOCOL),
    ];
    for (what, wire, wanted) in table {
        assert_eq!(hostile.say(&wire, true), wanted, "{what}");
    }
    assert_eq!(site.sink.counts().messages, count, "something of it was handed on");
    // It may still send what is right.
    hostile.small();
    site.assert_serves(&honest);
}

/// A message whose ENVELOPE says so many bytes more.
fn with_length(whole: &[u8], more: i32) -> Vec<u8> {
    let length = u32::from_be_bytes(whole[1..5].try_into().unwrap());
    let length = length.checked_add_signed(more).unwrap();
    [&whole[..1], &length.to_be_bytes(), &whole[5..]].concat()
}

#[test]
fn what_is_unknown_or_wrong_in_a_message_is_answered() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    // A TLS suite of a later version.
    let unknown = Letter { secured: Some((255, true)), ..Letter::default() };
    assert_eq!(honest.say(&unknown.wire(), true).reply(), Some(250));
    // Content is judged as what comes by BDAT.
    let letter = |content: &[u8]| Letter {
        size: content.len() as u64,
        content: content.to_vec(),
        ..Letter::default()
    };
    for wrong in [&b"Subject: x\r\n\r\nNUL\0\r\n"[..], b"Subject: x\r\n\r\nbare\nline\r\n"] {
        let outcome = honest.say(&letter(wrong).wire(), true);
        assert_eq!(outcome.reply(), Some(550), "{outcome:?}");
    }
    let smuggled = b"Subject: x\r\n\r\n.\r\nMAIL FROM:<c@example.com>\r\n.\r\n";
    let count = site.sink.counts().messages;
    assert_eq!(honest.say(&letter(smuggled).wire(), true).reply(), Some(250));
    assert_eq!(site.sink.counts().messages, count + 1);
    // More than is taken: refused, before it has come.
    let huge = Letter { size: u64::MAX, ..Letter::default() };
    let outcome = honest.say(&huge.envelope(), false);
    assert!(outcome == TOO_LARGE || outcome.reply() == Some(552), "{outcome:?}");
    site.assert_serves(&honest);
}

#[test]
fn wrong_words_on_the_control_stream_close_the_connection() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    let said = |wire: Vec<u8>| {
        let mut edge = site.edge();
        on_link("a word", edge.control.0.write_all(&wire)).unwrap();
        closed_with(&on_link("the end", edge.quic.closed()))
    };
    for wire in [lying(3, 8, &[0; 8]), lying(4, 0, b""), lying(2, 7, &[0; 7]), lying(99, 0, b"")] {
        assert_eq!(said(wire), Some(Code::Protocol as u64));
    }
    assert_eq!(said(lying(2, u32::MAX, b"")), Some(Code::TooLarge as u64));
    // No HELLO at first, or one that is none.
    for (first, code) in [
        (Letter::default().wire(), Code::Protocol),
        (lying(1, 3, b"\0\x01a"), Code::Protocol),
        (lying(1, 1025, b""), Code::TooLarge),
    ] {
        let quic = Coming::default().connect(site.addr()).unwrap();
        let (mut send, _recv) = on_link("a stream", quic.open_bi()).unwrap();
        on_link("a word", send.write_all(&first)).unwrap();
        let why = on_link("the end", quic.closed());
        assert_eq!(closed_with(&why), Some(code as u64), "{why}");
    }
    site.assert_serves(&honest);
}

#[test]
fn who_says_nothing_and_who_does_not_listen_is_closed_in_time() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    // One is there and never says HELLO. Another greets, asks and asks, and reads no answer: some
    // fit on their way to it.
    let silent = Coming::default().connect(site.addr()).unwrap();
    let mut deaf = Coming { window: 256, ..Coming::default() }.greeted(site.addr());
    let mut pings = Vec::new();
    (0..4096).for_each(|token| Control::Ping(token).write(&mut pings));
    let quic = deaf.quic.clone();
    let asking = aside(async move { while deaf.control.0.write_all(&pings).await.is_ok() {} });
    let why = on_link("the end of the silent one", silent.closed());
    assert_eq!(closed_with(&why), Some(Code::Timeout as u64), "{why}");
    on_link("the end of the deaf one", asking).unwrap();
    let why = on_link("its reason", quic.closed());
    assert_eq!(closed_with(&why), Some(Code::Timeout as u64), "{why}");
    site.assert_serves(&honest);
}

#[test]
fn streams_that_never_end_are_ended_in_time() {
    let mut site = Site::start("data_timeout = \"1s\"", "");
    let (hostile, honest) = (site.edge(), site.edge());
    let envelope = lying(16, 2 << 20, &[b'a'; 30_000]);
    let content = [Letter { size: 1000, ..Letter::default() }.envelope(), frame_of(b"He")].concat();
    let begun: Vec<_> = (0..100)
        .map(|number| {
            let wire = match number % 4 {
                0 => &envelope[..],
                1 => &content,
                2 => &content[..3],
                // Everything but the end.
                _ => &content[..content.len() - 1],
            };
            on_link("a stream", hostile.begin(wire, false)).unwrap()
        })
        .collect();
    honest.small();
    for (send, recv) in begun {
        assert_eq!(on_link("the end of a stream", outcome(recv)), TIMEOUT);
        drop(send);
    }
    assert_eq!(hostile.quic.close_reason(), None);
    hostile.small();
    site.assert_serves(&honest);
}

/// Opens as many streams as the gateway gives leave for, and sends half an envelope on each of them.
fn flood(edge: &Edge) -> Vec<JoinHandle<Outcome>> {
    let half = Arc::new(lying(16, 2 << 20, &vec![b'a'; 1 << 20]));
    let mut flooding = Vec::new();
    loop {
        let opened = on_link("a stream", async {
            tokio::select! {
                biased;
                stream = edge.quic.open_bi() => Some(stream.unwrap()),
                // As soon as leave would have to be waited for there is none.
                () = std::future::ready(()) => None,
            }
        });
        let Some((mut send, recv)) = opened else { return flooding };
        let half = Arc::clone(&half);
        // As edges do, it listens while it writes: who waits for room on the connection hears only
        // then that his stream is stopped.
        flooding.push(aside(async move {
            let writing = async {
                let _stopped = send.write_all(&half).await;
                std::future::pending().await
            };
            tokio::select! {
                outcome = outcome(recv) => outcome,
                never = writing => never,
            }
        }));
        assert!(flooding.len() < 2000, "there is no bound");
    }
}

#[test]
fn floods_of_streams_hold_no_more_than_a_connection_may() {
    let mut site = Site::start("data_timeout = \"2s\"", "streams = 16");
    let (hostile, honest) = (site.edge(), site.edge());
    let flooding = flood(&hostile);
    // QUIC gives them back in eighths, so a few more are let in.
    assert!((8..=19).contains(&flooding.len()), "{} streams at once", flooding.len());
    for _ in 0..20 {
        honest.small();
    }
    site.assert_serves(&honest);
    for stream in flooding {
        assert_eq!(on_link("the end of a stream", stream).unwrap(), TIMEOUT);
    }
    hostile.small();
    site.assert_serves(&honest);
}

#[test]
fn floods_from_many_edges_stay_within_the_memory() {
    // What the allocator keeps comes on top of it (`limits.memory_total` in the README).
    const TOTAL: u64 = 160 << 20;
    const MARGIN: u64 = 64 << 20;
    let limits = format!("memory_total = {TOTAL}\ndata_timeout = \"3s\"");
    let mut site = Site::start(&limits, "streams = 60");
    site.relay.wait_metrics("the base is known", |metrics| {
        metrics.value("memory_charged_bytes{use=\"base\"}") > 0.0
    });
    let honest = site.edge();
    let hostile: Vec<_> = (0..5).map(|_| site.edge()).collect();
    let flooding: Vec<_> = hostile.iter().flat_map(flood).collect();
    // Most are answered or run out of time; what a sender then still waits for is its own affair.
    until("most have ended", || {
        assert!(site.relay.memory() < TOTAL + MARGIN, "{} MiB", site.relay.memory() >> 20);
        let ended = flooding.iter().filter(|stream| stream.is_finished()).count();
        (ended > flooding.len() * 9 / 10).then_some(())
    });
    hostile.iter().for_each(|edge| edge.quic.close(0u32.into(), b""));
    let mut refused = 0;
    for stream in flooding {
        let outcome = on_link("the end of a stream", stream).unwrap();
        refused += usize::from(outcome == BUSY);
        let ends = outcome == TIMEOUT || outcome == Outcome::Closed(None);
        assert!(ends || outcome == BUSY, "{outcome:?}");
    }
    assert!(refused > 0, "there was room for all of it");
    until("there is room again", || {
        (honest.say(&Letter::default().wire(), true).reply() == Some(250)).then_some(())
    });
    site.before = TOTAL;
    site.assert_serves(&honest);
}

#[test]
fn streams_that_are_opened_and_reset_cost_nothing() {
    let mut site = Site::start("", "");
    let (hostile, honest) = (site.edge(), site.edge());
    let letter = Letter { size: 1000, ..Letter::default() }.envelope();
    for number in 0..5000 {
        let wire = if number % 2 == 0 { &letter[..] } else { &letter[..7] };
        on_link("a stream", async {
            let (mut send, mut recv) = hostile.begin(wire, false).await.unwrap();
            send.reset(0u32.into()).unwrap();
            recv.stop(0u32.into()).unwrap();
        });
        if number % 1000 == 0 {
            honest.small();
        }
    }
    hostile.small();
    site.assert_serves(&honest);
}

#[test]
fn connections_beyond_the_bound_are_refused_and_the_others_go_on() {
    let mut site = Site::start("", "connections = 3");
    // The one that was there at the start has gone.
    let honest = site.edge();
    let second = site.edge();
    let refused = until("one too many is refused", || {
        match Coming::default().connect(site.addr()) {
            // The place of one that is gone is free before it is known to be.
            Ok(third) => {
                std::mem::forget(third);
                None
            }
            Err(ConnectionError::ConnectionClosed(close)) => Some(u64::from(close.error_code)),
            Err(error) => panic!("{error}"),
        }
    });
    // CONNECTION_REFUSED (RFC 9000 20.1).
    assert_eq!(refused, 2);
    honest.small();
    second.quic.close(0u32.into(), b"");
    until("there is room again", || Coming::default().connect(site.addr()).ok());
    honest.small();
    site.relay.assert_alive();
}

#[test]
fn floods_of_handshakes_leave_room_for_a_whole() {
    let mut site = Site::start("tls_timeout = \"2s\"", "");
    let honest = site.edge();
    let halves = Coming::default().first_datagrams(400);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for half in halves.iter().cycle().take(4000) {
        socket.send_to(half, site.addr()).unwrap();
    }
    // One that shows that its address is its own comes in.
    site.assert_serves(&honest);
    // The others are asked to, so most of them are not kept at all.
    let grown = site.relay.memory().saturating_sub(site.before);
    assert!(grown < HALVES, "{} MiB more than before", grown >> 20);
    until("those that were begun have run out of time", || (site.refusals() > 0.0).then_some(()));
    site.assert_serves(&honest);
}

#[test]
fn garbage_is_passed_over() {
    let mut site = Site::start("", "");
    let honest = site.edge();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(site.addr()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // A version of QUIC that nobody has is told which there are (RFC 9000 6.1).
    let mut unknown = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
    unknown.resize(1200, 0);
    socket.send(&unknown).unwrap();
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer).unwrap();
    assert!(length > 5 && answer[0] & 0x80 != 0 && answer[1..5] == [0; 4], "{length}");

    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let first = Coming::default().first_datagrams(1).remove(0);
    for number in 0..20_000 {
        let length = usize::try_from(next() % 1400).unwrap() + 1;
        let mut datagram = match number % 4 {
            // Bytes; what begins as a handshake; one with a flipped bit; one that is cut off.
            0 => (0..length).map(|_| next().to_le_bytes()[0]).collect(),
            1 => [&first[..30], &vec![0; length]].concat(),
            2 => first.clone(),
            _ => first[..length.min(first.len())].to_vec(),
        };
        let at = usize::try_from(next()).unwrap() % datagram.len();
        datagram[at] ^= 1 << (next() % 8);
        // The kernel says what the other end does not want.
        let _refused = socket.send(&datagram);
        if number % 5000 == 0 {
            honest.small();
        }
    }
    // So it does behind the address of an edge that has greeted.
    site.assert_serves(&honest);
    assert_eq!(honest.quic.close_reason(), None);
}
