//! A relay's mail over a link: fallback and back, a gateway that is slow, an outage, a client that does
//! not wait.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use wavegate::{config::Handoff, relay::Generation, upstream::Upstream};

use super::{
    Edge,
    gateway::{Act, Gateway, Settings, taken},
    link, until, upstream,
};
use crate::sim::{Setup, Sim};

/// Puts an upstream in the place of the one of its name, and keeps it.
fn install(sim: &Sim, upstream: &Arc<Upstream>) {
    let generation = sim.relay.generation();
    let mut upstreams: BTreeMap<_, _> = generation.upstreams.clone();
    upstreams.insert(upstream.config.name.as_str().into(), Arc::clone(upstream));
    let next = Generation { upstreams, ..Generation::clone(&generation) };
    sim.relay.replace(next.renumbered(generation.number + 1));
    tokio::spawn(Arc::clone(upstream).housekeeping());
}

/// Ids and text of what a gateway has answered.
fn names(gateway: &Gateway) -> Vec<String> {
    let name = |content: &[u8]| {
        let text = String::from_utf8_lossy(content).into_owned();
        text.split("name=").nth(1).unwrap_or_default().trim_end().to_owned()
    };
    let got = gateway.got();
    got.iter().filter(|got| got.is_whole).map(|got| name(&got.content)).collect()
}

#[tokio::test]
async fn while_no_gateway_answers_mail_goes_by_the_fallback_and_then_back() {
    let gateway = Gateway::start(Settings::default()).await;
    let address = gateway.address;
    let port = gateway.kill();
    let sim = Setup::default().build();
    let cloud = sim.sink(2602);
    let link = upstream(&sim, "legacy", &[address], |config| {
        config.link =
            Some(wavegate::config::LinkUpstream { fallback: Some("cloud".to_owned()), ..link() });
        config.connect_timeout = Duration::from_millis(600);
        config.direct_budget = Duration::from_secs(3600);
    });
    install(&sim, &link);
    let mut sender = sim.sender("10.0.2.1").await;
    // Nobody knows yet that nobody is there: the spool takes it.
    let reply = sender.mail("a@globex.example", "first").await;
    assert!(reply.contains("queued as"), "{reply}");
    until("the link is down", || link.is_down()).await;
    let reply = sender.mail("a@globex.example", "second").await;
    assert!(reply.starts_with("250") && !reply.contains("queued as"), "{reply}");
    until("both went by the fallback", || cloud.names().len() == 2).await;
    assert!(link.link_status().unwrap().fallbacks >= 2);
    let gateway = Gateway::start(Settings { port, ..Settings::default() }).await;
    let back = Instant::now();
    until("the link is back", || !link.is_down()).await;
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
    let reply = sender.mail("a@globex.example", "third").await;
    assert!(reply.starts_with("250 2.0.0 taken"), "{reply}");
    assert_eq!(names(&gateway), ["third"]);
    let mut by_smtp = cloud.names();
    by_smtp.sort();
    assert_eq!((by_smtp, sim.spooled()), (vec!["first".into(), "second".into()], 0));
}

#[tokio::test]
async fn what_stands_in_line_for_a_link_that_breaks_goes_by_the_fallback() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Nothing);
    let sim = Setup::default().build();
    let cloud = sim.sink(2602);
    let link = upstream(&sim, "legacy", &[gateway.address], |config| {
        let fallback = Some("cloud".to_owned());
        config.link = Some(wavegate::config::LinkUpstream { fallback, streams: 1, ..link() });
        config.handoff = Handoff::Queued;
        config.retry_first = Duration::from_millis(500);
        config.final_timeout = Duration::from_secs(2);
    });
    install(&sim, &link);
    let mut sender = sim.sender("10.0.2.1").await;
    for name in ["held", "one", "two", "three"] {
        assert!(sender.mail("a@globex.example", name).await.contains("queued as"));
    }
    until("the first is there, and holds the only place", || gateway.whole() == 1).await;
    gateway.kill();
    until("the others went", || cloud.names().len() >= 3).await;
    // Nobody knows what became of that one: it is told, and sent once more.
    until("that one too", || sim.spooled() == 0 && cloud.names().len() == 4).await;
    assert_eq!(sim.log.count(&["InDoubt", "legacy"]), 1);
}

#[tokio::test]
async fn a_message_in_doubt_keeps_no_other_from_its_attempt() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Nothing);
    let setup =
        Setup { limits: "spool_attempts = 1", cloud: "handoff = 'queued'", ..Setup::default() };
    let sim = setup.build();
    let cloud = sim.sink(2602);
    let link = upstream(&sim, "legacy", &[gateway.address], |config| {
        let fallback = Some("cloud".to_owned());
        config.link = Some(wavegate::config::LinkUpstream { fallback, ..link() });
        config.handoff = Handoff::Queued;
        config.final_timeout = Duration::from_secs(120);
    });
    install(&sim, &link);
    let mut sender = sim.sender("10.0.2.1").await;
    assert!(sender.mail("a@globex.example", "held").await.contains("queued as"));
    until("it is there", || gateway.whole() == 1).await;
    gateway.kill();
    until("it is in doubt", || link.link_status().unwrap().in_doubt == 1).await;
    for name in ["one", "two"] {
        assert!(sender.mail("a@globex.example", name).await.contains("queued as"));
    }
    until("the others went", || cloud.names().len() == 2 && sim.spooled() == 1).await;
    assert_eq!(link.link_status().unwrap().in_doubt, 1);
}

#[tokio::test]
async fn a_slow_gateway_fills_the_spool_and_not_the_memory() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Wait(taken()));
    let sim = Arc::new(Setup::default().build());
    let link = upstream(&sim, "legacy", &[gateway.address], |config| {
        config.link = Some(wavegate::config::LinkUpstream { streams: 4, ..link() });
        config.direct_budget = Duration::from_secs(3600);
    });
    install(&sim, &link);
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..20 {
        let sim = Arc::clone(&sim);
        sending.spawn(async move {
            let mut sender = sim.sender("10.0.2.1").await;
            sender.mail("a@globex.example", &number.to_string()).await
        });
    }
    let mut queued = 0;
    while queued < 16 {
        let reply = sending.join_next().await.unwrap().unwrap();
        assert!(reply.contains("queued as"), "{reply}");
        queued += 1;
    }
    let status = link.link_status().unwrap();
    assert_eq!((gateway.whole(), link.status().in_use), (4, 4));
    assert_eq!(status.connections.iter().map(|one| one.path.streams).sum::<u64>(), 4);
    assert_eq!(sim.spooled(), 16);
    gateway.open();
    while let Some(reply) = sending.join_next().await {
        assert!(reply.unwrap().starts_with("250 2.0.0 taken"));
    }
    until("the spool is empty", || sim.spooled() == 0).await;
    let mut all = names(&gateway);
    all.sort_by_key(|name| name.parse::<u32>().unwrap());
    assert_eq!(all, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_does_not_wait_is_answered_and_its_message_is_listened_for() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Wait(taken()));
    let sim = Setup { limits: "direct_deadline = '300ms'", ..Setup::default() }.build();
    let link = upstream(&sim, "legacy", &[gateway.address], |config| {
        config.direct_budget = Duration::from_secs(3600);
    });
    install(&sim, &link);
    let mut sender = sim.sender("10.0.2.1").await;
    let reply = sender.mail("a@globex.example", "slow").await;
    assert!(reply.contains("queued as"), "{reply}");
    assert_eq!((sim.spooled(), gateway.whole()), (1, 1));
    gateway.open();
    until("the answer is heard", || sim.spooled() == 0).await;
    assert_eq!((gateway.got().len(), sim.log.count(&["InDoubt"])), (1, 0));
}

/// All messages under way at an outage are asked about when it is over, and none is lost.
#[tokio::test]
async fn an_outage_loses_nothing_and_is_over_at_once_when_it_ends() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Nothing);
    let edge = Edge::with(&[gateway.address], |config| {
        config.final_timeout = Duration::from_secs(30);
        config.connections = 4;
    });
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..200_u32 {
        let message = edge.message(1, format!("name={number}\r\n").as_bytes());
        sending.spawn(wavegate::attempt::run(edge.job(&message)));
    }
    until("all are there", || gateway.whole() == 200).await;
    let port = gateway.kill();
    until("the link is down", || edge.upstream.is_down()).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let second = Gateway::start(Settings { port, ..Settings::default() }).await;
    let back = Instant::now();
    while let Some(outcome) = sending.join_next().await {
        let end = outcome.unwrap().end;
        assert!(matches!(&end, wavegate::attempt::End::Settled(_)), "{end:?}");
    }
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
    assert_eq!((second.whole(), edge.doubts()), (200, 0), "it is the same process to all");
    assert!(edge.upstream.link_status().unwrap().reconnects >= 1);
}

/// Messages at once that all connections are crowded by.
async fn crowd(edge: &Edge) {
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..100 {
        sending.spawn(wavegate::attempt::run(edge.job(&edge.message(1, b"x\r\n"))));
    }
    while let Some(outcome) = sending.join_next().await {
        assert!(matches!(outcome.unwrap().end, wavegate::attempt::End::Settled(_)));
    }
}

#[tokio::test]
async fn a_gateway_that_comes_back_gets_its_share_again() {
    let (first, second) =
        (Gateway::start(Settings::default()).await, Gateway::start(Settings::default()).await);
    let away = second.address;
    let port = second.kill();
    let edge = Edge::with(&[first.address, away], |config| {
        config.connections = 3;
        config.connect_timeout = Duration::from_millis(500);
        config.idle_timeout = Duration::from_secs(1);
    });
    let targets = || {
        let status = edge.upstream.link_status().unwrap();
        let mut targets: Vec<_> = status.connections.into_iter().map(|one| one.target).collect();
        targets.sort();
        targets
    };
    let begun = Instant::now();
    while targets()
        != [first.address.to_string(), first.address.to_string(), first.address.to_string()]
    {
        crowd(&edge).await;
        assert!(begun.elapsed() < super::LONG, "{:?}", targets());
    }
    let second = Gateway::start(Settings { port, ..Settings::default() }).await;
    let begun = Instant::now();
    while second.whole() == 0 || targets().len() < 3 {
        crowd(&edge).await;
        assert!(begun.elapsed() < super::LONG, "{:?}", targets());
    }
    assert!(targets().contains(&first.address.to_string()));
    assert_eq!(edge.doubts(), 0);
}
