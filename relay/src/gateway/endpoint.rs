//! The sockets of a gateway, and who is let in on them.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use quinn::{Connecting, ConnectionError, Endpoint, Incoming, ServerConfig, TokioRuntime, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;
use wavegate_link::Code;

use super::{
    Gateway, HANDSHAKES, RETRY_FROM, Refusal, STRANGERS, Terms, WINDOW, connection,
    door::{Crowd, Shaking},
};
use crate::{
    budget::{self, Level, Use},
    event::{Event, Refused, TlsFailure},
};

/// Bytes that the kernel keeps for us while the worker is busy; it may give less.
const BUFFER: usize = 4 << 20;
/// Connections that were not looked at yet, and the bytes of each and of all of them together: they
/// are looked at as they come.
const INCOMING: usize = 1024;
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_ALL: u64 = 8 << 20;
/// How long a closed endpoint tells peers that it is.
const GOODBYE: Duration = Duration::from_secs(1);

/// A gateway's socket for one worker.
pub struct Port {
    /// Whose it is.
    pub gateway: Arc<Gateway>,
    /// The worker's number.
    pub worker: usize,
    /// The socket.
    pub socket: std::net::UdpSocket,
}

/// Binds so many sockets to one address, and says which it is: it may have port 0.
///
/// # Errors
/// If it cannot be bound, or somebody else has it.
pub fn bind(
    address: SocketAddr,
    count: usize,
) -> io::Result<(SocketAddr, Vec<std::net::UdpSocket>)> {
    let new = || Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP));
    // Sockets that share a port would share it with another process of ours too.
    let alone = new()?;
    alone.bind(&address.into())?;
    let free: std::net::UdpSocket = alone.into();
    let bound = free.local_addr()?;
    drop(free);
    let one = |_| {
        let socket = new()?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // The kernel has a bound of its own, which an operator may raise.
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        socket.bind(&bound.into())?;
        Ok(std::net::UdpSocket::from(socket))
    };
    Ok((bound, (0..count).map(one).collect::<io::Result<_>>()?))
}

/// What an endpoint has to wait for before it may end.
#[derive(Default)]
pub(super) struct Load {
    count: AtomicUsize,
    none: Notify,
    /// Connections whose edges have said who they are.
    greeted: AtomicUsize,
}

/// A connection that is let in for good.
pub(super) struct Greeted(Arc<Load>);

impl Drop for Greeted {
    fn drop(&mut self) {
        self.0.greeted.fetch_sub(1, Relaxed);
    }
}

/// Something that an endpoint waits for.
pub(super) struct Working(Arc<Load>);

impl Load {
    pub(super) fn begin(self: &Arc<Self>) -> Working {
        self.count.fetch_add(1, Relaxed);
        Working(Arc::clone(self))
    }

    fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Of these connections, those that nobody has been let in on: handshakes that are under way,
    /// and what is kept of those that were given up until their last packets have come (RFC 9000
    /// 10.2).
    fn strangers(&self, connections: usize) -> usize {
        connections.saturating_sub(self.greeted.load(Relaxed))
    }

    /// Waits until nothing is left.
    async fn ended(&self) {
        while self.count() > 0 {
            self.none.notified().await;
        }
    }
}

impl Working {
    pub(super) fn another(&self) -> Self {
        self.0.begin()
    }

    pub(super) fn greeted(&self) -> Greeted {
        self.0.greeted.fetch_add(1, Relaxed);
        Greeted(Arc::clone(&self.0))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Relaxed) == 1 {
            self.0.none.notify_one();
        }
    }
}

impl Port {
    /// Serves until the gateway closes and everything that has begun is finished.
    pub async fn serve(self) {
        let Self { gateway, worker, socket } = self;
        let mut terms = gateway.terms.subscribe();
        let config = server_config(&terms.borrow_and_update());
        let own = gateway.key.endpoint(worker);
        let endpoint = match Endpoint::new(own, Some(config), socket, Arc::new(TokioRuntime)) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::error!(listener = gateway.name, %error, "a link's socket is of no use");
                return;
            }
        };
        let load = Arc::new(Load::default());
        let mut closing = false;
        loop {
            tokio::select! {
                biased;
                // Nobody changes the terms any more when the gateway is gone, and it is here.
                _ = terms.changed() => {
                    let terms = terms.borrow_and_update();
                    closing = terms.closing;
                    endpoint.set_server_config(Some(server_config(&terms)));
                }
                () = load.ended(), if closing => break,
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => {
                        let strangers = load.strangers(endpoint.open_connections());
                        gateway.accept(incoming, &load, strangers);
                    }
                    None => break,
                },
            }
        }
        endpoint.close(code(Code::Stopping), b"stopping");
        let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
    }
}

fn server_config(terms: &Terms) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(Arc::clone(&terms.acceptance.crypto) as _);
    config.transport_config(Arc::new(terms.transport()));
    config.max_incoming(INCOMING);
    config.incoming_buffer_size(INCOMING_BYTES);
    config.incoming_buffer_size_total(INCOMING_BYTES_ALL);
    config
}

pub(super) fn code(code: Code) -> VarInt {
    VarInt::from_u32(code.number())
}

impl Gateway {
    fn accept(self: &Arc<Self>, incoming: Incoming, load: &Arc<Load>, strangers: usize) {
        let peer = incoming.remote_address();
        let share = self.relay.budget.share(Use::Sessions, budget::HANDSHAKE);
        // Whoever has not shown that an address is his own is counted for nobody.
        let client = incoming.remote_address_validated().then(|| peer.ip());
        let (mut shaking, crowd) = Shaking::new(self, client, share);
        let strangers = strangers.max(crowd.under_way);
        let (closing, most) = {
            let terms = self.terms.borrow();
            (terms.closing, terms.settings.connections)
        };
        let free = most.saturating_sub(self.connections().len());
        if closing || self.relay.is_stopping() {
            self.turned_away(peer, Refusal::Stopping);
            return incoming.refuse();
        }
        let is_crowded = strangers >= RETRY_FROM.min(free / 2);
        if is_crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // It comes again with a token that only its address was told.
            if incoming.retry().is_err() {
                tracing::debug!("a peer that may be asked to come again could not be");
            }
            return;
        }
        if let Some(why) = self.is_full(free, &crowd, strangers) {
            self.turned_away(peer, why);
            return incoming.refuse();
        }
        match incoming.accept() {
            Ok(connecting) => {
                shaking.begin();
                let letting_in = Arc::clone(self).let_in(connecting, shaking, load.begin());
                tokio::spawn(letting_in);
            }
            Err(error) => self.handshake_failed(peer, &error),
        }
    }

    /// What there is no room for: so many places are free, and so many handshakes under way, or kept
    /// by QUIC, of all and of this one.
    fn is_full(&self, free: usize, crowd: &Crowd, strangers: usize) -> Option<Refusal> {
        if self.relay.budget.level() >= Level::Closed {
            return Some(Refusal::Memory);
        }
        let Crowd { under_way, .. } = *crowd;
        let is_crowded = under_way >= HANDSHAKES || strangers >= STRANGERS;
        if is_crowded || crowd.is_greedy(strangers) {
            return Some(Refusal::Handshakes);
        }
        (under_way >= free).then_some(Refusal::TooMany)
    }

    /// Counts and tells whoever was not let in.
    fn turned_away(&self, peer: SocketAddr, why: Refusal) {
        self.tally.refuse(why);
        let client = peer.ip().to_canonical();
        let reason = match why {
            Refusal::Stopping => Refused::Stopping,
            Refusal::Memory => Refused::Memory,
            _ => Refused::TooMany,
        };
        self.relay.emit(&Event::ConnectionRefused { client, reason });
    }

    /// Waits for the handshake, and serves the connection that comes of it.
    async fn let_in(
        self: Arc<Self>,
        connecting: Connecting,
        mut shaking: Shaking,
        working: Working,
    ) {
        let peer = connecting.remote_address();
        let patience = self.relay.look().config.limits.tls_timeout;
        let quic = match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => return self.handshake_failed(peer, &error),
            Err(_) => return self.handshake_failed(peer, &ConnectionError::TimedOut),
        };
        let name = connection::peer(&self.terms.borrow().acceptance, &quic);
        let Some(name) = name else {
            self.tally.refuse(Refusal::NotTrusted);
            self.tls_failed(peer, TlsFailure::Certificate, "nobody's certificate that is known");
            return quic.close(code(Code::NotTrusted), b"not trusted");
        };
        // From now on it may send.
        shaking.share.set(budget::HANDSHAKE + WINDOW as usize);
        connection::serve(self, quic, name, shaking, working).await;
    }

    fn handshake_failed(&self, peer: SocketAddr, error: &ConnectionError) {
        let (refusal, failure) = match error {
            ConnectionError::TimedOut => (Refusal::Timeout, TlsFailure::Timeout),
            error => (Refusal::Handshake, failure(error)),
        };
        self.tally.refuse(refusal);
        self.tls_failed(peer, failure, &error.to_string());
    }

    fn tls_failed(&self, peer: SocketAddr, failure: TlsFailure, error: &str) {
        let (listener, client) = (&self.name, peer.ip().to_canonical());
        self.relay.emit(&Event::TlsFailed { listener, client, failure, error });
    }
}

/// Why a handshake failed, by TLS's alerts (RFC 8446 6.2, RFC 9001 4.8).
fn failure(error: &ConnectionError) -> TlsFailure {
    let alert = |code: u64| code.checked_sub(0x100).filter(|alert| *alert <= 0xff);
    let (code, ours) = match error {
        ConnectionError::TransportError(error) => (u64::from(error.code), true),
        ConnectionError::ConnectionClosed(close) => (u64::from(close.error_code), false),
        ConnectionError::VersionMismatch => return TlsFailure::NothingInCommon,
        ConnectionError::Reset
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::LocallyClosed => return TlsFailure::Closed,
        ConnectionError::TimedOut => return TlsFailure::Timeout,
        ConnectionError::CidsExhausted => return TlsFailure::Other,
    };
    match alert(code) {
        Some(40 | 70 | 120) => TlsFailure::NothingInCommon,
        Some(42..=49 | 116) => TlsFailure::Certificate,
        Some(_) if !ours => TlsFailure::Alert,
        _ => TlsFailure::Other,
    }
}
