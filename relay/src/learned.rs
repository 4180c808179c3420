//! What upstreams offered when they last answered, kept over restarts. Floor 4.
//!
//! Without it a relay that starts while an upstream is down would offer its clients nothing.
//! The file is a cache: one that cannot be read is made anew.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wavegate_smtp::{Extension, Extensions};

/// Largest file that is read; 10,000 targets need about 1 MB.
const FILE: u64 = 8 << 20;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    extensions: Vec<String>,
    size: Option<u64>,
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("extensions.json")
}

/// What is known from earlier.
pub fn load(state_dir: &Path) -> HashMap<SocketAddr, Extensions> {
    let path = path(state_dir);
    if std::fs::metadata(&path).map_or(0, |found| found.len()) > FILE {
        return HashMap::new();
    }
    let Ok(text) = std::fs::read_to_string(&path) else { return HashMap::new() };
    match serde_json::from_str::<BTreeMap<SocketAddr, Entry>>(&text) {
        Ok(entries) => entries.iter().map(|(address, e)| (*address, from_entry(e))).collect(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "is not used; it is made anew");
            HashMap::new()
        }
    }
}

/// Writes what is known, whole or not at all.
pub fn save(state_dir: &Path, known: &HashMap<SocketAddr, Extensions>) -> std::io::Result<()> {
    let entries: BTreeMap<_, _> = known.iter().map(|(a, e)| (*a, to_entry(*e))).collect();
    let mut file = tempfile::NamedTempFile::new_in(state_dir)?;
    serde_json::to_writer_pretty(&mut file, &entries)?;
    file.flush()?;
    file.persist(path(state_dir))?;
    Ok(())
}

fn from_entry(entry: &Entry) -> Extensions {
    Extension::ALL
        .into_iter()
        .filter(|extension| entry.extensions.iter().any(|word| word == extension.keyword()))
        .fold(Extensions::NONE, Extensions::with)
        .with_size(entry.size)
}

fn to_entry(extensions: Extensions) -> Entry {
    let offered = Extension::ALL.into_iter().filter(|one| extensions.has(*one));
    Entry {
        extensions: offered.map(|one| one.keyword().to_owned()).collect(),
        size: extensions.size(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_rubbish_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let offered = Extensions::NONE.with(Extension::EightBitMime).with_size(Some(1000));
        let known = HashMap::from([("127.0.0.1:25".parse().unwrap(), offered)]);
        save(directory.path(), &known).unwrap();
        assert_eq!(load(directory.path()), known);
        std::fs::write(path(directory.path()), "[1").unwrap();
        assert!(load(directory.path()).is_empty());
    }
}
