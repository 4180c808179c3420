//! What the gate answers. Floor 3.
//!
//! The answer to a new message that goes by the spool is kept for its first attempt, which
//! mostly comes within a millisecond: what a direct hand-off does too.

use std::sync::Arc;

use wavegate_smtp::Reply;

use crate::{
    limits::Charge,
    plan::{Phase, Timestamp},
    upstream::Upstream,
    waves::{InstanceState, PlanState},
};

/// What the gate says, and of whom.
pub struct Answer {
    /// The instance that the message belongs to.
    pub instance: Option<Arc<InstanceState>>,
    /// What to do.
    pub verdict: Verdict,
}

/// What to do with a message.
#[derive(Debug)]
pub enum Verdict {
    /// Hand it off now: the shares of its recipients, each of which has one upstream. Mostly one.
    Go(Vec<Go>),
    /// Not before `until`, or, without one, before something changes.
    Hold {
        /// When to ask again.
        until: Option<Timestamp>,
        /// Why.
        reason: String,
    },
    /// It stays with the sender: a 4xx.
    Defer(Reply),
    /// A 5xx.
    Refuse(Reply),
}

/// Who goes where and how fast.
#[derive(Clone, Debug)]
pub struct Go {
    /// Indexes into the recipients that the gate was asked about.
    pub recipients: Vec<u32>,
    /// Where to.
    pub upstream: Arc<Upstream>,
    /// The limits to take, by policy.
    pub charges: Vec<Charge>,
}

/// An answer that may still be good.
#[derive(Clone)]
pub struct Kept {
    /// Of which generation.
    pub generation: u64,
    /// Under which plan.
    pub plan: Arc<PlanState>,
    /// When.
    pub at: Timestamp,
    /// The instance that the message belongs to, and its phase then.
    pub instance: Option<(Arc<InstanceState>, Phase)>,
    /// Who goes where.
    pub shares: Vec<Go>,
}

/// How long an answer is good, in milliseconds: as long as a direct hand-off may stand in line.
const GOOD: u64 = 200;

impl Kept {
    /// Whether asking now would be asking the same.
    pub fn is_good(&self, generation: u64, plan: &Arc<PlanState>, now: Timestamp) -> bool {
        let phase = |(instance, then): &(Arc<InstanceState>, Phase)| instance.phase(now) == *then;
        self.generation == generation
            && Arc::ptr_eq(&self.plan, plan)
            && (self.at.0..=self.at.0.saturating_add(GOOD)).contains(&now.0)
            && self.instance.as_ref().is_none_or(phase)
    }
}
