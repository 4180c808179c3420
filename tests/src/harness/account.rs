//! What came of a steady load: what was lost, what came twice, and whether somebody had said so.
//!
//! Owns the comparison of three accounts: the senders', the sink's, and the event logs'. Floor: none
//! (but that event logs are files).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;

use crate::{
    load::steady::{Said, SteadyOptions, body_digest, number_of},
    sink::Message,
};

/// What came of all messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Messages that were answered 250.
    pub accepted: usize,
    /// Those that were refused, or of which nothing was said.
    pub others: usize,
    /// Numbers of what was answered 250 and has not come.
    pub lost: Vec<u64>,
    /// Numbers of what came with another content than it was sent with.
    pub damaged: Vec<u64>,
    /// What came more than once and was said to: its number.
    pub explained: Vec<u64>,
    /// What came more than once and was not: its number, with the ids that relays gave it.
    pub unexplained: Vec<(u64, BTreeSet<String>)>,
}

/// Compares what senders were told with what came, and what came twice with the ids `in_doubt`.
pub fn account(
    options: &SteadyOptions,
    said: &[(u64, Said)],
    came: &[Message],
    in_doubt: &BTreeSet<String>,
) -> Account {
    let mut account = Account::default();
    let mut arrived = BTreeMap::<u64, (usize, BTreeSet<String>)>::new();
    for message in came {
        let header = String::from_utf8_lossy(message.content.as_deref().unwrap_or_default());
        // What has no number is not of this load.
        let Some(number) = number_of(&header) else { continue };
        let entry = arrived.entry(number).or_default();
        entry.0 += 1;
        entry.1.extend(ids(&header));
        if message.body_digest != body_digest(options, number) {
            account.damaged.push(number);
        }
    }
    for (number, said) in said {
        match said {
            Said::Accepted => account.accepted += 1,
            Said::Refused(_) | Said::Nothing => account.others += 1,
        }
        if *said == Said::Accepted && !arrived.contains_key(number) {
            account.lost.push(*number);
        }
    }
    for (number, (_, ids)) in arrived.into_iter().filter(|(_, (times, _))| *times > 1) {
        if ids.is_disjoint(in_doubt) {
            account.unexplained.push((number, ids));
        } else {
            account.explained.push(number);
        }
    }
    account
}

/// The ids that relays gave a message, from its Received lines (RFC 5321 4.4).
fn ids(header: &str) -> impl Iterator<Item = String> {
    let unfolded = header.replace("\r\n\t", " ").replace("\r\n ", " ");
    let lines: Vec<String> = unfolded
        .split("\r\n")
        .filter(|line| line.starts_with("Received:"))
        .filter_map(|line| {
            let (_, rest) = line.split_once(" id ")?;
            Some(rest.split([' ', ';']).next()?.to_owned())
        })
        .collect();
    lines.into_iter()
}

/// The ids that an event log says may arrive twice. A line that was cut off by `kill -9` is none.
pub fn in_doubt_events(file: &Path) -> BTreeSet<String> {
    let text = fs::read(file).unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        if event["event"] == "in_doubt"
            && let Some(id) = event["id"].as_str()
        {
            found.insert(id.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Recipient, Told};

    fn options() -> SteadyOptions {
        let target = ([127, 0, 0, 1], 25).into();
        SteadyOptions { target, sessions: 1, accepted: 1, body: 500, even: false }
    }

    fn message(number: u64, id: &str) -> Message {
        let header = format!(
            "Received: from a ([127.0.0.1])\r\n by b with ESMTP\r\n id {id};\r\n\
             \tMon, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{number}@mkt.acme.example>\r\n\r\n"
        );
        Message {
            at_ms: 0,
            helo: String::new(),
            told: Told::new(),
            session: 1,
            from: String::new(),
            parameters: Vec::new(),
            to: Vec::<Recipient>::new(),
            chunked: false,
            size: 0,
            digest: String::new(),
            body_digest: body_digest(&options(), number),
            proper: true,
            content: Some(header.into_bytes()),
        }
    }

    #[test]
    fn what_is_lost_damaged_or_came_twice_is_found() {
        let mut bent = message(3, "C");
        bent.body_digest.clear();
        let came = [
            message(1, "A"),
            message(2, "B"),
            message(2, "B"),
            bent,
            message(5, "E"),
            message(5, "F"),
        ];
        let said = [
            (1, Said::Accepted),
            (2, Said::Accepted),
            (3, Said::Accepted),
            (4, Said::Accepted),
            (5, Said::Nothing),
            (6, Said::Refused(451)),
        ];
        let in_doubt = BTreeSet::from(["F".to_owned(), "X".to_owned()]);
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect();
        let expected = Account {
            accepted: 4,
            others: 2,
            lost: vec![4],
            damaged: vec![3],
            explained: vec![5],
            unexplained: vec![(2, ids(&["B"]))],
        };
        assert_eq!(account(&options(), &said, &came, &in_doubt), expected);
    }
}
