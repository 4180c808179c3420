//! The end of a process: what is under way comes to its end, and monitors hear of it.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use nix::sys::signal::Signal;
use wavegate_tests::harness::{Client, Config, Relay, recording, until};

#[test]
fn monitors_are_answered_until_the_last_message_is_through() {
    let sink = recording();
    let relay = Relay::start(&Config::to(&[sink.addr()]).admin());
    assert_eq!(relay.get("/readyz").unwrap(), (200, "ready\n".to_owned()));
    let mut idle = relay.hello();
    let mut busy = relay.hello();
    busy.begin_data();
    busy.send("Subject: half\r\n\r\nhalf a");
    busy.drained();
    relay.signal(Signal::SIGTERM);
    idle.expect_reply("421 4.3.2");
    idle.expect_closed();
    // The drain goes on as long as the message does, and so do the pages.
    let (status, why) = relay.get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(why.starts_with("the relay is stopping\n"), "{why}");
    assert_eq!(relay.get("/livez").unwrap().0, 200);
    // A connection is counted until it has gone from both ends.
    let metrics = until("only the busy one is left", || {
        let metrics = relay.metrics();
        let left = metrics.value("connections{listener=\"listener-1\"}");
        (left == 1.0).then_some(metrics)
    });
    assert_eq!(metrics.value("stopping"), 1.0);
    assert_eq!(metrics.value("sessions_ended_total{reason=\"stopping\"}"), 1.0);
    until("nobody new is let in", || {
        std::net::TcpStream::connect(relay.addr()).is_err().then_some(())
    });
    busy.send(" message\r\n.\r\n");
    busy.expect_reply("250");
    busy.expect_reply("421 4.3.2");
    busy.expect_closed();
    assert_eq!(relay.ended().code(), Some(0));
    let messages = sink.messages();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].content.as_deref().unwrap().ends_with(b"\r\n\r\nhalf a message\r\n"));
}

#[test]
fn a_drain_has_an_end() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).limits("shutdown_timeout = \"300ms\"").admin();
    let relay = Relay::start(&config);
    let mut stuck: Client = relay.hello();
    stuck.begin_data();
    stuck.send("Subject: never\r\n");
    assert_eq!(relay.stop().code(), Some(0));
    stuck.expect_closed();
    assert_eq!(sink.counts().messages, 0);
}
