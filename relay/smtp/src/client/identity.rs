//! Who a message's client is, as commands that tell an upstream: XFORWARD for its log alone,
//! XCLIENT in the client's place (Postfix's XFORWARD_README and XCLIENT_README).
//!
//! Owns the syntax: attributes, xtext, the length of a line. Never says an attribute that was not
//! offered, and always all that were, so that none of an earlier client is left.
//!
//! Floor 0.

use core::net::{IpAddr, SocketAddr};

use super::{Client, ClientEvent, State, Upgrade};
use crate::reply::Reply;

/// Longest line of a command, CRLF included (RFC 5321 4.5.3.1.4; XFORWARD_README asks to keep to
/// it). What does not fit goes into another command.
const LINE: usize = 512;

/// Longest value, before it is encoded. Postfix takes no longer name of a host.
const VALUE: usize = 255;

/// For what nobody knows.
const UNAVAILABLE: &[u8] = b"[UNAVAILABLE]";

/// Who a message's client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Its address.
    pub client: IpAddr,
    /// Its port.
    pub port: Option<u16>,
    /// Its host name.
    pub name: Option<&'a str>,
    /// What it called itself.
    pub helo: Option<&'a str>,
    /// Whether that was by EHLO.
    pub extended: bool,
    /// The id that the message has here.
    pub ident: Option<&'a str>,
    /// Who it has logged in as.
    pub login: Option<&'a str>,
    /// Where it connected to.
    pub destination: Option<SocketAddr>,
}

/// Something that can be said of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    Name,
    Addr,
    Port,
    Proto,
    Helo,
    Ident,
    Source,
    Login,
    DestAddr,
    DestPort,
}

const ALL: [(Attribute, &str); 10] = [
    (Attribute::Name, "NAME"),
    (Attribute::Addr, "ADDR"),
    (Attribute::Port, "PORT"),
    (Attribute::Proto, "PROTO"),
    (Attribute::Helo, "HELO"),
    (Attribute::Ident, "IDENT"),
    (Attribute::Source, "SOURCE"),
    (Attribute::Login, "LOGIN"),
    (Attribute::DestAddr, "DESTADDR"),
    (Attribute::DestPort, "DESTPORT"),
];

/// The attributes that an upstream offers to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(u16);

impl Attributes {
    pub(super) fn parse<'w>(words: impl Iterator<Item = &'w str>) -> Attributes {
        let known = |word: &str| {
            let all = ALL.iter().find(|(_, name)| word.eq_ignore_ascii_case(name));
            all.map_or(0, |(attribute, _)| 1 << (*attribute as u16))
        };
        Attributes(words.fold(0, |bits, word| bits | known(word)))
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a client can be told apart by them.
    pub(super) fn has_address(self) -> bool {
        self.has(Attribute::Addr)
    }

    fn has(self, attribute: Attribute) -> bool {
        self.0 & 1 << (attribute as u16) != 0
    }
}

/// Appends commands with this verb that say all that is offered; how many there are.
pub(super) fn write(
    verb: &str,
    identity: &Identity<'_>,
    offered: Attributes,
    out: &mut Vec<u8>,
) -> u32 {
    let (mut count, mut begin) = (0_u32, out.len());
    for (attribute, name) in ALL.iter().filter(|(attribute, _)| offered.has(*attribute)) {
        let mut text = Vec::with_capacity(48);
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        let length = text.len();
        identity.write(*attribute, &mut text);
        if verb.len() + 1 + text.len() + 2 > LINE {
            text.truncate(length);
            text.extend_from_slice(UNAVAILABLE);
        }
        if count > 0 && out.len() - begin + 1 + text.len() + 2 > LINE {
            out.extend_from_slice(b"\r\n");
            begin = out.len();
        }
        if count == 0 || begin == out.len() {
            out.extend_from_slice(verb.as_bytes());
            count += 1;
        }
        out.push(b' ');
        out.extend_from_slice(&text);
    }
    if count > 0 {
        out.extend_from_slice(b"\r\n");
    }
    count
}

impl Identity<'_> {
    fn write(&self, attribute: Attribute, out: &mut Vec<u8>) {
        let text = |value: Option<&str>, out: &mut Vec<u8>| match value {
            Some(value) if (1..=VALUE).contains(&value.len()) => xtext(value.as_bytes(), out),
            _ => out.extend_from_slice(UNAVAILABLE),
        };
        let port = |value: Option<u16>, out: &mut Vec<u8>| match value {
            Some(value) => out.extend_from_slice(value.to_string().as_bytes()),
            None => out.extend_from_slice(UNAVAILABLE),
        };
        match attribute {
            Attribute::Name => text(self.name.filter(|name| is_host_name(name)), out),
            Attribute::Addr => address(self.client, out),
            Attribute::Port => port(self.port, out),
            Attribute::Proto => {
                out.extend_from_slice(if self.extended { b"ESMTP" } else { b"SMTP" });
            }
            Attribute::Helo => text(self.helo, out),
            Attribute::Ident => text(self.ident, out),
            Attribute::Source => {
                let local = self.client.to_canonical().is_loopback();
                out.extend_from_slice(if local { b"LOCAL" } else { b"REMOTE" });
            }
            Attribute::Login => text(self.login, out),
            Attribute::DestAddr => match self.destination {
                Some(destination) => address(destination.ip(), out),
                None => out.extend_from_slice(UNAVAILABLE),
            },
            Attribute::DestPort => port(self.destination.map(|one| one.port()), out),
        }
    }

    /// What to call ourselves where the session is the client's; none where that could not stand
    /// in a command.
    pub(super) fn hello(&self) -> Option<&str> {
        let plain = |name: &&str| {
            (1..=VALUE).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        self.helo.filter(plain)
    }
}

impl Client {
    /// Whether the session can be made a client's.
    pub fn takes_xclient(&self) -> bool {
        self.offers.client.has_address()
    }

    /// Makes the session that of a client, from its EHLO on, in its own words where they can be
    /// said. [`ClientEvent::Ready`], [`ClientEvent::NoXclient`] or, if the upstream does not want
    /// this client, [`ClientEvent::Refused`] follows.
    ///
    /// # Panics
    /// If the session is not ready, or has logged in: XCLIENT forgets that.
    pub fn speak_for(&mut self, identity: &Identity<'_>) {
        assert!(self.is_ready() && !self.logged_in, "the session is not ready for XCLIENT");
        if !self.takes_xclient() {
            self.state = State::Closed;
            return self.events.push_back(ClientEvent::NoXclient(None));
        }
        let mut commands = Vec::with_capacity(256);
        if self.needs_rset {
            commands.extend_from_slice(b"RSET\r\n");
        }
        write("XCLIENT", identity, self.offers.client, &mut commands);
        if let Some(name) = identity.hello() {
            self.hostname = name.into();
        }
        // Whether there is TLS was settled before.
        self.upgrade = Upgrade::Never;
        take_line(&mut commands, &mut self.output);
        self.state = State::Xclient(commands);
    }

    /// A reply to XCLIENT, or to the RSET before it.
    pub(super) fn xclient(&mut self, reply: Reply) {
        let State::Xclient(commands) = &mut self.state else { return };
        if !reply.is_positive() {
            self.state = State::Closed;
            let refused = reply.code() == 421;
            return self.events.push_back(match refused {
                true => ClientEvent::Refused(reply),
                false => ClientEvent::NoXclient(Some(reply)),
            });
        }
        if !commands.is_empty() {
            return take_line(commands, &mut self.output);
        }
        // As after a greeting: nothing of before holds.
        self.needs_rset = false;
        self.forget();
        self.hello(b"EHLO ", State::Ehlo);
    }
}

/// Moves the first line of `commands` to the output.
fn take_line(commands: &mut Vec<u8>, output: &mut Vec<u8>) {
    let length = memchr::memchr(b'\n', commands).map_or(0, |at| at + 1);
    output.extend(commands.drain(..length));
}

/// An IPv6 address is tagged, as in a literal (RFC 5321 4.1.3).
fn address(address: IpAddr, out: &mut Vec<u8>) {
    match address.to_canonical() {
        IpAddr::V4(address) => out.extend_from_slice(address.to_string().as_bytes()),
        IpAddr::V6(address) => out.extend_from_slice(format!("IPV6:{address}").as_bytes()),
    }
}

/// Whether an upstream would take it as a name: letters, digits, hyphens and dots.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(is_label) && !name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// RFC 3461 4: printable characters but `+` and `=` are themselves, all else is `+XX`.
fn xtext(value: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in value {
        match byte {
            b'+' | b'=' => {}
            b'!'..=b'~' => {
                out.push(byte);
                continue;
            }
            _ => {}
        }
        let digit = |value: u8| DIGITS[usize::from(value & 15)];
        out.extend_from_slice(&[b'+', digit(byte >> 4), digit(byte)]);
    }
}
