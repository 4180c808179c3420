//! What an upstream is told of clients and of us: `upstream.identity` and `upstream.auth`. The
//! password is not read here; `crate::tls` does that with the other secrets. Floor 1.

use std::path::{Path, PathBuf};

use wavegate_smtp::Mechanism;

use super::{
    UpstreamTls, UpstreamTlsMode, diagnostic::Place, reader::Section, relay::path, values::quote,
};

/// Longest name of a user. RFC 4616 2 asks for more than anybody has; no mail system needs it.
const USER: usize = 255;

/// Whom an upstream hears that mail is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamIdentity {
    /// From us.
    #[default]
    None,
    /// XFORWARD: for its log, with each message.
    Xforward,
    /// XCLIENT: the session is the client's.
    Xclient,
    /// A PROXY header of version 1: the connection is the client's.
    ProxyV1,
    /// The same, of version 2.
    ProxyV2,
}

impl UpstreamIdentity {
    /// Whether a connection speaks for one client, so that no other's mail may go over it.
    pub fn is_of_one_client(self) -> bool {
        !matches!(self, Self::None | Self::Xforward)
    }

    /// Whether a connection is a client's from its first byte to its end.
    pub fn is_proxy(self) -> bool {
        matches!(self, Self::ProxyV1 | Self::ProxyV2)
    }
}

/// How the relay logs in at an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamAuth {
    /// As whom.
    pub user: String,
    /// The file with the password.
    pub secret: PathBuf,
    /// By this mechanism; none: PLAIN where it is offered, else LOGIN.
    pub mechanism: Option<Mechanism>,
}

/// Reads `identity`.
pub(super) fn identity(section: &Section<'_>) -> UpstreamIdentity {
    let found = section.choice(
        "identity",
        "a way to say whom mail is from",
        &[
            ("none", UpstreamIdentity::None),
            ("xforward", UpstreamIdentity::Xforward),
            ("xclient", UpstreamIdentity::Xclient),
            ("proxy-v1", UpstreamIdentity::ProxyV1),
            ("proxy-v2", UpstreamIdentity::ProxyV2),
        ],
    );
    found.map_or(UpstreamIdentity::None, |found| found.value)
}

/// Reads `auth`.
pub(super) fn auth(
    section: &Section<'_>,
    base: &Path,
    tls: Option<&UpstreamTls>,
    identity: UpstreamIdentity,
) -> Option<UpstreamAuth> {
    let value = section.get("auth")?;
    let table = section.section("auth")?;
    let example = "the name to log in with, in quotes";
    let user = table.require("user", example).and_then(|value| value.parse(example, parse_user));
    let example = "a path in quotes, such as \"cloud.password\" or \"credential:cloud.password\"";
    let secret = table
        .require("secret", example)
        .and_then(|value| value.parse(example, |text| path(text, base)));
    let mechanism = table.choice(
        "mechanism",
        "a mechanism that is spoken",
        &[("plain", Mechanism::Plain), ("login", Mechanism::Login)],
    );
    let insecure = table.boolean("insecure", false);
    let report = table.report();
    let surely = tls.is_some_and(|tls| tls.mode != UpstreamTlsMode::Opportunistic);
    if !surely && !insecure {
        report.error(
            &value.place(),
            "the password would be sent without TLS, or to whoever answers; set `tls` to a table \
             with `mode = \"required\"`, or allow it with `insecure = true`",
        );
    }
    if surely && insecure {
        let at = table.get("insecure").map_or_else(|| table.place(), |value| value.place());
        report.warn(&at, "has no effect, because `tls` is certain; remove it");
    }
    check_xclient(&value.place(), identity, &table);
    table.finish();
    let mechanism = mechanism.map(|found| found.value);
    Some(UpstreamAuth { user: user?.value, secret: secret?.value, mechanism })
}

fn check_xclient(at: &Place, identity: UpstreamIdentity, table: &Section<'_>) {
    if identity == UpstreamIdentity::Xclient {
        table.report().error(
            at,
            "cannot stand beside `identity = \"xclient\"`, which makes the session that of a \
             client who has not logged in; use \"xforward\"",
        );
    }
}

fn parse_user(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > USER || text.chars().any(char::is_control) {
        return Err(format!(
            "{} is no name to log in with: 1 to {USER} bytes without control characters",
            quote(text)
        ));
    }
    Ok(text.to_owned())
}
