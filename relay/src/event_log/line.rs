//! The line of an event. Stable: fields may be added. Floor 4.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use wavegate_smtp::Reply;

use crate::{
    config::Addresses,
    event::{Event, Outcome},
    message::MessageId,
    world::WallClock,
};

/// Addresses that a line names; of more it has the number only.
const NAMED: usize = 100;
/// Bytes of an address: more than RFC 5321 4.5.3.1.3 allows.
const ADDRESS: usize = 320;
/// Bytes of a reply or a reason.
const TEXT: usize = 1000;

/// Makes lines.
#[derive(Clone)]
pub(super) struct Writer {
    clock: Arc<dyn WallClock>,
    addresses: Addresses,
    key: Option<[u8; 32]>,
}

/// One line. What is not known, or does not belong to an event, is not there.
#[derive(Default, Serialize)]
struct Line<'a> {
    time: String,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<MessageId>,
    /// `client`: its client was told so. `spool`: it is about a message that the spool has.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wave: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    /// The edge that it came from, and what that one calls the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    edge: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    edge_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipients: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

impl Writer {
    pub(super) fn new(
        clock: Arc<dyn WallClock>,
        addresses: Addresses,
        key: Option<[u8; 32]>,
    ) -> Self {
        Self { clock, addresses, key }
    }

    /// The line of an event that is worth one, with its end.
    pub(super) fn of(&self, event: &Event<'_>) -> Option<Vec<u8>> {
        self.line(event).map(|line| self.text(line))
    }

    /// So many lines are missing here.
    pub(super) fn lost(&self, count: u64) -> Vec<u8> {
        self.text(Line { event: "lost", count: Some(count), ..Line::default() })
    }

    fn text(&self, line: Line<'_>) -> Vec<u8> {
        let line = Line { time: self.clock.now().to_string(), ..line };
        // Numbers, texts and lists of them are never an error.
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        text
    }

    fn line<'a>(&self, event: &Event<'a>) -> Option<Line<'a>> {
        let line = match *event {
            Event::Received {
                instance,
                id,
                recipients,
                size,
                client,
                destination,
                listener,
                user,
                via,
                sender,
                to,
            } => {
                let to =
                    to.iter().take(NAMED).filter_map(|rcpt| self.address(rcpt.recipient.as_str()));
                Line {
                    event: "received",
                    client: Some(client),
                    destination,
                    listener: Some(listener),
                    user,
                    edge: via.map(|via| via.edge),
                    edge_id: via.map(|via| via.id),
                    sender: self.address(sender),
                    to: self.named(to.collect()),
                    size: Some(size),
                    ..message(id, instance, recipients)
                }
            }
            Event::Settled {
                instance,
                id,
                upstream,
                target,
                recipients,
                outcome,
                reply,
                elapsed,
            } => Line {
                event: outcome.as_str(),
                stage: Some("client"),
                upstream,
                target: target.filter(|_| outcome != Outcome::Spooled),
                reply: Some(words(reply)),
                seconds: Some(seconds(elapsed)),
                ..message(id, instance, recipients)
            },
            Event::Ended { instance, id, upstream, target, recipient, end, reply, age, held } => {
                Line {
                    event: end.as_str(),
                    stage: Some("spool"),
                    upstream,
                    target,
                    to: self.named(self.address(recipient).into_iter().collect()),
                    reply: reply.map(words),
                    seconds: Some(seconds(age)),
                    held_seconds: Some(seconds(held)).filter(|held| *held > 0.0),
                    ..message(id, instance, 1)
                }
            }
            Event::InDoubt { instance, id, upstream, target, error } => Line {
                event: "in_doubt",
                upstream: Some(upstream),
                target,
                reason: text(error),
                id: Some(id),
                instance,
                ..Line::default()
            },
            Event::Held { instance, id, recipients, by, reason, until } => Line {
                event: "held",
                stage: Some("spool"),
                by: Some(by),
                reason: text(reason),
                until: until.map(|until| until.to_string()),
                ..message(id, instance, recipients)
            },
            Event::Deferred {
                instance,
                id,
                recipients,
                upstream,
                target,
                reason,
                attempts,
                until,
            } => Line {
                event: "deferred",
                stage: Some("spool"),
                upstream,
                target,
                reason: text(reason),
                attempts: Some(attempts),
                until: Some(until.to_string()),
                ..message(id, instance, recipients)
            },
            _ => return other(event),
        };
        Some(line)
    }

    /// An address as far as it is to be told.
    fn address(&self, address: &str) -> Option<String> {
        let shown = &address[..address.floor_char_boundary(ADDRESS)];
        match (self.addresses, &self.key) {
            (Addresses::Full, _) => Some(shown.to_owned()),
            (Addresses::Hashed, Some(key)) if !address.is_empty() => {
                let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
                let domain = domain.to_ascii_lowercase();
                let shown = &domain[..domain.floor_char_boundary(ADDRESS)];
                Some(format!("{}@{shown}", super::pseudonym(key, local, &domain)))
            }
            (Addresses::Hashed, Some(_)) => Some(String::new()),
            (Addresses::Hashed, None) | (Addresses::None, _) => None,
        }
    }

    fn named(&self, to: Vec<String>) -> Option<Vec<String>> {
        (self.addresses != Addresses::None).then_some(to)
    }
}

/// What is not about how a message came or went.
fn other<'a>(event: &Event<'a>) -> Option<Line<'a>> {
    Some(match *event {
        Event::LetGo { instance, id, recipients } => Line {
            event: "released",
            stage: Some("spool"),
            by: Some("operator"),
            ..message(id, instance, recipients)
        },
        Event::Removed { instance, id, recipients } => Line {
            event: "removed",
            stage: Some("spool"),
            by: Some("operator"),
            ..message(id, instance, recipients)
        },
        // Of what a window has held, all at once: each says when it ends for how long it was held.
        Event::Released { instance, messages } => Line {
            event: "released",
            by: Some("window"),
            instance: Some(instance),
            messages: Some(messages),
            ..Line::default()
        },
        Event::Notification { instance, id, about } => Line {
            event: "notification",
            about: Some(about),
            instance,
            id: Some(id),
            ..Line::default()
        },
        Event::ReplyLost { id, .. } => {
            Line { event: "reply_lost", id: Some(id), ..Line::default() }
        }
        Event::LinkOpened { upstream, target, .. } => Line {
            event: "link",
            step: Some("opened"),
            upstream: Some(upstream),
            target: Some(target),
            ..Line::default()
        },
        Event::LinkLost { upstream, target, error } => Line {
            event: "link",
            step: Some("lost"),
            upstream: Some(upstream),
            target: Some(target),
            reason: text(error),
            ..Line::default()
        },
        Event::Wave { wave, step } => {
            Line { event: "wave", wave: Some(wave), step: Some(step.as_str()), ..Line::default() }
        }
        _ => return None,
    })
}

fn message(id: MessageId, instance: Option<&str>, recipients: u64) -> Line<'_> {
    Line { id: Some(id), instance, recipients: Some(recipients), ..Line::default() }
}

fn words(reply: &Reply) -> String {
    let mut text = reply.to_string();
    text.truncate(text.floor_char_boundary(TEXT));
    text
}

fn text(reason: &str) -> Option<&str> {
    let reason = &reason[..reason.floor_char_boundary(TEXT)];
    Some(reason).filter(|reason| !reason.is_empty())
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
