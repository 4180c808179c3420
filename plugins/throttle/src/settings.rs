//! The throttle policy's settings, as read once.

use wavegate_policy::settings::{Field, Table, unit};
use wavegate_policy::text::{domain_of, matches_any};
use wavegate_policy::throttling::{Attempt, MAX_CONCURRENCY, MAX_RATES};

/// Half of what an answer may name, so that each limit has room for two keys at least.
const MAX_RATE_LIMITS: usize = MAX_RATES / 2;
const MAX_CONCURRENCY_LIMITS: usize = MAX_CONCURRENCY / 2;
/// 136 years of one a millisecond; keeps the host's arithmetic far from its ends.
const MAX_NUMBER: u64 = u32::MAX as u64;
/// The most hosts, or parts of a total, that a share is of; keeps products far from their ends.
const MAX_SHARES: u64 = 10_000;
/// The replies that say "slower" (RFC 5321 4.2.2 and 4.2.3, RFC 3463).
const CODES: [u16; 4] = [421, 450, 451, 452];
/// How long a limit stays slow after one such reply.
const SLOW_FOR_MS: u64 = 300_000;

/// One limit.
pub(crate) struct Limit {
    pub(crate) per: Vec<Part>,
    pub(crate) rate: Option<Rate>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) count: Count,
    pub(crate) learn: Option<Learn>,
    upstreams: Vec<String>,
    recipient_domains: Vec<String>,
    instances: Vec<String>,
}

/// What a limit is kept by.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    Upstream,
    RecipientDomain,
    Recipient,
    Instance,
    Environment,
    Product,
    SenderDomain,
    Sender,
    Client,
}

/// `quantity` for each `per_ms`, at most `burst` at once.
pub(crate) struct Rate {
    pub(crate) quantity: u64,
    pub(crate) per_ms: u64,
    pub(crate) burst: u64,
}

/// What an attempt costs.
pub(crate) enum Count {
    Messages,
    Recipients,
}

/// What replies teach a limit.
pub(crate) struct Learn {
    pub(crate) codes: Vec<u16>,
    pub(crate) pause_ms: Option<u64>,
    /// In thousandths.
    pub(crate) slow: Option<u32>,
    pub(crate) for_ms: u64,
}

impl Limit {
    /// True where the attempt is one that the limit is about, recipients apart.
    pub(crate) fn applies(&self, attempt: &Attempt) -> bool {
        let instance = attempt.transaction.instance.as_ref();
        (self.upstreams.is_empty() || self.upstreams.contains(&attempt.upstream))
            && (self.instances.is_empty()
                || instance.is_some_and(|instance| matches_any(&self.instances, &instance.name)))
    }

    /// True where the recipient is one that the limit is about.
    pub(crate) fn takes_recipient(&self, recipient: &str) -> bool {
        matches_any(&self.recipient_domains, domain_of(recipient))
    }
}

impl Part {
    const NAMES: [&'static str; 9] = [
        "upstream",
        "recipient-domain",
        "recipient",
        "instance",
        "environment",
        "product",
        "sender-domain",
        "sender",
        "client",
    ];
    const ALL: [Part; 9] = [
        Part::Upstream,
        Part::RecipientDomain,
        Part::Recipient,
        Part::Instance,
        Part::Environment,
        Part::Product,
        Part::SenderDomain,
        Part::Sender,
        Part::Client,
    ];

    pub(crate) fn name(self) -> &'static str {
        Part::NAMES[self as usize]
    }

    /// Addresses and domains are compared without regard to case.
    pub(crate) fn is_address(self) -> bool {
        matches!(self, Part::RecipientDomain | Part::Recipient | Part::SenderDomain | Part::Sender)
    }
}

/// The part of all limits that one host has: `part` of `of`.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    part: u64,
    of: u64,
}

impl Share {
    pub(crate) const ALL: Share = Share { part: 1, of: 1 };

    /// `25%` or `1/4`.
    pub(crate) fn read(field: &Field<'_>) -> Option<Share> {
        let text = field.text()?;
        let share = match text.strip_suffix('%') {
            Some(percent) => whole(percent).map(|part| Share { part, of: 100 }),
            None => text
                .split_once('/')
                .and_then(|(part, of)| Some(Share { part: whole(part)?, of: whole(of)? })),
        };
        let share =
            share.filter(|Share { part, of }| (1..=*of).contains(part) && *of <= MAX_SHARES);
        if share.is_none() {
            field.wrong(format!(
                "\"{text}\" is no share such as \"25%\" or \"1/4\", of at most {MAX_SHARES}"
            ));
        }
        share.map(|Share { part, of }| {
            let (part, of) = lowest(part, of);
            Share { part, of }
        })
    }

    /// Of a count, whole ones only: all hosts together must not have more than there is.
    fn of_count(self, count: u64) -> u64 {
        count.saturating_mul(self.part) / self.of
    }
}

/// Reads the list of limits.
pub(crate) fn limits(field: &Field<'_>, upstreams: &[String], share: Share) -> Vec<Limit> {
    let items = field.list().unwrap_or_default();
    let tables = items.iter().filter_map(Field::table);
    let limits: Vec<Limit> = tables.map(|table| limit(&table, upstreams, share)).collect();
    if limits.iter().filter(|limit| limit.rate.is_some()).count() > MAX_RATE_LIMITS {
        field.wrong(format!("more than {MAX_RATE_LIMITS} of them have a rate"));
    }
    if limits.iter().filter(|limit| limit.concurrency.is_some()).count() > MAX_CONCURRENCY_LIMITS {
        field.wrong(format!("more than {MAX_CONCURRENCY_LIMITS} of them have a concurrency"));
    }
    limits
}

fn limit(table: &Table<'_>, upstreams: &[String], share: Share) -> Limit {
    let patterns = |name| table.get(name).map(|field| field.texts()).unwrap_or_default();
    let (rate, burst, concurrency) =
        (table.get("rate"), table.get("burst"), table.get("concurrency"));
    if rate.is_none() && concurrency.is_none() {
        table.wrong("has neither rate nor concurrency");
    }
    if let (None, Some(burst)) = (&rate, &burst) {
        burst.wrong("has no meaning without a rate");
    }
    let count = table.get("count").and_then(|field| field.one_of(&["messages", "recipients"]));
    let limit = Limit {
        per: table.get("per").map(|field| parts(&field)).unwrap_or_default(),
        rate: rate.and_then(|rate| read_rate(&rate, burst.as_ref(), share)),
        concurrency: concurrency.and_then(|field| narrow(read_count(&field, share))),
        count: if count == Some("recipients") { Count::Recipients } else { Count::Messages },
        learn: table.get("learn").and_then(|field| learn(&field)),
        upstreams: table.get("upstreams").map_or_else(Vec::new, |f| f.upstreams(upstreams)),
        recipient_domains: patterns("recipient_domains"),
        instances: patterns("instances"),
    };
    table.report_unknown();
    limit
}

fn parts(field: &Field<'_>) -> Vec<Part> {
    let mut parts = Vec::new();
    for item in field.list().unwrap_or_default() {
        let Some(name) = item.one_of(&Part::NAMES) else { continue };
        let Some(part) = Part::ALL.into_iter().find(|part| part.name() == name) else { continue };
        if parts.contains(&part) {
            item.wrong(format!("\"{name}\" stands here twice"));
        }
        parts.push(part);
    }
    parts
}

/// A count and this host's share of it, which is at least one.
fn read_count(field: &Field<'_>, share: Share) -> Option<u64> {
    let shared = share.of_count(field.whole(1..=MAX_NUMBER)?);
    if shared == 0 {
        field.wrong("this host's share of it is less than one");
    }
    (shared > 0).then_some(shared)
}

fn read_rate(field: &Field<'_>, burst: Option<&Field<'_>>, share: Share) -> Option<Rate> {
    let text = field.text()?;
    let Some((quantity, per_ms)) = rate(text) else {
        field.wrong(format!("\"{text}\" is no rate such as \"5000/s\", \"100/min\" or \"1/10s\""));
        return None;
    };
    // So many in more time: exact, however small the share is.
    let (quantity, per_ms) = (quantity * share.part, per_ms * share.of);
    if quantity > MAX_NUMBER || per_ms > MAX_NUMBER {
        field.wrong("this host's share of it cannot be counted; choose simpler numbers");
        return None;
    }
    // What one second brings, but one message at least.
    let default = (quantity.saturating_mul(1000) / per_ms).max(1);
    let burst = match burst {
        Some(burst) => read_count(burst, share)?,
        None => default,
    };
    Some(Rate { quantity, per_ms, burst })
}

/// The same ratio in the smallest numbers.
fn lowest(one: u64, other: u64) -> (u64, u64) {
    let (mut a, mut b) = (one, other);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (one / a.max(1), other / a.max(1))
}

/// Quantity and milliseconds of `N/s`, `N/10s`, with the units ms, s, min, h, d.
pub(crate) fn rate(text: &str) -> Option<(u64, u64)> {
    let (quantity, period) = text.split_once('/')?;
    let digits = period.bytes().take_while(u8::is_ascii_digit).count();
    let count: u64 = if digits == 0 { 1 } else { whole(&period[..digits])? };
    let per_ms = count.checked_mul(unit(&period[digits..])?)?;
    let quantity = whole(quantity)?;
    let range = 1..=MAX_NUMBER;
    (range.contains(&quantity) && range.contains(&per_ms)).then_some((quantity, per_ms))
}

/// A number of digits only: `parse` alone takes a plus sign.
fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn learn(field: &Field<'_>) -> Option<Learn> {
    let table = field.table()?;
    let codes = table.get("codes").map_or(CODES.to_vec(), |field| {
        let items = field.list().unwrap_or_default();
        let code = |item: &Field<'_>| u16::try_from(item.whole(400..=599)?).ok();
        items.iter().filter_map(code).collect()
    });
    let pause_ms = table.get("pause").map(|field| field.duration());
    let slow = table.get("slow").map(|field| narrow(field.thousandths(1_000..=1_000_000)));
    let for_ms = table.get("for").and_then(|field| field.duration()).unwrap_or(SLOW_FOR_MS);
    if pause_ms.is_none() && slow.is_none() {
        table.wrong("has neither pause nor slow");
    }
    table.report_unknown();
    Some(Learn { codes, pause_ms: pause_ms.flatten(), slow: slow.flatten(), for_ms })
}

fn narrow(number: Option<u64>) -> Option<u32> {
    u32::try_from(number?).ok()
}
