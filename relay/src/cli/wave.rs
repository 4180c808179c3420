//! `wavegate wave`: the waves of a running relay, or of several, and orders about them. Floor 4.

mod hosts;
mod show;

use std::{io::Write, path::PathBuf};

use clap::{ArgGroup, Args, Subcommand};
use hyper::Method;
use serde::Serialize;

use super::{
    Failed,
    client::Where,
    exit,
    output::{dry_run_note, field, json},
    remote::Target,
    time,
};
use crate::{
    conductor::{
        order::Obeyed,
        status::{Status, WaveStatus},
    },
    config,
    control::wire::{Freeze, WaveOrder},
    plan::Timestamp,
};

#[derive(Clone, Debug, Subcommand)]
pub(super) enum WaveCommand {
    /// All waves of this host: phase, times, barrier, what is held and how it drains.
    List(ListArgs),
    /// Everything about one wave.
    Show(ShowArgs),
    /// Freeze an instance now, without a plan.
    Freeze(FreezeArgs),
    /// Let a wave close later.
    Extend(ExtendArgs),
    /// The upgrade is done: the mail goes to the new infrastructure now.
    Complete(CompleteArgs),
    /// The upgrade is given up: the mail goes where it went before.
    Rollback(OrderArgs),
    /// The clocks do not agree, and it is right all the same to let the mail out.
    Release(OrderArgs),
    /// All waves over several hosts; fails where one is missing or has another plan.
    Status(StatusArgs),
}

#[derive(Clone, Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: Where,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    place: Where,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The wave.
    #[arg(value_name = "WAVE", value_parser = name)]
    wave: String,
}

/// What every order has.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    #[command(flatten)]
    place: Where,
    /// Why, for those who come after.
    #[arg(long, value_name = "TEXT", value_parser = config::one_line)]
    reason: String,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct FreezeArgs {
    #[command(flatten)]
    common: Common,
    /// The instance.
    #[arg(long, value_name = "NAME")]
    instance: String,
    /// For how long, such as 30m.
    #[arg(long = "for", value_name = "TIME", value_parser = milliseconds)]
    lasts: u64,
}

#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("end").required(true))]
pub(super) struct ExtendArgs {
    #[command(flatten)]
    common: Common,
    /// So much later than it closes now, such as 15m.
    #[arg(long, value_name = "TIME", value_parser = milliseconds, group = "end")]
    by: Option<u64>,
    /// When it closes, in RFC 3339 such as 2026-01-20T07:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time, group = "end")]
    until: Option<Timestamp>,
    /// The wave.
    #[arg(value_name = "WAVE", value_parser = name)]
    wave: String,
}

#[derive(Clone, Debug, Args)]
pub(super) struct CompleteArgs {
    #[command(flatten)]
    common: Common,
    /// Although its targets were not found well.
    #[arg(long)]
    unchecked: bool,
    /// The wave.
    #[arg(value_name = "WAVE", value_parser = name)]
    wave: String,
}

#[derive(Clone, Debug, Args)]
pub(super) struct OrderArgs {
    #[command(flatten)]
    common: Common,
    /// The wave.
    #[arg(value_name = "WAVE", value_parser = name)]
    wave: String,
}

#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("secret").required(true))]
pub(super) struct StatusArgs {
    /// The APIs of all hosts: HOST, HOST:PORT or a URL, with commas between them. TLS is spoken
    /// unless one is http://.
    #[arg(long, value_name = "HOST,...", value_delimiter = ',', required = true)]
    hosts: Vec<Target>,
    /// The token of their APIs.
    #[arg(long, value_name = "FILE", group = "secret")]
    token_file: Option<PathBuf>,
    /// A configuration whose `api.token_file` has the token.
    #[arg(long, value_name = "FILE", group = "secret")]
    config: Option<PathBuf>,
    /// The authorities that signed their certificates, in PEM; by default those that the system
    /// trusts.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub(super) fn wave(command: &WaveCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        WaveCommand::List(args) => list(args, out),
        WaveCommand::Show(args) => show(args, out),
        WaveCommand::Freeze(FreezeArgs { common, instance, lasts }) => {
            let freeze = Freeze {
                instance: instance.clone(),
                for_ms: *lasts,
                reason: common.reason.clone(),
                dry_run: common.dry_run,
            };
            common.give("/v1/freezes", &freeze, out)
        }
        WaveCommand::Extend(ExtendArgs { common, by, until, wave }) => {
            let until = until.map(|until| until.to_string());
            common.order(wave, "extend", WaveOrder { by_ms: *by, until, ..common.body() }, out)
        }
        WaveCommand::Complete(CompleteArgs { common, unchecked, wave }) => {
            let order = WaveOrder { unchecked: *unchecked, ..common.body() };
            common.order(wave, "complete", order, out)
        }
        WaveCommand::Rollback(OrderArgs { common, wave }) => {
            common.order(wave, "rollback", common.body(), out)
        }
        WaveCommand::Release(OrderArgs { common, wave }) => {
            common.order(wave, "release", common.body(), out)
        }
        WaveCommand::Status(args) => hosts::status(args, out),
    }
}

impl Common {
    fn body(&self) -> WaveOrder {
        let (reason, dry_run) = (self.reason.clone(), self.dry_run);
        WaveOrder { reason, dry_run, ..WaveOrder::default() }
    }

    fn order(
        &self,
        wave: &str,
        order: &str,
        body: WaveOrder,
        out: &mut dyn Write,
    ) -> anyhow::Result<u8> {
        self.give(&format!("/v1/waves/{wave}/{order}"), &body, out)
    }

    fn give(&self, path: &str, body: &impl Serialize, out: &mut dyn Write) -> anyhow::Result<u8> {
        let obeyed: Obeyed = self.place.send(Method::POST, path, body)?;
        if self.json {
            json(out, &obeyed)?;
            return Ok(0);
        }
        let Obeyed { changed, what, wave } = &obeyed;
        let is_idle = !self.dry_run && !changed;
        let note = if is_idle { " (nothing to do)" } else { dry_run_note(self.dry_run) };
        writeln!(out, "{}{note}", super::output::clean(what))?;
        let WaveStatus { phase, closes, .. } = wave;
        field(out, "wave", &wave.id)?;
        field(out, "phase", phase)?;
        field(out, "closes", show::when(closes))?;
        Ok(0)
    }
}

fn list(args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let status: Status = args.place.get("/v1/status")?;
    match args.json {
        true => json(out, &status)?,
        false => show::list(out, &status)?,
    }
    Ok(0)
}

fn show(args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let status: Status = args.place.get("/v1/status")?;
    let found = status.waves.iter().find(|wave| wave.id == args.wave);
    let wave = found.ok_or_else(|| {
        let ids: Vec<&str> = status.waves.iter().map(|wave| wave.id.as_str()).collect();
        let there = super::output::list(&ids);
        let text = format!("there is no wave {:?}; there are: {there}", args.wave);
        Failed::new(exit::NO_INPUT, text)
    })?;
    match args.json {
        true => json(out, wave)?,
        false => show::wave(out, &status, wave)?,
    }
    Ok(0)
}

/// The id of a wave, which becomes part of a path.
fn name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    match !text.is_empty() && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err("is no id of a wave".to_owned()),
    }
}

/// A time as people type it: `30m` too.
pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    let minutes = text.strip_suffix('m').filter(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    let duration = match minutes {
        Some(number) => config::duration(&format!("{number}min")),
        None => config::duration(text),
    }?;
    match u64::try_from(duration.as_millis()) {
        Ok(ms) if ms > 0 => Ok(ms),
        _ => Err("is no time at all".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_type_them() {
        assert_eq!(milliseconds("30m"), Ok(1_800_000));
        assert_eq!(milliseconds("30min"), Ok(1_800_000));
        assert_eq!(milliseconds("1h"), Ok(3_600_000));
        assert_eq!(milliseconds("250ms"), Ok(250));
        for bad in ["", "m", "30", "0s", "1.5h", "-5m"] {
            assert!(milliseconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_cannot_leave_their_path() {
        assert!(name("prod-01").is_ok() && name("freeze-a.b_c-20260120T060000Z").is_ok());
        for bad in ["", "a/b", "a b", "a?b", "a%2fb", "ü"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
