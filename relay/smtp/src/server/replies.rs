//! The replies that the server gives on its own, each once.
//!
//! Owns their words. Those to a faulty command or message stand with the
//! fault, in [`crate::command`] and [`crate::body`].
//!
//! Floor 0.

use crate::reply::{Enhanced, Reply};

/// RFC 5321 4.2.1: the one positive reply that asks for more.
pub(super) const GO_AHEAD: &[u8] = b"354 End data with <CR><LF>.<CR><LF>\r\n";

pub(super) static OK: Reply = Reply::fixed(250, Enhanced(2, 0, 0), "Ok");
pub(super) static SENDER_OK: Reply = Reply::fixed(250, Enhanced(2, 1, 0), "Ok");
pub(super) static RECIPIENT_OK: Reply = Reply::fixed(250, Enhanced(2, 1, 5), "Ok");
pub(super) static BYE: Reply = Reply::fixed(221, Enhanced(2, 0, 0), "Bye");
pub(super) static CANNOT_VERIFY: Reply =
    Reply::fixed(252, Enhanced(2, 5, 0), "Cannot verify, send a message");
pub(super) static HELP: Reply = Reply::fixed(214, Enhanced(2, 0, 0), "See RFC 5321");
pub(super) static EARLY: Reply =
    Reply::fixed(554, Enhanced(5, 5, 0), "Data sent before it was asked for, closing");
pub(super) static GO_SECURE: Reply = Reply::fixed(220, Enhanced(2, 0, 0), "Ready to start TLS");
pub(super) static TLS_ACTIVE: Reply = Reply::fixed(503, Enhanced(5, 5, 1), "TLS is active already");
pub(super) static EHLO_FIRST: Reply = Reply::fixed(503, Enhanced(5, 5, 1), "EHLO first");
/// RFC 3207 4.
pub(super) static TLS_FIRST: Reply = Reply::fixed(530, Enhanced(5, 7, 0), "STARTTLS first");
/// RFC 4954 6.
pub(super) static AUTH_FIRST: Reply =
    Reply::fixed(530, Enhanced(5, 7, 0), "Authentication required");
pub(super) static AUTH_NEEDS_TLS: Reply =
    Reply::fixed(538, Enhanced(5, 7, 11), "Encryption required for authentication");
pub(super) static LOGGED_IN: Reply =
    Reply::fixed(235, Enhanced(2, 7, 0), "Authentication succeeded");
pub(super) static LOGGED_IN_ALREADY: Reply =
    Reply::fixed(503, Enhanced(5, 5, 1), "Authenticated already");
pub(super) static UNKNOWN_MECHANISM: Reply =
    Reply::fixed(504, Enhanced(5, 5, 4), "Mechanism not recognised");
pub(super) static CANCELLED: Reply =
    Reply::fixed(501, Enhanced(5, 7, 0), "Authentication cancelled");
pub(super) static NOT_DECODED: Reply =
    Reply::fixed(501, Enhanced(5, 5, 2), "Response cannot be decoded");
pub(super) static LONG_RESPONSE: Reply = Reply::fixed(500, Enhanced(5, 5, 6), "Response too long");
pub(super) static TOO_MANY_LOGINS: Reply =
    Reply::fixed(421, Enhanced(4, 7, 0), "Too many failed logins, closing");
pub(super) static NOT_TRUSTED: Reply =
    Reply::fixed(550, Enhanced(5, 7, 0), "Not allowed from your address");
pub(super) static BAD_ATTRIBUTES: Reply = Reply::fixed(501, Enhanced(5, 5, 4), "Bad attributes");
pub(super) static LONG_LINE: Reply = Reply::fixed(500, Enhanced(5, 5, 2), "Command line too long");
pub(super) static TOO_MANY_ERRORS: Reply =
    Reply::fixed(421, Enhanced(4, 7, 0), "Too many errors, closing");
pub(super) static TOO_MANY_IDLE: Reply =
    Reply::fixed(421, Enhanced(4, 7, 0), "Too many commands without mail, closing");
pub(super) static TOO_MANY_RECIPIENTS: Reply =
    Reply::fixed(452, Enhanced(4, 5, 3), "Too many recipients");
pub(super) static HELLO_FIRST: Reply = Reply::fixed(503, Enhanced(5, 5, 1), "EHLO or HELO first");
pub(super) static NESTED_MAIL: Reply =
    Reply::fixed(503, Enhanced(5, 5, 1), "A transaction is open");
pub(super) static NEED_MAIL: Reply = Reply::fixed(503, Enhanced(5, 5, 1), "MAIL first");
pub(super) static IN_CHUNKS: Reply =
    Reply::fixed(503, Enhanced(5, 5, 1), "A message comes by BDAT");
pub(super) static DISCARDED: Reply =
    Reply::fixed(503, Enhanced(5, 5, 1), "Chunk discarded after an error");
pub(super) static NO_RECIPIENTS: Reply =
    Reply::fixed(554, Enhanced(5, 5, 1), "No valid recipients");
pub(super) static NO_RELAY: Reply = Reply::fixed(550, Enhanced(5, 7, 1), "Relaying denied");
pub(super) static NOT_IMPLEMENTED: Reply =
    Reply::fixed(502, Enhanced(5, 5, 1), "Command not implemented");
