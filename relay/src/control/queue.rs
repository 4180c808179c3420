//! Messages that wait: what is found and changed, and the kill switch.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{Path, RawQuery, State},
    http::StatusCode,
};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    Answer, Control, Failure, Json, asked, checked_reason, describe,
    wire::{self, Change, Changed, HoldAll, List, Refused, Show, Verified, Why},
};
use crate::{
    audit::Who,
    delivery::keeper,
    event::Event,
    message::MessageId,
    queue::{Act, Applied, Match, Refusal, Selection},
    relay::Relay,
};

/// Bounces written at once: they share syncs.
const BOUNCES: usize = 64;

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
    shared: &Control,
    pass: impl FnOnce(&Arc<Relay>) -> T + Send + 'static,
) -> Result<T, Failure> {
    let permit = Arc::clone(&shared.passing).acquire_owned().await.map_err(|_| Failure::bug())?;
    let relay = Arc::clone(&shared.relay);
    // The permit goes along: a client that leaves does not end the work.
    let pass = move || {
        let done = pass(&relay);
        drop(permit);
        done
    };
    tokio::task::spawn_blocking(pass).await.map_err(|_| Failure::bug())
}

fn all_held(relay: &Relay) -> Option<String> {
    relay.queue.all_held().as_deref().map(str::to_owned)
}

pub(super) async fn list(
    State(shared): State<Arc<Control>>,
    RawQuery(text): RawQuery,
) -> Answer<List> {
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

pub(super) async fn show(
    State(shared): State<Arc<Control>>,
    Path(id): Path<String>,
) -> Answer<Show> {
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
    let gone = || {
        let text = format!("{id}: {}", Refusal::Unknown.as_str());
        Failure::new(StatusCode::NOT_FOUND, "no_such_message", text)
    };
    shown.await?.map(Json).ok_or_else(gone)
}

pub(super) async fn change(
    State(shared): State<Arc<Control>>,
    Extension(who): Extension<Who>,
    Path(action): Path<String>,
    body: Bytes,
) -> Answer<Changed> {
    const ACTIONS: [&str; 5] = ["hold", "release", "retry", "remove", "bounce"];
    let action = ACTIONS.into_iter().find(|one| *one == action);
    let action = action.ok_or_else(|| {
        let text = format!("no such change; there are {ACTIONS:?}");
        Failure::new(StatusCode::NOT_FOUND, "no_such_path", text)
    })?;
    let mut change: Change = asked(&body)?;
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
    if change.dry_run {
        return make_change(&shared, action, change).await.map(Json);
    }
    let (of, reason) = (change.selection.to_string(), change.reason.clone());
    let begun = shared.begin(who, &format!("queue {action}"), of, String::new(), &reason).await?;
    let answer = make_change(&shared, action, change).await;
    shared.end(begun, answer, in_words).await.map(Json)
}

/// What a change did, for the audit log.
fn in_words(changed: &Changed) -> String {
    let ids: Vec<&str> = changed.ids.iter().map(MessageId::as_str).collect();
    let not: u64 = changed.refused.iter().map(|refused| refused.messages).sum();
    let Changed { messages, recipients, .. } = changed;
    format!("{messages} messages, {recipients} recipients, {not} not: {}", ids.join(" "))
}

async fn make_change(
    shared: &Control,
    action: &'static str,
    change: Change,
) -> Result<Changed, Failure> {
    let Change { selection, reason, dry_run, .. } = change;
    let (wanted, why) = (selection.clone(), reason.clone());
    let (found, mut applied, unreadable) = passing(shared, move |relay| {
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
    let instances = found.iter().map(|one| (one.entry.id, one.instance.clone())).collect();
    if action == "bounce" && !dry_run {
        bounce(relay, found, &reason, &mut applied).await;
    }
    note_unknown(&selection, &mut applied);
    let answer = answer(relay, action, dry_run, &applied, unreadable);
    if !dry_run {
        tell_each(relay, action, &reason, &instances, &applied);
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

/// Tells of each message that an operator held, let go or took out. One that he bounces is told of
/// by delivery.
fn tell_each(
    relay: &Relay,
    action: &str,
    reason: &str,
    instances: &HashMap<MessageId, Option<Arc<str>>>,
    applied: &Applied,
) {
    for &(id, recipients) in &applied.changed {
        let instance = instances.get(&id).and_then(|name| name.as_deref());
        let recipients = u64::from(recipients);
        let (by, until) = ("operator", None);
        relay.emit(&match action {
            "hold" => Event::Held { instance, id, recipients, by, reason, until },
            "release" => Event::LetGo { instance, id, recipients },
            "remove" => Event::Removed { instance, id, recipients },
            _ => return,
        });
    }
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

pub(super) async fn held(State(shared): State<Arc<Control>>) -> Answer<HoldAll> {
    passing(&shared, |relay| hold_all_answer(relay)).await.map(Json)
}

pub(super) async fn hold_all(
    State(shared): State<Arc<Control>>,
    Extension(who): Extension<Who>,
    body: Bytes,
) -> Answer<HoldAll> {
    set_all_held(&shared, who, &body, true).await
}

pub(super) async fn release_all(
    State(shared): State<Arc<Control>>,
    Extension(who): Extension<Who>,
    body: Bytes,
) -> Answer<HoldAll> {
    set_all_held(&shared, who, &body, false).await
}

async fn set_all_held(shared: &Control, who: Who, body: &Bytes, hold: bool) -> Answer<HoldAll> {
    let why: Why = asked(body)?;
    let reason = checked_reason(&why.reason)?;
    let action = if hold { "hold-all" } else { "release-all" };
    let begun = shared.begin(who, action, "ALL".to_owned(), String::new(), reason).await?;
    let setting = async {
        shared.relay.queue.hold_all(hold.then_some(reason)).await?;
        passing(shared, |relay| hold_all_answer(relay)).await
    };
    let answer = setting.await;
    if let Ok(answer) = &answer {
        shared.relay.emit(&Event::Operator {
            action,
            reason,
            selection: "ALL",
            messages: answer.messages,
            recipients: 0,
            refused: 0,
            ids: &[],
        });
    }
    let words = |answer: &HoldAll| {
        format!("{} messages wait, {} are under way", answer.messages, answer.in_flight)
    };
    shared.end(begun, answer, words).await.map(Json)
}

pub(super) async fn verify(State(shared): State<Arc<Control>>) -> Answer<Verified> {
    let verified = passing(&shared, |relay| {
        let (messages, damage) = relay.queue.check();
        let damage = damage.into_iter().map(|(id, error)| format!("{id}: {error}")).collect();
        Verified { messages, damage }
    });
    verified.await.map(Json)
}
