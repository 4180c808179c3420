//! `wavegate plugin`: what authors and operators do with plugins. Floor 4.
//!
//! Each command has a module of its own; here are its arguments.

mod shadow_report;

use std::io::Write;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// Say what the shadows of a running relay would change.
    ShadowReport(shadow_report::ShadowReportArgs),
}

pub(super) fn plugin(command: &PluginCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        PluginCommand::ShadowReport(args) => shadow_report::shadow_report(args, out),
    }
}
