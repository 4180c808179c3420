//! Why clients are turned away, messages not begun, logins and handshakes refused, sessions ended.

/// Why a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// `limits.connections`.
    TooMany,
    /// `limits.connections_per_client`.
    TooManyFromClient,
    /// The relay is stopping.
    Stopping,
    /// A proxy's header is missing or wrong.
    ProxyHeader,
    /// The relay is short of memory (`limits.memory_total`).
    Memory,
    /// `limits.client_connection_rate`.
    ClientRate,
    /// It connected to a listener itself to which connections are only redirected.
    NotRedirected,
    /// It is this relay itself.
    Loop,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TooMany,
        Self::TooManyFromClient,
        Self::Stopping,
        Self::ProxyHeader,
        Self::Memory,
        Self::ClientRate,
        Self::NotRedirected,
        Self::Loop,
    ];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooManyFromClient => "too_many_from_client",
            Self::Stopping => "stopping",
            Self::ProxyHeader => "proxy_header",
            Self::NotRedirected => "not_redirected",
            Self::Loop => "loop",
            Self::Memory => "memory",
            Self::ClientRate => "client_rate",
        }
    }
}

/// Why a message is not begun now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Busy {
    /// The relay is short of memory (`limits.memory_total`).
    Memory,
    /// `limits.client_message_rate`.
    ClientRate,
}

impl Busy {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Memory, Self::ClientRate];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::ClientRate => "client_rate",
        }
    }
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsFailure {
    /// It took too long.
    Timeout,
    /// The peer closed, or the network failed.
    Closed,
    /// The peer does not speak TLS.
    NotTls,
    /// No version or cipher suite that both have.
    NothingInCommon,
    /// The peer did not take our certificate, or we did not take its.
    Certificate,
    /// The peer does not offer it, or refused it.
    Declined,
    /// The peer gave up for another reason.
    Alert,
    /// The peer broke the rules of TLS, or something else went wrong.
    Other,
}

impl TlsFailure {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Timeout,
        Self::Closed,
        Self::NotTls,
        Self::NothingInCommon,
        Self::Certificate,
        Self::Declined,
        Self::Alert,
        Self::Other,
    ];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::NothingInCommon => "nothing_in_common",
            Self::Certificate => "certificate",
            Self::Declined => "declined",
            Self::Alert => "alert",
            Self::Other => "other",
        }
    }
}

/// Why a client has not logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoginFailure {
    /// No such user, or another password.
    Credentials,
    /// Too many have failed: it was not looked at.
    TooMany,
    /// Too many log in at once: it was not looked at.
    Busy,
    /// It could not be looked at.
    Unavailable,
}

impl LoginFailure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Credentials, Self::TooMany, Self::Busy, Self::Unavailable];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::TooMany => "too_many",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why the relay ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Nothing came for too long.
    Timeout,
    /// A message came too slowly.
    TooSlow,
    /// The client did not speak SMTP, or broke its rules too often.
    Misbehaved,
    /// The relay is stopping.
    Stopping,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Timeout, Self::TooSlow, Self::Misbehaved, Self::Stopping];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::TooSlow => "too_slow",
            Self::Misbehaved => "misbehaved",
            Self::Stopping => "stopping",
        }
    }
}
