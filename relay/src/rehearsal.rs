//! A rehearsal of the plan: a day of mail through the real relay in some seconds. Floor 4.
//!
//! The relay is all of it: sessions, gate, policies, spool, scheduler, releases. It runs in a
//! paused current-thread runtime, where time goes on when everybody waits, over a network and a
//! disk in memory; so a rehearsal touches nothing, and one seed makes one history. Played are
//! only its senders (`sender`, with the mail of `trace` or `synthetic`) and its upstreams
//! (`upstream`). What happened is kept in the `ledger`; `report` says what it means, `chart`
//! draws it.
//!
//! Bodies are sent small: what a window holds in reality is accounted by declared sizes, beside
//! the relay. Nothing here decides about mail.

mod chart;
mod ledger;
mod report;
mod sender;
mod synthetic;
#[cfg(test)]
mod tests;
mod trace;
mod traffic;
mod upstream;
mod watch;

use std::{collections::HashMap, io, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

pub(crate) use self::chart::{grouped, seconds};
pub use self::{
    chart::draw,
    ledger::{Arrival, Books, Fate},
    report::{Leak, Report, Totals, WaveReport},
    synthetic::synthetic,
    trace::{LETTERS, TraceError, read as read_trace},
    traffic::{Letter, Source, Traffic},
    watch::Seen,
};

use self::{ledger::Ledger, report::Story, sender::Senders};
use crate::{
    conductor::Conductor,
    config::{Bounces, Config, Diagnostics},
    delivery,
    event::Observer,
    generation::{self, Surroundings},
    names::Resolved,
    plan::{Plan, Timestamp},
    policy::{HostError, HostOptions, PolicyHost, ShadowMode},
    queue::Queue,
    relay::Relay,
    session::stopping,
    world::{World, memory::MemoryNetwork},
};

/// The longest span: a second in which nothing happens costs some time too.
pub const LONGEST_MS: u64 = 31 * 24 * 3_600_000;
/// How long attempts that are under way at the end may take.
const END: Duration = Duration::from_secs(900);

/// The time that is rehearsed: `[from, to)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first moment.
    pub from: Timestamp,
    /// The first moment after it.
    pub to: Timestamp,
}

impl Span {
    /// How long it is.
    pub fn length_ms(self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Milliseconds from its beginning to a time; 0 for one before it.
    fn offset(self, time: Timestamp) -> u64 {
        time.0.saturating_sub(self.from.0)
    }
}

/// What each upstream can do.
#[derive(Clone, Copy, Debug)]
pub struct Strength {
    /// Messages a second that it answers at most, on all connections together.
    pub rate: NonZeroU32,
    /// Its pause before each final reply.
    pub latency: Duration,
}

/// What is rehearsed.
pub struct Rehearsal {
    /// The configuration with its plan. Targets are replaced, and no sender gets a notification.
    pub config: Config,
    /// When.
    pub span: Span,
    /// The mail.
    pub traffic: Traffic,
    /// What the upstreams can do.
    pub strength: Strength,
    /// What all that is random follows from.
    pub seed: u64,
    /// Where compiled policies are kept, if anywhere.
    pub cache: Option<PathBuf>,
}

/// Why a rehearsal could not be.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The policies are wrong: the configuration's fault.
    #[error("the policies:\n{0}")]
    Policies(Diagnostics),
    /// The machine's fault.
    #[error("the policy host: {0}")]
    Host(#[from] HostError),
    /// The machine's fault.
    #[error("a directory of its own: {0}")]
    Directory(io::Error),
    /// The machine's fault.
    #[error("a runtime: {0}")]
    Runtime(io::Error),
}

/// The waves of a plan that have instances of their own and whose windows, with their lead, lie
/// in a span at least in part. An instance of several waves belongs to the latest.
pub fn waves_in(plan: &Plan, span: Span) -> Vec<usize> {
    let lead = plan.freeze_lead_ms;
    let in_span = |&index: &usize| {
        let window = &plan.waves[index].window;
        let begins = window.opens.saturating_sub_ms(lead);
        begins < span.to && window.closes > span.from && !members(plan, index).is_empty()
    };
    (0..plan.waves.len()).filter(in_span).collect()
}

/// The instances that follow this wave.
fn members(plan: &Plan, wave: usize) -> Vec<usize> {
    let all = plan.waves[wave].instances.iter().copied();
    all.filter(|instance| plan.wave_of[*instance] == Some(wave)).collect()
}

/// Rehearses. It blocks for as long as it takes.
pub fn run(rehearsal: Rehearsal) -> Result<Report, RehearsalError> {
    // What a shadow says is in no report.
    let shadow = ShadowMode::Off;
    let options = HostOptions { audit_every: 0, shadow, ..HostOptions::simulation(rehearsal.seed) };
    let host = PolicyHost::new(rehearsal.cache.clone(), options)?;
    let directory = tempfile::tempdir().map_err(RehearsalError::Directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(RehearsalError::Runtime)?;
    runtime.block_on(play(rehearsal, host, directory.path()))
}

async fn play(
    rehearsal: Rehearsal,
    host: Arc<PolicyHost>,
    spill: &std::path::Path,
) -> Result<Report, RehearsalError> {
    let Rehearsal { mut config, span, traffic, strength, seed, .. } = rehearsal;
    let network = MemoryNetwork::default();
    let traffic = Arc::new(traffic);
    let ledger = Arc::new(Ledger::new(traffic.letters.len()));
    // Senders and upstreams are played without TLS.
    config.listeners.iter_mut().for_each(|listener| listener.tls = None);
    for (number, upstream) in config.upstreams.iter_mut().enumerate() {
        upstream::redirect(number, upstream);
        // A notification would be mail that no sender has sent.
        upstream.bounces = Bounces::Event;
        upstream::play(&network, number, upstream, strength, &ledger);
    }
    let world = World::simulated(network, span.from, seed);
    let quota = config.spool.quota;
    let upstreams = config.upstreams.iter().map(|one| one.name.clone()).collect();
    let around = Surroundings {
        queue: Queue::in_memory(Arc::clone(&world.clock)),
        world,
        host,
        observer: Arc::clone(&ledger) as Arc<dyn Observer>,
        spill,
        known: &HashMap::new(),
        tls: Arc::default(),
        names: Resolved::default(),
    };
    let relay = generation::assemble(config, around).map_err(RehearsalError::Policies)?;
    start(&relay);
    let plan = Arc::clone(&relay.look().config.plan);
    let waves = waves_in(&plan, span);
    let watching = watch::all(&relay, &ledger, &plan, span, &waves);
    // What upstreams offer is known, as in a relay that has run before.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let senders = Senders::new(&relay, &ledger, &traffic);
    senders.run().await;
    tokio::time::sleep_until(ledger.begun() + Duration::from_millis(span.length_ms())).await;
    senders.stop().await;
    let seen = watching.stop();
    stop(&relay).await;
    let books = ledger.close(relay.queue.spool().usage().messages);
    let story = Story { plan, span, traffic, strength, seed, upstreams, quota, waves, seen, books };
    Ok(report::tell(story))
}

/// Everything that a worker and the control thread run beside sessions.
fn start(relay: &Arc<Relay>) {
    tokio::spawn(Conductor::new(relay).drive());
    tokio::spawn(delivery::serve(Arc::clone(relay)));
    tokio::spawn(delivery::keeper::keep(Arc::clone(relay)));
    for upstream in relay.generation().upstreams.values() {
        tokio::spawn(Arc::clone(upstream).housekeeping());
    }
    // What the spool's thread does by itself.
    let relay = Arc::clone(relay);
    tokio::spawn(async move {
        while !relay.is_stopping() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            relay.queue.spool().tend();
        }
    });
}

/// Ends the relay as a stop does: what is under way ends, all else stays in the spool.
async fn stop(relay: &Relay) {
    relay.stop();
    stopping::wake_all();
    let quiet = async {
        loop {
            let total = relay.queue.snapshot().total;
            if total.in_flight.messages + total.in_doubt.messages == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    // What is not over by then is told as waiting.
    let _ = tokio::time::timeout(END, quiet).await;
}
