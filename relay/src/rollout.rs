//! Roll-outs of plugins: what is known of each, which step is next, and what is in force because of
//! it. Pure: counts and time come in, steps come out. Floor 3.
//!
//! `store` keeps it on disk, `overlay` makes of it and a configuration the policies to load. Who
//! counts, loads and swaps is the process (`process/rollouts.rs`).
//!
//! A roll-out begins when a plugin has been verified and checked. It goes from `shadow` to `watched`
//! (live) to `settled`; or to `stopped`, when its answers differ too much, or to `rolled-back`, when
//! it fails too often or somebody wants what was there before. A step is left out only by name.

mod overlay;
mod store;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use overlay::{CANDIDATE, Overlaid, bare, overlay};
pub use store::{DIRECTORY, FILES, STATE, Store, StoreError};

use crate::{decision::record::Class, plan::Timestamp};

/// Earlier releases that are kept for going back to, of each policy.
const RELEASES: usize = 4;
/// Calls before an error rate says anything: one failure in the first call is no rate.
pub const LEAST_CALLS: u64 = 20;

/// How far a roll-out has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It is asked beside the live one, and changes nothing.
    Shadow,
    /// It is live, and goes when it fails too often.
    Watched,
    /// It is live, and the roll-out is over.
    Settled,
    /// It never went live.
    Stopped,
    /// It was live, and what was there before is again.
    RolledBack,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 5] =
        [Self::Shadow, Self::Watched, Self::Settled, Self::Stopped, Self::RolledBack];

    /// The name in metrics, logs and lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Watched => "watched",
            Self::Settled => "settled",
            Self::Stopped => "stopped",
            Self::RolledBack => "rolled-back",
        }
    }

    /// Whether something is still to come.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Shadow | Self::Watched)
    }
}

/// A step that may be left out, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skip {
    /// Somebody trusted has signed it.
    Verify,
    /// It was asked beside the live one first.
    Shadow,
    /// It is rolled back by itself when it fails.
    Watch,
}

impl Skip {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Verify, Self::Shadow, Self::Watch];

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Shadow => "shadow",
            Self::Watch => "watch",
        }
    }
}

impl FromStr for Skip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|skip| skip.as_str() == text).ok_or_else(|| {
            "is no step that can be left out; there are verify, shadow and watch".to_owned()
        })
    }
}

/// A share, in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Percent(u16);

impl Percent {
    const WHOLE: u16 = 10_000;

    /// So many percent.
    pub const fn of(percent: u8) -> Self {
        assert!(percent <= 100, "a share is at most the whole");
        Self(percent as u16 * 100)
    }

    /// Whether `part` is a greater share of `whole` than this.
    pub fn is_exceeded(self, part: u64, whole: u64) -> bool {
        u128::from(part) * u128::from(Self::WHOLE) > u128::from(whole) * u128::from(self.0)
    }
}

impl TryFrom<f64> for Percent {
    type Error = String;

    #[allow(clippy::cast_possible_truncation, reason = "0 to 10,000 after the check")]
    fn try_from(percent: f64) -> Result<Self, String> {
        let hundredths = percent * 100.0;
        match (0.0..=f64::from(Self::WHOLE)).contains(&hundredths) {
            true if (hundredths - hundredths.round()).abs() < 1e-6 => {
                Ok(Self(hundredths.round() as u16))
            }
            true => Err("has more than two decimals".to_owned()),
            false => Err("is not 0 to 100 percent".to_owned()),
        }
    }
}

impl From<Percent> for f64 {
    fn from(percent: Percent) -> Self {
        Self::from(percent.0) / 100.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text);
        let plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        if number.is_empty() || !number.bytes().all(plain) {
            return Err("write percent, such as 1 or 0.5".to_owned());
        }
        let percent: f64 = number.parse().map_err(|_| "is no number".to_owned())?;
        Self::try_from(percent)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(*self))
    }
}

/// What a roll-out must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// Answers that are compared before it goes live.
    pub shadow_calls: u64,
    /// How many of them may differ.
    pub max_differences: Percent,
    /// How many of its calls may fail while it is watched.
    pub max_errors: Percent,
    /// How long it is watched.
    pub watch_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            shadow_calls: 1000,
            max_differences: Percent::of(1),
            max_errors: Percent::of(1),
            watch_ms: 600_000,
        }
    }
}

/// A component that was installed, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// BLAKE3 of it, in hexadecimal.
    pub digest: String,
    /// When it came.
    pub at: Timestamp,
    /// Who brought it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// What was left out.
    pub skipped: Vec<Skip>,
}

/// One roll-out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Of what.
    pub release: Release,
    /// How far it has come.
    pub stage: Stage,
    /// Since when.
    pub since: Timestamp,
    /// What it must keep to.
    pub bounds: Bounds,
    /// Why it is in this stage, in words.
    pub why: String,
}

/// What was installed for one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the configuration named then. When it names something else, that is meant.
    pub configured: String,
    /// What was installed, the latest last: that is in force. None: what the configuration names.
    pub installed: Vec<Release>,
    /// The latest roll-out.
    pub rollout: Option<Rollout>,
}

/// What was installed, by the names of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The policies.
    pub policies: BTreeMap<String, Entry>,
}

/// What was counted since a stage began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// In shadow: answers by how they differ from the live one's, in the order of [`Class::ALL`].
    pub classes: [u64; Class::ALL.len()],
    /// Live: calls.
    pub calls: u64,
    /// Of these, the ones that failed.
    pub failures: u64,
}

impl Counted {
    /// What has been counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            classes: std::array::from_fn(|class| self.classes[class] - before.classes[class]),
            calls: self.calls - before.calls,
            failures: self.failures - before.failures,
        }
    }

    /// Answers that were compared.
    pub fn compared(&self) -> u64 {
        self.sum(|class| class != Class::NotReplayable)
    }

    /// Of these, the ones that would have changed what becomes of a message, and those that were
    /// none. Words for people alone change nothing.
    pub fn different(&self) -> u64 {
        self.sum(is_different)
    }

    fn sum(&self, counts: impl Fn(Class) -> bool) -> u64 {
        Class::ALL
            .into_iter()
            .zip(self.classes)
            .filter(|(one, _)| counts(*one))
            .map(|(_, n)| n)
            .sum()
    }

    /// How answers differ, in words.
    fn differences(&self) -> String {
        let all = Class::ALL.into_iter().zip(self.classes);
        let found = all.filter(|(class, count)| is_different(*class) && *count > 0);
        let words: Vec<_> =
            found.map(|(class, count)| format!("{} {count}", class.as_str())).collect();
        match words.is_empty() {
            true => String::new(),
            false => format!(" ({})", words.join(", ")),
        }
    }
}

fn is_different(class: Class) -> bool {
    !matches!(class, Class::Same | Class::Text | Class::NotReplayable)
}

/// What is to be done next with a roll-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes live, with this said of it.
    Promote(String),
    /// It does not, for this reason.
    Stop(String),
    /// What was there before comes back, for this reason.
    RollBack(String),
    /// It stays.
    Settle(String),
}

/// Why an order about roll-outs is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One is under way.
    #[error(
        "a roll-out of {digest} is in stage {stage}: wait for its end, or `wavegate plugin \
         rollback {policy}`"
    )]
    UnderWay {
        /// The policy.
        policy: String,
        /// Of what.
        digest: String,
        /// How far it has come.
        stage: &'static str,
    },
    /// There is nothing to go back from.
    #[error("nothing is installed for {0}: the plugin that the configuration names is in force")]
    Nothing(String),
}

/// Which step is next, if one is.
pub fn next(rollout: &Rollout, counted: &Counted, now: Timestamp) -> Option<Step> {
    let Bounds { shadow_calls, max_differences, max_errors, watch_ms } = rollout.bounds;
    let Counted { calls, failures, .. } = *counted;
    let (compared, different) = (counted.compared(), counted.different());
    let how = counted.differences();
    match rollout.stage {
        // However the rest is answered, it would be too much: no need to wait.
        Stage::Shadow if max_differences.is_exceeded(different, shadow_calls.max(compared)) => {
            Some(Step::Stop(format!(
                "{different} of {compared} answers differ{how}, more than {max_differences} of \
                 {shadow_calls}"
            )))
        }
        Stage::Shadow if compared >= shadow_calls => {
            Some(Step::Promote(format!("{different} of {compared} answers differ{how}")))
        }
        Stage::Watched if calls >= LEAST_CALLS && max_errors.is_exceeded(failures, calls) => Some(
            Step::RollBack(format!("{failures} of {calls} calls failed, more than {max_errors}")),
        ),
        Stage::Watched if now >= rollout.since.saturating_add_ms(watch_ms) => {
            Some(Step::Settle(format!("{failures} of {calls} calls failed")))
        }
        _ => None,
    }
}

impl State {
    /// A policy's roll-out that is not over.
    pub fn under_way(&self, policy: &str) -> Option<&Rollout> {
        let rollout = self.policies.get(policy)?.rollout.as_ref()?;
        rollout.stage.is_under_way().then_some(rollout)
    }

    /// What is in force for a policy, if it was installed.
    pub fn live(&self, policy: &str) -> Option<&Release> {
        self.policies.get(policy)?.installed.last()
    }

    /// Begins a roll-out. `configured` is what the configuration names.
    pub fn begin(
        &mut self,
        policy: &str,
        configured: &str,
        release: Release,
        bounds: Bounds,
    ) -> Result<Stage, Refusal> {
        if let Some(rollout) = self.under_way(policy) {
            return Err(Refusal::UnderWay {
                policy: policy.to_owned(),
                digest: rollout.release.digest.clone(),
                stage: rollout.stage.as_str(),
            });
        }
        let fresh =
            || Entry { configured: configured.to_owned(), installed: Vec::new(), rollout: None };
        let entry = self.policies.entry(policy.to_owned()).or_insert_with(fresh);
        if entry.configured != configured {
            // What it was installed for is not there any more.
            *entry = fresh();
        }
        let since = release.at;
        let why = release.reason.clone();
        let shadow = !release.skipped.contains(&Skip::Shadow);
        let rollout = Rollout { release, stage: Stage::Shadow, since, bounds, why };
        entry.rollout = Some(rollout);
        if !shadow {
            self.promote(policy, "shadow was left out", since);
        }
        Ok(self
            .policies
            .get(policy)
            .and_then(|entry| entry.rollout.as_ref())
            .map_or(Stage::Shadow, |rollout| rollout.stage))
    }

    /// It goes live.
    pub fn promote(&mut self, policy: &str, why: &str, now: Timestamp) {
        let Some(entry) = self.policies.get_mut(policy) else { return };
        let Some(rollout) = entry.rollout.as_mut() else { return };
        let watch = !rollout.release.skipped.contains(&Skip::Watch);
        rollout.stage = if watch { Stage::Watched } else { Stage::Settled };
        rollout.since = now;
        why.clone_into(&mut rollout.why);
        entry.installed.push(rollout.release.clone());
        let over = entry.installed.len().saturating_sub(RELEASES);
        entry.installed.drain(..over);
    }

    /// It came to its end: `Settled` or `Stopped`.
    pub fn end(&mut self, policy: &str, stage: Stage, why: &str, now: Timestamp) {
        let entry = self.policies.get_mut(policy);
        if let Some(rollout) = entry.and_then(|entry| entry.rollout.as_mut()) {
            rollout.stage = stage;
            rollout.since = now;
            why.clone_into(&mut rollout.why);
        }
    }

    /// Goes back: from a shadow to nothing, else to what was in force before. What was left.
    pub fn roll_back(
        &mut self,
        policy: &str,
        why: &str,
        now: Timestamp,
    ) -> Result<Release, Refusal> {
        let nothing = || Refusal::Nothing(policy.to_owned());
        let entry = self.policies.get_mut(policy).ok_or_else(nothing)?;
        let (left, stage) = match &entry.rollout {
            Some(rollout) if rollout.stage == Stage::Shadow => {
                (rollout.release.clone(), Stage::Stopped)
            }
            _ => (entry.installed.pop().ok_or_else(nothing)?, Stage::RolledBack),
        };
        // What is told is the way of the release that was left.
        let kept = entry.rollout.take().filter(|rollout| rollout.release == left);
        let bounds = kept.map(|rollout| rollout.bounds).unwrap_or_default();
        let why = why.to_owned();
        entry.rollout = Some(Rollout { release: left.clone(), stage, since: now, bounds, why });
        Ok(left)
    }

    /// Digests of all that is in force, may be again, or is on its way.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.policies.values().flat_map(|entry| {
            let coming = entry.rollout.as_ref().filter(|one| one.stage.is_under_way());
            let coming = coming.map(|one| &one.release);
            entry.installed.iter().chain(coming).map(|release| &*release.digest)
        })
    }
}
