//! Certificates, keys and the passwords of upstreams: read, checked, and made into what sessions
//! begin with. Floor 2.
//!
//! Owns what is wrong with these files and whether they may still be used; the sessions
//! themselves are `world::tls`. What did not change is taken over from what is in force, so that
//! a reload forgets no session that could be resumed.

mod certificate;
mod connector;
pub mod link;
mod login;
mod sni;

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio_rustls::rustls::{
    DigitallySignedStruct, Error, InconsistentKeys, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use wavegate_smtp::Credentials;

use crate::{
    config::{Config, Diagnostic, Diagnostics, ListenerTls, Severity, TlsFiles, TlsVersion},
    event::TlsFailure,
    message::{CIPHERS, Secured},
    plan::Timestamp,
};
pub use connector::Connector;
pub(crate) use connector::roots;
use link::{LinkAcceptor, LinkConnector};
use sni::BySni;

/// Bytes of a certificate chain, a key, or another secret: far more than any has.
const FILE: u64 = 1 << 20;
/// Bits of a file's mode by which others than its user and group read or change it, or its group
/// changes it.
const OTHERS: u32 = 0o027;
/// A certificate that expires within this time is warned of: certificates are renewed a month
/// before they expire, so something has failed then.
const SOON_MS: u64 = 14 * 24 * 3600 * 1000;

/// All that sessions of a configuration begin with.
#[derive(Default)]
pub struct Loaded {
    listeners: HashMap<String, Arc<Acceptor>>,
    upstreams: HashMap<String, Arc<Connector>>,
    logins: HashMap<String, Arc<Credentials>>,
    edges: HashMap<String, Arc<LinkConnector>>,
    gateways: HashMap<String, Arc<LinkAcceptor>>,
    /// What was found that is not an error.
    pub warnings: Vec<Diagnostic>,
}

/// What a listener's TLS sessions begin with.
pub struct Acceptor {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Its certificates' files, and when they expire.
    pub certificates: Vec<(PathBuf, Timestamp)>,
    /// Of the settings and of all bytes of the files.
    digest: blake3::Hash,
}

/// What is counted of TLS with the peers of a listener or an upstream.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sessions, in the order of [`CIPHERS`].
    pub begun: [AtomicU64; CIPHERS.len()],
    /// Of these, resumed ones.
    pub resumed: AtomicU64,
    /// Handshakes that failed, in the order of [`TlsFailure::ALL`].
    pub failed: [AtomicU64; TlsFailure::ALL.len()],
    /// Sessions without TLS, because the peer had none.
    pub declined: AtomicU64,
}

impl Counts {
    /// A session has begun.
    pub fn begin(&self, secured: Secured) {
        self.begun[secured.cipher].fetch_add(1, Relaxed);
        self.resumed.fetch_add(u64::from(secured.resumed), Relaxed);
    }

    /// A handshake failed.
    pub fn fail(&self, failure: TlsFailure) {
        self.failed[failure as usize].fetch_add(1, Relaxed);
    }
}

/// One certificate with its key.
struct Pair {
    key: CertifiedKey,
    expires: Timestamp,
}

impl Loaded {
    /// What a listener's sessions begin with, if it has TLS.
    pub fn acceptor(&self, listener: &str) -> Option<&Arc<Acceptor>> {
        self.listeners.get(listener)
    }

    /// What an upstream's sessions begin with, if it has TLS.
    pub fn connector(&self, upstream: &str) -> Option<&Arc<Connector>> {
        self.upstreams.get(upstream)
    }

    /// What is said to log in at an upstream, if that is wanted.
    pub fn login(&self, upstream: &str) -> Option<&Arc<Credentials>> {
        self.logins.get(upstream)
    }

    /// What the connections of a link begin with at this end, if the upstream is a link.
    pub fn link_edge(&self, upstream: &str) -> Option<&Arc<LinkConnector>> {
        self.edges.get(upstream)
    }

    /// What the connections of edges begin with, if the listener is a link's.
    pub fn link_gateway(&self, listener: &str) -> Option<&Arc<LinkAcceptor>> {
        self.gateways.get(listener)
    }
}

/// Reads the files that a configuration names, as of `now`; all that is wrong with them. A
/// certificate that has expired is refused, unless it is in force already: time alone keeps no
/// reload from being made.
pub fn load(
    config: &Config,
    now: Timestamp,
    in_force: Option<&Loaded>,
) -> Result<Loaded, Diagnostics> {
    let mut loaded = Loaded::default();
    let mut wrong = Vec::new();
    for listener in &config.listeners {
        let Some(tls) = &listener.tls else { continue };
        let before = in_force.and_then(|loaded| loaded.acceptor(&listener.name));
        match acceptor(tls, now, before, &mut loaded.warnings) {
            Ok(acceptor) => drop(loaded.listeners.insert(listener.name.clone(), acceptor)),
            Err(found) => wrong.extend(found),
        }
    }
    for upstream in &config.upstreams {
        let Some(tls) = &upstream.tls else { continue };
        let before = in_force.and_then(|loaded| loaded.connector(&upstream.name));
        match connector::load(tls, now, before, &mut loaded.warnings) {
            Ok(connector) => drop(loaded.upstreams.insert(upstream.name.clone(), connector)),
            Err(found) => wrong.extend(found),
        }
    }
    for upstream in &config.upstreams {
        let Some(auth) = &upstream.auth else { continue };
        let before = in_force.and_then(|loaded| loaded.login(&upstream.name));
        match login::load(auth, before) {
            Ok(login) => drop(loaded.logins.insert(upstream.name.clone(), login)),
            Err(found) => wrong.push(found),
        }
    }
    for upstream in &config.upstreams {
        let Some(settings) = &upstream.link else { continue };
        let before = in_force.and_then(|loaded| loaded.link_edge(&upstream.name));
        match link::edge(settings, now, before, &mut loaded.warnings) {
            Ok(connector) => drop(loaded.edges.insert(upstream.name.clone(), connector)),
            Err(found) => wrong.extend(found),
        }
    }
    for listener in &config.links {
        let before = in_force.and_then(|loaded| loaded.link_gateway(&listener.name));
        match link::gateway(listener, now, before, &mut loaded.warnings) {
            Ok(acceptor) => drop(loaded.gateways.insert(listener.name.clone(), acceptor)),
            Err(found) => wrong.extend(found),
        }
    }
    if wrong.is_empty() { Ok(loaded) } else { Err(Diagnostics(wrong)) }
}

fn acceptor(
    tls: &ListenerTls,
    now: Timestamp,
    in_force: Option<&Arc<Acceptor>>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Arc<Acceptor>, Vec<Diagnostic>> {
    let mut digest = blake3::Hasher::new();
    digest.update(format!("{tls:?}").as_bytes());
    let (mut pairs, mut wrong, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for files in &tls.certificates {
        match pair(files, &mut digest) {
            Ok((pair, valid)) => {
                late.extend(untimely(&files.certificate, &valid, now));
                pairs.push(pair);
            }
            Err(found) => wrong.push(found),
        }
    }
    let roots = tls.clients.as_ref().and_then(|clients| {
        roots(&clients.ca, &mut digest).map_err(|found| wrong.push(found)).ok()
    });
    let digest = digest.finalize();
    let same = in_force.filter(|acceptor| acceptor.digest == digest);
    judge(late, same.is_some(), &mut wrong, warnings);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    if let Some(same) = same {
        return Ok(Arc::clone(same));
    }
    let names = tls.certificates.iter().map(|files| files.certificate.clone());
    let certificates = names.zip(pairs.iter().map(|pair| pair.expires)).collect();
    let keys = pairs.into_iter().map(|pair| Arc::new(pair.key)).collect();
    let config = server_config(tls, keys, roots).map_err(|error| {
        // Nothing of the files is left that could be wrong; so the machine is.
        vec![Diagnostic::of_file("listener.tls", format!("cannot be used: {error}"))]
    })?;
    Ok(Arc::new(Acceptor { config: Arc::new(config), certificates, digest }))
}

/// What is late is wrong, unless it is in force already.
fn judge(
    late: impl IntoIterator<Item = Diagnostic>,
    is_in_force: bool,
    wrong: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) {
    for found in late {
        match found.is_error() && !is_in_force {
            true => wrong.push(found),
            false => warnings.push(Diagnostic { severity: Severity::Warning, ..found }),
        }
    }
}

fn server_config(
    tls: &ListenerTls,
    keys: Vec<Arc<CertifiedKey>>,
    roots: Option<Arc<RootCertStore>>,
) -> Result<ServerConfig, Error> {
    let versions: &[_] = match tls.min_version {
        TlsVersion::V12 => &[&TLS13, &TLS12],
        TlsVersion::V13 => &[&TLS13],
    };
    let verifier = match tls.clients.as_ref().zip(roots) {
        None => WebPkiClientVerifier::no_client_auth(),
        Some((clients, roots)) => {
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let builder = match clients.required {
                true => builder,
                false => builder.allow_unauthenticated(),
            };
            builder.build().map_err(|error| Error::General(error.to_string()))?
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(BySni(keys)));
    // What a session is resumed by is kept by the client, encrypted: it costs no memory here. One
    // ticket a session, as one connection follows another.
    config.ticketer = ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// A certificate and its key, which must belong together.
fn pair(
    files: &TlsFiles,
    digest: &mut blake3::Hasher,
) -> Result<(Pair, std::ops::Range<Timestamp>), Diagnostic> {
    let of = |path: &Path, message: String| Diagnostic::of_file(path.display(), message);
    let (chain, key) = read_pair(files, digest)?;
    let not_one = |what: &str| {
        of(&files.certificate, format!("has no certificate that can be read: {what}; renew it"))
    };
    let first = chain.first().ok_or_else(|| not_one("it is empty"))?;
    let valid =
        certificate::validity(first).ok_or_else(|| not_one("its dates are not to be found"))?;
    let made = CertifiedKey::from_der(chain, key, &provider());
    let key = made.map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => of(
            &files.key,
            format!(
                "is not the key of {}; give the two that were made together",
                files.certificate.display()
            ),
        ),
        Error::InvalidCertificate(error) => not_one(&format!("{error:?}")),
        error => of(&files.key, format!("cannot be used: {error}; use RSA, ECDSA or Ed25519")),
    })?;
    Ok((Pair { key, expires: valid.end }, valid))
}

type Der = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The two files, as DER.
fn read_pair(files: &TlsFiles, digest: &mut blake3::Hasher) -> Result<Der, Diagnostic> {
    let TlsFiles { certificate, key } = files;
    let of = |path: &Path, message: String| Diagnostic::of_file(path.display(), message);
    let key_bytes = secret(key, "the key")?;
    let chain = read(certificate)
        .map_err(|error| of(certificate, format!("the certificate cannot be read: {error}")))?;
    digest.update(blake3::hash(&key_bytes).as_bytes());
    digest.update(blake3::hash(&chain).as_bytes());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|error| of(certificate, format!("is not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(of(certificate, "has no certificate in PEM".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&key_bytes)
        .map_err(|error| of(key, format!("has no key in PEM: {error}")))?;
    Ok((chain, secret))
}

/// Why a certificate should not be used now, or soon.
fn untimely(path: &Path, valid: &std::ops::Range<Timestamp>, now: Timestamp) -> Option<Diagnostic> {
    let of = |message| Diagnostic::of_file(path.display(), message);
    let std::ops::Range { start, end } = valid;
    if now < *start {
        return Some(of(format!("is not valid before {start}; look at the clock, or renew it")));
    }
    if now >= *end {
        return Some(of(format!("has expired on {end}; renew it")));
    }
    (now.saturating_add_ms(SOON_MS) >= *end).then(|| Diagnostic {
        severity: Severity::Warning,
        ..of(format!("expires on {end}; renew it"))
    })
}

/// A rustls configuration for one certificate, without more than it needs.
pub(crate) fn single(files: &TlsFiles) -> Result<ServerConfig, Diagnostic> {
    let (chain, key) = read_pair(files, &mut blake3::Hasher::new())?;
    let built = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    built.map_err(|error: Error| {
        let message = format!("cannot be used with {}: {error}", files.key.display());
        Diagnostic::of_file(files.certificate.display(), message)
    })
}

/// The provider of cryptography, for all sides.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// That the peer has the key of what it shows, whoever it is.
fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signed, &algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

/// The bytes of a file that holds a secret.
pub(crate) fn secret(path: &Path, what: &str) -> Result<Vec<u8>, Diagnostic> {
    let of = |message: String| Diagnostic::of_file(path.display(), message);
    let failed = |error: io::Error| of(format!("{what} cannot be read: {error}"));
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let found = fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        return Err(of(format!("{what} is not a regular file")));
    }
    if found.mode() & OTHERS != 0 {
        let mode = found.mode() & 0o777;
        let text = format!("{what} is open to others (mode {mode:o}); chmod it to 600 or 640");
        return Err(of(text));
    }
    read(path).map_err(failed)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE + 1).read_to_end(&mut bytes)?;
    // The rest of it would be missing, and nobody would know.
    if bytes.len() as u64 > FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
