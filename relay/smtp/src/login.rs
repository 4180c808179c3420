//! AUTH (RFC 4954): the mechanisms PLAIN and LOGIN, from what the client says to
//! who it says that it is.
//!
//! Owns the turns of an exchange and their encoding. Owns no decision: whether
//! the password is right is the embedder's, and when AUTH may come is
//! [`crate::server`]'s.
//!
//! Floor 0.

use std::fmt;

use zeroize::Zeroizing;

use crate::{base64, limits};

/// As EHLO offers them.
pub(crate) const MECHANISMS: &str = "AUTH PLAIN LOGIN";

/// Who a client says that it is, with the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The name: not empty, without control characters, at most
    /// [`limits::USER`] bytes.
    pub user: Box<str>,
    /// The password.
    pub password: Secret,
}

/// Bytes that are shown to nobody, and erased when they are not needed any more.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Keeps these bytes.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// The bytes, for whoever has to compare or send them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What a client may have to say next.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// The whole of PLAIN.
    Plain,
    /// The name of LOGIN.
    LoginUser,
    /// The password of LOGIN.
    LoginPassword(Box<str>),
}

/// What follows a response.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Another one is asked for.
    Ask(Exchange),
    /// It was the last one.
    Done(Login),
}

/// A response that cannot be understood; the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Exchange {
    /// The exchange of a mechanism, if there is such a one.
    pub(crate) fn begin(mechanism: &[u8]) -> Option<Exchange> {
        if mechanism.eq_ignore_ascii_case(b"PLAIN") {
            Some(Exchange::Plain)
        } else if mechanism.eq_ignore_ascii_case(b"LOGIN") {
            Some(Exchange::LoginUser)
        } else {
            None
        }
    }

    /// What asks for the response. The space behind the code is always there
    /// (RFC 4954 4); LOGIN has `Username:` and `Password:`, by which old clients go.
    pub(crate) fn challenge(&self) -> &'static [u8] {
        match self {
            Exchange::Plain => b"334 \r\n",
            Exchange::LoginUser => b"334 VXNlcm5hbWU6\r\n",
            Exchange::LoginPassword(_) => b"334 UGFzc3dvcmQ6\r\n",
        }
    }

    /// Takes a response, still in base64.
    pub(crate) fn take(self, response: &[u8]) -> Result<Turn, Malformed> {
        let bytes = base64::decode(response).ok_or(Malformed)?;
        match self {
            Exchange::Plain => plain(&bytes).map(Turn::Done),
            Exchange::LoginUser => Ok(Turn::Ask(Exchange::LoginPassword(user(&bytes)?))),
            Exchange::LoginPassword(user) => credentials(user, &bytes).map(Turn::Done),
        }
    }
}

/// `[authzid] NUL authcid NUL passwd` (RFC 4616 2). To act for somebody else is
/// for nobody here, so an authorization identity must be the name itself.
fn plain(bytes: &[u8]) -> Result<Login, Malformed> {
    let mut parts = bytes.split(|byte| *byte == 0);
    let (Some(acting), Some(name), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Malformed);
    };
    if !(acting.is_empty() || acting == name) {
        return Err(Malformed);
    }
    credentials(user(name)?, password)
}

fn credentials(user: Box<str>, password: &[u8]) -> Result<Login, Malformed> {
    // RFC 4616 2: one octet at least, and no NUL.
    if password.is_empty() || password.contains(&0) {
        return Err(Malformed);
    }
    Ok(Login { user, password: Secret::new(password.to_vec()) })
}

fn user(bytes: &[u8]) -> Result<Box<str>, Malformed> {
    let name = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
    if is_user(name) { Ok(name.into()) } else { Err(Malformed) }
}

/// Whether it can be the name of a user.
pub fn is_user(name: &str) -> bool {
    matches!(name.len(), 1..=limits::USER) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn plain_is_three_parts() {
        let good = plain(b"\0ada\0secret").unwrap();
        assert_eq!((&*good.user, good.password.expose()), ("ada", &b"secret"[..]));
        assert_eq!(plain(b"ada\0ada\0secret").unwrap(), good);
        for wrong in [
            &b""[..],
            b"ada",
            b"\0ada",
            b"\0ada\0",
            b"\0\0secret",
            b"bob\0ada\0secret",
            b"\0ada\0sec\0ret",
            b"\0a\xffda\0secret",
            b"\0a\nda\0secret",
        ] {
            assert_eq!(plain(wrong), Err(Malformed), "{}", wrong.escape_ascii());
        }
        let longest = |count| [&b"\0"[..], &b"a".repeat(count), b"\0x"].concat();
        assert!(plain(&longest(limits::USER)).is_ok());
        assert_eq!(plain(&longest(limits::USER + 1)), Err(Malformed));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let credentials = plain(b"\0ada\0secret").unwrap();
        assert_eq!(format!("{credentials:?}"), "Login { user: \"ada\", password: Secret }");
        let exchange = Exchange::LoginPassword("ada".into());
        let done = format!("{:?}", exchange.take(b"c2VjcmV0").unwrap());
        assert!(done.contains("ada") && !done.contains("secret"), "{done}");
    }
}
