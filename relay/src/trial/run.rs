//! Asking a plugin the questions of cases. Floor 4.
//!
//! Each is asked in two fresh instances and in one that has answered others: a policy is a pure
//! function, and the relay asks whichever instance is warm.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{
    case::{Case, Check, Setup},
    expect::{self, Difference, Expected, Problem},
    notation::shown,
    plugin::{Plugin, TrialError, Unready, complete},
};
use crate::{
    decision::record::{Answer, Question},
    policy::{Fresh, Hook, PolicyFailure, PolicySet},
};

/// What came of all cases, in their order.
#[derive(Debug)]
pub struct Report {
    /// The plugin, as it is called in reports.
    pub plugin: String,
    /// The cases.
    pub tried: Vec<Tried>,
}

/// What came of one case.
#[derive(Debug)]
pub struct Tried {
    /// The case.
    pub case: Case,
    /// What is wrong; nothing where the case passed.
    pub faults: Vec<Fault>,
    /// Fuel that the answer of a fresh instance took: the same on every machine.
    pub fuel: Option<u64>,
    /// Time that all of it took, on this one.
    pub took: Duration,
}

/// One thing wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The answer is not what is expected.
    Differs {
        /// The answer, as a case would have it.
        got: Value,
        /// In what.
        differences: Vec<Difference>,
    },
    /// The same question got another answer.
    NotPure {
        /// Which instance gave it.
        whose: &'static str,
        /// Its answer or failure.
        got: Result<Value, String>,
    },
    /// There was no answer.
    NoAnswer(String),
    /// The settings were refused: path and message of each problem.
    Refused(Vec<(String, String)>),
    /// The settings were to be refused, and were not.
    Accepted,
    /// The relay would not ask this policy that.
    NeverAsked(&'static str),
}

impl Plugin {
    /// Asks all cases. An error is about the plugin, whatever the cases are.
    pub fn test(&self, cases: &[Case]) -> Result<Report, TrialError> {
        // One policy a way of configuring it, in the order in which they first occur.
        let mut groups: BTreeMap<&Setup, Vec<usize>> = BTreeMap::new();
        for (index, case) in cases.iter().enumerate() {
            groups.entry(&case.setup).or_default().push(index);
        }
        let mut tried: Vec<Option<Tried>> = cases.iter().map(|_| None).collect();
        for (setup, members) in groups {
            for (index, one) in self.group(setup, cases, &members)? {
                tried[index] = Some(one);
            }
        }
        Ok(Report { plugin: self.name.clone(), tried: tried.into_iter().flatten().collect() })
    }

    /// Asks the cases of one configuration.
    fn group(
        &self,
        setup: &Setup,
        cases: &[Case],
        members: &[usize],
    ) -> Result<Vec<(usize, Tried)>, TrialError> {
        let begun = Instant::now();
        let set = self.set(&self.host, setup);
        let loading = begun.elapsed();
        let set = match set {
            Err(Unready::Never(error)) => return Err(error),
            Err(Unready::Refused(problems)) => Err(Fault::Refused(problems)),
            Err(Unready::Failed(how)) => Err(Fault::NoAnswer(how)),
            Ok(set) => Ok(set),
        };
        let mut warm = set.as_ref().ok().map(|set| Warm::new(set, cases, members));
        let mut tried = Vec::with_capacity(members.len());
        for (place, &index) in members.iter().enumerate() {
            let begun = Instant::now();
            let (faults, fuel) = match (&cases[index].check, &set) {
                (Check::Refused(problems), set) => (refused(problems, set.as_ref().err()), None),
                (Check::Answer { .. }, Err(fault)) => (vec![fault.clone()], None),
                (Check::Answer { question, expected }, Ok(set)) => {
                    answered(set, question, expected, warm.as_mut())
                }
            };
            // The first one waited for all.
            let took = begun.elapsed() + if place == 0 { loading } else { Duration::ZERO };
            tried.push((index, Tried { case: cases[index].clone(), faults, fuel, took }));
        }
        Ok(tried)
    }
}

fn refused(expected: &[Problem], fault: Option<&Fault>) -> Vec<Fault> {
    match fault {
        None => vec![Fault::Accepted],
        Some(Fault::Refused(found)) => {
            // Each expected problem is one that was found, and there are no others.
            let mut left: Vec<_> = found.iter().collect();
            let all = expected.iter().all(|problem| {
                let at = left.iter().position(|(path, message)| problem.is(path, message));
                at.map(|at| left.remove(at)).is_some()
            });
            if all && left.is_empty() { Vec::new() } else { vec![Fault::Refused(found.clone())] }
        }
        Some(fault) => vec![fault.clone()],
    }
}

fn answered(
    set: &Arc<PolicySet>,
    question: &Question,
    expected: &Expected,
    warm: Option<&mut Warm<'_>>,
) -> (Vec<Fault>, Option<u64>) {
    if let Some(why) = never_asked(set, question) {
        return (vec![Fault::NeverAsked(why)], None);
    }
    let question = complete(question, set);
    let (first, fuel) = fresh(set, &question);
    let mut faults = Vec::new();
    match &first {
        Ok(answer) => {
            let differences = expected.differences(answer);
            if !differences.is_empty() {
                faults.push(Fault::Differs { got: expect::told(answer), differences });
            }
        }
        Err(failure) => faults.push(Fault::NoAnswer(failure.to_string())),
    }
    let mut same = |whose, then: Result<Answer, PolicyFailure>| {
        // How a failure is told may name an address; that it fails is what counts.
        let same = match (&first, &then) {
            (Ok(first), Ok(then)) => first == then,
            (Err(first), Err(then)) => first.kind == then.kind,
            _ => false,
        };
        if !same {
            let got = then.map(|answer| expect::told(&answer)).map_err(|it| it.to_string());
            faults.push(Fault::NotPure { whose, got });
        }
    };
    same("a second fresh instance", fresh(set, &question).0);
    if let Some(warm) = warm
        && let Some(answer) = warm.ask(&question)
    {
        same("an instance that had answered before", answer);
    }
    (faults, fuel)
}

fn never_asked(set: &PolicySet, question: &Question) -> Option<&'static str> {
    let policy = &set.policies()[0];
    match question {
        Question::Decide { .. } if !policy.has(Hook::Freeze) => Some("it has no freeze hook"),
        Question::Route { .. } if !policy.has(Hook::Routing) => Some("it has no routing hook"),
        Question::Limits { .. } | Question::Observe { .. } if !policy.has(Hook::Throttling) => {
            Some("it has no throttling hook")
        }
        Question::Observe { .. } if !policy.needs().outcomes => {
            Some("it did not ask for outcomes in configure (needs.outcomes)")
        }
        _ => None,
    }
}

fn fresh(
    set: &Arc<PolicySet>,
    question: &Question,
) -> (Result<Answer, PolicyFailure>, Option<u64>) {
    match Fresh::new(set, 0) {
        Ok(mut instance) => (instance.ask(question), instance.fuel()),
        Err(failure) => (Err(failure), None),
    }
}

/// An instance that answers one question after another.
struct Warm<'a> {
    set: &'a Arc<PolicySet>,
    instance: Option<Fresh>,
}

impl<'a> Warm<'a> {
    /// One that has answered all questions already, the last one first.
    fn new(set: &'a Arc<PolicySet>, cases: &[Case], members: &[usize]) -> Self {
        let mut warm = Self { set, instance: Fresh::new(set, 0).ok() };
        for &index in members.iter().rev() {
            if let Check::Answer { question, .. } = &cases[index].check
                && never_asked(set, question).is_none()
            {
                warm.ask(&complete(question, set));
            }
        }
        warm
    }

    /// Its answer. One that failed is not asked again: the relay gives it up, too.
    fn ask(&mut self, question: &Question) -> Option<Result<Answer, PolicyFailure>> {
        if self.instance.is_none() {
            self.instance = Fresh::new(self.set, 0).ok();
        }
        let answer = self.instance.as_mut()?.ask(question);
        if answer.is_err() {
            self.instance = None;
        }
        Some(answer)
    }
}

impl Report {
    /// How many cases failed.
    pub fn failed(&self) -> usize {
        self.tried.iter().filter(|one| !one.passed()).count()
    }

    /// Whether all passed.
    pub fn passed(&self) -> bool {
        self.failed() == 0
    }
}

impl fmt::Display for Report {
    /// The cases that failed, each with what is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in self.tried.iter().filter(|one| !one.passed()) {
            writeln!(f, "{}: {}", one.case.file, one.case.name)?;
            for line in one.lines() {
                writeln!(f, "  {line}")?;
            }
        }
        write!(f, "{} of {} cases failed", self.failed(), self.tried.len())
    }
}

impl Fault {
    /// Its name in files.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Differs { .. } => "differs",
            Self::NotPure { .. } => "not-pure",
            Self::NoAnswer(_) => "no-answer",
            Self::Refused(_) => "refused",
            Self::Accepted => "accepted",
            Self::NeverAsked(_) => "never-asked",
        }
    }
}

impl Tried {
    /// Whether the case passed.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// What is wrong, in lines for people: expected and got in the notation of the case.
    pub fn lines(&self) -> Vec<String> {
        let shown = |value: &Value| shown(value, self.case.notation);
        let expected = format!("expected  {}", shown(&self.case.expect));
        let mut lines = Vec::new();
        for fault in &self.faults {
            match fault {
                Fault::Differs { got, differences } => {
                    lines.push(expected.clone());
                    lines.push(format!("got       {}", shown(got)));
                    // Where all of it differs, both lines above say so.
                    let inside = differences.iter().filter(|one| !one.at.is_empty());
                    lines.extend(inside.map(|one| {
                        let or_nothing = |value: &Option<Value>| {
                            value.as_ref().map_or_else(|| "nothing".to_owned(), shown)
                        };
                        let (wanted, got) = (or_nothing(&one.expected), or_nothing(&one.got));
                        format!("differs   {}: expected {wanted}, got {got}", one.at)
                    }));
                }
                Fault::NotPure { whose, got } => {
                    let got = match got {
                        Ok(answer) => format!("answered {}", shown(answer)),
                        Err(failure) => format!("failed: {failure}"),
                    };
                    lines.push(format!("not pure  the same question again: {whose} {got}"));
                }
                Fault::NoAnswer(how) => {
                    lines.push(expected.clone());
                    lines.push(format!("failed    {how}"));
                }
                Fault::Refused(problems) => {
                    lines.push(expected.clone());
                    lines.extend(problems.iter().map(|(path, message)| {
                        let problem = serde_json::json!({ "path": path, "message": message });
                        format!("refused   {}", shown(&problem))
                    }));
                }
                Fault::Accepted => {
                    lines.push(expected.clone());
                    lines.push("got       the settings were accepted".to_owned());
                }
                Fault::NeverAsked(why) => lines.push(format!("not asked {why}")),
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests;
