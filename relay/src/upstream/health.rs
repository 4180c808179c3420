//! The health of targets: ejection of those that fail, probes that let them back, and what
//! they offer. Probes are connections of their own, so that no message pays for finding out.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use wavegate_smtp::{Extension, Extensions};

use super::{ConnectionError, Upstream};
use crate::config::UpstreamConfig;

/// What is known of one target.
pub struct TargetHealth {
    address: SocketAddr,
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
    pub(super) fn new(address: SocketAddr, extensions: Option<Extensions>) -> Self {
        Self {
            address,
            failures: 0,
            ejected: false,
            pause: Duration::ZERO,
            extensions,
            last_error: None,
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub(super) fn status(&self) -> TargetStatus {
        TargetStatus {
            address: self.address,
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

impl Upstream {
    /// A target did what it should.
    pub fn report_success(&self, target: usize, extensions: Option<Extensions>) {
        let mut state = self.lock();
        let health = &mut state.targets[target];
        if health.failures == 0 && !health.ejected && extensions.is_none() {
            return;
        }
        if health.ejected {
            self.recovered.notify_waiters();
            tracing::info!(upstream = self.config.name, target = %health.address, "target is back");
        }
        health.failures = 0;
        health.ejected = false;
        health.pause = Duration::ZERO;
        health.last_error = None;
        if extensions.is_some() {
            health.extensions = extensions;
        }
    }

    /// A target failed: it refused the connection, broke it, or did not speak SMTP.
    pub fn report_failure(&self, target: usize, error: &str) {
        self.note_failure(target, error, false);
    }

    /// There is no connection with a target. That it does not want a client says nothing of it.
    /// Where it does not let us in there is no second try, and the longest pause: too many wrong
    /// logins get an account locked.
    pub(super) fn report_error(&self, target: usize, error: &ConnectionError) {
        let is_grave = match error {
            ConnectionError::Unwanted(_) => return,
            ConnectionError::Login(reply) => reply.is_permanent(),
            _ => false,
        };
        self.note_failure(target, &error.to_string(), is_grave);
    }

    fn note_failure(&self, target: usize, error: &str, is_grave: bool) {
        let mut state = self.lock();
        let health = &mut state.targets[target];
        health.failures = health.failures.saturating_add(1);
        if is_grave {
            health.failures = health.failures.max(self.config.eject_after);
            health.pause = self.config.eject_max;
        }
        health.last_error = Some(error.chars().take(ERROR_TEXT).collect());
        if health.failures < self.config.eject_after || health.ejected {
            return;
        }
        health.ejected = true;
        tracing::warn!(
            upstream = self.config.name, target = %health.address, error,
            "target is ejected after {} failures in a row", health.failures
        );
        state.idle.retain(|connection| connection.target() != target);
        drop(state);
        self.wake_watchers.notify_waiters();
    }

    /// Asks a target at start what it offers, and an ejected one whether it is back, with
    /// growing pauses. Runs until it is dropped.
    async fn watch_target(self: Arc<Self>, target: usize) {
        loop {
            // Registered before the look, so that no wake-up is missed in between.
            let wake = self.wake_watchers.notified();
            match self.reason_to_probe(target) {
                None => wake.await,
                Some(Reason::Ejected) => {
                    tokio::time::sleep(self.next_pause(target)).await;
                    self.probe(target).await;
                }
                Some(Reason::Unknown) => {
                    if !self.probe(target).await {
                        tokio::time::sleep(self.next_pause(target)).await;
                    }
                }
            }
        }
    }

    fn reason_to_probe(&self, target: usize) -> Option<Reason> {
        let state = self.lock();
        let health = &state.targets[target];
        let unknown = health.extensions.is_none() && self.config.extensions.is_none();
        if health.ejected { Some(Reason::Ejected) } else { unknown.then_some(Reason::Unknown) }
    }

    async fn probe(&self, target: usize) -> bool {
        let _turn = self.logins.turn().await;
        match self.dial(target, None).await {
            Ok((connection, extensions)) => {
                connection.quit();
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
    fn next_pause(&self, target: usize) -> Duration {
        let mut state = self.lock();
        let health = &mut state.targets[target];
        let doubled = health.pause.saturating_mul(2).max(self.config.eject_for);
        health.pause = doubled.min(self.config.eject_max);
        let spread = u32::try_from(self.world.entropy.next() % 250).unwrap_or(0);
        health.pause + health.pause / 1000 * spread
    }

    /// The housekeeping of this upstream: watchers of targets, and the closing of idle
    /// connections. Runs until it is dropped.
    pub async fn housekeeping(self: Arc<Self>) {
        let mut watchers = tokio::task::JoinSet::new();
        for target in 0..self.config.targets.len() {
            watchers.spawn(Arc::clone(&self).watch_target(target));
        }
        let period = (self.config.idle_timeout / 2).max(Duration::from_millis(100));
        let mut tick = tokio::time::interval_at(Instant::now() + period, period);
        loop {
            tick.tick().await;
            self.expire_idle();
        }
    }
}

/// Why a target is probed.
enum Reason {
    /// It was ejected and may be back.
    Ejected,
    /// It never said what it offers.
    Unknown,
}
