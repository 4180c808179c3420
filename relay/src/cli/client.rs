//! The other side of the control socket: asks a running relay. Floor 4.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{Failed, exit, plan::login_name};
use crate::{
    config,
    control::{self, wire::Problem},
};

/// Longer than the relay takes for anything.
const TIMEOUT: Duration = Duration::from_secs(620);

/// Where the relay is asked.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Where {
    /// The configuration of the relay, which names its state directory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket itself.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Where {
    fn path(&self) -> Result<PathBuf, Failed> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(socket_of(&read(file)?)),
            (None, None) => Err(Failed::new(exit::USAGE, "give --config or --socket")),
        }
    }

    /// Asks for something.
    pub(super) fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failed> {
        ask(&self.path()?, Method::GET, path, Vec::new())
    }

    /// Sends what is no JSON.
    pub(super) fn put<A: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<A, Failed> {
        ask(&self.path()?, Method::PUT, path, body)
    }

    /// Asks for a change.
    pub(super) fn send<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, Failed> {
        let body = serde_json::to_vec(body);
        let body = body.map_err(|error| Failed::new(exit::SOFTWARE, error.to_string()))?;
        ask(&self.path()?, method, path, body)
    }
}

/// A configuration, for its places on disk.
pub(super) fn read(file: &Path) -> Result<config::Config, Failed> {
    config::read(file)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))
}

/// The control socket of the relay of a configuration.
pub(super) fn socket_of(config: &config::Config) -> PathBuf {
    config.relay.state_dir.join(control::NAME)
}

/// Asks the relay on a socket.
pub(super) fn ask<A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<A, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed::new(exit::OS, error.to_string()))?;
    let asking =
        async { tokio::time::timeout(TIMEOUT, exchange(socket, method, path, body)).await };
    let (status, bytes) = match runtime.block_on(asking) {
        Ok(answer) => answer?,
        Err(_) => return Err(broken(socket, "no answer in time")),
    };
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|error| {
            let error =
                format!("the relay's answer is not understood, is it another version? {error}");
            Failed::new(exit::SOFTWARE, error)
        });
    }
    let said = match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => problem.detail,
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    };
    let code = match status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => exit::USAGE,
        StatusCode::NOT_FOUND => exit::NO_INPUT,
        StatusCode::UNPROCESSABLE_ENTITY => exit::DATA,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT => {
            exit::TEMPORARY
        }
        _ => exit::SOFTWARE,
    };
    Err(Failed::new(code, said))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Failed> {
    let stream = UnixStream::connect(socket).await.map_err(|error| silent(socket, &error))?;
    let cut = |error: hyper::Error| broken(socket, &error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "wavegate");
    let request = request.header(control::BY, login_name());
    let request = request.body(Full::new(Bytes::from(body)));
    let request = request.map_err(|error| Failed::new(exit::USAGE, error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(cut)?;
    let status = answer.status();
    let bytes = answer.into_body().collect().await.map_err(cut)?.to_bytes();
    Ok((status, bytes))
}

fn silent(socket: &Path, error: &io::Error) -> Failed {
    let path = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failed::new(
            exit::PERMISSION,
            format!("{path} may not be opened: run this as the user of the relay, or as root"),
        ),
        _ => Failed::new(
            exit::UNAVAILABLE,
            format!(
                "no relay answers on {path} ({error}): is it running, with this configuration? \
                 Start it with `wavegate run`, or name its socket with --socket"
            ),
        ),
    }
}

fn broken(socket: &Path, why: &str) -> Failed {
    let path = socket.display();
    let said = format!(
        "the relay on {path} did not answer to the end ({why}); what was asked may be done"
    );
    Failed::new(exit::TEMPORARY, said)
}
