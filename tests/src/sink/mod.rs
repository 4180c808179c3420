//! A fast SMTP server that accepts everything, or fails exactly as it is told to.
//!
//! Owns its listener, threads, counts and records; delivers nothing. Used in process by the suites
//! ([`Sink::start`]) and as a command. Floor: none. Start reading at [`Sink::start`].

mod content;
mod envelope;
mod fault;
mod identity;
mod record;
mod session;
mod transaction;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc as channel, watch};
use tokio::task::LocalSet;
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use fault::Faults;
pub use fault::{Action, Fault, Stage, When};
pub use identity::{Identity, Told};
use record::Recorder;
pub use record::{Message, Recipient};

/// Connections that may wait for accept: a burst of 10,000 idle ones must not be turned away.
const BACKLOG: u32 = 16_384;
/// Connections that wait to be taken by a worker thread.
const HANDED_OVER: usize = 1024;

/// What the EHLO reply offers. What is not offered is refused when used.
#[derive(Clone, Debug)]
pub struct Extensions {
    /// RFC 2920; without it, a command that did not wait for its turn is a violation.
    pub pipelining: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 6152.
    pub eightbitmime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 1870, with the greatest size; longer content is refused too.
    pub size: Option<u64>,
}

impl Default for Extensions {
    fn default() -> Self {
        Self {
            pipelining: true,
            chunking: false,
            eightbitmime: true,
            smtputf8: true,
            dsn: true,
            size: None,
        }
    }
}

/// How a sink behaves.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Where to listen; port 0 for a free one.
    pub listen: SocketAddr,
    /// The name in greeting and EHLO reply.
    pub hostname: String,
    /// What is offered.
    pub extensions: Extensions,
    /// Sessions begin with a TLS handshake (RFC 8314).
    pub tls: Option<Arc<ServerConfig>>,
    /// What it is told of who is behind a session.
    pub identity: Identity,
    /// How much later the reply to the end of the content comes.
    pub reply_delay: Duration,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// After so many messages of a session the next MAIL gets 421.
    pub messages_per_session: Option<u64>,
    /// Check line ends of every content; what is not proper counts as `bad_contents`.
    pub verify: bool,
    /// Remember every accepted message for [`SinkHandle::messages`].
    pub record: bool,
    /// Remember the content too. Only with `record`.
    pub keep_content: bool,
    /// Remember only the header of the content, for a test of many messages. Only with `record`.
    pub keep_header: bool,
    /// Write every accepted message's envelope and digests to this file, one JSON object a line.
    pub record_file: Option<PathBuf>,
    /// Threads that share the sessions.
    pub threads: usize,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            hostname: "sink.example".into(),
            extensions: Extensions::default(),
            tls: None,
            identity: Identity::default(),
            reply_delay: Duration::ZERO,
            faults: Vec::new(),
            messages_per_session: None,
            verify: false,
            record: false,
            keep_content: false,
            keep_header: false,
            record_file: None,
            threads: 1,
        }
    }
}

/// What a sink has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Messages answered 250.
    pub messages: u64,
    /// Recipients of these messages.
    pub recipients: u64,
    /// Content bytes of these messages, as on the wire (dots doubled by DATA).
    pub bytes: u64,
    /// Messages that came by BDAT.
    pub chunked: u64,
    /// Negative replies, faults included.
    pub negative: u64,
    /// What a client must not do: pipelining or an extension that was not offered, bad syntax or order.
    pub violations: u64,
    /// Contents with bare CR or LF, or no CRLF at the end. Only with `verify`.
    pub bad_contents: u64,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    messages: AtomicU64,
    recipients: AtomicU64,
    bytes: AtomicU64,
    chunked: AtomicU64,
    negative: AtomicU64,
    violations: AtomicU64,
    bad_contents: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What all sessions share.
struct Shared {
    options: SinkOptions,
    ehlo: Vec<u8>,
    counters: Counters,
    faults: RwLock<Arc<Faults>>,
    recorder: Option<Recorder>,
    /// The number of accepted messages, for whoever waits for them.
    progress: record::Progress,
}

/// Starts sinks.
#[derive(Debug)]
pub struct Sink;

impl Sink {
    /// Starts a sink on threads of its own; it listens when this returns.
    pub fn start(options: SinkOptions) -> anyhow::Result<SinkHandle> {
        anyhow::ensure!(options.threads > 0, "a sink needs a thread");
        let shared = Arc::new(Shared {
            ehlo: session::ehlo_reply(&options),
            counters: Counters::default(),
            faults: RwLock::new(Arc::new(Faults::new(options.faults.clone()))),
            recorder: Recorder::new(&options)?,
            progress: record::Progress::default(),
            options,
        });
        let (stop, stopped) = watch::channel(());
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for n in 1..shared.options.threads {
            let (give, take) = channel::channel(HANDED_OVER);
            workers.push(give);
            let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
            let run = move || serve(&shared, stopped, take);
            threads.push(std::thread::Builder::new().name(format!("sink-{n}")).spawn(run)?);
        }
        let (bound, address) = mpsc::sync_channel(1);
        let main = Arc::clone(&shared);
        let run = move || accept(&main, stopped, &workers, &bound);
        threads.push(std::thread::Builder::new().name("sink-0".into()).spawn(run)?);
        let addr = address.recv().context("the sink's thread ended")??;
        Ok(SinkHandle { addr, shared, stop: Some(stop), threads })
    }
}

/// A running sink; dropping it closes every connection and the listener.
pub struct SinkHandle {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<watch::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl SinkHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it has seen so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            connections: get(&counters.connections),
            open: get(&counters.open),
            messages: get(&counters.messages),
            recipients: get(&counters.recipients),
            bytes: get(&counters.bytes),
            chunked: get(&counters.chunked),
            negative: get(&counters.negative),
            violations: get(&counters.violations),
            bad_contents: get(&counters.bad_contents),
        }
    }

    /// The recorded messages so far, in the order of their acceptance.
    pub fn messages(&self) -> Vec<Message> {
        self.shared.recorder.as_ref().map(Recorder::messages).unwrap_or_default()
    }

    /// Waits until `n` messages in all were accepted; whether they were, before `limit` was over.
    pub fn wait_messages(&self, n: u64, limit: Duration) -> bool {
        self.shared.progress.wait(n, limit)
    }

    /// Replaces the faults; their counting begins anew.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        let mut current = self.shared.faults.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(Faults::new(faults));
    }

    /// Stops, waits for the threads, and gives the final counts. Writes out the record file.
    pub fn stop(mut self) -> Counts {
        self.end();
        self.counts()
    }

    fn end(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // A panic of a sink thread was printed; there is nothing to add to it here.
            let _panicked = thread.join();
        }
        if let Some(recorder) = &self.shared.recorder {
            recorder.flush();
        }
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Thread 0: accepts, serves its share, and hands the rest over in turn.
fn accept(
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<()>,
    workers: &[channel::Sender<std::net::TcpStream>],
    bound: &mpsc::SyncSender<anyhow::Result<SocketAddr>>,
) {
    let work = async {
        let listener = match listen(shared.options.listen) {
            Ok((listener, addr)) => {
                let _starter_is_gone = bound.send(Ok(addr));
                listener
            }
            Err(error) => {
                let _starter_is_gone = bound.send(Err(error));
                return;
            }
        };
        let mut turn = 0;
        loop {
            let stream = tokio::select! {
                biased;
                _ = stopped.changed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // Out of file descriptors: let sessions end first.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    }
                },
            };
            turn = (turn + 1) % (workers.len() + 1);
            match turn.checked_sub(1).and_then(|n| workers.get(n)) {
                Some(worker) => {
                    if let Ok(stream) = stream.into_std() {
                        let _worker_is_gone = worker.send(stream).await;
                    }
                }
                None => begin(shared, stream),
            }
        }
    };
    run(work, bound);
}

fn listen(addr: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr).with_context(|| format!("the sink cannot listen on {addr}"))?;
    let listener = socket.listen(BACKLOG)?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

fn run<F: Future<Output = ()>>(work: F, bound: &mpsc::SyncSender<anyhow::Result<SocketAddr>>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => LocalSet::new().block_on(&runtime, work),
        Err(error) => {
            let _starter_is_gone = bound.send(Err(error.into()));
        }
    }
}

/// The other threads: serve what they are handed.
fn serve(
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<()>,
    mut take: channel::Receiver<std::net::TcpStream>,
) {
    let (unused, _) = mpsc::sync_channel(1);
    let work = async {
        loop {
            tokio::select! {
                biased;
                _ = stopped.changed() => return,
                stream = take.recv() => match stream.map(TcpStream::from_std) {
                    Some(Ok(stream)) => begin(shared, stream),
                    Some(Err(_)) => {}
                    None => return,
                },
            }
        }
    };
    run(work, &unused);
}

fn begin(shared: &Arc<Shared>, stream: TcpStream) {
    let shared = Arc::clone(shared);
    tokio::task::spawn_local(async move {
        let open = Open::new(&shared.counters);
        // An I/O error means that the client is gone, which is its right.
        let _gone = serve_one(&shared, stream).await;
        drop(open);
    });
}

async fn serve_one(shared: &Arc<Shared>, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match &shared.options.tls {
        None => session::run(shared, stream).await,
        Some(tls) => {
            let stream = TlsAcceptor::from(Arc::clone(tls)).accept(stream).await?;
            session::run(shared, stream).await
        }
    }
}

/// Counts a connection as open while it lives, dropped tasks included.
struct Open<'a>(&'a Counters);

impl<'a> Open<'a> {
    fn new(counters: &'a Counters) -> Self {
        add(&counters.connections, 1);
        add(&counters.open, 1);
        Self(counters)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
