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
    config::{self, Config, Diagnostic, Diagnostics, Hooks, ListenerConfig, ListenerTls, TlsMode},
    event::Observer,
    limits::Limits,
    policy::{Hook, PolicyHost, PolicySet},
    queue::Queue,
    relay::{Generation, ListenerSettings, Relay},
    tls::Loaded,
    upstream::Upstream,
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
}

/// Makes a relay with its first generation. Nothing of it runs yet.
pub fn assemble(config: Config, around: Surroundings<'_>) -> Result<Arc<Relay>, Diagnostics> {
    let Surroundings { world, host, observer, spill, queue, known, tls } = around;
    let policies = load_policies(&host, &config)?;
    let bounds = &config.limits;
    let waves = Waves::new(Arc::clone(&config.plan), Arc::clone(&world.clock), queue.lives());
    let limits = Limits::new(bounds.limit_keys, bounds.direct_queue);
    let bodies = BodyStore::new(spill, bounds.message_memory, bounds.memory, bounds.spill);
    let first = build(&world, config, policies, None, known, tls);
    Ok(Relay::new(world, waves, limits, bodies, queue, host, observer, first))
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
    let upstreams: Vec<String> = config.upstreams.iter().map(|one| one.name.clone()).collect();
    let set =
        host.load(&config.policies, &config.tables, &upstreams, &builtin).map_err(|errors| {
            Diagnostics(
                errors
                    .iter()
                    .map(|error| {
                        let message = format!("policy \"{}\": {}", error.policy, error.problem);
                        Diagnostic::of_file(&error.place, message)
                    })
                    .collect(),
            )
        })?;
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
    Ok(set)
}

/// Makes a generation. Upstreams that did not change are taken over from `previous` with their
/// connections and what is known of their health.
pub fn build(
    world: &World,
    config: Config,
    policies: Arc<PolicySet>,
    previous: Option<&Generation>,
    known: &HashMap<SocketAddr, Extensions>,
    tls: Arc<Loaded>,
) -> Generation {
    let hostname: Arc<str> = config.relay.hostname.as_str().into();
    let mut upstreams = BTreeMap::new();
    for upstream in &config.upstreams {
        let kept = previous
            .filter(|previous| previous.config.relay.hostname == config.relay.hostname)
            .and_then(|previous| previous.upstream(&upstream.name))
            .filter(|kept| kept.config == *upstream)
            .filter(|kept| same(kept.connector(), tls.connector(&upstream.name)))
            .filter(|kept| same(kept.credentials(), tls.login(&upstream.name)));
        let upstream = kept.cloned().unwrap_or_else(|| {
            let known = |address| known.get(&address).copied();
            let connector = tls.connector(&upstream.name).cloned();
            let login = tls.login(&upstream.name).cloned();
            let (world, hostname) = (world.clone(), Arc::clone(&hostname));
            Upstream::new(upstream.clone(), world, hostname, &known, connector, login)
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
        number: previous.map_or(1, |previous| previous.number + 1),
        scopes: policies.policies().iter().map(|policy| policy.name().into()).collect(),
        config: Arc::new(config),
        policies,
        upstreams,
        listeners,
        tls,
    }
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
        auth: match &listener.auth {
            None => AuthOffer::Unavailable,
            Some(auth) if auth.insecure => AuthOffer::Anytime,
            Some(_) => AuthOffer::UnderTls,
        },
        auth_required: listener.auth.as_ref().is_some_and(|auth| auth.required),
    }
}
