//! The peers under measurement: how each is configured, started, and known to be ready and done.
//!
//! Owns the filling in of `tests/bench/`'s configurations. Floor: none.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{Group, User};
use serde::Serialize;

use super::process::{Folder, Process, until};

/// How long a peer may take until it greets. The relay compiles its policies at the first start.
const READY: Duration = Duration::from_secs(30);
/// How long Postfix may take to deliver what it has accepted.
const DRAIN: Duration = Duration::from_secs(60);

/// What stands between generator and sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Nothing: the generator talks to the sink.
    None,
    /// HAProxy in TCP mode.
    Haproxy,
    /// Postfix as relay host, from acceptance to an empty queue.
    Postfix,
    /// The relay.
    Wavegate,
}

impl Peer {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::None => "no relay",
            Self::Haproxy => "HAProxy",
            Self::Postfix => "Postfix",
            Self::Wavegate => "wavegate",
        }
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
    process: Option<Process>,
    queue: Option<PathBuf>,
    _folder: Folder,
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
        let listen = if peer == Peer::None { upstream } else { free_address()? };
        let fill = Fill { listen, upstream, dir: folder.path(), configs: &places.configs };
        let (command, queue) = match peer {
            Peer::None => {
                return Ok(Self { addr: upstream, process: None, queue: None, _folder: folder });
            }
            Peer::Haproxy => (haproxy(&fill)?, None),
            Peer::Postfix => (postfix(&fill)?, Some(folder.path().join("queue"))),
            Peer::Wavegate => (wavegate(&fill, places, state)?, None),
        };
        let mut process = Process::start(command, folder.path())?;
        let ready = until(READY, || {
            process.check()?;
            Ok(greets(listen).then_some(()))
        })?;
        ready.with_context(|| {
            format!("{} did not greet within {READY:?}; {}", peer.label(), process.output())
        })?;
        Ok(Self { addr: listen, process: Some(process), queue, _folder: folder })
    }

    /// The root of the processes under measurement.
    pub(super) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Waits until everything accepted was handed on; at once for peers without a queue.
    pub(super) fn drain(&self) -> anyhow::Result<()> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let drained = until(DRAIN, || {
            anyhow::ensure!(files(&queue.join("deferred")) == 0, "Postfix deferred a message");
            let left: usize =
                ["maildrop", "incoming", "active"].iter().map(|dir| files(&queue.join(dir))).sum();
            Ok((left == 0).then_some(()))
        })?;
        drained.context("Postfix did not deliver in time")
    }

    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::check)
    }
}

struct Fill<'a> {
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &'a Path,
    configs: &'a Path,
}

impl Fill<'_> {
    /// Copies a configuration to `target` with its `@NAME@`s filled in.
    fn copy(&self, source: &str, target: &Path) -> anyhow::Result<()> {
        let path = self.configs.join(source);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .replace("@LISTEN@", &self.listen.port().to_string())
            .replace("@UPSTREAM@", &self.upstream.port().to_string())
            .replace("@ADMIN@", &free_address()?.port().to_string())
            .replace("@DIR@", &self.dir.to_string_lossy());
        Ok(fs::write(target, text)?)
    }
}

fn haproxy(fill: &Fill<'_>) -> anyhow::Result<Command> {
    let config = fill.dir.join("haproxy.cfg");
    fill.copy("haproxy.cfg", &config)?;
    let mut command = Command::new("haproxy");
    // In the foreground, without a master process: the one process is what is measured.
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}

fn wavegate(fill: &Fill<'_>, places: &Places, state: &Path) -> anyhow::Result<Command> {
    let program = &places.wavegate;
    anyhow::ensure!(program.is_file(), "{} is not there: build it", program.display());
    fill.copy("relay.toml", &state.join("relay.toml"))?;
    fill.copy("waves.toml", &state.join("waves.toml"))?;
    let mut command = Command::new(program);
    command.arg("run").arg("--config").arg(state.join("relay.toml"));
    Ok(command)
}

/// A configuration and queue of its own; the system's Postfix is not touched.
fn postfix(fill: &Fill<'_>) -> anyhow::Result<Command> {
    let user = User::from_name("postfix")?.context("there is no user postfix: is it installed?")?;
    let drop = Group::from_name("postdrop")?.context("there is no group postdrop")?;
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "Postfix's master needs root");
    let config = fill.dir.join("config");
    let queue = fill.dir.join("queue");
    fs::create_dir_all(&config)?;
    fill.copy("postfix/main.cf", &config.join("main.cf"))?;
    fill.copy("postfix/master.cf", &config.join("master.cf"))?;
    fs::set_permissions(fill.dir, fs::Permissions::from_mode(0o755))?;
    let (uid, gid) = (user.uid.as_raw(), drop.gid.as_raw());
    let make = |path: PathBuf, mode, group: Option<u32>| -> anyhow::Result<()> {
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(chown(path, Some(uid), group)?)
    };
    make(fill.dir.join("data"), 0o700, None)?;
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
    Ok(command)
}

/// Whether a whole SMTP greeting comes from there.
fn greets(addr: SocketAddr) -> bool {
    let greeting = || -> std::io::Result<bool> {
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.starts_with("220"))
    };
    greeting().unwrap_or(false)
}

/// A port that was free a moment ago.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Files in a folder and, as Postfix hashes its queues, in the folders in it.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}
