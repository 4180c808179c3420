//! Logging in at an upstream: AUTH PLAIN and LOGIN (RFC 4954, RFC 4616).
//!
//! Owns which mechanism is used and what each answer means. Whether a password may be said on
//! this connection is the embedder's decision.
//!
//! Floor 0.

use std::fmt;

use super::{Client, ClientEvent, Misbehaviour, State};
use crate::base64;
use crate::reply::Reply;

/// Longest line with which AUTH may say something at once (RFC 4954 4: the limit of a command,
/// CRLF included); a longer response waits until it is asked for.
const LINE: usize = 512;

/// A way to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// User and password, each when it is asked for. Never standardised, offered by many.
    Login,
}

/// The mechanisms that an upstream offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mechanisms {
    plain: bool,
    login: bool,
}

impl Mechanisms {
    pub(super) fn add<'w>(&mut self, words: impl Iterator<Item = &'w str>) {
        for word in words {
            self.plain |= word.eq_ignore_ascii_case("PLAIN");
            self.login |= word.eq_ignore_ascii_case("LOGIN");
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self == Mechanisms::default()
    }

    /// The one to use: what is wanted, else PLAIN before LOGIN, because it takes one turn.
    fn choose(self, wanted: Option<Mechanism>) -> Option<Mechanism> {
        match wanted {
            None | Some(Mechanism::Plain) if self.plain => Some(Mechanism::Plain),
            None | Some(Mechanism::Login) if self.login => Some(Mechanism::Login),
            _ => None,
        }
    }
}

/// Who to log in as. Its password is shown by nothing but the session.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// None where a mechanism could not carry them: one is empty, or has a NUL (RFC 4616 2).
    pub fn new(user: &str, password: &str) -> Option<Credentials> {
        let carries = |text: &str| !text.is_empty() && !text.contains('\0');
        (carries(user) && carries(password))
            .then(|| Credentials { user: user.to_owned(), password: password.to_owned() })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// A login under way: what is said when the upstream asks for more, last first.
pub(super) struct Login {
    later: Vec<Vec<u8>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({} to say)", self.later.len())
    }
}

impl Login {
    /// Begins; none where nothing is offered that can be used.
    pub(super) fn begin(
        offered: Mechanisms,
        wanted: Option<Mechanism>,
        credentials: &Credentials,
        output: &mut Vec<u8>,
    ) -> Option<Login> {
        let Credentials { user, password } = credentials;
        let mut later = Vec::new();
        match offered.choose(wanted)? {
            Mechanism::Plain => {
                let response = base64::encode(format!("\0{user}\0{password}").as_bytes());
                output.extend_from_slice(b"AUTH PLAIN");
                if b"AUTH PLAIN ".len() + response.len() + 2 <= LINE {
                    output.push(b' ');
                    output.extend_from_slice(&response);
                } else {
                    later.push(response);
                }
            }
            Mechanism::Login => {
                output.extend_from_slice(b"AUTH LOGIN");
                later.push(base64::encode(password.as_bytes()));
                later.push(base64::encode(user.as_bytes()));
            }
        }
        output.extend_from_slice(b"\r\n");
        Some(Login { later })
    }

    /// The upstream asks for more; whether there is more.
    pub(super) fn go_on(&mut self, output: &mut Vec<u8>) -> bool {
        let Some(response) = self.later.pop() else { return false };
        output.extend_from_slice(&response);
        output.extend_from_slice(b"\r\n");
        true
    }
}

impl Client {
    /// Whether it offers AUTH with a mechanism that is known here.
    pub fn takes_logins(&self) -> bool {
        !self.offers.mechanisms.is_empty()
    }

    /// Logs in. [`ClientEvent::Login`] or [`ClientEvent::NoLogin`] follows.
    ///
    /// # Panics
    /// If the session is not ready, or has logged in before (RFC 4954 4: only once).
    pub fn log_in(&mut self, credentials: &Credentials, wanted: Option<Mechanism>) {
        assert!(self.is_ready() && !self.logged_in, "the session is not ready for AUTH");
        match Login::begin(self.offers.mechanisms, wanted, credentials, &mut self.output) {
            Some(login) => self.state = State::Login(login),
            None => self.events.push_back(ClientEvent::NoLogin),
        }
    }

    /// A reply to AUTH, or to what followed it.
    pub(super) fn login(&mut self, reply: Reply) -> Result<(), Misbehaviour> {
        let State::Login(login) = &mut self.state else { return Ok(()) };
        match reply.code() {
            334 if login.go_on(&mut self.output) => return Ok(()),
            235 => {
                self.logged_in = true;
                self.state = State::Ready;
            }
            400.. => self.state = State::Closed,
            code => return Err(Misbehaviour::Code(code)),
        }
        self.events.push_back(ClientEvent::Login(reply));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let shown = Credentials::new("relay", "hunter2").map(|one| format!("{one:?}"));
        assert_eq!(shown.as_deref(), Some("Credentials"));
        assert!(Credentials::new("relay", "").is_none());
        assert!(Credentials::new("re\0lay", "x").is_none());
    }
}
