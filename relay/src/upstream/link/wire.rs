//! A connection to one gateway, from its handshake to its end, and the right to send a message on
//! it. Floor 2.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::{ClientConfig, ConnectionError as Lost, RecvStream, SendStream};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use wavegate_link::{
    Code, Control, Hello, LinkError, Offer,
    control::{ControlReader, Side},
};
use wavegate_smtp::Extensions;

use super::{LinkFault, Stream, close, transport};
use crate::{names::Endpoint, plan::Timestamp, upstream::Upstream};

/// How often a connection is begun anew while none has come about. QUIC's own repetitions come at
/// growing intervals: after an outage of half a minute they would be heard half a minute later.
const AGAIN: Duration = Duration::from_secs(1);
/// How long one beginning may take: three round trips of the longest path that there is.
const TRY: Duration = Duration::from_secs(4);
/// Bytes of the control stream that are read at once.
const CHUNK: usize = 4096;

/// A connection whose gateway has said who it is.
pub(super) struct Greeted {
    connection: quinn::Connection,
    control: ControlStream,
    gateway: Hello,
    offer: Offer,
}

/// Our end of the control stream. Its end would be that of the connection.
struct ControlStream {
    send: SendStream,
    recv: RecvStream,
    reader: ControlReader,
    /// What has come and was not read yet.
    rest: Bytes,
}

/// What a connection begins with.
#[derive(Clone)]
pub(super) struct Beginning {
    /// TLS and QUIC.
    pub(super) config: ClientConfig,
    /// Whose certificate is expected.
    pub(super) name: String,
    /// What we call ourselves.
    pub(super) hello: Hello,
    /// The time for all of it.
    pub(super) time: Duration,
}

impl Beginning {
    /// Connects and greets. Begins anew each second; the first that comes about is it.
    pub(super) async fn dial(self, target: &Endpoint) -> Result<Greeted, LinkFault> {
        let late = LinkFault::Late(self.time);
        let mut deadline = std::pin::pin!(tokio::time::sleep(self.time));
        let mut again = tokio::time::interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tries = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(done) = tries.join_next(), if !tries.is_empty() => match done {
                    Ok(Ok(greeted)) => return Ok(greeted),
                    // The next one may be heard.
                    Ok(Err(fault)) if LinkFault::is_silence(&fault) => {}
                    Ok(Err(fault)) => return Err(fault),
                    Err(_) => return Err(LinkFault::Abandoned),
                },
                () = &mut deadline => return Err(late),
                _ = again.tick() => {
                    let (beginning, target) = (self.clone(), target.clone());
                    tries.spawn(async move {
                        let greeting = beginning.greet(&target);
                        let greeted = tokio::time::timeout(TRY, greeting).await;
                        greeted.unwrap_or(Err(LinkFault::Late(TRY)))
                    });
                }
            }
        }
    }

    async fn greet(self, target: &Endpoint) -> Result<Greeted, LinkFault> {
        let connection = transport::connect(&self.config, target.address, &self.name)?.await?;
        let (mut send, recv) = connection.open_bi().await?;
        let mut hello = Vec::new();
        Control::Hello(self.hello).write(&mut hello);
        send.write_all(&hello).await?;
        let reader = ControlReader::new(Side::Gateway);
        let mut control = ControlStream { send, recv, reader, rest: Bytes::new() };
        let gateway = match control.next(&connection).await? {
            Control::Hello(gateway) => gateway,
            // The reader lets nothing else be the first.
            _ => return Err(LinkFault::Protocol(LinkError::Value("HELLO"))),
        };
        let offer = gateway.offer.ok_or(LinkFault::Protocol(LinkError::Value("HELLO")))?;
        Ok(Greeted { connection, control, gateway, offer })
    }
}

impl ControlStream {
    /// The gateway's next word.
    async fn next(&mut self, connection: &quinn::Connection) -> Result<Control, LinkFault> {
        loop {
            while !self.rest.is_empty() {
                match self.reader.read(&self.rest) {
                    Ok((used, word)) => {
                        let _ = self.rest.split_to(used);
                        if let Some(word) = word {
                            return Ok(word);
                        }
                    }
                    Err(error) => {
                        close(connection, error.code());
                        return Err(error.into());
                    }
                }
            }
            match self.recv.read_chunk(CHUNK, true).await? {
                Some(chunk) => self.rest = chunk.bytes,
                None => {
                    close(connection, Code::Protocol);
                    return Err(LinkError::Cut("the connection").into());
                }
            }
        }
    }
}

impl Greeted {
    /// What the gateway takes, as SMTP would say it.
    pub(super) fn extensions(&self) -> Extensions {
        self.offer.extensions()
    }

    /// Asks whether it is there: how long the answer takes.
    pub(super) async fn ping(&mut self, token: u64) -> Result<Duration, LinkFault> {
        let Self { connection, control, .. } = self;
        let mut ping = Vec::new();
        Control::Ping(token).write(&mut ping);
        let begun = Instant::now();
        control.send.write_all(&ping).await?;
        loop {
            match control.next(connection).await? {
                Control::Pong(answer) if answer == token => return Ok(begun.elapsed()),
                Control::Stopping => {}
                _ => {
                    close(connection, Code::Protocol);
                    return Err(LinkError::Value("PONG").into());
                }
            }
        }
    }

    /// What the gateway calls itself.
    pub(super) fn gateway(&self) -> &str {
        &self.gateway.name
    }

    /// It was only to be looked at.
    pub(super) fn close(self) {
        close(&self.connection, Code::Closed);
    }

    /// The connection as messages use it, and what has to run beside it.
    pub(super) fn into_wire(
        self,
        endpoint: Endpoint,
        worker: usize,
        since: Timestamp,
    ) -> (Arc<Wire>, Keeper) {
        let Self { connection, control, gateway, offer } = self;
        let wire = Arc::new(Wire {
            connection,
            endpoint,
            gateway,
            offer,
            extensions: offer.extensions(),
            worker,
            since,
            streams: AtomicUsize::new(0),
            messages: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        (Arc::clone(&wire), Keeper { wire, control })
    }
}

/// A connection that carries messages. It lives in the reactor of one worker.
pub(super) struct Wire {
    pub(super) connection: quinn::Connection,
    pub(super) endpoint: Endpoint,
    pub(super) gateway: Hello,
    offer: Offer,
    extensions: Extensions,
    pub(super) worker: usize,
    pub(super) since: Timestamp,
    /// Messages on their way.
    streams: AtomicUsize,
    /// Messages, ever.
    messages: AtomicUsize,
    /// No message begins any more; the last one that is under way closes it.
    stopping: AtomicBool,
}

impl Wire {
    /// Messages that are on their way.
    pub(super) fn streams(&self) -> usize {
        self.streams.load(Relaxed)
    }

    /// Messages that were begun, ever.
    pub(super) fn messages(&self) -> usize {
        self.messages.load(Relaxed)
    }

    /// Whether a message may begin.
    pub(super) fn is_open(&self) -> bool {
        !self.stopping.load(Relaxed) && self.connection.close_reason().is_none()
    }

    /// No message begins from now on.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.close_if_done();
    }

    fn close_if_done(&self) {
        if self.stopping.load(Relaxed) && self.streams() == 0 {
            close(&self.connection, Code::Closed);
        }
    }
}

/// What runs beside a connection: hears what the gateway says of itself, and that it is gone.
pub(super) struct Keeper {
    wire: Arc<Wire>,
    control: ControlStream,
}

impl Keeper {
    /// Runs until the connection is over.
    pub(super) async fn keep(mut self, upstream: Weak<Upstream>) {
        let fault = loop {
            match self.control.next(&self.wire.connection).await {
                Ok(Control::Stopping) => self.wire.stop(),
                // Nobody asks here.
                Ok(_) => {
                    close(&self.wire.connection, Code::Protocol);
                    break LinkError::Value("PONG").into();
                }
                Err(fault) => break fault,
            }
        };
        if let Some(upstream) = upstream.upgrade() {
            let ours = matches!(fault, LinkFault::Lost(Lost::LocallyClosed));
            upstream.lost(&self.wire, (!ours).then_some(&fault));
        }
    }
}

/// The right to send one message on a connection.
pub struct Channel(Arc<Wire>);

impl Channel {
    pub(super) fn new(wire: &Arc<Wire>) -> Self {
        wire.streams.fetch_add(1, Relaxed);
        wire.messages.fetch_add(1, Relaxed);
        Self(Arc::clone(wire))
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// What the gateway takes.
    pub fn extensions(&self) -> &Extensions {
        &self.0.extensions
    }

    /// Most recipients of a message.
    pub fn recipients(&self) -> u32 {
        self.0.offer.recipients
    }

    /// Which process of the gateway it is.
    pub fn incarnation(&self) -> [u8; 16] {
        self.0.gateway.incarnation
    }

    /// What an answer takes at least, however fast the gateway is.
    pub fn round_trip(&self) -> Duration {
        self.0.connection.rtt()
    }

    /// Begins a message of so many recipients; waits until the gateway takes one more.
    ///
    /// # Errors
    /// If the connection is over, or the gateway takes none in time.
    pub async fn begin(&self, recipients: u32, time: Duration) -> Result<Stream, LinkFault> {
        let opened = tokio::time::timeout(time, self.0.connection.open_bi()).await;
        let (send, recv) = opened.map_err(|_| LinkFault::Late(time))??;
        Ok(Stream::new(send, recv, recipients))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
        self.0.close_if_done();
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a channel to {}", self.0.endpoint.address)
    }
}
