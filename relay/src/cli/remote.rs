//! Asks the APIs of other relays. Floor 4.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use super::{Failed, exit};
use crate::{control::wire::Problem, tls};

/// Time for one host, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer: ten thousand instances take some three megabytes.
const ANSWER: usize = 64 << 20;
/// The port where none is named.
const PORT: u16 = 8026;
/// Where Debian has the authorities that it trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A relay's API: `HOST`, `HOST:PORT` or a URL. TLS is spoken unless the URL is `http://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: String,
    port: u16,
    tls: bool,
}

/// How APIs are asked.
pub(super) struct Asker {
    token: String,
    tls: Option<TlsConnector>,
}

/// Why a host did not say what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    /// There is no connection.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// What came back is no answer.
    #[error("does not answer as a relay should: {0}")]
    Wrong(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not HOST, HOST:PORT, https://HOST or http://HOST");
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // An IPv6 address stands in brackets (RFC 3986 section 3.2.2).
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, Some("")),
            },
        };
        let port = match port.ok_or_else(wrong)? {
            "" if rest.ends_with(':') => return Err(wrong()),
            "" => PORT,
            port => port.parse().map_err(|_| wrong())?,
        };
        let good = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || !host.chars().all(good) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Asker {
    /// With the token of a file, trusting the authorities of another where TLS is spoken.
    pub(super) fn new(
        token_file: &Path,
        authorities: Option<&PathBuf>,
        targets: &[Target],
    ) -> Result<Arc<Self>, Failed> {
        let no_input = |path: &Path, error: &dyn fmt::Display| {
            Failed::new(exit::NO_INPUT, format!("{}: {error}", path.display()))
        };
        let token = std::fs::read_to_string(token_file)
            .map_err(|error| no_input(token_file, &error))?
            .trim()
            .to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(no_input(token_file, &"holds no token"));
        }
        let tls = if targets.iter().any(|target| target.tls) {
            let path = authorities.map_or(Path::new(AUTHORITIES), PathBuf::as_path);
            Some(connector(path).map_err(|error| no_input(path, &error))?)
        } else {
            None
        };
        Ok(Arc::new(Self { token, tls }))
    }

    /// Asks one host.
    pub(super) async fn get<A: DeserializeOwned>(
        &self,
        target: &Target,
        path: &str,
    ) -> Result<A, Silence> {
        let asking = async {
            let stream = TcpStream::connect((target.host.as_str(), target.port)).await;
            let stream = stream.map_err(|error| Silence::Unreachable(error.to_string()))?;
            match &self.tls {
                Some(tls) if target.tls => {
                    let name = ServerName::try_from(target.host.clone());
                    let name = name.map_err(|error| Silence::Unreachable(error.to_string()))?;
                    let stream = tls.connect(name, stream).await;
                    let stream = stream.map_err(|error| Silence::Unreachable(error.to_string()))?;
                    self.exchange(stream, target, path).await
                }
                _ => self.exchange(stream, target, path).await,
            }
        };
        let (status, bytes) = tokio::time::timeout(TIMEOUT, asking)
            .await
            .map_err(|_| Silence::Unreachable(format!("no answer in {} s", TIMEOUT.as_secs())))??;
        if !status.is_success() {
            let said = serde_json::from_slice::<Problem>(&bytes).map(|problem| problem.detail);
            let said = said.unwrap_or_default();
            return Err(Silence::Wrong(format!("{status} {said}").trim_end().to_owned()));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Silence::Wrong(format!("is it another version? {error}")))
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        target: &Target,
        path: &str,
    ) -> Result<(StatusCode, Bytes), Silence> {
        let wrong = |error: &dyn fmt::Display| Silence::Wrong(error.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(&error))?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(header::HOST, target.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Empty::<Bytes>::new())
            .map_err(|error| wrong(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| wrong(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER).collect().await;
        Ok((status, body.map_err(|error| wrong(&error))?.to_bytes()))
    }
}

/// TLS that trusts the authorities of a file.
fn connector(path: &Path) -> Result<TlsConnector, String> {
    let roots = tls::roots(path, &mut blake3::Hasher::new()).map_err(|found| found.message)?;
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn targets_are_names_and_urls() {
        let of = |text: &str| text.parse::<Target>().map(|one| (one.to_string(), one.tls));
        assert_eq!(of("a"), Ok(("a:8026".into(), true)));
        assert_eq!(of("a.example:9000"), Ok(("a.example:9000".into(), true)));
        assert_eq!(of("https://a/"), Ok(("a:8026".into(), true)));
        assert_eq!(of("http://127.0.0.1:80"), Ok(("127.0.0.1:80".into(), false)));
        assert_eq!(of("http://[::1]:80"), Ok(("[::1]:80".into(), false)));
        assert_eq!(of("[::1]"), Ok(("[::1]:8026".into(), true)));
        for bad in
            ["", "a:", "a:b", "a:99999", "ftp://a", "a/b", "http://", "[::1", "[::1]x", "a b"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
