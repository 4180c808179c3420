//! Where plugins come from, and `[plugins]`: whose signatures are believed, and whether every plugin
//! needs one. What a key is worth is found out when it is used. Floor 1.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{diagnostic::Located, reader::Section, relay::path, values};

/// Keys that may be trusted: a plugin's authors are few.
const KEYS: usize = 64;
/// Characters of a public key of minisign, as base64.
const KEY_TEXT: usize = 56;

/// `[plugins]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginsConfig {
    /// `trusted_keys`: whose signatures are believed.
    pub trusted_keys: Vec<TrustedKey>,
    /// `require_signatures`: no plugin without the signature of one of them; what is built in
    /// needs none.
    pub require_signatures: bool,
}

/// A public key and what it is called here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// Its name, which is told wherever a plugin is.
    pub name: String,
    /// The key.
    pub key: KeySource,
    /// File and line, for messages.
    pub place: String,
}

/// Where a public key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// Here, as minisign prints it.
    Text(String),
    /// In a file of minisign (absolute).
    File(PathBuf),
}

/// Where a plugin comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginSource {
    /// `builtin:NAME`.
    Builtin(String),
    /// A file (absolute; in the configuration relative to it).
    File(PathBuf),
    /// What an operator has installed in its place; never read from a configuration.
    Installed(Box<Installed>),
}

/// A component that the relay keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its file (absolute).
    pub path: PathBuf,
    /// BLAKE3 of it, in hexadecimal: another content is not taken.
    pub digest: String,
    /// What the configuration names.
    pub configured: PluginSource,
}

impl PluginSource {
    /// What the configuration names.
    pub fn configured(&self) -> &Self {
        match self {
            Self::Installed(installed) => installed.configured.configured(),
            other => other,
        }
    }
}

impl fmt::Display for PluginSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin(name) => write!(f, "builtin:{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Installed(installed) => write!(f, "installed:{}", installed.digest),
        }
    }
}

impl PluginsConfig {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.trusted_keys.iter().filter_map(|key| match &key.key {
            KeySource::File(path) => Some(path),
            KeySource::Text(_) => None,
        })
    }
}

/// Where the signature of a plugin's file is: beside it, where minisign puts it.
pub fn signature_of(plugin: &Path) -> PathBuf {
    let mut name = plugin.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Reads `[plugins]`.
pub(super) fn read(section: Section<'_>, base: &Path) -> PluginsConfig {
    let wanted = "a table of keys, such as { alice = \"RWQ...\", ci = \"file:ci.pub\" }";
    let given = section.get("trusted_keys");
    let members = given.as_ref().and_then(|value| value.members(wanted)).unwrap_or_default();
    if let Some(value) = given.filter(|_| members.len() > KEYS) {
        value.error(format!("has {} keys; at most {KEYS} can be trusted", members.len()));
    }
    let key = |(name, value): (&str, super::reader::Value<'_>)| {
        let name = values::name(name).map_err(|why| value.error(why)).ok()?;
        let Located { value: key, place } =
            value.parse("a key in quotes", |text| source(text, base))?;
        Some(TrustedKey { name, key, place: place.short() })
    };
    let trusted_keys = members.into_iter().filter_map(key).collect();
    let require_signatures = section.boolean("require_signatures", false);
    section.finish();
    PluginsConfig { trusted_keys, require_signatures }
}

fn source(text: &str, base: &Path) -> Result<KeySource, String> {
    if let Some(file) = text.strip_prefix("file:") {
        return path(file, base).map(KeySource::File);
    }
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    match text.len() == KEY_TEXT && text.starts_with("RW") && text.bytes().all(is_base64) {
        true => Ok(KeySource::Text(text.to_owned())),
        // It is not shown: by mistake it may be a secret one.
        false => Err(format!(
            "is no public key of minisign: that has {KEY_TEXT} characters and begins with RW; give \
             the second line of its file, or \"file:PATH\""
        )),
    }
}
