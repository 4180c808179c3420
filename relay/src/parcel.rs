//! A message that the relay has: its envelope, its bytes, and what is known of them. Floor 2.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use wavegate_smtp::{BodyFacts, Mail, Rcpt};

use crate::{
    body::Body,
    message::{MessageId, Source},
};

/// A message as a client gave it: envelope, bytes, and what is known of them.
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

/// A message that the relay has: new, or from the spool.
#[derive(Debug)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Where it came from.
    pub source: Arc<Source>,
    /// The `Received` line; empty where none is wanted, or it is in the body already.
    pub head: Vec<u8>,
    /// The rest.
    pub parcel: Parcel,
    /// An attempt has written its end of data and has no reply.
    in_doubt: AtomicBool,
}

impl Parcel {
    /// The header block with its empty line; empty when it cannot be read.
    pub fn header_block(&self) -> Vec<u8> {
        let length = usize::try_from(self.facts.header_size).unwrap_or(usize::MAX);
        if let Some(bytes) = self.body.as_memory() {
            return bytes[..length.min(bytes.len())].to_vec();
        }
        let mut block = vec![0; length];
        match self.body.read_full(0, &mut block) {
            Ok(count) => block.truncate(count),
            Err(error) => {
                tracing::error!(%error, "a message's header cannot be read");
                block.clear();
            }
        }
        block
    }
}

impl Message {
    /// A message with its head.
    pub fn new(id: MessageId, source: Arc<Source>, head: Vec<u8>, parcel: Parcel) -> Self {
        Self { id, source, head, parcel, in_doubt: AtomicBool::new(false) }
    }

    /// Whether an attempt has written its end of data and has no reply.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Relaxed)
    }

    pub(crate) fn set_in_doubt(&self, in_doubt: bool) {
        self.in_doubt.store(in_doubt, Ordering::Relaxed);
    }

    /// Whether it may stay in memory although the spool has it.
    pub(crate) fn has_room(&self) -> bool {
        self.parcel.body.has_room()
    }

    /// The header block of the message as it came in, with its empty line.
    pub fn header_block(&self) -> Vec<u8> {
        self.parcel.header_block()
    }
}
