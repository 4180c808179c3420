//! Each policy's schema says what its parser says: every case is given to both. The parser
//! alone knows the upstreams, and how many decimals a number may have (`multipleOf` is a matter of
//! rounding to validators).
#![allow(clippy::unwrap_used, reason = "tests")]
use wavegate_freeze::Freeze;
use wavegate_policy::{Policy, configured};
use wavegate_routing::Routing;
use wavegate_throttle::Throttle;

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
