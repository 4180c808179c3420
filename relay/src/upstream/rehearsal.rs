//! Whether a target would take mail, asked without sending any: on a connection of its own, so
//! that it finds out nothing for messages and holds none of them up. The health of a target does
//! not learn from it: a target may well refuse one sender.

use std::time::Duration;

use wavegate_smtp::{
    Address, ClientEvent, Mail, Rcpt, ReversePath, Unsupported, client::Rehearsed,
};

use super::{ConnectionError, Upstream};
use crate::names::Endpoint;

/// Why a target would not take the mail.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// It cannot be connected to, or does not greet.
    #[error("connection: {0}")]
    Connection(ConnectionError),
    /// It could not be given such mail.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// It refused a command.
    #[error("{command}: {reply}")]
    Refused {
        /// The command's verb.
        command: &'static str,
        /// What it said.
        reply: String,
    },
    /// It took too long over all of it.
    #[error("no end within {0:?}")]
    Late(Duration),
}

/// Longest text of a reply that is kept.
const REPLY_TEXT: usize = 200;

impl Upstream {
    /// Asks a target whether it would take mail from `sender` to `recipient`, within `time`.
    pub async fn rehearse(
        &self,
        target: &Endpoint,
        sender: &ReversePath,
        recipient: &Address,
        time: Duration,
    ) -> Result<(), RehearsalError> {
        let asking = self.ask(target, sender, recipient);
        tokio::time::timeout(time, asking).await.map_err(|_| RehearsalError::Late(time))?
    }

    async fn ask(
        &self,
        target: &Endpoint,
        sender: &ReversePath,
        recipient: &Address,
    ) -> Result<(), RehearsalError> {
        if let Some(link) = &self.link {
            return self.rehearse_link(link, target, sender, recipient).await;
        }
        let turn = self.logins.turn().await;
        let (mut connection, _) =
            self.dial(target, None).await.map_err(RehearsalError::Connection)?;
        drop(turn);
        let (mail, rcpt) = (Mail::new(sender.clone()), Rcpt::new(recipient.clone()));
        connection.client().rehearse(&mail, &rcpt)?;
        loop {
            match connection.event(self.config.reply_timeout).await {
                Ok(ClientEvent::Rehearsed(Rehearsed::Taken(_))) => {
                    connection.quit();
                    return Ok(());
                }
                Ok(ClientEvent::Rehearsed(Rehearsed::Refused(step, reply))) => {
                    connection.quit();
                    let reply: String = reply.to_string().chars().take(REPLY_TEXT).collect();
                    return Err(RehearsalError::Refused { command: step.as_str(), reply });
                }
                Ok(_) => {}
                Err(error) => return Err(RehearsalError::Connection(error)),
            }
        }
    }
}
