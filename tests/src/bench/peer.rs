//! The peers under measurement: how each is configured, started, and known to be done.
//!
//! Starting the relay itself is `relay`'s. Floor: none.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::mta;
use super::process::{Folder, Process, is_on_disk, until};
use super::relay::{Fill, Relay, await_greeting, clear_spool, free_address};
use super::workload::Workload;

/// How long a peer may take to deliver what it has accepted.
const DRAIN: Duration = Duration::from_secs(60);

/// What stands between generator and sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Nothing: the generator talks to the sink.
    None,
    /// HAProxy in TCP mode.
    Haproxy,
    /// Postfix as relay host, from acceptance to an empty queue.
    Postfix,
    /// Exim from Debian, likewise.
    Exim,
    /// OpenSMTPD from Debian, likewise.
    Opensmtpd,
    /// The relay, direct hand-off.
    Wavegate,
    /// The relay, every message synced to the spool before 250, until the spool is empty.
    WavegateQueued,
}

impl Peer {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::None => "no relay",
            Self::Haproxy => "HAProxy",
            Self::Postfix => "Postfix",
            Self::Exim => "Exim",
            Self::Opensmtpd => "OpenSMTPD",
            Self::Wavegate => "wavegate, direct",
            Self::WavegateQueued => "wavegate, queued",
        }
    }

    /// Whether it writes what it accepts to a disk.
    pub(super) fn spools(self) -> bool {
        !matches!(self, Self::None | Self::Haproxy | Self::Wavegate)
    }

    /// Whether it can be measured with a workload. OpenSMTPD has neither PIPELINING nor CHUNKING,
    /// and keeps some of twenty sessions waiting that the own generator opens at once; why is not
    /// known. smtp-source it serves.
    pub(super) fn offers(self, workload: Workload) -> bool {
        self != Self::Opensmtpd || !workload.is_own()
    }

    /// Whether it is slower than the others by far.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::Postfix | Self::Exim | Self::Opensmtpd)
    }
}

/// Where the configurations and programs are.
#[derive(Clone, Debug, clap::Args)]
pub struct Places {
    /// The relay's program
    #[arg(long, default_value = "target/dist/wavegate")]
    pub wavegate: PathBuf,
    /// Folder of the configurations
    #[arg(long, default_value = "tests/bench")]
    pub configs: PathBuf,
    /// For tests/bench/run: do not build the relay first
    #[arg(long)]
    pub no_build: bool,
}

/// A peer that is ready.
pub(super) struct Running {
    pub(super) addr: SocketAddr,
    what: What,
    _folder: Folder,
}

enum What {
    Nothing,
    Relay(Relay),
    Other(Process, Option<Waiting>),
}

/// Folders of a peer's queue.
pub(super) struct Waiting {
    /// A file here is a message that is still to be delivered.
    pub(super) folders: Vec<PathBuf>,
    /// A file here is a message that could not be delivered at once, which must not be.
    pub(super) failed: Option<PathBuf>,
}

impl Running {
    /// Starts `peer` in front of `upstream`. `state` outlives the relay, so that its cache is warm.
    pub(super) fn start(
        peer: Peer,
        upstream: SocketAddr,
        places: &Places,
        state: &Path,
    ) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        if peer.spools() {
            is_on_disk(folder.path())?;
            is_on_disk(state)?;
        }
        let listen = free_address()?;
        let mut fill = Fill::new(&places.configs);
        fill.set("DIR", folder.path().display());
        let (command, queue) = match peer {
            Peer::None => {
                return Ok(Self { addr: upstream, what: What::Nothing, _folder: folder });
            }
            Peer::Wavegate | Peer::WavegateQueued => {
                // What a run that failed has left is no other run's.
                clear_spool(state)?;
                fill.set("HANDOFF", if peer.spools() { "queued" } else { "direct" });
                let files = ("relay.toml", "waves.toml");
                let relay = Relay::start(places, state, upstream, &mut fill, files)?;
                return Ok(Self { addr: relay.addr, what: What::Relay(relay), _folder: folder });
            }
            Peer::Haproxy => (haproxy(fill.ports(listen, upstream), folder.path())?, None),
            Peer::Postfix => mta::postfix(fill.ports(listen, upstream), folder.path())?,
            Peer::Exim => mta::exim(fill.ports(listen, upstream), folder.path(), state)?,
            Peer::Opensmtpd => mta::opensmtpd(fill.ports(listen, upstream), folder.path(), state)?,
        };
        let mut process = Process::start(command, folder.path())?;
        await_greeting(peer.label(), &mut process, listen)?;
        Ok(Self { addr: listen, what: What::Other(process, queue), _folder: folder })
    }

    /// The root of the processes under measurement.
    pub(super) fn process(&self) -> Option<u32> {
        match &self.what {
            What::Nothing => None,
            What::Relay(relay) => Some(relay.process.id()),
            What::Other(process, _) => Some(process.id()),
        }
    }

    /// Waits until everything accepted was handed on; at once for peers without a queue.
    pub(super) fn drain(&self) -> anyhow::Result<()> {
        let waiting = match &self.what {
            What::Nothing | What::Other(_, None) => return Ok(()),
            What::Relay(relay) => return relay.drain(DRAIN),
            What::Other(_, Some(waiting)) => waiting,
        };
        let drained = until(DRAIN, || {
            let failed = waiting.failed.as_ref().map_or(0, |folder| files(folder));
            anyhow::ensure!(failed == 0, "a delivery was put off");
            let left: usize = waiting.folders.iter().map(|folder| files(folder)).sum();
            Ok((left == 0).then_some(()))
        })?;
        drained.context("not everything was delivered in time")
    }

    /// Recipients that the relay has delivered so far, by its own account.
    pub(super) fn delivered(&self) -> anyhow::Result<Option<f64>> {
        match &self.what {
            What::Relay(relay) => Ok(relay.figures()?.delivered().ok()),
            _ => Ok(None),
        }
    }

    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match &mut self.what {
            What::Nothing => Ok(()),
            What::Relay(Relay { process, .. }) | What::Other(process, _) => process.check(),
        }
    }
}

fn haproxy(fill: &Fill<'_>, dir: &Path) -> anyhow::Result<Command> {
    let config = dir.join("haproxy.cfg");
    fill.copy("haproxy.cfg", &config)?;
    let mut command = Command::new("haproxy");
    // In the foreground, without a master process: the one process is what is measured.
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}

/// Files in a folder and, as Postfix hashes its queues, in the folders in it.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}
