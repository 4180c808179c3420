//! A plan that changes under a running relay: what was announced is fixed, mail is attributed
//! anew at each attempt, and headers tell instances apart.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::net::SocketAddr;
use std::process::Command;

use wavegate_tests::harness::{Client, Config, Relay, binary, now_ms, recording, rfc3339, until};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// A window that is open closes by the clock so much later: also on a busy machine.
const LATER: u64 = 8000;

fn config(legacy: SocketAddr, cloud: SocketAddr) -> String {
    Config::default()
        .relay("plan = \"waves.toml\"")
        .and_upstream("legacy", &[legacy], "")
        .and_upstream("cloud", &[cloud], "")
        .section(
            "[migration]\nbefore = \"legacy\"\nafter = \"cloud\"\nextend_by = \"1s\"\n[[policy]]\n\
             plugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"\n",
        )
        .to_string()
}

fn instance(name: &str, matcher: &str) -> String {
    format!(
        "[[instance]]\nname = \"{name}\"\nproduct = \"classic\"\nenvironment = \"production\"\n\
         match = {{ {matcher} }}\n"
    )
}

fn wave(id: &str, instance: &str, opens: u64, closes: u64) -> String {
    let (opens, closes) = (rfc3339(opens), rfc3339(closes));
    format!(
        "[[wave]]\nid = \"{id}\"\nenvironment = \"production\"\ninstances = [\"{instance}\"]\n\
         opens = \"{opens}\"\ncloses = \"{closes}\"\n"
    )
}

/// Sends a message: the reply.
fn send(client: &mut Client, from: &str, headers: &str) -> String {
    client.envelope(from, "b@example.org");
    client.expect("DATA", "354");
    client.send(format!("{headers}Subject: s\r\n\r\nx\r\n.\r\n"));
    client.reply()
}

fn is_held(reply: &str) -> bool {
    reply.starts_with("250 2.0.0 wavegate: queued as ")
}

/// Changes files and waits until the relay has seen that by itself and refused it: what it said.
fn refused(relay: &Relay, change: impl FnOnce()) -> String {
    let before = relay.reloads().1;
    change();
    until("the refusal", || (relay.reloads().1 > before).then_some(()));
    relay.refusal(before)
}

/// Changes files and waits until the relay has seen that by itself and uses it.
fn reloaded(relay: &Relay, change: impl FnOnce()) {
    let before = relay.reloads().0;
    change();
    until("the reload", || (relay.reloads().0 > before).then_some(()));
}

#[test]
fn what_was_announced_is_fixed_for_a_running_relay_and_for_the_next_one() {
    let (legacy, cloud) = (recording(), recording());
    let opens = now_ms() + 40 * DAY;
    let bounds = "[[environment]]\nname = \"production\"\nnotice = \"30d\"\n";
    let instances = instance("acme", "senders = [\"acme.example\"]")
        + &instance("globex", "senders = [\"globex.example\"]");
    let plan = |wave: String| format!("{bounds}{instances}{wave}");
    let good = plan(wave("w", "acme", opens, opens + HOUR));
    let files: [(&str, &[u8]); 1] = [("waves.toml", good.as_bytes())];
    let mut relay = Relay::start_with(&config(legacy.addr(), cloud.addr()), &files);
    reloaded(&relay, || {
        let mut announce = Command::new(binary());
        announce.args(["plan", "announce", "w", "--config", "relay.toml"]);
        let output = announce.current_dir(relay.folder()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
    let lock = std::fs::read(relay.folder().join("waves.lock")).unwrap();
    let mut client = relay.hello();
    let moved = plan(wave("w", "acme", opens + 1, opens + HOUR));
    for (bad, words) in [
        (moved.clone(), "which cannot be changed"),
        (plan(wave("w", "globex", opens, opens + HOUR)), "with instance \"acme\", which it lacks"),
        (plan(String::new()), "wave \"w\" is not here"),
        // What would open now, would hold mail now.
        (plan(wave("w", "acme", now_ms(), now_ms() + HOUR)), "was announced"),
    ] {
        let said = refused(&relay, || relay.write("waves.toml", bad));
        assert!(said.contains(words) && said.contains("waves.lock:"), "{said}");
        let reply = send(&mut client, "a@acme.example", "");
        assert!(reply.starts_with("250") && !is_held(&reply), "the old plan stays: {reply}");
    }
    // Nor does it help to lose the lock.
    let said = refused(&relay, || {
        std::fs::remove_file(relay.folder().join("waves.lock")).unwrap();
        relay.write("waves.toml", &moved);
    });
    until("both are seen", || relay.log().contains("no longer says that wave").then_some(()));
    assert!(said.contains("waves.lock"), "{said}");
    relay.write("waves.lock", &lock);
    let (code, said) = relay.restart_fails();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("waves.toml:") && said.contains("which cannot be changed"), "{said}");
    relay.write("waves.toml", &good);
    relay.restart();
    assert!(relay.hello().small().starts_with("250"));
}

#[test]
fn reclassified_mail_goes_the_new_way_at_its_next_attempt() {
    let (legacy, cloud) = (recording(), recording());
    let now = now_ms();
    let plan = |old: &str, new: &str, closes: u64| {
        instance("old", &format!("senders = [\"{old}\"]"))
            + &instance("new", &format!("senders = [\"{new}\"]"))
            + &wave("w", "old", now - HOUR, closes)
    };
    let closes = now + LATER;
    let before = plan("a.example", "b.example", closes);
    let files: [(&str, &[u8]); 1] = [("waves.toml", before.as_bytes())];
    let relay = Relay::start_with(&config(legacy.addr(), cloud.addr()), &files);
    let mut client = relay.hello();
    assert!(is_held(&send(&mut client, "held@a.example", "")));
    assert!(!is_held(&send(&mut client, "x@b.example", "")));
    assert_eq!(legacy.counts().messages, 1);
    // The senders change places. New mail goes the new way at once ...
    reloaded(&relay, || relay.write("waves.toml", plan("b.example", "a.example", closes)));
    until("mail of the new instance goes on", || {
        (!is_held(&send(&mut client, "x@a.example", ""))).then_some(())
    });
    assert!(is_held(&send(&mut client, "held@b.example", "")));
    // ... and what is held stays so, until the window that it waits for ends.
    let has = |messages: &[wavegate_tests::sink::Message], from: &str| {
        messages.iter().any(|one| format!("{one:?}").contains(from))
    };
    assert!(!has(&legacy.messages(), "held@a.example"));
    assert_eq!(cloud.counts().messages, 0);
    until("what was held has left", || {
        let there = has(&legacy.messages(), "held@a.example");
        (there && has(&cloud.messages(), "held@b.example")).then_some(())
    });
    assert_eq!(cloud.counts().messages, 1, "only the mail of the instance that has moved");
}

#[test]
fn headers_tell_instances_apart_before_and_after_the_spool() {
    let (legacy, cloud) = (recording(), recording());
    let now = now_ms();
    let plan = |closes: u64| {
        instance("one", "headers = { \"X-Instance\" = \"one\" }")
            + &instance("two", "headers = { \"X-Instance\" = \"two\" }")
            + &wave("w", "one", now - HOUR, closes)
    };
    let open = plan(now + LATER);
    let files: [(&str, &[u8]); 1] = [("waves.toml", open.as_bytes())];
    let relay = Relay::start_with(&config(legacy.addr(), cloud.addr()), &files);
    let mut client = relay.hello();
    let mut sent = |headers: &str| is_held(&send(&mut client, "a@shared.example", headers));
    assert!(sent("X-Instance: one\r\n"));
    assert!(sent("x-instance:\r\n =?utf-8?q?one?= \r\n"), "folded and encoded");
    assert!(!sent("X-Instance: two\r\n"));
    assert!(!sent("X-Instance: oneself\r\n"));
    assert!(!sent(""));
    assert_eq!((legacy.counts().messages, cloud.counts().messages), (3, 0));
    until("what was held is at the cloud", || (cloud.counts().messages == 2).then_some(()));
    assert_eq!(legacy.counts().messages, 3);
}
