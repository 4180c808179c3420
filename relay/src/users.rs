//! The file of users: names, and hashes of their passwords. Floor 2.
//!
//! Owns the form of the file, what is wrong with one, and how long a look at a password takes:
//! as long for a name that nobody has. Who may try how often is `logins`' business.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
    sync::Arc,
};

use argon2::{
    Argon2, Params,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use wavegate_smtp::{Login, login::is_user};

use crate::{
    config::{Config, Diagnostic, Diagnostics},
    tls::secret,
};

/// KiB of memory that one look at a password may take: what RFC 9106 4 recommends for hosts that
/// have little. As many times as there are looks at once, see `logins`.
const MEMORY_KIB: u32 = 64 * 1024;
/// Rounds over that memory, and lanes of it; more would be half a second for each try.
const ROUNDS: u32 = 10;
const LANES: u32 = 16;
/// Mistakes that are told of one file: after the first few it is another kind of file.
const MISTAKES: usize = 10;

/// The users of one file.
#[derive(Debug, Default)]
pub struct Users {
    by_name: HashMap<Box<str>, PasswordHash>,
    /// What is looked at where there is no such user, so that this takes as long.
    decoy: Option<PasswordHash>,
}

/// The users of each listener that has a file of them.
pub type ByListener = HashMap<String, Arc<Users>>;

/// Reads the files that a configuration names; all that is wrong with them.
pub fn load(config: &Config) -> Result<ByListener, Diagnostics> {
    let (mut loaded, mut wrong) = (ByListener::new(), Vec::new());
    for listener in &config.listeners {
        let Some(users) = listener.auth.as_ref().and_then(|auth| auth.users()) else { continue };
        match read(users) {
            Ok(users) => drop(loaded.insert(listener.name.clone(), Arc::new(users))),
            Err(found) => wrong.extend(found),
        }
    }
    if wrong.is_empty() { Ok(loaded) } else { Err(Diagnostics(wrong)) }
}

fn read(path: &Path) -> Result<Users, Vec<Diagnostic>> {
    let of =
        |line, message: String| Diagnostic { line, ..Diagnostic::of_file(path.display(), message) };
    let bytes = secret(path, "the file of users").map_err(|found| vec![found])?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| vec![of(None, "is not UTF-8; save it as UTF-8".to_owned())])?;
    let (mut by_name, mut decoy, mut wrong) = (HashMap::new(), None, Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let added = user(line).and_then(|(name, hash)| match by_name.entry(name.into()) {
            Entry::Occupied(_) => Err(format!("has user {name:?} a second time; remove one")),
            Entry::Vacant(place) => {
                decoy.get_or_insert_with(|| hash.clone());
                place.insert(hash);
                Ok(())
            }
        });
        if let Err(message) = added {
            wrong.push(of(Some(number), message));
        }
        if wrong.len() == MISTAKES {
            break;
        }
    }
    if wrong.is_empty() { Ok(Users { by_name, decoy }) } else { Err(wrong) }
}

/// One line. What is wrong is said without what stands behind the colon.
fn user(line: &str) -> Result<(&str, PasswordHash), String> {
    const REMEDY: &str = "write what `wavegate users hash NAME` prints";
    let (name, hash) =
        line.split_once(':').ok_or_else(|| format!("is not `name:hash`; {REMEDY}"))?;
    if !is_user(name) || name.trim() != name {
        return Err(format!(
            "has no name of a user in front of the colon: 1 to 255 bytes, without control \
             characters, and without white space around; {REMEDY}"
        ));
    }
    let parsed = PasswordHash::new(hash.trim_end())
        .map_err(|error| format!("has no hash for user {name:?}: {error}; {REMEDY}"))?;
    if parsed.algorithm.as_str() != "argon2id" || parsed.salt.is_none() || parsed.hash.is_none() {
        return Err(format!("has another hash than argon2id for user {name:?}; {REMEDY}"));
    }
    let params = Params::try_from(&parsed)
        .map_err(|error| format!("has a hash for user {name:?} that is none: {error}; {REMEDY}"))?;
    let (memory, rounds, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    if memory > MEMORY_KIB || rounds > ROUNDS || lanes > LANES {
        return Err(format!(
            "has a hash for user {name:?} that is too dear to look at (m={memory}, t={rounds}, \
             p={lanes}); use m={MEMORY_KIB}, t={ROUNDS}, p={LANES} at most"
        ));
    }
    Ok((name, parsed))
}

impl Users {
    /// Whether this is a user, and the password is right. Takes tens of milliseconds of a
    /// processor, and the memory that the hash asks for.
    pub fn verify(&self, credentials: &Login) -> bool {
        let known = self.by_name.get(&*credentials.user);
        let Some(hash) = known.or(self.decoy.as_ref()) else { return false };
        let password = credentials.password.expose();
        let right = Argon2::default().verify_password(password, hash).is_ok();
        right && known.is_some()
    }
}

/// The hash of a password as a line of the file has it.
pub fn hash(password: &[u8]) -> Result<String, HashError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| HashError)?;
    let hash: PasswordHash =
        Argon2::default().hash_password_with_salt(password, &salt).map_err(|_| HashError)?;
    Ok(hash.to_string())
}

/// The machine gives no random numbers, or no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password cannot be hashed: the machine gives no random numbers")]
pub struct HashError;
