//! What the decision log does not tell as it is. Floor 4.
//!
//! Owns what takes the place of local parts and header values: a hash with a key, the same for the
//! same, so that a question can be asked again. The same takes their place in the answer, so that
//! a pure policy that only passes them on answers the hashed question as it did the true one.

use std::collections::BTreeSet;

use super::line::ANSWER;
use crate::{
    config::Told,
    decision::{
        FreezeDecision, Lesson,
        record::{Answer, Question, Said, TransactionRecord},
    },
    event_log::pseudonym,
};

/// Shorter values of header fields are not looked for in answers: they would be found in any.
const VALUE: usize = 4;

/// Hides what is to be hidden.
#[derive(Clone, Debug)]
pub(super) struct Hide {
    pub(super) key: [u8; 32],
    pub(super) local_parts: Told,
    pub(super) headers: Told,
}

/// What was replaced in a question, for its answer.
#[derive(Default)]
struct Replaced {
    /// Local part, domain, and what stands for the local part.
    addresses: BTreeSet<(String, String, String)>,
    /// Values and their hashes.
    values: BTreeSet<(String, String)>,
    /// What is told as it is: a word in it is no local part.
    plain: BTreeSet<String>,
}

/// Text in pieces: what was replaced is not looked at again.
enum Piece {
    Open(String),
    Done(String),
}

impl Hide {
    /// Hides it; says what was hidden that a policy may have decided by: attributes, and
    /// [`ANSWER`] where the same question may not come to the same words any more.
    pub(super) fn hide(&self, question: &mut Question, said: &mut Said) -> Vec<String> {
        let mut hidden = BTreeSet::new();
        let mut replaced = Replaced::default();
        match question {
            Question::Decide { transaction }
            | Question::Route { transaction }
            | Question::Limits { transaction, .. } => {
                self.transaction(transaction, &mut replaced, &mut hidden);
            }
            Question::Observe { keys, text, .. } if self.local_parts == Told::Hashed => {
                for (local, domain) in keys.iter().chain([&*text]).flat_map(|it| addresses(it)) {
                    self.know(&mut replaced, local, domain);
                }
                for text in keys.iter_mut().chain([text]) {
                    replaced.in_text(text);
                }
            }
            Question::Observe { .. } => {}
        }
        let mut blurred = false;
        texts(said, &mut |text| blurred |= replaced.in_text(text));
        if blurred {
            hidden.insert(ANSWER.to_owned());
        }
        hidden.into_iter().collect()
    }

    fn transaction(
        &self,
        tx: &mut TransactionRecord,
        replaced: &mut Replaced,
        hidden: &mut BTreeSet<String>,
    ) {
        if self.local_parts == Told::Hashed {
            for address in std::iter::once(&mut tx.sender).chain(&mut tx.recipients) {
                // Without a domain there is only postmaster (RFC 5321 4.1.1.3), and nobody (`<>`).
                if let Some((local, domain)) = address.rsplit_once('@') {
                    let local = self.know(replaced, local, domain);
                    *address = format!("{local}@{domain}");
                }
            }
            for (_, value) in &tx.attributes {
                for (local, domain) in addresses(value) {
                    self.know(replaced, local, domain);
                }
            }
        }
        if let Some(instance) = &tx.instance {
            replaced.plain.insert(instance.name.clone());
            replaced.plain.extend(instance.window.iter().map(|window| window.wave.clone()));
        }
        for (name, value) in &mut tx.attributes {
            let is_header = name.starts_with("header:");
            let whole = is_header && self.headers == Told::Hashed
                || name == "auth-user" && self.local_parts == Told::Hashed;
            if whole {
                let hash = pseudonym(&self.key, value, name);
                replaced.values.insert((std::mem::replace(value, hash.clone()), hash));
                hidden.insert(name.clone());
            } else if is_header || name == "last-reply" || value.contains('@') {
                let before = value.clone();
                replaced.in_text(value);
                if *value != before {
                    hidden.insert(name.clone());
                }
            }
        }
    }

    fn know(&self, replaced: &mut Replaced, local: &str, domain: &str) -> String {
        let hash = pseudonym(&self.key, local, domain);
        replaced.addresses.insert((local.to_owned(), domain.to_owned(), hash.clone()));
        replaced.plain.insert(domain.to_owned());
        // The standard throttling policy escapes in its keys.
        let escaped = escaped(local);
        if escaped != local {
            replaced.addresses.insert((escaped, domain.to_owned(), hash.clone()));
        }
        hash
    }
}

impl Replaced {
    /// Replaces in a text; whether the same policy would perhaps not come to the same words.
    fn in_text(&self, text: &mut String) -> bool {
        if self.addresses.is_empty() && self.values.is_empty() {
            return false;
        }
        let mut pieces = vec![Piece::Open(std::mem::take(text))];
        // The longest first: one may be the end of another.
        let mut all: Vec<_> = self.addresses.iter().collect();
        all.sort_by_key(|(local, domain, _)| std::cmp::Reverse(local.len() + domain.len()));
        for (local, domain, hash) in &all {
            let found = format!("{local}@{domain}");
            let with = |text: &str| format!("{hash}{}", &text[local.len()..]);
            replace(&mut pieces, &found, is_of_address, &with);
        }
        let mut blurred = false;
        for (value, hash) in self.values.iter().filter(|(value, _)| value.len() >= VALUE) {
            blurred |= replace(&mut pieces, value, |_| false, &|_| hash.clone());
        }
        for plain in &self.plain {
            replace(&mut pieces, plain, is_of_address, &str::to_owned);
        }
        for (local, _, hash) in &all {
            blurred |= replace(&mut pieces, local, char::is_alphanumeric, &|_| hash.clone());
        }
        let texts = pieces.into_iter().map(|piece| match piece {
            Piece::Open(text) | Piece::Done(text) => text,
        });
        *text = texts.collect();
        blurred
    }
}

/// Replaces each `found`, whatever its case, that has none of `inside` before and behind it.
fn replace(
    pieces: &mut Vec<Piece>,
    found: &str,
    inside: impl Fn(char) -> bool,
    with: &dyn Fn(&str) -> String,
) -> bool {
    let mut any = false;
    let mut next = Vec::with_capacity(pieces.len());
    for piece in pieces.drain(..) {
        let text = match piece {
            Piece::Open(text) if !found.is_empty() => text,
            piece => {
                next.push(piece);
                continue;
            }
        };
        let mut begun = 0;
        let mut at = 0;
        while let Some(here) = find(&text, found, at) {
            let end = here + found.len();
            at = end;
            let before = text[begun..here].chars().next_back();
            if before.is_some_and(&inside) || text[end..].chars().next().is_some_and(&inside) {
                at = here + text[here..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            any = true;
            next.push(Piece::Open(text[begun..here].to_owned()));
            next.push(Piece::Done(with(&text[here..end])));
            begun = end;
        }
        next.push(Piece::Open(if begun == 0 { text } else { text[begun..].to_owned() }));
    }
    *pieces = next;
    any
}

/// The next place of `found`, whatever its case in ASCII.
fn find(text: &str, found: &str, from: usize) -> Option<usize> {
    let (all, found) = (text.as_bytes(), found.as_bytes());
    let last = all.len().checked_sub(found.len())?;
    // Both are UTF-8, so a match begins and ends between characters.
    (from..=last).find(|&at| all[at..at + found.len()].eq_ignore_ascii_case(found))
}

/// What an address goes on with. `=` may stand in a local part, but mostly ends a name before it.
fn is_of_address(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '+')
}

/// What looks like an address in a text: each local part with its domain.
fn addresses(text: &str) -> Vec<(&str, &str)> {
    let is_local = |c: char| {
        !c.is_control()
            && !c.is_whitespace()
            && !matches!(c, '<' | '>' | '(' | ')' | '[' | ']')
            && !matches!(c, ',' | ';' | ':' | '"' | '\'' | '@')
    };
    let is_domain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '[' | ']' | ':');
    let mut found = Vec::new();
    for (at, _) in text.match_indices('@') {
        let (before, behind) = (&text[..at], &text[at + 1..]);
        let local = match before.strip_suffix('"') {
            // A quoted one (RFC 5321 4.1.2) is what stands between the quotes.
            Some(quoted) => &quoted[quoted.rfind('"').map_or(0, |at| at + 1)..],
            None => &before[before.trim_end_matches(is_local).len()..],
        };
        let domain = &behind[..behind.find(|c| !is_domain(c)).unwrap_or(behind.len())];
        let domain = domain.trim_end_matches(['.', ':', '-']);
        if !local.is_empty() && !domain.is_empty() {
            found.push((local, domain));
        }
    }
    found
}

/// As in keys of the standard throttling policy.
fn escaped(local: &str) -> String {
    let mut text = String::with_capacity(local.len());
    for c in local.chars() {
        match u8::try_from(c) {
            Ok(byte) if byte <= b' ' || matches!(byte, b',' | b'%' | 0x7f) => {
                text.push_str(&format!("%{byte:02x}"));
            }
            _ => text.push(c),
        }
    }
    text
}

/// The texts of an answer that a policy words itself. Names of upstreams are the operator's.
fn texts(said: &mut Said, each: &mut dyn FnMut(&mut String)) {
    match said {
        Said::Answer(Answer::Decide(decision)) => match decision {
            FreezeDecision::Proceed => {}
            FreezeDecision::Hold { reason, .. } => each(reason),
            FreezeDecision::Defer(reply) | FreezeDecision::Refuse(reply) => each(&mut reply.text),
        },
        Said::Answer(Answer::Route(_)) => {}
        Said::Answer(Answer::Limits(limits)) => {
            limits.rates.iter_mut().for_each(|rate| each(&mut rate.key));
            limits.concurrency.iter_mut().for_each(|cap| each(&mut cap.key));
        }
        Said::Answer(Answer::Observe(lessons)) => {
            for lesson in lessons {
                let (Lesson::Pause { key, .. } | Lesson::Slow { key, .. }) = lesson;
                each(key);
            }
        }
        Said::Failure { detail, .. } => each(detail),
    }
}

#[cfg(test)]
mod tests;
