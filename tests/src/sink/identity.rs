//! What a sink is told of who is behind a session: PROXY headers, XFORWARD, XCLIENT, AUTH.
//!
//! Owns reading them, and what each answer is; what is told is kept with each message. Floor: none.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a sink offers to be told, and demands.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// A PROXY header comes first, of either version.
    pub proxy: bool,
    /// XFORWARD with all of its attributes.
    pub xforward: bool,
    /// XCLIENT with all of its attributes.
    pub xclient: bool,
    /// Nobody sends mail who has not logged in with this user and password.
    pub auth: Option<(String, String)>,
    /// The mechanisms that are offered for that.
    pub mechanisms: &'static str,
}

/// What was told: attributes by their names; `PROXY` is the header's source and destination,
/// `AUTH` the user.
pub type Told = BTreeMap<String, String>;

/// XFORWARD_README, XCLIENT_README.
const XFORWARD: &str = "NAME ADDR PORT PROTO HELO IDENT SOURCE";
const XCLIENT: &str = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

/// What one session has told.
#[derive(Default)]
pub(super) struct Teller {
    /// Of the connection.
    own: Told,
    /// Of the next message.
    message: Told,
    login: Option<Login>,
    logged_in: bool,
}

/// A login that waits for an answer.
enum Login {
    Plain,
    User,
    Password(String),
}

impl Identity {
    /// Lines of an EHLO reply.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        let auth = self.auth.as_ref().map(|_| format!("AUTH {}", self.mechanisms));
        let xforward = self.xforward.then(|| format!("XFORWARD {XFORWARD}"));
        let xclient = self.xclient.then(|| format!("XCLIENT {XCLIENT}"));
        auth.into_iter().chain(xforward).chain(xclient)
    }
}

impl Teller {
    /// All that was told, for a message that was taken. What XFORWARD said is used up.
    pub(super) fn take(&mut self) -> Told {
        let mut told = self.own.clone();
        told.extend(std::mem::take(&mut self.message));
        told
    }

    /// A transaction was given up.
    pub(super) fn reset(&mut self) {
        self.message.clear();
    }

    pub(super) fn may_send(&self, wanted: &Identity) -> bool {
        wanted.auth.is_none() || self.logged_in
    }

    /// The header, and how long it is; none if it is not whole yet.
    pub(super) fn proxy(&mut self, input: &[u8]) -> Option<Result<usize, &'static str>> {
        const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
        if !input.starts_with(&V2[..input.len().min(12)]) {
            let at = memchr::memchr(b'\n', input)?;
            let line = String::from_utf8_lossy(&input[..at]);
            let words: Vec<_> = line.trim_end().split(' ').collect();
            let told = match words[..] {
                ["PROXY", "UNKNOWN"] => "none".to_owned(),
                ["PROXY", "TCP4" | "TCP6", from, to, port, to_port] => {
                    format!("{from} {port} {to} {to_port}")
                }
                _ => return Some(Err("no PROXY header")),
            };
            self.own.insert("PROXY".into(), told);
            return Some(Ok(at + 1));
        }
        let head: [u8; 16] = *input.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
        let rest = input.get(16..16 + length)?;
        let told = match (head[12], head[13], rest.len()) {
            (0x20, ..) => "none".to_owned(),
            (0x21, 0x11, 12) => {
                let address = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]);
                let (Ok(from), Ok(to)) = (address(0), address(4)) else { return None };
                show(Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into(), &rest[8..])
            }
            (0x21, 0x21, 36) => {
                let address = |at: usize| <[u8; 16]>::try_from(&rest[at..at + 16]);
                let (Ok(from), Ok(to)) = (address(0), address(16)) else { return None };
                show(Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into(), &rest[32..])
            }
            _ => return Some(Err("a wrong PROXY header")),
        };
        self.own.insert("PROXY".into(), told);
        Some(Ok(16 + length))
    }

    pub(super) fn xforward(&mut self, rest: &str) -> &'static [u8] {
        match attributes(rest, XFORWARD) {
            Some(told) => {
                self.message.extend(told);
                b"250 2.0.0 ok\r\n"
            }
            None => b"501 5.5.4 bad attribute\r\n",
        }
    }

    /// None: refused.
    pub(super) fn xclient(&mut self, rest: &str) -> Option<()> {
        self.own.extend(attributes(rest, XCLIENT)?);
        self.message.clear();
        self.logged_in = false;
        Some(())
    }

    pub(super) fn auth(&mut self, rest: &str, wanted: &Identity) -> &'static [u8] {
        let (mechanism, initial) = rest.split_once(' ').unwrap_or((rest, ""));
        let offered = wanted.mechanisms.split(' ').any(|one| one == mechanism);
        if self.logged_in || !offered {
            return b"504 5.5.4 not that\r\n";
        }
        let plain = mechanism == "PLAIN";
        self.login = Some(if plain { Login::Plain } else { Login::User });
        match (plain, initial) {
            (true, "") => b"334 \r\n",
            (false, "") => b"334 VXNlcm5hbWU6\r\n",
            _ => self.respond(initial, wanted),
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.login.is_some()
    }

    /// A line of a login.
    pub(super) fn respond(&mut self, line: &str, wanted: &Identity) -> &'static [u8] {
        let Some(text) = decode(line) else {
            self.login = None;
            return b"501 5.5.2 not base64\r\n";
        };
        let given = match self.login.take() {
            Some(Login::Plain) => {
                let parts: Vec<_> = text.split('\0').map(str::to_owned).collect();
                <[String; 3]>::try_from(parts).ok().map(|[_, user, password]| (user, password))
            }
            Some(Login::User) => {
                self.login = Some(Login::Password(text));
                return b"334 UGFzc3dvcmQ6\r\n";
            }
            Some(Login::Password(user)) => Some((user, text)),
            None => None,
        };
        match given {
            Some(given) if wanted.auth.as_ref() == Some(&given) => {
                self.logged_in = true;
                self.own.insert("AUTH".into(), given.0);
                b"235 2.7.0 welcome\r\n"
            }
            _ => b"535 5.7.8 wrong user or password\r\n",
        }
    }
}

fn show(from: IpAddr, to: IpAddr, ports: &[u8]) -> String {
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    format!("{from} {} {to} {}", port(0), port(2))
}

/// Attributes with their values out of xtext; none where one is not offered, or not xtext.
fn attributes(rest: &str, offered: &str) -> Option<Told> {
    let mut told = Told::new();
    for word in rest.split(' ') {
        let (name, value) = word.split_once('=')?;
        if !offered.split(' ').any(|one| one == name) {
            return None;
        }
        let mut bytes = Vec::new();
        let mut left = value.as_bytes();
        while let [first, behind @ ..] = left {
            left = behind;
            bytes.push(match first {
                b'+' => {
                    let digits = str::from_utf8(left.get(..2)?).ok()?;
                    left = &left[2..];
                    u8::from_str_radix(digits, 16).ok()?
                }
                b'=' => return None,
                other => *other,
            });
        }
        told.insert(name.to_owned(), String::from_utf8(bytes).ok()?);
    }
    Some(told)
}

/// Base64 (RFC 4648 4) of UTF-8.
fn decode(text: &str) -> Option<String> {
    let (mut bits, mut held, mut out) = (0_u32, 0, Vec::new());
    for byte in text.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
        }
    }
    String::from_utf8(out).ok()
}
