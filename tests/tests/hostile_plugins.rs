//! Policies that misbehave: their fail mode applies, other mail, other policies and the process go
//! on.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use wavegate_tests::harness::{Config, Relay, recording, until};
use wavegate_tests::sink::SinkHandle;

const HOSTILE: &[u8] = include_bytes!("../guests/hostile.wasm");

/// A relay with the hostile policy, told what to do, and two standard ones.
fn told(what: &str, lines: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).upstream(DIRECT).section(&policies(what, lines));
    let relay = Relay::start_with(&config.to_string(), &[("hostile.wasm", HOSTILE)]);
    (relay, sink)
}

fn policies(what: &str, lines: &str) -> String {
    format!(
        "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"hostile.wasm\"\n\
         settings = {{ do = \"{what}\" }}\n{lines}\n[[policy]]\nplugin = \"builtin:freeze\"\n\
         [[policy]]\nplugin = \"builtin:routing\"\n[[policy]]\nplugin = \"builtin:throttle\"\n"
    )
}

/// What a limit blocks stays with the sender; what a policy holds is spooled.
const DIRECT: &str = "handoff = \"direct\"";

/// Whether the policies answered: the hostile one, when it behaves, pauses for a second after each
/// message.
fn is_answered(reply: &str) -> bool {
    (reply.starts_with("250") && !is_held(reply))
        || (reply.starts_with("451 4.7.0") && reply.contains("limit"))
}

fn is_held(reply: &str) -> bool {
    reply.starts_with("250 2.0.0 wavegate: queued as ")
}

/// The policy fails at every message: each is held, nothing leaves, the process goes on; and once
/// the policy is gone, so is the trouble, and what was held leaves.
fn fails_and_holds(what: &str, lines: &str) {
    let (mut relay, sink) = told(what, lines);
    let mut client = relay.hello();
    let before = relay.memory();
    for _ in 0..5 {
        let reply = client.small();
        assert!(is_held(&reply), "{what}: {reply}");
    }
    assert!(relay.log().contains("policy=\"hostile\""), "{what}: the log says which policy");
    assert_eq!(sink.counts().messages, 0, "{what}");
    let grown = relay.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{what}: {grown} bytes stay");
    relay.assert_alive();
    relay.write("relay.toml", Config::to(&[sink.addr()]).to_string());
    relay.reload();
    assert!(client.small().starts_with("250"), "{what}: the session went on");
    until("all are delivered", || (sink.counts().messages == 6).then_some(()));
}

#[test]
fn an_endless_loop_holds() {
    fails_and_holds("loop", "timeout = \"20ms\"");
}

#[test]
fn an_allocation_bomb_holds() {
    fails_and_holds("allocate", "timeout = \"500ms\"");
}

#[test]
fn a_trap_holds() {
    fails_and_holds("trap", "");
}

#[test]
fn deep_recursion_holds() {
    fails_and_holds("recurse", "timeout = \"500ms\"");
}

#[test]
fn a_huge_answer_holds() {
    fails_and_holds("huge", "timeout = \"500ms\"");
}

#[test]
fn a_poison_message_costs_only_itself() {
    let (relay, sink) = told("trap-on-poison", "");
    let mut client = relay.hello();
    for _ in 0..10 {
        client.envelope("poison@example.com", "b@example.org");
        client.expect("DATA", "354");
        client.send("x\r\n.\r\n");
        client.expect_reply("250 2.0.0 wavegate: queued as ");
        let reply = client.small();
        assert!(is_answered(&reply), "{reply}");
    }
    assert!(sink.counts().messages >= 1);
}

#[test]
fn traps_in_some_sessions_do_not_touch_the_others() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).upstream(DIRECT).relay("workers = 2");
    let config = config.section(&policies("trap-on-poison", ""));
    let relay = Relay::start_with(&config.to_string(), &[("hostile.wasm", HOSTILE)]);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let mut client = relay.hello();
            scope.spawn(move || {
                for _ in 0..20 {
                    let sender = if number % 2 == 0 { "poison@x.example" } else { "a@x.example" };
                    client.envelope(sender, "b@example.org");
                    client.expect("DATA", "354");
                    client.send("x\r\n.\r\n");
                    let reply = client.reply();
                    let good =
                        if number % 2 == 0 { !is_answered(&reply) } else { is_answered(&reply) };
                    assert!(good, "{sender}: {reply}");
                }
            });
        }
    });
    assert!(sink.counts().messages >= 1);
}

#[test]
fn control_characters_in_a_policys_words_are_refused_or_escaped() {
    // The client of these tests refuses every reply with a control character in it.
    for what in ["control", "reply-text", "reply-form", "long-reason", "reply-long"] {
        let (relay, sink) = told(what, "");
        let mut client = relay.hello();
        let reply = client.small();
        assert!(is_held(&reply) || reply.starts_with(['4', '5']), "{what}: {reply}");
        assert!(!reply.contains('\n'), "{what}: one line: {reply}");
        client.expect("NOOP", "250");
        assert_eq!(sink.counts().messages, 0, "{what}");
    }
}

#[test]
fn a_policy_cannot_say_250_or_close_the_session() {
    for what in ["reply-250", "reply-421", "reply-class", "reply-enhanced"] {
        let (relay, sink) = told(what, "");
        let mut client = relay.hello();
        let reply = client.small();
        assert!(is_held(&reply), "{what}: {reply}");
        client.expect("NOOP", "250");
        assert_eq!(sink.counts().messages, 0, "{what}");
    }
}

#[test]
fn a_policy_that_floods_the_log_forges_no_line() {
    let (relay, sink) = told("chatter", "");
    assert!(relay.hello().small().starts_with("250"));
    let log = relay.log();
    assert!(!log.lines().any(|line| line.starts_with("forged")), "a forged line in the log");
    assert_eq!(sink.counts().messages, 1);
}

#[test]
fn routes_that_make_no_sense_are_deferred() {
    for what in [
        "split-missing",
        "split-double",
        "split-beyond",
        "split-empty",
        "unknown-upstream",
        "fallbacks",
    ] {
        let (relay, sink) = told(what, "");
        let mut client = relay.hello();
        let reply = client.small();
        assert!(reply.starts_with("451 4."), "{what}: {reply}");
        assert_eq!(sink.counts().messages, 0, "{what}");
    }
}

#[test]
fn bad_settings_are_refused_at_reload_and_the_old_generation_stays() {
    for what in
        ["diagnostics", "no-reason", "configure-loop", "many-attributes", "strange-attribute"]
    {
        let (mut relay, _sink) = told("nothing", "");
        let mut client = relay.hello();
        assert!(client.small().starts_with("250"));
        let targets = std::fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
        relay.write("relay.toml", targets.replace("do = \"nothing\"", &format!("do = \"{what}\"")));
        let said = relay.reload_refused();
        assert!(said.contains("hostile"), "{what}: {said}");
        let reply = client.small();
        assert!(is_answered(&reply), "{what}: {reply}");
        relay.assert_alive();
    }
}
