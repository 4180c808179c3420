//! Names as targets in a simulated world: sets of targets that are exchanged while mail flows,
//! answers that do not come, names that cease to exist.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::sim;
use std::time::Duration;

use crate::sim::{Act, Point, Setup, Sim, at, plan, settle};
use tokio::task::JoinSet;
use wavegate::world::{
    memory::MemoryNames,
    resolver::{Kind, LookupError},
};

const HOST: &str = "mail.cloud.example";

/// A window that is over after 3 s: mail of acme goes to the cloud, whose targets are these.
async fn in_the_cloud(names: &MemoryNames, targets: &'static str, cloud: &'static str) -> Sim {
    let plan = plan("1s", "05:00:02", "05:00:03");
    let policies = format!("{}[resolver]\nkeep = \"10min\"\n", sim::THREE_POLICIES);
    let names = names.clone();
    let sim = Setup { cloud, targets, names, policies, plan, ..Setup::default() }.build();
    sim.keep_house();
    sim.until(3000).await;
    sim
}

async fn acme(sim: &Sim, name: &str) -> String {
    sim.sender("10.0.1.1").await.mail("a@acme.example", name).await
}

fn targets(sim: &Sim) -> Vec<String> {
    sim.upstream("cloud").targets().iter().map(|one| one.address.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn targets_are_exchanged_by_their_ttl_and_what_stays_keeps_all() {
    let names = MemoryNames::default();
    names.host(HOST, &["192.0.2.1", "192.0.2.2"], 60);
    let sim = in_the_cloud(&names, "\"mail.cloud.example:25\"", "handoff = 'direct'").await;
    let [one, two, three] =
        ["192.0.2.1:25", "192.0.2.2:25", "192.0.2.3:25"].map(|address| sim.sink_at(address));
    for number in 0..4 {
        assert!(acme(&sim, &format!("first {number}")).await.starts_with("250"));
    }
    // One attempt is under way to each when the set changes.
    for sink in [&one, &two] {
        sink.at(Point::End, Act::after(90_000));
    }
    let mut under_way = JoinSet::new();
    for number in 0..2 {
        let mut sender = sim.sender("10.0.1.1").await;
        under_way.spawn(async move { sender.mail("a@acme.example", &number.to_string()).await });
    }
    settle().await;
    let (opened, before) = (two.opened(), one.arrived().len() + two.arrived().len());
    names.host(HOST, &["192.0.2.2", "192.0.2.3"], 60);
    sim.until(59_000).await;
    assert_eq!(targets(&sim), ["192.0.2.1:25", "192.0.2.2:25"], "not before its time");
    sim.until(61_000).await;
    assert_eq!(targets(&sim), ["192.0.2.2:25", "192.0.2.3:25"]);
    one.refuse();
    // The spool took them over; the leases end by themselves, and nothing is sent twice.
    while let Some(reply) = under_way.join_next().await {
        assert!(reply.unwrap().starts_with("250 2.0.0 wavegate: queued as "));
    }
    sim.until(at(3, 0)).await;
    let arrived = one.arrived().len() + two.arrived().len();
    assert_eq!((arrived, sim.spooled()), (before.max(6), 0));
    assert_eq!(sim.log.count(&["InDoubt {"]), 0);
    let gone = one.opened();
    two.script(|_, _| Act::GO);
    for number in 0..20 {
        assert!(acme(&sim, &format!("then {number}")).await.starts_with("250"));
    }
    assert_eq!(one.opened(), gone, "nothing goes there any more");
    assert!(three.names().len() + two.names().len() >= 20);
    assert!(three.opened() >= 1, "it was asked what it offers");
    assert!(two.opened() <= opened + 20);
    let status = sim.upstream("cloud").status();
    assert_eq!(status.in_use, 0);
    assert!(status.targets.iter().all(|target| target.up && target.extensions.is_some()));
}

#[tokio::test(start_paused = true)]
async fn idle_connections_of_what_goes_are_closed() {
    let names = MemoryNames::default();
    names.host(HOST, &["192.0.2.1"], 60);
    let cloud = "handoff = 'direct'\nidle_timeout = '1h'";
    let sim = in_the_cloud(&names, "\"mail.cloud.example:25\"", cloud).await;
    let (one, two) = (sim.sink_at("192.0.2.1:25"), sim.sink_at("192.0.2.2:25"));
    assert!(acme(&sim, "first").await.starts_with("250"));
    let offered = sim.upstream("cloud").extensions();
    assert!(offered.is_some());
    assert_eq!(sim.upstream("cloud").status().idle, 1);
    two.at(Point::Greeting, Act::after(5000));
    names.host(HOST, &["192.0.2.2"], 60);
    sim.until(61_000).await;
    assert_eq!(sim.upstream("cloud").status().idle, 0);
    assert_eq!(one.quits().len(), 1);
    assert_eq!(sim.upstream("cloud").extensions(), offered, "clients are offered no less");
    sim.until(70_000).await;
    assert!(acme(&sim, "second").await.starts_with("250"));
    assert_eq!((one.names(), two.names()), (vec!["first".to_owned()], vec!["second".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_last_is_used_for_a_time_and_then_mail_waits() {
    let names = MemoryNames::default();
    names.host(HOST, &["192.0.2.1"], 60);
    let sim = in_the_cloud(&names, "\"mail.cloud.example:25\"", "handoff = 'direct'").await;
    let one = sim.sink_at("192.0.2.1:25");
    names.silent(true);
    // Its TTL and `keep`.
    for minute in 1..11 {
        sim.until(at(minute, 55)).await;
        if minute < 10 {
            assert!(acme(&sim, &format!("{minute}")).await.starts_with("250"), "{minute}");
            let stale = sim.upstream("cloud").status().names.stale.unwrap();
            assert!(stale >= Duration::from_secs(minute * 60), "{stale:?}");
        }
    }
    sim.until(at(11, 10)).await;
    assert!(sim.upstream("cloud").is_down());
    let reply = acme(&sim, "no").await;
    let expected =
        "451 4.4.3 wavegate: upstream cloud has no target: mail.cloud.example:25 has no answer: ";
    assert!(reply.starts_with(expected), "{reply}");
    let asked = names.asked();
    sim.until(at(21, 10)).await;
    assert!((20..50).contains(&(names.asked() - asked)), "two questions every 34 s");
    names.silent(false);
    names.host(HOST, &["192.0.2.2"], 60);
    let two = sim.sink_at("192.0.2.2:25");
    sim.until(at(22, 0)).await;
    assert!(acme(&sim, "again").await.starts_with("250"));
    assert_eq!((one.names().len(), two.names()), (9, vec!["again".to_owned()]));
    assert_eq!(sim.upstream("cloud").status().names.stale, None);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_target_yet_waits_in_the_spool_and_goes_when_it_has_one() {
    let names = MemoryNames::default();
    names.silent(true);
    let sim = in_the_cloud(&names, "\"mx:cloud.example\"", "").await;
    for number in 0..5 {
        assert!(
            acme(&sim, &number.to_string()).await.starts_with("250 2.0.0 wavegate: queued as ")
        );
    }
    sim.until(at(5, 0)).await;
    assert_eq!(sim.spooled(), 5);
    let sink = sim.sink_at("192.0.2.1:25");
    names.silent(false);
    names.set("cloud.example", Kind::Mx, Err(LookupError::NoSuchRecord));
    names.host("cloud.example", &["192.0.2.1"], 60);
    sim.until(at(6, 0)).await;
    assert_eq!((sink.names().len(), sim.spooled()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn exchangers_behind_others_are_used_only_while_these_are_down() {
    let names = MemoryNames::default();
    names.exchangers("cloud.example", &[(10, "a"), (10, "b"), (20, "c")], 3600);
    for (host, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")] {
        names.host(host, &[address], 3600);
    }
    let cloud = "handoff = 'direct'\neject_after = 1\neject_for = '1s'\neject_max = '1s'\n\
                 messages_per_connection = 1";
    let sim = in_the_cloud(&names, "\"mx:cloud.example\"", cloud).await;
    let [a, b, c] =
        ["192.0.2.1:25", "192.0.2.2:25", "192.0.2.3:25"].map(|address| sim.sink_at(address));
    sim.until(10_000).await;
    for number in 0..10 {
        assert!(acme(&sim, &number.to_string()).await.starts_with("250"));
    }
    assert_eq!((a.names().len(), b.names().len(), c.names().len()), (5, 5, 0));
    a.refuse();
    for number in 0..10 {
        assert!(acme(&sim, &number.to_string()).await.starts_with("250"));
    }
    assert_eq!((b.names().len(), c.names().len()), (15, 0));
    b.refuse();
    for number in 0..10 {
        assert!(acme(&sim, &number.to_string()).await.starts_with("250"));
    }
    assert_eq!(c.names().len(), 10);
    b.listen();
    sim.until(20_000).await;
    for number in 0..10 {
        assert!(acme(&sim, &number.to_string()).await.starts_with("250"));
    }
    assert_eq!((b.names().len(), c.names().len()), (25, 10), "back to those that go first");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_ceases_to_exist_goes_at_once_where_others_are_left() {
    let names = MemoryNames::default();
    names.host(HOST, &["192.0.2.1"], 60);
    names.host("other.example", &["192.0.2.2"], 60);
    let both = "\"mail.cloud.example:25\", \"other.example:25\"";
    let sim = in_the_cloud(&names, both, "handoff = 'direct'").await;
    let (one, two) = (sim.sink_at("192.0.2.1:25"), sim.sink_at("192.0.2.2:25"));
    names.host(HOST, &[], 60);
    sim.until(61_000).await;
    assert_eq!(targets(&sim), ["192.0.2.2:25"]);
    // The last one is kept for a time.
    names.host("other.example", &[], 60);
    sim.until(at(10, 0)).await;
    assert!(acme(&sim, "desperate").await.starts_with("250"));
    sim.until(at(13, 0)).await;
    assert_eq!(targets(&sim), Vec::<String>::new());
    let reply = acme(&sim, "no").await;
    assert!(reply.starts_with("451 4.4.3 wavegate: upstream cloud has no target: "), "{reply}");
    assert!(reply.contains("other.example:25: it has no address"), "{reply}");
    assert_eq!(one.names().len() + two.names().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_has_not_changed_keeps_its_targets_over_a_reload() {
    let names = MemoryNames::default();
    names.host(HOST, &["192.0.2.1"], 3600);
    let setup = |limits| Setup {
        targets: "\"mail.cloud.example:25\"",
        names: names.clone(),
        limits,
        ..Setup::default()
    };
    let sim = setup("").build();
    sim.keep_house();
    settle().await;
    let before = sim.upstream("cloud");
    names.silent(true);
    sim.reload(&setup("recipients = 200"));
    assert!(std::sync::Arc::ptr_eq(&before, &sim.upstream("cloud")));
    assert_eq!(targets(&sim), ["192.0.2.1:25"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_let_out_to_an_upstream_without_a_target() {
    let names = MemoryNames::default();
    names.silent(true);
    let sim = Setup {
        targets: "\"mail.cloud.example:25\"",
        names: names.clone(),
        migration: "probe_every = '1s'\nextend_by = '10s'",
        plan: plan("1s", "05:00:02", "05:00:03"),
        ..Setup::default()
    }
    .build();
    sim.keep_house();
    sim.until(2500).await;
    assert!(acme(&sim, "held").await.starts_with("250 2.0.0 wavegate: queued as "));
    sim.until(60_000).await;
    assert_eq!(sim.spooled(), 1);
    assert!(sim.log.count(&["ProbesFailed", "mail.cloud.example:25 has no answer"]) >= 1);
    assert!(sim.log.count(&["Extended"]) >= 1 && sim.log.count(&["Releasing"]) == 0);
    let sink = sim.sink_at("192.0.2.1:25");
    names.silent(false);
    names.host(HOST, &["192.0.2.1"], 60);
    sim.until(at(3, 0)).await;
    assert_eq!((sink.names(), sim.spooled()), (vec!["held".to_owned()], 0));
}
