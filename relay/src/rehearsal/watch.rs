//! Who watches the waves: when a barrier is reached, when a release begins. Floor 4.
//!
//! It asks `waves.status()`, when something has happened and a phase is about to change; while
//! nothing can change it sleeps.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{Span, ledger::Ledger, members};
use crate::{plan::Plan, relay::Relay, waves::InstanceStatus};

/// How long at most nobody looks, where events would tell.
const LOOK: Duration = Duration::from_millis(100);
/// So long after `closes` a release is awaited closely; then once in `SELDOM`.
const CLOSELY_MS: u64 = 2000;
const SELDOM: Duration = Duration::from_secs(1);

/// What was seen of a wave, in milliseconds after the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// All its instances had reached their barriers.
    pub barrier: Option<u64>,
    /// All its instances may send again.
    pub released: Option<u64>,
}

/// Watchers at work.
pub(super) struct Watching {
    tasks: JoinSet<()>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Watching {
    /// Ends them; what they have seen, in the order of the waves.
    pub(super) fn stop(mut self) -> Vec<Seen> {
        self.tasks.abort_all();
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Watches all these waves.
pub(super) fn all(
    relay: &Arc<Relay>,
    ledger: &Arc<Ledger>,
    plan: &Plan,
    span: Span,
    waves: &[usize],
) -> Watching {
    let seen = Arc::new(Mutex::new(vec![Seen::default(); waves.len()]));
    let mut tasks = JoinSet::new();
    for (place, wave) in waves.iter().enumerate() {
        let window = &plan.waves[*wave].window;
        let watcher = Watcher {
            relay: Arc::clone(relay),
            ledger: Arc::clone(ledger),
            seen: Arc::clone(&seen),
            place,
            members: members(plan, *wave),
            begins: span.offset(window.opens.saturating_sub_ms(plan.freeze_lead_ms)),
            closes: span.offset(window.closes),
        };
        tasks.spawn(watcher.run());
    }
    Watching { tasks, seen }
}

struct Watcher {
    relay: Arc<Relay>,
    ledger: Arc<Ledger>,
    seen: Arc<Mutex<Vec<Seen>>>,
    place: usize,
    members: Vec<usize>,
    begins: u64,
    closes: u64,
}

impl Watcher {
    async fn run(self) {
        self.until(self.begins).await;
        let barrier = self.when(|one| one.barrier).await;
        self.note(|seen| seen.barrier = Some(barrier));
        self.until(self.closes).await;
        let released = self.when(|one| one.phase.may_start()).await;
        self.note(|seen| seen.released = Some(released));
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut seen[self.place]);
    }

    async fn until(&self, ms: u64) {
        tokio::time::sleep_until(self.ledger.begun() + Duration::from_millis(ms)).await;
    }

    /// When all its instances are so.
    async fn when(&self, is: impl Fn(&InstanceStatus) -> bool) -> u64 {
        loop {
            let stirred = self.ledger.stirred.notified();
            let all = self.relay.waves.status();
            if self.members.iter().all(|index| is(&all[*index])) {
                return self.ledger.now();
            }
            if self.ledger.now() > self.closes + CLOSELY_MS {
                tokio::time::sleep(SELDOM).await;
            } else {
                let _ = tokio::time::timeout(LOOK, stirred).await;
            }
        }
    }
}
