//! Making a generation from a configuration. Floor 3.
//!
//! All or nothing: whatever is wrong, the generation in force stays. It blocks (plugins are
//! compiled), so it is called off the runtime that carries mail.

use std::{collections::HashMap, sync::Arc};

use wavegate_smtp::{Extension, Extensions, Limits as SmtpLimits, ServerConfig};

use crate::{
    config::{self, Config, Diagnostic, Diagnostics, Hooks},
    policy::{Hook, PolicyHost, PolicySet},
    relay::{Generation, ListenerSettings},
    upstream::Upstream,
    world::World,
};

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
    known: &HashMap<std::net::SocketAddr, Extensions>,
) -> Generation {
    let hostname: Arc<str> = config.relay.hostname.as_str().into();
    let mut upstreams = HashMap::new();
    for upstream in &config.upstreams {
        let kept = previous
            .filter(|previous| previous.config.relay.hostname == config.relay.hostname)
            .and_then(|previous| previous.upstream(&upstream.name))
            .filter(|kept| kept.config == *upstream);
        let upstream = kept.cloned().unwrap_or_else(|| {
            let known = |address| known.get(&address).copied();
            Upstream::new(upstream.clone(), world.clone(), Arc::clone(&hostname), &known)
        });
        upstreams.insert(upstream.config.name.as_str().into(), upstream);
    }
    let inside = Arc::new(session_config(&config, true));
    let outside = Arc::new(session_config(&config, false));
    let listeners = config
        .listeners
        .iter()
        .map(|listener| {
            let settings = ListenerSettings {
                config: Arc::new(listener.clone()),
                inside: Arc::clone(&inside),
                outside: Arc::clone(&outside),
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
    }
}

/// Protocol settings of sessions.
fn session_config(config: &Config, may_relay: bool) -> ServerConfig {
    ServerConfig {
        hostname: config.relay.hostname.clone(),
        // What is offered is said at each EHLO; this is the least.
        extensions: Extensions::NONE
            .with(Extension::Pipelining)
            .with(Extension::Chunking)
            .with_size(Some(config.limits.message_size)),
        limits: SmtpLimits { message_size: config.limits.message_size, ..SmtpLimits::default() },
        may_relay,
    }
}
