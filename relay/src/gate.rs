//! The gate: may it go, where to, how fast. Floor 3.
//!
//! Everything passes here, at every attempt: freeze, route, throttle, in this order. Native
//! rules come first and last: whatever policies say, mail of an instance whose phase forbids it
//! does not go. The gate names limits and takes none; it changes nothing but what a policy may
//! change (its log lines and counters).

pub mod attributes;

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use wavegate_smtp::{Enhanced, Reply};

use crate::{
    answer::{Answer, Go, Verdict},
    asking::{self, Waits},
    config::{FailMode, Unmatched},
    decision::{
        FreezeDecision, InstanceView, PolicyReply, RouteDecision, RouteShare, RouteTarget,
        Transaction, UpstreamState, record::Ask, stable_hash,
    },
    event::Event,
    limits::Charge,
    message::Source,
    plan::{Origin, Timestamp},
    policy::{Hook, PolicyFailure},
    relay::{Generation, Relay, with_policies},
    replies::relay_reply,
    scheduler::Wait,
    upstream::{Unplaced, Upstream, original},
    waves::{InstanceState, PlanState},
};

/// A message as the gate needs it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The relay's id of the message.
    pub id: &'a str,
    /// Where it came from.
    pub source: &'a Source,
    /// Reverse path; empty for `<>`.
    pub sender: &'a str,
    /// Domain of the reverse path; empty for `<>`.
    pub sender_domain: &'a str,
    /// Forward paths; at least one.
    pub recipients: &'a [&'a str],
    /// Bytes.
    pub size: u64,
    /// The instance whose mail it reports on, of a notification of the relay itself.
    pub on_behalf: Option<&'a str>,
    /// When it came in, of one that waited since.
    pub received: Option<Timestamp>,
    /// Attempts made so far.
    pub attempts: u32,
    /// What was last said about it, of one that waited since.
    pub last_reply: Option<&'a str>,
    /// The header block; may be empty where neither a policy nor the plan asks for a header.
    pub headers: &'a [u8],
}

/// The window that a message waits for now: its instance's, or, if it has none, that of the
/// instance whose network it came from. Asked when it begins to wait, since an attempt takes time.
pub fn frozen(relay: &Relay, instance: Option<&InstanceState>, client: IpAddr) -> Option<Wait> {
    let now = relay.waves.now();
    match instance {
        Some(instance) if instance.phase(now).may_start() => None,
        Some(instance) => Some(relay.queue.wait_for_phase(instance.name())),
        None => {
            let plan = relay.waves.current();
            let owner = plan.owner_may_not_start(client, now)?;
            Some(relay.queue.wait_for_phase(plan.instance(owner).name()))
        }
    }
}

/// One policy's answer, for people (`wavegate explain`).
#[derive(Clone, Debug, serde::Serialize)]
pub struct Note {
    /// The policy; `-` for the relay itself.
    pub policy: String,
    /// The hook.
    pub hook: &'static str,
    /// What it said.
    pub answer: String,
}

/// Asks the gate about one message. The task may wait: for a policy that takes long.
pub async fn ask(
    relay: &Relay,
    generation: &Generation,
    plan: &PlanState,
    subject: &Subject<'_>,
    now: Timestamp,
) -> Answer {
    pass(relay, generation, plan, subject, now, Waits::Task, None).await
}

/// The same at once, for who carries no mail: the thread waits for policies. Says what each of them
/// answered.
pub fn explain(
    relay: &Relay,
    generation: &Generation,
    plan: &PlanState,
    subject: &Subject<'_>,
    now: Timestamp,
    notes: Option<&mut Vec<Note>>,
) -> Answer {
    let passing = pin!(pass(relay, generation, plan, subject, now, Waits::Thread, notes));
    match passing.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("the thread waits, so there is nothing to be woken for"),
    }
}

async fn pass(
    relay: &Relay,
    generation: &Generation,
    plan: &PlanState,
    subject: &Subject<'_>,
    now: Timestamp,
    waits: Waits,
    notes: Option<&mut Vec<Note>>,
) -> Answer {
    let mut fields = plan.plan.wants_headers().then(|| attributes::parse(subject.headers));
    let origin = Origin {
        client: subject.source.client,
        sender_domain: (!subject.sender_domain.is_empty()).then_some(subject.sender_domain),
        listener: &subject.source.listener,
        headers: fields.as_deref().unwrap_or_default(),
    };
    let index = match (subject.on_behalf, &subject.source.instance) {
        (Some(name), _) => plan.index_of(name),
        // An edge has asked its own plan, and knows listeners that are not here.
        (None, Some(said)) => plan.index_of(said).or_else(|| plan.attribute(&origin)),
        (None, None) => plan.attribute(&origin),
    };
    let instance = index.map(|index| Arc::clone(plan.instance(index)));
    let migration = generation.config.migration.as_ref();
    let (phase, window) = instance.as_ref().map(|state| state.look(now)).unzip();
    let window = window.flatten();
    let view = index.map(|index| &plan.plan.instances[index]).zip(index.zip(phase));
    let view = view.map(|(known, (index, phase))| InstanceView {
        name: &known.name,
        product: &known.product,
        environment: &known.environment,
        phase,
        window: window.as_deref(),
        before: plan.plan.before(index).or(migration.map(|m| &*m.before)).unwrap_or(""),
        after: plan.plan.after(index).or(migration.map(|m| &*m.after)).unwrap_or(""),
    });
    let needs = generation.policies.needs();
    let attributes = attributes::collect(&needs.attributes, subject, &mut fields);
    let upstreams = states(generation, &needs.upstreams, now);
    let transaction = Transaction {
        id: subject.id,
        now,
        received: subject.received.unwrap_or(now),
        client: subject.source.client,
        sender: subject.sender,
        recipients: subject.recipients,
        size: subject.size,
        attempts: subject.attempts,
        bucket: bucket(view.map_or("", |view| view.name), subject),
        instance: view,
        attributes: &attributes,
        upstreams: &upstreams,
    };
    let destination = subject.source.destination;
    let mut gate = Gate { relay, generation, plan, transaction, destination, waits, notes };
    let verdict = match gate.freeze().await {
        Some(verdict) => verdict,
        None => gate.route_and_throttle().await.unwrap_or_else(|verdict| verdict),
    };
    Answer { instance, verdict }
}

/// What is known of the upstreams that policies asked for.
fn states(generation: &Generation, wanted: &[String], now: Timestamp) -> Vec<UpstreamState> {
    let upstreams = wanted.iter().filter_map(|name| generation.upstream(name));
    upstreams.map(|upstream| upstream.state_for_policies(now)).collect()
}

/// A stable number from 0 to 9999 for canaries: FNV-1a, because it must be the same for ever
/// and on every machine.
fn bucket(instance: &str, subject: &Subject<'_>) -> u32 {
    let first = subject.recipients.first().copied().unwrap_or("");
    let parts = [instance, subject.sender, first].map(str::as_bytes);
    let hash = stable_hash(parts.into_iter().flat_map(|part| [part, &[0]]));
    u32::try_from(hash % 10_000).unwrap_or(0)
}

/// One question on its way through the hooks.
struct Gate<'a> {
    relay: &'a Relay,
    generation: &'a Generation,
    plan: &'a PlanState,
    transaction: Transaction<'a>,
    /// Where its client wanted to go, before it was redirected.
    destination: Option<SocketAddr>,
    waits: Waits,
    notes: Option<&'a mut Vec<Note>>,
}

impl Gate<'_> {
    /// Freezing: none when the message may go on to routing.
    async fn freeze(&mut self) -> Option<Verdict> {
        if self.transaction.instance.is_none()
            && let Some(verdict) = self.unmatched()
        {
            return Some(verdict);
        }
        let strictest = self.ask_freezers().await;
        let native = self.native_hold();
        match (strictest, native) {
            (FreezeDecision::Refuse(reply), _) => Some(Verdict::Refuse(to_reply(&reply))),
            (FreezeDecision::Defer(reply), _) => Some(Verdict::Defer(to_reply(&reply))),
            (FreezeDecision::Hold { until, reason }, _) => Some(Verdict::Hold { until, reason }),
            (FreezeDecision::Proceed, Some((name, verdict))) => {
                if !self.generation.policies.freezers().is_empty() {
                    self.relay.emit(&Event::ProceedAgainstPlan { instance: &name });
                }
                Some(verdict)
            }
            (FreezeDecision::Proceed, None) => None,
        }
    }

    /// What becomes of mail that no instance matches, where that is not "go on".
    fn unmatched(&mut self) -> Option<Verdict> {
        let client = self.transaction.client;
        if let Some(owner) = self.plan.owner_may_not_start(client, self.transaction.now) {
            let name = self.plan.instance(owner).name();
            let reason = format!("mail of no instance, from a network of frozen instance {name}");
            self.note("-", "freeze", || reason.clone());
            return Some(Verdict::Hold { until: None, reason });
        }
        match self.generation.config.relay.unmatched {
            Unmatched::Before => None,
            Unmatched::Hold => {
                let reason = "mail of no instance is held (relay.unmatched)".to_owned();
                self.note("-", "freeze", || reason.clone());
                Some(Verdict::Hold { until: None, reason })
            }
            Unmatched::Refuse => {
                self.note("-", "freeze", || "refuse: mail of no instance".to_owned());
                let text = "this relay does not know the instance of this mail";
                Some(Verdict::Refuse(relay_reply(550, Enhanced(5, 7, 1), text)))
            }
        }
    }

    /// The hold that the plan itself orders, with the instance's name.
    fn native_hold(&mut self) -> Option<(String, Verdict)> {
        let view = self.transaction.instance?;
        if view.phase.may_start() {
            return None;
        }
        let name = view.name.to_owned();
        let reason = hold_reason(&view);
        self.note("-", "freeze", || format!("hold: {reason}"));
        let until = view.window.map(|window| window.closes);
        Some((name, Verdict::Hold { until, reason }))
    }

    async fn ask_freezers(&mut self) -> FreezeDecision {
        let mut strictest = FreezeDecision::Proceed;
        self.ask_beside(Hook::Freeze, 0..usize::MAX, Ask::Decide);
        for &policy in self.generation.policies.freezers() {
            let set = &self.generation.policies;
            let answer = asking::ask(self.relay, set, policy, self.waits, |mine, set, policy| {
                mine.freeze(set, policy, &self.transaction)
            })
            .await;
            self.note_answer(policy, Hook::Freeze, &answer);
            let decision = answer.unwrap_or_else(|failure| {
                let name = self.failed(policy, &failure);
                match self.generation.policies.policies()[policy].fail_mode(Hook::Freeze) {
                    FailMode::Defer => FreezeDecision::Defer(policy_failed(&name)),
                    // A freeze policy that fails never lets go.
                    FailMode::Hold | FailMode::Ignore => FreezeDecision::Hold {
                        until: None,
                        reason: format!("policy {name} failed"),
                    },
                }
            });
            if decision.strictness() > strictest.strictness() {
                strictest = decision;
            }
        }
        strictest
    }

    async fn route_and_throttle(&mut self) -> Result<Verdict, Verdict> {
        let mut ways = Vec::new();
        for share in self.route().await? {
            ways.push(self.go(share).await?);
        }
        Ok(Verdict::Go(ways))
    }

    async fn go(&mut self, share: RouteShare) -> Result<Go, Verdict> {
        let RouteShare { recipients, target } = share;
        let upstream = self.pick(&target)?;
        // Policies know the names of the configuration.
        let charges = self.throttle(original::family(&upstream.config.name), &recipients).await?;
        Ok(Go { recipients, upstream, charges })
    }

    /// All recipients in shares.
    async fn route(&mut self) -> Result<Vec<RouteShare>, Verdict> {
        // One more router would be asked only where none before it has an opinion.
        let mut from = 0;
        for &policy in self.generation.policies.routers() {
            self.ask_beside(Hook::Routing, from..policy, Ask::Route);
            from = policy;
            let set = &self.generation.policies;
            let answer = asking::ask(self.relay, set, policy, self.waits, |mine, set, policy| {
                mine.route(set, policy, &self.transaction)
            })
            .await;
            self.note_answer(policy, Hook::Routing, &answer);
            match answer {
                Ok(RouteDecision::Abstain) => {}
                Ok(RouteDecision::All(target)) => return Ok(self.all_to(target)),
                Ok(RouteDecision::Split(shares)) => return Ok(shares),
                Err(failure) => {
                    let name = self.failed(policy, &failure);
                    match self.generation.policies.policies()[policy].fail_mode(Hook::Routing) {
                        FailMode::Ignore => {}
                        FailMode::Defer | FailMode::Hold => {
                            return Err(Verdict::Defer(to_reply(&policy_failed(&name))));
                        }
                    }
                }
            }
        }
        self.ask_beside(Hook::Routing, from..usize::MAX, Ask::Route);
        let target = self.default_route()?;
        Ok(self.all_to(target))
    }

    fn all_to(&self, target: RouteTarget) -> Vec<RouteShare> {
        let recipients = (0..).zip(self.transaction.recipients).map(|(index, _)| index).collect();
        vec![RouteShare { recipients, target }]
    }

    /// Where mail goes that no policy has an opinion of: the default upstream; mail of no
    /// instance may go to `before` instead (`unmatched`).
    fn default_route(&mut self) -> Result<RouteTarget, Verdict> {
        let config = &self.generation.config;
        let known = self.transaction.instance.is_some();
        let upstream = if known { config.default_upstream() } else { config.unmatched_upstream() };
        let Some(upstream) = upstream else {
            self.note("-", "routing", || "no policy named an upstream".to_owned());
            return Err(Verdict::Defer(relay_reply(
                451,
                Enhanced(4, 3, 5),
                "no policy named an upstream for this mail, and none is the default",
            )));
        };
        let target = RouteTarget { upstream: upstream.to_owned(), fallbacks: Vec::new() };
        self.note("-", "routing", || format!("default: {}", target.upstream));
        Ok(target)
    }

    /// The first of a route's upstreams that is not down, the fallback of a link behind them; if all
    /// are, the route's own.
    fn pick(&mut self, target: &RouteTarget) -> Result<Arc<Upstream>, Verdict> {
        let generation = self.generation;
        let Some(own) = generation.upstream(&target.upstream) else {
            let text = format!("upstream {} is not configured", target.upstream);
            return Err(Verdict::Defer(relay_reply(451, Enhanced(4, 3, 5), &text)));
        };
        let placed = own.place(self.destination);
        match &placed {
            Ok(upstream) if !upstream.is_down() => return placed.map_err(|error| defer(&error)),
            // It has a destination, and goes nowhere else.
            Err(error @ (Unplaced::Forbidden { .. } | Unplaced::Full { .. })) => {
                return Err(defer(error));
            }
            Ok(_) | Err(Unplaced::NotRedirected(_)) => {}
        }
        let is_alive = |name: &String| {
            let upstream = generation.upstream(name)?.place(self.destination).ok()?;
            (!upstream.is_down()).then_some(upstream)
        };
        if let Some(alive) = target.fallbacks.iter().find_map(is_alive) {
            return Ok(alive);
        }
        // A link that is down has a fallback of its own.
        let fallback = own.config.link.as_ref().and_then(|link| link.fallback.as_ref());
        if let Some(alive) = fallback.and_then(is_alive) {
            // Nothing goes by what is only explained.
            match &self.notes {
                None => own.note_fallback(),
                Some(_) => self.note("-", "routing", || {
                    let (link, name) = (&own.config.name, &alive.config.name);
                    format!("link {link} is down; its fallback: {name}")
                }),
            }
            return Ok(alive);
        }
        placed.or_else(|error| {
            let fallback = own.config.original.as_ref().and_then(|one| one.fallback.as_ref());
            let fallback = fallback.and_then(|name| generation.upstream(name)).cloned();
            self.note("-", "routing", || match &fallback {
                Some(upstream) => format!("{error}; its fallback: {}", upstream.config.name),
                None => error.to_string(),
            });
            fallback.ok_or_else(|| defer(&error))
        })
    }

    async fn throttle(
        &mut self,
        upstream: &str,
        recipients: &[u32],
    ) -> Result<Vec<Charge>, Verdict> {
        let mut charges = Vec::new();
        self.ask_beside(Hook::Throttling, 0..usize::MAX, |tx| Ask::Limits {
            tx,
            upstream,
            recipients,
        });
        for &policy in self.generation.policies.throttlers() {
            let set = &self.generation.policies;
            let answer = asking::ask(self.relay, set, policy, self.waits, |mine, set, policy| {
                mine.limits(set, policy, &self.transaction, upstream, recipients)
            })
            .await;
            self.note_answer(policy, Hook::Throttling, &answer);
            match answer {
                Ok(limits) => {
                    let scope = Arc::clone(&self.generation.scopes[policy]);
                    charges.push(Charge { scope, limits });
                }
                Err(failure) => {
                    let name = self.failed(policy, &failure);
                    match self.generation.policies.policies()[policy].fail_mode(Hook::Throttling) {
                        FailMode::Ignore => {}
                        FailMode::Hold | FailMode::Defer => {
                            return Err(Verdict::Defer(to_reply(&policy_failed(&name))));
                        }
                    }
                }
            }
        }
        Ok(charges)
    }

    /// Has the shadows asked that would be one more policy; nothing comes of it.
    fn ask_beside<'a>(
        &'a self,
        hook: Hook,
        those: Range<usize>,
        ask: impl FnOnce(&'a Transaction<'a>) -> Ask<'a>,
    ) {
        let set = &self.generation.policies;
        if set.has_added(hook) {
            let ask = ask(&self.transaction);
            with_policies(&self.relay.policy_host, |policies| {
                policies.beside(set, hook, those, ask);
            });
        }
    }

    /// Tells that a policy failed; returns its name.
    fn failed(&self, policy: usize, failure: &PolicyFailure) -> String {
        let name = self.generation.policies.policies()[policy].name().to_owned();
        self.relay.emit(&Event::PolicyFailed { policy: &name, error: &failure.to_string() });
        name
    }

    fn note(&mut self, policy: &str, hook: &'static str, answer: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push(Note { policy: policy.to_owned(), hook, answer: answer() });
        }
    }

    fn note_answer<T: std::fmt::Display>(
        &mut self,
        policy: usize,
        hook: Hook,
        answer: &Result<T, PolicyFailure>,
    ) {
        if self.notes.is_some() {
            let name = self.generation.policies.policies()[policy].name().to_owned();
            self.note(&name, hook.as_str(), || match answer {
                Ok(decision) => decision.to_string(),
                Err(failure) => format!("failed: {failure}"),
            });
        }
    }
}

/// Why the plan holds an instance's mail, for the client's log.
fn hold_reason(view: &InstanceView<'_>) -> String {
    let name = view.name;
    match view.window {
        Some(window) => format!(
            "instance {name} is {} until {} (wave {})",
            view.phase, window.closes, window.wave
        ),
        None => format!("instance {name} is {}", view.phase),
    }
}

/// There is no upstream for it now.
fn defer(error: &Unplaced) -> Verdict {
    let status = match error {
        Unplaced::Full { .. } => Enhanced(4, 3, 2),
        Unplaced::Forbidden { .. } | Unplaced::NotRedirected(_) => Enhanced(4, 3, 5),
    };
    Verdict::Defer(relay_reply(451, status, &error.to_string()))
}

fn policy_failed(name: &str) -> PolicyReply {
    PolicyReply {
        code: 451,
        enhanced: "4.3.0".to_owned(),
        text: format!("policy {name} failed; try again later"),
    }
}

/// A policy's reply as one of ours. The policy host has checked it.
fn to_reply(reply: &PolicyReply) -> Reply {
    let mut parts = reply.enhanced.split('.').map(|part| part.parse::<u16>().unwrap_or(0));
    let class = parts.next().and_then(|class| u8::try_from(class).ok());
    let class = class.unwrap_or(if reply.code >= 500 { 5 } else { 4 });
    let enhanced = Enhanced(class, parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    relay_reply(reply.code, enhanced, &reply.text)
}
