//! The link: what `[[listener]]` and `[[upstream]]` of `type = "link"` say: the types; `read` has
//! their keys, `check` what must hold between them and others. Floor 1.

mod check;
mod read;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use ct_codecs::{Base64, Decoder as _, Encoder as _};
use ipnet::IpNet;

pub(super) use self::{
    check::check,
    read::{check_targets, is_listener, listener, no_listener, upstream},
};
use super::{Config, ListenerConfig, TlsFiles, values::quote};

/// QUIC connections of each worker to the gateways: one that follows losses starves alone.
pub(super) const CONNECTIONS: usize = 4;
/// Their bounds: each is some state and a handshake.
pub(super) const OF_A_WORKER: RangeInclusive<usize> = 1..=100;
/// How long nothing is heard before a connection is given up: some lost packets more than
/// `KEEP_ALIVE`, and short, because what is in flight waits for it.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(8);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Messages at once, of an edge over all its connections and of a gateway on each: those of a
/// second at 80 ms would be far fewer.
const STREAMS: usize = 1000;
const CONNECTIONS_OF_A_GATEWAY: usize = 1000;
/// Messages that a gateway remembers: those of some minutes at full rate.
const SEEN: usize = 500_000;

/// What of `[[upstream]]` is about a link to gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkUpstream {
    /// What is shown to gateways.
    pub identity: TlsFiles,
    /// Which gateways are believed.
    pub trust: Trust,
    /// What gateways are called in their certificate, where that is not the host that they were
    /// found by.
    pub name: Option<String>,
    /// `streams`: messages at once, over all connections (default 1000).
    pub streams: usize,
    /// `fallback`: the upstream that mail goes to while no gateway can be reached.
    pub fallback: Option<String>,
    /// `keep_alive`: how long nothing is heard before it is asked for (default 2 s).
    pub keep_alive: Duration,
    /// `idle_timeout`: how long nothing is heard before a connection is given up (default 8 s).
    pub idle_timeout: Duration,
    /// `congestion`: who says how fast bytes may go.
    pub congestion: Congestion,
}

/// Whom a side of a link believes: at least one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// `ca`: an authority of our own.
    pub ca: Option<PathBuf>,
    /// `crl`: what it has revoked.
    pub crl: Option<PathBuf>,
    /// `pins`: public keys that are believed by themselves.
    pub pins: Vec<Pin>,
}

impl Trust {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.ca.iter().chain(&self.crl)
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo, as RFC 7469 2.4 has it: `sha256/` and base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let bytes = Base64::decode_to_vec(text.strip_prefix(SHA256)?, None).ok()?;
            let pin = Self(bytes.try_into().ok()?);
            // One spelling only: two that differ would be taken for two keys.
            (pin.to_string() == text).then_some(pin)
        };
        read().ok_or_else(|| {
            format!(
                "{} is no pin; write \"{SHA256}\" and the base64 of 32 bytes, as `wavegate link pin \
                 CERTIFICATE` prints it",
                quote(text)
            )
        })
    }
}

/// What begins a pin.
const SHA256: &str = "sha256/";

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 32 bytes always fit.
        write!(f, "{SHA256}{}", Base64::encode_to_string(self.0).unwrap_or_default())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Who says how fast bytes may go (congestion control).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// By loss (RFC 9438).
    Cubic,
    /// By what arrives, whatever is lost.
    #[default]
    Bbr,
}

/// `[[listener]]` of `type = "link"`: a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkListener {
    /// Unique among all listeners.
    pub name: String,
    /// Where edges send datagrams to (UDP).
    pub address: SocketAddr,
    /// What is shown to edges.
    pub identity: TlsFiles,
    /// Which edges are believed. Its pins are those of `peers`.
    pub trust: Trust,
    /// Who they are. Empty: whoever the authority has a certificate for, by the name in it.
    pub peers: Vec<LinkPeer>,
    /// `connections`: at once, over all edges (default 1000).
    pub connections: usize,
    /// `streams`: messages at once on one connection (default 1000).
    pub streams: u32,
    /// `seen`: messages that are remembered to have been answered, in all (default 500,000).
    pub seen: usize,
    /// `idle_timeout`: how long nothing is heard before a connection is given up (default 8 s).
    pub idle_timeout: Duration,
    /// `congestion`: who says how fast bytes may go.
    pub congestion: Congestion,
    /// The upstreams that it can reach; empty: all.
    pub upstreams: Vec<String>,
}

/// An edge that a gateway knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPeer {
    /// What it is called, here and in its certificate where that is the authority's.
    pub name: String,
    /// `pins`: its public keys; several while they are exchanged.
    pub pins: Vec<Pin>,
}

impl LinkUpstream {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.identity.certificate, &self.identity.key].into_iter().chain(self.trust.files())
    }
}

impl LinkListener {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.identity.certificate, &self.identity.key].into_iter().chain(self.trust.files())
    }
}

impl Config {
    /// With SMTP in place of each link, for what is only played: it says the same.
    pub fn without_links(mut self) -> Self {
        self.listeners.extend(self.links.iter().map(ListenerConfig::from));
        self.links.clear();
        self.upstreams.iter_mut().for_each(|upstream| upstream.link = None);
        self
    }
}

impl From<&LinkListener> for ListenerConfig {
    /// What its mail is taken as: that of clients who may relay, whoever they are.
    fn from(link: &LinkListener) -> Self {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        Self {
            name: link.name.clone(),
            address: link.address,
            allow: all.into_iter().filter_map(|all| IpNet::new(all, 0).ok()).collect(),
            proxies: Vec::new(),
            redirect: None,
            upstreams: link.upstreams.clone(),
            xclient: Vec::new(),
            tls: None,
            auth: None,
        }
    }
}

/// Longest name of a peer: that of a host (RFC 1035 2.3.4).
const PEER_NAME: usize = 253;

/// Whether a peer may be called so: as a host is, or by a shorter word.
pub(crate) fn is_peer_name(text: &str) -> bool {
    (1..=PEER_NAME).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
