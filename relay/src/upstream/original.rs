//! An upstream of many destinations: mail goes where its client wanted to go before the host
//! redirected it here. Floor 2.
//!
//! The upstream of the configuration is a *family*: it has no targets and no connections, but a
//! *child* for each destination, an upstream like any other, named `FAMILY/ADDRESS:PORT`. So all that
//! knows upstreams (attempts, lines, health) needs nothing new. A child is made when mail wants it,
//! and dropped when it has long been unused, or another is wanted and there are as many as may be.
//! The figures of a family are those of its children, the dropped ones' too.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::Notify, task::AbortHandle, time::Instant};
use wavegate_smtp::Extensions;

use super::{Parts, Stats, Upstream, UpstreamStatus, health};
use crate::config::Target;

/// What stands between the name of a family and the destination. No configured name has it.
const SEPARATOR: char = '/';
/// A child that nobody wanted for so long is dropped, with what is known of its health.
const UNUSED: Duration = Duration::from_secs(3600);
/// How often children are looked at for that.
const LOOK: Duration = Duration::from_secs(60);

/// The children of a family.
pub(super) struct Children {
    /// What destinations offered when they last answered a relay before this one.
    known: HashMap<SocketAddr, Extensions>,
    table: Mutex<BTreeMap<SocketAddr, Child>>,
    /// Told when there is a new one, or one less.
    changed: Notify,
}

struct Child {
    upstream: Arc<Upstream>,
    used: Instant,
}

/// Why there is no upstream for a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaced {
    /// Nobody knows where its client wanted to go.
    #[error("it was not redirected, so upstream {0} does not know where its client wanted to go")]
    NotRedirected(String),
    /// It may not go there.
    #[error("upstream {family} may not continue to {destination} (networks)")]
    Forbidden {
        /// The upstream.
        family: String,
        /// Where its client wanted to go.
        destination: SocketAddr,
    },
    /// As many destinations as may be are in use.
    #[error("upstream {family}: all {limit} destinations are in use (destinations)")]
    Full {
        /// The upstream.
        family: String,
        /// The bound.
        limit: usize,
    },
}

/// The configured upstream of a name: its own, or, of a child, its family's.
pub fn family(name: &str) -> &str {
    name.split_once(SEPARATOR).map_or(name, |(family, _)| family)
}

/// The destination in the name of a child.
pub fn destination(name: &str) -> Option<SocketAddr> {
    name.split_once(SEPARATOR)?.1.parse().ok()
}

impl Children {
    pub(super) fn new(known: HashMap<SocketAddr, Extensions>) -> Self {
        Self { known, table: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Child>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<(SocketAddr, Arc<Upstream>)> {
        let table = self.lock();
        table.iter().map(|(at, child)| (*at, Arc::clone(&child.upstream))).collect()
    }
}

impl Upstream {
    /// Whether it is one of the many of its family.
    pub fn is_child(&self) -> bool {
        self.config.name.contains(SEPARATOR)
    }

    /// The upstream that mail whose client wanted to go to `destination` is handed to: itself, but
    /// of a family the child, which is made where there is none yet.
    pub fn place(self: &Arc<Self>, destination: Option<SocketAddr>) -> Result<Arc<Self>, Unplaced> {
        let (Some(children), Some(original)) = (&self.children, &self.config.original) else {
            return Ok(Arc::clone(self));
        };
        let family = || self.config.name.clone();
        let destination = destination.ok_or_else(|| Unplaced::NotRedirected(family()))?;
        if !original.allows(destination) {
            return Err(Unplaced::Forbidden { family: family(), destination });
        }
        let mut table = children.lock();
        if let Some(child) = table.get_mut(&destination) {
            child.used = Instant::now();
            return Ok(Arc::clone(&child.upstream));
        }
        if table.len() >= original.destinations {
            let longest = table.iter().filter(|(_, child)| child.upstream.is_at_rest());
            let Some(longest) = longest.min_by_key(|(_, child)| child.used).map(|(at, _)| *at)
            else {
                return Err(Unplaced::Full { family: family(), limit: original.destinations });
            };
            if let Some(child) = table.remove(&longest) {
                self.dismiss(&child.upstream);
            }
        }
        let upstream = self.bear(children, destination);
        let child = Child { upstream: Arc::clone(&upstream), used: Instant::now() };
        table.insert(destination, child);
        drop(table);
        children.changed.notify_one();
        Ok(upstream)
    }

    /// The child of a destination, if there is one.
    pub fn child(&self, destination: SocketAddr) -> Option<Arc<Self>> {
        let table = self.children.as_ref()?.lock();
        table.get(&destination).map(|child| Arc::clone(&child.upstream))
    }

    /// What it offers to mail whose client wants to go to `destination`; none where such mail never
    /// goes there.
    pub fn offers(&self, destination: Option<SocketAddr>) -> Option<Extensions> {
        let of = match &self.config.original {
            None => self.extensions(),
            Some(original) => {
                let destination =
                    destination.filter(|destination| original.allows(*destination))?;
                let child = self.child(destination).and_then(|child| child.extensions());
                child.or_else(|| health::configured_extensions(&self.config))
            }
        };
        Some(of.unwrap_or(Extensions::NONE))
    }

    fn bear(&self, children: &Children, to: SocketAddr) -> Arc<Self> {
        let mut config = self.config.clone();
        config.name = format!("{}{SEPARATOR}{to}", self.config.name);
        config.targets = vec![Target::Address(to)];
        config.original = None;
        config.default = false;
        let parts = Parts {
            config,
            world: self.world.clone(),
            observer: Arc::clone(&self.observer),
            hostname: Arc::clone(&self.hostname),
            connector: self.connector.clone(),
            link_connector: None,
            login: self.logins.credentials.clone(),
            naming: None,
            names: Vec::new(),
        };
        let child = Self::make(parts, &children.known);
        // One count for the whole family.
        Arc::new(Self { tls: Arc::clone(&self.tls), ..child })
    }

    /// A child is dropped: its family keeps the count of what it did.
    fn dismiss(&self, child: &Self) {
        child.retire();
        self.stats.add(&child.stats);
    }

    /// Whether nobody has or wants a connection.
    fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.in_use == 0 && state.waiters.is_empty()
    }

    /// The children; none of an upstream that is no family.
    pub(super) fn all_children(&self) -> Vec<Arc<Self>> {
        let all = self.children.as_ref().map(Children::all).unwrap_or_default();
        all.into_iter().map(|(_, child)| child).collect()
    }

    /// The figures of a family, from its own (those of dropped children) and its children's.
    pub(super) fn with_children(&self, own: UpstreamStatus) -> UpstreamStatus {
        let children = self.all_children().into_iter();
        children.map(|child| child.status()).fold(own, |sum, one| UpstreamStatus {
            name: sum.name,
            in_use: sum.in_use + one.in_use,
            idle: sum.idle + one.idle,
            waiting: sum.waiting + one.waiting,
            opened: sum.opened + one.opened,
            reused: sum.reused + one.reused,
            failed: sum.failed + one.failed,
            stale: sum.stale + one.stale,
            waited: sum.waited + one.waited,
            answered: sum.answered + one.answered,
            targets: sum.targets.into_iter().chain(one.targets).collect(),
            extensions: match (sum.extensions, one.extensions) {
                (Some(sum), Some(one)) => Some(sum.intersection(one)),
                (sum, one) => sum.or(one),
            },
            names: sum.names,
            trouble: sum.trouble,
        })
    }

    /// The housekeeping of a family: that of each child, and dropping those that nobody wants.
    pub(super) async fn keep_children(self: Arc<Self>) {
        let Some(children) = &self.children else { return };
        let mut keepers = Keepers::default();
        let mut tick = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        loop {
            keepers.follow(children.all());
            tokio::select! {
                biased;
                () = children.changed.notified() => {}
                _ = tick.tick() => self.drop_unused(children),
            }
        }
    }

    fn drop_unused(&self, children: &Children) {
        children.lock().retain(|_, child| {
            let stays = child.used.elapsed() < UNUSED || !child.upstream.is_at_rest();
            if !stays {
                self.dismiss(&child.upstream);
            }
            stays
        });
    }
}

/// The tasks that keep the children; they end with it.
#[derive(Default)]
struct Keepers(HashMap<SocketAddr, (Arc<Upstream>, AbortHandle)>);

impl Keepers {
    /// One for each of these, and no others.
    fn follow(&mut self, all: Vec<(SocketAddr, Arc<Upstream>)>) {
        let wanted: HashMap<_, _> = all.into_iter().collect();
        self.0.retain(|at, (kept, task)| {
            let stays = wanted.get(at).is_some_and(|child| Arc::ptr_eq(child, kept));
            if !stays {
                task.abort();
            }
            stays
        });
        for (at, child) in wanted {
            self.0.entry(at).or_insert_with(|| {
                let task = tokio::spawn(Arc::clone(&child).keep_targets()).abort_handle();
                (child, task)
            });
        }
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        self.0.values().for_each(|(_, task)| task.abort());
    }
}

impl Stats {
    fn add(&self, other: &Self) {
        let pairs = [
            (&self.opened, &other.opened),
            (&self.reused, &other.reused),
            (&self.failed, &other.failed),
            (&self.stale, &other.stale),
            (&self.waited, &other.waited),
            (&self.answered, &other.answered),
        ];
        for (sum, one) in pairs {
            sum.fetch_add(one.load(Relaxed), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
