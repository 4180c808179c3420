//! The network is cut for a while under load: what is lost, and when the rate is back.
//!
//! Owns the run and its table. Floor: none.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::{BACK, WanOptions, Way, at_most, tell, way};
use crate::{
    harness::{Account, account, in_doubt_events},
    load::steady::{Steady, SteadyOptions},
};

/// Load before the rate is taken for what it is: connections open and windows grow.
const WARM_UP: Duration = Duration::from_secs(6);
/// The rate before the outage is that of this time.
const BEFORE: Duration = Duration::from_secs(5);
/// How long the rate may take to be back.
const AFTER: Duration = Duration::from_secs(60);
/// The rate is back when it is this part of what it was ...
const FULL: f64 = 0.9;
/// ... over this time, after the first message has come: what had waited at the far end comes at once,
/// and is no rate.
const WINDOW: Duration = Duration::from_secs(1);
/// How often arrivals are counted.
const LOOK: Duration = Duration::from_millis(20);

struct Outage {
    before: f64,
    /// Seconds from the end of the cut until the rate was back, if it was.
    back: Option<f64>,
    /// Seconds until the first message came.
    first: Option<f64>,
    account: Account,
}

pub(super) fn run(options: &WanOptions) -> anyhow::Result<(String, bool)> {
    let mut text = format!(
        "The network of {} ms is cut for {} s under load. The rate is back when in {WINDOW:?} {:.0} % of \
         what came before do; \"first\" is the first message after the cut's end.\n\n\
         | way | messages/s before | first s | back s | answered 250 | lost | twice, said | twice, not said |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        options.rtt,
        options.outage,
        FULL * 100.0
    );
    let (mut aims, mut whole) = (String::from("\n"), true);
    for &way in options.rows.iter().filter(|way| !way.queues()) {
        let outage = measure(way, options);
        let said = outage.as_ref().map(|one| format!("{:?} s", one.back));
        tell(way.label(), &said.map_err(|error| anyhow::anyhow!("{error:#}")))?;
        whole &= outage.is_ok();
        let line = match &outage {
            Err(error) => writeln!(text, "| {} | error: {error:#} |||||||", way.label()),
            Ok(Outage { before, back, first, account }) => writeln!(
                text,
                "| {} | {before:.0} | {} | {} | {} | {} | {} | {} |",
                way.label(),
                first.map_or_else(|| "-".into(), |first| format!("{first:.2}")),
                back.map_or_else(|| format!("over {AFTER:?}"), |back| format!("{back:.2}")),
                account.accepted,
                account.lost.len(),
                account.explained.len(),
                account.unexplained.len(),
            ),
        };
        debug_assert!(line.is_ok(), "a String takes every write");
        if let (Way::Link, Ok(outage)) = (way, &outage) {
            let lost = outage.account.lost.len() as f64;
            aims.push_str(&at_most("messages that an outage loses", lost, 0.0));
            let back = outage.back.unwrap_or(f64::INFINITY);
            aims.push_str(&at_most("seconds after it until the rate is back", back, BACK));
        }
    }
    Ok((text + &aims, whole))
}

fn measure(way: Way, options: &WanOptions) -> anyhow::Result<Outage> {
    let wan = options.network()?;
    let mut open = way::Open::start(way, options, way::ends(&wan), true)?;
    let load = SteadyOptions {
        target: open.addr,
        sessions: options.clients(way),
        accepted: u64::MAX,
        body: options.size,
        even: true,
    };
    let steady = wan.near.within(|| Steady::start(load.clone()))?;
    std::thread::sleep(WARM_UP);
    let came = || open.sink.counts().messages;
    let (at, begun) = (came(), Instant::now());
    std::thread::sleep(BEFORE);
    let before = (came() - at) as f64 / begun.elapsed().as_secs_f64();
    anyhow::ensure!(before > 0.0, "nothing came before the outage");
    wan.cut();
    std::thread::sleep(Duration::from_secs(options.outage));
    wan.mend();
    let (first, back) = watch(before, came);
    let said = steady.stop()?;
    open.drain()?;
    open.check()?;
    let mut in_doubt = BTreeSet::new();
    open.event_logs().for_each(|file| in_doubt.extend(in_doubt_events(&file)));
    let account = account(&load, &said, &open.sink.messages(), &in_doubt);
    anyhow::ensure!(account.damaged.is_empty(), "{} were damaged", account.damaged.len());
    Ok(Outage { before, back, first, account })
}

/// When the first message comes, and when the rate is back: seconds from now.
fn watch(before: f64, came: impl Fn() -> u64) -> (Option<f64>, Option<f64>) {
    let begun = Instant::now();
    let start = came();
    let (mut first, mut seen) = (None, Vec::new());
    while begun.elapsed() < AFTER {
        std::thread::sleep(LOOK);
        let (now, count) = (begun.elapsed(), came());
        if count > start && first.is_none() {
            first = Some(now.as_secs_f64());
        }
        if first.is_none() {
            continue;
        }
        seen.push((now, count));
        let window = seen.iter().rev().find(|(at, _): &&(Duration, u64)| *at + WINDOW <= now);
        if let Some((at, old)) = window
            && (count - old) as f64 >= FULL * before * (now - *at).as_secs_f64()
        {
            return (first, Some(at.as_secs_f64()));
        }
    }
    (first, None)
}
