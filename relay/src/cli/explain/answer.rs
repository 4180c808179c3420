//! An explanation: what it holds and how it reads. Floor 4.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;
use wavegate_smtp::Reply;

use crate::{
    answer::Go,
    cli::output::{field, list},
    config::{Config, Handoff, ListenerConfig, UpstreamConfig},
    gate::Note,
    plan::{Phase, Timestamp},
};

/// The whole explanation. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) at: String,
    pub(super) client: IpAddr,
    pub(super) listener: String,
    pub(super) helo: String,
    /// Where it wanted to go, before it was redirected.
    pub(super) destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    /// Empty for a bounce.
    pub(super) from: String,
    pub(super) to: String,
    /// Whether the listener lets this client relay.
    pub(super) allowed: bool,
    pub(super) instance: Option<Instance>,
    /// What the policies say, in the order in which they are asked; `-` is the relay itself.
    pub(super) policies: Vec<Note>,
    pub(super) outcome: Outcome,
}

/// The instance that the message belongs to.
#[derive(Debug, Serialize)]
pub(super) struct Instance {
    name: String,
    product: String,
    environment: String,
    phase: &'static str,
    window: Option<Window>,
    before: Option<String>,
    after: Option<String>,
}

#[derive(Debug, Serialize)]
struct Window {
    wave: String,
    /// From here on no attempt starts.
    freezes: String,
    opens: String,
    closes: String,
}

/// What would happen.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// `deliver`, `hold`, `defer` or `refuse`.
    verdict: &'static str,
    /// In words.
    meaning: String,
    /// What the relay itself answers; none where the upstream's answer is passed on.
    reply: Option<String>,
    /// When a held message can go.
    until: Option<String>,
    reason: Option<String>,
    upstream: Option<Upstream>,
    limits: Vec<Limit>,
}

#[derive(Debug, Serialize)]
struct Upstream {
    name: String,
    targets: Vec<String>,
    /// Of a link: where mail goes while no gateway can be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
}

/// A limit that the message takes from.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Limit {
    Rate { policy: String, key: String, quantity: u64, per_ms: u64, burst: u64, cost: u64 },
    Concurrency { policy: String, key: String, limit: u32 },
}

impl Instance {
    pub(super) fn new(config: &Config, index: usize, at: Timestamp) -> Self {
        let plan = &config.plan;
        let instance = &plan.instances[index];
        let window = plan.wave(index).map(|wave| &wave.window);
        Self {
            name: instance.name.clone(),
            product: instance.product.clone(),
            environment: instance.environment.clone(),
            phase: Phase::at(window, plan.freeze_lead_ms, at).as_str(),
            window: window.map(|window| Window {
                wave: window.wave.clone(),
                freezes: window.opens.saturating_sub_ms(plan.freeze_lead_ms).to_string(),
                opens: window.opens.to_string(),
                closes: window.closes.to_string(),
            }),
            before: config.before(index).map(str::to_owned),
            after: config.after(index).map(str::to_owned),
        }
    }
}

impl Outcome {
    fn new(verdict: &'static str, meaning: &str) -> Self {
        Self {
            verdict,
            meaning: meaning.to_owned(),
            reply: None,
            until: None,
            reason: None,
            upstream: None,
            limits: Vec::new(),
        }
    }

    fn with_reply(self, reply: &Reply) -> Self {
        Self { reply: Some(reply.to_string()), ..self }
    }

    pub(super) fn not_allowed(reply: &Reply, listener: &ListenerConfig) -> Self {
        let name = &listener.name;
        let (reason, meaning) = match &listener.auth {
            Some(auth) if auth.required => (
                format!("listener {name} takes mail only after a login (listener.auth.required)"),
                "refused at MAIL: this client has not logged in",
            ),
            auth => {
                let users = if auth.is_some() { ", and who logs in," } else { "" };
                let allow = list(&listener.allow);
                (
                    format!("listener {name} lets only {allow}{users} relay (listener.allow)"),
                    "refused at RCPT: this client may not relay",
                )
            }
        };
        Self { reason: Some(reason), ..Self::new("refuse", meaning).with_reply(reply) }
    }

    pub(super) fn hold(until: Option<Timestamp>, reason: String) -> Self {
        let meaning = "held: the spool takes it, and the client gets 250";
        Self {
            until: until.map(|until| until.to_string()),
            reason: Some(reason),
            ..Self::new("hold", meaning)
        }
    }

    pub(super) fn defer(reply: &Reply) -> Self {
        let meaning = "deferred: it stays in the sender's queue, which tries again";
        Self::new("defer", meaning).with_reply(reply)
    }

    pub(super) fn refuse(reply: &Reply) -> Self {
        Self::new("refuse", "refused: the sender gets it back").with_reply(reply)
    }

    pub(super) fn deliver(go: &Go) -> Self {
        let UpstreamConfig { name, targets, handoff, link, .. } = &go.upstream.config;
        let mut limits = Vec::new();
        for charge in &go.charges {
            let policy = || charge.scope.to_string();
            limits.extend(charge.limits.rates.iter().map(|one| Limit::Rate {
                policy: policy(),
                key: one.key.clone(),
                quantity: one.quantity,
                per_ms: one.per_ms,
                burst: one.burst,
                cost: one.cost,
            }));
            limits.extend(charge.limits.concurrency.iter().map(|one| Limit::Concurrency {
                policy: policy(),
                key: one.key.clone(),
                limit: one.limit,
            }));
        }
        let meaning = match handoff {
            Handoff::Direct => {
                format!("handed to {name} at once; the client gets that upstream's reply")
            }
            Handoff::Queued => format!("taken by the spool and handed to {name} from there"),
            Handoff::Auto => format!(
                "handed to {name} at once, and the client gets that upstream's reply; where that \
                 cannot be, it is taken by the spool"
            ),
        };
        let targets = targets.iter().map(ToString::to_string).collect();
        let fallback = link.as_ref().and_then(|link| link.fallback.clone());
        let upstream = Upstream { name: name.clone(), targets, fallback };
        Self { upstream: Some(upstream), limits, ..Self::new("deliver", &meaning) }
    }
}

impl Answer {
    /// For people.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        field(out, "message", format_args!("from <{}> to <{}>", self.from, self.to))?;
        let Self { client, listener, helo, .. } = self;
        field(out, "client", format_args!("{client} ({helo}) by {listener}"))?;
        if let Some(destination) = self.destination {
            field(out, "destination", format_args!("{destination} before it was redirected"))?;
        }
        if let Some(user) = &self.user {
            field(out, "logged in", format_args!("as {user}"))?;
        }
        field(out, "at", &self.at)?;
        match &self.instance {
            None => field(out, "instance", "none: no instance of the plan matches")?,
            Some(instance) => instance.print(out)?,
        }
        writeln!(out)?;
        for note in &self.policies {
            let who = if note.policy == "-" { "the relay" } else { &note.policy };
            field(out, note.hook, format_args!("{who} says: {}", note.answer))?;
        }
        if self.policies.is_empty() {
            field(out, "policies", "none was asked")?;
        }
        writeln!(out)?;
        self.outcome.print(out)
    }
}

impl Instance {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { name, product, environment, .. } = self;
        field(out, "instance", format_args!("{name} ({product}, {environment})"))?;
        field(out, "phase", self.phase)?;
        match &self.window {
            None => field(out, "window", "none: the instance is in no wave")?,
            Some(Window { wave, freezes, opens, closes }) => {
                let text =
                    format!("wave {wave}: freezes {freezes}, opens {opens}, closes {closes}");
                field(out, "window", text)?;
            }
        }
        let name = |upstream: &Option<String>| upstream.clone().unwrap_or_else(|| "-".to_owned());
        let (before, after) = (name(&self.before), name(&self.after));
        field(out, "upstreams", format_args!("before {before}, after {after}"))
    }
}

impl Outcome {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "It would be {}.", self.meaning)?;
        if let Some(reply) = &self.reply {
            field(out, "reply", reply)?;
        }
        if let Some(reason) = &self.reason {
            field(out, "reason", reason)?;
        }
        if let Some(until) = &self.until {
            field(out, "until", until)?;
        }
        if let Some(upstream) = &self.upstream {
            field(out, "upstream", format_args!("{}: {}", upstream.name, list(&upstream.targets)))?;
            if let Some(fallback) = &upstream.fallback {
                field(out, "fallback", format_args!("{fallback}, while no gateway answers"))?;
            }
        }
        for limit in &self.limits {
            match limit {
                Limit::Rate { policy, key, quantity, per_ms, burst, cost } => {
                    let rate = format!("{quantity} each {per_ms} ms, {burst} at once");
                    field(out, "limit", format_args!("{policy}: {key}: {rate}; takes {cost}"))?;
                }
                Limit::Concurrency { policy, key, limit } => {
                    field(out, "limit", format_args!("{policy}: {key}: {limit} at a time"))?;
                }
            }
        }
        Ok(())
    }
}
