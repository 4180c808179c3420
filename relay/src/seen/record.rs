//! Answers as they are kept, in memory and in the file alike.
//!
//! One after the other: how (one byte), the number of recipients (two bytes), their hashes (eight
//! bytes each), the length of the reply (two bytes) and the reply as SMTP writes it. All numbers are
//! big-endian. What is kept of one message is any number of these, so more is appended.

use wavegate_link::How;
use wavegate_smtp::{Reply, reply::ReplyReader};

use super::{Past, Recipient};

/// Longest reply that is kept; of a longer one its codes and what they stand for.
const REPLY: usize = 512;
/// Recipients of one answer; more are in another one.
const RECIPIENTS: usize = 4096;

/// What is kept of these answers.
pub(super) fn write(answers: &[Past]) -> Vec<u8> {
    let mut out = Vec::new();
    for past in answers {
        let reply = reply_bytes(&past.reply);
        for recipients in past.recipients.chunks(RECIPIENTS) {
            out.push(past.how as u8);
            put_u16(&mut out, recipients.len());
            recipients.iter().for_each(|one| out.extend_from_slice(&one.0.to_be_bytes()));
            put_u16(&mut out, reply.len());
            out.extend_from_slice(&reply);
        }
    }
    out
}

fn put_u16(out: &mut Vec<u8>, value: usize) {
    // Bounded by the constants above.
    out.extend_from_slice(&u16::try_from(value).unwrap_or(0).to_be_bytes());
}

fn reply_bytes(reply: &Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    reply.write(&mut bytes);
    if bytes.len() > REPLY {
        bytes.clear();
        let short = Reply::new(reply.code(), reply.enhanced(), "ok".to_owned());
        short.unwrap_or_else(|_| reply.clone()).write(&mut bytes);
    }
    bytes
}

/// Reads them back, as far as they can be read.
pub(super) fn read(mut bytes: &[u8]) -> Vec<Past> {
    let mut answers = Vec::new();
    while let Some((past, rest)) = read_one(bytes) {
        answers.push(past);
        bytes = rest;
    }
    answers
}

fn read_one(bytes: &[u8]) -> Option<(Past, &[u8])> {
    let (how, rest) = bytes.split_first()?;
    let how = *How::ALL.get(usize::from(*how))?;
    let (count, rest) = u16_of(rest)?;
    let (hashes, rest) = rest.split_at_checked(count * 8)?;
    let (hashes, _) = hashes.as_chunks();
    let recipients = hashes.iter().map(|hash| Recipient(u64::from_be_bytes(*hash))).collect();
    let (length, rest) = u16_of(rest)?;
    let (text, rest) = rest.split_at_checked(length)?;
    match ReplyReader::default().read(text) {
        Ok((used, Some(reply))) if used == length => Some((Past { recipients, how, reply }, rest)),
        _ => None,
    }
}

fn u16_of(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (value, rest) = bytes.split_first_chunk()?;
    Some((usize::from(u16::from_be_bytes(*value)), rest))
}
