//! TLS with clients: full handshakes and bulk, the relay next to HAProxy with the same certificate.
//!
//! Owns the clients and the comparison. Each peer speaks TLS with its clients and none with the sink.
//! Floor: none.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;

use super::cpu;
use super::peer::Places;
use super::process::{Folder, Process, until};
use super::relay::{Fill, Relay, free_address};
use super::table::{at_least, median};
use crate::harness::{tls_client, write_tls_files};
use crate::load::reply;
use crate::sink::{Sink, SinkOptions};

/// Clients at a time.
const CLIENTS: u64 = 8;
/// How long a peer may take until it listens.
const READY: Duration = Duration::from_secs(30);
/// How long a client may wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct TlsOptions {
    /// Full handshakes of a run (TLS 1.3, ECDSA P-256), each on a connection of its own
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(8..=200_000))]
    pub handshakes: u64,
    /// Messages of a run, on 8 connections
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(8..=50_000))]
    pub messages: u64,
    /// Bytes of a message; beyond `limits.message_memory` (1 MiB) the relay keeps it in a file
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    pub size: u64,
    /// Alternating rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 900)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

/// Units a second, and processor time of the peer for one.
#[derive(Clone, Copy, Debug)]
struct Measured {
    rate: f64,
    cpu_us: f64,
}

/// Of one peer in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    handshakes: Measured,
    bulk: Measured,
}

/// Measures and prints.
pub fn run(options: &TlsOptions) -> anyhow::Result<()> {
    let state = Folder::new()?;
    let mut rounds: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
    for number in 1..=options.rounds {
        rounds[0].push(with_haproxy(options)?);
        rounds[1].push(with_relay(options, state.path())?);
        let rate = |rounds: &[Round]| rounds.last().map_or(0.0, |one| one.handshakes.rate);
        let (haproxy, relay) = (rate(&rounds[0]), rate(&rounds[1]));
        writeln!(io::stderr(), "round {number}: {haproxy:.0} and {relay:.0} handshakes/s")?;
    }
    print(options, &rounds)
}

fn print(options: &TlsOptions, rounds: &[Vec<Round>; 2]) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "TLS 1.3, {CLIENTS} clients at a time; {} full handshakes, {} messages of {} bytes a run; \
         medians of {} rounds.\n\n\
         | | handshakes/s | us processor each | MB/s | us processor a MB |\n\
         | --- | ---: | ---: | ---: | ---: |",
        options.handshakes, options.messages, options.size, options.rounds
    )?;
    for (name, rounds) in ["HAProxy", "wavegate, direct"].into_iter().zip(rounds) {
        let of = |get: fn(&Round) -> f64| {
            median(rounds.iter().map(|round| Some(get(round)))).unwrap_or(f64::NAN)
        };
        writeln!(
            out,
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} |",
            of(|round| round.handshakes.rate),
            of(|round| round.handshakes.cpu_us),
            of(|round| round.bulk.rate),
            of(|round| round.bulk.cpu_us),
        )?;
    }
    let ratio = |get: fn(&Round) -> f64| {
        let pairs = rounds[1].iter().zip(&rounds[0]);
        median(pairs.map(|(relay, haproxy)| Some(get(relay) / get(haproxy)))).unwrap_or(f64::NAN)
    };
    writeln!(out)?;
    for (what, get) in [
        ("rate of handshakes to HAProxy's", (|one| one.handshakes.rate) as fn(&Round) -> f64),
        ("rate of bulk to HAProxy's", |one| one.bulk.rate),
    ] {
        write!(out, "{}", at_least(what, ratio(get), 1.0))?;
    }
    writeln!(
        out,
        "processor time a handshake to HAProxy's: {:.2}",
        ratio(|one| one.handshakes.cpu_us)
    )?;
    Ok(writeln!(out, "processor time of bulk to HAProxy's: {:.2}", ratio(|one| one.bulk.cpu_us))?)
}

fn with_haproxy(options: &TlsOptions) -> anyhow::Result<Round> {
    let sink = Sink::start(SinkOptions::default())?;
    let folder = Folder::new()?;
    let dir = folder.path();
    write_tls_files(dir)?;
    // HAProxy wants certificate and key in one file.
    let both = [fs::read(dir.join("mx.pem"))?, fs::read(dir.join("mx.key"))?].concat();
    fs::write(dir.join("both.pem"), both)?;
    let addr = free_address()?;
    let config = dir.join("haproxy.cfg");
    let mut fill = Fill::new(&options.places.configs);
    fill.set("DIR", dir.display()).ports(addr, sink.addr());
    fill.copy("haproxy-tls.cfg", &config)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let mut process = Process::start(command, dir)?;
    let listens = until(READY, || {
        process.check()?;
        Ok(std::net::TcpStream::connect(addr).ok())
    })?;
    listens.with_context(|| format!("HAProxy does not listen; {}", process.output()))?;
    let round = measure(addr, process.id(), options)?;
    process.check()?;
    Ok(round)
}

fn with_relay(options: &TlsOptions, state: &Path) -> anyhow::Result<Round> {
    let sink = Sink::start(SinkOptions::default())?;
    let mut fill = Fill::new(&options.places.configs);
    fill.set("HANDOFF", "direct");
    let files = ("relay.toml", "waves.toml");
    let mut relay = Relay::start(&options.places, state, sink.addr(), &mut fill, files)?;
    let round = measure(relay.tls, relay.process.id(), options)?;
    relay.process.check()?;
    Ok(round)
}

fn measure(addr: SocketAddr, pid: u32, options: &TlsOptions) -> anyhow::Result<Round> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clients = Clients { addr, tls: full_handshakes() };
    runtime.block_on(async {
        // What is made once is made before: connections to the sink, compiled policies.
        clients.handshakes(CLIENTS).await?;
        clients.bulk(CLIENTS, options.size).await?;
        let work = clients.handshakes(options.handshakes);
        let handshakes = timed(pid, options.handshakes as f64, work).await?;
        let megabytes = options.messages as f64 * options.size as f64 / 1e6;
        let bulk = timed(pid, megabytes, clients.bulk(options.messages, options.size)).await?;
        Ok(Round { handshakes, bulk })
    })
}

/// What so many units cost that `work` has done.
async fn timed(
    pid: u32,
    units: f64,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Measured> {
    let (begun, before) = (Instant::now(), cpu::tree_time(pid)?);
    work.await?;
    let (took, cpu) = (begun.elapsed(), cpu::tree_time(pid)?.saturating_sub(before));
    Ok(Measured { rate: units / took.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / units })
}

/// TLS that resumes nothing.
pub(super) fn full_handshakes() -> TlsConnector {
    let mut config = ClientConfig::clone(&tls_client(&[&TLS13], None));
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

#[derive(Clone)]
struct Clients {
    addr: SocketAddr,
    tls: TlsConnector,
}

impl Clients {
    /// So many sessions that have the greeting and go.
    async fn handshakes(&self, count: u64) -> anyhow::Result<()> {
        self.each(count, |this, share| async move {
            for _ in 0..share {
                this.connect().await?;
            }
            Ok(())
        })
        .await
    }

    /// So many messages.
    async fn bulk(&self, count: u64, size: u64) -> anyhow::Result<()> {
        let content: Arc<[u8]> = content(size).into();
        self.each(count, move |this, share| {
            let content = Arc::clone(&content);
            async move {
                let mut stream = this.connect().await?;
                say(&mut stream, b"EHLO bulk.mkt.acme.example\r\n", 250).await?;
                for _ in 0..share {
                    say(&mut stream, b"MAIL FROM:<news@mkt.acme.example>\r\n", 250).await?;
                    say(&mut stream, b"RCPT TO:<customer@customers.example>\r\n", 250).await?;
                    say(&mut stream, b"DATA\r\n", 354).await?;
                    say(&mut stream, &content, 250).await?;
                }
                Ok(())
            }
        })
        .await
    }

    /// Has clients do their shares of `count` at a time.
    async fn each<F>(&self, count: u64, mut work: impl FnMut(Self, u64) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let mut running = JoinSet::new();
        for client in 0..CLIENTS {
            let share = count / CLIENTS + u64::from(client < count % CLIENTS);
            running.spawn(work(self.clone(), share));
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        Ok(())
    }

    /// A session that has been greeted.
    async fn connect(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let open = async {
            let stream = TcpStream::connect(self.addr).await?;
            stream.set_nodelay(true)?;
            let mut stream = self.tls.connect(ServerName::try_from("mx.example")?, stream).await?;
            hear(&mut stream, 220).await?;
            Ok(stream)
        };
        tokio::time::timeout(PATIENCE, open).await.context("no greeting in time")?
    }
}

async fn say(stream: &mut TlsStream<TcpStream>, bytes: &[u8], code: u16) -> anyhow::Result<()> {
    let dialogue = async {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        hear(stream, code).await
    };
    tokio::time::timeout(PATIENCE, dialogue).await.context("no reply in time")?
}

/// Takes a reply, which must have this code.
pub(super) async fn hear(stream: &mut (impl AsyncRead + Unpin), code: u16) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(512);
    loop {
        if let Some(reply) = reply::parse(&buffer).map_err(|bad| anyhow::anyhow!("{bad:?}"))? {
            anyhow::ensure!(reply.code == code, "{} instead of {code}", reply.code);
            return Ok(());
        }
        anyhow::ensure!(stream.read_buf(&mut buffer).await? > 0, "closed before a {code}");
    }
}

/// A message of about so many bytes with its end of data.
fn content(size: u64) -> Vec<u8> {
    let mut content = b"Subject: bulk\r\n\r\n".to_vec();
    while (content.len() as u64) < size {
        content.extend_from_slice(&[b'x'; 76]);
        content.extend_from_slice(b"\r\n");
    }
    content.extend_from_slice(b".\r\n");
    content
}
