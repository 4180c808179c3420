//! Senders: each client of the relay with what it has to send, on a few connections that it
//! keeps while there is more, and some messages on one of their own. Floor 4.
//!
//! They speak SMTP as a mail server does: with PIPELINING where it is offered, the same message
//! again after a while where the answer was `4xx`, and on a new connection where an old one is
//! found closed.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Notify,
};

use super::{ledger::Ledger, traffic::Traffic};
use crate::{
    relay::Relay,
    session::{self, Client},
    world::Stream,
};

/// The header field that has the number of a message.
pub(super) const TAG: &str = "X-Wavegate-Rehearsal: ";
/// Connections of one client at once.
const SESSIONS: usize = 10;
/// How long a connection is kept with nothing to send.
const IDLE: Duration = Duration::from_secs(5);
/// Pause before a message is tried again that was answered `4xx`.
const RETRY: Duration = Duration::from_secs(300);
/// How long the senders may take at the end for what was due.
const LAST: Duration = Duration::from_secs(60);
/// Bytes that a pipe holds in each direction.
const PIPE: usize = 16 * 1024;
/// The text of a message. All of it is small; its declared size is accounted beside it.
const TEXT: &str = "This message was made for a rehearsal of migration waves. It stands for one\r\n\
                    of another size.\r\n";

/// All senders.
pub(super) struct Senders {
    relay: Arc<Relay>,
    ledger: Arc<Ledger>,
    traffic: Arc<Traffic>,
    mtas: Vec<Mta>,
    /// For each source the sender that it is.
    mta_of: Vec<usize>,
    sessions: AtomicUsize,
    ended: Notify,
}

/// One client at one listener.
struct Mta {
    peer: SocketAddr,
    listener: String,
    outbox: Mutex<Outbox>,
    told: Notify,
}

#[derive(Default)]
struct Outbox {
    letters: VecDeque<usize>,
    sessions: usize,
    idle: usize,
    closing: bool,
}

/// What the relay said of a message.
enum Answer {
    Taken { id: Option<String> },
    Later,
    Refused(u16),
}

impl Senders {
    pub(super) fn new(
        relay: &Arc<Relay>,
        ledger: &Arc<Ledger>,
        traffic: &Arc<Traffic>,
    ) -> Arc<Self> {
        let mut places: HashMap<(IpAddr, &str), usize> = HashMap::new();
        let mut mtas = Vec::new();
        let mut mta_of = Vec::new();
        for source in &traffic.sources {
            let place = *places.entry((source.client, &source.listener)).or_insert_with(|| {
                mtas.push(Mta {
                    peer: SocketAddr::new(source.client, 40_000),
                    listener: source.listener.clone(),
                    outbox: Mutex::default(),
                    told: Notify::new(),
                });
                mtas.len() - 1
            });
            mta_of.push(place);
        }
        Arc::new(Self {
            relay: Arc::clone(relay),
            ledger: Arc::clone(ledger),
            traffic: Arc::clone(traffic),
            mtas,
            mta_of,
            sessions: AtomicUsize::new(0),
            ended: Notify::new(),
        })
    }

    /// Sends everything at its time, and ends when the last message was due.
    pub(super) async fn run(self: &Arc<Self>) {
        let begun = self.ledger.begun();
        for (number, letter) in self.traffic.letters.iter().enumerate() {
            let due = begun + Duration::from_millis(letter.at);
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            let mta = self.mta_of[letter.source as usize];
            match letter.alone {
                true => self.spawn(mta, Some(number)),
                false => self.push(mta, number),
            }
        }
    }

    /// Ends all sessions when what was due is sent, which has `LAST`. What is to be tried again
    /// later stays.
    pub(super) async fn stop(&self) {
        // A session with nothing to send ends by itself.
        let _ = tokio::time::timeout(LAST, self.idle()).await;
        for mta in &self.mtas {
            mta.lock().closing = true;
            mta.told.notify_waiters();
        }
        self.idle().await;
    }

    /// Waits until there is no session.
    async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.sessions.load(Ordering::Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// A message is to be sent, on a connection that is free or, if there may be more, a new one.
    fn push(self: &Arc<Self>, place: usize, letter: usize) {
        let mta = &self.mtas[place];
        let mut outbox = mta.lock();
        outbox.letters.push_back(letter);
        if outbox.closing {
            return;
        }
        if outbox.idle >= outbox.letters.len() {
            mta.told.notify_one();
        } else if outbox.sessions < SESSIONS {
            outbox.sessions += 1;
            drop(outbox);
            self.spawn(place, None);
        }
    }

    /// A connection, for one message or for all that come.
    fn spawn(self: &Arc<Self>, place: usize, only: Option<usize>) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let senders = Arc::clone(self);
        tokio::spawn(async move {
            match only {
                Some(letter) => senders.one(place, letter).await,
                None => senders.many(place).await,
            }
            senders.sessions.fetch_sub(1, Ordering::Relaxed);
            senders.ended.notify_waiters();
        });
    }

    async fn one(self: &Arc<Self>, place: usize, letter: usize) {
        let answer = match Session::open(&self.relay, &self.mtas[place]).await {
            Ok(mut session) => {
                let answer = session.send(self, letter).await;
                session.quit().await;
                answer
            }
            Err(error) => Err(error),
        };
        self.answered(place, letter, answer.unwrap_or(Answer::Later));
    }

    async fn many(self: &Arc<Self>, place: usize) {
        let mta = &self.mtas[place];
        let mut open: Option<Session> = None;
        while let Some(letter) = mta.next().await {
            let reused = open.is_some();
            let session = match open.take() {
                Some(session) => Ok(session),
                None => Session::open(&self.relay, mta).await,
            };
            let (answer, session) = match session {
                Ok(mut session) => (session.send(self, letter).await, Some(session)),
                Err(error) => (Err(error), None),
            };
            match answer {
                Ok(answer) => {
                    open = session;
                    self.answered(place, letter, answer);
                }
                // The relay may close a connection between two messages.
                Err(_) if reused => mta.lock().letters.push_front(letter),
                Err(_) => self.answered(place, letter, Answer::Later),
            }
        }
        if let Some(session) = open {
            session.quit().await;
        }
    }

    fn answered(self: &Arc<Self>, place: usize, letter: usize, answer: Answer) {
        match answer {
            Answer::Taken { id } => self.ledger.taken(letter, id.as_deref()),
            Answer::Refused(code) => self.ledger.refused(letter, code),
            Answer::Later => {
                self.ledger.deferred();
                let senders = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep(RETRY).await;
                    senders.push(place, letter);
                });
            }
        }
    }
}

impl Mta {
    /// The next message for a session; none when it is to end.
    async fn next(&self) -> Option<usize> {
        loop {
            {
                let mut outbox = self.lock();
                let next = if outbox.closing { None } else { outbox.letters.pop_front() };
                if next.is_some() {
                    return next;
                }
                if outbox.closing {
                    outbox.sessions -= 1;
                    return None;
                }
                outbox.idle += 1;
            }
            let woken = tokio::time::timeout(IDLE, self.told.notified()).await.is_ok();
            let mut outbox = self.lock();
            outbox.idle -= 1;
            if !woken && outbox.letters.is_empty() {
                outbox.sessions -= 1;
                return None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An SMTP session with the relay.
struct Session {
    stream: DuplexStream,
    input: Vec<u8>,
    /// Where in `input` the next reply begins.
    at: usize,
    output: Vec<u8>,
    pipelining: bool,
    size: bool,
}

impl Session {
    async fn open(relay: &Arc<Relay>, mta: &Mta) -> io::Result<Self> {
        let (near, far) = tokio::io::duplex(PIPE);
        let client = Client::new(relay, &mta.listener, Stream::Memory(far), mta.peer)
            .ok_or(io::ErrorKind::ConnectionRefused)?;
        tokio::spawn(session::serve(Arc::clone(relay), client));
        let (input, output) = (Vec::new(), Vec::new());
        let mut session =
            Self { stream: near, input, at: 0, output, pipelining: false, size: false };
        if session.reply().await?.0 != 220 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        session.output.extend_from_slice(b"EHLO sender.invalid\r\n");
        session.flush().await?;
        let (code, text) = session.reply().await?;
        if code != 250 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let offers = |word: &str| {
            text.lines().any(|line| line.get(4..).is_some_and(|rest| rest.starts_with(word)))
        };
        (session.pipelining, session.size) = (offers("PIPELINING"), offers("SIZE"));
        Ok(session)
    }

    /// Sends a message.
    async fn send(&mut self, senders: &Senders, number: usize) -> io::Result<Answer> {
        let letter = &senders.traffic.letters[number];
        let source = senders.traffic.source(letter);
        let domain = &senders.traffic.domains[letter.domain as usize];
        let size = if self.size { format!(" SIZE={}", letter.size) } else { String::new() };
        let commands = [
            format!("MAIL FROM:<{}>{size}\r\n", source.sender),
            format!("RCPT TO:<user-{number}@{domain}>\r\n"),
            "DATA\r\n".to_owned(),
        ];
        let mut codes = [0; 3];
        for (command, code) in commands.iter().zip(&mut codes) {
            self.output.extend_from_slice(command.as_bytes());
            if !self.pipelining {
                self.flush().await?;
                *code = self.reply().await?.0;
                if *code >= 400 {
                    self.reset().await?;
                    return Ok(verdict(*code, ""));
                }
            }
        }
        if self.pipelining {
            self.flush().await?;
            for code in &mut codes {
                *code = self.reply().await?.0;
            }
            if codes[2] != 354 {
                let first = codes.into_iter().find(|code| *code >= 400).unwrap_or(451);
                self.reset().await?;
                return Ok(verdict(first, ""));
            }
        }
        self.body(source, domain, number);
        self.flush().await?;
        let (code, text) = self.reply().await?;
        Ok(verdict(code, &text))
    }

    fn body(&mut self, source: &super::traffic::Source, domain: &str, number: usize) {
        use io::Write as _;
        let out = &mut self.output;
        for (name, value) in &source.headers {
            // Writing to a vector cannot fail.
            let _ = write!(out, "{name}: {value}\r\n");
        }
        let sender = &source.sender;
        let _ = write!(
            out,
            "{TAG}{number}\r\nFrom: <{sender}>\r\nTo: <user-{number}@{domain}>\r\nSubject: Rehearsal\r\n\
             Message-ID: <{number}@rehearsal.invalid>\r\n\r\n{TEXT}.\r\n"
        );
    }

    async fn reset(&mut self) -> io::Result<()> {
        self.output.extend_from_slice(b"RSET\r\n");
        self.flush().await?;
        self.reply().await.map(drop)
    }

    async fn quit(mut self) {
        self.output.extend_from_slice(b"QUIT\r\n");
        if self.flush().await.is_ok() {
            let _ = self.reply().await;
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    /// One reply: its code and its lines.
    async fn reply(&mut self) -> io::Result<(u16, String)> {
        let mut from = self.at;
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.input[from..]) {
                let line = &self.input[from..from + end];
                from += end + 1;
                if line.get(3) == Some(&b'-') {
                    continue;
                }
                let code = line.get(..3).and_then(|code| std::str::from_utf8(code).ok());
                let code = code.and_then(|code| code.parse().ok()).unwrap_or(0);
                let text = String::from_utf8_lossy(&self.input[self.at..from]).into_owned();
                self.at = from;
                if self.at == self.input.len() {
                    self.input.clear();
                    self.at = 0;
                }
                return Ok((code, text));
            }
            from = self.at;
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn verdict(code: u16, text: &str) -> Answer {
    match code {
        200..=299 => {
            let id = text.trim_end().rsplit_once("queued as ").map(|(_, id)| id.to_owned());
            Answer::Taken { id }
        }
        500..=599 => Answer::Refused(code),
        _ => Answer::Later,
    }
}
