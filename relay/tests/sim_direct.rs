//! Direct hand-off in a simulated world: waiting for limits and connections, and for how long.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod sim;

use std::{sync::Arc, time::Duration};

use sim::{Act, Point, Sender, Setup, Sim, at, plan, settle};
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
    let times: Vec<u64> = legacy.arrived().iter().map(|one| one.at).collect();
    assert!((99..=102).contains(&(times[1] - times[0])), "{times:?}");
    assert!((99..=102).contains(&(times[2] - times[1])), "{times:?}");
    for (reply, took) in &told[3..] {
        assert!(reply.starts_with("451 4.7.0 try again later: limit "), "{reply}");
        assert!(reply.contains("of policy \"throttle\" is reached"), "{reply}");
        assert!(*took <= 202, "{took}");
    }
    assert_eq!(sim.relay.limits.stats().waiting, 0);
    // Those that gave up took nothing of the rate.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sender = sim.sender("10.0.2.1").await;
    assert_eq!(sending(&sim, sender, "later".into()).await.unwrap().1, 0);
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
    let mut taken = 0;
    for task in tasks {
        let (reply, took) = task.await.unwrap();
        if reply.starts_with("250") {
            taken += 1;
        } else {
            assert!(reply.starts_with("451 4.7.0 try again later: limit "), "{reply}");
            assert!((199..=203).contains(&took), "{took}");
        }
    }
    assert_eq!((taken, legacy.names()), (3, vec!["0".into(), "1".into(), "2".into()]));
}

#[tokio::test(start_paused = true)]
async fn one_connection_serves_two_sessions_in_turn() {
    let legacy = "connections = 1";
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
    assert_eq!(reply, "451 4.4.1 upstream legacy: all 1 connections are busy (connections)");
    assert!((199..=203).contains(&took), "{took}");
    assert!(one.await.unwrap().0.starts_with("250"));
    assert_eq!(sim.upstream("legacy").status().waiting, 0);
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
        let fourth = sending(&sim, sim.sender("10.0.2.1").await, "four".into());
        let (reply, took) = fourth.await.unwrap();
        assert!(reply.starts_with("451 4."), "{reply}");
        assert!(reply.contains("2 attempts wait already (limits.direct_queue)"), "{reply}");
        assert_eq!(took, 0);
        let mut replies = Vec::new();
        for task in waiting {
            replies.push(task.await.unwrap().0);
        }
        assert!(replies[0].starts_with("250") && replies[1].starts_with("451"), "{replies:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_sent_nothing_gives_its_limit_back() {
    let policies = limits("{ rate = '1/h', burst = 2 }");
    let (sim, legacy) = world(Setup { policies, ..Setup::default() }).await;
    legacy.refuse();
    for _ in 0..3 {
        let (reply, _) = sending(&sim, sim.sender("10.0.2.1").await, "no".into()).await.unwrap();
        assert!(reply.starts_with("451 4.4.1 upstream legacy"), "{reply}");
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
    legacy.at(Point::Data, Act::after(20_000));
    let mut sender = sim.sender("10.0.1.1").await;
    let reply = tokio::spawn(async move { sender.mail("a@acme.example", "held").await });
    settle().await;
    let sooner = plan("1s", "05:00:10", "05:01:00");
    let policies = limits("{ rate = '1/d', burst = 1 }");
    sim.reload(&Setup { policies, plan: sooner, ..Setup::default() });
    assert!(reply.await.unwrap().starts_with("451 4.7.0 held"));
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
    let (_sim, legacy) = world(Setup::default()).await;
    let mut slow = false;
    legacy.script(move |point, _| {
        if point == Point::End && std::mem::replace(&mut slow, true) {
            return Act::after(60_000);
        }
        Act::GO
    });
    let mut sender = _sim.sender("10.0.2.1").await;
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
    assert!(_sim.elapsed() < 1000, "the first reply came after {} ms", _sim.elapsed());
    for _ in 0..3 {
        assert!(sender.reply().await.starts_with("250"));
    }
    assert_eq!(legacy.names(), ["one", "two"]);
}
