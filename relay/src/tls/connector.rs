//! What sessions with an upstream begin with: whom to believe, what to show.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::verify_tls12_signature,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::{pair, provider, read, schemes, verify_signature};
use crate::{
    config::{Diagnostic, UpstreamTls, UpstreamTlsMode},
    plan::Timestamp,
};

/// Where Debian has the authorities that it trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What an upstream's TLS sessions begin with.
#[derive(Debug)]
pub struct Connector {
    /// For rustls. Sessions are resumed by what it remembers.
    pub config: Arc<ClientConfig>,
    /// How TLS begins, and whether it must.
    pub mode: UpstreamTlsMode,
    name: Option<ServerName<'static>>,
    digest: blake3::Hash,
}

impl Connector {
    /// What a target is called: as configured, else as the host that it was found by, else by its
    /// address.
    pub fn name(&self, host: Option<&str>, address: IpAddr) -> ServerName<'static> {
        let of_host = || ServerName::try_from(host?.to_owned()).ok();
        self.name.clone().or_else(of_host).unwrap_or_else(|| ServerName::from(address))
    }
}

/// Reads the files; a connector that is in force stays, where nothing changed.
pub(super) fn load(
    tls: &UpstreamTls,
    now: Timestamp,
    in_force: Option<&Arc<Connector>>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Arc<Connector>, Vec<Diagnostic>> {
    let mut digest = blake3::Hasher::new();
    digest.update(format!("{tls:?}").as_bytes());
    let mut wrong = Vec::new();
    let roots = if tls.verify {
        let path = tls.ca.clone().unwrap_or_else(|| PathBuf::from(AUTHORITIES));
        roots(&path, &mut digest).map_err(|found| wrong.push(found)).ok()
    } else {
        None
    };
    let mut late = None;
    let identity = tls.identity.as_ref().and_then(|files| match pair(files, &mut digest) {
        Ok((pair, valid)) => {
            late = super::untimely(&files.certificate, &valid, now);
            Some(pair)
        }
        Err(found) => {
            wrong.push(found);
            None
        }
    });
    let digest = digest.finalize();
    let same = in_force.filter(|connector| connector.digest == digest);
    super::judge(late, same.is_some(), &mut wrong, warnings);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    if let Some(same) = same {
        return Ok(Arc::clone(same));
    }
    let config = client_config(roots, identity).map_err(|error| {
        vec![Diagnostic::of_file("upstream.tls", format!("cannot be used: {error}"))]
    })?;
    let name = tls.name.as_ref().and_then(|name| ServerName::try_from(name.clone()).ok());
    Ok(Arc::new(Connector { config: Arc::new(config), mode: tls.mode, name, digest }))
}

fn client_config(
    roots: Option<Arc<RootCertStore>>,
    identity: Option<super::Pair>,
) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match roots {
        Some(roots) => WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?,
        None => Arc::new(Anybody),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match identity {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(Shown(Arc::new(pair.key)))),
        None => builder.with_no_client_auth(),
    })
}

/// The authorities of a file.
pub(crate) fn roots(
    path: &Path,
    digest: &mut blake3::Hasher,
) -> Result<Arc<RootCertStore>, Diagnostic> {
    let of = |message: String| Diagnostic::of_file(path.display(), message);
    let bytes =
        read(path).map_err(|error| of(format!("the authorities cannot be read: {error}")))?;
    digest.update(blake3::hash(&bytes).as_bytes());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| of(format!("is not PEM: {error}")))?;
        // One that cannot be used does not spoil the others.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(of("has no certificate of an authority in PEM".to_owned()));
    }
    Ok(Arc::new(roots))
}

/// The one certificate, whoever asks.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<tokio_rustls::rustls::sign::CertifiedKey>);

impl tokio_rustls::rustls::client::ResolvesClientCert for Shown {
    fn resolve(
        &self,
        _: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<tokio_rustls::rustls::sign::CertifiedKey>> {
        self.0.key.choose_scheme(schemes).is_some().then(|| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Believes everybody: TLS against those who only listen. That the peer has the key of what it
/// shows is looked at all the same.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, &algorithms)
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

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
