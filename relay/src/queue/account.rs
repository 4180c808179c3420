//! What an instance was promised, and what became of it.

use serde::{Deserialize, Serialize};
use wavegate_spool::Op;

use crate::event::End as Ended;

/// Values of accounts have this in front of the instance's name.
const PREFIX: &[u8] = b"account/";

/// Recipients of one instance that were answered 250, by what became of them. Durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    accepted: u64,
    ends: [u64; Ended::ALL.len()],
    /// It changed and was not written down.
    pub(super) dirty: bool,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u8,
    ends: [u64; Ended::ALL.len()],
}

impl Account {
    /// Recipients that were promised delivery.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Recipients that came to this end.
    pub fn ended(&self, end: Ended) -> u64 {
        self.ends[end as usize]
    }

    /// Recipients that have no end yet, if all is in order.
    pub fn pending(&self) -> i64 {
        self.accepted.wrapping_sub(self.ends.iter().sum()).cast_signed()
    }

    pub(super) fn accept(&mut self, recipients: u64) {
        self.accepted += recipients;
    }

    /// Adds what another one has.
    pub(super) fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.ends.iter_mut().zip(other.ends).for_each(|(end, more)| *end += more);
    }

    pub(super) fn end(&mut self, end: Ended, recipients: u64) {
        self.ends[end as usize] += recipients;
    }

    /// Writes it down. What was accepted follows from the ends and what is in the spool.
    pub(super) fn op(&self, instance: Option<&str>) -> Op {
        let mut key = PREFIX.to_vec();
        key.extend_from_slice(instance.unwrap_or_default().as_bytes());
        let value = postcard::to_extend(&Written { version: 1, ends: self.ends }, Vec::new());
        Op::Value { key, value: value.ok() }
    }

    /// Reads one back: the instance's name, and what ended.
    pub(super) fn read(key: &[u8], value: &[u8]) -> Option<(Option<String>, Self)> {
        let name = std::str::from_utf8(key.strip_prefix(PREFIX)?).ok()?;
        let written: Written = postcard::from_bytes(value).ok()?;
        let accepted = written.ends.iter().sum();
        let account = Self { accepted, ends: written.ends, dirty: false };
        (written.version == 1).then(|| ((!name.is_empty()).then(|| name.to_owned()), account))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_account_comes_back_with_what_has_ended() {
        let mut account = Account::default();
        account.accept(10);
        account.end(Ended::Delivered, 4);
        account.end(Ended::Removed, 1);
        assert_eq!(account.pending(), 5);
        let Op::Value { key, value: Some(value) } = account.op(Some("acme")) else { panic!() };
        let (name, back) = Account::read(&key, &value).unwrap();
        assert_eq!(name.as_deref(), Some("acme"));
        assert_eq!((back.accepted(), back.ended(Ended::Delivered), back.pending()), (5, 4, 0));
        assert_eq!(Account::read(b"other", &value), None);
        assert_eq!(Account::read(&key, &value[..1]), None);
    }
}
