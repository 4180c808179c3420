//! What is known of links: of those to gateways, and of those that edges have to this relay.
//! Floor 2.
//!
//! Values for telemetry, the page, the control socket and its clients; who has a link fills in his
//! own.

use serde::{Deserialize, Serialize};

use crate::plan::Timestamp;

/// All links of a relay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Links {
    /// Those to gateways, by upstream.
    pub edges: Vec<EdgeLink>,
    /// Those of edges, by listener.
    pub gateways: Vec<GatewayLink>,
}

/// An upstream that is a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeLink {
    /// Its name.
    pub upstream: String,
    /// No gateway can be reached.
    pub down: bool,
    /// Where mail goes then.
    pub fallback: Option<String>,
    /// Messages that went there, since the upstream is known.
    pub fallbacks: u64,
    /// Messages on their way now, and how many may be.
    pub streams: u64,
    /// The bound of them.
    pub streams_limit: u64,
    /// Messages that are asked about again now: they were sent, and their answer was lost.
    pub in_doubt: u64,
    /// Connections that were opened in place of one that was lost.
    pub reconnects: u64,
    /// Messages that were asked about again, because their connection was lost behind their end.
    pub resumed: u64,
    /// Messages that the gateway had answered before.
    pub known: u64,
    /// Packets sent, over all connections that there ever were.
    pub packets: u64,
    /// Of these, those that were lost.
    pub lost: u64,
    /// Bytes of datagrams sent.
    pub sent: u64,
    /// Bytes of datagrams received.
    pub received: u64,
    /// Its connections now.
    pub connections: Vec<EdgeConnection>,
}

/// A connection to a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeConnection {
    /// Where to.
    pub target: String,
    /// What the gateway calls itself.
    pub gateway: String,
    /// The beginning of its incarnation: another one after each start of its process.
    pub incarnation: String,
    /// The worker that has it.
    pub worker: u64,
    /// How it fares.
    #[serde(flatten)]
    pub path: Path,
}

/// How a connection fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Since when it is there, in RFC 3339.
    pub since: String,
    /// Round trip in microseconds, smoothed.
    pub rtt_us: u64,
    /// Bytes that may be on their way (congestion window).
    pub window: u64,
    /// Packets sent.
    pub packets: u64,
    /// Of these, those that were lost.
    pub lost: u64,
    /// Messages on their way.
    pub streams: u64,
    /// Messages, ever.
    pub messages: u64,
    /// Bytes of datagrams sent.
    pub sent: u64,
    /// Bytes of datagrams received.
    pub received: u64,
}

impl Path {
    /// As QUIC has it.
    pub fn of(
        connection: &quinn::Connection,
        since: Timestamp,
        streams: usize,
        messages: u64,
    ) -> Self {
        let quinn::ConnectionStats { path, udp_tx, udp_rx, .. } = connection.stats();
        Self {
            since: since.to_string(),
            rtt_us: u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX),
            window: path.cwnd,
            packets: path.sent_packets,
            lost: path.lost_packets,
            streams: streams as u64,
            messages,
            sent: udp_tx.bytes,
            received: udp_rx.bytes,
        }
    }
}

/// A listener that is a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayLink {
    /// Its name.
    pub listener: String,
    /// Where it listens.
    pub address: String,
    /// Messages that came whole.
    pub messages: u64,
    /// Messages that are being handed on.
    pub in_progress: u64,
    /// Recipients that were answered from memory.
    pub known: u64,
    /// Messages that were answered before they were whole, for want of room.
    pub turned_away: u64,
    /// Handshakes that are under way.
    pub handshakes: u64,
    /// Messages whose answers are remembered.
    pub seen: u64,
    /// How many may be.
    pub seen_limit: u64,
    /// Bytes that they take.
    pub seen_bytes: u64,
    /// Connections that were refused, by why.
    pub refused: Vec<Count>,
    /// Streams and connections that broke the protocol, by how.
    pub errors: Vec<Count>,
    /// Its connections now.
    pub connections: Vec<GatewayConnection>,
}

/// How often something was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// What.
    pub what: String,
    /// How often.
    pub count: u64,
}

/// A connection of an edge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayConnection {
    /// Whose: what the configuration or the certificate calls it.
    pub peer: String,
    /// What the edge calls itself.
    pub edge: String,
    /// Where from.
    pub address: String,
    /// How it fares.
    #[serde(flatten)]
    pub path: Path,
}

/// What a ping found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinged {
    /// The upstream.
    pub upstream: String,
    /// Each of its targets.
    pub targets: Vec<PingedTarget>,
}

/// A gateway that was asked whether it is there, by a connection of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingedTarget {
    /// Where.
    pub target: String,
    /// What it calls itself, if it is there.
    pub gateway: Option<String>,
    /// Until it could be given a message: handshake and greeting, in microseconds.
    pub opened_us: u64,
    /// Each round trip, in microseconds.
    pub round_trips_us: Vec<u64>,
    /// What went wrong.
    pub error: Option<String>,
}

/// A link in one row, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRow {
    /// The upstream or the listener.
    pub name: String,
    /// Who is at the other end, where that is known.
    pub peer: String,
    /// Whether it is a gateway that this relay sends to; else it is an edge.
    pub to_gateway: bool,
    /// Messages can go by it now.
    pub up: bool,
    /// Where they go while it is down.
    pub fallback: Option<String>,
    /// Connections.
    pub connections: u64,
    /// The longest round trip in microseconds; none without a connection.
    pub rtt_us: Option<u64>,
    /// Packets lost, in hundredths of a percent.
    pub lost: u64,
    /// Messages on their way.
    pub streams: u64,
}

impl Links {
    /// One row a link to gateways, and one for each edge.
    pub fn rows(&self) -> Vec<LinkRow> {
        let edges = self.edges.iter().map(EdgeLink::row);
        edges.chain(self.gateways.iter().flat_map(GatewayLink::rows)).collect()
    }
}

impl EdgeLink {
    fn row(&self) -> LinkRow {
        let mut peers: Vec<&str> = self.connections.iter().map(|one| &*one.gateway).collect();
        peers.sort_unstable();
        peers.dedup();
        let row = LinkRow {
            name: self.upstream.clone(),
            peer: peers.join(", "),
            to_gateway: true,
            up: !self.down,
            fallback: self.fallback.clone(),
            streams: self.streams,
            ..LinkRow::default()
        };
        let paths: Vec<&Path> = self.connections.iter().map(|one| &one.path).collect();
        row.over(&paths)
    }
}

impl GatewayLink {
    fn rows(&self) -> Vec<LinkRow> {
        let mut peers: Vec<&str> = self.connections.iter().map(|one| &*one.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        let row = |peer: &str| {
            let its = self.connections.iter().filter(|one| one.peer == peer);
            let paths: Vec<&Path> = its.map(|one| &one.path).collect();
            let streams = paths.iter().map(|path| path.streams).sum();
            let (name, peer) = (self.listener.clone(), peer.to_owned());
            LinkRow { name, peer, up: true, streams, ..LinkRow::default() }.over(&paths)
        };
        peers.into_iter().map(row).collect()
    }
}

impl LinkRow {
    fn over(mut self, paths: &[&Path]) -> Self {
        let sum = |read: fn(&Path) -> u64| paths.iter().map(|path| read(path)).sum::<u64>();
        self.connections = paths.len() as u64;
        self.rtt_us = paths.iter().map(|path| path.rtt_us).max();
        let lost = sum(|path| path.lost).saturating_mul(10_000);
        self.lost = lost.checked_div(sum(|path| path.packets)).unwrap_or(0);
        self
    }
}
