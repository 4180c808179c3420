//! One client's session: drives the server state machine, collects the message, and has it
//! handed off before it answers. Floor 3.
//!
//! Bytes are read into a buffer that the worker's sessions share, and used up at once; so an
//! idle session holds no buffer. A message is received whole before anybody is asked about it:
//! a client never paces an upstream.

mod collect;
mod pressure;
mod login;
mod secure;
mod verify;
pub mod stopping;

use std::{
    cell::RefCell, future::poll_fn, io, net::SocketAddr, pin::Pin, sync::Arc, task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use wavegate_smtp::{BodyFacts, Closing, Enhanced, Login, Rcpt, Reply, Server, ServerConfig, Step};
use zeroize::Zeroize;

use crate::{
    budget::{self, Level, Share, Use},
    config::ListenerConfig,
    event::{Busy, Ended, Event, Refused},
    handoff,
    message::{MessageId, Redirected, Source},
    relay::Relay,
    replies::relay_reply,
    tls::Acceptor,
    world::{Deadline, Stream},
};
use collect::Collected;

/// Bytes read from a client at once.
const READ: usize = 64 * 1024;
/// The same while memory is at its end.
const READ_FULL: usize = 4 * 1024;
/// How long a message may be slow before `limits.data_rate` counts.
pub(crate) const RATE_GRACE: Duration = Duration::from_secs(60);
/// Under stress, deadlines for commands are this many times shorter.
const STRESS_FACTOR: u32 = 10;
/// But not shorter than this.
const STRESS_FLOOR: Duration = Duration::from_secs(5);

static STOPPING: Reply = Reply::fixed(421, Enhanced(4, 3, 2), "relay is stopping, come back");
static TIMEOUT: Reply = Reply::fixed(421, Enhanced(4, 4, 2), "timeout, closing");
static SLOW: Reply = Reply::fixed(421, Enhanced(4, 4, 2), "too slow, closing");
static NO_TLS: Reply = Reply::fixed(454, Enhanced(4, 7, 0), "wavegate: TLS is not available now");
static TOO_MANY: Reply =
    Reply::fixed(452, Enhanced(4, 5, 3), "wavegate: too many recipients; send the rest again");

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// A connection's place among those of its client.
pub trait Place: Send {
    /// It is this client's from now on, unless that has too many.
    fn give_to(&mut self, client: SocketAddr) -> Result<(), Refused>;
}

/// What a session is given.
pub struct Client {
    /// The connection.
    pub stream: Stream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it wanted to go, before it was redirected here.
    pub destination: Option<SocketAddr>,
    /// The listener that took it.
    pub listener: Arc<ListenerConfig>,
    /// Protocol settings: those for clients that may relay differ from those for others.
    pub settings: Arc<ServerConfig>,
    /// Its part of the memory.
    pub share: Share,
    /// Its place among those that are counted; kept to its end.
    pub place: Option<Box<dyn Place>>,
}

impl Client {
    /// A client of a listener. None when the listener is not in the generation any more.
    pub fn new(relay: &Relay, listener: &str, stream: Stream, peer: SocketAddr) -> Option<Self> {
        let generation = relay.look();
        let settings = generation.listener(listener)?;
        // An IPv4 client of an IPv6 socket is an IPv4 client.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let listener = Arc::clone(&settings.config);
        let handshake = if listener.is_implicit_tls() { budget::HANDSHAKE } else { 0 };
        let share = relay.budget.share(Use::Sessions, budget::SESSION + handshake);
        let settings = Arc::clone(settings.of(peer.ip()));
        let (destination, place) = (None, None);
        Some(Self { stream, peer, destination, listener, settings, share, place })
    }

    /// The same, if it was redirected here.
    pub fn redirected(mut self, relay: &Relay, how: Option<Redirected>) -> Self {
        let Some(how) = how else { return self };
        self.destination = Some(how.destination);
        if how.local && self.listener.allows_local() {
            let generation = relay.look();
            if let Some(settings) = generation.listener(&self.listener.name) {
                self.settings = Arc::clone(&settings.inside);
            }
        }
        self
    }

    /// The same, counted.
    #[must_use]
    pub fn counted(self, place: impl Place + 'static) -> Self {
        Self { place: Some(Box::new(place)), ..self }
    }
}

/// Serves one client to its end.
pub async fn serve(relay: Arc<Relay>, client: Client) {
    let name = client.listener.name.clone();
    relay.emit(&Event::ConnectionOpened { listener: &name });
    let closed = Closed { relay: Arc::clone(&relay), listener: name };
    let waker = stopping::Registered::new().await;
    Session::new(relay, client).run().await;
    drop((waker, closed));
}

/// Tells of the end, a panic's included.
struct Closed {
    relay: Arc<Relay>,
    listener: String,
}

impl Drop for Closed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.relay.emit(&Event::SessionPanicked);
        }
        self.relay.emit(&Event::ConnectionClosed { listener: &self.listener });
    }
}

struct Session {
    relay: Arc<Relay>,
    stream: Stream,
    /// Messages that have been taken keep it; a change makes another.
    source: Arc<Source>,
    listener: Arc<ListenerConfig>,
    server: Server,
    message: Option<Box<Collected>>,
    /// Input that came behind the end of a message, kept while that is handed off.
    pending: Vec<u8>,
    deadline: Deadline,
    /// Its part of the memory, and what of that TLS has.
    share: Share,
    tls: usize,
    place: Option<Box<dyn Place>>,
}

/// What the session does next.
enum Next {
    Read,
    HandOff(BodyFacts),
    Verify(Box<Rcpt>),
    LogIn(Login),
    Secure(Arc<Acceptor>),
    Close,
}

/// Why reading or writing ended.
enum Broken {
    /// The client has gone.
    Gone,
    /// The relay ends it.
    Ended(Ended),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Session {
    fn new(relay: Arc<Relay>, client: Client) -> Self {
        let Client { stream, peer, destination, listener, settings, share, place } = client;
        let mut deadline = Deadline::default();
        deadline.set(relay.look().config.limits.command_timeout);
        let mut server = Server::new(settings);
        if listener.trusts(peer.ip()) {
            server.trust();
        }
        Self {
            relay,
            stream,
            source: Arc::new(Source { destination, ..Source::new(peer, &listener.name) }),
            listener,
            server,
            message: None,
            pending: Vec::new(),
            deadline,
            share,
            tls: 0,
            place,
        }
    }

    async fn run(mut self) {
        if self.listener.is_implicit_tls() {
            let Some(acceptor) = self.acceptor() else { return };
            if Box::pin(self.secure(&acceptor)).await.is_err() {
                return;
            }
        }
        // RFC 5321 4.3.1: the client waits for the greeting. One that did not is answered by the
        // state machine when it gets to read what came.
        if !self.stream.has_input() {
            self.server.greet();
        }
        let mut next = Next::Read;
        loop {
            let step = match next {
                Next::Read => self.flush_and_read().await,
                Next::HandOff(facts) => Ok(self.hand_off(facts).await),
                Next::Verify(rcpt) => Box::pin(self.verify(*rcpt)).await,
                Next::LogIn(credentials) => Ok(Box::pin(self.log_in(credentials)).await),
                Next::Secure(acceptor) => Box::pin(self.secure(&acceptor)).await,
                Next::Close => break,
            };
            next = match step {
                Ok(next) => next,
                Err(Broken::Gone) => return,
                Err(Broken::Ended(reason)) => {
                    self.end(reason);
                    break;
                }
            };
        }
        self.deadline.set(STRESS_FLOOR);
        if self.flush().await.is_ok() {
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await;
        }
    }

    /// Ends the session from our side.
    fn end(&mut self, reason: Ended) {
        self.relay.emit(&Event::SessionEnded { client: self.source.client, reason });
        self.server.close(match reason {
            Ended::Timeout => &TIMEOUT,
            Ended::TooSlow => &SLOW,
            Ended::Stopping => &STOPPING,
            Ended::Misbehaved => unreachable!("the state machine ends that by itself"),
        });
    }

    async fn flush_and_read(&mut self) -> Result<Next, Broken> {
        if self.relay.is_stopping() && self.message.is_none() {
            return Err(Broken::Ended(Ended::Stopping));
        }
        // A command has one deadline, however its bytes drip in: only an answer, or bytes of a
        // message, begin another.
        if !self.server.output().is_empty() || self.server.is_receiving_message() {
            self.deadline.set(self.patience());
        }
        self.flush().await?;
        self.read().await
    }

    /// How long the client may take for what is awaited now.
    fn patience(&self) -> Duration {
        let generation = self.relay.look();
        let limits = &generation.config.limits;
        if self.server.is_receiving_message() {
            limits.data_timeout
        } else if self.relay.is_under_stress() {
            (limits.command_timeout / STRESS_FACTOR).max(STRESS_FLOOR).min(limits.command_timeout)
        } else {
            limits.command_timeout
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        while !self.server.output().is_empty() {
            let written = poll_fn(|cx| {
                match Pin::new(&mut self.stream).poll_write(cx, self.server.output()) {
                    Poll::Ready(result) => Poll::Ready(result.map_err(Broken::from)),
                    Poll::Pending => self.poll_deadline(cx).map(Err),
                }
            })
            .await?;
            if written == 0 {
                return Err(Broken::Gone);
            }
            self.server.written(written);
        }
        if self.stream.has_unsent() {
            poll_fn(|cx| match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(result) => Poll::Ready(result.map_err(Broken::from)),
                Poll::Pending => self.poll_deadline(cx).map(Err),
            })
            .await?;
        }
        Ok(())
    }

    /// Reads once and lets the state machine have it.
    async fn read(&mut self) -> Result<Next, Broken> {
        // What is read at once may have to be kept: little, where memory is short.
        let most = if self.relay.budget.level() == Level::Full { READ_FULL } else { READ };
        poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(&mut scratch[..most]);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => return self.poll_deadline(cx).map(Err),
                }
                if buffer.filled().is_empty() {
                    return Poll::Ready(Err(Broken::Gone));
                }
                let next = self.take(buffer.filled());
                self.weigh(0);
                if matches!(next, Ok(Next::LogIn(_))) {
                    // Other sessions read into it next, and need not find a password there.
                    buffer.filled_mut().zeroize();
                }
                Poll::Ready(next)
            })
        })
        .await
    }

    /// Ready when the deadline has passed, or the relay stops and nothing is under way.
    fn poll_deadline(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Broken> {
        if self.relay.is_stopping() && self.message.is_none() && self.server.output().is_empty() {
            return Poll::Ready(Broken::Ended(Ended::Stopping));
        }
        // A deadline that was set before the relay came under stress is as short as others.
        if self.relay.is_under_stress() {
            self.deadline.at_most(self.patience());
        }
        self.deadline.poll_passed(cx).map(|()| Broken::Ended(Ended::Timeout))
    }

    /// Steps through input until more is needed or a message is whole.
    fn take(&mut self, input: &[u8]) -> Result<Next, Broken> {
        let mut at = 0;
        loop {
            let (used, step) = self.server.step(&input[at..]);
            at += used;
            match step {
                Step::NeedInput => {
                    self.check_rate()?;
                    return Ok(Next::Read);
                }
                Step::Close(closing) => {
                    // It has its answer from the state machine.
                    if closing == Closing::Misbehaved {
                        let (client, reason) = (self.source.client, Ended::Misbehaved);
                        self.relay.emit(&Event::SessionEnded { client, reason });
                    }
                    return Ok(Next::Close);
                }
                Step::End(facts) => {
                    self.pending.extend_from_slice(&input[at..]);
                    return Ok(Next::HandOff(facts));
                }
                Step::Helo(helo) => {
                    self.message = None;
                    let source = Arc::make_mut(&mut self.source);
                    source.helo = helo.name.into();
                    source.extended = helo.extended;
                    let destination = self.source.destination;
                    let offered = self.relay.look().offered(&self.listener, destination);
                    self.server.accept_helo(offered);
                }
                Step::Mail(mail) => match self.busy() {
                    Some(reason) => self.refuse_for_now(reason),
                    None => {
                        let (now, random) =
                            (self.relay.waves.now(), self.relay.world.entropy.next());
                        let id = MessageId::new(now, random);
                        self.message = Some(Box::new(Collected::new(id, mail)));
                        let text = format!("id {id}");
                        self.server.reply(&relay_reply(250, Enhanced(2, 1, 0), &text));
                    }
                },
                Step::Rcpt(_) if self.relay.budget.level() == Level::Full => {
                    self.refuse_for_now(Busy::Memory);
                }
                Step::Rcpt(rcpt) => match &mut self.message {
                    Some(message)
                        if message.recipients() >= self.relay.look().config.limits.recipients =>
                    {
                        self.server.reply(&TOO_MANY);
                    }
                    Some(_) if self.relay.look().verifies => {
                        self.pending.extend_from_slice(&input[at..]);
                        return Ok(Next::Verify(Box::new(rcpt)));
                    }
                    Some(message) => {
                        message.add_recipient(rcpt);
                        self.server.accept();
                    }
                    None => unreachable!("a recipient belongs to a transaction"),
                },
                Step::Data => {
                    if let Some(message) = &mut self.message {
                        message.begin(&self.relay.bodies, Instant::now());
                    }
                    self.server.accept();
                }
                Step::Body(bytes) => {
                    if let Some(message) = &mut self.message {
                        message.push(bytes);
                    }
                }
                Step::Dropped(fault) => {
                    self.message = None;
                    let client = self.source.client;
                    self.relay.emit(&Event::MessageRejected { client, fault });
                }
                Step::Reset => self.message = None,
                // The state machine has seen to it that nothing stands behind these.
                Step::Auth(credentials) => return Ok(Next::LogIn(credentials)),
                Step::Xclient(told) => self.become_client(told),
                Step::StartTls => match self.acceptor() {
                    Some(acceptor) => {
                        self.message = None;
                        self.server.accept();
                        return Ok(Next::Secure(acceptor));
                    }
                    None => self.server.reply(&NO_TLS),
                },
            }
        }
    }

    /// A message must come at a minimum rate, on average, after a minute's grace.
    fn check_rate(&self) -> Result<(), Broken> {
        let Some((begun, bytes)) = self.message.as_ref().and_then(|message| message.progress())
        else {
            return Ok(());
        };
        let elapsed = begun.elapsed();
        if elapsed < RATE_GRACE || !self.server.is_receiving_message() {
            return Ok(());
        }
        let rate = self.relay.look().config.limits.data_rate;
        if bytes < rate.saturating_mul(elapsed.as_secs()) {
            return Err(Broken::Ended(Ended::TooSlow));
        }
        Ok(())
    }

    /// The message is whole: have it handed off, answer, and go on with what came behind it.
    async fn hand_off(&mut self, facts: BodyFacts) -> Next {
        let Some(message) = self.message.take() else {
            unreachable!("a message that ended had begun")
        };
        let id = message.id;
        let parcel = message.into_parcel(facts);
        self.weigh(budget::HANDOFF);
        // Boxed, so that a session that waits for commands is small.
        let handed = match parcel {
            Ok(parcel) => {
                let deadline = &mut self.deadline;
                Box::pin(handoff::deliver(&self.relay, &self.source, id, parcel, deadline)).await
            }
            Err(refusal) => handoff::Handed::refused(refusal),
        };
        self.server.reply(&handed.reply);
        self.deadline.set(self.patience());
        let pending = std::mem::take(&mut self.pending);
        let next = self.take(&pending);
        self.weigh(0);
        // A client that has sent the next message too is told now what became of this one: the
        // next one's upstream may take its time.
        let waits = pending.is_empty() || matches!(next, Ok(Next::HandOff(_) | Next::Verify(_)));
        if waits && self.flush().await.is_err() {
            handed.reply_lost(&self.relay);
            return Next::Close;
        }
        next.unwrap_or(Next::Close)
    }
}
