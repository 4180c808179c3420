//! The benchmark's command: `run` for the table, `slow`, `spool` and `memory`, and the tools `load`
//! and `sink` alone.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use wavegate_tests::bench::{
    self, memory::MemoryOptions, poison::PoisonOptions, run::RunOptions, slow::SlowOptions,
    spool::SpoolOptions, swaps::SwapsOptions, tls::TlsOptions, wan::WanOptions,
};
use wavegate_tests::load::{self, LoadOptions, Transfer};
use wavegate_tests::sink::{Extensions, Fault, Sink, SinkOptions};

/// Measures the relay: next to its peers, in front of a slow upstream, over a full spool.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every workload with every peer, in alternating rounds: one table.
    /// Needs haproxy, smtp-source, smtp-sink and (as root) Postfix for their rows, and Debian's archive
    /// (as root) for Exim and OpenSMTPD, which are not installed; a row that cannot be measured is shown as an error, and the exit code is 1. Says whether the aims of queued mode
    /// are met: processor time to HAProxy's, and bytes written to the disk.
    Run(RunOptions),
    /// The clients' rate while an upstream is slow to answer (handoff = "auto"), compared with queued
    /// mode in front of a fast one. Says whether its aim is met.
    Slow(SlowOptions),
    /// A spool with a million messages: start-up, memory a message, release of those that a window
    /// has held, at once and with a pace. Says of each whether its aim is met. Takes about 1 GB of
    /// disk for a million messages, and gives it back.
    Spool(SpoolOptions),
    /// TLS with clients: full handshakes and bulk next to HAProxy's. Says whether the aims are met.
    Tls(TlsOptions),
    /// A thousand changes of a plugin under load: whether a message fails or is late, and whether
    /// memory grows.
    Swaps(SwapsOptions),
    /// A plugin that loops for ever on one message in a hundred: how long the others take.
    Poison(PoisonOptions),
    /// Over a wide area network (emulated; as root): the link next to SMTP over TLS, from the relay
    /// and from Postfix: messages a second, time of a message, an outage, processor time. Says whether
    /// the aims are met.
    Wan(WanOptions),
    /// Resident memory: idle, and its growth a connection.
    Memory(MemoryOptions),
    /// Send messages and measure.
    Load(LoadArgs),
    /// Receive messages until ended by a signal, or for a time.
    Sink(SinkArgs),
}

#[derive(Args)]
struct LoadArgs {
    /// Where to send to
    target: SocketAddr,
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    /// Messages in all
    #[arg(long, default_value_t = 10_000)]
    messages: u64,
    /// Messages a session; all in one without it
    #[arg(long)]
    per_session: Option<u64>,
    /// Bytes of a message
    #[arg(long, default_value_t = 10 * 1024)]
    size: usize,
    /// Send commands in groups
    #[arg(long)]
    pipelining: bool,
    #[arg(long, value_enum, default_value = "data")]
    transfer: Transfer,
    /// Mix modes and sizes
    #[arg(long)]
    mixed: bool,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, default_value = "mkt.acme.example")]
    sender_domain: String,
    #[arg(long, default_value = "customers.example")]
    recipient_domain: String,
    /// Different recipients, used in turn
    #[arg(long, default_value_t = 1000)]
    distinct_recipients: u64,
    /// Recipients of each message
    #[arg(long, default_value_t = 1)]
    recipients: u64,
    /// Address to connect from
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    source: IpAddr,
    /// Seconds after which the run ends
    #[arg(long, default_value_t = 120)]
    time_limit: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SinkArgs {
    /// Where to listen; port 0 for a free one, which is printed
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Do not offer PIPELINING
    #[arg(long)]
    no_pipelining: bool,
    /// Offer CHUNKING
    #[arg(long)]
    chunking: bool,
    /// Do not offer 8BITMIME
    #[arg(long)]
    no_8bitmime: bool,
    /// Do not offer SMTPUTF8
    #[arg(long)]
    no_smtputf8: bool,
    /// Do not offer DSN
    #[arg(long)]
    no_dsn: bool,
    /// Offer SIZE with this limit
    #[arg(long)]
    size: Option<u64>,
    /// Milliseconds before the final reply
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// What goes wrong, as STAGE:WHEN=ACTION: stages connect, ehlo, mail, rcpt, data, body, end, quit;
    /// when N, N+, %N or *; action a reply, close, silent or "delay MILLIS"
    #[arg(long = "fault")]
    faults: Vec<Fault>,
    /// 421 after so many messages of a session
    #[arg(long)]
    per_session: Option<u64>,
    /// Check line ends of every content
    #[arg(long)]
    verify: bool,
    /// Write envelopes and digests to this file, as JSON Lines
    #[arg(long)]
    record: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// End after so many seconds
    #[arg(long, default_value_t = 86_400)]
    time_limit: u64,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::run::run(&options)),
        Command::Memory(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::memory::run(&options))
            .map(|()| true),
        Command::Tls(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::tls::run(&options))
            .map(|()| true),
        Command::Swaps(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::swaps::run(&options)),
        Command::Poison(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::poison::run(&options)),
        Command::Wan(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::wan::run(&options)),
        Command::Slow(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::slow::run(&options))
            .map(|()| true),
        Command::Spool(options) => bench::install_guard(Duration::from_secs(options.time_limit))
            .and_then(|()| bench::spool::run(&options))
            .map(|()| true),
        Command::Load(args) => run_load(args),
        Command::Sink(args) => run_sink(args).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _no_terminal = writeln!(std::io::stderr(), "wavegate-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_load(args: LoadArgs) -> anyhow::Result<bool> {
    let options = LoadOptions {
        target: args.target,
        sessions: args.sessions,
        messages: args.messages,
        per_session: args.per_session,
        body_size: args.size,
        pipelining: args.pipelining,
        transfer: args.transfer,
        mixed: args.mixed,
        threads: args.threads,
        sender_domain: args.sender_domain,
        recipient_domain: args.recipient_domain,
        distinct_recipients: args.distinct_recipients,
        recipients: args.recipients,
        source: args.source,
        time_limit: Duration::from_secs(args.time_limit),
    };
    let report = load::run(&options)?;
    let mut out = std::io::stdout();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(report.is_clean())
}

fn run_sink(args: SinkArgs) -> anyhow::Result<()> {
    let extensions = Extensions {
        pipelining: !args.no_pipelining,
        chunking: args.chunking,
        eightbitmime: !args.no_8bitmime,
        smtputf8: !args.no_smtputf8,
        dsn: !args.no_dsn,
        size: args.size,
    };
    let sink = Sink::start(SinkOptions {
        listen: args.listen,
        extensions,
        reply_delay: Duration::from_millis(args.delay),
        faults: args.faults,
        messages_per_session: args.per_session,
        verify: args.verify,
        record_file: args.record,
        threads: args.threads,
        ..SinkOptions::default()
    })?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", sink.addr())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bench::guard(Duration::from_secs(args.time_limit)));
    let counts = sink.stop();
    Ok(writeln!(out, "{}", serde_json::to_string(&counts)?)?)
}
