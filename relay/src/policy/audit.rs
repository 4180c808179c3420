//! The purity audit: some calls are repeated in a fresh instance and must be answered alike.
//! Floor 2.
//!
//! Warm memory can make a policy depend on what it was asked before; then it cannot be replayed,
//! and two workers decide differently. The audit finds that out, off the mail path.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, SyncSender, TrySendError},
    },
    thread::{self, JoinHandle},
};

use super::{
    compile,
    failure::{FailureKind, PolicyFailure},
    instance::{Instance, Owner},
    set::{Policy, PolicySet},
    stats::Count,
};
use crate::decision::record::{Answer, Question};

/// Calls that wait to be repeated. A job holds a copy of its question, so this bounds memory
/// too; what is over is dropped and counted.
const QUEUE: usize = 64;

/// Where audited calls are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditMode {
    /// By one thread of low priority.
    Thread,
    /// At once, by the caller: for simulation, where nothing may happen by the side.
    Inline,
}

/// Repeats calls. Dropping it ends its thread after the call that it is in.
#[derive(Debug)]
pub(super) struct Auditor {
    queue: Option<SyncSender<Job>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Auditor {
    pub(super) fn start(mode: AuditMode) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        if mode == AuditMode::Inline {
            return Ok(Self { queue: None, stop, thread: None });
        }
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("policy-audit".to_owned()).spawn(move || {
            compile::lower_priority();
            for job in jobs {
                if stopped.load(Relaxed) {
                    return;
                }
                job.run();
            }
        })?;
        Ok(Self { queue: Some(queue), stop, thread: Some(thread) })
    }

    /// Has a call repeated and compared with its answer.
    pub(super) fn repeat(
        &self,
        set: Arc<PolicySet>,
        policy: usize,
        question: Question,
        answer: Answer,
    ) {
        let job = Job { set, policy, question, answer };
        match &self.queue {
            None => job.run(),
            Some(queue) => {
                if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
                    queue.try_send(job)
                {
                    job.entry().stats().count(Count::AuditDropped);
                }
            }
        }
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that audits policies had panicked");
        }
    }
}

#[derive(Debug)]
struct Job {
    set: Arc<PolicySet>,
    policy: usize,
    question: Question,
    answer: Answer,
}

impl Job {
    fn entry(&self) -> &Policy {
        &self.set.policies()[self.policy]
    }

    fn run(&self) {
        let entry = self.entry();
        let stats = entry.stats();
        stats.count(Count::AuditRun);
        let repeated = Instance::ready(&entry.template, Owner::Muted, 1)
            .and_then(|mut instance| instance.ask(&self.question, entry.needs()));
        match repeated {
            Ok(answer) if answer == self.answer => {}
            Ok(_) => {
                stats.count(Count::AuditDifference);
                tracing::warn!(
                    policy = entry.name(),
                    function = self.question.function(),
                    message = self.question.transaction().map(|tx| tx.id.as_str()),
                    "a policy answers differently in a fresh instance: it depends on more than \
                     what it is given"
                );
            }
            // At low priority time says nothing, and a full pool is not the policy's fault.
            Err(PolicyFailure { kind: FailureKind::Timeout | FailureKind::Host, .. }) => {
                stats.count(Count::AuditInconclusive);
            }
            Err(failure) => {
                stats.count(Count::AuditDifference);
                tracing::warn!(
                    policy = entry.name(),
                    function = self.question.function(),
                    message = self.question.transaction().map(|tx| tx.id.as_str()),
                    %failure,
                    "a policy fails in a fresh instance where it had answered"
                );
            }
        }
    }
}
