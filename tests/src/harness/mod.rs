//! What the suites share: the real relay as a process, a client that says exactly what it is told,
//! upstreams that follow a script.
//!
//! Owns starting and ending, and the waiting for conditions; asserts only what must hold in every
//! test (the form of replies). Nothing here sleeps to let something happen: what is waited for is
//! looked for until it is there. Floor: none. Start reading at [`Relay`].

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test stops where its surroundings fail"
)]

mod account;
mod client;
mod config;
mod dns;
mod link;
mod monitor;
mod promise;
mod relay;
mod servers;
mod tls;
mod upstream;
mod users;
mod variants;

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

pub use account::{Account, account, in_doubt_events};
pub use client::{Client, smtp_reply};
pub use config::{Config, now_ms, plan_of_held, rfc3339};
pub use dns::{Dns, Mood};
pub use link::{
    Coming, Edge, Letter, Outcome, alert, aside, closed_with, frame_of, link_files, on_link,
    outcome,
};
pub use monitor::{Metrics, http_get};
pub use promise::{DOUBT, Watch, arrivals, assert_promise, in_doubt};
pub use relay::{Relay, binary};
pub use servers::{Haproxy, Postfix, free};
pub use tls::{TLS_FILES, tls_client, tls_server, write_tls_files};
pub use upstream::{Peer, Script};
pub use users::user_line;
pub use variants::variant;

use crate::sink::{Extensions, Fault, Identity, Sink, SinkHandle, SinkOptions};

/// How long a condition may take to come true before the test fails. Far more than it takes: the
/// machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often a condition that nobody tells of is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Waits until `look` gives something.
///
/// # Panics
/// If it does not within [`PATIENCE`]; `what` says what was awaited.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for: {what}");
        thread::sleep(LOOK);
    }
}

/// A sink that records messages with their content and checks line ends.
pub fn recording() -> SinkHandle {
    sink(Extensions { chunking: true, ..Extensions::default() }, &[])
}

/// A recording sink that is told who is behind a session.
pub fn told(identity: Identity, faults: &[&str]) -> SinkHandle {
    let extensions = Extensions { chunking: true, ..Extensions::default() };
    let options = SinkOptions {
        extensions,
        identity,
        faults: faults_of(faults),
        verify: true,
        record: true,
        keep_content: true,
        ..SinkOptions::default()
    };
    Sink::start(options).unwrap()
}

/// A recording sink with these extensions and faults.
pub fn sink(extensions: Extensions, faults: &[&str]) -> SinkHandle {
    sink_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), extensions, faults)
}

/// The same at an address of choice.
pub fn sink_at(listen: SocketAddr, extensions: Extensions, faults: &[&str]) -> SinkHandle {
    let faults = faults_of(faults);
    let options = SinkOptions {
        listen,
        extensions,
        faults,
        verify: true,
        record: true,
        keep_content: true,
        ..SinkOptions::default()
    };
    Sink::start(options).unwrap()
}

/// Faults from their text.
pub fn faults_of(rules: &[&str]) -> Vec<Fault> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}

/// A loopback port on which nobody listens, and nobody else will while this lives.
#[derive(Debug)]
pub struct Closed(tokio::net::TcpSocket, SocketAddr);

impl Closed {
    /// Takes a free port.
    pub fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = socket.local_addr().unwrap();
        Self(socket, address)
    }

    /// Its address; connections are refused.
    pub fn addr(&self) -> SocketAddr {
        self.1
    }

    /// Lets somebody else have the port.
    pub fn free(self) -> SocketAddr {
        drop(self.0);
        self.1
    }
}

impl Default for Closed {
    fn default() -> Self {
        Self::new()
    }
}
