//! `wavegate plan affected`: the customer's question. Floor 4.

use std::io::{self, Write};

use serde::Serialize;

use super::{AffectedArgs, Announced, announced, now};
use crate::{
    cli::output::{count, field, json},
    config::Checks,
    plan::{Instance, Plan, Timestamp, in_words},
};

/// Exit code where nobody is affected.
const NOBODY: u8 = 1;

/// One instance. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Affected {
    instance: String,
    customer: String,
    product: String,
    environment: String,
    hosting: Option<String>,
    /// As the clock has it.
    phase: &'static str,
    /// By time; none where it is not planned yet.
    waves: Vec<InWave>,
}

#[derive(Debug, Serialize)]
struct InWave {
    id: String,
    opens: String,
    closes: String,
    window_ms: u64,
    over: bool,
    announced: Option<Announced>,
}

/// Looks and prints.
pub(super) fn affected(args: &AffectedArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let now = now(args.at);
    let file = args.from.read(now, Checks::Relay)?;
    let found = find(&file.plan, args, now);
    match args.json {
        true => json(out, &found)?,
        false => {
            found.iter().try_for_each(|one| one.print(out))?;
            writeln!(out, "{}", count(found.len(), "instance"))?;
        }
    }
    Ok(if found.is_empty() { NOBODY } else { 0 })
}

fn find(plan: &Plan, args: &AffectedArgs, now: Timestamp) -> Vec<Affected> {
    let mut waves: Vec<Vec<usize>> = vec![Vec::new(); plan.instances.len()];
    for (wave, draft) in plan.waves.iter().enumerate() {
        draft.instances.iter().for_each(|index| waves[*index].push(wave));
    }
    let is_met = |wanted: &[String], value: Option<&str>| {
        wanted.is_empty() || wanted.iter().any(|wanted| Some(wanted.as_str()) == value)
    };
    let is_meant = |one: &Instance| {
        is_met(&args.product, Some(&one.product))
            && is_met(&args.hosting, one.hosting.as_deref())
            && is_met(&args.environment, Some(&one.environment))
            && is_met(&args.instance, Some(&one.name))
            && is_met(&args.customer, Some(&one.customer))
    };
    let all = plan.instances.iter().enumerate().zip(&waves);
    let meant = all.filter(|((_, instance), _)| is_meant(instance));
    meant
        .map(|((index, instance), waves)| Affected {
            instance: instance.name.clone(),
            customer: instance.customer.clone(),
            product: instance.product.clone(),
            environment: instance.environment.clone(),
            hosting: instance.hosting.clone(),
            phase: plan.phase(index, now).as_str(),
            waves: waves.iter().map(|wave| InWave::new(plan, *wave, now)).collect(),
        })
        .collect()
}

impl InWave {
    fn new(plan: &Plan, index: usize, now: Timestamp) -> Self {
        let wave = &plan.waves[index];
        Self {
            id: wave.window.wave.clone(),
            opens: wave.window.opens.to_string(),
            closes: wave.window.closes.to_string(),
            window_ms: wave.window.length_ms(),
            over: wave.window.is_over(now),
            announced: announced(plan, wave).map(Announced::of),
        }
    }
}

impl Affected {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.instance)?;
        let hosting = self.hosting.as_deref().map(|word| format!(", {word}")).unwrap_or_default();
        let Self { product, environment, customer, .. } = self;
        field(out, "what", format!("{product}, {environment}{hosting}"))?;
        field(out, "customer", customer)?;
        if self.waves.is_empty() {
            return field(out, "wave", "none yet");
        }
        for wave in &self.waves {
            let over = if wave.over { ", over" } else { "" };
            field(out, "wave", format!("{}{over}", wave.id))?;
            let length = in_words(wave.window_ms);
            field(out, "window", format!("{} to {} ({length})", wave.opens, wave.closes))?;
            let announced = match &wave.announced {
                Some(announced) => format!("{} by {}", announced.at, announced.by),
                None => "not yet".to_owned(),
            };
            field(out, "announced", announced)?;
        }
        Ok(())
    }
}
