//! One session of the sink: reads commands and content, answers in as few writes as it can.
//!
//! Owns the session's state and the order of commands; what goes wrong on purpose is decided in
//! `fault`. Floor: none.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::content;
use super::envelope::{self, Command};
use super::fault::{Action, Stage};
use super::identity::Teller;
use super::record::Keep;
use super::transaction::Mail;
use super::{Shared, SinkOptions, add};

/// First read buffer: idle sessions stay small.
const IDLE_BUFFER: usize = 2 * 1024;
/// Read buffer once content comes: a 10 kB message fits whole.
const CONTENT_BUFFER: usize = 64 * 1024;
/// Longest command line: RFC 5321 4.5.3.1.4 with room for the parameters of SMTPUTF8 and DSN.
const MAX_LINE: usize = IDLE_BUFFER;
/// Recipients of one message (RFC 5321 4.5.3.1.8 asks for 100).
const MAX_RECIPIENTS: usize = 1000;

pub(super) fn ehlo_reply(options: &SinkOptions) -> Vec<u8> {
    let offered = &options.extensions;
    let mut lines = vec![options.hostname.clone()];
    let flags = [
        ("PIPELINING", offered.pipelining),
        ("CHUNKING", offered.chunking),
        ("8BITMIME", offered.eightbitmime),
        ("SMTPUTF8", offered.smtputf8),
        ("DSN", offered.dsn),
    ];
    lines.extend(flags.iter().filter(|flag| flag.1).map(|flag| flag.0.to_owned()));
    lines.extend(offered.size.map(|size| format!("SIZE {size}")));
    lines.extend(options.identity.lines());
    lines.push("ENHANCEDSTATUSCODES".into());
    let last = lines.len() - 1;
    let line = |(n, text)| format!("250{}{text}\r\n", if n == last { ' ' } else { '-' });
    lines.iter().enumerate().map(line).collect::<String>().into_bytes()
}

/// Serves one connection to its end.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared>,
    stream: S,
) -> io::Result<()> {
    let mut session = Session::new(shared, stream);
    if shared.options.identity.proxy && session.proxied().await?.is_none() {
        return session.flush().await;
    }
    let greeting = format!("220 {} ESMTP\r\n", shared.options.hostname);
    if session.answer(Stage::Connect, greeting.as_bytes()).await?.is_some() {
        session.serve().await?;
    }
    session.flush().await
}

/// What the next bytes are.
#[derive(Clone, Copy)]
enum Expect {
    Command,
    /// Content by DATA; whether it is at its beginning.
    Data {
        first: bool,
    },
    /// Content of a BDAT chunk; `discard` when the transaction was refused.
    Chunk {
        left: u64,
        last: bool,
        discard: bool,
    },
}

struct Session<'a, S> {
    shared: &'a Shared,
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    out: Vec<u8>,
    expect: Expect,
    helo: String,
    teller: Teller,
    number: u64,
    sent: u64,
    mail: Option<Mail>,
    /// What a fault answers to the chunk that is being discarded.
    refusal: Vec<u8>,
}

/// Numbers the sessions for the record.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// `None` from a step: the session ends, after what is waiting has been written.
type Step = io::Result<Option<()>>;

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Session<'a, S> {
    fn new(shared: &'a Shared, stream: S) -> Self {
        Self {
            shared,
            stream,
            buffer: vec![0; IDLE_BUFFER],
            start: 0,
            end: 0,
            out: Vec::with_capacity(256),
            expect: Expect::Command,
            helo: String::new(),
            teller: Teller::default(),
            number: SESSIONS.fetch_add(1, Ordering::Relaxed) + 1,
            sent: 0,
            mail: None,
            refusal: Vec::new(),
        }
    }

    /// Takes the header of a proxy.
    async fn proxied(&mut self) -> Step {
        loop {
            match self.teller.proxy(&self.buffer[self.start..self.end]) {
                Some(Ok(length)) => {
                    self.start += length;
                    return Ok(Some(()));
                }
                Some(Err(_)) => {
                    self.violation(b"421 4.7.0 no PROXY header\r\n")?;
                    return Ok(None);
                }
                None if self.fill().await? => {}
                None => return Ok(None),
            }
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let before = self.start;
            let went_on = match self.expect {
                Expect::Command => self.command().await?,
                Expect::Data { first } => self.data(first).await?,
                Expect::Chunk { left, last, discard } => self.chunk(left, last, discard).await?,
            };
            if went_on.is_none() {
                return Ok(());
            }
            let waits = matches!(self.expect, Expect::Chunk { left: 0, .. });
            if self.start == before && !waits && !self.fill().await? {
                return Ok(());
            }
        }
    }

    /// Writes the replies and reads more; false at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        self.flush().await?;
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let n = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += n;
        Ok(n > 0)
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await?;
            self.out.clear();
        }
        Ok(())
    }

    /// Puts the reply to `stage`, or what a fault says instead.
    async fn answer(&mut self, stage: Stage, reply: &[u8]) -> Step {
        let faults = {
            let current = self.shared.faults.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&current)
        };
        match faults.strike(stage) {
            None => self.put(reply),
            Some(Action::Reply(text)) => return Ok(self.fault_reply(&text)),
            Some(Action::Close) => {
                self.out.clear();
                return Ok(None);
            }
            Some(Action::Silent) => {
                self.flush().await?;
                // What still comes is read, so that the client sees an open window and no reply.
                while self.stream.read(&mut self.buffer).await? > 0 {}
                return Ok(None);
            }
            Some(Action::Delay(delay)) => {
                self.flush().await?;
                tokio::time::sleep(delay).await;
                self.put(reply);
            }
        }
        Ok(Some(()))
    }

    fn put(&mut self, reply: &[u8]) {
        if matches!(reply.first(), Some(b'4' | b'5')) {
            add(&self.shared.counters.negative, 1);
        }
        self.out.extend_from_slice(reply);
    }

    fn fault_reply(&mut self, text: &str) -> Option<()> {
        self.put(text.as_bytes());
        self.put(b"\r\n");
        (!text.starts_with("421")).then_some(())
    }

    fn violation(&mut self, reply: &[u8]) -> Step {
        add(&self.shared.counters.violations, 1);
        self.put(reply);
        Ok(Some(()))
    }

    /// Takes one command line, if it is there.
    async fn command(&mut self) -> Step {
        let waiting = &self.buffer[self.start..self.end];
        let Some(at) = memchr::memchr(b'\n', waiting) else {
            if waiting.len() >= MAX_LINE {
                self.violation(b"500 5.5.2 line too long\r\n")?;
                return Ok(None);
            }
            return Ok(Some(()));
        };
        let (line, more) = (&waiting[..at], waiting.len() > at + 1);
        let Some(line) = line.strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok())
        else {
            self.start += at + 1;
            return self.violation(b"500 5.5.2 bare LF or not UTF-8\r\n");
        };
        let line = line.to_owned();
        self.start += at + 1;
        if self.teller.is_asked() {
            let reply = self.teller.respond(&line, &self.shared.options.identity);
            self.put(reply);
            return Ok(Some(()));
        }
        let command = envelope::parse(&line);
        // The bytes of a chunk may follow BDAT at once; all else waits without PIPELINING.
        let early = more && !matches!(command, Command::Bdat { .. });
        // RFC 2920 3.1: these end a group, with PIPELINING too.
        let ends_group = matches!(command, Command::Hello { .. } | Command::Data | Command::Quit);
        if early && (ends_group || !self.shared.options.extensions.pipelining) {
            add(&self.shared.counters.violations, 1);
        }
        self.obey(command).await
    }

    async fn obey(&mut self, command: Command<'_>) -> Step {
        match command {
            Command::Hello { extended, name } => {
                self.helo = name.to_owned();
                self.mail = None;
                let shared = self.shared;
                let plain = format!("250 {}\r\n", shared.options.hostname);
                let reply = if extended { &shared.ehlo[..] } else { plain.as_bytes() };
                self.answer(Stage::Ehlo, reply).await
            }
            Command::Mail { address, parameters } => self.mail(address, &parameters).await,
            Command::Rcpt { address, parameters } => self.rcpt(address, &parameters).await,
            Command::Data => self.begin_data().await,
            Command::Bdat { size, last } => self.begin_chunk(size, last).await,
            Command::Xforward(_) | Command::Xclient(_) if self.mail.is_some() => {
                self.violation(b"503 5.5.1 out of order\r\n")
            }
            Command::Xforward(rest) if self.shared.options.identity.xforward => {
                let reply = self.teller.xforward(rest);
                self.put(reply);
                Ok(Some(()))
            }
            Command::Xclient(rest) if self.shared.options.identity.xclient => {
                let Some(()) = self.teller.xclient(rest) else {
                    return self.violation(b"501 5.5.4 bad attribute\r\n");
                };
                self.helo.clear();
                let greeting = format!("220 {} ESMTP\r\n", self.shared.options.hostname);
                self.answer(Stage::Connect, greeting.as_bytes()).await
            }
            Command::Auth(rest) if self.shared.options.identity.auth.is_some() => {
                let reply = self.teller.auth(rest, &self.shared.options.identity);
                self.put(reply);
                Ok(Some(()))
            }
            Command::Xforward(_) | Command::Xclient(_) | Command::Auth(_) => {
                self.violation(b"502 5.5.1 not offered\r\n")
            }
            Command::Rset => {
                self.mail = None;
                self.teller.reset();
                self.put(b"250 2.0.0 reset\r\n");
                Ok(Some(()))
            }
            Command::Noop => {
                self.put(b"250 2.0.0 ok\r\n");
                Ok(Some(()))
            }
            Command::Quit => {
                self.answer(Stage::Quit, b"221 2.0.0 bye\r\n").await?;
                Ok(None)
            }
            Command::Malformed => self.violation(b"501 5.5.4 malformed\r\n"),
            Command::Unknown => self.violation(b"500 5.5.1 unknown command\r\n"),
        }
    }

    async fn mail(&mut self, address: &str, parameters: &[&str]) -> Step {
        let shared = self.shared;
        if self.mail.is_some() || self.helo.is_empty() {
            return self.violation(b"503 5.5.1 out of order\r\n");
        }
        if !self.teller.may_send(&shared.options.identity) {
            self.put(b"530 5.7.0 log in first\r\n");
            return Ok(Some(()));
        }
        if envelope::not_offered(parameters, &shared.options.extensions).is_some() {
            return self.violation(b"555 5.5.4 parameter of an extension not offered\r\n");
        }
        if shared.options.messages_per_session.is_some_and(|most| self.sent >= most) {
            self.put(b"421 4.3.2 enough messages for one session\r\n");
            return Ok(None);
        }
        let declared = envelope::declared_size(parameters);
        if self.is_too_long(declared.unwrap_or(0)) {
            self.put(b"552 5.3.4 too long\r\n");
            return Ok(Some(()));
        }
        let went_on = self.answer(Stage::Mail, b"250 2.1.0 ok\r\n").await?;
        if self.last_reply_is_positive() {
            let keep = shared.recorder.is_some();
            self.mail = Some(if keep { Mail::new(address, parameters) } else { Mail::default() });
        }
        Ok(went_on)
    }

    async fn rcpt(&mut self, address: &str, parameters: &[&str]) -> Step {
        let shared = self.shared;
        let Some(recipients) = self.mail.as_ref().map(|mail| mail.recipients) else {
            return self.out_of_order();
        };
        if envelope::not_offered(parameters, &shared.options.extensions).is_some() {
            return self.violation(b"555 5.5.4 parameter of an extension not offered\r\n");
        }
        if recipients >= MAX_RECIPIENTS {
            self.put(b"452 4.5.3 too many recipients\r\n");
            return Ok(Some(()));
        }
        let went_on = self.answer(Stage::Rcpt, b"250 2.1.5 ok\r\n").await?;
        if let (true, Some(mail)) = (self.last_reply_is_positive(), &mut self.mail) {
            mail.recipients += 1;
            if shared.recorder.is_some() {
                mail.add_recipient(address, parameters);
            }
        }
        Ok(went_on)
    }

    async fn begin_data(&mut self) -> Step {
        match &self.mail {
            Some(mail) if mail.recipients > 0 && !mail.chunked => {}
            _ => return self.out_of_order(),
        }
        let went_on = self.answer(Stage::Data, b"354 go on\r\n").await?;
        if self.out.ends_with(b"354 go on\r\n") {
            self.grow();
            self.expect = Expect::Data { first: true };
        }
        Ok(went_on)
    }

    /// Out of order: a violation, but not where a group's earlier command was refused.
    fn out_of_order(&mut self) -> Step {
        if !self.shared.options.extensions.pipelining {
            add(&self.shared.counters.violations, 1);
        }
        self.put(b"503 5.5.1 out of order\r\n");
        Ok(Some(()))
    }

    async fn begin_chunk(&mut self, size: u64, last: bool) -> Step {
        self.grow();
        let allowed = self.shared.options.extensions.chunking;
        if !allowed {
            add(&self.shared.counters.violations, 1);
        }
        let mut discard = !allowed;
        match &mut self.mail {
            Some(mail) if mail.recipients > 0 => {
                let first = !mail.chunked;
                mail.chunked = true;
                if allowed && first {
                    let kept = self.out.len();
                    if self.answer(Stage::Data, b"").await?.is_none() {
                        return Ok(None);
                    }
                    // A fault's reply is the chunk's, whose bytes are still to be taken.
                    if self.out.len() > kept {
                        self.refusal = self.out.split_off(kept);
                        discard = true;
                    }
                }
            }
            _ => discard = true,
        }
        self.expect = Expect::Chunk { left: size, last, discard };
        Ok(Some(()))
    }

    async fn data(&mut self, first: bool) -> Step {
        let piece = content::data(&self.buffer[self.start..self.end], first);
        self.take(piece.content)?;
        self.start += piece.taken;
        self.expect = Expect::Data { first: first && piece.taken == 0 };
        if first && piece.taken > 0 && self.strikes_body().await?.is_none() {
            return Ok(None);
        }
        if !piece.ended {
            return Ok(Some(()));
        }
        self.expect = Expect::Command;
        self.finish().await
    }

    async fn chunk(&mut self, left: u64, last: bool, discard: bool) -> Step {
        let waiting = self.end - self.start;
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(waiting);
        if !discard {
            self.take(n)?;
        }
        self.start += n;
        let left = left - n as u64;
        self.expect = Expect::Chunk { left, last, discard };
        let begins = self.mail.as_ref().is_some_and(|mail| mail.bytes == n as u64);
        if n > 0 && begins && self.strikes_body().await?.is_none() {
            return Ok(None);
        }
        if left > 0 {
            return Ok(Some(()));
        }
        self.expect = Expect::Command;
        match (discard, last) {
            (true, _) => {
                self.mail = None;
                match std::mem::take(&mut self.refusal) {
                    none if none.is_empty() => self.put(b"503 5.5.1 chunk refused\r\n"),
                    refusal => self.out.extend_from_slice(&refusal),
                }
                Ok(Some(()))
            }
            (false, false) => {
                self.put(b"250 2.0.0 chunk taken\r\n");
                Ok(Some(()))
            }
            (false, true) => self.finish().await,
        }
    }

    /// A fault in the middle of the content; its reply, if any, ends the session.
    async fn strikes_body(&mut self) -> Step {
        let before = self.out.len();
        let went_on = self.answer(Stage::Body, b"").await?;
        Ok(went_on.filter(|()| self.out.len() == before))
    }

    /// Takes `n` bytes of content from the front of the buffer.
    fn take(&mut self, n: usize) -> io::Result<()> {
        let piece = &self.buffer[self.start..self.start + n];
        let mail = self.mail.as_mut().ok_or(io::ErrorKind::InvalidData)?;
        mail.bytes += n as u64;
        if self.shared.options.verify || self.shared.recorder.is_some() {
            mail.lines.feed(piece);
        }
        if self.shared.recorder.is_some() {
            mail.raw.extend_from_slice(piece);
        }
        Ok(())
    }

    /// The content is whole: accepts it, or what a fault says.
    async fn finish(&mut self) -> Step {
        let shared = self.shared;
        let mail = self.mail.take().ok_or(io::ErrorKind::InvalidData)?;
        self.sent += 1;
        if self.is_too_long(mail.bytes) {
            self.put(b"552 5.3.4 too long\r\n");
            return Ok(Some(()));
        }
        if !shared.options.reply_delay.is_zero() {
            self.flush().await?;
            tokio::time::sleep(shared.options.reply_delay).await;
        }
        let went_on = self.answer(Stage::End, b"250 2.0.0 accepted\r\n").await?;
        // What stood there before may be written: a delay does that, and so does silence.
        if !self.out.is_empty() && self.last_reply_is_positive() {
            self.accept(mail)?;
        }
        Ok(went_on)
    }

    fn accept(&mut self, mail: Mail) -> io::Result<()> {
        let counters = &self.shared.counters;
        // An empty content has no line that could be improper.
        let proper = mail.bytes == 0 || mail.lines.is_proper();
        if self.shared.options.verify && !proper {
            add(&counters.bad_contents, 1);
        }
        add(&counters.recipients, mail.recipients as u64);
        add(&counters.bytes, mail.bytes);
        add(&counters.chunked, u64::from(mail.chunked));
        add(&counters.messages, 1);
        if let Some(recorder) = &self.shared.recorder {
            let options = &self.shared.options;
            let keep = Keep::of(options.keep_content, options.keep_header);
            let mut message = mail.into_message(&self.helo, self.number, proper, keep);
            message.told = self.teller.take();
            recorder.add(message)?;
        }
        self.shared.progress.advance();
        Ok(())
    }

    fn is_too_long(&self, size: u64) -> bool {
        self.shared.options.extensions.size.is_some_and(|most| most > 0 && size > most)
    }

    /// Whether the reply put last is 2xx. A reply is one line, but for EHLO's.
    fn last_reply_is_positive(&self) -> bool {
        let line = self.out.strip_suffix(b"\r\n").unwrap_or(&self.out);
        let start = memchr::memrchr(b'\n', line).map_or(0, |at| at + 1);
        line.get(start) == Some(&b'2')
    }

    fn grow(&mut self) {
        if self.buffer.len() < CONTENT_BUFFER {
            self.buffer.resize(CONTENT_BUFFER, 0);
        }
    }
}
