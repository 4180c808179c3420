//! What monitors are told of waves; and that the alerts and the dashboard that are shipped ask for
//! metrics that there are.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::fixture;
use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

fn text() -> String {
    let telemetry = fixture::telemetry();
    let relay = fixture::relay(&telemetry);
    telemetry.watch_waves(Arc::new(fixture::waves));
    telemetry.render(&relay)
}

#[test]
fn waves_are_told_as_figures() {
    let text = text();
    let expected = [
        ("wave_phase{wave=\"prod-01\",phase=\"releasing\"}", 1.0),
        ("wave_phase{wave=\"prod-02\",phase=\"scheduled\"}", 1.0),
        ("wave_opens_seconds{wave=\"prod-01\"}", -3605.0),
        ("wave_closes_seconds{wave=\"prod-01\"}", -5.0),
        ("wave_opens_seconds{wave=\"prod-02\"}", 82_795.0),
        ("wave_extended_seconds{wave=\"prod-01\"}", 900.0),
        ("wave_barrier{wave=\"prod-01\"}", 1.0),
        ("wave_barrier{wave=\"prod-02\"}", 0.0),
        ("wave_barrier_seconds{wave=\"prod-01\"}", 2.5),
        ("wave_blocked_attempts{wave=\"prod-01\"}", 5.0),
        ("wave_probe_ok{wave=\"prod-01\",upstream=\"cloud\",target=\"192.0.2.1:25\"}", 1.0),
        ("wave_probe_ok{wave=\"prod-01\",upstream=\"cloud\",target=\"192.0.2.2:25\"}", 0.0),
        ("wave_held_messages{wave=\"prod-01\"}", 7.0),
        ("wave_held_bytes{wave=\"prod-01\"}", 700.0),
        ("wave_oldest_seconds{wave=\"prod-01\"}", 3604.0),
        ("wave_oldest_seconds{wave=\"prod-02\"}", 0.0),
        ("wave_drain_messages{wave=\"prod-01\"}", 10.0),
        ("wave_drain_left_messages{wave=\"prod-01\"}", 7.0),
        ("wave_drain_rate{wave=\"prod-01\"}", 1.5),
        ("wave_drain_ends_seconds{wave=\"prod-01\"}", 60.0),
        ("wave_leaked_total{wave=\"prod-01\"}", 0.0),
        ("clock_suspect", 1.0),
        ("alerts", 1.0),
    ];
    for (sample, expected) in expected {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("wavegate_{sample} ")));
        let value: f64 = line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap();
        assert!((value - expected).abs() < 1e-6, "{sample}: {value}");
    }
    assert!(!text.contains("wave_barrier_seconds{wave=\"prod-02\"}"), "not reached yet");
}

/// Names of families in a text of Prometheus.
fn families(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// The names in the table of metrics, which tests hold to what is served.
fn told(readme: &str) -> BTreeSet<&str> {
    let (_, section) = readme.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

#[test]
fn the_readme_has_every_figure_of_waves_and_no_other() {
    let (text, readme) = (text(), file("README.md"));
    let of_waves = |name: &&&str| name.starts_with("wavegate_wave_");
    let served: BTreeSet<_> = families(&text).into_iter().filter(|name| of_waves(&name)).collect();
    let told: BTreeSet<_> = told(&readme).into_iter().filter(|name| of_waves(&name)).collect();
    assert_eq!(served, told);
    assert_eq!(served.len(), 16);
}

/// Names of metrics in a text of any kind.
fn asked(text: &str) -> BTreeSet<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !word(c)).filter(|name| name.starts_with("wavegate_")).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let readme = file("README.md");
    let told = told(&readme);
    for name in ["config/alerts.yml", "config/alerts_test.yml", "config/grafana.json"] {
        let text = file(name);
        let asked = asked(&text);
        assert!(asked.len() >= 10, "{name}: {asked:?}");
        for metric in asked {
            // Parts of a histogram.
            let ends = ["_bucket", "_count", "_sum"];
            let whole = ends.iter().find_map(|end| metric.strip_suffix(end)).unwrap_or(metric);
            assert!(told.contains(metric) || told.contains(whole), "{name}: {metric}");
        }
    }
    assert!(!told.contains("wavegate_wave_of_water"));
}

#[test]
fn the_dashboard_is_one() {
    let text = file("config/grafana.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel}");
        if panel["type"] != "row" {
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        }
    }
    assert!(ids.len() >= 12);
}
