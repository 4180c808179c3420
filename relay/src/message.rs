//! Messages: their id and how long it lasts, where they came from, and the trace line put on top.
//! Floor 0.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use crate::plan::Timestamp;

/// The relay's own name for a message, given at receipt and kept for ever: the time of receipt
/// and 35 random bits, as 16 characters of Crockford's base 32, so that ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 16]);

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl MessageId {
    /// An id for a message that came in at `time`.
    pub fn new(time: Timestamp, random: u64) -> Self {
        let mut text = [0; 16];
        let mut value = (u128::from(time.0) << 35) | u128::from(random & 0x7_ffff_ffff);
        for place in text.iter_mut().rev() {
            *place = ALPHABET[usize::try_from(value & 31).unwrap_or(0)];
            value >>= 5;
        }
        Self(text)
    }

    /// The id of a key of the spool; none where it is not one.
    pub fn from_key(key: [u8; 16]) -> Option<Self> {
        key.iter().all(|byte| ALPHABET.contains(byte)).then_some(Self(key))
    }

    /// The time of receipt that it was given at.
    pub fn time(self) -> Timestamp {
        let digit = |byte: &u8| ALPHABET.iter().position(|digit| digit == byte).unwrap_or(0);
        let value = self.0.iter().fold(0_u128, |value, byte| value << 5 | digit(byte) as u128);
        Timestamp(u64::try_from(value >> 35).unwrap_or(u64::MAX))
    }

    /// The id as the spool's key.
    pub fn key(self) -> [u8; 16] {
        self.0
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A text that is no message's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a message: 16 digits and capital letters")]
pub struct NotAnId;

impl std::str::FromStr for MessageId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let key = text.as_bytes().try_into().map_err(|_| NotAnId)?;
        Self::from_key(key).ok_or(NotAnId)
    }
}

impl serde::Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The cipher suites that there are, by their IANA names; those of TLS 1.3 first.
pub const CIPHERS: [&str; 9] = [
    "TLS_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secured {
    /// The suite's place in [`CIPHERS`].
    pub cipher: usize,
    /// Without a full handshake, by what a session before it had agreed on.
    pub resumed: bool,
}

impl Secured {
    /// The version of TLS; a suite is of one only.
    pub fn version(self) -> &'static str {
        if self.cipher < 3 { "TLSv1.3" } else { "TLSv1.2" }
    }

    /// The name of the suite.
    pub fn cipher(self) -> &'static str {
        CIPHERS[self.cipher]
    }
}

/// How the host has redirected a client here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// It is on this host itself.
    pub local: bool,
}

/// Where messages of a session come from, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The client's address.
    pub client: IpAddr,
    /// The client's port; 0 where nobody knows it.
    pub port: u16,
    /// The client's host name, where a trusted peer has told it.
    pub name: Option<String>,
    /// Name of the listener.
    pub listener: String,
    /// What the client called itself.
    pub helo: String,
    /// Whether that was by EHLO.
    pub extended: bool,
    /// The TLS that it speaks under.
    pub secured: Option<Secured>,
    /// Who it has logged in as.
    pub user: Option<String>,
    /// Where it connected to, before it was redirected here.
    pub destination: Option<SocketAddr>,
    /// Whose mail it is, by the edge of a link.
    pub instance: Option<String>,
}

impl Source {
    /// A client of a listener that has not said anything yet.
    pub fn new(peer: SocketAddr, listener: &str) -> Self {
        Self {
            client: peer.ip(),
            port: peer.port(),
            name: None,
            listener: listener.to_owned(),
            helo: String::new(),
            extended: false,
            secured: None,
            user: None,
            destination: None,
            instance: None,
        }
    }

    /// The same client, as if it had not said anything yet.
    pub fn unsaid(&self) -> Self {
        let (name, listener, secured) = (self.name.clone(), self.listener.clone(), self.secured);
        let Self { client, port, destination, .. } = *self;
        let (helo, extended, user, instance) = (String::new(), false, None, None);
        Self { client, port, name, listener, helo, extended, secured, user, destination, instance }
    }

    /// The protocol's name (RFC 3848, RFC 6531). Without EHLO there is no name for SMTP under TLS.
    pub fn protocol(&self, smtputf8: bool) -> &'static str {
        match (smtputf8, self.extended, self.secured.is_some(), self.user.is_some()) {
            (true, _, false, false) => "UTF8SMTP",
            (true, _, false, true) => "UTF8SMTPA",
            (true, _, true, false) => "UTF8SMTPS",
            (true, _, true, true) => "UTF8SMTPSA",
            (false, false, ..) => "SMTP",
            (false, true, false, false) => "ESMTP",
            (false, true, false, true) => "ESMTPA",
            (false, true, true, false) => "ESMTPS",
            (false, true, true, true) => "ESMTPSA",
        }
    }
}

/// Who counts as one client where clients are counted: an IPv4 address, or a /64 of IPv6, of which one
/// subscriber has as many addresses as anybody could want (RFC 4291 2.5.4).
pub fn subscriber(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// What the `Received` line says (RFC 5321 4.4).
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a> {
    /// Where the message came from.
    pub source: &'a Source,
    /// It was sent with SMTPUTF8.
    pub smtputf8: bool,
    /// The relay's own name.
    pub hostname: &'a str,
    /// The message.
    pub id: MessageId,
    /// The time of receipt.
    pub time: Timestamp,
}

impl Trace<'_> {
    /// Writes the folded header field with its CRLF.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Received: from ");
        let Source { helo, client, secured, .. } = self.source;
        out.extend_from_slice(helo.as_bytes());
        out.extend_from_slice(b" ([");
        // RFC 5321 4.1.3: an IPv6 address is tagged.
        let tag = if client.is_ipv6() { "IPv6:" } else { "" };
        push(out, format_args!("{tag}{client}"));
        out.extend_from_slice(b"])\r\n\tby ");
        out.extend_from_slice(self.hostname.as_bytes());
        out.extend_from_slice(b" with ");
        out.extend_from_slice(self.source.protocol(self.smtputf8).as_bytes());
        if let Some(secured) = secured {
            push(out, format_args!(" ({} {})\r\n\t", secured.version(), secured.cipher()));
        } else {
            out.push(b' ');
        }
        out.extend_from_slice(b"id ");
        out.extend_from_slice(self.id.as_str().as_bytes());
        out.extend_from_slice(b";\r\n\t");
        write_date(self.time, out);
        out.extend_from_slice(b"\r\n");
    }
}

/// RFC 5322 3.3, in UTC.
fn write_date(time: Timestamp, out: &mut Vec<u8>) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time.0 / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let weekday = DAYS[usize::try_from(days % 7).unwrap_or(0)];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    push(
        out,
        format_args!("{weekday}, {day} {month} {year} {hour:02}:{minute:02}:{second:02} +0000"),
    );
}

/// Days since 1970 as year, month (1 to 12) and day: Hinnant's `civil_from_days`. Own code,
/// because it is on the path of every message and a calendar library is ten times dearer.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

fn push(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = std::io::Write::write_fmt(out, text);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_line_is_what_rfc_5321_says() {
        let time = Timestamp(1_768_888_800_123);
        let id = MessageId::new(time, 7);
        let peer = "[2001:db8::1]:4711".parse().unwrap();
        let mut source = Source::new(peer, "listener-1");
        source.helo = "mta.example".into();
        source.extended = true;
        let hostname = "edge-1.example.net";
        let trace = Trace { source: &source, smtputf8: false, hostname, id, time };
        let mut out = Vec::new();
        trace.write(&mut out);
        let expected = format!(
            "Received: from mta.example ([IPv6:2001:db8::1])\r\n\tby edge-1.example.net with ESMTP \
             id {id};\r\n\tTue, 20 Jan 2026 06:00:00 +0000\r\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        let secured = Some(Secured { cipher: 1, resumed: true });
        Trace { source: &Source { secured, ..source.clone() }, ..trace }.write(&mut out);
        let expected =
            expected.replace("ESMTP id", "ESMTPS (TLSv1.3 TLS_AES_128_GCM_SHA256)\r\n\tid");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_protocol_is_named_by_what_was_used() {
        let mut source = Source::new("192.0.2.1:1".parse().unwrap(), "listener-1");
        assert_eq!(source.protocol(false), "SMTP");
        source.extended = true;
        assert_eq!((source.protocol(false), source.protocol(true)), ("ESMTP", "UTF8SMTP"));
        source.secured = Some(Secured { cipher: 1, resumed: false });
        assert_eq!((source.protocol(false), source.protocol(true)), ("ESMTPS", "UTF8SMTPS"));
        source.user = Some("acme".into());
        assert_eq!((source.protocol(false), source.protocol(true)), ("ESMTPSA", "UTF8SMTPSA"));
        source.secured = None;
        assert_eq!((source.protocol(false), source.protocol(true)), ("ESMTPA", "UTF8SMTPA"));
    }

    #[test]
    fn a_suite_is_of_one_version() {
        for (cipher, name) in CIPHERS.iter().enumerate() {
            let version = Secured { cipher, resumed: false }.version();
            assert_eq!(version == "TLSv1.3", !name.contains("_WITH_"), "{name}");
        }
    }

    #[test]
    fn an_id_is_its_key() {
        let id = MessageId::new(Timestamp(1_768_888_800_123), 42);
        assert_eq!(MessageId::from_key(id.key()), Some(id));
        assert_eq!(id.time(), Timestamp(1_768_888_800_123));
        assert_eq!(id.as_str().parse(), Ok(id));
        assert_eq!(MessageId::from_key(*b"0123456789ABCDEU"), None);
        assert!("short".parse::<MessageId>().is_err());
    }

    #[test]
    fn ids_sort_by_time() {
        let ids: Vec<_> =
            [1, 2, 1 << 40].map(|ms| MessageId::new(Timestamp(ms), u64::MAX)).to_vec();
        assert!(ids.is_sorted());
        assert_eq!(ids[0].as_str().len(), 16);
    }

    proptest! {
        #[test]
        fn dates_are_those_of_a_calendar_library(seconds in 0_u64..4_000_000_000) {
            let mut out = Vec::new();
            write_date(Timestamp(seconds * 1000), &mut out);
            let time = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap();
            let zoned = time.to_zoned(jiff::tz::TimeZone::UTC);
            let expected = zoned.strftime("%a, %-d %b %Y %H:%M:%S +0000").to_string();
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
