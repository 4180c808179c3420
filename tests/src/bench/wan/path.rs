//! Rates and times over the network, for each way and each loss.
//!
//! Owns the runs and their table. Floor: none.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::{ROUND_TRIPS, TO_HUNDRED, TO_TEN, WanOptions, Way, at_least, at_most, tell, way};
use crate::{
    load::{self, LoadOptions},
    wan::{self, Wan},
};

/// One load must end within this, or it is an error.
const RUN_LIMIT: Duration = Duration::from_secs(180);
/// Messages, one after the other, of which the median time is taken.
const ALONE: u64 = 40;

/// What one run measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    rate: f64,
    /// Of a message that waits for nothing, milliseconds.
    alone: Option<f64>,
    /// Of one among all, milliseconds.
    busy: Option<(f64, f64)>,
    /// Processor microseconds of the emulator a packet, and packets that the machine dropped.
    path: (f64, u64),
}

/// A way at a loss.
struct Row {
    way: Way,
    loss: f64,
    measured: anyhow::Result<Measured>,
}

pub(super) fn run(options: &WanOptions) -> anyhow::Result<(String, bool)> {
    let mut rows = Vec::new();
    for &way in &options.rows {
        rows.extend(measure_way(way, options)?);
    }
    let whole = rows.iter().all(|row| row.measured.is_ok());
    Ok((show(options, &options.network()?.tcp()?, &rows) + &aims(options, &rows), whole))
}

/// Everything of one way, on one start of it.
fn measure_way(way: Way, options: &WanOptions) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let wan = options.network()?;
    let mut opened = way::Open::start(way, options, way::ends(&wan), false);
    for &loss in &options.loss {
        let measured = match &mut opened {
            Ok(open) => measure(way, loss, options, &wan, open),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let said = measured.as_ref().map(|one| format!("{:.0}/s", one.rate));
        let said = said.map_err(|error| anyhow::anyhow!("{error:#}"));
        tell(&format!("{} at {loss} % loss", way.label()), &said)?;
        rows.push(Row { way, loss, measured });
    }
    Ok(rows)
}

fn measure(
    way: Way,
    loss: f64,
    options: &WanOptions,
    wan: &Wan,
    open: &mut way::Open<'_>,
) -> anyhow::Result<Measured> {
    let (clients, count) = (options.clients(way), options.count(way));
    let send = |sessions: usize, messages: u64| -> anyhow::Result<load::Report> {
        let load = LoadOptions {
            sessions,
            body_size: options.size,
            pipelining: true,
            time_limit: RUN_LIMIT,
            ..LoadOptions::new(open.addr, messages)
        };
        let report = wan.near.within(|| load::run(&load))?;
        anyhow::ensure!(report.is_clean(), "{}", report.to_string().trim().replace('\n', "; "));
        Ok(report)
    };
    wan.set(options.conditions(0.0));
    let mut all = open.sink.counts().messages;
    // Opens all connections, so that they are warm.
    let warm_up = clients as u64 * 2;
    send(clients, warm_up)?;
    all += warm_up;
    open.arrived(all)?;
    wan.set(options.conditions(loss));
    let before = emulator(wan);
    let begun = Instant::now();
    let report = send(clients, count)?;
    all += count;
    open.arrived(all)?;
    let took = begun.elapsed();
    let after = emulator(wan);
    let alone = if way.queues() { None } else { Some(send(1, ALONE)?.p50_us / 1000.0) };
    if alone.is_some() {
        open.arrived(all + ALONE)?;
    }
    open.check()?;
    let (busy, packets) = (after.0 - before.0, (after.1 - before.1).max(1));
    Ok(Measured {
        rate: count as f64 / took.as_secs_f64(),
        alone,
        busy: alone.map(|_| (report.p50_us / 1000.0, report.p99_us / 1000.0)),
        path: (busy.as_secs_f64() * 1e6 / packets as f64, wan.overruns()?),
    })
}

/// Processor time, and packets that have passed.
fn emulator(wan: &Wan) -> (Duration, u64) {
    let ways = [wan::Way::Up, wan::Way::Down].map(|way| wan.totals(way));
    (ways.iter().map(|way| way.busy).sum(), ways.iter().map(|way| way.packets.passed).sum())
}

fn show(options: &WanOptions, tcp: &str, rows: &[Row]) -> String {
    let mut text = format!(
        "{} ms round trip, {} ms jitter, {} % late, rate {}; TCP with {}; messages of {} bytes; direct hand-over with {} clients by \
         the link, 4 for a connection of SMTP, which is implicit TLS to a server {} CHUNKING.\n\
         \"alone\" is the median time of a message when there is no other, also in round trips. \"path\" \
         is the emulator's own processor time a packet, and packets that it was too late for.\n\n\
         | loss | way | messages/s | MB/s | p50 ms | p99 ms | alone ms | round trips | path us | late |\n\
         | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        options.rtt,
        options.jitter,
        options.reorder,
        options.rate.map_or_else(|| "unlimited".to_owned(), |rate| format!("{rate} Mbit/s")),
        tcp,
        options.size,
        options.sessions,
        if options.no_chunking { "without" } else { "with" },
    );
    for &loss in &options.loss {
        for Row { way, measured, .. } in rows.iter().filter(|row| row.loss == loss) {
            let name = way.label();
            let line = match measured {
                Err(error) => {
                    let error = format!("{error:#}").replace('|', "/");
                    writeln!(text, "| {loss} % | {name} | error: {error} ||||||||")
                }
                Ok(one) => writeln!(
                    text,
                    "| {loss} % | {name} | {:.0} | {:.2} | {} | {} | {} | {} | {:.1} | {} |",
                    one.rate,
                    one.rate * options.size as f64 / 1e6,
                    number(one.busy.map(|busy| busy.0), 0),
                    number(one.busy.map(|busy| busy.1), 0),
                    number(one.alone, 1),
                    number(one.alone.map(|alone| alone / options.rtt as f64), 2),
                    one.path.0,
                    one.path.1,
                ),
            };
            debug_assert!(line.is_ok(), "a String takes every write");
        }
    }
    text
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

/// What is to be reached, where it was measured: at 80 ms, without loss and with 1 %.
fn aims(options: &WanOptions, rows: &[Row]) -> String {
    let of = |way: Way, loss: f64| {
        let row = rows.iter().find(|row| row.way == way && row.loss == loss)?;
        row.measured.as_ref().ok()
    };
    let mut text = String::from("\n");
    if let Some(link) = of(Way::Link, 0.0) {
        if let Some(ten) = of(Way::Smtp10, 0.0) {
            let what = "messages/s by the link to those by 10 connections of SMTP";
            text.push_str(&at_least(what, link.rate / ten.rate, TO_TEN));
        }
        if let Some(alone) = link.alone {
            let what = "round trips of a message by the link";
            text.push_str(&at_most(what, alone / options.rtt as f64, ROUND_TRIPS));
        }
    }
    if let (Some(link), Some(hundred)) = (of(Way::Link, 1.0), of(Way::Smtp100, 1.0)) {
        let what = "at 1 % loss, messages/s by the link to those by 100 connections of SMTP";
        text.push_str(&at_least(what, link.rate / hundred.rate, TO_HUNDRED));
    }
    text
}
