//! What is said of a message's recipients, and what became of them. Floor 3.
//!
//! Recipients that came to the same end by the same reply are one part. A client's one reply is
//! that of the first part, because whoever makes several parts for a client gives all of them the
//! same; an edge is told all of them.

use std::net::SocketAddr;

use wavegate_link::How;
use wavegate_smtp::Reply;

use crate::event::Outcome;

/// Recipients that came to the same end, and what is said of them.
#[derive(Clone, Debug)]
pub struct Part {
    /// Who they are, by their places in the envelope; at least one.
    pub recipients: Vec<u32>,
    /// Who the reply is from.
    pub how: How,
    /// What is said.
    pub reply: Reply,
    /// What became of them.
    pub outcome: Outcome,
}

/// What became of all recipients: each is in one part.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) parts: Vec<Part>,
    /// Where they went or were to go, where an attempt was made.
    pub(super) upstream: Option<String>,
    /// The target that answered.
    pub(super) target: Option<SocketAddr>,
}

impl Told {
    /// The same for so many recipients.
    pub(super) fn of_all(recipients: usize, how: How, reply: Reply, outcome: Outcome) -> Self {
        let recipients = (0..).take(recipients).collect();
        Self::of(vec![Part { recipients, how, reply, outcome }])
    }

    /// Different things for some; parts without recipients are left out.
    pub(super) fn of(mut parts: Vec<Part>) -> Self {
        parts.retain(|part| !part.recipients.is_empty());
        Self { parts, upstream: None, target: None }
    }

    /// The one reply of a client.
    pub(super) fn reply(&self) -> Reply {
        match self.parts.first() {
            Some(part) => part.reply.clone(),
            None => unreachable!("a message has a recipient, and each recipient has its part"),
        }
    }
}
