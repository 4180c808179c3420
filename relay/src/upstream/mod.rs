//! Upstreams: their targets, the health of these, and pooled connections. Floor 2.
//!
//! A *slot* is the right to have one connection open; an upstream has `connections` of them.
//! Whoever finds no slot waits in line for one, first come first served; a connection or slot
//! that comes free goes to the first in line. Idle connections are used again, most recent
//! first. Targets of a lower rank go before others; where names are configured they come and go
//! (`names`). Nothing here knows of gates, instances or windows.

pub mod connection;
pub mod health;
mod names;
mod pool;
pub mod original;
mod rehearsal;
mod verify;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use wavegate_smtp::Extensions;

pub use connection::{Connection, ConnectionError};
pub use health::{TargetHealth, TargetStatus};
pub use names::NamesStatus;
pub use original::Unplaced;
pub use pool::Lease;
pub use rehearsal::RehearsalError;
pub use verify::VerifyError;

use self::pool::{Grant, Slot, Waiter};
use crate::{
    config::UpstreamConfig,
    event::TlsFailure,
    names::{Endpoint, Name, Naming, place},
    tls::{Connector, Counts},
    world::World,
};

/// How long somebody patient stands in line before he looks around.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A named next hop.
pub struct Upstream {
    /// Its configuration.
    pub config: UpstreamConfig,
    /// What TLS sessions with its targets begin with.
    connector: Option<Arc<Connector>>,
    tls: Arc<Counts>,
    world: World,
    hostname: Arc<str>,
    state: Mutex<State>,
    /// Who says what its names stand for, and what is known of them.
    naming: Option<Arc<Naming>>,
    names: Mutex<Vec<Name>>,
    lookups: names::Lookups,
    /// Wakes housekeeping when targets were exchanged.
    exchanged: Notify,
    /// Wakes the watchers of targets when one was ejected.
    wake_watchers: Notify,
    /// Wakes those who wait until a target may be used again.
    recovered: Notify,
    stats: Stats,
    /// Of one with many destinations, which has no targets itself.
    children: Option<original::Children>,
}

struct State {
    targets: Vec<TargetHealth>,
    /// Counts choices of a target: equal ones take turns.
    turn: usize,
    /// What targets that have gone all offered, until the present ones have been asked.
    assumed: Option<Extensions>,
    in_use: usize,
    idle: Vec<Connection>,
    waiters: VecDeque<Waiter>,
    retired: bool,
}

#[derive(Default)]
struct Stats {
    opened: AtomicU64,
    reused: AtomicU64,
    failed: AtomicU64,
    stale: AtomicU64,
    waited: AtomicU64,
    answered: AtomicU64,
    ticket: AtomicU64,
    /// How long hand-offs take: a moving average in microseconds.
    pace: AtomicU64,
}

/// Figures for telemetry.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Connections in use.
    pub in_use: usize,
    /// Idle connections.
    pub idle: usize,
    /// Attempts that wait for a connection.
    pub waiting: usize,
    /// Connections opened, ever.
    pub opened: u64,
    /// Times an idle connection was used again.
    pub reused: u64,
    /// Connections that could not be opened.
    pub failed: u64,
    /// Idle connections found closed.
    pub stale: u64,
    /// Attempts that had to wait for a connection, ever.
    pub waited: u64,
    /// Messages that it answered, whatever it said, since the relay knows it.
    pub answered: u64,
    /// Its targets now.
    pub targets: Vec<TargetStatus>,
    /// Figures of its names.
    pub names: NamesStatus,
    /// What is wrong with its names.
    pub trouble: Option<String>,
    /// What all targets that ever answered offer; none when no one ever did.
    pub extensions: Option<Extensions>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every target is ejected.
    #[error("every target of upstream {upstream} is down; last: {last}")]
    AllDown {
        /// The upstream.
        upstream: String,
        /// What the last failure was.
        last: String,
    },
    /// There is none: its names stand for nothing, or nobody says for what.
    #[error("upstream {upstream} has no target: {why}")]
    NoTarget {
        /// The upstream.
        upstream: String,
        /// What is wrong with its names.
        why: String,
    },
    /// All connections stayed busy.
    #[error("upstream {upstream}: all {connections} connections are busy (connections)")]
    Busy {
        /// The upstream.
        upstream: String,
        /// The cap.
        connections: usize,
    },
    /// Too many attempts wait already.
    #[error("upstream {upstream}: {limit} attempts wait already (limits.direct_queue)")]
    QueueFull {
        /// The upstream.
        upstream: String,
        /// The bound.
        limit: usize,
    },
    /// A connection could not be opened.
    #[error("upstream {upstream}, target {target}: {source}")]
    Connect {
        /// The upstream.
        upstream: String,
        /// The target.
        target: std::net::SocketAddr,
        /// Why.
        source: ConnectionError,
    },
}

impl State {
    /// What all targets that ever answered offer.
    fn offered(&self) -> Option<Extensions> {
        health::common_extensions(&self.targets).or(self.assumed)
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.config.name)
    }
}

impl Upstream {
    /// An upstream whose targets are addresses, and that has not been asked anything yet. `known`
    /// are the extensions of its targets as learned earlier.
    pub fn new(
        config: UpstreamConfig,
        world: World,
        hostname: Arc<str>,
        known: &dyn Fn(std::net::SocketAddr) -> Option<Extensions>,
        connector: Option<Arc<Connector>>,
    ) -> Arc<Self> {
        Self::with_names(config, world, hostname, known, connector, None, Vec::new())
    }

    /// One whose mail goes where its client wanted to go. `known` are the extensions of destinations
    /// as learned earlier.
    pub fn of_destinations(
        config: UpstreamConfig,
        world: World,
        hostname: Arc<str>,
        known: HashMap<std::net::SocketAddr, Extensions>,
        connector: Option<Arc<Connector>>,
    ) -> Arc<Self> {
        let children = Some(original::Children::new(known));
        let (known, names) = (&|_| None, Vec::new());
        let own = Self::make(config, world, hostname, known, connector, None, names);
        Arc::new(Self { children, ..own })
    }

    /// An upstream among whose targets are names, with what is known of them. Its housekeeping
    /// looks them up again, if `naming` says how.
    pub fn with_names(
        config: UpstreamConfig,
        world: World,
        hostname: Arc<str>,
        known: &dyn Fn(std::net::SocketAddr) -> Option<Extensions>,
        connector: Option<Arc<Connector>>,
        naming: Option<Arc<Naming>>,
        names: Vec<Name>,
    ) -> Arc<Self> {
        Arc::new(Self::make(config, world, hostname, known, connector, naming, names))
    }

    fn make(
        config: UpstreamConfig,
        world: World,
        hostname: Arc<str>,
        known: &dyn Fn(std::net::SocketAddr) -> Option<Extensions>,
        connector: Option<Arc<Connector>>,
        naming: Option<Arc<Naming>>,
        names: Vec<Name>,
    ) -> Self {
        let targets = place(&config.targets, &names).endpoints.into_iter().map(|placed| {
            let known = known(placed.endpoint.address);
            TargetHealth::new(placed, known)
        });
        let state = State {
            targets: targets.collect(),
            turn: usize::MAX,
            assumed: None,
            in_use: 0,
            idle: Vec::new(),
            waiters: VecDeque::new(),
            retired: false,
        };
        Self {
            config,
            connector,
            tls: Arc::default(),
            world,
            hostname,
            state: Mutex::new(state),
            naming,
            names: Mutex::new(names),
            lookups: names::Lookups::default(),
            exchanged: Notify::new(),
            wake_watchers: Notify::new(),
            recovered: Notify::new(),
            stats: Stats::default(),
            children: None,
        }
    }

    /// What every target that ever answered offers, unless the configuration says; none when no
    /// target ever answered.
    pub fn extensions(&self) -> Option<Extensions> {
        health::configured_extensions(&self.config).or_else(|| self.lock().offered())
    }

    /// Who says what its names stand for.
    pub fn naming(&self) -> Option<&Arc<Naming>> {
        self.naming.as_ref()
    }

    /// Whether no target may be tried now. One with many destinations never is: each is for itself.
    pub fn is_down(&self) -> bool {
        self.children.is_none() && self.lock().targets.iter().all(TargetHealth::is_ejected)
    }

    /// A connection: an idle one, a new one, or the next that comes free before `deadline`.
    /// Opening has its own time limit. `avoid` is a target that just failed this message;
    /// `fresh` asks for a new connection, after an idle one was found dead: if one is, others
    /// are. `queue` bounds how many may wait.
    pub async fn lease(
        self: &Arc<Self>,
        deadline: Instant,
        queue: usize,
        avoid: Option<&Endpoint>,
        fresh: bool,
    ) -> Result<Lease, LeaseError> {
        let grant = match self.try_grant(avoid, fresh) {
            Some(grant) => grant,
            None => self.wait(deadline, queue).await?,
        };
        let Grant { slot, connection } = grant;
        if let Some(mut connection) = connection.filter(|_| !fresh) {
            // A connection lives in the reactor of the worker that uses it.
            if connection.rehome().is_ok() && connection.is_quiet() {
                self.stats.reused.fetch_add(1, Ordering::Relaxed);
                return Ok(Lease { slot, connection: Some(connection), reused: true });
            }
            self.stats.stale.fetch_add(1, Ordering::Relaxed);
        }
        self.open(slot, avoid).await
    }

    /// A connection, however long that takes; none once the upstream is retired. For those who
    /// have nobody waiting.
    pub async fn lease_patiently(self: &Arc<Self>) -> Option<Lease> {
        loop {
            let recovered = self.recovered.notified();
            if self.lock().retired {
                return None;
            }
            if self.is_down() {
                recovered.await;
                continue;
            }
            match self.lease(Instant::now() + PATIENCE, usize::MAX, None, false).await {
                Ok(lease) => return Some(lease),
                Err(LeaseError::Busy { .. } | LeaseError::QueueFull { .. }) => {}
                // The targets that are not ejected yet do not answer.
                Err(
                    LeaseError::AllDown { .. }
                    | LeaseError::NoTarget { .. }
                    | LeaseError::Connect { .. },
                ) => {
                    tokio::time::sleep(self.config.eject_for).await;
                }
            }
        }
    }

    /// A hand-off was answered. It took so long, from its first command to its last reply.
    pub fn report_answer(&self, time: Duration) {
        self.stats.answered.fetch_add(1, Ordering::Relaxed);
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX >> 8).min(u64::MAX >> 8);
        let old = self.stats.pace.load(Ordering::Relaxed);
        // Each counts for an eighth, the first too: one hiccup makes no upstream slow.
        self.stats.pace.store((old * 7 + time) / 8, Ordering::Relaxed);
    }

    /// Whether hand-offs take longer than a client should wait (`direct_budget`).
    pub fn is_slow(&self) -> bool {
        u128::from(self.stats.pace.load(Ordering::Relaxed)) > self.config.direct_budget.as_micros()
    }

    /// What its TLS sessions begin with.
    pub fn connector(&self) -> Option<&Arc<Connector>> {
        self.connector.as_ref()
    }

    /// What is counted of TLS with its targets.
    pub fn tls_counts(&self) -> Arc<Counts> {
        Arc::clone(&self.tls)
    }

    /// A connection to a target, beside the pool.
    async fn dial(&self, target: &Endpoint) -> Result<(Connection, Extensions), ConnectionError> {
        let Self { config, world, hostname, .. } = self;
        let time = config.connect_timeout;
        let connector = self.connector.as_deref();
        if config.tls.is_some() && connector.is_none() {
            return Err(ConnectionError::NotOffered);
        }
        let opened = Connection::open(world, target, hostname, time, connector).await;
        match &opened {
            Ok((connection, _)) => match connection.secured() {
                Some(secured) => self.tls.begin(secured),
                None if connector.is_some() => {
                    self.tls.declined.fetch_add(1, Ordering::Relaxed);
                }
                None => {}
            },
            Err(ConnectionError::Tls(error)) => self.tls.fail(error.failure()),
            Err(ConnectionError::NotOffered | ConnectionError::Declined(_)) => {
                self.tls.fail(TlsFailure::Declined);
            }
            Err(_) => {}
        }
        opened
    }

    /// Figures for telemetry.
    pub fn status(&self) -> UpstreamStatus {
        self.with_children(self.own_status())
    }

    fn own_status(&self) -> UpstreamStatus {
        let (names, trouble) = (self.names_status(), self.names_trouble());
        let state = self.lock();
        let stats = &self.stats;
        UpstreamStatus {
            name: self.config.name.clone(),
            in_use: state.in_use,
            idle: state.idle.len(),
            waiting: state.waiters.len(),
            opened: stats.opened.load(Ordering::Relaxed),
            reused: stats.reused.load(Ordering::Relaxed),
            failed: stats.failed.load(Ordering::Relaxed),
            stale: stats.stale.load(Ordering::Relaxed),
            waited: stats.waited.load(Ordering::Relaxed),
            answered: stats.answered.load(Ordering::Relaxed),
            targets: state.targets.iter().map(TargetHealth::status).collect(),
            extensions: health::configured_extensions(&self.config).or_else(|| state.offered()),
            names,
            trouble,
        }
    }

    /// Closes what is idle and keeps nothing from now on: a newer generation has no such
    /// upstream, or another one of the name. Leases go on.
    pub fn retire(&self) {
        let mut state = self.lock();
        state.retired = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.recovered.notify_waiters();
        idle.into_iter().for_each(Connection::quit);
        self.all_children().iter().for_each(|child| child.retire());
    }

    /// In force again, after a generation was given up.
    pub fn revive(&self) {
        self.lock().retired = false;
        self.all_children().iter().for_each(|child| child.revive());
    }

    /// Closes connections that have been idle for longer than `idle_timeout`.
    pub fn expire_idle(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        let mut state = self.lock();
        let mut at = 0;
        while at < state.idle.len() {
            if now.saturating_duration_since(state.idle[at].idle_since())
                >= self.config.idle_timeout
            {
                expired.push(state.idle.remove(at));
            } else {
                at += 1;
            }
        }
        drop(state);
        for connection in expired {
            connection.quit();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection, to another target when one fails, each target at most once.
    async fn open(
        self: &Arc<Self>,
        slot: Slot,
        avoid: Option<&Endpoint>,
    ) -> Result<Lease, LeaseError> {
        let mut tried = Vec::new();
        let mut last = None;
        while let Some(target) = self.choose_target(avoid, &tried) {
            match self.connect(&target).await {
                Ok(connection) => {
                    return Ok(Lease { slot, connection: Some(connection), reused: false });
                }
                Err(source) => {
                    let upstream = self.config.name.clone();
                    let target = target.address;
                    last = Some(LeaseError::Connect { upstream, target, source });
                }
            }
            tried.push(target);
        }
        Err(last.unwrap_or_else(|| self.all_down()))
    }

    fn all_down(&self) -> LeaseError {
        let upstream = self.config.name.clone();
        let state = self.lock();
        if state.targets.is_empty() {
            drop(state);
            let why = self.names_trouble().unwrap_or_else(|| "it has none".to_owned());
            return LeaseError::NoTarget { upstream, why };
        }
        let last = state.targets.iter().filter_map(TargetHealth::last_error).next_back();
        let last = last.unwrap_or("no target was tried").to_owned();
        LeaseError::AllDown { upstream, last }
    }

    /// The next healthy target in turn, among those of the lowest rank that there is; one to be
    /// avoided only when there is no other.
    fn choose_target(&self, avoid: Option<&Endpoint>, tried: &[Endpoint]) -> Option<Endpoint> {
        let mut state = self.lock();
        state.turn = state.turn.wrapping_add(1);
        let usable =
            state.targets.iter().filter(|one| !one.is_ejected() && !tried.contains(one.endpoint()));
        let order = |one: &TargetHealth| (Some(one.endpoint()) == avoid, one.rank());
        let best = usable.clone().map(order).min()?;
        let equals = || usable.clone().filter(|one| order(one) == best);
        let chosen = equals().nth(state.turn % equals().count())?;
        Some(chosen.endpoint().clone())
    }

    /// Connects and greets; the health of the target learns from it.
    async fn connect(&self, target: &Endpoint) -> Result<Connection, ConnectionError> {
        match self.dial(target).await {
            Ok((connection, extensions)) => {
                self.stats.opened.fetch_add(1, Ordering::Relaxed);
                self.report_success(target, Some(extensions));
                Ok(connection)
            }
            Err(error) => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                self.report_failure(target, &error.to_string());
                Err(error)
            }
        }
    }
}
