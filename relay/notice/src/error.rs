//! Why there is no notice. Each is a fault of the plan, or of who wrote it; none of the customer.

use jiff::Timestamp;

use crate::{LINE_LIMIT, language::UnknownLanguage, notice::INSTANCE_LIMIT};

/// Why a draft is no notice.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoticeError {
    /// A value that a notice cannot do without is empty.
    #[error("{0} is empty; a notice needs it")]
    Missing(&'static str),
    /// A contact's language is not among those that exist.
    #[error(transparent)]
    Language(#[from] UnknownLanguage),
    /// A contact's time zone is not in the time zone database.
    #[error("unknown time zone {0:?}; give an IANA name, such as \"Europe/Paris\" or \"UTC\"")]
    TimeZone(String),
    /// An address that cannot stand in a header.
    #[error(
        "{what}: {value:?} is no mail address (local@domain, ASCII, no quotes, at most {limit} octets)",
        limit = crate::line::ADDRESS_LIMIT
    )]
    Address {
        /// Which value.
        what: &'static str,
        /// What it was.
        value: String,
    },
    /// Customer care is neither a URL nor an address.
    #[error(
        "customer care: {0:?} is neither an http or https URL of at most {LINE_LIMIT} characters nor a mail address"
    )]
    Care(String),
    /// A window that ends before it begins, or at once.
    #[error("the window closes at {closes}, which is not after {opens}, when it opens")]
    Window {
        /// Its beginning.
        opens: Timestamp,
        /// Its end.
        closes: Timestamp,
    },
    /// A time that mails and calendars cannot write.
    #[error("{what}: {at} is before 1970")]
    Time {
        /// Which value.
        what: &'static str,
        /// What it was.
        at: Timestamp,
    },
    /// A duration that is zero, negative or longer than a hundred years.
    #[error("{0} is not a sensible duration")]
    Duration(&'static str),
    /// A notice about nothing.
    #[error("no instance of this contact's customer is in the wave")]
    NoInstances,
    /// More instances than a letter can name.
    #[error("{0} instances; a notice names at most {INSTANCE_LIMIT}")]
    TooManyInstances(usize),
    /// A mail needs a sender.
    #[error("the program names no sender; a mail needs one")]
    NoSender,
    /// A Message-ID that cannot stand in a header.
    #[error("{0:?} is no Message-ID (left@right, ASCII, without angle brackets)")]
    MessageId(String),
}
