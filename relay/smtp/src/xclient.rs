//! XCLIENT (Postfix, XCLIENT_README): a peer says who the client is that it speaks
//! for.
//!
//! Owns the syntax of what it says. Whom to believe, and what follows from it, is
//! the embedder's.
//!
//! Floor 0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{limits, login, params};

/// As EHLO offers them.
pub(crate) const ATTRIBUTES: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

/// What is said of one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Told<T> {
    /// Nothing: what is known of it stays.
    #[default]
    Nothing,
    /// That nobody knows: `[UNAVAILABLE]` and `[TEMPUNAVAIL]`.
    Unknown,
    /// This.
    Is(T),
}

impl<T> Told<T> {
    /// What it is from now on, if it was `before`.
    pub fn or(self, before: Option<T>) -> Option<T> {
        match self {
            Told::Nothing => before,
            Told::Unknown => None,
            Told::Is(value) => Some(value),
        }
    }
}

/// What a peer says of its client. PROTO and HELO are understood and left out: a
/// fresh session follows, in which EHLO says both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    /// Its host name.
    pub name: Told<Box<str>>,
    /// Its address.
    pub address: Told<IpAddr>,
    /// Its port.
    pub port: Told<u16>,
    /// Who it has logged in as.
    pub login: Told<Box<str>>,
    /// The address that it connected to.
    pub to_address: Told<IpAddr>,
    /// The port that it connected to.
    pub to_port: Told<u16>,
}

/// Reads the attributes; none where one is unknown, wrong or there twice, or none
/// is there.
pub(crate) fn parse(arguments: &[u8]) -> Option<Xclient> {
    let text = std::str::from_utf8(arguments).ok()?;
    let mut told = Xclient::default();
    let (mut proto, mut helo) = (Told::Nothing, Told::Nothing);
    let mut any = false;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=')?;
        match name.to_ascii_uppercase().as_str() {
            "NAME" => set(&mut told.name, value, host),
            "ADDR" => set(&mut told.address, value, address),
            "PORT" => set(&mut told.port, value, port),
            "LOGIN" => {
                set(&mut told.login, value, |name| login::is_user(name).then(|| name.into()))
            }
            "DESTADDR" => set(&mut told.to_address, value, address),
            "DESTPORT" => set(&mut told.to_port, value, port),
            "PROTO" => {
                set(&mut proto, value, |name| matches!(name, "SMTP" | "ESMTP").then_some(()))
            }
            "HELO" => set(&mut helo, value, host),
            _ => None,
        }?;
        any = true;
    }
    any.then_some(told)
}

/// Sets what is said once.
fn set<T>(told: &mut Told<T>, value: &str, parse: impl Fn(&str) -> Option<T>) -> Option<()> {
    if !matches!(told, Told::Nothing) {
        return None;
    }
    *told = match value.eq_ignore_ascii_case("[UNAVAILABLE]")
        || value.eq_ignore_ascii_case("[TEMPUNAVAIL]")
    {
        true => Told::Unknown,
        false => Told::Is(parse(std::str::from_utf8(&params::xtext(value)?).ok()?)?),
    };
    Some(())
}

fn host(text: &str) -> Option<Box<str>> {
    let valid = matches!(text.len(), 1..=limits::DOMAIN)
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    valid.then(|| text.into())
}

/// An IPv6 address is tagged (RFC 5321 4.1.3), whatever its case.
fn address(text: &str) -> Option<IpAddr> {
    const TAG: &str = "IPV6:";
    match text.split_at_checked(TAG.len()) {
        Some((tag, rest)) if tag.eq_ignore_ascii_case(TAG) => {
            rest.parse::<Ipv6Addr>().ok().map(|ip| IpAddr::V6(ip).to_canonical())
        }
        _ => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

fn port(text: &str) -> Option<u16> {
    // parse() takes a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_postfix_and_nginx_say() {
        let told = parse(
            b"NAME=spike.porcupine.org ADDR=168.100.189.2 PORT=[UNAVAILABLE] PROTO=ESMTP \
              HELO=spike.porcupine.org",
        )
        .unwrap();
        assert_eq!(told.name, Told::Is("spike.porcupine.org".into()));
        assert_eq!(told.address, Told::Is("168.100.189.2".parse().unwrap()));
        assert_eq!((told.port, told.login), (Told::Unknown, Told::Nothing));
        let told =
            parse(b"addr=IPv6:2001:db8::1 login=ada+20l NAME=[tempunavail] DESTPORT=25 DESTADDR=IPV6:::ffff:192.0.2.1")
                .unwrap();
        assert_eq!(told.address, Told::Is("2001:db8::1".parse().unwrap()));
        assert_eq!(told.login, Told::Is("ada l".into()));
        assert_eq!(told.name, Told::Unknown);
        let (address, port) = (told.to_address, told.to_port);
        assert_eq!((address, port), (Told::Is("192.0.2.1".parse().unwrap()), Told::Is(25)));
    }

    #[test]
    fn what_is_wrong_is_no_client() {
        for wrong in [
            "",
            " ",
            "ADDR",
            "ADDR=",
            "ADDR=192.0.2",
            "ADDR=2001:db8::1",
            "ADDR=IPV6:192.0.2.1",
            "ADDR=192.0.2.1 ADDR=192.0.2.2",
            "PORT=65536",
            "PORT=+25",
            "PORT=",
            "PROTO=LMTP",
            "NAME=",
            "NAME=a+0Ab",
            "NAME=a+2",
            "NAME=a+2b",
            "HELO=a+20b",
            "LOGIN=",
            "LOGIN=a+0D",
            "LOGIN=a+FF",
            "REVERSE_NAME=x",
            "=x",
            "NAME=a ADDR",
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        let long = |count| format!("NAME={}", "a".repeat(count));
        assert!(parse(long(limits::DOMAIN).as_bytes()).is_some());
        assert_eq!(parse(long(limits::DOMAIN + 1).as_bytes()), None);
        let long = |count| format!("LOGIN={}", "a".repeat(count));
        assert!(parse(long(limits::USER).as_bytes()).is_some());
        assert_eq!(parse(long(limits::USER + 1).as_bytes()), None);
    }

    #[test]
    fn nothing_changes_what_nothing_is_said_of() {
        assert_eq!(Told::Nothing.or(Some(1)), Some(1));
        assert_eq!(Told::Unknown.or(Some(1)), None);
        assert_eq!(Told::Is(2).or(Some(1)), Some(2));
    }
}
