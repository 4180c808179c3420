//! TLS of the link: what each side shows, and whom it believes.
//!
//! Both sides show certificates, and each believes those of an authority of its own, public keys
//! that it was told (pins), or both: either is enough. A pin says who a peer is by itself, so names
//! and dates of that certificate do not count. That the peer has the key is proven in each handshake.
//!
//! No session is resumed and nothing is sent early: a connection of a link stays open for long, what
//! is sent early could be sent again by others, and a ticket would let in whoever has been revoked since.

mod edge;
mod gateway;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use ring::digest::{SHA256, digest};
use tokio_rustls::rustls::{
    CertificateError, Error, OtherError, PeerIncompatible, RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject},
    server::VerifierBuilderError,
};

pub use self::{edge::LinkConnector, gateway::LinkAcceptor};
pub(super) use self::{edge::load as edge, gateway::load as gateway};
use super::{
    Pair, certificate, judge, pair, provider, read, roots, schemes, untimely, verify_signature,
};
use crate::{
    config::{Diagnostic, Pin, Severity, TlsFiles, Trust},
    plan::Timestamp,
};

/// Why a peer is not believed, where rustls has no word for it.
#[derive(thiserror::Error)]
pub enum NotTrusted {
    /// Its key is none that is pinned, and there is no authority to ask.
    #[error("its public key, {0}, is none of those that are pinned")]
    Pin(Pin),
    /// The authority vouches for it, but it is nobody who is listed.
    #[error("the authority has a certificate for \"{0}\", which is none of `peers`")]
    Peer(String),
    /// The authority vouches for it, but it says no name.
    #[error("the certificate has no DNS name (subjectAltName) to know the edge by")]
    Nameless,
    /// It is no certificate at all.
    #[error("it cannot be read as a certificate")]
    Unreadable,
}

impl fmt::Debug for NotTrusted {
    /// The same text: rustls and quinn tell of it so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<NotTrusted> for Error {
    fn from(why: NotTrusted) -> Self {
        CertificateError::Other(OtherError(Arc::new(why))).into()
    }
}

/// The pin of a certificate's key; none where it is no certificate.
pub fn pin(certificate: &[u8]) -> Option<Pin> {
    let hash = digest(&SHA256, certificate::key(certificate)?);
    hash.as_ref().try_into().ok().map(Pin)
}

/// The pin of the first certificate in a file.
pub fn pin_of_file(path: &Path) -> Result<Pin, Diagnostic> {
    let of = |message: String| Diagnostic::of_file(path.display(), message);
    let bytes =
        read(path).map_err(|error| of(format!("the certificate cannot be read: {error}")))?;
    let first = CertificateDer::pem_slice_iter(&bytes).next();
    let first = first.ok_or_else(|| of("has no certificate in PEM".to_owned()))?;
    let first = first.map_err(|error| of(format!("is not PEM: {error}")))?;
    pin(&first).ok_or_else(|| of("has no certificate that can be read".to_owned()))
}

/// What both sides are made of.
struct Side {
    identity: Pair,
    authority: Option<Authority>,
}

/// Whose certificates are believed, and which of them no longer.
struct Authority {
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// Reads the files of one side, and has something made of them unless they say what is in force.
/// `settings` are those that they are used with; `in_force` is what is used now, with its digest.
fn load<T>(
    files: (&TlsFiles, &Trust),
    settings: &str,
    now: Timestamp,
    in_force: Option<(&Arc<T>, blake3::Hash)>,
    warnings: &mut Vec<Diagnostic>,
    make: impl FnOnce(Side, blake3::Hash) -> Result<T, Vec<Diagnostic>>,
) -> Result<Arc<T>, Vec<Diagnostic>> {
    let (files, trust) = files;
    let mut digest = blake3::Hasher::new();
    digest.update(settings.as_bytes());
    let (mut wrong, mut late) = (Vec::new(), Vec::new());
    let identity = pair(files, &mut digest).map_err(|found| wrong.push(found)).ok();
    let identity = identity.map(|(pair, valid)| {
        late.extend(untimely(&files.certificate, &valid, now));
        pair
    });
    let authority = trust.ca.as_ref().and_then(|ca| {
        let roots = roots(ca, &mut digest).map_err(|found| wrong.push(found)).ok()?;
        let revoked = match &trust.crl {
            None => Ok(Vec::new()),
            Some(crl) => lists(crl, (ca, &roots), now, &mut digest, warnings),
        };
        let revoked = revoked.map_err(|found| wrong.push(found)).ok()?;
        Some(Authority { roots, revoked })
    });
    let digest = digest.finalize();
    let same = in_force.filter(|(_, before)| *before == digest);
    judge(late, same.is_some(), &mut wrong, warnings);
    match (identity, same) {
        (Some(_), Some((same, _))) if wrong.is_empty() => Ok(Arc::clone(same)),
        (Some(identity), None) if wrong.is_empty() => {
            make(Side { identity, authority }, digest).map(Arc::new)
        }
        _ => Err(wrong),
    }
}

/// The lists of revoked certificates in a file: one of each authority. A list whose successor is due
/// counts on, and is warned of: it lies on our own disk, where nobody withholds the next one, and
/// refusing all mail would be the greater harm.
fn lists(
    path: &Path,
    (ca, roots): (&Path, &RootCertStore),
    now: Timestamp,
    digest: &mut blake3::Hasher,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, Diagnostic> {
    let of = |message: String| Diagnostic::of_file(path.display(), message);
    let bytes = read(path)
        .map_err(|error| of(format!("the revoked certificates cannot be read: {error}")))?;
    digest.update(blake3::hash(&bytes).as_bytes());
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    let lists = lists.map_err(|error| of(format!("is not PEM: {error}")))?;
    if lists.is_empty() {
        return Err(of("has no list of revoked certificates in PEM (X509 CRL)".to_owned()));
    }
    let read: Option<Vec<_>> = lists.iter().map(|list| certificate::list(list)).collect();
    let read = read.ok_or_else(|| {
        of("has a list that cannot be read, or that does not say when the next is due; make it with \
            `openssl ca -gencrl`"
            .to_owned())
    })?;
    // Of whom there is no list, everybody would be refused.
    let missing = roots
        .roots
        .iter()
        .any(|root| !read.iter().any(|(issuer, _)| *issuer == root.subject.as_ref()));
    if missing {
        return Err(of(format!(
            "has no list of an authority in {}; give one of each, one after another",
            ca.display()
        )));
    }
    let due = read.iter().map(|(_, due)| *due).min().filter(|due| *due <= now);
    warnings.extend(due.map(|due| Diagnostic {
        severity: Severity::Warning,
        ..of(format!("was to be renewed by {due}, and is used on; make a new list"))
    }));
    Ok(lists)
}

/// What is wrong with the files of an authority that could be read.
fn unusable(error: &VerifierBuilderError, trust: &Trust) -> Vec<Diagnostic> {
    let of = |path: Option<&std::path::PathBuf>, message: String| {
        let path = path.map(|path| path.display().to_string()).unwrap_or_default();
        vec![Diagnostic::of_file(path, message)]
    };
    match error {
        VerifierBuilderError::InvalidCrl(error) => of(
            trust.crl.as_ref(),
            format!(
                "cannot be used as a list of revoked certificates: {error:?}; make it with `openssl \
                 ca -gencrl` and `crl_extensions`"
            ),
        ),
        error => of(trust.ca.as_ref(), format!("cannot be used: {error}")),
    }
}

/// Nothing of the files is left that could be wrong; so the machine is.
fn not_made(key: &str, error: impl fmt::Display) -> Vec<Diagnostic> {
    vec![Diagnostic::of_file(key, format!("cannot be used: {error}"))]
}

fn unix(now: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(now.0))
}

/// QUIC has no TLS 1.2.
fn not_spoken() -> Error {
    PeerIncompatible::Tls13RequiredForQuic.into()
}

#[cfg(test)]
mod tests;
