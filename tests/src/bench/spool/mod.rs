//! A spool with many messages: how fast the relay starts over it, what it costs in memory, and how
//! fast it lets out what a window has held.
//!
//! Owns the order of the measurements and their aims. The messages are `fill`'s; what the upstream
//! saw, and when, is `arrivals`'. Floor: none.

mod arrivals;
mod fill;

use std::fs;
use std::io::{self, Write as _};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::cpu;
use super::peer::Places;
use super::process::{Folder, is_on_disk};
use super::relay::{Fill, Relay, clear_spool, spool_of};
use super::table::{at_least, at_most};
use crate::load::{self, LoadOptions};
use crate::sink::{Sink, SinkHandle, SinkOptions};
use arrivals::Arrivals;

/// From the start of the relay to its greeting, with a cold disk cache, in seconds.
const START: f64 = 5.0;
/// Resident memory of a message, in bytes.
const MEMORY: f64 = 200.0;
/// What a release keeps of the rate at which the upstream takes mail in queued mode.
const RELEASE: f64 = 0.9;
/// How far a paced release may be off in any second.
const PACE: f64 = 0.05;

/// Start-up work is over by then, when memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// How long one step may take.
const STEP: Duration = Duration::from_secs(1200);
/// How long the windows are that are not closed, in seconds; a plan takes up to a day.
const WINDOW: u64 = 80_000;
/// Bytes of disk that a message may take, envelope, journal and all, beside its body.
const OVERHEAD: u64 = 1500;
/// Bytes of disk that are left alone; the relay itself keeps half of it.
const SPARE: u64 = 2 << 30;
/// What a ramp lets out, in percent of its whole rate: it begins with a tenth.
const RAMP_PERCENT: u64 = 55;

const AT_ONCE: (&str, &str) = ("acme-at-once", "at-once.acme.example");
const PACED: (&str, &str) = ("acme-paced", "paced.acme.example");
const KEPT: (&str, &str) = ("acme-kept", "kept.acme.example");

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct SpoolOptions {
    /// Messages in the spool
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..=4_000_000))]
    pub messages: u64,
    /// Of these, so many are released at once
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    pub release: u64,
    /// Messages a second of the release with a pace (spool.release_rate)
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub rate: u64,
    /// Seconds until it has that pace (spool.release_ramp)
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub ramp: u64,
    /// Seconds of it that are measured after that
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Bytes of a message
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(160..=100_000))]
    pub size: u64,
    /// Milliseconds before the upstream's final reply
    #[arg(long, default_value_t = 0)]
    pub delay: u64,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 3000)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

impl SpoolOptions {
    fn paced(&self) -> u64 {
        let ramp = self.rate * self.ramp * RAMP_PERCENT / 100;
        // Two seconds more than are looked at, because the last one is not a whole one.
        ramp + self.rate * (self.seconds + 2)
    }
}

/// Measures and prints.
pub fn run(options: &SpoolOptions) -> anyhow::Result<()> {
    let kept = options.messages.checked_sub(options.release + options.paced());
    let kept = kept.filter(|kept| *kept > 0).with_context(|| {
        let least = options.release + options.paced() + 1;
        format!("{} messages are not enough for the releases: {least} are", options.messages)
    })?;
    let state = Folder::new()?;
    is_on_disk(state.path())?;
    has_room(&state, options)?;
    let sink = Sink::start(SinkOptions {
        reply_delay: Duration::from_millis(options.delay),
        ..SinkOptions::default()
    })?;
    let mut bench =
        Bench { options, state, sink, opens: now()?.saturating_sub(60), out: String::new() };
    bench.row(&format!(
        "| {} messages of {} bytes | |\n| --- | ---: |",
        options.messages, options.size
    ))?;
    let empty = bench.empty()?;
    let taken = bench.queued()?;
    bench.take_templates()?;
    bench.fill(kept)?;
    let (start, memory) = bench.full(empty)?;
    bench.out.push_str(&at_most("seconds to start", start, START));
    bench.out.push_str(&at_most("bytes of memory a message", memory, MEMORY));
    bench.releases(taken)?;
    Ok(write!(io::stdout(), "\n{}", bench.out)?)
}

struct Bench<'a> {
    options: &'a SpoolOptions,
    state: Folder,
    sink: SinkHandle,
    /// When the windows have opened, in seconds since 1970.
    opens: u64,
    /// The lines about the aims.
    out: String,
}

impl Bench<'_> {
    fn row(&self, line: &str) -> anyhow::Result<()> {
        Ok(writeln!(io::stdout(), "{line}")?)
    }

    /// Start and memory without any message. The first start compiles the policies.
    fn empty(&self) -> anyhow::Result<u64> {
        self.start(Windows::Open, 0)?.stop()?;
        clear_spool(self.state.path())?;
        let relay = self.start(Windows::Open, 0)?;
        std::thread::sleep(SETTLE);
        let memory = cpu::resident(relay.process.id())?;
        self.row(&format!("| start, empty | {:.2} s |", relay.took.as_secs_f64()))?;
        self.row(&format!("| memory, empty | {:.1} MB |", memory as f64 / 1e6))?;
        relay.stop()?;
        Ok(memory)
    }

    /// What the upstream takes a second from an empty relay in queued mode.
    fn queued(&self) -> anyhow::Result<f64> {
        clear_spool(self.state.path())?;
        let relay = self.start(Windows::Closed, 0)?;
        self.send(&relay, AT_ONCE, self.options.release / 20 + 50, 50)?;
        relay.drain(STEP)?;
        let before = cpu::tree_time(relay.process.id())?;
        let arrivals = Arrivals::begin(&self.sink);
        let rate = std::thread::scope(|scope| {
            let sending = scope.spawn(|| self.send(&relay, AT_ONCE, self.options.release, 50));
            let seen = arrivals.until(self.options.release, STEP);
            sending.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
            anyhow::Ok(seen?.rate())
        })?;
        relay.drain(STEP)?;
        let spent = cpu::tree_time(relay.process.id())?.saturating_sub(before);
        let each = spent.as_secs_f64() * 1e6 / self.options.release as f64;
        self.row(&format!("| queued mode, to the upstream | {rate:.0}/s, {each:.0} us each |"))?;
        relay.stop()?;
        Ok(rate)
    }

    /// One message of each instance, which the relay holds, for copies to be made of.
    fn take_templates(&self) -> anyhow::Result<()> {
        clear_spool(self.state.path())?;
        let relay = self.start(Windows::Open, 0)?;
        for instance in [AT_ONCE, PACED, KEPT] {
            self.send(&relay, instance, 1, 1)?;
        }
        relay.wait("three messages on hold", STEP, |figures| Ok(figures.held()? == 3.0))?;
        relay.stop()
    }

    fn fill(&self, kept: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        let wanted =
            [(AT_ONCE.0, self.options.release), (PACED.0, self.options.paced()), (KEPT.0, kept)];
        fill::fill(&spool_of(self.state.path()), &wanted)?;
        writeln!(io::stderr(), "filled in {:.1} s", begun.elapsed().as_secs_f64())?;
        Ok(())
    }

    /// Start and memory with all of it, held by an operator: nothing else is done meanwhile.
    fn full(&self, empty: u64) -> anyhow::Result<(f64, f64)> {
        fill::cool(&spool_of(self.state.path()))?;
        let relay = self.start(Windows::Open, 0)?;
        let cold = relay.took.as_secs_f64();
        let spooled = relay.figures()?.spooled()?;
        anyhow::ensure!(spooled == self.options.messages as f64, "{spooled} messages in the spool");
        std::thread::sleep(SETTLE);
        let memory = cpu::resident(relay.process.id())?.saturating_sub(empty);
        let each = memory as f64 / self.options.messages as f64;
        relay.stop()?;
        let relay = self.start(Windows::Open, 0)?;
        let warm = relay.took.as_secs_f64();
        relay.stop()?;
        self.row(&format!("| start, files not in memory | {cold:.2} s |"))?;
        self.row(&format!("| start, files in memory | {warm:.2} s |"))?;
        self.row(&format!("| memory beyond the empty relay's | {:.1} MB |", memory as f64 / 1e6))?;
        self.row(&format!("| memory a message | {each:.0} bytes |"))?;
        Ok((cold, each))
    }

    /// The releases: windows close one after the other.
    fn releases(&mut self, taken: f64) -> anyhow::Result<()> {
        fill::let_go(&spool_of(self.state.path()))?;
        let begun = Instant::now();
        let relay = self.start(Windows::Open, 0)?;
        let all = self.options.messages as f64;
        relay.wait("all on hold again", STEP, |figures| Ok(figures.held()? == all))?;
        let took = begun.elapsed().as_secs_f64();
        self.row(&format!("| start, to all asked again and on hold | {took:.1} s |"))?;
        self.release_at_once(&relay, taken)?;
        self.release_paced(&relay)?;
        relay.stop()
    }

    fn release_at_once(&mut self, relay: &Relay, taken: f64) -> anyhow::Result<()> {
        let before = cpu::tree_time(relay.process.id())?;
        let arrivals = Arrivals::begin(&self.sink);
        self.complete(AT_ONCE.0)?;
        let rate = arrivals.until(self.options.release, STEP)?.rate();
        let spent = cpu::tree_time(relay.process.id())?.saturating_sub(before);
        let each = spent.as_secs_f64() * 1e6 / self.options.release as f64;
        let released = self.options.release;
        self.row(&format!("| release of {released} | {rate:.0}/s, {each:.0} us each |"))?;
        let line = at_least("release at once to queued mode's rate", rate / taken, RELEASE);
        self.out.push_str(&line);
        Ok(())
    }

    fn release_paced(&mut self, relay: &Relay) -> anyhow::Result<()> {
        let SpoolOptions { rate, ramp, seconds, .. } = *self.options;
        self.settings(relay, rate)?;
        let arrivals = Arrivals::begin(&self.sink);
        self.complete(PACED.0)?;
        let seen = arrivals.until(self.options.paced(), STEP)?;
        let counts = seen.by_second(ramp, seconds);
        let off = |count: &u64| (*count as f64 / rate as f64 - 1.0).abs();
        let worst = counts.iter().map(off).fold(0.0, f64::max);
        let (least, most) = (counts.iter().min(), counts.iter().max());
        let (least, most) = (least.context("no second")?, most.context("no second")?);
        self.row(&format!(
            "| release at {rate}/s, by second after the ramp | {least} to {most} |"
        ))?;
        self.out.push_str(&at_most("release with a pace, worst second off by", worst, PACE));
        Ok(())
    }
}

/// Which windows are open.
#[derive(Clone, Copy)]
enum Windows {
    Open,
    Closed,
}

impl Bench<'_> {
    fn start(&self, windows: Windows, rate: u64) -> anyhow::Result<Relay> {
        let places = &self.options.places;
        let mut fill = self.filled(windows, rate)?;
        let files = ("spool.toml", "spool-waves.toml");
        Relay::start(places, self.state.path(), self.sink.addr(), &mut fill, files)
    }

    fn filled(&self, windows: Windows, rate: u64) -> anyhow::Result<Fill<'_>> {
        let closes = match windows {
            Windows::Open => self.opens + WINDOW,
            Windows::Closed => self.opens + 1,
        };
        let mut fill = Fill::new(&self.options.places.configs);
        fill.set("RATE", rate).set("RAMP", self.options.ramp);
        fill.set("OPENS", rfc3339(self.opens)).set("CLOSES", rfc3339(closes));
        Ok(fill)
    }

    /// Completes the wave of an instance, as an operator does when its upgrade is done.
    fn complete(&self, instance: &str) -> anyhow::Result<()> {
        let wave = instance.strip_prefix("acme-").unwrap_or(instance);
        let output = Command::new(&self.options.places.wavegate)
            .args(["wave", "complete", wave, "--reason", "measured", "--config"])
            .arg(self.state.path().join("relay.toml"))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "wave complete {wave}: {said}");
        Ok(())
    }

    /// Has the relay take another release rate, and waits until it has.
    fn settings(&self, relay: &Relay, rate: u64) -> anyhow::Result<()> {
        let generation = relay.figures()?.sum("wavegate_generation", None)?;
        let path = self.state.path().join("relay.toml");
        let text = fs::read_to_string(&path)?;
        let text = text.replace("release_rate = 0", &format!("release_rate = {rate}"));
        let beside = self.state.path().join("relay.new");
        fs::write(&beside, text)?;
        fs::rename(beside, path)?;
        relay.wait("a new generation", STEP, |figures| {
            Ok(figures.sum("wavegate_generation", None)? > generation)
        })
    }

    fn send(
        &self,
        relay: &Relay,
        (_, domain): (&str, &str),
        messages: u64,
        sessions: usize,
    ) -> anyhow::Result<()> {
        let report = load::run(&LoadOptions {
            sessions,
            body_size: usize::try_from(self.options.size)?,
            pipelining: true,
            sender_domain: domain.into(),
            time_limit: STEP,
            ..LoadOptions::new(relay.addr, messages)
        })?;
        anyhow::ensure!(report.is_clean(), "{}", report.to_string().trim().replace('\n', "; "));
        Ok(())
    }
}

/// Whether there is room on the disk for it all.
fn has_room(folder: &Folder, options: &SpoolOptions) -> anyhow::Result<()> {
    let stat = nix::sys::statvfs::statvfs(folder.path())?;
    let free = stat.blocks_available() * stat.fragment_size();
    let needed = SPARE + (options.messages + options.release) * (OVERHEAD + 2 * options.size);
    anyhow::ensure!(
        free >= needed,
        "{} has {} MB free, {} are needed: have TMPDIR name another folder",
        folder.path().display(),
        free >> 20,
        needed >> 20
    );
    Ok(())
}

/// Seconds since 1970.
fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// A time in UTC as a plan has it.
fn rfc3339(time: u64) -> String {
    // Days in the proleptic Gregorian calendar, in years that begin with March.
    let (day, second) = (time / 86_400 + 719_468, time % 86_400);
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(rfc3339(1_768_888_800), "2026-01-20T06:00:00Z");
    }
}
