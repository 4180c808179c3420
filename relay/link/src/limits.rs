//! Every bound of the protocol, each with its reason. Floor 0.

/// Longest HELLO: a host name and some numbers.
pub const HELLO: usize = 1024;

/// Longest ENVELOPE: a thousand recipients with the longest address and ORCPT are half of it.
pub const ENVELOPE: usize = 2 << 20;

/// Longest ANSWER: the longest reply, and a few thousand recipients.
pub const ANSWER: usize = 64 << 10;

/// Bytes of all ANSWERs to one message: each recipient may have a reply of its own, most of them
/// short.
pub const ANSWERS: usize = 4 << 20;

/// Longest name of a side (RFC 5321 4.5.3.1.2).
pub const NAME: usize = 255;

/// Longest text that a client is described by.
pub const TEXT: usize = 1024;

/// Longest line of an envelope: address and parameters (`wavegate_smtp::limits`).
pub const LINE: usize = 2048;
