//! AUTH and XCLIENT: who the client is.
//!
//! Owns when they may come, and the turns of AUTH. Owns no decision: who a client
//! is, is the embedder's to believe.
//!
//! Floor 0.

use std::sync::Arc;

use zeroize::Zeroize;

use super::{
    AuthOffer, Awaited, Phase, Server, ServerConfig, StartTls, Step, Transaction, replies,
};
use crate::command::Command;
use crate::extensions::{Extension, Extensions};
use crate::login::{Exchange, Turn};
use crate::reply::Reply;
use crate::xclient;

impl Server {
    /// The peer may say by XCLIENT who its client is; for the whole connection.
    pub fn trust(&mut self) {
        self.trusted = true;
    }

    /// Answers [`Step::Xclient`]: a session begins anew, with these settings
    /// and by a client that `logged_in` says the login of. The connection, and
    /// TLS on it, is the peer's still.
    ///
    /// # Panics
    /// If that is not the step that awaits an answer.
    pub fn accept_xclient(&mut self, config: Arc<ServerConfig>, logged_in: bool) {
        assert_eq!(self.awaited, Awaited::Xclient, "no XCLIENT awaits an answer");
        self.awaited = Awaited::Nothing;
        self.config = config;
        self.forget();
        self.logged_in = logged_in;
        (self.errors, self.idle_commands, self.login_failures) = (0, 0, 0);
        self.write_greeting();
    }

    /// What was said so far counts for nothing: greeting, login, transaction.
    pub(super) fn forget(&mut self) {
        self.end_transaction();
        self.greeted = false;
        self.logged_in = false;
        self.offered = Extensions::NONE;
    }

    /// The extensions that depend on who the client is and how it is connected.
    pub(super) fn offer(&self, extensions: Extensions) -> Extensions {
        // RFC 3207 4.2: not offered again under TLS.
        let starttls = self.config.starttls != StartTls::Unavailable && !self.secure;
        let auth = match self.config.auth {
            AuthOffer::Unavailable => false,
            AuthOffer::UnderTls => self.secure,
            AuthOffer::Anytime => true,
        };
        [
            (Extension::StartTls, starttls),
            (Extension::Auth, auth),
            (Extension::Xclient, self.trusted),
        ]
        .into_iter()
        .fold(extensions, |offered, (extension, wanted)| match wanted {
            true => offered.with(extension),
            false => offered.without(extension),
        })
    }

    /// What must come before this command, if anything: TLS (RFC 3207 4), then
    /// AUTH (RFC 4954 6).
    pub(super) fn lacks(&self, command: &Command<'_>) -> Option<&'static Reply> {
        let tls = self.config.starttls == StartTls::Required && !self.secure;
        match command {
            Command::Helo { .. } | Command::Noop | Command::Quit | Command::Rset => None,
            Command::StartTls | Command::Http => None,
            _ if tls => Some(&replies::TLS_FIRST),
            Command::Auth(_) | Command::Xclient(_) => None,
            _ if self.config.auth_required && !self.logged_in => Some(&replies::AUTH_FIRST),
            _ => None,
        }
    }

    /// AUTH. What is there behind it was sent without waiting for our answer, and
    /// RFC 2920 3.1 does not have it among what may be followed: were it heard,
    /// a password could be taken for a command, or mail for one that was to be
    /// sent only after a login.
    pub(super) fn auth(&mut self, arguments: &[u8], more: bool) -> Option<Step<'static>> {
        let failures = self.config.limits.login_failures;
        if self.config.auth == AuthOffer::Unavailable {
            self.error(&replies::NOT_IMPLEMENTED);
        } else if self.logged_in {
            self.error(&replies::LOGGED_IN_ALREADY);
        } else if !matches!(self.transaction, Transaction::None | Transaction::Refused) {
            self.error(&replies::NESTED_MAIL);
        } else if self.config.auth == AuthOffer::UnderTls && !self.secure {
            self.error(&replies::AUTH_NEEDS_TLS);
        } else if !self.offered.has(Extension::Auth) {
            self.error(&replies::EHLO_FIRST);
        } else if self.login_failures >= failures {
            self.refuse(&replies::TOO_MANY_LOGINS);
        } else if more {
            self.refuse(&replies::EARLY);
        } else {
            let (mechanism, initial) = match arguments.iter().position(|byte| *byte == b' ') {
                Some(at) => (&arguments[..at], Some(arguments[at..].trim_ascii())),
                None => (arguments, None),
            };
            match (Exchange::begin(mechanism), initial) {
                (None, _) => self.error(&replies::UNKNOWN_MECHANISM),
                (Some(exchange), None) => self.ask(exchange),
                // RFC 4954 4: an empty initial response.
                (Some(exchange), Some(b"=")) => return self.respond(exchange, b""),
                (Some(exchange), Some(initial)) => return self.respond(exchange, initial),
            }
        }
        None
    }

    /// A line within an exchange.
    pub(super) fn response(
        &mut self,
        exchange: Exchange,
        line: &[u8],
        more: bool,
    ) -> Option<Step<'static>> {
        if more {
            self.refuse(&replies::EARLY);
        } else if line == b"*" {
            self.error(&replies::CANCELLED);
        } else {
            return self.respond(exchange, line);
        }
        None
    }

    fn respond(&mut self, exchange: Exchange, response: &[u8]) -> Option<Step<'static>> {
        match exchange.take(response) {
            Err(_) => self.error(&replies::NOT_DECODED),
            Ok(Turn::Ask(next)) => self.ask(next),
            Ok(Turn::Done(credentials)) => {
                self.awaited = Awaited::Auth;
                return Some(Step::Auth(credentials));
            }
        }
        None
    }

    fn ask(&mut self, exchange: Exchange) {
        self.output.extend_from_slice(exchange.challenge());
        self.exchange = Some(Box::new(exchange));
    }

    /// The embedder has judged a login.
    pub(super) fn logged_in(&mut self, good: bool) {
        match good {
            true => self.logged_in = true,
            false => self.login_failures += 1,
        }
    }

    /// Erases a line that may hold a password.
    pub(super) fn erase(mut line: Vec<u8>) {
        line.zeroize();
    }

    pub(super) fn xclient(&mut self, arguments: &[u8], more: bool) -> Option<Step<'static>> {
        if !self.trusted {
            self.error(&replies::NOT_TRUSTED);
        } else if !matches!(self.transaction, Transaction::None | Transaction::Refused) {
            self.error(&replies::NESTED_MAIL);
        } else if more {
            // A greeting follows, and the client waits for that (RFC 5321 4.3.1).
            self.refuse(&replies::EARLY);
        } else if let Some(told) = xclient::parse(arguments) {
            self.awaited = Awaited::Xclient;
            return Some(Step::Xclient(told));
        } else {
            self.error(&replies::BAD_ATTRIBUTES);
        }
        None
    }

    pub(super) fn write_greeting(&mut self) {
        self.output.extend_from_slice(b"220 ");
        self.output.extend_from_slice(self.config.hostname.as_bytes());
        self.output.extend_from_slice(b" ESMTP\r\n");
        self.phase = Phase::Command;
    }
}
