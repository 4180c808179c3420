//! A recipient's next hop, asked before there is a message (`verify = "rcpt"`). Floor 3.

use std::sync::Arc;

use tokio::time::Instant;
use wavegate_smtp::{Mail, Rcpt, Reply};

use super::direct::without_421;
use crate::{
    answer::Verdict,
    config::Verify,
    event::Event,
    gate::{self, Subject},
    message::{MessageId, Source},
    relay::Relay,
};

/// What the upstream says to this recipient. None where nobody is to be asked, or can be: then
/// the recipient is taken, and what becomes of the message is found out as for any other.
///
/// Only the way is asked for here: what policies say of the message itself they say when it is
/// there. So a message in a window is taken and held, and nobody is asked.
pub async fn verify(
    relay: &Arc<Relay>,
    source: &Arc<Source>,
    id: MessageId,
    mail: &Mail,
    rcpt: &Rcpt,
) -> Option<Reply> {
    if relay.queue.all_held().is_some() {
        return None;
    }
    let generation = relay.generation();
    let plan = relay.waves.current_owned();
    let subject = Subject {
        id: id.as_str(),
        source,
        sender: mail.sender.as_str(),
        sender_domain: mail.sender.domain(),
        recipients: &[rcpt.recipient.as_str()],
        size: 0,
        on_behalf: None,
        received: None,
        attempts: 0,
        last_reply: None,
        headers: &[],
    };
    let answer = gate::ask(relay, &generation, &plan, &subject, relay.waves.now(), None);
    // There is one recipient, so there is one share.
    let Verdict::Go(shares) = answer.verdict else { return None };
    let upstream = &shares.first()?.upstream;
    if upstream.config.verify == Verify::None {
        return None;
    }
    let limits = &generation.config.limits;
    let deadline = Instant::now() + limits.direct_wait;
    let asked = upstream.verify(source, mail, rcpt, deadline, limits.direct_queue).await;
    let name = &upstream.config.name;
    match asked {
        Ok(reply) => {
            relay.emit(&Event::RecipientVerified { upstream: name, id, reply: &reply });
            Some(without_421(&reply))
        }
        Err(error) => {
            let error = &error.to_string();
            relay.emit(&Event::RecipientUnverified { upstream: name, id, error });
            None
        }
    }
}
