//! What a component is, seen from outside: for people who look at one. Floor 2.
//!
//! It owns no rule of what is accepted (that is `load`); it says what is there even where that would
//! be refused.

use std::{sync::Arc, time::Duration};

use super::{
    bindings::escaped,
    load::{self, Loader, PolicyProblem},
    set::{Description, Hook},
    stats::PolicyStats,
    stubs,
};
use crate::config::{PluginSource, PolicyConfig};

/// What a component has, and what it says of itself.
#[derive(Debug)]
pub struct Inspection {
    /// Its size.
    pub bytes: usize,
    /// BLAKE3 of it, in hexadecimal.
    pub digest: String,
    /// Versions of the contract that its interfaces name; a good one has one.
    pub contract: Vec<String>,
    /// The hooks that it exports.
    pub hooks: Vec<Hook>,
    /// All that it imports.
    pub imports: Vec<Import>,
    /// All that it exports.
    pub exports: Vec<String>,
    /// What it says of itself, where it could be asked.
    pub description: Option<Description>,
    /// What the relay would refuse about it, whatever its settings are.
    pub problems: Vec<PolicyProblem>,
}

/// One import.
#[derive(Debug, PartialEq, Eq)]
pub struct Import {
    /// Its name.
    pub name: String,
    /// What the relay has for it.
    pub kind: ImportKind,
}

/// What the relay has for an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportKind {
    /// It is in the contract.
    Contract,
    /// A harmless answer in place of WASI: what it answers.
    Stub(&'static str),
    /// Nothing: such a component is refused.
    Refused,
}

/// Memory of the instance that is asked: for a runtime larger than the default of a policy.
const MEMORY: usize = 256 * 1024 * 1024;

pub(super) fn inspect(loader: &Loader<'_>, wasm: &[u8]) -> Result<Inspection, PolicyProblem> {
    let component = loader.compile(wasm)?;
    let ty = component.component_type();
    let exports: Vec<_> = ty.exports(loader.engine).map(|(name, _)| escaped(name, 120)).collect();
    let exported = |hook: &Hook| {
        let mut interfaces = exports.iter().filter_map(|name| load::interface(name));
        interfaces.any(|(interface, _)| interface == hook.as_str())
    };
    let all = [Hook::Freeze, Hook::Routing, Hook::Throttling];
    let mut found = Inspection {
        bytes: wasm.len(),
        digest: blake3::hash(wasm).to_hex().to_string(),
        contract: Vec::new(),
        hooks: all.into_iter().filter(exported).collect(),
        imports: ty.imports(loader.engine).map(|(name, _)| import(name)).collect(),
        exports,
        description: None,
        problems: Vec::new(),
    };
    for name in found.imports.iter().map(|it| &it.name).chain(&found.exports) {
        let Some((_, version)) = load::interface(name) else { continue };
        if !found.contract.iter().any(|known| known == version) {
            found.contract.push(version.to_owned());
        }
    }
    let asked = PolicyConfig {
        name: "inspected".to_owned(),
        plugin: PluginSource::Builtin(String::new()),
        settings: "{}".to_owned(),
        fail: None,
        memory: MEMORY,
        timeout: Duration::from_secs(5),
        place: String::new(),
    };
    let stats = Arc::new(PolicyStats::new(&asked.name));
    match loader.describe(&asked, stats, &component) {
        Ok(description) => found.description = Some(description),
        Err(problems) => found.problems = problems,
    }
    Ok(found)
}

fn import(name: &str) -> Import {
    let kind = match (load::interface(name).is_some(), stubs::answered(name)) {
        (true, _) => ImportKind::Contract,
        (false, Some(how)) => ImportKind::Stub(how),
        (false, None) => ImportKind::Refused,
    };
    Import { name: escaped(name, 120), kind }
}
