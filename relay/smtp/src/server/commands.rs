//! Commands in their order: which one may come now, and what it does.
//!
//! Owns the transitions that commands make and the answers that need no
//! decision. Owns no content, see [`super::receive`].
//!
//! Floor 0.

use memchr::memchr;

use super::{
    Awaited, Closing, Helo, Phase, Server, SkipReply, StartTls, Step, Transaction, replies,
};
use crate::body::MessageFault;
use crate::command::{self, Command, CommandError, Mail, Rcpt};
use crate::extensions::Extension;

impl Server {
    /// Finds the next command line and carries it out.
    pub(super) fn command_line<'a>(&mut self, input: &'a [u8]) -> (usize, Option<Step<'a>>) {
        // A TLS handshake begins with this byte; no command does.
        if self.line.is_empty() && input[0] == 0x16 {
            self.shut(Closing::Misbehaved);
            return (input.len(), None);
        }
        let mut last_cr = self.line.last() == Some(&b'\r');
        let (taken, ended) = line_end(input, &mut last_cr);
        let limit = match self.exchange {
            Some(_) => self.config.limits.login_line,
            None => self.config.limits.command_line,
        };
        if self.line.len() + taken > limit {
            Self::erase(std::mem::take(&mut self.line));
            match ended {
                true => self.long_line(),
                false => self.phase = Phase::LongLine { last_cr },
            }
            return (taken, None);
        }
        if !ended {
            self.line.extend_from_slice(&input[..taken]);
            return (taken, None);
        }
        let more = taken < input.len();
        let step = if self.line.is_empty() {
            self.command(&input[..taken - 2], more)
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&input[..taken]);
            let step = self.command(&line[..line.len() - 2], more);
            Self::erase(line);
            step
        };
        (taken, step)
    }

    /// Answers a line that is too long; within an exchange it ends that.
    pub(super) fn long_line(&mut self) {
        match self.exchange.take() {
            Some(_) => self.error(&replies::LONG_RESPONSE),
            None => self.error(&replies::LONG_LINE),
        }
    }

    /// Carries out one command; `more` says that input is there behind it.
    fn command(&mut self, line: &[u8], more: bool) -> Option<Step<'static>> {
        if let Some(exchange) = self.exchange.take() {
            return self.response(*exchange, line, more);
        }
        let smtputf8 = matches!(self.transaction, Transaction::Open { smtputf8: true, .. });
        let command = match command::parse(line, &self.offered, smtputf8) {
            Ok(command) => command,
            Err(CommandError::Bdat) => {
                self.refuse(CommandError::Bdat.reply());
                return None;
            }
            Err(error) => {
                self.error(error.reply());
                return None;
            }
        };
        if let Some(reply) = self.lacks(&command) {
            match command {
                Command::Bdat(size, last) => self.skip(size, last, SkipReply::Lacking(reply)),
                _ => self.error(reply),
            }
            return None;
        }
        match command {
            // Both must be the last of a group (RFC 2920 3.1): what is there
            // behind them was sent without waiting for our answer.
            Command::Helo { .. } | Command::Data if more => self.refuse(&replies::EARLY),
            Command::Helo { extended, name } => {
                self.end_transaction();
                self.awaited = Awaited::Helo { extended };
                return Some(Step::Helo(Helo { name: name.into(), extended }));
            }
            Command::Mail(mail) => return self.mail(mail),
            Command::Rcpt(rcpt) => return self.rcpt(rcpt),
            Command::Data => return self.begin_data(),
            Command::Bdat(size, last) => return self.bdat(size, last),
            Command::Rset => {
                self.end_transaction();
                self.idle(&replies::OK);
                return (!matches!(self.phase, Phase::Closed(_))).then_some(Step::Reset);
            }
            Command::Noop => self.idle(&replies::OK),
            Command::Vrfy => self.idle(&replies::CANNOT_VERIFY),
            Command::Expn => self.idle(&replies::NOT_IMPLEMENTED),
            Command::Help => self.idle(&replies::HELP),
            Command::StartTls => return self.start_tls(more),
            Command::Auth(arguments) => return self.auth(arguments.0, more),
            Command::Xclient(arguments) => return self.xclient(arguments, more),
            Command::Quit => self.finish(&replies::BYE, Closing::Quit),
            Command::Http => self.shut(Closing::Misbehaved),
        }
        None
    }

    /// RFC 3207 4: the last command of a group. What is there behind it would be
    /// heard as if it had come under TLS, so it ends the session.
    fn start_tls(&mut self, more: bool) -> Option<Step<'static>> {
        if self.secure {
            self.error(&replies::TLS_ACTIVE);
        } else if self.config.starttls == StartTls::Unavailable {
            self.error(&replies::NOT_IMPLEMENTED);
        } else if !self.offered.has(Extension::StartTls) {
            self.error(&replies::EHLO_FIRST);
        } else if more {
            self.refuse(&replies::EARLY);
        } else {
            self.awaited = Awaited::StartTls;
            return Some(Step::StartTls);
        }
        None
    }

    fn mail(&mut self, mail: Mail) -> Option<Step<'static>> {
        if !self.greeted {
            self.error(&replies::HELLO_FIRST);
        } else if !matches!(self.transaction, Transaction::None | Transaction::Refused) {
            self.error(&replies::NESTED_MAIL);
        } else if mail.size.is_some_and(|size| size > self.max_size()) {
            // Nothing wrong with the client; what it pipelined behind is not
            // to be held against it either.
            self.say(MessageFault::TooLarge.reply());
            self.transaction = Transaction::Refused;
        } else {
            self.awaited = Awaited::Mail { smtputf8: mail.smtputf8 };
            return Some(Step::Mail(mail));
        }
        None
    }

    fn rcpt(&mut self, rcpt: Rcpt) -> Option<Step<'static>> {
        let Transaction::Open { recipients, .. } = self.transaction else {
            self.out_of_order();
            return None;
        };
        if !(self.config.may_relay || self.logged_in) {
            self.error(&replies::NO_RELAY);
        } else if recipients >= self.config.limits.recipients {
            self.say(&replies::TOO_MANY_RECIPIENTS);
        } else {
            self.awaited = Awaited::Rcpt;
            return Some(Step::Rcpt(rcpt));
        }
        None
    }

    fn begin_data(&mut self) -> Option<Step<'static>> {
        match self.transaction {
            Transaction::Open { recipients: 0, .. } => {
                // Each recipient's refusal was counted where it was an error.
                self.say(&replies::NO_RECIPIENTS);
                None
            }
            Transaction::Open { .. } => {
                self.awaited = Awaited::Data;
                Some(Step::Data)
            }
            _ => {
                self.out_of_order();
                None
            }
        }
    }

    /// RCPT, DATA or BDAT where no transaction is open for it.
    pub(super) fn out_of_order(&mut self) {
        match self.transaction {
            Transaction::Refused => self.say(&replies::NEED_MAIL),
            Transaction::None => self.error(&replies::NEED_MAIL),
            _ => self.error(&replies::IN_CHUNKS),
        }
    }

    fn bdat(&mut self, size: u64, last: bool) -> Option<Step<'static>> {
        match self.transaction {
            Transaction::Chunks => self.begin_chunk(size, last),
            Transaction::Open { recipients: 1.., .. } => {
                self.awaited = Awaited::Bdat { size, last };
                return Some(Step::Data);
            }
            Transaction::Open { .. } => {
                self.skip(size, last, SkipReply::Fixed(&replies::NO_RECIPIENTS));
            }
            Transaction::Discard => {
                self.skip(size, last, SkipReply::Fixed(&replies::DISCARDED));
            }
            Transaction::None | Transaction::Refused => {
                self.phase = Phase::Skip { remaining: size, reply: SkipReply::OutOfOrder };
            }
        }
        None
    }
}

/// How far the line goes, and whether its end is there: a CRLF, nothing else.
/// `last_cr` tells whether the byte before the input was a CR, and afterwards
/// whether the last one is.
pub(super) fn line_end(input: &[u8], last_cr: &mut bool) -> (usize, bool) {
    let mut from = 0;
    while let Some(length) = memchr(b'\n', &input[from..]) {
        let at = from + length;
        let crlf = if at == 0 { *last_cr } else { input[at - 1] == b'\r' };
        from = at + 1;
        if crlf {
            *last_cr = false;
            return (from, true);
        }
    }
    *last_cr = input.last() == Some(&b'\r');
    (input.len(), false)
}
