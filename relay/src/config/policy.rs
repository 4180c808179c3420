//! `[[policy]]` and `[[table]]`: which plugins decide, with what settings and bounds. Whether a
//! plugin is any good is found out when it is loaded; here it must only be there. Floor 1.

use std::{path::Path, time::Duration};

use toml::de::DeValue;

use super::{
    FailMode, Mode, PluginSource, PolicyConfig, TableConfig,
    decision_log::{self, one_in},
    diagnostic::{Located, Place, Report},
    reader::{Section, Value},
    relay::{MIB, bytes, path},
    values::{self, nearest, one_of, quote},
};

/// Policies that are part of the binary.
pub const BUILTIN_POLICIES: [&str; 3] = ["freeze", "routing", "throttle"];

const MS: Duration = Duration::from_millis(1);

impl PolicyConfig {
    /// A live policy with everything as it is by default.
    pub fn new(name: impl Into<String>, plugin: PluginSource) -> Self {
        Self {
            name: name.into(),
            plugin,
            settings: "{}".to_owned(),
            mode: Mode::Live,
            fail: None,
            memory: 16 << 20,
            timeout: 50 * MS,
            log: None,
            place: String::new(),
        }
    }
}

/// Reads one `[[policy]]`.
pub(super) fn read(section: Section<'_>, base: &Path) -> (PolicyConfig, Places) {
    let example = "\"builtin:NAME\" or the path of a .wasm file";
    let plugin =
        section.require("plugin", example).and_then(|v| v.parse(example, |t| plugin(t, base)));
    let name = match section.get("name") {
        Some(value) => value.parse("a name in quotes", values::name),
        None => plugin.as_ref().and_then(|plugin| default_name(&section, plugin)),
    };
    let settings = section.get("settings").and_then(|value| {
        if !value.get().is_table() {
            value.wrong_type("a table, such as { limits = [] }");
            return None;
        }
        json(&value)
    });
    let fail = section.choice(
        "fail",
        "a fail mode",
        &[("hold", FailMode::Hold), ("defer", FailMode::Defer), ("ignore", FailMode::Ignore)],
    );
    if let (Some(fail), Some(plugin)) = (&fail, &plugin)
        && fail.value == FailMode::Ignore
        && plugin.value == PluginSource::Builtin("freeze".into())
    {
        section.report().error(&fail.place, FREEZE_IGNORE);
    }
    let (mode, replaces) = read_mode(&section);
    let log = section.get("log").is_some();
    let log = log.then(|| one_in(section.integer("log", 0, 0..=decision_log::MOST)));
    let policy = PolicyConfig {
        name: name.as_ref().map(|found| found.value.clone()).unwrap_or_default(),
        plugin: plugin.map_or(PluginSource::Builtin(String::new()), |found| found.value),
        settings: settings.map_or_else(|| "{}".into(), |value| value.to_string()),
        mode,
        fail: fail.map(|found| found.value),
        memory: bytes(&section, "memory", 16 << 20, MIB..=1024 * MIB),
        timeout: section.duration("timeout", 50 * MS, MS..=10_000 * MS),
        log,
        place: section.place().short(),
    };
    section.finish();
    (policy, Places { name: name.map(|found| found.place), replaces })
}

/// Where values of a policy stand; none where there is none, or it was refused.
pub(super) struct Places {
    pub(super) name: Option<Place>,
    pub(super) replaces: Option<Place>,
}

fn read_mode(section: &Section<'_>) -> (Mode, Option<Place>) {
    let mode = section.choice("mode", "a mode", &[("live", false), ("shadow", true)]);
    let is_shadow = mode.is_some_and(|found| found.value);
    if !is_shadow {
        for key in ["percent", "replaces"] {
            if let Some(value) = section.get(key) {
                value.error("is for a shadow; add `mode = \"shadow\"`, or leave it out");
            }
        }
        return (Mode::Live, None);
    }
    let percent = u32::try_from(section.integer("percent", 100, 0..=100)).unwrap_or(100);
    let replaces = section.parsed("replaces", "the name of a policy", values::name);
    let (replaces, place) = replaces.map(|found| (found.value, found.place)).unzip();
    (Mode::Shadow { percent, replaces }, place)
}

/// Each shadow replaces a policy that is there and live.
pub(super) fn check_shadows(policies: &[(PolicyConfig, Places)], report: &Report) {
    let live = |name: &str| {
        let named = policies.iter().find(|(policy, _)| policy.name == name);
        named.map(|(policy, _)| policy.mode == Mode::Live)
    };
    for (policy, places) in policies {
        let (Mode::Shadow { replaces: Some(name), .. }, Some(place)) =
            (&policy.mode, &places.replaces)
        else {
            continue;
        };
        let name_quoted = quote(name);
        match live(name) {
            Some(true) => {}
            Some(false) => report.error(
                place,
                format!("{name_quoted} is a shadow itself; name a live policy, or leave it out"),
            ),
            None => report.error(
                place,
                format!("{name_quoted} is no policy; name a live one, or leave it out"),
            ),
        }
    }
}

/// Why a freeze policy cannot have `fail = "ignore"`.
pub(super) const FREEZE_IGNORE: &str =
    "\"ignore\" would let mail leak from a window; use \"hold\" or \"defer\" for a freeze policy";

fn plugin(text: &str, base: &Path) -> Result<PluginSource, String> {
    if let Some(builtin) = text.strip_prefix("builtin:") {
        if BUILTIN_POLICIES.contains(&builtin) {
            return Ok(PluginSource::Builtin(builtin.to_owned()));
        }
        let all = BUILTIN_POLICIES.map(|name| format!("builtin:{name}"));
        let hint = match nearest(builtin, BUILTIN_POLICIES) {
            Some(near) => format!("did you mean \"builtin:{near}\"?"),
            None => format!("use {}", one_of(all.iter().map(String::as_str))),
        };
        return Err(format!("{} does not exist; {hint}", quote(text)));
    }
    let path = path(text, base)?;
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => Ok(PluginSource::File(path)),
        Ok(_) => Err(format!("{} is not a regular file; name a .wasm file", quote(text))),
        Err(error) => {
            Err(format!("cannot read {}: {error}; check the path", quote(&path.to_string_lossy())))
        }
    }
}

fn default_name(section: &Section<'_>, plugin: &Located<PluginSource>) -> Option<Located<String>> {
    let stem = match &plugin.value {
        PluginSource::Builtin(name) => name.clone(),
        PluginSource::File(path) => path.file_stem()?.to_string_lossy().into_owned(),
        PluginSource::Installed(_) => return None,
    };
    match values::name(&stem) {
        Ok(value) => Some(Located { value, place: plugin.place.clone() }),
        Err(message) => {
            let message = format!("{message}; or give a `name` of its own");
            section.report().error(&plugin.place, message);
            None
        }
    }
}

/// A value as JSON; times become strings.
fn json(value: &Value<'_>) -> Option<serde_json::Value> {
    use serde_json::Value as Json;
    Some(match value.get() {
        DeValue::String(text) => Json::from(&**text),
        DeValue::Boolean(yes) => Json::from(*yes),
        DeValue::Datetime(time) => Json::from(time.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Json::from(number),
            Err(_) => {
                value.error(format!("{number} is out of bounds; use a 64-bit number"));
                return None;
            }
        },
        DeValue::Float(number) => {
            match number.as_str().parse().ok().and_then(serde_json::Number::from_f64) {
                Some(number) => Json::Number(number),
                None => {
                    value.error(format!("{number} has no JSON form; use a finite number"));
                    return None;
                }
            }
        }
        DeValue::Array(_) => {
            let elements = value.elements("an array")?;
            Json::Array(elements.iter().filter_map(json).collect())
        }
        DeValue::Table(_) => {
            let member = |(key, value): (&str, Value<'_>)| Some((key.to_owned(), json(&value)?));
            Json::Object(value.members("a table")?.into_iter().filter_map(member).collect())
        }
    })
}

/// Reads one `[[table]]`.
pub(super) fn read_table(section: Section<'_>) -> (TableConfig, Option<Place>) {
    let example = "a name, such as \"vip\"";
    let name = section.require("name", example).and_then(|v| v.parse(example, values::name));
    let wanted = "a table of strings, such as { \"acme.example\" = \"gold\" }";
    let members = section.require("entries", wanted).and_then(|value| value.members(wanted));
    let entry = |(key, value): (&str, Value<'_>)| {
        Some((key.to_owned(), value.text("a string in quotes")?.to_owned()))
    };
    let entries = members.unwrap_or_default().into_iter().filter_map(entry).collect();
    section.finish();
    let (name, place) = name.map_or((String::new(), None), |n| (n.value, Some(n.place)));
    (TableConfig { name, entries }, place)
}
