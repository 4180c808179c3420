//! A loaded set of policies: one generation's. Immutable but for its counters. Floor 2.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use wasmtime::component::InstancePre;

use super::{
    aside::LEASH,
    bindings::Needs,
    contract::{Exports, Version},
    failure::Ladder,
    instance::State,
    signature::Signed,
    stats::PolicyStats,
};
use crate::config::{FailMode, Mode, PluginSource, PolicyConfig, TableConfig};

/// A hook that a policy may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// May this message go now?
    Freeze,
    /// Where does it go?
    Routing,
    /// How fast may it go?
    Throttling,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 3] = [Self::Freeze, Self::Routing, Self::Throttling];

    /// The name of the hook's interface in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Routing => "routing",
            Self::Throttling => "throttling",
        }
    }
}

/// What a policy says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The plugin's own name; the configuration may call the policy otherwise.
    pub name: String,
    /// Its version, as its author counts.
    pub version: String,
    /// JSON Schema of its settings.
    pub settings_schema: String,
    /// Counters that it may add to.
    pub metrics: Vec<String>,
}

/// One policy, compiled, checked and configured.
#[derive(Debug)]
pub struct Policy {
    pub(super) template: Template,
    description: Description,
    needs: Needs,
    config: PolicyConfig,
    pub(super) origin: Origin,
}

/// Where a policy's plugin comes from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// BLAKE3 of the component, in hexadecimal.
    pub(super) digest: String,
    pub(super) signed: Signed,
}

impl Policy {
    pub(super) fn new(
        template: Template,
        description: Description,
        needs: Needs,
        config: PolicyConfig,
        origin: Origin,
    ) -> Self {
        Self { template, description, needs, config, origin }
    }

    /// Its name in the configuration: scopes limit keys and metrics.
    pub fn name(&self) -> &str {
        &self.template.shared.name
    }

    /// Whether it has a hook.
    pub fn has(&self, hook: Hook) -> bool {
        match hook {
            Hook::Freeze => self.template.exports.has_freeze(),
            Hook::Routing => self.template.exports.has_routing(),
            Hook::Throttling => self.template.exports.has_throttling(),
        }
    }

    /// What it says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The version of the contract that it was written for.
    pub fn contract(&self) -> Version {
        self.template.exports.version
    }

    /// What it asked for.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Whether its answers count.
    pub fn mode(&self) -> &Mode {
        &self.config.mode
    }

    /// Whether they do.
    pub fn is_live(&self) -> bool {
        self.config.mode == Mode::Live
    }

    /// What its failure means at a hook: the configured mode or the hook's default.
    pub fn fail_mode(&self, hook: Hook) -> FailMode {
        self.config.fail.unwrap_or(match hook {
            Hook::Freeze => FailMode::Hold,
            Hook::Routing => FailMode::Defer,
            Hook::Throttling => FailMode::Ignore,
        })
    }

    /// Its entry in the configuration.
    pub fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// The operator's tables that it may look into, by name.
    pub fn tables(&self) -> &HashMap<String, BTreeMap<String, String>> {
        &self.template.shared.tables
    }

    /// BLAKE3 of the component, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.origin.digest
    }

    /// Who signed the component.
    pub fn signed(&self) -> &Signed {
        &self.origin.signed
    }

    /// Where it comes from.
    pub fn source(&self) -> &PluginSource {
        &self.config.plugin
    }

    /// Bytes of memory that one instance may have.
    pub fn memory(&self) -> usize {
        self.template.shared.memory
    }

    /// What is counted about it.
    pub fn stats(&self) -> &Arc<PolicyStats> {
        &self.template.shared.stats
    }
}

/// All policies of one configuration, live ones and shadows. Share it in an `Arc`; workers keep warm instances for it.
#[derive(Debug)]
pub struct PolicySet {
    id: u64,
    policies: Vec<Policy>,
    tables: Vec<TableConfig>,
    upstreams: Vec<String>,
    needs: Needs,
    freezers: Vec<usize>,
    routers: Vec<usize>,
    throttlers: Vec<usize>,
    observers: Vec<usize>,
    shadows: Shadows,
    pub(super) ladder: Ladder,
    generation: AtomicU64,
}

/// A policy that is asked beside others, in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shadow {
    /// Index of the policy.
    pub(super) policy: usize,
    /// It is asked about transactions whose bucket is below this.
    pub(super) buckets: u32,
}

/// Who is asked beside whom.
#[derive(Debug, Default)]
struct Shadows {
    /// By the index of a live policy: those that are asked what it is asked.
    of: Vec<Vec<Shadow>>,
    /// By hook: those that are asked there as one more policy.
    added: [Vec<Shadow>; Hook::ALL.len()],
}

impl Shadows {
    fn new(policies: &[Policy]) -> Self {
        let mut shadows = Self { of: vec![Vec::new(); policies.len()], ..Self::default() };
        for (index, policy) in policies.iter().enumerate() {
            let Mode::Shadow { percent, replaces } = policy.mode() else {
                continue;
            };
            let one = Shadow { policy: index, buckets: percent * 100 };
            let replaced = replaces.as_deref().and_then(|name| {
                policies.iter().position(|other| other.is_live() && other.name() == name)
            });
            if let Some(replaced) = replaced {
                shadows.of[replaced].push(one);
            }
            // Where the one that it would replace is not asked, it would be one more.
            for hook in Hook::ALL {
                if policy.has(hook) && !replaced.is_some_and(|old| policies[old].has(hook)) {
                    shadows.added[hook as usize].push(one);
                }
            }
        }
        shadows
    }
}

impl PolicySet {
    pub(super) fn new(
        id: u64,
        policies: Vec<Policy>,
        tables: Vec<TableConfig>,
        upstreams: Vec<String>,
    ) -> Self {
        let with = |wanted: &dyn Fn(&Policy) -> bool| {
            let wanted = |&index: &usize| policies[index].is_live() && wanted(&policies[index]);
            (0..policies.len()).filter(wanted).collect::<Vec<_>>()
        };
        Self {
            id,
            freezers: with(&|policy| policy.has(Hook::Freeze)),
            routers: with(&|policy| policy.has(Hook::Routing)),
            throttlers: with(&|policy| policy.has(Hook::Throttling)),
            observers: with(&|policy| policy.needs.outcomes),
            needs: union(policies.iter().map(Policy::needs)),
            shadows: Shadows::new(&policies),
            policies,
            tables,
            upstreams,
            ladder: Ladder::new(id),
            generation: AtomicU64::new(0),
        }
    }

    /// Unique in the process; later sets have greater ones.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Number of the generation that asks it; 0 before there is one.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// It is asked by this generation from now on.
    pub fn belongs_to(&self, generation: u64) {
        self.generation.store(generation, Relaxed);
    }

    /// All policies in the order of the configuration. A policy's index here is what the calls
    /// of [`WorkerPolicies`](super::WorkerPolicies) take.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Names of the configuration's upstreams: a route may name only these.
    pub fn upstreams(&self) -> &[String] {
        &self.upstreams
    }

    /// What at least one policy asked for: what a transaction must carry.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Indexes of the live policies with a freeze hook, in order.
    pub fn freezers(&self) -> &[usize] {
        &self.freezers
    }

    /// Indexes of the live policies with a routing hook, in order.
    pub fn routers(&self) -> &[usize] {
        &self.routers
    }

    /// Indexes of the live policies with a throttling hook, in order.
    pub fn throttlers(&self) -> &[usize] {
        &self.throttlers
    }

    /// Indexes of the live policies that want outcomes, in order.
    pub fn observers(&self) -> &[usize] {
        &self.observers
    }

    /// Whether a shadow is asked at a hook as one more policy.
    pub fn has_added(&self, hook: Hook) -> bool {
        !self.added(hook).is_empty()
    }

    pub(super) fn added(&self, hook: Hook) -> &[Shadow] {
        &self.shadows.added[hook as usize]
    }

    /// The shadows that are asked what a live policy is asked.
    pub(super) fn shadows_of(&self, policy: usize) -> &[Shadow] {
        &self.shadows.of[policy]
    }

    /// The operator's tables that its policies may look into.
    pub fn tables(&self) -> &[TableConfig] {
        &self.tables
    }

    /// The configuration that it was loaded from.
    pub fn configs(&self) -> Vec<PolicyConfig> {
        self.policies.iter().map(|policy| policy.config.clone()).collect()
    }

    /// Whether it asks the same components in the same way, with the same tables.
    pub fn is_same_as(&self, other: &Self) -> bool {
        // A line above an entry changes its place.
        let of = |policy: &Policy| {
            let config = PolicyConfig { place: String::new(), ..policy.config.clone() };
            (config, policy.origin.digest.clone())
        };
        let has_same = self.policies.iter().map(of).eq(other.policies.iter().map(of));
        has_same && self.tables == other.tables
    }

    /// Whether its policies failed on so many messages that the set before should come back.
    pub fn is_condemned(&self) -> bool {
        self.ladder.is_condemned()
    }

    /// Whether a policy failed on this message so often that it is not asked again.
    pub fn is_parked(&self, policy: usize, message: &str) -> bool {
        self.ladder.is_parked(policy, message)
    }
}

/// All that is asked for, each thing once.
fn union<'a>(all: impl Iterator<Item = &'a Needs>) -> Needs {
    let mut union = Needs::default();
    let add = |to: &mut Vec<String>, from: &[String]| {
        for one in from {
            if !to.contains(one) {
                to.push(one.clone());
            }
        }
    };
    for needs in all {
        add(&mut union.attributes, &needs.attributes);
        add(&mut union.upstreams, &needs.upstreams);
        union.outcomes |= needs.outcomes;
    }
    union
}

/// Tables of the operator by name.
pub(super) type Tables = HashMap<String, BTreeMap<String, String>>;

/// What every instance of one policy has in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) stats: Arc<PolicyStats>,
    /// Declared counters and their cells.
    pub(super) custom: Vec<(String, Arc<AtomicU64>)>,
    pub(super) tables: Arc<Tables>,
    pub(super) settings: String,
    pub(super) upstreams: Vec<String>,
    /// Bytes of linear memory.
    pub(super) memory: usize,
    /// Bounds of one call and of making an instance ready.
    pub(super) call: Budget,
    pub(super) setup: Budget,
}

/// The time of a call as the engine counts it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Budget {
    Ticks(u64),
    Fuel(u64),
    /// Little, on a worker: see `aside`.
    Leash,
}

impl Budget {
    /// What a worker gives a call that may be asked elsewhere, where that is less.
    pub(super) fn on_leash(self) -> Option<Self> {
        match self {
            Self::Ticks(ticks) if ticks > LEASH => Some(Self::Leash),
            _ => None,
        }
    }
}

/// Everything needed to make an instance of one policy.
pub(super) struct Template {
    pub(super) shared: Arc<Shared>,
    pub(super) pre: InstancePre<State>,
    pub(super) exports: Exports,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("shared", &self.shared).finish_non_exhaustive()
    }
}
