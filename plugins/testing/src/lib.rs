//! Other builds of a built policy, without a WebAssembly toolchain.
//!
//! A test of reloading needs builds that differ in a constant and say so. Every policy built with
//! `wavegate-policy` has its version at a marked place of fixed length in its data, and
//! `describe` answers from there. [`variant`] writes another version there: the result is what a
//! build with that constant would be, has another content hash, and can be told by its answer.
//!
//! This crate owns that patch only; it has no dependencies, so that any test can use it.

/// What stands before the version (`VersionMark` of the guest crate).
const MARK: &[u8; 16] = b"wavegate-version";
/// Room for the version; what it leaves is NUL.
pub const VERSION_MAX: usize = 24;

/// Why there is no variant. The caller's fault: another file, or another version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariantError {
    /// The mark is not there exactly once: nothing built with `wavegate-policy`.
    NotMarked {
        /// How often it is there.
        found: usize,
    },
    /// The version is empty, longer than [`VERSION_MAX`] bytes or has a NUL.
    NoVersion,
}

impl std::fmt::Display for VariantError {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VariantError::NotMarked { found } => {
                write!(to, "the version mark is there {found} times; expected once")
            }
            VariantError::NoVersion => {
                write!(to, "a version has 1 to {VERSION_MAX} bytes and no NUL")
            }
        }
    }
}

impl std::error::Error for VariantError {}

/// The component as it would be with that version. Its length stays, so nothing else moves.
pub fn variant(component: &[u8], version: &str) -> Result<Vec<u8>, VariantError> {
    if version.is_empty() || version.len() > VERSION_MAX || version.contains('\0') {
        return Err(VariantError::NoVersion);
    }
    let room = room(component)?;
    let mut variant = component.to_vec();
    variant[room.clone()].fill(0);
    variant[room.start..room.start + version.len()].copy_from_slice(version.as_bytes());
    Ok(variant)
}

/// The version that a component has at its mark.
pub fn version(component: &[u8]) -> Result<String, VariantError> {
    let room = &component[room(component)?];
    let end = room.iter().position(|byte| *byte == 0).unwrap_or(VERSION_MAX);
    Ok(String::from_utf8_lossy(&room[..end]).into_owned())
}

/// Where the version stands.
fn room(component: &[u8]) -> Result<std::ops::Range<usize>, VariantError> {
    let length = MARK.len() + VERSION_MAX;
    let mut places = component
        .windows(length)
        .enumerate()
        .filter(|(_, window)| window.starts_with(MARK))
        .map(|(at, _)| at + MARK.len());
    match (places.next(), places.count()) {
        (Some(start), 0) => Ok(start..start + VERSION_MAX),
        (None, _) => Err(VariantError::NotMarked { found: 0 }),
        (Some(_), more) => Err(VariantError::NotMarked { found: more + 1 }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const BUILT: [&[u8]; 3] = [
        include_bytes!("../../dist/freeze.wasm"),
        include_bytes!("../../dist/routing.wasm"),
        include_bytes!("../../dist/throttle.wasm"),
    ];

    #[test]
    fn a_variant_of_each_policy_differs_in_its_version_only() {
        for built in BUILT {
            assert_eq!(version(built).unwrap(), env!("CARGO_PKG_VERSION"));
            for name in ["0.1.0+20", "x", "a version of 24 bytes..."] {
                let variant = variant(built, name).unwrap();
                assert_eq!(version(&variant).unwrap(), name);
                let differ: Vec<usize> =
                    (0..built.len()).filter(|&at| built[at] != variant[at]).collect();
                assert!(!differ.is_empty() && differ[differ.len() - 1] - differ[0] < VERSION_MAX);
                assert_eq!(variant.len(), built.len());
            }
        }
    }

    #[test]
    fn what_cannot_be_varied_is_said() {
        for name in ["", "a version of 25 bytes....", "a\0b"] {
            assert_eq!(variant(BUILT[0], name), Err(VariantError::NoVersion));
        }
        assert_eq!(variant(b"\0asm", "1"), Err(VariantError::NotMarked { found: 0 }));
        let two = [BUILT[0], BUILT[1]].concat();
        assert_eq!(variant(&two, "1"), Err(VariantError::NotMarked { found: 2 }));
        let cut = [b"wavegate-version".as_slice(), b"1.0"].concat();
        assert_eq!(variant(&cut, "1"), Err(VariantError::NotMarked { found: 0 }));
    }
}
