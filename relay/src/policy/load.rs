//! From a configuration's policies to a checked set. Floor 2.
//!
//! Every policy is compiled, checked against the contract, instantiated, described and
//! configured before any of them sees a message. Every problem is reported, not just the first.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use wasmtime::{
    Engine,
    component::{Component, Linker},
};

use super::{
    bindings::{Needs, escaped, is_plain},
    compile::Compiler,
    contract::{self, Exports, Version},
    failure::{FailureKind, PolicyFailure},
    instance::{Instance, Owner, State},
    set::{Budget, Description, Origin, Policy, Shared, Tables, Template},
    signature::{self, SignatureError, Signed, TrustedKeys},
    stats::PolicyStats,
    stubs,
};
use crate::config::{FailMode, Mode, PluginSource, PolicyConfig, signature_of};

/// Bytes of a component: a JavaScript one has about twelve million.
pub const MAX_COMPONENT: u64 = 64 * 1024 * 1024;
/// Memory that an operator may give to one instance.
const MAX_MEMORY: usize = 2 * 1024 * 1024 * 1024;
/// Attributes that one policy may ask for.
pub(super) const MAX_ATTRIBUTES: usize = 16;
/// Upstreams whose state one policy may ask for.
pub(super) const MAX_UPSTREAMS: usize = 8;
/// Counters that one policy may declare.
pub(super) const MAX_METRICS: usize = 16;
/// Bytes of a policy's own name and of its version.
const MAX_NAME: usize = 100;
/// Problems with the settings that are shown.
pub(super) const MAX_DIAGNOSTICS: usize = 32;

/// Attributes that a policy may ask for by name; headers come as `header:NAME`.
pub(super) const ATTRIBUTES: [&str; 7] =
    ["helo", "client-name", "listener", "tls", "auth-user", "original-destination", "last-reply"];

/// One thing wrong with one policy of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{place}: policy \"{policy}\": {problem}")]
pub struct PolicyError {
    /// File and line of the policy's entry.
    pub place: String,
    /// Name of the policy.
    pub policy: String,
    /// What is wrong.
    pub problem: PolicyProblem,
}

/// What is wrong with a policy, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum PolicyProblem {
    /// No such built-in policy.
    #[error("there is no built-in policy \"{0}\"")]
    UnknownBuiltin(String),
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// What the relay keeps of an installed one is not what was installed.
    #[error(
        "{path} is not what was installed any more: its BLAKE3 is {found}. Put that file back, or \
         remove the file plugins/rollouts.json of the state directory to run what the \
         configuration names"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What it is.
        found: String,
    },
    /// Its signature.
    #[error("{0}")]
    Signature(#[from] SignatureError),
    /// The file is too large.
    #[error(
        "the component is larger than the {} MiB that one may have: build it for size, without \
         debug information",
        MAX_COMPONENT / 1024 / 1024
    )]
    TooLarge,
    /// `memory` is out of bounds.
    #[error("memory must be 64 KiB to {} MiB", MAX_MEMORY / 1024 / 1024)]
    Memory,
    /// Not WebAssembly at all.
    #[error("this is not a WebAssembly component")]
    NotWasm,
    /// A core module.
    #[error(
        "this is a core WebAssembly module, not a component: make it one with `wasm-tools \
         component new`"
    )]
    CoreModule,
    /// Code that somebody else compiled.
    #[error("this is precompiled machine code, which is never accepted: give the component itself")]
    Precompiled,
    /// The engine does not accept it.
    #[error("the component does not compile: {0}")]
    Invalid(String),
    /// A WASI import.
    #[error("it imports {0}: a policy is a pure function of what it is given; {remedy}", remedy = stubs::remedy(.0))]
    Wasi(String),
    /// An import that is not in the contract.
    #[error(
        "it imports {0}, which the relay does not have: a policy may import only log, metrics \
         and tables of wavegate:policy"
    )]
    UnknownImport(String),
    /// Built against another version of the contract.
    #[error("it was built for {0}; this relay has wavegate:policy {list}", list = Version::list())]
    ContractVersion(String),
    /// Built against several versions of the contract.
    #[error("it uses wavegate:policy {0} and {1} together: build all of it for one version")]
    MixedVersions(Version, Version),
    /// An export that is not in the contract.
    #[error(
        "it exports {0}, which is not in wavegate:policy: lifecycle, freeze, routing and \
         throttling are"
    )]
    UnknownExport(String),
    /// No `lifecycle`.
    #[error("it does not export lifecycle of wavegate:policy, which every policy must")]
    NoLifecycle,
    /// No hook.
    #[error("it exports none of freeze, routing and throttling: it could never be asked")]
    NoHook,
    /// An export has another type than the contract says.
    #[error("it does not fit the contract: {0}")]
    Type(String),
    /// It failed while it was made ready.
    #[error("it failed in {during}: {failure}")]
    Failed {
        /// In what.
        during: &'static str,
        /// How.
        failure: PolicyFailure,
    },
    /// `describe` answered nonsense.
    #[error("describe: {0}")]
    Description(String),
    /// `configure` asked for nonsense.
    #[error("configure: {0}")]
    Needs(String),
    /// The settings are wrong.
    #[error("{}{message}", if path.is_empty() { "settings: ".to_owned() } else { format!("settings.{path}: ") })]
    Settings {
        /// Path in the settings.
        path: String,
        /// What is wrong there.
        message: String,
    },
    /// `fail = "ignore"` on a freeze policy.
    #[error("a freeze policy cannot have fail = \"ignore\": mail could leave in a window")]
    FailMode,
    /// The machine's fault.
    #[error("{0}")]
    Host(String),
}

/// What loading needs from the host.
pub(super) struct Loader<'a> {
    pub(super) engine: &'a Engine,
    pub(super) linker: &'a Linker<State>,
    pub(super) compiler: &'a Compiler,
    pub(super) tables: Arc<Tables>,
    pub(super) upstreams: &'a [String],
    pub(super) keys: &'a TrustedKeys,
    pub(super) builtin: &'a dyn Fn(&str) -> Option<&'static [u8]>,
    /// Budgets of a call and of making an instance ready, from the policy's timeout.
    pub(super) budgets: &'a dyn Fn(&PolicyConfig) -> (Budget, Budget),
}

impl Loader<'_> {
    /// Loads one policy.
    pub(super) fn load(
        &self,
        config: &PolicyConfig,
        stats: Arc<PolicyStats>,
    ) -> Result<Policy, Vec<PolicyProblem>> {
        let one = |problem| vec![problem];
        if !(64 * 1024..=MAX_MEMORY).contains(&config.memory) {
            return Err(one(PolicyProblem::Memory));
        }
        let (wasm, signed) = self.read(&config.plugin).map_err(one)?;
        let own = matches!(config.plugin, PluginSource::Builtin(_));
        let component = self.compile(&wasm, own).map_err(one)?;
        let digest = blake3::hash(&wasm).to_hex().to_string();
        self.make(config, stats, &component, Origin { digest, signed })
    }

    /// Loads one that was loaded before: the same component with the same settings, whatever its file
    /// is by now. Who signed it must be believed still.
    pub(super) fn load_again(
        &self,
        policy: &Policy,
        stats: Arc<PolicyStats>,
    ) -> Result<Policy, Vec<PolicyProblem>> {
        let signed = self.keys.believes(policy.signed(), policy.name());
        signed.map_err(|error| vec![error.into()])?;
        let component = policy.template.pre.component();
        self.make(policy.config(), stats, component, policy.origin.clone())
    }

    fn make(
        &self,
        config: &PolicyConfig,
        stats: Arc<PolicyStats>,
        component: &Component,
        origin: Origin,
    ) -> Result<Policy, Vec<PolicyProblem>> {
        let mut template = self.prepare(config, Arc::clone(&stats), component)?;
        let heard = interview(&template)?;
        let custom = stats.declare(&heard.description.metrics);
        if config.mode != Mode::Live {
            stats.shadow.declare();
        }
        // The instance that was interviewed is gone, and with it the other owner.
        if let Some(shared) = Arc::get_mut(&mut template.shared) {
            shared.custom = custom;
        }
        Ok(Policy::new(template, heard.description, heard.needs, config.clone(), origin))
    }

    /// What every instance of a component is made from, where it fits the contract.
    fn prepare(
        &self,
        config: &PolicyConfig,
        stats: Arc<PolicyStats>,
        component: &Component,
    ) -> Result<Template, Vec<PolicyProblem>> {
        let one = |problem| vec![problem];
        let (version, hooks) = self.check(component)?;
        let exports = Exports::new(component, version, hooks)
            .map_err(|missing| one(PolicyProblem::Type(shown(&missing))))?;
        let pre = self
            .linker
            .instantiate_pre(component)
            .map_err(|error| one(PolicyProblem::Type(format!("{error:#}"))))?;
        if hooks.freeze && config.fail == Some(FailMode::Ignore) {
            return Err(one(PolicyProblem::FailMode));
        }
        let (call, setup) = (self.budgets)(config);
        let shared = Shared {
            name: config.name.clone(),
            stats,
            custom: Vec::new(),
            tables: Arc::clone(&self.tables),
            settings: config.settings.clone(),
            upstreams: self.upstreams.to_vec(),
            memory: config.memory,
            call,
            setup,
        };
        Ok(Template { shared: Arc::new(shared), pre, exports })
    }

    /// Asks a component what it is, without settings.
    pub(super) fn describe(
        &self,
        config: &PolicyConfig,
        stats: Arc<PolicyStats>,
        component: &Component,
    ) -> Result<Description, Vec<PolicyProblem>> {
        let template = self.prepare(config, stats, component)?;
        let mut instance = instantiate(&template, Owner::Muted)?;
        let described = instance
            .describe()
            .map_err(|failure| vec![PolicyProblem::Failed { during: "describe", failure }])?;
        description(described).map_err(|problem| vec![problem])
    }

    /// The bytes of a component and who signed them.
    fn read(&self, source: &PluginSource) -> Result<(Vec<u8>, Signed), PolicyProblem> {
        let (path, digest) = match source {
            PluginSource::Builtin(name) => {
                let wasm = (self.builtin)(name);
                let wasm = wasm.ok_or_else(|| PolicyProblem::UnknownBuiltin(name.clone()))?;
                return Ok((wasm.to_vec(), Signed::Builtin));
            }
            PluginSource::File(path) => (path, None),
            PluginSource::Installed(installed) => (&installed.path, Some(&installed.digest)),
        };
        let wasm = read_file(path)?;
        let found = blake3::hash(&wasm).to_hex();
        if digest.is_some_and(|digest| digest != found.as_str()) {
            let (path, found) = (path.display().to_string(), found.to_string());
            return Err(PolicyProblem::Damaged { path, found });
        }
        let beside = signature_of(path);
        let text = signature::read_signature(&beside)?;
        let signed = self.keys.judge(&wasm, text.as_deref(), &beside.display().to_string())?;
        Ok((wasm, signed))
    }

    /// Compiles a component; one of the relay's `own` is no bomb.
    pub(super) fn compile(&self, wasm: &[u8], own: bool) -> Result<Component, PolicyProblem> {
        if Engine::detect_precompiled(wasm).is_some() {
            return Err(PolicyProblem::Precompiled);
        }
        // Magic number, then version and layer: 1 and 0 for a module, layer 1 for a component.
        match wasm.get(..8) {
            Some([0, b'a', b's', b'm', _, _, 0, 0]) => return Err(PolicyProblem::CoreModule),
            Some([0, b'a', b's', b'm', ..]) => {}
            _ => return Err(PolicyProblem::NotWasm),
        }
        let (component, cached) =
            self.compiler.compile(self.engine, wasm, own).map_err(|error| match error {
                super::compile::CompileError::Component(error) => {
                    PolicyProblem::Invalid(escaped(&error.replace('\n', " "), 400))
                }
                ours => PolicyProblem::Host(ours.to_string()),
            })?;
        tracing::debug!(cached, bytes = wasm.len(), "a policy is compiled");
        Ok(component)
    }

    /// Checks what the component imports and exports by name.
    fn check(&self, component: &Component) -> Result<(Version, Hooks), Vec<PolicyProblem>> {
        let mut problems = Vec::new();
        let mut versions = Versions::default();
        let ty = component.component_type();
        for (name, _) in ty.imports(self.engine) {
            match interface(name) {
                Some((interface, version)) if contract::IMPORTS.contains(&interface) => {
                    versions.note(name, version, &mut problems);
                }
                _ if stubs::answered(name).is_some() => {}
                _ if name.starts_with("wasi:") => problems.push(PolicyProblem::Wasi(shown(name))),
                _ => problems.push(PolicyProblem::UnknownImport(shown(name))),
            }
        }
        let mut lifecycle = false;
        let mut hooks = Hooks::default();
        for (name, _) in ty.exports(self.engine) {
            let (flag, version) = match interface(name) {
                Some(("lifecycle", version)) => (&mut lifecycle, version),
                Some(("freeze", version)) => (&mut hooks.freeze, version),
                Some(("routing", version)) => (&mut hooks.routing, version),
                Some(("throttling", version)) => (&mut hooks.throttling, version),
                _ => {
                    problems.push(PolicyProblem::UnknownExport(shown(name)));
                    continue;
                }
            };
            *flag = true;
            versions.note(name, version, &mut problems);
        }
        if !lifecycle {
            problems.push(PolicyProblem::NoLifecycle);
        }
        if !(hooks.freeze || hooks.routing || hooks.throttling) {
            problems.push(PolicyProblem::NoHook);
        }
        match versions.first {
            Some(version) if problems.is_empty() => Ok((version, hooks)),
            _ => Err(problems),
        }
    }
}

/// The version of the contract that a component was built for: one.
#[derive(Default)]
struct Versions {
    first: Option<Version>,
}

impl Versions {
    /// Notes that an interface called `name` is there in this version.
    fn note(&mut self, name: &str, version: &str, problems: &mut Vec<PolicyProblem>) {
        let Some(version) = Version::of(version) else {
            problems.push(PolicyProblem::ContractVersion(shown(name)));
            return;
        };
        let first = *self.first.get_or_insert(version);
        if first != version {
            problems.push(PolicyProblem::MixedVersions(first, version));
        }
    }
}

/// Which hooks a component exports.
#[derive(Clone, Copy, Default)]
pub(super) struct Hooks {
    pub(super) freeze: bool,
    pub(super) routing: bool,
    pub(super) throttling: bool,
}

/// What a policy said before its first message.
struct Interview {
    description: Description,
    needs: Needs,
}

/// Makes a first instance.
fn instantiate(template: &Template, owner: Owner) -> Result<Instance, Vec<PolicyProblem>> {
    Instance::new(template, owner).map_err(|failure| match failure.kind {
        // It gave no answer yet, so what is wrong is the type of something that it exports.
        FailureKind::BadAnswer => vec![PolicyProblem::Type(failure.detail)],
        _ => vec![PolicyProblem::Failed { during: "instantiation", failure }],
    })
}

/// Describes and configures a policy in a first instance.
fn interview(template: &Template) -> Result<Interview, Vec<PolicyProblem>> {
    let failed = |during| move |failure| vec![PolicyProblem::Failed { during, failure }];
    let mut instance = instantiate(template, Owner::Worker)?;
    let described = instance.describe().map_err(failed("describe"))?;
    let description = description(described).map_err(|problem| vec![problem])?;
    let configured = instance.configure().map_err(failed("configure"))?;
    let needs = configured.map_err(|diagnostics| {
        let mut problems: Vec<_> = diagnostics
            .into_iter()
            .take(MAX_DIAGNOSTICS)
            .map(|wrong| PolicyProblem::Settings {
                path: escaped(&wrong.path, 200),
                message: escaped(&wrong.message, 400),
            })
            .collect();
        if problems.is_empty() {
            problems.push(PolicyProblem::Needs("it refused the settings and says no why".into()));
        }
        problems
    })?;
    if needs.outcomes && !template.exports.has_throttling() {
        let wrong = "it wants outcomes but does not export throttling";
        return Err(vec![PolicyProblem::Needs(wrong.into())]);
    }
    let needs = Needs {
        attributes: attributes(needs.attributes).map_err(|problem| vec![problem])?,
        upstreams: upstreams(needs.upstreams, &template.shared.upstreams)
            .map_err(|problem| vec![problem])?,
        outcomes: needs.outcomes,
    };
    Ok(Interview { description, needs })
}

fn description(given: contract::Description) -> Result<Description, PolicyProblem> {
    let wrong = |what: String| Err(PolicyProblem::Description(what));
    for (what, text) in [("name", &given.name), ("version", &given.version)] {
        if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(is_plain) {
            return wrong(format!("the {what} must be 1 to {MAX_NAME} printable bytes"));
        }
    }
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&given.settings_schema) {
        return wrong(format!("settings-schema is not JSON: {error}"));
    }
    if given.metrics.len() > MAX_METRICS {
        let count = given.metrics.len();
        return wrong(format!("{count} metrics; at most {MAX_METRICS} are allowed"));
    }
    for (index, name) in given.metrics.iter().enumerate() {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        let rest = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !first || !rest || name.len() > MAX_NAME {
            return wrong(format!("{:?} is no name for a metric: [a-z][a-z0-9_]*", shown(name)));
        }
        if given.metrics[..index].contains(name) {
            return wrong(format!("the metric {name:?} is declared twice"));
        }
    }
    Ok(Description {
        name: given.name,
        version: given.version,
        settings_schema: given.settings_schema,
        metrics: given.metrics,
    })
}

/// Checks the attributes that a policy asks for; header names become lower case, and what is
/// asked for twice is given once.
fn attributes(asked: Vec<String>) -> Result<Vec<String>, PolicyProblem> {
    if asked.len() > MAX_ATTRIBUTES {
        let count = asked.len();
        return Err(PolicyProblem::Needs(format!(
            "{count} attributes; at most {MAX_ATTRIBUTES} are allowed"
        )));
    }
    let mut names = Vec::with_capacity(asked.len());
    for name in asked {
        let name = match name.strip_prefix("header:") {
            // RFC 5322 2.2: printable US-ASCII but the colon.
            Some(header)
                if (1..=MAX_NAME).contains(&header.len())
                    && header.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') =>
            {
                name.to_ascii_lowercase()
            }
            None if ATTRIBUTES.contains(&name.as_str()) => name,
            _ => {
                return Err(PolicyProblem::Needs(format!(
                    "there is no attribute {:?}; there are {} and header:NAME",
                    shown(&name),
                    ATTRIBUTES.join(", ")
                )));
            }
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Checks the upstreams whose state a policy asks for; what is asked for twice is given once.
fn upstreams(asked: Vec<String>, configured: &[String]) -> Result<Vec<String>, PolicyProblem> {
    if asked.len() > MAX_UPSTREAMS {
        let count = asked.len();
        return Err(PolicyProblem::Needs(format!(
            "{count} upstreams; at most {MAX_UPSTREAMS} are allowed"
        )));
    }
    let mut names = Vec::with_capacity(asked.len());
    for name in asked {
        if !configured.contains(&name) {
            let there = configured.join(", ");
            return Err(PolicyProblem::Needs(format!(
                "there is no upstream {:?}, whose state it wants; there are {there}",
                shown(&name)
            )));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Interface and version of a name in the contract's package.
pub(super) fn interface(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix(contract::PACKAGE)?;
    Some(name.split_once('@').unwrap_or((name, "")))
}

fn shown(name: &str) -> String {
    escaped(name, 120)
}

/// Reads a component, if it is no larger than one may be.
pub fn read_file(path: &Path) -> Result<Vec<u8>, PolicyProblem> {
    let failed = |error| PolicyProblem::Read { path: path.display().to_string(), error };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("not a regular file; name a .wasm file")));
    }
    let file = File::open(path).map_err(failed)?;
    let mut wasm = Vec::new();
    file.take(MAX_COMPONENT + 1).read_to_end(&mut wasm).map_err(failed)?;
    if wasm.len() as u64 > MAX_COMPONENT {
        return Err(PolicyProblem::TooLarge);
    }
    Ok(wasm)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

    use super::*;

    fn described(change: impl FnOnce(&mut contract::Description)) -> Result<(), String> {
        let mut given = contract::Description {
            name: "greylist".to_owned(),
            version: "1.0.0".to_owned(),
            settings_schema: "{\"type\":\"object\"}".to_owned(),
            metrics: vec!["deferred_total".to_owned()],
        };
        change(&mut given);
        description(given).map(drop).map_err(|problem| problem.to_string())
    }

    #[test]
    fn descriptions_are_checked() {
        assert_eq!(described(|_| {}), Ok(()));
        let metrics = |count| (0..count).map(|metric| format!("m{metric}")).collect();
        assert_eq!(described(|it| it.metrics = metrics(16)), Ok(()));
        let wrong = |change: fn(&mut contract::Description), part: &str| {
            let text = described(change).unwrap_err();
            assert!(text.contains(part), "{text}");
        };
        assert!(described(|it| it.metrics = metrics(17)).unwrap_err().contains("17 metrics"));
        wrong(|it| it.name.clear(), "the name must be");
        wrong(|it| it.name = "x".repeat(101), "the name must be");
        wrong(|it| it.version = "1\n2".to_owned(), "the version must be");
        wrong(|it| it.settings_schema.truncate(5), "settings-schema is not JSON");
        wrong(|it| it.metrics.push("Total".to_owned()), "no name for a metric");
        wrong(|it| it.metrics.push("1st".to_owned()), "no name for a metric");
        wrong(|it| it.metrics.push(String::new()), "no name for a metric");
        wrong(|it| it.metrics.push("deferred_total".to_owned()), "declared twice");
    }

    #[test]
    fn upstreams_are_those_of_the_configuration() {
        let there = ["legacy".to_owned(), "cloud".to_owned()];
        let asked =
            |names: &[&str]| upstreams(names.iter().map(|&it| it.to_owned()).collect(), &there);
        assert_eq!(asked(&["cloud", "legacy", "cloud"]).unwrap(), ["cloud", "legacy"]);
        assert!(asked(&["clod"]).unwrap_err().to_string().contains("there are legacy, cloud"));
        assert!(asked(&["cloud"; 9]).unwrap_err().to_string().contains("at most 8"));
    }

    #[test]
    fn attributes_are_known_and_headers_lower_case() {
        let asked = |names: &[&str]| attributes(names.iter().map(|&it| it.to_owned()).collect());
        let names = asked(&["header:X-Campaign-ID", "tls", "header:x-campaign-id"]).unwrap();
        assert_eq!(names, ["header:x-campaign-id", "tls"]);
        for wrong in ["", "TLS", "header:", "header:a b", "header:a:b", "header:é", "subject"] {
            assert!(asked(&[wrong]).is_err(), "{wrong}");
        }
    }
}
