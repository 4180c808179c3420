//! Over a wide area network: the link next to SMTP over TLS, from the relay and from Postfix.
//!
//! Owns what is measured in which order, and the tables. The network is `crate::wan`'s, hand-overs
//! are `way`'s. Needs root. Floor: none. Start reading at [`run`].

mod cost;
mod flood;
mod outage;
mod path;
mod way;

use std::{io::Write as _, time::Duration};

pub use way::Way;

use super::{
    peer::Places,
    table::{at_least, at_most},
};
use crate::wan::{Conditions, Wan};

/// Messages a second of the link to those of ten SMTP connections, without loss.
const TO_TEN: f64 = 10.0;
/// The same to those of a hundred, with loss.
const TO_HUNDRED: f64 = 1.0;
/// Round trips of a message that waits for nothing.
const ROUND_TRIPS: f64 = 1.3;
/// Seconds after an outage until the rate is what it was before.
const BACK: f64 = 3.0;
/// Clients of Postfix.
const QUEUE_CLIENTS: usize = 40;
/// Round trips of Postfix a message: the envelope, the content, and RSET when a connection is used
/// again.
const POSTFIX_TRIPS: u64 = 3;
/// Processor time of the edge by the link to that by SMTP over TLS.
const COST: f64 = 2.0;

/// What to measure.
///
/// Hand-over is direct: a client hears its 250 when the far server has given it, so what a way can
/// carry shows only with clients enough. There are --sessions of them for the link; for SMTP four for
/// each connection, which keeps all of them busy and nothing else. The far server speaks TLS with who
/// speaks SMTP over the network, and offers PIPELINING and CHUNKING, so that the relay needs one round
/// trip a message on a connection (Postfix has no BDAT: three); by the link it stands behind the
/// gateway. Connections are warm: a first load, which is not measured, opens them. Postfix queues: its
/// rate is from the first message to the last one's arrival, and no time of a message is known.
#[derive(Clone, Debug, clap::Args)]
pub struct WanOptions {
    /// What to measure: the emulator itself, rates and times, an outage, processor time on loopback
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Emulator, Part::Path, Part::Outage, Part::Cost])]
    pub parts: Vec<Part>,
    /// Ways to hand over
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Way::Link, Way::Smtp1, Way::Smtp10, Way::Smtp100, Way::Postfix1, Way::Postfix10, Way::Postfix100])]
    pub rows: Vec<Way>,
    /// Milliseconds of a round trip
    #[arg(long, default_value_t = 80)]
    pub rtt: u64,
    /// Percent of packets that are lost, each measured by itself
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.0])]
    pub loss: Vec<f64>,
    /// Milliseconds that a packet takes more or less
    #[arg(long, default_value_t = 0)]
    pub jitter: u64,
    /// Mbit/s in each direction; without it, what this machine carries
    #[arg(long)]
    pub rate: Option<u64>,
    /// Bytes that may wait before the rate
    #[arg(long, default_value_t = 1 << 20)]
    pub queue: usize,
    /// Percent of packets that come 5 ms late
    #[arg(long, default_value_t = 0.0)]
    pub reorder: f64,
    /// Who says how fast bytes may go by the link, in both directions: bbr or cubic
    #[arg(long, default_value = "bbr")]
    pub congestion: String,
    /// Connections of the link, for each worker of the edge
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Congestion control of TCP (default: this machine's)
    #[arg(long)]
    pub tcp: Option<String>,
    /// Clients at a time, for the link
    #[arg(long, default_value_t = 400)]
    pub sessions: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 10 * 1024)]
    pub size: usize,
    /// Seconds that a run without loss should take, with one round trip a message (Postfix: three)
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// The far server does not offer CHUNKING
    #[arg(long)]
    pub no_chunking: bool,
    /// Seconds of the outage
    #[arg(long, default_value_t = 30)]
    pub outage: u64,
    /// Messages of a run on loopback
    #[arg(long, default_value_t = 8000)]
    pub messages: u64,
    /// What chance begins from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Everything ends after so many seconds
    #[arg(long, default_value_t = 900)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// What the emulator can carry.
    Emulator,
    /// Rates and times over the network.
    Path,
    /// The network is cut for a while under load.
    Outage,
    /// Processor time of the edge on loopback.
    Cost,
}

impl WanOptions {
    /// The path, with so many percent of packets lost.
    fn conditions(&self, loss: f64) -> Conditions {
        Conditions {
            jitter: Duration::from_millis(self.jitter),
            loss: loss / 100.0,
            rate: self.rate.map(|rate| rate * 1_000_000),
            queue: self.queue,
            reorder: self.reorder / 100.0,
            ..Conditions::round_trip(Duration::from_millis(self.rtt))
        }
    }

    /// The network.
    fn network(&self) -> anyhow::Result<Wan> {
        let wan = Wan::make(self.conditions(0.0), self.seed)?;
        self.tcp.iter().try_for_each(|tcp| wan.set_tcp(tcp))?;
        Ok(wan)
    }

    /// Clients of a way.
    fn clients(&self, way: Way) -> usize {
        match way.connections() {
            // Enough to fill its queue faster than it empties.
            Some(_) if way.queues() => QUEUE_CLIENTS,
            Some(connections) => self.sessions.min(4 * connections),
            None => self.sessions,
        }
    }

    /// Messages of a run: what its round trips a message make of the time that it should take.
    fn count(&self, way: Way) -> u64 {
        let at_once = way.connections().unwrap_or(self.sessions) as u64;
        let trips = if way.queues() { POSTFIX_TRIPS } else { 1 };
        (at_once * self.seconds * 1000 / self.rtt.max(1) / trips).clamp(20, 200_000)
    }
}

/// Measures and prints; whether everything could be measured.
pub fn run(options: &WanOptions) -> anyhow::Result<bool> {
    let mut good = true;
    for part in &options.parts {
        let (text, whole) = match part {
            Part::Emulator => flood::run(options)?,
            Part::Path => path::run(options)?,
            Part::Outage => outage::run(options)?,
            Part::Cost => cost::run(options)?,
        };
        writeln!(std::io::stdout(), "{text}")?;
        good &= whole;
    }
    Ok(good)
}

/// What one run showed, or why there is nothing to show.
fn tell(what: &str, done: &anyhow::Result<String>) -> anyhow::Result<()> {
    let mut out = std::io::stderr();
    match done {
        Ok(text) => writeln!(out, "{what}: {text}")?,
        Err(error) => writeln!(out, "{what}: error: {error:#}")?,
    }
    Ok(())
}
