//! `wavegate plan estimate`: how long waves take, and how to split one. Floor 4.

use std::{
    collections::HashSet,
    io::{self, Write},
};

use serde::Serialize;

use super::{EstimateArgs, now, wave};
use crate::{
    cli::output::{count, field, json, list},
    config::Checks,
    plan::{Plan, Wave, in_words},
};

/// The longest window there can be, where the environment has no bound.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// What is said of one wave. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Estimate {
    wave: String,
    environment: String,
    instances: usize,
    opens: String,
    closes: String,
    window_ms: u64,
    /// The longest window that the environment allows.
    bound_ms: u64,
    /// How long it takes; none where the environment has no `duration`.
    estimate_ms: Option<u64>,
    /// How that comes about.
    model: Option<Model>,
    /// Whether it is done within its window, which is within the bound.
    fits: bool,
    /// Waves to make of it, where it takes longer than the bound.
    split: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Model {
    fixed_ms: u64,
    each_ms: u64,
    parallel: u32,
}

#[derive(Debug, Serialize)]
struct Part {
    wave: String,
    estimate_ms: u64,
    instances: Vec<String>,
}

/// Estimates and prints.
pub(super) fn estimate(args: &EstimateArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let now = now(None);
    // A wave that does not fit is an error of the plan, and what is asked about.
    let file = args.from.read(now, Checks::Values)?;
    let plan = &file.plan;
    let estimates: Vec<Estimate> = match &args.wave {
        Some(id) => vec![Estimate::new(plan, wave(plan, id)?)],
        None => {
            let open = plan.waves.iter().filter(|wave| !wave.window.is_over(now));
            open.map(|wave| Estimate::new(plan, wave)).collect()
        }
    };
    match args.json {
        true => json(out, &estimates)?,
        false if estimates.is_empty() => writeln!(out, "no wave that is not over")?,
        false => estimates.iter().try_for_each(|one| one.print(out))?,
    }
    Ok(0)
}

impl Estimate {
    fn new(plan: &Plan, wave: &Wave) -> Self {
        let environment = plan.environment(&wave.environment);
        let bound = environment.and_then(|one| one.window_max_ms).unwrap_or(LONGEST_MS);
        let estimate = plan.estimate_ms(wave);
        let window = wave.window.length_ms();
        let model = environment.and_then(|one| one.duration);
        Self {
            wave: wave.window.wave.clone(),
            environment: wave.environment.clone(),
            instances: wave.instances.len(),
            opens: wave.window.opens.to_string(),
            closes: wave.window.closes.to_string(),
            window_ms: window,
            bound_ms: bound,
            estimate_ms: estimate,
            model: model.map(|model| Model {
                fixed_ms: model.fixed_ms,
                each_ms: model.each_ms,
                parallel: model.parallel,
            }),
            fits: estimate.unwrap_or(0) <= window && window <= bound,
            split: match estimate.is_some_and(|estimate| estimate > bound) {
                true => split(plan, wave, bound),
                false => Vec::new(),
            },
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.wave)?;
        field(out, "environment", &self.environment)?;
        field(out, "instances", self.instances)?;
        let window = in_words(self.window_ms);
        field(out, "window", format!("{window}, from {} to {}", self.opens, self.closes))?;
        field(out, "longest", in_words(self.bound_ms))?;
        let (Some(estimate), Some(model)) = (self.estimate_ms, &self.model) else {
            return field(out, "estimate", "none: its environment has no `duration`");
        };
        let verdict = if self.fits {
            "fits"
        } else if estimate > self.bound_ms {
            "longer than the longest window"
        } else if estimate > self.window_ms {
            "longer than its window: let it close later"
        } else {
            "fits, but its window is longer than the longest"
        };
        let how = format!(
            "{} and {} for every {} of them",
            in_words(model.fixed_ms),
            in_words(model.each_ms),
            model.parallel
        );
        field(out, "estimate", format!("{} ({how}): {verdict}", in_words(estimate)))?;
        if estimate > self.bound_ms && self.split.is_empty() {
            return field(out, "split", "impossible: a single instance takes too long");
        }
        for (index, part) in self.split.iter().enumerate() {
            if index == 0 {
                field(out, "split", format!("into {}", count(self.split.len(), "wave")))?;
            }
            let of = count(part.instances.len(), "instance");
            let (takes, names) = (in_words(part.estimate_ms), list(&part.instances));
            field(out, "", format!("{}: {of}, about {takes}: {names}", part.wave))?;
        }
        Ok(())
    }
}

/// The waves to make of one, in the order of the plan; ids that the plan does not have.
fn split(plan: &Plan, wave: &Wave, bound: u64) -> Vec<Part> {
    let Some(environment) = plan.environment(&wave.environment) else { return Vec::new() };
    let Some(sizes) = environment.split(wave.instances.len(), bound) else { return Vec::new() };
    let taken: HashSet<&str> = plan.waves.iter().map(|one| one.window.wave.as_str()).collect();
    let ids = (1_u64..).map(|number| format!("{}-{number}", wave.window.wave));
    let ids = ids.filter(|id| !taken.contains(id.as_str()));
    let mut members = wave.instances.iter();
    let part = |(size, wave): (usize, String)| {
        let members = members.by_ref().take(size);
        let instances: Vec<String> =
            members.map(|index| plan.instances[*index].name.clone()).collect();
        let duration = environment.duration.as_ref();
        let estimate_ms = duration.map_or(0, |model| model.estimate_ms(instances.len()));
        Part { wave, estimate_ms, instances }
    };
    sizes.into_iter().zip(ids).map(part).collect()
}
