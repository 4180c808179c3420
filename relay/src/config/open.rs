//! Opens configurations and plans: the relay's file, the plan that it names, the plan's lock.
//! Owns which file is read when; what is in them is the other modules' business. Floor 1.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Config, Diagnostic, Diagnostics, PluginSource, UpstreamConfig, check,
    diagnostic::{Place, Report},
    lock,
    plan::{self, Known},
    plugins::signature_of,
    reader::{self, Document, Section},
    redirect, relay, target,
};
use crate::{
    plan::{Plan, Timestamp},
    world::{SystemClock, WallClock},
};

/// The largest relay configuration.
const CONFIG_MAX: u64 = 1 << 20;
/// The largest plan: some ten thousand instances.
const PLAN_MAX: u64 = 16 << 20;

/// How much of a plan is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// Values and names alone: whether windows are what environments allow is being asked.
    Values,
    /// What keeps a relay from using it. Nothing that time alone brings about is an error: a
    /// relay that has run must be able to start again.
    Relay,
    /// All.
    Plan,
}

/// For when, and how much of, a plan is checked.
#[derive(Clone, Copy, Debug)]
pub struct When {
    /// The time that decides which waves are over.
    pub now: Timestamp,
    /// How much is checked.
    pub checks: Checks,
}

/// Where a plan is found.
#[derive(Clone, Debug)]
pub enum PlanSource {
    /// In this configuration, which names it.
    Relay(PathBuf),
    /// In this file; which upstreams and listeners there are is not known then.
    Plan(PathBuf),
}

/// A plan for whoever works with plans.
#[derive(Clone, Debug)]
pub struct PlanFile {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Its file, absolute.
    pub path: PathBuf,
    /// What was found that is not an error.
    pub warnings: Vec<Diagnostic>,
}

impl PlanFile {
    /// An error about a key that the plan may lack, or have so, for all but what is asked for
    /// now. It stands at the key or, where that is missing, at what lacks it.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Diagnostic {
        let shown = self.path.display().to_string();
        let report = Report::default();
        let text = reader::read_text(&self.path, PLAN_MAX, &Place::of_file(&shown), &report);
        let document = Document::new(&shown, text.as_deref().unwrap_or_default(), &report);
        let place = document.parse().map(|table| document.find(&table, key));
        let at = place.and_then(|place| place.at);
        Diagnostic {
            line: at.map(|at| at.0),
            column: at.map(|at| at.1),
            key: key.to_owned(),
            ..Diagnostic::of_file(shown, message)
        }
    }
}

/// Reads a configuration and the plan that it names, as of now. All that is wrong is reported at
/// once.
pub fn read(path: &Path) -> Result<Config, Diagnostics> {
    read_at(path, When { now: SystemClock.now(), checks: Checks::Relay })
}

/// Reads a configuration and the plan that it names, as of some time.
pub fn read_at(path: &Path, when: When) -> Result<Config, Diagnostics> {
    let report = Report::default();
    let shown = path.display().to_string();
    let config = read_relay(path, &shown, when, &report);
    let warnings = report.finish(&shown)?;
    let mut config = config.expect("what cannot be read is reported as an error");
    config.warnings = warnings;
    Ok(config)
}

/// Reads a plan.
pub fn read_plan(source: &PlanSource, when: When) -> Result<PlanFile, Diagnostics> {
    match source {
        PlanSource::Relay(path) => {
            let config = read_at(path, when)?;
            let Config { plan, plan_file, warnings, .. } = config;
            let path = plan_file.ok_or_else(|| {
                let message = "names no plan; add `plan = \"waves.toml\"` to `[relay]`";
                Diagnostics::from(Diagnostic::of_file(path.display(), message))
            })?;
            Ok(PlanFile { plan, path, warnings })
        }
        PlanSource::Plan(path) => {
            let report = Report::default();
            let shown = path.display().to_string();
            let place = Place::of_file(&shown);
            let plan = open_plan(path, path, &place, &Known::default(), when, &report);
            let warnings = report.finish(&shown)?;
            let path = std::path::absolute(path)
                .map_err(|error| Diagnostic::of_file(&shown, format!("has no path: {error}")))?;
            let plan = plan.expect("what cannot be read is reported as an error");
            Ok(PlanFile { plan: Arc::new(plan), path, warnings })
        }
    }
}

/// Reads a plan and its lock. It is called `shown` in messages, and named at `named_at`.
fn open_plan(
    path: &Path,
    shown: &Path,
    named_at: &Place,
    known: &Known,
    when: When,
    report: &Report,
) -> Option<Plan> {
    let text = reader::read_text(path, PLAN_MAX, named_at, report)?;
    let lock = lock::read(path, shown, report);
    let document = Document::new(&shown.display().to_string(), &text, report);
    let table = document.parse()?;
    Some(plan::read(Section::root(&document, &table), known, lock, when))
}

fn read_relay(path: &Path, shown: &str, when: When, report: &Report) -> Option<Config> {
    let whole = Place::of_file(shown);
    let text = reader::read_text(path, CONFIG_MAX, &whole, report)?;
    let absolute = match std::path::absolute(path) {
        Ok(absolute) => absolute,
        Err(error) => {
            report.error(&whole, format!("has no absolute path: {error}; give one"));
            return None;
        }
    };
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let document = Document::new(shown, &text, report);
    let table = document.parse()?;
    let draft = relay::read(Section::root(&document, &table), base);
    check::check(&draft, report);
    let known = Known {
        upstreams: Some(draft.upstreams.iter().map(|(one, _)| one.name.clone()).collect()),
        listeners: Some(draft.listener_names().map(str::to_owned).collect()),
        originals: redirect::names(&draft),
        lacks_migration: draft.migration.is_none(),
    };
    let mut plan = Plan::default();
    if let Some(named) = &draft.plan {
        let beside = path.parent().unwrap_or(Path::new(""));
        let shown = match named.value.strip_prefix(base) {
            Ok(relative) => beside.join(relative),
            Err(_) => named.value.clone(),
        };
        plan = open_plan(&named.value, &shown, &named.place, &known, when, report)?;
        check::check_verify(&draft, &plan, &named.place, report);
        if !plan.instances.is_empty() && draft.policies.is_empty() {
            report.error(
                &named.place,
                "a plan needs a freeze policy; add `[[policy]] plugin = \"builtin:freeze\"`",
            );
        }
    }
    let plan_file = draft.plan.map(|plan| plan.value);
    let of_plan = plan_file.iter().flat_map(|plan| [plan.clone(), lock::lock_of(plan)]);
    let api = draft.api.map(|(api, _)| api);
    let of_api = api.iter().flat_map(|api| api.files().cloned());
    let of_tls = draft.listeners.iter().filter_map(|(listener, _)| listener.tls.as_ref());
    let of_tls = of_tls.flat_map(|tls| tls.files().cloned());
    let of_upstreams = draft.upstreams.iter().filter_map(|(upstream, _)| upstream.tls.as_ref());
    let of_upstreams = of_upstreams.flat_map(|tls| tls.files().cloned());
    let of_auth = draft.listeners.iter().filter_map(|(listener, _)| listener.auth.as_ref());
    let of_auth = of_auth.filter_map(|auth| auth.users().cloned());
    let of_logins = draft.upstreams.iter().filter_map(|(upstream, _)| upstream.auth.as_ref());
    let of_logins = of_logins.map(|auth| auth.secret.clone());
    let of_gateways = draft.links.iter().flat_map(|(link, _)| link.files().cloned());
    let of_edges = draft.upstreams.iter().filter_map(|(upstream, _)| upstream.link.as_ref());
    let of_edges = of_edges.flat_map(|link| link.files().cloned());
    let of_sections = of_api.chain(of_tls).chain(of_upstreams).chain(of_auth).chain(of_logins);
    let of_sections = of_sections.chain(of_gateways).chain(of_edges);
    let files: Vec<_> =
        std::iter::once(absolute.clone()).chain(of_plan).chain(of_sections).collect();
    let plugins = draft.policies.iter().filter_map(|(policy, _)| match &policy.plugin {
        PluginSource::File(path) => Some([path.clone(), signature_of(path)]),
        PluginSource::Builtin(_) | PluginSource::Installed(_) => None,
    });
    let plugins = plugins.flatten().chain(draft.plugins.files().cloned()).collect::<Vec<_>>();
    let of_names = |(one, at): &(UpstreamConfig, _)| target::places(&one.name, at);
    let names = draft.upstreams.iter().flat_map(of_names).collect();
    let mut upstreams: Vec<_> = draft.upstreams.into_iter().map(|(upstream, _)| upstream).collect();
    if let [only] = &mut upstreams[..] {
        only.default = true;
    }
    Some(Config {
        files: files.into_iter().chain(plugins).collect(),
        plan_file: plan_file.clone(),
        relay: draft.relay,
        limits: draft.limits,
        spool: draft.spool,
        listeners: draft.listeners.into_iter().map(|(listener, _)| listener).collect(),
        links: draft.links.into_iter().map(|(link, _)| link).collect(),
        upstreams,
        names,
        resolver: draft.resolver,
        conduct: draft.migration.as_ref().map(|one| one.conduct.clone()).unwrap_or_default(),
        migration: draft.migration.and_then(|migration| migration.config()),
        policies: draft.policies.into_iter().map(|(policy, _)| policy).collect(),
        plugins: draft.plugins,
        tables: draft.tables.into_iter().map(|(table, _)| table).collect(),
        admin: draft.admin.map(|(admin, _)| admin),
        api,
        event_log: draft.event_log,
        decision_log: draft.decision_log,
        plan: Arc::new(plan),
        warnings: Vec::new(),
    })
}
