//! The running process: starts everything from a configuration file, reloads it, stops it.
//! Floor 4.
//!
//! Workers carry mail; one more thread, the control thread, does all else: the admin pages,
//! queue control, the housekeeping of upstreams, signals, changed files. Loading a generation blocks and has a
//! thread of its own while it lasts.

mod reload;
mod watch;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    admin,
    api::{self, Doors, Keys},
    audit::Audit,
    conductor::{Conductor, status::Source},
    config::{self, Checks, Config, Diagnostic, Diagnostics, When},
    control::{self, Control as Controls},
    event_log::EventLog,
    generation::{self, Surroundings},
    learned,
    listener::Bound,
    logging,
    policy::{HostOptions, PolicyHost},
    queue::{Found, OpenedQueue, Queue},
    relay::Relay,
    service::{PassedError, Service},
    spool::Shutdown,
    telemetry::Telemetry,
    tls, users,
    worker::{Pulse, Workers},
    world::World,
};
use reload::Reloader;

/// Requests to the control thread that may wait.
const REQUESTS: usize = 16;

/// Why the relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, the plan or a plugin: whoever wrote it.
    #[error("{0}")]
    Config(Diagnostics),
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({what}): {source}; free the address or choose another")]
    Bind {
        /// What it is for.
        what: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Sockets that were passed cannot be used: whoever wrote the socket unit.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// The machine does not give what is needed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The WebAssembly engine cannot be made.
    #[error("policy host: {0}")]
    Policies(#[from] crate::policy::HostError),
}

impl StartError {
    /// The exit code of sysexits.h.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Passed(_) => 78,
            Self::Bind { .. } => 69,
            Self::System { .. } | Self::Policies(_) => 71,
        }
    }

    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

impl From<Diagnostics> for StartError {
    fn from(diagnostics: Diagnostics) -> Self {
        Self::Config(diagnostics)
    }
}

/// What the control thread is asked.
enum Request {
    /// Read the configuration anew; somebody may wait for the outcome.
    Reload(Option<oneshot::Sender<Result<u64, String>>>),
    /// The policies of this set failed too often.
    Condemned(crate::policy::Condemnation),
    /// Stop.
    Stop,
}

/// A running relay inside this process.
pub struct Running {
    relay: Arc<Relay>,
    addresses: Arc<Mutex<Vec<(String, SocketAddr)>>>,
    admin: Option<SocketAddr>,
    api: Option<SocketAddr>,
    requests: mpsc::Sender<Request>,
    control: JoinHandle<()>,
}

/// Starts everything from a configuration file and blocks until SIGTERM or SIGINT. Reloads on
/// SIGHUP and when a file that the configuration was read from changes.
pub fn run(path: &Path) -> Result<(), StartError> {
    let running = Running::launch(path, World::real(), Service::of_process()?, true)?;
    for (name, address) in running.addresses.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        tracing::info!(listener = name, %address, "listening");
    }
    if let Some(address) = running.admin {
        tracing::info!(%address, "monitors are answered");
    }
    if let Some(address) = running.api {
        tracing::info!(%address, "the API is answered");
    }
    if running.control.join().is_err() {
        tracing::error!("the control thread panicked");
    }
    Ok(())
}

impl Running {
    /// Starts a relay from a configuration file; it listens to no signals.
    pub fn start(path: &Path, world: World) -> Result<Self, StartError> {
        Self::launch(path, world, Service::none(), false)
    }

    /// The address of a listener; the real port where port 0 was configured.
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.iter().find(|(other, _)| other == name).map(|(_, address)| *address)
    }

    /// The address of the admin pages.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The address of the API.
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api
    }

    /// What all sessions share.
    pub fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    /// Reads the configuration anew; says the number of the new generation or why the old one
    /// stays.
    pub fn reload(&self) -> Result<u64, String> {
        let (sender, receiver) = oneshot::channel();
        let stopped = || "the relay is stopping".to_owned();
        self.requests.blocking_send(Request::Reload(Some(sender))).map_err(|_| stopped())?;
        receiver.blocking_recv().map_err(|_| stopped())?
    }

    /// Ends the sessions at their next boundary and stops. Blocks, at most for
    /// `limits.shutdown_timeout`.
    pub fn stop(self) {
        // A control thread that has ended has stopped everything already.
        let _ = self.requests.blocking_send(Request::Stop);
        let _ = self.control.join();
    }

    fn launch(
        path: &Path,
        world: World,
        service: Service,
        signals: bool,
    ) -> Result<Self, StartError> {
        let now = world.clock.now();
        let config = config::read_at(path, When { now, checks: Checks::Relay })?;
        let files = signals.then(|| watch::Files::watch(&config.files)).flatten();
        logging::set(config.relay.log);
        let tls = tls::load(&config, now, None)?;
        let users = users::load(&config)?;
        let warnings = config.warnings.iter().chain(&tls.warnings);
        warnings.for_each(|warning| tracing::warn!("{warning}"));
        service.check(&config)?;
        let service = Arc::new(service);
        let state_dir = config.relay.state_dir.clone();
        let spill = prepare_state(&state_dir)?;
        let queue = open_queue(&state_dir, &config, &world)?;
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let host = policy_host(&state_dir, &world, &requests)?;
        let telemetry = Telemetry::new(Arc::clone(&world.clock));
        start_event_log(&config, &world, &telemetry)?;
        let around = Surroundings {
            world,
            host,
            observer: Arc::clone(&telemetry) as _,
            spill: &spill,
            queue,
            known: &learned::load(&state_dir),
            tls: Arc::new(tls),
        };
        let relay = generation::assemble(config, around)?;
        relay.logins.replace(users);
        check_waves(&relay)?;
        relay.bodies.clear().map_err(StartError::system("clear the spill directory"))?;
        let config = Arc::clone(&relay.generation().config);
        let bound = bind_all(&config, &service)?;
        let admin = bind_admin(&config, &service)?;
        let api = bind_api(&config, &service)?;
        let socket = bind_control(&state_dir)?;
        let conductor = Conductor::new(&relay);
        let workers = Workers::start(&relay, &conductor, config.relay.workers)
            .map_err(StartError::system("start a worker"))?;
        let admin_address = admin.as_ref().and_then(|socket| socket.local_addr().ok());
        let api_address = api.as_ref().and_then(|(socket, _)| socket.local_addr().ok());
        let doors = api.as_ref().map(|(_, doors)| Arc::clone(doors));
        let pulse = workers.pulse();
        let reloader = Reloader::new(path, &relay, workers, bound, doors, Arc::clone(&service))?;
        let addresses = reloader.addresses();
        let thread = std::thread::Builder::new().name("control".into());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::system("start the control thread"))?;
        let requested = requests.clone();
        let signals = {
            let _within = runtime.enter();
            signals.then(watch::Signals::register).transpose()
        };
        let signals = signals.map_err(StartError::system("handle signals"))?;
        let seen = Arc::clone(&conductor);
        let status: Source = Arc::new(move || seen.status());
        telemetry.watch_waves(Arc::clone(&status));
        let controls = controls(&relay, conductor, &state_dir);
        let control = Control {
            relay: Arc::clone(&relay),
            reloader,
            telemetry,
            status,
            admin,
            api,
            controls,
            socket,
            signals,
            files,
            service,
            pulse,
        };
        let control = thread
            .spawn(move || control.run(&runtime, inbox, requested))
            .map_err(StartError::system("start the control thread"))?;
        Ok(Self { relay, addresses, admin: admin_address, api: api_address, requests, control })
    }
}

/// Starts the event log, where one is wanted.
fn start_event_log(
    config: &Config,
    world: &World,
    telemetry: &Telemetry,
) -> Result<(), StartError> {
    let Some(wanted) = &config.event_log else { return Ok(()) };
    let (state_dir, clock) = (&config.relay.state_dir, Arc::clone(&world.clock));
    let started = EventLog::start(wanted, state_dir, clock, &|| world.entropy.next());
    let log = started.map_err(|error| {
        let text = format!("event_log.file: cannot be written: {error}; make it possible");
        StartError::Config(Diagnostics(vec![Diagnostic::of_file(wanted.file.display(), text)]))
    })?;
    telemetry.write_events(log);
    Ok(())
}

/// Opens the spool, and tells what an earlier process left in it.
fn open_queue(state_dir: &Path, config: &Config, world: &World) -> Result<Arc<Queue>, StartError> {
    let directory = state_dir.join("spool");
    let clock = Arc::clone(&world.clock);
    let opened = Queue::open(&directory, &config.spool, clock, config.relay.workers);
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
fn check_waves(relay: &Relay) -> Result<(), StartError> {
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
fn prepare_state(state_dir: &Path) -> Result<PathBuf, StartError> {
    let one = |diagnostic: Diagnostic| StartError::Config(Diagnostics(vec![diagnostic]));
    config::check_state_dir(state_dir).map_err(one)?;
    let spill = state_dir.join("spill");
    config::check_state_dir(&spill).map_err(one)?;
    Ok(spill)
}

fn policy_host(
    state_dir: &Path,
    world: &World,
    requests: &mpsc::Sender<Request>,
) -> Result<Arc<PolicyHost>, StartError> {
    let mut options = HostOptions::production(world.entropy.next());
    let requests = requests.clone();
    options.on_condemned = Some(Arc::new(move |condemnation| {
        if requests.try_send(Request::Condemned(condemnation)).is_err() {
            tracing::error!("condemned policies stay: the control thread is busy or gone");
        }
    }));
    Ok(PolicyHost::new(Some(state_dir.join("compiled")), options)?)
}

fn bind_all(config: &Config, service: &Service) -> Result<Vec<Bound>, StartError> {
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

fn bind_admin(
    config: &Config,
    service: &Service,
) -> Result<Option<std::net::TcpListener>, StartError> {
    let Some(admin) = &config.admin else { return Ok(None) };
    let address = admin.address;
    service
        .bind(config, "admin", address)
        .map(|bound| Some(bound.socket))
        .map_err(|source| StartError::Bind { what: "admin".into(), address, source })
}

/// The address of the API, and what lets clients in.
fn bind_api(
    config: &Config,
    service: &Service,
) -> Result<Option<(std::net::TcpListener, Arc<Doors>)>, StartError> {
    let Some(api) = &config.api else { return Ok(None) };
    let doors = Doors::new(Keys::load(api)?);
    let address = api.address;
    service
        .bind(config, "api", address)
        .map(|bound| Some((bound.socket, doors)))
        .map_err(|source| StartError::Bind { what: "api".into(), address, source })
}

/// What operators may do.
fn controls(relay: &Arc<Relay>, conductor: Arc<Conductor>, state_dir: &Path) -> Arc<Controls> {
    let audit = Arc::new(Audit::new(state_dir, Arc::clone(&relay.world.clock)));
    Controls::new(Arc::clone(relay), Arc::new(conductor), audit)
}

fn bind_control(state_dir: &Path) -> Result<control::Socket, StartError> {
    control::Socket::bind(state_dir).map_err(|error| match error {
        control::SocketError::Io { source, .. } => {
            StartError::System { what: "make the control socket", source }
        }
        error => {
            let place = state_dir.display();
            StartError::Config(Diagnostics(vec![Diagnostic::of_file(place, error.to_string())]))
        }
    })
}

/// The control thread.
struct Control {
    relay: Arc<Relay>,
    reloader: Reloader,
    telemetry: Arc<Telemetry>,
    status: Source,
    admin: Option<std::net::TcpListener>,
    api: Option<(std::net::TcpListener, Arc<Doors>)>,
    controls: Arc<Controls>,
    socket: control::Socket,
    signals: Option<watch::Signals>,
    files: Option<watch::Files>,
    service: Arc<Service>,
    pulse: Pulse,
}

impl Control {
    fn run(
        self,
        runtime: &tokio::runtime::Runtime,
        inbox: mpsc::Receiver<Request>,
        requests: mpsc::Sender<Request>,
    ) {
        runtime.block_on(self.serve(inbox, requests));
        tracing::info!("stopped");
    }

    async fn serve(self, mut inbox: mpsc::Receiver<Request>, requests: mpsc::Sender<Request>) {
        let Self { relay, reloader, telemetry, status, admin, api, controls, socket, .. } = self;
        let Self { signals, files, service, pulse, .. } = self;
        let closing = Arc::clone(&telemetry);
        if let Some(socket) = admin {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => {
                    // To the end of the runtime, and that is the end of the process: who asks
                    // during the drain is told of it.
                    let relay = Arc::clone(&relay);
                    tokio::spawn(admin::serve(socket, relay, telemetry, Arc::clone(&status)));
                }
                Err(error) => tracing::error!(%error, "the admin pages are not served"),
            }
        }
        if let Some((socket, doors)) = api {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => {
                    tokio::spawn(api::serve(socket, doors, Arc::clone(&controls)));
                }
                Err(error) => tracing::error!(%error, "the API is not served"),
            }
        }
        // To the end of the runtime too; its file goes with it.
        tokio::spawn(async move { control::serve(&socket, controls).await });
        if let Some(signals) = signals {
            tokio::spawn(watch::signals(signals, requests.clone()));
        }
        if let Some(files) = files {
            tokio::spawn(watch::files(files, Arc::clone(&relay), requests));
        }
        let reloader = Arc::new(reloader);
        reloader.keep_house();
        // Listeners are bound, the spool is open, signals are heard.
        service.ready("taking mail");
        tokio::spawn(Arc::clone(&service).keep(Arc::clone(&relay), pulse, status));
        let mut saving = tokio::time::interval(SAVING);
        loop {
            let request = tokio::select! {
                biased;
                request = inbox.recv() => request,
                _ = saving.tick() => {
                    reloader.save_learned();
                    continue;
                }
            };
            match request {
                Some(Request::Reload(answer)) => {
                    service.reloading();
                    let outcome = reloader.reload_off_thread().await;
                    service.ready(match &outcome {
                        Ok(_) => "taking mail, the configuration was taken anew",
                        Err(_) => "taking mail; the reload was REFUSED, the log says why",
                    });
                    if let Some(answer) = answer {
                        // Whoever asked may have gone.
                        let _ = answer.send(outcome);
                    }
                }
                Some(Request::Condemned(condemnation)) => reloader.roll_back(condemnation),
                Some(Request::Stop) | None => break,
            }
        }
        // Who waits for a reload, or asks for one from now on, hears that it stops.
        drop(inbox);
        service.stopping();
        drain(&relay, reloader, closing).await;
    }
}

/// Ends the sessions and the workers; upstreams are kept and monitors answered meanwhile.
async fn drain(relay: &Relay, reloader: Arc<Reloader>, telemetry: Arc<Telemetry>) {
    relay.stop();
    reloader.save_learned();
    let patience = relay.generation().config.limits.shutdown_timeout;
    let queue = Arc::clone(&relay.queue);
    let draining = tokio::task::spawn_blocking(move || {
        reloader.stop(patience);
        queue.save_accounts();
        queue.close();
        telemetry.close();
    });
    if draining.await.is_err() {
        tracing::error!("stopping panicked");
    }
}

/// How often what upstreams offer is written down, if it changed.
const SAVING: Duration = Duration::from_secs(10);
