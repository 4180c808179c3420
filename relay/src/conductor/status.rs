//! What is told of waves: to operators, to the page, to monitors and to other hosts. Stable as
//! JSON: fields may be added. Times are RFC 3339 in UTC.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::links::LinkRow;

/// One host's view of the whole migration at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The host's name (`relay.hostname`).
    pub host: String,
    /// The relay's version.
    pub version: String,
    /// The moment.
    pub now: String,
    /// The plan in force.
    pub plan: PlanStatus,
    /// The wall clock and the boot clock do not agree: nothing is released until they do, or an
    /// operator says so.
    pub clock_suspect: bool,
    /// Why nothing at all may leave (`hold-all`).
    pub held_all: Option<String>,
    /// Number of the generation in force.
    pub generation: u64,
    /// All waves by time, frozen instances that no plan names included.
    pub waves: Vec<WaveStatus>,
    /// All upstreams by name.
    pub upstreams: Vec<UpstreamStatus>,
    /// All links, in rows.
    #[serde(default)]
    pub links: Vec<LinkRow>,
    /// What somebody should look at now.
    pub alerts: Vec<Alert>,
}

/// Which plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    /// Tells plans apart: the same on every host that has the same plan and lock.
    pub digest: String,
    /// Its file, where there is one.
    pub file: Option<String>,
    /// The program's name, where it has one.
    pub program: Option<String>,
}

/// One wave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaveStatus {
    /// Its id.
    pub id: String,
    /// Its environment; empty for a freeze without a plan.
    pub environment: String,
    /// Its phase, as the plan's words have it.
    pub phase: String,
    /// The window as it is now, extensions included.
    pub opens: String,
    /// First moment after it.
    pub closes: String,
    /// What the plan says.
    pub planned_closes: String,
    /// Milliseconds by which it was extended.
    pub extended_ms: u64,
    /// When it was announced.
    pub announced_at: Option<String>,
    /// What ends it: `at-close` or `on-complete`.
    pub release: String,
    /// When freezing began.
    pub frozen_at: Option<String>,
    /// When nothing was in flight any more.
    pub barrier_at: Option<String>,
    /// What keeps it from the barrier.
    pub blocked: Vec<Stuck>,
    /// The last probe of each target of the upstream that it goes to.
    pub probes: Vec<ProbeStatus>,
    /// When its mail began to be let out.
    pub released_at: Option<String>,
    /// When it was over: drained, or rolled back.
    pub ended_at: Option<String>,
    /// What waits for it.
    pub held: Held,
    /// How far the release has come.
    pub drain: Option<Drain>,
    /// Messages that left in its window. Always 0.
    pub leaked: u64,
    /// Its instances.
    pub instances: Vec<InstanceStatus>,
}

/// An instance with something in flight although it is frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// Its name.
    pub instance: String,
    /// Attempts that have not written their end of data.
    pub uncommitted: u32,
    /// Attempts that wait for the reply to it.
    pub in_doubt: u32,
}

/// What a probe of one target found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// The instance on whose behalf it was probed.
    pub instance: String,
    /// The upstream.
    pub upstream: String,
    /// The target's address.
    pub target: String,
    /// Whether it would take the instance's mail.
    pub ok: bool,
    /// Why not: the stage and what was said.
    pub error: Option<String>,
    /// When.
    pub at: String,
}

/// Messages that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest came.
    pub oldest: Option<String>,
}

/// A release under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// Messages that were held when it began.
    pub total: u64,
    /// Messages of these that are still here.
    pub left: u64,
    /// Messages a second over the last ten seconds.
    pub rate: f64,
    /// When it will be done at this rate.
    pub ends: Option<String>,
}

/// One instance of a wave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: String,
    /// What waits.
    pub held: Held,
}

/// One upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Targets in all.
    pub targets: usize,
    /// Targets that are not ejected.
    pub healthy: usize,
    /// Connections in use.
    pub in_use: usize,
    /// Attempts that wait for one.
    pub waiting: usize,
    /// Messages that it answered, whatever it said, since the relay knows it; two of these are a rate.
    #[serde(default)]
    pub answered: u64,
    /// The last error of a target that is ejected.
    pub last_error: Option<String>,
}

/// Something that somebody should look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Since when.
    pub since: String,
    /// Of which wave.
    pub wave: Option<String>,
    /// What, and the remedy.
    pub text: String,
}

/// Where a status comes from, for those who only show it.
pub type Source = Arc<dyn Fn() -> Status + Send + Sync>;
