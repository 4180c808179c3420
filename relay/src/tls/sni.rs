//! Which certificate a client is shown.

use std::sync::Arc;

use tokio_rustls::rustls::{
    client::verify_server_name,
    pki_types::ServerName,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};

/// The first that is for the name that the client asks for, and that it can check; else the first
/// that it can check. A client that asks for an unknown name is not turned away: most that send
/// mail do not look at names.
#[derive(Debug)]
pub(super) struct BySni(pub(super) Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable: Vec<_> = self
            .0
            .iter()
            .filter(|pair| pair.key.choose_scheme(hello.signature_schemes()).is_some())
            .collect();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| usable.iter().find(|pair| is_for(pair, &name)));
        named.or_else(|| usable.first()).map(|pair| Arc::clone(pair))
    }
}

fn is_for(pair: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = pair.end_entity_cert().and_then(ParsedCertificate::try_from);
    certificate.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
