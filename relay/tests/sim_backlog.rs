//! Backlogs in a simulated world: who waits for how long when one instance has many times what the
//! others have, and how fast what a window held is let out.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{collections::BTreeMap, time::Duration};

use crate::sim::{Act, Point, Setup, Sim, Sink, at, plan};

/// Instances with a network and a domain each, in no wave.
fn instances(count: usize) -> String {
    (1..=count)
        .map(|number| {
            format!(
                "[[instance]]\nname = 'i{number}'\nproduct = 'p'\nenvironment = 'prod'\n\
                 match = {{ clients = ['10.0.{number}.0/24'], senders = ['i{number}.example'] }}\n"
            )
        })
        .collect()
}

/// Sends so many messages of an instance, one after the other.
async fn send(sim: &Sim, number: usize, domain: &str, count: usize) {
    let mut sender = sim.sender(&format!("10.0.{number}.1")).await;
    for message in 0..count {
        let reply = sender.mail(&format!("a@{domain}"), &format!("{number}/{message}")).await;
        assert!(reply.starts_with("250"), "{reply}");
    }
}

/// The 99th percentile of the time that messages of instances 2 to 10 waited, in milliseconds:
/// 20 of each came when `backlog` messages of instance 1 waited already.
async fn wait_beside(backlog: usize) -> u64 {
    let legacy = "handoff = 'queued'\nconnections = 1";
    let sim = Setup { legacy, plan: instances(10), ..Setup::default() }.build();
    let sink = sim.sink(2601);
    sink.at(Point::End, Act::after(100));
    if backlog > 0 {
        send(&sim, 1, "i1.example", backlog).await;
    }
    sim.until(1000).await;
    let begun = sim.elapsed();
    for number in 2..=10 {
        send(&sim, number, &format!("i{number}.example"), 20).await;
    }
    while sink.arrived().iter().filter(|one| !one.name().starts_with("1/")).count() < 180 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(sim.elapsed() < at(60, 0), "{:?}", sink.names().len());
    }
    let arrived = sink.arrived();
    let mut waits: BTreeMap<&str, u64> = BTreeMap::new();
    for one in arrived.iter().filter(|one| !one.name().starts_with("1/")) {
        waits.entry(one.name()).or_insert(one.at - begun);
    }
    let mut waits: Vec<u64> = waits.into_values().collect();
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_a_hundred_times_does_not_double_the_wait_of_others() {
    let alone = wait_beside(0).await;
    let beside = wait_beside(2000).await;
    assert!(alone >= 17_000, "180 messages, 10 a second: {alone} ms");
    assert!(beside <= 2 * alone, "{beside} ms beside the backlog, {alone} ms without");
}

const CLOSES: u64 = at(60, 0);

/// So many messages held by a window until the hour, and their upstream.
async fn held(relay: &'static str, count: usize) -> (Sim, Sink) {
    let setup = Setup {
        relay,
        cloud: "connections = 10",
        plan: plan("1s", "05:00:02", "06:00:00"),
        ..Setup::default()
    };
    let sim = setup.build();
    let sink = sim.sink(2602);
    // The other target gets nothing, so that one sink sees it all.
    sim.sink(2603).at(Point::Greeting, Act::CLOSE);
    sink.at(Point::End, Act::after(10));
    sim.until(2000).await;
    send(&sim, 1, "acme.example", count).await;
    sim.until(CLOSES).await;
    assert_eq!((sink.opened(), sim.spooled()), (0, count as u64));
    (sim, sink)
}

#[tokio::test(start_paused = true)]
async fn a_release_keeps_its_upstream_busy() {
    let count = 10_000;
    let (sim, sink) = held("", count).await;
    while sim.spooled() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(sim.elapsed() < CLOSES + at(2, 0), "{} left", sim.spooled());
    }
    let arrived = sink.arrived();
    assert_eq!(arrived.len(), count);
    let (first, last) = (arrived[0].at, arrived[count - 1].at);
    assert!(first - CLOSES <= 1000, "{} ms after the window", first - CLOSES);
    // Ten connections with 10 ms a message, and a millisecond of the timers: 900 a second.
    let possible = count as u64 * 11 / 10;
    let took = last - first;
    assert!(took * 90 / 100 <= possible, "{took} ms where {possible} were possible");
}

#[tokio::test(start_paused = true)]
async fn a_release_with_a_rate_keeps_it() {
    let (rate, count) = (100, 4_000);
    let (sim, sink) = held("[spool]\nrelease_rate = 100\nrelease_ramp = '10s'", count).await;
    while sim.spooled() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(sim.elapsed() < CLOSES + at(2, 0), "{} left", sim.spooled());
    }
    let within = |from: u64, to: u64| {
        let arrived = sink.arrived();
        let times = arrived.iter().map(|one| one.at - CLOSES);
        times.filter(|time| (from * 1000..to * 1000).contains(time)).count() as u64
    };
    // From a tenth of the rate to all of it in ten seconds: 55 of 100 on the average.
    let ramp = within(0, 11);
    assert!((500..=690).contains(&ramp), "{ramp} in the ramp");
    for second in [12, 20, 30] {
        let sent = within(second, second + 8);
        let wanted = rate * 8;
        assert!(sent.abs_diff(wanted) * 20 <= wanted, "{sent} in 8 s at {second}, not {wanted}");
    }
}
