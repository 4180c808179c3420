//! Who makes attempts: a worker for what has its turn, and tasks that serve a line.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{Means, SERVER_WAIT, attempt};
use crate::{
    relay::Relay,
    scheduler::{Slot, Wait},
    upstream::{Upstream, original},
};

/// Attempts at once for one limit: more would only stand in the limit's own line.
const LIMIT_SERVERS: usize = 64;

/// How often who waits for a link looks whether its fallback would take what stands in line.
const LOOK_ROUND: Duration = Duration::from_secs(1);

/// The longest pause of whoever serves a limit's line.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Attempts what has its turn, on the calling worker, until the relay stops.
pub async fn serve(relay: Arc<Relay>) {
    let room = Arc::new(Semaphore::new(relay.look().config.limits.spool_attempts));
    loop {
        let permit = match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                relay.queue.pass_on();
                match Arc::clone(&room).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                }
            }
        };
        let taken = loop {
            if relay.is_stopping() {
                return;
            }
            match relay.queue.take() {
                Some(taken) => break taken,
                None => relay.queue.turn().await,
            }
        };
        tokio::spawn(attempt(Arc::clone(&relay), taken, Means::None, Some(permit)));
    }
}

/// A message stands in this line: it is served from now on, if it is one that is served and is not
/// yet. `asked` is what [`Queue::changes`](crate::queue::Queue::changes) said before the gate was asked
/// about the message.
pub fn line(relay: &Arc<Relay>, slot: Slot, line: &Wait, asked: u64) {
    match line {
        Wait::Upstream(name) => {
            let generation = relay.look();
            let upstream = generation.upstream(original::family(name));
            let most = upstream.map_or(1, |upstream| upstream.config.connections);
            if relay.queue.begin_serving(line, most) {
                tokio::spawn(serve_upstream(Arc::clone(relay), line.clone()));
            }
        }
        Wait::Limit { .. } if relay.queue.begin_serving(line, LIMIT_SERVERS) => {
            tokio::spawn(serve_limit(Arc::clone(relay), line.clone()));
        }
        Wait::Change => relay.queue.look_again(slot, asked),
        // All else is woken by what it waits for.
        _ => {}
    }
}

/// Gives each connection that comes free to the next in line.
async fn serve_upstream(relay: Arc<Relay>, line: Wait) {
    let Wait::Upstream(name) = &line else { unreachable!("a line of an upstream") };
    loop {
        let upstream = relay.generation().upstream_or_child(name);
        let Some(upstream) = upstream else {
            // No such upstream any more: the gate has to say where they go now.
            relay.queue.wake(&line);
            if relay.queue.end_serving(&line) {
                return;
            }
            continue;
        };
        if has_way_round(&relay, &upstream) {
            // The gate has to say so.
            relay.queue.wake(&line);
            if relay.queue.end_serving(&line) {
                return;
            }
            continue;
        }
        let lease = match fallback(&upstream) {
            None => upstream.lease_patiently().await,
            Some(_) => match timeout(LOOK_ROUND, upstream.lease_patiently()).await {
                Ok(lease) => lease,
                Err(_) => continue,
            },
        };
        let Some(lease) = lease else {
            // A newer generation has it under the same name, or will have in a moment.
            tokio::task::yield_now().await;
            if relay.is_stopping() {
                return;
            }
            continue;
        };
        if relay.is_stopping() {
            return;
        }
        match relay.queue.take_waiting(&line) {
            Some(taken) => {
                let means = Means::Connection(upstream, Box::new(lease));
                tokio::spawn(attempt(Arc::clone(&relay), taken, means, None));
            }
            None => {
                lease.release();
                if relay.queue.end_serving(&line) {
                    return;
                }
            }
        }
    }
}

/// Where mail goes while no gateway of a link can be reached.
fn fallback(upstream: &Upstream) -> Option<&str> {
    upstream.config.link.as_ref()?.fallback.as_deref()
}

/// Whether what stands in line for a link would go elsewhere now.
fn has_way_round(relay: &Relay, upstream: &Upstream) -> bool {
    let Some(name) = fallback(upstream).filter(|_| upstream.is_down()) else { return false };
    let generation = relay.look();
    generation.upstream(name).is_some_and(|other| !other.is_down())
}

/// When it is worth asking a limit again that was asked at `asked`. Charges may be given back
/// before, and settings changed: nobody waits for longer than that.
fn lets_through(relay: &Relay, line: &Wait, asked: Instant) -> Instant {
    let ready = match line {
        Wait::Limit { scope, key } => relay.limits.ready(scope, key),
        _ => None,
    };
    ready.unwrap_or(asked + SERVER_WAIT).clamp(asked, asked + LONGEST_WAIT)
}

/// Has the next in line wait for the limit.
async fn serve_limit(relay: Arc<Relay>, line: Wait) {
    let one = Arc::new(Semaphore::new(1));
    loop {
        let Ok(place) = Arc::clone(&one).acquire_owned().await else { return };
        if relay.is_stopping() {
            return;
        }
        match relay.queue.take_waiting(&line) {
            Some(taken) => {
                let begun = Instant::now();
                let attempt = attempt(Arc::clone(&relay), taken, Means::Patience, Some(place));
                // It is over, or it has given its place back, and waits for no limit any more.
                let wait = tokio::select! {
                    attempted = tokio::spawn(attempt) => attempted.ok().and_then(|one| one.wait),
                    _ = one.acquire() => None,
                };
                // A limit that is further away than an attempt may wait refuses at once, and the
                // next one too, until it lets somebody through.
                if wait.as_ref() == Some(&line) {
                    tokio::time::sleep_until(lets_through(&relay, &line, begun)).await;
                }
            }
            None if relay.queue.end_serving(&line) => return,
            None => {}
        }
    }
}
