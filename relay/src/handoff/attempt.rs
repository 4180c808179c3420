//! A direct attempt, from the gate's "go" to the reply for the client. Floor 3.
//!
//! It has three states. *Uncommitted*: the end of data is not written; it is tried again
//! freely. *In doubt*: it is written, and no reply has come; nothing may be tried again.
//! *Settled*: the upstream has replied.

use std::sync::Arc;

use tokio::time::Instant;
use wavegate_smtp::{BodyShape, ClientEvent, Enhanced, Reply, Settled, client::Stage};

use super::{Parcel, Result as Handed, body, hold};
use crate::{
    decision::AttemptOutcome,
    event::{Event, Outcome},
    gate::{Go, relay_reply},
    limits::{LimitError, Permit},
    message::MessageId,
    plan::Phase,
    relay::{Generation, Relay, with_policies},
    upstream::{
        Connection, ConnectionError, Upstream,
        connection::{Commit, WriteError},
    },
    waves::{Attempt, Blocked, InstanceState, Waves},
};

/// Connections that one direct attempt may use up before it is left to the client's retry:
/// one pooled one that turned out to be dead, and two targets.
const ROUNDS: u32 = 3;

/// Everything that a direct attempt works with.
pub(super) struct Job<'a> {
    pub(super) relay: &'a Arc<Relay>,
    pub(super) generation: &'a Generation,
    pub(super) instance: Option<Arc<InstanceState>>,
    pub(super) parcel: Parcel,
    /// The `Received` line, or nothing.
    pub(super) head: Vec<u8>,
    pub(super) id: MessageId,
}

/// Why an attempt has no reply of the upstream.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The phase forbids it; nothing of the message counts as sent.
    #[error("the window forbids it: {}", .0.phase)]
    Held(Blocked),
    /// Uncommitted: the connection broke before the end of data.
    #[error("{0}")]
    Broken(ConnectionError),
    /// Uncommitted: the upstream closed the session with a 421 before the end of data.
    #[error("it closed with {}", .0)]
    Closed(Reply),
    /// The upstream cannot be given this message.
    #[error("{0}")]
    Unsupported(wavegate_smtp::Unsupported),
    /// In doubt: the end of data was written, and the reply was lost.
    #[error("reply lost: {0}")]
    InDoubt(ConnectionError),
}

/// Asks the registry right before the end of data is written.
struct Look<'a> {
    waves: &'a Waves,
    attempt: &'a mut Attempt,
}

impl Commit for Look<'_> {
    type Refusal = Blocked;

    fn commit(&mut self) -> Result<(), Blocked> {
        self.attempt.commit(self.waves.now())
    }

    fn uncommit(&mut self) {
        self.attempt.uncommit();
    }
}

/// Hands the message off while the client waits.
pub(super) async fn direct(job: Job<'_>, go: Go) -> Handed {
    let Some(upstream) = job.generation.upstream(&go.upstream).cloned() else {
        unreachable!("the gate names configured upstreams only")
    };
    let mut attempt = match &job.instance {
        None => Attempt::unattributed(),
        Some(instance) => match instance.begin(job.relay.waves.now()) {
            Ok(attempt) => attempt,
            Err(blocked) => return job.held(blocked),
        },
    };
    let limits = &job.generation.config.limits;
    let deadline = Instant::now() + limits.direct_wait;
    let mut permit = None;
    let (mut avoid, mut fresh) = (None, false);
    let mut last: Option<Failure> = None;
    for _ in 0..ROUNDS {
        let lease = match upstream.lease(deadline, limits.direct_queue, avoid, fresh).await {
            Ok(lease) => lease,
            Err(error) => {
                refund(permit);
                return job.unavailable(&upstream, &error.to_string());
            }
        };
        // Connection first, then all limits at once: nobody holds a limit while he waits for a
        // connection that another one needs a limit for.
        let mut lease = if permit.is_some() {
            lease
        } else if let Ok(taken) = job.relay.limits.try_acquire(&go.charges) {
            permit = Some(taken);
            lease
        } else {
            lease.release();
            match job.relay.limits.acquire(&go.charges, deadline).await {
                Ok(taken) => permit = Some(taken),
                Err(error) => return job.limited(&upstream, &error),
            }
            continue;
        };
        let reused = lease.is_reused();
        let target = lease.connection().target();
        match job.transact(&upstream, lease.connection(), &mut attempt).await {
            Ok(settled) => {
                let reply = settled.for_recipient(0).clone();
                if lease.connection().client().is_ready() {
                    upstream.report_success(target, None);
                    lease.release();
                }
                drop(attempt);
                job.learn(&upstream, &go, &reply).await;
                return job.settled(&upstream, reply);
            }
            Err(Failure::Held(blocked)) => {
                if lease.connection().client().abandon() {
                    lease.release();
                }
                refund(permit);
                return job.held(blocked);
            }
            Err(Failure::Unsupported(unsupported)) => {
                lease.release();
                refund(permit);
                let reply = unsupported.reply().clone();
                return Handed::of_relay(reply, Outcome::Refused, Some(go.upstream));
            }
            Err(Failure::InDoubt(error)) => {
                upstream.report_failure(target, &error.to_string());
                return job.in_doubt(&upstream, &error);
            }
            Err(failure @ (Failure::Broken(_) | Failure::Closed(_))) => {
                // A pooled connection may just have been old; a fresh one tells of its target.
                fresh = reused;
                if !reused {
                    upstream.report_failure(target, &failure.to_string());
                    avoid = Some(target);
                }
                let (name, error) = (&go.upstream, &failure.to_string());
                job.relay.emit(&Event::AttemptRetried { upstream: name, error });
                last = Some(failure);
            }
        }
    }
    let error = last.map_or_else(|| "no connection".to_owned(), |failure| failure.to_string());
    job.unavailable(&upstream, &error)
}

/// A permit is given back whole: the attempt sent nothing.
fn refund(permit: Option<Permit>) {
    if let Some(permit) = permit {
        permit.refund();
    }
}

impl Job<'_> {
    /// One transaction on one connection.
    async fn transact(
        &self,
        upstream: &Upstream,
        connection: &mut Connection,
        attempt: &mut Attempt,
    ) -> Result<Settled, Failure> {
        let shape = BodyShape::of(&self.parcel.facts, self.head.len() as u64);
        connection.count_message();
        connection
            .client()
            .begin(&self.parcel.mail, &self.parcel.recipients, &shape)
            .map_err(Failure::Unsupported)?;
        let config = &upstream.config;
        let mut patience = config.reply_timeout;
        loop {
            match connection.event(patience).await {
                Ok(ClientEvent::SendBody(form)) => {
                    let mut look = Look { waves: &self.relay.waves, attempt };
                    let Self { head, parcel, .. } = self;
                    let time = config.reply_timeout;
                    match body::write(connection, form, head, &parcel.body, &mut look, time).await {
                        Ok(()) => {
                            connection.client().body_sent();
                            patience = config.final_timeout;
                        }
                        Err(WriteError::Held(blocked)) => return Err(Failure::Held(blocked)),
                        Err(WriteError::Broken(error)) => {
                            return match connection.last_words() {
                                Some(ClientEvent::Settled(settled)) => Ok(settled),
                                _ => Err(Failure::Broken(error)),
                            };
                        }
                    }
                }
                Ok(ClientEvent::Settled(settled)) => {
                    let closing = settled.for_recipient(0).code() == 421;
                    if closing && settled.stage != Stage::End {
                        return Err(Failure::Closed(settled.for_recipient(0).clone()));
                    }
                    return Ok(settled);
                }
                Ok(ClientEvent::Closing(reply) | ClientEvent::Refused(reply)) => {
                    return Err(Failure::Closed(reply));
                }
                Ok(ClientEvent::Ready(_) | ClientEvent::Reset) => {}
                Err(error) if attempt.is_committed() => return Err(Failure::InDoubt(error)),
                Err(error) => return Err(Failure::Broken(error)),
            }
        }
    }

    /// The upstream has replied.
    fn settled(&self, upstream: &Upstream, reply: Reply) -> Handed {
        let outcome = match reply.code() {
            200..=299 => Outcome::Delivered,
            500..=599 => Outcome::Refused,
            _ => Outcome::Deferred,
        };
        // 421 would say that this session is over; that one was.
        let reply = if reply.code() == 421 {
            let text = reply.lines().next().unwrap_or_default().to_owned();
            relay_reply(451, Enhanced(4, 3, 2), &text)
        } else {
            reply
        };
        let upstream = Some(upstream.config.name.clone());
        Handed { reply, outcome, upstream }
    }

    fn held(&self, blocked: Blocked) -> Handed {
        let name = self.instance.as_ref().map_or("", |instance| instance.name());
        let phase: Phase = blocked.phase;
        let verb = if phase.may_commit() { "has become" } else { "is" };
        hold(None, &format!("instance {name} {verb} {phase}"))
    }

    fn limited(&self, upstream: &Upstream, error: &LimitError) -> Handed {
        let reply = relay_reply(451, Enhanced(4, 7, 0), &format!("try again later: {error}"));
        Handed::of_relay(reply, Outcome::Deferred, Some(upstream.config.name.clone()))
    }

    fn unavailable(&self, upstream: &Upstream, error: &str) -> Handed {
        let name = &upstream.config.name;
        tracing::debug!(id = %self.id, upstream = %name, error, "not handed off");
        let text = if error.contains(name.as_str()) {
            error.to_owned()
        } else {
            format!("upstream {name}: {error}")
        };
        let reply = relay_reply(451, Enhanced(4, 4, 1), &text);
        Handed::of_relay(reply, Outcome::Deferred, Some(name.clone()))
    }

    fn in_doubt(&self, upstream: &Upstream, error: &ConnectionError) -> Handed {
        let name = &upstream.config.name;
        self.relay.emit(&Event::InDoubt {
            instance: self.instance.as_ref().map(|instance| &**instance.name()),
            id: self.id,
            upstream: name,
            error: &error.to_string(),
        });
        let text = format!("upstream {name} may have taken it, its reply was lost: {error}");
        let reply = relay_reply(451, Enhanced(4, 4, 2), &text);
        Handed::of_relay(reply, Outcome::InDoubt, Some(name.clone()))
    }

    /// Tells the policies that want to know what came of it.
    async fn learn(&self, upstream: &Upstream, go: &Go, reply: &Reply) {
        let set = &self.generation.policies;
        if set.observers().is_empty() {
            return;
        }
        let now = self.relay.waves.now();
        let text = reply.lines().collect::<Vec<_>>().join(" ");
        for &policy in set.observers() {
            let scope = &self.generation.scopes[policy];
            let keys: Vec<String> = go
                .charges
                .iter()
                .filter(|charge| charge.scope == *scope)
                .flat_map(|charge| {
                    let rates = charge.limits.rates.iter().map(|limit| &limit.key);
                    rates.chain(charge.limits.concurrency.iter().map(|limit| &limit.key))
                })
                .cloned()
                .collect();
            let (upstream, code) = (upstream.config.name.as_str(), reply.code());
            let outcome = AttemptOutcome { upstream, keys: &keys, code, text: &text, now };
            let lessons = with_policies(&self.relay.policy_host, |policies| {
                policies.observe(set, policy, &outcome)
            });
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
