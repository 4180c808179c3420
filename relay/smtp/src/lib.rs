//! SMTP protocol core: server and client state machines without I/O.
//!
//! Owns what the protocol says: commands, replies, addresses, the two ways of
//! receiving a message (DATA and BDAT), extension negotiation and every limit
//! of the protocol ([`limits`]). Owns no socket, clock, file or thread: the
//! embedder feeds bytes in, takes bytes out, and decides. It keeps the
//! deadlines, and it decides what becomes of a message.
//!
//! Floor 0: knows nothing of the rest of the relay.
//!
//! Reading order: [`limits`], [`reply`], [`address`], [`command`], [`body`],
//! [`login`], [`xclient`], [`server`], then [`extensions`], [`stuff`], [`client`].

pub mod address;
mod base64;
pub mod body;
pub mod client;
pub mod command;
pub mod extensions;
pub mod limits;
pub mod login;
pub mod params;
pub mod reply;
pub mod server;
pub mod stuff;
pub mod xclient;

pub use address::{Address, ReversePath};
pub use body::{BodyFacts, MessageFault};
pub use client::{
    BodyForm, BodyShape, Client, ClientError, ClientEvent, Credentials, Identity, Mechanism,
    Settled, Stage, Unsupported, Upgrade,
};
pub use command::{Mail, Rcpt};
pub use extensions::{Extension, Extensions};
pub use limits::Limits;
pub use login::{Login, Secret};
pub use reply::{Enhanced, Reply};
pub use server::{AuthOffer, Closing, Helo, Server, ServerConfig, StartTls, Step};
pub use xclient::{Told, Xclient};
