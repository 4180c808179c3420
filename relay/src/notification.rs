//! Delivery status notifications: what a sender is told of a message that failed, is late, or
//! was passed on to where nobody reports (RFC 3461, 3464, 6522; internationalised: RFC 6533).
//!
//! Owns whether one is due at all, what it says, and which extensions it needs to travel. Pure:
//! time and randomness are arguments. Does not own sending it, storing it, or deciding what
//! became of a recipient.
//!
//! All text in it comes from strangers: addresses, ENVID and ORCPT from the client, replies from
//! the upstream, the header from whoever wrote the message. None of it can break a line, leave
//! its field or its part, or grow beyond its bound.
//!
//! Floor 0.

mod human;
mod returned;
mod status;
mod text;

use std::{fmt::Write as _, net::IpAddr};

use wavegate_smtp::{
    BodyFacts, Enhanced, Mail, Rcpt, Reply, ReversePath,
    params::{BodyType, Notify},
};

pub use self::returned::Survey;
use self::returned::{Returned, returned};
use crate::{message::MessageId, plan::Timestamp};

/// Most bytes of a message that is returned whole, unless the operator says otherwise. Whoever
/// asked for RET=FULL has the message; what helps him is the report.
pub const WHOLE: u64 = 64 * 1024;

/// Most bytes of a header that are returned. More is not read by anybody.
pub const HEADER: usize = 64 * 1024;

/// Most recipients that the text for people names; the report names all.
pub const LISTED: usize = 100;

/// What is said of a recipient (RFC 3464 2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It will not be delivered.
    Failed,
    /// It was not delivered yet.
    Delayed,
    /// It was given to a server that does not offer DSN.
    Relayed,
}

impl Action {
    /// As the report has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Failed => "failed",
            Action::Delayed => "delayed",
            Action::Relayed => "relayed",
        }
    }
}

/// Whether the sender wants to hear of it (RFC 3461 4.1). Without NOTIFY he hears of failures,
/// and may be told of delays.
///
/// Nobody hears of anything about a message from `<>`; see [`notification`].
pub fn due(notify: Option<Notify>, action: Action) -> bool {
    let notify = notify.unwrap_or(Notify { success: false, failure: true, delay: true });
    match action {
        Action::Failed => notify.failure,
        Action::Delayed => notify.delay,
        // RFC 3461 5.2.2: it is as much of a success as we will ever know.
        Action::Relayed => notify.success,
    }
}

/// What became of a recipient.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// Failed: refused by the upstream, or by the relay itself if there is no [`Remote`].
    Refused(&'a Reply),
    /// Failed: tried until its time was over; with the last reply that there was.
    Expired(Option<&'a Reply>),
    /// Failed: an operator took it out, with his reason.
    Removed(&'a str),
    /// Delayed; with the last reply that there was.
    Delayed {
        /// The last reply that there was.
        reply: Option<&'a Reply>,
        /// When it will be given up.
        until: Option<Timestamp>,
    },
    /// Relayed, with the reply that took it.
    Relayed(&'a Reply),
}

impl<'a> Outcome<'a> {
    /// What is said of it.
    pub fn action(&self) -> Action {
        match self {
            Outcome::Refused(_) | Outcome::Expired(_) | Outcome::Removed(_) => Action::Failed,
            Outcome::Delayed { .. } => Action::Delayed,
            Outcome::Relayed(_) => Action::Relayed,
        }
    }

    /// The reply it goes back to.
    fn reply(&self) -> Option<&'a Reply> {
        match *self {
            Outcome::Refused(reply) | Outcome::Relayed(reply) => Some(reply),
            Outcome::Expired(reply) | Outcome::Delayed { reply, .. } => reply,
            Outcome::Removed(_) => None,
        }
    }

    /// The code for it (RFC 3463): the reply's own where its class fits what is said.
    fn status(&self) -> Enhanced {
        let of = |reply: &Reply, classes: &[u16], other: Enhanced| {
            let class = reply.code() / 100;
            let Some(class) = classes.contains(&class).then(|| u8::try_from(class).ok()).flatten()
            else {
                return other;
            };
            reply.enhanced().unwrap_or(Enhanced(class, 0, 0))
        };
        match self {
            Outcome::Refused(reply) => of(reply, &[4, 5], Enhanced(5, 0, 0)),
            // "Delivery time expired"; the last reply is in the diagnostic.
            Outcome::Expired(_) => Enhanced(4, 4, 7),
            Outcome::Removed(_) => Enhanced(5, 0, 0),
            Outcome::Delayed { reply: Some(reply), .. } => of(reply, &[4], Enhanced(4, 0, 0)),
            // "No answer from host".
            Outcome::Delayed { reply: None, .. } => Enhanced(4, 4, 1),
            Outcome::Relayed(reply) => of(reply, &[2], Enhanced(2, 0, 0)),
        }
    }
}

/// The server that replied.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    /// Its name as the configuration or DNS has it.
    pub name: &'a str,
    /// Its address.
    pub address: Option<IpAddr>,
}

/// A recipient and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// The recipient as the client gave it.
    pub rcpt: &'a Rcpt,
    /// What became of it.
    pub outcome: Outcome<'a>,
    /// Who replied; none if nobody did, or the relay itself.
    pub remote: Option<Remote<'a>>,
    /// When it was tried last.
    pub last_attempt: Option<Timestamp>,
}

/// The message that it is about.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Its id.
    pub id: MessageId,
    /// Its sender, RET and ENVID.
    pub mail: &'a Mail,
    /// When it came in.
    pub arrived: Timestamp,
    /// Its header block; what follows an empty line is not looked at.
    pub header: &'a [u8],
    /// What is known of the whole message, its header included, if it may be returned. It must
    /// be of the very bytes that will follow [`Notification::head`].
    pub content: Option<&'a Survey>,
}

/// Which extensions a notification may use, or needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// Who reports, when, and within which bounds.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The relay's own name.
    pub hostname: &'a str,
    /// The time it is written.
    pub now: Timestamp,
    /// Must not be known to anybody before: the parts are parted by it.
    pub random: u128,
    /// Most bytes of a message that is returned whole; [`WHOLE`] by default.
    pub whole: u64,
    /// What the next hop is known to take. Where it does not suffice to return a message whole,
    /// its header is returned.
    pub offers: Transport,
}

/// A notification, ready to be taken in as a message.
///
/// Its bytes are `head`, then the original message if `with_content`, then `tail`.
#[derive(Clone, Debug)]
pub struct Notification {
    /// From `<>`, with SIZE, and BODY and SMTPUTF8 as needed (RFC 3461 6.1).
    pub mail: Mail,
    /// To the sender of the original.
    pub rcpt: Rcpt,
    /// Up to where the original message stands.
    pub head: Vec<u8>,
    /// Whether the original message follows, byte for byte.
    pub with_content: bool,
    /// What follows it.
    pub tail: Vec<u8>,
    /// What is known of all of it together.
    pub facts: BodyFacts,
    /// What it needs. Only a sender beyond ASCII needs what was not offered.
    pub needs: Transport,
}

/// One notification to the sender about all recipients of whom he wants to hear; none if there
/// are none, or he is `<>` (RFC 3461 6.1, RFC 5321 4.5.5).
pub fn notification(
    original: &Original<'_>,
    recipients: &[Recipient<'_>],
    terms: &Terms<'_>,
) -> Option<Notification> {
    let ReversePath::Address(sender) = &original.mail.sender else { return None };
    let recipients: Vec<_> = recipients
        .iter()
        .filter(|recipient| due(recipient.rcpt.notify, recipient.outcome.action()))
        .collect();
    let worst = recipients.iter().map(|recipient| recipient.outcome.action()).min()?;

    // The address in `To` is the one thing that cannot be written otherwise in ASCII.
    let global = !sender.is_ascii();
    let returned = returned(original, worst, terms, global);
    let needs = Transport {
        eight_bit: global || returned.needs.eight_bit,
        smtputf8: global || returned.needs.smtputf8,
    };
    let boundary = format!("=_{}/{:032x}", original.id, terms.random);

    let mut head = header(original, sender, worst, terms, needs, &boundary).into_bytes();
    // With the empty line, which the first delimiter begins with.
    let header_size = head.len() as u64 + 2;
    part(&mut head, &boundary);
    human::write(original, &recipients, terms, returned.cut, &mut head);
    part(&mut head, &boundary);
    status::write(original, &recipients, terms, global, &mut head);
    part(&mut head, &boundary);
    head.extend_from_slice(&returned.head);
    let tail = format!("\r\n--{boundary}--\r\n").into_bytes();

    let facts = facts(&head, header_size, &tail, original, &returned);
    let mail = Mail {
        size: Some(facts.size),
        body: needs.eight_bit.then_some(BodyType::EightBitMime),
        smtputf8: needs.smtputf8,
        ..Mail::new(ReversePath::Null)
    };
    let with_content = returned.content;
    Some(Notification {
        mail,
        rcpt: Rcpt::new(sender.clone()),
        head,
        with_content,
        tail,
        facts,
        needs,
    })
}

/// The header.
fn header(
    original: &Original<'_>,
    sender: &wavegate_smtp::Address,
    worst: Action,
    terms: &Terms<'_>,
    needs: Transport,
    boundary: &str,
) -> String {
    let host = text::host(terms.hostname);
    let id = original.id;
    let subject = match worst {
        Action::Failed => "Undelivered mail: returned to sender",
        Action::Delayed => "Delayed mail: still being tried",
        Action::Relayed => "Relayed mail: no further report will come",
    };
    let mut out = String::with_capacity(1024);
    let _ = write!(
        out,
        "Date: {date}\r\n\
         From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
         To: {to}\r\n\
         Subject: {subject}\r\n\
         Message-ID: <{id}.{random:016x}@{host}>\r\n",
        date = text::date(terms.now),
        to = text::mailbox(sender, &host),
        random = terms.random & u128::from(u64::MAX),
    );
    // RFC 3834 3.1.5: so that it is shown with what it is about.
    if let Some(about) = text::message_id(original.header) {
        let _ = write!(out, "In-Reply-To: {about}\r\nReferences: {about}\r\n");
    }
    // RFC 3834 5; and RFC 6522 3. The boundary has a character that must be quoted, and one that
    // no quoted-printable text has in this place.
    let _ = write!(
        out,
        "Auto-Submitted: auto-replied\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n\
         \tboundary=\"{boundary}\"\r\n"
    );
    if needs.eight_bit {
        // RFC 2045 6.4: as much as the parts have.
        out.push_str("Content-Transfer-Encoding: 8bit\r\n");
    }
    out
}

/// Ends the part before and begins another. The line end in front belongs to the delimiter
/// (RFC 2046 5.1.1).
fn part(out: &mut Vec<u8>, boundary: &str) {
    out.extend_from_slice(b"\r\n--");
    out.extend_from_slice(boundary.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn facts(
    head: &[u8],
    header_size: u64,
    tail: &[u8],
    original: &Original<'_>,
    returned: &Returned,
) -> BodyFacts {
    let content = original.content.filter(|_| returned.content);
    BodyFacts {
        size: (head.len() + tail.len()) as u64 + content.map_or(0, Survey::size),
        header_size,
        received: 0,
        eight_bit: !head.is_ascii() || content.is_some_and(Survey::eight_bit),
        leading_dot: memchr::memmem::find(head, b"\r\n.").is_some()
            || content.is_some_and(Survey::leading_dot),
        ends_with_crlf: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_as_rfc_3461_says() {
        let all = [Action::Failed, Action::Delayed, Action::Relayed];
        let wants = |notify| all.map(|action| due(notify, action));
        assert_eq!(wants(None), [true, true, false]);
        assert_eq!(wants(Some(Notify::default())), [false, false, false], "NEVER");
        let only = |success, failure, delay| Some(Notify { success, failure, delay });
        assert_eq!(wants(only(true, false, false)), [false, false, true]);
        assert_eq!(wants(only(false, true, false)), [true, false, false]);
        assert_eq!(wants(only(false, false, true)), [false, true, false]);
    }

    #[test]
    fn the_status_is_of_the_class_that_fits() {
        let reply = |code, enhanced| Reply::new(code, enhanced, "text").expect("a valid reply");
        let full = reply(452, Some(Enhanced(4, 2, 2)));
        let plain = reply(554, None);
        let taken = reply(250, None);
        for (outcome, expected) in [
            (Outcome::Refused(&plain), "5.0.0"),
            (Outcome::Refused(&full), "4.2.2"),
            (Outcome::Refused(&taken), "5.0.0"),
            (Outcome::Expired(Some(&full)), "4.4.7"),
            (Outcome::Removed("spam"), "5.0.0"),
            (Outcome::Delayed { reply: Some(&full), until: None }, "4.2.2"),
            (Outcome::Delayed { reply: Some(&plain), until: None }, "4.0.0"),
            (Outcome::Delayed { reply: None, until: None }, "4.4.1"),
            (Outcome::Relayed(&taken), "2.0.0"),
            (Outcome::Relayed(&full), "2.0.0"),
        ] {
            assert_eq!(outcome.status().to_string(), expected, "{outcome:?}");
        }
    }
}
