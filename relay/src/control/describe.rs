//! What a message waits for, in words.

use std::time::Duration;

use super::wire::{Item, Last, Recipient, Show};
use crate::{
    envelope::Progress,
    plan::Timestamp,
    queue::{Match, Standing},
    relay::Relay,
    scheduler::{State, Wait},
};

/// A message as a list has it.
pub(super) fn item(relay: &Relay, one: &Match, progress: Option<&Progress>) -> Item {
    let now = relay.waves.now();
    let envelope = one.envelope.as_ref();
    let ended = |index: u32| progress.is_some_and(|progress| progress.has_ended(index));
    let first = envelope.and_then(|envelope| {
        let mut all = (0..).zip(&envelope.recipients);
        all.find(|(index, _)| !ended(*index)).map(|(_, rcpt)| rcpt.recipient.to_string())
    });
    Item {
        id: one.entry.id,
        instance: one.instance.as_deref().map(str::to_owned),
        upstream: one.upstream.as_deref().map(str::to_owned),
        state: Standing::of(&one.view.state),
        waits_for: waits_for(relay, one, progress),
        since: one.view.since.to_string(),
        received: one.entry.received.to_string(),
        age: now.0.saturating_sub(one.entry.received.0) / 1000,
        size: one.entry.size,
        attempts: one.entry.progress.attempts,
        recipients: one.entry.progress.recipients,
        sender: envelope.map(|envelope| envelope.mail.sender.as_str().to_owned()),
        recipient: first,
    }
}

/// All that is known of a message.
pub(super) fn show(relay: &Relay, one: &Match, progress: &Progress) -> Show {
    let now = relay.waves.now();
    let envelope = one.envelope.as_ref();
    let held_now = Standing::of(&one.view.state) == Standing::Held;
    let lasting = if held_now { now.0.saturating_sub(one.view.since.0) } else { 0 };
    let recipients = envelope.map_or(&[][..], |envelope| &envelope.recipients);
    Show {
        item: item(relay, one, Some(progress)),
        all_held: relay.queue.all_held().as_deref().map(str::to_owned),
        client: envelope.map(|envelope| envelope.source.client.to_string()),
        listener: envelope.map(|envelope| envelope.source.listener.clone()),
        helo: envelope.map(|envelope| envelope.source.helo.clone()),
        destination: envelope
            .and_then(|envelope| envelope.source.destination)
            .map(|destination| destination.to_string()),
        user: envelope.and_then(|envelope| envelope.source.user.clone()),
        envelope: (0..)
            .zip(recipients)
            .map(|(index, rcpt)| Recipient {
                address: rcpt.recipient.to_string(),
                ended: progress.has_ended(index),
            })
            .collect(),
        unreadable: None,
        last: progress.last.as_ref().map(|last| Last {
            upstream: last.upstream.clone(),
            text: last.text.clone(),
            time: Timestamp(last.time).to_string(),
        }),
        operator: progress.operator.clone(),
        in_doubt: progress.in_doubt.clone(),
        held: one.entry.held_ms.saturating_add(lasting) / 1000,
        expires: (!held_now).then(|| expires(relay, one).to_string()),
    }
}

fn expires(relay: &Relay, one: &Match) -> Timestamp {
    let generation = relay.look();
    let of = one.upstream.as_deref().and_then(|name| generation.upstream(name));
    let all = generation.upstreams.values().map(|upstream| upstream.config.expire);
    // One that has no upstream yet may go to the most patient.
    let expiry = of.map(|upstream| upstream.config.expire).or_else(|| all.max());
    let expiry = expiry.unwrap_or(Duration::ZERO).as_millis();
    let received = one.entry.received.saturating_add_ms(one.entry.held_ms);
    received.saturating_add_ms(u64::try_from(expiry).unwrap_or(u64::MAX))
}

fn waits_for(relay: &Relay, one: &Match, progress: Option<&Progress>) -> String {
    let said = progress.and_then(|progress| progress.last.as_ref()).map(|last| last.text.as_str());
    let last = if one.view.state == State::InFlight { "; the last one" } else { "" };
    let said = said.map(|text| format!("{last}: {text}")).unwrap_or_default();
    let reason = || progress.and_then(|progress| progress.operator.as_deref()).unwrap_or("-");
    let mut text = match &one.view.state {
        // Who stands first in the line of a limit is in flight meanwhile.
        State::InFlight => format!("its attempt, which is under way{said}"),
        State::Paced => "the pace at which held mail is released".to_owned(),
        State::Waiting(wait) => match wait {
            Wait::Turn => "its turn".to_owned(),
            Wait::Retry(time) => {
                let attempt = one.entry.progress.attempts.saturating_add(1);
                format!("attempt {attempt} at {time}{said}")
            }
            Wait::HoldUntil(time) => format!("{time}, for a policy or the relay holds it{said}"),
            Wait::Upstream(name) => upstream(relay, name),
            Wait::Limit { scope, key } => format!("limit {key} of {scope}"),
            Wait::Phase(_) => window(relay, one.instance.as_deref().unwrap_or("-")),
            Wait::Change => format!("another plan or configuration: a policy holds it{said}"),
            Wait::Operator => format!("an operator, who holds it: {}", reason()),
            Wait::Reply => {
                let upstream = progress.and_then(|progress| progress.in_doubt.as_deref());
                format!("the late reply of upstream {}", upstream.unwrap_or("-"))
            }
        },
    };
    if one.view.hold_follows {
        text.push_str(&format!(", and then an operator, who holds it: {}", reason()));
    }
    text
}

fn upstream(relay: &Relay, name: &str) -> String {
    let why = match relay.look().upstream_or_child(name) {
        None => "there is none of this name any more",
        Some(upstream) if upstream.is_down() => "every target is down",
        Some(_) => "all are busy",
    };
    format!("a connection of upstream {name}: {why}")
}

fn window(relay: &Relay, instance: &str) -> String {
    let plan = relay.waves.current();
    let now = relay.waves.now();
    let index = plan.index_of(instance);
    match index.map(|index| plan.instance(index).look(now)) {
        Some((phase, Some(window))) => {
            let wave = &window.wave;
            format!(
                "the end of the window of {instance} ({phase}, wave {wave}) at {}",
                window.closes
            )
        }
        _ => format!("the end of the window of {instance}"),
    }
}
