//! The real resolver: hickory's, with its cache. Floor 1.
//!
//! Owns which servers are asked: those of the configuration, else those of `/etc/resolv.conf`. That
//! file and `/etc/hosts` are looked at before each question, as the C library does, so that a network
//! that comes up late or changes its servers needs no reload. Names are complete: the search list of
//! `/etc/resolv.conf` is not used, because a name that is missing must not become another's.

use std::{
    fs::File,
    io::Read,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
    system_conf::parse_resolv_conf,
};

use super::{
    BoxFuture,
    resolver::{Answer, Kind, LookupError, Record, Resolver, ResolverSettings, Resolvers},
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// As much of these files is looked at for a change.
const FILE: u64 = 1 << 20;
/// Answers that are cached: a few for each name of a configuration.
const CACHE: u64 = 1024;

/// The system's way to ask.
pub struct HickoryResolvers;

impl Resolvers for HickoryResolvers {
    fn open(&self, settings: &ResolverSettings) -> Arc<dyn Resolver> {
        Arc::new(Hickory { settings: settings.clone(), open: Mutex::new(None) })
    }
}

struct Hickory {
    settings: ResolverSettings,
    /// With the digest of the files that it was made from.
    open: Mutex<Option<(blake3::Hash, TokioResolver)>>,
}

impl Resolver for Hickory {
    fn lookup<'a>(
        &'a self,
        name: &'a str,
        kind: Kind,
    ) -> BoxFuture<'a, Result<Answer, LookupError>> {
        Box::pin(async move {
            let resolver = self.current().map_err(LookupError::NoAnswer)?;
            let mut fqdn = Name::from_ascii(name)
                .map_err(|error| LookupError::NoAnswer(format!("is no name: {error}")))?;
            fqdn.set_fqdn(true);
            let wanted = match kind {
                Kind::A => RecordType::A,
                Kind::Aaaa => RecordType::AAAA,
                Kind::Mx => RecordType::MX,
            };
            let bound = self.settings.timeout.saturating_mul(attempts(&self.settings));
            let asked = tokio::time::timeout(bound, resolver.lookup(fqdn, wanted)).await;
            let late = || LookupError::NoAnswer(format!("no answer within {bound:?}"));
            let found = asked.map_err(|_| late())?.map_err(|error| reason(&error, late))?;
            let answers = found.answers();
            let ttl = answers.iter().map(|record| record.ttl).min().unwrap_or(0);
            let records: Vec<_> = answers.iter().filter_map(|one| record(&one.data)).collect();
            match records.is_empty() {
                true => Err(LookupError::NoAnswer("an answer without records".to_owned())),
                false => Ok(Answer { records, ttl: Duration::from_secs(ttl.into()) }),
            }
        })
    }
}

impl Hickory {
    /// The resolver that goes by the files as they are.
    fn current(&self) -> Result<TokioResolver, String> {
        let hosts = contents(HOSTS);
        let system =
            if self.settings.servers.is_empty() { contents(RESOLV_CONF) } else { Vec::new() };
        let mut digest = blake3::Hasher::new();
        digest.update(&hosts).update(b"\0").update(&system);
        let digest = digest.finalize();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_from, resolver)) = &*open
            && *made_from == digest
        {
            return Ok(resolver.clone());
        }
        let resolver = self.build(&system)?;
        *open = Some((digest, resolver.clone()));
        Ok(resolver)
    }

    fn build(&self, system: &[u8]) -> Result<TokioResolver, String> {
        let settings = &self.settings;
        let servers = if settings.servers.is_empty() {
            let (config, _) = parse_resolv_conf(system)
                .map_err(|error| format!("{RESOLV_CONF} cannot be used: {error}"))?;
            config.into_parts().2
        } else {
            let of = |server: &std::net::SocketAddr| {
                let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
                (udp.port, tcp.port) = (server.port(), server.port());
                NameServerConfig::new(server.ip(), true, vec![udp, tcp])
            };
            settings.servers.iter().map(of).collect()
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        let options = builder.options_mut();
        options.timeout = settings.timeout;
        // The first one is no repetition to hickory.
        options.attempts = settings.attempts.saturating_sub(1);
        options.cache_size = CACHE;
        options.positive_max_ttl = Some(settings.max_ttl);
        // Who has put a missing name right must not wait for the zone's negative TTL.
        options.negative_max_ttl = Some(Duration::ZERO);
        builder.build().map_err(|error| error.to_string())
    }
}

fn attempts(settings: &ResolverSettings) -> u32 {
    u32::try_from(settings.attempts.max(1)).unwrap_or(u32::MAX)
}

/// What a file says; nothing where it cannot be read.
fn contents(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // Half of it is told from all of it by its digest.
        let _ = file.take(FILE).read_to_end(&mut bytes);
    }
    bytes
}

fn record(data: &RData) -> Option<Record> {
    match data {
        RData::A(address) => Some(Record::Address(address.0.into())),
        RData::AAAA(address) => Some(Record::Address(address.0.into())),
        RData::MX(mx) => {
            let host = mx.exchange.to_ascii();
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            Some(Record::Exchange { preference: mx.preference, host })
        }
        _ => None,
    }
}

/// Which errors are answers.
fn reason(error: &NetError, late: impl FnOnce() -> LookupError) -> LookupError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupError::NoSuchName,
            // A server that points elsewhere does not know.
            _ if none.ns.is_some() && none.soa.is_none() => {
                LookupError::NoAnswer("the server refers to others: it does not resolve".to_owned())
            }
            _ => LookupError::NoSuchRecord,
        },
        NetError::Dns(DnsError::ResponseCode(code)) => {
            LookupError::NoAnswer(format!("the server says: {code}"))
        }
        NetError::Timeout => late(),
        other => LookupError::NoAnswer(other.to_string()),
    }
}
