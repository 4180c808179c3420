//! How fast clients are served while an upstream is slow to answer.
//!
//! Owns the comparison of `handoff = "auto"` in front of a slow sink with `queued` in front of a
//! fast one. The relay is started and asked by `relay`. Floor: none.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use super::peer::Places;
use super::process::{Folder, is_on_disk};
use super::relay::{Fill, Relay, clear_spool};
use super::table::{at_least, median};
use crate::load::{self, LoadOptions, Report};
use crate::sink::{Sink, SinkOptions};

/// What the slow upstream's clients are to see of the rate of queued mode.
const AIM: f64 = 0.6;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct SlowOptions {
    /// Milliseconds before the slow upstream's final reply
    #[arg(long, default_value_t = 250)]
    pub delay: u64,
    /// Client sessions at a time
    #[arg(long, default_value_t = 50)]
    pub sessions: usize,
    /// Messages of a run
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=200_000))]
    pub messages: u64,
    /// Bytes of a message
    #[arg(long, default_value_t = 10 * 1024)]
    pub size: usize,
    /// Alternating rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 900)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

/// One way to run the relay.
#[derive(Clone, Copy)]
struct Way {
    label: &'static str,
    handoff: &'static str,
    slow: bool,
}

const AUTO: Way = Way { label: "auto, slow upstream", handoff: "auto", slow: true };
const QUEUED: Way = Way { label: "queued, fast upstream", handoff: "queued", slow: false };

/// Measures and prints.
pub fn run(options: &SlowOptions) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "What clients see: {} sessions, {} messages of {} bytes a run; medians of {} rounds. The slow \
         upstream answers after {} ms.\n\n\
         | | messages/s | p50 us | p99 us |\n| --- | ---: | ---: | ---: |",
        options.sessions, options.messages, options.size, options.rounds, options.delay
    )?;
    let state = Folder::new()?;
    is_on_disk(state.path())?;
    let mut runs: [Vec<Report>; 2] = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        for (way, runs) in [AUTO, QUEUED].into_iter().zip(&mut runs) {
            let report = measure(way, options, state.path())?;
            writeln!(io::stderr(), "round {round}: {}: {:.0}/s", way.label, report.rate)?;
            runs.push(report);
        }
    }
    for (way, runs) in [AUTO, QUEUED].into_iter().zip(&runs) {
        let of = |get: fn(&Report) -> f64| {
            median(runs.iter().map(|report| Some(get(report)))).unwrap_or(f64::NAN)
        };
        let (rate, p50, p99) = (of(|one| one.rate), of(|one| one.p50_us), of(|one| one.p99_us));
        writeln!(out, "| {} | {rate:.0} | {p50:.0} | {p99:.0} |", way.label)?;
    }
    let ratios = runs[0].iter().zip(&runs[1]).map(|(auto, queued)| Some(auto.rate / queued.rate));
    let ratio = median(ratios).unwrap_or(f64::NAN);
    let line = at_least("clients' rate with auto and a slow upstream to queued mode's", ratio, AIM);
    Ok(write!(out, "\n{line}")?)
}

/// A relay with an empty spool, and its clients until each has its 250. What is in the spool then is
/// not waited for: the slow upstream would take minutes for it.
fn measure(way: Way, options: &SlowOptions, state: &Path) -> anyhow::Result<Report> {
    let places = &options.places;
    clear_spool(state)?;
    let delay = if way.slow { Duration::from_millis(options.delay) } else { Duration::ZERO };
    let sink = Sink::start(SinkOptions { reply_delay: delay, ..SinkOptions::default() })?;
    let mut fill = Fill::new(&places.configs);
    fill.set("HANDOFF", way.handoff);
    let files = ("relay.toml", "waves.toml");
    let mut relay = Relay::start(places, state, sink.addr(), &mut fill, files)?;
    let load = |messages| LoadOptions {
        sessions: options.sessions,
        body_size: options.size,
        time_limit: Duration::from_secs(options.time_limit),
        ..LoadOptions::new(relay.addr, messages)
    };
    let clean = |report: Report| {
        let said = report.to_string().trim().replace('\n', "; ");
        anyhow::ensure!(report.is_clean(), "{said}");
        Ok(report)
    };
    // One message a session first: connections, policies, and what the relay knows of its upstream.
    clean(load::run(&load(options.sessions as u64))?)?;
    let report = clean(load::run(&load(options.messages))?)?;
    relay.process.check()?;
    Ok(report)
}
