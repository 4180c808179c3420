//! Windows, in a simulated world: nothing of an instance leaves between `opens` and `closes`,
//! nothing is lost, nothing arrives twice, and nobody else notices.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::sim;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::sim::{Act, Point, Sender, Setup, Sim, Sink, at, plan, settle};
use wavegate::world::Entropy;

const INSTANCES: [&str; 3] = ["acme", "globex", "initech"];

/// What the senders were told.
#[derive(Default)]
struct Told {
    /// Replies other than 250.
    refused: Vec<String>,
    /// What the spool took, with its time.
    queued: Vec<(u64, String)>,
    taken: Vec<String>,
}

/// One run: three instances send for a while, and every message is sent until it is taken.
struct Run {
    sim: Arc<Sim>,
    legacy: Sink,
    cloud: Vec<Sink>,
    told: Arc<Mutex<Told>>,
    sent: usize,
}

/// Sessions of one instance that wait for the next message.
type Idle = Arc<Mutex<Vec<Sender>>>;

async fn until_taken(
    sim: Arc<Sim>,
    idle: Idle,
    number: usize,
    name: String,
    told: Arc<Mutex<Told>>,
    pause: Duration,
) {
    let from = format!("news@{}.example", INSTANCES[number]);
    loop {
        let kept = idle.lock().unwrap().pop();
        let mut sender = match kept {
            Some(sender) => sender,
            None => sim.sender(&format!("10.0.{}.1", number + 1)).await,
        };
        let reply = sender.mail(&from, &name).await;
        idle.lock().unwrap().push(sender);
        {
            let mut told = told.lock().unwrap();
            if reply.starts_with("250") {
                if reply.contains("queued as") {
                    told.queued.push((sim.elapsed(), name.clone()));
                }
                told.taken.push(name);
                return;
            }
            // All else is spooled.
            assert!(reply.contains("may have taken it"), "{name}: {reply}");
            told.refused.push(reply);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Runs to the end. `faulty` lets upstreams be late and break off, all by the seed.
async fn run(setup: &Setup, seconds: usize, pause: Duration, faulty: bool) -> Run {
    let sim = Arc::new(setup.build());
    let legacy = sim.sink(2601);
    let cloud = vec![sim.sink(2602), sim.sink(2603)];
    if faulty {
        for (number, sink) in [&legacy, &cloud[0], &cloud[1]].into_iter().enumerate() {
            if number != 1 {
                sink.without_chunking();
            }
            let entropy = Entropy::new(setup.seed * 10 + number as u64);
            sink.script(move |_, _| fault(&entropy));
        }
    }
    sim.keep_house();
    settle().await;
    let told = Arc::new(Mutex::new(Told::default()));
    let idle: Vec<Idle> = INSTANCES.iter().map(|_| Idle::default()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for second in 0..seconds {
        sim.until(second as u64 * 1000 + 10).await;
        for (number, instance) in INSTANCES.iter().enumerate() {
            let (sim, idle) = (Arc::clone(&sim), Arc::clone(&idle[number]));
            let name = format!("{instance}/{second}");
            tasks.spawn(until_taken(sim, idle, number, name, Arc::clone(&told), pause));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    while sim.spooled() > 0 {
        assert!(sim.elapsed() < at(240, 0), "what is spooled does not leave");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Run { sim, legacy, cloud, told, sent: seconds * INSTANCES.len() }
}

/// One point in six is up to 3 s late, one in a hundred breaks off, one in a hundred is a 4xx.
fn fault(entropy: &Entropy) -> Act {
    let drawn = entropy.next();
    let mut act = match drawn % 100 {
        0 => Act::CLOSE,
        1 => Act::reply(451),
        _ => Act::GO,
    };
    if drawn.is_multiple_of(6) {
        act.after = Duration::from_millis((drawn >> 32) % 3000);
    }
    act
}

impl Run {
    /// Checks what must hold in every run, for a window of `acme`.
    fn check(&self, opens: u64, closes: u64) {
        let told = self.told.lock().unwrap();
        assert_eq!(told.taken.len(), self.sent, "every message was taken in the end");
        let mut copies: BTreeMap<String, usize> = BTreeMap::new();
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let cloud = || self.cloud.iter().flat_map(Sink::arrived);
        for (legacy, one) in
            self.legacy.arrived().into_iter().map(|a| (true, a)).chain(cloud().map(|a| (false, a)))
        {
            if one.name().starts_with("acme/") {
                assert!(one.at < opens || one.at >= closes, "{} leaked at {}", one.name(), one.at);
                assert_eq!(legacy, one.at < opens, "{} at {}", one.name(), one.at);
            } else {
                assert!(legacy, "{} is in no wave", one.name());
            }
            ids.entry(one.name().to_owned()).or_default().insert(one.id().to_owned());
            if one.code == 250 || one.code == 0 {
                *copies.entry(one.name().to_owned()).or_default() += 1;
            }
        }
        let mut in_doubt = self.sim.log.lines();
        in_doubt.retain(|line| line.contains("InDoubt {"));
        for name in &told.taken {
            let doubt = |id: &String| in_doubt.iter().filter(|line| line.contains(id)).count();
            let doubts: usize = ids.get(name).into_iter().flatten().map(doubt).sum();
            let copies = copies.get(name).copied().unwrap_or(0);
            assert!(copies >= 1, "{name} is lost");
            assert!(copies <= 1 + doubts, "{name} arrived {copies} times, in doubt {doubts}");
        }
        assert_eq!(self.sim.in_flight("acme"), (0, 0, false));
        assert_eq!(self.sim.log.count(&["ProceedAgainstPlan"]), 0);
        assert_eq!(self.sim.log.count(&["PolicyFailed"]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn two_hours_around_a_window() {
    let setup = Setup::default();
    let run = run(&setup, 7200, Duration::from_secs(300), false).await;
    let (freezing, opens, closes) = (at(29, 0), at(30, 0), at(75, 0));
    run.check(opens, closes);
    let told = run.told.lock().unwrap();
    // Only the window made anybody wait, from its lead on, and nobody had to send again.
    assert_eq!(told.refused, Vec::<String>::new());
    let window = freezing..closes;
    let (held, behind): (Vec<_>, Vec<_>) =
        told.queued.iter().partition(|(time, _)| window.contains(time));
    assert!(told.queued.iter().all(|(_, name)| name.starts_with("acme/")));
    assert_eq!(held.len(), 46 * 60, "45 minutes and the lead");
    // New mail may meet the line of those that are let out.
    assert!(behind.iter().all(|(time, _)| (closes..closes + 5000).contains(time)), "{behind:?}");
    // 29 minutes of acme and two hours of the others; the rest of acme.
    assert_eq!(run.legacy.arrived().len(), 29 * 60 + 2 * 7200);
    let mut cloud: Vec<u64> =
        run.cloud.iter().flat_map(|sink| sink.arrived()).map(|one| one.at).collect();
    assert_eq!(cloud.len(), 7200 - 29 * 60);
    cloud.sort_unstable();
    assert!(cloud[0] - closes <= 1000, "the release began {} ms late", cloud[0] - closes);
    assert!(cloud[46 * 60 - 1] - closes <= 60_000, "no rate was set");
    assert_eq!(run.sim.log.count(&["InDoubt {"]), 0);
    assert_eq!(run.sim.log.count(&["Released { instance: \"acme\", messages: 2760 }"]), 1);
}

/// A run with faults in a runtime of its own, so that nothing is left of an earlier one.
fn faulty_run(seed: u64) -> Run {
    let setup = Setup {
        seed,
        limits: "command_timeout = '1h'",
        plan: plan("10s", "05:03:00", "05:07:00"),
        ..Setup::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let run = run(&setup, 600, Duration::from_secs(20), true).await;
        run.check(at(3, 0), at(7, 0));
        run
    })
}

#[test]
fn faults_and_delays_neither_leak_nor_lose() {
    for seed in 1..=10 {
        let run = faulty_run(seed);
        assert!(run.sim.log.count(&["AttemptRetried"]) > 0, "seed {seed} broke nothing");
        assert!(run.sim.log.count(&["InDoubt"]) > 0, "seed {seed} left nothing in doubt");
    }
}

#[test]
fn the_same_seed_makes_the_same_history() {
    let (first, again) = (faulty_run(11), faulty_run(11));
    let (lines, other) = (first.sim.log.lines(), again.sim.log.lines());
    let differs = lines.iter().zip(&other).position(|(one, two)| one != two);
    assert_eq!(
        (lines.len(), differs),
        (other.len(), None),
        "{:?}",
        differs.map(|at| (&lines[at], &other[at]))
    );
    assert_eq!(first.legacy.arrived(), again.legacy.arrived());
    assert_eq!(first.cloud[0].arrived(), again.cloud[0].arrived());
    assert_ne!(lines, faulty_run(12).sim.log.lines());
}

/// A relay whose upstream before the window answers DATA this late, and a session of `acme`.
async fn late(ms: u64) -> (Sim, Sink, Sender) {
    let setup = Setup {
        legacy: "reply_timeout = '5min'",
        limits: "command_timeout = '1h'\ndata_timeout = '1h'\ndirect_deadline = '10min'",
        ..Setup::default()
    };
    let sim = setup.build();
    let legacy = sim.sink(2601);
    legacy.without_chunking();
    legacy.at(Point::Data, Act::after(ms));
    let sender = sim.sender("10.0.1.1").await;
    (sim, legacy, sender)
}

/// Sends one message in the background.
fn sending(mut sender: Sender) -> tokio::task::JoinHandle<String> {
    tokio::spawn(async move { sender.mail("a@acme.example", "one").await })
}

/// One second before freezing begins.
const BEGIN: u64 = at(28, 59);
const OPENS: u64 = at(30, 0);
const CLOSES: u64 = at(75, 0);

/// The spool has it.
fn is_queued(reply: &str) -> bool {
    reply.starts_with("250 2.0.0 wavegate: queued as ")
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_late_does_not_end_its_data() {
    let (sim, legacy, sender) = late(61_100).await;
    let cloud = sim.sink(2602);
    sim.until(BEGIN).await;
    let reply = sending(sender);
    settle().await;
    assert_eq!(sim.in_flight("acme"), (1, 0, false), "it began in time");
    sim.until(OPENS + 50).await;
    assert_eq!(sim.in_flight("acme"), (1, 0, false), "no barrier while it is in flight");
    assert!(is_queued(&reply.await.unwrap()));
    settle().await;
    assert_eq!(sim.in_flight("acme"), (0, 0, true));
    sim.until(CLOSES - 1).await;
    assert_eq!(sim.spooled(), 1);
    sim.until(CLOSES + 1000).await;
    assert_eq!((legacy.arrived(), cloud.names(), sim.spooled()), (vec![], vec!["one".into()], 0));
    assert_eq!(sim.log.count(&["Settled", "outcome: Spooled"]), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_began_in_time_ends_its_data_just_before_the_window() {
    let (sim, legacy, sender) = late(60_900).await;
    sim.until(BEGIN).await;
    assert!(sending(sender).await.unwrap().starts_with("250"));
    let at = legacy.arrived()[0].at;
    assert!((OPENS - 200..OPENS).contains(&at), "{at}");
    settle().await;
    assert_eq!(sim.in_flight("acme"), (0, 0, true), "nothing more can begin");
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_in_the_lead() {
    let (sim, legacy, sender) = late(0).await;
    sim.until(at(29, 0)).await;
    let reply = sending(sender).await.unwrap();
    assert!(is_queued(&reply), "{reply}");
    assert_eq!((legacy.opened(), sim.spooled()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_brings_the_window_forward_stops_what_began() {
    let (sim, legacy, sender) = late(20_000).await;
    sim.until(at(10, 0)).await;
    let reply = sending(sender);
    settle().await;
    let setup = Setup {
        legacy: "reply_timeout = '5min'",
        plan: plan("60s", "05:10:10", "06:15:00"),
        ..Setup::default()
    };
    sim.reload(&setup);
    sim.until(at(10, 10)).await;
    assert_eq!(sim.in_flight("acme"), (1, 0, false));
    assert!(is_queued(&reply.await.unwrap()));
    settle().await;
    assert_eq!(sim.in_flight("acme"), (0, 0, true));
    assert_eq!((legacy.arrived(), sim.spooled()), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_from_before_a_short_window_does_not_end_after_it() {
    let (sim, legacy, sender) = late(100_000).await;
    let cloud = sim.sink(2602);
    sim.reload(&Setup {
        legacy: "reply_timeout = '5min'",
        limits: "direct_deadline = '10min'",
        plan: plan("60s", "05:30:00", "05:30:20"),
        ..Setup::default()
    });
    sim.until(BEGIN).await;
    let reply = sending(sender).await.unwrap();
    assert!(sim.elapsed() > at(30, 20));
    assert!(is_queued(&reply), "{reply}");
    settle().await;
    assert!(sim.in_flight("acme").2, "the barrier came after its end, so that it is extended");
    sim.until(at(30, 20) + 301_000).await;
    assert_eq!(sim.log.count(&["wave: \"prod-01\"", "Extended"]), 1);
    assert_eq!(legacy.arrived(), [], "after the window nothing goes to where it went before");
    let mut sender = sim.sender("10.0.1.1").await;
    assert!(sender.mail("a@acme.example", "two").await.starts_with("250"));
    assert_eq!(cloud.names(), ["one", "two"]);
}

/// A body of 1 MB to an upstream that reads it so slowly that the window opens meanwhile.
async fn slow_reader(chunking: bool) {
    // In memory and in a spill file.
    for limits in [
        "command_timeout = '1h'\ndirect_deadline = '10min'\nmessage_memory = '4MiB'",
        "command_timeout = '1h'\ndirect_deadline = '10min'",
    ] {
        let sim = Setup { limits, ..Setup::default() }.build();
        let legacy = sim.sink(2601);
        if !chunking {
            legacy.without_chunking();
        }
        let body = "x".repeat(998) + "\r\n";
        let body = format!("Subject: large\r\n\r\n{}", body.repeat(1000));
        let mut sender = sim.sender("10.0.1.1").await;
        assert!(sender.mail("a@acme.example", "first").await.starts_with("250"));
        sim.until(BEGIN).await;
        legacy.slow(10_000, Duration::from_secs(1));
        let send = async { sender.send("a@acme.example", "u@dest.example", body.as_bytes()).await };
        let (reply, ()) = tokio::join!(send, async {
            sim.until(OPENS).await;
            assert_eq!(sim.in_flight("acme"), (1, 0, false));
        });
        assert!(is_queued(&reply), "{reply}");
        assert!(sim.in_flight("acme").2);
        let cloud = sim.sink(2602);
        sim.until(CLOSES - 1).await;
        assert_eq!((legacy.names(), cloud.opened()), (vec!["first".to_owned()], 0));
        sim.until(CLOSES + 1000).await;
        let arrived = cloud.arrived();
        assert!(arrived.len() == 1 && arrived[0].body.ends_with(&body), "whole, after the window");
        let torn = legacy.torn();
        assert!(torn.len() == 1 && torn[0] < body.len(), "{torn:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_half_written_does_not_leave_by_data() {
    slow_reader(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_half_written_does_not_leave_by_bdat() {
    slow_reader(true).await;
}

#[tokio::test(start_paused = true)]
async fn the_barrier_waits_for_what_is_in_doubt() {
    let (sim, legacy, sender) = late(0).await;
    legacy.at(Point::End, Act::after(90_000));
    sim.until(at(28, 50)).await;
    let reply = sending(sender);
    settle().await;
    assert_eq!(sim.in_flight("acme"), (0, 1, false));
    sim.until(OPENS + 1).await;
    assert_eq!(sim.in_flight("acme"), (0, 1, false), "frozen, and one may still be taken");
    assert!(reply.await.unwrap().starts_with("250"));
    settle().await;
    assert_eq!(sim.in_flight("acme"), (0, 0, true));
    assert_eq!(legacy.names(), ["one"]);
}

/// A freeze policy that always says "proceed" in place of the standard one.
fn careless() -> String {
    sim::THREE_POLICIES.replace("builtin:freeze", &sim::hostile().display().to_string()).replacen(
        "[[policy]]",
        "[[policy]]\nsettings = { do = [\"abstain\"] }\n",
        1,
    )
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_says_proceed_in_the_window_is_not_obeyed_and_counted() {
    let setup = Setup { policies: careless(), ..Setup::default() };
    let sim = setup.build();
    let legacy = sim.sink(2601);
    let cloud = sim.sink(2602);
    sim.until(at(31, 0)).await;
    let mut acme = sim.sender("10.0.1.1").await;
    for _ in 0..3 {
        assert!(is_queued(&acme.mail("a@acme.example", "held").await));
    }
    assert_eq!(sim.log.count(&["ProceedAgainstPlan { instance: \"acme\" }"]), 3);
    let mut globex = sim.sender("10.0.2.1").await;
    assert!(globex.mail("a@globex.example", "other").await.starts_with("250"));
    assert_eq!(sim.log.count(&["ProceedAgainstPlan"]), 3);
    assert_eq!((legacy.names(), cloud.opened()), (vec!["other".to_owned()], 0));
}

async fn unmatched(rule: &'static str) -> (Sim, Sink, Sender) {
    let sim = Setup { relay: rule, ..Setup::default() }.build();
    let legacy = sim.sink(2601);
    let sender = sim.sender("10.9.9.9").await;
    (sim, legacy, sender)
}

#[tokio::test(start_paused = true)]
async fn mail_of_no_instance_does_what_the_configuration_says() {
    let (_sim, legacy, mut sender) = unmatched("unmatched = 'before'").await;
    assert!(sender.mail("a@nobody.example", "one").await.starts_with("250"));
    assert!(sender.mail("", "bounce").await.starts_with("250"));
    assert_eq!(legacy.names(), ["one", "bounce"]);
    let (sim, legacy, mut sender) = unmatched("unmatched = 'hold'").await;
    assert!(is_queued(&sender.mail("a@nobody.example", "one").await));
    sim.until(at(100, 0)).await;
    assert_eq!((legacy.opened(), sim.spooled()), (0, 1), "no window is about it");
    sim.reload(&Setup { relay: "unmatched = 'before'", ..Setup::default() });
    settle().await;
    assert_eq!((legacy.names(), sim.spooled()), (vec!["one".to_owned()], 0));
    let (_sim, legacy, mut sender) = unmatched("unmatched = 'refuse'").await;
    let reply = sender.mail("a@nobody.example", "one").await;
    assert_eq!(reply, "550 5.7.1 wavegate: this relay does not know the instance of this mail");
    assert_eq!(legacy.opened(), 0);
}

/// The answer of the old configuration comes when the new one is in force already.
#[tokio::test(start_paused = true)]
async fn what_was_held_by_a_configuration_that_goes_at_that_moment_is_let_go() {
    let sim = Arc::new(Setup { relay: "unmatched = 'hold'", ..Setup::default() }.build());
    let legacy = sim.sink(2601);
    let mut sender = sim.sender("10.9.9.9").await;
    let reloaded = Arc::clone(&sim);
    sim.log.at("Received {", move || {
        reloaded.reload(&Setup { relay: "unmatched = 'before'", ..Setup::default() });
    });
    assert!(is_queued(&sender.mail("a@nobody.example", "one").await));
    settle().await;
    assert_eq!((legacy.names(), sim.spooled()), (vec!["one".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn bounces_and_strangers_of_a_frozen_network_are_held() {
    let sim = Setup::default().build();
    let legacy = sim.sink(2601);
    let cloud = sim.sink(2602);
    let mut acme = sim.sender("10.0.1.1").await;
    assert!(acme.mail("", "bounce before").await.starts_with("250"));
    assert!(acme.mail("a@nobody.example", "stranger before").await.starts_with("250"));
    for time in [at(29, 0), at(31, 0), at(74, 59)] {
        sim.until(time).await;
        let mut acme = sim.sender("10.0.1.1").await;
        let mut globex = sim.sender("10.0.2.1").await;
        assert!(is_queued(&acme.mail("", "bounce held").await));
        assert!(is_queued(&acme.mail("a@nobody.example", "stranger held").await));
        assert!(globex.mail("", &format!("globex {time}")).await.starts_with("250"));
        // The sender alone does not make it acme's: the network does not match.
        assert!(
            globex.mail("a@acme.example", &format!("not acme {time}")).await.starts_with("250")
        );
    }
    drop(acme);
    assert_eq!((sim.spooled(), cloud.opened()), (6, 0));
    sim.until(CLOSES + 1000).await;
    assert_eq!(sim.spooled(), 0, "the window is over for strangers too");
    let mut acme = sim.sender("10.0.1.1").await;
    assert!(acme.mail("", "bounce after").await.starts_with("250"));
    assert!(acme.mail("a@nobody.example", "stranger after").await.starts_with("250"));
    assert_eq!(cloud.names(), ["bounce held", "bounce held", "bounce held", "bounce after"]);
    let names = legacy.names();
    assert_eq!(names.len(), 2 + 6 + 3 + 1, "{names:?}");
    let strangers = legacy.arrived().into_iter().filter(|one| one.name() == "stranger held");
    assert!(strangers.map(|one| one.at).all(|at| at >= CLOSES), "they may be acme's");
    assert!(names.contains(&"stranger after".to_owned()));
}
