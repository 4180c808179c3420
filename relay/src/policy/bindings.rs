//! Between the contract's types and the relay's own: the only place that knows both. Floor 2.
//!
//! Questions are lowered from borrowed values; answers are checked here against what the
//! contract allows, and an answer that it does not allow is a failure of the policy.

use std::{fmt::Write as _, net::IpAddr};

use super::{contract, failure::PolicyFailure};
use crate::{
    decision::{
        AttemptOutcome, ConcurrencyLimit, FreezeDecision, Lesson, LimitSet, PolicyReply, RateLimit,
        RouteDecision, RouteShare, RouteTarget, Transaction,
    },
    plan::Timestamp,
};

/// Text of a reply in bytes, so that the line with code and enhanced code stays within the 512
/// of RFC 5321 4.5.3.1.5. Reasons go into replies too.
pub(super) const MAX_TEXT: usize = 400;
/// Rates in one answer.
pub(super) const MAX_RATES: usize = 64;
/// Concurrency caps in one answer.
pub(super) const MAX_CONCURRENCY: usize = 16;
/// Fallbacks of one target.
pub(super) const MAX_FALLBACKS: usize = 8;
/// Lessons from one outcome.
pub(super) const MAX_LESSONS: usize = 16;
/// Bytes of a limit's key: it lives in the host's table for as long as it is used.
pub(super) const MAX_KEY: usize = 256;

/// What a policy asked for in `configure`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names of attributes, header names in lower case.
    pub attributes: Vec<String>,
    /// Names of upstreams whose state it wants to know.
    pub upstreams: Vec<String>,
    /// Whether it wants `observe`.
    pub outcomes: bool,
}

/// Lowers a transaction for a policy that asked for `needs` and hands it to `call`.
pub(super) fn with_transaction<R>(
    tx: &Transaction<'_>,
    needs: &Needs,
    call: impl FnOnce(contract::Transaction<'_>) -> R,
) -> R {
    let mut attributes = Vec::new();
    for need in &needs.attributes {
        let given = tx.attributes.iter().filter(|(name, _)| name == need);
        attributes.extend(given.map(|(name, value)| (name.as_str(), value.as_str())));
    }
    let wanted = needs.upstreams.iter();
    let upstreams: Vec<_> = wanted
        .filter_map(|need| tx.upstreams.iter().find(|state| state.name == *need))
        .map(|state| contract::UpstreamState {
            name: &state.name,
            up: state.up,
            attempts: state.attempts,
            deferred: state.deferred,
            refused: state.refused,
            broken: state.broken,
        })
        .collect();
    let client = AddressText::new(tx.client);
    call(contract::Transaction {
        id: tx.id,
        now: tx.now.0,
        received: tx.received.0,
        client: client.as_str(),
        sender: tx.sender,
        recipients: tx.recipients,
        size: tx.size,
        attempts: tx.attempts,
        instance: tx.instance.map(|view| contract::InstanceRecord {
            name: view.name,
            product: view.product,
            environment: view.environment,
            phase: view.phase.as_str(),
            window: view.window.map(|window| contract::Window {
                wave: &window.wave,
                opens: window.opens.0,
                closes: window.closes.0,
            }),
            before: view.before,
            after: view.after,
        }),
        bucket: tx.bucket,
        attributes: &attributes,
        upstreams: &upstreams,
    })
}

/// Lowers an outcome and hands it to `call`.
pub(super) fn with_outcome<R>(
    outcome: &AttemptOutcome<'_>,
    call: impl FnOnce(contract::Outcome<'_>) -> R,
) -> R {
    let keys: Vec<&str> = outcome.keys.iter().map(String::as_str).collect();
    call(contract::Outcome {
        upstream: outcome.upstream,
        keys: &keys,
        code: outcome.code,
        text: outcome.text,
        now: outcome.now.0,
    })
}

/// Checks the answer of a freeze policy.
pub(super) fn freeze_decision(answer: contract::Freezing) -> Result<FreezeDecision, PolicyFailure> {
    Ok(match answer {
        contract::Freezing::Proceed => FreezeDecision::Proceed,
        contract::Freezing::Hold(hold) => FreezeDecision::Hold {
            until: hold.until.map(Timestamp),
            reason: escaped(&hold.reason, MAX_TEXT),
        },
        contract::Freezing::Defer(given) => FreezeDecision::Defer(reply(given, 4)?),
        contract::Freezing::Refuse(given) => FreezeDecision::Refuse(reply(given, 5)?),
    })
}

/// Checks the answer of a routing policy: every upstream is known, and a split has every one of
/// the `recipients` exactly once.
pub(super) fn route_decision(
    answer: contract::Route,
    recipients: usize,
    upstreams: &[String],
) -> Result<RouteDecision, PolicyFailure> {
    Ok(match answer {
        contract::Route::Abstain => RouteDecision::Abstain,
        contract::Route::All(given) => RouteDecision::All(target(given, upstreams)?),
        contract::Route::Split(shares) => {
            let mut seen = vec![false; recipients];
            for &index in shares.iter().flat_map(|share| &share.recipients) {
                match seen.get_mut(index as usize) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) => {
                        return Err(PolicyFailure::bad(format!(
                            "split: recipient {index} is in two shares"
                        )));
                    }
                    None => {
                        return Err(PolicyFailure::bad(format!(
                            "split: there is no recipient {index}"
                        )));
                    }
                }
            }
            if let Some(missing) = seen.iter().position(|seen| !seen) {
                return Err(PolicyFailure::bad(format!(
                    "split: recipient {missing} is in no share"
                )));
            }
            if shares.iter().any(|share| share.recipients.is_empty()) {
                return Err(PolicyFailure::bad("split: a share has no recipients"));
            }
            let shares = shares.into_iter().map(|share| {
                Ok(RouteShare {
                    recipients: share.recipients,
                    target: target(share.target, upstreams)?,
                })
            });
            RouteDecision::Split(shares.collect::<Result<_, PolicyFailure>>()?)
        }
    })
}

/// Checks the limits that a throttling policy named.
pub(super) fn limit_set(answer: contract::LimitSet) -> Result<LimitSet, PolicyFailure> {
    at_most("rates", answer.rates.len(), MAX_RATES)?;
    at_most("concurrency", answer.concurrency.len(), MAX_CONCURRENCY)?;
    let rates = answer.rates.into_iter().map(|rate| {
        let key = limit_key(rate.key)?;
        if rate.quantity == 0 || rate.per_ms == 0 || rate.burst == 0 {
            return Err(PolicyFailure::bad(format!(
                "rate {key:?}: quantity, per-ms and burst must be at least 1"
            )));
        }
        if rate.cost == 0 || rate.cost > rate.burst {
            return Err(PolicyFailure::bad(format!(
                "rate {key:?}: cost {} is not in 1 to burst ({})",
                rate.cost, rate.burst
            )));
        }
        Ok(RateLimit {
            key,
            quantity: rate.quantity,
            per_ms: rate.per_ms,
            burst: rate.burst,
            cost: rate.cost,
        })
    });
    let rates = rates.collect::<Result<_, _>>()?;
    let concurrency = answer.concurrency.into_iter().map(|cap| {
        let key = limit_key(cap.key)?;
        if cap.limit == 0 {
            return Err(PolicyFailure::bad(format!("concurrency {key:?}: limit 0")));
        }
        Ok(ConcurrencyLimit { key, limit: cap.limit })
    });
    Ok(LimitSet { rates, concurrency: concurrency.collect::<Result<_, _>>()? })
}

/// Checks what a throttling policy learned.
pub(super) fn lessons(answer: Vec<contract::Lesson>) -> Result<Vec<Lesson>, PolicyFailure> {
    at_most("lessons", answer.len(), MAX_LESSONS)?;
    let lessons = answer.into_iter().map(|lesson| {
        Ok(match lesson {
            contract::Lesson::Pause(pause) => {
                Lesson::Pause { key: limit_key(pause.key)?, until: Timestamp(pause.until) }
            }
            contract::Lesson::Slow(slow) => {
                if slow.factor < 1000 {
                    return Err(PolicyFailure::bad(format!(
                        "slow: factor {} is below 1000 thousandths",
                        slow.factor
                    )));
                }
                Lesson::Slow {
                    key: limit_key(slow.key)?,
                    factor: slow.factor,
                    until: Timestamp(slow.until),
                }
            }
        })
    });
    lessons.collect()
}

/// Text with its control characters escaped and cut to `max` bytes at most.
pub(super) fn escaped(text: &str, max: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(max));
    for character in text.chars() {
        let before = safe.len();
        if is_plain(character) {
            safe.push(character);
        } else {
            let _ = write!(safe, "{}", character.escape_unicode());
        }
        if safe.len() > max {
            safe.truncate(before);
            break;
        }
    }
    safe
}

/// Whether a character may stand in a line for people: no controls, no line or paragraph
/// separators, nothing that turns the direction of what follows.
pub(super) fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

fn reply(given: contract::Reply, class: u16) -> Result<PolicyReply, PolicyFailure> {
    if given.code / 100 != class || given.code == 421 {
        // 421 says that the server closes the channel (RFC 5321 4.2.2): not a policy's to say.
        return Err(PolicyFailure::bad(format!(
            "reply: code {} where a {class}xx is needed",
            given.code
        )));
    }
    if !is_enhanced(&given.enhanced, class) {
        return Err(PolicyFailure::bad(format!(
            "reply: {:?} is no enhanced status code of class {class} (RFC 3463)",
            escaped(&given.enhanced, 40)
        )));
    }
    if given.text.len() > MAX_TEXT || !given.text.chars().all(is_plain) {
        return Err(PolicyFailure::bad(format!(
            "reply: the text is not one printable line of at most {MAX_TEXT} bytes: {:?}",
            escaped(&given.text, 80)
        )));
    }
    Ok(PolicyReply { code: given.code, enhanced: given.enhanced, text: given.text })
}

/// `class "." 1*3DIGIT "." 1*3DIGIT` without leading zeros (RFC 3463 section 2).
fn is_enhanced(text: &str, class: u16) -> bool {
    let number = |part: &str| {
        (1..=3).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part.len() == 1 || !part.starts_with('0'))
    };
    let mut parts = text.split('.');
    let class_fits = parts.next() == Some(if class == 4 { "4" } else { "5" });
    class_fits
        && parts.next().is_some_and(number)
        && parts.next().is_some_and(number)
        && parts.next().is_none()
}

fn target(given: contract::Target, upstreams: &[String]) -> Result<RouteTarget, PolicyFailure> {
    at_most("fallbacks", given.fallbacks.len(), MAX_FALLBACKS)?;
    for name in std::iter::once(&given.upstream).chain(&given.fallbacks) {
        if !upstreams.contains(name) {
            return Err(PolicyFailure::bad(format!(
                "there is no upstream {:?}",
                escaped(name, 80)
            )));
        }
    }
    Ok(RouteTarget { upstream: given.upstream, fallbacks: given.fallbacks })
}

fn limit_key(key: String) -> Result<String, PolicyFailure> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(PolicyFailure::bad(format!(
            "a key of {} bytes; 1 to {MAX_KEY} are allowed",
            key.len()
        )));
    }
    Ok(key)
}

fn at_most(what: &str, len: usize, max: usize) -> Result<(), PolicyFailure> {
    if len > max {
        return Err(PolicyFailure::bad(format!("{len} {what}; at most {max} are allowed")));
    }
    Ok(())
}

/// An address as text without an allocation.
struct AddressText {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl AddressText {
    /// `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`.
    const MAX: usize = 45;

    fn new(address: IpAddr) -> Self {
        let mut text = Self { bytes: [0; Self::MAX], len: 0 };
        let written = write!(text, "{address}");
        assert!(written.is_ok(), "every address fits");
        text
    }

    fn as_str(&self) -> &str {
        // Only `write_str` fills it, with whole strings.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl std::fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
