//! Swapping generations: read, load, bind, swap; or refuse and keep what runs. Floor 4.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, task::AbortHandle};
use wavegate_smtp::Extensions;

use super::{StartError, links::Links};
use crate::{
    api::{Doors, Keys},
    config::{self, Checks, Config, Diagnostic, Diagnostics, PolicyConfig, UpstreamConfig, When},
    event::Event,
    gateway::Open,
    generation::{self, Making},
    learned,
    listener::Bound,
    logging,
    names::{self, Name, Naming, Resolved},
    plan::Timestamp,
    policy::{Condemnation, PolicySet},
    relay::{Generation, Relay},
    rollout::{self, Store},
    service::{Inherited, Service},
    tls::{self, Loaded},
    upstream::Upstream,
    users,
    worker::Workers,
};

/// Everything that a swap touches. One swap at a time.
pub(super) struct Reloader {
    path: PathBuf,
    relay: Arc<Relay>,
    addresses: Arc<Mutex<Vec<(String, SocketAddr)>>>,
    state: Mutex<State>,
    /// What lets clients of the API in.
    doors: Option<Arc<Doors>>,
    /// Who may have bound a listener's socket.
    service: Arc<Service>,
    /// What was installed in place of what the configuration names.
    store: Arc<Store>,
}

struct State {
    workers: Option<Workers>,
    bound: Vec<Bound>,
    links: Links,
    /// Upstreams whose housekeeping runs.
    kept: Vec<(Arc<Upstream>, AbortHandle)>,
    /// The policies that were in force before those that are, whatever else has changed since.
    policies_before: Option<Arc<PolicySet>>,
    saved: HashMap<SocketAddr, Extensions>,
}

impl Reloader {
    pub(super) fn new(
        path: &Path,
        relay: &Arc<Relay>,
        workers: Workers,
        (bound, links): (Vec<Bound>, Links),
        doors: Option<Arc<Doors>>,
        service: Arc<Service>,
        store: Arc<Store>,
    ) -> Result<Self, StartError> {
        for one in &bound {
            workers
                .listen(&one.name, &one.socket)
                .map_err(StartError::system("share a listening socket"))?;
        }
        for one in &bound {
            relay.emit(&Event::ListenerOpened { listener: &one.name });
        }
        let addresses = addresses(&bound, &links);
        let state = State {
            workers: Some(workers),
            bound,
            links,
            kept: Vec::new(),
            policies_before: None,
            saved: HashMap::new(),
        };
        Ok(Self {
            path: path.to_owned(),
            relay: Arc::clone(relay),
            addresses: Arc::new(Mutex::new(addresses)),
            state: Mutex::new(state),
            doors,
            service,
            store,
        })
    }

    /// Listeners by name with the address in use.
    pub(super) fn addresses(&self) -> Arc<Mutex<Vec<(String, SocketAddr)>>> {
        Arc::clone(&self.addresses)
    }

    /// Reloads on a thread for blocking work, so that the control thread goes on.
    pub(super) async fn reload_off_thread(self: &Arc<Self>) -> Result<u64, String> {
        let me = Arc::clone(self);
        let handle = Handle::current();
        let reloading = tokio::task::spawn_blocking(move || me.reload(&handle));
        let outcome = match reloading.await {
            Ok(outcome) => outcome.map_err(|diagnostics| diagnostics.to_string()),
            Err(panic) => Err(format!("the reload panicked: {panic}")),
        };
        match &outcome {
            Ok(generation) => {
                self.relay.emit(&Event::Reloaded { generation: *generation });
            }
            Err(error) => self.relay.emit(&Event::ReloadRefused { error }),
        }
        outcome
    }

    fn reload(&self, runtime: &Handle) -> Result<u64, Diagnostics> {
        let mut state = self.lock();
        let now = self.relay.waves.now();
        let mut config = config::read_at(&self.path, When { now, checks: Checks::Relay })?;
        let installed = self.store.state();
        let overlaid = rollout::overlay(&config.policies, &installed, self.store.state_dir());
        overlaid.warnings(&installed).for_each(|warning| tracing::warn!("{warning}"));
        config.policies = overlaid.policies;
        let current = self.relay.generation();
        let tls = tls::load(&config, self.relay.world.clock.now(), Some(&current.tls))?;
        let users = users::load(&config)?;
        let warnings = config.warnings.iter().chain(&tls.warnings);
        warnings.for_each(|warning| tracing::warn!("{warning}"));
        self.check_unchangeable(&current.config, &config)?;
        self.check_announced(&current.config, &config, now)?;
        self.check_begun(&current.config, &config)?;
        self.service.check(&config)?;
        let keys = config.api.as_ref().map(Keys::load).transpose()?;
        let names = self.resolve(&config, &current, &tls, runtime)?;
        let host = &self.relay.policy_host;
        let policies = generation::load_policies(host, &config)?;
        let fresh = bind_missing(&config, &state.bound, &self.service)?;
        let links = state.links.prepare(&config, &tls)?;
        let learned = self.learned();
        let making = Making::of(&self.relay, Arc::new(tls), &names);
        let next = generation::build(config, policies, Some(&current), &learned, making);
        let number = next.number;
        if !next.policies.is_same_as(&current.policies) {
            state.policies_before = Some(Arc::clone(&current.policies));
        }
        logging::set(next.config.relay.log);
        self.relay.replace(next);
        self.store.forget(&overlaid.superseded);
        self.relay.logins.replace(users);
        if let (Some(doors), Some(keys)) = (&self.doors, keys) {
            doors.change(keys);
        }
        self.move_listeners(&mut state, fresh);
        self.move_links(&mut state, links);
        self.move_upstreams(&mut state, runtime);
        Ok(number)
    }

    /// Whether other plugins are installed than are in force.
    pub(super) fn is_behind(&self) -> bool {
        let current = self.relay.generation();
        self.installed(&current.config.policies) != current.config.policies
    }

    /// The policies to load where these are loaded.
    fn installed(&self, loaded: &[PolicyConfig]) -> Vec<PolicyConfig> {
        let bare = rollout::bare(loaded);
        rollout::overlay(&bare, &self.store.state(), self.store.state_dir()).policies
    }

    /// Puts in force what is installed, with the configuration in force: no file is read but of
    /// components that come new, so that what is bad can go though somebody is at work on the others.
    /// The number of the new generation, unless nothing is to be changed. With `forward` the present one
    /// may come back.
    pub(super) fn restage(
        &self,
        forward: bool,
        runtime: &Handle,
    ) -> Result<Option<u64>, Diagnostics> {
        let mut state = self.lock();
        let current = self.relay.generation();
        let policies = self.installed(&current.config.policies);
        if policies == current.config.policies {
            return Ok(None);
        }
        let config = Config { policies, ..(*current.config).clone() };
        let before = Some(&*current.policies);
        let policies = generation::load_changed(&self.relay.policy_host, &config, before)?;
        if forward {
            state.policies_before = Some(Arc::clone(&current.policies));
        }
        Ok(Some(self.turn_to_policies(&mut state, config, policies, runtime)))
    }

    /// Puts other policies in force, and nothing else.
    fn turn_to_policies(
        &self,
        state: &mut State,
        config: Config,
        policies: Arc<PolicySet>,
        runtime: &Handle,
    ) -> u64 {
        let current = self.relay.generation();
        let names = current.naming.clone().map(Resolved::later).unwrap_or_default();
        let learned = self.learned();
        let making = Making::of(&self.relay, Arc::clone(&current.tls), &names);
        let next = generation::build(config, policies, Some(&current), &learned, making);
        let number = next.number;
        self.relay.restage(next);
        self.move_upstreams(state, runtime);
        number
    }

    /// Looks up the names of upstreams that are new or have changed: those of others are in force,
    /// and what has become of them keeps no other change from being taken.
    fn resolve(
        &self,
        config: &Config,
        current: &Generation,
        tls: &Loaded,
        runtime: &Handle,
    ) -> Result<Resolved, Diagnostics> {
        let in_force = current.naming.as_ref();
        let naming = Naming::open(&self.relay.world, &config.resolver, in_force);
        let same = Resolved::later(Arc::clone(&naming));
        let is_same = |one: &&UpstreamConfig| {
            generation::unchanged(current, config, one, tls, &same).is_some()
        };
        let same = config.upstreams.iter().filter(is_same).map(|one| one.name.clone()).collect();
        let known: Vec<Name> =
            current.upstreams.values().flat_map(|upstream| upstream.known_names()).collect();
        let names = runtime.block_on(names::resolve(config, naming, &same, &known))?;
        names.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(names)
    }

    /// What needs a restart is refused rather than ignored.
    fn check_unchangeable(&self, old: &Config, new: &Config) -> Result<(), Diagnostics> {
        let mut found = Vec::new();
        let mut refuse = |key: &str| {
            let message = format!("{key} has changed, which needs a restart; change it back");
            found.push(Diagnostic::of_file(self.path.display(), message));
        };
        if old.relay.state_dir != new.relay.state_dir {
            refuse("relay.state_dir");
        }
        if old.relay.workers != new.relay.workers {
            refuse("relay.workers");
        }
        if old.admin != new.admin {
            refuse("admin.address");
        }
        if old.api != new.api {
            refuse("[api]");
        }
        if old.event_log != new.event_log {
            refuse("[event_log]");
        }
        if old.decision_log != new.decision_log {
            refuse("[decision_log]");
        }
        if found.is_empty() { Ok(()) } else { Err(Diagnostics(found)) }
    }

    /// What the plan in force has as announced stays so, whatever becomes of the lock.
    fn check_announced(
        &self,
        old: &Config,
        new: &Config,
        now: Timestamp,
    ) -> Result<(), Diagnostics> {
        let Some(file) = new.plan_file.as_ref().or(old.plan_file.as_ref()) else { return Ok(()) };
        let in_force = Arc::clone(&self.relay.waves.current().plan);
        config::check_kept(&in_force, &new.plan, now, &config::lock_of(file))
    }

    /// A wave that has begun keeps its window and its instances until it is over.
    fn check_begun(&self, old: &Config, new: &Config) -> Result<(), Diagnostics> {
        let Some(file) = new.plan_file.as_ref().or(old.plan_file.as_ref()) else { return Ok(()) };
        let found = self.relay.waves.contradictions(&new.plan).into_iter();
        let found: Vec<_> = found.map(|text| Diagnostic::of_file(file.display(), text)).collect();
        if found.is_empty() { Ok(()) } else { Err(Diagnostics(found)) }
    }

    /// Accepts on new sockets and no more on those that have gone.
    fn move_listeners(&self, state: &mut State, fresh: Vec<Bound>) {
        let generation = self.relay.generation();
        let stays = |one: &Bound| {
            let settings = generation.listener(&one.name);
            settings.is_some_and(|settings| settings.config.address == one.configured)
        };
        let (kept, gone): (Vec<_>, Vec<_>) = state.bound.drain(..).partition(stays);
        state.bound = kept;
        if let Some(workers) = &state.workers {
            for one in &gone {
                workers.close(&one.name);
                self.relay.emit(&Event::ListenerClosed { listener: &one.name });
            }
            for one in &fresh {
                self.relay.emit(&Event::ListenerOpened { listener: &one.name });
                if let Err(error) = workers.listen(&one.name, &one.socket) {
                    tracing::error!(listener = one.name, %error, "cannot accept");
                }
            }
        }
        state.bound.extend(fresh);
        self.note_addresses(state);
    }

    /// The same for gateways.
    fn move_links(&self, state: &mut State, fresh: Vec<(Open, Vec<UdpSocket>)>) {
        state.links.turn_to(fresh, state.workers.as_ref());
        self.note_addresses(state);
    }

    fn note_addresses(&self, state: &State) {
        let addresses = addresses(&state.bound, &state.links);
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Starts the housekeeping of the first generation's upstreams.
    pub(super) fn keep_house(&self) {
        self.move_upstreams(&mut self.lock(), &Handle::current());
    }

    /// Housekeeping for new upstreams; those that have gone are retired.
    fn move_upstreams(&self, state: &mut State, runtime: &Handle) {
        let generation = self.relay.generation();
        let wanted: Vec<_> = generation.upstreams.values().cloned().collect();
        state.kept.retain(|(upstream, task)| {
            let stays = wanted.iter().any(|other| Arc::ptr_eq(other, upstream));
            if !stays {
                task.abort();
                upstream.retire();
            }
            stays
        });
        for upstream in wanted {
            if !state.kept.iter().any(|(other, _)| Arc::ptr_eq(other, &upstream)) {
                let task = runtime.spawn(Arc::clone(&upstream).housekeeping()).abort_handle();
                upstream.revive();
                state.kept.push((upstream, task));
            }
        }
    }

    /// Goes back to the policies before, with their tables, which did not fail so often. All else stays
    /// as it is. Whether that was done.
    pub(super) fn roll_back(&self, condemnation: &Condemnation, runtime: &Handle) -> bool {
        let mut state = self.lock();
        let current = self.relay.generation();
        if current.policies.id() != condemnation.set {
            return false;
        }
        tracing::error!(
            generation = current.number,
            messages = condemnation.messages,
            failures = condemnation.failures,
            calls = condemnation.calls,
            "the policies of this generation fail too often"
        );
        let may_come_back = |before: &Arc<PolicySet>| {
            !before.is_condemned() && !before.is_same_as(&current.policies)
        };
        let Some(before) = state.policies_before.clone().filter(may_come_back) else {
            tracing::error!("there are no earlier policies to go back to; fail modes apply");
            return false;
        };
        let (policies, tables) = (before.configs(), before.tables().to_vec());
        let config = Config { policies, tables, ..(*current.config).clone() };
        match generation::load_changed(&self.relay.policy_host, &config, Some(&before)) {
            Ok(policies) => {
                state.policies_before = None;
                let generation = self.turn_to_policies(&mut state, config, policies, runtime);
                let of = before.generation();
                tracing::warn!(generation, "went back to the policies of generation {of}");
                self.relay.emit(&Event::Reloaded { generation });
                true
            }
            Err(error) => {
                let what = "the policies before do not fit the configuration any more";
                tracing::error!(%error, "{what}; fail modes apply");
                false
            }
        }
    }

    /// Writes down what upstreams offer, if it changed.
    pub(super) fn save_learned(&self) {
        let learned = self.learned();
        let mut state = self.lock();
        if learned.is_empty() || learned == state.saved {
            return;
        }
        let state_dir = self.relay.generation().config.relay.state_dir.clone();
        match learned::save(&state_dir, &learned) {
            Ok(()) => state.saved = learned,
            Err(error) => tracing::warn!(%error, "what upstreams offer cannot be kept"),
        }
    }

    /// Accepts nobody any more. Blocks.
    pub(super) fn close_listeners(&self) {
        let state = self.lock();
        if let Some(workers) = &state.workers {
            state.bound.iter().for_each(|one| workers.close(&one.name));
        }
        state.links.close();
    }

    /// The listening sockets, for the next process.
    pub(super) fn sockets(&self) -> io::Result<Vec<Inherited>> {
        let copy = |one: &Bound| {
            let (name, configured) = (one.name.clone(), one.configured);
            Ok(Inherited { name, configured, passed: false, socket: one.socket.try_clone()? })
        };
        self.lock().bound.iter().map(copy).collect()
    }

    /// Ends the workers. Blocks. Who connects from now on is refused by the kernel, rather than
    /// kept in its queue for nobody; where another process has the sockets too, it is his.
    pub(super) fn stop(&self, patience: Duration) {
        let (workers, bound) = {
            let mut state = self.lock();
            state.links.closed();
            (state.workers.take(), std::mem::take(&mut state.bound))
        };
        for one in bound {
            self.relay.emit(&Event::ListenerClosed { listener: &one.name });
        }
        if let Some(workers) = workers {
            workers.stop(patience);
        }
    }

    fn learned(&self) -> HashMap<SocketAddr, Extensions> {
        let generation = self.relay.generation();
        let targets = generation.upstreams.values().flat_map(|one| one.status().targets);
        targets.filter_map(|target| Some((target.address, target.extensions?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listeners by name with the address in use.
fn addresses(bound: &[Bound], links: &Links) -> Vec<(String, SocketAddr)> {
    let listeners = bound.iter().map(|one| (one.name.clone(), one.address));
    listeners.chain(links.addresses()).collect()
}

/// Binds what is not bound yet; all of it or nothing.
fn bind_missing(
    config: &Config,
    bound: &[Bound],
    service: &Service,
) -> Result<Vec<Bound>, Diagnostics> {
    let mut fresh = Vec::new();
    let mut failed = Vec::new();
    for listener in &config.listeners {
        let known = |one: &Bound| one.name == listener.name && one.configured == listener.address;
        if bound.iter().any(known) {
            continue;
        }
        match service.bind(config, &listener.name, listener.address) {
            Ok(one) => fresh.push(one),
            Err(error) => {
                let message = format!("cannot listen on {}: {error}", listener.address);
                failed.push(Diagnostic::of_file(format!("listener {}", listener.name), message));
            }
        }
    }
    if failed.is_empty() { Ok(fresh) } else { Err(Diagnostics(failed)) }
}
