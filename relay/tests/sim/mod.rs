//! A simulated world for whole-relay tests: time stands still unless everybody waits, the
//! network is in memory, and all randomness follows from a seed. Owns the relay under test, its
//! senders (`sender`) and its upstreams (`sink`); owns no expectation.
#![allow(dead_code, reason = "every test file uses another part of it")]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

pub mod sender;
pub mod sink;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use wavegate::{
    conductor::Conductor,
    config::{self, Config},
    delivery,
    event::{Event, Observer},
    generation::{self, Making, Surroundings},
    names::{Naming, Resolved},
    plan::Timestamp,
    policy::{HostOptions, PolicyHost},
    queue::Queue,
    relay::Relay,
    upstream::Upstream,
    world::{
        World,
        memory::{MemoryNames, MemoryNetwork, SimulatedClock},
    },
};

use crate::guest;

pub use sender::Sender;
pub use sink::{Act, Point, Sink};

/// Every simulation starts here: 2026-01-20T05:00:00Z.
pub const START: Timestamp = Timestamp(1_768_885_200_000);

/// A relay in its world.
pub struct Sim {
    pub relay: Arc<Relay>,
    pub conductor: Arc<Conductor>,
    /// The wall clock, to step it.
    pub clock: Arc<SimulatedClock>,
    pub network: MemoryNetwork,
    pub log: Arc<Log>,
    begun: Instant,
    directory: tempfile::TempDir,
}

type Then = Box<dyn FnOnce() + Send>;

/// Everything that happened, with the simulated time.
pub struct Log {
    begun: Instant,
    lines: Mutex<Vec<String>>,
    then: Mutex<Option<(&'static str, Then)>>,
}

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        let line = format!("{} {event:?}", self.begun.elapsed().as_millis());
        let then = self.then.lock().unwrap().take_if(|(part, _)| line.contains(*part));
        self.lines.lock().unwrap().push(line);
        if let Some((_, then)) = then {
            then();
        }
    }
}

impl Log {
    /// Whoever next tells of an event with this in it does that first.
    pub fn at(&self, part: &'static str, then: impl FnOnce() + Send + 'static) {
        *self.then.lock().unwrap() = Some((part, Box::new(then)));
    }

    /// Lines that have all of these in them.
    pub fn count(&self, wanted: &[&str]) -> usize {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|line| wanted.iter().all(|part| line.contains(part))).count()
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

/// The configuration of the examples, with these texts put in at the end of its sections.
pub struct Setup {
    pub relay: &'static str,
    pub limits: &'static str,
    pub legacy: &'static str,
    pub cloud: &'static str,
    /// The targets of `cloud`.
    pub targets: &'static str,
    /// Whoever is asked for names; what is not there does not exist.
    pub names: MemoryNames,
    /// Of `[migration]`. Without more, nobody is probed: most tests count connections.
    pub migration: &'static str,
    pub policies: String,
    pub plan: String,
    pub seed: u64,
}

pub const THREE_POLICIES: &str = r#"
    [[policy]]
    plugin = "builtin:freeze"
    [[policy]]
    plugin = "builtin:routing"
    [[policy]]
    plugin = "builtin:throttle"
    settings = { limits = [ { per = ["upstream", "recipient-domain"], rate = "5000/s", burst = 500 } ] }
"#;

/// Three instances, known by network and sender; `acme` has a window.
pub fn plan(lead: &str, opens: &str, closes: &str) -> String {
    let mut text = format!("freeze_lead = \"{lead}\"\n");
    for (number, name) in ["acme", "globex", "initech"].iter().enumerate() {
        let number = number + 1;
        text += &format!(
            "[[instance]]\nname = \"{name}\"\nproduct = \"p\"\nenvironment = \"prod\"\n\
             match = {{ clients = [\"10.0.{number}.0/24\"], senders = [\"{name}.example\"] }}\n"
        );
    }
    text + &format!(
        "[[wave]]\nid = \"prod-01\"\nenvironment = \"prod\"\ninstances = [\"acme\"]\n\
         opens = \"2026-01-20T{opens}Z\"\ncloses = \"2026-01-20T{closes}Z\"\n"
    )
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            relay: "",
            limits: "",
            legacy: "",
            cloud: "",
            targets: "\"127.0.0.1:2602\", \"127.0.0.1:2603\"",
            names: MemoryNames::default(),
            migration: "probe = false",
            policies: THREE_POLICIES.to_owned(),
            plan: plan("60s", "05:30:00", "06:15:00"),
            seed: 1,
        }
    }
}

impl Setup {
    pub fn build(&self) -> Sim {
        let directory = tempfile::tempdir().unwrap();
        self.write(directory.path());
        let network = MemoryNetwork::default();
        let clock = Arc::new(SimulatedClock::new(START));
        let world = World {
            names: Arc::new(self.names.clone()),
            ..World::with_clock(network.clone(), Arc::clone(&clock), self.seed)
        };
        let compiled = Some(guest::cache().join("compiled"));
        let host = PolicyHost::new(compiled, HostOptions::simulation(self.seed)).unwrap();
        let begun = Instant::now();
        let log = Arc::new(Log { begun, lines: Mutex::default(), then: Mutex::default() });
        let observer = Arc::clone(&log) as Arc<dyn Observer>;
        let spill = directory.path();
        let queue = Queue::in_memory(Arc::clone(&world.clock));
        let config = read(spill);
        let names = Resolved::later(Naming::open(&world, &config.resolver, None));
        let around = Surroundings {
            world,
            host,
            observer,
            spill,
            queue,
            known: &HashMap::new(),
            tls: Arc::default(),
            names,
        };
        let relay = generation::assemble(config, around).unwrap();
        let conductor = deliver_spooled(&relay);
        Sim { relay, conductor, clock, network, log, begun, directory }
    }

    fn write(&self, directory: &Path) {
        let Self { relay, limits, legacy, cloud, targets, migration, policies, plan, .. } = self;
        let text = format!(
            "[relay]\nhostname = \"edge-1.example.net\"\nplan = \"waves.toml\"\n{relay}\n\
             [limits]\n{limits}\n\
             [[listener]]\naddress = \"127.0.0.1:2525\"\nallow = [\"10.0.0.0/8\"]\n\
             [[upstream]]\nname = \"legacy\"\ntargets = [\"127.0.0.1:2601\"]\n{legacy}\n\
             [[upstream]]\nname = \"cloud\"\ntargets = [{targets}]\n\
             {cloud}\n[migration]\nbefore = \"legacy\"\nafter = \"cloud\"\n{migration}\n\
             {policies}\n"
        );
        std::fs::write(directory.join("relay.toml"), text).unwrap();
        std::fs::write(directory.join("waves.toml"), plan).unwrap();
    }
}

/// What a worker runs beside its sessions, and what the thread of the spool does once a second.
pub fn deliver_spooled(relay: &Arc<Relay>) -> Arc<Conductor> {
    let conductor = Conductor::new(relay);
    tokio::spawn(Arc::clone(&conductor).drive());
    tokio::spawn(delivery::serve(Arc::clone(relay)));
    tokio::spawn(delivery::keeper::keep(Arc::clone(relay)));
    let relay = Arc::clone(relay);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            relay.queue.spool().tend();
        }
    });
    conductor
}

pub fn read(directory: &Path) -> Config {
    config::read(&directory.join("relay.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

impl Sim {
    /// Milliseconds since the start.
    pub fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    /// Waits until this many milliseconds after the start.
    pub async fn until(&self, ms: u64) {
        tokio::time::sleep_until(self.begun + Duration::from_millis(ms)).await;
    }

    /// A scripted upstream; its first target by this number.
    pub fn sink(&self, port: u16) -> Sink {
        Sink::start(&self.network, port, self.begun)
    }

    /// One at an address of its own.
    pub fn sink_at(&self, address: &str) -> Sink {
        Sink::start_at(&self.network, address.parse().unwrap(), self.begun)
    }

    /// A connected client that has said EHLO.
    pub async fn sender(&self, client: &str) -> Sender {
        Sender::connect(&self.relay, client).await
    }

    pub fn upstream(&self, name: &str) -> Arc<Upstream> {
        Arc::clone(self.relay.generation().upstream(name).unwrap())
    }

    /// What production runs beside the workers, in a fixed order.
    pub fn keep_house(&self) {
        for name in ["legacy", "cloud"] {
            tokio::spawn(self.upstream(name).housekeeping());
        }
    }

    /// Loads the configuration as it is in `setup` now, as a reload does.
    pub fn reload(&self, setup: &Setup) {
        setup.write(self.directory.path());
        let config = read(self.directory.path());
        let current = self.relay.generation();
        let policies = generation::load_policies(&self.relay.policy_host, &config).unwrap();
        let world = &self.relay.world;
        let known = HashMap::new();
        let naming = Naming::open(world, &config.resolver, current.naming.as_ref());
        let names = Resolved::later(naming);
        let making = Making::of(&self.relay, Arc::default(), &names);
        self.relay.replace(generation::build(config, policies, Some(&current), &known, making));
    }

    /// Messages in the spool.
    pub fn spooled(&self) -> u64 {
        self.relay.queue.spool().usage().messages
    }

    /// What of an instance is in flight: not committed, in doubt, and whether its barrier is
    /// reached.
    pub fn in_flight(&self, instance: &str) -> (u32, u32, bool) {
        let all = self.relay.waves.status();
        let one = all.iter().find(|status| &*status.name == instance).unwrap();
        (one.in_flight.uncommitted, one.in_flight.in_doubt, one.barrier)
    }
}

/// Lets everybody do what can be done without time passing.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Minutes and seconds after the start, in milliseconds.
pub const fn at(minutes: u64, seconds: u64) -> u64 {
    (minutes * 60 + seconds) * 1000
}

pub fn hostile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/hostile.wasm")
}
