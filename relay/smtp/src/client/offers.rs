//! What an upstream offers beside the extensions of a transaction.
//!
//! Owns how AUTH, XFORWARD and XCLIENT are read from an EHLO reply.
//!
//! Floor 0.

use super::identity::Attributes;
use super::login::Mechanisms;
use crate::reply::Reply;

/// What an upstream offers to be told of us and of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) mechanisms: Mechanisms,
    pub(super) forward: Attributes,
    pub(super) client: Attributes,
}

impl Offers {
    pub(super) fn from_ehlo(reply: &Reply) -> Offers {
        let mut found = Offers::default();
        for line in reply.lines().skip(1) {
            // Old servers write `AUTH=`, for old clients; some write both.
            let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
            match words.next() {
                Some(word) if word.eq_ignore_ascii_case("AUTH") => found.mechanisms.add(words),
                Some(word) if word.eq_ignore_ascii_case("XFORWARD") => {
                    found.forward = Attributes::parse(words);
                }
                Some(word) if word.eq_ignore_ascii_case("XCLIENT") => {
                    found.client = Attributes::parse(words);
                }
                _ => {}
            }
        }
        found
    }
}
