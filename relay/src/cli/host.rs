//! `wavegate host rules`: the nftables rules that redirect connections to a relay, printed, applied
//! or taken away. Floor 4.
//!
//! Owns one table of the kernel, `inet wavegate`, and nothing else of the host's rules. `rules` says
//! what is in it; here it goes to `nft`, in one transaction, so that it is there whole or not at all.

mod rules;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use clap::{Args, Subcommand};

use super::{Failed, exit};
use crate::config;
use rules::{Rules, TABLE, User};

/// As much of what `nft` says as is passed on.
const SAID: usize = 2000;
/// Where `nft` is, besides `PATH`: an administrator's programs are often not in it.
const ADMIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// The rules for the listeners with `mode = "redirect"`: printed, if nothing else is said.
    Rules(RulesArgs),
}

#[derive(Debug, Args)]
pub(super) struct RulesArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE", required_unless_present = "remove")]
    config: Option<PathBuf>,
    /// Put them in force, in place of those that are. As root.
    #[arg(long, conflicts_with = "remove")]
    apply: bool,
    /// Take away those that are in force. As root.
    #[arg(long)]
    remove: bool,
    /// The user that the relay runs as, whose own connections are left out: a name or a number.
    #[arg(long, value_name = "NAME", default_value = "wavegate")]
    user: User,
}

pub(super) fn host(command: &HostCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    let HostCommand::Rules(args) = command;
    let Some(path) = args.config.as_ref().filter(|_| !args.remove) else {
        return remove(out);
    };
    let config = config::read(path)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))?;
    let rules = Rules::of(&config, &args.user);
    let Some(rules) = rules else {
        let text = "no listener has `mode = \"redirect\"`, so there is nothing to redirect";
        return Err(Failed::new(exit::CONFIG, text).into());
    };
    if !args.apply {
        write!(out, "{rules}")?;
        return Ok(0);
    }
    let done = nft(&["-f", "-"], &rules.to_string())?;
    if !done.status.success() {
        return Err(refused(&done, &args.user).into());
    }
    writeln!(out, "table {TABLE} is in force; connections that are open already stay as they are")?;
    Ok(0)
}

fn remove(out: &mut dyn Write) -> anyhow::Result<u8> {
    let done = nft(&["-f", "-"], &format!("delete table {TABLE}\n"))?;
    if done.status.success() {
        writeln!(out, "table {TABLE} is gone; connections that are open already stay as they are")?;
    } else if said(&done).contains("No such file or directory") {
        writeln!(out, "there was no table {TABLE}")?;
    } else {
        return Err(refused(&done, &User::default()).into());
    }
    Ok(0)
}

/// Runs it with this on its standard input.
fn nft(arguments: &[&str], input: &str) -> Result<Output, Failed> {
    let path = std::env::var("PATH").unwrap_or_default();
    let begun = Command::new("nft")
        .args(arguments)
        .env("PATH", format!("{path}:{ADMIN}"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = begun.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failed::new(exit::UNAVAILABLE, "there is no nft: install the package nftables")
        }
        _ => Failed::new(exit::OS, format!("nft cannot be run: {error}")),
    })?;
    // Small: it fits into the pipe. One that does not read says why by itself.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = child.wait_with_output();
    ended.map_err(|error| Failed::new(exit::OS, format!("nft cannot be waited for: {error}")))
}

fn said(done: &Output) -> String {
    let all = [&done.stderr[..], &done.stdout[..]].concat();
    String::from_utf8_lossy(&all).chars().take(SAID).collect()
}

fn refused(done: &Output, user: &User) -> Failed {
    let said = said(done);
    if said.contains("Operation not permitted") || said.contains("you must be root") {
        let text = "the rules of this host are not yours to change: run this as root";
        return Failed::new(exit::PERMISSION, text);
    }
    if said.contains("User does not exist") {
        let text = format!(
            "there is no user {user}: name the one that the relay runs as with --user (one that \
             its service makes is there while it runs)"
        );
        return Failed::new(exit::USAGE, text);
    }
    Failed::new(exit::OS, format!("nft refused the rules:\n{}", said.trim_end()))
}
