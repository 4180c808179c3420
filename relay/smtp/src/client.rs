//! The client side of a session with an upstream.
//!
//! Owns the dialogue: greeting, EHLO or HELO, transactions in as few writes as
//! the upstream's extensions allow, and what each reply means. Owns no body,
//! no deadline, no retry, and no choice of upstream.
//!
//! Order of calls: feed what was read to [`Client::receive`], then
//! [`Client::poll`] until it has no event; write what [`Client::output`] holds
//! and report it with [`Client::written`]. After [`ClientEvent::Ready`],
//! [`Client::begin`] starts a transaction; a next one when it is settled and
//! [`Client::is_ready`].
//!
//! **End of data.** Nothing that could make the upstream take the message is
//! in the output: the body is the embedder's to write, when
//! [`ClientEvent::SendBody`] asks for it. With CHUNKING and PIPELINING it asks
//! at once, so that commands and body can go in one write. Until the
//! embedder calls [`Client::body_sent`], right before it hands the body's last
//! bytes to the network, it can hold back or [`Client::abandon`].
//!
//! With very many recipients the commands fill the peer's buffers: read while
//! writing (RFC 2920 3.1).
//!
//! Floor 0.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::command::{Mail, Rcpt};
use crate::extensions::{Extension, Extensions};
use crate::reply::{Reply, ReplyFault, ReplyReader};

mod envelope;
mod identity;
mod login;
mod offers;
mod rehearsal;
mod transaction;

pub use envelope::{BodyShape, Unsupported, check_support, envelope_lines};
pub use identity::Identity;
pub use login::{Credentials, Mechanism};
pub use rehearsal::{Asked, Rehearsed};
pub use transaction::{Settled, Stage};

use envelope::Before;
use login::Login;
use offers::Offers;
use rehearsal::Rehearsal;
use transaction::Transaction;

/// How the body is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// After DATA: the body, then [`crate::stuff::END`].
    Data {
        /// It has lines that start with a dot: write [`crate::stuff::pieces`].
        stuff: bool,
    },
    /// After BDAT: exactly the bytes of the body, right behind the output.
    Chunk,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The session is open; this is what the upstream offers.
    Ready(Extensions),
    /// The upstream does not want the session: its reply to the connection,
    /// EHLO or HELO. The session is over.
    Refused(Reply),
    /// [`Client::starttls`] was answered `220`: take the handshake, then call
    /// [`Client::secured`].
    StartTls,
    /// TLS was demanded, and the upstream does not offer it, or refused it so.
    /// The session is over.
    NoTls(Option<Reply>),
    /// [`Client::speak_for`]: the upstream does not take the session as the client's: it does not
    /// offer XCLIENT, or refused it so. The session is over.
    NoXclient(Option<Reply>),
    /// [`Client::log_in`] was answered so; not positive: the session is over.
    Login(Reply),
    /// [`Client::log_in`]: nothing is offered that could be used. Nothing was said.
    NoLogin,
    /// XFORWARD was refused; the transaction goes on, and the session says it no more.
    NotForwarded(Reply),
    /// Write the output and then the body, see [`Client::body_sent`].
    SendBody(BodyForm),
    /// The transaction is over.
    Settled(Settled),
    /// [`Client::rset`] was answered: the session is alive.
    Reset,
    /// [`Client::rehearse`] is over.
    Rehearsed(Rehearsed),
    /// The upstream closes a session in which nothing was going on.
    Closing(Reply),
}

/// Why a session ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The upstream's fault; nothing more that it says is heard.
    #[error("the upstream misbehaved: {0}")]
    PeerMisbehaved(#[from] Misbehaviour),
    /// The connection ended without a word.
    #[error("the upstream closed the connection")]
    Closed,
}

/// What an upstream did that SMTP does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// Not a reply.
    #[error(transparent)]
    Reply(#[from] ReplyFault),
    /// A reply with a code that cannot answer what was asked.
    #[error("reply {0} does not answer what was asked")]
    Code(u16),
    /// A reply to nothing.
    #[error("reply {0} although nothing was asked")]
    Unasked(u16),
    /// Something stood behind its answer to STARTTLS: it was not protected, and
    /// would count as if it had been.
    #[error("words behind its answer to STARTTLS")]
    BehindStartTls,
    /// It took a message that it did not have yet.
    #[error("reply {0} to a message before its end was sent")]
    BeforeBody(u16),
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    /// STARTTLS was sent.
    StartTls,
    /// The handshake is awaited.
    Handshake,
    Ready,
    /// RSET or XCLIENT was sent; these commands follow, one at a time, then EHLO.
    Xclient(Vec<u8>),
    /// AUTH was sent.
    Login(Login),
    /// RSET was sent on its own.
    Reset,
    Rehearsal(Box<Rehearsal>),
    Transaction(Box<Transaction>),
    Quit,
    Closed,
}

/// Whether a session asks for TLS (RFC 3207).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// It does not.
    #[default]
    Never,
    /// Where the upstream offers it; a refusal is taken.
    IfOffered,
    /// It does not go on without.
    Demanded,
}

/// The client side of one session.
pub struct Client {
    /// Our name in EHLO.
    hostname: Arc<str>,
    state: State,
    upgrade: Upgrade,
    extensions: Extensions,
    offers: Offers,
    logged_in: bool,
    reader: ReplyReader,
    output: Vec<u8>,
    events: VecDeque<ClientEvent>,
    /// The upstream still has the transaction before open.
    needs_rset: bool,
}

impl Client {
    /// A session whose greeting is awaited; the name is said in EHLO.
    pub fn new(hostname: Arc<str>) -> Client {
        Client {
            hostname,
            state: State::Greeting,
            upgrade: Upgrade::Never,
            extensions: Extensions::NONE,
            offers: Offers::default(),
            logged_in: false,
            reader: ReplyReader::default(),
            output: Vec::new(),
            events: VecDeque::new(),
            needs_rset: false,
        }
    }

    /// The same, asking for TLS behind EHLO.
    #[must_use]
    pub fn starttls(self, upgrade: Upgrade) -> Client {
        Client { upgrade, ..self }
    }

    /// The handshake is done: what the upstream said before counts for nothing
    /// (RFC 3207 4.2), and EHLO is said again.
    ///
    /// # Panics
    /// Unless [`ClientEvent::StartTls`] asked for it.
    pub fn secured(&mut self) {
        assert!(matches!(self.state, State::Handshake), "no handshake was asked for");
        self.upgrade = Upgrade::Never;
        self.forget();
        self.hello(b"EHLO ", State::Ehlo);
    }

    /// Takes all of the input.
    ///
    /// # Errors
    /// If the upstream misbehaved: close the connection. If the body was sent,
    /// the transaction is in doubt.
    pub fn receive(&mut self, input: &[u8]) -> Result<(), ClientError> {
        let mut used = 0;
        while used < input.len() && !matches!(self.state, State::Closed) {
            if matches!(self.state, State::Handshake) {
                self.events.clear();
                self.state = State::Closed;
                return Err(Misbehaviour::BehindStartTls.into());
            }
            let outcome = match self.reader.read(&input[used..]) {
                Ok((taken, reply)) => {
                    used += taken;
                    reply.map_or(Ok(()), |reply| self.reply(reply))
                }
                Err(fault) => Err(fault.into()),
            };
            if let Err(misbehaviour) = outcome {
                self.state = State::Closed;
                return Err(misbehaviour.into());
            }
        }
        Ok(())
    }

    /// The upstream closed its side.
    ///
    /// # Errors
    /// Unless the session was over. If the body was sent, the transaction is
    /// in doubt.
    pub fn eof(&mut self) -> Result<(), ClientError> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Quit | State::Closed => Ok(()),
            _ => Err(ClientError::Closed),
        }
    }

    /// The next event.
    pub fn poll(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// What is to be written.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The first `count` bytes of the output were written.
    pub fn written(&mut self, count: usize) {
        if count > 0
            && let State::Transaction(transaction) = &mut self.state
        {
            transaction.touched();
        }
        if count == self.output.len() {
            self.output = Vec::new();
        } else {
            self.output.drain(..count);
        }
    }

    /// Whether a transaction can begin. For a session that waits in a pool:
    /// whatever can be read from its connection (bytes or its end) makes it
    /// useless, so a read that would block is the proof that it is good.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
            && self.reader.is_empty()
            && self.output.is_empty()
            && self.events.is_empty()
    }

    /// Whether the session is over: write the output, close the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether the body was sent and its reply has not come.
    pub fn is_in_doubt(&self) -> bool {
        matches!(&self.state, State::Transaction(transaction) if transaction.is_in_doubt())
    }

    /// What the upstream offers.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// Uses no more than these extensions from now on.
    pub fn restrict(&mut self, allowed: Extensions) {
        // Where the upstream has no SIZE, no SIZE parameter may go to it.
        let offered = self.extensions.size();
        let both = self.extensions.intersection(allowed);
        self.extensions = both.with_size(offered.and(both.size()));
    }

    /// Begins a transaction. The recipients keep their order: an index in
    /// [`Settled`] counts them from 0.
    ///
    /// # Errors
    /// If this upstream cannot be given this message; nothing was begun.
    ///
    /// # Panics
    /// If the session is not ready, or there is no recipient.
    pub fn begin<'e>(
        &mut self,
        mail: &Mail,
        recipients: impl IntoIterator<Item = &'e Rcpt> + Clone,
        shape: &BodyShape,
    ) -> Result<(), Unsupported> {
        self.begin_from(None, mail, recipients, shape)
    }

    /// The same, and tells the upstream by XFORWARD whom the message is from, if it wants to know
    /// ([`Client::forwards`]).
    ///
    /// # Errors
    /// As [`Client::begin`].
    ///
    /// # Panics
    /// As [`Client::begin`].
    pub fn begin_from<'e>(
        &mut self,
        identity: Option<&Identity<'_>>,
        mail: &Mail,
        recipients: impl IntoIterator<Item = &'e Rcpt> + Clone,
        shape: &BodyShape,
    ) -> Result<(), Unsupported> {
        assert!(self.is_ready(), "the session is not ready for a transaction");
        let before = Before {
            reset: self.needs_rset,
            forward: identity.map(|identity| (identity, self.offers.forward)),
        };
        let commands = envelope::render(mail, recipients, shape, &self.extensions, &before)?;
        let (transaction, output, event) =
            Transaction::begin(commands, shape, &self.extensions, self.needs_rset);
        self.output = output;
        self.events.extend(event);
        self.state = State::Transaction(Box::new(transaction));
        Ok(())
    }

    /// The body's last bytes are about to be written: from now on the upstream
    /// may have the message, and only its reply tells.
    ///
    /// # Panics
    /// If no [`ClientEvent::SendBody`] asked for it.
    pub fn body_sent(&mut self) {
        let State::Transaction(transaction) = &mut self.state else {
            // The upstream closed the session while the body was written.
            assert!(self.is_closed(), "no transaction is open");
            return;
        };
        transaction.body_sent();
    }

    /// Gives the transaction up before its body's last bytes. Says whether the
    /// session is still good, which it is if nothing of the transaction was
    /// written; else close the connection: every other way out of a
    /// transaction would end the data.
    ///
    /// # Panics
    /// If [`Client::body_sent`] was called.
    #[must_use]
    pub fn abandon(&mut self) -> bool {
        assert!(!self.is_in_doubt(), "the body was sent, it cannot be called back");
        let State::Transaction(transaction) = &self.state else { return self.is_ready() };
        let untouched = transaction.is_untouched();
        self.output = Vec::new();
        self.events.clear();
        self.state = if untouched { State::Ready } else { State::Closed };
        untouched
    }

    /// Asks for a sign of life; [`ClientEvent::Reset`] follows.
    ///
    /// # Panics
    /// If the session is not ready.
    pub fn rset(&mut self) {
        assert!(self.is_ready(), "the session is not ready for RSET");
        self.output.extend_from_slice(b"RSET\r\n");
        self.state = State::Reset;
    }

    /// Asks whether the upstream would take mail for a recipient, without sending any: MAIL, RCPT
    /// and RSET; [`ClientEvent::Rehearsed`] follows.
    ///
    /// # Errors
    /// If this upstream cannot be given such mail; nothing was begun.
    ///
    /// # Panics
    /// If the session is not ready.
    pub fn rehearse(&mut self, mail: &Mail, rcpt: &Rcpt) -> Result<(), Unsupported> {
        assert!(self.is_ready(), "the session is not ready for a rehearsal");
        let questions = envelope::questions(mail, rcpt, &self.extensions)?;
        let pipelined = self.extensions.has(Extension::Pipelining);
        let rehearsal = Rehearsal::begin(questions, pipelined, self.needs_rset, &mut self.output);
        self.state = State::Rehearsal(Box::new(rehearsal));
        Ok(())
    }

    /// Whether XFORWARD is of use: offered, and not refused in this session.
    pub fn forwards(&self) -> bool {
        !self.offers.forward.is_empty()
    }

    /// Says goodbye, if there is nothing under way; else just close.
    pub fn quit(&mut self) {
        match self.state {
            State::Ready => {
                self.output.extend_from_slice(b"QUIT\r\n");
                self.state = State::Quit;
            }
            State::Quit => {}
            _ => self.state = State::Closed,
        }
    }

    /// One reply, to whatever the session waits for.
    fn reply(&mut self, reply: Reply) -> Result<(), Misbehaviour> {
        let code = reply.code();
        match &mut self.state {
            State::Transaction(transaction) => {
                let done = transaction.reply(reply, &mut self.output, &mut self.events)?;
                if transaction.is_not_forwarded() {
                    self.offers.forward = Default::default();
                }
                if let Some(after) = done {
                    self.needs_rset = after.needs_rset;
                    self.state = if after.usable { State::Ready } else { State::Closed };
                }
                return Ok(());
            }
            State::Quit => self.state = State::Closed,
            State::Closed => {}
            State::Ready if code == 421 => {
                self.state = State::Closed;
                self.events.push_back(ClientEvent::Closing(reply));
            }
            State::Ready => return Err(Misbehaviour::Unasked(code)),
            State::Reset if reply.is_positive() => {
                self.needs_rset = false;
                self.state = State::Ready;
                self.events.push_back(ClientEvent::Reset);
            }
            State::Reset => {
                self.state = State::Closed;
                self.events.push_back(ClientEvent::Closing(reply));
            }
            State::Rehearsal(rehearsal) => {
                if let Some((rehearsed, after)) = rehearsal.reply(reply, &mut self.output) {
                    self.needs_rset = after.needs_rset;
                    self.state = if after.usable { State::Ready } else { State::Closed };
                    self.events.push_back(ClientEvent::Rehearsed(rehearsed));
                }
            }
            State::Login(_) => return self.login(reply),
            _ if code / 100 == 3 => return Err(Misbehaviour::Code(code)),
            State::StartTls if reply.is_positive() && code != 220 => {
                return Err(Misbehaviour::Code(code));
            }
            State::Xclient(_) => self.xclient(reply),
            State::Handshake => return Err(Misbehaviour::BehindStartTls),
            State::Greeting | State::Ehlo | State::Helo | State::StartTls => self.opening(reply),
        }
        Ok(())
    }

    /// What the upstream said of itself counts no more.
    fn forget(&mut self) {
        self.extensions = Extensions::NONE;
        self.offers = Offers::default();
    }

    /// A reply before the session is open.
    fn opening(&mut self, reply: Reply) {
        match &self.state {
            State::Greeting if reply.is_positive() => self.hello(b"EHLO ", State::Ehlo),
            // RFC 5321 3.2: an old server knows only HELO.
            State::Ehlo if reply.is_permanent() => self.hello(b"HELO ", State::Helo),
            State::Ehlo if reply.is_positive() => {
                self.extensions = Extensions::from_ehlo(&reply);
                self.offers = Offers::from_ehlo(&reply);
                self.greeted();
            }
            State::Helo if reply.is_positive() => self.greeted(),
            State::StartTls if reply.code() == 220 => {
                self.state = State::Handshake;
                self.events.push_back(ClientEvent::StartTls);
            }
            // After a 421 the upstream closes.
            State::StartTls if self.upgrade == Upgrade::IfOffered && reply.code() != 421 => {
                self.ready();
            }
            State::StartTls if reply.code() != 421 => self.no_tls(Some(reply)),
            _ => {
                self.state = State::Closed;
                self.events.push_back(ClientEvent::Refused(reply));
            }
        }
    }

    /// EHLO or HELO was answered.
    fn greeted(&mut self) {
        match self.upgrade {
            Upgrade::Never => self.ready(),
            _ if self.extensions.has(Extension::StartTls) => {
                self.output.extend_from_slice(b"STARTTLS\r\n");
                self.state = State::StartTls;
            }
            Upgrade::IfOffered => self.ready(),
            Upgrade::Demanded => self.no_tls(None),
        }
    }

    fn ready(&mut self) {
        self.state = State::Ready;
        self.events.push_back(ClientEvent::Ready(self.extensions));
    }

    fn no_tls(&mut self, reply: Option<Reply>) {
        self.state = State::Closed;
        self.events.push_back(ClientEvent::NoTls(reply));
    }

    fn hello(&mut self, verb: &[u8], state: State) {
        self.output.extend_from_slice(verb);
        self.output.extend_from_slice(self.hostname.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.state = state;
    }
}

/// Without what is to be written: there may be a password in it.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("state", &self.state).finish_non_exhaustive()
    }
}
