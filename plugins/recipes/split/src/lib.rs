//! Each recipient domain has its upstream. A message to several of them is split.
//!
//! Owns the choice by domain. It never abstains for mail that it is about: what no entry names
//! goes to the default.

use wavegate_policy::Policy;
use wavegate_policy::routing::{self, Decision, Share, Target};
use wavegate_policy::settings::Table;
use wavegate_policy::text::{domain_of, matches_any};
use wavegate_policy::types::Transaction;

/// A longer list is searched as fast, but every instance of the policy holds it in memory.
const MAX_DOMAINS: usize = 20_000;

/// The policy with its settings.
pub struct Split {
    /// Domains in lower case, sorted; one that begins with a dot stands for all below it.
    domains: Vec<(String, String)>,
    default: String,
    instances: Vec<String>,
}

wavegate_policy::export!(Split: routing);

impl Policy for Split {
    const NAME: &'static str = "split";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        let default = settings.get("default");
        if default.is_none() {
            settings.wrong("has no default");
        }
        Split {
            domains: domains(settings, upstreams),
            default: default.and_then(|field| field.upstream(upstreams)).unwrap_or_default(),
            instances: settings.get("instances").map_or_else(Vec::new, |field| field.texts()),
        }
    }
}

impl routing::Policy for Split {
    fn route(&self, message: &Transaction) -> Decision {
        let of = message.instance.as_ref().map_or("", |instance| &instance.name);
        if !matches_any(&self.instances, of) {
            return Decision::Abstain;
        }
        let mut shares: Vec<(&str, Vec<u32>)> = Vec::new();
        for (index, recipient) in (0..).zip(&message.recipients) {
            let upstream = self.upstream(&domain_of(recipient).to_ascii_lowercase());
            match shares.iter_mut().find(|(known, _)| *known == upstream) {
                Some((_, recipients)) => recipients.push(index),
                None => shares.push((upstream, vec![index])),
            }
        }
        let target = |upstream: &str| Target { upstream: upstream.into(), fallbacks: Vec::new() };
        match shares.as_slice() {
            [] => Decision::Abstain,
            [(upstream, _)] => Decision::All(target(upstream)),
            _ => Decision::Split(
                shares
                    .into_iter()
                    .map(|(upstream, recipients)| Share { recipients, target: target(upstream) })
                    .collect(),
            ),
        }
    }
}

impl Split {
    /// The domain itself, then the nearest one above it that stands for all below, then the
    /// default.
    fn upstream(&self, domain: &str) -> &str {
        let above = domain.match_indices('.').map(|(dot, _)| &domain[dot..]);
        let found = std::iter::once(domain).chain(above).find_map(|name| {
            let at = self.domains.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
            Some(self.domains[at].1.as_str())
        });
        found.unwrap_or(&self.default)
    }
}

fn domains(settings: &Table<'_>, upstreams: &[String]) -> Vec<(String, String)> {
    let Some(field) = settings.get("domains") else { return Vec::new() };
    let Some(table) = field.table() else { return Vec::new() };
    let mut domains: Vec<(String, String)> = Vec::new();
    for (name, upstream) in table.entries() {
        let is_domain = name.strip_prefix('.').unwrap_or(name).split('.').all(|label| {
            !label.is_empty() && !label.contains(|c: char| c.is_whitespace() || "@*,".contains(c))
        });
        if !is_domain {
            upstream.wrong(
                "is no domain such as \"example.com\", or \".example.com\" for those below it",
            );
        }
        let upstream = upstream.upstream(upstreams).unwrap_or_default();
        domains.push((name.to_ascii_lowercase(), upstream));
    }
    if domains.len() > MAX_DOMAINS {
        field.wrong(format!("has {} domains; at most {MAX_DOMAINS} are possible", domains.len()));
    }
    domains.sort();
    if let Some(two) = domains.windows(2).find(|two| two[0].0 == two[1].0) {
        field.wrong(format!("has \"{}\" twice", two[0].0));
    }
    domains
}

#[cfg(test)]
mod tests;
