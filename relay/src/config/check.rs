//! What must hold between the values of a configuration: names that are referred to, addresses
//! that collide, a next hop for everything. And what can be checked only after plugins are
//! loaded, or only at start. Floor 1.

use std::{
    collections::HashMap,
    fs::{DirBuilder, Permissions},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use super::{
    Config, Diagnostic, Diagnostics, FailMode, Mode, Unmatched, UpstreamTlsMode, Verify,
    diagnostic::{Located, Place, Report},
    link,
    plan::unknown,
    policy::{self, FREEZE_IGNORE},
    redirect,
    relay::Draft,
    target::Target,
};
use crate::plan::Plan;

/// Checks what needs no plan.
pub(super) fn check(draft: &Draft, report: &Report) {
    let listeners = draft.listener_names().zip(draft.listener_places());
    let listeners = listeners.filter_map(|(name, at)| Some((name, at.name.as_ref()?)));
    let upstreams =
        draft.upstreams.iter().filter_map(|(u, at)| Some((u.name.as_str(), at.name.as_ref()?)));
    let policies =
        draft.policies.iter().filter_map(|(p, at)| Some((p.name.as_str(), at.name.as_ref()?)));
    let tables = draft.tables.iter().filter_map(|(t, at)| Some((t.name.as_str(), at.as_ref()?)));
    unique("listener", listeners, report);
    unique("upstream", upstreams, report);
    unique("policy", policies, report);
    unique("table", tables, report);
    check_references(draft, report);
    check_addresses(draft, report);
    check_default(draft, report);
    redirect::check(draft, report);
    link::check(draft, report);
    policy::check_shadows(&draft.policies, report);
}

fn unique<'a>(kind: &str, names: impl Iterator<Item = (&'a str, &'a Place)>, report: &Report) {
    let mut first: HashMap<&str, &Place> = HashMap::new();
    for (name, place) in names {
        if let Some(other) = first.get(name) {
            report.error(
                place,
                format!(
                    "\"{name}\" is also the {kind} at {}; give each a `name` of its own",
                    other.short()
                ),
            );
        } else {
            first.insert(name, place);
        }
    }
}

fn check_references(draft: &Draft, report: &Report) {
    let known: Vec<String> = draft.upstreams.iter().map(|(u, _)| u.name.clone()).collect();
    // A refused name of an upstream must not make every reference to it an error of its own.
    if known.iter().any(String::is_empty) {
        return;
    }
    let check = |found: &Located<String>| {
        if !known.contains(&found.value) {
            report.error(&found.place, unknown("upstream", &found.value, &known));
        }
    };
    draft.listener_places().flat_map(|at| &at.upstreams).for_each(check);
    check_judges(draft, &known, report);
    draft.upstreams.iter().filter_map(|(_, at)| at.fallback.as_ref()).for_each(check);
    let Some(migration) = &draft.migration else {
        return;
    };
    migration.before.iter().chain(&migration.after).for_each(check);
    if let (Some(before), Some(after)) = (&migration.before, &migration.after)
        && before.value == after.value
    {
        report.warn(&after.place, "is the same as `before`: nothing would move");
    }
}

/// The upstreams that judge logins, and that passwords do not go to them in the clear.
fn check_judges(draft: &Draft, known: &[String], report: &Report) {
    for (listener, places) in &draft.listeners {
        let Some((auth, place)) = listener.auth.as_ref().zip(places.auth.as_ref()) else {
            continue;
        };
        let Some(name) = auth.upstream() else { continue };
        let Some((upstream, _)) = draft.upstreams.iter().find(|(one, _)| one.name == name) else {
            report.error(place, unknown("upstream", name, known));
            continue;
        };
        if upstream.link.is_some() {
            report.error(
                place,
                format!(
                    "upstream \"{name}\" is a link, which carries messages and no logins; name one \
                     that speaks SMTP, or give `users`"
                ),
            );
            continue;
        }
        let mode = upstream.tls.as_ref().map(|tls| tls.mode);
        let is_safe = matches!(mode, Some(UpstreamTlsMode::Required | UpstreamTlsMode::Implicit));
        if !is_safe && !auth.insecure {
            report.error(
                place,
                format!(
                    "passwords would go to upstream \"{name}\" in the clear; give that `tls = \
                     \"required\"`, or `insecure = true` where something else protects them"
                ),
            );
        }
    }
}

/// An address of ours, where it stands, and what answers there.
type Own<'a> = (SocketAddr, &'a Place, String);

fn check_addresses(draft: &Draft, report: &Report) {
    let listeners = draft.listeners.iter().filter_map(|(listener, places)| {
        let what = format!("listener \"{}\"", listener.name);
        Some((listener.address, places.address.as_ref()?, what))
    });
    let admin = draft.admin.iter().map(|(admin, place)| (admin.address, place, "[admin]".into()));
    let api = draft.api.iter().map(|(api, place)| (api.address, place, "[api]".into()));
    let tcp = listeners.chain(admin).chain(api).collect::<Vec<Own<'_>>>();
    // The link's ports are UDP's, so the two never collide.
    let udp = draft.links.iter().filter_map(|(link, places)| {
        let what = format!("listener \"{}\"", link.name);
        Some((link.address, places.address.as_ref()?, what))
    });
    let udp = udp.collect::<Vec<Own<'_>>>();
    for ours in [&tcp, &udp] {
        check_collisions(ours, report);
    }
    for (upstream, places) in &draft.upstreams {
        let ours = if upstream.link.is_some() { &udp } else { &tcp };
        check_targets(ours, &places.targets, report);
    }
}

fn check_collisions(ours: &[Own<'_>], report: &Report) {
    for (index, (address, place, _)) in ours.iter().enumerate() {
        let taken = ours[..index].iter().find(|(other, ..)| collide(*other, *address));
        if let Some((_, other, theirs)) = taken {
            report.error(
                place,
                format!(
                    "{address} is also taken by {theirs} ({}); use another port",
                    other.short()
                ),
            );
        }
    }
}

fn check_targets(ours: &[Own<'_>], targets: &[Located<Target>], report: &Report) {
    for target in targets {
        // Where a name leads is not known yet: `names` looks.
        let Some(address) = target.value.address() else { continue };
        let own = ours.iter().find(|(own, ..)| reaches(address, *own));
        if let Some((_, other, what)) = own {
            report.error(
                &target.place,
                format!(
                    "{} is this relay's own {what} ({}): mail would go round for ever; give the \
                     upstream's address",
                    target.value,
                    other.short()
                ),
            );
        }
    }
}

/// Whether two listening sockets cannot both be opened. Port 0 is a free one each time.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0
        && a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Whether a connection to `target` surely comes in at `own`. Which addresses beyond loopback
/// are this host's is not known here.
fn reaches(target: SocketAddr, own: SocketAddr) -> bool {
    let (to, at) = (target.ip().to_canonical(), own.ip().to_canonical());
    target.port() == own.port() && (to == at || (at.is_unspecified() && to.is_loopback()))
}

fn check_default(draft: &Draft, report: &Report) {
    let mut defaults = draft.upstreams.iter().filter(|(upstream, _)| upstream.default);
    let default = defaults.next();
    for (_, places) in defaults {
        let first = default.map(|(_, at)| at.default.short()).unwrap_or_default();
        report.error(
            &places.default,
            format!("the upstream at {first} is the default already; leave it at one"),
        );
    }
    let has_default = default.is_some() || draft.upstreams.len() <= 1;
    if has_default {
        return;
    }
    let at_upstreams = Place { key: "upstream".into(), ..draft.place.clone() };
    if !draft.policies.iter().any(|(policy, _)| policy.mode == Mode::Live) {
        report.error(
            &at_upstreams,
            "nothing says where mail goes: mark one upstream with `default = true`, or add a \
             routing policy: `[[policy]] plugin = \"builtin:routing\"`",
        );
    } else if draft.relay.unmatched == Unmatched::Before && draft.migration.is_none() {
        report.error(
            &draft.unmatched,
            "unmatched mail would go to `[migration] before` or to the default upstream, and there \
             is neither; add `[migration]`, mark one upstream with `default = true`, or set \
             `unmatched` to \"hold\" or \"refuse\"",
        );
    }
}

/// A plan that knows instances by header fields cannot say whose a recipient is before there is a
/// header.
pub(super) fn check_verify(draft: &Draft, plan: &Plan, named_at: &Place, report: &Report) {
    let verifies = draft.upstreams.iter().find(|(upstream, _)| upstream.verify == Verify::Rcpt);
    if let Some((upstream, _)) = verifies.filter(|_| plan.wants_headers()) {
        report.error(
            named_at,
            format!(
                "an instance is known by a header field, and upstream \"{}\" has `verify = \
                 \"rcpt\"`: recipients are answered before there is a header; leave one out",
                upstream.name
            ),
        );
    }
}

/// The checks that need to know which attributes loaded policies ask for; `needs` are those of
/// `config.policies`, in order.
pub fn check_needs<'a>(
    config: &Config,
    needs: impl Iterator<Item = &'a [String]>,
) -> Result<(), Diagnostics> {
    let Some(upstream) = config.upstreams.iter().find(|one| one.verify == Verify::Rcpt) else {
        return Ok(());
    };
    let mut found = Vec::new();
    for (policy, needs) in config.policies.iter().zip(needs) {
        if let Some(header) = needs.iter().find(|need| need.starts_with("header:")) {
            let message = format!(
                "policy \"{}\" asks for {header}, and upstream \"{}\" has `verify = \"rcpt\"`: \
                 recipients are answered before there is a header; leave one out",
                policy.name, upstream.name
            );
            found.push(Diagnostic::of_file(&policy.place, message));
        }
    }
    if found.is_empty() { Ok(()) } else { Err(Diagnostics(found)) }
}

/// The interfaces that a loaded plugin exports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// `freeze`.
    pub freeze: bool,
    /// `routing`.
    pub routing: bool,
    /// `throttling`.
    pub throttling: bool,
}

/// The checks that need the plugins loaded; `hooks` are those of `config.policies`, in order.
pub fn check_hooks(config: &Config, hooks: &[Hooks]) -> Result<(), Diagnostics> {
    assert_eq!(config.policies.len(), hooks.len(), "one entry for each policy");
    let file = config.files.first().map(|path| path.display().to_string()).unwrap_or_default();
    let mut found = Vec::new();
    // What a shadow says changes nothing.
    let live: Vec<Hooks> = config
        .policies
        .iter()
        .zip(hooks)
        .filter(|(policy, _)| policy.mode == Mode::Live)
        .map(|(_, hooks)| *hooks)
        .collect();
    if !config.plan.instances.is_empty() && !live.iter().any(|hooks| hooks.freeze) {
        found.push(Diagnostic::of_file(
            &file,
            "the plan has instances, but no policy exports `freeze`; add `[[policy]] plugin = \
             \"builtin:freeze\"`",
        ));
    }
    if config.default_upstream().is_none() && !live.iter().any(|hooks| hooks.routing) {
        found.push(Diagnostic::of_file(
            &file,
            "no policy exports `routing` and no upstream is the default; add `[[policy]] plugin = \
             \"builtin:routing\"` or mark one upstream with `default = true`",
        ));
    }
    for (policy, hooks) in config.policies.iter().zip(hooks) {
        if hooks.freeze && policy.fail == Some(FailMode::Ignore) {
            let message = format!("policy \"{}\": fail: {FREEZE_IGNORE}", policy.name);
            found.push(Diagnostic::of_file(&policy.place, message));
        }
    }
    if found.is_empty() { Ok(()) } else { Err(Diagnostics(found)) }
}

/// Makes the state directory if it is not there, and tries that only this user can write in it.
pub fn check_state_dir(path: &Path) -> Result<(), Diagnostic> {
    let fail = |message: String| Err(Diagnostic::of_file(path.display(), message));
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            return fail("is not a directory; set `relay.state_dir` to one".into());
        }
        Ok(found) if found.permissions().mode() & 0o022 != 0 => {
            return fail("can be written by others; make it private: chmod 700".into());
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(path) {
                return fail(format!(
                    "cannot be made: {error}; make it, owned by the user that the relay runs as"
                ));
            }
            // The mode above is less what the umask takes.
            if let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(0o700)) {
                return fail(format!("cannot be made private: {error}; chmod 700 it"));
            }
        }
        Err(error) => {
            return fail(format!("cannot be looked at: {error}; check the path's permissions"));
        }
    }
    match tempfile::tempfile_in(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            fail(format!("cannot be written: {error}; give it to the user that the relay runs as"))
        }
    }
}

impl Config {
    /// What of this relay surely answers where an upstream has this address.
    pub fn own_address(&self, upstream: &str, address: SocketAddr) -> Option<String> {
        let upstream = self.upstreams.iter().find(|one| one.name == upstream);
        let is_link = upstream.is_some_and(|upstream| upstream.link.is_some());
        let listener = |name: &str| format!("listener \"{name}\"");
        if is_link {
            let found = self.links.iter().find(|one| reaches(address, one.address));
            return found.map(|one| listener(&one.name));
        }
        let listeners = self.listeners.iter().map(|one| (one.address, listener(&one.name)));
        let admin = self.admin.iter().map(|one| (one.address, "[admin]".to_owned()));
        let api = self.api.iter().map(|one| (one.address, "[api]".to_owned()));
        let mut all = listeners.chain(admin).chain(api);
        all.find(|(own, _)| reaches(address, *own)).map(|(_, what)| what)
    }

    /// Where mail goes that no routing policy has an opinion of.
    pub fn default_upstream(&self) -> Option<&str> {
        self.upstreams.iter().find(|upstream| upstream.default).map(|one| one.name.as_str())
    }

    /// Where unmatched mail goes with `unmatched = "before"`: `[migration] before`, without a
    /// migration the default upstream.
    pub fn unmatched_upstream(&self) -> Option<&str> {
        match &self.migration {
            Some(migration) => Some(&migration.before),
            None => self.default_upstream(),
        }
    }

    /// Upstream of an instance before its window: its own word, its wave's, `[migration]`'s.
    pub fn before(&self, instance: usize) -> Option<&str> {
        let migration = || self.migration.as_ref().map(|migration| migration.before.as_str());
        self.plan.before(instance).or_else(migration)
    }

    /// Upstream of an instance after its window.
    pub fn after(&self, instance: usize) -> Option<&str> {
        let migration = || self.migration.as_ref().map(|migration| migration.after.as_str());
        self.plan.after(instance).or_else(migration)
    }
}
