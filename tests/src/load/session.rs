//! One client: connects, sends messages until none is left, says what became of each.
//!
//! Owns the order of commands and the check of every reply. Floor: none.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::message::Message;
use super::report::Tally;
use super::{LoadOptions, Plan, Transfer, reply};

/// Read buffer: holds the longest reply that the parser takes, and what follows it.
const READ_BUFFER: usize = 2 * reply::MAX_REPLY;

/// How this session sends.
#[derive(Clone, Copy)]
struct Mode {
    pipelining: bool,
    transfer: Transfer,
    per_session: u64,
}

impl Mode {
    fn new(options: &LoadOptions, index: usize) -> Self {
        let many = options.per_session.unwrap_or(u64::MAX);
        let (pipelining, transfer, per_session) = match (options.mixed, index % 4) {
            (false, _) => (options.pipelining, options.transfer, many),
            (true, 0) => (false, Transfer::Data, many),
            (true, 1) => (true, Transfer::Data, many),
            (true, 2) => (true, Transfer::Bdat, many),
            (true, _) => (false, Transfer::Data, 1),
        };
        Self { pipelining, transfer, per_session }
    }
}

/// Why a message was not accepted.
enum Failure {
    /// An answer that refuses it; the session can go on unless it is a 421.
    Refused(&'static str, u16),
    /// The connection is of no more use.
    Lost(&'static str, String),
}

/// Sends messages until none is left.
pub(super) async fn run(plan: Arc<Plan>, index: usize, tally: Rc<RefCell<Tally>>) {
    let mode = Mode::new(&plan.options, index);
    let mut claimed = plan.claim();
    while let Some(number) = claimed {
        let begun = Instant::now();
        claimed = match Client::connect(&plan.options, mode).await {
            Ok(client) => {
                tally.borrow_mut().sessions += 1;
                converse(client, &plan, mode, number, begun, &tally).await
            }
            Err(failure) => {
                count(&tally, failure);
                plan.claim()
            }
        };
    }
}

/// Sends `number` and what follows over one connection; gives the number for the next connection.
async fn converse(
    mut client: Client,
    plan: &Plan,
    mode: Mode,
    number: u64,
    connected: Instant,
    tally: &RefCell<Tally>,
) -> Option<u64> {
    let mut number = number;
    // With one message a session, connecting is part of its price.
    let mut begun = if mode.per_session == 1 { connected } else { Instant::now() };
    for sent in 1.. {
        let message = plan.message(number);
        let outcome = client.send(&plan.options, mode, number, message, tally).await;
        let usable = match outcome {
            Ok(()) => {
                let mut tally = tally.borrow_mut();
                let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                tally.latency.record(nanos);
                tally.accepted += 1;
                tally.bytes += message.plain.len() as u64;
                true
            }
            Err(failure) => {
                let usable = matches!(&failure, Failure::Refused(_, code) if *code != 421);
                count(tally, failure);
                usable
            }
        };
        let Some(next) = plan.claim() else {
            if usable {
                client.quit(tally).await;
            }
            return None;
        };
        if !usable {
            return Some(next);
        }
        if sent >= mode.per_session {
            client.quit(tally).await;
            return Some(next);
        }
        number = next;
        begun = Instant::now();
    }
    None
}

fn count(tally: &RefCell<Tally>, failure: Failure) {
    let mut tally = tally.borrow_mut();
    match failure {
        Failure::Refused(stage, code) => {
            tally.refused += 1;
            tally.error(format!("{stage} {code}"));
        }
        Failure::Lost(stage, why) => {
            tally.lost += 1;
            tally.error(format!("lost at {stage}: {why}"));
        }
    }
}

/// A greeted connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are not parsed yet.
    filled: usize,
    commands: Vec<u8>,
}

impl Client {
    async fn connect(options: &LoadOptions, mode: Mode) -> Result<Self, Failure> {
        let lost = |error: io::Error| Failure::Lost("connect", error.kind().to_string());
        let socket = TcpSocket::new_v4().map_err(lost)?;
        if !options.source.is_loopback() || options.source != options.target.ip() {
            socket.bind(SocketAddr::new(options.source, 0)).map_err(lost)?;
        }
        let stream = socket.connect(options.target).await.map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let buffer = vec![0; READ_BUFFER];
        let mut client = Self { stream, buffer, filled: 0, commands: Vec::with_capacity(512) };
        client.expect("greeting", 220).await?;
        client.put(format_args!("EHLO load.{}\r\n", options.sender_domain));
        client.write("EHLO", &[]).await?;
        let offered = client.extensions().await?;
        let needs =
            [("PIPELINING", mode.pipelining), ("CHUNKING", mode.transfer == Transfer::Bdat)];
        for (keyword, needed) in needs {
            if needed && !offered.iter().any(|offer| offer == keyword) {
                return Err(Failure::Lost("EHLO", format!("{keyword} is not offered")));
            }
        }
        Ok(client)
    }

    /// One transaction, to its final reply.
    async fn send(
        &mut self,
        options: &LoadOptions,
        mode: Mode,
        number: u64,
        message: &Message,
        tally: &RefCell<Tally>,
    ) -> Result<(), Failure> {
        self.put(format_args!("MAIL FROM:<bounce@{}>\r\n", options.sender_domain));
        if !mode.pipelining {
            self.command("MAIL", 250).await?;
        }
        let mut refused = None;
        let mut good = 0;
        for k in 0..options.recipients {
            let user = (number * options.recipients + k) % options.distinct_recipients;
            self.put(format_args!("RCPT TO:<user{user}@{}>\r\n", options.recipient_domain));
            if !mode.pipelining {
                self.write("RCPT", &[]).await?;
                match self.recipient(tally).await? {
                    250 | 251 => good += 1,
                    code => refused = Some(code),
                }
            }
        }
        if let (0, Some(code)) = (good, refused) {
            return self.refused("RCPT", code).await;
        }
        match (mode.transfer, mode.pipelining) {
            (Transfer::Data, false) => self.data(message).await,
            (Transfer::Data, true) => self.data_group(options, message, tally).await,
            (Transfer::Bdat, pipelining) => {
                self.put(format_args!("BDAT {} LAST\r\n", message.plain.len()));
                self.write("BDAT", &message.plain).await?;
                let valid = if pipelining { self.envelope(options, tally).await } else { Ok(()) };
                let code = self.any("end").await?;
                match valid {
                    Ok(()) if code == 250 => Ok(()),
                    Ok(()) => self.refused("end", code).await,
                    Err(failure) => self.reset(failure).await,
                }
            }
        }
    }

    async fn data(&mut self, message: &Message) -> Result<(), Failure> {
        self.put(format_args!("DATA\r\n"));
        self.command("DATA", 354).await?;
        self.write("body", &message.stuffed).await?;
        self.expect("end", 250).await
    }

    /// The replies to MAIL, RCPT and DATA sent in one group (RFC 2920 3.1).
    async fn data_group(
        &mut self,
        options: &LoadOptions,
        message: &Message,
        tally: &RefCell<Tally>,
    ) -> Result<(), Failure> {
        self.put(format_args!("DATA\r\n"));
        self.write("MAIL", &[]).await?;
        let envelope = self.envelope(options, tally).await;
        let code = self.any("DATA").await?;
        match (envelope, code) {
            (Ok(()), 354) => {
                self.write("body", &message.stuffed).await?;
                self.expect("end", 250).await
            }
            // A server may say 354 although nobody is left to deliver to: end it with nothing.
            (Err(failure), 354) => {
                self.write("body", b".\r\n").await?;
                self.any("end").await?;
                Err(failure)
            }
            (Ok(()), code) => self.refused("DATA", code).await,
            (Err(failure), _) => self.reset(failure).await,
        }
    }

    /// Reads the replies of a pipelined MAIL and its RCPTs, all of them whatever they say.
    async fn envelope(
        &mut self,
        options: &LoadOptions,
        tally: &RefCell<Tally>,
    ) -> Result<(), Failure> {
        let mail = self.any("MAIL").await?;
        let mut refused = None;
        let mut good = 0;
        for _ in 0..options.recipients {
            // After a refused MAIL they are refused as well, and say nothing new.
            let code =
                if mail == 250 { self.recipient(tally).await? } else { self.any("RCPT").await? };
            match code {
                250 | 251 => good += 1,
                code => refused = Some(code),
            }
        }
        match (mail, good, refused) {
            (250, 1.., _) => Ok(()),
            (250, _, Some(code)) => Err(Failure::Refused("RCPT", code)),
            (mail, ..) => Err(Failure::Refused("MAIL", mail)),
        }
    }

    /// The reply to one RCPT, counted when it refuses.
    async fn recipient(&mut self, tally: &RefCell<Tally>) -> Result<u16, Failure> {
        let code = self.any("RCPT").await?;
        if !matches!(code, 250 | 251) {
            tally.borrow_mut().error(format!("recipient {code}"));
        }
        Ok(code)
    }

    async fn quit(mut self, tally: &RefCell<Tally>) {
        self.put(format_args!("QUIT\r\n"));
        if let Err(Failure::Refused(stage, code)) = self.command("QUIT", 221).await {
            tally.borrow_mut().error(format!("{stage} {code}"));
        }
    }

    /// Appends to the commands that the next write sends.
    fn put(&mut self, command: std::fmt::Arguments<'_>) {
        let written = self.commands.write_fmt(command);
        debug_assert!(written.is_ok(), "a Vec takes every write");
    }

    async fn command(&mut self, stage: &'static str, code: u16) -> Result<(), Failure> {
        self.write(stage, &[]).await?;
        let got = self.any(stage).await?;
        if got == code { Ok(()) } else { self.refused(stage, got).await }
    }

    async fn refused(&mut self, stage: &'static str, code: u16) -> Result<(), Failure> {
        self.reset(Failure::Refused(stage, code)).await
    }

    /// Resets the transaction after a refusal, so that the next message starts clean.
    async fn reset(&mut self, failure: Failure) -> Result<(), Failure> {
        if let Failure::Refused(stage, code) = failure
            && code != 421
            && stage != "QUIT"
        {
            self.put(format_args!("RSET\r\n"));
            self.write("RSET", &[]).await?;
            self.expect("RSET", 250).await?;
        }
        Err(failure)
    }

    async fn expect(&mut self, stage: &'static str, code: u16) -> Result<(), Failure> {
        match self.any(stage).await? {
            got if got == code => Ok(()),
            got => Err(Failure::Refused(stage, got)),
        }
    }

    /// The code of the next reply.
    async fn any(&mut self, stage: &'static str) -> Result<u16, Failure> {
        let reply = self.next(stage).await?;
        self.drop_front(reply.len);
        Ok(reply.code)
    }

    async fn extensions(&mut self) -> Result<Vec<String>, Failure> {
        let reply = self.next("EHLO").await?;
        let offered = reply::keywords(&self.buffer[..reply.len]);
        self.drop_front(reply.len);
        if reply.code == 250 { Ok(offered) } else { Err(Failure::Refused("EHLO", reply.code)) }
    }

    async fn next(&mut self, stage: &'static str) -> Result<reply::Reply, Failure> {
        loop {
            match reply::parse(&self.buffer[..self.filled]) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(bad) => return Err(Failure::Lost(stage, format!("bad reply, {bad:?}"))),
            }
            match self.stream.read(&mut self.buffer[self.filled..]).await {
                Ok(0) => return Err(Failure::Lost(stage, "closed".into())),
                Ok(n) => self.filled += n,
                Err(error) => return Err(Failure::Lost(stage, error.kind().to_string())),
            }
        }
    }

    fn drop_front(&mut self, len: usize) {
        self.buffer.copy_within(len..self.filled, 0);
        self.filled -= len;
    }

    /// Writes the waiting commands and then `tail`, together where the socket takes them.
    async fn write(&mut self, stage: &'static str, tail: &[u8]) -> Result<(), Failure> {
        let sent = write_both(&mut self.stream, &self.commands, tail).await;
        self.commands.clear();
        sent.map_err(|error| Failure::Lost(stage, error.kind().to_string()))
    }
}

async fn write_both(stream: &mut TcpStream, head: &[u8], tail: &[u8]) -> io::Result<()> {
    if tail.is_empty() {
        return stream.write_all(head).await;
    }
    if head.is_empty() {
        return stream.write_all(tail).await;
    }
    let n = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]).await?;
    if n < head.len() {
        stream.write_all(&head[n..]).await?;
        return stream.write_all(tail).await;
    }
    stream.write_all(&tail[n - head.len()..]).await
}
