//! Each policy's schema says what its parser says: every case is given to both. The parser
//! alone knows the upstreams, which dates and time zones there are, and how many decimals a number
//! may have (`multipleOf` is a matter of rounding to validators).
#![allow(clippy::unwrap_used, reason = "tests")]
use wavegate_canary::Canary;
use wavegate_error_freeze::ErrorFreeze;
use wavegate_freeze::Freeze;
use wavegate_policy::{Policy, configured};
use wavegate_quiet_hours::QuietHours;
use wavegate_routing::Routing;
use wavegate_split::Split;
use wavegate_throttle::Throttle;
use wavegate_warm_up::WarmUp;

/// Settings that both must accept, or both refuse.
fn agree<P: Policy>(good: &[&str], bad: &[&str]) {
    let schema = serde_json::from_str(P::SETTINGS_SCHEMA).unwrap();
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("settings.json", schema).unwrap();
    let schema = compiler.compile("settings.json", &mut schemas).unwrap();
    let upstreams = ["legacy", "cloud"].map(String::from);
    let cases = good.iter().map(|text| (text, true)).chain(bad.iter().map(|text| (text, false)));
    for (text, expected) in cases {
        let value = serde_json::from_str(text).unwrap();
        let by_schema = schemas.validate(&value, schema);
        assert_eq!(by_schema.is_ok(), expected, "schema of {}: {text}", P::NAME);
        let parsed = configured::<P>(text, &upstreams).err();
        assert_eq!(parsed.is_none(), expected, "{}: {text}: {parsed:?}", P::NAME);
    }
}

#[test]
fn freeze() {
    agree::<Freeze>(
        &["{}", r#"{"in_window":"hold"}"#, r#"{"in_window":"defer","text":"later, please"}"#],
        &[
            "[]",
            r#"{"in_window":"drop"}"#,
            r#"{"in_window":null}"#,
            r#"{"text":""}"#,
            r#"{"text":"a\tb"}"#,
            r#"{"text":"é"}"#,
            r#"{"window":"hold"}"#,
        ],
    );
}

#[test]
fn routing() {
    agree::<Routing>(
        &[
            "{}",
            r#"{"rules":[]}"#,
            r#"{"rules":[{"upstream":"cloud"}]}"#,
            r#"{"rules":[{"instances":["a"],"environments":["b*"],"products":[],"phases":["c"],
                "sender_domains":[""],"recipient_domains":["*.d"],"headers":{"X-E":"*"},
                "percent":12.25,"upstream":"cloud","fallbacks":["legacy"]}]}"#,
            r#"{"rules":[{"upstream":"cloud","percent":0},{"upstream":"cloud","percent":100}]}"#,
            r#"{"rules":[{"upstream":"cloud","percent":0.29}]}"#,
            r#"{"rules":[{"upstream":"cloud","headers":{}}]}"#,
        ],
        &[
            "null",
            r#"{"rules":{}}"#,
            r#"{"rule":[]}"#,
            r#"{"rules":[{}]}"#,
            r#"{"rules":["cloud"]}"#,
            r#"{"rules":[{"upstream":1}]}"#,
            r#"{"rules":[{"upstream":"cloud","percent":100.01}]}"#,
            r#"{"rules":[{"upstream":"cloud","percent":-1}]}"#,
            r#"{"rules":[{"upstream":"cloud","percent":"10"}]}"#,
            r#"{"rules":[{"upstream":"cloud","headers":{"a:":"*"}}]}"#,
            r#"{"rules":[{"upstream":"cloud","headers":{"":"*"}}]}"#,
            r#"{"rules":[{"upstream":"cloud","headers":{"a":1}}]}"#,
            r#"{"rules":[{"upstream":"cloud","instances":"a"}]}"#,
            r#"{"rules":[{"upstream":"cloud","phases":[1]}]}"#,
            r#"{"rules":[{"upstream":"cloud","fallbacks":"legacy"}]}"#,
            r#"{"rules":[{"upstream":"cloud","fallback":[]}]}"#,
        ],
    );
}

#[test]
fn throttle() {
    agree::<Throttle>(
        &[
            "{}",
            r#"{"limits":[{"per":["upstream","recipient-domain"],"rate":"5000/s","burst":500}]}"#,
            r#"{"limits":[{"per":["recipient","instance","environment","product",
                "sender-domain","sender","client"],"rate":"1/10min","concurrency":4294967295,
                "count":"recipients","upstreams":["cloud"],"recipient_domains":["*"],
                "instances":["a"],"learn":{"codes":[400,599],"pause":"30s","slow":1.001,
                "for":"5min"}}]}"#,
            r#"{"limits":[{"concurrency":1}]}"#,
            r#"{"share":"25%","limits":[{"rate":"1/s","concurrency":4}]}"#,
            r#"{"share":"1/4"}"#,
            r#"{"limits":[{"rate":"1/100ms","learn":{"slow":1000,"codes":[]}}]}"#,
            r#"{"limits":[{"rate":"1/d","count":"messages","learn":{"pause":"1h"}}]}"#,
        ],
        &[
            "1",
            r#"{"limits":{}}"#,
            r#"{"limit":[]}"#,
            r#"{"limits":[{}]}"#,
            r#"{"limits":[{"burst":1,"concurrency":1}]}"#,
            r#"{"limits":[{"per":"upstream","rate":"1/s"}]}"#,
            r#"{"limits":[{"per":["domain"],"rate":"1/s"}]}"#,
            r#"{"limits":[{"per":["client","client"],"rate":"1/s"}]}"#,
            r#"{"limits":[{"rate":"1"}]}"#,
            r#"{"limits":[{"rate":"1/m"}]}"#,
            r#"{"limits":[{"rate":"-1/s"}]}"#,
            r#"{"limits":[{"rate":"1/s","burst":0}]}"#,
            r#"{"limits":[{"rate":"1/s","burst":"5"}]}"#,
            r#"{"limits":[{"concurrency":4294967296}]}"#,
            r#"{"limits":[{"rate":"1/s","count":"bytes"}]}"#,
            r#"{"limits":[{"rate":"1/s","upstreams":"cloud"}]}"#,
            r#"{"limits":[{"rate":"1/s","keys":[]}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{}}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{"for":"1s"}}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{"pause":"30"}}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{"pause":30}}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{"slow":0.999}}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{"slow":2,"codes":[399]}}]}"#,
            r#"{"limits":[{"rate":"1/s","learn":{"slow":2,"code":[450]}}]}"#,
            r#"{"share":"a quarter"}"#,
            r#"{"share":25}"#,
            r#"{"share":{"part":1,"of":4}}"#,
        ],
    );
}

#[test]
fn canary() {
    agree::<Canary>(
        &["{}", r#"{"percent":{}}"#, r#"{"percent":{"a":0,"b":0.01,"c":100},"upstream":"cloud"}"#],
        &[
            "[]",
            r#"{"percent":5}"#,
            r#"{"percent":{"a":"5"}}"#,
            r#"{"percent":{"a":100.01}}"#,
            r#"{"percent":{"a":-0.01}}"#,
            r#"{"upstream":1}"#,
            r#"{"percents":{}}"#,
        ],
    );
}

#[test]
fn error_freeze() {
    agree::<ErrorFreeze>(
        &[
            r#"{"upstream":"cloud"}"#,
            r#"{"upstream":"cloud","above":0.5,"at_least":1,"probe":2,"wait":"1s",
                "answer":"defer","mail":"all"}"#,
            r#"{"upstream":"cloud","above":100,"at_least":1000000,"probe":10000,"answer":"hold",
                "mail":"planned"}"#,
        ],
        &[
            "{}",
            r#"{"upstream":["cloud"]}"#,
            r#"{"upstream":"cloud","above":100.001}"#,
            r#"{"upstream":"cloud","above":"20"}"#,
            r#"{"upstream":"cloud","at_least":0}"#,
            r#"{"upstream":"cloud","at_least":1000001}"#,
            r#"{"upstream":"cloud","probe":1}"#,
            r#"{"upstream":"cloud","probe":10001}"#,
            r#"{"upstream":"cloud","wait":30}"#,
            r#"{"upstream":"cloud","wait":"30"}"#,
            r#"{"upstream":"cloud","answer":"refuse"}"#,
            r#"{"upstream":"cloud","mail":"none"}"#,
            r#"{"upstream":"cloud","below":1}"#,
        ],
    );
}

#[test]
fn quiet_hours() {
    agree::<QuietHours>(
        &[
            "{}",
            r#"{"rules":[]}"#,
            r#"{"rules":[{"zone":"UTC","from":"00:00","to":"23:59"}],"max_hold":"12h"}"#,
            r#"{"rules":[{"zone":"Asia/Kolkata","from":"22:00","to":"07:00","days":["mon","sun"],
                "instances":["a*"],"recipient_domains":["*.in"]}]}"#,
        ],
        &[
            "[]",
            r#"{"rules":{}}"#,
            r#"{"rules":[{}]}"#,
            r#"{"rules":[{"from":"22:00","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00"}]}"#,
            r#"{"rules":[{"zone":1,"from":"22:00","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"24:00","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:60","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00:00","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"2:00","to":"07:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00","to":"+7:00"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00","to":"07:00","days":["Monday"]}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00","to":"07:00","days":"mon"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00","to":"07:00","instances":"a"}]}"#,
            r#"{"rules":[{"zone":"UTC","from":"22:00","to":"07:00","domains":[]}]}"#,
            r#"{"max_hold":12}"#,
            r#"{"hold":"12h"}"#,
        ],
    );
}

#[test]
fn split() {
    agree::<Split>(
        &[
            r#"{"default":"legacy"}"#,
            r#"{"default":"legacy","domains":{}}"#,
            r#"{"default":"legacy","domains":{"a.example":"cloud",".b.example":"cloud","x":"cloud",
                "[192.0.2.1]":"cloud","b\u00fccher.example":"cloud"},"instances":["acme-*"]}"#,
        ],
        &[
            "{}",
            r#"{"default":1}"#,
            r#"{"default":"legacy","domains":[]}"#,
            r#"{"default":"legacy","domains":{"a.example":1}}"#,
            r#"{"default":"legacy","domains":{"":"cloud"}}"#,
            r#"{"default":"legacy","domains":{".":"cloud"}}"#,
            r#"{"default":"legacy","domains":{"..a":"cloud"}}"#,
            r#"{"default":"legacy","domains":{"a.":"cloud"}}"#,
            r#"{"default":"legacy","domains":{"a..b":"cloud"}}"#,
            r#"{"default":"legacy","domains":{"*.a":"cloud"}}"#,
            r#"{"default":"legacy","domains":{"jo@a":"cloud"}}"#,
            r#"{"default":"legacy","domains":{"a b":"cloud"}}"#,
            r#"{"default":"legacy","instances":"acme-*"}"#,
            r#"{"default":"legacy","domain":{}}"#,
        ],
    );
}

#[test]
fn warm_up() {
    agree::<WarmUp>(
        &[
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":2,"full":4294967295}"#,
            r#"{"start":"2026-03-01T06:00:00+01:00","first_day":50,"growth":1.25,"full":9000,
                "per":"recipient-domain","upstreams":["cloud"],"recipient_domains":["*"],"hosts":4}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":5,"growth":10,"full":1,"per":"upstream"}"#,
        ],
        &[
            "{}",
            r#"{"first_day":1,"growth":2,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","growth":2,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":2}"#,
            r#"{"start":"tomorrow","first_day":1,"growth":2,"full":10}"#,
            r#"{"start":"2026-03-01","first_day":1,"growth":2,"full":10}"#,
            r#"{"start":1,"first_day":1,"growth":2,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":0,"growth":2,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":1,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":10.001,"full":10}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":2,"full":4294967296}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":2,"full":10,"per":"day"}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":2,"full":10,"hosts":0}"#,
            r#"{"start":"2026-03-01T06:00:00Z","first_day":1,"growth":2,"full":10,"days":3}"#,
        ],
    );
}
