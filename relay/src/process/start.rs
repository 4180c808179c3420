//! What a start is made of: each part gives what it makes, or what keeps the relay from starting.
//! Floor 4.

use std::{
    collections::HashSet,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use wavegate_spool::OpenError;

use super::{Request, StartError, rollouts::Rollouts};
use crate::{
    api::{Doors, Keys},
    audit::Audit,
    conductor::Conductor,
    config::{self, Config, Diagnostic, Diagnostics},
    control::{self, Control as Controls, Plugins},
    decision_log::DecisionLog,
    event_log::EventLog,
    listener::Bound,
    names::{self, Naming, Resolved},
    policy::{HostOptions, PolicyHost},
    queue::{Found, OpenedQueue, Queue},
    relay::Relay,
    rollout::{self, Store, StoreError},
    service::{Inherited, Service},
    spool::Shutdown,
    telemetry::Telemetry,
    world::World,
};

/// How often it is looked whether a process that was killed has lost its lock, and how many times.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 500;

/// Looks up the names of the first generation.
pub(super) fn resolve(
    config: &Config,
    world: &World,
    runtime: &tokio::runtime::Runtime,
) -> Result<Resolved, StartError> {
    let naming = Naming::open(world, &config.resolver, None);
    let names = runtime.block_on(names::resolve(config, naming, &HashSet::new(), &[]))?;
    names.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(names)
}

/// Starts the event log, where one is wanted.
pub(super) fn start_event_log(
    config: &Config,
    world: &World,
    telemetry: &Telemetry,
) -> Result<(), StartError> {
    let Some(wanted) = &config.event_log else { return Ok(()) };
    let (state_dir, clock) = (&config.relay.state_dir, Arc::clone(&world.clock));
    let started = EventLog::start(wanted, state_dir, clock, &|| world.entropy.next());
    let log = started.map_err(|error| not_writable("event_log", &wanted.file, &error))?;
    telemetry.write_events(log);
    Ok(())
}

/// Starts the decision log, where one is wanted.
pub(super) fn start_decision_log(
    config: &Config,
    world: &World,
    host: &PolicyHost,
    telemetry: &Telemetry,
) -> Result<(), StartError> {
    let Some(wanted) = &config.decision_log else { return Ok(()) };
    let state_dir = &config.relay.state_dir;
    let started = DecisionLog::start(wanted, state_dir, &|| world.entropy.next());
    let log = started.map_err(|error| not_writable("decision_log", &wanted.file, &error))?;
    host.listen(Arc::clone(&log) as _);
    telemetry.keep_decisions(log);
    Ok(())
}

/// Whether the files of logs can be written. Writing begins when no other process does so any more.
pub(super) fn check_logs(config: &Config) -> Result<(), StartError> {
    if let Some(wanted) = &config.event_log {
        let checked = EventLog::check(wanted);
        checked.map_err(|error| not_writable("event_log", &wanted.file, &error))?;
    }
    if let Some(wanted) = &config.decision_log {
        let checked = DecisionLog::check(wanted);
        checked.map_err(|error| not_writable("decision_log", &wanted.file, &error))?;
    }
    Ok(())
}

fn not_writable(section: &str, file: &Path, error: &io::Error) -> StartError {
    let text = format!("{section}.file: cannot be written: {error}; make it possible");
    StartError::Config(Diagnostics(vec![Diagnostic::of_file(file.display(), text)]))
}

/// Opens the spool, and tells what an earlier process left in it. One that `was_taken_over` may
/// still be about to end.
pub(super) fn ours(
    state_dir: &Path,
    config: &Config,
    world: &World,
    was_taken_over: bool,
) -> Result<Arc<Queue>, StartError> {
    let directory = state_dir.join("spool");
    let open = || {
        let clock = Arc::clone(&world.clock);
        Queue::open(&directory, &config.spool, clock, config.relay.workers)
    };
    let mut opened = open();
    // The kernel takes the lock from a process that was killed shortly after its connections.
    let mut looks = if was_taken_over { LOOKS } else { 0 };
    while looks > 0 && matches!(opened, Err(OpenError::Owned { .. })) {
        std::thread::park_timeout(LOOK);
        looks -= 1;
        opened = open();
    }
    let OpenedQueue { queue, found } = opened.map_err(|error| {
        let place = directory.display();
        StartError::Config(Diagnostics(vec![Diagnostic::of_file(place, error.to_string())]))
    })?;
    for damage in &found.damage {
        tracing::error!(%damage, "damage in the spool");
    }
    if let [wave, ..] = &found.unknown_waves[..] {
        let text = format!(
            "what is written of wave {wave} cannot be read, so it is not known whether its mail may \
             go; start the version of the relay that wrote it"
        );
        let place = directory.display();
        return Err(StartError::Config(Diagnostics(vec![Diagnostic::of_file(place, text)])));
    }
    let Found { shutdown, messages, doubtful, .. } = found;
    if messages > 0 || !matches!(shutdown, Shutdown::New | Shutdown::Clean) {
        tracing::info!(messages, doubtful, ?shutdown, "the spool is open");
    }
    if let Some(reason) = queue.all_held() {
        tracing::warn!(%reason, "everything is held");
    }
    Ok(queue)
}

/// What was written down of waves that have begun goes on, and the plan must know whose mail that
/// is: else it would leave as mail of no instance.
pub(super) fn check_waves(relay: &Relay) -> Result<(), StartError> {
    let config = Arc::clone(&relay.generation().config);
    let place =
        config.plan_file.as_ref().map_or("relay.plan".into(), |file| file.display().to_string());
    for text in relay.waves.contradictions(&config.plan) {
        tracing::warn!("{place}: {text}; until then it goes on as it began");
    }
    let lost = relay.waves.lost_instances().into_iter().map(|(wave, instance)| {
        let text = format!(
            "has no instance \"{instance}\", whose mail wave {wave} holds: nobody could say which \
             mail that is; put the instance back until the wave is over"
        );
        Diagnostic::of_file(&place, text)
    });
    let lost: Vec<_> = lost.collect();
    if lost.is_empty() { Ok(()) } else { Err(StartError::Config(Diagnostics(lost))) }
}

/// Makes the state directory fit for use; says where bodies spill.
pub(super) fn prepare_state(state_dir: &Path) -> Result<PathBuf, StartError> {
    let one = |diagnostic: Diagnostic| StartError::Config(Diagnostics(vec![diagnostic]));
    config::check_state_dir(state_dir).map_err(one)?;
    let spill = state_dir.join("spill");
    config::check_state_dir(&spill).map_err(one)?;
    Ok(spill)
}

pub(super) fn policy_host(
    state_dir: &Path,
    world: &World,
    requests: &mpsc::Sender<Request>,
) -> Result<Arc<PolicyHost>, StartError> {
    let mut options = HostOptions::production(world.entropy.next()).compiling_apart();
    let requests = requests.clone();
    options.on_condemned = Some(Arc::new(move |condemnation| {
        if requests.try_send(Request::Condemned(condemnation)).is_err() {
            tracing::error!("condemned policies stay: the control thread is busy or gone");
        }
    }));
    Ok(PolicyHost::new(Some(state_dir.join("compiled")), options)?)
}

pub(super) fn bind_all(config: &Config, service: &Service) -> Result<Vec<Bound>, StartError> {
    let bind = |listener: &config::ListenerConfig| {
        let bound = service.bind(config, &listener.name, listener.address);
        bound.map_err(|source| StartError::Bind {
            what: format!("listener {}", listener.name),
            address: listener.address,
            source,
        })
    };
    config.listeners.iter().map(bind).collect()
}

pub(super) fn bind_admin(
    config: &Config,
    service: &Service,
) -> Result<Option<TcpListener>, StartError> {
    let Some(admin) = &config.admin else { return Ok(None) };
    let address = admin.address;
    service
        .bind(config, "admin", address)
        .map(|bound| Some(bound.socket))
        .map_err(|source| StartError::Bind { what: "admin".into(), address, source })
}

/// The address of the API, and what lets clients in.
pub(super) fn bind_api(
    config: &Config,
    service: &Service,
) -> Result<Option<(TcpListener, Arc<Doors>)>, StartError> {
    let Some(api) = &config.api else { return Ok(None) };
    let doors = Doors::new(Keys::load(api)?);
    let address = api.address;
    service
        .bind(config, "api", address)
        .map(|bound| Some((bound.socket, doors)))
        .map_err(|source| StartError::Bind { what: "api".into(), address, source })
}

/// What operators may do.
pub(super) fn controls(
    relay: &Arc<Relay>,
    conductor: Arc<Conductor>,
    rollouts: &Arc<Rollouts>,
    audit: &Arc<Audit>,
) -> Arc<Controls> {
    let plugins: Arc<dyn Plugins> = Arc::new(Arc::clone(rollouts));
    let (relay, audit) = (Arc::clone(relay), Arc::clone(audit));
    Controls::with_plugins(relay, Arc::new(conductor), Some(plugins), audit)
}

/// What was installed in place of what the configuration names; that is loaded from now on.
pub(super) fn installed(config: &mut Config) -> Result<Store, StartError> {
    let state_dir = config.relay.state_dir.clone();
    let store = Store::open(&state_dir).map_err(|error| unknown_plugins(&state_dir, &error))?;
    let state = store.state();
    let overlaid = rollout::overlay(&config.policies, &state, &state_dir);
    overlaid.warnings(&state).for_each(|warning| tracing::warn!("{warning}"));
    config.policies = overlaid.policies;
    Ok(store)
}

/// What an earlier process has installed until it ended. From here on nobody else changes it.
pub(super) fn installed_since(store: &Store, config: &Config) -> Result<(), StartError> {
    store.refresh().map_err(|error| unknown_plugins(store.state_dir(), &error))?;
    store.clear();
    let bare = rollout::bare(&config.policies);
    let overlaid = rollout::overlay(&bare, &store.state(), store.state_dir());
    store.forget(&overlaid.superseded);
    Ok(())
}

fn unknown_plugins(state_dir: &Path, error: &StoreError) -> StartError {
    let found = Diagnostic::of_file(state_dir.display(), error.to_string());
    StartError::Config(Diagnostics(vec![found]))
}

/// Copies of the sockets that are nobody's but this process's, for the next one.
pub(super) fn own_sockets(
    config: &Config,
    admin: Option<&TcpListener>,
    api: Option<&TcpListener>,
) -> Result<Vec<Inherited>, StartError> {
    let admin = admin.zip(config.admin.as_ref()).map(|(one, at)| ("admin", at.address, one));
    let api = api.zip(config.api.as_ref()).map(|(one, at)| ("api", at.address, one));
    let copy = |(name, configured, socket): (&str, SocketAddr, &TcpListener)| {
        let socket = socket.try_clone()?;
        Ok(Inherited { name: name.to_owned(), configured, passed: false, socket })
    };
    let copies = admin.into_iter().chain(api).map(copy).collect::<io::Result<_>>();
    copies.map_err(StartError::system("share a listening socket"))
}

pub(super) fn bind_control(name: &str, state_dir: &Path) -> Result<control::Socket, StartError> {
    control::Socket::bind_as(name, state_dir).map_err(|error| match error {
        control::SocketError::Io { source, .. } => {
            StartError::System { what: "make the control socket", source }
        }
        error => {
            let place = state_dir.display();
            StartError::Config(Diagnostics(vec![Diagnostic::of_file(place, error.to_string())]))
        }
    })
}
