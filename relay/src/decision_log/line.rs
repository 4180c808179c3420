//! The lines of the decision log, as they are written and read. Stable: fields may be added.
//! Floor 4.
//!
//! A file has a `policy` line before the first `call` of that policy with those settings, so that
//! each file can be replayed alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    config::Told,
    decision::record::{Question, Said},
    policy::Policy,
};

/// Bytes of settings or tables that a line takes; of more it has the digest. Far within what
/// `rotation` takes for a line.
pub const WHOLE: usize = 256 << 10;
/// In [`CallLine::hidden`]: words of the answer are replaced.
pub const ANSWER: &str = "answer";

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// A policy as calls below ask it.
    Policy(Box<PolicyLine>),
    /// A question and what came of it.
    Call(Box<CallLine>),
    /// Some are missing here.
    Lost {
        /// How many.
        count: u64,
    },
}

/// A policy with all that it decides by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyLine {
    /// What calls name it by: a hash of all of it.
    pub context: String,
    /// Its name in the configuration.
    pub policy: String,
    /// BLAKE3 of its component.
    pub plugin: String,
    /// The version of the contract that it was written for.
    pub contract: String,
    /// BLAKE3 of `settings`.
    pub settings_digest: String,
    /// The settings as JSON text; none where they are too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// The upstreams of the configuration.
    pub upstreams: Vec<String>,
    /// BLAKE3 of `tables`.
    pub tables_digest: String,
    /// The operator's tables; none where they are too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Bytes of memory that an instance of it has.
    pub memory: usize,
    /// Milliseconds that a call of it may take.
    pub timeout_ms: u64,
    /// The attributes that transactions had: what all policies asked for.
    pub attributes: Vec<String>,
    /// The upstreams whose state transactions had.
    pub states: Vec<String>,
    /// Local parts of addresses are hashed.
    pub hashed: bool,
}

/// One call. It can be read without any other line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallLine {
    /// The time of the question.
    pub time: String,
    /// The generation that asked.
    pub generation: u64,
    /// The policy's name in the configuration.
    pub policy: String,
    /// BLAKE3 of its component.
    pub plugin: String,
    /// The version of the contract.
    pub contract: String,
    /// BLAKE3 of its settings.
    pub settings: String,
    /// BLAKE3 of the tables.
    pub tables: String,
    /// Which [`PolicyLine`] has them.
    pub context: String,
    /// The message; an outcome is of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Nanoseconds that it took.
    pub took_ns: u64,
    /// Fuel that it took, where calls are bounded by fuel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// What of it is not as it was: attributes by name, [`ANSWER`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// The question.
    pub question: Question,
    /// What came of it.
    pub said: Said,
}

impl Line {
    /// Its text, with its end.
    pub fn text(&self) -> Vec<u8> {
        // Texts, numbers and lists of them are never an error.
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

impl PolicyLine {
    /// Of a policy, where transactions carry what is named.
    pub fn new(policy: &Policy, upstreams: &[String], needs: [&[String]; 2], told: Told) -> Self {
        let tables = policy.tables().iter();
        let tables: BTreeMap<_, _> =
            tables.map(|(name, entries)| (name.clone(), entries.clone())).collect();
        let tables_text = serde_json::to_string(&tables).unwrap_or_default();
        let config = policy.config();
        let [attributes, states] = needs.map(<[String]>::to_vec);
        let mut line = Self {
            context: String::new(),
            policy: policy.name().to_owned(),
            plugin: policy.digest().to_owned(),
            contract: policy.contract().to_string(),
            settings_digest: digest(&config.settings),
            settings: (config.settings.len() <= WHOLE).then(|| config.settings.clone()),
            upstreams: upstreams.to_vec(),
            tables_digest: digest(&tables_text),
            tables: (tables_text.len() <= WHOLE).then_some(tables),
            memory: config.memory,
            timeout_ms: u64::try_from(config.timeout.as_millis()).unwrap_or(u64::MAX),
            attributes,
            states,
            hashed: told == Told::Hashed,
        };
        line.context = digest(&serde_json::to_string(&line).unwrap_or_default());
        line.context.truncate(16);
        line
    }
}

/// BLAKE3 in hexadecimal.
pub fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
