//! The lives of the relay around a window: each is a runtime of its own, dropped with all its
//! tasks when the relay is stopped, killed or loses power.

use std::{
    cell::Cell,
    collections::HashMap,
    panic,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use tokio::time::Instant;
use wavegate::{
    conductor::{
        Conductor,
        order::{Command, Order, Refusal},
    },
    event::Observer,
    generation::{self, Making, Surroundings},
    names::Resolved,
    policy::{HostOptions, PolicyHost},
    queue::Queue,
    relay::Relay,
    session::stopping,
    waves::{Record, Stage},
    world::{
        World,
        memory::{MemoryNetwork, SimulatedClock},
    },
};
use wavegate_spool::{Fault, FaultyDisk, Kind, MemoryDisk, Options};

use super::{
    book::{Book, Ear, Shared},
    script::{Change, Dice, Mood, Reload, Restart, STRANGER, Script, wall},
    senders,
};
use crate::{
    guest,
    sim::{self, Act, Point, Sink, sink::What},
};

/// Between two looks at what must always hold.
const LOOK: u64 = 250;
/// How long what is due may not be done: a second, as promised, and a look.
const LATE: u64 = 1000 + LOOK;
/// How long everything may take to arrive in the end.
const DRAIN: u64 = 4 * 3_600_000;

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// What goes on when the relay dies.
struct Around {
    book: Shared,
    script: Script,
    disk: MemoryDisk,
    boot: u8,
    lives: u64,
    /// By how much the wall clock was stepped in all.
    stepped: i64,
    plan: Reload,
    refuses: Arc<Mutex<bool>>,
    calm: Arc<Mutex<bool>>,
    disk_fails: bool,
    host: Arc<PolicyHost>,
    directory: tempfile::TempDir,
}

/// One life of the relay.
struct Life<'a> {
    world: &'a mut Around,
    begun: Instant,
    start: u64,
    relay: Arc<Relay>,
    conductor: Arc<Conductor>,
    clock: Arc<SimulatedClock>,
    disk: FaultyDisk<MemoryDisk>,
    sinks: Vec<Sink>,
    /// Since when what is due is not done: the barrier, and the release.
    due: [Option<u64>; 2],
}

/// Runs the window of a seed to its end.
pub fn window(seed: u64) -> Shared {
    count_panics();
    let script = Script::draw(seed);
    let book: Shared = Arc::new(Mutex::new(Book::new(script.clone())));
    senders::enter(&book);
    let compiled = Some(guest::cache().join("compiled"));
    let mut world = Around {
        book: Arc::clone(&book),
        disk: MemoryDisk::new(),
        boot: 1,
        lives: 0,
        stepped: 0,
        plan: Reload::Same,
        refuses: Arc::default(),
        calm: Arc::default(),
        disk_fails: false,
        host: PolicyHost::new(compiled, HostOptions::simulation(seed)).unwrap(),
        directory: tempfile::tempdir().unwrap(),
        script,
    };
    let changes = world.script.changes.clone();
    let (mut rest, mut now) = (&changes[..], 0);
    loop {
        let end = rest.iter().position(|(_, change)| matches!(change, Change::Restart(_)));
        let (mine, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        now = world.live(now, mine) + 1 + (seed + world.lives) * 7919 % 5000;
        if end.is_none() {
            return book;
        }
        rest = after;
    }
}

/// Panics of tasks are caught by the runtime; here they are counted.
fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
    PANICS.set(0);
}

impl Around {
    /// One life, from `start` to the restart at the end of `changes`, or to the end of it all. The
    /// time at its end.
    fn live(&mut self, start: u64, changes: &[(u64, Change)]) -> u64 {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.unwrap();
        let book = Arc::clone(&self.book);
        self.lives += 1;
        let (end, sinks, disk) = runtime.block_on(async {
            let mut life = Life::begin(self, start);
            let restart = life.run(changes).await;
            let disk = life.end(restart).await;
            let end = book.lock().unwrap().now();
            book.lock().unwrap().life = None;
            (end, std::mem::take(&mut life.sinks), disk)
        });
        drop(runtime);
        self.disk = disk;
        let mut book = book.lock().unwrap();
        for (number, sink) in sinks.into_iter().enumerate() {
            book.arrived.extend(sink.arrived().into_iter().map(|mut one| {
                one.at += start;
                (number == 0, one)
            }));
        }
        end
    }

    fn write(&self) {
        let (relay, plan) = self.script.text(self.plan);
        std::fs::write(self.directory.path().join("relay.toml"), relay).unwrap();
        std::fs::write(self.directory.path().join("waves.toml"), plan).unwrap();
    }
}

impl<'a> Life<'a> {
    fn begin(world: &'a mut Around, start: u64) -> Self {
        let begun = Instant::now();
        world.book.lock().unwrap().life = Some((begun, start));
        let network = MemoryNetwork::default();
        let seed = world.script.seed * 1000 + world.lives;
        let clock = Arc::new(SimulatedClock::new(wall(start)));
        clock.step(world.stepped);
        let outside = World::with_clock(network.clone(), Arc::clone(&clock), seed);
        let sinks = (0..3).map(|number| sink(world, &network, number, begun)).collect();
        let disk = FaultyDisk::new(world.disk.clone());
        if world.disk_fails {
            world.disk_fails = false;
        }
        let options = Options {
            segment_bytes: 256 << 10,
            journal_bytes: 32 << 10,
            attempt_slots: 512,
            boot_id: [world.boot; 16],
            ..Options::default()
        };
        let opened = Queue::open_on(disk.clone(), options, Arc::clone(&outside.clock), 1).unwrap();
        assert!(opened.found.damage.is_empty(), "{:?}", opened.found.damage);
        assert!(opened.found.unknown_waves.is_empty());
        let found = format!("life {}: {:?}", world.lives, opened.found);
        world.book.lock().unwrap().say(&found);
        // A plan that has lost an instance whose mail is held does not start a relay.
        if world.plan == Reload::WithoutAnInstance {
            world.plan = Reload::Same;
        }
        world.write();
        let around = Surroundings {
            world: outside,
            host: Arc::clone(&world.host),
            observer: Arc::new(Ear(Arc::clone(&world.book))) as Arc<dyn Observer>,
            spill: world.directory.path(),
            queue: opened.queue,
            known: &HashMap::new(),
            tls: Arc::default(),
            names: Resolved::default(),
        };
        let relay = generation::assemble(sim::read(world.directory.path()), around).unwrap();
        // What could not be written down of a freeze is forgotten with the process.
        for one in relay.waves.status().iter().filter(|one| &*one.name != STRANGER) {
            world.book.lock().unwrap().note_frozen(&one.name, !one.phase.may_commit());
        }
        // A step may have been written just before the end, and takes effect now.
        if let Some(life) = relay.waves.life("w", relay.waves.now()) {
            world.book.lock().unwrap().note_stage(life.record.stage);
        }
        let conductor = sim::deliver_spooled(&relay);
        senders::start(&relay, &world.book);
        for upstream in relay.generation().upstreams.values() {
            tokio::spawn(Arc::clone(upstream).housekeeping());
        }
        let due = [None; 2];
        Self { world, begun, start, relay, conductor, clock, disk, sinks, due }
    }

    /// Goes through all changes, and, where none of them is a restart, to the end of it all.
    async fn run(&mut self, changes: &[(u64, Change)]) -> Option<Restart> {
        for (time, change) in changes {
            self.until(*time).await;
            self.world.book.lock().unwrap().say(&format!("{change:?}"));
            match change {
                Change::Restart(restart) => return Some(*restart),
                change => self.change(change).await,
            }
        }
        self.until(self.world.script.closes + 90_000).await;
        self.drain().await;
        None
    }

    async fn change(&mut self, change: &Change) {
        let wave = "w".to_owned();
        match change {
            Change::Restart(_) => unreachable!("the end of a life"),
            Change::BreakDisk => {
                self.disk.fail(
                    Some(Kind::Sync),
                    0,
                    u64::MAX,
                    Fault::Error(std::io::ErrorKind::Other),
                );
                self.world.disk_fails = true;
                self.world.book.lock().unwrap().tally.unwritten += 1;
            }
            Change::HealDisk => self.heal(),
            Change::Reload(plan) => self.reload(*plan),
            Change::Extend(by) => {
                let closes = self.record().map_or(wall(self.world.script.closes), |one| one.closes);
                let until = closes.saturating_add_ms(*by);
                self.order(Command::Extend { wave, until }).await;
            }
            Change::Complete(unchecked) => {
                self.order(Command::Complete { wave, unchecked: *unchecked }).await;
            }
            Change::RollBack => self.order(Command::RollBack { wave }).await,
            Change::Freeze => {
                let command = Command::Freeze { instance: STRANGER.to_owned(), for_ms: 45_000 };
                self.order(command).await;
            }
            Change::StepClock(ms) => {
                self.clock.step(*ms);
                self.world.stepped += ms;
                self.world.book.lock().unwrap().tally.clock_steps += 1;
            }
            Change::TrustClock => self.order(Command::Release { wave }).await,
            Change::Refuse(refuses) => *self.world.refuses.lock().unwrap() = *refuses,
            Change::BreakConnections => self.sinks.iter().for_each(Sink::close_all),
        }
    }

    async fn order(&self, command: Command) {
        let frozen = match &command {
            Command::Freeze { instance, .. } => Some(instance.clone()),
            _ => None,
        };
        let order = |dry_run| Order {
            command: command.clone(),
            reason: "the script says so".to_owned(),
            by: "script".to_owned(),
            dry_run,
        };
        let steps = || self.world.book.lock().unwrap().steps.len();
        let before = steps();
        let would = self.conductor.order(order(true)).await;
        let is_same = steps() == before;
        let done = self.conductor.order(order(false)).await;
        // Unless the wave took a step of its own in between.
        let is_obeyed = matches!(done, Ok(_) | Err(Refusal::Spool(_)));
        let was_still = is_same && (is_obeyed || steps() == before);
        assert!(!was_still || would.is_ok() == is_obeyed, "{command:?}: {would:?}, {done:?}");
        let mut book = self.world.book.lock().unwrap();
        book.say(&format!("{command:?}: {:?}", done.as_ref().map(|obeyed| &obeyed.what)));
        if let Ok(obeyed) = done {
            book.tally.orders += u64::from(obeyed.changed);
            assert!(frozen.is_none() || obeyed.wave.id != "w");
        }
    }

    fn heal(&mut self) {
        self.disk.heal();
        self.world.disk_fails = false;
    }

    fn reload(&mut self, plan: Reload) {
        self.world.plan = plan;
        self.world.write();
        let config = sim::read(self.world.directory.path());
        let current = self.relay.generation();
        let policies = generation::load_policies(&self.relay.policy_host, &config).unwrap();
        let known = HashMap::new();
        let names = Resolved::default();
        let making = Making::of(&self.relay, Arc::default(), &names);
        let next = generation::build(config, policies, Some(&current), &known, making);
        self.relay.replace(next);
        self.world.book.lock().unwrap().tally.reloads += 1;
    }

    fn record(&self) -> Option<Arc<Record>> {
        let life = self.relay.waves.life("w", self.relay.waves.now())?;
        Some(life.record)
    }

    fn now(&self) -> u64 {
        self.start + u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    /// Waits until `time`, and looks at what must always hold meanwhile.
    async fn until(&mut self, time: u64) {
        while self.now() < time {
            let next = ((self.now() / LOOK + 1) * LOOK).min(time);
            tokio::time::sleep_until(self.begun + Duration::from_millis(next - self.start)).await;
            self.look();
        }
    }

    fn look(&mut self) {
        assert_eq!(PANICS.get(), 0, "a task panicked");
        let now = self.now();
        self.world.book.lock().unwrap().tally.looks += 1;
        let Some(record) = self.record() else { return };
        let wall = self.relay.waves.now();
        let members = self.relay.waves.members(&record, wall);
        let is_held = !self.world.disk_fails && record.stage.holds();
        let is_quiet = members.iter().all(|one| one.barrier);
        let status = self.conductor.status();
        let due = [
            is_held && is_quiet && record.barrier_at.is_none(),
            is_held
                && record.stage == Stage::Checked
                && !record.on_complete
                && !status.clock_suspect
                && wall >= record.closes,
        ];
        for (due, since) in due.into_iter().zip(&mut self.due) {
            *since = due.then(|| since.unwrap_or(now));
            let late = since.map_or(0, |since| now - since);
            assert!(late <= LATE, "nothing for {late} ms: {record:?}");
        }
        assert!(status.waves.iter().all(|wave| wave.leaked == 0), "{status:?}");
        let one = status.waves.iter().find(|wave| wave.id == "w").unwrap();
        if record.stage.is_running() {
            assert_eq!(one.instances.len(), record.members.len());
        }
    }

    /// Everything is well again: everything must arrive.
    async fn drain(&mut self) {
        *self.world.calm.lock().unwrap() = true;
        *self.world.refuses.lock().unwrap() = false;
        self.heal();
        let end = self.now() + DRAIN;
        let mut next_order = 0;
        loop {
            self.until(self.now() + 1000).await;
            let untold = {
                let book = self.world.book.lock().unwrap();
                book.letters.values().filter(|told| told.is_none()).count()
            };
            let stored = self.relay.queue.spool().usage().messages;
            let record = self.record();
            let is_running = record.as_ref().is_some_and(|one| one.stage.is_running());
            if untold == 0 && stored == 0 && !is_running {
                break;
            }
            // Whoever waits for an operator, or for the clock, gets his word.
            if self.now() >= next_order {
                next_order = self.now() + 60_000;
                self.end_what_is_held().await;
            }
            let lines = self.relay.queue.snapshot().lines;
            assert!(self.now() < end, "{untold} untold, {stored} stored: {record:?}, {lines:?}");
        }
        self.relay.queue.quiet().await;
        for one in self.relay.waves.status() {
            let left = one.in_flight.uncommitted + one.in_flight.in_doubt;
            assert_eq!(left, 0, "{}: in flight although nothing is", one.name);
        }
    }

    /// An operator ends every freeze, that of the stranger too.
    async fn end_what_is_held(&self) {
        for life in self.relay.waves.lives(self.relay.waves.now()) {
            let wave = || life.record.wave.clone();
            if life.record.stage.is_frozen() && self.conductor.status().clock_suspect {
                self.order(Command::Release { wave: wave() }).await;
            }
            if life.record.stage.is_frozen() {
                self.order(Command::Complete { wave: wave(), unchecked: true }).await;
            }
        }
    }

    /// Ends it as told; the disk that the next life finds.
    async fn end(&mut self, restart: Option<Restart>) -> MemoryDisk {
        {
            let mut book = self.world.book.lock().unwrap();
            let tally = &mut book.tally;
            match restart {
                Some(Restart::Clean) => tally.stops += 1,
                Some(Restart::Kill) => tally.kills += 1,
                Some(Restart::PowerLoss) => tally.powers_lost += 1,
                None => {}
            }
        }
        match restart {
            Some(Restart::Kill) => self.world.disk.copy(),
            Some(Restart::PowerLoss) => {
                self.world.boot += 1;
                self.world.disk.crash(self.world.script.seed ^ self.now())
            }
            Some(Restart::Clean) | None => {
                self.heal();
                self.relay.stop();
                stopping::wake_all();
                let quiet = self.relay.queue.quiet();
                let _ = tokio::time::timeout(Duration::from_secs(30), quiet).await;
                self.relay.queue.close();
                self.world.disk.copy()
            }
        }
    }
}

fn sink(world: &Around, network: &MemoryNetwork, number: usize, begun: Instant) -> Sink {
    let sink = Sink::start(network, [2601, 2602, 2603][number], begun);
    if (world.script.seed + number as u64).is_multiple_of(2) {
        sink.without_chunking();
    }
    let seed = (world.script.seed * 1000 + world.lives) * 10 + number as u64;
    let dice = Dice::new(seed);
    let mood = world.script.moods[usize::from(number > 0)];
    let (calm, refuses) = (Arc::clone(&world.calm), Arc::clone(&world.refuses));
    sink.script(move |point, _| match *calm.lock().unwrap() {
        true => Act::GO,
        false => act(point, mood, number == 2 && *refuses.lock().unwrap(), &dice),
    });
    sink
}

fn act(point: Point, mood: Mood, refuses: bool, dice: &Dice) -> Act {
    if refuses && point == Point::Mail {
        return Act::reply(450);
    }
    if point == Point::End && dice.below(1000) < mood.never {
        return Act::after(300_000);
    }
    let mut act = Act::GO;
    if dice.below(1000) < mood.late {
        act.after = Duration::from_millis(dice.below(mood.delay));
    }
    if dice.below(1000) < mood.close {
        act.what = What::Close;
    } else if dice.below(1000) < mood.defer {
        act.what = What::Reply(451);
    }
    act
}
