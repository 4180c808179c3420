//! Queue control over HTTP with JSON: what an operator asks of a running relay. Floor 4.
//!
//! Owns the routes below `/v1/`, the bounds of requests, and the control socket
//! `state_dir/control.sock`, which only the user of the relay (and root) can open: whoever can,
//! may do everything. Routes know nothing of the socket, so that another address can serve them.
//!
//! A change that has begun is finished though whoever asked has gone, and is durable when it is
//! answered.

mod describe;
mod socket;
pub mod wire;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, task::JoinSet};

pub use socket::{NAME, Socket, SocketError};

use self::wire::{Change, Changed, HoldAll, List, Problem, Refused, Show, Verified, Why};
use crate::{
    delivery::keeper,
    event::Event,
    http::{self, Bounds},
    message::MessageId,
    queue::{Act, Applied, Match, Refusal, Selection},
    relay::Relay,
    spool::SpoolError,
};

/// Operators are few; a change of a million messages takes its time.
const BOUNDS: Bounds =
    Bounds { what: "the control socket", connections: 16, timeout: Duration::from_secs(600) };
/// Bytes of a request's body: some fifty thousand ids.
const BODY: usize = 1 << 20;
/// Time for the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounces written at once: they share syncs.
const BOUNCES: usize = 64;

#[derive(Clone)]
struct Shared {
    relay: Arc<Relay>,
    /// One pass over all messages at a time: it costs what mail needs.
    passing: Arc<Semaphore>,
}

/// Serves the control socket until it is dropped.
pub async fn serve(socket: &Socket, relay: Arc<Relay>) {
    match socket.listener() {
        Ok(listener) => http::serve(listener, router(relay), BOUNDS).await,
        Err(error) => tracing::error!(%error, "the control socket is not served"),
    }
}

/// The routes.
pub fn router(relay: Arc<Relay>) -> Router {
    let shared = Shared { relay, passing: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/v1/queue", get(list))
        .route("/v1/queue/{what}", get(show).merge(post(change)))
        .route("/v1/hold-all", get(held).put(hold_all).delete(release_all))
        .route("/v1/spool/verify", get(verify))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "no such path"))
        .with_state(shared)
}

/// Why it was not done.
struct Failure {
    status: StatusCode,
    error: String,
}

type Answer<T> = Result<Json<T>, Failure>;

struct Json<T>(T);

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    fn asked(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        let error = format!("in force, but not written to the disk yet, so ask again: {error}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(Problem { error: self.error })).into_response()
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// The body of a request.
async fn asked<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let reading = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY));
    let bytes = match reading.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let error = format!("the body cannot be read, or has more than {BODY} bytes: {error}");
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
        Err(_) => {
            return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| Failure::asked(format!("the body: {error}")))
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

/// A selection and a limit from a query.
fn query(text: &str) -> Result<(Selection, usize), Failure> {
    let mut selection = Selection::default();
    let mut limit = wire::LIST_DEFAULT;
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let wrong = |why: String| Failure::asked(format!("{name}={value}: {why}"));
        match &*name {
            "id" => selection.ids.push(value.parse().map_err(|error| wrong(format!("{error}")))?),
            "instance" => selection.instances.push(value.into()),
            "upstream" => selection.upstreams.push(value.into()),
            "domain" => selection.domains.push(value.into()),
            "sender" => selection.senders.push(value.into()),
            "state" => selection.states.push(value.parse().map_err(wrong)?),
            "limit" => {
                let most = wire::LIST_MOST;
                let parsed = value.parse().ok().filter(|limit| *limit <= most);
                limit = parsed.ok_or_else(|| wrong(format!("not a number up to {most}")))?;
            }
            _ => return Err(Failure::asked(format!("no such criterion: {name}"))),
        }
    }
    Ok((selection, limit))
}

/// Does what may block, one at a time.
async fn passing<T: Send + 'static>(
    shared: &Shared,
    pass: impl FnOnce(&Arc<Relay>) -> T + Send + 'static,
) -> Result<T, Failure> {
    let broken = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the relay has a bug here");
    let permit = Arc::clone(&shared.passing).acquire_owned().await.map_err(|_| broken())?;
    let relay = Arc::clone(&shared.relay);
    // The permit goes along: a client that leaves does not end the work.
    let pass = move || {
        let done = pass(&relay);
        drop(permit);
        done
    };
    tokio::task::spawn_blocking(pass).await.map_err(|_| broken())
}

fn all_held(relay: &Relay) -> Option<String> {
    relay.queue.all_held().as_deref().map(str::to_owned)
}

async fn list(State(shared): State<Shared>, RawQuery(text): RawQuery) -> Answer<List> {
    let (selection, limit) = query(&text.unwrap_or_default())?;
    let list = passing(&shared, move |relay| {
        let listing = relay.queue.list(&selection, limit);
        let item = |one: &Match| {
            let progress = relay.queue.progress(one.slot, one.handle);
            describe::item(relay, one, progress.as_ref())
        };
        List {
            messages: listing.found.messages,
            recipients: listing.found.recipients,
            unreadable: listing.unreadable,
            all_held: all_held(relay),
            oldest: listing.oldest.iter().map(item).collect(),
        }
    });
    list.await.map(Json)
}

async fn show(State(shared): State<Shared>, Path(id): Path<String>) -> Answer<Show> {
    let id: MessageId = id.parse().map_err(|error| Failure::asked(format!("{id}: {error}")))?;
    let shown = passing(&shared, move |relay| {
        let selection = Selection { ids: vec![id], ..Selection::default() };
        let one = relay.queue.list(&selection, 1).oldest.pop()?;
        let progress = relay.queue.progress(one.slot, one.handle)?;
        let mut shown = describe::show(relay, &one, &progress);
        if one.envelope.is_none() {
            let error = relay.queue.spool().load(one.handle).err();
            shown.unreadable = Some(error.map_or_else(|| "-".to_owned(), |one| one.to_string()));
        }
        Some(shown)
    });
    let gone =
        || Failure::new(StatusCode::NOT_FOUND, format!("{id}: {}", Refusal::Unknown.as_str()));
    shown.await?.map(Json).ok_or_else(gone)
}

async fn change(
    State(shared): State<Shared>,
    Path(action): Path<String>,
    body: Body,
) -> Answer<Changed> {
    const ACTIONS: [&str; 5] = ["hold", "release", "retry", "remove", "bounce"];
    let action = ACTIONS.into_iter().find(|one| *one == action);
    let action = action.ok_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, format!("no such change; there are {ACTIONS:?}"))
    })?;
    let mut change: Change = asked(body).await?;
    change.reason = checked_reason(&change.reason)?.to_owned();
    match (change.selection.is_all(), change.all) {
        (true, false) => {
            return Err(Failure::asked(
                "no message is selected; `all` has to be true where all are meant",
            ));
        }
        (false, true) => {
            return Err(Failure::asked("`all` is true and there is a selection: which is meant?"));
        }
        _ => {}
    }
    // Not with the connection: what has begun is finished.
    let changing = tokio::spawn(make_change(shared, action, change));
    match changing.await {
        Ok(answer) => answer.map(Json),
        Err(_) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the relay has a bug here")),
    }
}

async fn make_change(
    shared: Shared,
    action: &'static str,
    change: Change,
) -> Result<Changed, Failure> {
    let Change { selection, reason, dry_run, .. } = change;
    let (wanted, why) = (selection.clone(), reason.clone());
    let (found, mut applied, unreadable) = passing(&shared, move |relay| {
        let act = match action {
            "hold" => Act::Hold(&why),
            "release" => Act::Release(keeper::pace(&relay.look().config)),
            "retry" => Act::Retry,
            "remove" => Act::Remove,
            _ => Act::Bounce,
        };
        let mut found = Vec::new();
        let unreadable = relay.queue.search(&wanted, |more| {
            // Bodies of envelopes are not needed any more.
            found.extend(more.into_iter().map(|one| Match { envelope: None, ..one }));
        });
        found.sort_by_key(|one| one.entry.id);
        let only_asked = dry_run || matches!(act, Act::Bounce);
        let applied = relay.queue.apply(&found, act, only_asked);
        (found, applied, unreadable)
    })
    .await?;
    let relay = &shared.relay;
    if action == "bounce" && !dry_run {
        bounce(relay, found, &reason, &mut applied).await;
    }
    note_unknown(&selection, &mut applied);
    let answer = answer(relay, action, dry_run, &applied, unreadable);
    if !dry_run {
        relay.emit(&Event::Operator {
            action,
            reason: &reason,
            selection: &selection.to_string(),
            messages: answer.messages,
            recipients: answer.recipients,
            refused: applied.refused.len() as u64,
            ids: &answer.ids,
        });
        relay.queue.written().await?;
    }
    Ok(answer)
}

/// What was named and not found is refused, in the order in which it was named.
fn note_unknown(selection: &Selection, applied: &mut Applied) {
    let changed = applied.changed.iter().map(|(id, _)| *id);
    let refused = applied.refused.iter().map(|(id, _)| *id);
    let mut known: HashSet<MessageId> = changed.chain(refused).collect();
    for id in &selection.ids {
        if known.insert(*id) {
            applied.refused.push((*id, Refusal::Unknown));
        }
    }
}

/// Ends messages with a word to their senders, some at a time.
async fn bounce(relay: &Arc<Relay>, found: Vec<Match>, reason: &str, applied: &mut Applied) {
    let reason: Arc<str> = reason.into();
    let wanted: HashMap<MessageId, u32> = applied.changed.drain(..).collect();
    let mut bouncing = JoinSet::new();
    let note = |applied: &mut Applied, (id, refusal): (MessageId, Option<Refusal>)| match refusal {
        None => applied.changed.push((id, wanted.get(&id).copied().unwrap_or(0))),
        Some(refusal) => applied.refused.push((id, refusal)),
    };
    for one in found.into_iter().filter(|one| wanted.contains_key(&one.entry.id)) {
        if bouncing.len() >= BOUNCES
            && let Some(Ok(done)) = bouncing.join_next().await
        {
            note(applied, done);
        }
        let (relay, reason) = (Arc::clone(relay), Arc::clone(&reason));
        bouncing.spawn(async move {
            let id = one.entry.id;
            let Some(taken) = relay.queue.seize(&one) else {
                return (id, Some(Refusal::InFlight));
            };
            keeper::bounce(Arc::clone(&relay), taken, &reason).await;
            (id, relay.queue.has(&one).then_some(Refusal::Failed))
        });
    }
    while let Some(done) = bouncing.join_next().await {
        if let Ok(done) = done {
            note(applied, done);
        }
    }
    applied.changed.sort_unstable();
}

fn answer(
    relay: &Relay,
    action: &str,
    dry_run: bool,
    applied: &Applied,
    unreadable: u64,
) -> Changed {
    let mut refused: BTreeMap<Refusal, Refused> = BTreeMap::new();
    for (id, why) in &applied.refused {
        let of = refused.entry(*why).or_insert_with(|| Refused {
            why: *why,
            text: why.as_str().to_owned(),
            messages: 0,
            ids: Vec::new(),
        });
        of.messages += 1;
        if of.ids.len() < wire::NAMED {
            of.ids.push(*id);
        }
    }
    Changed {
        action: action.to_owned(),
        dry_run,
        messages: applied.changed.len() as u64,
        recipients: applied.changed.iter().map(|(_, recipients)| u64::from(*recipients)).sum(),
        ids: applied.changed.iter().take(wire::NAMED).map(|(id, _)| *id).collect(),
        refused: refused.into_values().collect(),
        unreadable,
        all_held: all_held(relay),
    }
}

fn hold_all_answer(relay: &Relay) -> HoldAll {
    let total = relay.queue.snapshot().total;
    HoldAll {
        all_held: all_held(relay),
        messages: total.all().messages,
        in_flight: total.in_flight.messages,
    }
}

async fn held(State(shared): State<Shared>) -> Answer<HoldAll> {
    passing(&shared, |relay| hold_all_answer(relay)).await.map(Json)
}

async fn hold_all(State(shared): State<Shared>, body: Body) -> Answer<HoldAll> {
    set_all_held(shared, body, true).await
}

async fn release_all(State(shared): State<Shared>, body: Body) -> Answer<HoldAll> {
    set_all_held(shared, body, false).await
}

async fn set_all_held(shared: Shared, body: Body, hold: bool) -> Answer<HoldAll> {
    let why: Why = asked(body).await?;
    let reason = checked_reason(&why.reason)?;
    let relay = &shared.relay;
    relay.queue.hold_all(hold.then_some(reason)).await?;
    let answer = passing(&shared, |relay| hold_all_answer(relay)).await?;
    relay.emit(&Event::Operator {
        action: if hold { "hold-all" } else { "release-all" },
        reason,
        selection: "ALL",
        messages: answer.messages,
        recipients: 0,
        refused: 0,
        ids: &[],
    });
    Ok(Json(answer))
}

async fn verify(State(shared): State<Shared>) -> Answer<Verified> {
    let verified = passing(&shared, |relay| {
        let (messages, damage) = relay.queue.check();
        let damage = damage.into_iter().map(|(id, error)| format!("{id}: {error}")).collect();
        Verified { messages, damage }
    });
    verified.await.map(Json)
}
