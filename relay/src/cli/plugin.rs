//! `wavegate plugin`: what authors and operators do with plugins. Floor 4.
//!
//! Each command has a module of its own; here are its arguments and the ways to read a component that
//! they share.

mod bench;
mod build;
mod check;
mod contract;
mod inspect;
mod install;
mod keygen;
mod list;
mod new;
mod password;
mod replay;
mod rollback;
mod shadow_report;
mod sign;
mod test;
mod verify;

use std::{io::Write, path::Path, sync::Arc};

use clap::Subcommand;

use super::{Failed, exit};
use crate::policy::{self, HostOptions, PolicyHost, PolicyProblem};

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// Make a project for a plugin: a first policy, cases, a schema of its settings.
    New(new::NewArgs),
    /// Compile a project and make the component.
    Build(build::BuildArgs),
    /// Check all that the relay checks when it loads a plugin, and its settings against their schema.
    Check(check::CheckArgs),
    /// Say what a plugin is: its hooks, imports, size, digest, settings.
    Inspect(inspect::InspectArgs),
    /// Ask a plugin the questions of cases, and compare its answers with what they expect.
    Test(test::TestArgs),
    /// Print the contract that plugins are written for, or its reference.
    Contract(contract::ContractArgs),
    /// Measure what the answers of a plugin cost: fuel, time, memory.
    Bench(bench::BenchArgs),
    /// Say what the shadows of a running relay would change.
    ShadowReport(shadow_report::ShadowReportArgs),
    /// Make a pair of keys for signatures, as minisign does.
    Keygen(keygen::KeygenArgs),
    /// Sign a plugin: writes FILE.wasm.minisig.
    Sign(sign::SignArgs),
    /// Say who signed a plugin; fails where no trusted key did.
    Verify(verify::VerifyArgs),
    /// Bring a plugin to a running relay: verified, checked, in shadow, live, watched.
    Install(install::InstallArgs),
    /// The policies of a running relay, their plugins and roll-outs.
    List(list::ListArgs),
    /// Go back to the plugin that was in force before.
    Rollback(rollback::RollbackArgs),
    /// Ask a plugin what the decision log has, and show what it would change.
    Replay(replay::ReplayArgs),
}

pub(super) fn plugin(command: &PluginCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        PluginCommand::Replay(args) => replay::replay(args, out),
        PluginCommand::ShadowReport(args) => shadow_report::shadow_report(args, out),
        PluginCommand::New(args) => new::new(args, out),
        PluginCommand::Build(args) => build::build(args, out),
        PluginCommand::Check(args) => check::check(args, out),
        PluginCommand::Inspect(args) => inspect::inspect(args, out),
        PluginCommand::Test(args) => test::test(args, out),
        PluginCommand::Contract(args) => contract::contract(args, out),
        PluginCommand::Bench(args) => bench::bench(args, out),
        PluginCommand::Keygen(args) => keygen::keygen(args, out),
        PluginCommand::Sign(args) => sign::sign(args, out),
        PluginCommand::Verify(args) => verify::verify(args, out),
        PluginCommand::Install(args) => install::install(args, out),
        PluginCommand::List(args) => list::list(args, out),
        PluginCommand::Rollback(args) => rollback::rollback(args, out),
    }
}

/// The name of a policy, which becomes part of a path.
fn policy(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match !text.is_empty() && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err("is no name of a policy".to_owned()),
    }
}

/// A policy host for looking at plugins: it audits nothing and keeps no compiled code.
fn host() -> Result<Arc<PolicyHost>, Failed> {
    let options = HostOptions { audit_every: 0, ..HostOptions::production(1).compiling_apart() };
    PolicyHost::new(None, options)
        .map_err(|error| Failed::new(exit::OS, format!("policy host: {error}")))
}

/// The bytes of a component.
fn read(file: &Path) -> Result<Vec<u8>, Failed> {
    policy::read_file(file).map_err(|problem| {
        let code = match problem {
            PolicyProblem::Read { .. } => exit::NO_INPUT,
            _ => exit::DATA,
        };
        let place = match problem {
            PolicyProblem::Read { .. } => String::new(),
            _ => format!("{}: ", file.display()),
        };
        Failed::new(code, format!("{place}{problem}"))
    })
}
