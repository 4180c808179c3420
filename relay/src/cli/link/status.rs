//! `wavegate link status`: the links of a running relay. Floor 4.

use std::io::{self, Write};

use clap::Args;

use crate::{
    cli::{
        client::Where,
        output::{clean, field, json, table},
    },
    links::{Count, EdgeLink, GatewayLink, Links, Path},
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    #[command(flatten)]
    place: Where,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Asks the relay and prints; 1 where a link is down.
pub(super) fn status(args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let links: Links = args.place.get("/v1/links")?;
    if args.json {
        json(out, &links)?;
    } else {
        print(&links, out)?;
    }
    Ok(u8::from(links.edges.iter().any(|link| link.down)))
}

fn print(links: &Links, out: &mut dyn Write) -> io::Result<()> {
    if links.edges.is_empty() && links.gateways.is_empty() {
        writeln!(out, "this relay has no link (type = \"link\")")?;
    }
    links.edges.iter().try_for_each(|link| edge(link, out))?;
    links.gateways.iter().try_for_each(|link| gateway(link, out))
}

fn edge(link: &EdgeLink, out: &mut dyn Write) -> io::Result<()> {
    let state = if link.down { "down" } else { "up" };
    writeln!(out, "upstream {}: {state}", clean(&link.upstream))?;
    let fallback = link.fallback.as_deref().map_or("none".to_owned(), clean);
    field(out, "fallback", format!("{fallback}, {} messages", link.fallbacks))?;
    let (streams, most, doubts) = (link.streams, link.streams_limit, link.in_doubt);
    field(out, "messages", format!("{streams} of {most} on their way, {doubts} in doubt"))?;
    let (again, resumed, known) = (link.reconnects, link.resumed, link.known);
    field(
        out,
        "lost",
        format!("{again} connections; {resumed} messages asked again, {known} known"),
    )?;
    let rows = link.connections.iter().map(|one| {
        let who = [&one.target, &one.gateway, &one.incarnation].map(|text| clean(text));
        [vec!["   ".to_owned()], who.to_vec(), path(&one.path)].concat()
    });
    connections(["target", "gateway", "process"], rows.collect(), out)
}

fn gateway(link: &GatewayLink, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "listener {} ({})", clean(&link.listener), clean(&link.address))?;
    let (messages, now, away) = (link.messages, link.in_progress, link.turned_away);
    field(out, "messages", format!("{messages}, {now} under way, {away} turned away"))?;
    let (seen, most, known) = (link.seen, link.seen_limit, link.known);
    field(out, "remembered", format!("{seen} of {most}, {known} asked for again"))?;
    field(out, "refused", counts(&link.refused))?;
    field(out, "errors", counts(&link.errors))?;
    let rows = link.connections.iter().map(|one| {
        let who = [clean(&one.peer), clean(&one.address), one.path.messages.to_string()];
        [vec!["   ".to_owned()], who.to_vec(), path(&one.path)].concat()
    });
    connections(["peer", "address", "messages"], rows.collect(), out)
}

fn connections(who: [&str; 3], rows: Vec<Vec<String>>, out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return field(out, "", "no connection now");
    }
    let how = ["rtt ms", "lost", "window kB", "streams", "since"];
    let head: Vec<String> =
        ["   "].iter().chain(&who).chain(&how).map(|&text| text.to_owned()).collect();
    table(out, &[vec![head], rows].concat())
}

/// How a connection fares, as cells.
fn path(path: &Path) -> Vec<String> {
    let lost = path.lost.saturating_mul(10_000).checked_div(path.packets).unwrap_or(0);
    vec![
        format!("{}.{:02}", path.rtt_us / 1000, path.rtt_us % 1000 / 10),
        format!("{}.{:02} %", lost / 100, lost % 100),
        (path.window / 1000).to_string(),
        path.streams.to_string(),
        clean(&path.since),
    ]
}

fn counts(all: &[Count]) -> String {
    let there = all.iter().filter(|one| one.count > 0);
    let texts: Vec<String> =
        there.map(|one| format!("{} {}", clean(&one.what), one.count)).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}
