//! What operators order of waves, and why it is refused.

use serde::{Deserialize, Serialize};

use super::status::WaveStatus;
use crate::plan::Timestamp;

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Command {
    /// Freezes an instance now, without a plan, for so many milliseconds.
    Freeze {
        /// The instance.
        instance: String,
        /// For how long.
        for_ms: u64,
    },
    /// The window closes later: at this time (milliseconds since 1970).
    Extend {
        /// The wave.
        wave: String,
        /// The new end.
        until: Timestamp,
    },
    /// The upgrade is done: the mail goes to the new infrastructure now.
    Complete {
        /// The wave.
        wave: String,
        /// Although its targets were not found well.
        unchecked: bool,
    },
    /// The upgrade is given up: the mail goes where it went before.
    RollBack {
        /// The wave.
        wave: String,
    },
    /// The clocks do not agree, and it is right all the same to let the mail out.
    Release {
        /// The wave.
        wave: String,
    },
}

/// An order with who gives it and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    #[serde(flatten)]
    pub command: Command,
    /// Why; not empty.
    pub reason: String,
    /// Who: a login name, or the address of an API client.
    pub by: String,
    /// Only says what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an order did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Obeyed {
    /// Whether anything changed: false where it was so already, and in a dry run.
    pub changed: bool,
    /// In a sentence.
    pub what: String,
    /// The wave afterwards.
    pub wave: WaveStatus,
}

/// Why an order is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such wave.
    #[error("there is no wave {0:?}")]
    NoWave(String),
    /// No such instance.
    #[error("the plan has no instance {0:?}")]
    NoInstance(String),
    /// It makes no sense in this phase.
    #[error("wave {wave} is {phase}: {why}")]
    NotNow {
        /// The wave.
        wave: String,
        /// Its phase.
        phase: String,
        /// Why not, and what would be possible.
        why: String,
    },
    /// What is ordered is not well formed.
    #[error("{0}")]
    Invalid(String),
    /// It could not be made durable, so it is not so.
    #[error("it cannot be written down, so nothing was changed: {0}")]
    Spool(String),
}
