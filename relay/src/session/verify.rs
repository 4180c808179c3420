//! Asking the next hop about a recipient while the client waits. Floor 3.

use wavegate_smtp::{Rcpt, Reply};

use super::{Broken, Next, Session};
use crate::handoff;

impl Session {
    /// Answers a recipient as the next hop does; where that cannot be asked, it is taken.
    pub(super) async fn verify(&mut self, rcpt: Rcpt) -> Result<Next, Broken> {
        let Some(message) = &mut self.message else {
            unreachable!("a recipient belongs to a transaction")
        };
        let mail = message.mail();
        let reply = handoff::verify(&self.relay, &self.source, message.id, mail, &rcpt).await;
        if reply.as_ref().is_none_or(Reply::is_positive) {
            message.add_recipient(rcpt);
        }
        match reply {
            Some(reply) => self.server.reply(&reply),
            None => self.server.accept(),
        }
        self.deadline.set(self.patience());
        let pending = std::mem::take(&mut self.pending);
        self.take(&pending)
    }
}
