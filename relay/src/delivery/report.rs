//! What the sender hears of his message: bounces, and that it went where nobody reports. They
//! are messages of the relay itself, spooled, routed and frozen like all others.

use std::sync::Arc;

use wavegate_smtp::{Enhanced, Extension, Reply};

use crate::{
    config::Bounces,
    envelope::{Envelope, LastWord, Progress},
    event::{End, Event},
    message::{MessageId, Source},
    notification::{
        self, Notification, Original, Outcome, Recipient, Remote, Survey, Terms, Transport,
    },
    parcel::{Message, Parcel},
    plan::Timestamp,
    queue::NewMessage,
    relay::Relay,
    replies::relay_reply,
    scheduler::Wait,
    upstream::Upstream,
};

/// A recipient that was given up.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its index.
    pub recipient: u32,
    why: Why,
}

#[derive(Clone, Debug)]
enum Why {
    /// The upstream refused it.
    Refused(Reply),
    /// The relay or a policy refused it.
    Own(Reply),
    /// Its time was over.
    Expired(Option<Reply>),
    /// An operator took it out.
    Removed(String),
}

impl Failure {
    /// Refused by the upstream.
    pub fn of_reply(recipient: u32, reply: &Reply) -> Self {
        Self { recipient, why: Why::Refused(reply.clone()) }
    }

    /// Refused by a policy, or by the relay because the next hop cannot take it.
    pub fn of_policy(recipient: u32, reply: Reply) -> Self {
        Self { recipient, why: Why::Own(reply) }
    }

    /// Not delivered in time.
    pub fn expired(recipient: u32, last: Option<LastWord>) -> Self {
        let last = last.map(|last| relay_reply(451, Enhanced(4, 4, 7), &last.text));
        Self { recipient, why: Why::Expired(last) }
    }

    /// Taken out by an operator, who wants the sender to hear of it.
    pub fn removed(recipient: u32, reason: &str) -> Self {
        Self { recipient, why: Why::Removed(reason.to_owned()) }
    }

    /// How the recipient ends.
    pub fn end(&self) -> End {
        match self.why {
            // One that an operator removes without a word never comes here.
            Why::Refused(_) | Why::Own(_) | Why::Removed(_) => End::Bounced,
            Why::Expired(_) => End::Expired,
        }
    }

    /// The last reply, if there was one.
    pub fn reply(&self) -> Option<&Reply> {
        match &self.why {
            Why::Refused(reply) | Why::Own(reply) => Some(reply),
            Why::Expired(last) => last.as_ref(),
            Why::Removed(_) => None,
        }
    }

    fn outcome(&self) -> Outcome<'_> {
        match &self.why {
            Why::Refused(reply) | Why::Own(reply) => Outcome::Refused(reply),
            Why::Expired(last) => Outcome::Expired(last.as_ref()),
            Why::Removed(reason) => Outcome::Removed(reason),
        }
    }
}

/// A message that is reported on.
pub struct Report<'a> {
    /// What all share.
    pub relay: &'a Relay,
    /// Its instance, on whose behalf the report goes.
    pub instance: Option<&'a str>,
    /// It.
    pub message: &'a Message,
}

impl Report<'_> {
    /// One bounce for all that failed; none where the sender wants none, or is `<>`.
    pub fn bounce(
        &self,
        upstream: &Upstream,
        envelope: &Envelope,
        failures: &[Failure],
    ) -> Option<NewMessage> {
        if upstream.config.bounces == Bounces::Event {
            return None;
        }
        let name = &upstream.config.name;
        let recipients: Vec<_> = failures
            .iter()
            .map(|failure| {
                let answered = matches!(failure.why, Why::Refused(_) | Why::Expired(Some(_)));
                Recipient {
                    rcpt: &envelope.recipients[failure.recipient as usize],
                    outcome: failure.outcome(),
                    remote: answered.then_some(Remote { name, address: None }),
                    last_attempt: Some(self.relay.waves.now()),
                }
            })
            .collect();
        self.notification(upstream, envelope, &recipients)
    }

    /// Tells the sender who asked for it that recipients went to a server that reports no success
    /// (RFC 3461 5.2.2). If it cannot be spooled that is logged: the message itself is delivered.
    pub async fn relayed(
        &self,
        upstream: &Upstream,
        envelope: &Envelope,
        reply: &Reply,
        recipients: &[u32],
    ) {
        let asked = |&&index: &&u32| {
            let notify = envelope.recipients[index as usize].notify;
            notify.is_some_and(|notify| notify.success)
        };
        let asked: Vec<u32> = recipients.iter().filter(asked).copied().collect();
        let reports = upstream.extensions().is_some_and(|offered| offered.has(Extension::Dsn));
        if asked.is_empty() || reports || upstream.config.bounces == Bounces::Event {
            return;
        }
        let recipients: Vec<_> = asked
            .iter()
            .map(|&index| Recipient {
                rcpt: &envelope.recipients[index as usize],
                outcome: Outcome::Relayed(reply),
                remote: Some(Remote { name: &upstream.config.name, address: None }),
                last_attempt: Some(self.relay.waves.now()),
            })
            .collect();
        if let Some(new) = self.notification(upstream, envelope, &recipients)
            && let Err(error) = self.relay.queue.accept(vec![new]).await
        {
            tracing::warn!(id = %envelope.id, %error, "a notification cannot be spooled");
        }
    }

    fn notification(
        &self,
        upstream: &Upstream,
        envelope: &Envelope,
        recipients: &[Recipient<'_>],
    ) -> Option<NewMessage> {
        let relay = self.relay;
        let now = relay.waves.now();
        let header = self.message.header_block();
        let content = self.content();
        let survey = content.as_deref().map(Survey::of);
        let original = Original {
            id: envelope.id,
            mail: &envelope.mail,
            arrived: envelope.received,
            header: &header,
            content: survey.as_ref(),
        };
        let offered = upstream.extensions().unwrap_or(wavegate_smtp::Extensions::NONE);
        let entropy = || u128::from(relay.world.entropy.next());
        let generation = relay.look();
        let terms = Terms {
            hostname: &generation.config.relay.hostname,
            now,
            random: entropy() << 64 | entropy(),
            whole: notification::WHOLE,
            offers: Transport {
                eight_bit: offered.has(Extension::EightBitMime),
                smtputf8: offered.has(Extension::SmtpUtf8),
            },
        };
        let notification = notification::notification(&original, recipients, &terms)?;
        self.new_message(notification, content.as_deref(), envelope, now)
    }

    /// The message itself, where it is small enough to be returned whole.
    fn content(&self) -> Option<Vec<u8>> {
        let Message { head, parcel, .. } = self.message;
        let length = parcel.body.len() + head.len() as u64;
        if length > notification::WHOLE {
            return None;
        }
        let mut content = head.clone();
        let mut buffer = vec![0; usize::try_from(parcel.body.len()).ok()?];
        let mut filled = 0;
        while filled < buffer.len() {
            match parcel.body.read_at(filled as u64, &mut buffer[filled..]) {
                Ok(count) if count > 0 => filled += count,
                _ => return None,
            }
        }
        content.extend_from_slice(&buffer);
        Some(content)
    }

    fn new_message(
        &self,
        notification: Notification,
        content: Option<&[u8]>,
        original: &Envelope,
        now: Timestamp,
    ) -> Option<NewMessage> {
        let Notification { mail, rcpt, head, with_content, tail, facts, .. } = notification;
        let mut body = self.relay.bodies.writer();
        let content = content.filter(|_| with_content).unwrap_or_default();
        for piece in [head.as_slice(), content, tail.as_slice()] {
            if let Err(error) = body.push(piece) {
                tracing::warn!(id = %original.id, %error, "a notification cannot be written");
                return None;
            }
        }
        let id = MessageId::new(now, self.relay.world.entropy.next());
        let (instance, about) = (self.instance, original.id);
        self.relay.emit(&Event::Notification { instance, id, about });
        // It does not go where the mail wanted to go that it reports on.
        let source = Source { destination: None, ..(*original.source).clone() };
        let source = Arc::new(source);
        let envelope = Envelope {
            id,
            received: now,
            source: Arc::clone(&source),
            on_behalf: self.instance.map(str::to_owned),
            mail: mail.clone(),
            recipients: vec![rcpt.clone()],
            facts,
        };
        let parcel = Parcel { mail, recipients: vec![rcpt], body: body.finish(), facts };
        let progress =
            Progress { instance: self.instance.map(str::to_owned), ..Progress::default() };
        Some(NewMessage {
            message: Arc::new(Message::new(id, source, Vec::new(), parcel)),
            envelope: Arc::new(envelope),
            progress,
            wait: Wait::Turn,
            answer: None,
        })
    }
}
