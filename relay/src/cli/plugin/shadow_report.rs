//! `wavegate plugin shadow-report`: what shadows of a running relay would change. Floor 4.

use std::io::{self, Write};

use clap::Args;

use crate::{
    cli::{
        Failed,
        client::Where,
        exit,
        output::{clean, field, json, table},
    },
    control::wire::{Shadow, ShadowExample, ShadowList},
    decision::record::Class,
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct ShadowReportArgs {
    #[command(flatten)]
    place: Where,
    /// Only this policy.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Asks the relay and prints.
pub(super) fn shadow_report(args: &ShadowReportArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut list: ShadowList = args.place.get("/v1/shadows")?;
    if let Some(name) = &args.name {
        list.shadows.retain(|shadow| shadow.policy == *name);
        if list.shadows.is_empty() {
            let text = format!("{name} has not been a shadow since the relay was started");
            return Err(Failed::new(exit::NO_INPUT, text).into());
        }
    }
    if args.json {
        json(out, &list)?;
        return Ok(0);
    }
    if list.shadows.is_empty() {
        writeln!(out, "no policy has been a shadow since the relay was started")?;
    }
    for shadow in &list.shadows {
        print(shadow, out)?;
    }
    Ok(0)
}

fn print(shadow: &Shadow, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", clean(&shadow.policy))?;
    let replaces = match &shadow.replaces {
        Some(name) => format!("would replace {}", clean(name)),
        None => "would be one more policy".to_owned(),
    };
    match shadow.percent {
        Some(percent) => field(out, "shadow", format!("of {percent} % of buckets; {replaces}"))?,
        None => field(out, "shadow", "not any more")?,
    }
    let Some(since) = &shadow.since else {
        field(out, "asked", "nothing yet")?;
        return field(out, "dropped", shadow.dropped);
    };
    field(out, "plugin", clean(&shadow.digest))?;
    field(out, "since", clean(since))?;
    let each = shadow.time_us.checked_div(shadow.asked).unwrap_or(0);
    field(out, "asked", format!("{}, {each} us each", shadow.asked))?;
    field(out, "dropped", shadow.dropped)?;
    let rows: Vec<Vec<String>> = shadow
        .classes
        .iter()
        .filter(|one| one.answers > 0 || one.class == Class::Same)
        .map(|one| {
            let part = percentage(one.answers, shadow.asked);
            vec![format!("    {}", one.class), one.answers.to_string(), part]
        })
        .collect();
    table(out, &rows)?;
    if !shadow.failures.is_empty() {
        let failures: Vec<String> = shadow
            .failures
            .iter()
            .map(|one| format!("{} {}", clean(&one.kind), one.calls))
            .collect();
        field(out, "failures", failures.join(", "))?;
    }
    for example in &shadow.examples {
        print_example(example, out)?;
    }
    Ok(())
}

fn print_example(example: &ShadowExample, out: &mut dyn Write) -> io::Result<()> {
    let ShadowExample { class, message, function, at, old, new } = example;
    let message = message.as_deref().map_or("-".to_owned(), clean);
    writeln!(out, "    {class}: {function} {message}, {at}")?;
    writeln!(out, "      old  {}", clean(old))?;
    writeln!(out, "      new  {}", clean(new))
}

/// To a hundredth, and never 0 or 100 of what is not none or all.
fn percentage(some: u64, all: u64) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    let hundredths = u128::from(some) * 10_000 / u128::from(all);
    match hundredths {
        0 if some > 0 => "< 0.01 %".to_owned(),
        _ => format!("{}.{:02} %", hundredths / 100, hundredths % 100),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

    use super::*;
    use crate::control::wire::{ShadowClass, ShadowFailures};

    #[test]
    fn percentages_do_not_flatter() {
        assert_eq!(percentage(0, 0), "-");
        assert_eq!(percentage(0, 7), "0.00 %");
        assert_eq!(percentage(1, 100_000), "< 0.01 %");
        assert_eq!(percentage(99_999, 100_000), "99.99 %");
        assert_eq!(percentage(u64::MAX, u64::MAX), "100.00 %");
        assert_eq!(percentage(1, 8), "12.50 %");
    }

    #[test]
    fn a_report_says_what_would_change() {
        let shadow = Shadow {
            policy: "freeze-2".to_owned(),
            percent: Some(50),
            replaces: Some("freeze".to_owned()),
            digest: "abc".to_owned(),
            since: Some("2026-01-20T06:00:00Z".to_owned()),
            asked: 8,
            dropped: 3,
            time_us: 80,
            classes: Class::ALL
                .iter()
                .map(|&class| ShadowClass {
                    class,
                    answers: match class {
                        Class::Same => 7,
                        Class::Harder => 1,
                        _ => 0,
                    },
                })
                .collect(),
            failures: vec![ShadowFailures { kind: "trap".to_owned(), calls: 2 }],
            examples: vec![ShadowExample {
                class: Class::Harder,
                message: Some("1KFCWC94AJ4G4Q61".to_owned()),
                function: "freeze.decide".to_owned(),
                at: "2026-01-20T06:00:01Z".to_owned(),
                old: "proceed".to_owned(),
                new: "hold: \u{1b}[31m".to_owned(),
            }],
        };
        let mut out = Vec::new();
        print(&shadow, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "freeze-2\n  \
             shadow      of 50 % of buckets; would replace freeze\n  \
             plugin      abc\n  \
             since       2026-01-20T06:00:00Z\n  \
             asked       8, 10 us each\n  \
             dropped     3\n    \
             same    7  87.50 %\n    \
             harder  1  12.50 %\n  \
             failures    trap 2\n    \
             harder: freeze.decide 1KFCWC94AJ4G4Q61, 2026-01-20T06:00:01Z\n      \
             old  proceed\n      \
             new  hold: ?[31m\n"
        );
    }
}
