//! What a process has once: the engine, its ticker, the compiler, the auditor, the thread that asks
//! shadows, the counters.
//! Floor 2.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use wasmtime::{Engine, component::Linker};

use super::{
    aside::Aside,
    audit::{AuditMode, Auditor},
    compile::Compiler,
    engine::{self, FUEL_PER_MS, Metering, TICK, Ticker},
    failure::Condemnation,
    inspect::{self, Inspection},
    instance::{self, State},
    load::{Loader, PolicyError, PolicyProblem},
    set::{Budget, Policy, PolicySet, Tables},
    shadow::{ShadowMode, Shadower},
    signature::TrustedKeys,
    stats::PolicyStats,
    tap::Tap,
};
use crate::config::{PolicyConfig, TableConfig};

/// The least time for making an instance ready: a policy may work its settings out there.
const MIN_SETUP: Duration = Duration::from_secs(1);

/// How a host is made.
#[derive(Clone)]
pub struct HostOptions {
    /// What bounds the time of a call.
    pub metering: Metering,
    /// Seed of what is random here: when an instance is recycled, which calls are audited.
    pub seed: u64,
    /// Instances in the whole process at once: workers times policies, twice while a new set
    /// takes over, and a few more.
    pub instances: u32,
    /// An instance is recycled after about this many calls (half to one and a half of it).
    pub recycle_after: u32,
    /// One call in about this many is repeated in a fresh instance; 0: none.
    pub audit_every: u32,
    /// Where audited calls are repeated.
    pub audit: AuditMode,
    /// Where shadows are asked.
    pub shadow: ShadowMode,
    /// Threads that compile.
    pub compile_threads: usize,
    /// The program that compiles, in a process of its own with bounds on time and memory; none:
    /// this process does, without. See [`HostOptions::compiling_apart`].
    pub compile_apart: Option<PathBuf>,
    /// Called once for a set whose policies fail on too many messages. It runs on the thread
    /// that carries the mail: it should only wake somebody.
    pub on_condemned: Option<Arc<dyn Fn(Condemnation) + Send + Sync>>,
}

impl HostOptions {
    /// What production uses; `seed` comes from the world's entropy.
    pub fn production(seed: u64) -> Self {
        Self {
            metering: Metering::Epochs,
            seed,
            instances: 512,
            recycle_after: 10_000,
            audit_every: 256,
            audit: AuditMode::Thread,
            shadow: ShadowMode::Thread,
            compile_threads: 2,
            compile_apart: None,
            on_condemned: None,
        }
    }

    /// For the program `wavegate`, which can call itself to compile: everywhere where components
    /// come from somebody else.
    pub fn compiling_apart(self) -> Self {
        Self { compile_apart: Some("/proc/self/exe".into()), ..self }
    }

    /// What simulation uses: everything follows from the seed.
    pub fn simulation(seed: u64) -> Self {
        Self {
            metering: Metering::Fuel,
            instances: 128,
            audit: AuditMode::Inline,
            shadow: ShadowMode::Inline,
            ..Self::production(seed)
        }
    }
}

impl fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostOptions")
            .field("metering", &self.metering)
            .field("seed", &self.seed)
            .field("instances", &self.instances)
            .field("recycle_after", &self.recycle_after)
            .field("audit_every", &self.audit_every)
            .field("audit", &self.audit)
            .field("shadow", &self.shadow)
            .finish_non_exhaustive()
    }
}

/// The host could not be made: the machine's fault.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The engine refuses this machine, mostly for want of address space.
    #[error(
        "the WebAssembly engine cannot start (it reserves address space, not memory; a limit on \
         it, such as LimitAS or ulimit -v, must be lifted): {0}"
    )]
    Engine(String),
    /// A thread could not be started.
    #[error("a thread of the policy host cannot start: {0}")]
    Thread(#[from] io::Error),
}

/// The policy host of a process.
pub struct PolicyHost {
    engine: Engine,
    linker: Linker<State>,
    compiler: Compiler,
    pub(super) options: HostOptions,
    /// None where fuel bounds calls.
    pub(super) aside: Option<Aside>,
    // Dropped in this order: what still runs is stopped by the ticker's epochs.
    pub(super) auditor: Auditor,
    pub(super) shadower: Shadower,
    /// Who hears of live calls.
    pub(super) tap: OnceLock<Arc<dyn Tap>>,
    _ticker: Option<Ticker>,
    stats: Mutex<BTreeMap<String, Arc<PolicyStats>>>,
    sets: AtomicU64,
    workers: AtomicU64,
}

impl PolicyHost {
    /// Makes the host. `cache_dir` is where compiled code is kept; it must be ours alone, and is
    /// made if it is missing (its parent must be there).
    pub fn new(cache_dir: Option<PathBuf>, options: HostOptions) -> Result<Arc<Self>, HostError> {
        let failed = |error: wasmtime::Error| HostError::Engine(format!("{error:#}"));
        let engine = engine::build(options.metering, options.instances).map_err(failed)?;
        let linker = instance::linker(&engine).map_err(failed)?;
        let (ticker, aside) = match options.metering {
            Metering::Epochs => (Some(Ticker::start(&engine)?), Some(Aside::start()?)),
            Metering::Fuel => (None, None),
        };
        Ok(Arc::new(Self {
            compiler: Compiler::new(&engine, cache_dir, &options),
            linker,
            auditor: Auditor::start(options.audit)?,
            aside,
            shadower: Shadower::start(options.shadow, options.recycle_after)?,
            tap: OnceLock::new(),
            _ticker: ticker,
            engine,
            options,
            stats: Mutex::default(),
            sets: AtomicU64::new(0),
            workers: AtomicU64::new(0),
        }))
    }

    /// Compiles, checks and configures all policies of a configuration. It blocks, for seconds
    /// where something must be compiled: call it off the runtime. All errors are given, in the
    /// order of the configuration; nothing changes for the sets that exist.
    pub fn load(
        &self,
        policies: &[PolicyConfig],
        tables: &[TableConfig],
        upstreams: &[String],
        builtin: &dyn Fn(&str) -> Option<&'static [u8]>,
    ) -> Result<Arc<PolicySet>, Vec<PolicyError>> {
        let keys = TrustedKeys::default();
        self.load_changed(&keys, policies, None, tables, upstreams, builtin)
    }

    /// The same, with keys whose signatures are believed. A policy that is in the set `before` with the
    /// same entry is made of the component that it has there, whatever its file is by now.
    pub fn load_changed(
        &self,
        keys: &TrustedKeys,
        policies: &[PolicyConfig],
        before: Option<&PolicySet>,
        tables: &[TableConfig],
        upstreams: &[String],
        builtin: &dyn Fn(&str) -> Option<&'static [u8]>,
    ) -> Result<Arc<PolicySet>, Vec<PolicyError>> {
        let known =
            tables.iter().map(|table| (table.name.clone(), table.entries.clone())).collect();
        let budgets = |policy: &PolicyConfig| self.budgets(policy);
        let loader = self.loader(Arc::new(known), upstreams, keys, builtin, &budgets);
        let mut loaded = Vec::with_capacity(policies.len());
        let mut errors = Vec::new();
        for config in policies {
            let is_same = |policy: &&Policy| policy.config() == config;
            let before = before.and_then(|set| set.policies().iter().find(is_same));
            let stats = self.stats_of(&config.name);
            let one = match before {
                Some(policy) => loader.load_again(policy, stats),
                None => loader.load(config, stats),
            };
            match one {
                Ok(policy) => loaded.push(policy),
                Err(problems) => errors.extend(problems.into_iter().map(|problem| PolicyError {
                    place: config.place.clone(),
                    policy: config.name.clone(),
                    problem,
                })),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let id = self.sets.fetch_add(1, Relaxed) + 1;
        Ok(Arc::new(PolicySet::new(id, loaded, tables.to_vec(), upstreams.to_vec())))
    }

    /// Looks at a component and asks it what it is. It is given no settings. An error where it is no
    /// component that the engine takes. It blocks, for seconds where it must be compiled.
    pub fn inspect(&self, wasm: &[u8]) -> Result<Inspection, PolicyProblem> {
        let budgets = |policy: &PolicyConfig| self.budgets(policy);
        let keys = TrustedKeys::default();
        let loader = self.loader(Arc::default(), &[], &keys, &|_| None, &budgets);
        inspect::inspect(&loader, wasm)
    }

    fn loader<'a>(
        &'a self,
        tables: Arc<Tables>,
        upstreams: &'a [String],
        keys: &'a TrustedKeys,
        builtin: &'a dyn Fn(&str) -> Option<&'static [u8]>,
        budgets: &'a dyn Fn(&PolicyConfig) -> (Budget, Budget),
    ) -> Loader<'a> {
        Loader {
            engine: &self.engine,
            linker: &self.linker,
            compiler: &self.compiler,
            tables,
            upstreams,
            keys,
            builtin,
            budgets,
        }
    }

    /// What is counted, for every policy name that was ever loaded, by name.
    pub fn stats(&self) -> Vec<Arc<PolicyStats>> {
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.values().cloned().collect()
    }

    fn stats_of(&self, name: &str) -> Arc<PolicyStats> {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(PolicyStats::new(name));
        Arc::clone(stats.entry(name.to_owned()).or_insert_with(new))
    }

    /// A seed of its own for each worker.
    pub(super) fn worker_seed(&self) -> u64 {
        let worker = self.workers.fetch_add(1, Relaxed) + 1;
        self.options.seed ^ worker.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn budgets(&self, policy: &PolicyConfig) -> (Budget, Budget) {
        let budget = |time: Duration| match self.options.metering {
            Metering::Epochs => {
                let ticks = time.as_millis().div_ceil(TICK.as_millis()) + 1;
                Budget::Ticks(u64::try_from(ticks).unwrap_or(u64::MAX))
            }
            Metering::Fuel => {
                let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                Budget::Fuel(ms.saturating_mul(FUEL_PER_MS))
            }
        };
        (budget(policy.timeout), budget(policy.timeout.max(MIN_SETUP)))
    }
}

impl fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyHost").field("options", &self.options).finish_non_exhaustive()
    }
}
