//! `[decision_log]`: what is written down of the questions to policies and their answers. Floor 1.

use std::path::{Path, PathBuf};

use super::{
    reader::Section,
    relay::{MIB, TIB, path},
};

/// Messages of which the log has one, unless it says otherwise: with 1000 messages a second and
/// three policies it is some 30 kB a second.
const SAMPLE: usize = 100;

/// `[decision_log]`. Changes need a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLogConfig {
    /// The file (absolute).
    pub file: PathBuf,
    /// `sample`: it has one message in so many.
    pub sample: u32,
    /// `max_size`: bytes at which it becomes an older one.
    pub max_size: u64,
    /// `keep`: older ones that are kept.
    pub keep: usize,
    /// What it says of the part of an address before its domain.
    pub local_parts: Told,
    /// What it says of the values of header fields.
    pub headers: Told,
}

/// What is said of something that may be a person's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A hash with a key of this relay.
    Hashed,
    /// Everything.
    Plain,
}

pub(super) fn read(section: Section<'_>, base: &Path) -> Option<DecisionLogConfig> {
    let example = "a path in quotes, such as \"state/decisions.jsonl\"";
    let file = section
        .require("file", example)
        .and_then(|value| value.parse(example, |text| path(text, base)));
    let told = |key| {
        let choices = [("hashed", Told::Hashed), ("plain", Told::Plain)];
        section.choice(key, "a way to tell of it", &choices).map_or(Told::Hashed, |it| it.value)
    };
    let (local_parts, headers) = (told("local_parts"), told("headers"));
    let sample = one_in(section.integer("sample", SAMPLE, 1..=MOST));
    let max_size = section.size("max_size", 64_000_000, 4 * MIB..=TIB);
    let keep = section.integer("keep", 10, 1..=1000);
    section.finish();
    Some(DecisionLogConfig { file: file?.value, sample, max_size, keep, local_parts, headers })
}

/// The rarest sample.
pub(super) const MOST: usize = 1_000_000;

/// What a bound keeps small.
pub(super) fn one_in(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
