//! `listener.tls` and `upstream.tls`: TLS with clients and with upstreams. What the files must be is looked at by `crate::tls`, which
//! loads them; they are not read here. Floor 1.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::ServerName;

use super::{
    ClientCertificates, ListenerTls, TlsFiles, TlsMode, TlsVersion, UpstreamTls, UpstreamTlsMode,
    reader::Section, relay::path, values::quote,
};

/// Certificates of one listener: each is looked at in a handshake.
const CERTIFICATES: usize = 100;

/// Reads `tls` of a listener.
pub(super) fn listener(section: Section<'_>, base: &Path) -> Option<ListenerTls> {
    let mode = section.choice(
        "mode",
        "a way to begin TLS",
        &[("starttls", TlsMode::StartTls), ("implicit", TlsMode::Implicit)],
    );
    let mode = mode.map_or(TlsMode::StartTls, |found| found.value);
    let example = "`certificates = [{ certificate = \"mx.pem\", key = \"mx.key\" }]`";
    let given = section.require("certificates", example);
    if let Some(value) = section.empty_list("certificates") {
        value.error(format!("is empty; give {example}"));
    }
    let all = section.sections("certificates");
    if let Some(value) = given.filter(|_| all.len() > CERTIFICATES) {
        value.error(format!("has more than {CERTIFICATES}; use names with wildcards"));
    }
    let certificates: Vec<_> = all.into_iter().filter_map(|one| files(one, base)).collect();
    let min_version = min_version(&section);
    let required = section.boolean("required", false);
    if required && mode == TlsMode::Implicit {
        let at = section.get("required").map_or(section.place(), |value| value.place());
        section.report().warn(&at, "has no effect with `mode = \"implicit\"`; remove it");
    }
    let clients = clients(&section, base);
    section.finish();
    let tls = ListenerTls { mode, certificates, min_version, required, clients };
    Some(tls).filter(|tls| !tls.certificates.is_empty())
}

/// `client_ca` and `client`.
fn clients(section: &Section<'_>, base: &Path) -> Option<ClientCertificates> {
    let ca = section.get("client_ca").and_then(|_| file(section, "client_ca", base));
    let wanted = [("request", false), ("require", true)];
    let required = section.choice("client", "a way to ask for certificates", &wanted);
    match (section.get("client_ca"), &required) {
        (None, Some(found)) => {
            let text = "has no effect without `client_ca`; name the authority of the clients";
            section.report().error(&found.place, text);
        }
        (Some(value), None) if section.get("client").is_none() => {
            value.error("needs `client = \"request\"` or `client = \"require\"`");
        }
        _ => {}
    }
    Some(ClientCertificates { ca: ca?, required: required?.value })
}

/// The modes of TLS with an upstream.
const MODES: [(&str, Option<UpstreamTlsMode>); 4] = [
    ("none", None),
    ("opportunistic", Some(UpstreamTlsMode::Opportunistic)),
    ("required", Some(UpstreamTlsMode::Required)),
    ("implicit", Some(UpstreamTlsMode::Implicit)),
];

/// Reads `tls` of an upstream: a mode, or a table with more.
///
/// Where all targets are `named`, each has a name to verify.
pub(super) fn upstream(section: &Section<'_>, base: &Path, named: bool) -> Option<UpstreamTls> {
    let value = section.get("tls")?;
    let what = "a way to use TLS";
    let tls = if value.get().is_table() {
        let table = section.section("tls")?;
        let mode = match table.get("mode") {
            None => Some(UpstreamTlsMode::Required),
            Some(_) => table.choice("mode", what, &MODES)?.value,
        };
        let tls = of_upstream(&table, mode, base);
        table.finish();
        tls
    } else {
        let mode = section.choice("tls", what, &MODES)?.value?;
        let verify = mode != UpstreamTlsMode::Opportunistic;
        Some(UpstreamTls { mode, ca: None, name: None, verify, identity: None })
    }?;
    if tls.verify && tls.name.is_none() && !named {
        value.error(
            "needs `name`, what the targets are called in their certificate: `tls = { mode = \
             \"required\", name = \"mx.example.net\" }`; or give names as targets, not addresses",
        );
    }
    Some(tls)
}

fn of_upstream(
    table: &Section<'_>,
    mode: Option<UpstreamTlsMode>,
    base: &Path,
) -> Option<UpstreamTls> {
    let example = "a host name in quotes, such as \"mx.example.net\"";
    let name = table.parsed("name", example, |text| match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{} is no host name; give {example}", quote(text))),
    });
    let name = name.map(|found| found.value);
    let optional = |key| table.get(key).and_then(|_| file(table, key, base));
    let (ca, certificate, key) = (optional("ca"), optional("certificate"), optional("key"));
    let at = |key| table.get(key).map_or(table.place(), |value| value.place());
    let report = table.report();
    let mode = mode?;
    let opportunistic = mode == UpstreamTlsMode::Opportunistic;
    let verify = table.boolean("verify", !opportunistic);
    if verify && opportunistic {
        let text = "has no effect with `opportunistic`, which goes on without TLS; use `required`";
        report.error(&at("verify"), text);
    }
    if !verify && !opportunistic {
        let text = "anybody on the way can pose as this upstream and read its mail";
        report.warn(&at("verify"), text);
    }
    if ca.is_some() && !verify {
        report.warn(&at("ca"), "has no effect, because nothing is verified; remove it");
    }
    if certificate.is_some() != key.is_some() {
        let lone = if key.is_some() { "key" } else { "certificate" };
        report.error(&at(lone), "needs the other one: give both `certificate` and `key`");
    }
    let identity = certificate.zip(key).map(|(certificate, key)| TlsFiles { certificate, key });
    Some(UpstreamTls { mode, ca, name, verify: verify && !opportunistic, identity })
}

/// `certificate` and `key`, both of which must be there.
pub(super) fn files(section: Section<'_>, base: &Path) -> Option<TlsFiles> {
    let (certificate, key) = (file(&section, "certificate", base), file(&section, "key", base));
    section.finish();
    Some(TlsFiles { certificate: certificate?, key: key? })
}

/// The file that a key names, which must be there.
pub(super) fn file(section: &Section<'_>, key: &'static str, base: &Path) -> Option<PathBuf> {
    let example = "a path in quotes, such as \"mx.pem\"";
    let value = section.require(key, example)?;
    value.parse(example, |text| path(text, base)).map(|found| found.value)
}

fn min_version(section: &Section<'_>) -> TlsVersion {
    let found = section.choice(
        "min_version",
        "a version of TLS that is spoken",
        &[("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)],
    );
    found.map_or(TlsVersion::V12, |found| found.value)
}
