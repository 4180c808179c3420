//! One attempt, from the gate's "go" to what the upstream said: the same for a message whose
//! client waits and for one from the spool. Floor 3.
//!
//! It has three states. *Uncommitted*: the end of data is not written; it is tried again
//! freely. *In doubt*: it is written, and no reply has come; nothing may be tried again.
//! *Settled*: the upstream has replied. Over a link what is in doubt may be asked about (`link`).

mod link;
mod write;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use wavegate_smtp::{BodyShape, ClientEvent, Reply, Settled, Unsupported, client::Stage};

use crate::{
    asking::{self, Waits},
    decision::AttemptOutcome,
    event::Event,
    limits::{Charge, LimitError, Permit},
    names::Endpoint,
    parcel::Message,
    policy::{PolicySet, WorkerPolicies},
    relay::{Generation, Relay},
    spool::Mark,
    upstream::{
        Connection, ConnectionError, Ended, Lease, LeaseError, Upstream, Way,
        connection::{Commit, WriteError},
        identity, original,
    },
    waves::{Attempt, Blocked, InstanceState, Waves},
};

/// Connections that one attempt may use up before it is given up: one pooled one that turned
/// out to be dead, and two targets.
const ROUNDS: u32 = 3;

/// Everything that an attempt works with.
pub struct Job {
    /// What all share.
    pub relay: Arc<Relay>,
    /// The generation that it was asked under.
    pub generation: Arc<Generation>,
    /// The message's instance.
    pub instance: Option<Arc<InstanceState>>,
    /// The message.
    pub message: Arc<Message>,
    /// Indexes of the recipients to hand it off for.
    pub recipients: Vec<u32>,
    /// Where to.
    pub upstream: Arc<Upstream>,
    /// What throttling policies want charged.
    pub charges: Vec<Charge>,
    /// How long it may wait for what it needs.
    pub patience: Patience,
    /// A connection that it has already.
    pub lease: Option<Lease>,
    /// Whether its end of data was written must outlive a crash, and the spool does not say so yet.
    pub marked: bool,
    /// Its place among those that may be made at once, where they are counted.
    pub place: Option<Place>,
}

/// A place among the attempts that may be made at once.
pub type Place = OwnedSemaphorePermit;

/// How long an attempt may wait in line.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection; none: not at all.
    pub connection: Option<Instant>,
    /// For limits; none: not at all.
    pub limits: Option<Instant>,
    /// How many others may stand in line.
    pub queue: usize,
}

/// What came of an attempt.
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The target that it was last with.
    pub target: Option<SocketAddr>,
    /// The note in the spool that its end of data may have been written; taken back when what
    /// came of it is written down.
    pub mark: Option<Mark>,
    /// Its place, unless it was given back: one that has to wait for the word of a gateway keeps none
    /// from others.
    pub place: Option<Place>,
}

/// How an attempt ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The upstream replied, for each recipient.
    #[error("settled")]
    Settled(Settled),
    /// Uncommitted: the phase forbids it; nothing of the message counts as sent.
    #[error("the window forbids it: {}", .0.phase)]
    Held(Blocked),
    /// Uncommitted: no connection in time.
    #[error("{0}")]
    NoConnection(LeaseError),
    /// Uncommitted: a limit did not conform in time.
    #[error("{0}")]
    Limited(LimitError),
    /// Uncommitted: the upstream cannot be given this message.
    #[error("{0}")]
    Unsupported(Unsupported),
    /// Uncommitted: connections broke before the end of data.
    #[error("{0}")]
    Failed(String),
    /// In doubt: the end of data was written, and the reply was lost.
    #[error("reply lost: {0}")]
    InDoubt(ConnectionError),
}

/// Why one connection was of no use.
enum Broken {
    /// Try another: it broke, or closed with a 421, before the end of data.
    Connection(String),
    /// The attempt is over.
    Over(End),
}

/// Asks the registry right before the end of data is written.
struct Look<'a> {
    waves: &'a Waves,
    attempt: &'a mut Attempt,
    message: &'a Message,
}

impl Commit for Look<'_> {
    type Refusal = Blocked;

    fn commit(&mut self) -> Result<(), Blocked> {
        self.attempt.commit(self.waves.now())?;
        self.message.set_in_doubt(true);
        Ok(())
    }

    fn uncommit(&mut self) {
        self.attempt.uncommit();
        self.message.set_in_doubt(false);
    }
}

/// Makes the attempt.
pub async fn run(mut job: Job) -> Outcome {
    let mut mark = None;
    let mut target = None;
    let end = job.run(&mut mark, &mut target).await;
    let sent = matches!(end, End::Settled(_) | End::InDoubt(_));
    if let Some(ended) = ended(&end) {
        job.upstream.note_end(ended, job.relay.waves.now());
    }
    if !sent && let Some(mark) = mark.take() {
        mark.end();
    }
    Outcome { end, target, mark, place: job.place }
}

/// What an end says of the upstream; nothing where the attempt did not come that far.
fn ended(end: &End) -> Option<Ended> {
    match end {
        End::Settled(settled) => Some(Ended::Answered(settled.reply.code())),
        End::Failed(_) | End::InDoubt(_) => Some(Ended::Broken),
        End::NoConnection(LeaseError::AllDown { .. } | LeaseError::Connect { .. }) => {
            Some(Ended::Broken)
        }
        End::NoConnection(_) | End::Held(_) | End::Limited(_) | End::Unsupported(_) => None,
    }
}

impl Job {
    async fn run(&mut self, mark: &mut Option<Mark>, at: &mut Option<SocketAddr>) -> End {
        let mut attempt = match &self.instance {
            None => Attempt::unattributed(),
            Some(instance) => match instance.begin(self.relay.waves.now()) {
                Ok(attempt) => attempt,
                Err(blocked) => return End::Held(blocked),
            },
        };
        let mut permit = None;
        let (mut avoid, mut fresh) = (None, false);
        let mut last = "no connection".to_owned();
        for _ in 0..ROUNDS {
            let mut lease = match self.lease(avoid.as_ref(), fresh).await {
                Ok(lease) => lease,
                // The upstream's answer, before the message could be begun.
                Err(LeaseError::Unwanted { target, reply, .. }) => {
                    refund(permit);
                    drop(attempt);
                    *at = Some(target);
                    self.learn(&reply).await;
                    let stage = Stage::Mail;
                    return End::Settled(Settled { reply, refused: Vec::new(), stage });
                }
                Err(error) => {
                    refund(permit);
                    return End::NoConnection(error);
                }
            };
            if permit.is_none() {
                match self.relay.limits.try_acquire(&self.charges) {
                    Ok(taken) => permit = Some(taken),
                    // Connection first, then all limits at once: nobody holds a limit while he
                    // waits for a connection that another one needs a limit for.
                    Err(error) => {
                        lease.release();
                        match self.wait_for_limits(error).await {
                            Ok(taken) => permit = Some(taken),
                            Err(error) => return End::Limited(error),
                        }
                        continue;
                    }
                }
            }
            if self.marked && mark.is_none() {
                // Before anything is sent, and only if it could be noted.
                match self.relay.queue.mark(self.message.id) {
                    Ok(noted) => *mark = Some(noted),
                    Err(error) => {
                        lease.release();
                        refund(permit);
                        return End::Failed(format!("the attempt cannot be noted: {error}"));
                    }
                }
            }
            let reused = lease.is_reused();
            let target = lease.endpoint().clone();
            *at = Some(target.address);
            let is_link = matches!(lease.way(), Way::Link(_));
            let transacted = match lease.way() {
                Way::Smtp(connection) => self.transact(connection, &mut attempt).await,
                // In a box: its state is larger, and nobody else should carry it.
                _ => {
                    let mut place = self.place.take();
                    let sent = self.transact_by_link(&mut lease, &mut attempt, &mut place);
                    let sent = Box::pin(sent).await;
                    self.place = place;
                    sent
                }
            };
            match transacted {
                Ok(settled) => {
                    drop(attempt);
                    self.settled(lease, &target, &settled).await;
                    return End::Settled(settled);
                }
                Err(Broken::Over(end)) => {
                    self.over(lease, &target, permit, &end);
                    return end;
                }
                Err(Broken::Connection(error)) => {
                    // A pooled connection may just have been old; a fresh one tells of its target.
                    fresh = reused;
                    if is_link {
                        avoid = Some(target);
                    } else if !reused {
                        self.upstream.report_failure(&target, &error);
                        avoid = Some(target);
                    }
                    let upstream = &self.upstream.config.name;
                    self.relay.emit(&Event::AttemptRetried { upstream, error: &error });
                    last = error;
                }
            }
        }
        refund(permit);
        End::Failed(last)
    }

    async fn lease(&mut self, avoid: Option<&Endpoint>, fresh: bool) -> Result<Lease, LeaseError> {
        let source = &self.message.source;
        if let Some(lease) = self.lease.take() {
            return self.upstream.fit(lease, source).await;
        }
        let Patience { connection, queue, .. } = self.patience;
        match connection {
            Some(deadline) => self.upstream.lease(deadline, queue, avoid, fresh, source).await,
            None => self.upstream.lease(Instant::now(), 0, avoid, fresh, source).await,
        }
    }

    async fn wait_for_limits(&self, error: LimitError) -> Result<Permit, LimitError> {
        match self.patience.limits {
            Some(deadline) => self.relay.limits.acquire(&self.charges, deadline).await,
            None => Err(error),
        }
    }

    /// The attempt is over without a reply: gives back what it holds.
    fn over(&self, mut lease: Lease, target: &Endpoint, permit: Option<Permit>, end: &End) {
        match end {
            // That is the window's doing.
            End::InDoubt(ConnectionError::Held(_)) => {}
            // Of a gateway its connections tell.
            End::InDoubt(_) if self.upstream.config.link.is_some() => {}
            End::InDoubt(error) => self.upstream.report_failure(target, &error.to_string()),
            End::Held(_) => {
                let is_ready = match lease.way() {
                    Way::Smtp(connection) => connection.client().abandon(),
                    Way::Link(_) | Way::None => true,
                };
                if is_ready {
                    lease.release();
                }
                refund(permit);
            }
            _ => {
                lease.release();
                refund(permit);
            }
        }
    }

    async fn settled(&self, mut lease: Lease, target: &Endpoint, settled: &Settled) {
        let is_ready = match lease.way() {
            Way::Smtp(connection) => connection.client().is_ready(),
            Way::Link(_) | Way::None => true,
        };
        if is_ready {
            // A gateway that takes no more connections answers what it has.
            if self.upstream.config.link.is_none() {
                self.upstream.report_success(target, None);
            }
            lease.release();
        }
        self.learn(&settled.reply).await;
    }

    /// One transaction on one connection.
    async fn transact(
        &self,
        connection: &mut Connection,
        attempt: &mut Attempt,
    ) -> Result<Settled, Broken> {
        let begun = Instant::now();
        let Message { head, parcel, .. } = &*self.message;
        let shape = BodyShape::of(&parcel.facts, head.len() as u64);
        connection.count_message();
        let recipients = self.recipients.iter().map(|&index| &parcel.recipients[index as usize]);
        let identity = self.upstream.forwards().then(|| {
            if !connection.client().forwards() {
                self.upstream.note_not_forwarded(None);
            }
            identity::of(&self.message.source, Some(&self.message.id))
        });
        connection
            .client()
            .begin_from(identity.as_ref(), &parcel.mail, recipients, &shape)
            .map_err(|unsupported| Broken::Over(End::Unsupported(unsupported)))?;
        let config = &self.upstream.config;
        let mut patience = config.reply_timeout;
        loop {
            match connection.event(patience).await {
                Ok(ClientEvent::SendBody(form)) => {
                    let waves = &self.relay.waves;
                    let mut look = Look { waves, attempt, message: &self.message };
                    let time = config.reply_timeout;
                    match write::message(connection, form, head, &parcel.body, &mut look, time)
                        .await
                    {
                        Ok(()) => {
                            connection.client().body_sent();
                            patience = config.final_timeout;
                        }
                        Err(WriteError::Held(blocked)) => {
                            return Err(Broken::Over(End::Held(blocked)));
                        }
                        Err(WriteError::Broken(error)) => {
                            return match connection.last_words() {
                                Some(ClientEvent::Settled(settled)) => Ok(settled),
                                _ => Err(Broken::Connection(error.to_string())),
                            };
                        }
                    }
                }
                Ok(ClientEvent::Settled(settled)) => {
                    self.message.set_in_doubt(false);
                    if settled.reply.code() == 421 && settled.stage != Stage::End {
                        return Err(closed_with(&settled.reply));
                    }
                    self.upstream.report_answer(begun.elapsed());
                    return Ok(settled);
                }
                Ok(ClientEvent::NotForwarded(reply)) => {
                    self.upstream.note_not_forwarded(Some(&reply));
                }
                Ok(ClientEvent::Closing(reply) | ClientEvent::Refused(reply)) => {
                    return Err(closed_with(&reply));
                }
                // Before any message, or not asked for.
                Ok(
                    ClientEvent::Ready(_)
                    | ClientEvent::StartTls
                    | ClientEvent::NoTls(_)
                    | ClientEvent::NoXclient(_)
                    | ClientEvent::Login(_)
                    | ClientEvent::NoLogin
                    | ClientEvent::Reset
                    | ClientEvent::Rehearsed(_),
                ) => {}
                Err(error) if attempt.is_committed() => {
                    return Err(Broken::Over(End::InDoubt(error)));
                }
                Err(error) => return Err(Broken::Connection(error.to_string())),
            }
        }
    }

    /// Tells the policies that want to know what came of it.
    async fn learn(&self, reply: &Reply) {
        let set = &self.generation.policies;
        if set.observers().is_empty() {
            return;
        }
        let now = self.relay.waves.now();
        let text = reply.lines().collect::<Vec<_>>().join(" ");
        for &policy in set.observers() {
            let scope = &self.generation.scopes[policy];
            let keys: Vec<String> = self
                .charges
                .iter()
                .filter(|charge| charge.scope == *scope)
                .flat_map(|charge| {
                    let rates = charge.limits.rates.iter().map(|limit| &limit.key);
                    rates.chain(charge.limits.concurrency.iter().map(|limit| &limit.key))
                })
                .cloned()
                .collect();
            let upstream = original::family(&self.upstream.config.name);
            let code = reply.code();
            let outcome = AttemptOutcome { upstream, keys: &keys, code, text: &text, now };
            let observe = |mine: &mut WorkerPolicies, set: &Arc<PolicySet>, policy: usize| {
                mine.observe(set, policy, &outcome)
            };
            let lessons = asking::ask(&self.relay, set, policy, Waits::Task, observe).await;
            match lessons {
                Ok(lessons) => self.relay.limits.learn(scope, &lessons, now),
                Err(failure) => {
                    let policy = set.policies()[policy].name();
                    let error = &failure.to_string();
                    self.relay.emit(&Event::PolicyFailed { policy, error });
                }
            }
        }
    }
}

/// The upstream closed the session before the end of data.
fn closed_with(reply: &Reply) -> Broken {
    Broken::Connection(format!("it closed with {reply}"))
}

/// A permit is given back whole: the attempt sent nothing.
fn refund(permit: Option<Permit>) {
    if let Some(permit) = permit {
        permit.refund();
    }
}

impl Patience {
    /// Waits for nothing.
    pub const NONE: Self = Self { connection: None, limits: None, queue: 0 };

    /// Waits for both for so long, where fewer than `queue` stand in line.
    pub fn of(time: Duration, queue: usize) -> Self {
        let deadline = Some(Instant::now() + time);
        Self { connection: deadline, limits: deadline, queue }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.message.id, self.upstream.config.name)
    }
}
