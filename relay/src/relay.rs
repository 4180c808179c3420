//! What all sessions share: the world, the generation in force, the windows, the limits, the
//! places for bodies. Floor 3.
//!
//! A *generation* is one loaded set of plugins and configuration. It is swapped whole; what
//! must outlive it (plan and registry, limits, upstreams that did not change) is here and not
//! in it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use wavegate_smtp::{Extension, Extensions, ServerConfig};

use crate::{
    body::BodyStore,
    budget::{Budget, Level},
    config::{Config, ListenerConfig},
    event::{Event, Observer},
    limits::Limits,
    links::{GatewayLink, Links},
    logins::Logins,
    names::Naming,
    policy::{PolicyHost, PolicySet, WorkerPolicies},
    queue::Queue,
    rates::Rates,
    tls::Loaded,
    upstream::{Upstream, original},
    waves::Waves,
    world::World,
};

/// One loaded set of plugins and configuration.
#[derive(Clone)]
pub struct Generation {
    /// Counts up from 1.
    pub number: u64,
    /// The configuration.
    pub config: Arc<Config>,
    /// The policies.
    pub policies: Arc<PolicySet>,
    /// The upstreams by name.
    pub upstreams: BTreeMap<Arc<str>, Arc<Upstream>>,
    /// The names of the policies as scopes of their limit keys, in order.
    pub scopes: Vec<Arc<str>>,
    /// The listeners by name.
    pub listeners: HashMap<String, ListenerSettings>,
    /// Certificates and keys.
    pub tls: Arc<Loaded>,
    /// An upstream wants to be asked about recipients.
    pub verifies: bool,
    /// Who says what names stand for.
    pub naming: Option<Arc<Naming>>,
}

/// What all sessions share.
pub struct Relay {
    /// The outside world.
    pub world: World,
    /// Plan, phases, registry.
    pub waves: Arc<Waves>,
    /// The throttling table.
    pub limits: Arc<Limits>,
    /// How often clients come.
    pub rates: Rates,
    /// The memory of all that grows with load.
    pub budget: Arc<Budget>,
    /// Where bodies live.
    pub bodies: Arc<BodyStore>,
    /// The messages that wait.
    pub queue: Arc<Queue>,
    /// Logins of clients.
    pub logins: Logins,
    /// The policy host.
    pub policy_host: Arc<PolicyHost>,
    /// Who hears of events.
    pub observer: Arc<dyn Observer>,
    current: ArcSwap<Generation>,
    stopping: AtomicBool,
    connections: AtomicUsize,
    gateways: OnceLock<GatewaySource>,
}

/// Who tells of the links that edges have to this relay.
pub type GatewaySource = Box<dyn Fn() -> Vec<GatewayLink> + Send + Sync>;

impl Generation {
    /// The upstream of a name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(name)
    }

    /// The upstream of a name that an attempt was told of: one of the configuration, or the child
    /// that one has for a destination, while it has it.
    pub fn upstream_or_child(&self, name: &str) -> Option<Arc<Upstream>> {
        let configured = self.upstream(original::family(name))?;
        match original::destination(name) {
            None => Some(Arc::clone(configured)),
            Some(destination) => configured.child(destination),
        }
    }

    /// This generation once more, under a new number: to go back to it.
    pub fn renumbered(&self, number: u64) -> Self {
        Self { number, ..self.clone() }
    }

    /// What a listener offers at EHLO: what all upstreams that it can reach offer, and what is
    /// the relay's own. `destination` is where the client wanted to go, before it was redirected.
    pub fn offered(
        &self,
        listener: &ListenerConfig,
        destination: Option<SocketAddr>,
    ) -> Extensions {
        self.offered_by(|upstream| listener.reaches(upstream), destination)
    }

    /// The same for the upstreams that `reaches` says yes to.
    pub fn offered_by(
        &self,
        reaches: impl Fn(&str) -> bool,
        destination: Option<SocketAddr>,
    ) -> Extensions {
        let own_size = self.config.limits.message_size;
        let reachable = self.upstreams.values().filter(|upstream| reaches(&upstream.config.name));
        let common = reachable
            .filter_map(|upstream| upstream.offers(destination))
            .reduce(Extensions::intersection)
            .unwrap_or(Extensions::NONE);
        // 0 and nothing mean "no limit stated" (RFC 1870 section 4).
        let size = common.size_limit().map_or(own_size, |size| size.min(own_size));
        common
            .with(Extension::Pipelining)
            .with(Extension::Chunking)
            .with(Extension::EnhancedStatusCodes)
            .with_size(Some(size))
    }

    /// A listener by name.
    pub fn listener(&self, name: &str) -> Option<&ListenerSettings> {
        self.listeners.get(name)
    }
}

/// A listener with the protocol settings of its sessions.
#[derive(Clone)]
pub struct ListenerSettings {
    /// Its configuration.
    pub config: Arc<ListenerConfig>,
    /// For clients that may relay.
    pub inside: Arc<ServerConfig>,
    /// For all others; who logs in may relay too.
    pub outside: Arc<ServerConfig>,
}

impl ListenerSettings {
    /// Those of a client.
    pub fn of(&self, client: IpAddr) -> &Arc<ServerConfig> {
        match self.config.allow.iter().any(|net| net.contains(&client)) {
            true => &self.inside,
            false => &self.outside,
        }
    }
}

impl Relay {
    /// A relay with its first generation.
    #[allow(clippy::too_many_arguments, reason = "one place puts it together from its parts")]
    pub fn new(
        world: World,
        waves: Arc<Waves>,
        limits: Arc<Limits>,
        rates: Rates,
        budget: Arc<Budget>,
        bodies: Arc<BodyStore>,
        queue: Arc<Queue>,
        policy_host: Arc<PolicyHost>,
        observer: Arc<dyn Observer>,
        first: Generation,
    ) -> Arc<Self> {
        first.policies.belongs_to(first.number);
        Arc::new(Self {
            world,
            waves,
            limits,
            rates,
            budget,
            bodies,
            queue,
            logins: Logins::default(),
            policy_host,
            observer,
            current: ArcSwap::from_pointee(first),
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            gateways: OnceLock::new(),
        })
    }

    /// The generation in force.
    pub fn generation(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// The generation in force, for a look: cheaper, but not to be held for long.
    pub fn look(&self) -> arc_swap::Guard<Arc<Generation>> {
        self.current.load()
    }

    /// Puts another generation in force, bounds and plan included.
    pub fn replace(&self, next: Generation) {
        let config = Arc::clone(&next.config);
        let limits = &config.limits;
        self.limits.resize(limits.limit_keys, limits.direct_queue);
        self.rates.resize(limits.limit_keys);
        self.budget.resize(limits.memory_total);
        self.bodies.resize(limits.message_memory, limits.memory, limits.spill);
        self.waves.replace(Arc::clone(&config.plan));
        self.queue.spool().resize(&config.spool);
        next.policies.belongs_to(next.number);
        self.current.store(Arc::new(next));
        self.queue.plan_changed();
    }

    /// Puts a generation in force that differs in its policies alone. The plan in force stays.
    pub fn restage(&self, next: Generation) {
        next.policies.belongs_to(next.number);
        self.current.store(Arc::new(next));
        self.queue.plan_changed();
    }

    /// Tells the observer.
    pub fn emit(&self, event: &Event<'_>) {
        self.observer.observe(event);
    }

    /// Sessions end at the next boundary from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.queue.stop();
    }

    /// Whether sessions are to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Who tells of the links that edges have to this relay; said once.
    pub fn tell_of_gateways(&self, source: GatewaySource) {
        let _ = self.gateways.set(source);
    }

    /// What is known of all links.
    pub fn links(&self) -> Links {
        let generation = self.look();
        let edges = generation.upstreams.values().filter_map(|upstream| upstream.link_status());
        Links {
            edges: edges.collect(),
            gateways: self.gateways.get().map(|source| source()).unwrap_or_default(),
        }
    }

    /// The count of client connections, for its owner to change.
    pub fn connections(&self) -> &AtomicUsize {
        &self.connections
    }

    /// Whether so many clients are connected that the relay is short with each: more than four
    /// fifths of the cap; or whether it is short of memory.
    pub fn is_under_stress(&self) -> bool {
        if self.budget.level() > Level::Calm {
            return true;
        }
        let limit = self.look().config.limits.connections;
        self.connections.load(Ordering::Relaxed).saturating_mul(5) > limit.saturating_mul(4)
    }
}

thread_local! {
    static POLICIES: RefCell<Option<(Arc<PolicyHost>, WorkerPolicies)>> =
        const { RefCell::new(None) };
}

/// Calls `f` with the calling worker's warm instances.
pub fn with_policies<T>(host: &Arc<PolicyHost>, f: impl FnOnce(&mut WorkerPolicies) -> T) -> T {
    POLICIES.with_borrow_mut(|slot| {
        match slot {
            Some((owner, _)) if Arc::ptr_eq(owner, host) => {}
            _ => *slot = Some((Arc::clone(host), WorkerPolicies::new(Arc::clone(host)))),
        }
        match slot {
            Some((_, policies)) => f(policies),
            None => unreachable!("filled above"),
        }
    })
}
