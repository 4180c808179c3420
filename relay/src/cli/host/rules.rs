//! The rules as text: one table, a chain for what the host forwards and one for what it sends.
//! Floor 4.

use std::{fmt, str::FromStr};

use ipnet::IpNet;

use crate::config::{Config, ListenerConfig, Redirect};

/// The table that is ours.
pub(super) const TABLE: &str = "inet wavegate";

/// Who the relay runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User(String);

impl Default for User {
    fn default() -> Self {
        Self("wavegate".to_owned())
    }
}

impl FromStr for User {
    type Err = String;

    /// What a host may call a user (useradd(8)), or a number.
    fn from_str(text: &str) -> Result<Self, String> {
        let good = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if good { Ok(Self(text.to_owned())) } else { Err("not the name of a user".to_owned()) }
    }
}

impl User {
    /// As nftables reads it: a name that has a hyphen, too.
    fn quoted(&self) -> String {
        let is_number = self.0.bytes().all(|b| b.is_ascii_digit());
        if is_number { self.0.clone() } else { format!("\"{}\"", self.0) }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The rules of a configuration.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    user: &'a User,
    file: String,
    listeners: Vec<Listener<'a>>,
}

/// A listener that connections are redirected to.
#[derive(Debug)]
struct Listener<'a> {
    config: &'a ListenerConfig,
    redirect: &'a Redirect,
    /// Where mail may continue to; empty: anywhere.
    to: Vec<IpNet>,
}

/// The families of addresses, as nftables calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl<'a> Rules<'a> {
    /// None where nothing is to be redirected.
    pub(super) fn of(config: &'a Config, user: &'a User) -> Option<Self> {
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .filter_map(|listener| {
                let redirect = listener.redirect.as_ref()?;
                Some(Listener { config: listener, redirect, to: continues_to(config, listener) })
            })
            .collect();
        let file = config.files.first().map(|file| file.display().to_string()).unwrap_or_default();
        (!listeners.is_empty()).then_some(Self { user, file, listeners })
    }
}

/// The networks that the upstreams which this listener reaches may continue to. What they may not is
/// better left where it goes.
fn continues_to(config: &Config, listener: &ListenerConfig) -> Vec<IpNet> {
    let reached = config.upstreams.iter().filter(|one| listener.reaches(&one.name));
    let originals: Vec<_> = reached.filter_map(|one| one.original.as_ref()).collect();
    if originals.iter().any(|original| original.networks.is_empty()) {
        return Vec::new();
    }
    originals.iter().flat_map(|original| original.networks.iter().copied()).collect()
}

impl fmt::Display for Rules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A comment has one line.
        let file: String = self.file.chars().filter(|c| !c.is_control()).collect();
        writeln!(f, "# wavegate host rules, for {file}")?;
        // The first line makes sure that there is one to be deleted; all of it is one transaction.
        writeln!(f, "table {TABLE}")?;
        writeln!(f, "delete table {TABLE}")?;
        writeln!(f, "table {TABLE} {{")?;
        if self.listeners.iter().any(|one| one.redirect.traffic.is_forwarded()) {
            writeln!(f, "    # What this host forwards, of those whom `allow` lets relay.")?;
            writeln!(f, "    chain prerouting {{")?;
            writeln!(f, "        type nat hook prerouting priority dstnat; policy accept;")?;
            writeln!(f, "        fib daddr type local return")?;
            for one in self.listeners.iter().filter(|one| one.redirect.traffic.is_forwarded()) {
                one.write(f, |family| forwarded_from(one.config, family))?;
            }
            writeln!(f, "    }}")?;
        }
        if self.listeners.iter().any(|one| one.redirect.traffic.is_local()) {
            writeln!(
                f,
                "    # What this host sends itself, if `allow` lets it relay, but for the relay."
            )?;
            writeln!(f, "    chain output {{")?;
            writeln!(f, "        type nat hook output priority -100; policy accept;")?;
            writeln!(f, "        meta skuid {} return", self.user.quoted())?;
            writeln!(f, "        fib daddr type local return")?;
            for one in self.listeners.iter().filter(|one| one.redirect.traffic.is_local()) {
                one.write(f, |family| local_from(one.config, family))?;
            }
            writeln!(f, "    }}")?;
        }
        writeln!(f, "}}")
    }
}

impl Listener<'_> {
    /// A rule for each family that it takes; `from` says whose connections, or that there are none.
    fn write(
        &self,
        f: &mut fmt::Formatter<'_>,
        from: impl Fn(Family) -> Option<Vec<IpNet>>,
    ) -> fmt::Result {
        writeln!(f, "        # listener {}", self.config.name)?;
        let mut ports: Vec<_> = self.redirect.ports.iter().map(ToString::to_string).collect();
        ports.sort();
        for family in [Family::V4, Family::V6] {
            if family == Family::V6 && self.config.address.is_ipv4() {
                continue;
            }
            let to = family.of(&self.to);
            let Some(from) = from(family) else {
                writeln!(f, "        # {}: `allow` names no such clients", family.name())?;
                continue;
            };
            if to.is_empty() && !self.to.is_empty() {
                writeln!(f, "        # {}: `networks` names none", family.name())?;
                continue;
            }
            write!(f, "        meta nfproto {} ", family.proto())?;
            family.condition(f, "saddr", &from)?;
            family.condition(f, "daddr", &to)?;
            let port = self.config.address.port();
            writeln!(f, "tcp dport {{ {} }} redirect to :{port}", ports.join(", "))?;
        }
        Ok(())
    }
}

/// Whose connections are redirected that this host forwards: those of whom `allow` names, since the
/// relay would refuse all others.
fn forwarded_from(listener: &ListenerConfig, family: Family) -> Option<Vec<IpNet>> {
    let networks = family.of(&listener.allow).into_iter();
    let others: Vec<_> = networks.filter(|network| !network.addr().is_loopback()).collect();
    (!others.is_empty()).then_some(others)
}

/// Whose connections are redirected that this host sends: all, where `allow` lets clients on this host
/// relay; else those from an address of its own that `allow` names.
fn local_from(listener: &ListenerConfig, family: Family) -> Option<Vec<IpNet>> {
    match listener.allows_local() {
        true => Some(vec![family.any()]),
        false => forwarded_from(listener, family),
    }
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn proto(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn any(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }

    /// Its networks of these, none within another: a set of nftables takes no others.
    fn of(self, networks: &[IpNet]) -> Vec<IpNet> {
        let own = networks.iter().copied().filter(|network| match self {
            Self::V4 => matches!(network, IpNet::V4(_)),
            Self::V6 => matches!(network, IpNet::V6(_)),
        });
        IpNet::aggregate(&own.collect())
    }

    /// That an address is in one of these; nothing where it always is.
    fn condition(self, f: &mut fmt::Formatter<'_>, field: &str, networks: &[IpNet]) -> fmt::Result {
        if networks.is_empty() || networks.iter().any(|network| network.prefix_len() == 0) {
            return Ok(());
        }
        let names: Vec<_> = networks.iter().map(ToString::to_string).collect();
        write!(f, "{} {field} {{ {} }} ", self.keyword(), names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]
    use super::*;

    const RELAY: &str = "[relay]\nhostname = 'a.example'\n[[listener]]\naddress = '[::]:2525'\n\
        mode = 'redirect'\nredirect_ports = [587, 25]\n\
        allow = ['10.0.0.0/8', '10.1.0.0/16', '::1', '127.0.0.0/8']\n\
        [[listener]]\nname = 'four'\naddress = '127.0.0.1:2526'\nmode = 'redirect'\n\
        redirect_ports = [465]\nredirect_traffic = 'local'\nupstreams = ['some']\n\
        [[listener]]\naddress = '[::]:2527'\nmode = 'redirect'\nallow = ['192.0.2.1']\n\
        redirect_ports = [26]\nredirect_traffic = 'local'\n\
        [[upstream]]\nname = 'any'\ntype = 'original-destination'\ndefault = true\n\
        [[upstream]]\nname = 'some'\ntype = 'original-destination'\n\
        networks = ['198.51.100.0/24', '2001:db8::/32']\n";

    const TEXT: &str = r#"table inet wavegate
delete table inet wavegate
table inet wavegate {
    # What this host forwards, of those whom `allow` lets relay.
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local return
        # listener listener-1
        meta nfproto ipv4 ip saddr { 10.0.0.0/8 } tcp dport { 25, 587 } redirect to :2525
        # IPv6: `allow` names no such clients
    }
    # What this host sends itself, if `allow` lets it relay, but for the relay.
    chain output {
        type nat hook output priority -100; policy accept;
        meta skuid "mail-relay" return
        fib daddr type local return
        # listener listener-1
        meta nfproto ipv4 tcp dport { 25, 587 } redirect to :2525
        meta nfproto ipv6 tcp dport { 25, 587 } redirect to :2525
        # listener four
        meta nfproto ipv4 ip daddr { 198.51.100.0/24 } tcp dport { 465 } redirect to :2526
        # listener listener-3
        meta nfproto ipv4 ip saddr { 192.0.2.1/32 } tcp dport { 26 } redirect to :2527
        # IPv6: `allow` names no such clients
    }
}
"#;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.toml");
        std::fs::write(&path, text).unwrap();
        crate::config::read(&path).unwrap()
    }

    #[test]
    fn the_rules_are_what_the_configuration_says() {
        let config = config(RELAY);
        let user = "mail-relay".parse().unwrap();
        let text = Rules::of(&config, &user).unwrap().to_string();
        let (comment, rules) = text.split_once('\n').unwrap();
        assert!(comment.starts_with("# wavegate host rules, for /"), "{comment}");
        assert_eq!(rules, TEXT);
    }

    #[test]
    fn without_redirected_traffic_there_are_none() {
        let config = config(
            "[relay]\nhostname = 'a.example'\n[[listener]]\naddress = '[::]:2525'\n\
             [[upstream]]\nname = 'next'\ntargets = ['192.0.2.1:25']\n",
        );
        assert!(Rules::of(&config, &User::default()).is_none());
    }

    #[test]
    fn a_user_is_a_name_or_a_number() {
        for good in ["wavegate", "_wave", "65534", "a.b-c_d"] {
            assert_eq!(good.parse::<User>().unwrap().to_string(), good);
        }
        assert_eq!(User("65534".into()).quoted(), "65534");
        for bad in ["", "a b", "x;y", "-x", "a\nb", &"x".repeat(33)] {
            assert!(bad.parse::<User>().is_err(), "{bad:?}");
        }
    }
}
