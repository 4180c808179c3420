//! `wavegate plugin rollback`: what was in force before is again. Floor 4.

use std::io::Write;

use clap::Args;
use hyper::Method;

use super::{
    super::{
        client::Where,
        output::{clean, dry_run_note, field, json},
    },
    policy,
};
use crate::{
    config,
    control::wire::{Installed, RollBack},
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct RollbackArgs {
    #[command(flatten)]
    place: Where,
    /// Why, for those who come after.
    #[arg(long, value_name = "TEXT", value_parser = config::one_line)]
    reason: Option<String>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The policy.
    #[arg(value_name = "POLICY", value_parser = policy)]
    policy: String,
}

pub(super) fn rollback(args: &RollbackArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let reason = args.reason.clone().unwrap_or_else(|| format!("roll back {}", args.policy));
    let order = RollBack { reason, dry_run: args.dry_run };
    let path = format!("/v1/plugins/{}/rollback", args.policy);
    let done: Installed = args.place.send(Method::POST, &path, &order)?;
    if args.json {
        json(out, &done)?;
        return Ok(0);
    }
    let note = dry_run_note(args.dry_run);
    writeln!(out, "{}{note}", clean(&done.what))?;
    field(out, "policy", &done.policy)?;
    field(out, "left", &done.digest)?;
    Ok(0)
}
