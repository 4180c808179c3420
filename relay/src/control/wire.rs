//! Questions and answers of the control socket, as JSON. Both sides use these types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    conductor::status::{PlanStatus, WaveStatus},
    decision::record::Class,
    message::MessageId,
    queue::{Refusal, Selection, Standing},
    rollout::{Bounds, Skip},
};

/// Messages that a list has at most.
pub const LIST_MOST: usize = 10_000;
/// Messages that a list has where nothing is said.
pub const LIST_DEFAULT: usize = 100;
/// Ids that an answer names at most, of each kind.
pub const NAMED: usize = 100;
/// Bytes of a reason.
pub const REASON: usize = 500;

/// Asks for a change: `POST /v1/queue/ACTION`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Which messages.
    #[serde(default)]
    pub selection: Selection,
    /// That a selection without criteria means all, and is meant.
    #[serde(default)]
    pub all: bool,
    /// Why.
    pub reason: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks whether gateways are there: `POST /v1/links/UPSTREAM/ping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// How often each is asked.
    pub count: u32,
}

/// What was changed, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The action.
    pub action: String,
    /// Nothing was changed.
    pub dry_run: bool,
    /// Messages.
    pub messages: u64,
    /// Their recipients that still wait, or did.
    pub recipients: u64,
    /// The ids of the first of them.
    pub ids: Vec<MessageId>,
    /// What was selected and not changed.
    pub refused: Vec<Refused>,
    /// Messages whose envelope could not be read, and so not be compared.
    pub unreadable: u64,
    /// Why nothing may leave, if nothing may.
    pub all_held: Option<String>,
}

/// Messages that were not changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// The same in words.
    pub text: String,
    /// How many.
    pub messages: u64,
    /// The ids of the first.
    pub ids: Vec<MessageId>,
}

/// A list: `GET /v1/queue`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// All that were found.
    pub messages: u64,
    /// Their recipients that still wait.
    pub recipients: u64,
    /// Messages whose envelope could not be read, and so not be compared.
    pub unreadable: u64,
    /// Why nothing may leave, if nothing may.
    pub all_held: Option<String>,
    /// The oldest of them.
    pub oldest: Vec<Item>,
}

/// A message in a list. Times are in RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The message.
    pub id: MessageId,
    /// Its instance; none where no instance matches.
    pub instance: Option<String>,
    /// Where the latest decision sends it; none before the first.
    pub upstream: Option<String>,
    /// Where it stands.
    pub state: Standing,
    /// What it waits for.
    pub waits_for: String,
    /// Since when.
    pub since: String,
    /// When it came in.
    pub received: String,
    /// Its age in seconds.
    pub age: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Attempts made.
    pub attempts: u32,
    /// Recipients that still wait.
    pub recipients: u32,
    /// Its sender, empty for `<>`; none where its envelope cannot be read.
    pub sender: Option<String>,
    /// Its first recipient.
    pub recipient: Option<String>,
}

/// One message: `GET /v1/queue/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Show {
    /// As a list has it.
    #[serde(flatten)]
    pub item: Item,
    /// Why nothing may leave, if nothing may.
    pub all_held: Option<String>,
    /// Where it came from.
    pub client: Option<String>,
    /// The listener that took it.
    pub listener: Option<String>,
    /// What the client called itself.
    pub helo: Option<String>,
    /// Where the client wanted to go, before it was redirected here.
    pub destination: Option<String>,
    /// Who it had logged in as.
    #[serde(default)]
    pub user: Option<String>,
    /// All its recipients.
    pub envelope: Vec<Recipient>,
    /// Why the envelope is not here.
    pub unreadable: Option<String>,
    /// What was said last, and when.
    pub last: Option<Last>,
    /// An operator holds it, for this reason.
    pub operator: Option<String>,
    /// This upstream may have it already.
    pub in_doubt: Option<String>,
    /// For how many seconds it was held in all.
    pub held: u64,
    /// When it is given up; none while it is held, for its clock stands still.
    pub expires: Option<String>,
}

/// A recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// Its address.
    pub address: String,
    /// It came to an end.
    pub ended: bool,
}

/// What was said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Where the attempt went; none where it did not come that far.
    pub upstream: Option<String>,
    /// The reply, or what went wrong.
    pub text: String,
    /// When.
    pub time: String,
}

/// Whether everything is held: `GET`, `PUT` and `DELETE /v1/hold-all`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldAll {
    /// Why nothing may leave, if nothing may.
    pub all_held: Option<String>,
    /// Messages that wait.
    pub messages: u64,
    /// Of these, attempts that were under way: they go on to their end.
    pub in_flight: u64,
}

/// Why something is changed: `PUT` and `DELETE /v1/hold-all`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Why {
    /// In the operator's words.
    pub reason: String,
}

/// What a check of the spool found: `GET /v1/spool/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Messages.
    pub messages: u64,
    /// What is not as it was written.
    pub damage: Vec<String>,
}

/// All policies that were shadows since the relay was started: `GET /v1/shadows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowList {
    /// By name.
    pub shadows: Vec<Shadow>,
}

/// A shadow, since its component or its settings were last others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// Its name.
    pub policy: String,
    /// Of how many buckets it is asked; none where it is no shadow now.
    pub percent: Option<u32>,
    /// The live policy that it would take the place of; none: it would be one more.
    pub replaces: Option<String>,
    /// BLAKE3 of its component; empty before the first question.
    pub digest: String,
    /// The first question.
    pub since: Option<String>,
    /// Questions that it was asked.
    pub asked: u64,
    /// Questions for which there was no room or no time.
    pub dropped: u64,
    /// Processor time of all that were asked, in microseconds.
    pub time_us: u64,
    /// Its answers by how they differ from what counted; all classes.
    pub classes: Vec<ShadowClass>,
    /// How it failed.
    pub failures: Vec<ShadowFailures>,
    /// The last few answers of each class that differ.
    pub examples: Vec<ShadowExample>,
}

/// How many answers are of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowClass {
    /// The class.
    pub class: Class,
    /// How many.
    pub answers: u64,
}

/// How many calls failed in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowFailures {
    /// How.
    pub kind: String,
    /// How many.
    pub calls: u64,
}

/// An answer that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowExample {
    /// How.
    pub class: Class,
    /// The message; none where it was not about one.
    pub message: Option<String>,
    /// The function of the contract.
    pub function: String,
    /// When it was asked.
    pub at: String,
    /// What counted.
    pub old: String,
    /// What it said.
    pub new: String,
}

/// All waves: `GET /v1/waves`. `GET /v1/status` has more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaveList {
    /// The host's name.
    pub host: String,
    /// The moment.
    pub now: String,
    /// The plan in force.
    pub plan: PlanStatus,
    /// By time.
    pub waves: Vec<WaveStatus>,
}

/// Orders something of a wave: `POST /v1/waves/WAVE/ORDER`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveOrder {
    /// Why.
    pub reason: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// `extend`: when the wave closes, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// `extend`: so many milliseconds later than it closes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_ms: Option<u64>,
    /// `complete`: although its targets were not found well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchecked: bool,
}

/// Freezes an instance without a plan: `POST /v1/freezes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// The instance.
    pub instance: String,
    /// For so many milliseconds from now.
    pub for_ms: u64,
    /// Why.
    pub reason: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Why it was not done (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The name of the status.
    pub title: String,
    /// The status.
    pub status: u16,
    /// A word for programs: it stays the same whatever the words for people are.
    pub code: String,
    /// In words.
    pub detail: String,
}

/// What was uploaded: `PUT /v1/components/DIGEST`, with the component as the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// BLAKE3 of it.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
}

/// Installs an uploaded plugin: `POST /v1/plugins/POLICY/install`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// BLAKE3 of the component.
    pub digest: String,
    /// What it is called where it comes from, for messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Its signature, in the form of minisign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// What it must keep to.
    #[serde(default)]
    pub bounds: Bounds,
    /// Steps that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<Skip>,
    /// Why.
    pub reason: String,
    /// Only verify and check it.
    #[serde(default)]
    pub dry_run: bool,
}

/// Goes back to what was in force before: `POST /v1/plugins/POLICY/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Why.
    pub reason: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What has become of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The policy.
    pub policy: String,
    /// BLAKE3 of the component that it is about.
    pub digest: String,
    /// What it calls itself, where it was looked at.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// The trusted key that signed it.
    pub signed_by: Option<String>,
    /// The stage of its roll-out; none where nothing was changed.
    pub stage: Option<String>,
    /// In words.
    pub what: String,
}

/// All policies: `GET /v1/plugins`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PluginList {
    /// The host's name.
    pub host: String,
    /// The generation in force.
    pub generation: u64,
    /// Live ones in the order of the configuration, then those in shadow.
    pub policies: Vec<PluginStatus>,
}

/// A policy and its plugin. What is counted is counted since the process started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PluginStatus {
    /// The policy.
    pub policy: String,
    /// Its hooks.
    pub hooks: Vec<String>,
    /// `live` or `shadow`.
    pub mode: String,
    /// What the plugin calls itself.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// `builtin`, `file` or `installed`.
    pub source: String,
    /// What the configuration names.
    pub configured: String,
    /// BLAKE3 of the component.
    pub digest: String,
    /// The trusted key that signed it.
    pub signed_by: Option<String>,
    /// The id of the key that signed it, trusted or not.
    pub key: Option<String>,
    /// The generation that it is in.
    pub generation: u64,
    /// Calls.
    pub calls: u64,
    /// Mean time of a call, in nanoseconds.
    pub mean_ns: u64,
    /// Of a hundred calls ninety-nine took no longer; none where no bound is known.
    pub p99_ns: Option<u64>,
    /// Bytes that an instance may have.
    pub memory_limit: u64,
    /// Calls that gave no answer, by kind; a kind that did not come up is not here.
    pub failures: BTreeMap<String, u64>,
    /// What its failure means, by hook.
    pub fail_modes: BTreeMap<String, String>,
    /// Its latest roll-out.
    pub rollout: Option<RolloutStatus>,
    /// What roll-backs would bring back, the nearest first; then comes what is configured.
    pub earlier: Vec<String>,
}

/// A roll-out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// `shadow`, `watched`, `settled`, `stopped` or `rolled-back`.
    pub stage: String,
    /// Since when.
    pub since: String,
    /// BLAKE3 of the component.
    pub digest: String,
    /// When it began.
    pub began: String,
    /// Who began it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Steps that were left out.
    pub skipped: Vec<String>,
    /// Why it is in this stage.
    pub why: String,
    /// What it must keep to.
    pub bounds: Bounds,
    /// In shadow: answers compared.
    pub compared: u64,
    /// In shadow: of these, the ones that differed.
    pub different: u64,
    /// Watched: calls.
    pub calls: u64,
    /// Watched: of these, the ones that failed.
    pub failures: u64,
}
