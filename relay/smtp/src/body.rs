//! Receiving a message: by DATA and by BDAT.
//!
//! Owns where a message ends, undoing dot-stuffing, and what is found out on
//! the way, all in one pass over the bytes. Keeps none of the content: it
//! comes out as slices of the input. Owns no answer's timing: a fault is told
//! when the message has ended (see [`crate::server`]).
//!
//! Floor 0.

use memchr::{memchr, memchr_iter};

use crate::limits::Limits;
use crate::reply::{Enhanced, Reply};

/// What is known of a message that arrived whole and without fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyFacts {
    /// Bytes of the content.
    pub size: u64,
    /// Bytes up to and with the first empty line; all if there is none.
    pub header_size: u64,
    /// `Received` lines in the header.
    pub received: u32,
    /// It has bytes beyond ASCII, whatever BODY said.
    pub eight_bit: bool,
    /// A line starts with a dot, so that sending it by DATA needs stuffing.
    pub leading_dot: bool,
    /// Its last line is complete, so that DATA can carry it. So is nothing.
    pub ends_with_crlf: bool,
}

/// Why a message cannot be taken; the client's fault. If it has several, the
/// first of this list is told, whatever the split of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum MessageFault {
    /// Beyond the SIZE offered.
    #[error("the message is too large")]
    TooLarge,
    /// A NUL byte.
    #[error("the message has a NUL byte")]
    Nul,
    /// A CR or LF that is not part of a CRLF. Taken for a line end by others
    /// it makes two messages of one (CVE-2023-51764 and kin).
    #[error("the message has a bare CR or LF")]
    BareLineEnd,
    /// A line beyond the cap.
    #[error("the message has a line that is too long")]
    LongLine,
    /// A header block beyond the cap.
    #[error("the message's header is too large")]
    LargeHeader,
    /// Too many `Received` lines.
    #[error("the message is in a loop")]
    Loop,
}

impl MessageFault {
    /// All of them, in their order.
    pub const ALL: [MessageFault; 6] = [
        MessageFault::TooLarge,
        MessageFault::Nul,
        MessageFault::BareLineEnd,
        MessageFault::LongLine,
        MessageFault::LargeHeader,
        MessageFault::Loop,
    ];

    /// The answer to it.
    pub fn reply(self) -> &'static Reply {
        static TOO_LARGE: Reply = Reply::fixed(552, Enhanced(5, 3, 4), "Message too large");
        static NUL: Reply = Reply::fixed(550, Enhanced(5, 6, 0), "Message contains NUL");
        static BARE: Reply = Reply::fixed(550, Enhanced(5, 6, 0), "Message contains bare CR or LF");
        static LINE: Reply = Reply::fixed(550, Enhanced(5, 6, 0), "Message line too long");
        static HEADER: Reply = Reply::fixed(550, Enhanced(5, 6, 0), "Message header too large");
        static LOOP: Reply =
            Reply::fixed(554, Enhanced(5, 4, 6), "Too many Received lines, mail loop");
        match self {
            MessageFault::TooLarge => &TOO_LARGE,
            MessageFault::Nul => &NUL,
            MessageFault::BareLineEnd => &BARE,
            MessageFault::LongLine => &LINE,
            MessageFault::LargeHeader => &HEADER,
            MessageFault::Loop => &LOOP,
        }
    }

    /// A word for it, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            MessageFault::TooLarge => "too_large",
            MessageFault::Nul => "nul",
            MessageFault::BareLineEnd => "bare_line_end",
            MessageFault::LongLine => "long_line",
            MessageFault::LargeHeader => "large_header",
            MessageFault::Loop => "loop",
        }
    }

    fn bit(self) -> u8 {
        1 << (self as u8)
    }
}

const RECEIVED: &[u8] = b"received:";

/// Looks at content (dot-stuffing undone) once, in any split.
#[derive(Clone, Debug)]
pub struct Scanner {
    size: u64,
    header_size: u64,
    /// CRs seen less CRLFs seen: those that are bare, and one that may still
    /// get its LF.
    lone_crs: u64,
    /// Bytes of the line that has begun.
    line: u64,
    received: u32,
    /// How much of `Received:` the line that has begun starts with.
    matched: u8,
    /// Set of [`MessageFault`].
    faults: u8,
    in_header: bool,
    /// The last byte was the LF of a CRLF, or there was none yet.
    line_start: bool,
    last_cr: bool,
    eight_bit: bool,
    leading_dot: bool,
}

/// What a dot at the start of a line means to [`Scanner::scan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dots {
    /// Content.
    Content,
    /// The scan stops in front of it.
    Stop,
    /// As `Stop`, but the first byte is content in any case: the dot in front
    /// of it was taken away.
    StopBehindFirst,
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner {
            size: 0,
            header_size: 0,
            lone_crs: 0,
            line: 0,
            received: 0,
            matched: 0,
            faults: 0,
            in_header: true,
            line_start: true,
            last_cr: false,
            eight_bit: false,
            leading_dot: false,
        }
    }
}

impl Scanner {
    /// Scans content; says how much it took, which is all unless it stopped
    /// in front of a dot.
    fn scan(&mut self, input: &[u8], limits: &Limits, mut dots: Dots) -> usize {
        let mut crlfs = 0;
        let mut from = 0;
        let mut carried_cr = self.last_cr;
        let end = loop {
            if self.line_start && input.get(from) == Some(&b'.') {
                if dots == Dots::Stop {
                    break from;
                }
                self.leading_dot = true;
            }
            if dots == Dots::StopBehindFirst {
                dots = Dots::Stop;
            }
            let Some(length) = memchr(b'\n', &input[from..]) else {
                self.begin_line(&input[from..]);
                break input.len();
            };
            let part = &input[from..from + length];
            let crlf = part.last().map_or(carried_cr, |last| *last == b'\r');
            self.end_line(part, crlf, limits);
            crlfs += u64::from(crlf);
            carried_cr = false;
            from += length + 1;
        };
        self.look(&input[..end], crlfs);
        end
    }

    /// A part of a line whose end is not here yet.
    fn begin_line(&mut self, part: &[u8]) {
        if part.is_empty() {
            return;
        }
        if self.in_header {
            self.match_received(part);
        }
        self.line += part.len() as u64;
        self.line_start = false;
    }

    /// The last part of a line, without its LF.
    fn end_line(&mut self, part: &[u8], crlf: bool, limits: &Limits) {
        let length = self.line + part.len() as u64 - u64::from(crlf);
        if !crlf {
            self.faults |= MessageFault::BareLineEnd.bit();
        }
        if length > limits.message_line {
            self.faults |= MessageFault::LongLine.bit();
        }
        if self.in_header {
            self.match_received(part);
            self.matched = 0;
            self.header_size += length + 1 + u64::from(crlf);
            self.in_header = length > 0;
        }
        self.line = 0;
        self.line_start = crlf;
    }

    /// Counts a `Received:` at the start of a line, in any split.
    fn match_received(&mut self, part: &[u8]) {
        let matched = usize::from(self.matched);
        if matched == RECEIVED.len() || self.line != u64::from(self.matched) {
            return;
        }
        let wanted = &RECEIVED[matched..];
        let length = wanted.len().min(part.len());
        if part[..length].eq_ignore_ascii_case(&wanted[..length]) {
            // At most the length of the constant.
            self.matched += u8::try_from(length).unwrap_or(0);
            self.received += u32::from(usize::from(self.matched) == RECEIVED.len());
        }
    }

    /// What does not depend on lines, over the whole span at once.
    fn look(&mut self, content: &[u8], crlfs: u64) {
        let Some(last) = content.last() else { return };
        self.size += content.len() as u64;
        self.last_cr = *last == b'\r';
        self.eight_bit = self.eight_bit || !content.is_ascii();
        if memchr(0, content).is_some() {
            self.faults |= MessageFault::Nul.bit();
        }
        self.lone_crs += memchr_iter(b'\r', content).count() as u64;
        self.lone_crs -= crlfs;
    }

    /// A CR of the content that was held back and is bare.
    fn bare_cr(&mut self) {
        self.faults |= MessageFault::BareLineEnd.bit();
        self.size += 1;
        self.line += 1;
        self.line_start = false;
    }

    /// Whether the message cannot be taken any more. It may turn out later.
    fn is_faulty(&self, max_size: u64) -> bool {
        self.faults != 0 || self.size > max_size
    }

    /// All of the content was scanned.
    fn finish(&self, limits: &Limits, max_size: u64) -> Result<BodyFacts, MessageFault> {
        let header_size = if self.in_header { self.size } else { self.header_size };
        let line = self.line - u64::from(self.last_cr && self.line > 0);
        let found = |fault| match fault {
            MessageFault::TooLarge => self.size > max_size,
            MessageFault::BareLineEnd => self.lone_crs > 0,
            MessageFault::LongLine => line > limits.message_line,
            MessageFault::LargeHeader => header_size > limits.header_block,
            MessageFault::Loop => self.received > limits.received_lines,
            MessageFault::Nul => false,
        };
        for fault in MessageFault::ALL {
            if self.faults & fault.bit() != 0 || found(fault) {
                return Err(fault);
            }
        }
        Ok(BodyFacts {
            size: self.size,
            header_size,
            received: self.received,
            eight_bit: self.eight_bit,
            leading_dot: self.leading_dot,
            ends_with_crlf: self.line_start,
        })
    }
}

/// What a receiver found at the start of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Content. Not given out once the message is known to be faulty.
    Content(&'a [u8]),
    /// The input is used up.
    More,
    /// The message (DATA) or the chunk (BDAT) has ended.
    End,
}

/// Receives a message by DATA: dot-stuffed, up to `CRLF.CRLF` and nothing
/// else (RFC 5321 4.1.1.4, 4.5.2).
#[derive(Clone, Debug, Default)]
pub struct DataReceiver {
    scanner: Scanner,
    held: Held,
}

/// What was taken at the start of a line and is not yet known for what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    Dot,
    DotCr,
}

impl DataReceiver {
    /// Takes bytes up to the next span of content or the end; says how many.
    pub fn receive<'a>(
        &mut self,
        input: &'a [u8],
        limits: &Limits,
        max_size: u64,
    ) -> (usize, Progress<'a>) {
        let mut used = 0;
        while let Some(&first) = input.get(used) {
            let dots = match (self.held, first) {
                (Held::DotCr, b'\n') => return (used + 1, Progress::End),
                (Held::DotCr, _) => {
                    // `CRLF . CR` and no LF: the CR was content.
                    self.scanner.bare_cr();
                    Dots::Stop
                }
                (Held::Dot, b'\r') => {
                    self.held = Held::DotCr;
                    used += 1;
                    continue;
                }
                (Held::Dot, _) => Dots::StopBehindFirst,
                (Held::Nothing, _) => Dots::Stop,
            };
            self.held = Held::Nothing;
            let rest = &input[used..];
            let taken = self.scanner.scan(rest, limits, dots);
            used += taken;
            if taken == 0 {
                self.held = Held::Dot;
                used += 1;
            } else if !self.scanner.is_faulty(max_size) {
                return (used, Progress::Content(&rest[..taken]));
            }
        }
        (used, Progress::More)
    }

    /// What is known of the message, once it has ended.
    ///
    /// # Errors
    /// If it cannot be taken.
    pub fn finish(&self, limits: &Limits, max_size: u64) -> Result<BodyFacts, MessageFault> {
        self.scanner.finish(limits, max_size)
    }
}

/// Receives a message by BDAT: chunks of a stated size (RFC 3030).
#[derive(Clone, Debug, Default)]
pub struct ChunkReceiver {
    scanner: Scanner,
    remaining: u64,
}

impl ChunkReceiver {
    /// Begins a chunk. Says whether the message stays within its size; if
    /// not, nothing was begun.
    #[must_use]
    pub fn begin(&mut self, size: u64, max_size: u64) -> bool {
        assert!(self.remaining == 0, "the chunk before it has not ended");
        if self.scanner.size.saturating_add(size) > max_size {
            return false;
        }
        self.remaining = size;
        true
    }

    /// Whether all of the chunk is here.
    pub fn is_complete(&self) -> bool {
        self.remaining == 0
    }

    /// Takes bytes of the chunk; says how many.
    pub fn receive<'a>(&mut self, input: &'a [u8], limits: &Limits) -> (usize, Progress<'a>) {
        if self.remaining == 0 {
            return (0, Progress::End);
        }
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let content = &input[..input.len().min(wanted)];
        if content.is_empty() {
            return (0, Progress::More);
        }
        self.scanner.scan(content, limits, Dots::Content);
        self.remaining -= content.len() as u64;
        match self.scanner.is_faulty(u64::MAX) {
            false => (content.len(), Progress::Content(content)),
            true if self.remaining == 0 => (content.len(), Progress::End),
            true => (content.len(), Progress::More),
        }
    }

    /// What is known of the message, once its last chunk has ended.
    ///
    /// # Errors
    /// If it cannot be taken.
    pub fn finish(&self, limits: &Limits, max_size: u64) -> Result<BodyFacts, MessageFault> {
        self.scanner.finish(limits, max_size)
    }
}
