//! `wavegate plugin inspect`: what a component is. Floor 4.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::{Failed, exit, host, read};
use crate::{
    cli::output::{clean, field, json, list},
    policy::{ImportKind, Inspection},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// The component.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What is told. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Told {
    file: String,
    /// What the policy calls itself.
    name: Option<String>,
    version: Option<String>,
    hooks: Vec<&'static str>,
    /// Versions of the contract that it was built for: one, where it is good.
    contract: Vec<String>,
    bytes: usize,
    /// BLAKE3 of the component.
    digest: String,
    /// Of the contract.
    imports: Vec<String>,
    /// Of WASI, with harmless answers.
    stubs: Vec<Stub>,
    /// Of neither: the relay refuses it.
    refused: Vec<String>,
    exports: Vec<String>,
    /// JSON Schema of its settings.
    settings: Option<Value>,
    metrics: Vec<String>,
    /// The signature beside it. It was not verified.
    signature: Option<String>,
    /// Why the relay would refuse it, whatever its settings are.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Stub {
    import: String,
    answer: &'static str,
}

/// Looks at a component and tells what it is.
pub(super) fn inspect(args: &InspectArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let wasm = read(&args.file)?;
    let found = host()?.inspect(&wasm).map_err(|problem| {
        Failed::new(exit::DATA, format!("{}: {problem}", args.file.display()))
    })?;
    let told = told(&args.file, found);
    match args.json {
        true => json(out, &told)?,
        false => print(&told, out)?,
    }
    Ok(if told.problems.is_empty() { 0 } else { exit::CONFIG })
}

fn told(file: &Path, found: Inspection) -> Told {
    let named = |wanted: ImportKind| {
        let names = found.imports.iter().filter(|one| one.kind == wanted);
        names.map(|one| one.name.clone()).collect()
    };
    let stubs = found.imports.iter().filter_map(|one| match one.kind {
        ImportKind::Stub(answer) => Some(Stub { import: one.name.clone(), answer }),
        ImportKind::Contract | ImportKind::Refused => None,
    });
    let (imports, refused, stubs) =
        (named(ImportKind::Contract), named(ImportKind::Refused), stubs.collect());
    let (mut name, mut version, mut settings, mut metrics) = (None, None, None, Vec::new());
    if let Some(description) = found.description {
        settings = serde_json::from_str(&description.settings_schema).ok();
        name = Some(description.name);
        version = Some(description.version);
        metrics = description.metrics;
    }
    Told {
        file: file.display().to_string(),
        name,
        version,
        hooks: found.hooks.iter().map(|hook| hook.as_str()).collect(),
        contract: found.contract,
        bytes: found.bytes,
        digest: found.digest,
        imports,
        stubs,
        refused,
        exports: found.exports,
        settings,
        metrics,
        signature: signature(file),
        problems: found.problems.iter().map(ToString::to_string).collect(),
    }
}

/// The signature file beside a component, if there is one.
fn signature(component: &Path) -> Option<String> {
    let mut file = component.as_os_str().to_owned();
    file.push(".minisig");
    let file = Path::new(&file);
    file.is_file().then(|| file.display().to_string())
}

fn print(told: &Told, out: &mut dyn Write) -> io::Result<()> {
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), clean);
    writeln!(out, "{}", told.file)?;
    field(out, "policy", format!("{} {}", or_dash(&told.name), or_dash(&told.version)))?;
    field(out, "hooks", list(&told.hooks))?;
    field(out, "contract", format!("wavegate:policy {}", list(&told.contract)))?;
    field(out, "size", format!("{} bytes", told.bytes))?;
    field(out, "blake3", &told.digest)?;
    let signed = told.signature.as_ref().map(|file| format!("{file} (not verified)"));
    field(out, "signature", signed.unwrap_or_else(|| "none".to_owned()))?;
    several(out, "imports", told.imports.iter().cloned())?;
    let stubs = told.stubs.iter();
    several(out, "WASI stubs", stubs.map(|one| format!("{}: {}", one.import, one.answer)))?;
    several(out, "refused", told.refused.iter().cloned())?;
    several(out, "exports", told.exports.iter().cloned())?;
    field(out, "metrics", list(&told.metrics))?;
    let settings = told.settings.as_ref().map_or_else(|| "-".to_owned(), schema);
    several(out, "settings", settings.lines().map(clean))?;
    several(out, "problems", told.problems.iter().cloned())
}

fn schema(schema: &Value) -> String {
    serde_json::to_string_pretty(schema).unwrap_or_default()
}

/// One a line; nothing where there is none.
fn several(
    out: &mut dyn Write,
    label: &str,
    lines: impl Iterator<Item = String>,
) -> io::Result<()> {
    for (index, line) in lines.enumerate() {
        field(out, if index == 0 { label } else { "" }, line)?;
    }
    Ok(())
}
