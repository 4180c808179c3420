//! Turns events into metrics and log lines. Floor 4.
//!
//! Owns what is counted by events, and the names of all metrics. It does not own what others
//! count themselves (pools, limits, policies, bodies, the window interlock): that is read when
//! somebody asks, in one pass, by `render`.
//!
//! What holds in every scrape, for each `instance`: received recipients = delivered + held +
//! deferred + refused + in doubt + in flight. Each instance has a ledger under one lock, and a
//! reading copies it whole.
//!
//! Labels are names of the configuration and words of closed lists, never anything from a
//! message or a client.

mod families;
mod identity;
mod ledger;
mod links;
mod log;
mod process;
mod render;
mod shadows;
mod spool;
mod tls;
mod waves;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use prometheus::Histogram;
use wavegate_smtp::MessageFault;

use crate::{
    conductor::status::Source,
    config::Config,
    decision_log::DecisionLog,
    event::{Busy, Ended, Event, Observer, Refused},
    event_log::EventLog,
    rollout::{Stage, Store},
    upstream::original,
    world::WallClock,
};
pub use ledger::Account;
use ledger::{Ledger, ListenerCounts, NONE, Table, UpstreamCounts, histogram};
use log::Log;

/// Instances that ever existed and have series of their own: the largest plan twice over.
const INSTANCES: usize = 20_000;
/// Upstreams, and listeners, that ever existed and have series of their own.
const NAMES: usize = 1000;
/// Seconds in the gate: from three warm policies to one that runs out of its time.
const GATE_SECONDS: [f64; 13] =
    [2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.005, 0.02, 0.1, 0.5];

/// Metrics and logs of one process.
pub struct Telemetry {
    clock: Arc<dyn WallClock>,
    log: Log,
    /// Where the waves are looked at.
    waves: OnceLock<Source>,
    /// What was installed.
    rollouts: OnceLock<Arc<Store>>,
    /// Who writes events down besides the log.
    events: OnceLock<EventLog>,
    /// Who writes down what policies answer.
    decisions: OnceLock<Arc<DecisionLog>>,
    instances: Table<Ledger>,
    upstreams: Table<UpstreamCounts>,
    listeners: Table<ListenerCounts>,
    /// Mail of no instance: known without a look into the table.
    unmatched: Arc<Ledger>,
    gate: Histogram,
    refused: [AtomicU64; Refused::ALL.len()],
    busy: [AtomicU64; Busy::ALL.len()],
    ended: [AtomicU64; Ended::ALL.len()],
    rejected: [AtomicU64; MessageFault::ALL.len()],
    replies_lost: AtomicU64,
    replies_lost_delivered: AtomicU64,
    panics: AtomicU64,
    stages: [AtomicU64; Stage::ALL.len()],
    reloads: AtomicU64,
    reloads_refused: AtomicU64,
    /// Milliseconds since 1970.
    last_reload: AtomicU64,
    last_reload_good: AtomicBool,
}

impl Telemetry {
    /// Nothing counted yet. The configuration that the process starts with counts as taken now.
    pub fn new(clock: Arc<dyn WallClock>) -> Arc<Self> {
        let instances: Table<Ledger> = Table::new(INSTANCES);
        Arc::new(Self {
            log: Log::default(),
            waves: OnceLock::new(),
            rollouts: OnceLock::new(),
            events: OnceLock::new(),
            decisions: OnceLock::new(),
            unmatched: instances.of(NONE),
            instances,
            upstreams: Table::new(NAMES),
            listeners: Table::new(NAMES),
            gate: histogram(&GATE_SECONDS),
            refused: Default::default(),
            busy: Default::default(),
            ended: Default::default(),
            rejected: Default::default(),
            replies_lost: AtomicU64::default(),
            replies_lost_delivered: AtomicU64::default(),
            panics: AtomicU64::default(),
            stages: Default::default(),
            reloads: AtomicU64::default(),
            reloads_refused: AtomicU64::default(),
            last_reload: clock.now().0.into(),
            last_reload_good: true.into(),
            clock,
        })
    }

    /// Tells of waves too, from now on. The first source stays.
    pub fn watch_waves(&self, source: Source) {
        let _ = self.waves.set(source);
    }

    /// Tells of roll-outs too, from now on. The first store stays.
    pub fn watch_rollouts(&self, store: Arc<Store>) {
        let _ = self.rollouts.set(store);
    }

    /// Has events written to an event log too, from now on. The first one stays.
    pub fn write_events(&self, log: EventLog) {
        let _ = self.events.set(log);
    }

    /// Counts what a decision log writes, and closes it at the end. The first one stays.
    pub fn keep_decisions(&self, log: Arc<DecisionLog>) {
        let _ = self.decisions.set(log);
    }

    /// Bytes of what waits for the event log and the decision log.
    pub fn waiting(&self) -> usize {
        let decisions = self.decisions.get().map_or(0, |log| log.waiting());
        self.events.get().map_or(0, EventLog::waiting) + decisions
    }

    /// Writes what waits for the event log and the decision log, and closes them.
    pub fn close(&self) {
        if let Some(events) = self.events.get() {
            events.close();
        }
        if let Some(decisions) = self.decisions.get() {
            decisions.close();
        }
    }

    /// What was received of each instance and what became of it, by name; mail of no instance
    /// under `(none)`.
    pub fn accounts(&self) -> Vec<(Arc<str>, Account)> {
        let all = self.instances.all().into_iter();
        all.map(|(name, ledger)| (name, ledger.account())).collect()
    }

    /// Whether a listener has a bound socket.
    pub fn is_listening(&self, listener: &str) -> bool {
        self.listeners.of(listener).sockets.load(Relaxed) > 0
    }

    /// Makes the series of all names of a configuration, so that they begin at zero: a counter
    /// that appears with its first event has no rate for it.
    fn know(&self, config: &Config) {
        for instance in &config.plan.instances {
            self.instances.of(&instance.name);
        }
        for upstream in &config.upstreams {
            self.upstreams.of(&upstream.name);
        }
        for listener in &config.listeners {
            self.listeners.of(&listener.name);
        }
    }

    fn ledger(&self, instance: Option<&str>) -> Arc<Ledger> {
        match instance {
            Some(name) => self.instances.of(name),
            None => Arc::clone(&self.unmatched),
        }
    }

    fn count(&self, event: &Event<'_>) {
        match event {
            Event::Received { instance, recipients, size, .. } => {
                self.ledger(*instance).receive(*recipients, *size);
            }
            Event::Settled { instance, upstream, recipients, outcome, elapsed, .. } => {
                self.ledger(*instance).settle(*outcome, *recipients);
                // One for all its destinations: there may be many.
                let upstream = self.upstreams.of(upstream.map_or(NONE, original::family));
                upstream.settle(*outcome, *recipients);
                upstream.handoff.observe(elapsed.as_secs_f64());
            }
            Event::GateAnswered { elapsed } => self.gate.observe(elapsed.as_secs_f64()),
            Event::ProceedAgainstPlan { instance } => {
                self.instances.of(instance).against_plan.fetch_add(1, Relaxed);
            }
            Event::InDoubt { instance, .. } => {
                self.ledger(*instance).in_doubt.fetch_add(1, Relaxed);
            }
            Event::AttemptRetried { upstream, .. } => {
                self.upstreams.of(original::family(upstream)).retried.fetch_add(1, Relaxed);
            }
            Event::RecipientVerified { upstream, reply, .. } => {
                let counts = self.upstreams.of(original::family(upstream));
                let verified = match reply.is_positive() {
                    true => &counts.verified.taken,
                    false => &counts.verified.refused,
                };
                verified.fetch_add(1, Relaxed);
            }
            Event::RecipientUnverified { upstream, .. } => {
                self.upstreams.of(original::family(upstream)).verified.unanswered.fetch_add(1, Relaxed);
            }
            Event::ReplyLost { delivered: true, .. } => {
                self.replies_lost_delivered.fetch_add(1, Relaxed);
            }
            Event::ReplyLost { delivered: false, .. } => {
                self.replies_lost.fetch_add(1, Relaxed);
            }
            // Counted by the policy host, by kind; by the queue's accounts; told in the log only.
            Event::PolicyFailed { .. }
            | Event::Ended { .. }
            | Event::Held { .. }
            | Event::Deferred { .. }
            | Event::LetGo { .. }
            | Event::Removed { .. }
            | Event::Notification { .. }
            | Event::Released { .. }
            | Event::HeldTooLong { .. }
            // Counted by the link itself.
            | Event::LinkOpened { .. }
            | Event::LinkLost { .. }
            | Event::Operator { .. }
            | Event::Unreadable { .. }
            // What waves have come to is read from their status.
            | Event::Wave { .. }
            | Event::Ordered { .. }
            | Event::ClockSuspect { .. }
            | Event::ClockAgrees => {}
            event => self.count_process(event),
        }
    }

    /// What is not about one message.
    fn count_process(&self, event: &Event<'_>) {
        match event {
            Event::ListenerOpened { listener } => {
                self.listeners.of(listener).sockets.fetch_add(1, Relaxed);
            }
            Event::ListenerClosed { listener } => {
                self.listeners.of(listener).sockets.fetch_sub(1, Relaxed);
            }
            Event::ConnectionOpened { listener } => {
                let listener = self.listeners.of(listener);
                listener.connections.fetch_add(1, Relaxed);
                listener.opened.fetch_add(1, Relaxed);
            }
            Event::ConnectionClosed { listener } => {
                self.listeners.of(listener).connections.fetch_sub(1, Relaxed);
            }
            Event::ConnectionRefused { reason, .. } => {
                self.refused[*reason as usize].fetch_add(1, Relaxed);
            }
            Event::TransactionRefused { reason, .. } => {
                self.busy[*reason as usize].fetch_add(1, Relaxed);
            }
            Event::SessionEnded { reason, .. } => {
                self.ended[*reason as usize].fetch_add(1, Relaxed);
            }
            Event::TlsBegun { listener, secured } => {
                self.listeners.of(listener).tls.begin(*secured)
            }
            Event::TlsFailed { listener, failure, .. } => {
                self.listeners.of(listener).tls.fail(*failure);
            }
            Event::LoggedIn { listener, .. } => {
                self.listeners.of(listener).logins.fetch_add(1, Relaxed);
            }
            Event::LoginFailed { listener, failure, .. } => {
                let listener = self.listeners.of(listener);
                listener.logins_failed[*failure as usize].fetch_add(1, Relaxed);
            }
            Event::MessageRejected { fault, .. } => {
                self.rejected[*fault as usize].fetch_add(1, Relaxed);
            }
            Event::SessionPanicked => {
                self.panics.fetch_add(1, Relaxed);
            }
            Event::Reloaded { .. } => {
                self.reloads.fetch_add(1, Relaxed);
                self.last_reload.store(self.clock.now().0, Relaxed);
                self.last_reload_good.store(true, Relaxed);
            }
            Event::Plugin { stage, .. } => {
                let index = Stage::ALL.iter().position(|one| one.as_str() == *stage);
                if let Some(count) = index.and_then(|index| self.stages.get(index)) {
                    count.fetch_add(1, Relaxed);
                }
            }
            Event::ReloadRefused { .. } => {
                self.reloads_refused.fetch_add(1, Relaxed);
                self.last_reload_good.store(false, Relaxed);
            }
            // Counted with messages, read from the waves' status, or told in the log only.
            _ => {}
        }
    }
}

impl Observer for Telemetry {
    fn observe(&self, event: &Event<'_>) {
        self.count(event);
        self.log.write(event);
        if let Some(events) = self.events.get() {
            events.observe(event);
        }
    }
}
