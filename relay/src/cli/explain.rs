//! `wavegate explain`: what would happen to one message at one time, and who decides it.
//! Floor 4.
//!
//! It asks the real gate, with a relay that is built in memory and connects to nobody; so the
//! health of upstreams is not known, and all count as up.

mod answer;

use std::{io::Write, sync::Arc};

use wavegate_smtp::{Extensions, Reply, Server, ServerConfig, Step};

use super::{
    ExplainArgs, Failed, check, exit,
    message::{self, MessageFile},
    output::{json, list},
};
use crate::{
    body::BodyStore,
    config::{self, Config, ListenerConfig},
    event::{Event, Observer},
    gate::{self, Note, Subject, Verdict},
    generation,
    handoff::held_reply,
    limits::Limits,
    message::MessageId,
    plan::Timestamp,
    relay::Relay,
    waves::Waves,
    world::{SystemClock, WallClock, World, memory::MemoryNetwork},
};
use answer::{Answer, Instance, Outcome};

/// Answers and prints.
pub(super) fn explain(args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = config::read(&args.config)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))?;
    let listener = listener(&config, args.listener.as_deref())?.clone();
    let message = match &args.message {
        Some(path) => message::read(path, config.limits.message_size)?,
        None => MessageFile::default(),
    };
    let at = args.at.unwrap_or_else(|| SystemClock.now());
    let relay = relay(config, at)?;
    let answer = ask(&relay, args, &listener, &message, at);
    match args.json {
        true => json(out, &answer)?,
        false => answer.print(out)?,
    }
    Ok(0)
}

fn listener<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a ListenerConfig, Failed> {
    let mut all = config.listeners.iter();
    let found = match name {
        Some(name) => all.find(|one| one.name == name),
        None => all.next(),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = config.listeners.iter().map(|one| &*one.name).collect();
        Failed::new(exit::USAGE, format!("no such listener; there are: {}", list(&names)))
    })
}

/// A relay that carries nothing.
fn relay(config: Config, at: Timestamp) -> Result<Arc<Relay>, Failed> {
    let host = check::policy_host(&config)?;
    let policies = generation::load_policies(&host, &config)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the policies:\n{found}")))?;
    let world = World::simulated(MemoryNetwork::default(), at, 0);
    let waves = Waves::new(Arc::clone(&config.plan), Arc::clone(&world.clock));
    let limits = Limits::new(config.limits.limit_keys, config.limits.direct_queue);
    // Never written to.
    let bodies = BodyStore::new(&config.relay.state_dir, 0, 0, 0);
    let first = generation::build(&world, config, policies, None, &Default::default());
    Ok(Relay::new(world, waves, limits, bodies, host, Arc::new(Silent), first))
}

/// What happens in an explanation has not happened.
struct Silent;

impl Observer for Silent {
    fn observe(&self, _: &Event<'_>) {}
}

fn ask(
    relay: &Relay,
    args: &ExplainArgs,
    listener: &ListenerConfig,
    message: &MessageFile,
    at: Timestamp,
) -> Answer {
    let generation = relay.generation();
    let id = MessageId::new(at, 0);
    let subject = Subject {
        id: id.as_str(),
        client: args.client,
        listener: &listener.name,
        helo: &args.helo,
        sender: args.from.as_str(),
        sender_domain: args.from.domain(),
        recipients: &[args.to.as_str()],
        size: message.size,
        attempts: 0,
        headers: &message.headers,
    };
    let plan = relay.waves.current();
    let mut notes: Vec<Note> = Vec::new();
    let gate::Answer { instance, verdict } =
        gate::ask(relay, &generation, &plan, &subject, at, Some(&mut notes));
    let instance = instance.and_then(|state| {
        let index = plan.plan.instances.iter().position(|one| one.name == **state.name())?;
        Some(Instance::new(&generation.config, index, at))
    });
    let refusal = generation.listener(&listener.name).and_then(|settings| {
        let allowed = listener.allow.iter().any(|network| network.contains(&args.client));
        if allowed { None } else { refusal(&settings.outside, args) }
    });
    let outcome = match (&refusal, verdict) {
        (Some(reply), _) => Outcome::not_allowed(reply, listener),
        (None, Verdict::Go(go)) => Outcome::deliver(&generation.config, &go),
        (None, Verdict::Hold { until, reason }) => {
            Outcome::hold(&held_reply(until, &reason), until, reason)
        }
        (None, Verdict::Defer(reply)) => Outcome::defer(&reply),
        (None, Verdict::Refuse(reply)) => Outcome::refuse(&reply),
    };
    Answer {
        at: at.to_string(),
        client: args.client,
        listener: listener.name.clone(),
        helo: args.helo.clone(),
        from: args.from.as_str().to_owned(),
        to: args.to.as_str().to_owned(),
        allowed: refusal.is_none(),
        instance,
        policies: notes,
        outcome,
    }
}

/// What a client that may not relay is told: a session is played, so that it is the very reply.
fn refusal(settings: &Arc<ServerConfig>, args: &ExplainArgs) -> Option<Reply> {
    let mut server = Server::new(Arc::clone(settings));
    server.greet();
    let (from, to) = (args.from.as_str(), args.to.as_str());
    let parameter = if from.is_ascii() && to.is_ascii() { "" } else { " SMTPUTF8" };
    let dialogue = format!("EHLO x\r\nMAIL FROM:<{from}>{parameter}\r\nRCPT TO:<{to}>\r\n");
    let mut rest = dialogue.as_bytes();
    loop {
        let (used, step) = server.step(rest);
        rest = &rest[used..];
        match step {
            Step::Helo(_) => server.accept_helo(Extensions::full(0)),
            Step::Mail(_) => server.accept(),
            // It was asked about, so it was not refused.
            Step::Rcpt(_) => return None,
            _ => break,
        }
    }
    let mut replies = wavegate_smtp::reply::ReplyReader::default();
    let mut last = None;
    let mut output = server.output();
    while let Ok((used @ 1.., reply)) = replies.read(output) {
        output = &output[used..];
        last = reply.or(last);
    }
    last.filter(Reply::is_negative)
}

#[cfg(test)]
mod tests;
