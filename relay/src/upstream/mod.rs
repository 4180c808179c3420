//! Upstreams: their targets, the health of these, and pooled connections. Floor 2.
//!
//! A *slot* is the right to have one connection open; an upstream has `connections` of them.
//! Whoever finds no slot waits in line for one, first come first served; a connection or slot
//! that comes free goes to the first in line. Idle connections are used again, most recent
//! first. Targets of a lower rank go before others; where names are configured they come and go
//! (`names`). Those that speak for one client are for this client alone. Nothing here knows of gates,
//! instances or windows.

pub mod connection;
pub mod health;
pub mod identity;
mod lease_error;
pub mod link;
mod login;
mod names;
pub mod original;
mod pool;
mod recent;
mod rehearsal;
mod verify;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use wavegate_smtp::{Credentials, Extensions};

pub use connection::{Connection, ConnectionError};
pub use health::{TargetHealth, TargetStatus};
pub use lease_error::LeaseError;
pub use link::{Channel, LinkFault};
pub use login::{LoginResult, Logins};
pub use names::NamesStatus;
pub use original::Unplaced;
pub use pool::{Lease, Way};
pub use recent::{Ended, Ends};
pub use rehearsal::RehearsalError;
pub use verify::VerifyError;

use self::{
    pool::{Grant, Slot, Waiter},
    recent::Recent,
};
use crate::{
    config::{UpstreamConfig, UpstreamIdentity},
    decision::UpstreamState,
    event::{Observer, TlsFailure},
    message::Source,
    names::{Endpoint, Name, Naming, place},
    plan::Timestamp,
    tls::{Connector, Counts, link::LinkConnector},
    world::World,
};

/// How long somebody patient stands in line before he looks around.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What an upstream is made of.
pub struct Parts {
    /// Its configuration.
    pub config: UpstreamConfig,
    /// What it lives in.
    pub world: World,
    /// Who is told what becomes of a link.
    pub observer: Arc<dyn Observer>,
    /// The relay's own name.
    pub hostname: Arc<str>,
    /// What TLS sessions begin with.
    pub connector: Option<Arc<Connector>>,
    /// What connections with gateways begin with.
    pub link_connector: Option<Arc<LinkConnector>>,
    /// What the relay logs in with.
    pub login: Option<Arc<Credentials>>,
    /// Who says what names among its targets stand for: its housekeeping looks them up again.
    pub naming: Option<Arc<Naming>>,
    /// What is known of these names.
    pub names: Vec<Name>,
}

/// A named next hop.
pub struct Upstream {
    /// Its configuration.
    pub config: UpstreamConfig,
    /// What TLS sessions with its targets begin with.
    connector: Option<Arc<Connector>>,
    tls: Arc<Counts>,
    /// Where its targets are gateways.
    link: Option<link::Link>,
    identity: identity::Counts,
    logins: Logins,
    world: World,
    observer: Arc<dyn Observer>,
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
    recent: Recent,
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
    /// An upstream that has not been asked anything yet. `known` is what targets offered as learned
    /// earlier.
    pub fn new(parts: Parts, known: &HashMap<SocketAddr, Extensions>) -> Arc<Self> {
        let is_family = parts.config.original.is_some();
        let children = is_family.then(|| original::Children::new(known.clone()));
        Arc::new(Self { children, ..Self::make(parts, known) })
    }

    /// One without children.
    fn make(parts: Parts, known: &HashMap<SocketAddr, Extensions>) -> Self {
        let Parts { config, world, observer, hostname, login, naming, names, .. } = parts;
        let (connector, link_connector) = (parts.connector, parts.link_connector);
        let link = config.link.as_ref();
        let link = link.map(|one| link::Link::new(one, link_connector, &hostname, &world));
        let targets = place(&config.targets, &names).endpoints.into_iter().map(|placed| {
            let known = known.get(&placed.endpoint.address).copied();
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
            link,
            identity: identity::Counts::default(),
            logins: Logins::new(login),
            world,
            observer,
            hostname,
            state: Mutex::new(state),
            naming,
            names: Mutex::new(names),
            lookups: names::Lookups::default(),
            exchanged: Notify::new(),
            wake_watchers: Notify::new(),
            recovered: Notify::new(),
            stats: Stats::default(),
            recent: Recent::default(),
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

    /// Notes how an attempt ended.
    pub fn note_end(&self, ended: Ended, now: Timestamp) {
        self.recent.count(ended, now);
    }

    /// Its state as policies see it; that of one with many destinations is that of all.
    pub fn state_for_policies(&self, now: Timestamp) -> UpstreamState {
        let children = self.all_children();
        let ends = children.iter().map(|child| child.recent.ends(now));
        let Ends { attempts, deferred, refused, broken } =
            ends.fold(self.recent.ends(now), Ends::and);
        let name = self.config.name.clone();
        UpstreamState { name, up: !self.is_down(), attempts, deferred, refused, broken }
    }

    /// Whether no target may be tried now. One with many destinations never is: each is for itself.
    pub fn is_down(&self) -> bool {
        self.children.is_none() && self.lock().targets.iter().all(TargetHealth::is_ejected)
    }

    /// A connection: an idle one, a new one, or the next that comes free before `deadline`.
    /// Opening has its own time limit. `avoid` is a target that just failed this message;
    /// `fresh` asks for a new connection, after an idle one was found dead: if one is, others
    /// are. `queue` bounds how many may wait. It may carry mail from `source`.
    pub async fn lease(
        self: &Arc<Self>,
        deadline: Instant,
        queue: usize,
        avoid: Option<&Endpoint>,
        fresh: bool,
        source: &Arc<Source>,
    ) -> Result<Lease, LeaseError> {
        let owner = self.owner(source);
        let grant = match self.try_grant(avoid, fresh, owner.is_some()) {
            Some(grant) => grant,
            None => self.wait(deadline, queue).await?,
        };
        match owner {
            None => self.connected(grant, avoid, fresh, None).await,
            Some(owner) => Box::pin(self.connected_for(grant, avoid, fresh, owner)).await,
        }
    }

    /// What was granted as a connection that can be used now.
    async fn connected(
        self: &Arc<Self>,
        grant: Grant,
        avoid: Option<&Endpoint>,
        fresh: bool,
        owner: Option<&Arc<Source>>,
    ) -> Result<Lease, LeaseError> {
        let Grant { slot, connection } = grant;
        if let Some(link) = &self.link {
            // That a message breaks off says nothing of its target: the connection does.
            let way = Way::Link(self.channel(link, avoid).await?);
            return Ok(Lease { slot, way, reused: true });
        }
        if let Some(mut connection) = connection.filter(|_| !fresh) {
            // A connection lives in the reactor of the worker that uses it.
            let is_good = connection.rehome().is_ok() && connection.is_quiet();
            let target = connection.endpoint().clone();
            let made = match owner.filter(|owner| is_good && !connection.speaks_for(owner)) {
                Some(owner) => Box::pin(self.hand_over(&mut connection, owner)).await.map(drop),
                None => Ok(()),
            };
            match made {
                Ok(()) if is_good => {
                    self.stats.reused.fetch_add(1, Ordering::Relaxed);
                    return Ok(Lease { slot, way: Way::Smtp(connection), reused: true });
                }
                Err(error @ (ConnectionError::Unwanted(_) | ConnectionError::NoXclient(_))) => {
                    self.report_error(&target, &error);
                    return Err(self.no_connection(&target, error));
                }
                _ => self.stats.stale.fetch_add(1, Ordering::Relaxed),
            };
        }
        self.open(slot, avoid, owner).await
    }

    /// A connection, however long that takes; none once the upstream is retired. For those who
    /// have nobody waiting. Where connections speak for one client, it is the right to have one,
    /// until [`Upstream::fit`] knows for whom.
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
            let of_clients = self.config.identity.is_of_one_client();
            let grant = match self.try_grant(None, false, of_clients) {
                Some(grant) => Ok(grant),
                None => self.wait(Instant::now() + PATIENCE, usize::MAX).await,
            };
            let lease = match grant {
                Ok(Grant { slot, connection }) if of_clients => {
                    Ok(Lease { slot, way: connection.into(), reused: false })
                }
                Ok(grant) => self.connected(grant, None, false, None).await,
                Err(error) => Err(error),
            };
            match lease {
                Ok(lease) => return Some(lease),
                Err(
                    LeaseError::Busy { .. }
                    | LeaseError::Crowded { .. }
                    | LeaseError::QueueFull { .. },
                ) => {}
                // The targets that are not ejected yet do not answer.
                Err(_) => {
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

    /// A connection to a target, beside the pool, on which mail of `owner` can begin.
    async fn dial(
        &self,
        target: &Endpoint,
        owner: Option<&Arc<Source>>,
    ) -> Result<(Connection, Extensions), ConnectionError> {
        let (mut connection, mut extensions) = self.reach(target, owner).await?;
        if self.config.identity == UpstreamIdentity::Xclient {
            // Asked of probes too, so that no message finds out.
            if !connection.takes_xclient() {
                self.identity.no_xclient.fetch_add(1, Ordering::Relaxed);
                connection.quit();
                return Err(ConnectionError::NoXclient(None));
            }
            if let Some(owner) = owner {
                extensions = self.hand_over(&mut connection, owner).await?;
            }
        }
        self.log_in(&mut connection).await?;
        Ok((connection, extensions))
    }

    /// A connection to a target that has answered EHLO.
    async fn reach(
        &self,
        target: &Endpoint,
        owner: Option<&Arc<Source>>,
    ) -> Result<(Connection, Extensions), ConnectionError> {
        let Self { config, world, .. } = self;
        let (hostname, time) = (&self.hostname, config.connect_timeout);
        let connector = self.connector.as_deref();
        if config.tls.is_some() && connector.is_none() {
            return Err(ConnectionError::NotOffered);
        }
        let owner = owner.filter(|_| config.identity.is_proxy());
        let speaks_for = owner.map(|one| &**one);
        let header = identity::proxy_header(config.identity, speaks_for, target.address);
        let own: Option<Arc<str>> = owner.and_then(|one| identity::hello(one)).map(Into::into);
        let hostname = own.as_ref().unwrap_or(hostname);
        let opened = Connection::open(world, target, hostname, time, connector, &header).await;
        let opened = match (opened, owner) {
            (Ok((connection, extensions)), Some(owner)) => {
                Ok((connection.owned_by(Arc::clone(owner)), extensions))
            }
            (Err(ConnectionError::Refused(reply)), Some(_)) => {
                self.identity.unwanted.fetch_add(1, Ordering::Relaxed);
                Err(ConnectionError::Unwanted(reply))
            }
            (opened, _) => opened,
        };
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
        if let Some(link) = &self.link {
            link.retire();
        }
        self.all_children().iter().for_each(|child| child.retire());
    }

    /// In force again, after a generation was given up.
    pub fn revive(&self) {
        self.lock().retired = false;
        self.all_children().iter().for_each(|child| child.revive());
    }

    /// Closes connections that have been idle for longer than `idle_timeout`.
    pub fn expire_idle(&self) {
        self.sweep();
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
        owner: Option<&Arc<Source>>,
    ) -> Result<Lease, LeaseError> {
        let mut tried = Vec::new();
        let mut last = None;
        while let Some(target) = self.choose_target(avoid, &tried) {
            match self.connect(&target, owner).await {
                Ok(connection) => {
                    return Ok(Lease { slot, way: Way::Smtp(connection), reused: false });
                }
                // Another target would say the same of this client.
                Err(error @ ConnectionError::Unwanted(_)) => {
                    return Err(self.no_connection(&target, error));
                }
                Err(error) => last = Some(self.no_connection(&target, error)),
            }
            tried.push(target);
        }
        Err(last.unwrap_or_else(|| self.all_down()))
    }

    fn no_connection(&self, target: &Endpoint, error: ConnectionError) -> LeaseError {
        let (upstream, target) = (self.config.name.clone(), target.address);
        match error {
            ConnectionError::Unwanted(reply) => LeaseError::Unwanted { upstream, target, reply },
            source => LeaseError::Connect { upstream, target, source },
        }
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
    async fn connect(
        &self,
        target: &Endpoint,
        owner: Option<&Arc<Source>>,
    ) -> Result<Connection, ConnectionError> {
        let turn = self.logins.turn().await;
        if turn.is_some() && self.lock().health(target).is_none_or(|one| one.is_ejected()) {
            // While this one waited for his turn another one was refused.
            return Err(ConnectionError::Down);
        }
        match self.dial(target, owner).await {
            Ok((connection, extensions)) => {
                self.stats.opened.fetch_add(1, Ordering::Relaxed);
                self.report_success(target, Some(extensions));
                Ok(connection)
            }
            Err(error) => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                self.report_error(target, &error);
                Err(error)
            }
        }
    }
}
