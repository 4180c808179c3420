//! What an upstream says to a recipient, before there is a message. Floor 2.

use std::sync::Arc;

use tokio::time::Instant;
use wavegate_smtp::{ClientEvent, Mail, Rcpt, Reply, Unsupported, client::Rehearsed};

use super::{ConnectionError, LeaseError, Upstream};
use crate::message::Source;

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no connection.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The upstream could not be given such a message.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A gateway is not asked about recipients.
    #[error("the link has no word for that")]
    Link,
    /// The upstream closed the connection.
    #[error("it closed with {}", .0.code())]
    Closing(Reply),
}

impl Upstream {
    /// Asks with `MAIL`, `RCPT` and `RSET` on a pooled connection, in one round trip where the
    /// upstream offers PIPELINING. The answer is the reply to `RCPT`, or the one that refused `MAIL`.
    /// A connection that turns out to be dead is replaced once.
    pub async fn verify(
        self: &Arc<Self>,
        source: &Arc<Source>,
        mail: &Mail,
        rcpt: &Rcpt,
        deadline: Instant,
        queue: usize,
    ) -> Result<Reply, VerifyError> {
        if self.link.is_some() {
            return Err(VerifyError::Link);
        }
        let mut fresh = false;
        loop {
            let mut lease = match self.lease(deadline, queue, None, fresh, source).await {
                Ok(lease) => lease,
                // What it says against the client is its answer to the recipient.
                Err(LeaseError::Unwanted { reply, .. }) => return Ok(reply),
                Err(error) => return Err(error.into()),
            };
            let reused = lease.is_reused();
            let connection = lease.connection();
            let endpoint = connection.endpoint().clone();
            connection.client().rehearse(mail, rcpt)?;
            let asked = loop {
                match connection.event(self.config.reply_timeout).await {
                    Ok(ClientEvent::Rehearsed(Rehearsed::Taken(reply))) => break Ok(reply),
                    Ok(ClientEvent::Rehearsed(Rehearsed::Refused(_, reply))) => break Ok(reply),
                    Ok(ClientEvent::Closing(reply) | ClientEvent::Refused(reply)) => {
                        break Err(VerifyError::Closing(reply));
                    }
                    Ok(_) => {}
                    Err(error) => break Err(error.into()),
                }
            };
            match asked {
                Ok(reply) => {
                    if connection.client().is_ready() {
                        lease.release();
                    }
                    return Ok(reply);
                }
                // A pooled connection may just have been old.
                Err(_) if reused => fresh = true,
                Err(error) => {
                    self.report_failure(&endpoint, &error.to_string());
                    return Err(error);
                }
            }
        }
    }
}
