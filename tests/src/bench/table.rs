//! Medians and ratios of the runs, as a table.
//!
//! Owns the arithmetic: a ratio or a difference is taken within a round, then its median over the
//! rounds, so that what slows the whole machine for a while does not count. Floor: none (pure).

use std::fmt::Write as _;

use serde::Serialize;

use super::peer::Peer;
use super::run::{Measure, Results, RunOptions, Runs};
use super::workload::Workload;

/// One line: medians over the rounds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    workload: Workload,
    peer: Peer,
    rate: Option<f64>,
    rate_to_haproxy: Option<f64>,
    cpu_us: Option<f64>,
    cpu_to_haproxy: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    added_p50_us: Option<f64>,
    added_p99_us: Option<f64>,
    tools_us: Option<f64>,
    written: Option<f64>,
    error: Option<String>,
}

pub(super) fn build(results: &Results) -> Vec<Row> {
    let row = |(&(workload, peer), runs): (&(Workload, Peer), &Runs)| {
        let own = |get: fn(&Measure) -> Option<f64>| median(values(runs, get));
        let against = |other: Peer, get: fn(&Measure) -> Option<f64>, join: fn(f64, f64) -> f64| {
            let other = results.get(&(workload, other)).filter(|_| peer != other)?;
            let pairs = values(runs, get).zip(values(other, get));
            median(pairs.map(|(mine, theirs)| Some(join(mine?, theirs?))))
        };
        Row {
            workload,
            peer,
            rate: own(|m| Some(m.rate)),
            rate_to_haproxy: against(Peer::Haproxy, |m| Some(m.rate), |a, b| a / b),
            cpu_us: own(|m| m.cpu_us),
            cpu_to_haproxy: against(Peer::Haproxy, |m| m.cpu_us, |a, b| a / b),
            p50_us: own(|m| m.p50_us),
            p99_us: own(|m| m.p99_us),
            added_p50_us: against(Peer::None, |m| m.p50_us, |a, b| a - b),
            added_p99_us: against(Peer::None, |m| m.p99_us, |a, b| a - b),
            tools_us: own(|m| m.tools_us),
            written: own(|m| m.written),
            error: runs.error.clone(),
        }
    };
    results.iter().map(row).collect()
}

fn values(runs: &Runs, get: fn(&Measure) -> Option<f64>) -> impl Iterator<Item = Option<f64>> {
    runs.measures.iter().map(move |run| run.as_ref().and_then(get))
}

/// The median of what is there; of an even number, the mean of the middle two.
pub(super) fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.flatten().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

pub(super) fn markdown(rows: &[Row], options: &RunOptions) -> String {
    let mut text = format!(
        "Medians of {} alternating rounds; {} sessions, messages of {} bytes, {} a run ({} for slow peers), \
         half with one a session.\nProcessor time is the peer's alone. Latency is the own generator's; \
         with one a session it begins at connect. \"added\" is the difference to no relay in the same round.\nThose that spool are measured until their \
         queue is empty; \"written\" is the bytes that they had written to the disk for a byte accepted.\n\n",
        options.rounds, options.sessions, options.size, options.messages, options.slow_messages
    );
    text.push_str(
        "| workload | peer | messages/s | x HAProxy | us/message | x HAProxy | p50 us | p99 us \
         | added p50 | added p99 | tools us | written |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let (workload, peer) = (row.workload.label(), row.peer.label());
        // A row of which one round failed shows no figures: they would be of fewer rounds.
        let line = if let Some(error) = &row.error {
            writeln!(text, "| {workload} | {peer} | error: {} ||||||||||", error.replace('|', "/"))
        } else {
            writeln!(
                text,
                "| {workload} | {peer} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                show(row.rate, 0),
                show(row.rate_to_haproxy, 2),
                show(row.cpu_us, 1),
                show(row.cpu_to_haproxy, 2),
                show(row.p50_us, 0),
                show(row.p99_us, 0),
                show(row.added_p50_us, 0),
                show(row.added_p99_us, 0),
                show(row.tools_us, 1),
                show(row.written, 2),
            )
        };
        debug_assert!(line.is_ok(), "a String takes every write");
    }
    text
}

/// Processor time of the relay in queued mode, compared with HAProxy's direct pass.
const QUEUED_TIME: f64 = 1.8;
/// Bytes written to the disk for a byte accepted.
const QUEUED_WRITTEN: f64 = 1.3;

/// What is to be reached, and whether it was. Empty where it was not measured.
pub(super) fn aims(rows: &[Row]) -> String {
    let is_it = |row: &&Row| {
        (row.workload, row.peer) == (Workload::SourceMany, Peer::WavegateQueued)
            && row.error.is_none()
    };
    let Some(row) = rows.iter().find(is_it) else { return String::new() };
    let what = "queued, smtp-source, many a session";
    let mut text = String::from("\n");
    if let Some(ratio) = row.cpu_to_haproxy {
        text.push_str(&at_most(
            &format!("{what}: processor time to HAProxy's"),
            ratio,
            QUEUED_TIME,
        ));
    }
    if let Some(ratio) = row.written {
        text.push_str(&at_most(&format!("{what}: bytes written for one"), ratio, QUEUED_WRITTEN));
    }
    text
}

/// A line that says whether an aim is met.
pub(super) fn at_most(what: &str, value: f64, aim: f64) -> String {
    let met = if value <= aim { "met" } else { "MISSED" };
    format!("aim {met}: {what}: {value:.2}, at most {aim:.2}\n")
}

/// The same for what is to be reached or passed.
pub(super) fn at_least(what: &str, value: f64, aim: f64) -> String {
    let met = if value >= aim { "met" } else { "MISSED" };
    format!("aim {met}: {what}: {value:.2}, at least {aim:.2}\n")
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(rates: &[f64]) -> Runs {
        let measure = |&rate: &f64| {
            Some(Measure {
                rate,
                cpu_us: Some(rate / 10.0),
                p50_us: Some(rate * 2.0),
                p99_us: None,
                tools_us: None,
                written: Some(rate / 100.0),
            })
        };
        Runs { measures: rates.iter().map(measure).collect(), error: None }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut results = Results::new();
        results.insert((Workload::Bdat, Peer::None), runs(&[10.0, 20.0, 30.0]));
        results.insert((Workload::Bdat, Peer::Haproxy), runs(&[100.0, 200.0, 400.0]));
        results.insert((Workload::Bdat, Peer::Wavegate), runs(&[150.0, 100.0, 800.0]));
        let rows = build(&results);
        let row = rows.last().expect("three rows");
        assert_eq!((row.rate, row.rate_to_haproxy), (Some(150.0), Some(1.5)));
        assert_eq!((row.cpu_us, row.cpu_to_haproxy), (Some(15.0), Some(1.5)));
        // 300 - 20, 200 - 40, 1600 - 60
        assert_eq!((row.added_p50_us, row.added_p99_us), (Some(280.0), None));
        assert_eq!(rows[1].rate_to_haproxy, None, "HAProxy is not compared with itself");
    }

    #[test]
    fn aims_are_judged_by_the_row_that_they_are_of() {
        let mut results = Results::new();
        results.insert((Workload::SourceMany, Peer::Haproxy), runs(&[100.0]));
        assert_eq!(aims(&build(&results)), "");
        results.insert((Workload::SourceMany, Peer::WavegateQueued), runs(&[170.0]));
        let text = aims(&build(&results));
        assert!(text.contains("aim met: queued, smtp-source, many a session: processor"), "{text}");
        assert!(text.contains("aim MISSED: queued, smtp-source, many a session: bytes"), "{text}");
        assert!(at_least("x", 0.9, 0.9).contains("met"));
        assert!(at_least("x", 0.89, 0.9).contains("MISSED"));
    }

    #[test]
    fn medians() {
        assert_eq!(median([Some(3.0), None, Some(1.0), Some(2.0)].into_iter()), Some(2.0));
        assert_eq!(median([Some(3.0), Some(1.0)].into_iter()), Some(2.0));
        assert_eq!(median([None].into_iter()), None);
    }
}
