//! What one transaction has collected so far. Floor 3.

use std::sync::Arc;

use tokio::time::Instant;
use wavegate_smtp::{BodyFacts, Enhanced, Mail, Rcpt, Reply};

use crate::{
    body::{BodyError, BodyStore, BodyWriter},
    message::MessageId,
    parcel::Parcel,
};

static NO_ROOM: Reply =
    Reply::fixed(452, Enhanced(4, 3, 1), "wavegate: no room for this message now");

/// An envelope and the bytes behind it.
pub(super) struct Collected {
    /// The message's id, which the client was told when the transaction began.
    pub(super) id: MessageId,
    mail: Mail,
    recipients: Vec<Rcpt>,
    body: Option<BodyWriter>,
    begun: Option<Instant>,
    bytes: u64,
    /// Why the body could not be kept; the rest of it is only counted.
    failed: Option<BodyError>,
}

impl Collected {
    pub(super) fn new(id: MessageId, mail: Mail) -> Self {
        Self { id, mail, recipients: Vec::new(), body: None, begun: None, bytes: 0, failed: None }
    }

    pub(super) fn recipients(&self) -> usize {
        self.recipients.len()
    }

    pub(super) fn mail(&self) -> &Mail {
        &self.mail
    }

    pub(super) fn add_recipient(&mut self, rcpt: Rcpt) {
        self.recipients.push(rcpt);
    }

    /// The body begins.
    pub(super) fn begin(&mut self, store: &Arc<BodyStore>, now: Instant) {
        self.body = Some(store.writer());
        self.begun = Some(now);
    }

    /// Takes bytes of the body. What cannot be kept is answered at its end, in step.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let Some(body) = &mut self.body else { return };
        if let Err(error) = body.push(bytes) {
            tracing::warn!(%error, "a message cannot be kept");
            self.body = None;
            self.failed = Some(error);
        }
    }

    /// Since when the body comes, and how much has.
    pub(super) fn progress(&self) -> Option<(Instant, u64)> {
        self.begun.map(|begun| (begun, self.bytes))
    }

    /// The whole message, or why it could not be kept.
    pub(super) fn into_parcel(self, facts: BodyFacts) -> Result<Parcel, Reply> {
        match self.body {
            Some(body) => {
                let Self { mail, recipients, .. } = self;
                Ok(Parcel { mail, recipients, body: body.finish(), facts })
            }
            None => Err(NO_ROOM.clone()),
        }
    }
}
