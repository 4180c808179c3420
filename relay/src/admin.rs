//! The HTTP address for monitors: `/metrics`, `/livez`, `/readyz`. It controls nothing. Floor 4.
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

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use crate::{relay::Relay, telemetry::Telemetry};

/// Connections at once; further ones wait in the kernel's queue. Monitors are few.
const CONNECTIONS: usize = 64;
/// Time for the whole header of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the whole connection: longer than any scrape should take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's header, and lines in it.
const HEADER_BYTES: usize = 8 * 1024;
const HEADER_LINES: usize = 64;
/// Pause when no connection can be taken, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const INDEX: &str = "wavegate\n\n/metrics  figures for Prometheus\n/livez    whether the process \
                     answers\n/readyz   whether clients may connect, and what is wrong\n";

#[derive(Clone)]
struct Shared {
    relay: Arc<Relay>,
    telemetry: Arc<Telemetry>,
    /// One scrape is put together at a time: it costs processor time that mail needs.
    rendering: Arc<Semaphore>,
}

/// Serves the admin address until it is dropped. Requests that are being answered then are cut.
pub async fn serve(listener: TcpListener, relay: Arc<Relay>, telemetry: Arc<Telemetry>) {
    let rendering = Arc::new(Semaphore::new(1));
    let router = Router::new()
        .route("/", get(async || INDEX))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { relay, telemetry, rendering });
    accept(listener, router).await;
}

async fn accept(listener: TcpListener, router: Router) {
    // Dropped with this future, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, router.clone()));
            }
            Err(error) => {
                if is_of_the_process(&error) {
                    tracing::warn!(%error, "the admin address cannot take a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether accepting failed for a reason that is not one client's.
fn is_of_the_process(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    !matches!(error.kind(), ConnectionAborted | ConnectionReset)
}

/// One request.
async fn connection(stream: TcpStream, router: Router) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADER_LINES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(TIMEOUT, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request to the admin address failed"),
        Err(_) => tracing::debug!("a request to the admin address took too long"),
    }
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
