//! The command line: what can be asked, and the exit codes. Floor 4.
//!
//! Owns arguments, exit codes and standard output; each command has a module of its own.

mod check;
mod client;
mod compile;
mod demo;
mod explain;
mod generate;
mod host;
mod link;
mod message;
mod output;
mod plan;
mod plugin;
mod queue;
mod remote;
mod spool;
mod users;
mod wave;

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use wavegate_smtp::{Address, ReversePath};

use crate::{
    logging,
    plan::Timestamp,
    policy,
    process::{self, StartError},
};

/// Exit codes of sysexits.h.
mod exit {
    /// The command line was wrong.
    pub(super) const USAGE: u8 = 64;
    /// The message file is no message that a relay takes.
    pub(super) const DATA: u8 = 65;
    /// A file that was named cannot be read.
    pub(super) const NO_INPUT: u8 = 66;
    /// No relay answers, or an address cannot be bound.
    pub(super) const UNAVAILABLE: u8 = 69;
    /// Our own fault.
    pub(super) const SOFTWARE: u8 = 70;
    /// The machine does not give what is needed.
    pub(super) const OS: u8 = 71;
    /// Output cannot be written.
    pub(super) const IO: u8 = 74;
    /// Not now; later it may be done.
    pub(super) const TEMPORARY: u8 = 75;
    /// Not by this user.
    pub(super) const PERMISSION: u8 = 77;
    /// The configuration, the plan or a plugin.
    pub(super) const CONFIG: u8 = 78;
}

/// A failure that has an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Failed {
    code: u8,
    message: String,
}

impl Failed {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// SMTP relay for migrations, with sandboxed WebAssembly policies.
#[derive(Debug, Parser)]
#[command(name = "wavegate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay until SIGTERM; SIGHUP and changed files reload the configuration, SIGUSR2
    /// starts the program anew in its place.
    Run {
        /// The configuration, such as /etc/wavegate/relay.toml.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take over from the relay that runs on the same state directory, if there is one: it
        /// hands its sockets over and ends its sessions once this one could start.
        #[arg(long)]
        take_over: bool,
        /// How long that one may take to end, beyond its `limits.shutdown_timeout`.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "take_over",
              value_parser = clap::value_parser!(u32).range(1..=3600))]
        wait: u32,
    },
    /// Look at a configuration without running it.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check, estimate and announce the plan of the migration.
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Write, build, test, sign and ship plugins, and look at them.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Look at links to gateways, and at those of edges.
    #[command(subcommand)]
    Link(link::LinkCommand),
    /// Say what would happen to a message, and who decides it.
    Explain(ExplainArgs),
    /// Look at the messages that wait in a running relay, and change what becomes of them.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Look at the waves of a running relay, or of several, and give orders about them.
    #[command(subcommand)]
    Wave(wave::WaveCommand),
    /// The kill switch: nothing leaves a running relay from now on, over restarts too.
    HoldAll(queue::HoldAllArgs),
    /// Everything may leave again.
    ReleaseAll(queue::HoldAllArgs),
    /// Look at the spool on disk, or move what is in it to another host.
    #[command(subcommand)]
    Spool(spool::SpoolCommand),
    /// Make the host's rules that redirect connections to a relay, or take them away.
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Make lines for the file of users.
    #[command(subcommand)]
    Users(users::UsersCommand),
    /// Show the relay at work: three instances, a window, two upstreams, all in this process.
    Demo(DemoArgs),
    /// Man pages and completions, for packages.
    #[command(subcommand, hide = true)]
    Generate(generate::GenerateCommand),
    /// What the relay starts to compile a plugin: the component comes in, machine code goes out.
    #[command(name = policy::COMPILE_COMMAND, hide = true)]
    CompilePlugin(compile::CompileArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Find every error: in the configuration, the plan, the plugins and their settings.
    Check {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Look up the names of upstreams too. Nothing else asks the network.
        #[arg(long)]
        resolve: bool,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

/// What `explain` is asked.
#[derive(Clone, Debug, Args)]
struct ExplainArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Address that the message comes from.
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// Envelope sender; "<>" for a bounce.
    #[arg(long, value_name = "ADDRESS", value_parser = sender)]
    from: ReversePath,
    /// Recipient.
    #[arg(long, value_name = "ADDRESS", value_parser = recipient)]
    to: Address,
    /// Who the client has logged in as.
    #[arg(long, value_name = "NAME", value_parser = users::name)]
    user: Option<String>,
    /// Listener that it comes in by; by default the first.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// What the client calls itself in EHLO.
    #[arg(long, value_name = "NAME", default_value = "client.invalid")]
    helo: String,
    /// Where the client wanted to go, where the host redirects it.
    #[arg(long, value_name = "IP:PORT")]
    destination: Option<SocketAddr>,
    /// When, in RFC 3339 such as 2026-01-20T06:00:00Z; by default now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The message, for policies that look at headers.
    #[arg(value_name = "message.eml")]
    message: Option<PathBuf>,
}

/// How the demonstration runs.
#[derive(Clone, Debug, Args)]
struct DemoArgs {
    /// Leave the relay running after the report, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// How many seconds the instances send; the window is the middle third.
    #[arg(long, value_name = "SECONDS", default_value_t = 12,
          value_parser = clap::value_parser!(u32).range(6..=600))]
    duration: u32,
    /// Messages a second of each instance.
    #[arg(long, value_name = "N", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=200))]
    rate: u32,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell where this cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let outcome = dispatch(&cli.command, &mut io::stdout().lock());
    match outcome {
        Ok(code) => code.into(),
        Err(error) => report(&error).into(),
    }
}

fn dispatch(command: &Command, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        Command::Run { config, take_over, wait } => {
            run(config, take_over.then(|| Duration::from_secs((*wait).into())))
        }
        Command::Config(ConfigCommand::Check { config, resolve, json }) => {
            check::check(config, *resolve, *json, out)
        }
        Command::Plan(command) => plan::plan(command, out),
        Command::Plugin(command) => plugin::plugin(command, out),
        Command::Link(command) => link::link(command, out),
        Command::Explain(args) => explain::explain(args, out),
        Command::Demo(args) => demo::demo(args, out),
        Command::Generate(command) => generate::generate(command, Cli::command(), out),
        Command::CompilePlugin(args) => compile::compile(args, out),
        Command::Queue(command) => queue::queue(command, out),
        Command::Wave(command) => wave::wave(command, out),
        Command::HoldAll(args) => queue::hold_all(args, true, out),
        Command::ReleaseAll(args) => queue::hold_all(args, false, out),
        Command::Spool(command) => spool::spool(command, out),
        Command::Host(command) => host::host(command, out),
        Command::Users(command) => users::users(command, out),
    }
}

fn run(config: &Path, take_over: Option<Duration>) -> anyhow::Result<u8> {
    logging::start();
    process::run(config, take_over)?;
    Ok(0)
}

/// Tells what went wrong; says the exit code.
fn report(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // Whoever read our output has seen enough: that is no failure of ours.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return 0;
        }
    }
    // Without standard error only the exit code is left. What keeps the relay from starting
    // names its causes itself.
    let _ = match error.downcast_ref::<StartError>() {
        Some(error) => writeln!(io::stderr(), "wavegate: {error}"),
        None => writeln!(io::stderr(), "wavegate: {error:#}"),
    };
    exit_code(error)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(failed) = error.downcast_ref::<Failed>() {
        failed.code
    } else if let Some(start) = error.downcast_ref::<StartError>() {
        start.exit_code()
    } else if error.is::<io::Error>() {
        exit::IO
    } else {
        exit::SOFTWARE
    }
}

/// An envelope sender, with or without its brackets.
fn sender(text: &str) -> Result<ReversePath, String> {
    if text.is_empty() || text == "<>" {
        return Ok(ReversePath::Null);
    }
    recipient(text).map(ReversePath::Address)
}

fn recipient(text: &str) -> Result<Address, String> {
    let bare = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap_or(text);
    Address::parse(bare).map_err(|error| error.to_string())
}

fn time(text: &str) -> Result<Timestamp, String> {
    let wanted = "write RFC 3339 with an offset, such as 2026-01-20T06:00:00Z";
    let time: jiff::Timestamp = text.parse().map_err(|_| wanted.to_owned())?;
    u64::try_from(time.as_millisecond()).map(Timestamp).map_err(|_| "is before 1970".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_are_read() {
        assert!(matches!(
            parse("wavegate config check --config a.toml --json").unwrap(),
            Command::Config(ConfigCommand::Check { json: true, .. })
        ));
        let Command::Explain(args) = parse(
            "wavegate explain --config a.toml --client ::1 --from <> --to <b@c.example> --at \
             2026-01-20T07:00:00+01:00 m.eml",
        )
        .unwrap() else {
            panic!("not explain")
        };
        assert_eq!(args.from, ReversePath::Null);
        assert_eq!(args.to.as_str(), "b@c.example");
        assert_eq!(args.at.unwrap().to_string(), "2026-01-20T06:00:00Z");
        assert_eq!(args.message.unwrap(), Path::new("m.eml"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for line in [
            "wavegate",
            "wavegate run",
            "wavegate run --config a --wait 5",
            "wavegate run --config a --take-over --wait 0",
            "wavegate explain --config a --client 1.2.3 --from a@b.example --to c@d.example",
            "wavegate explain --config a --client 1.2.3.4 --from a@ --to c@d.example",
            "wavegate explain --config a --client 1.2.3.4 --from a@b.example --to <>",
            "wavegate explain --config a --client ::1 --from <> --to c@d.example --at noon",
            "wavegate plan",
            "wavegate plan check",
            "wavegate plan check --config a --plan b",
            "wavegate plan check --plan b --at noon",
            "wavegate plan announce --plan b",
            "wavegate plan announce --plan b --late w",
            "wavegate plan notice --plan b",
            "wavegate plan notice --plan b --lang ja w",
            "wavegate plan notice --plan b --format pdf w",
            "wavegate plan notice --plan b --again w",
            "wavegate plan notice --plan b --relay 127.0.0.1:25 w",
            "wavegate plan notice --plan b --send --relay nowhere w",
            "wavegate plan notice --plan b --send --late w",
            "wavegate plan notice --plan b --send --reason x w",
            "wavegate plan notice --plan b --send --out d w",
            "wavegate plan notice --plan b --send --format eml w",
            "wavegate plan notice --plan b --send --at 2026-01-20T06:00:00Z w",
            "wavegate plugin",
            "wavegate plugin shadow-report",
            "wavegate plugin shadow-report --config a --socket b",
            "wavegate plugin inspect",
            "wavegate plugin check",
            "wavegate plugin check a.wasm --config b",
            "wavegate plugin check a.wasm --policy b",
            "wavegate plugin check a.wasm --settings b --config c --policy d",
            "wavegate plugin check a.wasm --memory 64",
            "wavegate plugin new a",
            "wavegate plugin new A --hook freeze",
            "wavegate plugin new a --hook frieze",
            "wavegate plugin new a --hook freeze --lang lua",
            "wavegate plugin replay a.wasm",
            "wavegate plugin replay --log a",
            "wavegate plugin replay --log a --limit 0 a.wasm",
            "wavegate plugin replay --log a --max-differences 101 a.wasm",
            "wavegate demo --duration 5",
            "wavegate demo --rate 0",
            "wavegate queue list",
            "wavegate queue list --config a --socket b",
            "wavegate queue list --socket b --limit 10001",
            "wavegate queue list --socket b --state asleep",
            "wavegate queue show --socket b",
            "wavegate queue show --socket b NOT-AN-ID",
            "wavegate queue hold --socket b ALL",
            "wavegate queue hold --reason x ALL",
            "wavegate hold-all --socket b",
            "wavegate wave list",
            "wavegate wave show --socket b",
            "wavegate wave complete --socket b w1",
            "wavegate wave extend --socket b w1 --reason x",
            "wavegate wave extend --socket b w1 --reason x --by 15",
            "wavegate wave extend --socket b w1 --reason x --by 15m --until 2026-01-20T06:00:00Z",
            "wavegate wave freeze --socket b --instance i --reason x",
            "wavegate wave status --hosts a",
            "wavegate wave status --token-file t",
            "wavegate wave status --hosts a,,b --token-file t",
            "wavegate wave status --hosts ftp://a --token-file t",
            "wavegate spool export --config a",
            "wavegate plugin",
            "wavegate plugin keygen k --no-password --password-file p",
            "wavegate plugin sign f.wasm",
            "wavegate plugin verify f.wasm",
            "wavegate plugin verify f.wasm --public-key k --config a",
            "wavegate plugin install f.wasm --policy p",
            "wavegate plugin install f.wasm --socket b",
            "wavegate plugin install f.wasm --socket b --policy a/b",
            "wavegate plugin install f.wasm --socket b --policy p --skip check",
            "wavegate plugin install f.wasm --socket b --policy p --max-differences 101",
            "wavegate plugin install f.wasm --socket b --policy p --max-errors -1",
            "wavegate plugin install f.wasm --socket b --policy p --shadow-calls 0",
            "wavegate plugin install f.wasm --socket b --policy p --watch 0s",
            "wavegate plugin list",
            "wavegate plugin rollback --socket b",
            "wavegate plugin rollback a/b --socket b",
            "wavegate link",
            "wavegate link pin",
            "wavegate link ping",
            "wavegate link status",
            "wavegate users hash",
            "wavegate users hash a:b",
            "wavegate spool verify",
            "wavegate host rules",
            "wavegate host rules --apply",
            "wavegate host rules --config a --apply --remove",
            "wavegate host rules --config a --user x;y",
            "wavegate explain --config a --client ::1 --from <> --to c@d.example --destination ::1",
        ] {
            assert!(parse(line).unwrap_err().use_stderr(), "{line}");
        }
    }

    #[test]
    fn failures_have_their_exit_codes() {
        let of = |error: anyhow::Error| exit_code(&error);
        assert_eq!(of(Failed::new(exit::NO_INPUT, "x").into()), 66);
        assert_eq!(of(io::Error::other("x").into()), 74);
        assert_eq!(of(anyhow::anyhow!("x")), 70);
    }
}
