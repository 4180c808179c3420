//! The event log of the real relay: a message of each fate, and exactly what is told of it.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{collections::HashMap, fs, process::Command};

use serde_json::Value;
use wavegate_tests::{
    harness::{Client, Config, Relay, binary, plan_of_held, recording, sink, until},
    sink::{Extensions, SinkHandle},
};

const LOG: &str = "[event_log]\nfile = \"events.jsonl\"\n";

fn failing(fault: &str) -> SinkHandle {
    sink(Extensions { chunking: true, ..Extensions::default() }, &[fault])
}

fn config(sink: &SinkHandle, upstream: &str) -> Config {
    Config::to(&[sink.addr()]).relay("received = false").upstream(upstream).section(LOG)
}

/// Asks the program about the relay; what it said.
fn on(relay: &Relay, line: &str) -> String {
    let output = Command::new(binary())
        .args(line.split(' '))
        .arg("--config")
        .arg(relay.folder().join("relay.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Sends a message; the last reply.
fn send(client: &mut Client) -> String {
    client.envelope("ada@held.example", "bob@example.org");
    client.expect("DATA", "354");
    client.send("Subject: x\r\n\r\nx\r\n.\r\n");
    client.reply()
}

/// All lines but those of waves, once there are so many: without times, with `A`, `B` and so on
/// for ids, with `SINK` for the sink.
fn told(relay: &Relay, sink: &SinkHandle, count: usize) -> Vec<String> {
    let of_messages = |text: String| -> Vec<String> {
        text.lines()
            .filter(|line| !line.contains("\"event\":\"wave\""))
            .map(str::to_owned)
            .collect()
    };
    let lines = until("the event log", || {
        let text = fs::read_to_string(relay.folder().join("events.jsonl")).ok()?;
        let lines = of_messages(text);
        (lines.len() >= count).then_some(lines)
    });
    let mut ids = HashMap::new();
    lines.iter().map(|line| masked(line, sink, &mut ids)).collect()
}

fn masked(line: &str, sink: &SinkHandle, ids: &mut HashMap<String, char>) -> String {
    let mut value: Value = serde_json::from_str(line).unwrap();
    let object = value.as_object_mut().unwrap();
    for time in ["time", "until"] {
        if let Some(time) = object.remove(time) {
            let time = time.as_str().unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
        }
    }
    for seconds in ["seconds", "held_seconds"] {
        if let Some(value) = object.get_mut(seconds) {
            assert!((0.0..60.0).contains(&value.as_f64().unwrap()), "{line}");
            *value = "S".into();
        }
    }
    let mut text = value.to_string().replace(&sink.addr().to_string(), "SINK");
    for key in ["id", "about"] {
        if let Some(id) = value.get(key) {
            let next = char::from(b'A' + u8::try_from(ids.len()).unwrap());
            let id = id.as_str().unwrap();
            let letter = *ids.entry(id.to_owned()).or_insert(next);
            text = text.replace(id, &letter.to_string());
        }
    }
    text
}

const RECEIVED: &str = concat!(
    r#"{"client":"127.0.0.1","event":"received","id":"A","listener":"listener-1","#,
    r#""recipients":1,"sender":"ada@held.example","size":17,"to":["bob@example.org"]}"#
);
const SPOOLED: &str = concat!(
    r#"{"event":"spooled","id":"A","recipients":1,"reply":"250 2.0.0 wavegate: queued as A","#,
    r#""seconds":"S","stage":"client"}"#
);

#[test]
fn what_goes_while_its_client_waits() {
    let ended = |event: &str, reply: &str| {
        format!(
            r#"{{"event":"{event}","id":"A","recipients":1,"reply":"{reply}","seconds":"S","stage":"client","target":"SINK","upstream":"up"}}"#
        )
    };
    let accepted = recording();
    let relay = Relay::start(&config(&accepted, ""));
    let said = send(&mut relay.hello());
    assert_eq!(told(&relay, &accepted, 2), [RECEIVED, &ended("delivered", &said)]);

    for (fault, event, said) in [
        ("end:1=550 5.7.1 no", "refused", "550 5.7.1 no"),
        ("end:1=451 4.3.0 later", "deferred", "451 4.3.0 later"),
    ] {
        let sink = failing(fault);
        let relay = Relay::start(&config(&sink, "handoff = \"direct\""));
        assert_eq!(send(&mut relay.hello()), said);
        assert_eq!(told(&relay, &sink, 2), [RECEIVED, &ended(event, said)]);
    }
}

#[test]
fn what_may_arrive_twice() {
    let sink = failing("end:1=close");
    let relay = Relay::start(&config(&sink, "handoff = \"direct\""));
    let said = send(&mut relay.hello());
    let (_, why) = said.split_once("lost: ").unwrap();
    let expected = [
        RECEIVED.to_owned(),
        format!(
            r#"{{"event":"in_doubt","id":"A","reason":"{why}","target":"SINK","upstream":"up"}}"#
        ),
        format!(
            r#"{{"event":"in_doubt","id":"A","recipients":1,"reply":"{said}","seconds":"S","stage":"client","target":"SINK","upstream":"up"}}"#
        ),
    ];
    assert_eq!(told(&relay, &sink, 3), expected);
}

/// Starts a relay whose mail all goes by the spool, and has it take a message before anything goes.
fn spooled(sink: &SinkHandle, upstream: &str) -> Relay {
    let relay = Relay::start(&config(sink, &format!("handoff = \"queued\"\n{upstream}")));
    on(&relay, "hold-all --reason x");
    send(&mut relay.hello());
    // Its attempt comes after its client was told.
    told(&relay, sink, 2);
    on(&relay, "release-all --reason x");
    relay
}

const DEFERRED: &str = concat!(
    r#"{"attempts":1,"event":"deferred","id":"A","reason":"451 4.3.0 later","recipients":1,"#,
    r#""stage":"spool","target":"SINK","upstream":"up"}"#
);

fn ended(event: &str, reply: &str) -> String {
    format!(
        r#"{{"event":"{event}","id":"A","recipients":1,"reply":"{reply}","seconds":"S","stage":"spool","target":"SINK","to":["bob@example.org"],"upstream":"up"}}"#
    )
}

#[test]
fn what_is_deferred_and_delivered_later() {
    let sink = failing("end:1=451 4.3.0 later");
    let relay = spooled(&sink, "retry_first = \"10ms\"");
    let lines = told(&relay, &sink, 4);
    assert_eq!(lines[..3], [RECEIVED, SPOOLED, DEFERRED]);
    assert!(lines[3].starts_with(&ended("delivered", "250")[..40]), "{}", lines[3]);
    assert!(lines[3].contains(r#""stage":"spool","target":"SINK""#), "{}", lines[3]);
}

#[test]
fn what_expires() {
    let sink = failing("end:*=451 4.3.0 later");
    let relay = spooled(&sink, "retry_first = \"1500ms\"\nexpire = \"1s\"\nbounces = \"event\"");
    let lines = told(&relay, &sink, 4);
    assert_eq!(lines[..3], [RECEIVED, SPOOLED, DEFERRED]);
    let why = r#"{"event":"expired","id":"A","recipients":1,"reply":"451 4.4.7 "#;
    assert!(lines[3].starts_with(why), "{}", lines[3]);
}

#[test]
fn what_bounces_and_the_notification_of_it() {
    let sink = failing("end:1=550 5.1.1 nobody");
    let relay = spooled(&sink, "");
    let lines = told(&relay, &sink, 5);
    let notification = r#"{"about":"A","event":"notification","id":"B"}"#;
    assert_eq!(
        lines[..4],
        [RECEIVED, SPOOLED, notification, &ended("bounced", "550 5.1.1 nobody")]
    );
    let delivered = r#"{"event":"delivered","id":"B","recipients":1,"#;
    assert!(lines[4].starts_with(delivered), "{}", lines[4]);
    assert!(lines[4].contains(r#""to":["ada@held.example"]"#), "{}", lines[4]);
}

#[test]
fn what_an_operator_does() {
    let sink = recording();
    let relay = Relay::start(&config(&sink, "handoff = \"queued\""));
    on(&relay, "hold-all --reason x");
    let said = send(&mut relay.hello());
    let id = said.rsplit(' ').next().unwrap();
    for change in ["hold", "release", "remove"] {
        on(&relay, &format!("queue {change} --reason look {id}"));
    }
    let by = |event: &str, more: &str| {
        format!(
            r#"{{"by":"operator","event":"{event}","id":"A",{more}"recipients":1,"stage":"spool"}}"#
        )
    };
    let expected = [
        RECEIVED.to_owned(),
        SPOOLED.to_owned(),
        by("held", r#""reason":"look","#),
        by("released", ""),
        by("removed", ""),
    ];
    assert_eq!(told(&relay, &sink, 5), expected);
}

#[test]
fn what_a_window_holds() {
    let sink = recording();
    let text = config(&sink, "").relay("plan = \"waves.toml\"").section(
        "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"builtin:freeze\"",
    );
    let relay = Relay::start_with(&text.to_string(), &[("waves.toml", plan_of_held().as_bytes())]);
    let said = send(&mut relay.hello());
    assert!(said.contains("queued as"), "{said}");
    on(&relay, "wave complete w --unchecked --reason done");
    let of = |line: &str| line.replace(r#""id":"A","#, r#""id":"A","instance":"held","#);
    let lines = told(&relay, &sink, 5);
    let held = r#"{"by":"window","event":"held","id":"A","recipients":1,"stage":"spool"}"#;
    let released = r#"{"by":"window","event":"released","instance":"held","messages":1}"#;
    assert_eq!(lines[..4], [of(RECEIVED), of(held), of(SPOOLED), released.to_owned()]);
    let delivered = r#"{"event":"delivered","held_seconds":"S","id":"A","instance":"held","#;
    assert!(lines[4].starts_with(delivered), "{}", lines[4]);
    let text = fs::read_to_string(relay.folder().join("events.jsonl")).unwrap();
    for step in ["frozen", "releasing"] {
        let told = format!(r#""event":"wave","wave":"w","step":"{step}""#);
        assert!(text.contains(&told), "{step}: {text}");
    }
}

#[test]
fn a_full_disk_costs_lines_and_no_mail() {
    // `/dev/full` is a file that never has room.
    let sink = recording();
    let text = config(&sink, "").admin().to_string();
    let text = text.replace("events.jsonl", "/dev/full");
    let relay = Relay::start_with(&text, &[]);
    let mut client = relay.hello();
    (0..5).for_each(|_| assert!(send(&mut client).starts_with("250")));
    let lost = "event_log_lost_total";
    let metrics = relay.wait_metrics("lines are counted as lost", |all| all.value(lost) == 10.0);
    assert_eq!(metrics.value("event_log_lines_total"), 0.0);
    assert_eq!(sink.counts().messages, 5);
    assert_eq!(relay.log().matches("the event log cannot be written").count(), 1);
}
