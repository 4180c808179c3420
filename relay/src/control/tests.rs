//! The description is what is served: its paths and methods are the routes, its schemas are the
//! types.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{wire::*, *};
use crate::{
    conductor::{order::Obeyed, status::*},
    decision::record::Class,
    links::{
        Count, EdgeConnection, EdgeLink, GatewayConnection, GatewayLink, Links, Path, Pinged,
        PingedTarget,
    },
    message::MessageId,
    plan::Timestamp,
    policy::FailureKind,
    queue::{Refusal, Selection, Standing},
    rollout::{Bounds, Skip, Stage},
};

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

#[test]
fn the_description_has_every_route_and_no_other() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let told: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
        })
        .collect();
    let all = routes();
    let served = all.iter().flat_map(|(path, methods, _)| {
        methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned()))
    });
    assert_eq!(told, served.collect());
}

/// Every `$ref` of the description leads somewhere, and every path's variables are parameters.
#[test]
fn the_description_holds_together() {
    let document = document();
    let mut all = vec![&document];
    let mut references = 0;
    while let Some(value) = all.pop() {
        match value {
            Value::Object(members) => all.extend(members.values()),
            Value::Array(items) => all.extend(items),
            _ => {}
        }
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            references += 1;
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
    assert!(references > 50);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let variables: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let named: BTreeSet<&str> = parameters
                .iter()
                .filter(|one| one["in"] == "path")
                .map(|one| one["name"].as_str().unwrap())
                .collect();
            assert_eq!(variables, named, "{method} {path}");
        }
    }
}

/// Where a value is not what a schema says, in both directions: a property that is not described
/// is wrong, and so is one that is described and not there, for the values here are full.
fn differences(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
        return differences(document, schema, value, at, found);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        return differences(document, &choices[0], value, at, found);
    }
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let is_one_of = |name: &str| types.iter().any(|one| one == name);
    let fits = is_one_of(is) || (is == "integer" && is_one_of("number"));
    if !fits {
        found.push(format!("{at}: is {is}, not {types:?}"));
        return;
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        found.push(format!("{at}: {value} is not one of {words:?}"));
    }
    if schema["format"] == "date-time" {
        value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    match value {
        Value::Array(items) => {
            assert!(!items.is_empty(), "{at} says nothing where it is empty");
            for item in items {
                differences(document, &schema["items"], item, &format!("{at}[]"), found);
            }
        }
        Value::Object(members) => {
            let described = schema["properties"].as_object().unwrap();
            let names = |of: &serde_json::Map<String, Value>| -> BTreeSet<String> {
                of.keys().cloned().collect()
            };
            let (there, told) = (names(members), names(described));
            found.extend(there.symmetric_difference(&told).map(|name| format!("{at}.{name}")));
            for (name, value) in members {
                if let Some(schema) = described.get(name) {
                    differences(document, schema, value, &format!("{at}.{name}"), found);
                }
            }
        }
        _ => {}
    }
}

#[track_caller]
fn is_described<T: Serialize>(name: &str, value: &T) {
    let document = document();
    let schema = document.pointer(&format!("/components/schemas/{name}")).unwrap();
    let value = serde_json::to_value(value).unwrap();
    let mut found = Vec::new();
    differences(&document, schema, &value, name, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

const TIME: &str = "2026-01-20T06:00:00Z";

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn held() -> Held {
    Held { messages: 1, bytes: 2, oldest: some(TIME) }
}

/// Every field is given by name, so that a new one is not forgotten here.
fn wave_status() -> WaveStatus {
    let stuck = Stuck { instance: "i".into(), uncommitted: 1, in_doubt: 1 };
    let probe = ProbeStatus {
        instance: "i".into(),
        upstream: "cloud".into(),
        target: "127.0.0.1:25".into(),
        ok: false,
        error: some("RCPT TO: 550"),
        at: TIME.into(),
    };
    WaveStatus {
        id: "w".into(),
        environment: "production".into(),
        phase: "frozen".into(),
        opens: TIME.into(),
        closes: TIME.into(),
        planned_closes: TIME.into(),
        extended_ms: 1,
        announced_at: some(TIME),
        release: "at-close".into(),
        frozen_at: some(TIME),
        barrier_at: some(TIME),
        blocked: vec![stuck],
        probes: vec![probe],
        released_at: some(TIME),
        ended_at: some(TIME),
        held: held(),
        drain: Some(Drain { total: 3, left: 2, rate: 1.5, ends: some(TIME) }),
        leaked: 0,
        instances: vec![InstanceStatus { name: "i".into(), phase: "frozen".into(), held: held() }],
    }
}

fn plan_status() -> PlanStatus {
    PlanStatus { digest: "d".into(), file: some("waves.toml"), program: some("p") }
}

#[test]
fn what_is_said_of_waves_is_described() {
    let upstream = UpstreamStatus {
        name: "cloud".into(),
        targets: 2,
        healthy: 1,
        in_use: 1,
        waiting: 1,
        answered: 1,
        last_error: some("refused"),
    };
    is_described(
        "Status",
        &Status {
            host: "a".into(),
            version: "1".into(),
            now: TIME.into(),
            plan: plan_status(),
            clock_suspect: true,
            held_all: some("x"),
            generation: 1,
            waves: vec![wave_status()],
            upstreams: vec![upstream],
            links: links().rows(),
            alerts: vec![Alert { since: TIME.into(), wave: some("w"), text: "x".into() }],
        },
    );
    is_described("Links", &links());
    let pinged = PingedTarget {
        target: "192.0.2.1:4433".into(),
        gateway: some("g"),
        opened_us: 1,
        round_trips_us: vec![1],
        error: some("x"),
    };
    is_described("Pinged", &Pinged { upstream: "cloud".into(), targets: vec![pinged] });
    is_described("Ping", &Ping { count: 1 });
    let (host, now, plan) = ("a".to_owned(), TIME.to_owned(), plan_status());
    is_described("WaveList", &WaveList { host, now, plan, waves: vec![wave_status()] });
    is_described("Obeyed", &Obeyed { changed: true, what: "x".into(), wave: wave_status() });
    let order = WaveOrder {
        reason: "x".into(),
        dry_run: true,
        until: some(TIME),
        by_ms: Some(1),
        unchecked: true,
    };
    is_described("WaveOrder", &order);
    let instance = "i".to_owned();
    is_described("Freeze", &Freeze { instance, for_ms: 1, reason: "x".into(), dry_run: true });
}

fn links() -> Links {
    let path = Path {
        since: TIME.into(),
        rtt_us: 1,
        window: 1,
        packets: 1,
        lost: 1,
        streams: 1,
        messages: 1,
        sent: 1,
        received: 1,
    };
    let edge = EdgeLink {
        upstream: "cloud".into(),
        down: true,
        fallback: some("cloud-smtp"),
        fallbacks: 1,
        streams: 1,
        streams_limit: 1,
        in_doubt: 1,
        reconnects: 1,
        resumed: 1,
        known: 1,
        packets: 1,
        lost: 1,
        sent: 1,
        received: 1,
        connections: vec![EdgeConnection {
            target: "192.0.2.1:4433".into(),
            gateway: "g".into(),
            incarnation: "00".into(),
            worker: 1,
            path: path.clone(),
        }],
    };
    let count = || vec![Count { what: "x".into(), count: 1 }];
    let gateway = GatewayLink {
        listener: "link".into(),
        address: "[::]:4433".into(),
        messages: 1,
        in_progress: 1,
        known: 1,
        turned_away: 1,
        handshakes: 1,
        seen: 1,
        seen_limit: 1,
        seen_bytes: 1,
        refused: count(),
        errors: count(),
        connections: vec![GatewayConnection {
            peer: "dc1".into(),
            edge: "e".into(),
            address: "192.0.2.2:4433".into(),
            path,
        }],
    };
    Links { edges: vec![edge], gateways: vec![gateway] }
}

fn item(id: MessageId) -> Item {
    Item {
        id,
        instance: some("i"),
        upstream: some("cloud"),
        state: Standing::Held,
        waits_for: "x".into(),
        since: TIME.into(),
        received: TIME.into(),
        age: 1,
        size: 1,
        attempts: 1,
        recipients: 1,
        sender: some("a@b.example"),
        recipient: some("c@d.example"),
    }
}

#[test]
fn what_is_said_of_messages_is_described() {
    let id = MessageId::new(Timestamp(1_768_888_800_123), 7);
    let all_held = some("x");
    let oldest = vec![item(id)];
    let (messages, recipients, unreadable) = (1, 2, 3);
    let list = List { messages, recipients, unreadable, all_held: all_held.clone(), oldest };
    is_described("List", &list);
    let show = Show {
        item: item(id),
        all_held: all_held.clone(),
        client: some("::1"),
        listener: some("l"),
        helo: some("h"),
        destination: some("192.0.2.1:25"),
        user: some("ada"),
        envelope: vec![Recipient { address: "a@b.example".into(), ended: true }],
        unreadable: some("x"),
        last: Some(Last { upstream: some("up"), text: "x".into(), time: TIME.into() }),
        operator: some("x"),
        in_doubt: some("up"),
        held: 1,
        expires: some(TIME),
    };
    is_described("MessageInFull", &show);
    let strings = || vec!["x".to_owned()];
    let selection = Selection {
        ids: vec![id],
        instances: strings(),
        upstreams: strings(),
        domains: strings(),
        senders: strings(),
        states: Standing::ALL.to_vec(),
    };
    let reason = "x".to_owned();
    is_described("Change", &Change { selection, all: true, reason, dry_run: true });
    let refused = Refused { why: Refusal::Unknown, text: "x".into(), messages, ids: vec![id] };
    let changed = Changed {
        action: "hold".into(),
        dry_run: true,
        messages,
        recipients,
        ids: vec![id],
        refused: vec![refused],
        unreadable,
        all_held: all_held.clone(),
    };
    is_described("Changed", &changed);
    is_described("HoldAll", &HoldAll { all_held, messages, in_flight: 1 });
    is_described("Why", &Why { reason: "x".into() });
    is_described("Verified", &Verified { messages, damage: strings() });
    is_described("ShadowList", &ShadowList { shadows: vec![full_shadow()] });
}

fn full_shadow() -> Shadow {
    let text = || "x".to_owned();
    let at = || "2026-01-20T06:00:00Z".to_owned();
    let classes = Class::ALL.map(|class| ShadowClass { class, answers: 1 });
    let examples = Class::ALL.map(|class| ShadowExample {
        class,
        message: Some(text()),
        function: text(),
        at: at(),
        old: text(),
        new: text(),
    });
    Shadow {
        policy: text(),
        percent: Some(100),
        replaces: Some(text()),
        digest: text(),
        since: Some(at()),
        asked: 1,
        dropped: 1,
        time_us: 1,
        classes: classes.into(),
        failures: vec![ShadowFailures { kind: text(), calls: 1 }],
        examples: examples.into(),
    }
}

#[test]
fn what_is_said_of_plugins_is_described() {
    let text = || "x".to_owned();
    let bounds = Bounds::default();
    is_described("Uploaded", &Uploaded { digest: text(), size: 1 });
    let install = Install {
        digest: text(),
        file: some("a.wasm"),
        signature: some("x"),
        bounds,
        skip: Skip::ALL.to_vec(),
        reason: text(),
        dry_run: true,
    };
    is_described("Install", &install);
    is_described("RollBack", &RollBack { reason: text(), dry_run: true });
    let rollout = |stage: Stage| RolloutStatus {
        stage: stage.as_str().into(),
        since: TIME.into(),
        digest: text(),
        began: TIME.into(),
        by: text(),
        reason: text(),
        skipped: Skip::ALL.map(|skip| skip.as_str().to_owned()).to_vec(),
        why: text(),
        bounds,
        compared: 1,
        different: 1,
        calls: 1,
        failures: 1,
    };
    for stage in Stage::ALL {
        is_described("RolloutStatus", &rollout(stage));
        let installed = Installed {
            policy: text(),
            digest: text(),
            plugin: text(),
            version: text(),
            signed_by: some("alice"),
            stage: some(stage.as_str()),
            what: text(),
        };
        is_described("Installed", &installed);
    }
    let kinds = FailureKind::ALL.into_iter().map(|kind| (kind.as_str().to_owned(), 1));
    let hooks = ["freeze", "routing", "throttling"].map(str::to_owned);
    let status = PluginStatus {
        policy: text(),
        hooks: hooks.to_vec(),
        mode: "live".into(),
        plugin: text(),
        version: text(),
        source: "installed".into(),
        configured: text(),
        digest: text(),
        signed_by: some("alice"),
        key: some("x"),
        generation: 1,
        calls: 1,
        mean_ns: 1,
        p99_ns: Some(1),
        memory_limit: 1,
        failures: kinds.collect(),
        fail_modes: hooks.into_iter().map(|hook| (hook, "hold".to_owned())).collect(),
        rollout: Some(rollout(Stage::Shadow)),
        earlier: vec![text()],
    };
    let list = PluginList { host: text(), generation: 1, policies: vec![status] };
    is_described("PluginList", &list);
}

#[test]
fn a_difference_would_be_found() {
    let document = document();
    let of = |name: &str, value: Value| {
        let mut found = Vec::new();
        let schema = document.pointer(&format!("/components/schemas/{name}")).unwrap();
        differences(&document, schema, &value, name, &mut found);
        found.len()
    };
    assert_eq!(of("Recipient", json!({ "address": "x", "ended": true })), 0);
    assert_eq!(of("Recipient", json!({ "address": "x" })), 1);
    assert_eq!(of("Recipient", json!({ "address": "x", "ended": true, "more": 1 })), 1);
    assert_eq!(of("Recipient", json!({ "address": 1, "ended": "x" })), 2);
    assert_eq!(of("Standing", json!("asleep")), 1);
}

/// The codes of problems are those that are described.
#[test]
fn every_code_is_described() {
    let document = document();
    let codes = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
    let told: BTreeSet<&str> =
        codes.as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
    let sources = [
        include_str!("../control.rs"),
        include_str!("../api.rs"),
        include_str!("links.rs"),
        include_str!("once.rs"),
        include_str!("plugins.rs"),
        include_str!("queue.rs"),
        include_str!("waves.rs"),
    ];
    // Each code stands in quotes somewhere in them, and what stands behind a status is a code.
    for code in &told {
        let quoted = format!("\"{code}\"");
        assert!(sources.iter().any(|source| source.contains(&quoted)), "{code} is never said");
    }
    for source in sources {
        for (at, _) in source.match_indices("StatusCode::") {
            let rest = &source[at + "StatusCode::".len()..];
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_');
            let Some(rest) = rest.trim_start_matches([',', ' ', '\n']).strip_prefix('"') else {
                continue;
            };
            let code = rest.split('"').next().unwrap();
            assert!(told.contains(code), "{code} is not described");
        }
    }
    let problem =
        Problem { title: "x".into(), status: 404, code: "bug".into(), detail: "x".into() };
    is_described("Problem", &problem);
}
