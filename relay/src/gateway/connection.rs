//! One edge's connection: who it is, what is said on its control stream, and its end.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use quinn::{RecvStream, SendStream, rustls::pki_types::CertificateDer};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, timeout},
};
use wavegate_link::{
    Code, Control, Hello, LinkError, Offer,
    control::{ControlReader, Side},
};

use super::{
    Acceptance, CONTROL_TIME, Gateway, OFFER_LOOK, Refusal, WINDOW,
    door::Shaking,
    endpoint::{Greeted, Working, code},
    stream,
};
use crate::{
    budget::{self, Share, Use},
    event::Event,
    links::{GatewayConnection, Path},
    plan::Timestamp,
};

/// Bytes that are read of the control stream at once.
const READ: usize = 1024;

/// A connection of an edge.
pub(super) struct Connection {
    pub(super) gateway: Arc<Gateway>,
    pub(super) quic: quinn::Connection,
    /// Who it is, by its certificate.
    pub(super) peer: String,
    /// What it calls itself.
    name: String,
    /// What it was told that is taken.
    pub(super) offer: Offer,
    /// What waits for its messages, at the end of the process.
    working: Working,
    /// Messages on their way.
    streams: AtomicUsize,
    /// Told when one has ended.
    ended: Notify,
    pub(super) messages: AtomicU64,
    since: Timestamp,
}

/// A message on its way, counted.
pub(super) struct Counted(Arc<Connection>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
        self.0.ended.notify_one();
    }
}

impl Connection {
    pub(super) fn status(&self) -> GatewayConnection {
        let (streams, messages) = (self.streams.load(Relaxed), self.messages.load(Relaxed));
        GatewayConnection {
            peer: self.peer.clone(),
            edge: self.name.clone(),
            address: self.quic.remote_address().to_string(),
            path: Path::of(&self.quic, self.since, streams, messages),
        }
    }

    /// What the endpoint is to wait for as well.
    pub(super) fn working(&self) -> Working {
        self.working.another()
    }

    /// Counts an error, and says which.
    pub(super) fn failed(&self, what: &str, error: &dyn std::fmt::Display, code: Code) {
        self.gateway.tally.error(code);
        let (listener, peer) = (&self.gateway.name, &self.peer);
        tracing::debug!(listener, peer, %error, %code, "{what}");
    }
}

/// Whose connection it is.
pub(super) fn peer(acceptance: &Acceptance, quic: &quinn::Connection) -> Option<String> {
    let identity = quic.peer_identity()?;
    let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    (acceptance.peer)(&certificates)
}

/// Why a connection ends.
enum End {
    /// The edge has ended it, or the network has.
    Gone,
    /// We end it.
    Ours(Code),
}

/// Serves a connection to its end.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    quic: quinn::Connection,
    peer: String,
    shaking: Shaking,
    working: Working,
) {
    // It counts as a handshake until it has said HELLO.
    let greeted = timeout(CONTROL_TIME, greet(&gateway, &quic, &peer)).await;
    let (control, hello, offer) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(why)) => {
            let answer = match why {
                Ungreeted::Gone => Code::Closed,
                Ungreeted::Wrong(error) => {
                    gateway.tally.error(error.code());
                    tracing::debug!(listener = gateway.name, peer, %error, "no HELLO");
                    error.code()
                }
            };
            gateway.tally.refuse(Refusal::Hello);
            return quic.close(code(answer), answer.as_str().as_bytes());
        }
        Err(_) => {
            gateway.tally.refuse(Refusal::Timeout);
            return quic.close(code(Code::Timeout), b"no HELLO in time");
        }
    };
    let since = gateway.relay.waves.now();
    let connection = Arc::new(Connection {
        gateway,
        quic,
        peer,
        name: hello.name,
        offer,
        working,
        streams: AtomicUsize::new(0),
        ended: Notify::new(),
        messages: AtomicU64::new(0),
        since,
    });
    let registered = Registered::new(&connection);
    shaking.end();
    let end = control.run(&connection).await;
    if let End::Ours(answer) = end {
        connection.quic.close(code(answer), answer.as_str().as_bytes());
    }
    drop(registered);
}

/// Its place among the gateway's connections, and its part of the memory.
struct Registered {
    connection: Arc<Connection>,
    number: u64,
    _share: Share,
    _greeted: Greeted,
}

impl Registered {
    fn new(connection: &Arc<Connection>) -> Self {
        let Connection { gateway, peer, name, .. } = &**connection;
        let number = gateway.relay.world.entropy.next();
        gateway.connections().insert(number, Arc::clone(connection));
        let bytes = budget::SESSION + budget::SECURED + WINDOW as usize;
        let share = gateway.relay.budget.share(Use::Sessions, bytes);
        let (listener, address) = (&gateway.name, connection.quic.remote_address());
        tracing::info!(listener, peer, name, %address, "an edge is connected");
        gateway.relay.emit(&Event::ConnectionOpened { listener });
        let greeted = connection.working.greeted();
        Self { connection: Arc::clone(connection), number, _share: share, _greeted: greeted }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Connection { gateway, peer, quic, .. } = &*self.connection;
        gateway.connections().remove(&self.number);
        if std::thread::panicking() {
            gateway.relay.emit(&Event::SessionPanicked);
        }
        let listener = &gateway.name;
        let reason = quic.close_reason().map(|reason| reason.to_string()).unwrap_or_default();
        tracing::info!(listener, peer, reason, "an edge is not connected any more");
        gateway.relay.emit(&Event::ConnectionClosed { listener });
    }
}

/// Why a connection has not come to its greeting.
enum Ungreeted {
    Gone,
    Wrong(LinkError),
}

/// Both sides say who they are.
async fn greet(
    gateway: &Gateway,
    quic: &quinn::Connection,
    peer: &str,
) -> Result<(Stream, Hello, Offer), Ungreeted> {
    let gone = |_| Ungreeted::Gone;
    let (send, recv) = quic.accept_bi().await.map_err(gone)?;
    let reader = ControlReader::new(Side::Edge);
    let mut stream = Stream { send, recv, reader, read: Vec::new() };
    let hello = match stream.next().await {
        Ok(Some(Control::Hello(hello))) => hello,
        // The reader sees to it that HELLO comes first.
        Ok(_) => return Err(Ungreeted::Gone),
        Err(error) => return Err(Ungreeted::Wrong(error)),
    };
    let offer = gateway.offer();
    let name = gateway.relay.look().config.relay.hostname.clone();
    let incarnation = gateway.incarnation(peer);
    stream.say(&Control::Hello(Hello { name, incarnation, offer: Some(offer) })).await?;
    Ok((stream, hello, offer))
}

/// The control stream.
struct Stream {
    send: SendStream,
    recv: RecvStream,
    reader: ControlReader,
    /// What was read and not used yet.
    read: Vec<u8>,
}

impl From<Broken> for Ungreeted {
    fn from(_: Broken) -> Self {
        Self::Gone
    }
}

/// Nothing can be said any more.
struct Broken;

impl Stream {
    /// The next word; none when there is none any more. May be given up while it waits.
    async fn next(&mut self) -> Result<Option<Control>, LinkError> {
        loop {
            let (used, word) = self.reader.read(&self.read)?;
            self.read.drain(..used);
            if word.is_some() {
                return Ok(word);
            }
            match self.recv.read_chunk(READ, true).await {
                Ok(Some(chunk)) => self.read.extend_from_slice(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }

    async fn say(&mut self, word: &Control) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        word.write(&mut bytes);
        self.send.write_all(&bytes).await.map_err(|_| Broken)
    }

    /// The same, for a peer that may not listen.
    async fn say_in_time(&mut self, word: &Control) -> Result<(), End> {
        match timeout(CONTROL_TIME, self.say(word)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Broken)) => Err(End::Gone),
            Err(_) => Err(End::Ours(Code::Timeout)),
        }
    }

    /// Serves the connection from its greeting on.
    async fn run(mut self, connection: &Arc<Connection>) -> End {
        let gateway = &connection.gateway;
        let mut terms = gateway.terms.subscribe();
        // They may have changed since the handshake.
        terms.mark_changed();
        let mut looks = interval(OFFER_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            if stopping && connection.streams.load(Relaxed) == 0 {
                return End::Ours(Code::Stopping);
            }
            let stops = tokio::select! {
                biased;
                changed = terms.changed() => {
                    let terms = terms.borrow_and_update();
                    let Some(name) = peer(&terms.acceptance, &connection.quic) else {
                        gateway.tally.error(Code::NotTrusted);
                        return End::Ours(Code::NotTrusted);
                    };
                    // What came under another name is answered under that one.
                    terms.closing || changed.is_err() || name != connection.peer
                }
                () = connection.ended.notified(), if stopping => false,
                // What upstreams offer may be learned late, and HELLO is said once: the edge hears
                // of it on its next connection.
                _ = looks.tick() => gateway.offer() != connection.offer,
                word = self.next() => match self.heard(connection, word).await {
                    Ok(()) => false,
                    Err(end) => return end,
                },
                streams = connection.quic.accept_bi() => match streams {
                    Ok((send, recv)) if !stopping => { connection.begin(send, recv); false }
                    Ok((mut send, mut recv)) => {
                        let _ = recv.stop(code(Code::Stopping));
                        let _ = send.reset(code(Code::Stopping));
                        false
                    }
                    Err(_) => return End::Gone,
                },
            };
            if stops && !stopping {
                stopping = true;
                if let Err(end) = self.say_in_time(&Control::Stopping).await {
                    return end;
                }
            }
        }
    }

    async fn heard(
        &mut self,
        connection: &Connection,
        word: Result<Option<Control>, LinkError>,
    ) -> Result<(), End> {
        match word {
            Ok(Some(Control::Ping(token))) => self.say_in_time(&Control::Pong(token)).await,
            // The reader takes nothing else from an edge.
            Ok(Some(_)) => Ok(()),
            // Its end is that of the connection.
            Ok(None) => Err(End::Ours(Code::Closed)),
            Err(error) => {
                connection.failed("a wrong word on the control stream", &error, error.code());
                Err(End::Ours(error.code()))
            }
        }
    }
}

impl Connection {
    fn begin(self: &Arc<Self>, send: SendStream, recv: RecvStream) {
        self.streams.fetch_add(1, Relaxed);
        let counted = Counted(Arc::clone(self));
        tokio::spawn(stream::serve(Arc::clone(self), counted, send, recv));
    }
}
