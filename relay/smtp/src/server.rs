//! The server side of a session.
//!
//! Owns the order of commands, the answers that need no decision, the limits
//! of a session, and receiving messages in step with the client whatever it
//! does. Owns no decision about mail: those are [`Step`]s that wait for the
//! embedder's [`Server::accept`] or [`Server::reply`], at once or later. Owns
//! no deadline and no byte of content.
//!
//! Order of calls: [`Server::greet`] once; then [`Server::step`] with what was
//! read, again with what it left, until [`Step::NeedInput`]; a step that
//! awaits an answer gets it before the next `step`. What [`Server::output`]
//! holds is written whenever the embedder waits for input or for a decision,
//! and reported with [`Server::written`]. After [`Step::Close`] the rest of
//! the output is written and the connection closed.
//!
//! Floor 0.

use std::sync::Arc;

use crate::body::{BodyFacts, ChunkReceiver, DataReceiver, MessageFault};
use crate::command::{Mail, Rcpt};
use crate::extensions::Extensions;
use crate::limits::Limits;
use crate::login::{Exchange, Login};
use crate::reply::Reply;
use crate::xclient::Xclient;

mod commands;
mod login;
mod receive;
mod replies;

use commands::line_end;

/// What sessions of a listener share. A change is a new value: a session keeps
/// the one that it began with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The relay's name, in the greeting and the answer to EHLO.
    pub hostname: String,
    /// Offered at EHLO unless the embedder says otherwise then.
    pub extensions: Extensions,
    /// The limits.
    pub limits: Limits,
    /// Whether this client may send mail through us without a login; if not, every
    /// recipient is answered `550 5.7.1` before one.
    pub may_relay: bool,
    /// Whether the client can have TLS by asking for it.
    pub starttls: StartTls,
    /// Stands in front of the text of each negative reply that the server gives on its own, so that
    /// nobody takes it for one of a next hop. May be empty.
    pub mark: &'static str,
    /// Whether the client can log in.
    pub auth: AuthOffer,
    /// Nothing that concerns mail is answered before a login (`530 5.7.0`).
    pub auth_required: bool,
}

/// What a server says to AUTH (RFC 4954).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthOffer {
    /// It knows no such command.
    #[default]
    Unavailable,
    /// It is offered under TLS; without, it is answered `538 5.7.11`.
    UnderTls,
    /// It is offered, and passwords may come in the clear.
    Anytime,
}

/// What a server says to STARTTLS (RFC 3207) while there is no TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartTls {
    /// It knows no such command.
    #[default]
    Unavailable,
    /// It is offered.
    Offered,
    /// It is offered, and nothing that concerns mail is answered before it
    /// (`530 5.7.0`).
    Required,
}

/// The client's HELO or EHLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helo {
    /// The name as given: printable ASCII without spaces, nothing else is sure.
    pub name: Box<str>,
    /// It was EHLO.
    pub extended: bool,
}

/// What the embedder must do.
#[derive(Debug, PartialEq)]
#[must_use]
pub enum Step<'a> {
    /// All input is used: write the output, read more.
    NeedInput,
    /// HELO or EHLO; ends a transaction that was open. **Awaits**
    /// [`Server::accept`], [`Server::accept_helo`], or a negative reply.
    Helo(Helo),
    /// A transaction begins. **Awaits an answer**; a positive one opens it.
    Mail(Mail),
    /// A recipient. **Awaits an answer**; a positive one adds it.
    Rcpt(Rcpt),
    /// The message begins, by DATA or by its first BDAT. **Awaits**
    /// [`Server::accept`] or a negative reply, which ends the transaction.
    Data,
    /// A span of the message with dot-stuffing undone; order is kept.
    Body(&'a [u8]),
    /// The message has ended without fault. **Awaits** [`Server::reply`] with
    /// its final reply, which ends the transaction.
    End(BodyFacts),
    /// The message is faulty; its answer is in the output, or follows when
    /// the rest of it was skipped. Drop what was collected: the transaction
    /// has ended.
    Dropped(MessageFault),
    /// RSET, already answered: a transaction that was open has ended.
    Reset,
    /// The client wants TLS. **Awaits** [`Server::accept`], which ends the
    /// transaction and queues `220`: write the output, take the handshake from
    /// the connection, and call [`Server::secured`]. Or a negative reply.
    StartTls,
    /// The client logs in. **Awaits** [`Server::accept`], or any reply: a
    /// positive one is a login that succeeded.
    Auth(Login),
    /// A peer that is trusted says who its client is. **Awaits**
    /// [`Server::accept_xclient`], or a negative reply.
    Xclient(Xclient),
    /// Write the output and close. A transaction that was open has ended.
    Close(Closing),
}

/// Why a session closes. If there are several reasons, the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The client said QUIT.
    Quit,
    /// The embedder wants it: [`Server::close`], or a `421` for an answer.
    Told,
    /// The client speaks something else, spoke before its turn, or went
    /// beyond a limit of the session; an answer could be nothing it expects.
    Misbehaved,
}

/// What the session is reading.
#[derive(Debug)]
enum Phase {
    /// Nothing: the greeting is not out.
    Greeting,
    Command,
    /// The rest of a command line that is too long.
    LongLine {
        last_cr: bool,
    },
    Data(DataReceiver),
    Chunk {
        size: u64,
        last: bool,
    },
    /// The payload of a BDAT that was refused, to be answered behind it.
    Skip {
        remaining: u64,
        reply: SkipReply,
    },
    /// The handshake follows: nothing is heard before it is over.
    Handshake,
    Closed(Closing),
}

/// The answer to a BDAT whose payload is skipped.
#[derive(Debug)]
enum SkipReply {
    /// It makes the message too large.
    TooLarge,
    /// No transaction is open.
    OutOfOrder,
    /// TLS or a login must come first.
    Lacking(&'static Reply),
    Fixed(&'static Reply),
    /// The embedder's.
    Given(Box<Reply>),
}

/// The step that waits for the embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Helo { extended: bool },
    Mail { smtputf8: bool },
    Rcpt,
    Data,
    Bdat { size: u64, last: bool },
    End,
    StartTls,
    Auth,
    Xclient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transaction {
    None,
    /// The embedder refused MAIL: what a pipelining client sends behind it is
    /// out of order through no fault of the client.
    Refused,
    Open {
        smtputf8: bool,
        recipients: u32,
    },
    /// A message comes by BDAT; [`Server::chunks`] has the receiver.
    Chunks,
    /// A chunk was refused: the rest is discarded up to LAST or RSET.
    Discard,
}

/// The server side of one session.
#[derive(Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    /// As offered to this client; none before EHLO and after HELO.
    offered: Extensions,
    greeted: bool,
    /// The connection is under TLS.
    secure: bool,
    /// The peer is, see [`Server::trust`].
    trusted: bool,
    logged_in: bool,
    login_failures: u32,
    /// AUTH has begun, and waits for a response.
    exchange: Option<Box<Exchange>>,
    phase: Phase,
    awaited: Awaited,
    transaction: Transaction,
    chunks: Option<Box<ChunkReceiver>>,
    /// A command line whose end is not here yet.
    line: Vec<u8>,
    output: Vec<u8>,
    errors: u32,
    idle_commands: u32,
}

impl Server {
    /// A session that has not begun.
    pub fn new(config: Arc<ServerConfig>) -> Server {
        Server {
            config,
            offered: Extensions::NONE,
            greeted: false,
            secure: false,
            trusted: false,
            logged_in: false,
            login_failures: 0,
            exchange: None,
            phase: Phase::Greeting,
            awaited: Awaited::Nothing,
            transaction: Transaction::None,
            chunks: None,
            line: Vec::new(),
            output: Vec::new(),
            errors: 0,
            idle_commands: 0,
        }
    }

    /// Queues the greeting. If the client has already sent something, call
    /// [`Server::step`] with it instead: it is answered `554 5.5.0`.
    pub fn greet(&mut self) {
        assert!(matches!(self.phase, Phase::Greeting), "greeted twice");
        self.write_greeting();
    }

    /// Takes one step over the input: says how many bytes it used, and what
    /// the embedder must do.
    ///
    /// # Panics
    /// If an answer is awaited, see [`Server::is_awaiting`].
    pub fn step<'a>(&mut self, input: &'a [u8]) -> (usize, Step<'a>) {
        assert!(!self.is_awaiting(), "the step before it has no answer yet");
        let mut used = 0;
        loop {
            let rest = &input[used..];
            if rest.is_empty() && self.needs_input() {
                return (used, Step::NeedInput);
            }
            let (taken, step) = match &mut self.phase {
                Phase::Closed(closing) => return (input.len(), Step::Close(*closing)),
                Phase::Command => self.command_line(rest),
                Phase::LongLine { last_cr } => {
                    let (taken, ended) = line_end(rest, last_cr);
                    if ended {
                        self.phase = Phase::Command;
                        self.long_line();
                    }
                    (taken, None)
                }
                Phase::Data(_) => self.data(rest),
                Phase::Chunk { .. } => self.chunk(rest),
                Phase::Skip { .. } => self.skip_payload(rest),
                // What came before the handshake was not protected by it: were it
                // heard afterwards, anybody on the way could speak for the client.
                Phase::Greeting | Phase::Handshake => {
                    self.refuse(&replies::EARLY);
                    (rest.len(), None)
                }
            };
            used += taken;
            if let Some(step) = step {
                return (used, step);
            }
        }
    }

    /// Whether nothing more can be said without input.
    fn needs_input(&self) -> bool {
        match &self.phase {
            Phase::Closed(_) | Phase::Skip { remaining: 0, .. } => false,
            Phase::Chunk { .. } => self.chunks.as_ref().is_some_and(|chunks| !chunks.is_complete()),
            _ => true,
        }
    }

    /// Whether a step awaits its answer.
    pub fn is_awaiting(&self) -> bool {
        self.awaited != Awaited::Nothing
    }

    /// Answers the step that awaits it with its standard positive reply.
    ///
    /// # Panics
    /// If no step awaits one, or if it is [`Step::End`]: that a message was
    /// taken has no standard answer, whoever took it gives one. Nor has
    /// [`Step::Xclient`].
    pub fn accept(&mut self) {
        match self.awaited {
            Awaited::Helo { .. } => self.accept_helo(self.config.extensions),
            Awaited::Mail { .. } => self.reply(&replies::SENDER_OK),
            Awaited::Rcpt => self.reply(&replies::RECIPIENT_OK),
            Awaited::Data => {
                self.awaited = Awaited::Nothing;
                self.transaction = Transaction::None;
                self.output.extend_from_slice(replies::GO_AHEAD);
                self.phase = Phase::Data(DataReceiver::default());
            }
            Awaited::Bdat { size, last } => {
                self.awaited = Awaited::Nothing;
                self.begin_chunk(size, last);
            }
            Awaited::StartTls => {
                self.awaited = Awaited::Nothing;
                self.end_transaction();
                replies::GO_SECURE.write(&mut self.output);
                self.phase = Phase::Handshake;
            }
            Awaited::Auth => self.reply(&replies::LOGGED_IN),
            Awaited::End | Awaited::Xclient => panic!("this step has no standard reply"),
            Awaited::Nothing => panic!("no step awaits an answer"),
        }
    }

    /// Answers [`Step::Helo`], offering these extensions if it was EHLO.
    ///
    /// # Panics
    /// If that is not the step that awaits an answer.
    pub fn accept_helo(&mut self, extensions: Extensions) {
        let Awaited::Helo { extended } = std::mem::replace(&mut self.awaited, Awaited::Nothing)
        else {
            panic!("no HELO awaits an answer");
        };
        self.greeted = true;
        if extended {
            self.offered = self.offer(extensions);
            self.offered.write_ehlo(&self.config.hostname, &mut self.output);
        } else {
            self.offered = Extensions::NONE;
            self.output.extend_from_slice(b"250 ");
            self.output.extend_from_slice(self.config.hostname.as_bytes());
            self.output.extend_from_slice(b"\r\n");
        }
    }

    /// The connection is under TLS from now on, by [`Step::StartTls`] or from
    /// its beginning. What the client said before counts for nothing (RFC 3207
    /// 4.2).
    ///
    /// # Panics
    /// At any other time.
    pub fn secured(&mut self) {
        match self.phase {
            Phase::Handshake => self.phase = Phase::Command,
            Phase::Greeting => {}
            _ => panic!("no handshake was awaited"),
        }
        assert!(!self.secure && self.output.is_empty(), "the handshake came too early");
        self.secure = true;
        self.forget();
        self.line = Vec::new();
    }

    /// Answers the step that awaits it. A `421` closes the session.
    ///
    /// # Panics
    /// If no step awaits an answer, or the reply does not fit it: HELO, DATA
    /// and STARTTLS take only negative ones here, see [`Server::accept`].
    pub fn reply(&mut self, reply: &Reply) {
        let awaited = std::mem::replace(&mut self.awaited, Awaited::Nothing);
        assert!(
            reply.is_positive() || reply.is_negative(),
            "a 3xx reply is not the embedder's to give"
        );
        if let Awaited::Bdat { size, last } = awaited {
            assert!(reply.is_negative(), "BDAT is accepted by accept()");
            if reply.code() == 421 {
                return self.close(reply);
            }
            return self.skip(size, last, SkipReply::Given(Box::new(reply.clone())));
        }
        reply.write(&mut self.output);
        match awaited {
            Awaited::Nothing => panic!("no step awaits an answer"),
            Awaited::Bdat { .. } => {}
            Awaited::Helo { .. } => assert!(reply.is_negative(), "HELO is accepted by accept()"),
            Awaited::Mail { smtputf8 } => {
                self.transaction = match reply.is_positive() {
                    true => Transaction::Open { smtputf8, recipients: 0 },
                    false => Transaction::Refused,
                };
            }
            Awaited::Rcpt => {
                if let Transaction::Open { recipients, .. } = &mut self.transaction
                    && reply.is_positive()
                {
                    *recipients += 1;
                }
            }
            Awaited::Data => {
                assert!(reply.is_negative(), "DATA is accepted by accept()");
                self.transaction = Transaction::None;
            }
            Awaited::StartTls => assert!(reply.is_negative(), "STARTTLS is accepted by accept()"),
            Awaited::Auth => self.logged_in(reply.is_positive()),
            Awaited::Xclient => {
                assert!(reply.is_negative(), "XCLIENT is accepted by accept_xclient()");
            }
            Awaited::End => {
                if reply.is_positive() {
                    self.errors = 0;
                    self.idle_commands = 0;
                }
            }
        }
        if reply.code() == 421 {
            self.shut(Closing::Told);
        }
    }

    /// Queues a last reply, whatever the session is at, such as `421 4.4.2`
    /// at a deadline. The next step is [`Step::Close`].
    pub fn close(&mut self, reply: &Reply) {
        self.finish(reply, Closing::Told);
    }

    /// Closes on a client that misbehaves.
    fn refuse(&mut self, reply: &Reply) {
        self.finish(reply, Closing::Misbehaved);
    }

    fn finish(&mut self, reply: &Reply, closing: Closing) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.say(reply);
        }
        self.shut(closing);
    }

    fn shut(&mut self, closing: Closing) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.phase = Phase::Closed(closing);
        }
        self.awaited = Awaited::Nothing;
        self.exchange = None;
        self.end_transaction();
        self.line = Vec::new();
    }

    /// What is to be written.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The first `count` bytes of the output were written. With the last one
    /// its memory is given back, so that an idle session holds none.
    pub fn written(&mut self, count: usize) {
        if count == self.output.len() {
            self.output = Vec::new();
        } else {
            self.output.drain(..count);
        }
    }

    /// Whether the client is between two commands or in a message, for the
    /// embedder's choice of deadline.
    pub fn is_receiving_message(&self) -> bool {
        matches!(self.phase, Phase::Data(_) | Phase::Chunk { .. } | Phase::Skip { .. })
    }

    fn max_size(&self) -> u64 {
        let own = self.config.limits.message_size;
        self.offered.size_limit().map_or(own, |offered| offered.min(own))
    }

    fn end_transaction(&mut self) {
        self.transaction = Transaction::None;
        self.chunks = None;
    }

    /// Answers a faulty command.
    fn error(&mut self, reply: &Reply) {
        self.errors += 1;
        if self.errors > self.config.limits.errors {
            return self.refuse(&replies::TOO_MANY_ERRORS);
        }
        self.say(reply);
    }

    /// Answers a command that moves nothing.
    fn idle(&mut self, reply: &Reply) {
        self.idle_commands += 1;
        if self.idle_commands > self.config.limits.idle_commands {
            return self.refuse(&replies::TOO_MANY_IDLE);
        }
        self.say(reply);
    }

    /// Queues a reply of our own.
    fn say(&mut self, reply: &Reply) {
        let mark = if reply.is_negative() { self.config.mark } else { "" };
        reply.write_marked(mark, &mut self.output);
    }
}
