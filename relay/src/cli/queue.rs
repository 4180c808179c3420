//! `wavegate queue`, `hold-all` and `release-all`: what waits in a running relay, and changes to
//! it. Floor 4.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use hyper::Method;

use super::{
    Failed,
    client::Where,
    exit,
    output::{age, clean, count, dry_run_note, field, json},
};
use crate::{
    control::wire::{Change, Changed, HoldAll, Item, List, Show, Why},
    message::MessageId,
    queue::{Refusal, Selection, Standing},
};

/// Written where all messages are meant.
const ALL: &str = "ALL";

#[derive(Clone, Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// The oldest messages that wait.
    List(ListArgs),
    /// Everything about one message: what it waits for, and since when.
    Show(ShowArgs),
    /// Keep messages until they are released.
    Hold(ChangeArgs),
    /// Let go what an operator holds.
    Release(ChangeArgs),
    /// Give messages their turn now.
    Retry(ChangeArgs),
    /// Take messages out without a word to their senders.
    Remove(ChangeArgs),
    /// Take messages out and tell their senders.
    Bounce(ChangeArgs),
}

/// Which messages. One criterion given several times is met by one of its values.
#[derive(Clone, Debug, Args)]
pub(super) struct Criteria {
    /// Of this instance; "(none)" is the mail of none.
    #[arg(long, value_name = "NAME")]
    instance: Vec<String>,
    /// That go to this upstream, as of the latest decision.
    #[arg(long, value_name = "NAME")]
    upstream: Vec<String>,
    /// With a recipient in this domain.
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// From this address, "@domain" or "<>".
    #[arg(long, value_name = "SENDER")]
    sender: Vec<String>,
    /// That stand there: ready, blocked, later, held, in_flight or in_doubt.
    #[arg(long, value_name = "STATE")]
    state: Vec<Standing>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    criteria: Criteria,
    /// So many at most; all are counted.
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=10_000))]
    limit: u32,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    place: Where,
    /// The message.
    #[arg(value_name = "ID")]
    id: MessageId,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    criteria: Criteria,
    /// These messages; or ALL, in capital letters, for all that wait.
    #[arg(value_name = "ID|ALL")]
    ids: Vec<String>,
    /// Why, for those who come after.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct HoldAllArgs {
    #[command(flatten)]
    place: Where,
    /// Why, for those who come after.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Asks the relay and prints.
pub(super) fn queue(command: &QueueCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        QueueCommand::List(args) => list(args, out),
        QueueCommand::Show(args) => show(args, out),
        QueueCommand::Hold(args) => change("hold", args, out),
        QueueCommand::Release(args) => change("release", args, out),
        QueueCommand::Retry(args) => change("retry", args, out),
        QueueCommand::Remove(args) => change("remove", args, out),
        QueueCommand::Bounce(args) => change("bounce", args, out),
    }
}

impl Criteria {
    fn selection(&self, ids: Vec<MessageId>) -> Selection {
        Selection {
            ids,
            instances: self.instance.clone(),
            upstreams: self.upstream.clone(),
            domains: self.domain.clone(),
            senders: self.sender.clone(),
            states: self.state.clone(),
        }
    }

    fn query(&self, limit: u32) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let texts = [
            ("instance", &self.instance),
            ("upstream", &self.upstream),
            ("domain", &self.domain),
            ("sender", &self.sender),
        ];
        for (name, values) in texts {
            query.extend_pairs(values.iter().map(|value| (name, value)));
        }
        query.extend_pairs(self.state.iter().map(|state| ("state", state.as_str())));
        query.append_pair("limit", &limit.to_string());
        query.finish()
    }
}

fn list(args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let list: List = args.place.get(&format!("/v1/queue?{}", args.criteria.query(args.limit)))?;
    if args.json {
        json(out, &list)?;
        return Ok(0);
    }
    print_held(out, list.all_held.as_deref())?;
    let shown = list.oldest.len();
    let rest = if shown as u64 == list.messages { "" } else { ", the oldest are shown" };
    writeln!(out, "{}{rest}", totals(list.messages, list.recipients))?;
    print_unreadable(out, list.unreadable)?;
    for item in &list.oldest {
        print_item(out, item)?;
    }
    Ok(0)
}

fn totals(messages: u64, recipients: u64) -> String {
    let number = |of: u64| usize::try_from(of).unwrap_or(usize::MAX);
    format!("{}, {}", count(number(messages), "message"), count(number(recipients), "recipient"))
}

fn print_held(out: &mut dyn Write, reason: Option<&str>) -> io::Result<()> {
    match reason {
        Some(reason) => {
            let reason = clean(reason);
            writeln!(out, "EVERYTHING IS HELD: {reason} (wavegate release-all ends it)")
        }
        None => Ok(()),
    }
}

fn print_unreadable(out: &mut dyn Write, unreadable: u64) -> io::Result<()> {
    match unreadable {
        0 => Ok(()),
        some => writeln!(out, "{some} more cannot be read, and so not be compared: see the log"),
    }
}

fn print_item(out: &mut dyn Write, item: &Item) -> io::Result<()> {
    let Item { id, state, instance, sender, recipient, recipients, .. } = item;
    let instance = instance.as_deref().unwrap_or("-");
    let sender = sender.as_deref().map_or("?".to_owned(), |sender| format!("<{}>", clean(sender)));
    let recipient = recipient.as_deref().map_or("?".to_owned(), |one| format!("<{}>", clean(one)));
    let more = match recipients {
        0 | 1 => String::new(),
        some => format!(" and {} more", some - 1),
    };
    let age = age(item.age);
    writeln!(out, "{id}  {state:<9}  {age:>8}  {instance}  {sender} -> {recipient}{more}")?;
    writeln!(out, "                  waits for {}", clean(&item.waits_for))
}

fn show(args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let show: Show = args.place.get(&format!("/v1/queue/{}", args.id))?;
    if args.json {
        json(out, &show)?;
        return Ok(0);
    }
    print_held(out, show.all_held.as_deref())?;
    let item = &show.item;
    writeln!(out, "{}", item.id)?;
    let mut waits_for = clean(&item.waits_for);
    if show.all_held.is_some() {
        waits_for.push_str("; and everything is held");
    }
    field(out, "waits for", waits_for)?;
    field(out, "state", format!("{}, since {}", item.state, item.since))?;
    field(out, "instance", item.instance.as_deref().unwrap_or("-"))?;
    field(out, "upstream", item.upstream.as_deref().unwrap_or("-"))?;
    match &show.last {
        Some(last) => {
            let upstream = last.upstream.as_deref().unwrap_or("-");
            field(out, "last word", format!("{} ({upstream}, {})", clean(&last.text), last.time))?;
        }
        None => field(out, "last word", "-")?,
    }
    field(out, "attempts", item.attempts)?;
    field(out, "received", format!("{}, {} ago", item.received, age(item.age)))?;
    let held = age(show.held);
    match &show.expires {
        Some(time) => field(out, "expires", format!("{time}; held for {held}"))?,
        None => field(out, "expires", format!("not while it is held; held for {held}"))?,
    }
    if let Some(upstream) = &show.in_doubt {
        field(out, "in doubt", format!("upstream {upstream} may have it already"))?;
    }
    if let Some(error) = &show.unreadable {
        field(out, "unreadable", clean(error))?;
    }
    let or_dash = |text: &Option<String>| clean(text.as_deref().unwrap_or("-"));
    let (client, helo) = (or_dash(&show.client), or_dash(&show.helo));
    field(out, "client", format!("{client} ({helo}), by {}", or_dash(&show.listener)))?;
    if let Some(destination) = &show.destination {
        field(out, "destination", format!("{} before it was redirected", clean(destination)))?;
    }
    if let Some(user) = &show.user {
        field(out, "logged in as", clean(user))?;
    }
    field(out, "size", format!("{} bytes", item.size))?;
    field(out, "sender", format!("<{}>", or_dash(&item.sender)))?;
    for (at, one) in show.envelope.iter().enumerate() {
        let label = if at == 0 { "recipients" } else { "" };
        let end = if one.ended { "ended" } else { "waits" };
        field(out, label, format!("{end}  <{}>", clean(&one.address)))?;
    }
    Ok(0)
}

/// The messages of a change: ids, criteria, or `ALL`.
fn meant(args: &ChangeArgs) -> Result<(Selection, bool), Failed> {
    let usage = |text: String| Failed::new(exit::USAGE, text);
    let all = args.ids.iter().any(|id| id == ALL);
    let ids = args.ids.iter().filter(|id| *id != ALL).map(|id| {
        id.parse().map_err(|error| {
            let hint = if id.eq_ignore_ascii_case(ALL) {
                "; where all messages are meant, write ALL in capital letters".to_owned()
            } else {
                format!(": {error}")
            };
            usage(format!("{id}{hint}"))
        })
    });
    let selection = args.criteria.selection(ids.collect::<Result<_, _>>()?);
    match (selection.is_all(), all) {
        (true, false) => Err(usage(
            "which messages? Give ids, or criteria such as --instance, or ALL in capital letters"
                .to_owned(),
        )),
        (false, true) => Err(usage("ALL and a selection: which is meant?".to_owned())),
        _ => Ok((selection, all)),
    }
}

fn change(action: &str, args: &ChangeArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let (selection, all) = meant(args)?;
    let change = Change { selection, all, reason: args.reason.clone(), dry_run: args.dry_run };
    let path = format!("/v1/queue/{action}");
    let changed: Changed = args.place.send(Method::POST, &path, &change)?;
    match args.json {
        true => json(out, &changed)?,
        false => print_changed(out, action, &changed)?,
    }
    Ok(code(&changed))
}

/// Asks for attention where what was named was not changed, and might have been.
fn code(changed: &Changed) -> u8 {
    let has = |why: Refusal| changed.refused.iter().any(|refused| refused.why == why);
    if has(Refusal::Unknown) {
        exit::NO_INPUT
    } else if has(Refusal::InFlight) || has(Refusal::InDoubt) || has(Refusal::Failed) {
        exit::TEMPORARY
    } else {
        0
    }
}

fn print_changed(out: &mut dyn Write, action: &str, changed: &Changed) -> io::Result<()> {
    print_held(out, changed.all_held.as_deref())?;
    let would = dry_run_note(changed.dry_run);
    writeln!(out, "{action}: {}{would}", totals(changed.messages, changed.recipients))?;
    print_ids(out, &changed.ids, changed.messages)?;
    for refused in &changed.refused {
        writeln!(out, "not {}: {}", totals_of(refused.messages), refused.text)?;
        print_ids(out, &refused.ids, refused.messages)?;
    }
    print_unreadable(out, changed.unreadable)
}

fn totals_of(messages: u64) -> String {
    count(usize::try_from(messages).unwrap_or(usize::MAX), "message")
}

fn print_ids(out: &mut dyn Write, ids: &[MessageId], of: u64) -> io::Result<()> {
    for id in ids {
        writeln!(out, "  {id}")?;
    }
    match of.saturating_sub(ids.len() as u64) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

/// The kill switch.
pub(super) fn hold_all(args: &HoldAllArgs, hold: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let why = Why { reason: args.reason.clone() };
    let method = if hold { Method::PUT } else { Method::DELETE };
    let answer: HoldAll = args.place.send(method, "/v1/hold-all", &why)?;
    if args.json {
        json(out, &answer)?;
        return Ok(0);
    }
    print_held(out, answer.all_held.as_deref())?;
    if !hold {
        writeln!(out, "mail may leave again")?;
    }
    let waiting = totals_of(answer.messages);
    let going = answer.in_flight;
    writeln!(out, "{waiting} in the spool; {going} under way, which go on to their end")?;
    Ok(0)
}
