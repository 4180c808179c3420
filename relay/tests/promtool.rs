//! What is served at `/metrics` passes `promtool check metrics`; the alerts that are shipped pass
//! their tests, and promtool reads every question of the dashboard.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::fixture;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

#[test]
fn the_metrics_pass_promtool() {
    let telemetry = fixture::telemetry();
    let relay = fixture::relay(&telemetry);
    fixture::history(&telemetry);
    telemetry.watch_waves(Arc::new(fixture::waves));
    let text = telemetry.render(&relay);
    let arguments = ["check", "metrics"];
    let Some(mut promtool) = promtool(&arguments, Path::new("."), Stdio::piped()) else { return };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "promtool says:\n{said}\n{text}");
}

/// Starts promtool; none where it may be skipped.
fn promtool(arguments: &[&str], directory: &Path, stdin: Stdio) -> Option<Child> {
    let spawned = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match spawned {
        Ok(promtool) => Some(promtool),
        Err(error) => {
            let skip = std::env::var("WAVEGATE_SKIP").unwrap_or_default();
            let skipped = skip.split([',', ' ']).any(|name| name == "promtool");
            assert!(
                skipped,
                "promtool cannot be run: {error}; install Debian's package prometheus, or set \
                 WAVEGATE_SKIP=promtool"
            );
            None
        }
    }
}

/// Whether promtool is content, and what it says.
fn said(arguments: &[&str], directory: &Path) -> Option<(bool, String)> {
    let output = promtool(arguments, directory, Stdio::null())?.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

#[test]
fn the_alerts_pass_their_tests() {
    let Some((good, words)) = said(&["check", "rules", "alerts.yml"], &shipped()) else { return };
    assert!(good, "{words}");
    let Some((good, words)) = said(&["test", "rules", "alerts_test.yml"], &shipped()) else {
        return;
    };
    assert!(good, "{words}");
    // Every alert has a test, and the tests can fail.
    let (alerts, tests) = ["alerts.yml", "alerts_test.yml"]
        .map(|name| fs::read_to_string(shipped().join(name)).unwrap())
        .into();
    let names: Vec<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} has no test");
    }
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("alerts_test.yml"), &tests).unwrap();
    let wrong = alerts.replace("wavegate_wave_leaked_total > 0", "wavegate_wave_leaked_total > 1");
    fs::write(directory.path().join("alerts.yml"), wrong).unwrap();
    let arguments = ["test", "rules", "alerts_test.yml"];
    let Some((good, words)) = said(&arguments, directory.path()) else { return };
    assert!(!good && words.contains("WavegateLeaked"), "{words}");
}

#[test]
fn every_question_of_the_dashboard_is_well_formed() {
    let text = fs::read_to_string(shipped().join("grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let rules: Vec<serde_json::Value> = targets
        .enumerate()
        .map(|(at, target)| {
            // As Grafana fills them in.
            let asked = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            let asked = asked.replace("$host", ".*").replace("$wave", ".*");
            serde_json::json!({ "record": format!("panel:{at}"), "expr": asked })
        })
        .collect();
    assert!(rules.len() >= 20);
    // JSON is YAML.
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("rules.yml"), rules.to_string()).unwrap();
    let arguments = ["check", "rules", "rules.yml"];
    let Some((good, words)) = said(&arguments, directory.path()) else { return };
    assert!(good, "{words}");
}
