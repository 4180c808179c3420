//! `wavegate plan`: is the plan sound, how long do its waves take, whom does it affect; the
//! announcement of a wave, the notices to its customers, and a rehearsal. Floor 4.
//!
//! It works on files and asks no relay; only notices are handed to one, as mail.

mod affected;
mod announce;
mod check;
mod estimate;
mod notice;
mod simulate;

use std::{io::Write, path::PathBuf};

pub(super) use announce::login_name;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failed, exit, time};
use crate::{
    config::{Checks, PlanFile, PlanSource, When, read_plan},
    plan::{Announcement, Plan, Timestamp, Wave},
    world::{SystemClock, WallClock},
};

#[derive(Clone, Debug, Subcommand)]
pub(super) enum PlanCommand {
    /// Find every contradiction: in windows, notices, estimates, order, names and matchers.
    Check(CheckArgs),
    /// How long waves take, and how to split one that takes too long.
    Estimate(EstimateArgs),
    /// Which instances are upgraded, in which wave, when, and whether that was announced.
    Affected(AffectedArgs),
    /// Record that customers were told of a wave. Its window and instances are fixed from then on.
    Announce(AnnounceArgs),
    /// What the customers of a wave are told, each in their language; with --send, tell them.
    Notice(notice::NoticeArgs),
    /// Rehearse the plan: the real relay with a day of mail, in memory and in some seconds.
    Simulate(simulate::SimulateArgs),
}

/// Where the plan is.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct From {
    /// The configuration that names it; the names of upstreams and listeners are checked too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The plan alone.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    from: From,
    /// As of when, in RFC 3339; by default now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct EstimateArgs {
    #[command(flatten)]
    from: From,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The wave; by default all that are not over.
    #[arg(value_name = "WAVE")]
    wave: Option<String>,
}

/// Whom to look for. One criterion given several times is met by one of its values; different
/// ones must all be met.
#[derive(Clone, Debug, Args)]
pub(super) struct AffectedArgs {
    #[command(flatten)]
    from: From,
    /// Of this product.
    #[arg(long, value_name = "NAME")]
    product: Vec<String>,
    /// Hosted so.
    #[arg(long, value_name = "WORD")]
    hosting: Vec<String>,
    /// Of this environment.
    #[arg(long, value_name = "NAME")]
    environment: Vec<String>,
    /// This one.
    #[arg(long, value_name = "NAME")]
    instance: Vec<String>,
    /// Of this customer.
    #[arg(long, value_name = "NAME")]
    customer: Vec<String>,
    /// As of when, in RFC 3339; by default now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct AnnounceArgs {
    #[command(flatten)]
    from: From,
    /// Why, or with what: kept with the announcement.
    #[arg(long, value_name = "TEXT", value_parser = crate::config::one_line)]
    reason: Option<String>,
    /// Although the notice is shorter than the environment asks for; needs a reason.
    #[arg(long, requires = "reason")]
    late: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The wave.
    #[arg(value_name = "WAVE")]
    wave: String,
}

/// Does it and prints.
pub(super) fn plan(command: &PlanCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        PlanCommand::Check(args) => check::check(args, out),
        PlanCommand::Estimate(args) => estimate::estimate(args, out),
        PlanCommand::Affected(args) => affected::affected(args, out),
        PlanCommand::Announce(args) => announce::announce(args, out),
        PlanCommand::Notice(args) => notice::notice(args, out),
        PlanCommand::Simulate(args) => simulate::simulate(args, out),
    }
}

impl From {
    fn source(&self) -> Result<PlanSource, Failed> {
        match (&self.config, &self.plan) {
            (Some(config), _) => Ok(PlanSource::Relay(config.clone())),
            (None, Some(plan)) => Ok(PlanSource::Plan(plan.clone())),
            (None, None) => Err(Failed::new(exit::USAGE, "give --config or --plan")),
        }
    }

    /// What it is called in messages.
    fn shown(&self) -> String {
        let path = self.config.as_ref().or(self.plan.as_ref());
        path.map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// Reads the plan; what is wrong ends the command.
    fn read(&self, now: Timestamp, checks: Checks) -> Result<PlanFile, Failed> {
        read_plan(&self.source()?, When { now, checks })
            .map_err(|found| Failed::new(exit::CONFIG, format!("the plan:\n{found}")))
    }
}

/// The time that a command goes by.
fn now(at: Option<Timestamp>) -> Timestamp {
    at.unwrap_or_else(|| SystemClock.now())
}

/// The wave of this id.
fn wave<'a>(plan: &'a Plan, id: &str) -> Result<&'a Wave, Failed> {
    let mut all = plan.waves.iter();
    all.find(|wave| wave.window.wave == id).ok_or_else(|| {
        let ids: Vec<&str> = plan.waves.iter().map(|wave| wave.window.wave.as_str()).collect();
        let there = super::output::list(&ids);
        Failed::new(exit::USAGE, format!("there is no wave {id:?}; there are: {there}"))
    })
}

/// What was announced of a wave, if anything.
fn announced<'a>(plan: &'a Plan, wave: &Wave) -> Option<&'a Announcement> {
    plan.announced.iter().find(|one| one.wave == wave.window.wave)
}

/// An announcement for programs.
#[derive(Debug, Serialize)]
struct Announced {
    at: String,
    by: String,
    late: bool,
    reason: Option<String>,
}

impl Announced {
    fn of(announcement: &Announcement) -> Self {
        Self {
            at: announcement.at.to_string(),
            by: announcement.by.clone(),
            late: announcement.late,
            reason: announcement.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
