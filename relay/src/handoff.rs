//! Hand-off of a message that was just received: ask the gate, then give it to the upstream
//! while the client waits, or to the spool. Floor 3.
//!
//! Nothing is promised here before the upstream has promised or the spool has synced it. Who gave
//! the message is told once for all recipients (SMTP) or for each of them (a link): both are made
//! of the same [`Told`], and [`Voice`] says where they differ.

mod direct;
mod told;
mod verify;

use std::sync::Arc;

pub use told::Part;
pub use verify::verify;

use tokio::time::Instant;
use wavegate_link::How;
use wavegate_smtp::{Enhanced, Reply};

use crate::{
    answer::{Answer, Go, Kept, Verdict},
    config::Handoff,
    delivery,
    envelope::{Envelope, LastWord, Progress},
    event::{Event, Outcome, Via},
    gate::{self, Subject, attributes},
    message::{MessageId, Source, Trace},
    parcel::{Message, Parcel},
    plan::Timestamp,
    queue::{Accepted, NewMessage},
    relay::{Generation, Relay},
    replies::relay_reply,
    scheduler::Wait,
    spool::{Receipt, SpoolError},
    waves::{InstanceState, PlanState},
    world::Deadline,
};
use told::Told;

/// What the client is told, and what became of the message.
#[derive(Debug)]
pub struct Handed {
    /// The reply to the end of data.
    pub reply: Reply,
    id: Option<MessageId>,
    promised: bool,
}

impl Handed {
    /// A message that could not even be kept.
    pub fn refused(reply: Reply) -> Self {
        Self { reply, id: None, promised: false }
    }

    /// The client did not wait for the reply.
    pub fn reply_lost(&self, relay: &Relay) {
        if let Some(id) = self.id {
            relay.emit(&Event::ReplyLost { id, delivered: self.promised });
        }
    }
}

/// To whom the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voice {
    /// A client, who hears one reply for all recipients.
    Client,
    /// An edge, which hears a reply for each.
    Link,
}

/// A new message on its way.
struct Incoming<'a> {
    relay: &'a Arc<Relay>,
    voice: Voice,
    generation: Arc<Generation>,
    plan: Arc<PlanState>,
    instance: Option<Arc<InstanceState>>,
    message: Arc<Message>,
    now: Timestamp,
    /// How often something had changed before the gate was asked.
    asked: u64,
}

/// Asks the gate and hands the message off, or has it spooled. `patience` is the session's timer,
/// which has no other use meanwhile.
pub async fn deliver(
    relay: &Arc<Relay>,
    source: &Arc<Source>,
    id: MessageId,
    parcel: Parcel,
    patience: &mut Deadline,
) -> Handed {
    let told = New { relay, source, id, via: None }.deliver(parcel, patience).await;
    let reply = told.reply();
    Handed { promised: reply.is_positive(), reply, id: Some(id) }
}

/// The same for a message that came over a link: what is said of each of its recipients. `id` is
/// the gateway's own, `via` says what the edge calls it.
pub async fn deliver_each(
    relay: &Arc<Relay>,
    source: &Arc<Source>,
    id: MessageId,
    via: Via<'_>,
    parcel: Parcel,
) -> Vec<Part> {
    let mut patience = Deadline::default();
    let via = Some(via);
    New { relay, source, id, via }.deliver(parcel, &mut patience).await.parts
}

/// A message that nobody was asked about yet.
struct New<'a> {
    relay: &'a Arc<Relay>,
    source: &'a Arc<Source>,
    id: MessageId,
    /// The edge that it came from.
    via: Option<Via<'a>>,
}

impl New<'_> {
    async fn deliver(self, parcel: Parcel, patience: &mut Deadline) -> Told {
        let Self { relay, source, id, via } = self;
        let begun = Instant::now();
        let asked = relay.queue.changes();
        let now = relay.waves.now();
        let generation = relay.generation();
        let plan = relay.waves.current_owned();
        let Answer { instance, verdict } =
            ask(relay, &generation, &plan, source, &parcel, id, now).await;
        relay.emit(&Event::GateAnswered { elapsed: begun.elapsed() });
        let name = instance.as_ref().map(|instance| Arc::clone(instance.name()));
        let recipients = parcel.recipients.len();
        let size = parcel.facts.size;
        relay.emit(&Event::Received {
            instance: name.as_deref(),
            id,
            recipients: recipients as u64,
            size,
            client: source.client,
            destination: source.destination,
            listener: &source.listener,
            user: source.user.as_deref(),
            via,
            sender: parcel.mail.sender.as_str(),
            to: &parcel.recipients,
        });
        let mut account = Account { relay, name, id, recipients, begun, settled: false };
        let told = match verdict {
            Verdict::Defer(reply) => {
                Told::of_all(recipients, How::Gateway, reply, Outcome::Deferred)
            }
            Verdict::Refuse(reply) => {
                Told::of_all(recipients, How::Gateway, reply, Outcome::Refused)
            }
            verdict => {
                let head = trace(&generation, source, &parcel, id, now);
                let message = Arc::new(Message::new(id, Arc::clone(source), head, parcel));
                let voice = if via.is_some() { Voice::Link } else { Voice::Client };
                let incoming =
                    Incoming { relay, voice, generation, plan, instance, message, now, asked };
                match verdict {
                    Verdict::Go(shares) => incoming.go(shares, patience).await,
                    Verdict::Hold { until, reason } => incoming.hold(until, &reason).await,
                    Verdict::Defer(_) | Verdict::Refuse(_) => unreachable!("answered above"),
                }
            }
        };
        account.settle(&told);
        told
    }
}

impl Incoming<'_> {
    /// The gate lets it go: directly, where that is wanted and can be now, else by the spool.
    async fn go(self, mut shares: Vec<Go>, patience: &mut Deadline) -> Told {
        if let Some(reason) = self.relay.queue.all_held() {
            let progress = self.progress();
            return self.spool(progress, Wait::Turn, Some(&reason), None).await;
        }
        // Several upstreams have several answers, and a client gets one; an edge would wait for the
        // slowest of them.
        if shares.len() != 1 {
            let kept = self.keep(shares);
            let progress = self.progress();
            return self.spool(progress, Wait::Turn, None, Some(kept)).await;
        }
        let go = shares.remove(0);
        let upstream = Arc::clone(&go.upstream);
        let queued = match upstream.config.handoff {
            Handoff::Queued => true,
            Handoff::Direct => false,
            Handoff::Auto => {
                let name = &upstream.config.name;
                upstream.is_slow() || self.relay.queue.must_wait(name, &go.charges)
            }
        };
        if queued {
            let kept = self.keep(vec![go]);
            let progress = self.progress();
            return self.spool(progress, Wait::Turn, None, Some(kept)).await;
        }
        self.direct(upstream, go, patience).await
    }

    /// The answer, for the attempt that comes soon.
    fn keep(&self, shares: Vec<Go>) -> Kept {
        let phase =
            |instance: &Arc<InstanceState>| (Arc::clone(instance), instance.phase(self.now));
        Kept {
            generation: self.generation.number,
            plan: Arc::clone(&self.plan),
            at: self.now,
            instance: self.instance.as_ref().map(phase),
            shares,
        }
    }

    async fn hold(self, until: Option<Timestamp>, reason: &str) -> Told {
        let wait = match (self.frozen(), until) {
            // The end of a window is a change of phase, whatever time is named for it.
            (Some(phase), _) => phase,
            (None, Some(until)) => Wait::HoldUntil(until),
            (None, None) => Wait::Change,
        };
        let progress = self.progress();
        self.spool(progress, wait, Some(reason), None).await
    }

    fn frozen(&self) -> Option<Wait> {
        gate::frozen(self.relay, self.instance.as_deref(), self.message.source.client)
    }

    fn progress(&self) -> Progress {
        let instance = self.instance.as_ref().map(|instance| instance.name().to_string());
        Progress { instance, ..Progress::default() }
    }

    /// The envelope as the spool keeps it, which has the head in the body.
    fn envelope(&self) -> Arc<Envelope> {
        let Message { id, source, head, parcel, .. } = &*self.message;
        let mut facts = parcel.facts;
        facts.size += head.len() as u64;
        facts.header_size += head.len() as u64;
        facts.received += u32::from(!head.is_empty());
        Arc::new(Envelope {
            id: *id,
            received: self.now,
            source: Arc::clone(source),
            on_behalf: None,
            mail: parcel.mail.clone(),
            recipients: parcel.recipients.clone(),
            facts,
        })
    }

    /// Has the spool take what has no end yet, and says so once it is durable.
    async fn spool(
        self,
        mut progress: Progress,
        wait: Wait,
        reason: Option<&str>,
        answer: Option<Kept>,
    ) -> Told {
        // What a window holds says so by itself.
        if let Some(reason) = reason
            && !matches!(wait, Wait::Phase(_))
        {
            progress.last = Some(LastWord::new(None, reason, self.now));
        }
        let recipients = self.count();
        let waits = progress.clone();
        let new = NewMessage { answer, ..self.new_message(progress, wait.clone()) };
        match self.relay.queue.accept(vec![new]).await {
            Ok(accepted) => {
                let (id, left) = (self.message.id, recipients as u64);
                delivery::tell_waits(self.relay, id, &waits, left, &wait, None);
                let Accepted { slot, receipt } = &accepted[0];
                delivery::line(self.relay, *slot, &wait, self.asked);
                let reply = taken(id, receipt);
                Told::of_all(recipients, How::Stored, reply, Outcome::Spooled)
            }
            Err(error) => {
                Told::of_all(recipients, How::Gateway, no_spool(&error), Outcome::Deferred)
            }
        }
    }

    /// Its recipients.
    fn count(&self) -> usize {
        self.message.parcel.recipients.len()
    }

    fn new_message(&self, progress: Progress, wait: Wait) -> NewMessage {
        let envelope = self.envelope();
        NewMessage { message: Arc::clone(&self.message), envelope, progress, wait, answer: None }
    }
}

/// The spool has it: the promise, with the id that it is found by.
fn taken(id: MessageId, _receipt: &Receipt) -> Reply {
    relay_reply(250, Enhanced(2, 0, 0), &format!("queued as {id}"))
}

/// The spool cannot take it.
fn no_spool(error: &SpoolError) -> Reply {
    // Each message has its line with this reply, within bounds; why is said once, by the spool.
    tracing::debug!(%error, "a message cannot be spooled");
    match error {
        SpoolError::Full(_) => relay_reply(452, Enhanced(4, 3, 1), "no room for this message now"),
        _ => relay_reply(451, Enhanced(4, 3, 0), "this message cannot be kept now"),
    }
}

/// A received message that must be accounted for, whatever happens to its session.
struct Account<'a> {
    relay: &'a Relay,
    name: Option<Arc<str>>,
    id: MessageId,
    recipients: usize,
    begun: Instant,
    settled: bool,
}

impl Account<'_> {
    fn settle(&mut self, told: &Told) {
        self.settled = true;
        for part in &told.parts {
            self.relay.emit(&Event::Settled {
                instance: self.name.as_deref(),
                id: self.id,
                upstream: told.upstream.as_deref(),
                target: told.target,
                recipients: part.recipients.len() as u64,
                outcome: part.outcome,
                reply: &part.reply,
                elapsed: self.begun.elapsed(),
            });
        }
    }
}

impl Drop for Account<'_> {
    /// The session was cut off, or panicked: nobody knows how far it came.
    fn drop(&mut self) {
        if !self.settled {
            let reply = Reply::fixed(421, Enhanced(4, 3, 0), "session cut off");
            self.settle(&Told::of_all(self.recipients, How::InDoubt, reply, Outcome::InDoubt));
        }
    }
}

async fn ask(
    relay: &Relay,
    generation: &Generation,
    plan: &PlanState,
    source: &Source,
    parcel: &Parcel,
    id: MessageId,
    now: Timestamp,
) -> Answer {
    let recipients: Vec<&str> =
        parcel.recipients.iter().map(|rcpt| rcpt.recipient.as_str()).collect();
    let needs = generation.policies.needs();
    let headers = if attributes::wants_headers(&needs.attributes, &plan.plan) {
        parcel.header_block()
    } else {
        Vec::new()
    };
    let subject = Subject {
        id: id.as_str(),
        source,
        sender: parcel.mail.sender.as_str(),
        sender_domain: parcel.mail.sender.domain(),
        recipients: &recipients,
        size: parcel.facts.size,
        on_behalf: None,
        received: None,
        attempts: 0,
        last_reply: None,
        headers: &headers,
    };
    gate::ask(relay, generation, plan, &subject, now).await
}

/// The `Received` line, if one is wanted.
fn trace(
    generation: &Generation,
    source: &Source,
    parcel: &Parcel,
    id: MessageId,
    time: Timestamp,
) -> Vec<u8> {
    let config = &generation.config.relay;
    let mut head = Vec::new();
    if config.received {
        head.reserve(256);
        let (smtputf8, hostname) = (parcel.mail.smtputf8, &config.hostname);
        Trace { source, smtputf8, hostname, id, time }.write(&mut head);
    }
    head
}
