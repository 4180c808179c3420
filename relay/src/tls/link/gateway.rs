//! A gateway: which edges it believes, and what they are called.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use quinn::crypto::rustls::QuicServerConfig;
use tokio_rustls::rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use super::{
    NotTrusted, Side, not_made, not_spoken, pin, provider, schemes, unix, unusable,
    verify_signature,
};
use crate::{
    config::{Diagnostic, LinkListener, Pin, is_peer_name},
    plan::Timestamp,
    tls::{certificate, sni::BySni},
    world::{SystemClock, WallClock as _},
};

/// What the connections of edges begin with.
pub struct LinkAcceptor {
    /// For `quinn::ServerConfig::with_crypto`.
    pub config: Arc<QuicServerConfig>,
    /// Its certificate's file, and when that expires.
    pub certificate: (PathBuf, Timestamp),
    edges: Arc<Edges>,
    digest: blake3::Hash,
}

impl LinkAcceptor {
    /// The name of the edge that has shown these certificates, its own first; none where it is not
    /// believed, or no longer. So each open connection can be judged again after a reload.
    pub fn peer(&self, certificates: &[CertificateDer<'_>]) -> Option<String> {
        let (own, between) = certificates.split_first()?;
        self.edges.judge(own, between, unix(SystemClock.now())).ok()
    }
}

/// Reads the files; an acceptor that is in force stays, where nothing changed.
pub(in crate::tls) fn load(
    link: &LinkListener,
    now: Timestamp,
    in_force: Option<&Arc<LinkAcceptor>>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Arc<LinkAcceptor>, Vec<Diagnostic>> {
    let settings = format!("{:?}{:?}{:?}", link.identity, link.trust, link.peers);
    let in_force = in_force.map(|acceptor| (acceptor, acceptor.digest));
    let files = (&link.identity, &link.trust);
    super::load(files, &settings, now, in_force, warnings, |side, digest| make(link, side, digest))
}

fn make(
    link: &LinkListener,
    side: Side,
    digest: blake3::Hash,
) -> Result<LinkAcceptor, Vec<Diagnostic>> {
    let Side { identity, authority } = side;
    let authority = authority.map(|authority| {
        WebPkiClientVerifier::builder_with_provider(authority.roots, provider())
            .with_crls(authority.revoked)
            .build()
    });
    let authority = authority.transpose().map_err(|error| unusable(&error, &link.trust))?;
    let pinned =
        link.peers.iter().flat_map(|peer| peer.pins.iter().map(|pin| (*pin, peer.name.clone())));
    let names = link.peers.iter().map(|peer| peer.name.clone()).collect();
    let edges = Arc::new(Edges { authority, pinned: pinned.collect(), names });
    let certificate = (link.identity.certificate.clone(), identity.expires);
    let config = server_config(BySni(vec![Arc::new(identity.key)]), Arc::clone(&edges))
        .map_err(|error| not_made("listener.link", error))?;
    let config =
        QuicServerConfig::try_from(config).map_err(|error| not_made("listener.link", error))?;
    Ok(LinkAcceptor { config: Arc::new(config), certificate, edges, digest })
}

fn server_config(shown: BySni, edges: Arc<Edges>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(edges)
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![wavegate_link::ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Which edges are believed.
#[derive(Debug)]
struct Edges {
    authority: Option<Arc<dyn ClientCertVerifier>>,
    pinned: HashMap<Pin, String>,
    /// Who those may be that the authority vouches for; empty: anybody.
    names: Vec<String>,
}

impl Edges {
    /// The name of whoever has this certificate, or why it is not believed.
    fn judge(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<String, Error> {
        let pin = pin(own).ok_or(NotTrusted::Unreadable)?;
        if let Some(name) = self.pinned.get(&pin) {
            return Ok(name.clone());
        }
        let authority = self.authority.as_ref().ok_or(NotTrusted::Pin(pin))?;
        authority.verify_client_cert(own, between, now)?;
        let name = certificate::host(own).filter(|name| is_peer_name(name));
        let name = name.ok_or(NotTrusted::Nameless)?.to_ascii_lowercase();
        match self.names.is_empty() || self.names.contains(&name) {
            true => Ok(name),
            false => Err(NotTrusted::Peer(name).into()),
        }
    }
}

impl ClientCertVerifier for Edges {
    /// No hint: an edge has one certificate, and that of a pinned one is of no authority here.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
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
