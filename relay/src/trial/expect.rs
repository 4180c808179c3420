//! What a case expects, and in what an answer differs from it. Floor 4.
//!
//! What a case leaves out is not compared, and texts for people need only have in them what it
//! says: an answer may be told in full, or only in what the case is about.

mod compare;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    decision::record::Answer,
    plan::{Timestamp, rfc3339},
};

/// What is asked, by the contract's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Subject {
    Decide,
    Route,
    Limits,
    Observe,
}

/// The answer that is right, or the part of it that a case is about.
#[derive(Clone, Debug)]
pub struct Expected(Parts);

#[derive(Clone, Debug)]
enum Parts {
    Decide(Decision),
    Route(Route),
    Limits(Limits),
    Observe(Vec<LessonParts>),
}

/// One member in which an answer is not as expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its path in the answer, such as `hold.until`.
    pub at: String,
    /// What the case says; nothing where there should be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// What the answer has; nothing where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<Value>,
}

/// A problem with the settings that a policy must find.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    path: Option<String>,
    message: Option<Text>,
}

impl Problem {
    /// Whether a problem that was found is this one.
    pub fn is(&self, path: &str, message: &str) -> bool {
        self.path.as_ref().is_none_or(|wanted| wanted == path)
            && self.message.as_ref().is_none_or(|wanted| wanted.fits(message))
    }
}

/// A text for people.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Value")]
enum Text {
    Part(String),
    Exact(String),
}

impl Text {
    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Part(part) => text.contains(part.as_str()),
            Self::Exact(all) => text == all,
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Part(part) => Value::from(part.as_str()),
            Self::Exact(all) => json!({ "exact": all }),
        }
    }
}

impl TryFrom<Value> for Text {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(part) if part.is_empty() => {
                Err("\"\" is in every text; write { exact = \"\" } for an empty one".to_owned())
            }
            Value::String(part) => Ok(Self::Part(part)),
            Value::Object(mut members) if members.len() == 1 => match members.remove("exact") {
                Some(Value::String(all)) => Ok(Self::Exact(all)),
                _ => Err("a text is what must be in it, or { exact = \"all of it\" }".to_owned()),
            },
            _ => Err("a text is what must be in it, or { exact = \"all of it\" }".to_owned()),
        }
    }
}

/// A time, or `false`: there is none.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Until(Option<Timestamp>);

impl TryFrom<Value> for Until {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        if value == Value::Bool(false) {
            return Ok(Self(None));
        }
        let time = rfc3339::deserialize(value).map_err(|error| error.to_string())?;
        Ok(Self(Some(time)))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Decision {
    Proceed,
    Hold(HoldParts),
    Defer(ReplyParts),
    Refuse(ReplyParts),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HoldParts {
    until: Option<Until>,
    reason: Option<Text>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyParts {
    code: Option<u16>,
    enhanced: Option<String>,
    text: Option<Text>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Route {
    Abstain,
    All(TargetParts),
    Split(Vec<ShareParts>),
}

/// A target, or only the name of its upstream.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Value")]
struct TargetParts {
    upstream: Option<String>,
    fallbacks: Option<Vec<String>>,
}

impl TryFrom<Value> for TargetParts {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            upstream: Option<String>,
            fallbacks: Option<Vec<String>>,
        }
        if let Value::String(upstream) = value {
            return Ok(Self { upstream: Some(upstream), fallbacks: None });
        }
        let Written { upstream, fallbacks } =
            Written::deserialize(value).map_err(|error| error.to_string())?;
        Ok(Self { upstream, fallbacks })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareParts {
    recipients: Vec<u32>,
    target: Option<TargetParts>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    rates: Option<Several<RateParts>>,
    concurrency: Option<Several<ConcurrencyParts>>,
}

/// All limits in a list, each with its key, or some of them by key; `false` is one that must not
/// be there.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Value", bound = "P: DeserializeOwned")]
struct Several<P> {
    parts: Vec<(String, Option<P>)>,
    all: bool,
}

impl<P: DeserializeOwned> TryFrom<Value> for Several<P> {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let parts = |value| serde_json::from_value::<P>(value).map_err(|error| error.to_string());
        match value {
            Value::Array(list) => {
                let mut all: Vec<(String, Option<P>)> = Vec::new();
                for one in list {
                    let Value::Object(mut members) = one else {
                        return Err("a limit is a table with its key".to_owned());
                    };
                    let Some(Value::String(key)) = members.remove("key") else {
                        return Err("a limit in a list needs its key".to_owned());
                    };
                    all.push((key, Some(parts(Value::Object(members))?)));
                }
                Ok(Self { parts: all, all: true })
            }
            Value::Object(members) => {
                let one = |(key, value)| match value {
                    Value::Bool(false) => Ok((key, None)),
                    value => Ok((key, Some(parts(value)?))),
                };
                let some: Result<Vec<_>, String> = members.into_iter().map(one).collect();
                Ok(Self { parts: some?, all: false })
            }
            _ => Err("limits are a list of all of them, or a table of some by key".to_owned()),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RateParts {
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ConcurrencyParts {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum LessonParts {
    Pause { key: Option<String>, until: Option<Until> },
    Slow { key: Option<String>, factor: Option<u32>, until: Option<Until> },
}

/// The problems of `expect = { settings = [...] }`; nothing where an answer is expected.
pub(super) fn problems(expect: &Value) -> Result<Option<Vec<Problem>>, String> {
    let Some(settings) = expect.get("settings") else { return Ok(None) };
    let wanted = "expect.settings is the list of problems that the policy must find, such as \
                  [{ path = \"most\", message = \"is not a number\" }]";
    let problems: Vec<Problem> =
        serde_json::from_value(settings.clone()).map_err(|error| format!("{wanted}: {error}"))?;
    if problems.is_empty() || expect.as_object().is_some_and(|members| members.len() > 1) {
        return Err(wanted.to_owned());
    }
    Ok(Some(problems))
}

/// `ask`.
pub(super) fn ask(value: &Value) -> Result<Subject, String> {
    Subject::deserialize(value).map_err(|_| {
        format!("ask: {value} is no question; there are decide, route, limits, observe")
    })
}

/// What is expected, and of what question: that follows from the answer.
pub(super) fn parse(
    expect: &Value,
    asked: Option<Subject>,
    about_outcome: bool,
) -> Result<(Subject, Expected), String> {
    let subject = subject(expect, about_outcome).ok_or_else(|| {
        format!(
            "expect: {expect} is no answer: write one of proceed, hold, defer, refuse; abstain, \
             all, split; rates, concurrency; a list of pause and slow; none; or settings"
        )
    })?;
    if let Some(asked) = asked.filter(|&asked| asked != subject) {
        let name = |subject| format!("{subject:?}").to_lowercase();
        let (asked, subject) = (name(asked), name(subject));
        return Err(format!("asks {asked}, but expects what answers {subject}"));
    }
    let failed = |error: serde_json::Error| format!("expect: {error}");
    let value = in_full(expect);
    let parts = match subject {
        Subject::Decide => Parts::Decide(serde_json::from_value(value).map_err(failed)?),
        Subject::Route => Parts::Route(serde_json::from_value(value).map_err(failed)?),
        Subject::Limits => Parts::Limits(serde_json::from_value(value).map_err(failed)?),
        Subject::Observe if value.is_array() => {
            Parts::Observe(serde_json::from_value(value).map_err(failed)?)
        }
        Subject::Observe => Parts::Observe(Vec::new()),
    };
    Ok((subject, Expected(parts)))
}

fn subject(expect: &Value, about_outcome: bool) -> Option<Subject> {
    let word = match expect {
        Value::Array(_) => return Some(Subject::Observe),
        Value::String(word) => word,
        Value::Object(members) => members.keys().next()?,
        _ => return None,
    };
    Some(match word.as_str() {
        "proceed" | "hold" | "defer" | "refuse" => Subject::Decide,
        "abstain" | "all" | "split" => Subject::Route,
        "rates" | "concurrency" => Subject::Limits,
        "none" if about_outcome => Subject::Observe,
        "none" => Subject::Limits,
        _ => return None,
    })
}

/// A word alone stands for the whole answer.
fn in_full(expect: &Value) -> Value {
    match expect.as_str() {
        Some("none") => json!({ "rates": [], "concurrency": [] }),
        Some(word @ ("hold" | "defer" | "refuse" | "all")) => json!({ word: {} }),
        _ => expect.clone(),
    }
}

/// An answer as a case would have it.
pub(super) fn told(answer: &Answer) -> Value {
    let value = match answer {
        Answer::Decide(decision) => serde_json::to_value(decision),
        Answer::Route(decision) => serde_json::to_value(decision),
        Answer::Limits(limits) if limits.rates.is_empty() && limits.concurrency.is_empty() => {
            Ok(Value::from("none"))
        }
        Answer::Limits(limits) => serde_json::to_value(limits),
        Answer::Observe(lessons) if lessons.is_empty() => Ok(Value::from("none")),
        Answer::Observe(lessons) => serde_json::to_value(lessons),
    };
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests;
