//! `wavegate demo`: the relay at work in one process, with everything that it needs. Floor 4.
//!
//! The relay is the real one, started from a configuration file, spoken to over loopback
//! sockets. Only its surroundings are played: two sinks for the legacy and the cloud
//! infrastructure, and three instances that send. What the window holds is in the relay's spool.

mod report;
mod sender;
mod setup;
mod sink;
mod view;

use std::{
    io::{self, IsTerminal, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::{
    report::{Report, Sink},
    sender::Sender,
    setup::{INSTANCES, Site},
    view::View,
};
use super::DemoArgs;
use crate::{
    process::Running,
    queue::Queue,
    waves::Waves,
    world::{WallClock, World},
};

/// How long everything may take to arrive when the last message is made.
const DRAIN: Duration = Duration::from_secs(10);
/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Runs the demonstration. The exit code says whether the report adds up.
pub(super) fn demo(args: &DemoArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bind = || runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let (legacy, cloud) = (bind()?, bind()?);
    let world = World::real();
    let clock = Arc::clone(&world.clock);
    writeln!(out, "Starting the relay: its three policies are compiled first.")?;
    out.flush()?;
    let site = Site::new(legacy.local_addr()?, cloud.local_addr()?, clock.now())
        .context("the files of the demonstration")?;
    let running = Running::start(&site.config(), world)?;
    // The window is announced to the running relay, as a migration lead would do it.
    let window = setup::window(clock.now(), args.duration);
    site.announce(window).context("the plan of the demonstration")?;
    running.reload().map_err(|why| anyhow!("the relay refused the plan: {why}"))?;
    let ledger = setup::ledger(window, clock.now());
    let stage = Stage {
        args,
        relay: running.listener_address("listener-1").context("the relay does not listen")?,
        admin: running.admin_address(),
        waves: &running.relay().waves,
        queue: &running.relay().queue,
        clock: &clock,
        ledger: &ledger,
    };
    let code = runtime.block_on(async {
        let mut sinks = JoinSet::new();
        for (listener, sink) in [(legacy, Sink::Legacy), (cloud, Sink::Cloud)] {
            sinks.spawn(sink::serve(listener, sink, Arc::clone(&ledger), Arc::clone(&clock)));
        }
        let code = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
            code = stage.play(out) => code?,
        };
        if args.keep {
            stage.keep(out).await?;
        }
        io::Result::Ok(code)
    });
    running.stop();
    Ok(code?)
}

/// What the play needs.
struct Stage<'a> {
    args: &'a DemoArgs,
    relay: SocketAddr,
    admin: Option<SocketAddr>,
    waves: &'a Waves,
    queue: &'a Queue,
    clock: &'a Arc<dyn WallClock>,
    ledger: &'a Arc<report::Ledger>,
}

impl Stage<'_> {
    async fn play(&self, out: &mut dyn Write) -> io::Result<u8> {
        self.print_addresses(out)?;
        let begin = Instant::now();
        let until = begin + Duration::from_secs(self.args.duration.into());
        let mut senders = JoinSet::new();
        for (index, instance) in INSTANCES.iter().enumerate() {
            let sender = Sender {
                index,
                instance,
                relay: self.relay,
                pause: Duration::from_secs(1) / self.args.rate,
                until,
                give_up: until + DRAIN,
                ledger: Arc::clone(self.ledger),
            };
            senders.spawn(sender.run());
        }
        self.watch(senders, begin, until + DRAIN, out).await?;
        let report = Report::of(&self.ledger.accounts());
        report.print(out)?;
        out.flush()?;
        Ok(u8::from(!report.adds_up()))
    }

    /// Goes on until Ctrl-C.
    async fn keep(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\nThe relay and both sinks go on; Ctrl-C ends them.")?;
        self.print_addresses(out)?;
        out.flush()?;
        tokio::signal::ctrl_c().await
    }

    fn print_addresses(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "SMTP on {}", self.relay)?;
        if let Some(admin) = self.admin {
            write!(out, ", metrics at http://{admin}/metrics")?;
        }
        writeln!(out)
    }

    /// Draws until all senders are done and the spool is empty, at most until `patience`.
    async fn watch(
        &self,
        mut senders: JoinSet<()>,
        begin: Instant,
        patience: Instant,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut view = View::new(io::stdout().is_terminal());
        let mut next = begin;
        loop {
            let drawn = |view: &mut View, out: &mut dyn Write| {
                self.book_spool();
                let (now, accounts) = (self.clock.now(), self.ledger.accounts());
                view.draw(out, begin.elapsed(), now, &self.waves.status(), &accounts)
            };
            tokio::select! {
                biased;
                Some(_) = senders.join_next() => {}
                () = sleep_until(next) => {
                    drawn(&mut view, out)?;
                    let done = senders.is_empty() && self.queue.is_empty();
                    if done || Instant::now() >= patience {
                        return Ok(());
                    }
                    next += view.pause();
                }
            }
        }
    }

    /// Books how much of each instance is in the spool.
    fn book_spool(&self) {
        let snapshot = self.queue.snapshot();
        for (index, instance) in INSTANCES.iter().enumerate() {
            let named = |name: &Option<Arc<str>>| name.as_deref() == Some(instance.name);
            let figures = snapshot.instances.iter().find(|(name, ..)| named(name));
            let waiting = figures.map_or(0, |(_, _, figures)| figures.all().messages);
            self.ledger.book(index, |account| account.waiting = waiting);
        }
    }
}
