//! TLS for tests: the certificates of `relay/tests/tls`, a client that believes in their authority,
//! and a server that has one of them.
//!
//! Owns no connection: see [`super::Client::begin_tls`]. Floor: none.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../relay/tests/tls/", $name)) as &[u8])
    };
}

/// All of them, for [`super::Relay::start_with`].
pub const TLS_FILES: [(&str, &[u8]); 11] = [
    file!("ca.pem"),
    file!("mx.pem"),
    file!("mx.key"),
    file!("other.pem"),
    file!("other.key"),
    file!("expired.pem"),
    file!("expired.key"),
    file!("client.pem"),
    file!("client.key"),
    file!("stranger.pem"),
    file!("stranger.key"),
];

/// Writes them to a folder, keys so that no other user reads them.
pub fn write_tls_files(folder: &Path) -> io::Result<()> {
    for (name, bytes) in TLS_FILES {
        fs::write(folder.join(name), bytes)?;
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// A client that speaks these versions, with the certificate of this name if there is one.
pub fn tls_client(
    versions: &[&'static SupportedProtocolVersion],
    certificate: Option<&str>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    chain("ca").into_iter().for_each(|one| roots.add(one).unwrap());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => builder.with_client_auth_cert(chain(name), key(name)).unwrap(),
    })
}

/// A server that shows the certificate of this name and asks clients for none.
pub fn tls_server(name: &str) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    Arc::new(builder.with_single_cert(chain(name), key(name)).unwrap())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn find(name: &str) -> &'static [u8] {
    TLS_FILES.iter().find(|(file, _)| *file == name).unwrap().1
}

fn chain(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(find(&format!("{name}.pem"))).map(Result::unwrap).collect()
}

fn key(name: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(find(&format!("{name}.key"))).unwrap()
}
