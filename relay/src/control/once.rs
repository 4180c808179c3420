//! Who asks, and whether this was asked before. Changes with an `Idempotency-Key` are made once:
//! the same request again gets the first one's answer.
//!
//! Answers are kept in memory, so a restart forgets them; orders of waves say "nothing to do"
//! the second time anyway.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::time::Instant;

use super::{Control, Failure, bytes_of};
use crate::{audit::Who, http::Peer};

/// The header by which a local program says for whom it asks. Whoever can open the control
/// socket may do everything, so that is believed.
pub const BY: &str = "wavegate-by";
/// Below this path whole components come in.
const COMPONENTS: &str = "/v1/components/";
/// The header of a key, and that of an answer that was given before.
const KEY: &str = "idempotency-key";
const AGAIN: &str = "idempotency-replayed";
/// Bytes of a key.
const KEY_BYTES: usize = 255;
/// Answers that are kept, for how long, and their bytes in all and each.
const KEYS: usize = 1000;
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
const KEPT_BYTES: usize = 16 << 20;
const ANSWER_BYTES: usize = 1 << 20;

/// Answers by key.
#[derive(Default)]
pub(super) struct Once(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// What was asked under each key, and the answer once there is one. There are as many without
    /// one as requests under way, which the connections bound.
    by_key: HashMap<String, (blake3::Hash, Option<Arc<Given>>)>,
    /// The answered ones, oldest first.
    answered: VecDeque<(Instant, String)>,
    bytes: usize,
}

struct Given {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    body: Bytes,
}

/// A key whose answer is being made. Without one it is forgotten.
struct Claim {
    control: Arc<Control>,
    key: String,
}

/// Runs a request: looks who asks, reads the body, and lets a change go on to its end whatever
/// becomes of the connection.
pub(super) async fn once(
    State(control): State<Arc<Control>>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let who = who(&parts);
    parts.extensions.insert(who);
    if matches!(parts.method, Method::GET | Method::HEAD) {
        return next.run(Request::from_parts(parts, Body::empty())).await;
    }
    // As often as it is sent, the same is kept, and nothing is in force by it: no key is needed.
    if parts.method == Method::PUT && parts.uri.path().starts_with(COMPONENTS) {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let claimed = async {
        let key = key(&parts.headers)?;
        let bytes = bytes_of(body).await?;
        let claim = key.map(|key| control.once.claim(&control, key, fingerprint(&parts, &bytes)));
        Ok::<_, Failure>((claim.transpose()?, bytes))
    };
    let (claim, bytes) = match claimed.await {
        Ok((Some(Claimed::Given(given)), _)) => return given.response(),
        Ok((Some(Claimed::Mine(claim)), bytes)) => (Some(claim), bytes),
        Ok((None, bytes)) => (None, bytes),
        Err(failure) => return failure.into_response(),
    };
    let request = Request::from_parts(parts, Body::from(bytes));
    // Not with the connection: what has begun is finished, and its answer kept.
    let doing = tokio::spawn(async move {
        let response = next.run(request).await;
        match claim {
            Some(claim) => claim.keep(response).await,
            None => response,
        }
    });
    doing.await.unwrap_or_else(|_| Failure::bug().into_response())
}

/// Who asks.
fn who(parts: &Parts) -> Who {
    let peer = parts.extensions.get().copied().unwrap_or(Peer::Local(None));
    match peer {
        Peer::Remote(address) => {
            Who { by: address.ip().to_canonical().to_string(), from: format!("API, {address}") }
        }
        Peer::Local(user) => {
            let user = user.map_or("user unknown".to_owned(), |user| format!("user {user}"));
            let said = parts.headers.get(BY).and_then(|by| by.to_str().ok());
            let is_name = |name: &&str| !name.is_empty() && name.len() <= 64;
            let by = said.filter(is_name).map_or_else(|| user.clone(), str::to_owned);
            Who { by, from: format!("control socket, {user}") }
        }
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.len() <= KEY_BYTES);
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Failure::asked(format!(
            "`Idempotency-Key` is not 1 to {KEY_BYTES} ASCII characters"
        ))),
    }
}

fn fingerprint(parts: &Parts, body: &Bytes) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    // No method and no path has a line end.
    hasher.update(format!("{}\n{}\n", parts.method, parts.uri).as_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// What is known of a key.
enum Claimed {
    /// It was answered.
    Given(Arc<Given>),
    /// It is new.
    Mine(Claim),
}

impl Once {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(
        &self,
        control: &Arc<Control>,
        key: String,
        request: blake3::Hash,
    ) -> Result<Claimed, Failure> {
        let mut kept = self.lock();
        kept.forget(Instant::now());
        match kept.by_key.get(&key) {
            Some((other, _)) if *other != request => Err(Failure::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "key_reused",
                "this `Idempotency-Key` was given with another request; use a new one",
            )),
            Some((_, Some(given))) => Ok(Claimed::Given(Arc::clone(given))),
            Some((_, None)) => Err(Failure::new(
                StatusCode::CONFLICT,
                "in_progress",
                "the request of this `Idempotency-Key` is still being done; ask again",
            )),
            None => {
                kept.by_key.insert(key.clone(), (request, None));
                Ok(Claimed::Mine(Claim { control: Arc::clone(control), key }))
            }
        }
    }
}

impl Kept {
    /// Forgets what is too old, too much or too many.
    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.answered.front() {
            let fits = self.answered.len() <= KEYS && self.bytes <= KEPT_BYTES;
            if fits && now.duration_since(*at) < KEPT_FOR {
                return;
            }
            let Some((_, key)) = self.answered.pop_front() else { return };
            if let Some((_, Some(given))) = self.by_key.remove(&key) {
                self.bytes -= given.body.len();
            }
        }
    }
}

impl Claim {
    /// Keeps the answer. One that failed for the relay's own reasons is not kept: the same
    /// request is to be tried again.
    async fn keep(self, response: Response) -> Response {
        let small =
            response.body().size_hint().exact().is_some_and(|len| len <= ANSWER_BYTES as u64);
        if response.status().is_server_error() || !small {
            return response;
        }
        let (parts, body) = response.into_parts();
        let Ok(body) = to_bytes(body, ANSWER_BYTES).await else {
            return Failure::bug().into_response();
        };
        let content_type = parts.headers.get(CONTENT_TYPE).cloned();
        let given = Given { status: parts.status, content_type, body: body.clone() };
        {
            let mut kept = self.control.once.lock();
            if let Some((_, answer)) = kept.by_key.get_mut(&self.key) {
                *answer = Some(Arc::new(given));
                kept.answered.push_back((Instant::now(), self.key.clone()));
                kept.bytes += body.len();
                kept.forget(Instant::now());
            }
        }
        Response::from_parts(parts, Body::from(body))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut kept = self.control.once.lock();
        if matches!(kept.by_key.get(&self.key), Some((_, None))) {
            kept.by_key.remove(&self.key);
        }
    }
}

impl Given {
    fn response(&self) -> Response {
        let mut response = (self.status, self.body.clone()).into_response();
        let headers = response.headers_mut();
        headers.remove(CONTENT_TYPE);
        if let Some(kind) = &self.content_type {
            headers.insert(CONTENT_TYPE, kind.clone());
        }
        headers.insert(AGAIN, HeaderValue::from_static("true"));
        response
    }
}
