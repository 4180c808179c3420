//! Signatures of plugins, in the form of minisign. Floor 2.
//!
//! Owns what a signature is worth: who made it, whether that one is trusted, and whether the bytes
//! are those that were signed. It reads no plugin: the caller gives the bytes that it compiles, so
//! that nothing else can be run than what was looked at.
//!
//! Only signatures of hashes (`minisign -S`, all versions since 0.6 make them) are taken; the older
//! form has no use here.

use std::{
    fs::File,
    io::{Cursor, Read},
    path::{Path, PathBuf},
};

use minisign::{PublicKey, PublicKeyBox, SignatureBox};

use super::bindings::escaped;
use crate::config::{Diagnostic, Diagnostics, KeySource, PluginsConfig, TrustedKey};

/// Bytes of a signature's file: its two comments are all that can grow.
pub const SIGNATURE_MAX: usize = 8 * 1024;
/// Bytes of a public key's file.
const PUBLIC_KEY_MAX: usize = 4 * 1024;
/// Characters of a signature, and of that of its comment: 74 and 64 bytes in base64.
const SIGNATURE_TEXT: usize = 100;
const GLOBAL_TEXT: usize = 88;
/// Characters of a trusted comment that are shown.
const COMMENT_SHOWN: usize = 400;

/// Who signed a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signed {
    /// It is part of the relay.
    Builtin,
    /// Nobody.
    Not,
    /// Somebody whose key is not trusted, so it says nothing.
    Unknown {
        /// The key.
        id: String,
    },
    /// Somebody whose key is.
    By {
        /// What the configuration calls the key.
        name: String,
        /// The key.
        id: String,
        /// What was signed along with the plugin.
        comment: String,
    },
}

impl std::fmt::Display for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin => f.write_str("built in"),
            Self::Not => f.write_str("not signed"),
            Self::Unknown { id } => write!(f, "unknown key {id}"),
            Self::By { name, id, .. } => write!(f, "{name} ({id})"),
        }
    }
}

/// What is wrong with a signature, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Not a signature of minisign: whoever wrote the file.
    #[error(
        "{file} is no signature of minisign ({why}): make it anew with `wavegate plugin sign`, or \
         remove it"
    )]
    Malformed {
        /// The signature.
        file: String,
        /// Why.
        why: String,
    },
    /// The file cannot be read: the machine.
    #[error("cannot read {file}: {error}")]
    Read {
        /// The signature.
        file: String,
        /// Why.
        error: std::io::Error,
    },
    /// There is none, and there must be one.
    #[error(
        "{file} is not there, and `plugins.require_signatures` wants the signature of a trusted \
         key: sign the plugin with `wavegate plugin sign`"
    )]
    Missing {
        /// The signature.
        file: String,
    },
    /// It was made with a key that is not trusted, and must not be.
    #[error(
        "{file} was made with the key {id}, which is not trusted (trusted are: {trusted}): have \
         it signed by one of these, or add its public key to `plugins.trusted_keys`"
    )]
    Untrusted {
        /// The signature.
        file: String,
        /// The key.
        id: String,
        /// Those that are.
        trusted: String,
    },
    /// It claims a trusted key, and is not that key's signature of these bytes.
    #[error(
        "{file} is not the signature of this plugin by the key {name} ({id}): one of them was \
         changed since. Take both again from their author, and do not use these"
    )]
    Wrong {
        /// The signature.
        file: String,
        /// What the configuration calls the key.
        name: String,
        /// The key.
        id: String,
    },
}

/// The keys whose signatures are believed.
#[derive(Debug, Default)]
pub struct TrustedKeys {
    keys: Vec<(String, PublicKey)>,
    required: bool,
}

impl TrustedKeys {
    /// Reads the keys of a configuration; all that is wrong with them.
    pub fn load(config: &PluginsConfig) -> Result<Self, Diagnostics> {
        let mut keys: Vec<(String, PublicKey)> = Vec::new();
        let mut wrong = Vec::new();
        for TrustedKey { name, key, place } in &config.trusted_keys {
            let mut refuse = |why: String| {
                let text = format!("plugins.trusted_keys.{name}: {why}");
                wrong.push(Diagnostic::of_file(place, text));
            };
            match public_key(key) {
                Err(why) => refuse(why),
                Ok(key) => match keys.iter().find(|(_, other)| other.keynum() == key.keynum()) {
                    // A signature says nothing of its key but the id.
                    Some((other, _)) => refuse(format!(
                        "has the same id as {other} ({}), so nobody could say whose a signature \
                         is; leave one of them",
                        key_id(key.keynum())
                    )),
                    None => keys.push((name.clone(), key)),
                },
            }
        }
        match wrong.is_empty() {
            true => Ok(Self { keys, required: config.require_signatures }),
            false => Err(Diagnostics(wrong)),
        }
    }

    /// One key alone, whose signature must be there.
    pub fn only(name: &str, key: PublicKey) -> Self {
        Self { keys: vec![(name.to_owned(), key)], required: true }
    }

    /// The same keys, with a signature needed.
    pub fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Whether what was found of a signature before is enough, with these keys. `of` is what the
    /// component is called in messages.
    pub fn believes(&self, signed: &Signed, of: &str) -> Result<(), SignatureError> {
        let file = || format!("{of}, as it was loaded before");
        match signed {
            _ if !self.required => Ok(()),
            Signed::Builtin => Ok(()),
            Signed::Not => Err(SignatureError::Missing { file: file() }),
            Signed::By { id, .. }
                if self.keys.iter().any(|(_, key)| key_id(key.keynum()) == *id) =>
            {
                Ok(())
            }
            // What a stranger's signature says of its key was never looked at.
            Signed::By { id, .. } | Signed::Unknown { id } => {
                let trusted = self.to_string();
                Err(SignatureError::Untrusted { file: file(), id: id.clone(), trusted })
            }
        }
    }

    /// Who signed these bytes. `file` is what the signature is called in messages.
    pub fn judge(
        &self,
        wasm: &[u8],
        signature: Option<&[u8]>,
        file: &str,
    ) -> Result<Signed, SignatureError> {
        let of = || file.to_owned();
        let Some(text) = signature else {
            return match self.required {
                true => Err(SignatureError::Missing { file: of() }),
                false => Ok(Signed::Not),
            };
        };
        let signature = parse(text).map_err(|why| SignatureError::Malformed { file: of(), why })?;
        let id = key_id(signature.keynum());
        let known = self.keys.iter().find(|(_, key)| key.keynum() == signature.keynum());
        let Some((name, key)) = known else {
            return match self.required {
                true => {
                    let trusted = self.to_string();
                    Err(SignatureError::Untrusted { file: of(), id, trusted })
                }
                false => Ok(Signed::Unknown { id }),
            };
        };
        let name = name.clone();
        match minisign::verify(key, &signature, Cursor::new(wasm), true, false, false) {
            Err(_) => Err(SignatureError::Wrong { file: of(), name, id }),
            Ok(()) => {
                let comment = signature.trusted_comment().unwrap_or_default();
                Ok(Signed::By { name, id, comment: escaped(&comment, COMMENT_SHOWN) })
            }
        }
    }
}

impl std::fmt::Display for TrustedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.keys.is_empty() {
            return f.write_str("none");
        }
        for (index, (name, key)) in self.keys.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name} ({})", key_id(key.keynum()))?;
        }
        Ok(())
    }
}

/// The signature of a plugin's file, if there is one.
pub fn read_signature(path: &Path) -> Result<Option<Vec<u8>>, SignatureError> {
    let file = || path.display().to_string();
    match bounded(path, SIGNATURE_MAX) {
        Ok(bytes) if bytes.len() > SIGNATURE_MAX => {
            let why = format!("it is larger than {} KiB", SIGNATURE_MAX / 1024);
            Err(SignatureError::Malformed { file: file(), why })
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SignatureError::Read { file: file(), error }),
    }
}

/// Reads a public key: as text, or from a file of minisign.
pub fn public_key(source: &KeySource) -> Result<PublicKey, String> {
    let key = match source {
        KeySource::Text(text) => PublicKey::from_base64(text),
        KeySource::File(path) => {
            let shown = path.display();
            let bytes = bounded(path, PUBLIC_KEY_MAX)
                .map_err(|error| format!("cannot read {shown}: {error}"))?;
            let text = String::from_utf8(bytes).ok().filter(|text| text.len() <= PUBLIC_KEY_MAX);
            let wrong = || format!("{shown} is no public key of minisign: name its .pub file");
            PublicKeyBox::from_string(&text.ok_or_else(wrong)?)
                .and_then(PublicKeyBox::into_public_key)
                .map_err(|_| wrong())
                .map(Ok)?
        }
    };
    let wrong =
        |_| "is no public key of minisign: give the second line of its .pub file".to_owned();
    let key = key.map_err(wrong)?;
    match key.to_bytes().starts_with(b"Ed") {
        true => Ok(key),
        false => Err("is no Ed25519 key, which all of minisign are".to_owned()),
    }
}

/// The id of a key, as minisign writes it.
pub fn key_id(keynum: &[u8]) -> String {
    keynum.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

/// Where a secret and a public key of this name are.
pub fn key_files(prefix: &Path) -> (PathBuf, PathBuf) {
    let with = |ending: &str| {
        let mut name = prefix.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    (with(".key"), with(".pub"))
}

/// Reads a signature. The lengths are looked at here: the library takes them for granted.
fn parse(bytes: &[u8]) -> Result<SignatureBox, String> {
    if bytes.len() > SIGNATURE_MAX {
        return Err(format!("it is larger than {} KiB", SIGNATURE_MAX / 1024));
    }
    let text = str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let lines: Vec<&str> = text.lines().collect();
    let [_, signature, _, global, ..] = lines[..] else {
        return Err("it has not four lines".to_owned());
    };
    if signature.trim().len() != SIGNATURE_TEXT || global.trim().len() != GLOBAL_TEXT {
        return Err("its second or its fourth line is too short or too long".to_owned());
    }
    // Of so many characters the padding says how many bytes they are.
    let padding = |line: &str| line.trim().bytes().rev().take_while(|byte| *byte == b'=').count();
    if padding(signature) != 1 || padding(global) != 2 {
        return Err("its second or its fourth line is no signature in base64".to_owned());
    }
    let signature = SignatureBox::from_string(text)
        .map_err(|error| escaped(&error.to_string(), COMMENT_SHOWN))?;
    match signature.is_prehashed() {
        true => Ok(signature),
        false => Err("it is of the old form: sign without `-l`".to_owned()),
    }
}

/// At most one byte more than `most` of a regular file.
fn bounded(path: &Path, most: usize) -> std::io::Result<Vec<u8>> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
