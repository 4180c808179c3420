//! The gate alone, against the bare calls of its policies: what does everything around the
//! sandbox cost? And what does the decision log cost that has every message? One live call of each policy
//! against a bare one. Then the gate with a shadow of each policy, asked about everything, against the
//! gate without: processor time of the thread that carries the mail. All in one run, in turn, with
//! the same message.
//!
//! `cargo run --release -p wavegate --example gate-bench`
#![allow(clippy::print_stdout, reason = "its purpose")]

use std::{
    collections::HashMap,
    error::Error,
    hint::black_box,
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;
use wavegate::{
    answer::Verdict,
    config::{self, DecisionLogConfig, Mode, PolicyConfig, Told},
    decision::{InstanceView, Transaction, record::Ask},
    decision_log::DecisionLog,
    event::Silent,
    gate::{self, Subject},
    generation::{self, Surroundings},
    message::Source,
    names::Resolved,
    plan::Timestamp,
    policy::{Call, Hook, HostOptions, Policy, PolicyHost, PolicySet, Tap},
    queue::Queue,
    relay::{Relay, with_policies},
    world::{World, cpu},
};

const ROUNDS: usize = 400;
const CALLS: usize = 500;
/// Rounds that only warm up.
const WARM_UP: usize = 40;
/// What is to be reached.
const RATIO: f64 = 1.5;
const TAIL: f64 = 4.0;
/// The same of one live call, by the least and by the median.
const CALL: f64 = 1.25;

/// The configuration that is shipped.
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/relay.toml");
/// An hour before the window.
const NOW: Timestamp = Timestamp(1_768_885_200_000);

/// What shadows may add, in percent.
const SHADOWS: f64 = 3.0;
/// Calls that are timed together with shadows: their questions fit the lane, so none is dropped, which
/// would be cheaper than to copy it.
const TURN: u32 = 100;

/// A relay with the configuration that is shipped, and a shadow of each policy.
fn relay(host: &Arc<PolicyHost>, has_shadows: bool) -> Result<Arc<Relay>, Box<dyn Error>> {
    let mut config = config::read(Path::new(CONFIG))?;
    if has_shadows {
        let shadow = |live: &PolicyConfig| PolicyConfig {
            name: format!("{}-next", live.name),
            mode: Mode::Shadow { percent: 100, replaces: Some(live.name.clone()) },
            ..live.clone()
        };
        let shadows: Vec<PolicyConfig> = config.policies.iter().map(shadow).collect();
        config.policies.extend(shadows);
    }
    // On a machine that does other work too a call may stand for long.
    config.policies.iter_mut().for_each(|policy| policy.timeout = Duration::from_secs(10));
    let world = World::real();
    let around = Surroundings {
        queue: Queue::in_memory(Arc::clone(&world.clock)),
        world,
        host: Arc::clone(host),
        observer: Arc::new(Silent),
        spill: &config.relay.state_dir.clone(),
        known: &HashMap::new(),
        tls: Arc::default(),
        names: Resolved::default(),
    };
    Ok(generation::assemble(config, around)?)
}

/// The decision log, while it is wanted.
struct Switch {
    log: Arc<DecisionLog>,
    on: AtomicBool,
}

impl Tap for Switch {
    fn begin(&self, policy: &Policy, ask: Ask<'_>) -> Option<Instant> {
        if self.on.load(Relaxed) { self.log.begin(policy, ask) } else { None }
    }

    fn end(&self, begun: Instant, call: Call<'_>) {
        self.log.end(begun, call);
    }
}

/// A decision log of every message.
fn decision_log(folder: &Path) -> Result<Arc<DecisionLog>, Box<dyn Error>> {
    let config = DecisionLogConfig {
        file: folder.join("decisions.jsonl"),
        sample: 1,
        max_size: 64_000_000,
        keep: 1,
        local_parts: Told::Hashed,
        headers: Told::Hashed,
    };
    Ok(DecisionLog::start(&config, folder, &|| 1)?)
}

/// Times one call.
fn time(calls: &mut Vec<Duration>, call: impl FnOnce()) {
    let begun = Instant::now();
    call();
    calls.push(begun.elapsed());
}

fn main() -> Result<(), Box<dyn Error>> {
    let host = PolicyHost::new(None, HostOptions::production(1))?;
    let relay = relay(&host, false)?;
    let folder = tempfile::tempdir()?;
    let log = decision_log(folder.path())?;
    let switch = Arc::new(Switch { log: Arc::clone(&log), on: AtomicBool::new(false) });
    relay.policy_host.listen(Arc::clone(&switch) as _);
    let generation = relay.generation();
    let plan = relay.waves.current();
    let set = &generation.policies;
    let recipients = ["someone@dest.example"];
    let source = Source {
        helo: "mta.mkt.acme.example".to_owned(),
        ..Source::new(([127, 0, 0, 1], 4711).into(), "listener-1")
    };
    let subject = Subject {
        id: "1KFCWC94AJ4G4Q61",
        source: &source,
        sender: "bounce-4711@mkt.acme.example",
        sender_domain: "mkt.acme.example",
        recipients: &recipients,
        size: 10_000,
        on_behalf: None,
        received: None,
        attempts: 0,
        last_reply: None,
        headers: &[],
    };
    let record = Transaction {
        id: subject.id,
        now: NOW,
        received: NOW,
        client: subject.source.client,
        sender: subject.sender,
        recipients: subject.recipients,
        size: subject.size,
        attempts: 0,
        instance: Some(InstanceView {
            name: &plan.plan.instances[0].name,
            product: &plan.plan.instances[0].product,
            environment: &plan.plan.instances[0].environment,
            phase: plan.instance(0).phase(NOW),
            window: plan.plan.wave(0).map(|wave| &wave.window),
            before: "legacy",
            after: "cloud",
        }),
        bucket: 4321,
        attributes: &[],
        upstreams: &[],
    };
    for policy in 0..set.policies().len() {
        compare_calls(&relay, set, policy, &record);
    }
    let (mut bare, mut asked, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            bare.clear();
            asked.clear();
            told.clear();
        }
        for _ in 0..CALLS {
            time(&mut bare, || {
                for policy in 0..set.policies().len() {
                    let answer = with_policies(&relay.policy_host, |policies| {
                        policies.bare_call(set, policy, black_box(&record), "legacy")
                    });
                    assert!(answer.is_ok(), "{answer:?}");
                }
            });
        }
        for _ in 0..CALLS {
            time(&mut asked, || {
                let asked = pin!(gate::ask(&relay, &generation, &plan, black_box(&subject), NOW));
                let context = &mut Context::from_waker(Waker::noop());
                // One that is to be waited for took more than two milliseconds.
                let Poll::Ready(answer) = asked.poll(context) else { return };
                assert!(matches!(answer.verdict, Verdict::Go(_)), "{:?}", answer.verdict);
            });
        }
        switch.on.store(true, Relaxed);
        for _ in 0..CALLS {
            time(&mut told, || {
                let answer =
                    gate::explain(&relay, &generation, &plan, black_box(&subject), NOW, None);
                assert!(matches!(answer.verdict, Verdict::Go(_)), "{:?}", answer.verdict);
            });
        }
        switch.on.store(false, Relaxed);
        // What is written meanwhile is the other thread's time.
        while log.waiting() > 0 {
            std::thread::yield_now();
        }
    }
    report(&mut bare, &mut asked, &mut told);
    log.close();
    let (written, lost) = log.counts();
    println!("decision log: {written} calls written, {lost} left out");
    let shadowed = self::relay(&host, true)?;
    shadows(&relay, &shadowed, &subject);
    Ok(())
}

/// One live call of a policy, as the gate makes it, against a bare one.
fn compare_calls(relay: &Relay, set: &Arc<PolicySet>, policy: usize, record: &Transaction<'_>) {
    let (mut bare, mut live) = (Vec::new(), Vec::new());
    let entry = &set.policies()[policy];
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            bare.clear();
            live.clear();
        }
        for _ in 0..CALLS {
            time(&mut bare, || {
                let answer = with_policies(&relay.policy_host, |mine| {
                    mine.bare_call(set, policy, black_box(record), "legacy")
                });
                assert!(answer.is_ok(), "{answer:?}");
            });
            time(&mut live, || {
                let (record, set) = (black_box(record), black_box(set));
                let (is_answered, late) = with_policies(&relay.policy_host, |mine| {
                    mine.on_leash(|mine| match () {
                        () if entry.has(Hook::Freeze) => mine.freeze(set, policy, record).is_ok(),
                        () if entry.has(Hook::Routing) => mine.route(set, policy, record).is_ok(),
                        () => mine.limits(set, policy, record, "legacy", &[0]).is_ok(),
                    })
                });
                assert!(is_answered || late.is_some(), "a live call failed");
            });
        }
    }
    for calls in [&mut bare, &mut live] {
        calls.sort_unstable();
    }
    let us = |calls: &[Duration], part: usize| {
        calls[(calls.len() - 1) * part / 1000].as_secs_f64() * 1e6
    };
    let ratio = |part| us(&live, part) / us(&bare, part);
    let word = if ratio(500) <= CALL { "met" } else { "missed" };
    println!(
        "{:<12} live {:.2} us, bare {:.2} us: {:.2} times, by the least {:.2} (at most {CALL}: {word})",
        entry.name(),
        us(&live, 500),
        us(&bare, 500),
        ratio(500),
        ratio(0),
    );
}

/// The gate of both, in turn.
fn shadows(plain: &Arc<Relay>, shadowed: &Arc<Relay>, subject: &Subject<'_>) {
    let turn = |relay: &Arc<Relay>| {
        let (generation, plan) = (relay.generation(), relay.waves.current());
        let begun = cpu::of_thread();
        for _ in 0..TURN {
            let answer = gate::explain(relay, &generation, &plan, black_box(subject), NOW, None);
            assert!(matches!(answer.verdict, Verdict::Go(_)), "{:?}", answer.verdict);
        }
        (cpu::of_thread() - begun) / TURN
    };
    let done = || {
        let all = shadowed.policy_host.stats();
        all.iter()
            .map(|stats| stats.shadow())
            .map(|one| (one.asked, one.dropped))
            .fold((0, 0), |(asked, dropped), one| (asked + one.0, dropped + one.1))
    };
    let mut times = [Vec::new(), Vec::new()];
    let mut sent = 0;
    for round in 0..WARM_UP + 4 * ROUNDS {
        if round == WARM_UP {
            times = [Vec::new(), Vec::new()];
        }
        times[0].push(turn(plain));
        times[1].push(turn(shadowed));
        sent += 3 * u64::from(TURN);
        // The next turn finds the lane empty.
        while done().0 + done().1 < sent {
            std::thread::yield_now();
        }
    }
    let [without, with] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    });
    let more = (with / without - 1.0) * 100.0;
    let (asked, dropped) = done();
    println!("\nshadows of all three at 100 %: {asked} questions asked, {dropped} dropped");
    println!("gate, processor time, median: {without:.3} us without, {with:.3} us with them");
    let word = if more <= SHADOWS { "met" } else { "missed" };
    println!("more for shadows: {more:.2} % (at most {SHADOWS} %: {word})");
}

fn report(bare: &mut [Duration], asked: &mut [Duration], told: &mut [Duration]) {
    let us = |calls: &[Duration], part: usize| {
        calls[(calls.len() - 1) * part / 1000].as_secs_f64() * 1e6
    };
    println!("{:<28}{:>12}{:>12}{:>12}", "", "median us", "p99 us", "p99.9 us");
    for (name, calls) in [
        ("three bare calls", &mut *bare),
        ("gate, three policies", &mut *asked),
        ("the same, all logged", &mut *told),
    ] {
        calls.sort_unstable();
        let [median, p99, p999] = [500, 990, 999].map(|part| us(calls, part));
        println!("{name:<28}{median:>12.2}{p99:>12.2}{p999:>12.2}");
    }
    let ratio = us(asked, 500) / us(bare, 500);
    let tail = us(asked, 990) / us(asked, 500);
    let log = us(told, 500) - us(asked, 500);
    println!("decision log of all: {log:.2} us a message of three calls");
    let word = |met: bool| if met { "met" } else { "missed" };
    println!("gate / bare, medians: {ratio:.2} (at most {RATIO}: {})", word(ratio <= RATIO));
    println!("gate, p99 / median:   {tail:.2} (at most {TAIL}: {})", word(tail <= TAIL));
}
