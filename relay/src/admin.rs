//! The HTTP address for monitors: `/metrics`, `/livez`, `/readyz`, and the page to watch a migration
//! on. It controls nothing. Floor 4.
//!
//! `/livez` is 200 as long as the process answers. `/readyz` is 200 when clients may connect:
//! every listener of the configuration is bound and the relay is not stopping; else 503 with the
//! reasons, one a line. An upstream whose targets are all down is told in the text and leaves
//! the relay ready: its clients get `451` with the reason, mail for other upstreams goes on, and
//! as every relay sees the same upstream, a balancer that believed otherwise would have none left.
//! All pages are served until the process ends, so also while the last sessions drain.
//!
//! Nobody is trusted here: a connection carries one request, and its number, its time and its
//! header are bounded.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    conductor::status::Source,
    http::{self, Bounds},
    page,
    relay::Relay,
    telemetry::Telemetry,
};

/// Monitors are few, and no scrape should take as long.
const BOUNDS: Bounds =
    Bounds { what: "the admin address", connections: 64, timeout: Duration::from_secs(30) };

#[derive(Clone)]
struct Shared {
    relay: Arc<Relay>,
    telemetry: Arc<Telemetry>,
    /// One scrape is put together at a time: it costs processor time that mail needs.
    rendering: Arc<Semaphore>,
}

/// Serves the admin address until it is dropped. Requests that are being answered then are cut.
pub async fn serve(
    listener: TcpListener,
    relay: Arc<Relay>,
    telemetry: Arc<Telemetry>,
    status: Source,
) {
    let rendering = Arc::new(Semaphore::new(1));
    let router = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { relay, telemetry, rendering })
        .merge(page::router(status));
    http::serve(listener, router, BOUNDS).await;
}

async fn metrics(State(shared): State<Shared>) -> axum::response::Response {
    let Shared { relay, telemetry, rendering } = shared;
    let text = match rendering.acquire_owned().await {
        // The permit goes along: a client that leaves does not end the work.
        Ok(permit) => {
            let render = move || {
                let text = telemetry.render(&relay);
                drop(permit);
                text
            };
            tokio::task::spawn_blocking(render).await.ok()
        }
        Err(_) => None,
    };
    match text {
        Some(text) => ([(CONTENT_TYPE, Telemetry::CONTENT_TYPE)], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    let Shared { relay, telemetry, .. } = shared;
    let generation = relay.generation();
    let mut text = String::new();
    if relay.is_stopping() {
        text.push_str("the relay is stopping\n");
    }
    for listener in &generation.config.listeners {
        if !telemetry.is_listening(&listener.name) {
            text.push_str(&format!("listener {} is not bound\n", listener.name));
        }
    }
    let status = if text.is_empty() {
        text.push_str("ready\n");
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    for upstream in &generation.config.upstreams {
        if generation.upstream(&upstream.name).is_some_and(|upstream| upstream.is_down()) {
            let name = &upstream.name;
            text.push_str(&format!("note: every target of upstream {name} is down\n"));
        }
    }
    (status, text)
}
