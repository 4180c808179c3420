//! Keeps the budget of memory: what grows slowly is looked at from time to time, and who must know
//! of a shortage is told. Floor 4.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    budget::{self, Level, Use},
    gateway::Gateways,
    relay::Relay,
    telemetry::Telemetry,
    worker::Pulse,
};

/// How often it is looked: in that time a spool grows by some megabytes.
const LOOK: Duration = Duration::from_secs(1);
/// How long workers may take to be ready for their first session.
const STARTED: Duration = Duration::from_secs(30);

/// The budget where none is configured.
pub(super) fn find(relay: &Relay) {
    let configured = relay.look().config.limits.memory_total;
    let found = budget::available();
    if found.is_none() && configured.is_none() {
        tracing::warn!("the host does not say how much memory it has: set limits.memory_total");
    }
    relay.budget.find(found.unwrap_or(usize::MAX), configured);
    // What an earlier process left is there before anybody connects.
    relay.budget.set(Use::Spool, relay.queue.len() * budget::ENTRY);
}

/// Runs to the end of the process.
pub(super) async fn keep(
    relay: Arc<Relay>,
    (telemetry, gateways): (Arc<Telemetry>, Arc<Gateways>),
    pulse: Pulse,
) {
    // Warm policies are part of what the process has before anybody connects.
    let _ = timeout(STARTED, pulse.answers()).await;
    let own = budget::resident().unwrap_or(0).saturating_sub(relay.budget.used());
    relay.budget.set(Use::Base, own);
    let limit = relay.budget.limit();
    tracing::info!(limit, base = own, "memory for all that grows with load (limits.memory_total)");
    if relay.budget.level() > Level::Calm {
        tracing::warn!("the process itself takes most of it: raise limits.memory_total");
    }
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last = Level::Calm;
    loop {
        looks.tick().await;
        let cells = relay.limits.stats().keys + relay.rates.len();
        relay.budget.set(Use::Spool, relay.queue.len() * budget::ENTRY);
        let tables = cells * budget::CELL + telemetry.waiting() + gateways.bytes();
        relay.budget.set(Use::Tables, tables);
        let level = relay.budget.level();
        if level != last {
            tell(&relay, level);
        }
        if level > last {
            pulse.hurry();
        }
        last = level;
    }
}

fn tell(relay: &Relay, level: Level) {
    let by = |who| relay.budget.used_by(who);
    let (used, limit, level) = (relay.budget.used(), relay.budget.limit(), level.as_str());
    let (sessions, messages) = (by(Use::Sessions), by(Use::Messages));
    let (spool, tables) = (by(Use::Spool), by(Use::Tables));
    tracing::warn!(
        level,
        used,
        limit,
        sessions,
        messages,
        spool,
        tables,
        "how short of memory the relay is has changed"
    );
}
