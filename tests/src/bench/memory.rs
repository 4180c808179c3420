//! Resident memory of the relay: idle, and its growth with idle connections.
//!
//! Owns opening and holding the connections. Kernel buffers are not counted. Floor: none.

use std::any::Any;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::cpu;
use super::peer::{Peer, Places, Running};
use super::process::Folder;
use super::tls::{full_handshakes, hear};
use crate::sink::{Extensions, Sink, SinkOptions};

/// File descriptors beside those of the connections.
const OTHER_FILES: u64 = 256;
/// Connections that are being opened at a time.
const AT_A_TIME: usize = 64;
/// Client addresses, so that no limit a client is in the way.
const CLIENTS: usize = 20;
/// Idle before memory is read: start-up work is over by then.
const SETTLE: Duration = Duration::from_secs(2);
/// How long one connection may take to its EHLO reply.
const GREETING: Duration = Duration::from_secs(20);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct MemoryOptions {
    /// The peer, wavegate or haproxy
    #[arg(long, value_enum, default_value_t = Peer::Wavegate)]
    pub peer: Peer,
    /// Idle connections to open
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=50_000))]
    pub connections: u64,
    /// Under TLS, each by STARTTLS with a full handshake; wavegate only
    #[arg(long)]
    pub tls: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 300)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

/// What was measured, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    idle: u64,
    connections: u64,
    with_connections: u64,
    each: f64,
}

/// Measures and prints.
pub fn run(options: &MemoryOptions) -> anyhow::Result<()> {
    anyhow::ensure!(
        matches!(options.peer, Peer::Wavegate | Peer::Haproxy),
        "only wavegate and HAProxy are one process whose memory can be read"
    );
    anyhow::ensure!(!options.tls || options.peer == Peer::Wavegate, "only wavegate has TLS here");
    // HAProxy opens a connection to the sink for each at once, whose other end is here too.
    let ends = if options.peer == Peer::Haproxy { 2 } else { 1 };
    raise_files(ends * options.connections + OTHER_FILES)?;
    let places = &options.places;
    let state = Folder::new()?;
    let extensions = Extensions { chunking: true, ..Extensions::default() };
    let sink = Sink::start(SinkOptions { extensions, ..SinkOptions::default() })?;
    // The first start fills the compile cache.
    drop(Running::start(options.peer, sink.addr(), places, state.path())?);
    let mut running = Running::start(options.peer, sink.addr(), places, state.path())?;
    let pid = running.process().context("the peer is no process")?;
    std::thread::sleep(SETTLE);
    let idle = cpu::resident(pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tls = options.tls.then(full_handshakes);
    let held = runtime.block_on(open(running.addr, options.connections, tls))?;
    std::thread::sleep(SETTLE);
    let with_connections = cpu::resident(pid)?;
    running.check()?;
    drop(held);
    let growth = with_connections.saturating_sub(idle);
    let each = growth as f64 / options.connections as f64;
    let memory = Memory { idle, connections: options.connections, with_connections, each };
    print(options, memory)
}

fn print(options: &MemoryOptions, memory: Memory) -> anyhow::Result<()> {
    let mut out = io::stdout();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &memory)?;
        return Ok(writeln!(out)?);
    }
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let tls = if options.tls { ", TLS" } else { "" };
    writeln!(out, "| {}{tls} | |\n| --- | ---: |", options.peer.label())?;
    writeln!(out, "| idle, resident | {:.1} MB |", mb(memory.idle))?;
    writeln!(
        out,
        "| with {} idle connections | {:.1} MB |",
        memory.connections,
        mb(memory.with_connections)
    )?;
    Ok(writeln!(out, "| growth a connection | {:.1} kB |", memory.each / 1e3)?)
}

/// Raises the limit of open files, for us and for what we start.
fn raise_files(needed: u64) -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= needed {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).with_context(|| {
        format!("{needed} open files are needed, {hard} are allowed: raise `ulimit -Hn`")
    })
}

/// Opens connections and says EHLO on each.
async fn open(
    target: SocketAddr,
    connections: u64,
    tls: Option<TlsConnector>,
) -> anyhow::Result<Vec<Held>> {
    let mut held = Vec::new();
    let mut opening = JoinSet::new();
    for (_, client) in (0..connections).zip((0..CLIENTS).cycle()) {
        if opening.len() >= AT_A_TIME
            && let Some(done) = opening.join_next().await
        {
            held.push(done??);
        }
        let last = u8::try_from(client + 1)?;
        let client = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        opening.spawn(greeted(target, client, tls.clone()));
    }
    while let Some(done) = opening.join_next().await {
        held.push(done??);
    }
    Ok(held)
}

/// A connection that is only held.
type Held = Box<dyn Any + Send>;

async fn greeted(
    target: SocketAddr,
    client: IpAddr,
    tls: Option<TlsConnector>,
) -> anyhow::Result<Held> {
    let open = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(client, 0))?;
        let mut stream = socket.connect(target).await?;
        hear(&mut stream, 220).await?;
        hello(&mut stream).await?;
        let Some(tls) = tls else { return anyhow::Ok(Box::new(stream) as Held) };
        stream.write_all(b"STARTTLS\r\n").await?;
        hear(&mut stream, 220).await?;
        let mut stream = tls.connect(ServerName::try_from("mx.example")?, stream).await?;
        hello(&mut stream).await?;
        Ok(Box::new(stream))
    };
    tokio::time::timeout(GREETING, open).await.context("no reply to EHLO in time")?
}

async fn hello(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<()> {
    stream.write_all(b"EHLO idle.mkt.acme.example\r\n").await?;
    hear(stream, 250).await
}
