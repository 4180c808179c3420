//! The threads that carry mail. Floor 4.
//!
//! Each worker is one thread with one reactor, its own warm policies and buffers. A session
//! lives on one worker from its beginning to its end, with the upstream connections that it
//! uses; so no wake-up crosses threads. All workers accept from the same sockets; whoever takes
//! a connection gives it to the worker with the fewest sessions, if that has clearly fewer.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::AbortHandle,
};

use crate::{
    listener::{Clients, Counted, refusal},
    relay::{Relay, with_policies},
    session::{self, Client, stopping},
    upstream::connection::set_current_worker,
    world::Stream,
};

/// Commands and handed-over connections that may wait for one worker.
const QUEUE: usize = 4096;
/// A worker keeps what it accepts unless another has more than this many sessions fewer.
const IMBALANCE: usize = 1;
/// Pause after a failed accept (out of file descriptors): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker is told.
pub enum Command {
    /// Accept from this socket, under the name of a listener.
    Listen(String, std::net::TcpListener),
    /// Accept for this listener no more.
    Close(String),
    /// Serve this connection.
    Take(Box<Accepted>),
    /// End the sessions and stop, within the time given.
    Stop(Duration),
}

/// An accepted connection on its way to another worker.
pub struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    listener: String,
    counted: Counted,
}

/// All workers.
pub struct Workers {
    senders: Vec<mpsc::Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

/// What workers know of each other.
struct Shared {
    relay: Arc<Relay>,
    clients: Arc<Clients>,
    sessions: Vec<AtomicUsize>,
    senders: Vec<mpsc::Sender<Command>>,
}

impl Workers {
    /// Starts `count` workers.
    pub fn start(relay: &Arc<Relay>, count: usize) -> io::Result<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
        let shared = Arc::new(Shared {
            relay: Arc::clone(relay),
            clients: Arc::default(),
            sessions: (0..count).map(|_| AtomicUsize::new(0)).collect(),
            senders: senders.clone(),
        });
        let mut threads = Vec::with_capacity(count);
        for (number, receiver) in receivers.into_iter().enumerate() {
            let worker = Worker { number, shared: Arc::clone(&shared), idle: Arc::default() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || {
                set_current_worker(number + 1);
                runtime.block_on(worker.run(receiver));
            })?);
        }
        Ok(Self { senders, threads })
    }

    /// All workers accept from a socket from now on.
    pub fn listen(&self, name: &str, socket: &std::net::TcpListener) -> io::Result<()> {
        for sender in &self.senders {
            let command = Command::Listen(name.to_owned(), socket.try_clone()?);
            // A worker that has ended takes no commands; the relay is stopping then.
            let _ = sender.blocking_send(command);
        }
        Ok(())
    }

    /// No worker accepts for a listener any more.
    pub fn close(&self, name: &str) {
        for sender in &self.senders {
            let _ = sender.blocking_send(Command::Close(name.to_owned()));
        }
    }

    /// Ends all sessions, at the next boundary within `patience`, and the workers. Blocks.
    pub fn stop(self, patience: Duration) {
        for sender in &self.senders {
            let _ = sender.blocking_send(Command::Stop(patience));
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

struct Worker {
    number: usize,
    shared: Arc<Shared>,
    /// Told when the last session has ended.
    idle: Arc<Notify>,
}

impl Worker {
    async fn run(self, mut commands: mpsc::Receiver<Command>) {
        let worker = Arc::new(self);
        let mut acceptors: HashMap<String, AbortHandle> = HashMap::new();
        worker.warm();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Listen(name, socket) => match TcpListener::from_std(socket) {
                    Ok(socket) => {
                        let accepting = Arc::clone(&worker).accept(name.clone(), socket);
                        let task = tokio::spawn(accepting).abort_handle();
                        if let Some(old) = acceptors.insert(name, task) {
                            old.abort();
                        }
                    }
                    Err(error) => tracing::error!(listener = name, %error, "cannot accept"),
                },
                Command::Close(name) => {
                    if let Some(acceptor) = acceptors.remove(&name) {
                        acceptor.abort();
                    }
                }
                Command::Take(accepted) => worker.take(*accepted),
                Command::Stop(patience) => {
                    acceptors.values().for_each(AbortHandle::abort);
                    worker.drain(patience).await;
                    return;
                }
            }
        }
    }

    /// Makes instances of the policies before the first message needs them.
    fn warm(&self) {
        let relay = &self.shared.relay;
        let generation = relay.generation();
        let warmed = with_policies(&relay.policy_host, |mine| mine.warm(&generation.policies));
        if let Err(error) = warmed {
            tracing::warn!(%error, "policies are not warm");
        }
    }

    async fn accept(self: Arc<Self>, listener: String, socket: TcpListener) {
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => self.accepted(&listener, stream, peer),
                Err(error) => {
                    tracing::warn!(listener, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accepted(self: &Arc<Self>, listener: &str, stream: TcpStream, peer: SocketAddr) {
        let counted = match self.shared.clients.admit(&self.shared.relay, peer) {
            Ok(counted) => counted,
            Err(reason) => {
                tokio::spawn(turn_away(stream, refusal(reason)));
                return;
            }
        };
        let target = self.least_loaded();
        if target == self.number {
            return self.serve(listener, stream, peer, counted);
        }
        let Ok(stream) = stream.into_std() else { return };
        let accepted = Accepted { stream, peer, listener: listener.to_owned(), counted };
        let command = Command::Take(Box::new(accepted));
        if let Err(mpsc::error::TrySendError::Full(Command::Take(back))) =
            self.shared.senders[target].try_send(command)
        {
            self.take(*back);
        }
    }

    /// This worker, unless another has clearly fewer sessions.
    fn least_loaded(&self) -> usize {
        let load = |number: usize| self.shared.sessions[number].load(Ordering::Relaxed);
        let least = (0..self.shared.sessions.len()).min_by_key(|number| load(*number));
        match least {
            Some(least) if load(least) + IMBALANCE < load(self.number) => least,
            _ => self.number,
        }
    }

    fn take(self: &Arc<Self>, accepted: Accepted) {
        let Accepted { stream, peer, listener, counted } = accepted;
        match TcpStream::from_std(stream) {
            Ok(stream) => self.serve(&listener, stream, peer, counted),
            Err(error) => tracing::warn!(%error, "a connection is lost between workers"),
        }
    }

    fn serve(
        self: &Arc<Self>,
        listener: &str,
        stream: TcpStream,
        peer: SocketAddr,
        counted: Counted,
    ) {
        let relay = &self.shared.relay;
        // Replies are written whole; waiting to fill a packet only costs time.
        let _ = stream.set_nodelay(true);
        let Some(client) = Client::new(relay, listener, Stream::Tcp(stream), peer) else { return };
        let session = Session::new(Arc::clone(self));
        let serving = session::serve(Arc::clone(relay), client);
        tokio::spawn(async move {
            serving.await;
            drop((session, counted));
        });
    }

    /// Waits for the sessions to end.
    async fn drain(&self, patience: Duration) {
        stopping::wake_all();
        let ended = async {
            while self.shared.sessions[self.number].load(Ordering::Relaxed) > 0 {
                self.idle.notified().await;
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            tracing::warn!("sessions are cut off (limits.shutdown_timeout)");
        }
    }
}

/// A session of a worker, counted.
struct Session(Arc<Worker>);

impl Session {
    fn new(worker: Arc<Worker>) -> Self {
        worker.shared.sessions[worker.number].fetch_add(1, Ordering::Relaxed);
        Self(worker)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.0.shared.sessions[self.0.number].fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.idle.notify_one();
        }
    }
}

/// Tells a client why it is turned away, without waiting long for it to listen.
async fn turn_away(mut stream: TcpStream, words: &'static [u8]) {
    let telling = async {
        if stream.write_all(words).await.is_ok() {
            let _ = stream.shutdown().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
}
