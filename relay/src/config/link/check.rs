//! What must hold between the links of a configuration and the rest of it. Floor 1.

use crate::config::{
    UpstreamConfig, UpstreamTlsMode,
    diagnostic::{Located, Report},
    relay::Draft,
};

/// Checks where mail goes while a link cannot be used. That the upstream exists is looked at with
/// the other names.
pub(in crate::config) fn check(draft: &Draft, report: &Report) {
    for (upstream, places) in &draft.upstreams {
        if upstream.link.is_none() {
            continue;
        }
        let Some(fallback) = &places.fallback else { continue };
        let found = draft.upstreams.iter().find(|(one, _)| one.name == fallback.value);
        if let Some((other, _)) = found {
            check_fallback(upstream, fallback, other, report);
        }
    }
}

fn check_fallback(
    upstream: &UpstreamConfig,
    at: &Located<String>,
    other: &UpstreamConfig,
    report: &Report,
) {
    let remedy = "name an upstream that speaks SMTP to the same servers";
    if other.name == upstream.name {
        report.error(&at.place, format!("is this upstream itself; {remedy}"));
    } else if other.link.is_some() {
        report.error(&at.place, format!("is a link too; {remedy}"));
    } else if other.original.is_some() {
        let text = format!("is of `type = \"original-destination\"`, so not the cloud; {remedy}");
        report.error(&at.place, text);
    } else if !is_safe(other) {
        report.warn(
            &at.place,
            format!(
                "\"{}\" does not demand TLS, so that mail would cross the network in the clear; \
                 give that `tls = {{ mode = \"required\", … }}`",
                other.name
            ),
        );
    }
}

/// Whether nobody on the way can read what goes there, or nobody is on the way.
fn is_safe(upstream: &UpstreamConfig) -> bool {
    let mode = upstream.tls.as_ref().map(|tls| tls.mode);
    let is_local = |address: std::net::SocketAddr| address.ip().to_canonical().is_loopback();
    matches!(mode, Some(UpstreamTlsMode::Required | UpstreamTlsMode::Implicit))
        || upstream.targets.iter().all(|one| one.address().is_some_and(is_local))
}
