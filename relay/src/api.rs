//! Control on an address: the routes of `control`, for other hosts and for programs. Floor 4.
//!
//! Owns who may come in: a bearer token, and TLS where it is configured. Without the token
//! nothing is answered, a look neither. Token and certificate are read again at each reload, so
//! that both can be renewed while the relay runs.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::{ApiConfig, Diagnostic, Diagnostics, TlsFiles},
    control::{self, Control, Failure},
    http::{self, Bounds, Incoming, Peer},
    tls,
    world::BoxFuture,
};

/// Programs and other hosts are few; a change of a million messages takes its time.
const BOUNDS: Bounds =
    Bounds { what: "the API address", connections: 64, timeout: Duration::from_secs(600) };
/// Characters of a token: fewer could be guessed, more are a mistake.
const TOKEN: std::ops::RangeInclusive<usize> = 32..=4096;

/// What lets clients in.
pub struct Keys {
    /// Compared instead of the token itself: comparing hashes takes the same time whatever is
    /// given, and they all have one length.
    token: blake3::Hash,
    tls: Option<TlsAcceptor>,
}

/// The keys in force.
pub struct Doors {
    keys: ArcSwap<Keys>,
    /// Requests without the token.
    turned_away: AtomicU64,
}

impl Keys {
    /// Reads the files of a configuration; all that is wrong with them.
    pub fn load(config: &ApiConfig) -> Result<Self, Diagnostics> {
        let mut wrong = Vec::new();
        let token = token(&config.token_file).map_err(|one| wrong.push(one)).ok();
        let tls = match &config.tls {
            None => None,
            Some(files) => acceptor(files).map_err(|one| wrong.push(one)).ok(),
        };
        match token {
            Some(token) if wrong.is_empty() => Ok(Self { token, tls }),
            _ => Err(Diagnostics(wrong)),
        }
    }
}

impl Doors {
    /// With the first keys.
    pub fn new(keys: Keys) -> Arc<Self> {
        Arc::new(Self { keys: ArcSwap::from_pointee(keys), turned_away: AtomicU64::new(0) })
    }

    /// From now on others; connections that are open go on.
    pub fn change(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    /// Why a request may not come in (RFC 6750 section 3).
    fn refusal(&self, headers: &HeaderMap) -> Option<&'static str> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return Some("Bearer realm=\"wavegate\"");
        };
        let token = value.as_bytes().split_at_checked(7).filter(|(scheme, _)| {
            // The scheme is in any case (RFC 9110 section 11.1).
            scheme.eq_ignore_ascii_case(b"bearer ")
        });
        // Equality of hashes takes constant time.
        match token {
            Some((_, token)) if blake3::hash(token) == self.keys.load().token => None,
            _ => Some("Bearer realm=\"wavegate\", error=\"invalid_token\""),
        }
    }
}

fn token(path: &Path) -> Result<blake3::Hash, Diagnostic> {
    let bytes = tls::secret(path, "the token")?;
    let token = bytes.trim_ascii();
    let (least, most) = (TOKEN.start(), TOKEN.end());
    if !TOKEN.contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        let text = format!(
            "the token is not {least} to {most} ASCII characters without spaces; make one with \
             `openssl rand -hex 32`"
        );
        return Err(Diagnostic::of_file(path.display(), text));
    }
    Ok(blake3::hash(token))
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, Diagnostic> {
    let mut config = tls::single(files)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves the API until it is dropped.
pub async fn serve(listener: TcpListener, doors: Arc<Doors>, control: Arc<Control>) {
    let state = Arc::clone(&doors);
    let router = control::router(control).layer(middleware::from_fn_with_state(state, let_in));
    http::serve(Secured { listener, doors }, router, BOUNDS).await;
}

/// Nobody comes further without the token.
async fn let_in(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    let Some(challenge) = doors.refusal(request.headers()) else {
        return next.run(request).await;
    };
    let times = doors.turned_away.fetch_add(1, Relaxed) + 1;
    // A flood of them is no flood of lines.
    if times.is_power_of_two() {
        let peer = request.extensions().get::<Peer>();
        tracing::warn!(?peer, times, "a request to the API had not the token");
    }
    let text = "give the token: `Authorization: Bearer TOKEN`";
    let failure = Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", text);
    let mut response = failure.into_response();
    let challenge = HeaderValue::from_static(challenge);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// Bytes in and out, in the clear or not.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

struct Secured {
    listener: TcpListener,
    doors: Arc<Doors>,
}

impl Incoming for Secured {
    type Stream = Box<dyn Wire>;
    type Opening = BoxFuture<'static, io::Result<Box<dyn Wire>>>;

    async fn next(&self) -> io::Result<(Self::Opening, Peer)> {
        let (stream, address) = self.listener.accept().await?;
        let tls = self.doors.keys.load().tls.clone();
        let opening = async move {
            Ok(match tls {
                Some(tls) => Box::new(tls.accept(stream).await?) as Box<dyn Wire>,
                None => Box::new(stream),
            })
        };
        Ok((Box::pin(opening), Peer::Remote(address)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn file(directory: &Path, text: &str, mode: u32) -> std::path::PathBuf {
        let path = directory.join("api.token");
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_token_is_long_enough_and_not_open_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let load = |text: &str, mode| {
            token(&file(directory.path(), text, mode)).map_err(|found| found.to_string())
        };
        for (text, mode) in [(GOOD, 0o600), (&format!("{GOOD}\n"), 0o640), (GOOD, 0o400)] {
            assert_eq!(load(text, mode), Ok(blake3::hash(GOOD.as_bytes())));
        }
        let of_4096 = "x".repeat(4096);
        assert!(load(&of_4096, 0o600).is_ok());
        for text in
            [&GOOD[1..], "", &format!("{of_4096}x"), &format!("{GOOD} x"), "ü".repeat(32).as_str()]
        {
            let said = load(text, 0o600).unwrap_err();
            assert!(said.contains("32 to 4096 ASCII") && said.contains("openssl rand"), "{said}");
        }
        for mode in [0o604, 0o644, 0o660, 0o602, 0o601] {
            let said = load(GOOD, mode).unwrap_err();
            assert!(said.contains(&format!("mode {mode:o}")), "{said}");
        }
        assert!(token(directory.path()).unwrap_err().to_string().contains("not a regular file"));
        assert!(token(&directory.path().join("none")).is_err());
    }

    #[test]
    fn only_one_whole_token_opens() {
        let keys = |token: &str| Keys { token: blake3::hash(token.as_bytes()), tls: None };
        let doors = Doors::new(keys(GOOD));
        let asked = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            doors.refusal(&headers)
        };
        let good = format!("Bearer {GOOD}");
        assert_eq!(asked(&[&good]), None);
        assert_eq!(asked(&[&format!("bEARER {GOOD}")]), None);
        assert!(asked(&[]).is_some_and(|challenge| !challenge.contains("error")));
        assert!(asked(&[&good, &good]).is_some());
        for wrong in
            [&good[..good.len() - 1], &format!("{good}0"), GOOD, "Bearer ", "Bearer", "Basic x"]
        {
            assert!(asked(&[wrong]).is_some_and(|one| one.contains("invalid_token")), "{wrong}");
        }
        doors.change(keys("another"));
        assert!(asked(&[&good]).is_some());
        assert_eq!(asked(&["Bearer another"]), None);
    }
}
