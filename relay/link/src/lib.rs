//! The protocol of the link, without I/O: frames, and what each side makes of them.
//!
//! Owns what is said between an edge and a gateway, which stands in `PROTOCOL.md`, and each of its
//! bounds. Owns no connection, clock or table: the embedder feeds the bytes of a stream in and
//! takes bytes out, and decides.
//!
//! Floor 0: knows of SMTP, and nothing of the rest of the relay.
//!
//! Reading order: `PROTOCOL.md`, [`frame`], [`envelope`], [`answer`], [`control`], [`message`].

pub mod answer;
pub mod control;
pub mod envelope;
mod error;
pub mod frame;
pub mod limits;
pub mod message;

pub use answer::{Answer, Answering, Answers, How};
pub use control::{Control, Hello, Offer};
pub use envelope::{Client, Envelope, EnvelopeRef};
pub use error::{Code, LinkError};
pub use message::{Incoming, Step};

/// The name in the handshake (ALPN, RFC 7301).
pub const ALPN: &[u8] = b"wavegate-link/1";
