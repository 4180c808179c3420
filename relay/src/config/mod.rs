//! Configuration: its types, and how it is read and checked. Floor 1.
//!
//! `Config` is what the relay works with: every name resolved, every default filled in, every
//! value in its type. The files are read by `read`; nothing else looks at TOML.

mod api;
mod auth;
mod check;
mod decision_log;
mod diagnostic;
mod identity;
mod link;
mod listener;
mod lock;
mod open;
mod plan;
mod plugins;
mod policy;
mod reader;
mod redirect;
mod relay;
mod target;
mod tls;
mod upstream;
mod values;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

pub use self::{
    check::{Hooks, check_hooks, check_needs, check_state_dir},
    decision_log::{DecisionLogConfig, Told},
    diagnostic::{Diagnostic, Diagnostics, Severity},
    identity::{UpstreamAuth, UpstreamIdentity},
    link::{Congestion, LinkListener, LinkPeer, LinkUpstream, Pin, Trust},
    lock::{LockGuard, check_kept, lock_of},
    open::{Checks, PlanFile, PlanSource, When, read, read_at, read_plan},
    plugins::{Installed, KeySource, PluginSource, PluginsConfig, TrustedKey, signature_of},
    policy::BUILTIN_POLICIES,
    redirect::{Original, Redirect, Traffic},
    target::{NamePlace, Target},
    upstream::{Bounces, Deferred, Handoff, UpstreamConfig, UpstreamTls, UpstreamTlsMode, Verify},
};
pub(crate) use self::{
    link::is_peer_name,
    values::{duration, line as one_line, nearest, size},
};

use crate::{plan::Plan, world::ResolverSettings};

/// One checked configuration with its plan.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[relay]`.
    pub relay: RelayConfig,
    /// `[limits]`.
    pub limits: Limits,
    /// `[spool]`.
    pub spool: SpoolConfig,
    /// `[[listener]]`; none where there are only links.
    pub listeners: Vec<ListenerConfig>,
    /// `[[listener]]` of `type = "link"`; names are unique over all listeners.
    pub links: Vec<LinkListener>,
    /// `[[upstream]]`, at least one, names unique.
    pub upstreams: Vec<UpstreamConfig>,
    /// The names among their targets, and where each stands.
    pub names: Vec<NamePlace>,
    /// `[resolver]`.
    pub resolver: ResolverConfig,
    /// `[migration]`.
    pub migration: Option<MigrationConfig>,
    /// What of `[migration]` says how waves are conducted.
    pub conduct: ConductConfig,
    /// `[[policy]]` in the order of the file, names unique.
    pub policies: Vec<PolicyConfig>,
    /// `[plugins]`.
    pub plugins: PluginsConfig,
    /// `[[table]]`: operator-owned lookup tables.
    pub tables: Vec<TableConfig>,
    /// `[admin]`.
    pub admin: Option<AdminConfig>,
    /// `[api]`.
    pub api: Option<ApiConfig>,
    /// `[event_log]`.
    pub event_log: Option<EventLogConfig>,
    /// `[decision_log]`.
    pub decision_log: Option<DecisionLogConfig>,
    /// The plan; empty without one.
    pub plan: Arc<Plan>,
    /// The file of the plan, absolute, if there is one; `lock_of` it is the lock.
    pub plan_file: Option<PathBuf>,
    /// Every file that this was read from, absolute: what to watch. The plan's lock too, whether
    /// or not it is there yet.
    pub files: Vec<PathBuf>,
    /// What was found that is not an error.
    pub warnings: Vec<Diagnostic>,
}

/// `[relay]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Own name in the greeting, EHLO and `Received`.
    pub hostname: String,
    /// Directory for what the relay keeps (absolute; in the file relative to the file). Changes
    /// need a restart.
    pub state_dir: PathBuf,
    /// What becomes of mail that no instance matches.
    pub unmatched: Unmatched,
    /// Put one `Received` line on top (default true).
    pub received: bool,
    /// Threads that carry mail (default: one a processor). Changes need a restart.
    pub workers: usize,
    /// How log lines look (default text).
    pub log: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object each.
    Json,
}

/// What becomes of mail that no instance matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// It goes to `[migration] before`, without a migration to the default upstream.
    Before,
    /// It is held in the spool.
    Hold,
    /// `550 5.7.1`.
    Refuse,
}

/// `[limits]`: each with a default that suits most; README lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `connections`: client connections in all.
    pub connections: usize,
    /// `connections_per_client`: client connections from one address.
    pub connections_per_client: usize,
    /// `message_size`: bytes of one message.
    pub message_size: u64,
    /// `message_memory`: a message up to this many bytes stays in memory.
    pub message_memory: usize,
    /// `memory`: bytes for the messages of all sessions together; beyond it they spill.
    pub memory: usize,
    /// `memory_total`: bytes for all that grows with load; none: half of what the host has.
    pub memory_total: Option<usize>,
    /// `spill`: bytes of spill files in all; beyond it `452 4.3.1`.
    pub spill: u64,
    /// `tls_timeout`: how long a TLS handshake may take.
    pub tls_timeout: Duration,
    /// `command_timeout`: wait for the next command (RFC 5321 4.5.3.2.7).
    pub command_timeout: Duration,
    /// `data_timeout`: wait for the next bytes of a message.
    pub data_timeout: Duration,
    /// `data_rate`: bytes a second that a message must keep up on average after a minute's
    /// grace.
    pub data_rate: u64,
    /// `direct_wait`: how long a direct attempt waits for a limit or a connection.
    pub direct_wait: Duration,
    /// `direct_queue`: how many direct attempts may wait, in all.
    pub direct_queue: usize,
    /// `direct_deadline`: how long a client waits for an upstream's final reply before the
    /// message is taken over by the spool.
    pub direct_deadline: Duration,
    /// `recipients`: recipients of one message; RFC 5321 4.5.3.1.8 wants at least 100.
    pub recipients: usize,
    /// `spool_attempts`: spooled messages that a worker attempts at once.
    pub spool_attempts: usize,
    /// `limit_keys`: cells in the throttling table.
    pub limit_keys: usize,
    /// `client_connection_rate`: how often a client may connect.
    pub client_connection_rate: Option<Rate>,
    /// `client_message_rate`: how often it may begin a message.
    pub client_message_rate: Option<Rate>,
    /// `client_rate_exceptions`: networks whose clients may as often as they like.
    pub client_rate_exceptions: Vec<IpNet>,
    /// `shutdown_timeout`: how long sessions may finish after SIGTERM.
    pub shutdown_timeout: Duration,
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many, and how many at once; at least 1.
    pub count: u64,
    /// In so many milliseconds; at least 1.
    pub per_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_client: 10_000,
            message_size: 50 * 1024 * 1024,
            message_memory: 1024 * 1024,
            memory: 256 * 1024 * 1024,
            memory_total: None,
            spill: 8 * 1024 * 1024 * 1024,
            tls_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
            data_rate: 1024,
            direct_wait: Duration::from_millis(200),
            direct_queue: 10_000,
            direct_deadline: Duration::from_secs(20),
            recipients: 1000,
            spool_attempts: 256,
            limit_keys: 100_000,
            client_connection_rate: None,
            client_message_rate: None,
            client_rate_exceptions: Vec::new(),
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

/// `[spool]`: messages that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// `quota`: bytes that the spool may take; beyond it `452 4.3.1`.
    pub quota: u64,
    /// `reserve`: bytes of the disk that it leaves free.
    pub reserve: u64,
    /// `max_hold`: a message that is held for longer raises an alert; it is never bounced for it.
    pub max_hold: Duration,
    /// `release_rate`: messages a second that leave what a window has held; none: as fast as
    /// connections and limits allow.
    pub release_rate: Option<u32>,
    /// `release_ramp`: time in which a release comes up to `release_rate`.
    pub release_ramp: Duration,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            quota: 50 << 30,
            reserve: 1 << 30,
            max_hold: Duration::from_secs(24 * 3600),
            release_rate: None,
            release_ramp: Duration::from_secs(60),
        }
    }
}

/// `[resolver]`: how the names of targets are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverConfig {
    /// `servers`, `timeout`, `attempts`, `max_ttl`: whom to ask, and how.
    pub settings: ResolverSettings,
    /// `min_ttl`: no name is looked up more often; also the first pause where nobody answered.
    pub min_ttl: Duration,
    /// `keep`: how long the last good answer is used beyond its TTL where there is no other.
    pub keep: Duration,
}

impl Default for ResolverConfig {
    fn default() -> Self {
        Self {
            settings: ResolverSettings {
                servers: Vec::new(),
                timeout: Duration::from_secs(2),
                attempts: 2,
                max_ttl: Duration::from_secs(3600),
            },
            min_ttl: Duration::from_secs(5),
            keep: Duration::from_secs(3600),
        }
    }
}

/// `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Name; default `listener-1` and so on by position.
    pub name: String,
    /// Where to listen.
    pub address: SocketAddr,
    /// Networks that may relay; default loopback only.
    pub allow: Vec<IpNet>,
    /// Proxies: who connects from these networks says first who its client is; default none.
    pub proxies: Vec<IpNet>,
    /// What connections the host redirects here (`mode = "redirect"`); none: clients connect
    /// themselves.
    pub redirect: Option<Redirect>,
    /// Names of the upstreams that this listener can reach; all by default.
    pub upstreams: Vec<String>,
    /// Peers that are believed who their client is (XCLIENT); default none.
    pub xclient: Vec<IpNet>,
    /// TLS with its clients.
    pub tls: Option<ListenerTls>,
    /// Logins of its clients.
    pub auth: Option<ListenerAuth>,
}

impl ListenerConfig {
    /// Whether a connection from this address is a proxy's.
    pub fn has_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|net| net.contains(&address))
    }

    /// Whether a connection from this address may say who its client is.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.xclient.iter().any(|net| net.contains(&address))
    }

    /// Whether a connection begins with a TLS handshake.
    pub fn is_implicit_tls(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Implicit)
    }
}

/// `listener.auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerAuth {
    /// Who says whether a password is right.
    pub judge: Judge,
    /// No mail without a login.
    pub required: bool,
    /// Without TLS too.
    pub insecure: bool,
}

/// Who says whether a client's password is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judge {
    /// The relay, by this file of users.
    Users(PathBuf),
    /// The upstream of this name, which is asked each time.
    Upstream(String),
}

impl ListenerAuth {
    /// The file of users, if there is one.
    pub fn users(&self) -> Option<&PathBuf> {
        match &self.judge {
            Judge::Users(path) => Some(path),
            Judge::Upstream(_) => None,
        }
    }

    /// The upstream that is asked, if one is.
    pub fn upstream(&self) -> Option<&str> {
        match &self.judge {
            Judge::Users(_) => None,
            Judge::Upstream(name) => Some(name),
        }
    }
}

/// `listener.tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// How TLS begins.
    pub mode: TlsMode,
    /// What is shown to clients, by the name that they ask for; the first to those that ask for
    /// none of these. At least one.
    pub certificates: Vec<TlsFiles>,
    /// No version before this one.
    pub min_version: TlsVersion,
    /// No mail without TLS.
    pub required: bool,
    /// Clients show certificates of their own.
    pub clients: Option<ClientCertificates>,
}

/// What certificates clients show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The authorities that they must be from.
    pub ca: PathBuf,
    /// A client without one is turned away.
    pub required: bool,
}

impl ListenerTls {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.certificates.iter().flat_map(|one| [&one.certificate, &one.key]);
        own.chain(self.clients.iter().map(|clients| &clients.ca))
    }
}

/// How TLS with clients begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// By STARTTLS (RFC 3207).
    StartTls,
    /// At once (RFC 8314).
    Implicit,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// `[migration]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationConfig {
    /// Upstream of an instance before its window.
    pub before: String,
    /// Upstream of an instance after its window.
    pub after: String,
}

/// How waves are conducted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConductConfig {
    /// `probe`: a wave's mail is released only when the targets that it goes to answer.
    pub probe: bool,
    /// `probe_recipient`: whom probes name as recipient; none: `postmaster` at the domain of the
    /// instance's senders.
    pub probe_recipient: Option<String>,
    /// `probe_every`: pause between two probes of a target in a window.
    pub probe_every: Duration,
    /// `probe_timeout`: how long one probe may take.
    pub probe_timeout: Duration,
    /// `extend_by`: by how much a window is extended whose targets do not answer at its end.
    pub extend_by: Duration,
    /// `blocked_after`: attempts that are still in flight so long after a window has opened raise
    /// an alert.
    pub blocked_after: Duration,
}

impl Default for ConductConfig {
    fn default() -> Self {
        Self {
            probe: true,
            probe_recipient: None,
            probe_every: Duration::from_secs(30),
            probe_timeout: Duration::from_secs(10),
            extend_by: Duration::from_secs(300),
            blocked_after: Duration::from_secs(60),
        }
    }
}

/// `[[policy]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Scopes its limit keys and metrics; default: the part after `builtin:` or the file's stem.
    pub name: String,
    /// Where the component comes from.
    pub plugin: PluginSource,
    /// Settings as JSON text; `{}` by default.
    pub settings: String,
    /// Whether its answers count.
    pub mode: Mode,
    /// What happens when the plugin fails; none: the default of its hook.
    pub fail: Option<FailMode>,
    /// Memory of one instance in bytes (default 16 MiB).
    pub memory: usize,
    /// Time of one call (default 50 ms).
    pub timeout: Duration,
    /// `log`: the decision log has one message in so many; 0: none; no number: its own `sample`.
    pub log: Option<u32>,
    /// File and line of the entry, for messages.
    pub place: String,
}

/// Whether a policy's answers count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They do.
    #[default]
    Live,
    /// They change nothing, and are compared with those that count.
    Shadow {
        /// 0 to 100: it is asked about messages whose bucket is below 100 times this, always the same.
        percent: u32,
        /// The live policy that it would take the place of. None: it would be one more.
        replaces: Option<String>,
    },
}

/// What happens when a plugin traps, runs out of time or memory, or answers nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// The message is held in the spool. Default of freeze policies.
    Hold,
    /// `451 4.3.0`. Default of routing policies.
    Defer,
    /// As if the policy were not there: not for freeze policies. Default of throttling policies,
    /// which leaves the upstream's own limits.
    Ignore,
}

/// `[[table]]`: read only, for `tables.lookup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableConfig {
    /// Name.
    pub name: String,
    /// Keys and values.
    pub entries: std::collections::BTreeMap<String, String>,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub address: SocketAddr,
}

/// `[api]`. Changes need a restart; what is in its files does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where control is served.
    pub address: SocketAddr,
    /// The token that lets clients in (absolute).
    pub token_file: PathBuf,
    /// TLS.
    pub tls: Option<TlsFiles>,
    /// The token may cross a network in the clear.
    pub insecure: bool,
}

impl ApiConfig {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| [&tls.certificate, &tls.key]);
        std::iter::once(&self.token_file).chain(tls)
    }
}

/// `[event_log]`. Changes need a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLogConfig {
    /// The file (absolute).
    pub file: PathBuf,
    /// `max_size`: bytes at which it becomes an older one.
    pub max_size: u64,
    /// `keep`: older ones that are kept.
    pub keep: usize,
    /// What it says of senders and recipients.
    pub addresses: Addresses,
}

/// What the event log says of senders and recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Everything.
    Full,
    /// Their domains, and a hash with a key of this relay.
    Hashed,
    /// How many there are.
    None,
}

/// A certificate and its key: both PEM (absolute).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and its root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

#[cfg(test)]
mod tests;
