//! `wavegate config check`: everything that would keep a configuration from being used. Floor 4.
//!
//! It changes nothing: the state directory is looked at and not made.

use std::{
    collections::HashSet,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::Access;
use serde::Serialize;

use super::{
    Failed, exit,
    output::{count, field, json, list},
};
use crate::{
    api::Keys,
    config::{self, Config, Diagnostic, Diagnostics, Severity, UpstreamConfig},
    generation,
    names::{self, Naming, Resolved},
    policy::{HostOptions, PolicyHost, PolicySet, ShadowMode},
    rollout::{self, CANDIDATE, Store},
    tls, users,
    world::{SystemClock, WallClock as _, World},
};

/// Waves that the summary names; it is read on a screen.
const WAVES_SHOWN: usize = 20;

/// What the check found. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Findings {
    /// Whether the relay would take it.
    ok: bool,
    file: String,
    diagnostics: Vec<Diagnostic>,
    /// What it says, where it is good.
    summary: Option<Summary>,
}

#[derive(Debug, Serialize)]
struct Summary {
    listeners: Vec<Listener>,
    links: Vec<Gateway>,
    upstreams: Vec<Upstream>,
    policies: Vec<Policy>,
    instances: usize,
    waves: Vec<Wave>,
}

/// A listener of a link.
#[derive(Debug, Serialize)]
struct Gateway {
    name: String,
    address: String,
    /// Empty: whoever the authority has a certificate for.
    peers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listener {
    name: String,
    address: String,
    allow: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Upstream {
    name: String,
    targets: Vec<String>,
    /// What the names among them stand for, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
struct Policy {
    name: String,
    /// What the plugin calls itself.
    plugin: String,
    version: String,
    /// BLAKE3 of the component.
    digest: String,
}

#[derive(Debug, Serialize)]
struct Wave {
    id: String,
    instances: usize,
    opens: String,
    closes: String,
}

/// Checks a configuration and prints what was found.
pub(super) fn check(
    path: &Path,
    resolve: bool,
    as_json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let findings = find(path, resolve)?;
    match as_json {
        true => json(out, &findings)?,
        false => print(&findings, out)?,
    }
    Ok(if findings.ok { 0 } else { exit::CONFIG })
}

/// A policy host for looking: it audits nothing.
pub(super) fn policy_host(config: &Config) -> Result<Arc<PolicyHost>, Failed> {
    let shadow = ShadowMode::Off;
    let options =
        HostOptions { audit_every: 0, shadow, ..HostOptions::production(1).compiling_apart() };
    PolicyHost::new(own_cache(config), options)
        .map_err(|error| Failed::new(exit::OS, format!("policy host: {error}")))
}

/// Where compiled code is kept: only where the state directory is ours already, so that no other
/// user's directory gets files of this one's.
pub(super) fn own_cache(config: &Config) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let state_dir = &config.relay.state_dir;
    let user = rustix::process::geteuid().as_raw();
    let ours = std::fs::metadata(state_dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == user);
    ours.then(|| state_dir.join("compiled"))
}

/// Takes what was installed in a running relay in place of what the configuration names, where this
/// user may look. What should be known of that.
pub(super) fn with_installed(config: &mut Config) -> Vec<Diagnostic> {
    let state_dir = config.relay.state_dir.clone();
    let warning = |text: String| Diagnostic {
        severity: Severity::Warning,
        ..Diagnostic::of_file(state_dir.display(), text)
    };
    let store = match Store::open(&state_dir) {
        Ok(store) => store,
        Err(error) => {
            let text = format!("which plugins are installed is not known: {error}");
            return vec![warning(text)];
        }
    };
    let state = store.state();
    let overlaid = rollout::overlay(&config.policies, &state, &state_dir);
    let found = overlaid.warnings(&state).map(warning).collect();
    config.policies = overlaid.policies;
    // Candidates decide nothing.
    config.policies.retain(|policy| !policy.name.ends_with(CANDIDATE));
    found
}

fn find(path: &Path, resolve: bool) -> anyhow::Result<Findings> {
    let file = path.display().to_string();
    let mut config = match config::read(path) {
        Ok(config) => config,
        Err(found) => {
            return Ok(Findings { ok: false, file, diagnostics: found.0, summary: None });
        }
    };
    let mut diagnostics = config.warnings.clone();
    diagnostics.extend(with_installed(&mut config));
    if let Err(found) = state_dir(&config.relay.state_dir) {
        diagnostics.push(found);
    }
    if let Some(Err(found)) = config.api.as_ref().map(Keys::load) {
        diagnostics.extend(found.0);
    }
    match tls::load(&config, SystemClock.now(), None) {
        Ok(loaded) => diagnostics.extend(loaded.warnings),
        Err(found) => diagnostics.extend(found.0),
    }
    let mut names = None;
    if resolve {
        match look_up(&config)? {
            Ok(found) => {
                diagnostics.extend(found.warnings.iter().cloned());
                names = Some(found);
            }
            Err(found) => diagnostics.extend(found.0),
        }
    }
    if let Err(found) = users::load(&config) {
        diagnostics.extend(found.0);
    }
    let host = policy_host(&config)?;
    let policies = generation::load_policies(&host, &config);
    let summary = match policies {
        Ok(policies) => Some(summary(&config, &policies, names.as_ref())),
        Err(found) => {
            diagnostics.extend(found.0);
            None
        }
    };
    let ok = !diagnostics.iter().any(Diagnostic::is_error);
    Ok(Findings { ok, file, diagnostics, summary: summary.filter(|_| ok) })
}

/// Looks up all names, as a relay that starts does.
fn look_up(config: &Config) -> anyhow::Result<Result<Resolved, Diagnostics>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed::new(exit::OS, error.to_string()))?;
    let naming = Naming::open(&World::real(), &config.resolver, None);
    Ok(runtime.block_on(names::resolve(config, naming, &HashSet::new(), &[])))
}

/// Whether the relay, run by this user, could use its state directory. One that is missing has
/// to be possible to make.
fn state_dir(path: &Path) -> Result<(), Diagnostic> {
    if path.symlink_metadata().is_ok() {
        return config::check_state_dir(path);
    }
    let fail = |message| Err(Diagnostic::of_file(path.display(), message));
    let there = path.ancestors().skip(1).find(|parent| parent.symlink_metadata().is_ok());
    let there = there.map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
    if !there.is_dir() {
        return fail(format!(
            "cannot be made: {} is not a directory; choose another `relay.state_dir`",
            there.display()
        ));
    }
    match rustix::fs::access(&there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(error) => fail(format!(
            "cannot be made in {}: {error}; make it, owned by the user that the relay runs as",
            there.display()
        )),
    }
}

fn summary(config: &Config, policies: &PolicySet, names: Option<&Resolved>) -> Summary {
    let texts = |items: &[_]| items.iter().map(ToString::to_string).collect();
    let targets = |items: &[_]| items.iter().map(ToString::to_string).collect();
    let addresses = |one: &UpstreamConfig| {
        let found = names::place(&one.targets, &names?.names(one)).endpoints;
        Some(found.iter().map(|placed| placed.endpoint.address.to_string()).collect())
    };
    Summary {
        listeners: config
            .listeners
            .iter()
            .map(|one| Listener {
                name: one.name.clone(),
                address: one.address.to_string(),
                allow: texts(&one.allow),
            })
            .collect(),
        links: config
            .links
            .iter()
            .map(|one| Gateway {
                name: one.name.clone(),
                address: one.address.to_string(),
                peers: one.peers.iter().map(|peer| peer.name.clone()).collect(),
            })
            .collect(),
        upstreams: config
            .upstreams
            .iter()
            .map(|one| Upstream {
                name: one.name.clone(),
                targets: targets(&one.targets),
                addresses: addresses(one),
            })
            .collect(),
        policies: policies
            .policies()
            .iter()
            .map(|one| Policy {
                name: one.name().to_owned(),
                plugin: one.description().name.clone(),
                version: one.description().version.clone(),
                digest: one.digest().to_owned(),
            })
            .collect(),
        instances: config.plan.instances.len(),
        waves: config
            .plan
            .waves
            .iter()
            .map(|wave| Wave {
                id: wave.window.wave.clone(),
                instances: wave.instances.len(),
                opens: wave.window.opens.to_string(),
                closes: wave.window.closes.to_string(),
            })
            .collect(),
    }
}

fn print(findings: &Findings, out: &mut dyn Write) -> io::Result<()> {
    for found in &findings.diagnostics {
        writeln!(out, "{found}")?;
    }
    let of = |severity| findings.diagnostics.iter().filter(|d| d.severity == severity).count();
    let warnings = count(of(Severity::Warning), "warning");
    let Some(summary) = &findings.summary else {
        let errors = count(of(Severity::Error), "error");
        return writeln!(out, "{}: {errors}, {warnings}", findings.file);
    };
    writeln!(out, "{}: good, {warnings}", findings.file)?;
    // A label stands at its first line only.
    let label = |name: &'static str, index: usize| if index == 0 { name } else { "" };
    for (index, one) in summary.listeners.iter().enumerate() {
        let text = format!("{} on {}, open to {}", one.name, one.address, list(&one.allow));
        field(out, label("listeners", index), text)?;
    }
    for (index, one) in summary.links.iter().enumerate() {
        let who = match &one.peers[..] {
            [] => "all that the authority vouches for".to_owned(),
            peers => list(peers),
        };
        let text = format!("{} on {} (UDP), open to {who}", one.name, one.address);
        field(out, label("links", index), text)?;
    }
    for (index, one) in summary.upstreams.iter().enumerate() {
        let mut text = match &one.targets[..] {
            [] => format!("{} where the client wanted to go", one.name),
            targets => format!("{} at {}", one.name, list(targets)),
        };
        if let Some(addresses) = one.addresses.as_ref().filter(|found| **found != one.targets) {
            text.push_str(&format!(", now {}", list(addresses)));
        }
        field(out, label("upstreams", index), text)?;
    }
    for (index, one) in summary.policies.iter().enumerate() {
        let digest = one.digest.get(..16).unwrap_or(&one.digest);
        let text = format!("{}: {} {}, blake3 {digest}", one.name, one.plugin, one.version);
        field(out, label("policies", index), text)?;
    }
    field(out, "instances", summary.instances)?;
    for (index, one) in summary.waves.iter().take(WAVES_SHOWN).enumerate() {
        let of = count(one.instances, "instance");
        let text = format!("{}: {of}, from {} to {}", one.id, one.opens, one.closes);
        field(out, label("waves", index), text)?;
    }
    match summary.waves.len().checked_sub(WAVES_SHOWN) {
        Some(more @ 1..) => field(out, "", format!("and {more} more")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const GOOD: &str = "[relay]\nhostname = \"edge.example\"\nstate_dir = \"state\"\n\
        [[listener]]\naddress = \"127.0.0.1:2525\"\n\
        [[upstream]]\nname = \"legacy\"\ntargets = [\"127.0.0.1:2601\"]\n\
        [[policy]]\nplugin = \"builtin:throttle\"\n";

    fn run(config: &str, as_json: bool) -> (u8, String, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay.toml");
        std::fs::write(&file, config).unwrap();
        let mut out = Vec::new();
        let code = check(&file, false, as_json, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        (code, text.replace(&dir.path().display().to_string(), "DIR"), dir)
    }

    #[test]
    fn a_good_one_is_summed_up_and_nothing_is_made() {
        let (code, text, dir) = run(GOOD, false);
        assert_eq!(code, 0, "{text}");
        let expected = "DIR/relay.toml: good, 0 warnings\n  listeners   listener-1 on \
            127.0.0.1:2525, open to 127.0.0.0/8, ::1/128\n  upstreams   legacy at \
            127.0.0.1:2601\n  policies    throttle: throttle ";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_of_files_settings_and_state_directory_are_all_told() {
        let (code, text, _dir) = run(&GOOD.replace("name =", "nmae ="), false);
        assert_eq!(code, exit::CONFIG);
        assert!(text.contains("DIR/relay.toml:7:") && text.contains("nmae"), "{text}");

        let bad = GOOD.replace("\"state\"", "\"relay.toml/state\"") + "settings = { limts = 1 }\n";
        let (code, text, _dir) = run(&bad, true);
        assert_eq!(code, exit::CONFIG);
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["ok"], false);
        assert!(found["summary"].is_null());
        let found = found["diagnostics"].as_array().unwrap();
        assert!(found.iter().any(|d| d["file"] == "DIR/relay.toml/state"), "{text}");
        assert!(text.contains("limts"), "{text}");
    }
}
