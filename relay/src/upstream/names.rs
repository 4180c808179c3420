//! The names of an upstream while it runs: looked up when their time is over, and its targets
//! exchanged for what they stand for then. Owns the exchange, and what an operator hears of names;
//! how long an answer is believed is `crate::names`' business.

use std::{
    net::SocketAddr,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use super::{Connection, TargetHealth, Upstream, health};
use crate::names::{self, Endpoint, Name, Naming, Placement, Reply, State};

/// Names without a resolver are looked at this often, in vain.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// What is counted of looking up names.
#[derive(Default)]
pub(super) struct Lookups {
    answered: AtomicU64,
    denied: AtomicU64,
    silent: AtomicU64,
}

/// Figures of names for telemetry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamesStatus {
    /// Names that were looked up and answered.
    pub answered: u64,
    /// That do not exist, or stand for nothing.
    pub denied: u64,
    /// That had no answer.
    pub silent: u64,
    /// How long ago the last good answer was, of the name where that is longest, while there is no
    /// newer one.
    pub stale: Option<Duration>,
}

impl Upstream {
    /// Whether its targets can change.
    pub(super) fn has_names(&self) -> bool {
        !self.names().is_empty()
    }

    /// What is known of its names: another upstream may go on from it.
    pub fn known_names(&self) -> Vec<Name> {
        self.names().clone()
    }

    /// Its targets now.
    pub fn targets(&self) -> Vec<Endpoint> {
        self.lock().targets.iter().map(|one| one.endpoint().clone()).collect()
    }

    /// Figures of its names.
    pub fn names_status(&self) -> NamesStatus {
        let now = Instant::now();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NamesStatus {
            answered: count(&self.lookups.answered),
            denied: count(&self.lookups.denied),
            silent: count(&self.lookups.silent),
            stale: self.names().iter().filter_map(|name| name.age(now)).max(),
        }
    }

    /// What is wrong with its names, if anything is.
    pub fn names_trouble(&self) -> Option<String> {
        let troubles: Vec<_> = self.names().iter().filter_map(Name::trouble).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// Looks up names whenever their time is over. Runs until it is dropped.
    pub(super) async fn follow_names(self: Arc<Self>) {
        let Some(naming) = self.naming.clone() else { return };
        loop {
            let keep = naming.config.keep;
            let wake = self.names().iter().map(|name| name.wake(keep)).min();
            let wake = wake.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::time::sleep_until(wake).await;
            let replies = self.ask_due(&naming).await;
            self.learn(&naming, replies);
        }
    }

    /// Asks for all names whose time is over, at once.
    async fn ask_due(&self, naming: &Naming) -> Vec<(usize, Reply)> {
        let now = Instant::now();
        let due: Vec<_> = {
            let names = self.names();
            let all = names.iter().enumerate();
            all.filter(|(_, name)| name.is_due(now)).map(|(i, n)| (i, n.target().clone())).collect()
        };
        let mut asking = JoinSet::new();
        for (index, target) in due {
            let resolver = Arc::clone(&naming.resolver);
            asking.spawn(async move { (index, names::ask(&resolver, &target).await) });
        }
        let mut replies = asking.join_all().await;
        replies.sort_by_key(|(index, _)| *index);
        replies
    }

    fn learn(&self, naming: &Naming, replies: Vec<(usize, Reply)>) {
        let now = Instant::now();
        let placement = {
            let mut names = self.names();
            let before: Vec<_> = names.iter().map(Mood::of).collect();
            for (index, reply) in replies {
                self.lookups.count(&reply);
                if let Some(name) = names.get_mut(index) {
                    name.take(reply, &naming.config, now);
                }
            }
            names.iter_mut().for_each(|name| name.expire(naming.config.keep, now));
            let placement = names::place(&self.config.targets, &names);
            for (name, before) in names.iter().zip(before) {
                self.tell(name, before, &placement, naming.config.keep);
            }
            placement
        };
        self.exchange(placement);
    }

    /// Takes these endpoints as targets. What stays keeps its health, connections and what it
    /// offers; leases of what goes end by themselves.
    fn exchange(&self, placement: Placement) {
        let addresses =
            |targets: &[TargetHealth]| targets.iter().map(|one| one.endpoint().address).collect();
        let mut state = self.lock();
        let same = |(one, placed): (&TargetHealth, &names::Placed)| {
            *one.endpoint() == placed.endpoint && one.rank() == placed.rank
        };
        if state.targets.len() == placement.endpoints.len()
            && state.targets.iter().zip(&placement.endpoints).all(same)
        {
            return;
        }
        let old: Vec<SocketAddr> = addresses(&state.targets);
        let common = health::common_extensions(&state.targets);
        let mut left = std::mem::take(&mut state.targets);
        for placed in placement.endpoints {
            let place = left.iter().position(|one| *one.endpoint() == placed.endpoint);
            let rank = placed.rank;
            let health = match place {
                Some(place) => left.swap_remove(place).ranked(rank),
                None => TargetHealth::new(placed, None),
            };
            state.targets.push(health);
        }
        // Clients are not offered less because the new ones have not been asked yet.
        state.assumed = common.or(state.assumed);
        let new: Vec<SocketAddr> = addresses(&state.targets);
        let gone = state.unwanted();
        drop(state);
        self.exchanged.notify_waiters();
        self.recovered.notify_waiters();
        gone.into_iter().for_each(Connection::quit);
        let (upstream, desperate) = (&self.config.name, placement.desperate);
        match new.is_empty() {
            true => tracing::error!(upstream, ?old, "no target is left; its mail waits"),
            false => tracing::info!(upstream, ?old, ?new, desperate, "targets were exchanged"),
        }
    }

    /// One line where it has become otherwise with a name.
    fn tell(&self, name: &Name, before: Mood, placement: &Placement, keep: Duration) {
        let now = Mood::of(name);
        if now == before {
            return;
        }
        let (upstream, target) = (&self.config.name, name.target());
        let error = name.trouble().unwrap_or_default();
        match now {
            Mood::Good if before == Mood::New => {}
            Mood::Good => tracing::info!(upstream, name = %target, "name is answered again"),
            Mood::Stale => tracing::warn!(
                upstream, name = %target, error, ?keep,
                "name is not answered; what it stood for is used for so long"
            ),
            Mood::Gone if placement.desperate && !name.is_empty() => tracing::error!(
                upstream, name = %target, error, ?keep,
                "name stands for nothing any more, and nothing else is left: what it stood for is \
                 used for so long"
            ),
            Mood::Gone => tracing::error!(
                upstream, name = %target, error, "name stands for nothing any more"
            ),
            Mood::New | Mood::Lost => tracing::error!(
                upstream, name = %target, error, "name is not answered, and nothing is known of it"
            ),
        }
    }

    pub(super) fn names(&self) -> MutexGuard<'_, Vec<Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookups {
    fn count(&self, reply: &Reply) {
        let counter = match reply {
            Reply::Found { .. } => &self.answered,
            Reply::Denied(_) => &self.denied,
            Reply::Silent(_) => &self.silent,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What an operator should know of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Not asked yet.
    New,
    /// Answered.
    Good,
    /// Not answered, and known from before.
    Stale,
    /// Not answered, and not known, or too long ago.
    Lost,
    /// It stands for nothing.
    Gone,
}

impl Mood {
    fn of(name: &Name) -> Self {
        match name.state() {
            State::New => Self::New,
            State::Good => Self::Good,
            State::Silent(_) if name.is_empty() => Self::Lost,
            State::Silent(_) => Self::Stale,
            State::Denied { .. } => Self::Gone,
        }
    }
}
