//! Drives roll-outs of plugins: verifies, checks and installs what an operator brings, counts, takes
//! the next step when it is due, and has the reloader put in force what follows. Floor 4.
//!
//! Which step is next is `rollout`'s; how a generation comes into force is `reload`'s. A step is on
//! disk before it takes effect, but for a step back: what is bad goes though nothing can be written.

mod check;
mod status;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tempfile::NamedTempFile;
use tokio::{runtime::Handle, time::MissedTickBehavior};

use super::reload::Reloader;
use crate::{
    audit::Who,
    config::PluginSource,
    control::{
        PluginRefusal, Plugins,
        wire::{Install, Installed, PluginList, RollBack},
    },
    decision::record::Class,
    event::Event,
    plan::Timestamp,
    policy::{Condemnation, FailureKind, PolicyStats},
    relay::Relay,
    rollout::{self, CANDIDATE, Counted, Release, Rollout, Stage, Step, Store},
    world::BoxFuture,
};

/// How often it is looked whether a step is due. A plugin that fails is live for no longer than
/// this once its rate is known.
const LOOK: Duration = Duration::from_millis(250);
/// Looks between two tries to put in force what could not be.
const AGAIN: u32 = 120;

/// The roll-outs of a process.
pub(super) struct Rollouts {
    relay: Arc<Relay>,
    reloader: Arc<Reloader>,
    store: Arc<Store>,
    /// One order or step at a time.
    ordering: tokio::sync::Mutex<()>,
    /// What had been counted when a stage began. A restart counts anew.
    begun: Mutex<HashMap<String, Baseline>>,
}

/// The counters of a policy when a stage of its roll-out began.
struct Baseline {
    digest: String,
    stage: Stage,
    counted: Counted,
}

impl Rollouts {
    pub(super) fn new(
        relay: &Arc<Relay>,
        reloader: &Arc<Reloader>,
        store: &Arc<Store>,
    ) -> Arc<Self> {
        Arc::new(Self {
            relay: Arc::clone(relay),
            reloader: Arc::clone(reloader),
            store: Arc::clone(store),
            ordering: tokio::sync::Mutex::new(()),
            begun: Mutex::default(),
        })
    }

    /// Takes the steps that are due, until the relay stops.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = 0u32;
        while !self.relay.is_stopping() {
            looks.tick().await;
            let _one = self.ordering.lock().await;
            self.take_due_steps().await;
            pause = pause.saturating_sub(1);
            if pause > 0 {
                continue;
            }
            // What another reload, a condemned set or an earlier process has left otherwise.
            if let Err(error) = self.put_in_force(false).await {
                tracing::error!(%error, "what is installed is not in force");
                pause = AGAIN;
            }
            if let Err(error) = self.catch_up().await {
                tracing::error!(%error, "what is installed is not written down");
                pause = AGAIN;
            }
        }
    }

    async fn take_due_steps(self: &Arc<Self>) {
        let state = self.store.state();
        let now = self.relay.world.clock.now();
        for policy in state.policies.keys() {
            let Some(rollout) = state.under_way(policy) else { continue };
            let counted = self.counted(policy, rollout);
            if let Some(step) = rollout::next(rollout, &counted, now) {
                self.take(policy, rollout, step, now).await;
            }
        }
    }

    async fn take(self: &Arc<Self>, policy: &str, rollout: &Rollout, step: Step, now: Timestamp) {
        let digest = rollout.release.digest.clone();
        match step {
            Step::Promote(why) => {
                let name = policy.to_owned();
                let promoted = self.change(move |state| state.promote(&name, &why, now)).await;
                if let Err(error) = promoted {
                    tracing::error!(policy, digest, %error, "it cannot go live");
                    return;
                }
                self.mark(policy);
                match self.put_in_force(true).await {
                    Ok(()) => self.tell(policy),
                    Err(error) => self.give_up(policy, &error, now).await,
                }
            }
            Step::Settle(why) => self.end(policy, Stage::Settled, why, now).await,
            Step::Stop(why) => {
                self.end(policy, Stage::Stopped, why, now).await;
                self.back_in_force(policy).await;
            }
            Step::RollBack(why) => {
                self.leave(policy, why, now).await;
                self.back_in_force(policy).await;
            }
        }
    }

    /// What was promoted cannot be loaded.
    async fn give_up(self: &Arc<Self>, policy: &str, error: &str, now: Timestamp) {
        self.leave(policy, format!("it cannot be put in force: {error}"), now).await;
        self.back_in_force(policy).await;
    }

    async fn back_in_force(self: &Arc<Self>, policy: &str) {
        if let Err(error) = self.put_in_force(false).await {
            tracing::error!(policy, %error, "what was in force before cannot be loaded");
        }
    }

    async fn end(self: &Arc<Self>, policy: &str, stage: Stage, why: String, now: Timestamp) {
        let name = policy.to_owned();
        self.insist(move |state| state.end(&name, stage, &why, now)).await;
        self.tell(policy);
    }

    async fn leave(self: &Arc<Self>, policy: &str, why: String, now: Timestamp) {
        let name = policy.to_owned();
        // It was there when the step was found to be due, and orders wait.
        self.insist(move |state| drop(state.roll_back(&name, &why, now))).await;
        self.tell(policy);
    }

    /// The policies of a set failed too often: what was just installed among them goes, else the
    /// policies before come back.
    pub(super) async fn condemned(self: &Arc<Self>, condemnation: Condemnation) {
        let _one = self.ordering.lock().await;
        if self.relay.generation().policies.id() != condemnation.set {
            return;
        }
        let state = self.store.state();
        let now = self.relay.world.clock.now();
        for policy in state.policies.keys() {
            let watched = state.under_way(policy).filter(|one| one.stage == Stage::Watched);
            let failures = watched.map_or(0, |one| self.counted(policy, one).failures);
            if failures > 0 {
                let messages = condemnation.messages;
                let why =
                    format!("its generation was given up: policies failed on {messages} messages");
                self.leave(policy, why, now).await;
            }
        }
        // Policies are made ready, which blocks.
        let (reloader, runtime) = (Arc::clone(&self.reloader), Handle::current());
        let back = move || reloader.roll_back(&condemnation, &runtime);
        match tokio::task::spawn_blocking(back).await {
            Ok(true) => self.agree(now).await,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the way back to the policies before has failed");
            }
        }
    }

    /// What is installed is what came back, where that was installed or came before all that is: else
    /// the next look would put in force again what has failed.
    async fn agree(self: &Arc<Self>, now: Timestamp) {
        let policies = Arc::clone(&self.relay.generation().policies);
        for (name, entry) in &self.store.state().policies {
            let live = policies.policies().iter().find(|one| one.is_live() && one.name() == name);
            let Some(live) = live else { continue };
            let is_it = |release: &Release| release.digest == live.digest();
            let above = match live.source() {
                PluginSource::Installed(_) => entry.installed.iter().rev().position(is_it),
                PluginSource::Builtin(_) | PluginSource::File(_) => Some(entry.installed.len()),
            };
            let is_shadowed = entry.rollout.as_ref().is_some_and(|one| one.stage == Stage::Shadow);
            let steps = match above {
                None | Some(0) => 0,
                // The first step back is the shadow's.
                Some(above) => above + usize::from(is_shadowed),
            };
            for _ in 0..steps {
                let why = "the policies before came back, others failed too often";
                self.leave(name, why.to_owned(), now).await;
            }
        }
    }

    /// What has been counted since the stage began.
    fn counted(&self, policy: &str, rollout: &Rollout) -> Counted {
        let now = self.counters(policy);
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |one: &&Baseline| one.digest == rollout.release.digest && one.stage == rollout.stage;
        let base = begun.get(policy).filter(same).map(|one| one.counted);
        let base = base.unwrap_or_else(|| {
            let (digest, stage) = (rollout.release.digest.clone(), rollout.stage);
            begun.insert(policy.to_owned(), Baseline { digest, stage, counted: now });
            now
        });
        now.since(&base)
    }

    /// From here on the stage that a policy's roll-out is in counts.
    fn mark(&self, policy: &str) {
        let state = self.store.state();
        let Some(rollout) = state.under_way(policy) else { return };
        let (digest, stage) = (rollout.release.digest.clone(), rollout.stage);
        let baseline = Baseline { digest, stage, counted: self.counters(policy) };
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.insert(policy.to_owned(), baseline);
    }

    fn counters(&self, policy: &str) -> Counted {
        let candidate = format!("{policy}{CANDIDATE}");
        let mut counted = Counted::default();
        for stats in self.relay.policy_host.stats() {
            if stats.name() == policy {
                counted.calls = stats.calls();
                counted.failures = failures(&stats);
            } else if stats.name() == candidate {
                counted.classes = shadow_classes(&stats);
            }
        }
        counted
    }

    /// Makes what is in force what it should be. `forward`: the generation before is one to go
    /// back to.
    async fn put_in_force(&self, forward: bool) -> Result<(), String> {
        if self.relay.is_stopping() || !self.reloader.is_behind() {
            return Ok(());
        }
        let reloader = Arc::clone(&self.reloader);
        let handle = Handle::current();
        let loading = tokio::task::spawn_blocking(move || reloader.restage(forward, &handle));
        match loading.await {
            Ok(Ok(Some(generation))) => {
                self.relay.emit(&Event::Reloaded { generation });
                Ok(())
            }
            Ok(Ok(None)) => Ok(()),
            Ok(Err(diagnostics)) => Err(diagnostics.to_string()),
            Err(panic) => Err(format!("loading panicked: {panic}")),
        }
    }

    /// Changes what is known, on disk first.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut rollout::State) -> T + Send + 'static,
    ) -> Result<T, String> {
        let store = Arc::clone(&self.store);
        let changing = tokio::task::spawn_blocking(move || store.change(change));
        match changing.await {
            Ok(changed) => changed.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        }
    }

    /// Changes what is known, whatever the disk does.
    async fn insist(&self, change: impl FnOnce(&mut rollout::State) + Send + 'static) {
        let store = Arc::clone(&self.store);
        let changing = tokio::task::spawn_blocking(move || store.insist(change).1);
        match changing.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a step of a roll-out is not written down"),
            Err(panic) => tracing::error!(%panic, "a step of a roll-out panicked"),
        }
    }

    async fn catch_up(&self) -> Result<(), String> {
        let store = Arc::clone(&self.store);
        let writing = tokio::task::spawn_blocking(move || store.catch_up());
        let written = writing.await.map_err(|panic| panic.to_string())?;
        written.map_err(|error| error.to_string())
    }

    fn tell(&self, policy: &str) {
        let state = self.store.state();
        let rollout = state.policies.get(policy).and_then(|entry| entry.rollout.as_ref());
        if let Some(Rollout { release, stage, why, .. }) = rollout {
            let digest = &release.digest;
            self.relay.emit(&Event::Plugin { policy, digest, stage: stage.as_str(), why });
        }
    }

    async fn install_one(
        self: &Arc<Self>,
        policy: String,
        asked: Install,
        who: Who,
    ) -> Result<Installed, PluginRefusal> {
        let _one = self.ordering.lock().await;
        self.check_running()?;
        let me = Arc::clone(self);
        let (name, wanted) = (policy.clone(), asked.clone());
        let checking = tokio::task::spawn_blocking(move || me.check(&name, &wanted));
        let checked =
            checking.await.map_err(|panic| PluginRefusal::Broken(panic.to_string()))??;
        let answer = |stage: Option<Stage>, what: String| Installed {
            policy: policy.clone(),
            digest: asked.digest.clone(),
            plugin: checked.plugin.clone(),
            version: checked.version.clone(),
            signed_by: checked.signed_by.clone(),
            stage: stage.map(|stage| stage.as_str().to_owned()),
            what,
        };
        if asked.dry_run {
            return Ok(answer(None, "it was verified and checked".to_owned()));
        }
        let now = self.relay.world.clock.now();
        let mut skipped = asked.skip.clone();
        skipped.sort();
        skipped.dedup();
        let release = Release {
            digest: asked.digest.clone(),
            at: now,
            by: who.by,
            reason: asked.reason.clone(),
            skipped,
        };
        let (name, configured, bounds) = (policy.clone(), checked.configured.clone(), asked.bounds);
        let begun =
            self.change(move |state| state.begin(&name, &configured, release, bounds)).await;
        let begun = begun.map_err(PluginRefusal::NotKept)?;
        let stage = begun.map_err(|refusal| PluginRefusal::NotNow(refusal.to_string()))?;
        self.mark(&policy);
        if let Err(error) = self.put_in_force(stage != Stage::Shadow).await {
            self.give_up(&policy, &error, now).await;
            return Err(PluginRefusal::Wrong(error));
        }
        self.tell(&policy);
        let what = match stage {
            Stage::Shadow => "it is asked beside the live one".to_owned(),
            Stage::Watched => "it is live, and watched".to_owned(),
            _ => "it is live".to_owned(),
        };
        Ok(answer(Some(stage), what))
    }

    async fn roll_back_one(
        self: &Arc<Self>,
        policy: String,
        asked: RollBack,
        who: Who,
    ) -> Result<Installed, PluginRefusal> {
        let _one = self.ordering.lock().await;
        self.check_running()?;
        let now = self.relay.world.clock.now();
        let why = format!("{} rolled it back: {}", who.by, asked.reason);
        let refused = |refusal: rollout::Refusal| PluginRefusal::NotNow(refusal.to_string());
        let mut after = self.store.state();
        let left = after.roll_back(&policy, &why, now).map_err(refused)?;
        let what = match after.live(&policy) {
            Some(release) => format!("{} is in force again", release.digest),
            None => "what the configuration names is in force again".to_owned(),
        };
        let answer = |stage: Option<Stage>| Installed {
            policy: policy.clone(),
            digest: left.digest.clone(),
            plugin: String::new(),
            version: String::new(),
            signed_by: None,
            stage: stage.map(|stage| stage.as_str().to_owned()),
            what: what.clone(),
        };
        if asked.dry_run {
            return Ok(answer(None));
        }
        self.leave(&policy, why, now).await;
        self.put_in_force(false).await.map_err(PluginRefusal::Broken)?;
        let stage = after.policies.get(&policy).and_then(|entry| entry.rollout.as_ref());
        Ok(answer(stage.map(|rollout| rollout.stage)))
    }

    fn check_running(&self) -> Result<(), PluginRefusal> {
        match self.relay.is_stopping() {
            true => {
                Err(PluginRefusal::NotNow("the relay is stopping; ask the next one".to_owned()))
            }
            false => Ok(()),
        }
    }
}

impl Plugins for Arc<Rollouts> {
    fn list(&self) -> PluginList {
        Rollouts::status(self)
    }

    fn upload(&self) -> Result<NamedTempFile, PluginRefusal> {
        self.store.upload().map_err(|error| PluginRefusal::NotKept(error.to_string()))
    }

    fn keep(&self, upload: NamedTempFile, digest: &str) -> Result<(), PluginRefusal> {
        self.store.keep(upload, digest).map_err(|error| PluginRefusal::NotKept(error.to_string()))
    }

    fn install(
        &self,
        policy: String,
        asked: Install,
        who: Who,
    ) -> BoxFuture<'_, Result<Installed, PluginRefusal>> {
        Box::pin(self.install_one(policy, asked, who))
    }

    fn roll_back(
        &self,
        policy: String,
        asked: RollBack,
        who: Who,
    ) -> BoxFuture<'_, Result<Installed, PluginRefusal>> {
        Box::pin(self.roll_back_one(policy, asked, who))
    }
}

/// Answers of a candidate by how they differ.
fn shadow_classes(candidate: &PolicyStats) -> [u64; Class::ALL.len()] {
    candidate.shadow().classes
}

/// Calls that gave no answer for which the policy is to blame.
fn failures(stats: &PolicyStats) -> u64 {
    let blamed = |kind: &FailureKind| !matches!(kind, FailureKind::Parked | FailureKind::Host);
    FailureKind::ALL.iter().filter(|kind| blamed(kind)).map(|kind| stats.failures(*kind)).sum()
}
