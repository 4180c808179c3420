//! Shadows in the real relay: whatever they say and however they fail, no reply and no delivery is
//! another one, and an operator sees what they would change.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::process::Command;

use serde_json::Value;
use wavegate_tests::harness::{
    Client, Config, Metrics, Relay, binary, plan_of_held, recording, until,
};
use wavegate_tests::sink::SinkHandle;

const HOSTILE: &[u8] = include_bytes!("../guests/hostile.wasm");

/// The three policies that come with the relay: everything goes to `up`.
const LIVE: &str = "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\n\
     plugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"\n[[policy]]\n\
     plugin = \"builtin:throttle\"\n";

/// The hostile policy as a shadow that is told what to do.
fn shadow(told: &str, lines: &str) -> String {
    format!(
        "[[policy]]\nname = \"{told}\"\nplugin = \"hostile.wasm\"\nmode = \"shadow\"\n\
         settings = {{ do = \"{told}\" }}\n{lines}\n"
    )
}

/// A relay with two upstreams; the hostile policy would send all to `other`.
fn start(policies: &str, plan: Option<&str>) -> (Relay, SinkHandle, SinkHandle) {
    let (other, up) = (recording(), recording());
    let config = Config::default()
        .and_upstream("other", &[other.addr()], "")
        .and_upstream("up", &[up.addr()], "")
        .relay(if plan.is_some() { "plan = \"waves.toml\"" } else { "" })
        .admin()
        .section(policies);
    let mut files = vec![("hostile.wasm", HOSTILE)];
    files.extend(plan.map(|plan| ("waves.toml", plan.as_bytes())));
    (Relay::start_with(&config.to_string(), &files), other, up)
}

/// Whether the upstream has taken it.
fn is_delivered(reply: &str) -> bool {
    reply.starts_with("250") && !reply.contains("wavegate: queued as ")
}

fn send(client: &mut Client, from: &str, to: &str) -> String {
    client.envelope(from, to);
    client.expect("DATA", "354");
    client.send("Subject: x\r\n\r\nx\r\n.\r\n");
    client.reply()
}

fn answers(metrics: &Metrics, policy: &str, class: &str) -> f64 {
    metrics.value(&format!("policy_shadow_total{{policy=\"{policy}\",class=\"{class}\"}}"))
}

fn asked(metrics: &Metrics, policy: &str) -> f64 {
    metrics.sum("policy_shadow_total", &[&format!("policy=\"{policy}\"")])
}

fn dropped(metrics: &Metrics, policy: &str) -> f64 {
    metrics.value(&format!("policy_shadow_dropped_total{{policy=\"{policy}\"}}"))
}

/// What the relay counts when so many questions to a shadow were asked or dropped.
fn settled(relay: &Relay, policy: &str, questions: f64) -> Metrics {
    relay.wait_metrics(policy, |metrics| {
        let all = asked(metrics, policy) + dropped(metrics, policy);
        assert!(all <= questions, "{policy}: {all} of {questions}");
        all == questions
    })
}

fn report(relay: &Relay, arguments: &[&str]) -> (i32, String) {
    let config = relay.folder().join("relay.toml");
    let command = ["plugin", "shadow-report"].iter().chain(arguments);
    let output = Command::new(binary()).args(command).arg("--config").arg(config).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn whatever_a_shadow_does_nothing_comes_of_it() {
    const MESSAGES: u32 = 20;
    let what = [
        ("refuse", "harder"),
        ("defer", "harder"),
        ("long-reason", "harder"),
        ("trap", "error"),
        ("loop", "error"),
        ("allocate", "error"),
        ("recurse", "error"),
        ("huge", "error"),
        ("reply-250", "error"),
    ];
    let mut policies = LIVE.to_owned();
    for (told, _) in what {
        policies += &shadow(told, "replaces = \"freeze\"\ntimeout = \"200ms\"");
    }
    policies += &shadow("nothing", "replaces = \"routing\"");
    policies += &shadow("unknown-upstream", "replaces = \"routing\"");
    policies += &shadow("no-cost", "replaces = \"throttle\"");
    let (mut relay, other, up) = start(&policies, None);
    let mut client = relay.hello();
    for _ in 0..MESSAGES {
        let reply = client.small();
        assert!(is_delivered(&reply), "{reply}");
    }
    assert_eq!((up.counts().messages, other.counts().messages), (u64::from(MESSAGES), 0));
    // Each is asked at the hook of the one that it replaces, and as one more at the others: the router
    // has no opinion of mail of no instance.
    let each = f64::from(MESSAGES);
    for (told, class) in what {
        let metrics = settled(&relay, told, 3.0 * each);
        let found = answers(&metrics, told, class);
        let all = found + dropped(&metrics, told);
        assert!(found >= 1.0 && all >= each, "{told}: {found} are {class} in {metrics:?}");
    }
    let metrics = settled(&relay, "nothing", 3.0 * each);
    assert!(answers(&metrics, "nothing", "route") >= 1.0);
    let metrics = settled(&relay, "unknown-upstream", 3.0 * each);
    assert!(answers(&metrics, "unknown-upstream", "error") >= 1.0);
    let metrics = settled(&relay, "no-cost", 3.0 * each);
    assert!(answers(&metrics, "no-cost", "error") >= 1.0);
    // Nothing that a live policy is watched by.
    assert_eq!(metrics.sum("policy_failures_total", &[]), 0.0);
    assert_eq!(metrics.sum("policy_calls_total", &["policy=\"trap\""]), 0.0);
    relay.assert_alive();
}

#[test]
fn an_operator_sees_what_would_change() {
    let policies = format!("{LIVE}{}", shadow("refuse", "replaces = \"freeze\"\npercent = 100"));
    let (relay, _other, _up) = start(&policies, None);
    let (code, text) = report(&relay, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("asked       nothing yet"), "{text}");
    assert!(is_delivered(&relay.hello().small()));
    settled(&relay, "refuse", 3.0);
    let (code, text) = report(&relay, &["refuse"]);
    assert_eq!(code, 0, "{text}");
    let lines = [
        "refuse\n",
        "of 100 % of buckets; would replace freeze\n",
        "asked       3, ",
        "limits-only  1  33.33 %\n",
        "route        1  33.33 %\n",
        "harder       1  33.33 %\n",
        "harder: freeze.decide ",
        "old  proceed\n",
        "new  refuse: 550 5.7.1 never\n",
    ];
    for line in lines {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    let (_, text) = report(&relay, &["--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let shadow = &json["shadows"][0];
    assert_eq!(shadow["policy"], "refuse");
    assert_eq!(shadow["classes"].as_array().unwrap().len(), 8);
    let example = shadow["examples"].as_array().unwrap();
    let example = example.iter().find(|one| one["class"] == "harder").unwrap();
    assert_eq!(example["message"].as_str().unwrap().len(), 16, "{example}");
    let (code, text) = report(&relay, &["freeze"]);
    assert_eq!(code, 66, "{text}");
    assert!(text.contains("freeze has not been a shadow"), "{text}");
}

#[test]
fn a_part_of_the_messages_is_always_the_same_part() {
    const MESSAGES: u32 = 40;
    let mut policies = LIVE.to_owned();
    for (told, percent) in [("nothing", 0), ("refuse", 50), ("defer", 100)] {
        policies += &shadow(told, &format!("replaces = \"freeze\"\npercent = {percent}"));
    }
    let (relay, _other, _up) = start(&policies, None);
    let mut client = relay.hello();
    let mut round = |rounds: u32| {
        for number in 0..MESSAGES {
            let to = format!("b{number}@example.org");
            let reply = send(&mut client, "a@example.com", &to);
            assert!(is_delivered(&reply), "{reply}");
        }
        let all = f64::from(3 * MESSAGES * rounds);
        let metrics = settled(&relay, "defer", all);
        assert_eq!(asked(&metrics, "nothing") + dropped(&metrics, "nothing"), 0.0);
        // It stands before the last in the lane, so it is done too.
        asked(&metrics, "refuse") + dropped(&metrics, "refuse")
    };
    let first = round(1);
    assert!(first > 0.0 && first < f64::from(3 * MESSAGES), "{first}");
    assert_eq!(round(2), 2.0 * first);
}

#[test]
fn a_slow_shadow_drops_and_the_mail_goes_on() {
    const MESSAGES: u32 = 1500;
    let policies = format!("{LIVE}{}", shadow("loop", "replaces = \"freeze\"\ntimeout = \"1s\""));
    let (relay, _other, up) = start(&policies, None);
    let mut client = relay.hello();
    for _ in 0..MESSAGES {
        let reply = client.small();
        assert!(is_delivered(&reply), "{reply}");
    }
    assert_eq!(up.counts().messages, u64::from(MESSAGES));
    let metrics = settled(&relay, "loop", f64::from(3 * MESSAGES));
    // It takes a second for a question, so what was asked says for how long the mail was waited with.
    let failed = answers(&metrics, "loop", "error");
    assert!(failed >= 1.0 && failed < f64::from(MESSAGES) / 4.0, "{failed}");
    assert!(dropped(&metrics, "loop") > f64::from(MESSAGES), "{metrics:?}");
}

#[test]
fn what_is_frozen_stays_frozen() {
    let policies = format!("{LIVE}{}", shadow("nothing", "replaces = \"freeze\""));
    let (relay, other, up) = start(&policies, Some(&plan_of_held()));
    let mut client = relay.hello();
    for _ in 0..5 {
        let reply = send(&mut client, "a@held.example", "b@example.org");
        assert!(reply.contains("wavegate: queued as "), "{reply}");
    }
    let metrics = relay.wait_metrics("softer", |metrics| {
        answers(metrics, "nothing", "softer") + dropped(metrics, "nothing") >= 5.0
    });
    assert!(answers(&metrics, "nothing", "softer") >= 1.0);
    assert_eq!((up.counts().messages, other.counts().messages), (0, 0));
    assert_eq!(metrics.sum("proceed_against_plan_total", &[]), 0.0, "it was not even asked to");
}

#[test]
fn counts_outlive_reloads() {
    let policies = |mode: &str| {
        let shadow = shadow("nothing", "replaces = \"freeze\"");
        format!("{LIVE}{}", shadow.replace("mode = \"shadow\"\n", mode))
    };
    let as_shadow = policies("mode = \"shadow\"\n");
    let as_live = policies("mode = \"live\"\n").replace("replaces = \"freeze\"", "");
    let (relay, other, up) = start(&as_shadow, None);
    let text = std::fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
    let live = text.replace(&as_shadow, &as_live);
    assert_ne!(text, live);
    let mut client = relay.hello();
    assert!(is_delivered(&client.small()));
    settled(&relay, "nothing", 3.0);
    relay.write("relay.toml", &live);
    relay.reload();
    let reply = client.small();
    assert!(reply.starts_with("250"), "{reply}");
    let metrics = relay.metrics();
    assert_eq!(asked(&metrics, "nothing") + dropped(&metrics, "nothing"), 3.0);
    assert!(metrics.value("policy_calls_total{policy=\"nothing\"}") >= 2.0);
    let (_, said) = report(&relay, &["nothing"]);
    assert!(said.contains("not any more"), "{said}");
    relay.write("relay.toml", &text);
    relay.reload();
    assert!(is_delivered(&client.small()));
    settled(&relay, "nothing", 6.0);
    // It sent one elsewhere, when it was live.
    let delivered = || (up.counts().messages, other.counts().messages);
    until("all are delivered", || (delivered() == (2, 1)).then_some(()));
}

#[test]
fn a_shadow_counts_for_nothing_that_must_be_there() {
    let policies = shadow("nothing", "");
    let (relay, _other, _up) = start(&format!("{LIVE}{policies}"), None);
    let text = std::fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
    // Without the live router nothing says where mail goes, whatever the shadow would say.
    let router = "[[policy]]\nplugin = \"builtin:routing\"\n";
    relay.write("relay.toml", text.replace(router, "").replace("[migration]", "[migration] #"));
    let said = relay.reload_refused();
    assert!(said.contains("no policy exports `routing`"), "{said}");
}
