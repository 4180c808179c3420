//! A plugin that loops for ever on one message in a hundred: how long the others take.
//!
//! Owns the comparison of the same mail with and without the loop. Floor: none.

use std::fs;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::idle;
use super::paced::{Paced, Served, send};
use super::peer::Places;
use super::process::Folder;
use super::relay::{Fill, Relay};
use crate::sink::{Sink, SinkOptions};

/// What 999 of 1000 other messages are to take at most, in milliseconds.
const AIM: f64 = 10.0;
/// One message in so many is poison.
const SHARE: u32 = 100;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct PoisonOptions {
    /// Messages a second
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(100..=5000))]
    pub rate: u32,
    /// Sessions of the others
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub sessions: u32,
    /// Seconds of a run; one with poison, one without
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 900)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

/// Measures and prints; whether the aim is met.
pub fn run(options: &PoisonOptions) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    let state = Folder::new()?;
    let places = &options.places;
    fs::copy(places.configs.join("../guests/hostile.wasm"), state.path().join("plugin.wasm"))?;
    let sink = Sink::start(SinkOptions::default())?;
    let mut fill = Fill::new(&places.configs);
    fill.set("SETTINGS", "do = \"loop-on-poison\", and = \"no-limits\"");
    let files = ("policies.toml", "waves.toml");
    let mut relay = Relay::start(places, state.path(), sink.addr(), &mut fill, files)?;
    writeln!(
        out,
        "{} messages a second; a policy loops on one in {SHARE} of them. From when a message was due \
         to its reply, ms:\n\n\
         | | messages | p50 | p99 | p99.9 |\n| --- | ---: | ---: | ---: | ---: |",
        options.rate
    )?;
    let mut row = |name: &str, served: &Served| {
        let [p50, p99, p999] = [500, 990, 999].map(|part| served.milliseconds(part));
        let count = served.passed + served.kept;
        writeln!(out, "| {name} | {count} | {p50:.2} | {p99:.2} | {p999:.2} |")
    };
    let (idle, idlest) = idle::lateness();
    // The first run is the one without, and warms everything up.
    let (without, _) = both(options, &relay, false);
    row("without the loop", &without)?;
    let (others, poisoned) = both(options, &relay, true);
    row("the others", &others)?;
    row("those it loops on", &poisoned)?;
    relay.process.check()?;
    let failed = without.failed + others.failed + poisoned.failed;
    anyhow::ensure!(failed == 0, "{failed} messages failed");
    anyhow::ensure!(poisoned.passed == 0 && poisoned.kept > 0, "the policy did not loop");
    let (p99, p999) = (format!("{idle:.2}"), format!("{idlest:.2}"));
    writeln!(out, "| lateness of a thread that only sleeps, before | | | {p99} | {p999} |")?;
    let slow = relay.figures()?.sum("wavegate_policy_slow_calls_total", None)?;
    let p999 = others.milliseconds(999);
    let word = if p999 <= AIM { "met" } else { "missed" };
    writeln!(
        out,
        "\n{slow} calls left their worker. p99.9 of the others: {p999:.2} ms (at most {AIM}: {word})"
    )?;
    Ok(p999 <= AIM)
}

/// The others, and those that the policy loops on.
fn both(options: &PoisonOptions, relay: &Relay, poison: bool) -> (Served, Served) {
    let stop = AtomicBool::new(false);
    let target = relay.addr;
    let paced = |sender, rate, sessions| Paced { target, sender, rate, sessions };
    let others = paced("a@mkt.acme.example", options.rate, options.sessions);
    // Sessions enough, so that none waits for one that waits for the loop.
    let poisoned = paced("poison@mkt.acme.example", (options.rate / SHARE).max(1), 4);
    thread::scope(|scope| {
        let others = scope.spawn(|| send(others, &stop));
        let poisoned = poison.then(|| scope.spawn(|| send(poisoned, &stop)));
        thread::sleep(Duration::from_secs(options.seconds));
        stop.store(true, Ordering::Relaxed);
        let failed = || Served { failed: 1, ..Served::default() };
        let poisoned = poisoned.map(|it| it.join().unwrap_or_else(|_| failed()));
        (others.join().unwrap_or_else(|_| failed()), poisoned.unwrap_or_default())
    })
}
