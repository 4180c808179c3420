//! Policies that misbehave: their fail mode applies, other mail, other policies and the process go
//! on.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wavegate_tests::harness::{Config, Relay, plan_of_held, recording, until};
use wavegate_tests::sink::SinkHandle;

const HOSTILE: &[u8] = include_bytes!("../guests/hostile.wasm");

/// A relay with the hostile policy, told what to do, and two standard ones.
fn told(what: &str, lines: &str) -> (Relay, SinkHandle) {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).upstream(DIRECT).section(&policies(what, lines));
    let config = config.admin();
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
fn fails_and_holds(what: &str, lines: &str, kind: &str) {
    let (mut relay, sink) = told(what, lines);
    let mut client = relay.hello();
    let before = relay.memory();
    for _ in 0..5 {
        let reply = client.small();
        assert!(is_held(&reply), "{what}: {reply}");
    }
    assert!(relay.log().contains("policy=\"hostile\""), "{what}: the log says which policy");
    assert_eq!(sink.counts().messages, 0, "{what}");
    let label = format!("kind=\"{kind}\"");
    let failed = relay.metrics().sum("policy_failures_total", &["policy=\"hostile\"", &label]);
    assert_eq!(failed, 5.0, "{what}: {kind}");
    let grown = relay.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{what}: {grown} bytes stay");
    relay.assert_alive();
    relay.write("relay.toml", Config::to(&[sink.addr()]).admin().to_string());
    relay.reload();
    assert!(client.small().starts_with("250"), "{what}: the session went on");
    until("all are delivered", || (sink.counts().messages == 6).then_some(()));
}

#[test]
fn an_endless_loop_holds() {
    fails_and_holds("loop", "timeout = \"20ms\"", "timeout");
}

#[test]
fn an_allocation_bomb_holds() {
    fails_and_holds("allocate", "timeout = \"500ms\"", "memory");
}

#[test]
fn a_trap_holds() {
    fails_and_holds("trap", "", "trap");
}

#[test]
fn deep_recursion_holds() {
    fails_and_holds("recurse", "timeout = \"500ms\"", "trap");
}

#[test]
fn a_huge_answer_holds() {
    fails_and_holds("huge", "timeout = \"500ms\"", "bad-answer");
}

#[test]
fn an_endless_filling_of_memory_holds() {
    fails_and_holds("fill", "timeout = \"20ms\"", "timeout");
}

#[test]
fn a_gigabyte_of_text_holds_whether_it_is_there_or_not() {
    fails_and_holds("gigabyte", "timeout = \"500ms\"", "memory");
    fails_and_holds("gigabyte", "timeout = \"5s\"\nmemory = \"1GiB\"", "memory");
    fails_and_holds("gigabyte-lie", "", "bad-answer");
}

#[test]
fn ten_million_limits_and_lessons_are_the_policys_failure_and_mail_goes_on() {
    let (mut relay, sink) = told("ten-million", "timeout = \"2s\"\nmemory = \"100MiB\"");
    let before = relay.memory();
    let mut client = relay.hello();
    // The list that it routes by is refused: the routing hook's fail mode is to defer.
    let reply = client.small();
    assert!(reply.starts_with("451 4.3.0 wavegate: policy hostile failed"), "{reply}");
    assert_eq!(sink.counts().messages, 0);
    let grown = relay.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes stay");
    relay.assert_alive();
}

#[test]
fn a_trap_in_each_hook_has_the_fail_mode_of_that_hook() {
    for (what, reply, arrive) in [
        ("decide-trap", "250 2.0.0 wavegate: queued as ", 0),
        ("route-trap", "451 4.3.0 wavegate: policy hostile failed", 0),
        // The upstream's own limits are left.
        ("limits-trap", "250 ", 5),
        ("observe-trap", "250 ", 5),
    ] {
        let (relay, sink) = told(what, "");
        let mut client = relay.hello();
        for _ in 0..5 {
            let said = client.small();
            assert!(said.starts_with(reply), "{what}: {said}");
        }
        assert_eq!(sink.counts().messages, arrive, "{what}");
        let labels = ["policy=\"hostile\"", "kind=\"trap\""];
        relay.wait_metrics("five traps", |all| all.sum("policy_failures_total", &labels) == 5.0);
    }
    let (mut relay, _sink) = told("nothing", "");
    let mut client = relay.hello();
    let good = std::fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
    relay.write("relay.toml", good.replace("do = \"nothing\"", "do = \"configure-trap\""));
    let said = relay.reload_refused();
    assert!(said.contains("failed in configure: trap"), "{said}");
    relay.write("relay.toml", good);
    let describe = replaced(HOSTILE, b"describe=answers", b"describe=traps..");
    relay.write("hostile.wasm", describe);
    let said = relay.reload_refused();
    assert!(said.contains("failed in describe: trap"), "{said}");
    assert!(is_answered(&client.small()));
    relay.assert_alive();
}

/// The same bytes with others in the one place where these are.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let place = memchr::memmem::find(bytes, from).unwrap();
    [&bytes[..place], to, &bytes[place + to.len()..]].concat()
}

#[test]
fn nothing_that_a_policy_does_gets_mail_out_of_a_frozen_instance() {
    for (what, lines) in [
        ("nothing", ""),
        ("no-limits", ""),
        ("decide-trap", ""),
        ("decide-trap", "fail = \"defer\""),
        ("route-trap", ""),
        ("limits-trap", ""),
        ("unknown-upstream", ""),
        ("loop", "timeout = \"20ms\""),
        ("decide-slow", "timeout = \"5s\""),
    ] {
        let sink = recording();
        let config = Config::to(&[sink.addr()]).relay("plan = \"waves.toml\"").section(&format!(
            "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"hostile.wasm\"\n\
             settings = {{ do = \"{what}\" }}\n{lines}\n"
        ));
        let plan = plan_of_held();
        let files: [(&str, &[u8]); 2] =
            [("hostile.wasm", HOSTILE), ("waves.toml", plan.as_bytes())];
        let mut relay = Relay::start_with(&config.admin().to_string(), &files);
        let mut client = relay.hello();
        for _ in 0..4 {
            client.envelope("a@held.example", "b@example.org");
            client.expect("DATA", "354");
            client.send("x\r\n.\r\n");
            let reply = client.reply();
            assert!(is_held(&reply) || reply.starts_with("451 "), "{what}: {reply}");
        }
        // What is asked about what waits: a new configuration, the same hostile one.
        relay.reload();
        if what == "nothing" {
            assert!(!is_held(&client.small()), "mail of others goes");
            assert!(sink.messages().iter().all(|one| !one.from.contains("held.example")));
            let against = relay.metrics().sum("proceed_against_plan_total", &[]);
            assert!(against >= 4.0, "{against}");
        } else {
            assert_eq!(relay.metrics().sum("wave_leaked_total", &[]), 0.0, "{what}");
        }
        let held = sink.messages().iter().filter(|one| one.from.contains("held.example")).count();
        assert_eq!(held, 0, "{what}");
        relay.assert_alive();
    }
}

#[test]
fn a_loop_for_some_messages_keeps_no_others_waiting() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).relay("workers = 1").admin();
    let config =
        config.section(&policies("loop-on-poison\", and = \"no-limits", "timeout = \"3s\""));
    let relay = Relay::start_with(&config.to_string(), &[("hostile.wasm", HOSTILE)]);
    let mut poisoned = relay.hello();
    let mut other = relay.hello();
    poisoned.envelope("poison@example.com", "b@example.org");
    poisoned.expect("DATA", "354");
    let begun = Instant::now();
    poisoned.send("x\r\n.\r\n");
    let mut served = 0;
    while !poisoned.has_reply_within(Duration::from_millis(1)) {
        let asked = Instant::now();
        assert!(is_answered(&other.small()));
        let (took, after) = (asked.elapsed(), asked.duration_since(begun));
        assert!(took < Duration::from_secs(1), "one took {took:?}, {after:?} after the loop began");
        served += 1;
    }
    assert!(begun.elapsed() >= Duration::from_secs(3), "the loop had its whole timeout");
    assert!(served > 20, "{served}");
    assert!(is_held(&poisoned.reply()));
    let slow = relay.metrics().sum("policy_slow_calls_total", &["policy=\"hostile\""]);
    assert_eq!(slow, 1.0);
}

#[test]
fn what_is_slow_is_answered_all_the_same_at_each_hook() {
    for what in ["decide-slow", "route-slow", "limits-slow", "observe-slow"] {
        let (relay, sink) = told(what, "timeout = \"5s\"");
        let reply = relay.hello().small();
        assert!(is_answered(&reply) && reply.starts_with("250"), "{what}: {reply}");
        assert_eq!(sink.counts().messages, 1, "{what}");
        let metrics = relay.metrics();
        assert_eq!(metrics.sum("policy_failures_total", &[]), 0.0, "{what}");
        assert!(metrics.sum("policy_slow_calls_total", &["policy=\"hostile\""]) >= 1.0, "{what}");
    }
}

#[test]
fn a_bomb_for_the_compiler_is_refused_while_mail_goes_on() {
    let (mut relay, _sink) = told("nothing", "");
    let mut client = relay.hello();
    assert!(client.small().starts_with("250"));
    let before = relay.memory();
    relay.write("hostile.wasm", bomb(5000, 10_000));
    let refused = relay.reloads().1;
    relay.signal(Signal::SIGHUP);
    let mut most = Duration::ZERO;
    until("the refusal", || {
        let asked = Instant::now();
        assert!(is_answered(&client.small()));
        most = most.max(asked.elapsed());
        assert!(relay.memory() < before + (200 << 20), "the compiler's memory is not the relay's");
        (relay.reloads().1 > refused).then_some(())
    });
    let said = relay.refusal(refused);
    assert!(said.contains("compiling it takes more than 1024 MiB of memory"), "{said}");
    assert!(most < Duration::from_secs(1), "a message took {most:?}");
    // Whoever has seen the file change may be at the bomb once more.
    let made = relay.reloads().0;
    relay.write("hostile.wasm", HOSTILE);
    relay.signal(Signal::SIGHUP);
    until("a good reload", || (relay.reloads().0 > made).then_some(()));
    assert!(is_answered(&client.small()));
    let grown = relay.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes stay");
    relay.assert_alive();
}

/// A component of a hundred kilobytes: one function with many loops in each other and many
/// variables that change within all of them.
fn bomb(loops: usize, variables: usize) -> Vec<u8> {
    let variable = |number| leb(number);
    let mut body = [&[1][..], &variable(variables), &[0x7e]].concat();
    body.extend([0x03, 0x40].repeat(loops));
    for number in 0..variables {
        let one = variable(number);
        body.extend([&[0x20][..], &one, &[0x42, 1, 0x7c, 0x21], &one].concat());
    }
    body.extend([0x41, 0, 0x0d, 0]);
    body.extend(vec![0x0b; loops + 1]);
    let code = section(10, &[&[1][..], &leb(body.len()), &body].concat());
    let functions = [section(1, &[1, 0x60, 0, 0]), section(3, &[1, 0])].concat();
    let module = [&b"\0asm\x01\0\0\0"[..], &functions, &code].concat();
    [&b"\0asm\x0d\0\x01\0"[..], &section(1, &module)].concat()
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// A number as WebAssembly writes it.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
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
