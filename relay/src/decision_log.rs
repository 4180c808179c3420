//! The decision log: what policies were asked on live mail and what they answered, as JSON Lines
//! in a file, for `wavegate plugin replay`. Floor 4.
//!
//! Owns `[decision_log] file` and what it grows into, and which messages are told of. Whoever
//! carries mail copies the question and goes on: a thread hides what is to be hidden and writes.
//! What it cannot keep up with, or cannot write, is left out and counted. Nothing is synced.

mod hide;
pub mod line;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{DecisionLogConfig, Told},
    decision::{
        record::{Ask, Question, Said},
        stable_hash,
    },
    event_log,
    policy::{Call, Policy, PolicySet, Tap},
    rotation::{Backlog, Rotating},
};
use hide::Hide;
use line::{CallLine, Line, PolicyLine};

/// Bytes of questions that may wait for the thread: a second of a busy relay of which everything
/// is told.
const WAITING: usize = 16 << 20;
/// Bytes that are written at once.
const BATCH: usize = 256 << 10;
/// A longer line is left out: a message of thousands of recipients. Far within what `rotation`
/// takes for a line, with the policy's own line in one batch.
const LONGEST: usize = 512 << 10;
/// How long the thread lets questions come together. Nobody has to wake it meanwhile, which would
/// cost whoever carries mail more than the rest.
const GATHER: Duration = Duration::from_millis(20);
/// What a question takes beside its texts.
const QUESTION: usize = 1024;
/// Policies of sets that are remembered: far more than are asked at a time.
const CONTEXTS: usize = 256;

/// The decision log of one process.
pub struct DecisionLog {
    jobs: Sender<Job>,
    backlog: Arc<Backlog>,
    sample: u32,
    /// Outcomes are of no message, so they are counted.
    outcomes: AtomicU32,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread is told.
enum Job {
    Call(Box<Heard>),
    End,
}

/// A call, owned.
struct Heard {
    set: Arc<PolicySet>,
    policy: usize,
    generation: u64,
    question: Question,
    said: Said,
    took: Duration,
    fuel: Option<u64>,
    /// What it counts for in `waiting`.
    bytes: usize,
}

impl DecisionLog {
    /// Starts it; `random` makes the key for hashes, which the event log has too. A file that
    /// cannot be opened now is an error; later it only costs lines.
    pub fn start(
        config: &DecisionLogConfig,
        state_dir: &Path,
        random: &dyn Fn() -> u64,
    ) -> io::Result<Arc<Self>> {
        let (local_parts, headers) = (config.local_parts, config.headers);
        let key = match (local_parts, headers) {
            (Told::Plain, Told::Plain) => [0; 32],
            _ => event_log::key(state_dir, random)?,
        };
        let file = Rotating::open(config.file.clone(), config.max_size, config.keep)?;
        let (jobs, inbox) = mpsc::channel();
        let backlog = Arc::<Backlog>::default();
        let writing = Writing {
            inbox,
            file,
            backlog: Arc::clone(&backlog),
            hide: Hide { key, local_parts, headers },
            known: HashMap::new(),
            told: HashSet::new(),
            lost: 0,
            failing: false,
        };
        let thread = std::thread::Builder::new().name("decisions".into());
        let thread = Mutex::new(Some(thread.spawn(move || writing.run())?));
        let outcomes = AtomicU32::new(0);
        Ok(Arc::new(Self { jobs, backlog, sample: config.sample, outcomes, thread }))
    }

    /// Whether its file can be written. Changes nothing but that there is one.
    pub fn check(config: &DecisionLogConfig) -> io::Result<()> {
        Rotating::check(&config.file)
    }

    /// Calls written, and calls left out, so far.
    pub fn counts(&self) -> (u64, u64) {
        self.backlog.counts()
    }

    /// Bytes of questions that wait.
    pub fn waiting(&self) -> usize {
        self.backlog.waiting()
    }

    /// Writes what waits, and takes no more.
    pub fn close(&self) {
        // A thread that has gone needs no word.
        let _ = self.jobs.send(Job::End);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the decision log panicked");
        }
    }

    /// Of a message all calls are told, at every attempt, or none.
    fn is_told(&self, one_in: u32, ask: Ask<'_>) -> bool {
        match (one_in, ask.message()) {
            (0, _) => false,
            (1, _) => true,
            (_, Some(id)) => stable_hash([id.as_bytes()]).is_multiple_of(u64::from(one_in)),
            (_, None) => self.outcomes.fetch_add(1, Relaxed).is_multiple_of(one_in),
        }
    }
}

impl Tap for DecisionLog {
    fn begin(&self, policy: &Policy, ask: Ask<'_>) -> Option<Instant> {
        let one_in = policy.config().log.unwrap_or(self.sample);
        self.is_told(one_in, ask).then(Instant::now)
    }

    fn end(&self, begun: Instant, call: Call<'_>) {
        let took = begun.elapsed();
        let bytes = weight(call.ask);
        if !self.backlog.take(bytes, WAITING) {
            return;
        }
        let heard = Heard {
            set: Arc::clone(call.set),
            policy: call.policy,
            generation: call.set.generation(),
            question: call.ask.to_question(),
            said: call.said.into(),
            took,
            fuel: call.fuel,
            bytes,
        };
        if self.jobs.send(Job::Call(Box::new(heard))).is_err() {
            self.backlog.lose(bytes, 1);
        }
    }
}

/// Bytes that a question takes, about.
fn weight(ask: Ask<'_>) -> usize {
    let texts = |texts: &[&str]| texts.iter().map(|text| text.len() + 24).sum::<usize>();
    QUESTION
        + match ask {
            Ask::Decide(tx) | Ask::Route(tx) | Ask::Limits { tx, .. } => {
                let attributes = tx.attributes.iter();
                let attributes = attributes.map(|(name, value)| name.len() + value.len() + 48);
                texts(tx.recipients) + attributes.sum::<usize>() + tx.sender.len()
            }
            Ask::Observe(outcome) => {
                outcome.keys.iter().map(|key| key.len() + 24).sum::<usize>() + outcome.text.len()
            }
        }
}

/// The thread.
struct Writing {
    inbox: Receiver<Job>,
    file: Rotating,
    backlog: Arc<Backlog>,
    hide: Hide,
    /// The lines of policies, by set and place in it.
    known: HashMap<(u64, usize), Arc<PolicyLine>>,
    /// Those that are in the file, by their context.
    told: HashSet<String>,
    /// How many are told to be lost.
    lost: u64,
    failing: bool,
}

/// Lines that are written at once.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    calls: u64,
    /// Bytes of questions that they were made of.
    bytes: usize,
    policies: Vec<Arc<PolicyLine>>,
}

impl Writing {
    fn run(mut self) {
        let mut ended = false;
        while !ended && let Ok(first) = self.inbox.recv() {
            let mut next = Some(first);
            if !matches!(next, Some(Job::End)) {
                std::thread::park_timeout(GATHER);
            }
            while let Some(job) = next {
                let mut batch = Batch::default();
                next = Some(job);
                while let Some(job) = next.take() {
                    match job {
                        Job::Call(heard) => self.add(&mut batch, *heard),
                        Job::End => ended = true,
                    }
                    if batch.text.len() >= BATCH {
                        break;
                    }
                    next = self.inbox.try_recv().ok();
                }
                self.write(batch);
                next = self.inbox.try_recv().ok();
            }
        }
        let late = self.inbox.try_iter().filter(|job| matches!(job, Job::Call(_))).count();
        self.backlog.lose(0, late as u64);
    }

    fn add(&mut self, batch: &mut Batch, heard: Heard) {
        let policy = self.policy(&heard.set, heard.policy);
        let Heard { mut question, mut said, took, fuel, generation, bytes, .. } = heard;
        batch.bytes += bytes;
        let message = question.transaction().map(|tx| tx.id.clone());
        let hidden = self.hide.hide(&mut question, &mut said);
        let line = Line::Call(Box::new(CallLine {
            time: question.with(|ask| ask.now().to_string()),
            generation,
            policy: policy.policy.clone(),
            plugin: policy.plugin.clone(),
            contract: policy.contract.clone(),
            settings: policy.settings_digest.clone(),
            tables: policy.tables_digest.clone(),
            context: policy.context.clone(),
            message,
            took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
            fuel,
            hidden,
            question,
            said,
        }));
        let text = line.text();
        if text.len() > LONGEST {
            // What it weighs is let go with its batch.
            self.backlog.lose(0, 1);
            return;
        }
        batch.text.extend_from_slice(&text);
        batch.calls += 1;
        if !batch.policies.iter().any(|one| one.context == policy.context) {
            batch.policies.push(policy);
        }
    }

    /// The line of a policy.
    fn policy(&mut self, set: &PolicySet, index: usize) -> Arc<PolicyLine> {
        if self.known.len() > CONTEXTS {
            self.known.clear();
        }
        let local_parts = self.hide.local_parts;
        let known = self.known.entry((set.id(), index)).or_insert_with(|| {
            let needs = [&set.needs().attributes[..], &set.needs().upstreams[..]];
            let policy = &set.policies()[index];
            Arc::new(PolicyLine::new(policy, set.upstreams(), needs, local_parts))
        });
        Arc::clone(known)
    }

    /// Writes a batch, with what makes its file complete before it.
    fn write(&mut self, batch: Batch) {
        let lost = self.backlog.lost();
        let mut head = self.head(&batch, lost);
        if self.file.begins_anew(head.len() + batch.text.len()) {
            self.told.clear();
            head = self.head(&batch, lost);
        }
        head.extend_from_slice(&batch.text);
        match self.file.append(&head, false) {
            Ok(()) => {
                self.backlog.write(batch.bytes, batch.calls);
                self.lost = lost;
                self.failing = false;
                self.told.extend(batch.policies.iter().map(|policy| policy.context.clone()));
            }
            Err(error) => {
                self.backlog.lose(batch.bytes, batch.calls);
                if !std::mem::replace(&mut self.failing, true) {
                    let file = self.file.path().display();
                    tracing::error!(%file, %error, "the decision log cannot be written");
                }
            }
        }
    }

    fn head(&self, batch: &Batch, lost: u64) -> Vec<u8> {
        let mut head = Vec::new();
        if lost > self.lost {
            head.extend(Line::Lost { count: lost - self.lost }.text());
        }
        let new = batch.policies.iter().filter(|policy| !self.told.contains(&policy.context));
        new.for_each(|policy| {
            head.extend(Line::Policy(Box::new(PolicyLine::clone(policy))).text())
        });
        head
    }
}

#[cfg(test)]
mod tests;
