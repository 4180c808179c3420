//! What the relay logs in with at upstreams. Held as a secret: it is shown nowhere.

use std::sync::Arc;

use wavegate_smtp::Credentials;

use super::secret;
use crate::config::{Diagnostic, UpstreamAuth};

/// Bytes of a password: room for the tokens that some providers want instead of one, and as
/// base64 far within the line that AUTH may have (RFC 4954 4: 12288).
const PASSWORD: usize = 4096;

/// Reads the password; what is in force stays, where nothing changed.
pub(super) fn load(
    auth: &UpstreamAuth,
    in_force: Option<&Arc<Credentials>>,
) -> Result<Arc<Credentials>, Diagnostic> {
    let of = |message: &str| Diagnostic::of_file(auth.secret.display(), message.to_owned());
    let bytes = secret(&auth.secret, "the password")?;
    let text = str::from_utf8(&bytes).map_err(|_| of("the password is not UTF-8"))?;
    // An editor ends a line.
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(of("has no password; write it as the only line"));
    }
    if text.len() > PASSWORD {
        return Err(of(&format!("the password is longer than {PASSWORD} bytes")));
    }
    if text.contains(['\n', '\r', '\0']) {
        return Err(of("has more than one line; write the password as the only one"));
    }
    let credentials = Credentials::new(&auth.user, text)
        .ok_or_else(|| of("cannot be used with this user; give both without a NUL"))?;
    Ok(match in_force {
        Some(same) if **same == credentials => Arc::clone(same),
        _ => Arc::new(credentials),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_password_is_the_only_line() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("password");
        let auth = UpstreamAuth { user: "relay".into(), secret: secret.clone(), mechanism: None };
        let read = |content: &[u8], mode: u32| {
            fs::write(&secret, content).unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
            load(&auth, None).map_err(|error| error.message)
        };
        let password = |text: &str| Ok(Arc::new(Credentials::new("relay", text).unwrap()));
        let longest = "x".repeat(PASSWORD);
        for (content, text) in [
            (&b"hunter2"[..], "hunter2"),
            (b"hunter2\n", "hunter2"),
            (b"hunter2\r\n", "hunter2"),
            (b" hunter 2 \n", " hunter 2 "),
            ("\u{e4}".as_bytes(), "\u{e4}"),
            (longest.as_bytes(), &longest),
        ] {
            assert_eq!(read(content, 0o640), password(text));
        }
        for (content, mode, said) in [
            (&b""[..], 0o600, "has no password"),
            (b"\n", 0o600, "has no password"),
            (b"one\ntwo\n", 0o600, "more than one line"),
            (b"one\n\n", 0o600, "more than one line"),
            (b"on\0e", 0o600, "more than one line"),
            (b"\xff", 0o600, "not UTF-8"),
            ((longest.clone() + "x").as_bytes(), 0o600, "longer than 4096 bytes"),
            (b"hunter2", 0o644, "is open to others (mode 644); chmod it to 600 or 640"),
        ] {
            let error = read(content, mode).unwrap_err();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("hunter2"));
        }
        fs::remove_file(&secret).unwrap();
        assert!(load(&auth, None).unwrap_err().message.contains("cannot be read"));
    }

    #[test]
    fn what_did_not_change_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("password");
        let auth = UpstreamAuth { user: "relay".into(), secret: secret.clone(), mechanism: None };
        let write = |content: &str| {
            fs::write(&secret, content).unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("one");
        let first = load(&auth, None).unwrap();
        write("one\n");
        assert!(Arc::ptr_eq(&first, &load(&auth, Some(&first)).unwrap()));
        write("two");
        assert!(!Arc::ptr_eq(&first, &load(&auth, Some(&first)).unwrap()));
        let other = UpstreamAuth { user: "other".into(), ..auth.clone() };
        write("one");
        assert!(!Arc::ptr_eq(&first, &load(&other, Some(&first)).unwrap()));
    }
}
