//! Processor time of the edge a message, on loopback: by the link, and by SMTP over TLS.
//!
//! Owns the runs and their table. Floor: none.

use std::{fmt::Write as _, time::Duration};

use super::{COST, WanOptions, Way, at_most, tell, way};
use crate::{
    bench::{cpu, table::median},
    load::{self, LoadOptions},
};

/// Alternating rounds.
const ROUNDS: usize = 3;
/// Clients at a time, as in the benchmark next to peers.
const CLIENTS: usize = 20;
/// One load must end within this, or it is an error.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// SMTP has a connection for each client at least, so nobody waits.
const WAYS: [Way; 2] = [Way::Smtp100, Way::Link];

pub(super) fn run(options: &WanOptions) -> anyhow::Result<(String, bool)> {
    let ways: Vec<Way> = WAYS.into_iter().filter(|way| options.rows.contains(way)).collect();
    let mut found: Vec<Vec<Option<(f64, f64)>>> = vec![Vec::new(); ways.len()];
    for round in 1..=ROUNDS {
        for (&way, found) in ways.iter().zip(&mut found) {
            let one = measure(way, options);
            let said = one.as_ref().map(|one| format!("{:.0} us", one.0));
            let said = said.map_err(|error| anyhow::anyhow!("{error:#}"));
            tell(&format!("round {round}: {}", way.label()), &said)?;
            found.push(one.ok());
        }
    }
    let mut text = format!(
        "On loopback: {CLIENTS} clients, {} messages of {} bytes, direct hand-over; medians of {ROUNDS} \
         rounds.\n\n| way | us processor of the edge a message | messages/s |\n| --- | ---: | ---: |\n",
        options.messages, options.size
    );
    for (way, found) in ways.iter().zip(&found) {
        let of = |get: fn((f64, f64)) -> f64| {
            let value = median(found.iter().map(|one| one.map(get)));
            value.map_or_else(|| "-".into(), |value| format!("{value:.0}"))
        };
        let (cost, rate) = (of(|one| one.0), of(|one| one.1));
        let line = writeln!(text, "| {} | {cost} | {rate} |", way.label());
        debug_assert!(line.is_ok(), "a String takes every write");
    }
    text.push('\n');
    if let [smtp, link] = &found[..] {
        let pairs =
            link.iter().zip(smtp).map(|(link, smtp)| Some(link.as_ref()?.0 / smtp.as_ref()?.0));
        if let Some(ratio) = median(pairs) {
            let what = "processor time of the edge by the link to that by SMTP over TLS";
            text.push_str(&at_most(what, ratio, COST));
        }
    }
    Ok((text, found.iter().flatten().all(Option::is_some)))
}

/// Processor microseconds of the edge a message, and messages a second.
fn measure(way: Way, options: &WanOptions) -> anyhow::Result<(f64, f64)> {
    let mut open = way::Open::start(way, options, way::loopback(), false)?;
    let send = |messages: u64| -> anyhow::Result<load::Report> {
        let load = LoadOptions {
            sessions: CLIENTS,
            body_size: options.size,
            pipelining: true,
            time_limit: RUN_LIMIT,
            ..LoadOptions::new(open.addr, messages)
        };
        let report = load::run(&load)?;
        anyhow::ensure!(report.is_clean(), "{}", report.to_string().trim().replace('\n', "; "));
        Ok(report)
    };
    send(options.messages / 10 + 100)?;
    let before = cpu::tree_time(open.edge_id())?;
    let report = send(options.messages)?;
    let took = cpu::tree_time(open.edge_id())?.saturating_sub(before);
    open.check()?;
    Ok((took.as_secs_f64() * 1e6 / options.messages as f64, report.rate))
}
