//! The contract with plugins, as Rust types: one set for every released version. Floor 2.
//!
//! `wit/` has the versions; none of them ever changes. The types here are those of the newest;
//! what an older one has otherwise is in a module of its own (`v0_1`). wasmtime compares them
//! with the types of a component when it is loaded, by structure, so that a slip here is an error
//! there and never a wrong value.
//!
//! To release a version: put it into `wit/`, give it a place in [`Version`], and where a record
//! that plugins are *given* has more members, keep the old one in a module like `v0_1` and lower it
//! in [`Functions`].

use wasmtime::{
    AsContextMut, StoreContextMut,
    component::{
        Component, ComponentExportIndex, ComponentType, Instance, Lift, Linker, Lower, TypedFunc,
    },
};

/// A released version of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `wit/0.1.0`.
    V0_1_0,
    /// `wit/1.0.0`.
    V1_0_0,
}

impl Version {
    /// All, the oldest first.
    pub const ALL: [Self; 2] = [Self::V0_1_0, Self::V1_0_0];
    /// The one that new plugins are written for.
    pub const NEWEST: Self = Self::V1_0_0;

    /// The number.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V1_0_0 => "1.0.0",
        }
    }

    /// The version of that number.
    pub fn of(number: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == number)
    }

    /// All numbers, for people.
    pub(super) fn list() -> String {
        Self::ALL.map(Self::as_str).join(" and ")
    }

    /// The name of an interface in this version.
    pub(super) fn interface(self, name: &str) -> String {
        format!("{PACKAGE}{name}@{}", self.as_str())
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the names of all interfaces begin with.
pub(super) const PACKAGE: &str = "wavegate:policy/";

/// Interfaces that a plugin may import; `types` has no functions.
pub(super) const IMPORTS: [&str; 4] = ["log", "metrics", "tables", "types"];

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct Window<'a> {
    pub(super) wave: &'a str,
    pub(super) opens: u64,
    pub(super) closes: u64,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct InstanceRecord<'a> {
    pub(super) name: &'a str,
    pub(super) product: &'a str,
    pub(super) environment: &'a str,
    pub(super) phase: &'a str,
    pub(super) window: Option<Window<'a>>,
    pub(super) before: &'a str,
    pub(super) after: &'a str,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct UpstreamState<'a> {
    pub(super) name: &'a str,
    pub(super) up: bool,
    pub(super) attempts: u32,
    pub(super) deferred: u32,
    pub(super) refused: u32,
    pub(super) broken: u32,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct Transaction<'a> {
    pub(super) id: &'a str,
    pub(super) now: u64,
    pub(super) received: u64,
    pub(super) client: &'a str,
    pub(super) sender: &'a str,
    pub(super) recipients: &'a [&'a str],
    pub(super) size: u64,
    pub(super) attempts: u32,
    pub(super) instance: Option<InstanceRecord<'a>>,
    pub(super) bucket: u32,
    pub(super) attributes: &'a [(&'a str, &'a str)],
    pub(super) upstreams: &'a [UpstreamState<'a>],
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct Attempt<'a> {
    pub(super) transaction: Transaction<'a>,
    pub(super) upstream: &'a str,
    pub(super) recipients: &'a [u32],
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct Outcome<'a> {
    pub(super) upstream: &'a str,
    pub(super) keys: &'a [&'a str],
    pub(super) code: u16,
    pub(super) text: &'a str,
    pub(super) now: u64,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) enhanced: String,
    pub(super) text: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Hold {
    pub(super) until: Option<u64>,
    pub(super) reason: String,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Freezing {
    #[component(name = "proceed")]
    Proceed,
    #[component(name = "hold")]
    Hold(Hold),
    #[component(name = "defer")]
    Defer(Reply),
    #[component(name = "refuse")]
    Refuse(Reply),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Target {
    pub(super) upstream: String,
    pub(super) fallbacks: Vec<String>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Share {
    pub(super) recipients: Vec<u32>,
    pub(super) target: Target,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Route {
    #[component(name = "abstain")]
    Abstain,
    #[component(name = "all")]
    All(Target),
    #[component(name = "split")]
    Split(Vec<Share>),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct RateLimit {
    pub(super) key: String,
    pub(super) quantity: u64,
    #[component(name = "per-ms")]
    pub(super) per_ms: u64,
    pub(super) burst: u64,
    pub(super) cost: u64,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ConcurrencyLimit {
    pub(super) key: String,
    pub(super) limit: u32,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct LimitSet {
    pub(super) rates: Vec<RateLimit>,
    pub(super) concurrency: Vec<ConcurrencyLimit>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Pause {
    pub(super) key: String,
    pub(super) until: u64,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Slow {
    pub(super) key: String,
    pub(super) factor: u32,
    pub(super) until: u64,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Lesson {
    #[component(name = "pause")]
    Pause(Pause),
    #[component(name = "slow")]
    Slow(Slow),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) version: String,
    #[component(name = "settings-schema")]
    pub(super) settings_schema: String,
    pub(super) metrics: Vec<String>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Diagnostic {
    pub(super) path: String,
    pub(super) message: String,
}

#[derive(ComponentType, Lift, Default)]
#[component(record)]
pub(super) struct Needs {
    pub(super) attributes: Vec<String>,
    pub(super) upstreams: Vec<String>,
    pub(super) outcomes: bool,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "guests make them")]
pub(super) enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// What was otherwise in 0.1.0.
mod v0_1 {
    use super::{ComponentType, InstanceRecord, Lift, Lower};

    #[derive(ComponentType, Lower, Clone, Copy)]
    #[component(record)]
    pub(super) struct Transaction<'a> {
        id: &'a str,
        now: u64,
        client: &'a str,
        sender: &'a str,
        recipients: &'a [&'a str],
        size: u64,
        attempts: u32,
        instance: Option<InstanceRecord<'a>>,
        bucket: u32,
        attributes: &'a [(&'a str, &'a str)],
    }

    impl<'a> From<super::Transaction<'a>> for Transaction<'a> {
        fn from(tx: super::Transaction<'a>) -> Self {
            Self {
                id: tx.id,
                now: tx.now,
                client: tx.client,
                sender: tx.sender,
                recipients: tx.recipients,
                size: tx.size,
                attempts: tx.attempts,
                instance: tx.instance,
                bucket: tx.bucket,
                attributes: tx.attributes,
            }
        }
    }

    #[derive(ComponentType, Lower, Clone, Copy)]
    #[component(record)]
    pub(super) struct Attempt<'a> {
        transaction: Transaction<'a>,
        upstream: &'a str,
        recipients: &'a [u32],
    }

    impl<'a> From<super::Attempt<'a>> for Attempt<'a> {
        fn from(attempt: super::Attempt<'a>) -> Self {
            let super::Attempt { transaction, upstream, recipients } = attempt;
            Self { transaction: transaction.into(), upstream, recipients }
        }
    }

    #[derive(ComponentType, Lift)]
    #[component(record)]
    pub(super) struct Needs {
        attributes: Vec<String>,
        outcomes: bool,
    }

    impl From<Needs> for super::Needs {
        fn from(needs: Needs) -> Self {
            let Needs { attributes, outcomes } = needs;
            Self { attributes, outcomes, upstreams: Vec::new() }
        }
    }
}

/// What plugins import, as the store's data answers it.
pub(super) trait Imports: 'static {
    /// `log.log`.
    fn log(&mut self, level: Level, message: &str);
    /// `metrics.add`.
    fn add(&mut self, name: &str, value: u64);
    /// `tables.lookup`.
    fn lookup(&mut self, table: &str, key: &str) -> Option<String>;
}

/// Adds what plugins of any version may import.
pub(super) fn link<T: Imports>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    for version in Version::ALL {
        linker.instance(&version.interface("types"))?;
        linker.instance(&version.interface("log"))?.func_wrap(
            "log",
            |mut store: StoreContextMut<'_, T>, (level, message): (Level, String)| {
                store.data_mut().log(level, &message);
                Ok(())
            },
        )?;
        linker.instance(&version.interface("metrics"))?.func_wrap(
            "add",
            |mut store: StoreContextMut<'_, T>, (name, value): (String, u64)| {
                store.data_mut().add(&name, value);
                Ok(())
            },
        )?;
        linker.instance(&version.interface("tables"))?.func_wrap(
            "lookup",
            |mut store: StoreContextMut<'_, T>, (table, key): (String, String)| {
                Ok((store.data_mut().lookup(&table, &key),))
            },
        )?;
    }
    Ok(())
}

/// Where the functions of a component are, so that an instance need not look for them by name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exports {
    pub(super) version: Version,
    describe: ComponentExportIndex,
    configure: ComponentExportIndex,
    decide: Option<ComponentExportIndex>,
    route: Option<ComponentExportIndex>,
    limits: Option<ComponentExportIndex>,
    observe: Option<ComponentExportIndex>,
}

impl Exports {
    /// Those of a component that was written for `version` and has these hooks.
    pub(super) fn new(
        component: &Component,
        version: Version,
        hooks: super::load::Hooks,
    ) -> Result<Self, String> {
        let function = |interface: &str, name: &str| {
            let interface = version.interface(interface);
            component
                .get_export_index(None, &interface)
                .and_then(|inside| component.get_export_index(Some(&inside), name))
                .ok_or_else(|| format!("{interface} has no function {name}"))
        };
        let hook = |is_there: bool, interface, name| {
            is_there.then(|| function(interface, name)).transpose()
        };
        Ok(Self {
            version,
            describe: function("lifecycle", "describe")?,
            configure: function("lifecycle", "configure")?,
            decide: hook(hooks.freeze, "freeze", "decide")?,
            route: hook(hooks.routing, "routing", "route")?,
            limits: hook(hooks.throttling, "throttling", "limits")?,
            observe: hook(hooks.throttling, "throttling", "observe")?,
        })
    }

    pub(super) fn has_freeze(&self) -> bool {
        self.decide.is_some()
    }

    pub(super) fn has_routing(&self) -> bool {
        self.route.is_some()
    }

    pub(super) fn has_throttling(&self) -> bool {
        self.limits.is_some()
    }
}

/// A function that takes another record in an old version.
enum By<Old, New> {
    V0_1(Old),
    V1(New),
}

type Configured<N> = (Result<N, Vec<Diagnostic>>,);
type Configure<N> = TypedFunc<(&'static str, &'static [&'static str]), Configured<N>>;
type Of<P, R> = TypedFunc<(P,), (R,)>;
type OfTransaction<R> = By<Of<v0_1::Transaction<'static>, R>, Of<Transaction<'static>, R>>;

impl<Old, New, R> By<Of<Old, R>, Of<New, R>>
where
    Old: From<New> + Lower,
    New: Lower,
    R: Lift,
{
    fn call<S: AsContextMut>(&self, store: S, argument: New) -> wasmtime::Result<R>
    where
        S::Data: 'static,
    {
        let answer = match self {
            Self::V0_1(function) => function.call(store, (argument.into(),)),
            Self::V1(function) => function.call(store, (argument,)),
        };
        answer.map(|(answer,)| answer)
    }
}

/// The functions of one instance, their types checked.
pub(super) struct Functions {
    describe: TypedFunc<(), (Description,)>,
    configure: By<Configure<v0_1::Needs>, Configure<Needs>>,
    decide: Option<OfTransaction<Freezing>>,
    route: Option<OfTransaction<Route>>,
    limits: Option<By<Of<v0_1::Attempt<'static>, LimitSet>, Of<Attempt<'static>, LimitSet>>>,
    observe: Option<Of<Outcome<'static>, Vec<Lesson>>>,
}

/// A typed function of one or the other version.
macro_rules! typed {
    ($version:expr, $store:expr, $instance:expr, $index:expr) => {
        match $version {
            Version::V0_1_0 => By::V0_1($instance.get_typed_func(&mut *$store, $index)?),
            Version::V1_0_0 => By::V1($instance.get_typed_func(&mut *$store, $index)?),
        }
    };
}

impl Functions {
    /// Those of an instance. Where a type is not that of the contract, the error says which.
    pub(super) fn new<S: AsContextMut>(
        exports: &Exports,
        store: &mut S,
        instance: &Instance,
    ) -> wasmtime::Result<Self> {
        let version = exports.version;
        Ok(Self {
            describe: instance.get_typed_func(&mut *store, exports.describe)?,
            configure: typed!(version, store, instance, exports.configure),
            decide: match exports.decide {
                Some(index) => Some(typed!(version, store, instance, index)),
                None => None,
            },
            route: match exports.route {
                Some(index) => Some(typed!(version, store, instance, index)),
                None => None,
            },
            limits: match exports.limits {
                Some(index) => Some(typed!(version, store, instance, index)),
                None => None,
            },
            observe: match exports.observe {
                Some(index) => Some(instance.get_typed_func(&mut *store, index)?),
                None => None,
            },
        })
    }

    /// `lifecycle.describe`.
    pub(super) fn describe<S: AsContextMut>(&self, store: S) -> wasmtime::Result<Description>
    where
        S::Data: 'static,
    {
        self.describe.call(store, ()).map(|(answer,)| answer)
    }

    /// `lifecycle.configure`.
    pub(super) fn configure<S: AsContextMut>(
        &self,
        store: S,
        settings: &str,
        upstreams: &[&str],
    ) -> wasmtime::Result<Result<Needs, Vec<Diagnostic>>>
    where
        S::Data: 'static,
    {
        let arguments = (settings, upstreams);
        match &self.configure {
            By::V0_1(configure) => {
                let (answer,) = configure.call(store, arguments)?;
                Ok(answer.map(Needs::from))
            }
            By::V1(configure) => configure.call(store, arguments).map(|(answer,)| answer),
        }
    }

    /// `freeze.decide`; none where the policy has no such hook.
    pub(super) fn decide<S: AsContextMut>(
        &self,
        store: S,
        tx: Transaction<'_>,
    ) -> Option<wasmtime::Result<Freezing>>
    where
        S::Data: 'static,
    {
        Some(self.decide.as_ref()?.call(store, tx))
    }

    /// `routing.route`; none where the policy has no such hook.
    pub(super) fn route<S: AsContextMut>(
        &self,
        store: S,
        tx: Transaction<'_>,
    ) -> Option<wasmtime::Result<Route>>
    where
        S::Data: 'static,
    {
        Some(self.route.as_ref()?.call(store, tx))
    }

    /// `throttling.limits`; none where the policy has no such hook.
    pub(super) fn limits<S: AsContextMut>(
        &self,
        store: S,
        attempt: Attempt<'_>,
    ) -> Option<wasmtime::Result<LimitSet>>
    where
        S::Data: 'static,
    {
        Some(self.limits.as_ref()?.call(store, attempt))
    }

    /// `throttling.observe`; none where the policy has no such hook.
    pub(super) fn observe<S: AsContextMut>(
        &self,
        store: S,
        outcome: Outcome<'_>,
    ) -> Option<wasmtime::Result<Vec<Lesson>>>
    where
        S::Data: 'static,
    {
        let observe = self.observe.as_ref()?;
        Some(observe.call(store, (outcome,)).map(|(answer,)| answer))
    }
}
