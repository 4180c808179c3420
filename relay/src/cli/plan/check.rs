//! `wavegate plan check`. Floor 4.

use std::io::{self, Write};

use serde::Serialize;

use super::{Announced, CheckArgs, announced, now};
use crate::{
    cli::{
        exit,
        output::{count, field, json, list},
    },
    config::{Checks, Diagnostic, Severity, When, read_plan},
    plan::{Plan, Timestamp, in_words},
};

/// What the check found. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Findings {
    ok: bool,
    file: String,
    /// As of when.
    at: String,
    diagnostics: Vec<Diagnostic>,
    /// What it says, where it is good.
    summary: Option<Summary>,
}

#[derive(Debug, Serialize)]
struct Summary {
    digest: String,
    program: Option<String>,
    environments: Vec<Environment>,
    instances: usize,
    waves: Vec<Wave>,
}

#[derive(Debug, Serialize)]
struct Environment {
    name: String,
    earliest: Option<String>,
    notice_ms: u64,
    after: Option<String>,
    window_min_ms: Option<u64>,
    window_max_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Wave {
    id: String,
    environment: String,
    instances: usize,
    opens: String,
    closes: String,
    estimate_ms: Option<u64>,
    over: bool,
    announced: Option<Announced>,
}

/// Checks the plan and prints what was found.
pub(super) fn check(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let now = now(args.at);
    let mut findings = Findings {
        ok: false,
        file: args.from.shown(),
        at: now.to_string(),
        diagnostics: Vec::new(),
        summary: None,
    };
    match read_plan(&args.from.source()?, When { now, checks: Checks::Plan }) {
        Ok(found) => {
            findings.ok = true;
            findings.diagnostics = found.warnings;
            findings.summary = Some(Summary::new(&found.plan, now));
        }
        Err(found) => findings.diagnostics = found.0,
    }
    match args.json {
        true => json(out, &findings)?,
        false => findings.print(out)?,
    }
    Ok(if findings.ok { 0 } else { exit::CONFIG })
}

impl Summary {
    fn new(plan: &Plan, now: Timestamp) -> Self {
        let environment = |one: &crate::plan::Environment| Environment {
            name: one.name.clone(),
            earliest: one.earliest.map(|time| time.to_string()),
            notice_ms: one.notice_ms,
            after: one.after.clone(),
            window_min_ms: one.window_min_ms,
            window_max_ms: one.window_max_ms,
        };
        let wave = |wave: &crate::plan::Wave| Wave {
            id: wave.window.wave.clone(),
            environment: wave.environment.clone(),
            instances: wave.instances.len(),
            opens: wave.window.opens.to_string(),
            closes: wave.window.closes.to_string(),
            estimate_ms: plan.estimate_ms(wave),
            over: wave.window.is_over(now),
            announced: announced(plan, wave).map(Announced::of),
        };
        Self {
            digest: plan.digest().to_owned(),
            program: plan.program.as_ref().map(|program| program.name.clone()),
            environments: plan.environments.iter().map(environment).collect(),
            instances: plan.instances.len(),
            waves: plan.waves.iter().map(wave).collect(),
        }
    }
}

impl Findings {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        for found in &self.diagnostics {
            writeln!(out, "{found}")?;
        }
        let of = |severity| self.diagnostics.iter().filter(|d| d.severity == severity).count();
        let warnings = count(of(Severity::Warning), "warning");
        let Some(summary) = &self.summary else {
            let errors = count(of(Severity::Error), "error");
            return writeln!(out, "{}: {errors}, {warnings}", self.file);
        };
        writeln!(out, "{}: good, {warnings}", self.file)?;
        field(out, "digest", &summary.digest)?;
        if let Some(program) = &summary.program {
            field(out, "program", program)?;
        }
        if !summary.environments.is_empty() {
            let names: Vec<&str> = summary.environments.iter().map(|one| &*one.name).collect();
            field(out, "bounds for", list(&names))?;
        }
        field(out, "instances", summary.instances)?;
        for (index, wave) in summary.waves.iter().enumerate() {
            field(out, if index == 0 { "waves" } else { "" }, wave.line())?;
        }
        Ok(())
    }
}

impl Wave {
    fn line(&self) -> String {
        let estimate = match self.estimate_ms {
            Some(ms) => format!(", about {}", in_words(ms)),
            None => String::new(),
        };
        let state = match &self.announced {
            Some(announced) => {
                let late = if announced.late { " (late)" } else { "" };
                format!("announced {} by {}{late}", announced.at, announced.by)
            }
            None => "not announced".to_owned(),
        };
        format!(
            "{}: {}{estimate}, from {} to {}, {state}{}",
            self.id,
            count(self.instances, "instance"),
            self.opens,
            self.closes,
            if self.over { ", over" } else { "" }
        )
    }
}
