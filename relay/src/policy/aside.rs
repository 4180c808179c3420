//! Calls that take long: not on the thread that carries mail. Floor 2.
//!
//! A call is synchronous and takes microseconds; one that loops would keep everybody else on its
//! worker waiting for its whole timeout. So a worker keeps calls on a leash ([`LEASH`]): one that
//! is not done by then is given up and asked once more here, by a thread of low priority in a fresh
//! instance with the whole budget, while its session waits and the worker goes on. The warm call
//! pays nothing for it: its deadline is another number. (A call that yields to the runtime instead
//! of being begun again would need asynchronous stores, which cost every call more than it takes
//! now, and its loop would still have the worker's time.)
//!
//! A thread of low priority may get little of a busy processor, so the budget is processor time
//! here: what is slow for want of a processor is no failure. For the same reason a call at the end
//! of its leash is looked at once more: on a busy machine most were only interrupted. There are a
//! few threads, so that what is merely slow need not wait for what loops, and a short queue: a
//! policy that is slow at everything delays its own messages, and what finds no place has run out of
//! time. What a call logged and counted before it was given up, it logs and counts again.
//!
//! Where fuel bounds calls (simulation) there is no leash: nothing may happen by the side.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use tokio::sync::oneshot;

use super::{
    compile,
    failure::{FailureKind, PolicyFailure},
    instance::{Instance, Owner},
    set::PolicySet,
    tap::Wanted,
};
use crate::decision::record::{Answer, Ask, Question};

/// What a worker gives a call, in epochs: what is left of the one that has begun. It is given one
/// more where it had no processor, or has only just begun. A warm call takes a thousandth of it, one
/// of a JavaScript policy a tenth.
pub(super) const LEASH: u64 = 1;
/// Threads that ask; they share what the workers leave.
const THREADS: usize = 4;
/// Questions that wait here; with the longest timeout that is usual, a second of processor time.
const QUEUE: usize = 16;

type Said = Result<Answer, PolicyFailure>;

/// A question whose answer comes later.
#[derive(Debug)]
pub struct Late {
    pub(super) set: Arc<PolicySet>,
    pub(super) policy: usize,
    pub(super) question: Arc<Question>,
    /// Somebody who waits to hear of it.
    pub(super) wanted: Option<Wanted>,
    answer: oneshot::Receiver<Said>,
}

impl Late {
    /// The answer, when it is there. [`WorkerPolicies::heard`](super::WorkerPolicies::heard) is to
    /// be told of it.
    pub async fn answer(&mut self) -> Said {
        let stopping = || PolicyFailure::new(FailureKind::Host, "the policy host is stopping");
        (&mut self.answer).await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Asks what takes long. Dropping it ends its thread after the call that it is in.
#[derive(Debug)]
pub(super) struct Aside {
    queue: Option<SyncSender<Job>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Job {
    set: Arc<PolicySet>,
    policy: usize,
    question: Arc<Question>,
    answer: oneshot::Sender<Said>,
}

impl Aside {
    pub(super) fn start() -> io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        let stop = Arc::new(AtomicBool::new(false));
        let mut aside = Self { queue: Some(queue), stop, threads: Vec::new() };
        for number in 0..THREADS {
            let (jobs, stop) = (Arc::clone(&jobs), Arc::clone(&aside.stop));
            let thread = thread::Builder::new().name(format!("policy-aside-{number}"));
            aside.threads.push(thread.spawn(move || {
                compile::lower_priority();
                while let Some(job) = next(&jobs) {
                    if stop.load(Relaxed) {
                        return;
                    }
                    // Who asked may have gone: its answer is for nobody.
                    let _ = job.answer.send(job.set.ask_aside(job.policy, &job.question, &stop));
                }
            })?);
        }
        Ok(aside)
    }

    /// Takes a question; none where too many wait.
    pub(super) fn ask(&self, set: &Arc<PolicySet>, policy: usize, ask: Ask<'_>) -> Option<Late> {
        let (answer, receiver) = oneshot::channel();
        let set = Arc::clone(set);
        let question = Arc::new(ask.to_question());
        let late = Late {
            set: Arc::clone(&set),
            policy,
            question: Arc::clone(&question),
            wanted: None,
            answer: receiver,
        };
        let job = Job { set, policy, question, answer };
        self.queue.as_ref()?.try_send(job).ok().map(|()| late)
    }
}

/// The next question; none at the end. One thread waits for it, the others for that one.
fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl PolicySet {
    fn ask_aside(&self, policy: usize, question: &Question, stop: &Arc<AtomicBool>) -> Said {
        let entry = &self.policies()[policy];
        let owner = Owner::Patient(Arc::clone(stop));
        Instance::ready(&entry.template, owner, 1)?.ask(question, entry.needs())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.queue = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that asks slow policies had panicked");
            }
        }
    }
}
