//! Replies: their parts, their text form, and reading them from an upstream.
//!
//! Owns the guarantee that no CR, LF, NUL or other control character gets
//! into a reply, whoever gave the text. Owns no reply of the server (see
//! [`crate::server`]) and no decision.
//!
//! Floor 0.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr;

use crate::limits;

/// An enhanced status code (RFC 3463): class, subject, detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl Enhanced {
    /// Reads a code that the text begins with; the second value is what
    /// follows it and one space.
    fn split(text: &str) -> Option<(Enhanced, &str)> {
        let bytes = text.as_bytes();
        // "2.1.0": the class is one digit, the others up to three (RFC 3463 2).
        if bytes.len() < 5 || !matches!(bytes[0], b'2' | b'4' | b'5') || bytes[1] != b'.' {
            return None;
        }
        let (subject, after) = number(bytes, 2)?;
        if bytes.get(after) != Some(&b'.') {
            return None;
        }
        let (detail, after) = number(bytes, after + 1)?;
        let code = Enhanced(bytes[0] - b'0', subject, detail);
        match bytes.get(after) {
            None => Some((code, "")),
            Some(b' ') => Some((code, &text[after + 1..])),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Up to three digits without leading zeros, from `at`.
fn number(bytes: &[u8], at: usize) -> Option<(u16, usize)> {
    let digits = bytes[at..].iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 3 || (digits > 1 && bytes[at] == b'0') {
        return None;
    }
    let value =
        bytes[at..at + digits].iter().fold(0, |sum, byte| sum * 10 + u16::from(byte - b'0'));
    Some((value, at + digits))
}

/// One reply, of one or more lines.
///
/// The text has one line a `\n`, without the reply code. If `prefix` is there,
/// every line is written with it in front; a reply that was read and whose
/// lines do not all carry the same code keeps them in its text instead, so
/// that what is written is always what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    prefix: Option<Enhanced>,
    text: Cow<'static, str>,
}

/// Why a reply cannot be made; the fault is with whoever gave the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The code is not 2xx to 5xx.
    #[error("a reply code lies between 200 and 599")]
    Code,
    /// Enhanced code and reply code are of different classes.
    #[error("the enhanced code is of another class than the reply code")]
    Class,
    /// A control character other than a line feed or a tab.
    #[error("a reply's text must not hold control characters")]
    Control,
    /// Too many or too long lines.
    #[error("the reply is too long")]
    Long,
}

impl Reply {
    /// A reply that is known when the program is built. Costs no allocation.
    ///
    /// # Panics
    /// If the code or the text could not be sent: our own bug, found by the
    /// compiler when the reply is a `static`.
    pub const fn fixed(code: u16, enhanced: Enhanced, text: &'static str) -> Reply {
        assert!(code >= 200 && code <= 599 && code / 100 == enhanced.0 as u16);
        assert!(enhanced.1 <= 999 && enhanced.2 <= 999);
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] >= b' ' && bytes[at] < 0x7f);
            at += 1;
        }
        Reply { code, prefix: Some(enhanced), text: Cow::Borrowed(text) }
    }

    /// A reply from parts that come from outside (a policy, a setting). Lines
    /// are parted by `\n`.
    ///
    /// # Errors
    /// If anything in it could break the protocol.
    pub fn new(
        code: u16,
        enhanced: Option<Enhanced>,
        text: impl Into<Cow<'static, str>>,
    ) -> Result<Reply, ReplyError> {
        let text = text.into();
        if !(200..=599).contains(&code) {
            return Err(ReplyError::Code);
        }
        if let Some(Enhanced(class, subject, detail)) = enhanced
            && (u16::from(class) != code / 100 || subject > 999 || detail > 999)
        {
            return Err(ReplyError::Class);
        }
        if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(ReplyError::Control);
        }
        let overhead = "250-5.999.999 \r\n".len();
        if text.len() > limits::REPLY_TEXT
            || text.split('\n').count() > limits::REPLY_LINES
            || text.split('\n').any(|line| line.len() + overhead > limits::REPLY_LINE)
        {
            return Err(ReplyError::Long);
        }
        // One form for one reply: as reading it back would give it.
        Ok(match enhanced {
            Some(_) => Reply { code, prefix: enhanced, text },
            None => Reply::from_lines(code, text.into_owned()),
        })
    }

    /// A reply as read: takes the enhanced code out if all lines carry it.
    fn from_lines(code: u16, text: String) -> Reply {
        let strip = |line| match Enhanced::split(line) {
            // "2.0.0 " with nothing behind would lose its space.
            Some((found, rest)) if !rest.is_empty() || !line.ends_with(' ') => Some((found, rest)),
            _ => None,
        };
        let common = text.split('\n').next().and_then(strip).map(|(found, _)| found);
        let Some(prefix) = common.filter(|found| u16::from(found.0) == code / 100) else {
            return Reply { code, prefix: None, text: Cow::Owned(text) };
        };
        let mut bare = String::with_capacity(text.len());
        for (index, line) in text.split('\n').enumerate() {
            match strip(line) {
                Some((found, rest)) if found == prefix => {
                    if index > 0 {
                        bare.push('\n');
                    }
                    bare.push_str(rest);
                }
                _ => return Reply { code, prefix: None, text: Cow::Owned(text) },
            }
        }
        Reply { code, prefix: Some(prefix), text: Cow::Owned(bare) }
    }

    /// The three-digit code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced status code, if the first line has one that fits.
    pub fn enhanced(&self) -> Option<Enhanced> {
        self.prefix.or_else(|| {
            let (found, _) = Enhanced::split(self.text.split('\n').next()?)?;
            (u16::from(found.0) == self.code / 100).then_some(found)
        })
    }

    /// The lines' texts, without reply code and common enhanced code.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// 2xx.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 4xx.
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5xx.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// 4xx or 5xx.
    pub fn is_negative(&self) -> bool {
        self.code >= 400
    }

    /// Appends the reply as it goes over the wire.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_marked("", out);
    }

    /// Appends the reply as it goes over the wire, with `mark` in front of each line's text.
    pub(crate) fn write_marked(&self, mark: &str, out: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            write_code(self.code, out);
            out.push(if lines.peek().is_some() { b'-' } else { b' ' });
            if let Some(Enhanced(class, subject, detail)) = self.prefix {
                out.push(b'0' + class);
                out.push(b'.');
                write_number(u64::from(subject), out);
                out.push(b'.');
                write_number(u64::from(detail), out);
                if !line.is_empty() {
                    out.push(b' ');
                }
            }
            out.extend_from_slice(mark.as_bytes());
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl fmt::Display for Reply {
    /// All in one line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.prefix {
            write!(f, " {enhanced}")?;
        }
        for line in self.lines() {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

fn write_code(code: u16, out: &mut Vec<u8>) {
    for digit in [code / 100, code / 10 % 10, code % 10] {
        // A digit always fits.
        out.push(b'0' + u8::try_from(digit).unwrap_or(0));
    }
}

/// Appends a number in decimal, without the formatting machinery.
pub(crate) fn write_number(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A digit always fits.
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Why bytes from an upstream are not a reply: the upstream's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyFault {
    /// Not three digits, then a space, a hyphen or the line's end.
    #[error("a line that is no SMTP reply")]
    NotSmtp,
    /// Lines of one reply with different codes.
    #[error("a reply whose lines have different codes")]
    MixedCodes,
    /// A line beyond [`limits::REPLY_LINE`].
    #[error("a reply line that is too long")]
    LongLine,
    /// More lines than [`limits::REPLY_LINES`] or more text than
    /// [`limits::REPLY_TEXT`].
    #[error("a reply that is too long")]
    Long,
}

/// Reads replies from any split of the bytes.
#[derive(Debug, Default)]
pub struct ReplyReader {
    /// A line whose end is not here yet.
    partial: Vec<u8>,
    /// The lines of a reply whose last line is not here yet.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    code: u16,
    lines: usize,
    text: String,
}

impl ReplyReader {
    /// Nothing of a reply is held.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.pending.is_none()
    }

    /// Takes bytes up to the end of one reply at most; says how many.
    ///
    /// # Errors
    /// If they are not a reply. The reader is of no use afterwards.
    pub fn read(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), ReplyFault> {
        let mut used = 0;
        while let Some(at) = memchr(b'\n', &input[used..]) {
            let part = &input[used..used + at];
            used += at + 1;
            if self.partial.len() + part.len() + 1 > limits::REPLY_LINE {
                return Err(ReplyFault::LongLine);
            }
            let reply = if self.partial.is_empty() {
                self.line(part)?
            } else {
                let mut line = std::mem::take(&mut self.partial);
                line.extend_from_slice(part);
                self.line(&line)?
            };
            if reply.is_some() {
                return Ok((used, reply));
            }
        }
        let rest = &input[used..];
        if self.partial.len() + rest.len() > limits::REPLY_LINE {
            return Err(ReplyFault::LongLine);
        }
        self.partial.extend_from_slice(rest);
        Ok((input.len(), None))
    }

    /// One line without its LF. A lone LF ends a reply line too: nothing can
    /// be smuggled in that direction.
    fn line(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyFault> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Measured as it will be written on.
        if line.len() + 2 > limits::REPLY_LINE {
            return Err(ReplyFault::LongLine);
        }
        let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = line else {
            return Err(ReplyFault::NotSmtp);
        };
        let code = [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(*digit - b'0'));
        let (last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            _ => return Err(ReplyFault::NotSmtp),
        };
        let text = printable(text);
        let lines = match self.pending.take() {
            None => Pending { code, lines: 1, text: text.into_owned() },
            Some(pending) if pending.code != code => return Err(ReplyFault::MixedCodes),
            Some(mut pending) => {
                pending.lines += 1;
                pending.text.push('\n');
                pending.text.push_str(&text);
                pending
            }
        };
        if lines.lines > limits::REPLY_LINES || lines.text.len() > limits::REPLY_TEXT {
            return Err(ReplyFault::Long);
        }
        if last {
            return Ok(Some(Reply::from_lines(code, lines.text)));
        }
        self.pending = Some(lines);
        Ok(None)
    }
}

/// The text with `?` for what must not be in a reply: control characters and
/// bytes that are not UTF-8 (RFC 5321 4.2, RFC 6531 3.7.4.2).
fn printable(text: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(text) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\t') => Cow::Borrowed(text),
        _ => String::from_utf8_lossy(text)
            .chars()
            .map(|c| {
                let keep = c == '\t' || !(c.is_control() || c == char::REPLACEMENT_CHARACTER);
                if keep { c } else { '?' }
            })
            .collect::<String>()
            .into(),
    }
}
