//! A new sending address earns its reputation: so many recipients on the first day, some more on
//! each day after it, until there is no need for a limit.
//!
//! Owns the quantity of each day. The relay keeps the counts.

use jiff::Timestamp;
use wavegate_policy::Policy;
use wavegate_policy::settings::{Field, Table};
use wavegate_policy::text::{domain_of, matches_any};
use wavegate_policy::throttling::{self, Attempt, LimitSet, MAX_RATES, RateLimit};

const DAY_MS: u64 = 86_400_000;
/// A ramp of more days than this is a slip in its numbers.
const MAX_DAYS: usize = 366;
/// Keeps products far from their ends.
const MAX_NUMBER: u64 = u32::MAX as u64;
/// The contract's limit on a key, in bytes.
const MAX_KEY: usize = 256;

/// The policy with its settings.
pub struct WarmUp {
    start: u64,
    /// Recipients of each day of the ramp. After the last of them there is no limit.
    days: Vec<u64>,
    by_domain: bool,
    upstreams: Vec<String>,
    recipient_domains: Vec<String>,
}

wavegate_policy::export!(WarmUp: throttling);

impl Policy for WarmUp {
    const NAME: &'static str = "warm-up";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        let per = settings.get("per").and_then(|f| f.one_of(&["upstream", "recipient-domain"]));
        WarmUp {
            start: required(settings, "start", start).unwrap_or(0),
            days: days(settings),
            by_domain: per == Some("recipient-domain"),
            upstreams: settings.get("upstreams").map_or_else(Vec::new, |f| f.upstreams(upstreams)),
            recipient_domains: settings
                .get("recipient_domains")
                .map_or_else(Vec::new, |field| field.texts()),
        }
    }
}

impl throttling::Policy for WarmUp {
    fn limits(&self, attempt: &Attempt) -> LimitSet {
        let mut rates: Vec<RateLimit> = Vec::new();
        let concerned = self.upstreams.is_empty() || self.upstreams.contains(&attempt.upstream);
        if let Some(of_day) = self.of_day(attempt.transaction.now).filter(|_| concerned) {
            for &index in &attempt.recipients {
                let Some(recipient) = attempt.transaction.recipients.get(index as usize) else {
                    continue;
                };
                let domain = domain_of(recipient).to_ascii_lowercase();
                if matches_any(&self.recipient_domains, &domain) {
                    charge(&mut rates, self.key(&attempt.upstream, &domain), of_day);
                }
            }
        }
        LimitSet { rates, concurrency: Vec::new() }
    }
}

impl WarmUp {
    /// What the day of `now` may have; none after the ramp. A day has 24 hours, counted from the
    /// start. Before it the first day's quantity holds: a wrong date makes it slow, never fast.
    fn of_day(&self, now: u64) -> Option<u64> {
        let day = now.saturating_sub(self.start) / DAY_MS;
        self.days.get(usize::try_from(day).unwrap_or(usize::MAX)).copied()
    }

    /// One key for all days: whoever waits keeps his place when a day ends.
    fn key(&self, upstream: &str, domain: &str) -> String {
        let mut key = format!("upstream={upstream}");
        if self.by_domain {
            key = key + ",recipient-domain=" + domain;
        }
        key.truncate(key.floor_char_boundary(MAX_KEY));
        key
    }
}

/// One recipient more for `key`.
///
/// What a limit lets go in a day is what it allows at once and what comes back in 24 hours. An
/// hour's part at once, and the rest of the day's quantity over the day, is never more than that
/// quantity in any 24 hours; and a day's mail does not go in its first minute, which receivers
/// would take for an attack. A message has to fit whole, so one to more recipients than an
/// hour's part may go, and the day may then be over its quantity by that message.
fn charge(rates: &mut Vec<RateLimit>, key: String, of_day: u64) {
    let hour = of_day.div_ceil(24);
    if let Some(rate) = rates.iter_mut().find(|rate| rate.key == key) {
        rate.cost = (rate.cost + 1).min(of_day);
        rate.burst = rate.burst.max(rate.cost);
    } else if rates.len() < MAX_RATES {
        // The first of the hour's part is there when the day begins: hence the one.
        let quantity = of_day - hour + 1;
        rates.push(RateLimit { key, quantity, per_ms: DAY_MS, burst: hour, cost: 1 });
    }
}

fn required<T>(
    settings: &Table<'_>,
    name: &'static str,
    read: impl FnOnce(&Field<'_>) -> Option<T>,
) -> Option<T> {
    let field = settings.get(name);
    if field.is_none() {
        settings.wrong(format!("has no {name}"));
    }
    field.and_then(|field| read(&field))
}

fn start(field: &Field<'_>) -> Option<u64> {
    let text = field.text()?;
    let time = text.parse::<Timestamp>().ok().and_then(|at| at.as_millisecond().try_into().ok());
    if time.is_none() {
        field.wrong(format!("\"{text}\" is no time such as \"2026-03-01T06:00:00Z\""));
    }
    time
}

/// The quantity of each day, from the first up to where the ramp ends.
fn days(settings: &Table<'_>) -> Vec<u64> {
    let number = |field: &Field<'_>| field.whole(1..=MAX_NUMBER);
    let first = required(settings, "first_day", number);
    let growth = required(settings, "growth", |field| field.thousandths(1001..=10_000));
    let full = required(settings, "full", number);
    let hosts = settings.get("hosts").and_then(|field| field.whole(1..=10_000)).unwrap_or(1);
    let (Some(first), Some(growth), Some(full)) = (first, growth, full) else { return Vec::new() };
    if first < hosts {
        settings.wrong(format!("first_day is {first}: that is less than one for each host"));
    }
    let mut days = Vec::new();
    // In thousandths, so that a small beginning grows at all.
    let mut quantity = first.saturating_mul(1000);
    while quantity / 1000 < full && days.len() <= MAX_DAYS {
        days.push((quantity / 1000 / hosts).max(1));
        quantity = quantity.saturating_mul(growth) / 1000;
    }
    if days.len() > MAX_DAYS {
        settings.wrong(format!("full is not reached within {MAX_DAYS} days: let it grow faster"));
    }
    days
}

#[cfg(test)]
mod tests;
