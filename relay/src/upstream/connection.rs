//! One connection to a target: the client state machine over a stream. Floor 2.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::Instant,
};
use wavegate_smtp::{
    Client, ClientError, ClientEvent, Credentials, Extensions, Mechanism, Reply, Upgrade,
};

use super::{LinkFault, identity};
use crate::{
    config::UpstreamTlsMode,
    message::{Secured, Source},
    names::Endpoint,
    tls::Connector,
    world::{Deadline, Stream, TlsError, World},
};

/// Bytes of replies read at once.
const READ: usize = 16 * 1024;
/// Most slices in one write (Linux: IOV_MAX).
const SLICES: usize = 1024;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(0) };
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// The number of the calling worker; 0 outside of workers.
pub fn current_worker() -> usize {
    WORKER.get()
}

/// Numbers the calling thread as a worker.
pub fn set_current_worker(number: usize) {
    WORKER.set(number);
}

/// Why a connection did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The network's fault.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The upstream did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The upstream does not want the session.
    #[error("it said {}", .0.code())]
    Refused(Reply),
    /// There is no TLS with it.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// TLS is required, and it has none.
    #[error("it does not offer STARTTLS, which `tls` requires")]
    NotOffered,
    /// TLS is required, and it refused it.
    #[error("it refused STARTTLS, which `tls` requires: {}", .0.code())]
    Declined(Reply),
    /// It is this relay itself.
    #[error(
        "it came back to this relay: the rules that redirect must leave its user out (wavegate \
         host rules --user)"
    )]
    Loop,
    /// Sessions are to be clients', and it does not let them be: XCLIENT is not offered, or was
    /// refused so.
    #[error("{}", no_xclient(.0.as_ref()))]
    NoXclient(Option<Reply>),
    /// It does not want the client that the connection speaks for. Says nothing of the target.
    #[error("it does not want this client: {0}")]
    Unwanted(Reply),
    /// It refused the login. Its words are not shown: there is no saying what it repeats in them.
    #[error("it refused the login of `auth`: {}", status(.0))]
    Login(Reply),
    /// There is no way to log in.
    #[error("it offers no AUTH that can be used, which `auth` requires (PLAIN or LOGIN)")]
    NoMechanism,
    /// There is no connection with a gateway.
    #[error(transparent)]
    Link(#[from] LinkFault),
    /// It would have to be asked again, and the window forbids that.
    #[error("the window forbids asking again: {0}")]
    Held(&'static str),
    /// No connection came free for it.
    #[error("all {0} connections are busy (connections)")]
    Busy(usize),
    /// No target may be tried now.
    #[error("every target is down")]
    Down,
    /// The upstream closed, or did not speak SMTP.
    #[error(transparent)]
    Protocol(#[from] ClientError),
}

/// An SMTP connection to a target.
#[derive(Debug)]
pub struct Connection {
    stream: Option<Stream>,
    client: Client,
    endpoint: Endpoint,
    /// Whom it speaks for; none: for the relay.
    owner: Option<Arc<Source>>,
    home: usize,
    messages: u32,
    idle_since: Instant,
    deadline: Deadline,
}

/// What stops a write right before the end of data.
pub trait Commit {
    /// Asked before each write that holds the end of data.
    type Refusal;
    /// May the end of data be written now? Then it counts as written.
    fn commit(&mut self) -> Result<(), Self::Refusal>;
    /// It was not written after all.
    fn uncommit(&mut self);
}

/// Why a body was not written.
#[derive(Debug)]
pub enum WriteError<R> {
    /// The end of data may not be written.
    Held(R),
    /// The connection broke before the end of data.
    Broken(ConnectionError),
}

impl Connection {
    /// Connects, says `header` before all else, waits for the greeting, says EHLO; under TLS where
    /// that is wanted.
    pub async fn open(
        world: &World,
        endpoint: &Endpoint,
        hostname: &Arc<str>,
        time: Duration,
        tls: Option<&Connector>,
        header: &[u8],
    ) -> Result<(Self, Extensions), ConnectionError> {
        let mut own = None;
        let opening = async {
            let (mut stream, begun) = world.network.connect(endpoint.address).await?;
            own = begun;
            stream.write_all(header).await?;
            let mut connection = Self {
                stream: Some(stream),
                client: Client::new(Arc::clone(hostname)).starttls(upgrade(tls)),
                endpoint: endpoint.clone(),
                owner: None,
                home: current_worker(),
                messages: 0,
                idle_since: Instant::now(),
                deadline: Deadline::default(),
            };
            if let Some(tls) = tls.filter(|tls| tls.mode == UpstreamTlsMode::Implicit) {
                connection.secure(tls).await?;
            }
            loop {
                match (connection.event(time).await?, tls) {
                    // What it says behind its answer, such as 421, is the next event.
                    (ClientEvent::Ready(extensions), _) => {
                        if connection.client.is_ready() {
                            return Ok((connection, extensions));
                        }
                    }
                    (ClientEvent::StartTls, Some(tls)) => {
                        connection.secure(tls).await?;
                        connection.client.secured();
                    }
                    (ClientEvent::NoTls(None), _) => return Err(ConnectionError::NotOffered),
                    (ClientEvent::NoTls(Some(reply)), _) => {
                        return Err(ConnectionError::Declined(reply));
                    }
                    (ClientEvent::Refused(reply) | ClientEvent::Closing(reply), _) => {
                        return Err(ConnectionError::Refused(reply));
                    }
                    (other, _) => {
                        unreachable!("before any command the upstream was answered {other:?}")
                    }
                }
            }
        };
        let opened = tokio::time::timeout(time, opening).await;
        let opened = opened.unwrap_or(Err(ConnectionError::Timeout(time)));
        match own {
            Some(own) if own.came_back() => Err(ConnectionError::Loop),
            _ => opened,
        }
    }

    /// Takes the TLS handshake.
    async fn secure(&mut self, tls: &Connector) -> Result<(), TlsError> {
        let stream = self.stream.as_mut().ok_or(io::Error::from(io::ErrorKind::NotConnected))?;
        let Endpoint { address, host } = &self.endpoint;
        let name = tls.name(host.as_deref(), address.ip());
        stream.begin_client_tls(Arc::clone(&tls.config), name)?;
        poll_fn(|cx| stream.poll_handshake(cx)).await
    }

    /// Makes the session a client's.
    pub async fn speak_for(
        &mut self,
        source: &Arc<Source>,
        time: Duration,
    ) -> Result<Extensions, ConnectionError> {
        self.client.speak_for(&identity::of(source, None));
        loop {
            match self.event(time).await? {
                ClientEvent::Ready(extensions) if self.client.is_ready() => {
                    self.owner = Some(Arc::clone(source));
                    return Ok(extensions);
                }
                ClientEvent::Ready(_) => {}
                ClientEvent::NoXclient(reply) => return Err(ConnectionError::NoXclient(reply)),
                ClientEvent::Refused(reply) | ClientEvent::Closing(reply) => {
                    return Err(ConnectionError::Unwanted(reply));
                }
                other => unreachable!("XCLIENT was answered {other:?}"),
            }
        }
    }

    /// Logs in; the upstream's answer, whatever it is.
    pub async fn log_in(
        &mut self,
        credentials: &Credentials,
        mechanism: Option<Mechanism>,
        time: Duration,
    ) -> Result<Reply, ConnectionError> {
        self.client.log_in(credentials, mechanism);
        loop {
            match self.event(time).await? {
                ClientEvent::Login(reply) => {
                    if self.client.is_ready() || reply.is_negative() {
                        return Ok(reply);
                    }
                }
                ClientEvent::NoLogin => return Err(ConnectionError::NoMechanism),
                ClientEvent::Closing(reply) => return Err(ConnectionError::Refused(reply)),
                other => unreachable!("AUTH was answered {other:?}"),
            }
        }
    }

    /// Says that it speaks for this client from its beginning.
    pub(super) fn owned_by(mut self, owner: Arc<Source>) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Whether it speaks for this client.
    pub(super) fn speaks_for(&self, source: &Source) -> bool {
        self.owner.as_deref().is_some_and(|owner| identity::is_same(owner, source))
    }

    /// Whether it can be made another client's.
    pub(super) fn takes_xclient(&self) -> bool {
        self.client.takes_xclient()
    }

    /// How it is protected, if it is.
    pub fn secured(&self) -> Option<Secured> {
        self.stream.as_ref().and_then(Stream::secured)
    }

    /// The state machine.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The worker whose reactor it is in.
    pub fn home(&self) -> usize {
        self.home
    }

    /// Messages that were begun on it.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// One more message begins.
    pub fn count_message(&mut self) {
        self.messages = self.messages.saturating_add(1);
    }

    /// Since when it is idle.
    pub fn idle_since(&self) -> Instant {
        self.idle_since
    }

    /// The connection, idle from now on.
    pub fn idle_from(mut self, now: Instant) -> Self {
        self.idle_since = now;
        self
    }

    /// Moves it to the calling worker's reactor.
    pub fn rehome(&mut self) -> io::Result<()> {
        if self.home == current_worker() {
            return Ok(());
        }
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        self.stream = Some(stream.rehome()?);
        self.home = current_worker();
        self.deadline.detach();
        Ok(())
    }

    /// Whether nothing was said and nothing closed while it was idle.
    pub fn is_quiet(&mut self) -> bool {
        self.client.is_ready() && self.stream.as_mut().is_some_and(Stream::is_quiet)
    }

    /// Says goodbye without waiting for the answer.
    pub fn quit(mut self) {
        self.client.quit();
        if let Some(stream) = &mut self.stream {
            stream.write_now(self.client.output());
        }
    }

    /// The next event, within `time`: writes what is to be written and reads until something
    /// happens.
    pub async fn event(&mut self, time: Duration) -> Result<ClientEvent, ConnectionError> {
        if let Some(event) = self.client.poll() {
            return Ok(event);
        }
        self.deadline.set(time);
        poll_fn(|cx| {
            loop {
                if let Some(event) = self.client.poll() {
                    return Poll::Ready(Ok(event));
                }
                if self.client.is_closed() {
                    return Poll::Ready(Err(ClientError::Closed.into()));
                }
                match self.poll_progress(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        ready!(self.deadline.poll_passed(cx));
                        return Poll::Ready(Err(ConnectionError::Timeout(time)));
                    }
                }
            }
        })
        .await
    }

    /// One write while there is output, else one read.
    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::NotConnected).into()));
        };
        if !self.client.output().is_empty() {
            let written = ready!(Pin::new(stream).poll_write(cx, self.client.output()))?;
            if written == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.client.written(written);
            return Poll::Ready(Ok(()));
        }
        if stream.has_unsent() {
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            let taken = match buffer.filled() {
                [] => self.client.eof(),
                bytes => self.client.receive(bytes),
            };
            Poll::Ready(taken.map_err(ConnectionError::from))
        })
    }

    /// What the upstream said before it broke the connection, if that ends the transaction.
    pub fn last_words(&mut self) -> Option<ClientEvent> {
        let stream = self.stream.as_mut()?;
        SCRATCH.with_borrow_mut(|scratch| {
            let count = stream.read_now(scratch)?;
            self.client.receive(scratch.get(..count)?).ok()?;
            self.client.poll()
        })
    }

    /// Writes the state machine's output and `slices` behind it, within `time`; `last` says that the end of
    /// data is among them. Then each write asks `commit` first, so that there is no moment
    /// between the look and the leaving.
    pub async fn write_slices<C: Commit>(
        &mut self,
        slices: &[&[u8]],
        last: bool,
        commit: &mut C,
        time: Duration,
    ) -> Result<(), WriteError<C::Refusal>> {
        self.deadline.set(time);
        let mut skip = 0;
        let mut at = 0;
        poll_fn(|cx| {
            loop {
                let output = self.client.output().len();
                // Under TLS what was accepted may not be sent yet: nobody can read a record whose
                // last byte is missing, so it has not left.
                let accepted = output == 0 && at == slices.len();
                if accepted && !self.has_unsent() {
                    return Poll::Ready(Ok(()));
                }
                let ends = last && slices.len() - at < SLICES;
                if ends && let Err(refusal) = commit.commit() {
                    return Poll::Ready(Err(WriteError::Held(refusal)));
                }
                let polled = match accepted {
                    true => self.poll_flush(cx),
                    false => self.poll_write(cx, &slices[at..], skip),
                };
                let written = match polled {
                    Poll::Ready(Ok(0)) if !accepted => {
                        Err(io::Error::from(io::ErrorKind::WriteZero))
                    }
                    Poll::Ready(result) => result,
                    Poll::Pending => {
                        if ends {
                            commit.uncommit();
                        }
                        ready!(self.deadline.poll_passed(cx));
                        let late = ConnectionError::Timeout(time);
                        return Poll::Ready(Err(WriteError::Broken(late)));
                    }
                };
                let written = match written {
                    Ok(written) => written,
                    Err(error) => {
                        if ends {
                            commit.uncommit();
                        }
                        return Poll::Ready(Err(WriteError::Broken(error.into())));
                    }
                };
                let commands = written.min(output);
                self.client.written(commands);
                advance(slices, &mut at, &mut skip, written - commands);
                if ends && (at < slices.len() || self.has_unsent()) {
                    commit.uncommit();
                }
            }
        })
        .await
    }

    fn has_unsent(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::has_unsent)
    }

    /// Sends what was accepted; that is nothing more of the slices.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        Pin::new(stream).poll_flush(cx).map_ok(|()| 0)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[&[u8]],
        skip: usize,
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let mut vectors = [IoSlice::new(&[]); 8];
        let mut heap = Vec::new();
        let first = std::iter::once(self.client.output());
        let rest = slices.iter().enumerate().map(|(i, s)| if i == 0 { &s[skip..] } else { s });
        let all = first.chain(rest).take(SLICES).map(IoSlice::new);
        let filled = if slices.len() < vectors.len() {
            let count = slices.len() + 1;
            vectors.iter_mut().zip(all).for_each(|(place, slice)| *place = slice);
            &vectors[..count]
        } else {
            heap.extend(all);
            &heap[..]
        };
        Pin::new(stream).poll_write_vectored(cx, filled)
    }
}

/// What there is to say about a missing XCLIENT.
fn no_xclient(reply: Option<&Reply>) -> String {
    match reply {
        None => "it does not offer XCLIENT with ADDR, which `identity` requires".to_owned(),
        Some(reply) => format!("it refused XCLIENT, which `identity` requires: {}", status(reply)),
    }
}

/// The codes of a reply without its words.
fn status(reply: &Reply) -> String {
    match reply.enhanced() {
        Some(enhanced) => format!("{} {enhanced}", reply.code()),
        None => reply.code().to_string(),
    }
}

/// Whether TLS is asked for.
fn upgrade(tls: Option<&Connector>) -> Upgrade {
    match tls.map(|tls| tls.mode) {
        None | Some(UpstreamTlsMode::Implicit) => Upgrade::Never,
        Some(UpstreamTlsMode::Opportunistic) => Upgrade::IfOffered,
        Some(UpstreamTlsMode::Required) => Upgrade::Demanded,
    }
}

/// Moves the position in `slices` on by `count` bytes.
fn advance(slices: &[&[u8]], at: &mut usize, skip: &mut usize, mut count: usize) {
    while *at < slices.len() {
        let left = slices[*at].len() - *skip;
        if count < left {
            *skip += count;
            return;
        }
        count -= left;
        *at += 1;
        *skip = 0;
    }
}
