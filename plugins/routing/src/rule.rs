//! One rule of the routing policy: its conditions, and reading it from the settings.

use wavegate_policy::routing::Target;
use wavegate_policy::settings::{Field, Table};
use wavegate_policy::text::{domain_of, matches, matches_any};
use wavegate_policy::types::Transaction;

/// More rules than this make every message slow; a table is the place for a long list.
const MAX_RULES: usize = 256;
/// The contract's limit on fallbacks.
const MAX_FALLBACKS: usize = 8;
/// The contract's limit on attributes, which are what header conditions ask for.
const MAX_HEADERS: usize = 16;

/// A rule: where what meets all its conditions goes. A condition that is not given is met.
pub(crate) struct Rule {
    instances: Vec<String>,
    environments: Vec<String>,
    products: Vec<String>,
    phases: Vec<String>,
    sender_domains: Vec<String>,
    recipient_domains: Vec<String>,
    /// Attribute (`header:NAME`) and pattern.
    headers: Vec<(String, String)>,
    /// Buckets below this, of 10,000.
    buckets: u32,
    pub(crate) target: Target,
}

impl Rule {
    /// True where all conditions are met but the one on recipients.
    pub(crate) fn takes_message(&self, message: &Transaction) -> bool {
        let instance = message.instance.as_ref();
        let of_instance = |patterns: &[String], text: Option<&str>| {
            patterns.is_empty() || text.is_some_and(|text| matches_any(patterns, text))
        };
        message.bucket < self.buckets
            && of_instance(&self.instances, instance.map(|i| i.name.as_str()))
            && of_instance(&self.environments, instance.map(|i| i.environment.as_str()))
            && of_instance(&self.products, instance.map(|i| i.product.as_str()))
            && of_instance(&self.phases, instance.map(|i| i.phase.as_str()))
            && matches_any(&self.sender_domains, domain_of(&message.sender))
            && self.headers.iter().all(|(name, pattern)| {
                let mut fields = message.attributes.iter().filter(|(given, _)| given == name);
                fields.any(|(_, value)| matches(pattern, value))
            })
    }

    /// True where the condition on recipients is met.
    pub(crate) fn takes_recipient(&self, recipient: &str) -> bool {
        matches_any(&self.recipient_domains, domain_of(recipient))
    }
}

/// Reads the list of rules.
pub(crate) fn rules(field: &Field<'_>, upstreams: &[String]) -> Vec<Rule> {
    let items = field.list().unwrap_or_default();
    if items.len() > MAX_RULES {
        field.wrong(format!("has {} rules; at most {MAX_RULES} are possible", items.len()));
        return Vec::new();
    }
    let rules: Vec<Rule> =
        items.iter().filter_map(Field::table).map(|table| rule(&table, upstreams)).collect();
    if attributes(&rules).len() > MAX_HEADERS {
        field.wrong(format!("look at more than {MAX_HEADERS} different headers in all"));
    }
    rules
}

/// The attributes that the rules look at, each once.
pub(crate) fn attributes(rules: &[Rule]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in rules.iter().flat_map(|rule| &rule.headers) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn rule(table: &Table<'_>, upstreams: &[String]) -> Rule {
    let patterns = |name| table.get(name).map(|field| field.texts()).unwrap_or_default();
    let rule = Rule {
        instances: patterns("instances"),
        environments: patterns("environments"),
        products: patterns("products"),
        phases: patterns("phases"),
        sender_domains: patterns("sender_domains"),
        recipient_domains: patterns("recipient_domains"),
        headers: table.get("headers").map(|field| headers(&field)).unwrap_or_default(),
        buckets: table.get("percent").map_or(10_000, |field| buckets(&field)),
        target: target(table, upstreams),
    };
    table.report_unknown();
    rule
}

fn headers(field: &Field<'_>) -> Vec<(String, String)> {
    let Some(table) = field.table() else { return Vec::new() };
    let mut headers = Vec::new();
    for (name, pattern) in table.entries() {
        // RFC 5322 2.2: printable ASCII but the colon.
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            pattern.wrong("is no name of a header");
        }
        if let Some(pattern) = pattern.text() {
            headers.push((format!("header:{}", name.to_ascii_lowercase()), pattern.to_owned()));
        }
    }
    headers
}

/// A percentage in buckets: a hundred of them are one percent.
fn buckets(field: &Field<'_>) -> u32 {
    let thousandths = field.thousandths(0..=100_000).unwrap_or(0);
    if !thousandths.is_multiple_of(10) {
        field.wrong("must have at most two decimals: there are 10,000 buckets");
    }
    u32::try_from(thousandths / 10).unwrap_or(0)
}

fn target(table: &Table<'_>, upstreams: &[String]) -> Target {
    let upstream = table.get("upstream");
    if upstream.is_none() {
        table.wrong("has no upstream");
    }
    let upstream = upstream.and_then(|field| field.upstream(upstreams)).unwrap_or_default();
    let fallbacks = table.get("fallbacks").map_or_else(Vec::new, |field| {
        let fallbacks = field.upstreams(upstreams);
        if fallbacks.len() > MAX_FALLBACKS {
            field.wrong(format!("has more than {MAX_FALLBACKS} upstreams"));
        }
        if fallbacks.contains(&upstream) {
            field.wrong(format!("\"{upstream}\" cannot be its own fallback"));
        }
        fallbacks
    });
    Target { upstream, fallbacks }
}
