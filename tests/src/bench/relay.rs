//! The relay under measurement: started from a configuration of `tests/bench/`, and asked.
//!
//! Owns the filling in of configurations. What is measured of it is its callers' business.
//! Floor: none.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::metrics::Figures;
use super::peer::Places;
use super::process::{Process, until, until_every};
use crate::harness::write_tls_files;

/// How long a peer may take until it greets. The relay compiles its policies at the first start.
const READY: Duration = Duration::from_secs(60);
/// Between two looks at the relay's figures: each costs it processor time, which is measured.
const LOOK: Duration = Duration::from_millis(20);
/// How long the relay may take to end in order.
const STOP: Duration = Duration::from_secs(45);

/// A configuration whose `@NAME@`s are filled in.
pub(super) struct Fill<'a> {
    configs: &'a Path,
    pairs: Vec<(&'static str, String)>,
}

impl<'a> Fill<'a> {
    pub(super) fn new(configs: &'a Path) -> Self {
        Self { configs, pairs: Vec::new() }
    }

    pub(super) fn set(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.pairs.push((name, value.to_string()));
        self
    }

    /// Where a peer listens, and where it is to deliver.
    pub(super) fn ports(&mut self, listen: SocketAddr, upstream: SocketAddr) -> &mut Self {
        self.set("LISTEN", listen.port()).set("UPSTREAM", upstream.port())
    }

    /// A file of the folder of configurations.
    pub(super) fn source(&self, name: &str) -> PathBuf {
        self.configs.join(name)
    }

    /// Copies a configuration to `target`, filled in.
    pub(super) fn copy(&self, source: &str, target: &Path) -> anyhow::Result<()> {
        let path = self.source(source);
        let mut text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for (name, value) in &self.pairs {
            text = text.replace(&format!("@{name}@"), value);
        }
        Ok(fs::write(target, text)?)
    }
}

/// A relay that listens.
pub(super) struct Relay {
    pub(super) addr: SocketAddr,
    /// Where sessions begin with a TLS handshake.
    pub(super) tls: SocketAddr,
    pub(super) process: Process,
    admin: SocketAddr,
    /// From its start to its greeting.
    pub(super) took: Duration,
}

impl Relay {
    /// Starts the relay with `relay` and `waves`, files of the folder of configurations, which it
    /// finds filled in in `state`. It keeps there what it keeps.
    pub(super) fn start(
        places: &Places,
        state: &Path,
        upstream: SocketAddr,
        fill: &mut Fill<'_>,
        (relay, waves): (&str, &str),
    ) -> anyhow::Result<Self> {
        let program = &places.wavegate;
        anyhow::ensure!(program.is_file(), "{} is not there: build it", program.display());
        let (addr, tls, admin) = (free_address()?, free_address()?, free_address()?);
        fill.set("TLS", tls.port());
        fill.set("LISTEN", addr.port()).set("ADMIN", admin.port()).set("UPSTREAM", upstream.port());
        fill.copy(relay, &state.join("relay.toml"))?;
        fill.copy(waves, &state.join("waves.toml"))?;
        write_tls_files(state)?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(state.join("relay.toml"));
        let begun = Instant::now();
        let mut process = Process::start(command, state)?;
        await_greeting("the relay", &mut process, addr)?;
        Ok(Self { addr, tls, process, admin, took: begun.elapsed() })
    }

    pub(super) fn figures(&self) -> anyhow::Result<Figures> {
        Figures::of(self.admin)
    }

    /// Waits until its figures satisfy `is_so`.
    pub(super) fn wait(
        &self,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&Figures) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let found = until_every(LOOK, limit, || Ok(is_so(&self.figures()?)?.then_some(())))?;
        found.with_context(|| format!("not within {limit:?}: {what}"))
    }

    /// Waits until it has handed on everything.
    pub(super) fn drain(&self, limit: Duration) -> anyhow::Result<()> {
        self.wait("an empty spool", limit, |figures| Ok(figures.spooled()? == 0.0))
    }

    /// Ends it in order.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.process.stop(STOP)
    }
}

/// Removes what an earlier relay has left in the spool of `state`, whose compiled policies stay.
pub(super) fn clear_spool(state: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(spool_of(state)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The folder of the spool.
pub(super) fn spool_of(state: &Path) -> PathBuf {
    state.join("state/spool")
}

/// Waits until a started process greets.
pub(super) fn await_greeting(
    name: &str,
    process: &mut Process,
    addr: SocketAddr,
) -> anyhow::Result<()> {
    let ready = until(READY, || {
        process.check()?;
        Ok(greets(addr).then_some(()))
    })?;
    ready.with_context(|| format!("{name} did not greet within {READY:?}; {}", process.output()))
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
