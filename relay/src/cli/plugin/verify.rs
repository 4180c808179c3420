//! `wavegate plugin verify`: who signed a plugin. Floor 4.

use std::{io::Write, path::PathBuf};

use clap::{ArgGroup, Args};
use serde::Serialize;

use super::{
    super::{
        Failed, client, exit,
        output::{field, json},
    },
    read,
};
use crate::{
    config::{KeySource, signature_of},
    policy::signature::{self, Signed, TrustedKeys},
};

#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("trusted").required(true))]
pub(in crate::cli) struct VerifyArgs {
    /// The public key that must have signed it: itself, or its file.
    #[arg(long, value_name = "KEY|FILE", group = "trusted")]
    public_key: Option<String>,
    /// A configuration, one of whose `plugins.trusted_keys` must have.
    #[arg(long, value_name = "FILE", group = "trusted")]
    config: Option<PathBuf>,
    /// The signature; by default FILE.wasm.minisig.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The plugin.
    #[arg(value_name = "FILE.wasm")]
    plugin: PathBuf,
}

/// What was found. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Verified<'a> {
    ok: bool,
    digest: String,
    /// What the key is called here.
    signed_by: Option<&'a str>,
    key: Option<&'a str>,
    comment: Option<&'a str>,
    problem: Option<String>,
}

pub(super) fn verify(args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let keys = keys(args)?;
    let wasm = read(&args.plugin)?;
    let file = args.signature.clone().unwrap_or_else(|| signature_of(&args.plugin));
    let text = signature::read_signature(&file);
    let judged =
        text.and_then(|text| keys.judge(&wasm, text.as_deref(), &file.display().to_string()));
    let digest = blake3::hash(&wasm).to_hex().to_string();
    let (signed, problem) = match judged {
        Ok(signed) => (signed, None),
        Err(error) => (Signed::Not, Some(error.to_string())),
    };
    let (name, id, comment) = match &signed {
        Signed::By { name, id, comment } => (Some(&**name), Some(&**id), Some(&**comment)),
        _ => (None, None, None),
    };
    if args.json {
        let ok = problem.is_none();
        let found = Verified { ok, digest, signed_by: name, key: id, comment, problem };
        json(out, &found)?;
        return Ok(if found.ok { 0 } else { exit::DATA });
    }
    if let Some(problem) = problem {
        return Err(Failed::new(exit::DATA, problem).into());
    }
    field(out, "signed by", &signed)?;
    field(out, "comment", comment.unwrap_or("-"))?;
    field(out, "digest", digest)?;
    Ok(0)
}

fn keys(args: &VerifyArgs) -> Result<TrustedKeys, Failed> {
    if let Some(file) = &args.config {
        let config = client::read(file)?;
        let keys = TrustedKeys::load(&config.plugins)
            .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))?;
        return Ok(keys.required());
    }
    let given = args.public_key.as_deref().unwrap_or_default();
    let text = signature::public_key(&KeySource::Text(given.to_owned()));
    // A key has no dots and slashes where a file has none either: what is a key, is one.
    let key = text.or_else(|_| signature::public_key(&KeySource::File(given.into())));
    let key = key.map_err(|why| Failed::new(exit::NO_INPUT, format!("--public-key: {why}")))?;
    Ok(TrustedKeys::only("the given key", key))
}
