//! The question of a case, with what a case may leave out. Floor 4.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    case::{Setup, typed},
    expect::Subject,
};
use crate::{
    decision::record::{Question, TransactionRecord},
    plan::{Timestamp, rfc3339},
};

/// What a case asks.
pub(super) fn question(
    subject: Subject,
    members: &Map<String, Value>,
    setup: &Setup,
) -> Result<Question, String> {
    if subject == Subject::Observe {
        let Outcome { upstream, keys, code, text, now } = match members.get("outcome") {
            Some(outcome) => typed("outcome", outcome)?,
            None => {
                return Err("has no outcome: say what came of the attempt, such as outcome = \
                                { keys = [\"k\"], code = 421 }"
                    .to_owned());
            }
        };
        let upstream = upstream.unwrap_or_else(|| setup.upstreams[0].clone());
        return Ok(Question::Observe { upstream, keys, code, text, now });
    }
    let transaction = transaction(members)?;
    if subject == Subject::Decide {
        return Ok(Question::Decide { transaction });
    } else if subject == Subject::Route {
        return Ok(Question::Route { transaction });
    }
    let upstream = match members.get("upstream") {
        None => setup.upstreams[0].clone(),
        Some(name) => typed("upstream", name)?,
    };
    if !setup.upstreams.contains(&upstream) {
        let there = setup.upstreams.join(", ");
        return Err(format!("upstream: {upstream:?} is none of upstreams; there are {there}"));
    }
    let count = u32::try_from(transaction.recipients.len()).unwrap_or(u32::MAX);
    let recipients = match members.get("recipients") {
        None => (0..count).collect(),
        Some(indexes) => typed::<Vec<u32>>("recipients", indexes)?,
    };
    if let Some(wrong) = recipients.iter().find(|&&index| index >= count) {
        return Err(format!(
            "recipients: there is no {wrong}: they are indexes into transaction.recipients, the \
             first is 0"
        ));
    }
    Ok(Question::Limits { transaction, upstream, recipients })
}

/// `outcome`, with what it may leave out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outcome {
    upstream: Option<String>,
    keys: Vec<String>,
    code: u16,
    #[serde(default)]
    text: String,
    #[serde(default = "now", with = "rfc3339")]
    now: Timestamp,
}

fn now() -> Timestamp {
    TransactionRecord::default().now
}

/// The message that a case is about.
pub(super) fn transaction(members: &Map<String, Value>) -> Result<TransactionRecord, String> {
    let mut given = match members.get("transaction") {
        None => Map::new(),
        Some(Value::Object(given)) => given.clone(),
        Some(_) => return Err("transaction must be a table".to_owned()),
    };
    take_away(&mut given, "received");
    take_away(&mut given, "instance");
    let now = given.get("now").cloned();
    if let Some(Value::Object(instance)) = given.get_mut("instance") {
        take_away(instance, "window");
        if let Some(Value::Object(window)) = instance.get_mut("window") {
            window.entry("wave").or_insert_with(|| Value::from("wave-1"));
            let now = now.unwrap_or_else(|| Value::from(self::now().to_string()));
            window.entry("opens").or_insert(now);
        }
    }
    if let Some(given) = given.get_mut("attributes") {
        *given = attributes(given.take())?;
    }
    if let Some(given) = given.get_mut("upstreams") {
        *given = states(given.take())?;
    }
    let found: TransactionRecord = typed("transaction", &Value::Object(given))?;
    if found.recipients.is_empty() {
        return Err("transaction.recipients is empty: every message has one".to_owned());
    }
    if found.bucket > 9999 {
        return Err("transaction.bucket must be 0 to 9999".to_owned());
    }
    Ok(found)
}

/// `false` takes away what the file begins with.
fn take_away(from: &mut Map<String, Value>, name: &str) {
    if from.get(name) == Some(&Value::Bool(false)) {
        from.remove(name);
    }
}

/// Pairs of name and value, from a table; a header that is there several times has a list.
/// Names of headers are in lower case, as the relay gives them.
fn attributes(given: Value) -> Result<Value, String> {
    let lower = |name: &str| match name.starts_with("header:") {
        true => name.to_ascii_lowercase(),
        false => name.to_owned(),
    };
    let wanted = "transaction.attributes must be a table of texts, such as { helo = \"mx\" }";
    let mut pairs: Vec<(String, Value)> = Vec::new();
    match given {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::Array(several) => {
                        pairs.extend(several.into_iter().map(|value| (lower(&name), value)));
                    }
                    value => pairs.push((lower(&name), value)),
                }
            }
        }
        // As the decision log has them.
        Value::Array(list) => {
            for pair in list {
                let (name, value): (String, Value) =
                    serde_json::from_value(pair).map_err(|_| wanted)?;
                pairs.push((lower(&name), value));
            }
        }
        _ => return Err(wanted.to_owned()),
    }
    if pairs.iter().any(|(_, value)| !value.is_string()) {
        return Err(wanted.to_owned());
    }
    let pairs = pairs.into_iter().map(|(name, value)| Value::from(vec![Value::from(name), value]));
    Ok(Value::Array(pairs.collect()))
}

/// States of upstreams, from a table by name; one is up unless it is said otherwise.
fn states(given: Value) -> Result<Value, String> {
    let wanted =
        "transaction.upstreams must be a table by name, such as { cloud = { up = false } }";
    let mut list = match given {
        Value::Array(list) => list,
        Value::Object(members) => {
            let named = |(name, mut state): (String, Value)| {
                state.as_object_mut()?.insert("name".to_owned(), Value::from(name));
                Some(state)
            };
            members.into_iter().map(named).collect::<Option<_>>().ok_or(wanted)?
        }
        _ => return Err(wanted.to_owned()),
    };
    for state in &mut list {
        state.as_object_mut().ok_or(wanted)?.entry("up").or_insert(Value::Bool(true));
    }
    Ok(Value::Array(list))
}
