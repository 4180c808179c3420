//! A load that does not end when something breaks: sessions that send messages, each with a number
//! and a content of its own, and that go on after every failure with the next.
//!
//! Owns what was said of each message; nothing is sent twice, so what arrives twice is not its doing.
//! Floor: none; it speaks SMTP to whatever listens. Start reading at [`Steady::start`].

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};

use super::reply;

/// How long a session waits after a failure, so that a server that is down is not asked all the
/// time.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a session waits for a reply: more than any relay takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Domain of senders, and of the names of messages.
const DOMAIN: &str = "mkt.acme.example";

/// What to send.
#[derive(Clone, Debug)]
pub struct SteadyOptions {
    /// Where the server listens.
    pub target: SocketAddr,
    /// Sessions at a time.
    pub sessions: usize,
    /// It ends when so many were answered 250.
    pub accepted: u64,
    /// Bytes of a body: up to so many, by its number.
    pub body: usize,
    /// Every body has that many.
    pub even: bool,
}

/// What was said of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// 250: it must arrive.
    Accepted,
    /// Something else: it may have arrived where somebody was in doubt.
    Refused(u16),
    /// The connection ended in the middle of it: it may have arrived.
    Nothing,
}

/// A load under way. Dropping it stops it.
pub struct Steady {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

struct Shared {
    options: SteadyOptions,
    stop: AtomicBool,
    next: AtomicU64,
    accepted: AtomicU64,
    said: Mutex<Vec<(u64, Said)>>,
}

impl Steady {
    /// Starts it on a thread of its own.
    pub fn start(options: SteadyOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            options,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            said: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("steady".into()).spawn(move || run(&own))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Messages that were answered 250 so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Whether as many were answered 250 as were wanted, or it has stopped otherwise.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Begins no more messages, waits for the last replies: what was said of each message that was
    /// begun, by its number.
    pub fn stop(mut self) -> io::Result<Vec<(u64, Said)>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| io::Error::other("the load panicked"))??;
        }
        let mut said = self.shared.said.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut said))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// SHA-256 of the body of a message, in hexadecimal.
pub fn body_digest(options: &SteadyOptions, number: u64) -> String {
    let digest = Sha256::digest(body(options, number));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The number of a message, from its header.
pub fn number_of(header: &str) -> Option<u64> {
    let (_, rest) = header.split_once("Message-ID: <")?;
    rest.split_once('@')?.0.parse().ok()
}

/// Lines of which each says whose it is; one in seven begins with a dot.
fn body(options: &SteadyOptions, number: u64) -> Vec<u8> {
    let mut body = Vec::new();
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let most = options.body.max(1);
    let size = if options.even { most } else { usize::try_from(spread).unwrap_or(0) % most + 1 };
    for line in 0.. {
        if body.len() >= size {
            break;
        }
        let dot = if line % 7 == 3 { "." } else { "" };
        let text = format!("{dot}{number} has this line {line}, and it is not much shorter.\r\n");
        body.extend_from_slice(text.as_bytes());
    }
    body
}

/// A message and its end, dots doubled.
fn content(options: &SteadyOptions, number: u64) -> Vec<u8> {
    let mut content = format!(
        "From: Campaign <news@{DOMAIN}>\r\nTo: customer@example.net\r\nSubject: steady\r\n\
         Message-ID: <{number}@{DOMAIN}>\r\n\r\n"
    )
    .into_bytes();
    for line in body(options, number).split_inclusive(|&byte| byte == b'\n') {
        if line[0] == b'.' {
            content.push(b'.');
        }
        content.extend_from_slice(line);
    }
    content.extend_from_slice(b".\r\n");
    content
}

fn run(shared: &Arc<Shared>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sessions = LocalSet::new();
    let shared = Rc::new(Arc::clone(shared));
    for _ in 0..shared.options.sessions {
        let shared = Rc::clone(&shared);
        sessions.spawn_local(async move {
            while !shared.is_over() {
                let Some(()) = session(&shared).await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
            }
        });
    }
    runtime.block_on(sessions);
    Ok(())
}

impl Shared {
    fn is_over(&self) -> bool {
        let enough = self.accepted.load(Ordering::SeqCst) >= self.options.accepted;
        enough || self.stop.load(Ordering::SeqCst)
    }

    fn said(&self, number: u64, said: Said) {
        if said == Said::Accepted {
            self.accepted.fetch_add(1, Ordering::SeqCst);
        }
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push((number, said));
    }
}

/// One connection; none if it was of no use (any more).
async fn session(shared: &Shared) -> Option<()> {
    let stream = TcpStream::connect(shared.options.target).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let mut peer = Peer { stream, buffer: Vec::new() };
    peer.expect(220).await?;
    peer.say(format!("EHLO load.{DOMAIN}\r\n").as_bytes()).await?;
    peer.expect(250).await?;
    while !shared.is_over() {
        let number = shared.next.fetch_add(1, Ordering::SeqCst);
        let said = peer.message(shared, number).await;
        shared.said(number, said);
        match said {
            Said::Accepted => {}
            Said::Refused(421) | Said::Nothing => return None,
            Said::Refused(_) => {
                tokio::time::sleep(PAUSE).await;
                peer.say(b"RSET\r\n").await?;
                peer.expect(250).await?;
            }
        }
    }
    peer.say(b"QUIT\r\n").await?;
    peer.expect(221).await
}

struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    async fn message(&mut self, shared: &Shared, number: u64) -> Said {
        let mut envelope = Vec::new();
        let written = write!(
            envelope,
            "MAIL FROM:<bounce@{DOMAIN}>\r\nRCPT TO:<user{number}@customers.example>\r\nDATA\r\n"
        );
        debug_assert!(written.is_ok(), "a Vec takes every write");
        let text = content(&shared.options, number);
        self.transact(&envelope, &text).await.map_or(Said::Nothing, |code| match code {
            250 => Said::Accepted,
            code => Said::Refused(code),
        })
    }

    /// The reply that decides; none where the connection ended before it.
    async fn transact(&mut self, envelope: &[u8], text: &[u8]) -> Option<u16> {
        self.say(envelope).await?;
        let (mail, rcpt, data) = (self.reply().await?, self.reply().await?, self.reply().await?);
        if data != 354 {
            return Some([mail, rcpt, data].into_iter().find(|code| *code >= 400).unwrap_or(data));
        }
        self.say(text).await?;
        self.reply().await
    }

    async fn say(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }

    async fn expect(&mut self, code: u16) -> Option<()> {
        (self.reply().await? == code).then_some(())
    }

    async fn reply(&mut self) -> Option<u16> {
        loop {
            if let Some(reply) = reply::parse(&self.buffer).ok()? {
                self.buffer.drain(..reply.len);
                return Some(reply.code);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(PATIENCE, read).await {
                Ok(Ok(length)) if length > 0 => {}
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop here")]
    use super::*;
    use crate::sink::{Sink, SinkOptions};

    #[test]
    fn what_is_said_of_each_is_what_happened_to_it() {
        let sink = Sink::start(SinkOptions {
            record: true,
            keep_header: true,
            verify: true,
            faults: vec![
                "end:%10=451 4.3.0 later".parse().unwrap(),
                "end:%17=close".parse().unwrap(),
            ],
            ..SinkOptions::default()
        })
        .unwrap();
        let options = SteadyOptions {
            target: sink.addr(),
            sessions: 4,
            accepted: 200,
            body: 3000,
            even: false,
        };
        let steady = Steady::start(options.clone()).unwrap();
        assert!(sink.wait_messages(200, Duration::from_secs(20)));
        let said = steady.stop().unwrap();
        let with = |wanted: Said| said.iter().filter(|(_, said)| *said == wanted).count();
        let messages = sink.messages();
        assert_eq!(messages.len(), with(Said::Accepted));
        assert!(with(Said::Refused(451)) > 10 && with(Said::Nothing) > 5, "{said:?}");
        for message in &messages {
            let header = String::from_utf8(message.content.clone().unwrap()).unwrap();
            assert!(header.ends_with("\r\n\r\n"), "the header only: {header}");
            let number = number_of(&header).unwrap();
            assert_eq!(message.body_digest, body_digest(&options, number));
        }
        assert_eq!(sink.counts().bad_contents, 0);
    }
}
