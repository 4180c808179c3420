//! The health of targets: ejection of those that fail, probes that let them back, and what
//! they offer. Probes are connections of their own, so that no message pays for finding out.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{task::AbortHandle, time::Instant};
use wavegate_smtp::{Extension, Extensions};

use super::{Connection, ConnectionError, State, Upstream};
use crate::{
    config::UpstreamConfig,
    names::{Endpoint, Placed},
};

/// What is known of one target.
pub struct TargetHealth {
    endpoint: Endpoint,
    rank: usize,
    failures: u32,
    ejected: bool,
    pause: Duration,
    extensions: Option<Extensions>,
    last_error: Option<String>,
}

/// What an operator sees of one target.
#[derive(Clone, Debug)]
pub struct TargetStatus {
    /// Its address.
    pub address: SocketAddr,
    /// Whether messages may use it.
    pub up: bool,
    /// The last failure, if it came after the last success.
    pub last_error: Option<String>,
    /// What it offers, if it ever answered.
    pub extensions: Option<Extensions>,
}

/// Longest text of a failure that is kept.
const ERROR_TEXT: usize = 200;

impl TargetHealth {
    pub(super) fn new(placed: Placed, extensions: Option<Extensions>) -> Self {
        Self {
            endpoint: placed.endpoint,
            rank: placed.rank,
            failures: 0,
            ejected: false,
            pause: Duration::ZERO,
            extensions,
            last_error: None,
        }
    }

    /// The same target, which may go earlier or later than before.
    pub(super) fn ranked(self, rank: usize) -> Self {
        Self { rank, ..self }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub(super) fn status(&self) -> TargetStatus {
        TargetStatus {
            address: self.endpoint.address,
            up: !self.ejected,
            last_error: self.last_error.clone(),
            extensions: self.extensions,
        }
    }
}

/// Extensions that the configuration takes for granted.
pub(super) fn configured_extensions(config: &UpstreamConfig) -> Option<Extensions> {
    let keywords = config.extensions.as_ref()?;
    let mut extensions = Extensions::NONE;
    for extension in Extension::ALL {
        if keywords.iter().any(|word| word.eq_ignore_ascii_case(extension.keyword())) {
            extensions = extensions.with(extension);
        }
    }
    Some(extensions.with_size(config.size))
}

/// What all targets that ever answered offer; none when no one did.
pub(super) fn common_extensions(targets: &[TargetHealth]) -> Option<Extensions> {
    targets.iter().filter_map(|target| target.extensions).reduce(Extensions::intersection)
}

impl State {
    /// What is known of a target; none where it is no target any more.
    pub(super) fn health(&mut self, endpoint: &Endpoint) -> Option<&mut TargetHealth> {
        self.targets.iter_mut().find(|health| health.endpoint == *endpoint)
    }

    /// Whether an idle connection there is worth keeping: it is a target, and none that goes
    /// before it may be used.
    pub(super) fn is_wanted(&self, endpoint: &Endpoint) -> bool {
        let Some(one) = self.targets.iter().find(|one| one.endpoint == *endpoint) else {
            return false;
        };
        let usable = self.targets.iter().filter(|other| !other.ejected);
        usable.map(|other| other.rank).min().is_none_or(|best| one.rank <= best)
    }

    /// The same of a connection that is in use: it is not known to be down either.
    pub(super) fn is_usable(&self, endpoint: &Endpoint) -> bool {
        let is_up = |one: &TargetHealth| one.endpoint == *endpoint && !one.ejected;
        self.targets.iter().any(is_up) && self.is_wanted(endpoint)
    }

    /// Takes out the idle connections that are not worth keeping.
    pub(super) fn unwanted(&mut self) -> Vec<Connection> {
        let idle = std::mem::take(&mut self.idle);
        let (kept, gone) = idle.into_iter().partition(|one| self.is_wanted(one.endpoint()));
        self.idle = kept;
        gone
    }
}

impl Upstream {
    /// A target did what it should.
    pub fn report_success(&self, target: &Endpoint, extensions: Option<Extensions>) {
        let mut state = self.lock();
        let Some(health) = state.health(target) else { return };
        if health.failures == 0 && !health.ejected && extensions.is_none() {
            return;
        }
        let is_back = health.ejected;
        health.failures = 0;
        health.ejected = false;
        health.pause = Duration::ZERO;
        health.last_error = None;
        if extensions.is_some() {
            health.extensions = extensions;
        }
        // Those behind it have had their time.
        let gone = if is_back { state.unwanted() } else { Vec::new() };
        drop(state);
        if is_back {
            self.recovered.notify_waiters();
            let address = target.address;
            tracing::info!(upstream = self.config.name, target = %address, "target is back");
        }
        gone.into_iter().for_each(Connection::quit);
    }

    /// A target failed: it refused the connection, broke it, or did not speak SMTP.
    pub fn report_failure(&self, target: &Endpoint, error: &str) {
        self.note_failure(target, error, Gravity::One);
    }

    /// There is no connection with a target. That it does not want a client says nothing of it.
    /// Where it does not let us in there is no second try, and the longest pause: too many wrong
    /// logins get an account locked. For a gateway one failure is enough: it was knocked at many times.
    pub(super) fn report_error(&self, target: &Endpoint, error: &ConnectionError) {
        let gravity = match error {
            ConnectionError::Unwanted(_) => return,
            ConnectionError::Login(reply) if reply.is_permanent() => Gravity::Lasting,
            ConnectionError::Link(_) => Gravity::Enough,
            _ => Gravity::One,
        };
        self.note_failure(target, &error.to_string(), gravity);
    }

    fn note_failure(&self, target: &Endpoint, error: &str, gravity: Gravity) {
        let mut state = self.lock();
        let Some(health) = state.health(target) else { return };
        health.failures = health.failures.saturating_add(1);
        if gravity != Gravity::One {
            health.failures = health.failures.max(self.config.eject_after);
        }
        if gravity == Gravity::Lasting {
            health.pause = self.config.eject_max;
        }
        health.last_error = Some(error.chars().take(ERROR_TEXT).collect());
        if health.failures < self.config.eject_after || health.ejected {
            return;
        }
        health.ejected = true;
        tracing::warn!(
            upstream = self.config.name, target = %target.address, error,
            "target is ejected after {} failures in a row", health.failures
        );
        state.idle.retain(|connection| connection.endpoint() != target);
        drop(state);
        self.wake_watchers.notify_waiters();
    }

    /// Asks a target at start what it offers, and an ejected one whether it is back, with
    /// growing pauses. Runs until it is dropped, or the target has gone.
    async fn watch_target(self: Arc<Self>, target: Endpoint) {
        loop {
            // Registered before the look, so that no wake-up is missed in between.
            let wake = self.wake_watchers.notified();
            let Some(reason) = self.reason_to_probe(&target) else { return };
            match reason {
                Reason::None => wake.await,
                // Who listens for a gateway may hear it at once when it is back.
                Reason::Ejected if self.link.is_some() => {
                    let next = Instant::now() + self.next_pause(&target);
                    if !self.probe(&target).await {
                        tokio::time::sleep_until(next).await;
                    }
                }
                Reason::Ejected => {
                    tokio::time::sleep(self.next_pause(&target)).await;
                    self.probe(&target).await;
                }
                Reason::Unknown => {
                    if !self.probe(&target).await {
                        tokio::time::sleep(self.next_pause(&target)).await;
                    }
                }
            }
        }
    }

    fn reason_to_probe(&self, target: &Endpoint) -> Option<Reason> {
        let mut state = self.lock();
        let health = state.health(target)?;
        // What a child's destination offers is asked by who is to hear it.
        let asks = self.config.extensions.is_none() && !self.is_child();
        let unknown = health.extensions.is_none() && asks;
        Some(match (health.ejected, unknown) {
            (true, _) => Reason::Ejected,
            (false, true) => Reason::Unknown,
            (false, false) => Reason::None,
        })
    }

    async fn probe(&self, target: &Endpoint) -> bool {
        let asked = match &self.link {
            Some(link) => self.look_at_gateway(link, target).await,
            None => {
                let _turn = self.logins.turn().await;
                let dialled = self.dial(target, None).await;
                dialled.map(|(connection, extensions)| {
                    connection.quit();
                    extensions
                })
            }
        };
        match asked {
            Ok(extensions) => {
                self.report_success(target, Some(extensions));
                true
            }
            Err(error) => {
                self.report_error(target, &error);
                false
            }
        }
    }

    /// The pause before the next probe: doubled, bounded, and spread by up to a quarter, so
    /// that many relays do not knock at once.
    fn next_pause(&self, target: &Endpoint) -> Duration {
        let mut state = self.lock();
        let Some(health) = state.health(target) else { return Duration::ZERO };
        let doubled = health.pause.saturating_mul(2).max(self.config.eject_for);
        health.pause = doubled.min(self.config.eject_max);
        let spread = u32::try_from(self.world.entropy.next() % 250).unwrap_or(0);
        health.pause + health.pause / 1000 * spread
    }

    /// The housekeeping of this upstream: watchers of its targets, the looking up of its names,
    /// and the closing of idle connections. Runs until it is dropped.
    pub async fn housekeeping(self: Arc<Self>) {
        match self.config.original {
            None => self.keep_targets().await,
            Some(_) => self.keep_children().await,
        }
    }

    pub(super) async fn keep_targets(self: Arc<Self>) {
        let mut tasks = tokio::task::JoinSet::new();
        let mut watched: HashMap<Endpoint, AbortHandle> = HashMap::new();
        if self.has_names() {
            tasks.spawn(Arc::clone(&self).follow_names());
        }
        let period = (self.config.idle_timeout / 2).max(Duration::from_millis(100));
        let mut tick = tokio::time::interval_at(Instant::now() + period, period);
        loop {
            // Registered before the look, so that no exchange is missed in between.
            let exchanged = self.exchanged.notified();
            let targets = self.targets();
            watched.retain(|target, watcher| {
                let stays = targets.contains(target);
                if !stays {
                    watcher.abort();
                }
                stays
            });
            for target in targets {
                watched.entry(target).or_insert_with_key(|target| {
                    tasks.spawn(Arc::clone(&self).watch_target(target.clone()))
                });
            }
            tokio::select! {
                biased;
                () = exchanged => {}
                // Watchers that have ended are not kept.
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                _ = tick.tick() => self.expire_idle(),
            }
        }
    }
}

/// How much a failure says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gravity {
    /// As one of `eject_after`.
    One,
    /// As much as all of them.
    Enough,
    /// The same, and that it will be so for long.
    Lasting,
}

/// Why a target is probed.
enum Reason {
    /// There is none.
    None,
    /// It was ejected and may be back.
    Ejected,
    /// It never said what it offers.
    Unknown,
}
