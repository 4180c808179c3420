//! Mail addresses as MAIL and RCPT carry them (RFC 5321 4.1.2, RFC 6531 3.3).
//!
//! Owns their syntax. An address keeps the text that the client gave, but for
//! a source route, which is read and dropped (RFC 5321 4.1.1.3). Owns no
//! comparison, no lookup and no opinion on which domains exist.
//!
//! Floor 0.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::limits;

/// `local@domain`, or `postmaster` without a domain.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    text: Box<str>,
    /// Where the `@` before the domain is; the text's length without one.
    at: u32,
}

/// What is wrong with an address; the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `<`, or no `>` that ends it.
    #[error("the address is not in angle brackets")]
    Brackets,
    /// The part before the `@`.
    #[error("the local part is not valid")]
    Local,
    /// The part behind the `@`, or there is none.
    #[error("the domain is not valid")]
    Domain,
    /// Beyond [`limits::ADDRESS`].
    #[error("the address is too long")]
    Long,
    /// Bytes that are not UTF-8.
    #[error("the address is not UTF-8")]
    NotUtf8,
}

impl Address {
    /// Reads an address without brackets.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let local = local_part(text)?;
        let at = u32::try_from(local).map_err(|_| AddressError::Long)?;
        if text.len() > limits::ADDRESS {
            return Err(AddressError::Long);
        }
        if local == text.len() {
            // RFC 5321 4.5.1: the one address without a domain.
            return match text.eq_ignore_ascii_case("postmaster") {
                true => Ok(Address { text: text.into(), at }),
                false => Err(AddressError::Domain),
            };
        }
        if !is_domain(&text[local + 1..]) {
            return Err(AddressError::Domain);
        }
        Ok(Address { text: text.into(), at })
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part before the `@`, quotes included where they were given.
    pub fn local(&self) -> &str {
        &self.text[..self.at as usize]
    }

    /// The part behind the `@` as given, brackets of an address literal
    /// included; empty for a bare `postmaster`.
    pub fn domain(&self) -> &str {
        self.text.get(self.at as usize + 1..).unwrap_or("")
    }

    /// Whether it can travel without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

/// The sender: an address, or the empty path of bounces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`.
    Null,
    /// `<local@domain>`.
    Address(Address),
}

impl ReversePath {
    /// The address; empty for `<>`.
    pub fn as_str(&self) -> &str {
        match self {
            ReversePath::Null => "",
            ReversePath::Address(address) => address.as_str(),
        }
    }

    /// The domain; empty for `<>`.
    pub fn domain(&self) -> &str {
        match self {
            ReversePath::Null => "",
            ReversePath::Address(address) => address.domain(),
        }
    }

    /// Whether it can travel without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads `<path>` at the start of the text; the second value is what follows.
///
/// # Errors
/// If there is no valid path.
pub fn reverse_path(text: &[u8]) -> Result<(ReversePath, &[u8]), AddressError> {
    if let Some(rest) = text.strip_prefix(b"<>") {
        return Ok((ReversePath::Null, rest));
    }
    forward_path(text).map(|(address, rest)| (ReversePath::Address(address), rest))
}

/// Reads `<path>` at the start of the text; the second value is what follows.
///
/// # Errors
/// If there is no valid path.
pub fn forward_path(text: &[u8]) -> Result<(Address, &[u8]), AddressError> {
    let inner = text.strip_prefix(b"<").ok_or(AddressError::Brackets)?;
    let end = closing_bracket(inner).ok_or(AddressError::Brackets)?;
    let path = std::str::from_utf8(&inner[..end]).map_err(|_| AddressError::NotUtf8)?;
    let address = Address::parse(without_route(path)?)?;
    Ok((address, &inner[end + 1..]))
}

/// Where the path ends: the first `>` that is not inside quotes.
fn closing_bracket(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Drops `@one,@two:` in front. Receivers must take source routes and should
/// ignore them (RFC 5321 4.1.1.3, appendix C).
fn without_route(path: &str) -> Result<&str, AddressError> {
    if !path.starts_with('@') {
        return Ok(path);
    }
    let (route, mailbox) = path.split_once(':').ok_or(AddressError::Domain)?;
    let valid = route.split(',').all(|hop| hop.strip_prefix('@').is_some_and(is_domain));
    if valid { Ok(mailbox) } else { Err(AddressError::Domain) }
}

/// The length of the local part at the start of the text.
fn local_part(text: &str) -> Result<usize, AddressError> {
    let bytes = text.as_bytes();
    let length = match bytes.first() {
        Some(b'"') => quoted_string(bytes).ok_or(AddressError::Local)?,
        // Dots may stand anywhere: some old mobile providers gave out
        // addresses with two in a row or one before the `@`, and they can do
        // no harm. A valid dot-string is among what this takes.
        _ => bytes.iter().take_while(|byte| is_atext(**byte) || **byte == b'.').count(),
    };
    match bytes.get(length) {
        _ if length == 0 => Err(AddressError::Local),
        None | Some(b'@') => Ok(length),
        Some(_) => Err(AddressError::Local),
    }
}

/// The length of a quoted string, both quotes included (RFC 5321 4.1.2).
fn quoted_string(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                at += 1;
                if !matches!(bytes.get(at)?, b' '..=b'~') {
                    return None;
                }
            }
            b' '..=b'~' | 0x80.. => {}
            _ => return None,
        }
        at += 1;
    }
}

fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

/// A domain name or an address literal.
fn is_domain(text: &str) -> bool {
    if let Some(literal) = text.strip_prefix('[') {
        return literal.strip_suffix(']').is_some_and(is_literal);
    }
    // A label is at most 63 octets; U-labels are measured as A-labels, which
    // only DNS does, so their length is bounded by the domain's.
    text.len() <= limits::DOMAIN
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            !bytes.is_empty()
                && (bytes.len() <= 63 || !label.is_ascii())
                && bytes[0] != b'-'
                && bytes[bytes.len() - 1] != b'-'
                // Underscores are not in RFC 5321 but in use.
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b >= 0x80 || b"-_".contains(b))
        })
}

/// What stands between the brackets of an address literal (RFC 5321 4.1.3).
fn is_literal(text: &str) -> bool {
    if text.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let Some((tag, content)) = text.split_once(':') else { return false };
    if tag.eq_ignore_ascii_case("IPv6") {
        return content.parse::<Ipv6Addr>().is_ok();
    }
    let tag_valid = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && tag.ends_with(|c: char| c.is_ascii_alphanumeric());
    // Not what ends a path or begins quotes in it: it could be written and not be read back.
    let content_valid = content
        .bytes()
        .all(|byte| matches!(byte, b'!'..=b'Z' | b'^'..=b'~') && !b"\">".contains(&byte));
    tag_valid && content_valid && !content.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn parts(path: &str) -> (String, String, String) {
        let (address, rest) = forward_path(path.as_bytes()).unwrap();
        let rest = String::from_utf8(rest.to_vec()).unwrap();
        (address.local().to_owned(), address.domain().to_owned(), rest)
    }

    #[test]
    fn takes_what_the_rfc_shows() {
        // RFC 5321 4.1.1.3, 4.1.2, 4.1.3, appendix D; RFC 6531; RFC 3696 3.
        for (path, local, domain) in [
            ("<userc@d.bar.org>", "userc", "d.bar.org"),
            ("<@hosta.int,@jkl.org:userc@d.bar.org>", "userc", "d.bar.org"),
            ("<Joe.\\Blow@x>", "", ""),
            ("<\"Joe Blow\"@example.com>", "\"Joe Blow\"", "example.com"),
            ("<\"Abc@def\"@example.com>", "\"Abc@def\"", "example.com"),
            ("<\"a\\\"b>c\"@example.com>", "\"a\\\"b>c\"", "example.com"),
            (
                "<customer/department=shipping@example.com>",
                "customer/department=shipping",
                "example.com",
            ),
            ("<!def!xyz%abc@example.com>", "!def!xyz%abc", "example.com"),
            ("<a@[123.255.37.2]>", "a", "[123.255.37.2]"),
            ("<a@[IPv6:2001:db8::1]>", "a", "[IPv6:2001:db8::1]"),
            ("<a@[x-tag:some]>", "a", "[x-tag:some]"),
            ("<Postmaster>", "Postmaster", ""),
            ("<用户@例子.广告>", "用户", "例子.广告"),
            ("<bounce+very..odd.@m_x.example>", "bounce+very..odd.", "m_x.example"),
        ] {
            if local.is_empty() {
                assert_eq!(forward_path(path.as_bytes()), Err(AddressError::Local), "{path}");
            } else {
                assert_eq!(parts(path), (local.into(), domain.into(), String::new()), "{path}");
            }
        }
        assert_eq!(reverse_path(b"<> SIZE=1").unwrap(), (ReversePath::Null, &b" SIZE=1"[..]));
    }

    #[test]
    fn refuses_what_is_none() {
        for (path, error) in [
            ("a@b", AddressError::Brackets),
            ("<a@b", AddressError::Brackets),
            ("<\"a@b>", AddressError::Brackets),
            ("<>", AddressError::Local),
            ("<@b>", AddressError::Domain),
            ("<@b:>", AddressError::Local),
            ("<@b,c:a@b>", AddressError::Domain),
            ("<a b@c>", AddressError::Local),
            ("<a>", AddressError::Domain),
            ("<a@>", AddressError::Domain),
            ("<a@b..c>", AddressError::Domain),
            ("<a@b.>", AddressError::Domain),
            ("<a@-b>", AddressError::Domain),
            ("<a@b@c>", AddressError::Domain),
            ("<a@[1.2.3]>", AddressError::Domain),
            ("<a@[IPv6:1]>", AddressError::Domain),
            ("<a@[1.2.3.4>", AddressError::Domain),
            ("<\"a\rb\"@c>", AddressError::Local),
            ("<\"a\"b@c>", AddressError::Local),
        ] {
            assert_eq!(forward_path(path.as_bytes()), Err(error), "{path}");
        }
        assert_eq!(forward_path(b"<\xff@b>"), Err(AddressError::NotUtf8));
        // What could not stand in a path.
        for text in ["a@[x:b>c]", "a@[x:\"b]", "\"a>b\"@[x:>]"] {
            assert_eq!(Address::parse(text), Err(AddressError::Domain), "{text}");
        }
    }

    #[test]
    fn length_at_the_limit_and_one_past_it() {
        let at = |length: usize| format!("{}@example.com", "a".repeat(length - 12));
        assert!(Address::parse(&at(limits::ADDRESS)).is_ok());
        assert_eq!(Address::parse(&at(limits::ADDRESS + 1)), Err(AddressError::Long));
    }
}
