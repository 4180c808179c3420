//! Hand-off of a message that was just received: ask the gate, then give it to the upstream
//! while the client waits. Floor 3.
//!
//! Nothing is promised here before the upstream has promised. Until there is a spool, what
//! cannot go on at once is answered `451` and stays with the sender.

mod attempt;
mod body;

use std::{net::IpAddr, sync::Arc};

use tokio::time::Instant;
use wavegate_smtp::{BodyFacts, Enhanced, Mail, Rcpt, Reply};

use crate::{
    body::Body,
    event::{Event, Outcome},
    gate::{self, Answer, Subject, Verdict, attributes, relay_reply},
    message::{MessageId, Trace},
    plan::Timestamp,
    relay::{Generation, Relay},
};
pub use attempt::Failure;

/// How a message came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// Name of the listener.
    pub listener: &'a str,
    /// What the client called itself.
    pub helo: &'a str,
    /// Whether that was by EHLO.
    pub extended: bool,
}

/// A message: envelope, bytes, and what is known of them.
#[derive(Debug)]
pub struct Parcel {
    /// Sender and its parameters.
    pub mail: Mail,
    /// Recipients and their parameters.
    pub recipients: Vec<Rcpt>,
    /// The bytes.
    pub body: Body,
    /// What the receiver learned of them.
    pub facts: BodyFacts,
}

/// What the client is told, and what became of the message.
#[derive(Debug)]
pub struct Handed {
    /// The reply to the end of data.
    pub reply: Reply,
    id: Option<MessageId>,
    outcome: Outcome,
}

impl Handed {
    /// A message that could not even be kept.
    pub fn refused(reply: Reply) -> Self {
        Self { reply, id: None, outcome: Outcome::Deferred }
    }

    /// The client did not wait for the reply.
    pub fn reply_lost(&self, relay: &Relay) {
        if let Some(id) = self.id {
            let delivered = self.outcome == Outcome::Delivered;
            relay.emit(&Event::ReplyLost { id, delivered });
        }
    }
}

/// What became of a message and where.
struct Result {
    reply: Reply,
    outcome: Outcome,
    upstream: Option<String>,
}

impl Result {
    fn of_relay(reply: Reply, outcome: Outcome, upstream: Option<String>) -> Self {
        Self { reply, outcome, upstream }
    }
}

/// Asks the gate and hands the message off directly.
pub async fn deliver(relay: &Arc<Relay>, arrival: &Arrival<'_>, parcel: Parcel) -> Handed {
    let begun = Instant::now();
    let now = relay.waves.now();
    let id = MessageId::new(now, relay.world.entropy.next());
    let generation = relay.generation();
    let Answer { instance, verdict } = ask(relay, &generation, arrival, &parcel, id, now);
    relay.emit(&Event::GateAnswered { elapsed: begun.elapsed() });
    let name = instance.as_ref().map(|instance| Arc::clone(instance.name()));
    let recipients = parcel.recipients.len() as u64;
    let size = parcel.facts.size;
    relay.emit(&Event::Received { instance: name.as_deref(), id, recipients, size });
    let mut account = Account { relay, name, id, recipients, begun, settled: false };
    let result = match verdict {
        Verdict::Go(go) => {
            let head = trace(&generation, arrival, &parcel, id, now);
            let job = attempt::Job { relay, generation: &generation, instance, parcel, head, id };
            attempt::direct(job, go).await
        }
        Verdict::Hold { until, reason } => hold(until, &reason),
        Verdict::Defer(reply) => Result::of_relay(reply, Outcome::Deferred, None),
        Verdict::Refuse(reply) => Result::of_relay(reply, Outcome::Refused, None),
    };
    account.settle(&result);
    drop(account);
    Handed { reply: result.reply, id: Some(id), outcome: result.outcome }
}

/// A received message that must be accounted for, whatever happens to its session.
struct Account<'a> {
    relay: &'a Relay,
    name: Option<Arc<str>>,
    id: MessageId,
    recipients: u64,
    begun: Instant,
    settled: bool,
}

impl Account<'_> {
    fn settle(&mut self, result: &Result) {
        self.settled = true;
        self.relay.emit(&Event::Settled {
            instance: self.name.as_deref(),
            id: self.id,
            upstream: result.upstream.as_deref(),
            recipients: self.recipients,
            outcome: result.outcome,
            reply: &result.reply,
            elapsed: self.begun.elapsed(),
        });
    }
}

impl Drop for Account<'_> {
    /// The session was cut off, or panicked: nobody knows how far it came.
    fn drop(&mut self) {
        if !self.settled {
            let reply = Reply::fixed(421, Enhanced(4, 3, 0), "session cut off");
            self.settle(&Result::of_relay(reply, Outcome::InDoubt, None));
        }
    }
}

fn ask(
    relay: &Relay,
    generation: &Generation,
    arrival: &Arrival<'_>,
    parcel: &Parcel,
    id: MessageId,
    now: Timestamp,
) -> Answer {
    let recipients: Vec<&str> =
        parcel.recipients.iter().map(|rcpt| rcpt.recipient.as_str()).collect();
    let headers = if attributes::wants_headers(generation.policies.needs()) {
        body::header_block(parcel)
    } else {
        Vec::new()
    };
    let subject = Subject {
        id: id.as_str(),
        client: arrival.client,
        listener: arrival.listener,
        helo: arrival.helo,
        sender: parcel.mail.sender.as_str(),
        sender_domain: parcel.mail.sender.domain(),
        recipients: &recipients,
        size: parcel.facts.size,
        attempts: 0,
        headers: &headers,
    };
    let plan = relay.waves.current();
    gate::ask(relay, generation, &plan, &subject, now, None)
}

fn hold(until: Option<Timestamp>, reason: &str) -> Result {
    Result::of_relay(held_reply(until, reason), Outcome::Held, None)
}

/// Until there is a spool, what is held stays with the sender; this reply says why.
pub fn held_reply(until: Option<Timestamp>, reason: &str) -> Reply {
    let text = match until {
        Some(until) if !reason.contains(&until.to_string()) => {
            format!("held: {reason}; not before {until}")
        }
        _ => format!("held: {reason}"),
    };
    relay_reply(451, Enhanced(4, 7, 0), &text)
}

/// The `Received` line, if one is wanted.
fn trace(
    generation: &Generation,
    arrival: &Arrival<'_>,
    parcel: &Parcel,
    id: MessageId,
    time: Timestamp,
) -> Vec<u8> {
    let config = &generation.config.relay;
    let mut head = Vec::new();
    if config.received {
        head.reserve(256);
        let protocol = match (parcel.mail.smtputf8, arrival.extended) {
            (true, _) => "UTF8SMTP",
            (false, true) => "ESMTP",
            (false, false) => "SMTP",
        };
        let Arrival { helo, client, .. } = *arrival;
        Trace { helo, client, hostname: &config.hostname, protocol, id, time }.write(&mut head);
    }
    head
}
