//! What a replay came to, for people and programs. Floor 4.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use super::{Failed, Outcome, exit, log::Damaged};
use crate::{
    cli::output::{clean, field, table},
    decision::record::{Class, Said},
    decision_log::line::CallLine,
    policy::Policy,
};

/// Differences of a class that are shown.
const EXAMPLES: usize = 3;
/// Bytes of an answer that are shown.
const SHOWN: usize = 300;
/// Reasons that are told apart.
const REASONS: usize = 50;

/// What a replay came to. Its JSON is stable: fields may be added.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    policy: String,
    candidate: Option<Candidate>,
    /// Questions of the policy that the log has.
    questions: u64,
    /// Those that could be asked again.
    compared: u64,
    /// Answers that are not the same.
    differences: u64,
    /// How many of each class, by its name.
    classes: BTreeMap<&'static str, u64>,
    /// Why questions were not asked.
    not_replayable: BTreeMap<String, u64>,
    examples: Vec<Example>,
    /// Where plugin and settings are those that answered then.
    own: Own,
    /// Calls that the relay left out.
    pub(super) lost: u64,
    pub(super) damaged: Damaged,
    from: Option<String>,
    to: Option<String>,
    max_differences: Option<f64>,
    ok: bool,
    /// In some part of the log local parts are hashed.
    pub(super) hashed: bool,
}

#[derive(Debug, Serialize)]
struct Candidate {
    name: String,
    version: String,
    contract: String,
    digest: String,
}

#[derive(Debug, Default, Serialize)]
struct Own {
    questions: u64,
    differences: u64,
}

#[derive(Debug, Serialize)]
struct Example {
    class: Class,
    time: String,
    message: Option<String>,
    function: &'static str,
    old: String,
    new: String,
}

impl Report {
    pub(super) fn new(policy: &str) -> Self {
        Self {
            policy: policy.to_owned(),
            candidate: None,
            questions: 0,
            compared: 0,
            differences: 0,
            classes: Class::ALL.map(|class| (class.as_str(), 0)).into(),
            not_replayable: BTreeMap::new(),
            examples: Vec::new(),
            own: Own::default(),
            lost: 0,
            damaged: Damaged::default(),
            from: None,
            to: None,
            max_differences: None,
            ok: true,
            hashed: false,
        }
    }

    /// The plugin that is asked.
    pub(super) fn candidate(&mut self, policy: &Policy) {
        self.candidate = Some(Candidate {
            name: policy.description().name.clone(),
            version: policy.description().version.clone(),
            contract: policy.contract().to_string(),
            digest: policy.digest().to_owned(),
        });
    }

    pub(super) fn digest(&self) -> Option<&String> {
        self.candidate.as_ref().map(|candidate| &candidate.digest)
    }

    pub(super) fn asked(&self) -> u64 {
        self.compared
    }

    /// Counts a question. `is_own`: the plugin had answered it before.
    pub(super) fn count(&mut self, call: &CallLine, outcome: Outcome, is_own: bool) {
        self.questions += 1;
        self.from.get_or_insert_with(|| call.time.clone());
        self.to = Some(call.time.clone());
        let (class, new) = match outcome {
            Outcome::Compared { class, new } => (class, new),
            Outcome::Not(why) => {
                let full = self.not_replayable.len() >= REASONS;
                let why = if full { "other reasons".to_owned() } else { why };
                *self.not_replayable.entry(why).or_default() += 1;
                *self.classes.entry(Class::NotReplayable.as_str()).or_default() += 1;
                return;
            }
        };
        let differs = u64::from(class != Class::Same);
        *self.classes.entry(class.as_str()).or_default() += 1;
        self.compared += 1;
        self.differences += differs;
        self.own.questions += u64::from(is_own);
        self.own.differences += if is_own { differs } else { 0 };
        let there = self.examples.iter().filter(|example| example.class == class).count();
        if class != Class::Same && there < EXAMPLES {
            self.examples.push(Example {
                class,
                time: call.time.clone(),
                message: call.message.clone(),
                function: call.question.function(),
                old: shown(&call.said),
                new: shown(&new),
            });
        }
    }

    /// The exit code.
    pub(super) fn verdict(&mut self, most: Option<f64>) -> Result<u8, Failed> {
        if self.questions == 0 {
            let text = format!("the log has no question of policy {}", self.policy);
            return Err(Failed::new(exit::DATA, text));
        }
        self.max_differences = most;
        // Where nothing could be asked nothing is shown to be alike.
        let too_many = most.is_some_and(|most| self.compared == 0 || self.percent() > most);
        self.ok = !too_many;
        Ok(u8::from(too_many))
    }

    fn percent(&self) -> f64 {
        share(self.differences, self.compared)
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let span = self.from.as_deref().zip(self.to.as_deref());
        let (from, to) = span.unwrap_or(("-", "-"));
        let (policy, questions) = (&self.policy, self.questions);
        writeln!(out, "policy {policy}: {questions} questions from {from} to {to}")?;
        if let Some(Candidate { name, version, contract, digest }) = &self.candidate {
            let text = format!("{name} {version}, contract {contract}, BLAKE3 {digest}");
            field(out, "asked", text)?;
        }
        field(out, "compared", self.compared)?;
        let count = |class: Class| self.classes.get(class.as_str()).copied().unwrap_or(0);
        let mut rows = Vec::new();
        for class in Class::ALL.into_iter().filter(|class| *class != Class::NotReplayable) {
            let count = count(class);
            let percent = format!("{:.2} %", share(count, self.compared));
            let row = [class.as_str().to_owned(), format!("{count:>10}"), format!("{percent:>9}")];
            rows.push([vec!["  ".to_owned()], row.to_vec()].concat());
        }
        table(out, &rows)?;
        if !self.not_replayable.is_empty() {
            field(out, "not asked", count(Class::NotReplayable))?;
            for (why, count) in &self.not_replayable {
                writeln!(out, "    {count:>12}  {}", clean(why))?;
            }
        }
        self.print_notes(out)?;
        for example in &self.examples {
            let Example { class, time, message, function, old, new } = example;
            let message = message.as_deref().unwrap_or("-");
            writeln!(out, "\n{class}: {} {function} {}", clean(message), clean(time))?;
            field(out, "old", old)?;
            field(out, "new", new)?;
        }
        Ok(())
    }

    fn print_notes(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.own {
            Own { questions: 0, .. } => {}
            Own { questions, differences: 0 } => {
                let text = "it answers its own log alike";
                writeln!(out, "{text}: {questions} questions, 0 differences")?;
            }
            Own { questions, differences } => {
                writeln!(
                    out,
                    "it is not pure: of {questions} questions that it had answered itself, with \
                     the same settings, it answers {differences} otherwise"
                )?;
                if self.hashed {
                    writeln!(
                        out,
                        "(local parts are hashed in this log; one that decides by them answers \
                         otherwise too: log with local_parts = \"plain\" to know)"
                    )?;
                }
            }
        }
        if self.own.questions == 0 && self.differences > 0 && self.hashed {
            writeln!(
                out,
                "local parts are hashed in this log: a policy that decides by them is not shown \
                 as it would be"
            )?;
        }
        if self.lost > 0 {
            writeln!(out, "the relay left {} calls out of the log", self.lost)?;
        }
        if self.damaged.count > 0 {
            writeln!(out, "{} lines cannot be read:", self.damaged.count)?;
            for place in &self.damaged.first {
                writeln!(out, "    {}", clean(place))?;
            }
        }
        if let (Some(most), false) = (self.max_differences, self.ok) {
            let text = "differ, more than --max-differences";
            writeln!(out, "{:.2} % {text} {most} % allows", self.percent())?;
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share for people")]
fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 * 100.0 / all as f64 }
}

/// An answer in one line.
fn shown(said: &Said) -> String {
    let mut text = clean(&said.to_string());
    text.truncate(text.floor_char_boundary(SHOWN));
    text
}
