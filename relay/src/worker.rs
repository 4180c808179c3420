//! The threads that carry mail. Floor 4.
//!
//! Each worker is one thread with one reactor, its own warm policies and buffers. A session
//! lives on one worker from its beginning to its end, with the upstream connections that it
//! uses; so no wake-up crosses threads. The first worker accepts. It keeps a few sessions to
//! itself, because sessions of one reactor share its wake-ups (measured: a seventh less
//! processor time a message with 20 sessions on one worker than on two); more sessions fill the
//! next worker, and when all have their share the one with the fewest gets the next.

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
    sync::{Notify, mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    conductor::Conductor,
    delivery,
    event::{Event, Refused},
    gateway::Port,
    listener::{Clients, Counted, proxy, redirect, refusal},
    message::Redirected,
    relay::{Relay, with_policies},
    session::{self, Client, stopping},
    upstream::{connection::set_current_worker, link},
    world::Stream,
};

/// Commands and handed-over connections that may wait for one worker.
const QUEUE: usize = 4096;
/// Sessions that fill a worker before the next one gets any.
const SHARE: usize = 32;
/// Pause after a failed accept (out of file descriptors): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker is told.
pub enum Command {
    /// Accept from this socket, under the name of a listener.
    Listen(String, std::net::TcpListener),
    /// Accept for this listener no more.
    Close(String),
    /// Serve a gateway's endpoint, until that closes.
    Serve(Box<Port>),
    /// Serve this connection.
    Take(Box<Accepted>),
    /// Sessions are to look whether they may wait for as long as they do.
    Hurry,
    /// Say that you are there.
    Answer(oneshot::Sender<()>),
    /// End the sessions and stop, within the time given.
    Stop(Duration),
}

/// An accepted connection on its way to another worker.
pub struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    listener: String,
    redirected: Option<Redirected>,
    counted: Counted,
    session: Session,
}

/// All workers.
pub struct Workers {
    senders: Vec<mpsc::Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

/// Asks the workers whether they still work.
#[derive(Clone)]
pub struct Pulse(Vec<mpsc::Sender<Command>>);

impl Pulse {
    /// Waits until each has answered, as long as that takes; false where one has ended.
    pub async fn answers(&self) -> bool {
        for worker in &self.0 {
            let (answer, answered) = oneshot::channel();
            if worker.send(Command::Answer(answer)).await.is_err() || answered.await.is_err() {
                return false;
            }
        }
        true
    }

    /// Has all sessions look whether their clients may take as long as they do. A worker that has
    /// no room for that has enough to do.
    pub fn hurry(&self) {
        for worker in &self.0 {
            let _ = worker.try_send(Command::Hurry);
        }
    }
}

/// What workers know of each other.
struct Shared {
    relay: Arc<Relay>,
    conductor: Arc<Conductor>,
    clients: Arc<Clients>,
    sessions: Vec<AtomicUsize>,
    /// Told when a worker's last session has ended.
    idle: Vec<Notify>,
    senders: Vec<mpsc::Sender<Command>>,
}

impl Workers {
    /// Starts `count` workers.
    pub fn start(relay: &Arc<Relay>, conductor: &Arc<Conductor>, count: usize) -> io::Result<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
        let shared = Arc::new(Shared {
            relay: Arc::clone(relay),
            conductor: Arc::clone(conductor),
            clients: Arc::default(),
            sessions: (0..count).map(|_| AtomicUsize::new(0)).collect(),
            idle: (0..count).map(|_| Notify::new()).collect(),
            senders: senders.clone(),
        });
        let mut threads = Vec::with_capacity(count);
        for (number, receiver) in receivers.into_iter().enumerate() {
            let worker = Worker { number, shared: Arc::clone(&shared) };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || {
                set_current_worker(number + 1);
                runtime.block_on(worker.run(receiver));
            })?);
        }
        Ok(Self { senders, threads })
    }

    /// Accepts from a socket from now on.
    pub fn listen(&self, name: &str, socket: &std::net::TcpListener) -> io::Result<()> {
        let command = Command::Listen(name.to_owned(), socket.try_clone()?);
        self.tell_acceptor(command);
        Ok(())
    }

    /// What tells whether they work, for as long as there are any.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.senders.clone())
    }

    /// Accepts for a listener no more.
    pub fn close(&self, name: &str) {
        self.tell_acceptor(Command::Close(name.to_owned()));
    }

    /// Serves a gateway's endpoints from now on, each on its worker.
    pub fn serve(&self, ports: Vec<Port>) {
        for port in ports {
            if let Some(worker) = self.senders.get(port.worker) {
                let _ = worker.blocking_send(Command::Serve(Box::new(port)));
            }
        }
    }

    fn tell_acceptor(&self, command: Command) {
        if let Some(first) = self.senders.first() {
            // A worker that has ended takes no commands; the relay is stopping then.
            let _ = first.blocking_send(command);
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
}

impl Worker {
    async fn run(self, mut commands: mpsc::Receiver<Command>) {
        let worker = Arc::new(self);
        let mut acceptors: HashMap<String, AbortHandle> = HashMap::new();
        worker.warm();
        tokio::spawn(delivery::serve(Arc::clone(&worker.shared.relay)));
        if worker.number == 0 {
            tokio::spawn(delivery::keeper::keep(Arc::clone(&worker.shared.relay)));
            tokio::spawn(Arc::clone(&worker.shared.conductor).drive());
        }
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
                Command::Serve(port) => {
                    // It is waited for like a session.
                    let session = Session::new(&worker.shared, worker.number);
                    tokio::spawn(async move {
                        port.serve().await;
                        drop(session);
                    });
                }
                Command::Take(accepted) => worker.take(*accepted),
                Command::Hurry => stopping::wake_all(),
                Command::Answer(answer) => {
                    // Whoever asked may have waited for long enough.
                    let _ = answer.send(());
                }
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
        let shared = &self.shared;
        let generation = shared.relay.look();
        let config = generation.listener(listener).map(|one| &*one.config);
        let proxied = config.is_some_and(|config| config.has_proxy(peer.ip()));
        let shakes_hands = config.is_some_and(|config| config.is_implicit_tls());
        let redirected = redirect::look(&stream, peer, config, &shared.relay.world.openings);
        let admitted = redirected.and_then(|redirected| {
            let counted = shared.clients.admit(&shared.relay, shakes_hands)?;
            // A proxy's client is counted once it is known.
            let counted = if proxied { counted } else { counted.of(peer)? };
            Ok((redirected, counted))
        });
        let (redirected, counted) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                let relay = Arc::clone(&shared.relay);
                let listener = listener.to_owned();
                let newcomer = Newcomer { relay, listener, stream, peer };
                tokio::spawn(newcomer.turn_away(reason));
                return;
            }
        };
        let target = self.place();
        if target == self.number {
            let session = Session::new(&self.shared, target);
            return self.serve(listener, stream, peer, redirected, counted, session);
        }
        let Ok(stream) = stream.into_std() else { return };
        let session = Session::new(&self.shared, target);
        let listener = listener.to_owned();
        let accepted = Accepted { stream, peer, listener, redirected, counted, session };
        let command = Command::Take(Box::new(accepted));
        if let Err(mpsc::error::TrySendError::Full(Command::Take(back))) =
            self.shared.senders[target].try_send(command)
        {
            self.take(*back);
        }
    }

    /// The worker for one more session.
    fn place(&self) -> usize {
        let load = |number: &usize| self.shared.sessions[*number].load(Ordering::Relaxed);
        let mut workers = 0..self.shared.sessions.len();
        let unfilled = workers.clone().find(|number| load(number) < SHARE);
        unfilled.or_else(|| workers.by_ref().min_by_key(load)).unwrap_or(self.number)
    }

    fn take(self: &Arc<Self>, accepted: Accepted) {
        let Accepted { stream, peer, listener, redirected, counted, session } = accepted;
        match TcpStream::from_std(stream) {
            Ok(stream) => self.serve(&listener, stream, peer, redirected, counted, session),
            Err(error) => tracing::warn!(%error, "a connection is lost between workers"),
        }
    }

    fn serve(
        self: &Arc<Self>,
        listener: &str,
        stream: TcpStream,
        peer: SocketAddr,
        redirected: Option<Redirected>,
        mut counted: Counted,
        session: Session,
    ) {
        let relay = Arc::clone(&self.shared.relay);
        // Replies are written whole; waiting to fill a packet only costs time.
        let _ = stream.set_nodelay(true);
        if counted.is_attributed() {
            let client = Client::new(&relay, listener, Stream::Tcp(stream), peer);
            let Some(client) = client else { return };
            counted.begun();
            let client = client.redirected(&relay, redirected).counted(counted);
            let meeting = redirect::meeting(&relay, &client);
            let serving = session::serve(relay, client);
            tokio::spawn(async move {
                if let Some(meeting) = meeting {
                    meeting.await;
                }
                serving.await;
                drop(session);
            });
        } else {
            let newcomer = Newcomer { relay, listener: listener.to_owned(), stream, peer };
            tokio::spawn(async move {
                newcomer.serve_proxied(counted).await;
                drop(session);
            });
        }
    }

    /// Waits for the sessions to end.
    async fn drain(&self, patience: Duration) {
        stopping::wake_all();
        let ended = async {
            while self.shared.sessions[self.number].load(Ordering::Relaxed) > 0 {
                self.shared.idle[self.number].notified().await;
            }
            // What is under way from the spool ends too; all else stays there.
            self.shared.relay.queue.quiet().await;
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            tracing::warn!("sessions are cut off (limits.shutdown_timeout)");
        }
        link::leave().await;
    }
}

/// A session of a worker, counted from the moment it is given to it.
struct Session {
    shared: Arc<Shared>,
    worker: usize,
}

impl Session {
    fn new(shared: &Arc<Shared>, worker: usize) -> Self {
        shared.sessions[worker].fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), worker }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.shared.sessions[self.worker].fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.idle[self.worker].notify_one();
        }
    }
}

/// A connection that is nobody's session yet.
struct Newcomer {
    relay: Arc<Relay>,
    listener: String,
    stream: TcpStream,
    peer: SocketAddr,
}

impl Newcomer {
    /// Serves it once its proxy has said whose it is.
    async fn serve_proxied(mut self, counted: Counted) {
        match proxy::receive(&mut self.stream).await {
            Ok(client) => self.peer = client.unwrap_or(self.peer),
            Err(error) => {
                tracing::warn!(listener = self.listener, proxy = %self.peer.ip(), "{error}");
                return self.turn_away(Refused::ProxyHeader).await;
            }
        }
        let mut counted = match counted.of(self.peer) {
            Ok(counted) => counted,
            Err(reason) => return self.turn_away(reason).await,
        };
        let stream = Stream::Tcp(self.stream);
        if let Some(client) = Client::new(&self.relay, &self.listener, stream, self.peer) {
            counted.begun();
            session::serve(self.relay, client.counted(counted)).await;
        }
    }

    /// Tells it why it is turned away, without waiting long for it to listen.
    async fn turn_away(mut self, reason: Refused) {
        let client = self.peer.ip().to_canonical();
        self.relay.emit(&Event::ConnectionRefused { client, reason });
        // Who begins with a handshake could make nothing of words.
        let generation = self.relay.generation();
        let listener = generation.listener(&self.listener);
        if listener.is_some_and(|one| one.config.is_implicit_tls()) {
            return;
        }
        let telling = async {
            if self.stream.write_all(refusal(reason)).await.is_ok() {
                let _ = self.stream.shutdown().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_worker_that_does_not_answer_is_enough() {
        let (senders, mut inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel(4)).unzip();
        let pulse = Pulse(senders);
        let mut second = inboxes.pop().unwrap();
        let mut first = inboxes.pop().unwrap();
        tokio::spawn(async move {
            while let Some(Command::Answer(answer)) = first.recv().await {
                answer.send(()).unwrap();
            }
        });
        let patience = Duration::from_secs(15);
        // The second one has the question and says nothing.
        assert!(tokio::time::timeout(patience, pulse.answers()).await.is_err());
        let Some(Command::Answer(late)) = second.recv().await else { panic!("no question") };
        assert!(late.send(()).is_err());
        let answering = tokio::spawn(async move {
            let Some(Command::Answer(answer)) = second.recv().await else { panic!("no question") };
            answer.send(()).unwrap();
            // It ends.
        });
        assert_eq!(tokio::time::timeout(patience, pulse.answers()).await, Ok(true));
        answering.await.unwrap();
        assert_eq!(tokio::time::timeout(patience, pulse.answers()).await, Ok(false));
    }
}
