//! Where somebody may hear of live calls: what was asked, what came of it, how long it took.
//! Floor 2.
//!
//! Owns no queue and no clock: both are of whoever listens. Without a listener a call costs one
//! look at a pointer more.

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use super::{
    failure::PolicyFailure,
    host::PolicyHost,
    set::{Policy, PolicySet},
};
use crate::decision::record::{Answer, Ask};

/// Hears of live calls. Both are called on the thread that carries the mail, so neither waits.
pub trait Tap: Send + Sync {
    /// Asked before a call: the time now if it wants to hear of this one. Only such a call is
    /// measured.
    fn begin(&self, policy: &Policy, ask: Ask<'_>) -> Option<Instant>;

    /// Told after a call that it wanted; `begun` is what it said before.
    fn end(&self, begun: Instant, call: Call<'_>);
}

/// A call that was made.
#[derive(Debug)]
pub struct Call<'a> {
    /// Whose policy it is.
    pub set: &'a Arc<PolicySet>,
    /// Which one of them.
    pub policy: usize,
    /// What it was asked.
    pub ask: Ask<'a>,
    /// What came of it.
    pub said: Result<Answer, PolicyFailure>,
    /// Fuel that it took, where calls are bounded by fuel.
    pub fuel: Option<u64>,
}

/// A call that somebody waits to hear of.
pub(super) struct Wanted {
    tap: Arc<dyn Tap>,
    begun: Instant,
}

impl PolicyHost {
    /// Has calls told to `tap`, from now on. The first one stays.
    pub fn listen(&self, tap: Arc<dyn Tap>) {
        if self.tap.set(tap).is_err() {
            tracing::warn!("somebody hears of the calls of policies already");
        }
    }

    /// Whether somebody wants to hear of a call that is about to be made.
    pub(super) fn wanted(&self, policy: &Policy, ask: Ask<'_>) -> Option<Wanted> {
        let tap = self.tap.get()?;
        let begun = tap.begin(policy, ask)?;
        Some(Wanted { tap: Arc::clone(tap), begun })
    }
}

impl Wanted {
    /// The call was made.
    pub(super) fn tell(self, call: Call<'_>) {
        self.tap.end(self.begun, call);
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").field("begun", &self.begun).finish_non_exhaustive()
    }
}
