//! The gate alone, against the bare calls of its policies: what does everything around the
//! sandbox cost? Both in one run, in turn, with the same message.
//!
//! `cargo run --release -p wavegate --example gate-bench`
#![allow(clippy::print_stdout, reason = "its purpose")]

use std::{collections::HashMap, error::Error, hint::black_box, sync::Arc, time::Duration};

use tokio::time::Instant;
use wavegate::{
    body::BodyStore,
    config,
    decision::{InstanceView, Transaction},
    event::{Event, Observer},
    gate::{self, Subject, Verdict},
    generation,
    limits::Limits,
    plan::Timestamp,
    policy::{HostOptions, PolicyHost},
    relay::{Relay, with_policies},
    waves::Waves,
    world::World,
};

const ROUNDS: usize = 400;
const CALLS: usize = 500;
/// Rounds that only warm up.
const WARM_UP: usize = 40;
/// What is to be reached.
const RATIO: f64 = 1.5;
const TAIL: f64 = 4.0;

const RELAY: &str = r#"
[relay]
hostname = "edge-1.example.net"
plan = "waves.toml"
[[listener]]
address = "127.0.0.1:2525"
[[upstream]]
name = "legacy"
targets = ["127.0.0.1:2601"]
[[upstream]]
name = "cloud"
targets = ["127.0.0.1:2602"]
[migration]
before = "legacy"
after = "cloud"
[[policy]]
plugin = "builtin:freeze"
[[policy]]
plugin = "builtin:routing"
[[policy]]
plugin = "builtin:throttle"
settings = { limits = [ { per = ["upstream", "recipient-domain"], rate = "5000/s", burst = 500 } ] }
"#;
const PLAN: &str = r#"
[[instance]]
name = "acme-prod-1"
product = "campaign-classic"
environment = "production"
match = { clients = ["127.0.0.1/32"], senders = ["mkt.acme.example"] }
[[wave]]
id = "prod-01"
environment = "production"
instances = ["acme-prod-1"]
opens = "2026-01-20T06:00:00Z"
closes = "2026-01-20T06:45:00Z"
"#;
/// An hour before the window.
const NOW: Timestamp = Timestamp(1_768_885_200_000);

struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _event: &Event<'_>) {}
}

fn relay(directory: &std::path::Path) -> Result<Arc<Relay>, Box<dyn Error>> {
    std::fs::write(directory.join("relay.toml"), RELAY)?;
    std::fs::write(directory.join("waves.toml"), PLAN)?;
    let config = config::read(&directory.join("relay.toml"))?;
    let world = World::real();
    let host = PolicyHost::new(None, HostOptions::production(1))?;
    let policies = generation::load_policies(&host, &config)?;
    let waves = Waves::new(Arc::clone(&config.plan), Arc::clone(&world.clock));
    let limits = Limits::new(1000, 1000);
    let bodies = BodyStore::new(directory, 1 << 18, 1 << 28, 1 << 30);
    let first = generation::build(&world, config, policies, None, &HashMap::new());
    Ok(Relay::new(world, waves, limits, bodies, host, Arc::new(Nobody), first))
}

/// Times one call.
fn time(calls: &mut Vec<Duration>, call: impl FnOnce()) {
    let begun = Instant::now();
    call();
    calls.push(begun.elapsed());
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let relay = relay(directory.path())?;
    let generation = relay.generation();
    let plan = relay.waves.current();
    let set = &generation.policies;
    let recipients = ["someone@dest.example"];
    let subject = Subject {
        id: "1KFCWC94AJ4G4Q61",
        client: [127, 0, 0, 1].into(),
        listener: "listener-1",
        helo: "mta.mkt.acme.example",
        sender: "bounce-4711@mkt.acme.example",
        sender_domain: "mkt.acme.example",
        recipients: &recipients,
        size: 10_000,
        attempts: 0,
        headers: &[],
    };
    let record = Transaction {
        id: subject.id,
        now: NOW,
        client: subject.client,
        sender: subject.sender,
        recipients: subject.recipients,
        size: subject.size,
        attempts: 0,
        instance: Some(InstanceView {
            instance: &plan.plan.instances[0],
            phase: plan.instance(0).phase(NOW),
            window: plan.plan.wave(0).map(|wave| &wave.window),
            before: "legacy",
            after: "cloud",
        }),
        bucket: 4321,
        attributes: &[],
    };
    let (mut bare, mut asked) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            bare.clear();
            asked.clear();
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
                let answer = gate::ask(&relay, &generation, &plan, black_box(&subject), NOW, None);
                assert!(matches!(answer.verdict, Verdict::Go(_)), "{:?}", answer.verdict);
            });
        }
    }
    report(&mut bare, &mut asked);
    Ok(())
}

fn report(bare: &mut [Duration], asked: &mut [Duration]) {
    let us = |calls: &[Duration], part: usize| {
        calls[(calls.len() - 1) * part / 1000].as_secs_f64() * 1e6
    };
    println!("{:<28}{:>12}{:>12}{:>12}", "", "median us", "p99 us", "p99.9 us");
    for (name, calls) in [("three bare calls", &mut *bare), ("gate, three policies", &mut *asked)] {
        calls.sort_unstable();
        let [median, p99, p999] = [500, 990, 999].map(|part| us(calls, part));
        println!("{name:<28}{median:>12.2}{p99:>12.2}{p999:>12.2}");
    }
    let ratio = us(asked, 500) / us(bare, 500);
    let tail = us(asked, 990) / us(asked, 500);
    let word = |met: bool| if met { "met" } else { "missed" };
    println!("gate / bare, medians: {ratio:.2} (at most {RATIO}: {})", word(ratio <= RATIO));
    println!("gate, p99 / median:   {tail:.2} (at most {TAIL}: {})", word(tail <= TAIL));
}
