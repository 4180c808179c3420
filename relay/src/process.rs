//! The running process: starts everything from a configuration file, reloads it, stops it, or
//! hands over to the next one. Floor 4.
//!
//! Workers carry mail; one more thread, the control thread, does all else: the admin pages,
//! queue control, the housekeeping of upstreams, signals, changed files. Loading a generation blocks and has a
//! thread of its own while it lasts.

mod links;
mod memory;
mod reload;
mod rollouts;
mod start;
mod upgrade;
mod watch;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    admin,
    api::{self, Doors},
    audit::Audit,
    conductor::{Conductor, status::Source},
    config::{self, Checks, Diagnostics, When},
    control::{self, Control as Controls},
    gateway::Gateways,
    generation::{self, Surroundings},
    learned, logging,
    policy::Condemnation,
    relay::Relay,
    service::{Inherited, PassedError, Service},
    succession::{self, Incumbent, Successor, TakeOverError},
    telemetry::Telemetry,
    tls, users,
    worker::{Pulse, Workers},
    world::World,
};
use links::Links;
use reload::Reloader;
use rollouts::Rollouts;
use start::{
    bind_admin, bind_all, bind_api, bind_control, check_logs, check_waves, controls, ours,
    policy_host, prepare_state, resolve, start_decision_log, start_event_log,
};

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
    /// Another process has the state directory and keeps it.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The relay has stopped for a process that is not there any more.
    #[error("the process that took over has gone: start one")]
    SuccessorGone,
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
            Self::TakeOver(_) | Self::SuccessorGone => 75,
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
    Condemned(Condemnation),
    /// Start the program anew, to take over from this process.
    Upgrade,
    /// Stop.
    Stop,
}

/// How a process is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Launch {
    /// Whether it listens to signals.
    pub signals: bool,
    /// Whether it takes over from the relay that runs on its state directory, and how long that one
    /// may take beyond its `limits.shutdown_timeout`.
    pub take_over: Option<Duration>,
}

/// A running relay inside this process.
pub struct Running {
    relay: Arc<Relay>,
    addresses: Arc<Mutex<Vec<(String, SocketAddr)>>>,
    admin: Option<SocketAddr>,
    api: Option<SocketAddr>,
    requests: mpsc::Sender<Request>,
    control: JoinHandle<Result<(), StartError>>,
}

/// Starts everything from a configuration file and blocks until SIGTERM or SIGINT. Reloads on
/// SIGHUP and when a file that the configuration was read from changes. With `take_over` a relay
/// that runs on the same state directory ends for this one, see [`Launch`].
pub fn run(path: &Path, take_over: Option<Duration>) -> Result<(), StartError> {
    let launch = Launch { signals: true, take_over };
    let running = Running::launch(path, World::real(), Service::of_process()?, launch)?;
    for (name, address) in running.addresses.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        tracing::info!(listener = name, %address, "listening");
    }
    if let Some(address) = running.admin {
        tracing::info!(%address, "monitors are answered");
    }
    if let Some(address) = running.api {
        tracing::info!(%address, "the API is answered");
    }
    running.control.join().unwrap_or_else(|_| {
        tracing::error!("the control thread panicked");
        Ok(())
    })
}

impl Running {
    /// Starts a relay from a configuration file; it listens to no signals.
    pub fn start(path: &Path, world: World) -> Result<Self, StartError> {
        Self::launch(path, world, Service::none(), Launch::default())
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
        mut service: Service,
        launch: Launch,
    ) -> Result<Self, StartError> {
        let now = world.clock.now();
        let mut config = config::read_at(path, When { now, checks: Checks::Relay })?;
        let files = launch.signals.then(|| watch::Files::watch(&config.files)).flatten();
        logging::set(config.relay.log);
        let tls = tls::load(&config, now, None)?;
        let users = users::load(&config)?;
        let warnings = config.warnings.iter().chain(&tls.warnings);
        warnings.for_each(|warning| tracing::warn!("{warning}"));
        // The control thread's, which goes on asking for names.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::system("start the control thread"))?;
        let names = resolve(&config, &world, &runtime)?;
        let state_dir = config.relay.state_dir.clone();
        let spill = prepare_state(&state_dir)?;
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let host = policy_host(&state_dir, &world, &requests)?;
        let store = Arc::new(start::installed(&mut config)?);
        let policies = generation::load_policies(&host, &config)?;
        // All that can fail comes before the relay that may run here is told to end.
        let before = match launch.take_over {
            Some(_) => upgrade::predecessor(&config, &mut service)?,
            None => None,
        };
        service.check(&config)?;
        let bound = bind_all(&config, &service)?;
        let admin = bind_admin(&config, &service)?;
        let api = bind_api(&config, &service)?;
        let mut link_sockets = match before {
            Some(_) => Vec::new(),
            None => links::bind_all(&config)?,
        };
        check_logs(&config)?;
        service.forget_inherited();
        let service = Arc::new(service);
        if let (Some(before), Some(patience)) = (before, launch.take_over) {
            upgrade::replace(before, patience)?;
            link_sockets = links::bind_all(&config)?;
        }
        start::installed_since(&store, &config)?;
        let queue = ours(&state_dir, &config, &world, launch.take_over.is_some())?;
        let telemetry = Telemetry::new(Arc::clone(&world.clock));
        start_event_log(&config, &world, &telemetry)?;
        start_decision_log(&config, &world, &host, &telemetry)?;
        let around = Surroundings {
            world,
            host,
            observer: Arc::clone(&telemetry) as _,
            spill: &spill,
            queue,
            known: &learned::load(&state_dir),
            tls: Arc::new(tls),
            names,
        };
        let relay = generation::assemble_with(config, policies, around);
        relay.logins.replace(users);
        check_waves(&relay)?;
        memory::find(&relay);
        relay.bodies.clear().map_err(StartError::system("clear the spill directory"))?;
        let config = Arc::clone(&relay.generation().config);
        let socket = bind_control(control::NAME, &state_dir)?;
        let door = bind_control(succession::NAME, &state_dir)?;
        let conductor = Conductor::new(&relay);
        let workers = Workers::start(&relay, &conductor, config.relay.workers)
            .map_err(StartError::system("start a worker"))?;
        let admin_address = admin.as_ref().and_then(|socket| socket.local_addr().ok());
        let api_address = api.as_ref().and_then(|(socket, _)| socket.local_addr().ok());
        let mut links = Links::new(&relay);
        let fresh = links.start(link_sockets, &config, &relay.generation().tls)?;
        links.turn_to(fresh, Some(&workers));
        let gateways = links.gateways();
        let doors = api.as_ref().map(|(_, doors)| Arc::clone(doors));
        let pulse = workers.pulse();
        let own = start::own_sockets(&config, admin.as_ref(), api.as_ref().map(|(one, _)| one))?;
        let kept = Arc::clone(&store);
        let sockets = (bound, links);
        let reloader =
            Reloader::new(path, &relay, workers, sockets, doors, Arc::clone(&service), kept)?;
        let addresses = reloader.addresses();
        let reloader = Arc::new(reloader);
        let rollouts = Rollouts::new(&relay, &reloader, &store);
        let thread = std::thread::Builder::new().name("control".into());
        let requested = requests.clone();
        let signals = {
            let _within = runtime.enter();
            launch.signals.then(watch::Signals::register).transpose()
        };
        let signals = signals.map_err(StartError::system("handle signals"))?;
        let seen = Arc::clone(&conductor);
        let status: Source = Arc::new(move || seen.status());
        telemetry.watch_waves(Arc::clone(&status));
        telemetry.watch_rollouts(store);
        let audit = Arc::new(Audit::new(&state_dir, Arc::clone(&relay.world.clock)));
        let controls = controls(&relay, conductor, &rollouts, &audit);
        let control = Control {
            relay: Arc::clone(&relay),
            reloader,
            rollouts,
            telemetry,
            status,
            admin,
            api,
            own,
            audit,
            controls,
            socket,
            door,
            signals,
            files,
            service,
            pulse,
            gateways,
        };
        let control = thread
            .spawn(move || control.run(&runtime, inbox, requested))
            .map_err(StartError::system("start the control thread"))?;
        Ok(Self { relay, addresses, admin: admin_address, api: api_address, requests, control })
    }
}

/// The control thread.
struct Control {
    relay: Arc<Relay>,
    reloader: Arc<Reloader>,
    rollouts: Arc<Rollouts>,
    telemetry: Arc<Telemetry>,
    status: Source,
    admin: Option<std::net::TcpListener>,
    api: Option<(std::net::TcpListener, Arc<Doors>)>,
    /// Copies of those two for the next process.
    own: Vec<Inherited>,
    audit: Arc<Audit>,
    controls: Arc<Controls>,
    socket: control::Socket,
    door: control::Socket,
    signals: Option<watch::Signals>,
    files: Option<watch::Files>,
    service: Arc<Service>,
    pulse: Pulse,
    gateways: Arc<Gateways>,
}

impl Control {
    fn run(
        self,
        runtime: &tokio::runtime::Runtime,
        inbox: mpsc::Receiver<Request>,
        requests: mpsc::Sender<Request>,
    ) -> Result<(), StartError> {
        let outcome = runtime.block_on(self.serve(inbox, requests));
        tracing::info!("stopped");
        outcome
    }

    async fn serve(
        self,
        mut inbox: mpsc::Receiver<Request>,
        requests: mpsc::Sender<Request>,
    ) -> Result<(), StartError> {
        let Self { relay, reloader, telemetry, status, admin, api, own, audit, controls, .. } =
            self;
        let Self { rollouts, socket, door, signals, files, service, pulse, gateways, .. } = self;
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
        let controlled = tokio::spawn(async move { control::serve(&socket, controls).await });
        if let Some(signals) = signals {
            tokio::spawn(watch::signals(signals, requests.clone()));
        }
        if let Some(files) = files {
            tokio::spawn(watch::files(files, Arc::clone(&relay), requests));
        }
        reloader.keep_house();
        tokio::spawn(Arc::clone(&rollouts).keep());
        // Listeners are bound, the spool is open, signals are heard.
        service.ready("taking mail");
        tokio::spawn(Arc::clone(&service).keep(Arc::clone(&relay), pulse.clone(), status));
        let tables = (Arc::clone(&closing), gateways);
        tokio::spawn(memory::keep(Arc::clone(&relay), tables, pulse.clone()));
        let sockets = upgrade::sockets(&reloader, &service, own);
        let incumbent = Incumbent { relay: Arc::clone(&relay), audit: Arc::clone(&audit), sockets };
        let mut children = upgrade::Children::default();
        let next = {
            let mut successor = pin!(succession::successor(&door, &incumbent));
            let mut saving = tokio::time::interval(SAVING);
            loop {
                let request = tokio::select! {
                    biased;
                    request = inbox.recv() => request,
                    next = &mut successor => break Some(next),
                    _ = saving.tick() => {
                        reloader.save_learned();
                        continue;
                    }
                };
                match request {
                    Some(Request::Reload(answer)) => reload(&reloader, &service, answer).await,
                    Some(Request::Condemned(condemnation)) => {
                        rollouts.condemned(condemnation).await;
                    }
                    Some(Request::Upgrade) => children.start(),
                    Some(Request::Stop) | None => break None,
                }
            }
        };
        // Who waits for a reload, or asks for one from now on, hears that it stops.
        drop(inbox);
        match &next {
            Some(next) => {
                tracing::info!(process = next.process, version = next.version, "handing over");
                service.handing_over();
            }
            None => service.stopping(),
        }
        let ending = Ending { relay, reloader, telemetry: closing, audit, pulse };
        ending.drain().await;
        // From here on the state directory is the next process's, these files too.
        controlled.abort();
        let _ = controlled.await;
        drop((door, incumbent));
        ending.close(next, &service, &children).await
    }
}

async fn reload(
    reloader: &Arc<Reloader>,
    service: &Service,
    answer: Option<oneshot::Sender<Result<u64, String>>>,
) {
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

/// What is left to be done when the relay ends.
struct Ending {
    relay: Arc<Relay>,
    reloader: Arc<Reloader>,
    telemetry: Arc<Telemetry>,
    audit: Arc<Audit>,
    pulse: Pulse,
}

impl Ending {
    /// Ends the sessions and the workers; upstreams are kept and monitors answered meanwhile.
    async fn drain(&self) {
        let reloader = Arc::clone(&self.reloader);
        let closing = tokio::task::spawn_blocking(move || reloader.close_listeners());
        // Nobody is taken from the kernel's queue any more, to be sent away at once: the next
        // process may serve him. A worker that hangs is not waited for.
        if closing.await.is_ok() {
            let _ = tokio::time::timeout(CLOSING, self.pulse.answers()).await;
        }
        self.relay.stop();
        self.reloader.save_learned();
        let patience = self.relay.generation().config.limits.shutdown_timeout;
        let reloader = Arc::clone(&self.reloader);
        if tokio::task::spawn_blocking(move || reloader.stop(patience)).await.is_err() {
            tracing::error!("stopping panicked");
        }
    }

    /// Gives the spool up, and tells the next process, if there is one.
    async fn close(
        self,
        next: Option<Successor>,
        service: &Service,
        children: &upgrade::Children,
    ) -> Result<(), StartError> {
        let Self { relay, telemetry, audit, .. } = self;
        let process = next.as_ref().and_then(|next| next.process);
        let closing = tokio::task::spawn_blocking(move || {
            let queue = Arc::clone(&relay.queue);
            queue.save_accounts();
            telemetry.close();
            let next = next.map(|next| next.written_down(&audit));
            queue.close();
            next
        });
        let next = closing.await.unwrap_or_else(|_| {
            tracing::error!("closing the spool panicked");
            None
        });
        let Some(next) = next else { return Ok(()) };
        if !next.is_there() {
            return Err(StartError::SuccessorGone);
        }
        if let Some(child) = children.is(process) {
            service.succeeded_by(child);
        }
        next.tell().await;
        Ok(())
    }
}

/// How long workers may take to hear that nobody is let in any more.
const CLOSING: Duration = Duration::from_secs(1);
/// How often what upstreams offer is written down, if it changed.
const SAVING: Duration = Duration::from_secs(10);
