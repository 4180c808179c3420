//! `wavegate plugin install`: brings a plugin to a running relay. Floor 4.

use std::{io::Write, path::PathBuf};

use clap::Args;
use hyper::Method;

use super::{
    super::{
        Failed,
        client::Where,
        exit,
        output::{clean, dry_run_note, field, json},
        wave::milliseconds,
    },
    policy, read,
};
use crate::{
    config::{self, signature_of},
    control::wire::{Install, Installed, Uploaded},
    policy::signature,
    rollout::{Bounds, Percent, Skip},
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct InstallArgs {
    #[command(flatten)]
    place: Where,
    /// The policy whose plugin it is to be.
    #[arg(long, value_name = "NAME", value_parser = policy)]
    policy: String,
    /// Answers that are compared with the live one's before it goes live.
    #[arg(long, value_name = "N", default_value_t = Bounds::default().shadow_calls,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    shadow_calls: u64,
    /// How many of them may differ.
    #[arg(long, value_name = "PERCENT", default_value = "1")]
    max_differences: Percent,
    /// How many of its calls may fail while it is watched, before it is rolled back.
    #[arg(long, value_name = "PERCENT", default_value = "1")]
    max_errors: Percent,
    /// How long it is watched.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = milliseconds)]
    watch: u64,
    /// A step to leave out, by name: verify, shadow or watch.
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    skip: Vec<Skip>,
    /// Its signature; by default FILE.wasm.minisig.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Why, for those who come after.
    #[arg(long, value_name = "TEXT", value_parser = config::one_line)]
    reason: Option<String>,
    /// Only verify and check it.
    #[arg(long)]
    dry_run: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The plugin.
    #[arg(value_name = "FILE.wasm")]
    plugin: PathBuf,
}

pub(super) fn install(args: &InstallArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let wasm = read(&args.plugin)?;
    let digest = blake3::hash(&wasm).to_hex().to_string();
    let file = args.signature.clone().unwrap_or_else(|| signature_of(&args.plugin));
    let unusable = |error: signature::SignatureError| Failed::new(exit::DATA, error.to_string());
    let text = signature::read_signature(&file).map_err(unusable)?;
    let text = text.map(String::from_utf8).transpose().map_err(|_| {
        Failed::new(exit::DATA, format!("{} is no signature of minisign", file.display()))
    })?;
    let name = args.plugin.file_name().map(|name| clean(&name.to_string_lossy()));
    let Uploaded { .. } = args.place.put(&format!("/v1/components/{digest}"), wasm)?;
    let reason = args.reason.clone();
    let order = Install {
        digest,
        signature: text,
        bounds: Bounds {
            shadow_calls: args.shadow_calls,
            max_differences: args.max_differences,
            max_errors: args.max_errors,
            watch_ms: args.watch,
        },
        skip: args.skip.clone(),
        reason: reason.unwrap_or_else(|| format!("install {}", name.as_deref().unwrap_or("-"))),
        file: name,
        dry_run: args.dry_run,
    };
    let path = format!("/v1/plugins/{}/install", args.policy);
    let done: Installed = args.place.send(Method::POST, &path, &order)?;
    if args.json {
        json(out, &done)?;
        return Ok(0);
    }
    let note = dry_run_note(args.dry_run);
    writeln!(out, "{}{note}", clean(&done.what))?;
    field(out, "policy", &done.policy)?;
    field(out, "plugin", clean(&format!("{} {}", done.plugin, done.version)))?;
    field(out, "signed by", done.signed_by.as_deref().unwrap_or("-"))?;
    field(out, "digest", &done.digest)?;
    field(out, "stage", done.stage.as_deref().unwrap_or("-"))?;
    Ok(0)
}
