//! In what an answer differs from what is expected. Floor 4.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    ConcurrencyParts, Decision, Difference, Expected, LessonParts, Parts, RateParts, ReplyParts,
    Route, Several, ShareParts, TargetParts, Text, Until, told,
};
use crate::{
    decision::{
        ConcurrencyLimit, FreezeDecision, Lesson, PolicyReply, RateLimit, RouteDecision,
        RouteShare, RouteTarget, record::Answer,
    },
    plan::Timestamp,
};

impl Expected {
    /// In what an answer is not as expected.
    pub fn differences(&self, answer: &Answer) -> Vec<Difference> {
        let mut found = Found(Vec::new());
        match (&self.0, answer) {
            (Parts::Decide(wanted), Answer::Decide(got)) => decision(&mut found, wanted, got),
            (Parts::Route(wanted), Answer::Route(got)) => route(&mut found, wanted, got),
            (Parts::Limits(wanted), Answer::Limits(got)) => {
                if let Some(wanted) = &wanted.rates {
                    limits(&mut found, "rates", wanted, &got.rates);
                }
                if let Some(wanted) = &wanted.concurrency {
                    limits(&mut found, "concurrency", wanted, &got.concurrency);
                }
            }
            (Parts::Observe(wanted), Answer::Observe(got)) => lessons(&mut found, wanted, got),
            _ => found.add(String::new(), None, Some(told(answer))),
        }
        found.0
    }
}

/// Collects differences.
struct Found(Vec<Difference>);

impl Found {
    fn add(&mut self, at: String, expected: Option<Value>, got: Option<Value>) {
        self.0.push(Difference { at, expected, got });
    }

    /// Compares what the case says, if it says anything.
    fn same<T: PartialEq + Serialize>(&mut self, at: &str, wanted: Option<&T>, got: &T) {
        if let Some(wanted) = wanted
            && wanted != got
        {
            self.add(
                at.to_owned(),
                serde_json::to_value(wanted).ok(),
                serde_json::to_value(got).ok(),
            );
        }
    }

    fn text(&mut self, at: &str, wanted: Option<&Text>, got: &str) {
        if let Some(wanted) = wanted
            && !wanted.fits(got)
        {
            self.add(at.to_owned(), Some(wanted.value()), Some(Value::from(got)));
        }
    }

    fn until(&mut self, at: &str, wanted: Option<Until>, got: Option<Timestamp>) {
        let value = |time: Option<Timestamp>| {
            Some(time.map_or(Value::Bool(false), |time| Value::from(time.to_string())))
        };
        if let Some(Until(wanted)) = wanted
            && wanted != got
        {
            self.add(at.to_owned(), value(wanted), value(got));
        }
    }
}

fn decision(found: &mut Found, wanted: &Decision, got: &FreezeDecision) {
    match (wanted, got) {
        (Decision::Proceed, FreezeDecision::Proceed) => {}
        (Decision::Hold(wanted), FreezeDecision::Hold { until, reason }) => {
            found.until("hold.until", wanted.until, *until);
            found.text("hold.reason", wanted.reason.as_ref(), reason);
        }
        (Decision::Defer(wanted), FreezeDecision::Defer(got)) => reply(found, "defer", wanted, got),
        (Decision::Refuse(wanted), FreezeDecision::Refuse(got)) => {
            reply(found, "refuse", wanted, got);
        }
        _ => {
            let wanted = match wanted {
                Decision::Proceed => "proceed",
                Decision::Hold(_) => "hold",
                Decision::Defer(_) => "defer",
                Decision::Refuse(_) => "refuse",
            };
            let got = match got {
                FreezeDecision::Proceed => "proceed",
                FreezeDecision::Hold { .. } => "hold",
                FreezeDecision::Defer(_) => "defer",
                FreezeDecision::Refuse(_) => "refuse",
            };
            found.same("", Some(&wanted), &got);
        }
    }
}

fn reply(found: &mut Found, at: &str, wanted: &ReplyParts, got: &PolicyReply) {
    found.same(&format!("{at}.code"), wanted.code.as_ref(), &got.code);
    found.same(&format!("{at}.enhanced"), wanted.enhanced.as_ref(), &got.enhanced);
    found.text(&format!("{at}.text"), wanted.text.as_ref(), &got.text);
}

fn route(found: &mut Found, wanted: &Route, got: &RouteDecision) {
    match (wanted, got) {
        (Route::Abstain, RouteDecision::Abstain) => {}
        (Route::All(wanted), RouteDecision::All(got)) => target(found, "all", wanted, got),
        (Route::Split(wanted), RouteDecision::Split(got)) => split(found, wanted, got),
        _ => {
            let wanted = match wanted {
                Route::Abstain => "abstain",
                Route::All(_) => "all",
                Route::Split(_) => "split",
            };
            let got = match got {
                RouteDecision::Abstain => "abstain",
                RouteDecision::All(_) => "all",
                RouteDecision::Split(_) => "split",
            };
            found.same("", Some(&wanted), &got);
        }
    }
}

fn target(found: &mut Found, at: &str, wanted: &TargetParts, got: &RouteTarget) {
    found.same(&format!("{at}.upstream"), wanted.upstream.as_ref(), &got.upstream);
    found.same(&format!("{at}.fallbacks"), wanted.fallbacks.as_ref(), &got.fallbacks);
}

/// Shares are known by their recipients; in what order both stand says nothing.
fn split(found: &mut Found, wanted: &[ShareParts], got: &[RouteShare]) {
    let sorted = |recipients: &[u32]| {
        let mut sorted = recipients.to_vec();
        sorted.sort_unstable();
        sorted
    };
    let mut left: BTreeMap<Vec<u32>, &RouteTarget> =
        got.iter().map(|share| (sorted(&share.recipients), &share.target)).collect();
    for share in wanted {
        let recipients = sorted(&share.recipients);
        let at = format!("split.recipients {recipients:?}");
        match (left.remove(&recipients), &share.target) {
            (Some(got), Some(wanted)) => target(found, &at, wanted, got),
            (Some(_), None) => {}
            (None, _) => found.add(at, Some(json!(recipients)), None),
        }
    }
    for (recipients, target) in left {
        found.add(
            format!("split.recipients {recipients:?}"),
            None,
            serde_json::to_value(target).ok(),
        );
    }
}

/// A limit with a key.
trait Limit: Serialize {
    type Parts: Serialize;

    fn key(&self) -> &str;
    fn compare(&self, found: &mut Found, at: &str, wanted: &Self::Parts);
}

impl Limit for RateLimit {
    type Parts = RateParts;

    fn key(&self) -> &str {
        &self.key
    }

    fn compare(&self, found: &mut Found, at: &str, wanted: &RateParts) {
        found.same(&format!("{at}.quantity"), wanted.quantity.as_ref(), &self.quantity);
        found.same(&format!("{at}.per-ms"), wanted.per_ms.as_ref(), &self.per_ms);
        found.same(&format!("{at}.burst"), wanted.burst.as_ref(), &self.burst);
        found.same(&format!("{at}.cost"), wanted.cost.as_ref(), &self.cost);
    }
}

impl Limit for ConcurrencyLimit {
    type Parts = ConcurrencyParts;

    fn key(&self) -> &str {
        &self.key
    }

    fn compare(&self, found: &mut Found, at: &str, wanted: &ConcurrencyParts) {
        found.same(&format!("{at}.limit"), wanted.limit.as_ref(), &self.limit);
    }
}

fn limits<L: Limit>(found: &mut Found, name: &str, wanted: &Several<L::Parts>, got: &[L]) {
    for (key, wanted) in &wanted.parts {
        let at = format!("{name}.{key:?}");
        match (wanted, got.iter().find(|limit| limit.key() == key)) {
            (Some(wanted), Some(got)) => got.compare(found, &at, wanted),
            (Some(wanted), None) => found.add(at, serde_json::to_value(wanted).ok(), None),
            (None, Some(got)) => found.add(at, None, without_key(got)),
            (None, None) => {}
        }
    }
    if wanted.all {
        let listed = |limit: &&L| wanted.parts.iter().any(|(key, _)| key == limit.key());
        for limit in got.iter().filter(|limit| !listed(limit)) {
            found.add(format!("{name}.{:?}", limit.key()), None, without_key(limit));
        }
    }
}

fn without_key(limit: &impl Serialize) -> Option<Value> {
    let mut value = serde_json::to_value(limit).ok()?;
    value.as_object_mut().map(|members: &mut Map<String, Value>| members.remove("key"));
    Some(value)
}

fn lessons(found: &mut Found, wanted: &[LessonParts], got: &[Lesson]) {
    if wanted.len() != got.len() {
        let lessons = |count: usize| json!(format!("{count} lessons"));
        found.add(String::new(), Some(lessons(wanted.len())), Some(lessons(got.len())));
        return;
    }
    for (index, (wanted, got)) in wanted.iter().zip(got).enumerate() {
        match (wanted, got) {
            (
                LessonParts::Pause { key, until },
                Lesson::Pause { key: got_key, until: got_until },
            ) => {
                found.same(&format!("[{index}].pause.key"), key.as_ref(), got_key);
                found.until(&format!("[{index}].pause.until"), *until, Some(*got_until));
            }
            (
                LessonParts::Slow { key, factor, until },
                Lesson::Slow { key: got_key, factor: got_factor, until: got_until },
            ) => {
                found.same(&format!("[{index}].slow.key"), key.as_ref(), got_key);
                found.same(&format!("[{index}].slow.factor"), factor.as_ref(), got_factor);
                found.until(&format!("[{index}].slow.until"), *until, Some(*got_until));
            }
            (LessonParts::Pause { .. }, got) => {
                found.add(
                    format!("[{index}]"),
                    Some(json!("pause")),
                    serde_json::to_value(got).ok(),
                );
            }
            (LessonParts::Slow { .. }, got) => {
                found.add(
                    format!("[{index}]"),
                    Some(json!("slow")),
                    serde_json::to_value(got).ok(),
                );
            }
        }
    }
}
