//! The rounds: every workload with every peer, in turn, several times.
//!
//! Owns order and collection; the table is `table`'s. Floor: none.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use serde::Serialize;

pub use super::peer::{Peer, Places};
use super::process::Folder;
use super::table;
use super::workload::measure;
pub use super::workload::{Measure, Workload};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct RunOptions {
    /// Peers to measure; HAProxy and none are what the others are compared with
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Peer::None, Peer::Haproxy, Peer::Postfix, Peer::Exim, Peer::Opensmtpd, Peer::Wavegate, Peer::WavegateQueued])]
    pub rows: Vec<Peer>,
    /// Workloads to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Workload::SourceMany, Workload::SourceOne, Workload::PlainMany, Workload::PlainOne, Workload::Pipelining, Workload::Bdat, Workload::Mixed])]
    pub workloads: Vec<Workload>,
    /// Rounds; in each, every peer runs once per workload
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Messages of a run (half of it with one a session)
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub messages: u64,
    /// Messages of a run of Postfix, Exim and OpenSMTPD, which are slower by far
    #[arg(long, alias = "postfix-messages", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub slow_messages: u64,
    /// Sessions at a time
    #[arg(long, default_value_t = 20)]
    pub sessions: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 10 * 1024)]
    pub size: usize,
    /// Also write everything that was measured to this file, as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Everything ends after so many seconds, whatever is still to do
    #[arg(long, default_value_t = 1800)]
    pub time_limit: u64,
    /// Where the configurations and programs are
    #[command(flatten)]
    pub places: Places,
}

impl RunOptions {
    pub(super) fn count(&self, peer: Peer, one_a_session: bool) -> u64 {
        let all = if peer.is_slow() { self.slow_messages } else { self.messages };
        if one_a_session { all.div_ceil(2) } else { all }
    }
}

/// The runs of one workload and peer, by round; `None` where that run failed.
#[derive(Debug, Default, Serialize)]
pub(super) struct Runs {
    pub(super) measures: Vec<Option<Measure>>,
    pub(super) error: Option<String>,
}

pub(super) type Results = BTreeMap<(Workload, Peer), Runs>;

/// Runs everything, prints the table; whether every row could be measured.
pub fn run(options: &RunOptions) -> anyhow::Result<bool> {
    let places = &options.places;
    let state = Folder::new()?;
    let mut results = Results::new();
    for round in 1..=options.rounds {
        for &workload in &options.workloads {
            for &peer in options.rows.iter().filter(|peer| peer.offers(workload)) {
                let runs = results.entry((workload, peer)).or_default();
                // What failed once is not tried in every round: its row is an error already.
                if runs.error.is_some() {
                    runs.measures.push(None);
                    continue;
                }
                let what = format!("round {round}: {}, {}", workload.label(), peer.label());
                match measure(workload, peer, options, places, state.path()) {
                    Ok(measure) => {
                        writeln!(std::io::stderr(), "{what}: {:.0}/s", measure.rate)?;
                        runs.measures.push(Some(measure));
                    }
                    Err(error) => {
                        writeln!(std::io::stderr(), "{what}: error: {error:#}")?;
                        runs.error = Some(format!("{error:#}"));
                        runs.measures.push(None);
                    }
                }
            }
        }
    }
    let table = table::build(&results);
    let mut text = table::markdown(&table, options);
    text.push_str(&table::aims(&table));
    std::io::stdout().write_all(text.as_bytes())?;
    if let Some(path) = &options.json {
        let runs: Vec<_> = results
            .iter()
            .map(|((workload, peer), runs)| {
                serde_json::json!({"workload": workload, "peer": peer, "runs": runs.measures, "error": runs.error})
            })
            .collect();
        let all = serde_json::json!({"rounds": options.rounds, "rows": table, "runs": runs});
        std::fs::write(path, serde_json::to_vec_pretty(&all)?)?;
    }
    Ok(results.values().all(|runs| runs.error.is_none()))
}
