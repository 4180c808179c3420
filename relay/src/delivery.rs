//! Delivery of spooled messages: asks the gate again, makes the attempt, writes down what came
//! of it. Floor 3.
//!
//! Nothing polls. A worker waits for a turn; what is blocked waits in the line of the one thing
//! that blocks it, and each line that somebody stands in is served by tasks that wait for just
//! that: a connection, or a limit.

pub mod keeper;
mod report;
mod serve;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use wavegate_smtp::Settled;

pub use report::{Failure, Report};
pub use serve::{line, serve};

use crate::{
    answer::{Answer, Go, Kept, Verdict},
    attempt::{self, End, Job, Patience, Place},
    envelope::{Envelope, LastWord, Progress},
    event::Event,
    gate::{self, Subject, attributes},
    limits::LimitError,
    message::MessageId,
    parcel::{Message, Parcel},
    plan::Timestamp,
    queue::{Ended, Settlement, Taken},
    relay::{Generation, Relay},
    retry as backoff,
    scheduler::{Slot, Wait},
    spool::{LoadError, Mark},
    upstream::{Lease, LeaseError, Upstream},
    waves::InstanceState,
};

/// Pause after a failure that says nothing of the message: no connection, a full line.
const SOON: Duration = Duration::from_secs(1);
/// How long an attempt that serves a line waits for a limit, and then for a connection. Short,
/// because it counts as in flight meanwhile.
const SERVER_WAIT: Duration = Duration::from_millis(500);
/// Pause before a message that cannot be read is tried again: the disk may be back.
const UNREADABLE: Duration = Duration::from_secs(300);

/// What an attempt has beside its message.
pub enum Means {
    /// Nothing; it waits for nothing.
    None,
    /// A connection to this upstream.
    Connection(Arc<Upstream>, Box<Lease>),
    /// Patience: it stands for a whole line.
    Patience,
}

/// A spooled message at its attempt.
struct Delivery {
    relay: Arc<Relay>,
    /// How often something had changed before it began.
    asked: u64,
    generation: Arc<Generation>,
    envelope: Arc<Envelope>,
    message: Arc<Message>,
    instance: Option<Arc<InstanceState>>,
    now: Timestamp,
    progress: Progress,
    /// Recipients that came to an end at this attempt.
    ends: Vec<(Ended, u64)>,
    failures: Vec<(Arc<Upstream>, Failure)>,
    /// What those that are left wait for.
    wait: Option<Wait>,
    marks: Vec<Mark>,
    /// The target that the last attempt was with.
    target: Option<SocketAddr>,
    /// Its place among the attempts that are made at once, until it is given back.
    place: Option<Place>,
}

/// What came of an attempt.
pub struct Attempted {
    /// What the message waits for now; nothing when it has ended.
    pub wait: Option<Wait>,
    /// The attempt's place. One that only waited for the word of a gateway has given it back.
    pub place: Option<Place>,
}

/// Attempts a spooled message whose turn it is.
pub async fn attempt(
    relay: Arc<Relay>,
    taken: Taken,
    means: Means,
    place: Option<Place>,
) -> Attempted {
    let (message, envelope) = match load(&relay, &taken).await {
        Ok(loaded) => loaded,
        Err(error) => {
            let wait = Some(unreadable(&relay, taken, &error));
            return Attempted { wait, place };
        }
    };
    let mut taken = taken;
    let answer = taken.answer.take();
    let mut delivery = Delivery::new(relay, envelope, message, &taken);
    delivery.place = place;
    if taken.doubtful {
        delivery.doubt("unknown", "the relay ended while its reply was awaited");
        delivery.progress.in_doubt = None;
    }
    delivery.run(&taken, answer, means).await;
    let place = delivery.place.take();
    Attempted { wait: delivery.settle(taken).await, place }
}

/// Waits for what becomes of an attempt whose client was answered, since the spool has the
/// message too.
pub async fn late(
    relay: Arc<Relay>,
    slot: Slot,
    upstream: Arc<Upstream>,
    envelope: Arc<Envelope>,
    message: Arc<Message>,
    attempt: impl Future<Output = attempt::Outcome> + Send,
) {
    let attempt::Outcome { end, target, mark, .. } = attempt.await;
    let Some(taken) = relay.queue.of(slot) else { return };
    let recipients: Vec<u32> = (0..).take(envelope.recipients.len()).collect();
    let mut delivery = Delivery::new(relay, envelope, message, &taken);
    delivery.marks.extend(mark);
    delivery.target = target;
    delivery.ended(&upstream, &recipients, end).await;
    delivery.settle(taken).await;
}

/// The message and its envelope: from memory, else from the spool, without keeping the worker.
async fn load(
    relay: &Arc<Relay>,
    taken: &Taken,
) -> Result<(Arc<Message>, Arc<Envelope>), LoadError> {
    if let Some(cached) = &taken.message {
        return Ok(cached.clone());
    }
    let at_once = relay.queue.spool().is_at_once();
    let (relay, handle) = (Arc::clone(relay), taken.handle);
    let loading = move || {
        let (envelope, stored) = relay.queue.spool().load(handle)?;
        let mut body = relay.bodies.read(stored);
        body.accompany(envelope.weight() * 2);
        if body.as_memory().is_none() {
            // One that is written piece by piece is checked before its first piece goes out.
            relay.queue.spool().check(handle)?;
        }
        let parcel = Parcel {
            mail: envelope.mail.clone(),
            recipients: envelope.recipients.clone(),
            body,
            facts: envelope.facts,
        };
        Ok((
            Arc::new(Message::new(envelope.id, Arc::clone(&envelope.source), Vec::new(), parcel)),
            Arc::new(envelope),
        ))
    };
    if at_once {
        return loading();
    }
    match tokio::task::spawn_blocking(loading).await {
        Ok(loaded) => loaded,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A message that cannot be read now is not lost, and not skipped in silence.
fn unreadable(relay: &Relay, taken: Taken, error: &LoadError) -> Wait {
    let mut taken = taken;
    let error = error.to_string();
    relay.emit(&Event::Unreadable { slot: taken.slot, error: &error });
    let now = relay.waves.now();
    let due = Timestamp(now.0 + millis(UNREADABLE));
    taken.progress.last = Some(LastWord::new(None, &format!("cannot be read: {error}"), now));
    taken.progress.due = Some(due.0);
    taken.progress.due_is_hold = true;
    let wait = Wait::HoldUntil(due);
    relay.queue.block(taken, wait.clone());
    wait
}

impl Delivery {
    fn new(
        relay: Arc<Relay>,
        envelope: Arc<Envelope>,
        message: Arc<Message>,
        taken: &Taken,
    ) -> Self {
        let asked = relay.queue.changes();
        let now = relay.waves.now();
        let mut progress = taken.progress.clone();
        progress.due = None;
        progress.due_is_hold = false;
        // Whoever was in doubt about it has said so by now.
        progress.in_doubt = None;
        Self {
            asked,
            generation: relay.generation(),
            relay,
            envelope,
            message,
            instance: None,
            now,
            progress,
            ends: Vec::new(),
            failures: Vec::new(),
            wait: None,
            marks: Vec::new(),
            target: None,
            place: None,
        }
    }

    /// Asks the gate about those that are left, and does what it says.
    async fn run(&mut self, taken: &Taken, kept: Option<Kept>, means: Means) {
        let pending = self.pending();
        if pending.is_empty() {
            return;
        }
        let Answer { instance, verdict } = self.answer(kept, &pending).await;
        self.instance = instance;
        match verdict {
            Verdict::Hold { until, reason } => self.hold(until, &reason),
            // On a spooled message a policy's "later" is a hold that it is asked about again.
            Verdict::Defer(reply) => {
                let pause = backoff::delay(
                    &backoff::Schedule::default(),
                    self.progress.attempts.max(1),
                    self.relay.world.entropy.next(),
                );
                let until = Timestamp(self.now.0 + millis(pause));
                self.hold(Some(until), &reply.to_string());
            }
            Verdict::Refuse(reply) => {
                let upstream = self.generation.upstreams.values().next().map(Arc::clone);
                if let Some(upstream) = upstream {
                    let failed = pending.iter().map(|&i| Failure::of_policy(i, reply.clone()));
                    let failed: Vec<_> = failed.collect();
                    self.fail(&upstream, failed);
                }
            }
            Verdict::Go(shares) => self.go(taken, &pending, shares, means).await,
        }
    }

    /// What the gate said when the message came, if it would say the same now; else it is asked.
    /// (`&mut` because a task that may be moved shares nothing that only one thread may see.)
    async fn answer(&mut self, kept: Option<Kept>, pending: &[u32]) -> Answer {
        let plan = self.relay.waves.current();
        match kept.filter(|kept| kept.is_good(self.generation.number, &plan, self.now)) {
            Some(Kept { instance, shares, .. }) => {
                let instance = instance.map(|(instance, _)| instance);
                Answer { instance, verdict: Verdict::Go(shares) }
            }
            None => self.ask(pending).await,
        }
    }

    fn pending(&self) -> Vec<u32> {
        let all = (0..).take(self.envelope.recipients.len());
        all.filter(|&index| !self.progress.has_ended(index)).collect()
    }

    async fn ask(&mut self, pending: &[u32]) -> Answer {
        let Envelope { id, source, mail, recipients, facts, .. } = &*self.envelope;
        let text = |&index: &u32| recipients[index as usize].recipient.as_str();
        let recipients: Vec<&str> = pending.iter().map(text).collect();
        let plan = self.relay.waves.current();
        let needs = self.generation.policies.needs();
        let headers = if attributes::wants_headers(&needs.attributes, &plan.plan) {
            self.message.header_block()
        } else {
            Vec::new()
        };
        let subject = Subject {
            id: id.as_str(),
            source,
            sender: mail.sender.as_str(),
            sender_domain: mail.sender.domain(),
            recipients: &recipients,
            size: facts.size,
            on_behalf: self.envelope.on_behalf.as_deref(),
            received: Some(self.envelope.received),
            attempts: self.progress.attempts,
            last_reply: self.progress.last.as_ref().map(|last| last.text.as_str()),
            headers: &headers,
        };
        gate::ask(&self.relay, &self.generation, &plan, &subject, self.now).await
    }

    /// Each share goes its way; the first that is blocked says what the message waits for.
    async fn go(&mut self, taken: &Taken, pending: &[u32], shares: Vec<Go>, mut means: Means) {
        for go in shares {
            let upstream = go.upstream;
            self.relay.queue.note_upstream(taken.slot, &upstream.config.name);
            let recipients: Vec<u32> = go.recipients.iter().map(|&i| pending[i as usize]).collect();
            if self.has_expired(&upstream) {
                let last = self.progress.last.clone();
                let over = recipients.iter().map(|&i| Failure::expired(i, last.clone())).collect();
                self.fail(&upstream, over);
                continue;
            }
            let (lease, patience) = match std::mem::replace(&mut means, Means::None) {
                Means::Connection(of, lease) if Arc::ptr_eq(&of, &upstream) => {
                    (Some(*lease), Patience::NONE)
                }
                Means::Patience => (None, Patience::of(SERVER_WAIT, usize::MAX)),
                other => {
                    if let Means::Connection(_, lease) = other {
                        lease.release();
                    }
                    // Others were here first.
                    let name = &upstream.config.name;
                    if let Some(line) = self.relay.queue.line_of(name, &go.charges) {
                        self.wait.get_or_insert(line);
                        continue;
                    }
                    (None, Patience::NONE)
                }
            };
            let job = Job {
                relay: Arc::clone(&self.relay),
                generation: Arc::clone(&self.generation),
                instance: self.instance.clone(),
                message: Arc::clone(&self.message),
                recipients: recipients.clone(),
                upstream: Arc::clone(&upstream),
                charges: go.charges,
                patience,
                lease,
                // What the spool has says it already, of a message whose attempt comes at once.
                marked: !taken.noted,
                place: self.place.take(),
            };
            let attempt::Outcome { end, target, mark, place } = attempt::run(job).await;
            self.place = place;
            self.marks.extend(mark);
            self.target = target;
            self.ended(&upstream, &recipients, end).await;
        }
        if let Means::Connection(_, lease) = means {
            lease.release();
        }
    }

    fn has_expired(&self, upstream: &Upstream) -> bool {
        let age = self.now.0.saturating_sub(self.envelope.received.0);
        age.saturating_sub(self.progress.held_ms) >= millis(upstream.config.expire)
    }

    /// What an attempt for some recipients came to.
    async fn ended(&mut self, upstream: &Arc<Upstream>, recipients: &[u32], end: End) {
        let name = &upstream.config.name;
        match end {
            End::Settled(settled) => self.settled(upstream, recipients, &settled).await,
            End::Unsupported(unsupported) => {
                let reply = unsupported.reply();
                let failed = recipients.iter().map(|&i| Failure::of_policy(i, reply.clone()));
                let failed = failed.collect();
                self.fail(upstream, failed);
            }
            End::Held(_) => {
                let wait = gate::frozen(
                    &self.relay,
                    self.instance.as_deref(),
                    self.envelope.source.client,
                );
                self.wait.get_or_insert(wait.unwrap_or(Wait::Turn));
            }
            End::InDoubt(error) => {
                self.doubt(name, &error.to_string());
                self.retry(upstream, &format!("reply lost: {error}"));
            }
            end => {
                self.progress.last = Some(LastWord::new(Some(name), &end.to_string(), self.now));
                let wait = wait_after(&end, upstream, self.now);
                self.wait.get_or_insert(wait);
            }
        }
    }

    async fn settled(&mut self, upstream: &Arc<Upstream>, recipients: &[u32], settled: &Settled) {
        let mut delivered = Vec::new();
        let mut failed = Vec::new();
        let mut deferred = None;
        for (at, &index) in (0..).zip(recipients) {
            let reply = settled.for_recipient(at);
            match reply.code() {
                200..=299 => delivered.push((index, reply)),
                500..=599 => failed.push(Failure::of_reply(index, reply)),
                _ => deferred = Some(reply),
            }
        }
        for (index, reply) in &delivered {
            self.progress.end(*index);
            self.relay.emit(&Event::Ended {
                instance: self.progress.instance.as_deref(),
                id: self.envelope.id,
                upstream: Some(&upstream.config.name),
                target: self.target,
                recipient: self.envelope.recipients[*index as usize].recipient.as_str(),
                end: Ended::Delivered,
                reply: Some(reply),
                age: self.age(),
                held: Duration::from_millis(self.progress.held_ms),
            });
        }
        if !delivered.is_empty() {
            self.ends.push((Ended::Delivered, delivered.len() as u64));
            let indexes: Vec<u32> = delivered.iter().map(|(index, _)| *index).collect();
            self.report().relayed(upstream, &self.envelope, &settled.reply, &indexes).await;
        }
        if !failed.is_empty() {
            self.fail(upstream, failed);
        }
        if let Some(reply) = deferred {
            self.retry(upstream, &reply.to_string());
        }
    }

    fn age(&self) -> Duration {
        let now = self.relay.waves.now();
        Duration::from_millis(now.0.saturating_sub(self.envelope.received.0))
    }

    fn report(&self) -> Report<'_> {
        let instance = self.progress.instance.as_deref();
        Report { relay: &self.relay, instance, message: &self.message }
    }

    fn fail(&mut self, upstream: &Arc<Upstream>, failures: Vec<Failure>) {
        self.failures.extend(failures.into_iter().map(|one| (Arc::clone(upstream), one)));
    }

    /// It is tried again after a pause that grows.
    fn retry(&mut self, upstream: &Upstream, why: &str) {
        self.progress.attempts = self.progress.attempts.saturating_add(1);
        self.progress.last = Some(LastWord::new(Some(&upstream.config.name), why, self.now));
        let wait = retry(&self.relay, upstream, &mut self.progress);
        self.wait.get_or_insert(wait);
    }

    fn hold(&mut self, until: Option<Timestamp>, reason: &str) {
        let frozen =
            gate::frozen(&self.relay, self.instance.as_deref(), self.envelope.source.client);
        let wait = match (frozen, until) {
            // The end of a window is a change of phase, whatever time is named for it.
            (Some(phase), _) => phase,
            (None, Some(until)) => {
                self.progress.due = Some(until.0);
                self.progress.due_is_hold = true;
                Wait::HoldUntil(until)
            }
            (None, None) => Wait::Change,
        };
        if !matches!(wait, Wait::Phase(_)) {
            self.progress.last = Some(LastWord::new(None, reason, self.now));
        }
        self.wait.get_or_insert(wait);
    }

    /// An upstream may have it already, and it goes on all the same: it may arrive twice.
    fn doubt(&mut self, upstream: &str, error: &str) {
        self.relay.emit(&Event::InDoubt {
            instance: self.progress.instance.as_deref(),
            id: self.envelope.id,
            upstream,
            target: self.target,
            error,
        });
    }

    /// Writes down what came of it, and says what it waits for. Bounces are durable first: if they
    /// cannot be, their recipients are tried again.
    async fn settle(mut self, taken: Taken) -> Option<Wait> {
        let failures = std::mem::take(&mut self.failures);
        if !failures.is_empty() {
            self.bounce(failures).await;
        }
        let left = !self.pending().is_empty();
        let wait = match (left, self.wait.take()) {
            (false, _) => None,
            (true, Some(wait)) => Some(wait),
            (true, None) => Some(Wait::Retry(Timestamp(self.now.0 + millis(SOON)))),
        };
        if let Some(wait) = &wait {
            let (id, left) = (self.envelope.id, self.pending().len() as u64);
            tell_waits(&self.relay, id, &self.progress, left, wait, self.target);
        }
        let Self { relay, progress, ends, marks, asked, .. } = self;
        let slot = taken.slot;
        let taken = Taken { progress, ..taken };
        relay.queue.settle(taken, Settlement { ends, wait: wait.clone(), marks });
        if let Some(line) = &wait {
            serve::line(&relay, slot, line, asked);
        }
        wait
    }

    async fn bounce(&mut self, failures: Vec<(Arc<Upstream>, Failure)>) {
        let upstream = Arc::clone(&failures[0].0);
        let failures: Vec<Failure> = failures.into_iter().map(|(_, failure)| failure).collect();
        let bounce = self.report().bounce(&upstream, &self.envelope, &failures);
        if let Some(bounce) = bounce
            && let Err(error) = self.relay.queue.accept(vec![bounce]).await
        {
            tracing::warn!(id = %self.envelope.id, %error, "a bounce cannot be spooled");
            self.wait = Some(Wait::Retry(Timestamp(self.now.0 + millis(SOON))));
            return;
        }
        for failure in failures {
            self.progress.end(failure.recipient);
            let end = failure.end();
            self.ends.push((end, 1));
            self.relay.emit(&Event::Ended {
                instance: self.progress.instance.as_deref(),
                id: self.envelope.id,
                upstream: Some(&upstream.config.name),
                target: self.target,
                recipient: self.envelope.recipients[failure.recipient as usize].recipient.as_str(),
                end,
                reply: failure.reply(),
                age: self.age(),
                held: Duration::from_millis(self.progress.held_ms),
            });
        }
    }
}

/// Tells of a message that waits for more than a turn, a connection or a limit.
pub fn tell_waits(
    relay: &Relay,
    id: MessageId,
    progress: &Progress,
    recipients: u64,
    wait: &Wait,
    target: Option<SocketAddr>,
) {
    let instance = progress.instance.as_deref();
    let reason = progress.last.as_ref().map_or("", |last| &last.text);
    let held = |by, reason, until| Event::Held { instance, id, recipients, by, reason, until };
    let event = match wait {
        Wait::Phase(_) => held("window", "", None),
        Wait::HoldUntil(until) => held("policy", reason, Some(*until)),
        Wait::Change => held("policy", reason, None),
        Wait::Operator => held("operator", progress.operator.as_deref().unwrap_or(""), None),
        Wait::Retry(until) => {
            let upstream = progress.last.as_ref().and_then(|last| last.upstream.as_deref());
            let (attempts, until) = (progress.attempts, *until);
            Event::Deferred { instance, id, recipients, upstream, target, reason, attempts, until }
        }
        Wait::Turn | Wait::Upstream(_) | Wait::Limit { .. } | Wait::Reply => return,
    };
    relay.emit(&event);
}

/// What a message waits for after an attempt that says nothing of it.
pub fn wait_after(end: &End, upstream: &Upstream, now: Timestamp) -> Wait {
    match end {
        // There may be many that are down, and a line for each would never end.
        End::NoConnection(LeaseError::AllDown { .. }) if upstream.is_child() => {
            Wait::Retry(Timestamp(now.0 + millis(upstream.config.retry_first)))
        }
        End::NoConnection(
            LeaseError::AllDown { .. }
            | LeaseError::NoTarget { .. }
            | LeaseError::Busy { .. }
            | LeaseError::Crowded { .. }
            | LeaseError::QueueFull { .. },
        ) => Wait::Upstream(upstream.config.name.as_str().into()),
        End::Limited(LimitError::Reached { scope, key }) => {
            Wait::Limit { scope: scope.as_str().into(), key: key.as_str().into() }
        }
        _ => Wait::Retry(Timestamp(now.0 + millis(SOON))),
    }
}

/// When a message is tried again that an upstream has deferred.
pub fn retry(relay: &Relay, upstream: &Upstream, progress: &mut Progress) -> Wait {
    let schedule = backoff::Schedule {
        first: upstream.config.retry_first,
        maximum: upstream.config.retry_max,
        ..backoff::Schedule::default()
    };
    let pause = backoff::delay(&schedule, progress.attempts.max(1), relay.world.entropy.next());
    let due = Timestamp(relay.waves.now().0 + millis(pause));
    progress.due = Some(due.0);
    progress.due_is_hold = false;
    Wait::Retry(due)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 8)
}
