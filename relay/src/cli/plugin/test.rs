//! `wavegate plugin test`: whether a plugin answers as its cases say. Floor 4.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::{Failed, exit};
use crate::{
    cli::output::{clean, count, json},
    policy::PolicyProblem,
    trial::{self, Case, Difference, Fault, Mistakes, Plugin, Report, TrialError, Tried},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct TestArgs {
    /// The component.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    #[command(flatten)]
    cases: CasesArgs,
    /// Write the results as JUnit's XML, too.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Which cases.
#[derive(Debug, Args)]
pub(super) struct CasesArgs {
    /// Files of cases: a directory with *.toml and *.json, or one file.
    #[arg(long, value_name = "DIR")]
    cases: PathBuf,
    /// Only those with this text in their name or their file's.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// What came of it. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Told<'a> {
    ok: bool,
    plugin: &'a str,
    cases: usize,
    failed: usize,
    results: Vec<ToldCase<'a>>,
}

#[derive(Debug, Serialize)]
struct ToldCase<'a> {
    ok: bool,
    file: &'a str,
    line: Option<usize>,
    name: &'a str,
    fuel: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<ToldFault<'a>>,
}

#[derive(Debug, Serialize)]
struct ToldFault<'a> {
    kind: &'static str,
    expected: &'a Value,
    got: Option<&'a Value>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    differences: &'a [Difference],
    /// What the failure or refusal was.
    detail: Option<String>,
}

/// Tests a plugin and tells what came of each case.
pub(super) fn test(args: &TestArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let cases = args.cases.read()?;
    let plugin = open(&args.file)?;
    let report = plugin.test(&cases).map_err(|error| failed(&args.file, &error))?;
    if let Some(file) = &args.junit {
        fs::write(file, trial::junit(&report)).map_err(|error| {
            Failed::new(exit::IO, format!("cannot write {}: {error}", file.display()))
        })?;
    }
    match args.json {
        true => json(out, &told(&report))?,
        false => print(&report, out)?,
    }
    Ok(u8::from(!report.passed()))
}

impl CasesArgs {
    /// The cases that are asked for: at least one.
    pub(super) fn read(&self) -> Result<Vec<Case>, Failed> {
        let mut cases = trial::read(&self.cases).map_err(|mistakes| {
            let code = match mistakes {
                Mistakes::Read { .. } | Mistakes::None(_) => exit::NO_INPUT,
                Mistakes::Wrong(_) => exit::DATA,
            };
            Failed::new(code, clean_lines(&mistakes.to_string()))
        })?;
        if let Some(text) = &self.filter {
            cases.retain(|case| case.name.contains(text.as_str()) || case.file.contains(text));
            if cases.is_empty() {
                let message = format!("no case has {text:?} in its name or its file's");
                return Err(Failed::new(exit::NO_INPUT, message));
            }
        }
        Ok(cases)
    }
}

/// The plugin in a file.
pub(super) fn open(file: &Path) -> Result<Plugin, Failed> {
    Plugin::open(file).map_err(|error| failed(file, &error))
}

/// A plugin that cannot be tried.
pub(super) fn failed(file: &Path, error: &TrialError) -> Failed {
    let code = match error {
        TrialError::Plugin(problems) => match problems[..] {
            [PolicyProblem::Read { .. }] => {
                return Failed::new(exit::NO_INPUT, error.to_string());
            }
            [PolicyProblem::Host(_)] => exit::OS,
            _ => exit::CONFIG,
        },
        TrialError::Host(_) | TrialError::Io(_) => exit::OS,
    };
    let problems = error.to_string();
    let lines = problems.lines().map(|line| format!("{}: {}", file.display(), clean(line)));
    Failed::new(code, lines.collect::<Vec<_>>().join("\n"))
}

fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut file = None;
    for one in &report.tried {
        if file != Some(&one.case.file) {
            writeln!(out, "{}", clean(&one.case.file))?;
            file = Some(&one.case.file);
        }
        let how = if one.passed() { "ok  " } else { "FAIL" };
        let fuel = one.fuel.map(|fuel| format!(" ({fuel} fuel)")).unwrap_or_default();
        writeln!(out, "  {how}  {}{fuel}", one.case.name)?;
        for line in one.lines() {
            writeln!(out, "          {}", clean(&line))?;
        }
    }
    let (all, failed) = (report.tried.len(), report.failed());
    writeln!(out, "{}: {} passed, {failed} failed", count(all, "case"), all - failed)
}

fn told(report: &Report) -> Told<'_> {
    Told {
        ok: report.passed(),
        plugin: &report.plugin,
        cases: report.tried.len(),
        failed: report.failed(),
        results: report.tried.iter().map(told_case).collect(),
    }
}

fn told_case(one: &Tried) -> ToldCase<'_> {
    ToldCase {
        ok: one.passed(),
        file: &one.case.file,
        line: one.case.line,
        name: &one.case.name,
        fuel: one.fuel,
        faults: one.faults.iter().map(|fault| told_fault(one, fault)).collect(),
    }
}

fn told_fault<'a>(one: &'a Tried, fault: &'a Fault) -> ToldFault<'a> {
    let mut told = ToldFault {
        kind: fault.kind(),
        expected: &one.case.expect,
        got: None,
        differences: &[],
        detail: None,
    };
    match fault {
        Fault::Differs { got, differences } => {
            told.got = Some(got);
            told.differences = differences;
        }
        Fault::NotPure { whose, got } => {
            told.got = got.as_ref().ok();
            let failure = got.as_ref().err().map(|it| format!(" failed: {it}"));
            told.detail = Some(format!("{whose}{}", failure.unwrap_or_default()));
        }
        Fault::NoAnswer(how) => told.detail = Some(how.clone()),
        Fault::Refused(problems) => {
            let problem = |(path, message): &(String, String)| match path.as_str() {
                "" => message.clone(),
                path => format!("{path}: {message}"),
            };
            told.detail = Some(problems.iter().map(problem).collect::<Vec<_>>().join("\n"));
        }
        Fault::Accepted => told.detail = Some("the settings were accepted".to_owned()),
        Fault::NeverAsked(why) => told.detail = Some((*why).to_owned()),
    }
    told
}
