//! Sets of EHLO extensions.
//!
//! Owns which extensions the core knows, how a set is offered, read from an
//! upstream's EHLO reply, and intersected. What a relay offers is the
//! embedder's decision.
//!
//! Floor 0.

use crate::reply::{Reply, write_number};
use crate::{login, xclient};

/// An extension without a parameter that matters here. SIZE is apart, see
/// [`Extensions::size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// RFC 2920.
    Pipelining,
    /// RFC 6152.
    EightBitMime,
    /// RFC 6531.
    SmtpUtf8,
    /// RFC 2034.
    EnhancedStatusCodes,
    /// RFC 3030.
    Chunking,
    /// RFC 3461.
    Dsn,
    /// RFC 3207. Offered by a server that can have it, whatever the embedder
    /// says at EHLO.
    StartTls,
    /// RFC 4954. Offered by a server that has it, as [`Extension::StartTls`].
    Auth,
    /// Postfix' XCLIENT. Offered to peers that are trusted.
    Xclient,
}

impl Extension {
    /// All, in the order in which they are offered.
    pub const ALL: [Extension; 9] = [
        Extension::Pipelining,
        Extension::EightBitMime,
        Extension::SmtpUtf8,
        Extension::EnhancedStatusCodes,
        Extension::Chunking,
        Extension::Dsn,
        Extension::StartTls,
        Extension::Auth,
        Extension::Xclient,
    ];

    /// The keyword in an EHLO reply.
    pub fn keyword(self) -> &'static str {
        match self {
            Extension::Pipelining => "PIPELINING",
            Extension::EightBitMime => "8BITMIME",
            Extension::SmtpUtf8 => "SMTPUTF8",
            Extension::EnhancedStatusCodes => "ENHANCEDSTATUSCODES",
            Extension::Chunking => "CHUNKING",
            Extension::Dsn => "DSN",
            Extension::StartTls => "STARTTLS",
            Extension::Auth => "AUTH",
            Extension::Xclient => "XCLIENT",
        }
    }

    /// The line of an EHLO reply by which we offer it.
    fn offer(self) -> &'static str {
        match self {
            Extension::Auth => login::MECHANISMS,
            Extension::Xclient => xclient::ATTRIBUTES,
            other => other.keyword(),
        }
    }

    fn bit(self) -> u16 {
        1 << (self as u8)
    }
}

/// A set of extensions, with the size that SIZE (RFC 1870) states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    bits: u16,
    size: Option<u64>,
}

impl Extensions {
    /// None at all, as after HELO.
    pub const NONE: Extensions = Extensions { bits: 0, size: None };

    /// All that a server can offer, with this SIZE (0: no fixed limit).
    pub fn full(size: u64) -> Extensions {
        let bits = Extension::ALL.iter().fold(0, |bits, extension| bits | extension.bit());
        let all = Extensions { bits, size: Some(size) };
        // What is not said by the embedder.
        all.without(Extension::StartTls).without(Extension::Auth).without(Extension::Xclient)
    }

    /// The set with this one in it.
    #[must_use]
    pub fn with(mut self, extension: Extension) -> Extensions {
        self.bits |= extension.bit();
        self
    }

    /// The set without this one.
    #[must_use]
    pub fn without(mut self, extension: Extension) -> Extensions {
        self.bits &= !extension.bit();
        self
    }

    /// The set with SIZE as given: `None` not offered, `Some(0)` offered
    /// without a fixed limit (RFC 1870 4).
    #[must_use]
    pub fn with_size(mut self, size: Option<u64>) -> Extensions {
        self.size = size;
        self
    }

    /// Whether it is in the set.
    pub fn has(&self, extension: Extension) -> bool {
        self.bits & extension.bit() != 0
    }

    /// SIZE as offered, see [`Extensions::with_size`].
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The largest message that SIZE allows, if it states a limit.
    pub fn size_limit(&self) -> Option<u64> {
        self.size.filter(|size| *size > 0)
    }

    /// What both offer. A side without SIZE states no limit, so it takes
    /// nothing from the other's; of two limits the smaller counts.
    #[must_use]
    pub fn intersection(self, other: Extensions) -> Extensions {
        let size = match (self.size, other.size) {
            (None, size) | (size, None) => size,
            (Some(0), size) | (size, Some(0)) => size,
            (Some(a), Some(b)) => Some(a.min(b)),
        };
        Extensions { bits: self.bits & other.bits, size }
    }

    /// Reads an EHLO reply; what is unknown is passed over. A SIZE that is no
    /// number states no limit.
    pub fn from_ehlo(reply: &Reply) -> Extensions {
        let mut found = Extensions::NONE;
        for line in reply.lines().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else { continue };
            if keyword.eq_ignore_ascii_case("SIZE") {
                let stated = words.next().and_then(|word| word.parse().ok());
                found.size = Some(stated.unwrap_or(0));
            }
            let known = Extension::ALL.iter().find(|e| keyword.eq_ignore_ascii_case(e.keyword()));
            if let Some(extension) = known {
                found = found.with(*extension);
            }
        }
        found
    }

    /// Appends the whole positive answer to EHLO.
    pub(crate) fn write_ehlo(&self, hostname: &str, out: &mut Vec<u8>) {
        let mut start = out.len();
        let mut line = |out: &mut Vec<u8>, text: &str, number: Option<u64>| {
            start = out.len();
            out.extend_from_slice(b"250-");
            out.extend_from_slice(text.as_bytes());
            if let Some(number) = number {
                out.push(b' ');
                write_number(number, out);
            }
            out.extend_from_slice(b"\r\n");
        };
        line(out, hostname, None);
        for extension in Extension::ALL {
            if self.has(extension) {
                line(out, extension.offer(), None);
            }
        }
        match self.size {
            None => {}
            Some(0) => line(out, "SIZE", None),
            Some(size) => line(out, "SIZE", Some(size)),
        }
        // The last line has a space behind its code.
        out[start + 3] = b' ';
    }
}
