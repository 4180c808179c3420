//! What is looked at before a plugin is installed: whose it is, and all that a reload looks at.

use super::Rollouts;
use crate::{
    config::{Config, signature_of},
    control::{PluginRefusal, wire::Install},
    generation,
    policy::{
        Hook, Policy,
        signature::{Signed, TrustedKeys},
    },
    rollout::{Entry, Release, Skip, State, Store, bare, overlay},
};

/// The hooks, in order.
const HOOKS: [Hook; 3] = [Hook::Freeze, Hook::Routing, Hook::Throttling];

/// A plugin that may be installed.
pub(super) struct Checked {
    /// What the configuration names.
    pub(super) configured: String,
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) signed_by: Option<String>,
}

impl Rollouts {
    /// Verifies and checks an upload. Blocks, for seconds where it must be compiled.
    pub(super) fn check(&self, policy: &str, asked: &Install) -> Result<Checked, PluginRefusal> {
        let generation = self.relay.generation();
        let mut config = (*generation.config).clone();
        let configured = bare(&config.policies);
        let Some(index) = configured.iter().position(|one| one.name == policy) else {
            let names: Vec<&str> = configured.iter().map(|one| &*one.name).collect();
            let text = format!(
                "there is no policy {policy:?}; there are: {}. A new one is added to the \
                 configuration first",
                names.join(", ")
            );
            return Err(PluginRefusal::NoPolicy(text));
        };
        let source = configured[index].plugin.to_string();
        let state = self.store.state();
        if let Some(rollout) = state.under_way(policy) {
            let refusal = crate::rollout::Refusal::UnderWay {
                policy: policy.to_owned(),
                digest: rollout.release.digest.clone(),
                stage: rollout.stage.as_str(),
            };
            return Err(PluginRefusal::NotNow(refusal.to_string()));
        }
        let live = &generation.policies.policies()[index];
        if live.digest() == asked.digest {
            let text = format!("{} is in force for {policy} already", asked.digest);
            return Err(PluginRefusal::NotNow(text));
        }
        if !live.is_live() {
            let text = format!(
                "the policy {policy} is in shadow itself: change its entry in the configuration"
            );
            return Err(PluginRefusal::Wrong(text));
        }
        let signed = self.verify(&config, asked)?;
        // As if it were live, with all that a reload looks at.
        let release = Release {
            digest: asked.digest.clone(),
            at: self.relay.world.clock.now(),
            by: String::new(),
            reason: String::new(),
            skipped: Vec::new(),
        };
        let mut tried = State::default();
        let entry = Entry { configured: source.clone(), installed: vec![release], rollout: None };
        tried.policies = state.policies;
        tried.policies.insert(policy.to_owned(), entry);
        config.policies = overlay(&configured, &tried, self.store.state_dir()).policies;
        let set = generation::load_policies(&self.relay.policy_host, &config)
            .map_err(|found| PluginRefusal::Wrong(found.to_string()))?;
        let new = &set.policies()[index];
        if hooks(new) != hooks(live) {
            let text = format!(
                "it has the hooks {}, and the policy {policy} has {}: install a plugin with the \
                 same, or change the configuration",
                hooks(new),
                hooks(live)
            );
            return Err(PluginRefusal::Wrong(text));
        }
        let signed_by = match signed {
            Signed::By { name, .. } => Some(name),
            _ => None,
        };
        let description = new.description();
        let (plugin, version) = (description.name.clone(), description.version.clone());
        Ok(Checked { configured: source, plugin, version, signed_by })
    }

    /// Who signed it; the signature is kept beside it, so that every load looks at it again.
    fn verify(&self, config: &Config, asked: &Install) -> Result<Signed, PluginRefusal> {
        let skips = asked.skip.contains(&Skip::Verify);
        if skips && config.plugins.require_signatures {
            let text = "verifying cannot be left out: `plugins.require_signatures` is true";
            return Err(PluginRefusal::Wrong(text.to_owned()));
        }
        let keys = TrustedKeys::load(&config.plugins)
            .map_err(|found| PluginRefusal::Wrong(found.to_string()))?;
        let keys = if skips { keys } else { keys.required() };
        let path = Store::component(self.store.state_dir(), &asked.digest);
        let wasm = std::fs::read(&path).map_err(|error| {
            let text =
                format!("the component {} was not uploaded, or not kept: {error}", asked.digest);
            PluginRefusal::NoComponent(text)
        })?;
        let text = asked.signature.as_ref().map(String::as_bytes);
        let name = asked.file.clone().unwrap_or_else(|| "the plugin".to_owned());
        let beside = signature_of(name.as_ref()).display().to_string();
        let signed = keys.judge(&wasm, text, &beside).map_err(|error| {
            let hint = match config.plugins.require_signatures {
                true => "",
                false => "; or leave this step out by name: --skip verify",
            };
            PluginRefusal::Wrong(format!("{error}{hint}"))
        })?;
        if let Some(text) = text {
            let kept = self.store.keep_signature(&asked.digest, text);
            kept.map_err(|error| PluginRefusal::NotKept(error.to_string()))?;
        }
        Ok(signed)
    }
}

/// Names of a policy's hooks.
pub(super) fn hooks(policy: &Policy) -> String {
    let all: Vec<&str> =
        HOOKS.into_iter().filter(|hook| policy.has(*hook)).map(Hook::as_str).collect();
    all.join(", ")
}

/// The hooks of a policy.
pub(super) fn hooks_of(policy: &Policy) -> impl Iterator<Item = Hook> + '_ {
    HOOKS.into_iter().filter(|hook| policy.has(*hook))
}
