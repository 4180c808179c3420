//! An instance outside of any worker: for questions that no mail waits for (cases, replays,
//! measurements). Floor 2.

use std::sync::Arc;

use super::{
    failure::PolicyFailure,
    instance::{Instance, Owner},
    set::{Policy, PolicySet},
};
use crate::decision::record::{Answer, Question, Said};

/// A fresh, configured instance of one policy. What it logs and counts is thrown away, and
/// nothing of it is counted in the policy's figures.
pub struct Fresh {
    set: Arc<PolicySet>,
    policy: usize,
    instance: Instance,
}

impl Fresh {
    /// Makes one. `policy` is an index into [`PolicySet::policies`].
    pub fn new(set: &Arc<PolicySet>, policy: usize) -> Result<Self, PolicyFailure> {
        let instance = Instance::ready(&set.policies()[policy].template, Owner::Muted, u32::MAX)?;
        Ok(Self { set: Arc::clone(set), policy, instance })
    }

    /// Asks it. After a failure it is of no use any more: the next question needs another.
    pub fn ask(&mut self, question: &Question) -> Result<Answer, PolicyFailure> {
        self.instance.ask(question, self.set.policies()[self.policy].needs())
    }

    /// The policy that it is of.
    pub fn policy(&self) -> &Policy {
        &self.set.policies()[self.policy]
    }

    /// Fuel that the last call took; none where epochs bound calls.
    pub fn fuel(&self) -> Option<u64> {
        self.instance.fuel_used()
    }

    /// Bytes of all its linear memories: they never shrink.
    pub fn memory(&self) -> usize {
        self.instance.memory()
    }
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fresh").field("policy", &self.policy().name()).finish_non_exhaustive()
    }
}

impl From<Result<Answer, PolicyFailure>> for Said {
    fn from(result: Result<Answer, PolicyFailure>) -> Self {
        match result {
            Ok(answer) => Self::Answer(answer),
            Err(PolicyFailure { kind, detail }) => {
                Self::Failure { kind: kind.as_str().to_owned(), detail }
            }
        }
    }
}
