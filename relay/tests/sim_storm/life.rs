//! The lives of the relay in a storm: each is a runtime of its own, dropped with all its tasks
//! when the relay is stopped, killed or loses power. The disk, the senders and the record go on.

use std::{
    cell::Cell,
    collections::HashMap,
    panic,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use wavegate::{
    event::Observer,
    generation::{self, Making, Surroundings},
    names::Resolved,
    plan::Timestamp,
    policy::{HostOptions, PolicyHost},
    queue::{Queue, Snapshot},
    relay::Relay,
    session::stopping,
    upstream::Upstream,
    world::{World, memory::MemoryNetwork},
};
use wavegate_spool::{Fault, FaultyDisk, MemoryDisk, Options};

use super::{
    checks::Outcome,
    record::Record,
    senders,
    settings::{Dice, INSTANCES, Settings, Window},
    weather::{self, Change, HOUR, Mood, PORTS, Restart},
};
use crate::{
    guest,
    sim::{self, Act, Point, Sink, sink::What},
};

/// Between two looks at what must always hold.
const LOOK: u64 = 10_000;
/// How long everything may take to arrive once the storm is over.
const DRAIN: u64 = 4 * HOUR;

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// What goes on when the relay dies.
struct Storm {
    seed: u64,
    record: Record,
    disk: MemoryDisk,
    /// The machine's boot, by number.
    boot: u8,
    lives: u64,
    settings: Settings,
    moods: Arc<Mutex<[Mood; 3]>>,
    listening: [bool; 3],
    /// Whether an operator holds everything; none if he was told that it failed.
    held: Option<bool>,
    host: Arc<PolicyHost>,
    directory: tempfile::TempDir,
    died_by: Option<Restart>,
}

/// One life of the relay.
struct Life<'a> {
    storm: &'a mut Storm,
    begun: Instant,
    start: u64,
    relay: Arc<Relay>,
    disk: FaultyDisk<MemoryDisk>,
    sinks: Vec<Sink>,
    houses: Vec<(Arc<Upstream>, AbortHandle)>,
    /// Windows that are about to close and hold mail.
    closing: Vec<(usize, u64)>,
    disk_fails: bool,
}

/// Runs the storm of a seed.
pub fn storm(seed: u64) -> Outcome {
    count_panics();
    let dice = Dice::new(seed);
    let (settings, changes) = weather::forecast(&dice);
    let record = Record::default();
    record.lock().letters = senders::letters(&dice);
    let compiled = Some(guest::cache().join("compiled"));
    let mut storm = Storm {
        seed,
        record: record.clone(),
        disk: MemoryDisk::new(),
        boot: 1,
        lives: 0,
        settings,
        moods: Arc::default(),
        listening: [true; 3],
        held: Some(false),
        host: PolicyHost::new(compiled, HostOptions::simulation(seed)).unwrap(),
        directory: tempfile::tempdir().unwrap(),
        died_by: None,
    };
    let (mut rest, mut now) = (&changes[..], 0);
    loop {
        let end = rest.iter().position(|(_, change)| matches!(change, Change::Restart(_)));
        let (mine, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        now = storm.live(now, mine) + dice.between(1, 20_000);
        if end.is_none() {
            // The last life, in which everything arrives.
            break;
        }
        rest = after;
        // What was to change while the relay was down changes when it is back.
    }
    Outcome { record }
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

impl Storm {
    /// One life, from `start` to the restart at the end of `changes`, or to the end of it all. The
    /// time at its end.
    fn live(&mut self, start: u64, changes: &[(u64, Change)]) -> u64 {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.unwrap();
        let record = self.record.clone();
        self.lives += 1;
        let (end, sinks, disk) = runtime.block_on(async {
            let mut life = Life::begin(self, start);
            let restart = life.run(changes).await;
            let disk = life.end(restart).await;
            let end = record.now();
            record.lock().life = None;
            (end, std::mem::take(&mut life.sinks), disk)
        });
        drop(runtime);
        self.disk = disk;
        let mut book = self.record.lock();
        for sink in sinks {
            book.arrived.extend(sink.arrived().into_iter().map(|mut one| {
                one.at += start;
                one
            }));
        }
        end
    }
}

impl<'a> Life<'a> {
    fn begin(storm: &'a mut Storm, start: u64) -> Self {
        let begun = Instant::now();
        storm.record.lock().life = Some((begun, start));
        let network = MemoryNetwork::default();
        let seed = storm.seed * 1000 + storm.lives;
        let world = World::simulated(network.clone(), Timestamp(sim::START.0 + start), seed);
        let sinks = (0..3).map(|number| sink(storm, &network, number, begun)).collect();
        let disk = FaultyDisk::new(storm.disk.clone());
        let options = Options {
            // Small, so that segments are compacted and journals replaced.
            segment_bytes: 256 << 10,
            journal_bytes: 32 << 10,
            attempt_slots: 512,
            boot_id: [storm.boot; 16],
            ..Options::default()
        };
        let opened = Queue::open_on(disk.clone(), options, Arc::clone(&world.clock), 1);
        let opened = opened.unwrap_or_else(|error| panic!("the spool does not open: {error}"));
        let found = opened.found;
        assert!(found.damage.is_empty(), "after {:?}: {:?}", storm.died_by, found.damage);
        storm.record.lock().lines.push(format!(
            "{start} life {}: {:?}, {} messages, {} doubtful",
            storm.lives, found.shutdown, found.messages, found.doubtful
        ));
        if let Some(held) = storm.held {
            assert_eq!(opened.queue.all_held().is_some(), held, "a hold outlives the relay");
        }
        write(storm);
        let around = Surroundings {
            world,
            host: Arc::clone(&storm.host),
            observer: Arc::new(storm.record.clone()) as Arc<dyn Observer>,
            spill: storm.directory.path(),
            queue: opened.queue,
            known: &HashMap::new(),
            tls: Arc::default(),
            names: Resolved::default(),
        };
        let relay = generation::assemble(sim::read(storm.directory.path()), around).unwrap();
        // What could not be written down of a freeze is forgotten with the process.
        for (number, name) in INSTANCES.iter().enumerate() {
            let all = relay.waves.status();
            let one = all.iter().find(|one| &*one.name == *name).unwrap();
            storm.record.lock().note_frozen(number, !one.phase.may_commit());
        }
        sim::deliver_spooled(&relay);
        senders::start(&relay, &storm.record);
        let mut life = Self {
            storm,
            begun,
            start,
            relay,
            disk,
            sinks,
            houses: Vec::new(),
            closing: Vec::new(),
            disk_fails: false,
        };
        life.keep_house();
        life
    }

    /// Goes through all changes, and, where none of them is a restart, to the end of the storm.
    async fn run(&mut self, changes: &[(u64, Change)]) -> Option<Restart> {
        for (time, change) in changes {
            self.until(*time).await;
            self.storm.record.lock().lines.push(format!("{} {change:?}", self.now()));
            match change {
                Change::Restart(restart) => return Some(*restart),
                change => self.change(change).await,
            }
        }
        self.until(HOUR).await;
        self.drain().await;
        None
    }

    async fn change(&mut self, change: &Change) {
        match change {
            Change::Mood(target, mood) => self.storm.moods.lock().unwrap()[*target] = *mood,
            Change::Listen(target, listens) => {
                self.storm.listening[*target] = *listens;
                let sink = &self.sinks[*target];
                if *listens { sink.listen() } else { sink.refuse() }
            }
            Change::Break(target) => self.sinks[*target].close_all(),
            Change::Reload(settings) => self.reload((**settings).clone()),
            Change::HoldAll(hold) => {
                let done = self.relay.queue.hold_all(hold.then_some("storm")).await;
                self.storm.held = done.is_ok().then_some(*hold);
            }
            Change::Disk { kind, after, times, short } => {
                let error = if short.to_owned() { Fault::Short } else { FAULT };
                self.disk.fail(*kind, *after, *times, error);
                self.disk_fails = true;
            }
            Change::HealDisk => {
                self.disk.heal();
                self.disk_fails = false;
            }
            Change::Restart(_) => unreachable!("the end of a life"),
        }
    }

    fn reload(&mut self, settings: Settings) {
        self.storm.settings = settings;
        write(self.storm);
        let config = sim::read(self.storm.directory.path());
        let current = self.relay.generation();
        let policies = generation::load_policies(&self.relay.policy_host, &config).unwrap();
        let known = HashMap::new();
        let names = Resolved::default();
        let making = Making::of(&self.relay, Arc::default(), &names);
        let next = generation::build(config, policies, Some(&current), &known, making);
        self.relay.replace(next);
        let mut book = self.storm.record.lock();
        book.tally.reloads += 1;
        drop(book);
        self.closing.clear();
        self.keep_house();
    }

    /// As production does: housekeeping for new upstreams, and those that have gone are retired.
    fn keep_house(&mut self) {
        let generation = self.relay.generation();
        let stays =
            |one: &Arc<Upstream>| generation.upstreams.values().any(|o| Arc::ptr_eq(o, one));
        self.houses.retain(|(upstream, task)| {
            if !stays(upstream) {
                task.abort();
                upstream.retire();
            }
            stays(upstream)
        });
        for upstream in generation.upstreams.values() {
            if !self.houses.iter().any(|(other, _)| Arc::ptr_eq(other, upstream)) {
                let task = tokio::spawn(Arc::clone(upstream).housekeeping()).abort_handle();
                self.houses.push((Arc::clone(upstream), task));
            }
        }
    }

    fn now(&self) -> u64 {
        self.start + u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    /// Waits until `time`, and looks at what must always hold meanwhile.
    async fn until(&mut self, time: u64) {
        while self.now() < time {
            let now = self.now();
            let windows = self.windows();
            let closes = windows.iter().flatten().map(|(_, closes)| *closes);
            let stops = closes.flat_map(|closes| [closes.saturating_sub(1), closes + 1000]);
            let look = (now / LOOK + 1) * LOOK;
            let next = stops.chain([look, time]).filter(|stop| *stop > now).min().unwrap();
            let at = self.begun + Duration::from_millis(next - self.start);
            tokio::time::sleep_until(at).await;
            self.look();
        }
    }

    fn look(&mut self) {
        assert_eq!(PANICS.get(), 0, "a task panicked");
        let snapshot = self.relay.queue.snapshot();
        check_accounts(&snapshot);
        if !self.disk_fails {
            let figures = &snapshot.total;
            let counts = [figures.ready, figures.blocked, figures.later, figures.held];
            let others = [figures.in_flight, figures.in_doubt];
            let messages: u64 = counts.iter().chain(&others).map(|count| count.messages).sum();
            // What was to be removed while the disk failed is removed within a second.
            let stored = self.relay.queue.spool().usage().messages;
            assert!(stored >= messages, "{stored} messages in the spool, {messages} known");
        }
        self.storm.record.lock().tally.checks += 1;
        self.look_at_windows(&snapshot);
    }

    /// The windows in force: of waves that have begun as they were then, and as they were extended.
    fn windows(&self) -> [Option<Window>; 3] {
        let now = self.relay.waves.now();
        INSTANCES.map(|name| {
            let record = self.relay.waves.life(&format!("w-{name}"), now)?.record;
            let ms = |time: Timestamp| time.0 - sim::START.0;
            Some((ms(record.opens), ms(record.closes)))
        })
    }

    /// Release begins within a second of the end of a window.
    fn look_at_windows(&mut self, snapshot: &Snapshot) {
        let now = self.now();
        let windows = self.windows();
        let status = self.relay.waves.status();
        let waits = snapshot
            .lines
            .iter()
            .any(|(wait, count)| *count > 0 && matches!(wait, wavegate::scheduler::Wait::Phase(_)));
        for (index, window) in windows.iter().enumerate() {
            let Some((opens, closes)) = *window else { continue };
            // The line of a window does not say whose it is; where only one is open it does.
            let alone = windows.iter().enumerate().all(|(other, window)| {
                other == index || window.is_none_or(|(o, c)| now + 120_000 < o || now > c + 2000)
            });
            // One that is blocked, or cannot be written down, is not released.
            let may_go = status[index].barrier && !self.disk_fails;
            if now == closes - 1 && opens < now && waits && alone && may_go {
                self.closing.push((index, closes));
            }
            let mut book = self.storm.record.lock();
            if now == closes + 1000 && !self.disk_fails && self.closing.contains(&(index, closes)) {
                book.tally.windows_looked_at += 1;
                let name = INSTANCES[index];
                let told = book.released.iter().any(|(time, instance)| {
                    instance == name && (closes..=closes + 1000).contains(time)
                });
                assert!(told, "{name}: nothing was released within 1 s after {closes}");
            }
        }
    }

    /// The storm is over: everything must arrive.
    async fn drain(&mut self) {
        *self.storm.moods.lock().unwrap() = Default::default();
        for (number, sink) in self.sinks.iter().enumerate() {
            if !std::mem::replace(&mut self.storm.listening[number], true) {
                sink.listen();
            }
        }
        self.disk.heal();
        self.disk_fails = false;
        self.relay.queue.hold_all(None).await.unwrap();
        self.storm.held = Some(false);
        self.reload(Settings::calm());
        let end = self.now() + DRAIN;
        loop {
            self.until(self.now() + 1000).await;
            let open = self.storm.record.lock().letters.iter().filter(|l| l.told.is_none()).count();
            let stored = self.relay.queue.spool().usage().messages;
            if open == 0 && stored == 0 {
                break;
            }
            let snapshot = self.relay.queue.snapshot();
            let (figures, lines) = (snapshot.total, snapshot.lines);
            assert!(self.now() < end, "{open} unsent, {stored} stored: {figures:?}, {lines:?}");
        }
        self.relay.queue.quiet().await;
        for status in self.relay.waves.status() {
            let left = status.in_flight.uncommitted + status.in_flight.in_doubt;
            assert_eq!(left, 0, "{}: in flight although nothing is", status.name);
        }
        for upstream in self.relay.generation().upstreams.values() {
            let status = upstream.status();
            assert_eq!((status.in_use, status.waiting), (0, 0), "{}", status.name);
        }
        assert_eq!(self.relay.limits.stats().waiting, 0);
    }

    /// Ends it as told; the disk that the next life finds.
    async fn end(&mut self, restart: Option<Restart>) -> MemoryDisk {
        self.look();
        self.storm.died_by = restart;
        {
            let mut book = self.storm.record.lock();
            book.tally.restarts += u64::from(restart == Some(Restart::Clean));
            book.tally.kills += u64::from(restart == Some(Restart::Kill));
            book.tally.powers_lost += u64::from(restart == Some(Restart::PowerLoss));
        }
        match restart {
            Some(Restart::Kill) => self.storm.disk.copy(),
            Some(Restart::PowerLoss) => {
                self.storm.boot += 1;
                self.storm.disk.crash(self.storm.seed ^ self.now())
            }
            Some(Restart::Clean) | None => {
                self.disk.heal();
                self.relay.stop();
                stopping::wake_all();
                // As long as `limits.shutdown_timeout`.
                let quiet = self.relay.queue.quiet();
                let _ = tokio::time::timeout(Duration::from_secs(30), quiet).await;
                self.relay.queue.close();
                self.storm.disk.copy()
            }
        }
    }
}

/// What a broken disk says.
const FAULT: Fault = Fault::Error(std::io::ErrorKind::Other);

/// accepted = delivered + bounced + expired + removed + in flight + spooled, for each instance.
fn check_accounts(snapshot: &Snapshot) {
    use wavegate::event::End;
    for (name, account, figures) in &snapshot.instances {
        let ended: u64 = End::ALL.iter().map(|end| account.ended(*end)).sum();
        let counts = [
            figures.ready,
            figures.blocked,
            figures.later,
            figures.held,
            figures.in_flight,
            figures.in_doubt,
        ];
        let left: u64 = counts.iter().map(|count| count.recipients).sum();
        assert_eq!(account.accepted(), ended + left, "{name:?}: {account:?} {figures:?}");
    }
}

fn write(storm: &Storm) {
    let (relay, plan) = storm.settings.text();
    std::fs::write(storm.directory.path().join("relay.toml"), relay).unwrap();
    std::fs::write(storm.directory.path().join("waves.toml"), plan).unwrap();
}

fn sink(storm: &Storm, network: &MemoryNetwork, number: usize, begun: Instant) -> Sink {
    let sink = Sink::start(network, PORTS[number], begun);
    if !storm.listening[number] {
        sink.refuse();
    }
    // Half of the seeds have an upstream that waits with the body until it is asked for it.
    if (storm.seed + number as u64).is_multiple_of(2) {
        sink.without_chunking();
    }
    let seed = (storm.seed * 1000 + storm.lives) * 10 + number as u64;
    let (dice, recipients) = (Dice::new(seed), Dice::new(seed ^ 0xffff));
    let moods = Arc::clone(&storm.moods);
    sink.script(move |point, _| act(point, moods.lock().unwrap()[number], &dice));
    sink.judge(
        move |recipient| match recipient {
            _ if senders::is_refused(recipient) => Some(550),
            _ if recipient.starts_with("busy") => recipients.chance(500).then_some(451),
            _ => None,
        },
        |message| message.to.iter().any(|to| senders::is_spam(to)).then_some(554),
    );
    sink
}

fn act(point: Point, mood: Mood, dice: &Dice) -> Act {
    let mut act = Act::GO;
    if point == Point::End && dice.chance(mood.never) {
        return Act::after(HOUR);
    }
    if dice.chance(mood.late) {
        act.after = Duration::from_millis(dice.below(mood.delay.max(1)));
    }
    if dice.chance(mood.close) {
        act.what = What::Close;
    } else if dice.chance(mood.defer) {
        act.what = What::Reply(*dice.of(&[&451, &421]));
    } else if point != Point::Greeting && dice.chance(mood.refuse) {
        act.what = What::Reply(554);
    }
    act
}
