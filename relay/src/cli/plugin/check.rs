//! `wavegate plugin check`: all that the relay checks when it loads a plugin, and whether the schema of
//! its settings says the same. Floor 4.
//!
//! Whether settings are right is for the plugin's `configure` to say, here as in the relay. Where its
//! schema says otherwise that is a warning: the schema misleads whoever writes settings by it.

mod schema;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::{Failed, exit, host, read};
use crate::{
    cli::output::{clean, count, field, json, list},
    config::{self, PluginSource, PolicyConfig, TableConfig},
    policy::{Hook, PolicyProblem, PolicySet},
};

/// What `[[policy]]` gives a policy where it does not say otherwise.
const TIMEOUT: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    /// The component.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Settings, as JSON or TOML; by default there are none.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    settings: Option<PathBuf>,
    /// A configuration: check it as that of one of its policies.
    #[arg(long, value_name = "FILE", requires = "policy")]
    config: Option<PathBuf>,
    /// The policy of the configuration whose settings, memory, fail mode and tables it would have.
    #[arg(long, value_name = "NAME", requires = "config")]
    policy: Option<String>,
    /// A configured upstream; may be given several times.
    #[arg(long, value_name = "NAME", conflicts_with = "config", default_values = ["legacy", "cloud"])]
    upstream: Vec<String>,
    /// Memory of one instance, such as 64MiB.
    #[arg(long, value_name = "SIZE", conflicts_with = "config", default_value = "16MiB",
          value_parser = memory)]
    memory: usize,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What was found. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Findings {
    /// Whether the relay would load it.
    ok: bool,
    file: String,
    errors: Vec<String>,
    warnings: Vec<String>,
    /// What it is, where it is good.
    plugin: Option<Plugin>,
}

#[derive(Debug, Serialize)]
struct Plugin {
    name: String,
    version: String,
    contract: &'static str,
    hooks: Vec<&'static str>,
    digest: String,
    /// What it wants to be told beside the core of a transaction.
    attributes: Vec<String>,
    /// Upstreams whose state it wants.
    upstreams: Vec<String>,
    /// Whether it wants to hear what attempts came to.
    outcomes: bool,
}

/// What it is checked with.
struct With {
    policy: PolicyConfig,
    tables: Vec<TableConfig>,
    upstreams: Vec<String>,
}

/// Checks a plugin and prints what was found.
pub(super) fn check(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let with = match (&args.config, &args.policy) {
        (Some(config), Some(policy)) => of_config(config, policy, &args.file)?,
        _ => of_arguments(args)?,
    };
    // For the exit code: a file that is not there is no plugin that is wrong.
    read(&args.file)?;
    let findings = find(&args.file, &with)?;
    match args.json {
        true => json(out, &findings)?,
        false => print(&findings, out)?,
    }
    Ok(if findings.ok { 0 } else { exit::CONFIG })
}

fn of_arguments(args: &CheckArgs) -> anyhow::Result<With> {
    let policy = PolicyConfig {
        name: args.file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        plugin: PluginSource::File(args.file.clone()),
        settings: args.settings.as_deref().map_or_else(|| Ok("{}".to_owned()), settings)?,
        fail: None,
        memory: args.memory,
        timeout: TIMEOUT,
        place: args.file.display().to_string(),
    };
    Ok(With { policy, tables: Vec::new(), upstreams: args.upstream.clone() })
}

fn of_config(file: &Path, name: &str, plugin: &Path) -> anyhow::Result<With> {
    let config = config::read(file).map_err(|found| {
        let found: Vec<String> = found.0.iter().map(ToString::to_string).collect();
        Failed::new(exit::CONFIG, found.join("\n"))
    })?;
    let policy = config.policies.iter().find(|policy| policy.name == name).ok_or_else(|| {
        let names: Vec<&str> = config.policies.iter().map(|one| one.name.as_str()).collect();
        let message =
            format!("{}: there is no policy {name:?}; there are: {}", file.display(), list(&names));
        Failed::new(exit::USAGE, message)
    })?;
    let policy = PolicyConfig { plugin: PluginSource::File(plugin.to_owned()), ..policy.clone() };
    let upstreams = config.upstreams.iter().map(|one| one.name.clone()).collect();
    Ok(With { policy, tables: config.tables.clone(), upstreams })
}

/// Settings as JSON text.
fn settings(file: &Path) -> Result<String, Failed> {
    let place = file.display();
    let text = fs::read_to_string(file)
        .map_err(|error| Failed::new(exit::NO_INPUT, format!("{place}: {error}")))?;
    let wrong =
        |error: &dyn std::fmt::Display| Failed::new(exit::DATA, format!("{place}: {error}"));
    let value: Value = match file.extension().is_some_and(|ending| ending == "toml") {
        true => toml::from_str(&text).map_err(|error| wrong(&error))?,
        false => serde_json::from_str(&text).map_err(|error| wrong(&error))?,
    };
    Ok(value.to_string())
}

fn find(file: &Path, with: &With) -> anyhow::Result<Findings> {
    let loaded =
        host()?.load(std::slice::from_ref(&with.policy), &with.tables, &with.upstreams, &|_| None);
    let mut findings = Findings {
        ok: loaded.is_ok(),
        file: file.display().to_string(),
        errors: Vec::new(),
        warnings: Vec::new(),
        plugin: None,
    };
    let value: Value = serde_json::from_str(&with.policy.settings).unwrap_or_default();
    match loaded {
        Ok(set) => {
            let policy = &set.policies()[0];
            findings.plugin = Some(plugin(&set));
            let schema = &policy.description().settings_schema;
            findings.warnings = schema::disagreements(schema, &value);
        }
        Err(errors) => {
            let settings =
                |problem: &PolicyProblem| matches!(problem, PolicyProblem::Settings { .. });
            let only_settings = errors.iter().all(|error| settings(&error.problem));
            findings.errors = errors.iter().map(|error| error.problem.to_string()).collect();
            if only_settings {
                findings.warnings = allowed_by_schema(file, &value)?;
            }
        }
    }
    Ok(findings)
}

/// Where `configure` refuses the settings: whether the schema does not.
fn allowed_by_schema(file: &Path, settings: &Value) -> anyhow::Result<Vec<String>> {
    let Ok(found) = host()?.inspect(&read(file)?) else { return Ok(Vec::new()) };
    let Some(description) = found.description else { return Ok(Vec::new()) };
    let wrong = schema::disagreements(&description.settings_schema, settings);
    Ok(match wrong.is_empty() {
        // Such as a name that is none of the upstreams.
        true => vec![
            "the schema allows these settings, which configure refuses: where it can say \
                      what is wrong with them, it should"
                .to_owned(),
        ],
        false => Vec::new(),
    })
}

fn plugin(set: &PolicySet) -> Plugin {
    let policy = &set.policies()[0];
    let hooks = [Hook::Freeze, Hook::Routing, Hook::Throttling];
    let needs = policy.needs();
    Plugin {
        name: policy.description().name.clone(),
        version: policy.description().version.clone(),
        contract: policy.contract().as_str(),
        hooks: hooks.into_iter().filter(|&hook| policy.has(hook)).map(Hook::as_str).collect(),
        digest: policy.digest().to_owned(),
        attributes: needs.attributes.clone(),
        upstreams: needs.upstreams.clone(),
        outcomes: needs.outcomes,
    }
}

fn print(findings: &Findings, out: &mut dyn Write) -> io::Result<()> {
    for error in &findings.errors {
        writeln!(out, "{}: error: {}", findings.file, clean(error))?;
    }
    for warning in &findings.warnings {
        writeln!(out, "{}: warning: {}", findings.file, clean(warning))?;
    }
    let warnings = count(findings.warnings.len(), "warning");
    let Some(plugin) = &findings.plugin else {
        let errors = count(findings.errors.len(), "error");
        return writeln!(out, "{}: {errors}, {warnings}", findings.file);
    };
    writeln!(out, "{}: good, {warnings}", findings.file)?;
    field(out, "policy", format!("{} {}", clean(&plugin.name), clean(&plugin.version)))?;
    field(out, "contract", format!("wavegate:policy {}", plugin.contract))?;
    field(out, "hooks", list(&plugin.hooks))?;
    field(out, "blake3", &plugin.digest)?;
    field(out, "attributes", list(&plugin.attributes))?;
    field(out, "upstreams", list(&plugin.upstreams))?;
    field(out, "outcomes", if plugin.outcomes { "yes" } else { "no" })
}

/// A size such as `64MiB`.
fn memory(text: &str) -> Result<usize, String> {
    let wanted = || "write a number of KiB or MiB, such as 64MiB".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: usize = text[..digits].parse().map_err(|_| wanted())?;
    let unit: usize = match &text[digits..] {
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return Err(wanted()),
    };
    number.checked_mul(unit).ok_or_else(wanted)
}
