//! The service manager, and what it and this process tell each other. Floor 4.
//!
//! Owns the sockets that it passed (sd_listen_fds(3)) and what is written to `$NOTIFY_SOCKET`
//! (sd_notify(3)). Where there is none, nothing is passed and nobody is told. It does not know
//! what the relay does with a socket, nor when a worker counts as hung: that is `worker::Pulse`.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use sd_notify::NotifyState;
use socket2::{Socket, Type};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    conductor::status::{Source, Status},
    config::{Config, Diagnostic, Diagnostics},
    listener::{self, Bound},
    relay::Relay,
    worker::Pulse,
};

/// How often the status line is renewed where no watchdog asks for more.
const STATUS: Duration = Duration::from_secs(10);
/// How long a process that takes over may take to be ready, in microseconds: as long as a start
/// (`TimeoutStartSec` of the unit).
const STARTING_US: u32 = 15 * 60 * 1_000_000;
/// Waves that a status line names; more are counted.
const WAVES: usize = 3;

/// A listening socket of the process that was there before this one.
#[derive(Debug)]
pub struct Inherited {
    /// Whose it was: a listener, `admin` or `api`; or what the service manager calls it.
    pub name: String,
    /// The address as it was configured, which may have port 0.
    pub configured: SocketAddr,
    /// Whether the service manager had passed it.
    pub passed: bool,
    /// It.
    pub socket: TcpListener,
}

/// A socket that was there before this process.
#[derive(Debug)]
struct Passed {
    name: String,
    address: SocketAddr,
    socket: TcpListener,
}

/// The service manager of this process, if there is one.
#[derive(Debug, Default)]
pub struct Service {
    sockets: Vec<Passed>,
    /// Those of the process before, until this one has bound its own.
    inherited: Vec<Inherited>,
    watchdog: Option<Duration>,
    /// Whether anybody is told.
    told: bool,
}

/// Why what was passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// The variables contradict each other, or a descriptor is none.
    #[error("the sockets that the service manager passes ($LISTEN_FDS, $LISTEN_FDNAMES): {0}")]
    Variables(#[from] io::Error),
    /// Something else than what a listener can use.
    #[error(
        "the service manager passes \"{0}\", which is no listening TCP socket: in the socket unit, \
         give ListenStream= an IP:PORT, and leave Accept= out"
    )]
    Unfit(String),
}

impl Service {
    /// Nobody: for relays inside of other programs.
    pub fn none() -> Self {
        Self::default()
    }

    /// That of this process. To be called once: the sockets belong to whoever asks.
    pub fn of_process() -> Result<Self, PassedError> {
        let passed = sd_notify::listen_fds_with_names()?;
        let sockets = passed.map(|(fd, name)| Passed::new(fd, name)).collect::<Result<_, _>>()?;
        let watchdog = sd_notify::watchdog_enabled().filter(|every| !every.is_zero());
        let told = std::env::var_os("NOTIFY_SOCKET").is_some();
        Ok(Self { sockets, inherited: Vec::new(), watchdog, told })
    }

    /// Takes the sockets of the process that ran before. What the service manager had passed to
    /// that one counts as passed to this one, where it has got nothing itself.
    pub fn inherit(&mut self, sockets: Vec<Inherited>) -> io::Result<()> {
        let (passed, own): (Vec<_>, Vec<_>) = sockets.into_iter().partition(|one| one.passed);
        if self.sockets.is_empty() {
            for Inherited { name, socket, .. } in passed {
                self.sockets.push(Passed { name, address: socket.local_addr()?, socket });
            }
        }
        self.inherited = own;
        Ok(())
    }

    /// What was inherited and is not used goes.
    pub fn forget_inherited(&mut self) {
        self.inherited.clear();
    }

    /// What the service manager passed, for the next process.
    pub fn passed(&self) -> io::Result<Vec<Inherited>> {
        let copy = |one: &Passed| {
            let (name, configured) = (one.name.clone(), one.address);
            Ok(Inherited { name, configured, passed: true, socket: one.socket.try_clone()? })
        };
        self.sockets.iter().map(copy).collect()
    }

    /// Whether every socket that was passed is one of the configuration's: a client that
    /// connected to another would wait for nobody.
    pub fn check(&self, config: &Config) -> Result<(), Diagnostics> {
        let wanted = wanted(config);
        let used = self.assign(&wanted);
        let left = self.sockets.iter().enumerate().filter(|(number, _)| !used.contains(number));
        let left: Vec<_> = left.map(|(_, socket)| unwanted(socket, &wanted)).collect();
        if left.is_empty() { Ok(()) } else { Err(Diagnostics(left)) }
    }

    /// The socket that was passed for this name of this configuration, else a new one. The passed
    /// ones stay open here, so that a listener that goes and comes back finds its own again.
    pub fn bind(&self, config: &Config, name: &str, address: SocketAddr) -> io::Result<Bound> {
        let wanted = wanted(config);
        let number = self
            .assign(&wanted)
            .into_iter()
            .zip(&wanted)
            .find_map(|(number, one)| (*one == (name, address)).then_some(number));
        match number.and_then(|number| self.sockets.get(number)) {
            Some(passed) => listener::adopt(name, address, passed.socket.try_clone()?),
            None => match self.inherited.iter().find(|one| one.is_for(name, address)) {
                Some(inherited) => listener::adopt(name, address, inherited.socket.try_clone()?),
                None => listener::bind(name, address),
            },
        }
    }

    /// The number of the socket of each that is wanted; one past the last for none. Names go
    /// first: then the socket unit alone says the address.
    fn assign(&self, wanted: &[(&str, SocketAddr)]) -> Vec<usize> {
        let none = self.sockets.len();
        let mut used = vec![none; wanted.len()];
        let is_name = |name: &str| wanted.iter().any(|(other, _)| *other == name);
        for (number, socket) in self.sockets.iter().enumerate() {
            let by_name = is_name(&socket.name);
            let place = wanted.iter().zip(&used).position(|((name, address), taken)| {
                let fits = if by_name { *name == socket.name } else { *address == socket.address };
                *taken == none && fits
            });
            if let Some(place) = place {
                used[place] = number;
            }
        }
        used
    }

    /// Clients are served from now on.
    pub fn ready(&self, status: &str) {
        let mut states = vec![NotifyState::Ready, NotifyState::Status(status)];
        // The process before may have had it wait for us.
        let watchdog = self.watchdog.and_then(|every| u32::try_from(every.as_micros()).ok());
        states.extend(watchdog.map(NotifyState::WatchdogUsec));
        self.tell(&states);
    }

    /// The configuration is read anew; `ready` ends that, whatever came of it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager hears of no reload"),
        }
    }

    /// Another process takes over; the service goes on.
    pub fn handing_over(&self) {
        let text = "handing over to a new process: sessions end at their next message";
        self.tell(&[NotifyState::Status(text)]);
    }

    /// From now on the service is that process, which this one has started. Its watchdog has
    /// patience until that one is ready: it reads the spool.
    pub fn succeeded_by(&self, process: u32) {
        let mut states = Vec::new();
        if self.watchdog.is_some() {
            states.push(NotifyState::WatchdogUsec(STARTING_US));
        }
        states.push(NotifyState::MainPid(process));
        self.tell(&states);
    }

    /// The relay stops.
    pub fn stopping(&self) {
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Status("stopping: sessions end at their next message"),
        ]);
    }

    /// Tells how things are, and feeds the watchdog as long as the workers answer. Runs to the
    /// end of the process.
    pub async fn keep(self: Arc<Self>, relay: Arc<Relay>, pulse: Pulse, waves: Source) {
        if !self.told {
            return;
        }
        let every = self.watchdog.map_or(STATUS, |watchdog| watchdog / 2);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last = String::new();
        loop {
            ticks.tick().await;
            // The end has a time limit of its own (TimeoutStopSec), and workers answer no more.
            let alive = relay.is_stopping() || timeout(every, pulse.answers()).await == Ok(true);
            if !alive {
                tracing::error!("a worker does not answer: the watchdog is not fed");
            } else if self.watchdog.is_some() {
                self.tell(&[NotifyState::Watchdog]);
            }
            let status = if relay.is_stopping() { None } else { status(&relay, &waves).await };
            if let Some(status) = status.filter(|status| *status != last) {
                self.tell(&[NotifyState::Status(&status)]);
                last = status;
            }
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.told
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::warn!(%error, "the service manager cannot be told ($NOTIFY_SOCKET)");
        }
    }
}

impl Inherited {
    /// Whether it was bound for just this; another address needs a socket of its own.
    fn is_for(&self, name: &str, address: SocketAddr) -> bool {
        self.name == name && self.configured == address
    }
}

impl Passed {
    #[allow(
        unsafe_code,
        reason = "the service manager opened it for this process, which asks once"
    )]
    fn new(fd: RawFd, name: String) -> Result<Self, PassedError> {
        // SAFETY: `listen_fds_with_names` has just set a flag on it, so it is open, and nobody
        // else in this process knows of it.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let is_stream = socket.r#type().is_ok_and(|found| found == Type::STREAM);
        let listens = is_stream && socket.is_listener().unwrap_or(false);
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        match address.filter(|_| listens) {
            Some(address) => Ok(Self { name, address, socket: socket.into() }),
            None => Err(PassedError::Unfit(name)),
        }
    }
}

/// What can take a socket: every listener, `admin` and `api`. A listener's name goes first.
fn wanted(config: &Config) -> Vec<(&str, SocketAddr)> {
    let listeners = config.listeners.iter().map(|one| (one.name.as_str(), one.address));
    let admin = config.admin.iter().map(|admin| ("admin", admin.address));
    let api = config.api.iter().map(|api| ("api", api.address));
    listeners.chain(admin).chain(api).collect()
}

fn unwanted(socket: &Passed, wanted: &[(&str, SocketAddr)]) -> Diagnostic {
    let places: Vec<_> =
        wanted.iter().map(|(name, address)| format!("{name} at {address}")).collect();
    let text = format!(
        "the service manager passes it for {}, and nothing wants it (there is {}): give a listener \
         this address, name the socket after one (FileDescriptorName=), or take it out of the \
         socket unit",
        socket.address,
        places.join(", ")
    );
    Diagnostic::of_file(format!("socket \"{}\"", socket.name), text)
}

/// What an operator sees at a glance.
async fn status(relay: &Arc<Relay>, waves: &Source) -> Option<String> {
    let waves = Arc::clone(waves);
    let waves = tokio::task::spawn_blocking(move || waves()).await.ok()?;
    let clients = relay.connections().load(std::sync::atomic::Ordering::Relaxed);
    Some(line(clients, relay.queue.len(), &waves))
}

/// The same as text.
fn line(clients: usize, messages: usize, status: &Status) -> String {
    let mut text = format!("{clients} clients, {messages} messages in the spool");
    let begun = |phase: &str| matches!(phase, "freezing" | "frozen" | "checked" | "releasing");
    let waves: Vec<_> = status.waves.iter().filter(|wave| begun(&wave.phase)).collect();
    for wave in waves.iter().take(WAVES) {
        text.push_str(&format!(", wave {} {}", wave.id, wave.phase));
    }
    if waves.len() > WAVES {
        text.push_str(&format!(" and {} waves more", waves.len() - WAVES));
    }
    if status.held_all.is_some() {
        text.push_str(", everything is held");
    }
    if !status.alerts.is_empty() {
        text.push_str(&format!(", {} alerts", status.alerts.len()));
    }
    text
}

#[cfg(test)]
mod tests;
