//! What goes by the clock: messages that expire, accounts that are written down; and what windows
//! let out once `conductor` has ended them. One task a process.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Delivery, Failure, load, millis, unreadable};
use crate::{config::Config, event::Event, queue::Taken, relay::Relay, scheduler::Pace};

/// The longest sleep: accounts are written down this often.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks for what has expired or is held for too long.
const MINUTE: Duration = Duration::from_secs(60);

/// Runs until the relay stops.
pub async fn keep(relay: Arc<Relay>) {
    let mut looked = Instant::now();
    while !relay.is_stopping() {
        release(&relay);
        relay.queue.save_accounts();
        if looked.elapsed() >= MINUTE {
            looked = Instant::now();
            expire(&relay);
            overdue(&relay);
        }
        let changed = relay.queue.changed.notified();
        tokio::select! {
            biased;
            () = changed => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Lets out the mail of every instance whose window has ended, or that has none any more.
fn release(relay: &Relay) {
    let now = relay.waves.now();
    let plan = relay.waves.current();
    for (key, name) in relay.queue.phases() {
        let held =
            plan.index_of(&name).is_some_and(|index| !plan.instance(index).phase(now).may_start());
        if held {
            continue;
        }
        let messages = relay.queue.release(key, pace(&relay.look().config));
        if messages > 0 {
            relay.emit(&Event::Released { instance: &name, messages: messages as u64 });
        }
    }
}

/// How fast what was held is let out.
pub(crate) fn pace(config: &Config) -> Pace {
    let rate = config.spool.release_rate;
    Pace {
        rate: rate.and_then(std::num::NonZeroU32::new),
        start: rate.unwrap_or(0) / 10,
        ramp_ms: millis(config.spool.release_ramp),
    }
}

/// Gives up what has waited for too long.
fn expire(relay: &Arc<Relay>) {
    let generation = relay.generation();
    let longest = generation.upstreams.values().map(|one| one.config.expire).max();
    let longest = longest.unwrap_or(Duration::MAX);
    let expiry = |upstream: Option<&str>| {
        let upstream = upstream.and_then(|name| generation.upstream(name));
        upstream.map_or(longest, |upstream| upstream.config.expire)
    };
    for taken in relay.queue.expired(expiry) {
        tokio::spawn(give_up(Arc::clone(relay), taken));
    }
}

async fn give_up(relay: Arc<Relay>, taken: Taken) {
    let last = taken.progress.last.clone();
    fail_all(relay, taken, |recipient| Failure::expired(recipient, last.clone())).await;
}

/// An operator gives a message up that is in flight for this: its sender is told.
pub(crate) async fn bounce(relay: Arc<Relay>, taken: Taken, reason: &str) {
    fail_all(relay, taken, |recipient| Failure::removed(recipient, reason)).await;
}

async fn fail_all(relay: Arc<Relay>, taken: Taken, failure: impl Fn(u32) -> Failure) {
    let (message, envelope) = match load(&relay, &taken).await {
        Ok(loaded) => loaded,
        Err(error) => {
            unreadable(&relay, taken, &error);
            return;
        }
    };
    let name = relay.queue.upstream_of(taken.slot);
    let mut delivery = Delivery::new(relay, envelope, message, &taken);
    let upstreams = &delivery.generation.upstreams;
    let upstream = name.and_then(|name| upstreams.get(&*name));
    if let Some(upstream) = upstream.or_else(|| upstreams.values().next()).cloned() {
        let over = delivery.pending().into_iter().map(failure).collect();
        delivery.fail(&upstream, over);
    }
    delivery.settle(taken).await;
}

/// Says which instances have mail that is held for longer than it should be. It is never
/// bounced for that.
fn overdue(relay: &Relay) {
    let now = relay.waves.now();
    let most = millis(relay.look().config.spool.max_hold);
    for (name, _, figures) in relay.queue.snapshot().instances {
        let Some(oldest) = figures.oldest.filter(|_| figures.held.messages > 0) else { continue };
        let age = now.0.saturating_sub(oldest.0);
        if age > most {
            let instance = name.as_deref();
            let age = Duration::from_millis(age);
            relay.emit(&Event::HeldTooLong { instance, messages: figures.held.messages, age });
        }
    }
}
