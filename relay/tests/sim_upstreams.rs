//! Upstreams in a simulated world: ejection and return, pooled connections, faults at every
//! point of a dialogue, and what EHLO offers because of them.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::sim::{Act, Point, Setup, Sim, Sink, at, plan, settle};
use tokio::task::JoinSet;
use wavegate_smtp::{Extension, Extensions};

const GLOBEX: &str = "10.0.2.1";

async fn mail(sim: &Sim, name: &str) -> String {
    sim.sender(GLOBEX).await.mail("a@globex.example", name).await
}

/// A window that is over after 3 s: mail of acme goes to the cloud, which has two targets.
async fn in_the_cloud(cloud: &'static str) -> (Sim, [Sink; 2]) {
    let plan = plan("1s", "05:00:02", "05:00:03");
    let sim = Setup { cloud, plan, ..Setup::default() }.build();
    let sinks = [sim.sink(2602), sim.sink(2603)];
    sim.until(3000).await;
    (sim, sinks)
}

async fn acme(sim: &Sim, name: &str) -> String {
    sim.sender("10.0.1.1").await.mail("a@acme.example", name).await
}

#[tokio::test(start_paused = true)]
async fn a_target_is_ejected_and_a_probe_lets_it_back() {
    let legacy = "handoff = 'direct'\neject_after = 3\neject_for = '1s'\neject_max = '4s'\n\
                  idle_timeout = '1s'";
    let sim = Setup { legacy, ..Setup::default() }.build();
    let sink = sim.sink(2601);
    sim.keep_house();
    settle().await;
    assert!(mail(&sim, "before").await.starts_with("250"));
    sink.refuse();
    sink.close_all();
    settle().await;
    for _ in 0..3 {
        assert!(!sim.upstream("legacy").is_down());
        let reply = mail(&sim, "no").await;
        assert!(
            reply.starts_with("451 4.4.1 wavegate: upstream legacy, target 127.0.0.1:2601: "),
            "{reply}"
        );
    }
    assert!(sim.upstream("legacy").is_down());
    let failed = sim.upstream("legacy").status().failed;
    let reply = mail(&sim, "no").await;
    assert!(
        reply.starts_with("451 4.4.1 wavegate: every target of upstream legacy is down; last: "),
        "{reply}"
    );
    assert_eq!(sim.upstream("legacy").status().failed, failed, "no message finds out");
    sim.until(at(1, 0)).await;
    assert!(sim.upstream("legacy").is_down());
    sink.listen();
    // The longest pause and a quarter of it.
    sim.until(at(1, 6)).await;
    assert!(!sim.upstream("legacy").is_down(), "a probe found out");
    assert!(mail(&sim, "after").await.starts_with("250"));
    assert_eq!(sink.names(), ["before", "after"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_down_upstream_cannot_have_waits_and_goes_when_a_probe_lets_it_back() {
    let legacy = "eject_after = 3\neject_for = '1s'\neject_max = '4s'";
    let sim = Setup { legacy, ..Setup::default() }.build();
    let sink = sim.sink(2601);
    sim.keep_house();
    settle().await;
    sink.refuse();
    let names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    for name in &names {
        let reply = mail(&sim, name).await;
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
    }
    sim.until(at(5, 0)).await;
    assert!(sim.upstream("legacy").is_down());
    assert_eq!((sink.names().len(), sim.spooled()), (0, 20));
    let failed = sim.upstream("legacy").status().failed;
    assert!(failed < 200, "probes asked, not messages: {failed} connections failed");
    sink.listen();
    // The longest pause and a quarter of it.
    sim.until(at(5, 6)).await;
    let mut arrived = sink.names();
    arrived.sort_by_key(|name| name.parse::<u32>().unwrap());
    assert_eq!((arrived, sim.spooled()), (names, 0));
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_heard_and_a_lost_one_means_another_attempt() {
    let legacy = "final_timeout = '1min'\nretry_first = '30s'";
    for (code, arrivals, doubts) in [(250, 1, 0), (451, 2, 0), (0, 2, 1)] {
        let sim = Setup { legacy, ..Setup::default() }.build();
        let sink = sim.sink(2601);
        let mut first = true;
        sink.script(move |point, _| {
            if point != Point::End || !std::mem::take(&mut first) {
                return Act::GO;
            }
            let late = Act::after(50_000);
            match code {
                250 => late,
                0 => Act { what: Act::CLOSE.what, ..late },
                code => Act { what: Act::reply(code).what, ..late },
            }
        });
        let reply = mail(&sim, "late").await;
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
        assert!((20_000..20_100).contains(&sim.elapsed()), "limits.direct_deadline");
        sim.until(at(5, 0)).await;
        let arrived = sink.arrived();
        assert_eq!(arrived.iter().filter(|one| one.name() == "late").count(), arrivals, "{code}");
        assert_eq!((sim.log.count(&["InDoubt {"]), sim.spooled()), (doubts, 0), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_does_not_let_it_back() {
    let legacy = "handoff = 'direct'\neject_after = 1\nconnect_timeout = '1s'\neject_max = '2s'";
    let sim = Setup { legacy, ..Setup::default() }.build();
    let sink = sim.sink(2601);
    sink.at(Point::Greeting, Act::reply(554));
    sim.keep_house();
    for second in 1..60 {
        sim.until(second * 1000).await;
        if second == 30 {
            sink.at(Point::Greeting, Act::after(3_000));
        }
        assert!(sim.upstream("legacy").is_down(), "at {second} s");
    }
    assert!(sink.opened() > 10, "it was probed {} times", sink.opened());
    assert!(mail(&sim, "no").await.contains("no answer within 1s"));
}

#[tokio::test(start_paused = true)]
async fn another_target_takes_over_and_the_broken_one_is_left_alone() {
    let (sim, [one, two]) = in_the_cloud("eject_after = 2\nmessages_per_connection = 1").await;
    one.at(Point::Greeting, Act::CLOSE);
    for number in 0..10 {
        assert!(acme(&sim, &number.to_string()).await.starts_with("250"));
    }
    assert_eq!((one.opened(), two.names().len()), (2, 10));
    let status = sim.upstream("cloud").status();
    assert_eq!(status.targets.iter().map(|target| target.up).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_421_at_mail_is_tried_again_at_another_target() {
    for act in [Act::reply(421), Act::CLOSE] {
        let (sim, [one, two]) = in_the_cloud("messages_per_connection = 1").await;
        // With CHUNKING the end of data is out before the reply to MAIL, and a mere close
        // leaves the message in doubt.
        one.without_chunking();
        one.at(Point::Mail, act);
        for number in 0..8 {
            assert!(acme(&sim, &number.to_string()).await.starts_with("250"));
        }
        assert_eq!((one.arrived(), two.names().len()), (vec![], 8));
        assert!(one.opened() > 0);
        assert_eq!(sim.log.count(&["AttemptRetried"]), one.opened());
    }
}

/// Makes this many pooled connections.
async fn fill_pool(sim: &Sim, sink: &Sink, count: usize) {
    sink.at(Point::End, Act::after(1000));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let mut sender = sim.sender(GLOBEX).await;
        tasks.spawn(async move { sender.mail("a@globex.example", &number.to_string()).await });
    }
    while let Some(reply) = tasks.join_next().await {
        assert!(reply.unwrap().starts_with("250"));
    }
    assert_eq!(sim.upstream("legacy").status().idle, count);
    sink.script(|_, _| Act::GO);
}

#[tokio::test(start_paused = true)]
async fn stale_pooled_connections_cost_no_message() {
    let pool = 8;
    // They close while idle, or say 421 to the next message, or close at it.
    for act in [None, Some(Act::reply(421)), Some(Act::CLOSE)] {
        for connections in [8, 20] {
            let legacy = match connections {
                8 => "handoff = 'direct'\nconnections = 8",
                _ => "handoff = 'direct'\nconnections = 20",
            };
            let sim = Setup { legacy, ..Setup::default() }.build();
            let sink = sim.sink(2601);
            // With it the whole message is out at once, and in doubt if nothing comes back.
            if act.as_ref().is_some_and(Act::is_close) {
                sink.without_chunking();
            }
            fill_pool(&sim, &sink, pool).await;
            match act.clone() {
                None => sink.close_all(),
                Some(act) => sink.script(move |point, number| {
                    if point == Point::Mail && number <= pool { act.clone() } else { Act::GO }
                }),
            }
            settle().await;
            for number in 0..20 {
                let reply = mail(&sim, &format!("after {number}")).await;
                assert!(reply.starts_with("250"), "{act:?} {legacy}: {reply}");
            }
            assert!(!sim.upstream("legacy").is_down(), "an old connection says nothing of it");
            assert_eq!(sink.names().len(), pool + 20);
            assert!(sink.most_open() <= connections);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_doubt_is_not_tried_again() {
    let legacy = "handoff = 'direct'\nfinal_timeout = '30s'";
    let limits = "direct_deadline = '1min'";
    let sim = Setup { legacy, limits, ..Setup::default() }.build();
    let sink = sim.sink(2601);
    for (number, act) in [Act::CLOSE, Act::after(31_000)].into_iter().enumerate() {
        sink.at(Point::End, act);
        let reply = mail(&sim, "doubt").await;
        assert!(
            reply.starts_with(
                "451 4.4.2 wavegate: upstream legacy may have taken it, its reply was lost: "
            ),
            "{reply}"
        );
        assert_eq!(sink.arrived().len(), number + 1);
        assert_eq!(sim.log.count(&["InDoubt { instance: Some(\"globex\")"]), number + 1);
    }
    assert_eq!(sim.log.count(&["AttemptRetried"]), 0);
    let status = sim.upstream("legacy").status();
    assert_eq!((status.in_use, status.idle), (0, 0), "the connection is not used again");
    // A 421 to the end of data is a reply: nothing is in doubt.
    sink.at(Point::End, Act::reply(421));
    let reply = mail(&sim, "closing").await;
    assert!(reply.starts_with("451 4.3.2"), "{reply}");
    assert_eq!(sim.log.count(&["InDoubt {"]), 2);
}

#[tokio::test(start_paused = true)]
async fn a_whole_message_that_was_written_at_once_is_in_doubt_after_a_close() {
    let sim = Setup::default().build();
    let sink = sim.sink(2601);
    sink.at(Point::Mail, Act::CLOSE);
    assert!(mail(&sim, "doubt").await.starts_with("451 4.4.2 "));
    assert_eq!(sink.opened(), 1, "not tried again");
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_own_refusals_reach_the_client() {
    let sim = Setup { legacy: "deferred = 'pass'", ..Setup::default() }.build();
    let sink = sim.sink(2601);
    for point in [Point::Mail, Point::Data, Point::End] {
        for code in [451, 550] {
            sink.at(point, Act::reply(code));
            let reply = mail(&sim, "no").await;
            assert!(reply.starts_with(&code.to_string()), "{point:?}: {reply}");
        }
    }
    assert_eq!(sink.opened(), 1, "one connection saw it all");
    sink.script(|_, _| Act::GO);
    assert!(mail(&sim, "yes").await.starts_with("250"));
    assert_eq!(sink.names(), ["yes"]);
}

#[tokio::test(start_paused = true)]
async fn connections_are_closed_after_their_messages_and_when_idle() {
    let legacy = "messages_per_connection = 3\nidle_timeout = '10s'";
    let sim = Setup { legacy, ..Setup::default() }.build();
    let sink = sim.sink(2601);
    sim.keep_house();
    settle().await;
    let probe = sink.opened();
    for number in 0..7 {
        assert!(mail(&sim, &number.to_string()).await.starts_with("250"));
    }
    settle().await;
    assert_eq!((sink.opened() - probe, sink.quits().len() - probe, sink.open()), (3, 2, 1));
    let from = sink.arrived().iter().map(|one| one.connection - probe).collect::<Vec<_>>();
    assert_eq!(from, [1, 1, 1, 2, 2, 2, 3]);
    sim.until(9_000).await;
    assert_eq!(sink.open(), 1);
    sim.until(16_000).await;
    assert_eq!((sink.open(), sink.quits().len() - probe), (0, 3), "closed with QUIT");
}

#[tokio::test(start_paused = true)]
async fn a_retired_upstream_keeps_nothing_and_a_revived_one_does() {
    let sim = Setup { legacy: "handoff = 'direct'", ..Setup::default() }.build();
    let sink = sim.sink(2601);
    fill_pool(&sim, &sink, 3).await;
    let upstream = sim.upstream("legacy");
    sink.at(Point::End, Act::after(500));
    let mut sender = sim.sender(GLOBEX).await;
    let going = tokio::spawn(async move { sender.mail("a@globex.example", "going").await });
    settle().await;
    upstream.retire();
    settle().await;
    assert_eq!((sink.open(), sink.quits().len()), (1, 2), "what is under way goes on");
    assert!(going.await.unwrap().starts_with("250"));
    settle().await;
    assert_eq!((sink.open(), upstream.status().idle), (0, 0));
    upstream.revive();
    assert!(mail(&sim, "again").await.starts_with("250"));
    assert_eq!((sink.open(), upstream.status().idle), (1, 1));
}

/// The keywords of the answer to EHLO.
async fn offered(sim: &Sim) -> Vec<String> {
    let offered = sim.sender(GLOBEX).await.offered;
    let mut words: Vec<_> = offered.lines().skip(1).map(|line| line[4..].to_owned()).collect();
    words.sort();
    words
}

#[tokio::test(start_paused = true)]
async fn ehlo_offers_what_every_upstream_does() {
    let own = |size| ["CHUNKING", "ENHANCEDSTATUSCODES", "PIPELINING", size].map(str::to_owned);
    let sim = Setup::default().build();
    let [legacy, one, two] = [2601, 2602, 2603].map(|port| sim.sink(port));
    legacy.without_chunking();
    one.extensions(Extensions::full(1_000_000).without(Extension::SmtpUtf8));
    two.refuse();
    assert_eq!(offered(&sim).await, own("SIZE 52428800"), "nobody was asked yet");
    legacy.refuse();
    sim.keep_house();
    settle().await;
    assert_eq!(offered(&sim).await, own("SIZE 1000000"), "one of them has never answered");
    legacy.listen();
    sim.until(10_000).await;
    let all = ["8BITMIME", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "PIPELINING", "SIZE 1000000"];
    assert_eq!(offered(&sim).await, all, "a target that never answered takes nothing away");
    two.extensions(Extensions::NONE.with(Extension::EightBitMime));
    two.listen();
    sim.until(at(3, 0)).await;
    let least = ["8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES", "PIPELINING", "SIZE 1000000"];
    assert_eq!(offered(&sim).await, least, "what both targets offer");
}
