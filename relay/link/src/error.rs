//! What goes wrong on a link, and whose fault it is. Floor 0.

use std::fmt;

/// Why a stream was reset or a connection closed, as the other side is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Code {
    /// It is not needed any more.
    Closed = 0,
    /// A frame that is wrong or not allowed where it stands.
    Protocol = 1,
    /// Something beyond its bound.
    TooLarge = 2,
    /// Something took too long.
    Timeout = 3,
    /// The process ends.
    Stopping = 4,
    /// The certificate is not, or no longer, trusted.
    NotTrusted = 5,
    /// No room.
    Busy = 6,
    /// The message is not to be sent.
    Cancelled = 7,
}

impl Code {
    /// All, by their numbers.
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::Protocol,
        Self::TooLarge,
        Self::Timeout,
        Self::Stopping,
        Self::NotTrusted,
        Self::Busy,
        Self::Cancelled,
    ];

    /// The one with this number.
    pub fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u64::from(code.number()) == number)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Its name, in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::TooLarge => "too-large",
            Self::Timeout => "timeout",
            Self::Stopping => "stopping",
            Self::NotTrusted => "not-trusted",
            Self::Busy => "busy",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes that are not the protocol; always the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A frame that may not stand here, or is of no known type.
    #[error("a frame of type {0} may not stand here")]
    Unexpected(u8),
    /// Longer than its bound.
    #[error("{what} of {length} bytes, at most {most} are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its bytes.
        length: u64,
        /// The bound.
        most: u64,
    },
    /// Shorter or longer than what it says of itself.
    #[error("{0} is not as long as what is in it")]
    Length(&'static str),
    /// A value that is none.
    #[error("{0} is wrong")]
    Value(&'static str),
    /// The content is not as long as it was said to be.
    #[error("{came} bytes came of a message of {size}")]
    Content {
        /// Bytes that came.
        came: u64,
        /// Bytes that were announced.
        size: u64,
    },
    /// The stream ended in the middle.
    #[error("the stream ended before {0}")]
    Cut(&'static str),
    /// A recipient has no answer, or two.
    #[error("recipient {0} has not exactly one answer")]
    Answers(u32),
}

impl LinkError {
    /// What the peer is told.
    pub fn code(self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::TooLarge,
            _ => Code::Protocol,
        }
    }
}
