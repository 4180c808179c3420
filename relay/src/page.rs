//! The page to watch a migration on: `/`, one file (`page/index.html`) for any browser, and
//! `/status.json`, which it asks for every two seconds. Floor 4.
//!
//! Owns what these two answer and the headers that keep the page to itself; what is told is
//! [`Status`](crate::conductor::status::Status), and where it is served is the caller's: the paths
//! in the page are relative. Read-only: nothing here changes anything.
//!
//! The page holds what others named, so it trusts nothing that it shows: text is put in as text,
//! and the policy below lets no script run but its own, asks nobody else for anything, and takes
//! from the script every way to turn text into markup.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{
        StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::Semaphore;

use crate::conductor::status::Source;

#[cfg(test)]
mod tests;

const PAGE: &str = include_str!("page/index.html");

/// The hashes are those of the style and the script in the page: whoever changes it changes them,
/// and a test says what they are. Only the page's own origin may frame it.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-/BdMJ7q+icSKj+Icn3URX8wy/5SmEXQEh1moe4am1BI='; \
    style-src 'sha256-aqZCFbz+5GfxU8lO789gC6ftJ3gKvzP905ioroP5M3w='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types 'none'";

#[derive(Clone)]
struct Shared {
    source: Source,
    /// One look at a time: it costs processor time that mail needs.
    looking: Arc<Semaphore>,
}

/// `GET /` and `GET /status.json`, for an address that anybody may read.
pub fn router(source: Source) -> Router {
    let looking = Arc::new(Semaphore::new(1));
    Router::new()
        .route("/", get(page))
        .route("/status.json", get(status))
        .with_state(Shared { source, looking })
}

async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The next version's page belongs to the next version's status.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

async fn status(State(shared): State<Shared>) -> Response {
    let Shared { source, looking } = shared;
    let Ok(permit) = looking.acquire_owned().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    // The permit goes along: a client that leaves does not end the work.
    let look = move || {
        let told = serde_json::to_vec(&source());
        drop(permit);
        told
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(told)) => {
            let headers = [
                (CONTENT_TYPE, "application/json"),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (CACHE_CONTROL, "no-store"),
            ];
            (headers, told).into_response()
        }
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
