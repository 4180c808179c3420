//! The waves of several hosts as one: a barrier is reached when it is on all of them.
//!
//! Nothing is told as if it were the whole when a host is missing, or goes by another plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    StatusArgs,
    show::{self, when},
};
use crate::{
    cli::{
        Failed, client, exit,
        output::{clean, count, json, list, table},
        remote::{Asker, Silence, Target},
    },
    conductor::status::{Alert, Drain, Held, Status, WaveStatus},
};

/// Seconds that the clocks of hosts may differ: beyond it windows do, too.
const CLOCKS: i64 = 2;

/// What a host said, or why it said nothing.
type Said = (String, Result<Status, Silence>);

/// Several hosts. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Merged {
    /// All hosts answered and have the same plan.
    complete: bool,
    /// The plan, where it is the same everywhere.
    plan: Option<String>,
    hosts: Vec<Host>,
    /// What is wrong with the hosts.
    problems: Vec<String>,
    waves: Vec<Wave>,
    alerts: Vec<HostAlert>,
    leaked: u64,
    #[serde(skip)]
    code: u8,
}

#[derive(Debug, Serialize)]
struct Host {
    asked: String,
    name: Option<String>,
    plan: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct HostAlert {
    host: String,
    #[serde(flatten)]
    alert: Alert,
}

/// One wave over all hosts.
#[derive(Debug, Serialize)]
struct Wave {
    id: String,
    /// Hosts by the phase that it is in there.
    phases: BTreeMap<String, Vec<String>>,
    opens: String,
    /// Where hosts differ, the latest.
    closes: String,
    /// Nothing of it is in flight on any host.
    barrier: bool,
    /// When that was so on the last of them.
    barrier_at: Option<String>,
    /// The hosts that it is not known of.
    no_barrier: Vec<String>,
    held: Held,
    drain: Option<Drain>,
    leaked: u64,
}

/// Asks all hosts and prints.
pub(super) fn status(args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let asker = Asker::new(&token_file(args)?, args.ca.as_ref(), &args.hosts)?;
    let twice = first_twice(args.hosts.iter().map(ToString::to_string));
    if let Some(twice) = twice {
        let text = format!("{twice} is given twice; its mail would be counted twice");
        return Err(Failed::new(exit::USAGE, text).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed::new(exit::OS, error.to_string()))?;
    let merged = merge(&runtime.block_on(ask_all(&asker, &args.hosts)));
    match args.json {
        true => json(out, &merged)?,
        false => merged.print(out)?,
    }
    Ok(merged.code)
}

fn token_file(args: &StatusArgs) -> Result<PathBuf, Failed> {
    match (&args.token_file, &args.config) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(file)) => match client::read(file)?.api {
            Some(api) => Ok(api.token_file),
            None => {
                let text = format!("{} has no `[api]`; give --token-file", file.display());
                Err(Failed::new(exit::CONFIG, text))
            }
        },
        (None, None) => Err(Failed::new(exit::USAGE, "give --token-file or --config")),
    }
}

fn first_twice(names: impl Iterator<Item = String>) -> Option<String> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(name.clone()))
}

/// What each host says, in the order in which they were named.
async fn ask_all(asker: &Arc<Asker>, targets: &[Target]) -> Vec<Said> {
    let mut asking = JoinSet::new();
    for (at, target) in targets.iter().cloned().enumerate() {
        let asker = Arc::clone(asker);
        asking.spawn(async move {
            let said = asker.get(&target, "/v1/status").await;
            (at, (target.to_string(), said))
        });
    }
    let mut all = asking.join_all().await;
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, said)| said).collect()
}

/// Puts together what hosts said.
fn merge(said: &[Said]) -> Merged {
    let there: Vec<(&str, &Status)> =
        said.iter().filter_map(|(asked, said)| Some((&**asked, said.as_ref().ok()?))).collect();
    let mut problems = Vec::new();
    let mut code = 0;
    for (asked, said) in said {
        if let Err(silence) = said {
            problems.push(format!("{asked} {silence}"));
            code = exit::UNAVAILABLE;
        }
    }
    if let Some(twice) = first_twice(there.iter().map(|(_, status)| status.host.clone())) {
        problems.push(format!("several of them call themselves {twice}: is one host given twice?"));
        code = exit::UNAVAILABLE;
    }
    let mut plans: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (asked, status) in &there {
        plans.entry(&status.plan.digest).or_default().push(asked);
    }
    if plans.len() > 1 {
        let of = |(digest, hosts): (&&str, &Vec<&str>)| format!("{digest} on {}", list(hosts));
        let all: Vec<String> = plans.iter().map(of).collect();
        problems.push(format!("their plans differ: {}", all.join("; ")));
        code = if code == 0 { exit::CONFIG } else { code };
    }
    let complete = problems.is_empty();
    let missing = said.iter().filter(|(_, said)| said.is_err()).map(|(asked, _)| asked.clone());
    let missing: Vec<String> = missing.collect();
    let waves = merge_waves(&there, &missing, complete);
    let leaked = waves.iter().map(|wave| wave.leaked).sum();
    if leaked > 0 && code == 0 {
        code = 1;
    }
    Merged {
        complete,
        plan: plans.keys().next().filter(|_| plans.len() == 1).map(|plan| (*plan).to_owned()),
        hosts: said.iter().map(host).collect(),
        problems,
        waves,
        alerts: alerts(&there),
        leaked,
        code,
    }
}

fn host((asked, said): &Said) -> Host {
    let status = said.as_ref().ok();
    Host {
        asked: asked.clone(),
        name: status.map(|status| status.host.clone()),
        plan: status.map(|status| status.plan.digest.clone()),
        error: said.as_ref().err().map(ToString::to_string),
    }
}

/// What hosts raise, and what only shows between them.
fn alerts(there: &[(&str, &Status)]) -> Vec<HostAlert> {
    let mut all = Vec::new();
    for (asked, status) in there {
        let mut add = |alert: Alert| all.push(HostAlert { host: (*asked).to_owned(), alert });
        let own =
            |text: &str| Alert { since: status.now.clone(), wave: None, text: text.to_owned() };
        if status.clock_suspect {
            add(own("its clocks do not agree: nothing is released there"));
        }
        if let Some(reason) = &status.held_all {
            add(own(&format!("everything is held: {reason}")));
        }
        status.alerts.iter().cloned().for_each(&mut add);
    }
    let time = |status: &Status| status.now.parse::<jiff::Timestamp>().ok();
    let times = || there.iter().filter_map(|(asked, status)| Some((time(status)?, asked, status)));
    if let (Some(first), Some(last)) =
        (times().min_by_key(|one| one.0), times().max_by_key(|one| one.0))
        && last.0.duration_since(first.0).as_secs() > CLOCKS
    {
        let apart = last.0.duration_since(first.0).as_secs();
        let text = format!("its clock, or its answer, is {apart} s behind that of {}", last.1);
        let alert = Alert { since: first.2.now.clone(), wave: None, text };
        all.push(HostAlert { host: (*first.1).to_owned(), alert });
    }
    all
}

fn merge_waves(there: &[(&str, &Status)], missing: &[String], complete: bool) -> Vec<Wave> {
    let mut order = Vec::new();
    let mut by_id: BTreeMap<&str, Vec<(&str, &WaveStatus)>> = BTreeMap::new();
    for (asked, status) in there {
        for wave in &status.waves {
            let all = by_id.entry(&wave.id).or_default();
            if all.is_empty() {
                order.push((&*wave.opens, &*wave.id));
            }
            all.push((asked, wave));
        }
    }
    order.sort_unstable();
    let one = |(_, id): &(&str, &str)| {
        let on = by_id.get(id).map(Vec::as_slice).unwrap_or_default();
        let absent = there.iter().filter(|(asked, _)| on.iter().all(|(other, _)| other != asked));
        let absent = absent.map(|(asked, _)| (*asked).to_owned());
        merge_wave(id, on, missing.iter().cloned().chain(absent).collect(), complete)
    };
    order.iter().map(one).collect()
}

/// One wave as the hosts `on` have it; `without` are those that say nothing of it.
fn merge_wave(id: &str, on: &[(&str, &WaveStatus)], without: Vec<String>, complete: bool) -> Wave {
    let all = || on.iter().map(|(_, wave)| *wave);
    let mut phases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (asked, wave) in on {
        phases.entry(wave.phase.clone()).or_default().push((*asked).to_owned());
    }
    let not_yet = on.iter().filter(|(_, wave)| wave.barrier_at.is_none());
    let mut no_barrier = without;
    no_barrier.extend(not_yet.map(|(asked, _)| (*asked).to_owned()));
    let barrier = complete && no_barrier.is_empty();
    // RFC 3339 in UTC with the same digits is in order as text.
    let latest = |times: &mut dyn Iterator<Item = Option<&String>>| times.flatten().max().cloned();
    let held = Held {
        messages: all().map(|wave| wave.held.messages).sum(),
        bytes: all().map(|wave| wave.held.bytes).sum(),
        oldest: all().filter_map(|wave| wave.held.oldest.clone()).min(),
    };
    let drains = || all().filter_map(|wave| wave.drain.as_ref());
    let drain = drains().next().map(|_| Drain {
        total: drains().map(|drain| drain.total).sum(),
        left: drains().map(|drain| drain.left).sum(),
        rate: drains().map(|drain| drain.rate).sum(),
        // Where one host cannot say, nobody can.
        ends: match drains().all(|drain| drain.left == 0 || drain.ends.is_some()) {
            true => latest(&mut drains().map(|drain| drain.ends.as_ref())),
            false => None,
        },
    });
    Wave {
        id: id.to_owned(),
        phases,
        opens: all().map(|wave| wave.opens.clone()).min().unwrap_or_default(),
        closes: all().map(|wave| wave.closes.clone()).max().unwrap_or_default(),
        barrier_at: latest(&mut all().map(|wave| wave.barrier_at.as_ref())).filter(|_| barrier),
        barrier,
        no_barrier,
        held,
        drain,
        leaked: all().map(|wave| wave.leaked).sum(),
    }
}

impl Merged {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        for problem in &self.problems {
            writeln!(out, "PROBLEM: {}", clean(problem))?;
        }
        let answered = self.hosts.iter().filter(|host| host.error.is_none()).count();
        let of = count(self.hosts.len(), "host");
        let plan = match (&self.plan, self.complete) {
            (Some(plan), true) => format!("plan {plan} on all of them"),
            (Some(plan), false) => format!("plan {plan} where they did"),
            (None, _) => "NOT ONE PLAN".to_owned(),
        };
        writeln!(out, "{answered} of {of} answered, {plan}")?;
        if !self.complete {
            writeln!(out, "what follows is NOT THE WHOLE: no barrier counts as reached")?;
        }
        for HostAlert { host, alert } in &self.alerts {
            show::alert(out, alert, Some(host))?;
        }
        writeln!(out)?;
        if self.waves.is_empty() {
            return writeln!(out, "no waves");
        }
        let names = ["WAVE", "PHASE", "CLOSES", "BARRIER", "HELD", "DRAIN", "LEAKED"];
        let mut rows = vec![names.map(str::to_owned).to_vec()];
        rows.extend(self.waves.iter().map(Wave::row));
        table(out, &rows)
    }
}

impl Wave {
    fn row(&self) -> Vec<String> {
        let phase = match self.phases.len() {
            1 => self.phases.keys().cloned().collect(),
            _ => {
                let of =
                    |(phase, hosts): (&String, &Vec<String>)| format!("{phase} on {}", list(hosts));
                self.phases.iter().map(of).collect::<Vec<_>>().join("; ")
            }
        };
        let over = self.phases.keys().all(|phase| phase == "migrated" || phase == "rolled-back");
        let before = self.phases.keys().all(|phase| phase == "unscheduled" || phase == "scheduled");
        let barrier = match &self.barrier_at {
            Some(at) => when(at),
            None if over || before => "-".to_owned(),
            None => format!("NOT on {}", list(&self.no_barrier)),
        };
        let leaked = match self.leaked {
            0 => "0".to_owned(),
            some => format!("{some} LEAKED"),
        };
        let drain = self.drain.as_ref().map_or("-".to_owned(), show::drain);
        let closes = when(&self.closes);
        vec![self.id.clone(), phase, closes, barrier, show::held(&self.held), drain, leaked]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::conductor::status::PlanStatus;

    fn wave(barrier: Option<&str>, held: u64) -> WaveStatus {
        WaveStatus {
            id: "w1".into(),
            phase: "frozen".into(),
            opens: "2026-01-20T06:00:00Z".into(),
            closes: "2026-01-20T06:45:00Z".into(),
            barrier_at: barrier.map(str::to_owned),
            held: Held { messages: held, bytes: held * 10, oldest: None },
            ..WaveStatus::default()
        }
    }

    fn on(host: &str, plan: &str, waves: Vec<WaveStatus>) -> Said {
        let status = Status {
            host: format!("{host}.example"),
            now: "2026-01-20T06:10:00Z".into(),
            plan: PlanStatus { digest: plan.into(), ..PlanStatus::default() },
            waves,
            ..Status::default()
        };
        (host.to_owned(), Ok(status))
    }

    fn printed(merged: &Merged) -> String {
        let mut out = Vec::new();
        merged.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    const AT: Option<&str> = Some("2026-01-20T05:59:04Z");
    const LATER: Option<&str> = Some("2026-01-20T05:59:09Z");

    #[test]
    fn a_barrier_is_reached_when_it_is_on_all() {
        let merged = merge(&[on("a", "p", vec![wave(AT, 3)]), on("b", "p", vec![wave(LATER, 4)])]);
        assert_eq!((merged.complete, merged.code, merged.plan.as_deref()), (true, 0, Some("p")));
        let one = &merged.waves[0];
        assert_eq!((one.barrier, one.barrier_at.as_deref()), (true, LATER));
        assert_eq!((one.held.messages, one.held.bytes), (7, 70));
        let merged = merge(&[on("a", "p", vec![wave(AT, 3)]), on("b", "p", vec![wave(None, 4)])]);
        assert_eq!((merged.complete, merged.waves[0].barrier), (true, false));
        assert_eq!(merged.waves[0].no_barrier, ["b"]);
        assert!(printed(&merged).contains("NOT on b"));
    }

    #[test]
    fn a_host_that_is_silent_spoils_every_barrier() {
        let silent = ("b".to_owned(), Err(Silence::Unreachable("refused".into())));
        let merged = merge(&[on("a", "p", vec![wave(AT, 3)]), silent]);
        assert_eq!((merged.complete, merged.code), (false, exit::UNAVAILABLE));
        assert!(!merged.waves[0].barrier && merged.waves[0].barrier_at.is_none());
        assert_eq!(merged.waves[0].no_barrier, ["b"]);
        let text = printed(&merged);
        assert!(text.contains("PROBLEM: b cannot be reached: refused"), "{text}");
        assert!(text.contains("1 of 2 hosts answered") && text.contains("NOT THE WHOLE"), "{text}");
    }

    #[test]
    fn another_plan_spoils_every_barrier() {
        let merged = merge(&[on("a", "p", vec![wave(AT, 3)]), on("b", "q", vec![wave(AT, 4)])]);
        assert_eq!((merged.complete, merged.code), (false, exit::CONFIG));
        assert!(!merged.waves[0].barrier && merged.plan.is_none());
        let text = printed(&merged);
        assert!(text.contains("their plans differ: p on a; q on b"), "{text}");
    }

    #[test]
    fn one_host_under_two_names_is_found() {
        let twice = on("a", "p", vec![wave(AT, 3)]);
        let (_, said) = on("a", "p", vec![wave(AT, 3)]);
        let merged = merge(&[twice, ("127.0.0.1".to_owned(), said)]);
        assert_eq!((merged.complete, merged.code), (false, exit::UNAVAILABLE));
        assert!(merged.problems[0].contains("a.example"), "{:?}", merged.problems);
    }

    #[test]
    fn a_wave_that_one_host_does_not_have_has_no_barrier() {
        let merged = merge(&[on("a", "p", vec![wave(AT, 3)]), on("b", "p", Vec::new())]);
        assert!(merged.complete && !merged.waves[0].barrier);
        assert_eq!(merged.waves[0].no_barrier, ["b"]);
    }

    #[test]
    fn drains_add_up_and_end_with_the_last() {
        let drain = |left, ends: Option<&str>| {
            let ends = ends.map(str::to_owned);
            let drain = Some(Drain { total: 10, left, rate: 2.0, ends });
            WaveStatus { drain, ..wave(AT, left) }
        };
        let of = |one: WaveStatus, other: WaveStatus| {
            let merged = merge(&[on("a", "p", vec![one]), on("b", "p", vec![other])]);
            merged.waves.into_iter().next().unwrap().drain.unwrap()
        };
        let both = of(drain(4, AT), drain(6, LATER));
        assert_eq!((both.total, both.left, both.ends.as_deref()), (20, 10, LATER));
        assert_eq!(of(drain(4, AT), drain(6, None)).ends, None, "one cannot say");
        assert_eq!(of(drain(4, AT), drain(0, None)).ends.as_deref(), AT, "one is done");
    }

    #[test]
    fn a_leak_and_clocks_that_differ_are_told() {
        let leak = WaveStatus { leaked: 1, ..wave(AT, 0) };
        let (name, late) = on("b", "p", Vec::new());
        let late = late.map(|status| Status { now: "2026-01-20T06:09:50Z".into(), ..status });
        let merged = merge(&[on("a", "p", vec![leak]), (name, late)]);
        assert_eq!((merged.leaked, merged.code), (1, 1));
        let text = printed(&merged);
        assert!(text.contains("1 LEAKED"), "{text}");
        assert!(text.contains("ALERT on b") && text.contains("10 s behind that of a"), "{text}");
    }
}
