//! Why there is no connection for a message, and whose fault that is.

use std::net::SocketAddr;

use wavegate_smtp::Reply;

use super::ConnectionError;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every target is ejected.
    #[error("every target of upstream {upstream} is down; last: {last}")]
    AllDown {
        /// The upstream.
        upstream: String,
        /// What the last failure was.
        last: String,
    },
    /// There is none: its names stand for nothing, or nobody says for what.
    #[error("upstream {upstream} has no target: {why}")]
    NoTarget {
        /// The upstream.
        upstream: String,
        /// What is wrong with its names.
        why: String,
    },
    /// All connections stayed busy.
    #[error("upstream {upstream}: all {connections} connections are busy (connections)")]
    Busy {
        /// The upstream.
        upstream: String,
        /// The cap.
        connections: usize,
    },
    /// As many messages as may be are on their way over a link.
    #[error("upstream {upstream}: {streams} messages are on their way (streams)")]
    Crowded {
        /// The upstream.
        upstream: String,
        /// The cap.
        streams: usize,
    },
    /// Too many attempts wait already.
    #[error("upstream {upstream}: {limit} attempts wait already (limits.direct_queue)")]
    QueueFull {
        /// The upstream.
        upstream: String,
        /// The bound.
        limit: usize,
    },
    /// A connection could not be opened.
    #[error("upstream {upstream}, target {target}: {source}")]
    Connect {
        /// The upstream.
        upstream: String,
        /// The target.
        target: SocketAddr,
        /// Why.
        source: ConnectionError,
    },
    /// A target does not want the client that the connection would speak for: its answer to the
    /// message.
    #[error("upstream {upstream}, target {target}: it does not want this client: {reply}")]
    Unwanted {
        /// The upstream.
        upstream: String,
        /// The target.
        target: SocketAddr,
        /// What it said.
        reply: Reply,
    },
}

impl LeaseError {
    /// Whether a target did not let the relay in.
    pub fn is_of_login(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        matches!(source, ConnectionError::Login(_) | ConnectionError::NoMechanism)
    }
}
