//! The loads: what sends, what receives, and one measured run of one peer.
//!
//! Owns the list of workloads and the measuring of a run; the rounds are `run`'s. Floor: none.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::peer::{Peer, Places, Running};
use super::process::{Folder, Process, until};
use super::relay::free_address;
use super::{cpu, run::RunOptions};
use crate::load::{self, LoadOptions, Transfer};
use crate::sink::{Extensions, Sink, SinkHandle, SinkOptions};

/// One load must end within this, or it is an error.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// smtp-source to smtp-sink, many messages a session.
    SourceMany,
    /// smtp-source to smtp-sink, one message a session.
    SourceOne,
    /// Own tools without pipelining, many messages a session.
    PlainMany,
    /// Own tools without pipelining, one message a session.
    PlainOne,
    /// Own tools, pipelining, DATA.
    Pipelining,
    /// Own tools, pipelining, BDAT.
    Bdat,
    /// Own tools, modes and sizes mixed.
    Mixed,
}

impl Workload {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::SourceMany => "smtp-source, many a session",
            Self::SourceOne => "smtp-source, one a session",
            Self::PlainMany => "own, plain, many a session",
            Self::PlainOne => "own, plain, one a session",
            Self::Pipelining => "own, PIPELINING, DATA",
            Self::Bdat => "own, PIPELINING, BDAT",
            Self::Mixed => "own, mixed",
        }
    }

    pub(super) fn is_own(self) -> bool {
        !matches!(self, Self::SourceMany | Self::SourceOne)
    }

    fn is_one(self) -> bool {
        matches!(self, Self::SourceOne | Self::PlainOne)
    }

    fn chunking(self) -> bool {
        matches!(self, Self::Bdat | Self::Mixed)
    }
}

/// What one run measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// Messages a second.
    pub rate: f64,
    /// Processor microseconds of the peer a message; none where there is no peer.
    pub cpu_us: Option<f64>,
    /// Median time of a message, microseconds; own generator only.
    pub p50_us: Option<f64>,
    /// 99th percentile, microseconds; own generator only.
    pub p99_us: Option<f64>,
    /// Processor microseconds of generator and sink a message; own tools only.
    pub tools_us: Option<f64>,
    /// Bytes that the peer had written to the disk for a byte that it accepted; of those that spool.
    pub written: Option<f64>,
}

/// Starts the sink and the peer, warms them up, measures, ends them.
pub(super) fn measure(
    workload: Workload,
    peer: Peer,
    options: &RunOptions,
    places: &Places,
    state: &std::path::Path,
) -> anyhow::Result<Measure> {
    let sink = Receiver::start(workload)?;
    let mut running = Running::start(peer, sink.addr(), places, state)?;
    let messages = options.count(peer, workload.is_one());
    let warm_up = (messages / 20).max(options.sessions as u64);
    send(workload, running.addr, warm_up, options)?;
    running.drain()?;
    let already = sink.messages();
    let delivered = running.delivered()?;
    let written = |running: &Running| {
        running.process().filter(|_| peer.spools()).map(cpu::tree_written).transpose()
    };
    let written_before = written(&running)?;
    let time = |running: &Running| running.process().map(cpu::tree_time).transpose();
    let (cpu_before, own_before, begun) = (time(&running)?, cpu::own(), Instant::now());
    let report = send(workload, running.addr, messages, options)?;
    running.drain()?;
    let took = begun.elapsed();
    let (cpu_after, own_after) = (time(&running)?, cpu::own());
    let written_after = written(&running)?;
    running.check()?;
    if let (Some(before), Some(after)) = (delivered, running.delivered()?) {
        let came = after - before;
        anyhow::ensure!(came == messages as f64, "{came} of {messages} messages are delivered");
    }
    if let (Some(before), Some(after)) = (already, sink.messages()) {
        let came = after - before;
        anyhow::ensure!(came == messages, "{came} of {messages} messages came to the sink");
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / messages as f64;
    let cpu = cpu_before.zip(cpu_after).map(|(before, after)| each(after.saturating_sub(before)));
    let accepted = report.as_ref().map_or(messages * options.size as u64, |report| report.bytes);
    let written = written_before.zip(written_after);
    Ok(Measure {
        rate: messages as f64 / took.as_secs_f64(),
        cpu_us: cpu,
        p50_us: report.as_ref().map(|report| report.p50_us),
        p99_us: report.as_ref().map(|report| report.p99_us),
        tools_us: report.is_some().then(|| each(own_after.saturating_sub(own_before))),
        written: written.map(|(before, after)| (after - before) as f64 / accepted as f64),
    })
}

/// Sends `messages`; gives a report where our own generator did it. Anything unexpected is an error.
fn send(
    workload: Workload,
    target: SocketAddr,
    messages: u64,
    options: &RunOptions,
) -> anyhow::Result<Option<load::Report>> {
    if !workload.is_own() {
        return smtp_source(workload, target, messages, options).map(|()| None);
    }
    let pipelining = matches!(workload, Workload::Pipelining | Workload::Bdat);
    let transfer = if workload == Workload::Bdat { Transfer::Bdat } else { Transfer::Data };
    let load = LoadOptions {
        sessions: options.sessions,
        body_size: options.size,
        per_session: workload.is_one().then_some(1),
        pipelining,
        transfer,
        mixed: workload == Workload::Mixed,
        time_limit: RUN_LIMIT,
        ..LoadOptions::new(target, messages)
    };
    let report = load::run(&load)?;
    anyhow::ensure!(report.is_clean(), "{}", report.to_string().trim().replace('\n', "; "));
    Ok(Some(report))
}

fn smtp_source(
    workload: Workload,
    target: SocketAddr,
    messages: u64,
    options: &RunOptions,
) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let mut command = Command::new("smtp-source");
    command
        .args(["-s", &options.sessions.to_string()])
        .args(["-m", &messages.to_string()])
        .args(["-l", &options.size.to_string()])
        .args(["-f", "bounce@mkt.acme.example", "-t", "user@customers.example"])
        .args(["-M", "load.mkt.acme.example"]);
    if !workload.is_one() {
        command.arg("-d");
    }
    command.arg(target.to_string());
    let mut source = Process::start(command, folder.path())?;
    let status = source.wait(RUN_LIMIT)?;
    anyhow::ensure!(status.success(), "smtp-source: {status}; {}", source.output());
    Ok(())
}

/// What receives.
enum Receiver {
    Own(SinkHandle),
    /// It does not say what came: that smtp-source saw a 250 for each must do.
    SmtpSink {
        addr: SocketAddr,
        _process: Process,
        _folder: Folder,
    },
}

impl Receiver {
    fn start(workload: Workload) -> anyhow::Result<Self> {
        if workload.is_own() {
            let extensions = Extensions { chunking: workload.chunking(), ..Extensions::default() };
            return Ok(Self::Own(Sink::start(SinkOptions {
                extensions,
                ..SinkOptions::default()
            })?));
        }
        let folder = Folder::new()?;
        let addr = free_address()?;
        let mut command = Command::new("smtp-sink");
        if nix::unistd::geteuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        command.args([addr.to_string().as_str(), "1024"]);
        let mut process = Process::start(command, folder.path())?;
        let up = until(Duration::from_secs(5), || {
            process.check()?;
            Ok(std::net::TcpStream::connect(addr).ok())
        })?;
        anyhow::ensure!(up.is_some(), "smtp-sink does not listen; {}", process.output());
        Ok(Self::SmtpSink { addr, _process: process, _folder: folder })
    }

    fn addr(&self) -> SocketAddr {
        match self {
            Self::Own(sink) => sink.addr(),
            Self::SmtpSink { addr, .. } => *addr,
        }
    }

    fn messages(&self) -> Option<u64> {
        match self {
            Self::Own(sink) => Some(sink.counts().messages),
            Self::SmtpSink { .. } => None,
        }
    }
}
