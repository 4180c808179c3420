//! An envelope as commands for one upstream.
//!
//! Owns whether an upstream can be given a message as it is, and which
//! parameters go to it. Never changes a message to make it fit.
//!
//! Floor 0.

use super::identity::{self, Attributes, Identity};
use crate::body::BodyFacts;
use crate::command::{Mail, Rcpt};
use crate::extensions::{Extension, Extensions};
use crate::params::BodyType;
use crate::reply::{Enhanced, Reply, write_number};

/// What the envelope needs to know of the body that will be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyShape {
    /// Bytes, before dot-stuffing.
    pub size: u64,
    /// It has bytes beyond ASCII.
    pub eight_bit: bool,
    /// A line starts with a dot.
    pub leading_dot: bool,
    /// It is empty or its last line is complete.
    pub ends_with_crlf: bool,
}

impl BodyShape {
    /// The shape of a received message with this many bytes of whole ASCII
    /// header lines put on top.
    pub fn of(facts: &BodyFacts, added: u64) -> BodyShape {
        BodyShape {
            size: facts.size + added,
            eight_bit: facts.eight_bit,
            leading_dot: facts.leading_dot,
            ends_with_crlf: facts.ends_with_crlf,
        }
    }
}

/// Why this upstream cannot be given this message. Nobody's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// It is 8-bit, declared or not, and the upstream has not the extension.
    #[error("the next hop does not take 8-bit content")]
    EightBit,
    /// It was declared SMTPUTF8 and has content or addresses that need it.
    #[error("the next hop does not take internationalised mail")]
    SmtpUtf8,
    /// Its last line is not complete, and there is no BDAT to say so.
    #[error("the next hop cannot take a message that does not end in a line end")]
    IncompleteLine,
    /// Beyond the SIZE that the upstream states.
    #[error("the next hop does not take messages of this size")]
    TooLarge,
}

impl Unsupported {
    /// The answer to the client.
    pub fn reply(self) -> &'static Reply {
        static EIGHT_BIT: Reply =
            Reply::fixed(554, Enhanced(5, 6, 3), "Next hop does not take 8-bit content");
        static UTF8: Reply =
            Reply::fixed(554, Enhanced(5, 6, 7), "Next hop does not take internationalised mail");
        static LINE: Reply =
            Reply::fixed(550, Enhanced(5, 6, 0), "Message does not end in a line end");
        static SIZE: Reply =
            Reply::fixed(552, Enhanced(5, 3, 4), "Message too large for the next hop");
        match self {
            Unsupported::EightBit => &EIGHT_BIT,
            Unsupported::SmtpUtf8 => &UTF8,
            Unsupported::IncompleteLine => &LINE,
            Unsupported::TooLarge => &SIZE,
        }
    }
}

/// What a transaction begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before<'a> {
    /// The one before must be ended.
    pub(super) reset: bool,
    /// Whom the message is from, and what the upstream wants to know of that.
    pub(super) forward: Option<(&'a Identity<'a>, Attributes)>,
}

/// The commands of a transaction up to where the body is asked for.
#[derive(Debug)]
pub(super) struct Commands {
    /// `RSET` if needed, each `XFORWARD`, `MAIL`, each `RCPT`, and `DATA` or `BDAT`.
    pub(super) text: Vec<u8>,
    pub(super) forwards: u32,
    pub(super) recipients: u32,
}

pub(super) fn render<'e>(
    mail: &Mail,
    recipients: impl IntoIterator<Item = &'e Rcpt> + Clone,
    shape: &BodyShape,
    extensions: &Extensions,
    before: &Before<'_>,
) -> Result<Commands, Unsupported> {
    check_support(mail, recipients.clone(), shape, extensions)?;
    let mut text = Vec::with_capacity(256);
    if before.reset {
        text.extend_from_slice(b"RSET\r\n");
    }
    let forwards = match before.forward {
        Some((identity, offered)) => identity::write("XFORWARD", identity, offered, &mut text),
        None => 0,
    };
    write_mail(mail, shape.size, extensions, &mut text);
    let mut count = 0;
    for rcpt in recipients {
        write_rcpt(rcpt, extensions, &mut text);
        count += 1;
    }
    assert!(count > 0, "a transaction needs a recipient");
    if extensions.has(Extension::Chunking) {
        text.extend_from_slice(b"BDAT ");
        write_number(shape.size, &mut text);
        text.extend_from_slice(b" LAST\r\n");
    } else {
        text.extend_from_slice(b"DATA\r\n");
    }
    Ok(Commands { text, forwards, recipients: count })
}

/// Appends `MAIL` and each `RCPT` as lines, with the parameters that the next hop takes.
pub fn envelope_lines<'e>(
    mail: &Mail,
    recipients: impl IntoIterator<Item = &'e Rcpt>,
    size: u64,
    extensions: &Extensions,
    out: &mut Vec<u8>,
) {
    write_mail(mail, size, extensions, out);
    recipients.into_iter().for_each(|rcpt| write_rcpt(rcpt, extensions, out));
}

/// Whether a next hop with these extensions can be given a message as it is.
///
/// # Errors
/// If it lacks what the message needs.
pub fn check_support<'e>(
    mail: &Mail,
    recipients: impl IntoIterator<Item = &'e Rcpt>,
    shape: &BodyShape,
    extensions: &Extensions,
) -> Result<(), Unsupported> {
    let all = recipients.into_iter().all(|rcpt| rcpt.recipient.is_ascii());
    check(mail, mail.sender.is_ascii() && all, shape, extensions)
}

/// The commands that ask about a recipient.
#[derive(Debug)]
pub(super) struct Questions {
    /// `MAIL`.
    pub(super) mail: Vec<u8>,
    /// `RCPT`.
    pub(super) rcpt: Vec<u8>,
}

pub(super) fn questions(
    mail: &Mail,
    rcpt: &Rcpt,
    extensions: &Extensions,
) -> Result<Questions, Unsupported> {
    let ascii = mail.sender.is_ascii() && rcpt.recipient.is_ascii();
    let shape = BodyShape {
        size: mail.size.unwrap_or(0),
        eight_bit: false,
        leading_dot: false,
        ends_with_crlf: true,
    };
    check(mail, ascii, &shape, extensions)?;
    let mut questions = Questions { mail: Vec::new(), rcpt: Vec::new() };
    write_mail(mail, shape.size, extensions, &mut questions.mail);
    write_rcpt(rcpt, extensions, &mut questions.rcpt);
    Ok(questions)
}

fn check(
    mail: &Mail,
    ascii: bool,
    shape: &BodyShape,
    extensions: &Extensions,
) -> Result<(), Unsupported> {
    // Only what is there needs the extension: leaving out a declaration that
    // says nothing changes no byte. 8-bit content needs it also where the
    // client forgot to declare it (RFC 6152 3): the upstream might clear bits.
    let wide = mail.smtputf8 && (shape.eight_bit || !ascii);
    if wide && !extensions.has(Extension::SmtpUtf8) {
        Err(Unsupported::SmtpUtf8)
    } else if shape.eight_bit && !extensions.has(Extension::EightBitMime) {
        Err(Unsupported::EightBit)
    } else if !shape.ends_with_crlf && !extensions.has(Extension::Chunking) {
        Err(Unsupported::IncompleteLine)
    } else if extensions.size_limit().is_some_and(|limit| shape.size > limit) {
        Err(Unsupported::TooLarge)
    } else {
        Ok(())
    }
}

fn write_mail(mail: &Mail, size: u64, extensions: &Extensions, out: &mut Vec<u8>) {
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(mail.sender.as_str().as_bytes());
    out.push(b'>');
    if extensions.size().is_some() {
        out.extend_from_slice(b" SIZE=");
        write_number(size, out);
    }
    if mail.body == Some(BodyType::EightBitMime) && extensions.has(Extension::EightBitMime) {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if mail.smtputf8 && extensions.has(Extension::SmtpUtf8) {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if extensions.has(Extension::Dsn) {
        if let Some(ret) = mail.ret {
            out.extend_from_slice(b" RET=");
            out.extend_from_slice(ret.as_str().as_bytes());
        }
        if let Some(envid) = &mail.envid {
            out.extend_from_slice(b" ENVID=");
            out.extend_from_slice(envid.as_bytes());
        }
    }
    // AUTH (RFC 4954 5) is left out, in a session that has logged in too: it is optional, says only
    // that nobody vouches for the sender, and some servers that offer AUTH refuse it.
    out.extend_from_slice(b"\r\n");
}

fn write_rcpt(rcpt: &Rcpt, extensions: &Extensions, out: &mut Vec<u8>) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(rcpt.recipient.as_str().as_bytes());
    out.push(b'>');
    if extensions.has(Extension::Dsn) {
        if let Some(notify) = rcpt.notify {
            out.extend_from_slice(b" NOTIFY=");
            notify.write(out);
        }
        let wide = extensions.has(Extension::SmtpUtf8);
        if let Some(orcpt) = rcpt.orcpt.as_ref().filter(|orcpt| wide || orcpt.is_ascii()) {
            out.extend_from_slice(b" ORCPT=");
            out.extend_from_slice(orcpt.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}
