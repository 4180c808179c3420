//! Making a generation from a configuration, and a relay with its first one. Floor 3.
//!
//! All or nothing: whatever is wrong, the generation in force stays. It blocks (plugins are
//! compiled), so it is called off the runtime that carries mail.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use wavegate_smtp::{
    AuthOffer, Extension, Extensions, Limits as SmtpLimits, ServerConfig, StartTls,
};

use crate::{
    body::BodyStore,
    budget::Budget,
    config::{
        self, Config, Diagnostic, Diagnostics, Hooks, ListenerConfig, ListenerTls, Target, TlsMode,
        UpstreamConfig, Verify,
    },
    event::Observer,
    limits::Limits,
    names::Resolved,
    policy::{Hook, PolicyError, PolicyHost, PolicySet, signature::TrustedKeys},
    queue::Queue,
    rates::Rates,
    relay::{Generation, ListenerSettings, Relay},
    replies,
    tls::Loaded,
    upstream::{Parts, Upstream},
    waves::Waves,
    world::World,
};

/// What a relay lives in; all else of it is in the configuration.
pub struct Surroundings<'a> {
    /// Time, entropy, network.
    pub world: World,
    /// What runs its policies.
    pub host: Arc<PolicyHost>,
    /// Who hears of events.
    pub observer: Arc<dyn Observer>,
    /// The directory for messages that are too large for memory. Not touched before there is one.
    pub spill: &'a Path,
    /// The messages that wait.
    pub queue: Arc<Queue>,
    /// What targets offered when they last answered.
    pub known: &'a HashMap<SocketAddr, Extensions>,
    /// Certificates and keys. A listener whose own are not there has no TLS.
    pub tls: Arc<Loaded>,
    /// What the names of upstreams stand for.
    pub names: Resolved,
}

/// Makes a relay with its first generation. Nothing of it runs yet.
pub fn assemble(config: Config, around: Surroundings<'_>) -> Result<Arc<Relay>, Diagnostics> {
    let policies = load_policies(&around.host, &config)?;
    Ok(assemble_with(config, policies, around))
}

/// The same, with policies that were loaded for this configuration: nothing can fail any more.
pub fn assemble_with(
    config: Config,
    policies: Arc<PolicySet>,
    around: Surroundings<'_>,
) -> Arc<Relay> {
    let Surroundings { world, host, observer, spill, queue, known, tls, names } = around;
    let bounds = &config.limits;
    let waves = Waves::new(Arc::clone(&config.plan), Arc::clone(&world.clock), queue.lives());
    let limits = Limits::new(bounds.limit_keys, bounds.direct_queue);
    let rates = Rates::new(bounds.limit_keys);
    let budget = Budget::new(bounds.memory_total);
    let (message, all) = (bounds.message_memory, bounds.memory);
    let bodies = BodyStore::new(spill, message, all, bounds.spill, &budget);
    let making = Making { world: &world, observer: &observer, tls, names: &names };
    let first = build(config, policies, None, known, making);
    Relay::new(world, waves, limits, rates, budget, bodies, queue, host, observer, first)
}

/// Built-in policies by name.
pub fn builtin(name: &str) -> Option<&'static [u8]> {
    match name {
        "freeze" => Some(include_bytes!("../../plugins/dist/freeze.wasm")),
        "routing" => Some(include_bytes!("../../plugins/dist/routing.wasm")),
        "throttle" => Some(include_bytes!("../../plugins/dist/throttle.wasm")),
        _ => None,
    }
}

/// Loads the policies of a configuration and makes the checks that need them.
pub fn load_policies(host: &PolicyHost, config: &Config) -> Result<Arc<PolicySet>, Diagnostics> {
    load_changed(host, config, None)
}

/// The same, but for those that are in the set `before` with the same entry: their files are not read.
pub fn load_changed(
    host: &PolicyHost,
    config: &Config,
    before: Option<&PolicySet>,
) -> Result<Arc<PolicySet>, Diagnostics> {
    let keys = TrustedKeys::load(&config.plugins)?;
    let upstreams: Vec<String> = config.upstreams.iter().map(|one| one.name.clone()).collect();
    let (policies, tables) = (&config.policies, &config.tables);
    let loaded = host.load_changed(&keys, policies, before, tables, &upstreams, &builtin);
    let diagnostic = |error: &PolicyError| {
        let message = format!("policy \"{}\": {}", error.policy, error.problem);
        Diagnostic::of_file(&error.place, message)
    };
    let set = loaded.map_err(|errors| Diagnostics(errors.iter().map(diagnostic).collect()))?;
    let hooks: Vec<Hooks> = set
        .policies()
        .iter()
        .map(|policy| Hooks {
            freeze: policy.has(Hook::Freeze),
            routing: policy.has(Hook::Routing),
            throttling: policy.has(Hook::Throttling),
        })
        .collect();
    config::check_hooks(config, &hooks)?;
    config::check_needs(
        config,
        set.policies().iter().map(|policy| &policy.needs().attributes[..]),
    )?;
    Ok(set)
}

/// What a generation is made with, besides what it is to be.
pub struct Making<'a> {
    /// What it lives in.
    pub world: &'a World,
    /// Who is told what becomes of its upstreams.
    pub observer: &'a Arc<dyn Observer>,
    /// What its configuration's certificates and keys are.
    pub tls: Arc<Loaded>,
    /// What its names stand for.
    pub names: &'a Resolved,
}

impl<'a> Making<'a> {
    /// For the next generation of a relay.
    pub fn of(relay: &'a Relay, tls: Arc<Loaded>, names: &'a Resolved) -> Self {
        Self { world: &relay.world, observer: &relay.observer, tls, names }
    }
}

/// Makes a generation. Upstreams that did not change are taken over from `previous` with their
/// connections and what is known of their health.
pub fn build(
    config: Config,
    policies: Arc<PolicySet>,
    previous: Option<&Generation>,
    offers: &HashMap<SocketAddr, Extensions>,
    making: Making<'_>,
) -> Generation {
    let Making { world, observer, tls, names } = making;
    let hostname: Arc<str> = config.relay.hostname.as_str().into();
    let mut upstreams = BTreeMap::new();
    for upstream in &config.upstreams {
        let kept =
            previous.and_then(|previous| unchanged(previous, &config, upstream, &tls, names));
        let upstream = kept.cloned().unwrap_or_else(|| {
            let parts = Parts {
                config: upstream.clone(),
                world: world.clone(),
                observer: Arc::clone(observer),
                hostname: Arc::clone(&hostname),
                connector: tls.connector(&upstream.name).cloned(),
                link_connector: tls.link_edge(&upstream.name).cloned(),
                login: tls.login(&upstream.name).cloned(),
                naming: names.naming.clone(),
                names: names.names(upstream),
            };
            Upstream::new(parts, offers)
        });
        upstreams.insert(upstream.config.name.as_str().into(), upstream);
    }
    let listeners = config
        .listeners
        .iter()
        .map(|listener| {
            let settings = ListenerSettings {
                config: Arc::new(listener.clone()),
                inside: Arc::new(session_config(&config, listener, true)),
                outside: Arc::new(session_config(&config, listener, false)),
            };
            (listener.name.clone(), settings)
        })
        .collect();
    Generation {
        verifies: config.upstreams.iter().any(|one| one.verify == Verify::Rcpt),
        number: previous.map_or(1, |previous| previous.number + 1),
        scopes: policies.policies().iter().map(|policy| policy.name().into()).collect(),
        config: Arc::new(config),
        policies,
        upstreams,
        listeners,
        tls,
        naming: names.naming.clone(),
    }
}

/// The upstream of an earlier generation that one of this configuration would be no other than.
pub fn unchanged<'a>(
    previous: &'a Generation,
    config: &Config,
    upstream: &UpstreamConfig,
    tls: &Loaded,
    names: &Resolved,
) -> Option<&'a Arc<Upstream>> {
    let is_named = upstream.targets.iter().any(Target::is_name);
    Some(&previous.config.relay.hostname)
        .filter(|hostname| **hostname == config.relay.hostname)
        .and_then(|_| previous.upstream(&upstream.name))
        .filter(|kept| kept.config == *upstream)
        .filter(|kept| same(kept.connector(), tls.connector(&upstream.name)))
        .filter(|kept| same(kept.link_connector(), tls.link_edge(&upstream.name)))
        .filter(|kept| same(kept.credentials(), tls.login(&upstream.name)))
        .filter(|kept| !is_named || same(kept.naming(), names.naming.as_ref()))
}

fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Protocol settings of sessions.
fn session_config(config: &Config, listener: &ListenerConfig, may_relay: bool) -> ServerConfig {
    ServerConfig {
        hostname: config.relay.hostname.clone(),
        // What is offered is said at each EHLO; this is the least.
        extensions: Extensions::NONE
            .with(Extension::Pipelining)
            .with(Extension::Chunking)
            .with_size(Some(config.limits.message_size)),
        limits: SmtpLimits { message_size: config.limits.message_size, ..SmtpLimits::default() },
        may_relay,
        starttls: match &listener.tls {
            Some(ListenerTls { mode: TlsMode::StartTls, required, .. }) => match required {
                true => StartTls::Required,
                false => StartTls::Offered,
            },
            _ => StartTls::Unavailable,
        },
        mark: replies::MARK,
        auth: match &listener.auth {
            None => AuthOffer::Unavailable,
            Some(auth) if auth.insecure => AuthOffer::Anytime,
            Some(_) => AuthOffer::UnderTls,
        },
        auth_required: listener.auth.as_ref().is_some_and(|auth| auth.required),
    }
}
