//! What the answers of a plugin cost. Floor 4.
//!
//! Fuel is counted, and the same on every machine; time is that of this one, with the engine that
//! production has. Both are of instances that are warm, as most calls in production find them.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    case::{Case, Check, Setup},
    plugin::{Plugin, TrialError, Unready, complete},
};
use crate::{
    decision::record::Question,
    policy::{Fresh, HostOptions, PolicyHost, PolicySet},
};

/// Rounds in which fuel is counted: what an instance does at its first call only is in it, and
/// what it does otherwise once it is warm.
const FUEL_ROUNDS: usize = 3;
/// Instances that are made to measure how long that takes.
const INSTANCES: usize = 20;

/// What a plugin costs.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Bytes of the component.
    pub bytes: usize,
    /// Nanoseconds from the component to a policy: compiled, checked, described, configured.
    pub load_ns: u64,
    /// Nanoseconds of making an instance ready.
    pub instance_ns: Spread,
    /// Bytes of an instance's linear memories after the run, of the largest.
    pub memory: usize,
    /// By function of the contract.
    pub hooks: Vec<HookFigures>,
    /// Cases that were not measured, because there was no answer.
    pub failed: Vec<NoAnswer>,
}

/// What the calls of one function cost.
#[derive(Debug, Serialize)]
pub struct HookFigures {
    /// Such as `freeze.decide`.
    pub function: &'static str,
    /// Cases that ask it.
    pub cases: usize,
    /// Fuel of a call.
    pub fuel: Spread,
    /// The case that took the most.
    pub dearest: Dearest,
    /// Nanoseconds of a warm call, with making the record that it is given.
    pub time_ns: Spread,
}

/// A case by its name.
#[derive(Clone, Debug, Serialize)]
pub struct Dearest {
    /// The file.
    pub file: String,
    /// The case.
    pub name: String,
}

/// A case that got no answer.
#[derive(Debug, Serialize)]
pub struct NoAnswer {
    /// The case.
    #[serde(flatten)]
    pub case: Dearest,
    /// Why.
    pub why: String,
}

/// Of many numbers, three: nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Half of them are at most this.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// All of them are at most this.
    pub max: u64,
}

impl Spread {
    fn of(mut numbers: Vec<u64>) -> Self {
        numbers.sort_unstable();
        let rank = |of_hundred: usize| {
            let rank = (numbers.len() * of_hundred).div_ceil(100).saturating_sub(1);
            numbers.get(rank).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

impl Figures {
    /// What is over bounds that the author set, and by how much; nothing where all is within.
    pub fn over(&self, max_fuel: Option<u64>, max_memory: Option<u64>) -> Vec<String> {
        let mut over = Vec::new();
        for hook in &self.hooks {
            if let Some(most) = max_fuel.filter(|&most| hook.fuel.max > most) {
                let HookFigures { function, fuel, dearest, .. } = hook;
                let (max, more) = (fuel.max, fuel.max - most);
                over.push(format!(
                    "{function} takes {max} fuel, {more} more than {most}, in {}: {}",
                    dearest.file, dearest.name
                ));
            }
        }
        let memory = self.memory as u64;
        if let Some(most) = max_memory.filter(|&most| memory > most) {
            let more = memory - most;
            over.push(format!("an instance has {memory} bytes of memory, {more} more than {most}"));
        }
        over
    }
}

/// One case that can be asked, with the instance that is.
struct Call<'a> {
    case: &'a Case,
    group: usize,
    question: Question,
    fuel: Vec<u64>,
    time: Vec<u64>,
}

impl Plugin {
    /// Measures all cases that ask something: each `rounds` times, and in turn, so that what
    /// disturbs the machine for a while disturbs them all.
    pub fn measure(&self, cases: &[Case], rounds: usize) -> Result<Figures, TrialError> {
        let (mut calls, setups, mut failed) = questions(cases);
        let groups = u32::try_from(setups.len()).unwrap_or(u32::MAX);
        let instances = groups.saturating_add(4);
        let bounded = HostOptions { instances, audit_every: 0, ..HostOptions::simulation(1) };
        let bounded = PolicyHost::new(Some(self.compiled()), bounded)?;
        let sets = self.sets(&bounded, &setups, &mut calls, &mut failed)?;
        round(&sets, &mut calls, &mut failed, FUEL_ROUNDS, |call, instance, _| {
            call.fuel.extend(instance.fuel());
        });
        drop(sets);
        drop(bounded);

        let live = HostOptions { instances, audit_every: 0, ..HostOptions::production(1) };
        let live = PolicyHost::new(Some(self.compiled()), live)?;
        let begun = Instant::now();
        let first = calls.first().map(|call| &setups[call.group]);
        if let Some(Err(Unready::Never(error))) = first.map(|setup| self.set(&live, setup)) {
            return Err(error);
        }
        let load_ns = nanoseconds(begun.elapsed());
        let sets = self.sets(&live, &setups, &mut calls, &mut failed)?;
        let instance_ns = Spread::of(making(&sets));
        // The first round is not measured: it is what makes the instances warm.
        let mut memory = round(&sets, &mut calls, &mut failed, 1, |_, _, _| {});
        memory = memory.max(round(&sets, &mut calls, &mut failed, rounds, |call, _, time| {
            call.time.push(nanoseconds(time));
        }));
        let hooks = figures(calls);
        Ok(Figures { bytes: self.bytes, load_ns, instance_ns, memory, hooks, failed })
    }

    /// The policies, one a way of configuring it. Where there is none, its cases are taken out.
    fn sets(
        &self,
        host: &PolicyHost,
        setups: &[Setup],
        calls: &mut Vec<Call<'_>>,
        failed: &mut Vec<NoAnswer>,
    ) -> Result<Vec<Option<Arc<PolicySet>>>, TrialError> {
        let mut sets = Vec::with_capacity(setups.len());
        for (group, setup) in setups.iter().enumerate() {
            let why = match self.set(host, setup) {
                Err(Unready::Never(error)) => return Err(error),
                Ok(set) => {
                    for call in calls.iter_mut().filter(|call| call.group == group) {
                        call.question = complete(&call.question, &set);
                    }
                    sets.push(Some(set));
                    continue;
                }
                Err(Unready::Failed(why)) => why,
                Err(Unready::Refused(_)) => "the settings are refused".to_owned(),
            };
            sets.push(None);
            for call in calls.iter().filter(|call| call.group == group) {
                failed.push(no_answer(call.case, &why));
            }
            calls.retain(|call| call.group != group);
        }
        Ok(sets)
    }
}

/// All cases that ask something, and the ways of configuring the policy for them.
fn questions(cases: &[Case]) -> (Vec<Call<'_>>, Vec<Setup>, Vec<NoAnswer>) {
    let mut setups: Vec<Setup> = Vec::new();
    let mut calls = Vec::new();
    for case in cases {
        let Check::Answer { question, .. } = &case.check else { continue };
        let known = setups.iter().position(|setup| *setup == case.setup);
        let group = known.unwrap_or_else(|| {
            setups.push(case.setup.clone());
            setups.len() - 1
        });
        let question = Question::clone(question);
        calls.push(Call { case, group, question, fuel: Vec::new(), time: Vec::new() });
    }
    (calls, setups, Vec::new())
}

/// Asks all cases in turn, `rounds` times; says how much memory the largest instance has then.
/// A case that fails is taken out.
fn round(
    sets: &[Option<Arc<PolicySet>>],
    calls: &mut Vec<Call<'_>>,
    failed: &mut Vec<NoAnswer>,
    rounds: usize,
    mut note: impl FnMut(&mut Call<'_>, &Fresh, Duration),
) -> usize {
    let mut warm: Vec<Option<Fresh>> = sets.iter().map(|_| None).collect();
    for _ in 0..rounds {
        calls.retain_mut(|call| {
            let Some(set) = &sets[call.group] else { return false };
            let slot = &mut warm[call.group];
            let instance = match slot.take().map_or_else(|| Fresh::new(set, 0), Ok) {
                Ok(instance) => slot.insert(instance),
                Err(failure) => {
                    failed.push(no_answer(call.case, &failure.to_string()));
                    return false;
                }
            };
            let begun = Instant::now();
            let answer = instance.ask(&call.question);
            let time = begun.elapsed();
            match answer {
                Ok(_) => {
                    note(call, instance, time);
                    true
                }
                Err(failure) => {
                    *slot = None;
                    failed.push(no_answer(call.case, &failure.to_string()));
                    false
                }
            }
        });
    }
    warm.iter().flatten().map(Fresh::memory).max().unwrap_or(0)
}

/// How long instances take, of all policies in turn.
fn making(sets: &[Option<Arc<PolicySet>>]) -> Vec<u64> {
    let all: Vec<_> = sets.iter().flatten().collect();
    let made = all.iter().cycle().take(INSTANCES).filter_map(|set| {
        let begun = Instant::now();
        let made = Fresh::new(set, 0);
        let time = begun.elapsed();
        made.ok().map(|_| nanoseconds(time))
    });
    made.collect()
}

fn figures(calls: Vec<Call<'_>>) -> Vec<HookFigures> {
    let mut hooks: Vec<(&'static str, Vec<Call<'_>>)> = Vec::new();
    for call in calls {
        let function = call.question.function();
        match hooks.iter_mut().find(|(known, _)| *known == function) {
            Some((_, calls)) => calls.push(call),
            None => hooks.push((function, vec![call])),
        }
    }
    let figures = hooks.into_iter().filter_map(|(function, calls)| {
        let dearest = calls.iter().max_by_key(|call| call.fuel.iter().max())?;
        Some(HookFigures {
            function,
            cases: calls.len(),
            dearest: named(dearest.case),
            fuel: Spread::of(calls.iter().flat_map(|call| call.fuel.iter().copied()).collect()),
            time_ns: Spread::of(calls.iter().flat_map(|call| call.time.iter().copied()).collect()),
        })
    });
    figures.collect()
}

fn named(case: &Case) -> Dearest {
    Dearest { file: case.file.clone(), name: case.name.clone() }
}

fn no_answer(case: &Case, why: &str) -> NoAnswer {
    NoAnswer { case: named(case), why: why.to_owned() }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_by_nearest_rank() {
        assert_eq!(Spread::of((1..=200).rev().collect()), Spread { p50: 100, p99: 198, max: 200 });
        assert_eq!(Spread::of(vec![7]), Spread { p50: 7, p99: 7, max: 7 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
