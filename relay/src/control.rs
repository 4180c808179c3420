//! Control over HTTP with JSON: what an operator asks of a running relay. Floor 4.
//!
//! Owns the routes below `/v1/`, the bounds of requests, and the control socket
//! `state_dir/control.sock`, which only the user of the relay (and root) can open: whoever can,
//! may do everything. Routes know nothing of the socket; `api` serves the same ones on an address.
//!
//! A change that has begun is finished though whoever asked has gone, is durable when it is
//! answered, and stands in the audit log before it begins.

mod describe;
mod links;
mod once;
mod plugins;
mod queue;
mod shadows;
mod socket;
mod waves;
pub mod wire;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post, put},
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;

pub use once::BY;
pub use plugins::{PluginRefusal, Plugins};
pub use socket::{NAME, Socket, SocketError};
pub use waves::Waves;

use self::{once::Once, wire::Problem};
use crate::{
    audit::{Audit, Begun, Intent, Who},
    http::{self, Bounds},
    relay::Relay,
    spool::SpoolError,
};

/// What the routes are, for programs: OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("control/openapi.json");

/// Operators are few; a change of a million messages takes its time.
const BOUNDS: Bounds =
    Bounds { what: "the control socket", connections: 16, timeout: Duration::from_secs(600) };
/// Bytes of a request's body: some fifty thousand ids.
const BODY: usize = 1 << 20;
/// Time for the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What all routes work with.
pub struct Control {
    relay: Arc<Relay>,
    waves: Arc<dyn Waves>,
    plugins: Option<Arc<dyn Plugins>>,
    audit: Arc<Audit>,
    once: Once,
    /// One pass over all messages at a time: it costs what mail needs.
    passing: Arc<Semaphore>,
    /// One look at all waves at a time; not behind a pass, which may take minutes.
    looking: Arc<Semaphore>,
    /// One component comes in at a time.
    uploading: Semaphore,
}

impl Control {
    /// Control of a relay whose plugins nobody changes.
    pub fn new(relay: Arc<Relay>, waves: Arc<dyn Waves>, audit: Arc<Audit>) -> Arc<Self> {
        Self::with_plugins(relay, waves, None, audit)
    }

    /// Control of a relay.
    pub fn with_plugins(
        relay: Arc<Relay>,
        waves: Arc<dyn Waves>,
        plugins: Option<Arc<dyn Plugins>>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let one = || Arc::new(Semaphore::new(1));
        let (passing, looking, once) = (one(), one(), Once::default());
        let uploading = Semaphore::new(1);
        Arc::new(Self { relay, waves, plugins, audit, once, passing, looking, uploading })
    }

    /// Writes down that something is about to be done; it is not done where that fails.
    async fn begin(
        &self,
        who: Who,
        action: &str,
        of: String,
        with: String,
        reason: &str,
    ) -> Result<Begun, Failure> {
        let audit = Arc::clone(&self.audit);
        let (action, reason) = (action.to_owned(), reason.to_owned());
        let writing = tokio::task::spawn_blocking(move || {
            let intent = Intent { action: &action, of: &of, with: &with, reason: &reason };
            audit.begin(&who, &intent).map_err(|error| {
                let path = audit.path().display();
                let text = format!(
                    "it cannot be written to the audit log {path}, so nothing was changed: {error}"
                );
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, "audit_failed", text)
            })
        });
        writing.await.map_err(|_| Failure::bug())?
    }

    /// Writes down how it ended, and answers so.
    async fn end<T>(
        &self,
        begun: Begun,
        answer: Result<T, Failure>,
        words: impl FnOnce(&T) -> String,
    ) -> Result<T, Failure> {
        let audit = Arc::clone(&self.audit);
        let said = match &answer {
            Ok(done) => Ok(words(done)),
            Err(failure) => Err(failure.detail.clone()),
        };
        let writing = tokio::task::spawn_blocking(move || {
            audit.end(begun, said.as_deref().map_err(String::as_str)).map_err(|error| {
                tracing::error!(%error, "the end of an order is not in the audit log");
                let done = said.unwrap_or_else(|refusal| refusal);
                format!("{done}; but that is not in the audit log: {error}")
            })
        });
        match writing.await.map_err(|_| Failure::bug())? {
            Ok(()) => answer,
            // A refusal changed nothing, so it is told as it is.
            Err(text) => answer.and(Err(Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "audit_incomplete",
                text,
            ))),
        }
    }
}

/// Serves the control socket until it is dropped.
pub async fn serve(socket: &Socket, control: Arc<Control>) {
    match socket.listener() {
        Ok(listener) => http::serve(listener, router(control), BOUNDS).await,
        Err(error) => tracing::error!(%error, "the control socket is not served"),
    }
}

/// A path, its methods, and what answers.
type Route = (&'static str, &'static [&'static str], MethodRouter<Arc<Control>>);

/// Where components come in. They are too large to be kept in memory as other bodies are.
const COMPONENT: &str = "/v1/components/{digest}";

/// All routes. [`OPENAPI`] describes each of them.
fn routes() -> Vec<Route> {
    vec![
        ("/v1/status", &["get"], get(waves::status)),
        ("/v1/waves", &["get"], get(waves::list)),
        ("/v1/waves/{wave}", &["get"], get(waves::show)),
        ("/v1/waves/{wave}/{order}", &["post"], post(waves::order)),
        ("/v1/freezes", &["post"], post(waves::freeze)),
        ("/v1/queue", &["get"], get(queue::list)),
        ("/v1/queue/{what}", &["get", "post"], get(queue::show).post(queue::change)),
        (
            "/v1/hold-all",
            &["get", "put", "delete"],
            get(queue::held).put(queue::hold_all).delete(queue::release_all),
        ),
        ("/v1/links", &["get"], get(links::list)),
        ("/v1/links/{upstream}/ping", &["post"], post(links::ping)),
        ("/v1/shadows", &["get"], get(shadows::list)),
        ("/v1/spool/verify", &["get"], get(queue::verify)),
        ("/v1/plugins", &["get"], get(plugins::list)),
        ("/v1/plugins/{policy}/{order}", &["post"], post(plugins::order)),
        (COMPONENT, &["put"], put(plugins::upload)),
        ("/v1/openapi.json", &["get"], get(openapi)),
    ]
}

/// The routes.
pub fn router(control: Arc<Control>) -> Router {
    let no_path =
        async || Failure::new(StatusCode::NOT_FOUND, "no_such_path", "there is no such path");
    let no_method = async || {
        let text = "this path has no such method; /v1/openapi.json says which it has";
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "no_such_method", text)
    };
    routes()
        .into_iter()
        .fold(Router::new(), |all, (path, _, route)| all.route(path, route))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&control), once::once))
        .with_state(control)
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// Why it was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

type Answer<T> = Result<Json<T>, Failure>;

struct Json<T>(T);

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    fn asked(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", detail)
    }

    fn bug() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "the relay has a bug here")
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        let text = format!("in force, but not written to the disk yet, so ask again: {error}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_written_yet", text)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, code, detail } = self;
        let problem = Problem {
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail,
        };
        // RFC 9457 section 3.
        let kind = [(CONTENT_TYPE, "application/problem+json")];
        (status, kind, serde_json::to_vec(&problem).unwrap_or_default()).into_response()
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written as JSON");
                Failure::bug().into_response()
            }
        }
    }
}

/// The bytes of a request's body.
async fn bytes_of(body: Body) -> Result<Bytes, Failure> {
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let text = format!("the body cannot be read, or has more than {BODY} bytes: {error}");
            Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text))
        }
        Err(_) => {
            let text = "the body came too slowly";
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "too_slow", text))
        }
    }
}

/// What a body says.
fn asked<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::asked(format!("the body: {error}")))
}

fn checked_reason(reason: &str) -> Result<&str, Failure> {
    match reason.trim() {
        "" => Err(Failure::asked("`reason` is empty; say why, for those who come after")),
        reason if reason.len() > wire::REASON => {
            Err(Failure::asked(format!("`reason` has more than {} bytes", wire::REASON)))
        }
        reason => Ok(reason),
    }
}

#[cfg(test)]
mod tests;
