//! The notice as a mail: RFC 5322, with text, HTML and the calendar entry.
//!
//! The letter is an alternative of text and HTML; the calendar entry is an attachment beside it, not
//! a third alternative: a program that knows calendars would then show the bare entry and hide the
//! letter.

use crate::{
    Notice, NoticeError, html,
    letter::Letter,
    line::{Line, is_address},
    mime::{Headers, base64_lines, quoted_printable},
    plain,
};

/// RFC 2045 6.7: `=_` comes neither from quoted-printable nor from base64, so no part can hold a
/// boundary. Neither is the beginning of the other (RFC 2046 5.1.2).
const MIXED: &str = "=_notice-parts";
const ALTERNATIVE: &str = "=_notice-letter";

impl Notice {
    /// The notice as a mail, ASCII only, lines end with CRLF. `message_id` is without its angle
    /// brackets. Needs a sender.
    pub fn render_eml(&self, message_id: &str) -> Result<Vec<u8>, NoticeError> {
        let sender = self.sender.as_ref().ok_or(NoticeError::NoSender)?;
        if !is_address(message_id) {
            return Err(NoticeError::MessageId(message_id.to_owned()));
        }
        let letter = Letter::with_calendar(self);
        let contact = self.contact.as_ref().map_or("", Line::as_str);
        let mut headers = Headers::default()
            .mailbox("From", self.provider.as_str(), sender.as_str())
            .mailbox("To", contact, self.email.as_str());
        if let Some(reply_to) = &self.reply_to {
            headers = headers.raw("Reply-To", reply_to.as_str());
        }
        let headers = headers
            // A header is never wrapped for reading, and plain spaces leave English as it is.
            .text("Subject", &letter.subject.replace('\u{a0}', " "))
            .raw("Date", &self.issued.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string())
            .raw("Message-ID", &format!("<{message_id}>"))
            .raw("MIME-Version", "1.0")
            // RFC 3834 5: no vacation notice answers it.
            .raw("Auto-Submitted", "auto-generated")
            .raw("Content-Language", self.language.tag())
            .raw("Content-Type", &format!("multipart/mixed; boundary=\"{MIXED}\""))
            .end();
        let alternative = Headers::default()
            .raw("Content-Type", &format!("multipart/alternative; boundary=\"{ALTERNATIVE}\""))
            .end();
        let text = quoted_printable(&plain::render(&letter, self.texts().colon));
        let page = quoted_printable(&html::render(&letter, self));
        let letter = multipart(ALTERNATIVE, &[body("plain", &text), body("html", &page)]);
        let mail = multipart(MIXED, &[alternative + &letter, self.attachment()]);
        Ok((headers + &mail).into_bytes())
    }

    fn attachment(&self) -> String {
        let headers = Headers::default()
            .raw("Content-Type", "text/calendar; charset=utf-8; method=PUBLISH")
            .raw("Content-Disposition", "attachment; filename=\"window.ics\"")
            // Its line ends are part of it (RFC 5545 3.1).
            .raw("Content-Transfer-Encoding", "base64")
            .end();
        headers + &base64_lines(self.calendar().as_bytes())
    }
}

fn body(kind: &str, encoded: &str) -> String {
    let headers = Headers::default()
        .raw("Content-Type", &format!("text/{kind}; charset=utf-8"))
        .raw("Content-Transfer-Encoding", "quoted-printable")
        .end();
    headers + encoded
}

fn multipart(boundary: &str, parts: &[String]) -> String {
    let mut whole: String =
        parts.iter().map(|part| format!("--{boundary}\r\n{part}\r\n")).collect();
    whole.push_str(&format!("--{boundary}--\r\n"));
    whole
}
