//! The keys that limits are kept by. Readable, because an operator meets them in `explain` and
//! in the log: `0:upstream=cloud,recipient-domain=example.com`, the number being the limit's
//! place in the settings, so that two limits by the same things do not share a count.

use wavegate_policy::text::domain_of;
use wavegate_policy::throttling::Attempt;

use crate::settings::{Limit, Part};

/// Longer keys are cut and end in a hash of the whole.
const MAX_KEY: usize = 128;

/// The keys of a limit in this attempt, each with the number of recipients that it is about; the
/// first `most` of them, so that a thousand recipients do not take a million comparisons.
pub(crate) fn keys(
    index: usize,
    limit: &Limit,
    attempt: &Attempt,
    most: usize,
) -> Vec<(String, u64)> {
    // Within an attempt keys differ in the recipient's part only: that alone is compared.
    let subject: fn(&str) -> &str = if limit.per.contains(&Part::Recipient) {
        |recipient| recipient
    } else if limit.per.contains(&Part::RecipientDomain) {
        domain_of
    } else {
        |_| ""
    };
    let mut found: Vec<(&str, &str, u64)> = Vec::new();
    for &at in &attempt.recipients {
        let Some(recipient) = attempt.transaction.recipients.get(at as usize) else { continue };
        if !limit.takes_recipient(recipient) {
            continue;
        }
        let this = subject(recipient);
        if let Some((_, _, count)) =
            found.iter_mut().find(|(_, known, _)| known.eq_ignore_ascii_case(this))
        {
            *count += 1;
        } else if found.len() < most {
            found.push((recipient, this, 1));
        }
    }
    let with_key = |(recipient, _, count)| (key(index, limit, attempt, recipient), count);
    found.into_iter().map(with_key).collect()
}

/// The limit that a key is of.
pub(crate) fn limit_of(key: &str) -> Option<usize> {
    key.split_once(':')?.0.parse().ok()
}

fn key(index: usize, limit: &Limit, attempt: &Attempt, recipient: &str) -> String {
    let message = &attempt.transaction;
    let instance = message.instance.as_ref();
    let mut key = String::with_capacity(MAX_KEY);
    push_number(&mut key, index);
    let mut before = ':';
    for part in &limit.per {
        key.push(before);
        key.push_str(part.name());
        key.push('=');
        before = ',';
        let value = match part {
            Part::Upstream => &attempt.upstream,
            Part::RecipientDomain => domain_of(recipient),
            Part::Recipient => recipient,
            Part::Instance => instance.map_or("", |instance| &instance.name),
            Part::Environment => instance.map_or("", |instance| &instance.environment),
            Part::Product => instance.map_or("", |instance| &instance.product),
            Part::SenderDomain => domain_of(&message.sender),
            Part::Sender => &message.sender,
            Part::Client => &message.client,
        };
        push_value(&mut key, value, part.is_address());
    }
    if limit.per.is_empty() {
        key.push(before);
    }
    bounded(key)
}

fn push_number(key: &mut String, number: usize) {
    if number >= 10 {
        push_number(key, number / 10);
    }
    key.push(char::from(b'0' + u8::try_from(number % 10).unwrap_or(0)));
}

/// Appends a value; what would read as the next part, or as no text at all, is escaped as in a
/// URL (RFC 3986 2.1), so that nobody can write an address that has another one's key.
fn push_value(key: &mut String, value: &str, is_address: bool) {
    let is_plain = |byte: u8| byte > b' ' && !matches!(byte, b',' | b'%' | 0x7f);
    if value.bytes().all(|byte| is_plain(byte) && !(is_address && byte.is_ascii_uppercase())) {
        key.push_str(value);
        return;
    }
    for c in value.chars() {
        match u8::try_from(c) {
            Ok(byte) if byte.is_ascii() && !is_plain(byte) => {
                key.push('%');
                push_hex(key, u64::from(byte), 2);
            }
            _ if is_address => key.push(c.to_ascii_lowercase()),
            _ => key.push(c),
        }
    }
}

fn push_hex(key: &mut String, number: u64, digits: u32) {
    for place in (0..digits).rev() {
        let digit = u32::try_from(number >> (4 * place) & 15).unwrap_or(0);
        key.push(char::from_digit(digit, 16).unwrap_or('0'));
    }
}

/// The key, cut to the limit where it is longer.
fn bounded(mut key: String) -> String {
    if key.len() > MAX_KEY {
        let hash = fnv1a(key.as_bytes());
        // Room for the `#` and 16 digits.
        key.truncate(key.floor_char_boundary(MAX_KEY - 17));
        key.push('#');
        push_hex(&mut key, hash, 16);
    }
    key
}

/// FNV-1a, 64 bits. Two keys that somebody makes collide share a limit, which is all.
fn fnv1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}
