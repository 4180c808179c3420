//! What is served at `/metrics` passes `promtool check metrics`.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod fixture;

use std::{
    io::Write,
    process::{Command, Stdio},
};

#[test]
fn the_metrics_pass_promtool() {
    let telemetry = fixture::telemetry();
    let relay = fixture::relay(&telemetry);
    fixture::history(&telemetry);
    let text = telemetry.render(&relay);
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match spawned {
        Ok(promtool) => promtool,
        Err(error) => {
            let skip = std::env::var("WAVEGATE_SKIP").unwrap_or_default();
            let skipped = skip.split([',', ' ']).any(|name| name == "promtool");
            assert!(
                skipped,
                "promtool cannot be run: {error}; install Debian's package prometheus, or set \
                 WAVEGATE_SKIP=promtool"
            );
            return;
        }
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "promtool says:\n{said}\n{text}");
}
