//! Values as people write them (`"60s"`, `"256kB"`, `"127.0.0.0/8"`) and their types. Owns the
//! spelling of each; knows neither keys nor files. Floor 1.
//!
//! Every parser answers with the value, or with a message that says what would be right.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::Rate;
use crate::plan::Timestamp;

/// Longest name of an instance, wave, upstream and so on: they become metric labels.
const NAME_MAX: usize = 64;
/// Longest text for people, such as a reason.
const LINE_MAX: usize = 500;
/// Longest domain (RFC 5321 4.5.3.1.2).
const DOMAIN_MAX: usize = 255;
/// Longest part of a domain between dots (RFC 1035 2.3.4).
const LABEL_MAX: usize = 63;
/// As much of a bad value as a message repeats.
const QUOTE_MAX: usize = 60;

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// `text` in quotes for a message, shortened, control characters escaped.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// `"60s"`, `"200ms"`, `"5min"`, `"1h"`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = |hint: &str| {
        Err(format!(
            "{} is not a duration; {hint}write a whole number with ms, s, min, h or d, such as \
             \"60s\"",
            quote(text)
        ))
    };
    let Some((number, unit)) = number_and_unit(text) else {
        return bad("");
    };
    match DURATION_UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, ms)) => match number.checked_mul(*ms) {
            Some(ms) => Ok(Duration::from_millis(ms)),
            None => bad("it is too large; "),
        },
        None if unit.is_empty() => bad("it has no unit; "),
        None if unit == "m" => bad("minutes are min; "),
        None => bad(""),
    }
}

/// `"100/s"`, `"2000/min"`, `"5/10s"`: so many in a time, 1 s to a day.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let read = || {
        let (count, time) = text.split_once('/')?;
        let count = count.parse().ok().filter(|count| (1..=1_000_000_000).contains(count))?;
        let one = if time.starts_with(|first: char| first.is_ascii_digit()) { "" } else { "1" };
        let time = duration(&format!("{one}{time}")).ok()?;
        let per_ms = u64::try_from(time.as_millis()).ok()?;
        (1000..=86_400_000).contains(&per_ms).then_some(Rate { count, per_ms })
    };
    read().ok_or_else(|| {
        format!(
            "{} is not a rate; write so many in a time (1s to 1d), such as \"100/min\" or \"5/10s\"",
            quote(text)
        )
    })
}

/// A duration as one would write it.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms == 0 {
        return "\"0s\"".to_owned();
    }
    let unit = DURATION_UNITS.iter().rev().find(|(_, unit)| ms.is_multiple_of(u128::from(*unit)));
    let (name, unit) = unit.unwrap_or(&DURATION_UNITS[0]);
    format!("\"{}{name}\"", ms / u128::from(*unit))
}

/// `"256kB"`, `"50MB"`, `"1GiB"`, or plain bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bad = |hint: &str| {
        Err(format!(
            "{} is not a size; {hint}write a whole number of bytes, or one with kB, MB, GB, TB \
             (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024), such as \"256KiB\"",
            quote(text)
        ))
    };
    let Some((number, unit)) = number_and_unit(text) else {
        return bad("");
    };
    let factor = match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return bad(""),
    };
    match number.checked_mul(factor) {
        Some(bytes) => Ok(bytes),
        None => bad("it is too large; "),
    }
}

/// A size as one would write it.
pub(super) fn show_size(bytes: u64) -> String {
    let by_1024 = SIZE_UNITS[5..].iter().rev();
    let by_1000 = SIZE_UNITS[1..5].iter().rev();
    match by_1024.chain(by_1000).find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("\"{}{name}\"", bytes / unit),
        None => bytes.to_string(),
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

/// `"127.0.0.1:2525"`, `"[::1]:2525"`.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let what = if text.parse::<IpAddr>().is_ok() {
        "has no port"
    } else if text.ends_with(|c: char| c.is_ascii_digit()) && domain_of(text) {
        "is a host name, which is not looked up here"
    } else {
        "is not an address"
    };
    Err(format!(
        "{} {what}; write IP:PORT, such as \"127.0.0.1:2525\" or \"[::1]:2525\"",
        quote(text)
    ))
}

fn domain_of(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, _)| {
        host.contains(|c: char| c.is_ascii_alphabetic()) && domain(host).is_ok()
    })
}

/// `"127.0.0.0/8"`, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let net = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) => net,
        (_, Ok(address)) => IpNet::from(address),
        _ => {
            return Err(format!(
                "{} is not a network; write ADDRESS/BITS or one address, such as \
                 \"192.0.2.0/24\" or \"2001:db8::/32\"",
                quote(text)
            ));
        }
    };
    if net.addr() != net.network() {
        return Err(format!(
            "{} has bits beyond its prefix; write \"{}\" for the network or \"{}\" for the one \
             address",
            quote(text),
            net.trunc(),
            IpNet::from(net.addr())
        ));
    }
    // Clients that come in over IPv4 are compared as IPv4, whatever the socket is.
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let bits = v6.prefix_len() - 96;
        return Err(format!("{} is an IPv4 network; write \"{v4}/{bits}\"", quote(text)));
    }
    Ok(net)
}

/// A name: it becomes a metric label and part of messages.
pub(super) fn name(text: &str) -> Result<String, String> {
    let good = text.len() <= NAME_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if good {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not a name; use 1 to {NAME_MAX} letters, digits, \".\", \"_\" and \"-\", the first \
         a letter or digit",
        quote(text)
    ))
}

/// A domain in lower case; U-labels are allowed (RFC 6531 3.3).
pub(super) fn domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| {
                c.is_ascii_alphanumeric()
                    || c == '-'
                    || c == '_'
                    || (!c.is_ascii() && !c.is_control())
            })
    };
    let lower = text.to_lowercase();
    if lower.len() <= DOMAIN_MAX && lower.split('.').all(label) {
        return Ok(lower);
    }
    Err(format!("{} is not a domain; write one such as \"mkt.acme.example\"", quote(text)))
}

/// A domain of senders, or, with a dot in front, all domains below it.
pub(super) fn sender(text: &str) -> Result<String, String> {
    if let Some((_, domain)) = text.rsplit_once('@') {
        return Err(format!(
            "{} is an address; write its domain only: {}",
            quote(text),
            quote(domain)
        ));
    }
    if let Some(below) = text.strip_prefix('*') {
        return Err(format!(
            "{} is a pattern; write {} for all domains below",
            quote(text),
            quote(below)
        ));
    }
    match text.strip_prefix('.') {
        Some(below) if domain(below).is_ok() => Ok(text.to_lowercase()),
        _ => domain(text),
    }
}

/// What may stand in EHLO: an ASCII domain or an address literal (RFC 5321 4.1.1.1, 4.1.3).
pub(super) fn hostname(text: &str) -> Result<String, String> {
    let literal = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let good = match literal {
        Some(inner) => match inner.strip_prefix("IPv6:") {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
            None => inner.parse::<Ipv4Addr>().is_ok(),
        },
        None => {
            let address = text.parse::<IpAddr>().is_ok();
            text.is_ascii() && !text.contains('_') && !address && domain(text).is_ok()
        }
    };
    if good {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not a host name; write this host's full name, such as \"edge-1.example.net\", or \
         an address literal, such as \"[192.0.2.1]\"",
        quote(text)
    ))
}

/// RFC 3339 with an offset.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let bad = |what: &str| {
        Err(format!(
            "{} {what}; write RFC 3339 with an offset, such as \"2026-01-20T06:00:00Z\" or \
             \"2026-01-20T07:00:00+01:00\"",
            quote(text)
        ))
    };
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => match u64::try_from(time.as_millisecond()) {
            Ok(ms) => Ok(Timestamp(ms)),
            Err(_) => bad("is before 1970"),
        },
        Err(_) if text.parse::<jiff::civil::DateTime>().is_ok() => bad("has no offset"),
        Err(_) => bad("is not a time"),
    }
}

/// A date, which begins at midnight UTC, or a time with an offset.
pub(super) fn date_or_time(text: &str) -> Result<Timestamp, String> {
    match text.parse::<jiff::civil::Date>() {
        Ok(_) if !text.contains(['T', 't', ' ']) => time(&format!("{text}T00:00:00Z")),
        _ => time(text),
    }
}

/// Text for people, on one line.
pub(crate) fn line(text: &str) -> Result<String, String> {
    let good = !text.trim().is_empty()
        && text.trim() == text
        && text.len() <= LINE_MAX
        && !text.chars().any(char::is_control);
    if good {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} cannot be shown; write 1 to {LINE_MAX} bytes on one line, without white space around",
        quote(text)
    ))
}

/// The one of `known` that `text` most likely meant.
pub(crate) fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text: Vec<char> = text.chars().take(NAME_MAX + 1).collect();
    if text.len() > NAME_MAX {
        return None;
    }
    let allowed = (text.len() / 3).max(1);
    known
        .into_iter()
        .filter(|name| name.len().abs_diff(text.len()) <= allowed)
        .map(|name| (edits(&text, name), name))
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn edits(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let same = a[i - 1].eq_ignore_ascii_case(&b[j - 1]);
            let mut best = (row[j - 1] + usize::from(!same)).min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

/// `"a", "b" or "c"`.
pub(super) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
