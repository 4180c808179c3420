//! The part for people: what happened, what the other server said, what to do.
//!
//! Owns the words.
//!
//! Floor 0.

use wavegate_smtp::Enhanced;

use super::{Action, LISTED, Original, Outcome, Recipient, Remote, Terms, status, text};

/// Most bytes of an operator's reason.
const REASON: usize = 500;

/// Appends the part with its header.
pub(super) fn write(
    original: &Original<'_>,
    recipients: &[&Recipient<'_>],
    terms: &Terms<'_>,
    cut: bool,
    out: &mut Vec<u8>,
) {
    let text = words(original, recipients, terms, cut);
    out.extend_from_slice(b"Content-Description: Notification\r\n");
    if text.is_ascii() {
        out.extend_from_slice(b"Content-Type: text/plain; charset=us-ascii\r\n\r\n");
        out.extend_from_slice(text.as_bytes());
    } else {
        // Whoever reads an international notification reads this, too: one way for both.
        out.extend_from_slice(
            b"Content-Type: text/plain; charset=utf-8\r\n\
              Content-Transfer-Encoding: quoted-printable\r\n\r\n",
        );
        text::quoted_printable(text.as_bytes(), out);
    }
}

fn words(
    original: &Original<'_>,
    recipients: &[&Recipient<'_>],
    terms: &Terms<'_>,
    cut: bool,
) -> String {
    let mut out = String::new();
    let host = text::host(terms.hostname);
    text::wrap(0, &format!("This is the mail relay at {host}."), &mut out);
    let mut left = LISTED;
    for action in [Action::Failed, Action::Delayed, Action::Relayed] {
        let of_action = || recipients.iter().filter(|one| one.outcome.action() == action);
        let count = of_action().count();
        if count == 0 {
            continue;
        }
        out.push_str("\r\n");
        text::wrap(0, heading(action), &mut out);
        for recipient in of_action().take(left) {
            out.push_str("\r\n");
            write_recipient(recipient, &mut out);
        }
        if count > left {
            out.push_str("\r\n");
            let more = count - left;
            text::wrap(0, &format!("And {more} more; the report attached names all."), &mut out);
        }
        left = left.saturating_sub(count);
    }
    out.push_str("\r\n");
    let (arrived, id) = (text::date(original.arrived), original.id);
    let about = format!(
        "Your message came in here on {arrived}. Its id is {id}; please give it when you ask \
         your postmaster about it."
    );
    text::wrap(0, &about, &mut out);
    if cut {
        text::wrap(0, "Its header is long, so only the first part of it is attached.", &mut out);
    }
    out
}

fn heading(action: Action) -> &'static str {
    match action {
        Action::Failed => {
            "Your message could not be delivered to the recipients below. It will not be tried \
             again for them."
        }
        Action::Delayed => {
            "Your message has not reached the recipients below yet. It is still being tried: you \
             need not send it again."
        }
        Action::Relayed => {
            "As you asked, here is what is known: your message was passed on for the recipients \
             below, to a mail system that sends no reports. You may hear nothing more of it."
        }
    }
}

fn write_recipient(recipient: &Recipient<'_>, out: &mut String) {
    let address: String =
        recipient.rcpt.recipient.as_str().chars().map(|c| text::visible(c, false)).collect();
    text::wrap(2, &format!("<{address}>"), out);
    match recipient.outcome {
        Outcome::Refused(_) => {}
        Outcome::Expired(_) => {
            text::wrap(4, "It was tried until its time was over.", out);
        }
        Outcome::Removed(reason) => {
            let reason = text::clean(reason, false, REASON);
            let colon = if reason.is_empty() { "." } else { ":" };
            text::wrap(4, &format!("The operator of the relay took it out{colon} {reason}"), out);
        }
        Outcome::Delayed { until, .. } => {
            if let Some(until) = until {
                text::wrap(4, &format!("It will be tried until {}.", text::date(until)), out);
            }
        }
        Outcome::Relayed(_) => {}
    }
    if let Some(reply) = recipient.outcome.reply() {
        let who = match &recipient.remote {
            Some(remote) => format!("{} answered", server(remote)),
            None => "The relay itself answered".to_owned(),
        };
        let last = match recipient.outcome {
            Outcome::Expired(_) | Outcome::Delayed { .. } => " last",
            _ => "",
        };
        text::wrap(4, &format!("{who}{last}:"), out);
        for line in status::reply_lines(reply, false) {
            text::wrap(6, &line, out);
        }
    } else if let Some(remote) = &recipient.remote {
        text::wrap(4, &format!("{} did not answer.", server(remote)), out);
    }
    if let Some(advice) = advice(recipient) {
        text::wrap(4, advice, out);
    }
}

fn server(remote: &Remote<'_>) -> String {
    let name = text::host(remote.name);
    match remote.address {
        Some(address) if address.to_string() != name => format!("The server {name} ({address})"),
        _ => format!("The server {name}"),
    }
}

/// What the sender can do, by the code's subject and detail (RFC 3463 3).
fn advice(recipient: &Recipient<'_>) -> Option<&'static str> {
    match recipient.outcome {
        Outcome::Relayed(_) | Outcome::Delayed { .. } => return None,
        Outcome::Expired(_) => return Some("Please send your message again later."),
        Outcome::Removed(_) => return Some("Please ask your postmaster before you send it again."),
        // A policy's reply says what its operator wants said.
        Outcome::Refused(_) if recipient.remote.is_none() => {
            return Some("Please ask your postmaster, with the answer above.");
        }
        Outcome::Refused(_) => {}
    }
    let Enhanced(_, subject, detail) = recipient.outcome.status();
    Some(match (subject, detail) {
        (1, 7 | 8) => "Please ask your postmaster: the server does not take your own address.",
        (1, _) => "Please check the address: the server does not take mail for it.",
        (2, 2) => "The mailbox is full. Please try again later, or reach the person another way.",
        (2, 3) | (3, 4) => "Your message is too large for it. Please send less at a time.",
        (2, _) => "The mailbox takes no mail at present. Please reach the person another way.",
        (4, 6) => "Mail for this address goes round in circles. Please tell the postmaster there.",
        (6, _) => "The server cannot take this kind of message. Please send it in a plainer form.",
        (7, _) => {
            "The rules of that server do not allow it. Please ask the recipient, or the \
             postmaster there, with the answer above."
        }
        _ => "Please ask your postmaster, or the one there, with the answer above.",
    })
}
