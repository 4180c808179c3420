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
    instance::Instance,
    set::{Policy, PolicySet},
    stats::Count,
};
use crate::{
    decision::{
        AttemptOutcome, FreezeDecision, InstanceView, Lesson, LimitSet, RouteDecision, Transaction,
    },
    plan::{Instance as PlanInstance, Phase, Timestamp, Window},
};

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
    pub(super) fn repeat(&self, set: Arc<PolicySet>, policy: usize, question: Question) {
        let job = Job { set, policy, question };
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
}

impl Job {
    fn entry(&self) -> &Policy {
        &self.set.policies()[self.policy]
    }

    fn run(&self) {
        let entry = self.entry();
        let stats = entry.stats();
        stats.count(Count::AuditRun);
        let repeated = Instance::ready(&entry.template, true, 1)
            .and_then(|mut instance| self.question.is_answered_alike(&mut instance, entry.needs()));
        match repeated {
            Ok(true) => {}
            Ok(false) => {
                stats.count(Count::AuditDifference);
                tracing::warn!(
                    policy = entry.name(),
                    hook = self.question.hook(),
                    message = self.question.message(),
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
                    hook = self.question.hook(),
                    message = self.question.message(),
                    %failure,
                    "a policy fails in a fresh instance where it had answered"
                );
            }
        }
    }
}

/// A call with its answer, owned.
#[derive(Debug)]
pub(super) enum Question {
    Freeze(OwnedTransaction, FreezeDecision),
    Route(OwnedTransaction, RouteDecision),
    Limits {
        tx: OwnedTransaction,
        upstream: String,
        recipients: Vec<u32>,
        answer: LimitSet,
    },
    Observe {
        upstream: String,
        keys: Vec<String>,
        code: u16,
        text: String,
        now: Timestamp,
        answer: Vec<Lesson>,
    },
}

impl Question {
    pub(super) fn freeze(tx: &Transaction<'_>, answer: &FreezeDecision) -> Self {
        Self::Freeze(OwnedTransaction::new(tx), answer.clone())
    }

    pub(super) fn route(tx: &Transaction<'_>, answer: &RouteDecision) -> Self {
        Self::Route(OwnedTransaction::new(tx), answer.clone())
    }

    pub(super) fn limits(
        tx: &Transaction<'_>,
        upstream: &str,
        recipients: &[u32],
        answer: &LimitSet,
    ) -> Self {
        Self::Limits {
            tx: OwnedTransaction::new(tx),
            upstream: upstream.to_owned(),
            recipients: recipients.to_vec(),
            answer: answer.clone(),
        }
    }

    pub(super) fn observe(outcome: &AttemptOutcome<'_>, answer: &[Lesson]) -> Self {
        Self::Observe {
            upstream: outcome.upstream.to_owned(),
            keys: outcome.keys.to_vec(),
            code: outcome.code,
            text: outcome.text.to_owned(),
            now: outcome.now,
            answer: answer.to_vec(),
        }
    }

    fn hook(&self) -> &'static str {
        match self {
            Self::Freeze(..) => "freeze.decide",
            Self::Route(..) => "routing.route",
            Self::Limits { .. } => "throttling.limits",
            Self::Observe { .. } => "throttling.observe",
        }
    }

    fn message(&self) -> Option<&str> {
        match self {
            Self::Freeze(tx, _) | Self::Route(tx, _) | Self::Limits { tx, .. } => Some(&tx.id),
            Self::Observe { .. } => None,
        }
    }

    fn is_answered_alike(
        &self,
        instance: &mut Instance,
        needs: &[String],
    ) -> Result<bool, PolicyFailure> {
        match self {
            Self::Freeze(tx, answer) => tx.with(|tx| Ok(instance.decide(tx, needs)? == *answer)),
            Self::Route(tx, answer) => tx.with(|tx| Ok(instance.route(tx, needs)? == *answer)),
            Self::Limits { tx, upstream, recipients, answer } => {
                tx.with(|tx| Ok(instance.limits(tx, needs, upstream, recipients)? == *answer))
            }
            Self::Observe { upstream, keys, code, text, now, answer } => {
                let outcome = AttemptOutcome { upstream, keys, code: *code, text, now: *now };
                Ok(instance.observe(&outcome)? == *answer)
            }
        }
    }
}

/// A transaction with all that it borrows.
#[derive(Debug)]
pub(super) struct OwnedTransaction {
    id: String,
    now: Timestamp,
    client: std::net::IpAddr,
    sender: String,
    recipients: Vec<String>,
    size: u64,
    attempts: u32,
    instance: Option<OwnedInstance>,
    bucket: u32,
    attributes: Vec<(String, String)>,
}

#[derive(Debug)]
struct OwnedInstance {
    instance: PlanInstance,
    phase: Phase,
    window: Option<Window>,
    before: String,
    after: String,
}

impl OwnedTransaction {
    fn new(tx: &Transaction<'_>) -> Self {
        Self {
            id: tx.id.to_owned(),
            now: tx.now,
            client: tx.client,
            sender: tx.sender.to_owned(),
            recipients: tx.recipients.iter().map(|&recipient| recipient.to_owned()).collect(),
            size: tx.size,
            attempts: tx.attempts,
            instance: tx.instance.map(|view| OwnedInstance {
                instance: view.instance.clone(),
                phase: view.phase,
                window: view.window.cloned(),
                before: view.before.to_owned(),
                after: view.after.to_owned(),
            }),
            bucket: tx.bucket,
            attributes: tx.attributes.to_vec(),
        }
    }

    fn with<R>(&self, ask: impl FnOnce(&Transaction<'_>) -> R) -> R {
        let recipients: Vec<&str> = self.recipients.iter().map(String::as_str).collect();
        ask(&Transaction {
            id: &self.id,
            now: self.now,
            client: self.client,
            sender: &self.sender,
            recipients: &recipients,
            size: self.size,
            attempts: self.attempts,
            instance: self.instance.as_ref().map(|owned| InstanceView {
                instance: &owned.instance,
                phase: owned.phase,
                window: owned.window.as_ref(),
                before: &owned.before,
                after: &owned.after,
            }),
            bucket: self.bucket,
            attributes: &self.attributes,
        })
    }
}
