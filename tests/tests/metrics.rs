//! The metrics of a running relay are those that the README tells operators of.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::collections::{BTreeMap, BTreeSet};

use wavegate_tests::harness::{Config, Relay, TLS_FILES, recording};

const PLAN: &str = "\
[[instance]]
name = \"acme-prod-1\"
product = \"campaign-classic\"
environment = \"production\"
match = { clients = [\"127.0.0.1/32\"] }
[[wave]]
id = \"prod-01\"
environment = \"production\"
instances = [\"acme-prod-1\"]
opens = \"2126-01-20T06:00:00Z\"
closes = \"2126-01-20T06:45:00Z\"
";

/// Every row of the table of metrics: name and labels.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, section) = readme.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut table = BTreeMap::new();
    for row in rows {
        let mut cells = row.split('|');
        let name = cells.next().unwrap().trim().trim_end_matches('`').to_owned();
        let labels = cells.next().unwrap().split('`').skip(1).step_by(2);
        let twice = table.insert(name.clone(), labels.map(str::to_owned).collect());
        assert!(twice.is_none(), "{name} stands there twice");
    }
    table
}

#[test]
fn the_readme_has_every_metric_of_a_running_relay_and_no_other() {
    let sink = recording();
    let config = Config::to(&[sink.addr()])
        .relay("plan = \"waves.toml\"")
        .listener("tls = { certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }] }")
        .admin();
    let config = config.section(
        "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"hostile.wasm\"\n\
         settings = { do = \"chatter\" }\n[[policy]]\nplugin = \"builtin:freeze\"\n\
         [[policy]]\nname = \"next\"\nplugin = \"builtin:freeze\"\nmode = \"shadow\"\n\
         replaces = \"freeze\"\n\
         [[listener]]\nname = \"edges\"\ntype = \"link\"\naddress = \"127.0.0.1:0\"\n\
         link = { certificate = \"mx.pem\", key = \"mx.key\", ca = \"ca.pem\" }\n\
         [[upstream]]\nname = \"cloud\"\ntype = \"link\"\ntargets = [\"127.0.0.1:9\"]\n\
         link = { certificate = \"mx.pem\", key = \"mx.key\", ca = \"ca.pem\", name = \"mx.example\" }\n",
    );
    let hostile = include_bytes!("../guests/hostile.wasm");
    let own: [(&str, &[u8]); 2] = [("waves.toml", PLAN.as_bytes()), ("hostile.wasm", hostile)];
    let relay = Relay::start_with(&config.to_string(), &[&own[..], &TLS_FILES].concat());
    // A policy's own counters are there once it has counted.
    relay.hello().small();
    let served = relay.metrics().families();
    let told = table();
    let missing: Vec<_> = served.iter().filter(|one| told.get(one.0) != Some(one.1)).collect();
    assert!(missing.is_empty(), "not in the README, or with other labels: {missing:#?}");
    // A wave has some of its figures only while it drains: relay/tests/telemetry_waves.rs looks at
    // all of them.
    let of_waves = |name: &&String| name.starts_with("wavegate_wave_");
    // A roll-out has its stage where there was one: tests/tests/plugin_ship.rs.
    let of_rollouts = |name: &&String| *name == "wavegate_plugin_rollout_stage";
    // A link has a round trip while it has a connection: tests/tests/link_setup.rs.
    let of_links = |name: &&String| *name == "wavegate_link_round_trip_seconds";
    let elsewhere = |name: &&String| of_waves(name) || of_rollouts(name) || of_links(name);
    let gone: Vec<_> =
        told.keys().filter(|name| !served.contains_key(*name) && !elsewhere(name)).collect();
    assert!(gone.is_empty(), "in the README, and not served: {gone:#?}");
}
