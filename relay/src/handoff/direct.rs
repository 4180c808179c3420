//! Direct hand-off of a new message: the client waits for the upstream's own reply. Floor 3.
//!
//! What becomes of recipients that do not all come to the same end, and of an upstream that
//! takes too long, is decided here.

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, task::Poll};

use wavegate_link::How;
use wavegate_smtp::{Enhanced, Reply, Settled};

use super::{
    Incoming, Voice, no_spool, taken,
    told::{Part, Told},
};
use crate::{
    answer::Go,
    attempt::{self, End, Job, Patience},
    config::{Deferred, Handoff},
    delivery::{self, Failure, Report},
    envelope::{LastWord, Progress},
    event::{Event, Outcome},
    queue::{self, Ended},
    replies::{marked, relay_reply},
    scheduler::Wait,
    upstream::{LeaseError, Upstream},
    world::Deadline,
};

impl Incoming<'_> {
    /// Hands it off while the client waits.
    pub(super) async fn direct(
        self,
        upstream: Arc<Upstream>,
        go: Go,
        patience: &mut Deadline,
    ) -> Told {
        let limits = &self.generation.config.limits;
        let job = Job {
            relay: Arc::clone(self.relay),
            generation: Arc::clone(&self.generation),
            instance: self.instance.clone(),
            message: Arc::clone(&self.message),
            recipients: go.recipients,
            upstream: Arc::clone(&upstream),
            charges: go.charges,
            patience: Patience::of(limits.direct_wait, limits.direct_queue),
            lease: None,
            marked: false,
            place: None,
        };
        // In a box, because one in doubt goes on when the client has been answered.
        let mut attempt: Pin<Box<_>> = Box::pin(attempt::run(job));
        patience.set(limits.direct_deadline);
        let outcome = std::future::poll_fn(|cx| match attempt.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => patience.poll_passed(cx).map(|()| None),
        });
        let mut target = None;
        let end = match outcome.await {
            Some(outcome) => {
                target = outcome.target;
                outcome.end
            }
            None if self.message.is_in_doubt() => match self.take_over(&upstream, attempt).await {
                Ok(told) => return told,
                Err(end) => end,
            },
            None => {
                // Uncommitted: it is as if it had never begun.
                drop(attempt);
                End::Failed(format!("no end within {:?}", limits.direct_deadline))
            }
        };
        let mut told = self.ended(&upstream, end, target).await;
        told.upstream = Some(upstream.config.name.clone());
        told.target = target;
        told
    }

    /// The upstream takes its time over the final reply: the spool takes the message as one in
    /// doubt, the client is answered, and the relay goes on listening. Where the spool cannot,
    /// the client has to wait on.
    async fn take_over(
        &self,
        upstream: &Arc<Upstream>,
        attempt: Pin<Box<impl Future<Output = attempt::Outcome> + Send + 'static>>,
    ) -> Result<Told, End> {
        let name = &upstream.config.name;
        let text = "no final reply yet";
        let mut progress = self.progress();
        progress.in_doubt = Some(name.clone());
        progress.attempts = 1;
        progress.last = Some(LastWord::new(Some(name), text, self.now));
        match self.relay.queue.accept(vec![self.new_message(progress, Wait::Reply)]).await {
            Ok(mut accepted) => {
                let queue::Accepted { slot, receipt } = accepted.remove(0);
                let upstream = Arc::clone(upstream);
                let envelope = self.envelope();
                let message = Arc::clone(&self.message);
                let relay = Arc::clone(self.relay);
                let late = delivery::late(relay, slot, upstream, envelope, message, attempt);
                tokio::spawn(late);
                let reply = taken(self.message.id, &receipt);
                let told = Told::of_all(self.count(), How::Stored, reply, Outcome::Spooled);
                Ok(Told { upstream: Some(name.clone()), ..told })
            }
            Err(error) => {
                tracing::warn!(%error, "a message in doubt cannot be spooled; its client waits on");
                Err(attempt.await.end)
            }
        }
    }

    async fn ended(self, upstream: &Upstream, end: End, target: Option<SocketAddr>) -> Told {
        let recipients = self.count();
        let spools = upstream.config.handoff != Handoff::Direct;
        let name = &upstream.config.name;
        match end {
            End::Settled(settled) => self.settled(upstream, target, settled).await,
            End::Unsupported(unsupported) => {
                let reply = marked(unsupported.reply());
                Told::of_all(recipients, How::Gateway, reply, Outcome::Refused)
            }
            // A window came between the gate and the upstream.
            End::Held(_) => {
                let (progress, wait) = (self.progress(), self.frozen());
                self.spool(progress, wait.unwrap_or(Wait::Turn), None, None).await
            }
            End::InDoubt(error) => {
                self.in_doubt(name, target, &error.to_string());
                let text =
                    format!("upstream {name} may have taken it, its reply was lost: {error}");
                let reply = relay_reply(451, Enhanced(4, 4, 2), &text);
                Told::of_all(recipients, How::InDoubt, reply, Outcome::InDoubt)
            }
            End::Limited(error) if !spools => {
                let text = format!("try again later: {error}");
                let reply = relay_reply(451, Enhanced(4, 7, 0), &text);
                Told::of_all(recipients, How::Gateway, reply, Outcome::Deferred)
            }
            End::NoConnection(_) | End::Failed(_) if !spools => {
                // It is we who may not: nothing is wrong with the client's own login, if it has one.
                let enhanced = match &end {
                    End::NoConnection(error) if error.is_of_login() => Enhanced(4, 7, 0),
                    // A directory server fails (RFC 3463 X.4.3).
                    End::NoConnection(LeaseError::NoTarget { .. }) => Enhanced(4, 4, 3),
                    _ => Enhanced(4, 4, 1),
                };
                let error = end.to_string();
                let text = match error.contains(name.as_str()) {
                    true => error,
                    false => format!("upstream {name}: {error}"),
                };
                let reply = relay_reply(451, enhanced, &text);
                Told::of_all(recipients, How::Gateway, reply, Outcome::Deferred)
            }
            End::NoConnection(_) | End::Failed(_) | End::Limited(_) => {
                let progress = self.progress();
                let wait = delivery::wait_after(&end, upstream, self.now);
                let reason = end.to_string();
                self.spool(progress, wait, Some(&reason), None).await
            }
        }
    }

    /// The upstream has replied: passed on as it is, if it is the same for all recipients.
    async fn settled(
        self,
        upstream: &Upstream,
        target: Option<SocketAddr>,
        settled: Settled,
    ) -> Told {
        let all = Sorted::new(&settled, self.message.parcel.recipients.len());
        let instance = self.instance_name();
        let recipients = &self.message.parcel.recipients;
        let asked = recipients.iter().any(|rcpt| rcpt.notify.is_some_and(|notify| notify.success));
        self.relay.queue.note_direct(instance, all.delivered.len() as u64);
        if asked && !all.delivered.is_empty() {
            let report = Report { relay: self.relay, instance, message: &self.message };
            report.relayed(upstream, &self.envelope(), &settled.reply, &all.delivered).await;
        }
        let spools = upstream.config.handoff != Handoff::Direct
            && upstream.config.deferred == Deferred::Spool;
        match (self.voice, all.only()) {
            (_, Some(outcome)) if outcome != Outcome::Deferred || !spools => {
                let reply = without_421(settled.for_recipient(0));
                Told::of_all(self.count(), How::NextHop, reply, outcome)
            }
            (Voice::Client, _) => self.mixed(upstream, target, &settled, &all).await,
            (Voice::Link, _) => self.each(upstream, target, &settled, &all, spools).await,
        }
    }

    /// Recipients with different ends: one reply cannot say that. What is refused is bounced, what
    /// is deferred is spooled, and once both are durable the client is told `250`.
    async fn mixed(
        self,
        upstream: &Upstream,
        target: Option<SocketAddr>,
        settled: &Settled,
        all: &Sorted,
    ) -> Told {
        let name = &upstream.config.name;
        let instance = self.instance_name();
        let envelope = self.envelope();
        let mut new = Vec::new();
        let failures: Vec<Failure> =
            all.refused.iter().map(|&i| Failure::of_reply(i, settled.for_recipient(i))).collect();
        if !failures.is_empty() {
            let report = Report { relay: self.relay, instance, message: &self.message };
            new.extend(report.bounce(upstream, &envelope, &failures));
        }
        let left = self.left(upstream, settled, all);
        if let Some((progress, wait)) = &left {
            new.push(self.new_message(progress.clone(), wait.clone()));
        }
        let accepted = match self.relay.queue.accept(new).await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !all.delivered.is_empty() {
                    // The sender tries again for all of them: one reply cannot say who has it.
                    let error = format!("delivered to some, the rest not kept: {error}");
                    self.in_doubt(name, target, &error);
                }
                let reply = no_spool(&error);
                return Told::of_all(self.count(), How::Gateway, reply, Outcome::Deferred);
            }
        };
        self.relay.queue.note(instance, Ended::Bounced, all.refused.len() as u64);
        if let Some((progress, wait)) = left {
            let (id, left) = (self.message.id, all.deferred.len() as u64);
            delivery::tell_waits(self.relay, id, &progress, left, &wait, target);
        }
        let reply = match accepted.first() {
            Some(accepted) => taken(self.message.id, &accepted.receipt),
            // Nothing had to be kept: the upstream's own promise to those that it took.
            None => settled.for_recipient(all.delivered.first().copied().unwrap_or(0)).clone(),
        };
        let part = |recipients: &[u32], outcome| {
            let recipients = recipients.to_vec();
            Part { recipients, how: How::Stored, reply: reply.clone(), outcome }
        };
        Told::of(vec![
            part(&all.delivered, Outcome::Delivered),
            part(&all.refused, Outcome::Bounced),
            part(&all.deferred, Outcome::Spooled),
        ])
    }

    /// Each recipient has the upstream's own reply, but for those that are deferred where the spool
    /// tries them again: nothing is bounced here that the edge can still answer for.
    async fn each(
        self,
        upstream: &Upstream,
        target: Option<SocketAddr>,
        settled: &Settled,
        all: &Sorted,
        spools: bool,
    ) -> Told {
        let mut parts = Vec::new();
        for (recipients, outcome) in
            [(&all.delivered, Outcome::Delivered), (&all.refused, Outcome::Refused)]
        {
            parts.extend(by_reply(settled, recipients, outcome));
        }
        let left = if spools { self.left(upstream, settled, all) } else { None };
        let stored = match left {
            Some((progress, wait)) => self.store(progress, wait, all, target).await,
            None => None,
        };
        match stored {
            Some(reply) => {
                let (recipients, how) = (all.deferred.clone(), How::Stored);
                parts.push(Part { recipients, how, reply, outcome: Outcome::Spooled });
            }
            // Whoever gave it tries again.
            None => parts.extend(by_reply(settled, &all.deferred, Outcome::Deferred)),
        }
        Told::of(parts)
    }

    /// Has the spool take those that are deferred.
    async fn store(
        &self,
        progress: Progress,
        wait: Wait,
        all: &Sorted,
        target: Option<SocketAddr>,
    ) -> Option<Reply> {
        let new = self.new_message(progress.clone(), wait.clone());
        match self.relay.queue.accept(vec![new]).await {
            Ok(accepted) => {
                let (id, left) = (self.message.id, all.deferred.len() as u64);
                delivery::tell_waits(self.relay, id, &progress, left, &wait, target);
                accepted.first().map(|accepted| taken(id, &accepted.receipt))
            }
            Err(error) => {
                tracing::debug!(%error, "what is deferred cannot be spooled; it is passed on");
                None
            }
        }
    }

    /// What the spool is to know of those that are deferred, if any is.
    fn left(
        &self,
        upstream: &Upstream,
        settled: &Settled,
        all: &Sorted,
    ) -> Option<(Progress, Wait)> {
        let first = *all.deferred.first()?;
        let mut progress = Progress { attempts: 1, ..self.progress() };
        all.delivered.iter().chain(&all.refused).for_each(|&index| progress.end(index));
        let text = settled.for_recipient(first).to_string();
        progress.last = Some(LastWord::new(Some(&upstream.config.name), &text, self.now));
        let wait = delivery::retry(self.relay, upstream, &mut progress);
        Some((progress, wait))
    }

    fn in_doubt(&self, upstream: &str, target: Option<SocketAddr>, error: &str) {
        let (instance, id) = (self.instance_name(), self.message.id);
        self.relay.emit(&Event::InDoubt { instance, id, upstream, target, error });
    }

    fn instance_name(&self) -> Option<&str> {
        self.instance.as_ref().map(|instance| &**instance.name())
    }
}

/// Recipients by what the upstream said of them.
struct Sorted {
    delivered: Vec<u32>,
    refused: Vec<u32>,
    deferred: Vec<u32>,
}

impl Sorted {
    fn new(settled: &Settled, count: usize) -> Self {
        let mut sorted = Self { delivered: Vec::new(), refused: Vec::new(), deferred: Vec::new() };
        for index in (0..).take(count) {
            match settled.for_recipient(index).code() {
                200..=299 => sorted.delivered.push(index),
                500..=599 => sorted.refused.push(index),
                _ => sorted.deferred.push(index),
            }
        }
        sorted
    }

    /// What became of all of them, if it is the same.
    fn only(&self) -> Option<Outcome> {
        match (self.delivered.is_empty(), self.refused.is_empty(), self.deferred.is_empty()) {
            (false, true, true) => Some(Outcome::Delivered),
            (true, false, true) => Some(Outcome::Refused),
            (true, true, false) => Some(Outcome::Deferred),
            _ => None,
        }
    }
}

/// How many replies are looked at for being the same: a thousand recipients may have as many.
const ALIKE: usize = 16;

/// What the upstream said of these recipients; those of whom it said the same are one part.
fn by_reply(settled: &Settled, recipients: &[u32], outcome: Outcome) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for &recipient in recipients {
        let reply = without_421(settled.for_recipient(recipient));
        match parts.iter_mut().rev().take(ALIKE).find(|part| part.reply == reply) {
            Some(part) => part.recipients.push(recipient),
            None => {
                let recipients = vec![recipient];
                parts.push(Part { recipients, how: How::NextHop, reply, outcome });
            }
        }
    }
    parts
}

/// 421 would say that this session is over; that one was.
pub(super) fn without_421(reply: &Reply) -> Reply {
    if reply.code() != 421 {
        return reply.clone();
    }
    let text = reply.lines().next().unwrap_or_default();
    relay_reply(451, Enhanced(4, 3, 2), text)
}
