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
