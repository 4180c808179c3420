//! One question to one policy: on this thread, and elsewhere where that takes long. Floor 3.
//!
//! It does not apply fail modes: that is its callers'. See `policy/aside.rs` for why a call may
//! leave the worker.

use std::sync::Arc;

use crate::{
    decision::record::Answer,
    policy::{PolicyFailure, PolicySet, WorkerPolicies},
    relay::{Relay, with_policies},
};

/// Who waits for a policy that takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The calling thread, which carries nothing else: nothing is waited for asynchronously.
    Thread,
    /// The calling task.
    Task,
}

/// Asks a policy by `call`. Where it is the task that waits, a call that is not done soon is asked
/// again elsewhere.
pub async fn ask<R: TryFrom<Answer>>(
    relay: &Relay,
    set: &Arc<PolicySet>,
    policy: usize,
    waits: Waits,
    call: impl FnOnce(&mut WorkerPolicies, &Arc<PolicySet>, usize) -> Result<R, PolicyFailure>,
) -> Result<R, PolicyFailure> {
    let host = &relay.policy_host;
    if waits == Waits::Thread {
        return with_policies(host, |mine| call(mine, set, policy));
    }
    let (answer, late) = with_policies(host, |mine| mine.on_leash(|mine| call(mine, set, policy)));
    let Some(mut late) = late else { return answer };
    let said = late.answer().await;
    with_policies(host, |mine| mine.heard(late, &said));
    // The question was asked as it is; an answer to another one is our own fault.
    said.and_then(|answer| R::try_from(answer).map_err(|_| PolicyFailure::mistaken()))
}
