//! `wavegate plugin bench`: what the answers of a plugin cost. Floor 4.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use super::{
    Failed, exit,
    test::{CasesArgs, failed, open},
};
use crate::{
    cli::output::{clean, field, json, table},
    config,
    trial::{Figures, Spread},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct BenchArgs {
    /// The component.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    #[command(flatten)]
    cases: CasesArgs,
    /// Exit with 1 where a call takes more fuel than this.
    #[arg(long, value_name = "N")]
    max_fuel: Option<u64>,
    /// Exit with 1 where an instance has more memory than this, such as 2MiB.
    #[arg(long, value_name = "SIZE", value_parser = config::size)]
    max_memory: Option<u64>,
    /// How often each case is timed.
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What was measured. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Told<'a> {
    ok: bool,
    plugin: String,
    #[serde(flatten)]
    figures: &'a Figures,
    /// What is over the bounds.
    over: Vec<String>,
}

/// Measures a plugin and tells what it costs.
pub(super) fn bench(args: &BenchArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let cases = args.cases.read()?;
    let plugin = open(&args.file)?;
    let rounds = usize::try_from(args.rounds).unwrap_or(usize::MAX);
    let figures = plugin.measure(&cases, rounds).map_err(|error| failed(&args.file, &error))?;
    if figures.hooks.is_empty() && figures.failed.is_empty() {
        let message = "no case expects an answer: there is nothing to measure";
        return Err(Failed::new(exit::NO_INPUT, message).into());
    }
    let over = figures.over(args.max_fuel, args.max_memory);
    let ok = over.is_empty() && figures.failed.is_empty();
    let told = Told { ok, plugin: args.file.display().to_string(), figures: &figures, over };
    match args.json {
        true => json(out, &told)?,
        false => print(&told, out)?,
    }
    Ok(u8::from(!ok))
}

fn print(told: &Told<'_>, out: &mut dyn Write) -> io::Result<()> {
    let figures = told.figures;
    writeln!(out, "{}", told.plugin)?;
    field(out, "size", format!("{} bytes", figures.bytes))?;
    field(out, "load", time(figures.load_ns))?;
    let Spread { p50, max, .. } = figures.instance_ns;
    field(out, "instance", format!("{} (at most {})", time(p50), time(max)))?;
    field(out, "memory", format!("{} bytes an instance", figures.memory))?;
    let head = ["", "cases", "", "p50", "p99", "max"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for hook in &figures.hooks {
        let row = |first: &str, cases: String, what: &str, of: Spread, show: fn(u64) -> String| {
            vec![first.to_owned(), cases, what.to_owned(), show(of.p50), show(of.p99), show(of.max)]
        };
        let cases = hook.cases.to_string();
        rows.push(row(hook.function, cases, "fuel", hook.fuel, |fuel| fuel.to_string()));
        rows.push(row("", String::new(), "time", hook.time_ns, time));
    }
    if rows.len() > 1 {
        table(out, &rows)?;
    }
    for one in &figures.failed {
        writeln!(out, "no answer: {}: {}: {}", one.case.file, one.case.name, clean(&one.why))?;
    }
    for one in &told.over {
        writeln!(out, "too much: {}", clean(one))?;
    }
    Ok(())
}

/// Nanoseconds, as people say them.
fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{}.{:02} us", nanoseconds / 1000, nanoseconds % 1000 / 10),
        _ => format!("{}.{:02} ms", nanoseconds / 1_000_000, nanoseconds % 1_000_000 / 10_000),
    }
}
