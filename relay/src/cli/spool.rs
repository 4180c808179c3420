//! `wavegate spool`: whether what is on disk is whole, and moving it to another host. Floor 4.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use hyper::Method;
use wavegate_spool::{OpenError, RealDisk};

use super::{
    Failed,
    client::{self, ask, socket_of},
    exit,
    output::{count, json},
};
use crate::{
    config::Config,
    control::wire::Verified,
    portable::{Depot, PortableError},
    world::World,
};

#[derive(Clone, Debug, Subcommand)]
pub(super) enum SpoolCommand {
    /// Read every message and compare its checksums. Changes nothing; the relay may be running.
    Verify {
        /// The configuration of the relay.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Write all messages of a stopped relay to one file.
    Export {
        /// The configuration of the relay.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The file, or a directory for it.
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
        /// Remove what was exported from the spool, once the file is on disk.
        #[arg(long)]
        remove: bool,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Take the messages of such a file into the spool of a stopped relay; a second time adds none.
    Import {
        /// The configuration of the relay.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The file.
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

/// Does it and prints.
pub(super) fn spool(command: &SpoolCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        SpoolCommand::Verify { config, json } => verify(&client::read(config)?, *json, out),
        SpoolCommand::Export { config, to, remove, json } => {
            export(&client::read(config)?, to, *remove, *json, out)
        }
        SpoolCommand::Import { config, from, json } => {
            import(&client::read(config)?, from, *json, out)
        }
    }
}

fn verify(config: &Config, as_json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let directory = config.relay.state_dir.join("spool");
    let found = match wavegate_spool::verify(&RealDisk::new(&directory)) {
        Ok(report) => Verified {
            messages: report.messages + report.beyond,
            damage: report.damage.iter().map(ToString::to_string).collect(),
        },
        // The one who has it can read it.
        Err(OpenError::Owned { .. }) => {
            ask(&socket_of(config), Method::GET, "/v1/spool/verify", Vec::new())?
        }
        Err(error) => return Err(no_spool(&directory, &error).into()),
    };
    if as_json {
        json(out, &found)?;
    } else {
        for damage in &found.damage {
            writeln!(out, "{damage}")?;
        }
        let messages = messages(found.messages);
        let damage = found.damage.len();
        let verdict = if damage == 0 { "good".to_owned() } else { format!("{damage} damaged") };
        writeln!(out, "{}: {messages}, {verdict}", directory.display())?;
    }
    Ok(u8::from(!found.damage.is_empty()))
}

fn no_spool(directory: &Path, error: &OpenError) -> Failed {
    let place = directory.display();
    match error {
        OpenError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Failed::new(
            exit::NO_INPUT,
            format!("{place} is not there: no relay has run with this configuration"),
        ),
        error => Failed::new(exit_code(error), format!("{place}: {error}")),
    }
}

fn exit_code(error: &OpenError) -> u8 {
    match error {
        OpenError::Owned { .. } => exit::TEMPORARY,
        OpenError::Newer { .. } | OpenError::NotADirectory => exit::CONFIG,
        OpenError::ReadOnly { .. } => exit::PERMISSION,
        OpenError::Io { .. } => exit::OS,
    }
}

fn messages(number: u64) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), "message")
}

fn failed(error: PortableError) -> Failed {
    let code = match &error {
        PortableError::Open(error) => exit_code(error),
        PortableError::Spool(_) => exit::OS,
        PortableError::Exists(_) => exit::USAGE,
        PortableError::Foreign(_) | PortableError::Newer { .. } | PortableError::Damaged { .. } => {
            exit::DATA
        }
        PortableError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            exit::NO_INPUT
        }
        PortableError::Io { .. } => exit::IO,
    };
    let stop = match &error {
        PortableError::Open(OpenError::Owned { .. }) => "; stop the relay first",
        _ => "",
    };
    Failed::new(code, format!("{error}{stop}"))
}

/// Does something with the spool of a stopped relay.
fn with_depot<T>(
    config: &Config,
    act: impl AsyncFnOnce(&mut Depot) -> Result<T, PortableError>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut depot = Depot::open(&config.relay.state_dir, &config.spool).await?;
        let done = act(&mut depot).await;
        depot.close();
        done
    });
    Ok(done.map_err(failed)?)
}

fn export(
    config: &Config,
    to: &Path,
    remove: bool,
    as_json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let world = World::real();
    let (now, random) = (world.clock.now(), world.entropy.next());
    let act = async |depot: &mut Depot| depot.export(to, remove, now, random).await;
    let exported = with_depot(config, act)?;
    if as_json {
        json(out, &exported)?;
    } else {
        for one in &exported.unreadable {
            writeln!(out, "not exported, stays in the spool: {one}")?;
        }
        let removed = if exported.removed { ", removed from the spool" } else { "" };
        let file = exported.file.display();
        writeln!(out, "{file}: {}{removed}", messages(exported.messages))?;
        if !remove {
            writeln!(out, "they are in the spool too: what is imported elsewhere leaves twice")?;
        }
    }
    Ok(u8::from(!exported.unreadable.is_empty()))
}

fn import(config: &Config, from: &Path, as_json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let imported = with_depot(config, async |depot: &mut Depot| depot.import(from).await)?;
    if as_json {
        json(out, &imported)?;
    } else {
        let (added, known) = (messages(imported.added), imported.known);
        writeln!(out, "{}: {added} added, {known} known before", from.display())?;
    }
    Ok(0)
}
