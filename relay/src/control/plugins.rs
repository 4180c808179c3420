//! Plugins: what is in force, what is brought, and going back.

use std::{io::Write as _, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::{
    Answer, BODY_TIMEOUT, Control, Failure, Json, asked, checked_reason,
    wire::{Install, Installed, PluginList, RollBack, Uploaded},
};
use crate::{audit::Who, policy::MAX_COMPONENT, world::BoxFuture};

/// Pieces of an upload that wait for the disk.
const PIECES: usize = 16;
/// Bytes of the name of a file that is only told.
const NAME: usize = 255;

/// Who has the plugins, as far as control needs to know.
pub trait Plugins: Send + Sync {
    /// All there is to be seen.
    fn list(&self) -> PluginList;
    /// A file for a component that is about to come. Blocks.
    fn upload(&self) -> Result<NamedTempFile, PluginRefusal>;
    /// Keeps a component that has come, and is the one of this digest. Blocks.
    fn keep(&self, upload: NamedTempFile, digest: &str) -> Result<(), PluginRefusal>;
    /// Installs a component that was kept.
    fn install(
        &self,
        policy: String,
        asked: Install,
        who: Who,
    ) -> BoxFuture<'_, Result<Installed, PluginRefusal>>;
    /// Goes back to what was in force before.
    fn roll_back(
        &self,
        policy: String,
        asked: RollBack,
        who: Who,
    ) -> BoxFuture<'_, Result<Installed, PluginRefusal>>;
}

/// Why an order about plugins was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginRefusal {
    /// There is no such policy.
    #[error("{0}")]
    NoPolicy(String),
    /// The component was not uploaded.
    #[error("{0}")]
    NoComponent(String),
    /// Something is wrong with the plugin, and what would be right.
    #[error("{0}")]
    Wrong(String),
    /// Not now.
    #[error("{0}")]
    NotNow(String),
    /// It cannot be written down.
    #[error("it cannot be written down, so nothing was changed: {0}")]
    NotKept(String),
    /// It was done, or is wanted, and is not in force.
    #[error("what should be in force cannot be loaded, and is tried again: {0}")]
    Broken(String),
}

impl From<PluginRefusal> for Failure {
    fn from(refused: PluginRefusal) -> Self {
        let (status, code) = match &refused {
            PluginRefusal::NoPolicy(_) => (StatusCode::NOT_FOUND, "no_such_policy"),
            PluginRefusal::NoComponent(_) => (StatusCode::NOT_FOUND, "no_such_component"),
            PluginRefusal::Wrong(_) => (StatusCode::UNPROCESSABLE_ENTITY, "plugin_refused"),
            PluginRefusal::NotNow(_) => (StatusCode::CONFLICT, "not_now"),
            PluginRefusal::NotKept(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_written"),
            PluginRefusal::Broken(_) => (StatusCode::INTERNAL_SERVER_ERROR, "not_in_force"),
        };
        Self::new(status, code, refused.to_string())
    }
}

fn plugins(control: &Control) -> Result<&Arc<dyn Plugins>, Failure> {
    control.plugins.as_ref().ok_or_else(|| {
        let text = "this relay has no plugins that could be changed";
        Failure::new(StatusCode::NOT_FOUND, "no_plugins", text)
    })
}

pub(super) async fn list(State(control): State<Arc<Control>>) -> Answer<PluginList> {
    Ok(Json(plugins(&control)?.list()))
}

/// Takes a component. It is not in force by that, and goes when room is needed.
pub(super) async fn upload(
    State(control): State<Arc<Control>>,
    Path(digest): Path<String>,
    body: Body,
) -> Answer<Uploaded> {
    let digest = checked_digest(&digest)?.to_owned();
    let plugins = Arc::clone(plugins(&control)?);
    // One at a time: each may fill what is kept.
    let _one = control.uploading.acquire().await.map_err(|_| Failure::bug())?;
    let (pieces, inbox) = mpsc::channel(PIECES);
    let wanted = digest.clone();
    let writing = tokio::task::spawn_blocking(move || write(plugins.as_ref(), inbox, &wanted));
    let read = read(body, &pieces).await;
    if read.is_ok() {
        // That was all; without this word the rest is not kept.
        let _ = pieces.send(Piece::End).await;
    }
    drop(pieces);
    let written = writing.await.map_err(|_| Failure::bug())?;
    read?;
    written.map(|size| Json(Uploaded { digest, size }))
}

enum Piece {
    More(Bytes),
    End,
}

async fn read(mut body: Body, pieces: &mpsc::Sender<Piece>) -> Result<(), Failure> {
    let mut size = 0u64;
    loop {
        let frame = tokio::time::timeout(BODY_TIMEOUT, body.frame()).await.map_err(|_| {
            Failure::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body came too slowly")
        })?;
        let Some(frame) = frame else { return Ok(()) };
        let frame =
            frame.map_err(|error| Failure::asked(format!("the body cannot be read: {error}")))?;
        let Ok(bytes) = frame.into_data() else { continue };
        size += bytes.len() as u64;
        if size > MAX_COMPONENT {
            let text = format!(
                "a component has at most {} MiB: build it for size, without debug information",
                MAX_COMPONENT / 1024 / 1024
            );
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text));
        }
        // Who writes may have found the disk full: he says so.
        if pieces.send(Piece::More(bytes)).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes what comes. What was cut short is not kept.
fn write(
    plugins: &dyn Plugins,
    mut inbox: mpsc::Receiver<Piece>,
    digest: &str,
) -> Result<u64, Failure> {
    let mut file = plugins.upload()?;
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    loop {
        match inbox.blocking_recv() {
            Some(Piece::More(bytes)) => {
                file.write_all(&bytes)
                    .map_err(|error| PluginRefusal::NotKept(error.to_string()))?;
                hasher.update(&bytes);
                size += bytes.len() as u64;
            }
            Some(Piece::End) => break,
            None => return Err(Failure::asked("the body was cut short")),
        }
    }
    let found = hasher.finalize().to_hex();
    if found.as_str() != digest {
        let text = format!("what came has the BLAKE3 {found}, and not {digest}: send it again");
        return Err(Failure::asked(text));
    }
    plugins.keep(file, digest)?;
    Ok(size)
}

pub(super) async fn order(
    State(control): State<Arc<Control>>,
    Extension(who): Extension<Who>,
    Path((policy, action)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Installed> {
    match &*action {
        "install" => install(&control, who, policy, asked(&body)?).await,
        "rollback" => roll_back(&control, who, policy, asked(&body)?).await,
        _ => {
            let text = "no such order; there are install and rollback";
            Err(Failure::new(StatusCode::NOT_FOUND, "no_such_path", text))
        }
    }
}

async fn install(
    control: &Control,
    who: Who,
    policy: String,
    mut asked: Install,
) -> Answer<Installed> {
    asked.reason = checked_reason(&asked.reason)?.to_owned();
    checked_digest(&asked.digest)?;
    let named = |name: &String| name.len() <= NAME && !name.chars().any(char::is_control);
    if !asked.file.as_ref().is_none_or(named) {
        return Err(Failure::asked(format!("`file` is not one line of at most {NAME} bytes")));
    }
    if asked.bounds.shadow_calls == 0 {
        return Err(Failure::asked("`shadow_calls` is 0; leave the step out with `skip`"));
    }
    let plugins = Arc::clone(plugins(control)?);
    if asked.dry_run {
        return Ok(Json(plugins.install(policy, asked, who).await?));
    }
    let skipped: Vec<&str> = asked.skip.iter().map(|skip| skip.as_str()).collect();
    let without = if skipped.is_empty() { String::new() } else { " without ".to_owned() };
    let with = format!("{}{without}{}", asked.digest, skipped.join(", "));
    let reason = asked.reason.clone();
    let begun = control.begin(who.clone(), "plugin install", policy.clone(), with, &reason).await?;
    let answer = plugins.install(policy, asked, who).await.map_err(Failure::from);
    control.end(begun, answer, |done| done.what.clone()).await.map(Json)
}

async fn roll_back(
    control: &Control,
    who: Who,
    policy: String,
    mut asked: RollBack,
) -> Answer<Installed> {
    asked.reason = checked_reason(&asked.reason)?.to_owned();
    let plugins = Arc::clone(plugins(control)?);
    if asked.dry_run {
        return Ok(Json(plugins.roll_back(policy, asked, who).await?));
    }
    let (of, reason) = (policy.clone(), asked.reason.clone());
    let begun = control.begin(who.clone(), "plugin rollback", of, String::new(), &reason).await?;
    let answer = plugins.roll_back(policy, asked, who).await.map_err(Failure::from);
    control.end(begun, answer, |done| done.what.clone()).await.map(Json)
}

/// It becomes the name of a file.
fn checked_digest(text: &str) -> Result<&str, Failure> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() == 64 && text.bytes().all(is_hex) {
        true => Ok(text),
        false => Err(Failure::asked("the digest is not a BLAKE3 hash: 64 hexadecimal digits")),
    }
}
