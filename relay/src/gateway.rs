//! Listeners of `type = "link"`: the gateway's side of the link. Floor 4.
//!
//! Owns the UDP sockets, the QUIC endpoints, who is let in, and what comes of the streams of those
//! who are. What is said on them is `wavegate_link`'s (`link/PROTOCOL.md`), what becomes of a
//! message `handoff`'s, and that none is handed on twice `seen`'s.
//!
//! Each worker has an endpoint of its own on the same address (SO_REUSEPORT): the kernel parts
//! connections among them, and a message is handed off where its bytes came in, with the upstream
//! connections and the policies of that worker. A connection whose address changes on the way (a
//! NAT forgot it) may come to another worker, which does not know it: it ends by its idle time-out,
//! and the edge makes another.
//!
//! Everything that a peer can make grow is bounded: connections and handshakes at once, streams of a
//! connection, bytes that are on their way to us on a stream and a connection ([`WINDOW`]), the time of each
//! step. What was read of a message is accounted for as in a session.

mod connection;
mod door;
mod endpoint;
mod key;
mod stream;
mod tally;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::{
    IdleTimeout, TransportConfig, VarInt, congestion, crypto::rustls::QuicServerConfig,
    rustls::pki_types::CertificateDer,
};
use tokio::sync::watch;
use wavegate_link::Offer;

pub use endpoint::{Port, bind};
pub use tally::Refusal;

use crate::{
    config::{Congestion, LinkListener},
    links::GatewayLink,
    relay::Relay,
    seen::Seen,
};
use connection::Connection;
use door::Door;
use key::Key;
use tally::Tally;

/// Bytes that one connection may have sent and we have not read, over all its streams: at 80 ms of
/// round trip 50 MB a second. Each connection is charged for so much.
pub const WINDOW: u32 = 4 << 20;
/// The same for one stream: a large message alone gets 12 MB a second.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of answers that a peer has not acknowledged.
const SEND_WINDOW: u64 = 1 << 20;
/// Handshakes at once, over all workers; each may hold `budget::HANDSHAKE`.
pub const HANDSHAKES: usize = 256;
/// The same of each worker, with those that were given up just now: QUIC keeps something of them until
/// their last packets have come (RFC 9000 10.2).
pub const STRANGERS: usize = 2 * HANDSHAKES;
/// Beyond so many, or half of the free places if that is less, a peer has to show that its address is its own (RFC 9000 8.1.2).
pub const RETRY_FROM: usize = 32;
/// How long an edge may take from its handshake to its HELLO, and to take a word on the control
/// stream.
const CONTROL_TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether what is offered has changed.
const OFFER_LOOK: Duration = Duration::from_secs(10);

/// Names the peer of a chain of certificates that the handshake took; none where it is not, or no
/// longer, to be trusted.
pub type NamePeer = Arc<dyn Fn(&[CertificateDer<'static>]) -> Option<String> + Send + Sync>;

/// Who is let in, and what is shown to him.
#[derive(Clone)]
pub struct Acceptance {
    /// For handshakes: TLS 1.3, `wavegate_link::ALPN`, the peer's certificate is asked for.
    pub crypto: Arc<QuicServerConfig>,
    /// Whose certificate it is.
    pub peer: NamePeer,
}

/// What holds for a gateway until a reload changes it.
#[derive(Clone)]
struct Terms {
    settings: Arc<LinkListener>,
    acceptance: Acceptance,
    /// Nobody is let in any more, and who is in is sent away.
    closing: bool,
}

/// A listener of `type = "link"`, over all workers.
pub struct Gateway {
    name: String,
    relay: Arc<Relay>,
    seen: Arc<Seen>,
    incarnation: [u8; 16],
    key: Key,
    terms: watch::Sender<Terms>,
    tally: Tally,
    door: Door,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
}

impl Gateway {
    /// A gateway that nothing comes to yet. `directory` is that of [`Gateway::directory`];
    /// `incarnation` is the process's.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn open(
        relay: &Arc<Relay>,
        settings: &LinkListener,
        acceptance: Acceptance,
        seen: &Arc<Seen>,
        directory: &Path,
        incarnation: [u8; 16],
    ) -> io::Result<Arc<Self>> {
        let key = Key::open(directory)?;
        let settings = Arc::new(settings.clone());
        let name = settings.name.clone();
        let terms = watch::Sender::new(Terms { settings, acceptance, closing: false });
        Ok(Arc::new(Self {
            name,
            relay: Arc::clone(relay),
            seen: Arc::clone(seen),
            incarnation,
            key,
            terms,
            tally: Tally::default(),
            door: Door::default(),
            connections: Mutex::default(),
        }))
    }

    /// Where a listener keeps what outlives the process: the table of what was seen, and its key.
    pub fn directory(state_dir: &Path, listener: &str) -> std::path::PathBuf {
        state_dir.join("links").join(listener)
    }

    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table of what was seen.
    pub fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    /// Other settings hold from now on. Every connection is judged again by them.
    pub fn change(&self, settings: &LinkListener, acceptance: Acceptance) {
        self.seen.resize(settings.seen);
        let settings = Arc::new(settings.clone());
        self.terms.send_replace(Terms { settings, acceptance, closing: false });
    }

    /// Lets nobody in any more, tells edges to go elsewhere, and ends each connection once the
    /// messages on it are answered.
    pub fn close(&self) {
        self.terms.send_modify(|terms| terms.closing = true);
    }

    /// How it stands, but for where it listens.
    pub fn status(&self) -> GatewayLink {
        let usage = self.seen.usage();
        // Nobody has both the terms and the connections: a third one may wait to change the terms.
        let seen_limit = self.terms.borrow().settings.seen as u64;
        let connections = self.connections().values().map(|one| one.status()).collect();
        GatewayLink {
            listener: self.name.clone(),
            connections,
            handshakes: self.door.under_way() as u64,
            in_progress: usage.underway,
            seen: usage.entries,
            seen_limit,
            seen_bytes: usage.bytes,
            ..self.tally.status()
        }
    }

    /// What tells an edge which memory of its messages there is: that of this process, under this
    /// name of it. An edge that is called otherwise from now on has another, and knows it.
    fn incarnation(&self, peer: &str) -> [u8; 16] {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.incarnation).update(self.name.as_bytes()).update(&[0]);
        hash.update(peer.as_bytes());
        let mut bytes = [0; 16];
        hash.finalize_xof().fill(&mut bytes);
        bytes
    }

    /// What an edge is told that is taken: what all upstreams that can be reached offer.
    fn offer(&self) -> Offer {
        let generation = self.relay.generation();
        let settings = Arc::clone(&self.terms.borrow().settings);
        let upstreams = &settings.upstreams;
        let reaches = |upstream: &str| {
            upstreams.is_empty() || upstreams.iter().any(|reached| reached == upstream)
        };
        let recipients = u32::try_from(generation.config.limits.recipients).unwrap_or(u32::MAX);
        Offer::new(&generation.offered_by(reaches, None), recipients)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terms {
    /// What QUIC is told. Datagrams and streams in one direction are not part of the protocol.
    fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let settings = &self.settings;
        // The control stream is one more. QUIC tells of streams that are over only when more than an
        // eighth of all are, so there are so many more that an edge always has those of `streams`.
        let streams = settings.streams.saturating_add(settings.streams / 7 + 2);
        transport.max_concurrent_bidi_streams(VarInt::from_u32(streams));
        transport.max_concurrent_uni_streams(VarInt::from_u32(0));
        transport.datagram_receive_buffer_size(None);
        transport.receive_window(VarInt::from_u32(WINDOW));
        transport.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
        transport.send_window(SEND_WINDOW);
        // The edge keeps its connections alive; it alone knows how long it wants them.
        transport.max_idle_timeout(IdleTimeout::try_from(settings.idle_timeout).ok());
        match settings.congestion {
            Congestion::Bbr => {
                transport.congestion_controller_factory(Arc::new(congestion::BbrConfig::default()))
            }
            Congestion::Cubic => transport
                .congestion_controller_factory(Arc::new(congestion::CubicConfig::default())),
        };
        transport
    }
}

/// A gateway and where it is reached.
#[derive(Clone)]
pub struct Open {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Its address as configured, which may have port 0.
    pub configured: SocketAddr,
    /// The address in use.
    pub address: SocketAddr,
}

/// All gateways of the process, for those who tell of them.
#[derive(Default)]
pub struct Gateways(Mutex<Vec<Open>>);

impl Gateways {
    /// These are open from now on.
    pub fn set(&self, open: Vec<Open>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// Those that are open.
    pub fn open(&self) -> Vec<Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How they stand.
    pub fn status(&self) -> Vec<GatewayLink> {
        let status =
            |one: &Open| GatewayLink { address: one.address.to_string(), ..one.gateway.status() };
        self.open().iter().map(status).collect()
    }

    /// Bytes of their tables of what was seen.
    pub fn bytes(&self) -> usize {
        let bytes = self.open().iter().map(|one| one.gateway.seen.usage().bytes).sum::<u64>();
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}
