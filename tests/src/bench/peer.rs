//! The peers under measurement: how each is configured, started, and known to be done.
//!
//! Starting the relay itself is `relay`'s. Floor: none.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{Group, User};
use serde::Serialize;

use super::process::{Folder, Process, is_on_disk, until};
use super::relay::{Fill, Relay, await_greeting, clear_spool, free_address};

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
            Self::Wavegate => "wavegate, direct",
            Self::WavegateQueued => "wavegate, queued",
        }
    }

    /// Whether it writes what it accepts to a disk.
    pub(super) fn spools(self) -> bool {
        !matches!(self, Self::None | Self::Haproxy | Self::Wavegate)
    }

    /// Whether it is slower than the others by far.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::Postfix)
    }
}

/// Where the configurations and programs are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder of the configurations.
    pub configs: PathBuf,
    /// The relay's program.
    pub wavegate: PathBuf,
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
struct Waiting {
    /// A file here is a message that is still to be delivered.
    folders: Vec<PathBuf>,
    /// A file here is a message that could not be delivered at once, which must not be.
    failed: Option<PathBuf>,
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
            Peer::Haproxy | Peer::Postfix => {
                fill.set("LISTEN", listen.port()).set("UPSTREAM", upstream.port());
                match peer {
                    Peer::Haproxy => (haproxy(&fill, folder.path())?, None),
                    _ => postfix(&fill, folder.path())?,
                }
            }
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

/// A configuration and queue of its own; the system's Postfix is not touched.
fn postfix(fill: &Fill<'_>, dir: &Path) -> anyhow::Result<(Command, Option<Waiting>)> {
    let user = User::from_name("postfix")?.context("there is no user postfix: is it installed?")?;
    let drop = Group::from_name("postdrop")?.context("there is no group postdrop")?;
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "Postfix's master needs root");
    let config = dir.join("config");
    let queue = dir.join("queue");
    fs::create_dir_all(&config)?;
    fill.copy("postfix/main.cf", &config.join("main.cf"))?;
    fill.copy("postfix/master.cf", &config.join("master.cf"))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let (uid, gid) = (user.uid.as_raw(), drop.gid.as_raw());
    let make = |path: PathBuf, mode, group: Option<u32>| -> anyhow::Result<()> {
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(chown(path, Some(uid), group)?)
    };
    make(dir.join("data"), 0o700, None)?;
    fs::create_dir_all(queue.join("pid"))?;
    let private = [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ];
    for name in private {
        make(queue.join(name), 0o700, None)?;
    }
    make(queue.join("maildrop"), 0o730, Some(gid))?;
    make(queue.join("public"), 0o710, Some(gid))?;
    let mut command = Command::new("/usr/lib/postfix/sbin/master");
    command.arg("-c").arg(config).arg("-d");
    let folders = ["maildrop", "incoming", "active"].iter().map(|name| queue.join(name)).collect();
    Ok((command, Some(Waiting { folders, failed: Some(queue.join("deferred")) })))
}

/// Files in a folder and, as Postfix hashes its queues, in the folders in it.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}
