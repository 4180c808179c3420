//! Direct hand-off in a simulated world: waiting for limits and connections, and for how long.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::sim;
use std::{sync::Arc, time::Duration};

use crate::sim::{Act, Point, Sender, Setup, Sim, at, plan, settle};
use tokio::task::{JoinHandle, JoinSet};

/// The standard policies with these limits.
fn limits(limits: &str) -> String {
    format!(
        "[[policy]]\nplugin = 'builtin:freeze'\n[[policy]]\nplugin = 'builtin:routing'\n\
         [[policy]]\nplugin = 'builtin:throttle'\nsettings = {{ limits = [{limits}] }}\n"
    )
}

/// Sends a message in the background; gives the reply and the simulated time that it took.
fn sending(sim: &Arc<Sim>, mut sender: Sender, name: String) -> JoinHandle<(String, u64)> {
    let sim = Arc::clone(sim);
    tokio::spawn(async move {
        let begun = sim.elapsed();
        let reply = sender.mail("a@globex.example", &name).await;
        (reply, sim.elapsed() - begun)
    })
}

/// The spool has it.
fn is_queued(reply: &str) -> bool {
    reply.starts_with("250 2.0.0 wavegate: queued as ")
}

async fn world(setup: Setup) -> (Arc<Sim>, sim::Sink) {
    let sim = Arc::new(setup.build());
    let legacy = sim.sink(2601);
    (sim, legacy)
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_waited_for_in_order_and_at_most_200_ms() {
    let policies = limits("{ rate = '10/s', burst = 1 }");
    let (sim, legacy) = world(Setup { policies, ..Setup::default() }).await;
    let mut tasks = Vec::new();
    for number in 0..5 {
        let sender = sim.sender("10.0.2.1").await;
        tasks.push(sending(&sim, sender, number.to_string()));
        tokio::task::yield_now().await;
    }
    let mut told = Vec::new();
    for task in tasks {
        told.push(task.await.unwrap());
    }
    assert_eq!(legacy.names(), ["0", "1", "2"], "first come, first served");
    for (reply, _) in &told[..3] {
        assert!(!is_queued(reply), "{reply}");
    }
    for (reply, took) in &told[3..] {
        assert!(is_queued(reply) && *took <= 202, "{reply} after {took} ms");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(legacy.names(), ["0", "1", "2", "3", "4"], "the spool goes on in order");
    let times: Vec<u64> = legacy.arrived().iter().map(|one| one.at).collect();
    for pair in times.windows(2) {
        assert!((99..=102).contains(&(pair[1] - pair[0])), "{times:?}");
    }
    assert_eq!((sim.relay.limits.stats().waiting, sim.spooled()), (0, 0));
    // Nobody took more of the rate than he used.
    let sender = sim.sender("10.0.2.1").await;
    assert_eq!(sending(&sim, sender, "later".into()).await.unwrap().1, 0);
    assert_eq!(legacy.names().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_passes_on_when_its_holder_is_done() {
    let policies = limits("{ concurrency = 1 }");
    let (sim, legacy) = world(Setup { policies, ..Setup::default() }).await;
    legacy.at(Point::End, Act::after(80));
    let mut tasks = Vec::new();
    for number in 0..5 {
        let sender = sim.sender("10.0.2.1").await;
        tasks.push(sending(&sim, sender, number.to_string()));
        tokio::task::yield_now().await;
    }
    for (number, task) in tasks.into_iter().enumerate() {
        let (reply, took) = task.await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        assert_eq!(is_queued(&reply), number >= 3, "{reply}");
        assert!(number < 3 || (199..=203).contains(&took), "{took}");
    }
    assert_eq!(legacy.names(), ["0", "1", "2"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut names = legacy.names();
    names.sort();
    assert_eq!(names, ["0", "1", "2", "3", "4"]);
    let times: Vec<u64> = legacy.arrived().iter().map(|one| one.at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 80), "one at a time: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn one_connection_serves_two_sessions_in_turn() {
    let legacy = "connections = 1\ndirect_budget = '1h'";
    let (sim, legacy) = world(Setup { legacy, ..Setup::default() }).await;
    legacy.at(Point::End, Act::after(150));
    let one = sending(&sim, sim.sender("10.0.2.1").await, "one".into());
    tokio::task::yield_now().await;
    let two = sending(&sim, sim.sender("10.0.2.1").await, "two".into());
    settle().await;
    assert_eq!(sim.upstream("legacy").status().waiting, 1);
    assert!(one.await.unwrap().0.starts_with("250"));
    assert!(two.await.unwrap().0.starts_with("250"));
    assert_eq!((legacy.names(), legacy.opened()), (vec!["one".into(), "two".into()], 1));
    legacy.at(Point::End, Act::after(5_000));
    let one = sending(&sim, sim.sender("10.0.2.1").await, "three".into());
    settle().await;
    let (reply, took) = sending(&sim, sim.sender("10.0.2.1").await, "four".into()).await.unwrap();
    assert!(is_queued(&reply), "{reply}");
    assert!((199..=203).contains(&took), "{took}");
    assert!(one.await.unwrap().0.starts_with("250"));
    assert_eq!(legacy.names().len(), 3);
    tokio::time::sleep(Duration::from_millis(5_010)).await;
    assert_eq!(legacy.names(), ["one", "two", "three", "four"], "as soon as it comes free");
    assert_eq!((legacy.opened(), sim.upstream("legacy").status().waiting), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_answers_at_once() {
    let policies = limits("{ concurrency = 1 }");
    let queue = "direct_queue = 2";
    let setup = Setup { policies, limits: queue, ..Setup::default() };
    for setup in [setup, Setup { legacy: "connections = 1", limits: queue, ..Setup::default() }] {
        let (sim, legacy) = world(setup).await;
        legacy.at(Point::End, Act::after(5_000));
        let mut waiting = Vec::new();
        for number in 0..3 {
            waiting.push(sending(&sim, sim.sender("10.0.2.1").await, number.to_string()));
            settle().await;
        }
        let fourth = sending(&sim, sim.sender("10.0.2.1").await, "3".into());
        let (reply, took) = fourth.await.unwrap();
        assert!(is_queued(&reply), "{reply}");
        assert_eq!(took, 0);
        let mut replies = Vec::new();
        for task in waiting {
            replies.push(task.await.unwrap().0);
        }
        assert!(replies[0].starts_with("250") && !is_queued(&replies[0]), "{replies:?}");
        assert!(is_queued(&replies[1]) && is_queued(&replies[2]), "{replies:?}");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut names = legacy.names();
        names.sort();
        assert_eq!((names, sim.spooled()), (["0", "1", "2", "3"].map(str::to_owned).into(), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_spool_the_client_is_told_what_blocks() {
    let busy = "451 4.4.1 wavegate: upstream legacy: all 1 connections are busy (connections)";
    let limited = "451 4.7.0 wavegate: try again later: limit ";
    let full = "1 attempts wait already (limits.direct_queue)";
    let direct =
        |legacy, queue, policies| Setup { legacy, limits: queue, policies, ..Setup::default() };
    let limit = |queue| direct("handoff = 'direct'", queue, limits("{ concurrency = 1 }"));
    let connection = |queue| {
        let legacy = "handoff = 'direct'\nconnections = 1";
        direct(legacy, queue, sim::THREE_POLICIES.to_owned())
    };
    let cases = [
        (limit(""), [limited, limited]),
        (limit("direct_queue = 1"), [limited, full]),
        (connection(""), [busy, busy]),
        (connection("direct_queue = 1"), [busy, full]),
    ];
    for (setup, wanted) in cases {
        let (sim, legacy) = world(setup).await;
        legacy.at(Point::End, Act::after(5_000));
        let mut tasks = Vec::new();
        for number in 0..3 {
            tasks.push(sending(&sim, sim.sender("10.0.2.1").await, number.to_string()));
            settle().await;
        }
        let mut told = Vec::new();
        for task in tasks {
            told.push(task.await.unwrap());
        }
        assert!(told[0].0.starts_with("250"), "{told:?}");
        for ((reply, took), wanted) in told[1..].iter().zip(wanted) {
            assert!(reply.starts_with("451 ") && reply.contains(wanted), "{reply}, not {wanted}");
            let waited = if wanted == full { 0..=0 } else { 199..=203 };
            assert!(waited.contains(took), "{reply} after {took} ms");
        }
        assert_eq!((legacy.names(), sim.spooled()), (vec!["0".to_owned()], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_sent_nothing_gives_its_limit_back() {
    let policies = limits("{ rate = '1/h', burst = 2 }");
    let direct = "handoff = 'direct'";
    let (sim, legacy) = world(Setup { policies, legacy: direct, ..Setup::default() }).await;
    legacy.refuse();
    for _ in 0..3 {
        let (reply, _) = sending(&sim, sim.sender("10.0.2.1").await, "no".into()).await.unwrap();
        assert!(reply.starts_with("451 4.4.1 wavegate: upstream legacy"), "{reply}");
    }
    legacy.listen();
    for taken in [true, true, false] {
        let (reply, _) = sending(&sim, sim.sender("10.0.2.1").await, "yes".into()).await.unwrap();
        assert_eq!(reply.starts_with("250"), taken, "{reply}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_attempt_gives_its_limit_back() {
    let policies = limits("{ rate = '1/d', burst = 1 }");
    let setup = Setup { policies, limits: "command_timeout = '1h'", ..Setup::default() };
    let (sim, legacy) = world(setup).await;
    legacy.without_chunking();
    legacy.at(Point::Data, Act::after(15_000));
    let mut sender = sim.sender("10.0.1.1").await;
    let reply = tokio::spawn(async move { sender.mail("a@acme.example", "held").await });
    settle().await;
    let sooner = plan("1s", "05:00:10", "05:01:00");
    let policies = limits("{ rate = '1/d', burst = 1 }");
    sim.reload(&Setup { policies, plan: sooner, ..Setup::default() });
    assert!(is_queued(&reply.await.unwrap()));
    assert_eq!(legacy.names().len(), 0);
    legacy.at(Point::Data, Act::GO);
    let (reply, _) = sending(&sim, sim.sender("10.0.2.1").await, "yes".into()).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    sim.until(at(1, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn two_hundred_messages_at_once_never_exceed_the_connections() {
    let setup =
        Setup { legacy: "connections = 7", limits: "direct_wait = '10s'", ..Setup::default() };
    let (sim, legacy) = world(setup).await;
    let mut late = 0;
    legacy.script(move |point, _| {
        late = (late * 7 + 3) % 31;
        match point {
            Point::Mail if late == 5 => Act::CLOSE,
            _ => Act::after(late),
        }
    });
    let mut tasks = JoinSet::new();
    for number in 0..200 {
        let mut sender = sim.sender("10.0.2.1").await;
        tasks.spawn(async move { sender.mail("a@globex.example", &number.to_string()).await });
    }
    let mut taken = 0;
    while let Some(reply) = tasks.join_next().await {
        taken += usize::from(reply.unwrap().starts_with("250"));
    }
    // The few that were spooled, because the upstream became slow.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(sim.spooled(), 0);
    assert_eq!(legacy.most_open(), 7);
    let mut names = legacy.names();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), legacy.names().len()), (taken, taken));
    assert!(taken >= 190, "{taken}");
    let status = sim.upstream("legacy").status();
    assert_eq!((status.in_use, status.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_pipelined_behind_another_does_not_delay_its_reply() {
    let (sim, legacy) = world(Setup::default()).await;
    let mut slow = false;
    legacy.script(move |point, _| {
        if point == Point::End && std::mem::replace(&mut slow, true) {
            return Act::after(60_000);
        }
        Act::GO
    });
    let mut sender = sim.sender("10.0.2.1").await;
    let mut text = String::new();
    for name in ["one", "two"] {
        let body = format!("Subject: test\r\n\r\nname={name}\r\n");
        text += "MAIL FROM:<a@globex.example>\r\nRCPT TO:<u@dest.example>\r\n";
        text += &format!("BDAT {} LAST\r\n{body}", body.len());
    }
    sender.write(text.as_bytes()).await;
    for _ in 0..3 {
        assert!(sender.reply().await.starts_with("250"));
    }
    assert!(sim.elapsed() < 1000, "the first reply came after {} ms", sim.elapsed());
    for _ in 0..3 {
        assert!(sender.reply().await.starts_with("250"));
    }
    assert!((20_000..20_100).contains(&sim.elapsed()), "limits.direct_deadline");
    assert_eq!((legacy.names(), sim.spooled()), (vec!["one".to_owned()], 1));
    sim.until(at(2, 0)).await;
    assert_eq!((legacy.names(), sim.spooled()), (vec!["one".into(), "two".into()], 0));
    assert_eq!(sim.log.count(&["InDoubt {"]), 0, "the reply came late, and was heard");
}
