//! An edge: which gateways it believes.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use quinn::crypto::rustls::QuicClientConfig;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};

use super::{
    NotTrusted, Side, not_made, not_spoken, pin, provider, schemes, unusable, verify_signature,
};
use crate::{
    config::{Diagnostic, LinkUpstream, Pin},
    plan::Timestamp,
    tls::connector::Shown,
};

/// What an edge's connections begin with.
pub struct LinkConnector {
    /// For `quinn::ClientConfig::new`.
    pub config: Arc<QuicClientConfig>,
    /// Its certificate's file, and when that expires.
    pub certificate: (PathBuf, Timestamp),
    name: Option<String>,
    digest: blake3::Hash,
}

impl LinkConnector {
    /// What a gateway is called: as configured, else as the host that it was found by, else by its
    /// address.
    pub fn server_name(&self, host: Option<&str>, address: IpAddr) -> String {
        let found = self.name.as_deref().or(host);
        found.map_or_else(|| address.to_canonical().to_string(), str::to_owned)
    }
}

/// Reads the files; a connector that is in force stays, where nothing changed.
pub(in crate::tls) fn load(
    link: &LinkUpstream,
    now: Timestamp,
    in_force: Option<&Arc<LinkConnector>>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Arc<LinkConnector>, Vec<Diagnostic>> {
    let settings = format!("{:?}{:?}{:?}", link.identity, link.trust, link.name);
    let in_force = in_force.map(|connector| (connector, connector.digest));
    let files = (&link.identity, &link.trust);
    super::load(files, &settings, now, in_force, warnings, |side, digest| make(link, side, digest))
}

fn make(
    link: &LinkUpstream,
    side: Side,
    digest: blake3::Hash,
) -> Result<LinkConnector, Vec<Diagnostic>> {
    let Side { identity, authority } = side;
    let authority = authority.map(|authority| {
        WebPkiServerVerifier::builder_with_provider(authority.roots, provider())
            .with_crls(authority.revoked)
            .build()
    });
    let authority = authority.transpose().map_err(|error| unusable(&error, &link.trust))?;
    let gateways = Gateways { authority, pins: link.trust.pins.clone() };
    let certificate = (link.identity.certificate.clone(), identity.expires);
    let config = client_config(Arc::new(Shown(Arc::new(identity.key))), gateways)
        .map_err(|error| not_made("upstream.link", error))?;
    let config =
        QuicClientConfig::try_from(config).map_err(|error| not_made("upstream.link", error))?;
    let name = link.name.clone();
    Ok(LinkConnector { config: Arc::new(config), certificate, name, digest })
}

fn client_config(shown: Arc<Shown>, gateways: Gateways) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(gateways))
        .with_client_cert_resolver(shown);
    config.alpn_protocols = vec![wavegate_link::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// Which gateways are believed.
#[derive(Debug)]
struct Gateways {
    authority: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<Pin>,
}

impl ServerCertVerifier for Gateways {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pin = pin(end_entity).ok_or(NotTrusted::Unreadable)?;
        if self.pins.contains(&pin) {
            return Ok(ServerCertVerified::assertion());
        }
        let authority = self.authority.as_ref().ok_or(NotTrusted::Pin(pin))?;
        authority.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
