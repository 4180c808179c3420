//! Mail waits for the morning where its recipients are.
//!
//! Owns when it is quiet: local times in a time zone, whose rules (daylight saving, and when it
//! began) are in the policy itself. What is held leaves when the quiet hours end, and never
//! later than `max_hold` after it came in.

use jiff::Timestamp;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use wavegate_policy::Policy;
use wavegate_policy::freeze::{self, Decision, Hold};
use wavegate_policy::settings::{Field, Table};
use wavegate_policy::text::{domain_of, matches_any};
use wavegate_policy::types::Transaction;

const MAX_RULES: usize = 256;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// The policy with its settings.
pub struct QuietHours {
    rules: Vec<Rule>,
    max_hold_ms: u64,
}

struct Rule {
    zone: TimeZone,
    reason: String,
    from: Time,
    to: Time,
    /// On which they begin.
    days: Vec<Weekday>,
    instances: Vec<String>,
    recipient_domains: Vec<String>,
}

wavegate_policy::export!(QuietHours: freeze);

impl Policy for QuietHours {
    const NAME: &'static str = "quiet-hours";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, _upstreams: &[String]) -> Self {
        let max_hold = settings.get("max_hold").and_then(|field| field.duration());
        let rules = settings.get("rules").map_or_else(Vec::new, |field| {
            let items = field.list().unwrap_or_default();
            if items.len() > MAX_RULES {
                field.wrong(format!("has {} rules; at most {MAX_RULES} are possible", items.len()));
            }
            items.iter().filter_map(Field::table).map(|table| rule(&table)).collect()
        });
        QuietHours { rules, max_hold_ms: max_hold.unwrap_or(86_400_000) }
    }
}

impl freeze::Policy for QuietHours {
    /// A message with several recipients waits for the last of them: it is held whole.
    fn decide(&self, message: &Transaction) -> Decision {
        let now =
            i64::try_from(message.now).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let Some(now) = now else { return Decision::Proceed };
        let about = self.rules.iter().filter(|rule| rule.is_about(message));
        let quiet = about.filter_map(|rule| Some((rule.ends(now)?, rule)));
        let Some((ends, rule)) = quiet.max_by_key(|(ends, _)| *ends) else {
            return Decision::Proceed;
        };
        let last = message.received.saturating_add(self.max_hold_ms);
        let until = u64::try_from(ends.as_millisecond()).unwrap_or(0).min(last);
        if until <= message.now {
            return Decision::Proceed;
        }
        Decision::Hold(Hold { until: Some(until), reason: rule.reason.clone() })
    }
}

impl Rule {
    fn is_about(&self, message: &Transaction) -> bool {
        let instance = message.instance.as_ref();
        let is_of = self.instances.is_empty()
            || instance.is_some_and(|instance| matches_any(&self.instances, &instance.name));
        let is_to = |to: &String| matches_any(&self.recipient_domains, domain_of(to));
        is_of && message.recipients.iter().any(is_to)
    }

    /// When the quiet hours that `now` lies in end. They began today or yesterday, over there.
    fn ends(&self, now: Timestamp) -> Option<Timestamp> {
        let today = self.zone.to_datetime(now).date();
        let days = [Some(today), today.yesterday().ok()].into_iter().flatten();
        let begun = days.filter(|day| self.days.contains(&day.weekday()));
        begun
            .filter_map(|day| self.on(day))
            .filter(|(from, to)| (*from..*to).contains(&now))
            .map(|(_, to)| to)
            .max()
    }

    /// The quiet hours that begin on that day. Where the clocks are changed a local time may be
    /// there twice, or never: the hours are as long as they can be meant.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        let last = if self.to > self.from { day } else { day.tomorrow().ok()? };
        let from = self.zone.to_ambiguous_timestamp(day.to_datetime(self.from)).earlier();
        let to = self.zone.to_ambiguous_timestamp(last.to_datetime(self.to)).later();
        Some((from.ok()?, to.ok()?))
    }
}

fn rule(table: &Table<'_>) -> Rule {
    let required = |name| {
        let field = table.get(name);
        if field.is_none() {
            table.wrong(format!("has no {name}"));
        }
        field
    };
    let texts = |name| table.get(name).map_or_else(Vec::new, |field| field.texts());
    let (zone, from, to) = (required("zone"), required("from"), required("to"));
    let text = |field: &Option<Field<'_>>| {
        field.as_ref().and_then(|field| field.text()).unwrap_or_default().to_owned()
    };
    let rule = Rule {
        reason: format!("quiet hours until {} in {}", text(&to), text(&zone)),
        zone: zone.as_ref().and_then(time_zone).unwrap_or(TimeZone::UTC),
        from: from.as_ref().and_then(time).unwrap_or_default(),
        to: to.as_ref().and_then(time).unwrap_or_default(),
        days: table.get("days").map_or_else(every_day, |field| weekdays(&field)),
        instances: texts("instances"),
        recipient_domains: texts("recipient_domains"),
    };
    table.report_unknown();
    rule
}

fn time_zone(field: &Field<'_>) -> Option<TimeZone> {
    let name = field.text()?;
    let zone = TimeZoneDatabase::bundled().get(name).ok();
    if zone.is_none() {
        field.wrong(format!("\"{name}\" is no time zone such as \"Europe/Berlin\""));
    }
    zone
}

/// `07:00`. The first two digits are the hour, the last two the minute.
fn time(field: &Field<'_>) -> Option<Time> {
    let text = field.text()?;
    let number = |digits: &str| -> Option<i8> {
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let parts = text.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2);
    let time =
        parts.and_then(|(hour, minute)| Time::new(number(hour)?, number(minute)?, 0, 0).ok());
    if time.is_none() {
        field.wrong(format!("\"{text}\" is no time from \"00:00\" to \"23:59\""));
    }
    time
}

fn every_day() -> Vec<Weekday> {
    Weekday::Monday.cycle_forward().take(7).collect()
}

fn weekdays(field: &Field<'_>) -> Vec<Weekday> {
    let items = field.list().unwrap_or_default();
    let day = |item: &Field<'_>| {
        let name = item.one_of(&DAYS)?;
        Weekday::from_monday_zero_offset(DAYS.iter().position(|day| *day == name)?.try_into().ok()?)
            .ok()
    };
    items.iter().filter_map(day).collect()
}

#[cfg(test)]
mod tests;
