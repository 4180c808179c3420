//! `wavegate plugin`: what becomes of a plugin between its author and the relay. Floor 4.
//!
//! Each command has a module of its own.

mod install;
mod keygen;
mod list;
mod password;
mod rollback;
mod sign;
mod verify;

use std::{io::Write, path::Path};

use clap::Subcommand;

use super::{Failed, exit};
use crate::policy::MAX_COMPONENT;

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
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
}

pub(super) fn plugin(command: &PluginCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
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

/// The bytes of a component, as many as one may have.
fn component(path: &Path) -> Result<Vec<u8>, Failed> {
    use std::io::Read as _;
    let shown = path.display();
    let unreadable = |error| Failed::new(exit::NO_INPUT, format!("cannot read {shown}: {error}"));
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        let text = format!("{shown} is not a regular file; name a .wasm file");
        return Err(Failed::new(exit::NO_INPUT, text));
    }
    let mut wasm = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_COMPONENT + 1).read_to_end(&mut wasm).map_err(unreadable)?;
    match wasm.len() as u64 > MAX_COMPONENT {
        true => Err(Failed::new(
            exit::DATA,
            format!(
                "{shown} is larger than the {} MiB that a component may have: build it for size, \
                 without debug information",
                MAX_COMPONENT / 1024 / 1024
            ),
        )),
        false => Ok(wasm),
    }
}
