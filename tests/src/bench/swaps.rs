//! Plugins changed again and again under load: no message may notice.
//!
//! Owns the swaps and what is compared before and after. Floor: none.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::idle;
use super::paced::{Paced, Served, send};
use super::peer::Places;
use super::process::{Folder, until};
use super::relay::{Fill, Relay};
use crate::harness::variant;
use crate::sink::{Sink, SinkOptions};

/// Different components.
const BUILDS: u32 = 20;
/// What 999 of 1000 times in the gate are to take at most, in milliseconds.
const AIM: f64 = 10.0;
/// Growth of resident memory, as a share, after the first round of all builds.
const GROWTH: f64 = 0.05;
/// How long one swap may take.
const SWAP: Duration = Duration::from_secs(30);
/// Where the builds differ: the words that held mail gets.
const WORDS: &str = "instance  is being upgraded";

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct SwapsOptions {
    /// Swaps among 20 components, which are compiled at their first
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(200..=10_000))]
    pub swaps: u32,
    /// Messages a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub rate: u32,
    /// Sessions; they stay open throughout
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub sessions: u32,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 1800)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

/// Measures and prints; whether the aims are met.
pub fn run(options: &SwapsOptions) -> anyhow::Result<bool> {
    let state = Folder::new()?;
    let places = &options.places;
    let built = fs::read(places.configs.join("../../plugins/dist/freeze.wasm"))?;
    fs::write(state.path().join("plugin.wasm"), &built)?;
    let sink = Sink::start(SinkOptions { verify: true, ..SinkOptions::default() })?;
    let mut fill = Fill::new(&places.configs);
    fill.set("SETTINGS", "");
    let files = ("policies.toml", "waves.toml");
    let mut relay = Relay::start(places, state.path(), sink.addr(), &mut fill, files)?;
    let (idle, idlest) = idle::lateness();
    let first = relay.figures()?;
    let stop = AtomicBool::new(false);
    let paced = Paced {
        target: relay.addr,
        sender: "a@mkt.acme.example",
        rate: options.rate,
        sessions: options.sessions,
    };
    let begun = Instant::now();
    let (served, swapped) = thread::scope(|scope| {
        let load = scope.spawn(|| send(paced, &stop));
        let swapped = swap_all(options, &relay, &built, state.path());
        stop.store(true, Ordering::Relaxed);
        (load.join().unwrap_or(Served { failed: 1, ..Served::default() }), swapped)
    });
    let (before, after) = swapped?;
    relay.process.check()?;
    let arrived = sink.counts().messages;
    let growth = after as f64 / before as f64 - 1.0;
    let p999 = relay.figures()?.quantile(&first, "wavegate_gate_seconds", 999)? * 1e3;
    let is_whole = served.failed == 0 && served.kept == 0 && arrived == served.passed;
    let aims = [is_whole, growth <= GROWTH, p999 <= AIM];
    let [whole, flat, fast] = aims.map(|met| if met { "met" } else { "missed" });
    writeln!(
        io::stdout(),
        "{} swaps among {BUILDS} components in {:.0} s under {} messages a second, {} in all.\n\
         failed, dropped or kept: {}, arrived {arrived} (none, and all: {whole})\n\
         resident after the first {}: {:.1} MB, at the end {:.1} MB: {:+.1} % (at most 5: {flat})\n\
         time in the gate: p99.9 {p999:.2} ms or less (at most {AIM}: {fast})\n\
         from when a message was due to its reply: p50 {:.2}, p99 {:.2}, p99.9 {:.2} ms\n\
         lateness of a thread that only sleeps, before: p99 {idle:.2}, p99.9 {idlest:.2} ms",
        options.swaps,
        begun.elapsed().as_secs_f64(),
        options.rate,
        served.passed + served.kept + served.failed,
        served.failed + served.kept,
        5 * BUILDS,
        before as f64 / 1e6,
        after as f64 / 1e6,
        growth * 100.0,
        served.milliseconds(500),
        served.milliseconds(990),
        served.milliseconds(999),
    )?;
    Ok(aims.iter().all(|&met| met))
}

/// Resident memory after every build was in force five times, and at the end.
fn swap_all(
    options: &SwapsOptions,
    relay: &Relay,
    built: &[u8],
    state: &Path,
) -> anyhow::Result<(u64, u64)> {
    let mut before = 0;
    for swap in 0..options.swaps {
        let build = variant(built, WORDS, (swap % BUILDS) as usize);
        fs::write(state.join(".new"), build)?;
        let made = reloads(relay, "done")?;
        fs::rename(state.join(".new"), state.join("plugin.wasm"))?;
        kill(Pid::from_raw(i32::try_from(relay.process.id())?), Signal::SIGHUP)?;
        let done = until(SWAP, || Ok((reloads(relay, "done")? > made).then_some(())))?;
        done.with_context(|| format!("swap {swap} was not made; {}", relay.process.output()))?;
        if swap + 1 == 5 * BUILDS {
            before = resident(relay.process.id())?;
        }
    }
    anyhow::ensure!(reloads(relay, "refused")? == 0.0, "a swap was refused");
    Ok((before, resident(relay.process.id())?))
}

fn reloads(relay: &Relay, result: &str) -> anyhow::Result<f64> {
    relay.figures()?.sum("wavegate_reloads_total", Some(("result", result)))
}

fn resident(id: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}
