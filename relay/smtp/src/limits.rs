//! Every limit of the protocol, each with its reason.
//!
//! Owns the numbers only; who enforces one is named with it. What depends on
//! time (deadlines, minimum rates) is the embedder's.
//!
//! Floor 0.

/// Longest address, `local@domain`. RFC 5321 4.5.3.1.3 asks for 256 octets;
/// twice that leaves room for long bounce-tracking local parts.
pub const ADDRESS: usize = 512;

/// Longest domain (RFC 5321 4.5.3.1.2).
pub const DOMAIN: usize = 255;

/// Longest ENVID parameter, as xtext (RFC 3461 4.4).
pub const ENVID: usize = 100;

/// Longest ORCPT parameter, as xtext (RFC 3461 4.2).
pub const ORCPT: usize = 500;

/// Longest line read of an upstream's reply, line end included. RFC 5321
/// 4.5.3.1.5 allows 512; large providers write longer ones.
pub const REPLY_LINE: usize = 4096;

/// Most lines read of one reply. EHLO answers have about 20; an upstream that
/// sends more than this does not speak SMTP with us.
pub const REPLY_LINES: usize = 100;

/// Most bytes of text in one reply, so that many long lines cannot fill the
/// memory of a relay with many connections.
pub const REPLY_TEXT: usize = 32 * 1024;

/// Longest name of a user. RFC 4616 2 asks for 255 octets.
pub const USER: usize = 255;

/// Longest AUTH parameter of MAIL, as xtext (RFC 4954 3).
pub const AUTH_PARAMETER: usize = 500;

/// Limits of a server session. The defaults suit a relay for known senders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest command line, CRLF included. RFC 5321 4.5.3.1.4 asks for 512,
    /// and extensions add to it (RFC 3461: 500 for ORCPT, 100 for ENVID; RFC
    /// 6531: 10); 2048 holds them all. Beyond: `500 5.5.2`, still in step.
    pub command_line: usize,
    /// Most recipients of a transaction. RFC 5321 4.5.3.1.8 asks for 100;
    /// senders of marketing mail batch up to 1000. Beyond: `452 4.5.3`, and
    /// the client sends the rest in another transaction.
    pub recipients: u32,
    /// Faulty commands that get their own answer. The next one gets
    /// `421 4.7.0`: whoever errs this often will not get better. A message
    /// that was taken forgives all.
    pub errors: u32,
    /// Commands that move nothing (NOOP, RSET, VRFY, EXPN, HELP) that are
    /// answered before `421 4.7.0`; they would keep a connection for ever. A
    /// message that was taken forgives all.
    pub idle_commands: u32,
    /// Longest line within an exchange of AUTH, CRLF included: what RFC 4954 4
    /// finds sufficient. AUTH itself is a command line. Beyond: `500 5.5.6`.
    pub login_line: usize,
    /// Logins that may fail. The next AUTH gets `421 4.7.0`: clients that know
    /// the password do not try so often, and who guesses shall connect anew,
    /// which is counted by address.
    pub login_failures: u32,
    /// Longest line of a message, CRLF not counted. RFC 5321 4.5.3.1.6 says
    /// 998, yet real senders write whole HTML pages in one line, and folding
    /// would break signatures: so all up to here pass unchanged. Beyond:
    /// `550 5.6.0`. 64 KiB is far over what mail programs write, and what a
    /// line reader downstream can still be trusted with.
    pub message_line: u64,
    /// Most bytes before the first empty line; header parsers work on it as
    /// a whole. Beyond: `550 5.6.0`.
    pub header_block: u64,
    /// Most `Received` lines; one more means a loop (RFC 5321 6.3 asks for at
    /// least 100). Beyond: `554 5.4.6`.
    pub received_lines: u32,
    /// Most bytes of a message as it is after dot-stuffing is undone. The
    /// smaller of this and the SIZE offered counts. Beyond: `552 5.3.4`.
    pub message_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            command_line: 2048,
            recipients: 1000,
            errors: 20,
            idle_commands: 100,
            login_line: 12_288,
            login_failures: 3,
            message_line: 64 * 1024,
            header_block: 1024 * 1024,
            received_lines: 100,
            message_size: 50 * 1024 * 1024,
        }
    }
}
