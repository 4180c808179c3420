//! `listener.auth`: logins of clients. What the file of users must be is looked at by
//! `crate::users`, which loads it. Floor 1.

use std::path::Path;

use super::{
    Judge, ListenerAuth, ListenerTls, TlsMode,
    diagnostic::{Located, Place},
    reader::{Section, Value},
    relay::path,
    values,
};

/// Reads `auth` of a listener that has this `tls`; `tls_is_wrong` where that was refused.
pub(super) fn listener(
    section: Section<'_>,
    base: &Path,
    tls: Option<&ListenerTls>,
    tls_is_wrong: bool,
) -> Option<(ListenerAuth, Place)> {
    let judge = judge(&section, base);
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
    let place = judge.as_ref().map(|found| found.place.clone())?;
    Some((ListenerAuth { judge: judge?.value, required, insecure }, place))
}

/// Who judges: `users` or `upstream`, one of them.
fn judge(section: &Section<'_>, base: &Path) -> Option<Located<Judge>> {
    let upstream = section.get("upstream").and_then(|value| {
        let example = "the name of an upstream, such as \"legacy\"";
        let found = value.parse(example, values::name)?;
        Some(Located { value: Judge::Upstream(found.value), place: found.place })
    });
    let example = "a path in quotes, such as \"users\"";
    let own = |value: Value<'_>| {
        let found = value.parse(example, |text| path(text, base))?;
        Some(Located { value: Judge::Users(found.value), place: found.place })
    };
    match (section.get("users"), section.get("upstream")) {
        (Some(_), Some(other)) => {
            other.error("stands beside `users`: only one can say who may; remove one");
            None
        }
        (None, Some(_)) => upstream,
        (Some(value), None) => own(value),
        (None, None) => section.require("users", example).and_then(own),
    }
}
