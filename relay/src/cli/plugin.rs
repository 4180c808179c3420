//! `wavegate plugin`: what authors and operators do with plugins. Floor 4.
//!
//! Each command has a module of its own; here are its arguments.

mod replay;

use std::io::Write;

use clap::Subcommand;

use super::{Failed, exit};

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// Ask a plugin what the decision log has, and show what it would change.
    Replay(replay::ReplayArgs),
}

pub(super) fn plugin(command: &PluginCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        PluginCommand::Replay(args) => replay::replay(args, out),
    }
}
