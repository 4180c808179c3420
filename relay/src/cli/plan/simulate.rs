//! `wavegate plan simulate`: a rehearsal of the plan with a day of mail. Floor 4.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{self, Write},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::{From, now};
use crate::{
    cli::{
        Failed, check, exit,
        output::{field, json},
        time,
    },
    config::{self, Checks, Config, PlanSource, When},
    plan::{Plan, Timestamp, Wave},
    rehearsal::{
        self, LETTERS, LONGEST_MS, Rehearsal, RehearsalError, Report, Span, Strength, Traffic,
        WaveReport,
    },
};

const HOUR: u64 = 3_600_000;
/// Mail before the first window and after the last.
const BEFORE: u64 = HOUR;
const AFTER: u64 = 2 * HOUR;
/// Exit code where something leaked, was lost, or arrived twice.
const NOT_GOOD: u8 = 1;
/// Leaked messages that are printed.
const PRINTED: usize = 20;

/// What is rehearsed.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct SimulateArgs {
    #[command(flatten)]
    from_files: From,
    #[command(flatten)]
    mail: Mail,
    /// What everything random follows from.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Messages a second that each upstream answers at most.
    #[arg(long, value_name = "MSGS_PER_S", default_value = "500")]
    rate: NonZeroU32,
    /// Milliseconds before each final reply of an upstream.
    #[arg(long, value_name = "MS", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(0..=60_000))]
    latency: u64,
    /// First moment, in RFC 3339; by default an hour before the first window that is not over.
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Last moment; by default two hours after the last window.
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// Draw the backlog over time into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Which mail is sent.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct Mail {
    /// That of a trace, in CSV or JSON Lines.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// So many messages that are made up.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LETTERS as u64))]
    synthetic: Option<u64>,
}

/// Rehearses and prints.
pub(super) fn simulate(args: &SimulateArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let now = now(None);
    let source = args.from_files.source()?;
    // Which time it is about is in the plan; what must hold then is looked at when that is known.
    let plan = args.from_files.read(now, Checks::Values)?.plan;
    let span = span(&plan, args, now)?;
    let config = read(&source, &plan, span.from)?;
    let traffic = traffic(args, &config, span)?;
    if traffic.letters.is_empty() {
        return Err(Failed::new(exit::CONFIG, "no instance sends anything in this time").into());
    }
    let cache = check::own_cache(&config);
    let strength = Strength { rate: args.rate, latency: Duration::from_millis(args.latency) };
    let rehearsal = Rehearsal { config, span, traffic, strength, seed: args.seed, cache };
    let report = rehearsal::run(rehearsal).map_err(|error| {
        let code = match error {
            RehearsalError::Policies(_) => exit::CONFIG,
            _ => exit::OS,
        };
        Failed::new(code, error.to_string())
    })?;
    if let Some(path) = &args.svg {
        fs::write(path, rehearsal::draw(&report, span.from))
            .map_err(|error| Failed::new(exit::IO, format!("{}: {error}", path.display())))?;
    }
    match args.json {
        true => json(out, &report)?,
        false => print(&report, &args.from_files.shown(), out)?,
    }
    Ok(if report.is_good() { 0 } else { NOT_GOOD })
}

/// The waves that a rehearsal is about where no time is given: those that are not over; all,
/// where all are.
fn subject(plan: &Plan, now: Timestamp) -> Vec<&Wave> {
    let open: Vec<&Wave> = plan.waves.iter().filter(|wave| !wave.window.is_over(now)).collect();
    if open.is_empty() { plan.waves.iter().collect() } else { open }
}

fn span(plan: &Plan, args: &SimulateArgs, now: Timestamp) -> Result<Span, Failed> {
    let usage = |message: String| Failed::new(exit::USAGE, message);
    let waves = subject(plan, now);
    let first = waves.iter().map(|wave| wave.window.opens).min();
    let last = waves.iter().map(|wave| wave.window.closes).max();
    let none = || usage("the plan has no wave; give --from and --to".to_owned());
    let from = args.from.or(first.map(|opens| opens.saturating_sub_ms(BEFORE))).ok_or_else(none)?;
    let to = args.to.or(last.map(|closes| closes.saturating_add_ms(AFTER))).ok_or_else(none)?;
    if to <= from {
        return Err(usage(format!("{from} to {to} is no time; give another --from or --to")));
    }
    let span = Span { from, to };
    if span.length_ms() > LONGEST_MS {
        return Err(usage(format!(
            "{from} to {to} is longer than 31 days; give --from and --to, such as those of one day \
             of waves"
        )));
    }
    Ok(span)
}

/// The parts of a span in which there are windows, with the time before and after them; all of
/// it where times are given.
fn active(plan: &Plan, args: &SimulateArgs, span: Span) -> Vec<(u64, u64)> {
    let length = span.length_ms();
    if args.from.is_some() || args.to.is_some() {
        return vec![(0, length)];
    }
    let offset = |time: Timestamp| time.0.saturating_sub(span.from.0).min(length);
    let mut parts: Vec<(u64, u64)> = Vec::new();
    // The plan has its waves by time.
    for wave in plan.waves.iter().filter(|wave| wave.window.closes > span.from) {
        let begins = offset(wave.window.opens.saturating_sub_ms(BEFORE));
        let ends = offset(wave.window.closes.saturating_add_ms(AFTER));
        match parts.last_mut() {
            Some((_, end)) if begins <= *end => *end = ends.max(*end),
            _ => parts.push((begins, ends)),
        }
    }
    parts
}

fn read(source: &PlanSource, plan: &Plan, from: Timestamp) -> Result<Config, Failed> {
    let when = When { now: from, checks: Checks::Relay };
    let wrong = |found| Failed::new(exit::CONFIG, format!("as of {from}:\n{found}"));
    let path = match source {
        PlanSource::Relay(path) => {
            return config::read_at(path, when).map(Config::without_links).map_err(wrong);
        }
        PlanSource::Plan(path) => path,
    };
    let io = |error: io::Error| Failed::new(exit::OS, format!("a configuration: {error}"));
    // Errors of the plan are told with its name.
    config::read_plan(source, when).map_err(wrong)?;
    let directory = tempfile::tempdir().map_err(io)?;
    let file = directory.path().join("relay.toml");
    fs::write(&file, built_in(plan, &std::path::absolute(path).map_err(io)?)).map_err(io)?;
    config::read_at(&file, when).map_err(wrong)
}

/// The configuration of a rehearsal of a plan alone: two upstreams, the standard policies, and
/// what else the plan names.
fn built_in(plan: &Plan, path: &Path) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut listeners: BTreeSet<&str> = BTreeSet::from(["listener-1"]);
    let mut upstreams: BTreeSet<&str> = BTreeSet::from(["legacy", "cloud"]);
    for instance in &plan.instances {
        listeners.extend(instance.matcher.listeners.iter().map(String::as_str));
        upstreams.extend(instance.before.as_deref().into_iter().chain(instance.after.as_deref()));
    }
    for wave in &plan.waves {
        upstreams.extend(wave.before.as_deref().into_iter().chain(wave.after.as_deref()));
    }
    let mut text = format!(
        "[relay]\nhostname = \"relay.invalid\"\nstate_dir = \"state\"\nplan = {}\n",
        quoted(&path.to_string_lossy())
    );
    for (name, port) in listeners.into_iter().zip(2525..) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[listener]]\nname = {}\naddress = \"127.0.0.1:{port}\"\nallow = [\"0.0.0.0/0\", \
             \"::/0\"]\n",
            quoted(name)
        );
    }
    for (name, port) in upstreams.into_iter().zip(20_000..) {
        let _ = write!(
            text,
            "[[upstream]]\nname = {}\ntargets = [\"127.0.0.1:{port}\"]\n",
            quoted(name)
        );
    }
    text += "[migration]\nbefore = \"legacy\"\nafter = \"cloud\"\n";
    for plugin in ["freeze", "routing", "throttle"] {
        let _ = write!(text, "[[policy]]\nplugin = \"builtin:{plugin}\"\n");
    }
    text + "settings = { limits = [{ per = [\"upstream\", \"recipient-domain\"], rate = \"5000/s\", \
            burst = 500 }] }\n"
}

fn traffic(args: &SimulateArgs, config: &Config, span: Span) -> Result<Traffic, Failed> {
    if let Some(count) = args.mail.synthetic {
        let active = active(&config.plan, args, span);
        return Ok(rehearsal::synthetic(config, span, &active, count, args.seed));
    }
    let path = args.mail.trace.as_deref().unwrap_or(Path::new(""));
    let shown = path.display().to_string();
    let no_input = |error| Failed::new(exit::NO_INPUT, format!("{shown}: {error}"));
    let file = fs::File::open(path).map_err(no_input)?;
    rehearsal::read_trace(config, span, &shown, file, args.seed).map_err(|error| {
        let code = match error {
            rehearsal::TraceError::Read { .. } => exit::NO_INPUT,
            rehearsal::TraceError::Wrong { .. } => exit::DATA,
        };
        Failed::new(code, error.to_string())
    })
}

fn print(report: &Report, name: &str, out: &mut dyn Write) -> io::Result<()> {
    use rehearsal::{grouped, seconds};
    let Report { totals, waves, .. } = report;
    writeln!(out, "{name}: rehearsed, {}", if report.is_good() { "good" } else { "NOT good" })?;
    field(out, "time", format!("{} to {}, seed {}", report.from, report.to, report.seed))?;
    let upstreams = report.upstreams.join(", ");
    let (rate, latency) = (report.upstream_rate, report.upstream_latency_ms);
    field(
        out,
        "upstreams",
        format!("{upstreams}: at most {rate} messages/s each, {latency} ms before a reply"),
    )?;
    let (sent, size) = (grouped(totals.sent), bytes(totals.bytes));
    field(out, "mail", format!("{sent} messages, {size} {}", report.sizes))?;
    if !waves.is_empty() {
        writeln!(out)?;
        table(waves, out)?;
    }
    writeln!(out)?;
    field(out, "sent", &sent)?;
    field(out, "delivered", grouped(totals.delivered))?;
    for (label, count) in [
        ("given up", totals.given_up),
        ("refused", totals.refused),
        ("at senders", totals.at_senders),
    ] {
        if count > 0 {
            field(out, label, grouped(count))?;
        }
    }
    field(out, "waiting", grouped(totals.waiting))?;
    field(out, "lost", grouped(totals.lost))?;
    let doubt = match totals.in_doubt {
        0 => String::new(),
        count => format!(" ({} replies of upstreams were lost)", grouped(count)),
    };
    field(out, "duplicated", format!("{}{doubt}", grouped(totals.duplicated)))?;
    field(out, "leaked", grouped(totals.leaked))?;
    let spool = match &totals.peak.at {
        Some(at) => {
            let messages = grouped(totals.peak.messages);
            format!("{} for {messages} messages at {at}", bytes(totals.peak.bytes))
        }
        None => "nothing waited".to_owned(),
    };
    field(out, "spool needs", spool)?;
    if totals.others.sent > 0 {
        let (sent, longest) = (grouped(totals.others.sent), seconds(totals.others.longest_ms));
        field(out, "other mail", format!("{sent} messages, delivered within {longest}"))?;
    }
    for note in &report.notes {
        field(out, "note", note)?;
    }
    for leak in report.leaked.iter().take(PRINTED) {
        let rehearsal::Leak { wave, instance, message, arrived_at, upstream, .. } = leak;
        field(
            out,
            "LEAKED",
            format!("{message} of {instance} ({wave}) at {arrived_at} to {upstream}"),
        )?;
    }
    Ok(())
}

/// A row for each wave.
fn table(waves: &[WaveReport], out: &mut dyn Write) -> io::Result<()> {
    use rehearsal::{grouped, seconds};
    let dash = || "-".to_owned();
    let heads = [
        "wave",
        "opens",
        "closes",
        "barrier",
        "held",
        "bytes",
        "spool",
        "peak at",
        "released",
        "drained in",
        "leaked",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for wave in waves {
        let drained = match (wave.drain_ms, wave.held.messages) {
            (Some(_), 0) => dash(),
            (Some(ms), _) => seconds(ms),
            (None, _) => format!("{} left", grouped(wave.left)),
        };
        let never = || "never".to_owned();
        rows.push([
            wave.id.clone(),
            short(&wave.opens),
            short(&wave.closes),
            wave.barrier_ms.map_or_else(never, seconds),
            grouped(wave.held.messages),
            bytes(wave.held.bytes),
            bytes(wave.peak.bytes),
            wave.peak.at.as_deref().map_or_else(dash, short),
            wave.release_delay_ms.map_or_else(never, |late| format!("+{}", seconds(late))),
            drained + if wave.not_drained_before.is_some() { " (late)" } else { "" },
            grouped(wave.leaked),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..heads.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, " {cell:<width$} ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Day and time: `01-20 06:00:00`.
fn short(time: &str) -> String {
    match (time.get(5..10), time.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time}"),
        _ => time.to_owned(),
    }
}

/// `12.3 GiB`.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            let tenths = u128::from(count) * 10 / u128::from(size);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} bytes")
}
