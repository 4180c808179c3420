//! `[api]`: control from other hosts. What its files must be is looked at here and by whoever
//! loads them; they are not read here. Floor 1.

use std::{net::SocketAddr, path::Path};

use super::{ApiConfig, diagnostic::Place, reader::Section, relay::path, tls, values};

/// Reads the section.
pub(super) fn read(section: Section<'_>, base: &Path) -> Option<(ApiConfig, Place)> {
    let example = "an address, such as \"127.0.0.1:8026\"";
    let address =
        section.require("address", example).and_then(|v| v.parse(example, values::address));
    let example = "a path in quotes, such as \"api.token\"";
    let file = |section: &Section<'_>, key| {
        let value = section.require(key, example)?;
        value.parse(example, |text| path(text, base)).map(|found| found.value)
    };
    let token_file = file(&section, "token_file");
    let errors = section.report().errors();
    let tls = section.section("tls").and_then(|files| tls::files(files, base));
    let tls_is_wrong = section.report().errors() > errors;
    let insecure = section.boolean("insecure", false);
    if let Some(address) = &address
        && !tls_is_wrong
    {
        check_open(&section, address.value, &address.place, tls.is_some(), insecure);
    }
    section.finish();
    let address = address?;
    let api = ApiConfig { address: address.value, token_file: token_file?, tls, insecure };
    Some((api, address.place))
}

/// Whoever sees the token may do everything, so it does not cross a network in the clear unless
/// somebody says that this is right.
fn check_open(section: &Section<'_>, address: SocketAddr, at: &Place, tls: bool, insecure: bool) {
    let report = section.report();
    let inside = address.ip().to_canonical().is_loopback();
    let insecure_at = section.get("insecure").map_or(section.place(), |value| value.place());
    match (tls || inside, insecure) {
        (false, false) => report.error(
            at,
            format!(
                "{address} is beyond loopback and there is no `tls`, so the token would cross the \
                 network in the clear; give `tls = {{ certificate = \"api.pem\", key = \
                 \"api.key\" }}`, or `insecure = true` where something else protects it"
            ),
        ),
        (false, true) => {
            report.warn(&insecure_at, "the token crosses the network in the clear");
        }
        (true, true) => report.warn(&insecure_at, "has no effect here; remove it"),
        (true, false) => {}
    }
}
