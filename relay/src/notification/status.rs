//! The part for programs: message/delivery-status (RFC 3464), or its international form
//! message/global-delivery-status (RFC 6533 4).
//!
//! Owns its fields and their order. In its plain form all of it is ASCII, whatever the addresses
//! are: RFC 6533 3 has a way to write them.
//!
//! Floor 0.

use wavegate_smtp::{Rcpt, Reply, limits};

use super::{Original, Outcome, Recipient, Terms, text};

/// Most bytes of one reply. Upstreams write up to 32 KiB; what tells the reason stands in front.
const DIAGNOSTIC: usize = 1024;

/// Most lines of one reply, for the same reason.
const LINES: usize = 10;

/// Appends the part with its header.
pub(super) fn write(
    original: &Original<'_>,
    recipients: &[&Recipient<'_>],
    terms: &Terms<'_>,
    global: bool,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"Content-Description: Delivery report\r\n");
    out.extend_from_slice(match global {
        true => {
            b"Content-Type: message/global-delivery-status\r\n\
                  Content-Transfer-Encoding: 8bit\r\n\r\n"
        }
        false => &b"Content-Type: message/delivery-status\r\n\r\n"[..],
    });
    let ascii = !global;
    if let Some(envid) = original.mail.envid.as_deref() {
        let envid = text::clean(&text::xtext(envid), ascii, limits::ENVID + 3);
        if !envid.is_empty() {
            text::field("Original-Envelope-Id", &envid, out);
        }
    }
    text::field("Reporting-MTA", &format!("dns; {}", text::host(terms.hostname)), out);
    text::field("X-Wavegate-Id", original.id.as_str(), out);
    text::field("Arrival-Date", &text::date(original.arrived), out);
    for recipient in recipients {
        out.extend_from_slice(b"\r\n");
        write_recipient(recipient, ascii, out);
    }
}

/// RFC 3464 2.3; the fields in its order.
fn write_recipient(recipient: &Recipient<'_>, ascii: bool, out: &mut Vec<u8>) {
    if let Some(value) = recipient.rcpt.orcpt.as_deref().and_then(|orcpt| original(orcpt, ascii)) {
        text::field("Original-Recipient", &value, out);
    }
    text::field("Final-Recipient", &last(recipient.rcpt, ascii), out);
    text::field("Action", recipient.outcome.action().as_str(), out);
    text::field("Status", &recipient.outcome.status().to_string(), out);
    if let Some(remote) = &recipient.remote {
        text::field("Remote-MTA", &format!("dns; {}", text::host(remote.name)), out);
    }
    if let Some(reply) = recipient.outcome.reply() {
        out.extend_from_slice(b"Diagnostic-Code: smtp;");
        // RFC 3464 2.3.6 with RFC 3461 9.2: each line of the reply is one of the field.
        for line in reply_lines(reply, ascii) {
            for piece in text::pieces(&line) {
                out.push(b' ');
                out.extend_from_slice(piece.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
    }
    if let Some(time) = recipient.last_attempt {
        text::field("Last-Attempt-Date", &text::date(time), out);
    }
    // RFC 3464 2.3.9: of delayed ones only.
    if let Outcome::Delayed { until: Some(until), .. } = recipient.outcome {
        text::field("Will-Retry-Until", &text::date(until), out);
    }
}

/// ORCPT as the report has it: type and address, xtext undone (RFC 3461 6.3). The type `utf-8`
/// has a form of its own, which stays (RFC 6533 3). None if it is not valid.
fn original(orcpt: &str, ascii: bool) -> Option<String> {
    let (kind, address) = orcpt.split_once(';')?;
    let valid =
        kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    if kind.is_empty() || !valid || orcpt.len() > limits::ORCPT {
        return None;
    }
    if kind.eq_ignore_ascii_case("utf-8") {
        return Some(format!("{kind}; {}", text::utf8_address(address, ascii, true)));
    }
    // Only the type `utf-8` may go beyond ASCII.
    let address: String = text::xtext(address).chars().map(|c| text::visible(c, true)).collect();
    (!address.trim().is_empty()).then(|| format!("{kind}; {address}"))
}

fn last(rcpt: &Rcpt, ascii: bool) -> String {
    let address = rcpt.recipient.as_str();
    match rcpt.recipient.is_ascii() {
        true => format!("rfc822; {address}"),
        false => format!("utf-8; {}", text::utf8_address(address, ascii, false)),
    }
}

/// The reply as it came, line by line, within its bound.
pub(super) fn reply_lines(reply: &Reply, ascii: bool) -> Vec<String> {
    let mut wire = Vec::new();
    reply.write(&mut wire);
    let wire = String::from_utf8_lossy(&wire);
    let mut left = DIAGNOSTIC;
    let mut lines = Vec::new();
    for line in wire.split("\r\n").filter(|line| !line.is_empty()) {
        // Less than this says nothing, and the code must stand whole.
        const SHORT: usize = 32;
        if left < SHORT || lines.len() == LINES {
            lines.push("...".to_owned());
            break;
        }
        let line = text::clean(line, ascii, left);
        left -= line.len().min(left);
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn original_recipients() {
        let shown = |orcpt| original(orcpt, true);
        assert_eq!(shown("rfc822;Bob+2B1@x.example").as_deref(), Some("rfc822; Bob+1@x.example"));
        assert_eq!(shown("x400;+2FCN=a").as_deref(), Some("x400; /CN=a"));
        assert_eq!(shown("rfc822;a+0D+0AStatus:b").as_deref(), Some("rfc822; a??Status:b"));
        assert_eq!(shown("utf-8;用+@例").as_deref(), Some("utf-8; \\x{7528}+@\\x{4F8B}"));
        assert_eq!(original("UTF-8;用@例", false).as_deref(), Some("UTF-8; 用@例"));
        for orcpt in ["rfc822", ";a", "a b;c", "rfc822;", "rfc822;+20+09", "a\r\nb;c"] {
            assert_eq!(shown(orcpt), None, "{orcpt:?}");
        }
    }

    #[test]
    fn replies_keep_their_lines_within_a_bound() {
        let shown = |text: String| reply_lines(&Reply::new(550, None, text).unwrap(), true);
        assert_eq!(
            shown("5.1.1 No\n5.1.1 Such user".into()),
            ["550-5.1.1 No", "550 5.1.1 Such user"]
        );
        assert_eq!(shown(String::new()), ["550"]);
        assert_eq!(shown("für\tdich".into()), ["550 f?r dich"]);
        let many = shown(["a"; 12].join("\n"));
        assert_eq!((many.len(), many[9].as_str(), many[10].as_str()), (11, "550-a", "..."));
        let all = |lines: Vec<String>| lines.iter().map(String::len).sum::<usize>();
        assert_eq!(all(shown("a".repeat(DIAGNOSTIC - 4 - 3))), DIAGNOSTIC - 3);
        assert_eq!(all(shown("a".repeat(4000))), DIAGNOSTIC);
    }
}
