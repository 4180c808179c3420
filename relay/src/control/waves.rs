//! Waves: what is asked of them and ordered.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
};
use bytes::Bytes;

use super::{
    Answer, Control, Failure, Json, asked, checked_reason,
    wire::{Freeze, WaveList, WaveOrder},
};
use crate::{
    audit::Who,
    conductor::{
        Conductor,
        order::{Command, Obeyed, Order, Refusal},
        status::{Status, WaveStatus},
    },
    plan::Timestamp,
    world::BoxFuture,
};

/// The longest freeze without a plan.
const FREEZE_MOST: Duration = Duration::from_secs(24 * 3600);

/// Who drives the waves, as far as control needs to know.
pub trait Waves: Send + Sync {
    /// All there is to be seen. It goes over all instances, so it is called off the runtime.
    fn status(&self) -> Status;
    /// Does what is ordered; durable when it is answered.
    fn order(&self, order: Order) -> BoxFuture<'_, Result<Obeyed, Refusal>>;
}

impl Waves for Arc<Conductor> {
    fn status(&self) -> Status {
        Conductor::status(self)
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Obeyed, Refusal>> {
        Box::pin(Conductor::order(self, order))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match &refusal {
            Refusal::NoWave(_) => (StatusCode::NOT_FOUND, "no_such_wave"),
            Refusal::NoInstance(_) => (StatusCode::NOT_FOUND, "no_such_instance"),
            Refusal::NotNow { .. } => (StatusCode::CONFLICT, "not_now"),
            Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            Refusal::Spool(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_written"),
        };
        Self::new(status, code, refusal.to_string())
    }
}

/// Looks at all waves, one look at a time.
async fn look(control: &Control) -> Result<Status, Failure> {
    let permit = Arc::clone(&control.looking).acquire_owned().await.map_err(|_| Failure::bug())?;
    let waves = Arc::clone(&control.waves);
    let looking = tokio::task::spawn_blocking(move || {
        let status = waves.status();
        drop(permit);
        status
    });
    looking.await.map_err(|_| Failure::bug())
}

async fn wave(control: &Control, id: &str) -> Result<WaveStatus, Failure> {
    let mut all = look(control).await?.waves.into_iter();
    all.find(|wave| wave.id == id).ok_or_else(|| Refusal::NoWave(id.to_owned()).into())
}

pub(super) async fn status(State(control): State<Arc<Control>>) -> Answer<Status> {
    look(&control).await.map(Json)
}

pub(super) async fn list(State(control): State<Arc<Control>>) -> Answer<WaveList> {
    let Status { host, now, plan, waves, .. } = look(&control).await?;
    Ok(Json(WaveList { host, now, plan, waves }))
}

pub(super) async fn show(
    State(control): State<Arc<Control>>,
    Path(id): Path<String>,
) -> Answer<WaveStatus> {
    wave(&control, &id).await.map(Json)
}

pub(super) async fn order(
    State(control): State<Arc<Control>>,
    Extension(who): Extension<Who>,
    Path((id, action)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Obeyed> {
    const ACTIONS: [&str; 4] = ["extend", "complete", "rollback", "release"];
    let action = ACTIONS.into_iter().find(|one| *one == action).ok_or_else(|| {
        let text = format!("no such order; there are {ACTIONS:?}");
        Failure::new(StatusCode::NOT_FOUND, "no_such_path", text)
    })?;
    let asked: WaveOrder = asked(&body)?;
    let WaveOrder { reason, dry_run, until, by_ms, unchecked } = asked;
    let only = |given: bool, key: &str, of: &str| match given && action != of {
        true => Err(Failure::asked(format!("`{key}` has no meaning for {action}"))),
        false => Ok(()),
    };
    only(until.is_some(), "until", "extend")?;
    only(by_ms.is_some(), "by_ms", "extend")?;
    only(unchecked, "unchecked", "complete")?;
    let command = match action {
        "extend" => {
            let until = new_end(&control, &id, until.as_deref(), by_ms).await?;
            Command::Extend { wave: id, until }
        }
        "complete" => Command::Complete { wave: id, unchecked },
        "rollback" => Command::RollBack { wave: id },
        _ => Command::Release { wave: id },
    };
    give(&control, who, action, command, &reason, dry_run).await
}

/// When a wave is to close: said as such, or as so much later than it does now.
async fn new_end(
    control: &Control,
    id: &str,
    until: Option<&str>,
    by_ms: Option<u64>,
) -> Result<Timestamp, Failure> {
    match (until, by_ms) {
        (Some(text), None) => {
            time(text).ok_or_else(|| Failure::asked("`until` is not RFC 3339 with an offset"))
        }
        (None, Some(by)) => {
            let closes = wave(control, id).await?.closes;
            let closes = time(&closes).ok_or_else(Failure::bug)?;
            Ok(closes.saturating_add_ms(by))
        }
        _ => Err(Failure::asked("give `until` or `by_ms`, and not both")),
    }
}

fn time(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp)
}

pub(super) async fn freeze(
    State(control): State<Arc<Control>>,
    Extension(who): Extension<Who>,
    body: Bytes,
) -> Answer<Obeyed> {
    let Freeze { instance, for_ms, reason, dry_run } = asked(&body)?;
    let most = u64::try_from(FREEZE_MOST.as_millis()).unwrap_or(u64::MAX);
    if !(1..=most).contains(&for_ms) {
        return Err(Failure::asked(format!("`for_ms` is not 1 to {most}")));
    }
    give(&control, who, "freeze", Command::Freeze { instance, for_ms }, &reason, dry_run).await
}

/// Gives an order and writes both down: that it was given and what came of it.
async fn give(
    control: &Control,
    who: Who,
    action: &str,
    command: Command,
    reason: &str,
    dry_run: bool,
) -> Answer<Obeyed> {
    let reason = checked_reason(reason)?.to_owned();
    let (of, with) = match &command {
        Command::Freeze { instance, for_ms } => (instance.clone(), format!("for_ms={for_ms}")),
        Command::Extend { wave, until } => (wave.clone(), format!("until={until}")),
        Command::Complete { wave, unchecked: true } => (wave.clone(), "unchecked".to_owned()),
        Command::Complete { wave, .. } | Command::RollBack { wave } | Command::Release { wave } => {
            (wave.clone(), String::new())
        }
    };
    let by = who.by.clone();
    let order = Order { command, reason: reason.clone(), by, dry_run };
    if dry_run {
        return Ok(Json(control.waves.order(order).await?));
    }
    let begun = control.begin(who, action, of, with, &reason).await?;
    let answer = control.waves.order(order).await.map_err(Failure::from);
    let words = |obeyed: &Obeyed| match obeyed.changed {
        true => obeyed.what.clone(),
        false => format!("nothing to do: {}", obeyed.what),
    };
    control.end(begun, answer, words).await.map(Json)
}
