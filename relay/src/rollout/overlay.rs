//! The policies of a configuration with what was installed in their place.

use std::path::Path;

use super::{Stage, State, Store};
use crate::config::{Installed, Mode, PluginSource, PolicyConfig};

/// What a candidate's name has behind its policy's: no name in a configuration can have it.
pub const CANDIDATE: &str = "@candidate";

/// Policies to be loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlaid {
    /// The policies: those of the configuration in its order, then candidates.
    pub policies: Vec<PolicyConfig>,
    /// Policies for which something else was installed than the configuration goes by now.
    pub superseded: Vec<String>,
}

impl Overlaid {
    /// What an operator should know of what does not hold any more.
    pub fn warnings<'a>(&'a self, state: &'a State) -> impl Iterator<Item = String> + 'a {
        self.superseded.iter().filter_map(|name| {
            let entry = state.policies.get(name)?;
            let coming = entry.rollout.as_ref().filter(|one| one.stage.is_under_way());
            let release = entry.installed.last().or(coming.map(|one| &one.release))?;
            let digest = &release.digest;
            Some(format!(
                "policy \"{name}\": the plugin {digest} was installed in place of {}, which the \
                 configuration does not name any more, so what it names is in force; install the \
                 plugin again if it is meant",
                entry.configured
            ))
        })
    }
}

/// What is to be loaded where these are configured. `state_dir` is where components are kept.
pub fn overlay(configured: &[PolicyConfig], state: &State, state_dir: &Path) -> Overlaid {
    let mut policies = configured.to_vec();
    let mut superseded = Vec::new();
    let mut candidates = Vec::new();
    for (name, entry) in &state.policies {
        let found = policies.iter_mut().find(|policy| policy.name == *name);
        let Some(policy) = found.filter(|one| one.plugin.to_string() == entry.configured) else {
            superseded.push(name.clone());
            continue;
        };
        let installed = |digest: &str| {
            PluginSource::Installed(Box::new(Installed {
                path: Store::component(state_dir, digest),
                digest: digest.to_owned(),
                configured: policy.plugin.clone(),
            }))
        };
        let in_shadow = entry.rollout.as_ref().filter(|one| one.stage == Stage::Shadow);
        if let Some(rollout) = in_shadow {
            candidates.push(candidate(policy, installed(&rollout.release.digest)));
        }
        if let Some(release) = entry.installed.last() {
            policy.plugin = installed(&release.digest);
        }
    }
    policies.extend(candidates);
    Overlaid { policies, superseded }
}

/// The policies that are configured, of those that are loaded.
pub fn bare(loaded: &[PolicyConfig]) -> Vec<PolicyConfig> {
    let own = loaded.iter().filter(|policy| !policy.name.ends_with(CANDIDATE));
    let bare = |policy: &PolicyConfig| {
        let plugin = policy.plugin.configured().clone();
        PolicyConfig { plugin, ..policy.clone() }
    };
    own.map(bare).collect()
}

/// A policy that is asked beside another and changes nothing.
fn candidate(policy: &PolicyConfig, plugin: PluginSource) -> PolicyConfig {
    let mode = Mode::Shadow { percent: 100, replaces: Some(policy.name.clone()) };
    PolicyConfig { name: format!("{}{CANDIDATE}", policy.name), plugin, mode, ..policy.clone() }
}
