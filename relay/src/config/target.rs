//! A target of an upstream as people write it: an address, a host, or a domain with mail
//! exchangers. And `[resolver]`, how names are looked up. Owns the spelling and the bounds; looks
//! nothing up, that is `crate::names`. Floor 1.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, time::Duration};

use super::{
    Diagnostic, ResolverConfig,
    diagnostic::{Located, Place, Severity},
    reader::Section,
    relay::UpstreamPlaces,
    values::{self, quote},
};
use crate::world::ResolverSettings;

/// Names of one upstream: each is looked up again and again.
const NAMES: usize = 8;
/// Servers that are asked: a few are as good as many.
const SERVERS: usize = 8;
/// The port of a domain's mail exchangers where none is given (RFC 5321 4.5.4.2).
const SMTP: u16 = 25;
/// What begins the name of a domain whose mail exchangers are meant.
const MX: &str = "mx:";

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often a name may be looked up; the low bound is for tests on a loopback.
const MIN_TTL: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;

/// Where an upstream's mail goes, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `"192.0.2.1:25"`.
    Address(SocketAddr),
    /// `"mail.cloud.example:25"`: all its addresses.
    Host {
        /// Its complete name, in lower case.
        name: String,
        /// The port.
        port: u16,
    },
    /// `"mx:cloud.example"`: the domain's mail exchangers by preference.
    Mx {
        /// The domain, in lower case.
        domain: String,
        /// The port.
        port: u16,
    },
}

impl Target {
    /// The address, where it needs no looking up.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Host { .. } | Self::Mx { .. } => None,
        }
    }

    /// Whether it has to be looked up.
    pub fn is_name(&self) -> bool {
        self.address().is_none()
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for Target {
    /// As it is written, the port of mail exchangers included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
            Self::Mx { domain, port } => write!(f, "{MX}{domain}:{port}"),
        }
    }
}

/// A name in the configuration, and where it stands there.
#[derive(Clone, Debug)]
pub struct NamePlace {
    /// The upstream.
    pub upstream: String,
    /// The name.
    pub target: Target,
    at: Diagnostic,
}

impl NamePlace {
    /// Something to say about it.
    pub fn found(&self, severity: Severity, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity, message: message.into(), ..self.at.clone() }
    }
}

/// The names of an upstream.
pub(super) fn places(upstream: &str, places: &UpstreamPlaces) -> Vec<NamePlace> {
    let names = places.targets.iter().filter(|found| found.value.is_name());
    let of = |found: &Located<Target>| {
        let Place { file, at, key } = &found.place;
        let at = Diagnostic {
            line: at.map(|at| at.0),
            column: at.map(|at| at.1),
            key: key.clone(),
            ..Diagnostic::of_file(file, "")
        };
        NamePlace { upstream: upstream.to_owned(), target: found.value.clone(), at }
    };
    names.map(of).collect()
}

/// Reads `targets` of an upstream.
pub(super) fn targets(section: &Section<'_>) -> Vec<Located<Target>> {
    let example = "[\"192.0.2.1:25\"] or [\"mail.example.net:25\"]";
    let given = section.require("targets", &format!("addresses or names, such as {example}"));
    let targets = section.list("targets", "\"192.0.2.1:25\"", parse);
    if let Some(value) = section.empty_list("targets") {
        value.error(format!("is empty; give at least one target, such as {example}"));
    }
    let targets = targets.unwrap_or_default();
    let names = targets.iter().filter(|found| found.value.is_name()).count();
    if let Some(value) = given.filter(|_| names > NAMES) {
        value.error(format!(
            "has {names} names, and {NAMES} may be looked up for an upstream; give one name all \
             the addresses, or make it two upstreams"
        ));
    }
    targets
}

fn parse(text: &str) -> Result<Target, String> {
    if let Some(rest) = text.strip_prefix(MX) {
        let (domain, port) = match rest.rsplit_once(':') {
            Some((domain, digits)) => (domain, port(text, digits)?),
            None => (rest, SMTP),
        };
        return Ok(Target::Mx { domain: host(text, domain)?, port });
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        port(text, &address.port().to_string())?;
        if address.ip().is_unspecified() {
            return Err(format!("{} is no host's address; give the upstream's", quote(text)));
        }
        return Ok(Target::Address(address));
    }
    match text.rsplit_once(':') {
        // Two colons and no brackets: an IPv6 address without a port.
        Some((name, digits)) if !name.contains(':') => {
            Ok(Target::Host { name: host(text, name)?, port: port(text, digits)? })
        }
        _ => Err(format!("{} has no port; write {SHAPES}", quote(text))),
    }
}

/// What a target looks like.
const SHAPES: &str = "IP:PORT such as \"192.0.2.1:25\" or \"[2001:db8::1]:25\", HOST:PORT such as \
                      \"mail.example.net:25\", or mx:DOMAIN such as \"mx:example.net\"";

fn host(text: &str, name: &str) -> Result<String, String> {
    // What EHLO takes is what a host may be called (RFC 5321 2.3.5), but for literals.
    let good = !name.starts_with('[') && values::hostname(name).is_ok();
    // No top-level domain is a number (RFC 3696 2): an address that is mistyped, or one to MX.
    let last = name.rsplit('.').next().unwrap_or(name);
    match good && !last.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(name.to_ascii_lowercase()),
        false => Err(format!(
            "{} is no target; write {SHAPES}, names in ASCII (xn--…) and without a last dot",
            quote(text)
        )),
    }
}

fn port(text: &str, digits: &str) -> Result<u16, String> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<u16>().ok().filter(|_| plain) {
        Some(0) => Err(format!("{} has port 0; give the upstream's port", quote(text))),
        Some(port) => Ok(port),
        None => Err(format!("{} has no port from 1 to 65535; write {SHAPES}", quote(text))),
    }
}

/// Reads `[resolver]`.
pub(super) fn resolver(section: Section<'_>) -> ResolverConfig {
    let d = ResolverConfig::default();
    let servers = section.list("servers", "\"192.0.2.53:53\"", |text| {
        let address = values::address(text)?;
        match address.port() == 0 || address.ip().is_unspecified() {
            true => Err(format!("{} is no server's; write IP:PORT", quote(text))),
            false => Ok(address),
        }
    });
    if let Some(value) = section.empty_list("servers") {
        value.error("is empty; leave it out for the servers of the system");
    }
    if let Some(value) = section.get("servers")
        && servers.as_ref().is_some_and(|all| all.len() > SERVERS)
    {
        value.error(format!("has more than {SERVERS}; give the nearest ones"));
    }
    let min_ttl = section.duration("min_ttl", d.min_ttl, MIN_TTL);
    let max_ttl = section.duration("max_ttl", HOUR.max(min_ttl), min_ttl..=DAY);
    let config = ResolverConfig {
        settings: ResolverSettings {
            servers: servers.unwrap_or_default().into_iter().map(|one| one.value).collect(),
            timeout: section.duration("timeout", d.settings.timeout, 10 * MS..=60 * SECOND),
            attempts: section.integer("attempts", d.settings.attempts, 1..=10),
            max_ttl,
        },
        min_ttl,
        keep: section.duration("keep", d.keep, Duration::ZERO..=7 * DAY),
    };
    section.finish();
    config
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn targets_are_addresses_hosts_and_domains() {
        for (text, shown) in [
            ("192.0.2.1:25", "192.0.2.1:25"),
            ("[2001:db8::1]:2525", "[2001:db8::1]:2525"),
            ("Mail.Cloud.Example:25", "mail.cloud.example:25"),
            ("localhost:2525", "localhost:2525"),
            ("mx:Cloud.example", "mx:cloud.example:25"),
            ("mx:cloud.example:2525", "mx:cloud.example:2525"),
        ] {
            let target = parse(text).unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(parse(shown).unwrap(), target, "what is shown can be written");
        }
        assert!(!parse("192.0.2.1:25").unwrap().is_name());
        assert!(parse("mail.cloud.example:25").unwrap().is_name());
    }

    #[test]
    fn what_is_no_target_is_told_with_what_would_be_one() {
        for (text, why) in [
            ("192.0.2.1", "has no port"),
            ("2001:db8::1", "has no port"),
            ("mail.cloud.example", "has no port"),
            ("mail.cloud.example:0", "has port 0"),
            ("192.0.2.1:0", "has port 0"),
            ("mail.cloud.example:+25", "no port from 1 to 65535"),
            ("mail.cloud.example:70000", "no port from 1 to 65535"),
            ("mail.cloud.example:smtp", "no port from 1 to 65535"),
            ("0.0.0.0:25", "no host's address"),
            ("256.0.2.1:25", "is no target"),
            ("mx:192.0.2.1", "is no target"),
            ("mx:[192.0.2.1]", "is no target"),
            ("mx:", "is no target"),
            ("mail.cloud.example.:25", "is no target"),
            ("über.example:25", "is no target"),
            ("a b:25", "is no target"),
            ("", "has no port"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
