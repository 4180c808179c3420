//! `wavegate explain`: what would happen to one message at one time, and who decides it.
//! Floor 4.
//!
//! It asks the real gate, with a relay that is built in memory and connects to nobody; so the
//! health of upstreams is not known, and all count as up.

mod answer;

use std::{collections::HashMap, io::Write, net::SocketAddr, sync::Arc};

use wavegate_smtp::{Extensions, Reply, Server, ServerConfig, Step, reply::ReplyReader};

use super::{
    ExplainArgs, Failed, check, exit,
    message::{self, MessageFile},
    output::{json, list},
};
use crate::{
    answer::Verdict,
    config::{self, Config, ListenerConfig},
    event::Silent,
    gate::{self, Note, Subject},
    generation::{self, Surroundings},
    message::{MessageId, Source},
    names::Resolved,
    plan::Timestamp,
    queue::Queue,
    relay::Relay,
    world::{SystemClock, WallClock, World, memory::MemoryNetwork},
};
use answer::{Answer, Instance, Outcome};

/// Answers and prints.
pub(super) fn explain(args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut config = config::read(&args.config)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))?;
    for found in check::with_installed(&mut config) {
        // Without standard error the answer is still right for what it knows.
        let _ = writeln!(std::io::stderr(), "wavegate: {found}");
    }
    let listener = listener(&config, args.listener.as_deref())?;
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

fn listener(config: &Config, name: Option<&str>) -> Result<ListenerConfig, Failed> {
    let all = || config.listeners.iter().cloned().chain(config.links.iter().map(Into::into));
    let found = match name {
        Some(name) => all().find(|one| one.name == name),
        None => all().next(),
    };
    found.ok_or_else(|| {
        let names: Vec<String> = all().map(|one| one.name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Failed::new(exit::USAGE, format!("no such listener; there are: {}", list(&names)))
    })
}

/// A clock that stands: the time that is asked about does not pass while policies are loaded.
struct Standing(Timestamp);

impl WallClock for Standing {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// A relay that carries nothing.
fn relay(config: Config, at: Timestamp) -> Result<Arc<Relay>, Failed> {
    let clock = Arc::new(Standing(at));
    let world = World { clock, ..World::simulated(MemoryNetwork::default(), at, 0) };
    let around = Surroundings {
        queue: Queue::in_memory(Arc::clone(&world.clock)),
        world,
        host: check::policy_host(&config)?,
        // What happens in an explanation has not happened.
        observer: Arc::new(Silent),
        spill: &config.relay.state_dir.clone(),
        known: &HashMap::new(),
        tls: Arc::default(),
        names: Resolved::default(),
    };
    generation::assemble(config, around)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the policies:\n{found}")))
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
    let mut source = Source::new(SocketAddr::new(args.client, 0), &listener.name);
    source.helo.clone_from(&args.helo);
    source.extended = true;
    source.destination = args.destination;
    source.user.clone_from(&args.user);
    let subject = Subject {
        id: id.as_str(),
        source: &source,
        sender: args.from.as_str(),
        sender_domain: args.from.domain(),
        recipients: &[args.to.as_str()],
        size: message.size,
        on_behalf: None,
        received: None,
        attempts: 0,
        last_reply: None,
        headers: &message.headers,
    };
    let plan = relay.waves.current();
    let mut notes: Vec<Note> = Vec::new();
    let crate::answer::Answer { instance, verdict } =
        gate::explain(relay, &generation, &plan, &subject, at, Some(&mut notes));
    let instance = instance.and_then(|state| {
        let index = plan.plan.instances.iter().position(|one| one.name == **state.name())?;
        Some(Instance::new(&generation.config, index, at))
    });
    let refusal = generation.listener(&listener.name).and_then(|settings| {
        let settings = settings.of(args.client);
        // Who has logged in may relay. (That there is such a user is not looked at.)
        let may = args.user.is_some() || settings.may_relay && !settings.auth_required;
        if may { None } else { refusal(settings, args) }
    });
    let outcome = match (&refusal, verdict) {
        (Some(reply), _) => Outcome::not_allowed(reply, listener),
        // There is one recipient, so there is one share.
        (None, Verdict::Go(shares)) => Outcome::deliver(&shares[0]),
        (None, Verdict::Hold { until, reason }) => Outcome::hold(until, reason),
        (None, Verdict::Defer(reply)) => Outcome::defer(&reply),
        (None, Verdict::Refuse(reply)) => Outcome::refuse(&reply),
    };
    Answer {
        at: at.to_string(),
        client: args.client,
        listener: listener.name.clone(),
        helo: args.helo.clone(),
        destination: args.destination,
        user: args.user.clone(),
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
    let commands = [
        "EHLO x\r\n".to_owned(),
        format!("MAIL FROM:<{from}>{parameter}\r\n"),
        format!("RCPT TO:<{to}>\r\n"),
    ];
    for command in &commands {
        // Each waits for the answer to the one before it, as a client must at EHLO.
        server.written(server.output().len());
        let mut rest = command.as_bytes();
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
    }
    let (_, reply) = ReplyReader::default().read(server.output()).ok()?;
    reply.filter(Reply::is_negative)
}

#[cfg(test)]
mod tests;
