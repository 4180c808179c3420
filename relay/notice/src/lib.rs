//! Notices to the customers of a migration wave, in six languages.
//!
//! Owns what a customer is told about a wave and how it looks: the words ([`Language`]), the page,
//! the plain text, the mail, the calendar entry, the JSON. Owns no plan and no sending: the caller
//! says what is so in a [`Draft`], and does with the rendered bytes what it likes. No clock, no
//! files, no network; time zones are part of the program.
//!
//! Everything that is hostile or wrong in a draft is found by [`Notice::new`]: free words are made
//! one harmless line, addresses and zones are parsed. What is left cannot fail, but for a mail that
//! lacks a sender or has a bad Message-ID.
//!
//! Floor 0: knows nothing of the rest of the relay.
//!
//! Reading order: [`Draft`], `notice`, `letter` (what is said, in any language), `text` (how), then
//! one module a format.

mod calendar;
mod draft;
mod eml;
mod error;
mod html;
mod json;
mod language;
mod letter;
mod line;
mod mime;
mod notice;
mod plain;
mod text;
mod when;

pub use draft::{Contact, Destination, Draft, Instance, Program, Scope, Stage, Wave};
pub use error::NoticeError;
pub use language::{Language, UnknownLanguage};
pub use line::LINE_LIMIT;
pub use notice::{INSTANCE_LIMIT, Notice};
