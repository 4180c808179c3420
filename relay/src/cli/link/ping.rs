//! `wavegate link ping`: whether the gateways of a link are there, and how far away. Floor 4.

use std::io::{self, Write};

use clap::Args;
use hyper::Method;

use crate::{
    cli::{
        client::Where,
        output::{clean, field, json},
    },
    control::wire::Ping,
    links::{Pinged, PingedTarget},
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct PingArgs {
    /// The upstream.
    #[arg(value_name = "UPSTREAM")]
    upstream: String,
    #[command(flatten)]
    place: Where,
    /// How often each gateway is asked.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Has the relay ask and prints; 1 where a gateway is not there.
pub(super) fn ping(args: &PingArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let path = format!("/v1/links/{}/ping", args.upstream);
    let pinged: Pinged = args.place.send(Method::POST, &path, &Ping { count: args.count })?;
    if args.json {
        json(out, &pinged)?;
    } else {
        pinged.targets.iter().try_for_each(|target| print(target, out))?;
    }
    Ok(u8::from(pinged.targets.iter().any(|target| target.error.is_some())))
}

fn print(target: &PingedTarget, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", clean(&target.target))?;
    if let Some(gateway) = &target.gateway {
        field(out, "gateway", clean(gateway))?;
        field(out, "opened in", milliseconds(target.opened_us))?;
    }
    let all = &target.round_trips_us;
    if let (Some(least), Some(most)) = (all.iter().min(), all.iter().max()) {
        let mean = all.iter().sum::<u64>() / all.len() as u64;
        let [least, mean, most] = [*least, mean, *most].map(milliseconds);
        field(out, "round trip", format!("{least} least, {mean} mean, {most} most"))?;
    }
    match &target.error {
        Some(error) => field(out, "error", clean(error)),
        None => Ok(()),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}
