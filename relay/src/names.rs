//! What the names of upstreams stand for, and how long that is believed. Floor 2.
//!
//! Owns asking (`ask`), what becomes of each answer (`Name`), which endpoints follow (`place`), and
//! the look at all names before a configuration is taken (`Resolved`). It starts no task and connects
//! to nobody: `upstream` does.
//!
//! - **No answer** (a server is down, SERVFAIL) says nothing: what was found last is used on, for
//!   `keep` beyond its TTL (RFC 8767). Each host and address family is kept by itself.
//! - **A definite no** (NXDOMAIN, no addresses, a null MX) is an answer, because removing a record is
//!   how a host is taken out of service. But it does not leave an upstream without any endpoint at
//!   once: a zone that was emptied by mistake must not stop all mail, and the host that was there
//!   most likely still is. So the last ones are used for `keep` then too, and that is told loudly.

mod ask;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

pub use self::ask::{Gap, Reply, ask};
use crate::{
    config::{Config, Diagnostic, Diagnostics, ResolverConfig, Severity, Target, UpstreamConfig},
    world::{Resolver, World},
};

/// Addresses of one name: each is watched, and has its own metrics.
pub const ADDRESSES: usize = 32;
/// Longest pause before a name without an answer is asked for again (RFC 8767 5).
const RETRY: Duration = Duration::from_secs(30);
/// Longest look at all names of a configuration; what has no answer by then has none.
const LOOK: Duration = Duration::from_secs(15);
/// Names that are looked up at once then: each is a few sockets.
const AT_ONCE: usize = 32;

/// Where a connection goes: an address, and the name of the host that it was found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: SocketAddr,
    /// The host's name, which its certificate should have; none where the address is configured.
    pub host: Option<Arc<str>>,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, host: None }
    }
}

/// An endpoint, and which go before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Endpoints of a lower rank are used first.
    pub rank: usize,
}

/// Whom to ask, and how long to believe it.
pub struct Naming {
    /// Whom.
    pub resolver: Arc<dyn Resolver>,
    /// `[resolver]`.
    pub config: ResolverConfig,
}

impl Naming {
    /// The one in force, where the configuration is the same, else a new one.
    pub fn open(world: &World, config: &ResolverConfig, in_force: Option<&Arc<Self>>) -> Arc<Self> {
        match in_force.filter(|naming| naming.config == *config) {
            Some(same) => Arc::clone(same),
            None => Arc::new(Self {
                resolver: world.names.open(&config.settings),
                config: config.clone(),
            }),
        }
    }
}

/// An address that a name stood for when it was last answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    address: SocketAddr,
    host: Arc<str>,
    rank: usize,
    /// The end of its TTL.
    until: Instant,
}

/// How it is with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not been asked for.
    New,
    /// It was answered.
    Good,
    /// It is not answered, or not all of it that was there before.
    Silent(String),
    /// It stands for nothing.
    Denied {
        /// Since when.
        since: Instant,
        /// Who says so.
        why: String,
    },
}

/// One name of one upstream.
#[derive(Clone, Debug)]
pub struct Name {
    target: Target,
    found: Vec<Found>,
    state: State,
    /// When it was last answered well; when it was first asked for, where it never was.
    answered: Instant,
    due: Instant,
    pause: Duration,
}

impl Name {
    /// A name that nothing is known of.
    pub fn new(target: Target, now: Instant) -> Self {
        Self {
            target,
            found: Vec::new(),
            state: State::New,
            answered: now,
            due: now,
            pause: Duration::ZERO,
        }
    }

    /// The name.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How it is with it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether anything is found, be it old.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether it is to be asked for now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// When to look at it again: to ask, or because something of it is too old.
    pub fn wake(&self, keep: Duration) -> Instant {
        self.found.iter().map(|one| self.end(one, keep)).chain([self.due]).min().unwrap_or(self.due)
    }

    /// How long ago it was last answered well; none where the last answer is one.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::New | State::Good => None,
            State::Silent(_) | State::Denied { .. } => {
                Some(now.saturating_duration_since(self.answered))
            }
        }
    }

    /// What is wrong with it, if anything is.
    pub fn trouble(&self) -> Option<String> {
        match &self.state {
            State::New => Some(format!("{} has not been looked up yet", self.target)),
            State::Good => None,
            State::Silent(why) => Some(format!("{} has no answer: {why}", self.target)),
            State::Denied { why, .. } => Some(format!("{}: {why}", self.target)),
        }
    }

    /// Learns from a reply.
    pub fn take(&mut self, reply: Reply, config: &ResolverConfig, now: Instant) {
        match reply {
            Reply::Found { list, gaps, ttl } => self.take_found(list, &gaps, ttl, config, now),
            Reply::Denied(why) => {
                let since = match self.state {
                    State::Denied { since, .. } => since,
                    _ => now,
                };
                self.state = State::Denied { since, why };
                self.due = now + self.next_pause(config);
            }
            Reply::Silent(why) => {
                // The last answer stays the last one.
                if !matches!(self.state, State::Denied { .. }) {
                    self.state = State::Silent(why);
                }
                self.due = now + self.next_pause(config);
            }
        }
        self.expire(config.keep, now);
    }

    fn take_found(
        &mut self,
        list: Vec<(SocketAddr, Arc<str>, usize)>,
        gaps: &[Gap],
        ttl: Duration,
        config: &ResolverConfig,
        now: Instant,
    ) {
        let ttl = ttl.clamp(config.min_ttl, config.settings.max_ttl.max(config.min_ttl));
        let until = now + ttl;
        let of = |(address, host, rank)| Found { address, host, rank, until };
        let mut found: Vec<_> = list.into_iter().map(of).collect();
        let addresses: HashSet<_> = found.iter().map(|one| one.address).collect();
        let mut why = None;
        for old in self.found.drain(..) {
            let gap = gaps.iter().find(|gap| gap.covers(&old.host, old.address));
            let is_good = old.until + config.keep > now && !addresses.contains(&old.address);
            if let Some(gap) = gap.filter(|_| is_good) {
                why = Some(gap.why.clone());
                found.push(old);
            }
        }
        // In one order whatever the server's is, so that what is left out is always the same.
        found.sort_by_key(|one| (one.rank, one.address));
        found.truncate(ADDRESSES);
        self.found = found;
        let again = if gaps.is_empty() { ttl } else { ttl.min(RETRY.max(config.min_ttl)) };
        self.due = now + again;
        match why {
            Some(why) => self.state = State::Silent(why),
            None => {
                self.state = State::Good;
                self.answered = now;
                self.pause = Duration::ZERO;
            }
        }
    }

    /// Forgets what is too old to be used.
    pub fn expire(&mut self, keep: Duration, now: Instant) {
        let mut found = std::mem::take(&mut self.found);
        found.retain(|one| self.end(one, keep) > now);
        self.found = found;
    }

    fn end(&self, found: &Found, keep: Duration) -> Instant {
        match self.state {
            // What did not exist from the beginning of a configuration has nothing to be kept.
            State::Denied { since, .. } => since + keep,
            _ => found.until + keep,
        }
    }

    fn next_pause(&mut self, config: &ResolverConfig) -> Duration {
        let doubled = self.pause.saturating_mul(2).max(config.min_ttl);
        self.pause = doubled.min(RETRY.max(config.min_ttl));
        self.pause
    }

    fn endpoints(&self) -> impl Iterator<Item = Placed> {
        self.found.iter().map(|one| Placed {
            endpoint: Endpoint { address: one.address, host: Some(Arc::clone(&one.host)) },
            rank: one.rank,
        })
    }
}

/// The endpoints of an upstream, and whether they are those of names that do not exist any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Each address once.
    pub endpoints: Vec<Placed>,
    /// Nothing else is left.
    pub desperate: bool,
}

/// What the targets of an upstream stand for now.
pub fn place(targets: &[Target], names: &[Name]) -> Placement {
    let mut endpoints: Vec<Placed> = Vec::new();
    for target in targets {
        match target.address() {
            Some(address) => add(&mut endpoints, Placed { endpoint: address.into(), rank: 0 }),
            None => {
                let name = names.iter().find(|name| name.target == *target);
                let name = name.filter(|name| !matches!(name.state, State::Denied { .. }));
                let found = name.into_iter().flat_map(Name::endpoints);
                found.for_each(|placed| add(&mut endpoints, placed));
            }
        }
    }
    if !endpoints.is_empty() {
        return Placement { endpoints, desperate: false };
    }
    names.iter().flat_map(Name::endpoints).for_each(|placed| add(&mut endpoints, placed));
    let desperate = !endpoints.is_empty();
    Placement { endpoints, desperate }
}

/// An address that several name is used as early as any of them says.
fn add(endpoints: &mut Vec<Placed>, placed: Placed) {
    let address = placed.endpoint.address;
    match endpoints.iter_mut().find(|one| one.endpoint.address == address) {
        Some(known) => known.rank = known.rank.min(placed.rank),
        None => endpoints.push(placed),
    }
}

/// The names of a configuration that is about to be taken.
#[derive(Default)]
pub struct Resolved {
    /// Whom was asked; none where nobody is ever asked, as in an explanation.
    pub naming: Option<Arc<Naming>>,
    /// What does not keep it from being taken.
    pub warnings: Vec<Diagnostic>,
    names: HashMap<String, Vec<Name>>,
}

impl Resolved {
    /// Nothing was asked yet: who has the names asks.
    pub fn later(naming: Arc<Naming>) -> Self {
        Self { naming: Some(naming), ..Self::default() }
    }

    /// The names of an upstream, be they asked for or not.
    pub fn names(&self, upstream: &UpstreamConfig) -> Vec<Name> {
        let now = Instant::now();
        let asked = self.names.get(&upstream.name).map_or(&[][..], Vec::as_slice);
        let of = |target: &Target| {
            let known = asked.iter().find(|name| name.target == *target).cloned();
            known.unwrap_or_else(|| Name::new(target.clone(), now))
        };
        upstream.targets.iter().filter(|target| target.is_name()).map(of).collect()
    }
}

/// Looks up all names of a configuration, but for the upstreams in `unchanged`, all at once and
/// within bounds. One that does not exist, or leads back here, is an error; one without an answer is
/// a warning, and has what is `known` of it.
pub async fn resolve(
    config: &Config,
    naming: Arc<Naming>,
    unchanged: &HashSet<String>,
    known: &[Name],
) -> Result<Resolved, Diagnostics> {
    let wanted: Vec<_> =
        config.names.iter().filter(|place| !unchanged.contains(&place.upstream)).collect();
    let targets: HashSet<_> = wanted.iter().map(|place| &place.target).collect();
    let replies = ask_all(&naming, targets.into_iter().cloned()).await;
    let now = Instant::now();
    let mut names: HashMap<String, Vec<Name>> = HashMap::new();
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for place in wanted {
        let target = &place.target;
        let Some(reply) = replies.get(target).cloned() else { continue };
        match &reply {
            Reply::Denied(why) => errors.push(place.found(
                Severity::Error,
                format!("{target} cannot be used: {why}; put it right in DNS, or give another"),
            )),
            Reply::Silent(why) => warnings.push(place.found(
                Severity::Warning,
                format!(
                    "{target} has no answer: {why}; it is asked for again, and what goes there waits"
                ),
            )),
            Reply::Found { list, .. } => {
                let own = |address| Some((address, config.own_address(&place.upstream, address)?));
                let own = list.iter().find_map(|one| own(one.0));
                errors.extend(own.map(|(address, what)| {
                    let text = format!(
                        "{target} stands for {address}, which is this relay's own {what}: mail \
                         would go round for ever; give the upstream's name"
                    );
                    place.found(Severity::Error, text)
                }));
            }
        }
        let earlier = known.iter().find(|name| name.target == *target && !name.is_empty());
        let mut name = earlier.cloned().unwrap_or_else(|| Name::new(target.clone(), now));
        name.take(reply, &naming.config, now);
        names.entry(place.upstream.clone()).or_default().push(name);
    }
    if !errors.is_empty() {
        errors.append(&mut warnings);
        return Err(Diagnostics(errors));
    }
    Ok(Resolved { naming: Some(naming), warnings, names })
}

/// Asks for several names at once.
async fn ask_all(naming: &Naming, targets: impl Iterator<Item = Target>) -> HashMap<Target, Reply> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let deadline = Instant::now() + LOOK;
    let mut asking = JoinSet::new();
    for target in targets {
        let (resolver, permits) = (Arc::clone(&naming.resolver), Arc::clone(&permits));
        asking.spawn(async move {
            let asked = async {
                let _permit = permits.acquire().await;
                ask(&resolver, &target).await
            };
            let reply = tokio::time::timeout_at(deadline, asked).await;
            let late = |_| Reply::Silent(format!("no answer within {LOOK:?}"));
            (target, reply.unwrap_or_else(late))
        });
    }
    asking.join_all().await.into_iter().collect()
}
