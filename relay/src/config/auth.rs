//! `listener.auth`: logins of clients. What the file of users must be is looked at by
//! `crate::users`, which loads it. Floor 1.

use std::path::Path;

use super::{ListenerAuth, ListenerTls, TlsMode, reader::Section, relay::path};

/// Reads `auth` of a listener that has this `tls`; `tls_is_wrong` where that was refused.
pub(super) fn listener(
    section: Section<'_>,
    base: &Path,
    tls: Option<&ListenerTls>,
    tls_is_wrong: bool,
) -> Option<ListenerAuth> {
    let example = "a path in quotes, such as \"users\"";
    let users = section
        .require("users", example)
        .and_then(|value| value.parse(example, |text| path(text, base)));
    let required = section.boolean("required", false);
    let insecure = section.boolean("insecure", false);
    let at = section.get("insecure").map_or(section.place(), |value| value.place());
    let always = tls.is_some_and(|tls| tls.required || tls.mode == TlsMode::Implicit);
    let report = section.report();
    if insecure && always {
        report
            .warn(&at, "has no effect, because this listener takes nothing without TLS; remove it");
    } else if insecure {
        report.warn(&at, "passwords may cross the network in the clear");
    } else if tls.is_none() && !tls_is_wrong {
        let text = "is offered under TLS only, and this listener has none; give it `tls`, or \
                    `insecure = true` where something else protects the passwords";
        report.error(&section.place(), text);
    }
    section.finish();
    Some(ListenerAuth { users: users?.value, required, insecure })
}
