//! What the caller knows of a wave and of one contact, as the plan has it. Nothing here is checked:
//! [`Notice::new`](crate::Notice::new) does that.

use jiff::{SignedDuration, Timestamp};

/// One notice: what one contact of one customer is told about one wave.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The migration that the wave belongs to.
    pub program: Program,
    /// The wave.
    pub wave: Wave,
    /// The instances of this contact's customer in this wave. At least one.
    pub instances: Vec<Instance>,
    /// Who is told.
    pub contact: Contact,
    /// When the environments of the program are upgraded, for the answer to "when". May be empty.
    pub stages: Vec<Stage>,
    /// What the program upgrades, for the answer to "which customers". May be empty.
    pub scope: Vec<Scope>,
    /// When this notice is made: `Date:` of the mail, `DTSTAMP` of the calendar entry.
    pub issued: Timestamp,
}

/// The migration that a wave belongs to.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name, in whatever language; shown as it is. May be empty.
    pub name: String,
    /// Who upgrades. Signs the notice.
    pub provider: String,
    /// Customer care: a URL (http, https) or a mail address.
    pub care: String,
    /// `From:` of the mail and organizer of the calendar entry. A mail cannot be made without.
    pub sender: Option<String>,
    /// `Reply-To:` of the mail.
    pub reply_to: Option<String>,
    /// What customers are told about where it moves to.
    pub destination: Destination,
}

/// What customers are told about where the sending infrastructure moves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// It moves from the provider's data centres to a public cloud.
    Cloud,
    /// It is upgraded.
    #[default]
    Unnamed,
}

/// A wave, as its contacts are told about it.
#[derive(Clone, Debug)]
pub struct Wave {
    /// Its name in the plan. Customers may quote it.
    pub id: String,
    /// Name of its environment. Production, staging and development (also prod, stage, dev) have
    /// words of their own in each language; another name is quoted; empty: none is mentioned.
    pub environment: String,
    /// When sending stops.
    pub opens: Timestamp,
    /// When sending goes on.
    pub closes: Timestamp,
    /// How long it is expected to take. Without: the length of the window.
    pub estimate: Option<SignedDuration>,
    /// How long before `opens` such waves are announced, at least.
    pub notice: Option<SignedDuration>,
    /// When this wave was announced.
    pub announced: Option<Timestamp>,
    /// How many notices of this wave this contact got before. The next one replaces the calendar
    /// entry and says that it replaces the notice.
    pub sequence: u32,
}

/// One instance of the customer.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// What it runs. May be empty.
    pub product: String,
    /// How it is hosted. May be empty.
    pub hosting: String,
}

/// Who is told.
#[derive(Clone, Debug)]
pub struct Contact {
    /// How they are greeted. May be empty.
    pub name: String,
    /// Where the mail goes.
    pub email: String,
    /// BCP 47 tag of their language.
    pub language: String,
    /// IANA name of their time zone.
    pub time_zone: String,
}

/// When the program comes to one environment.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Name of the environment, as in [`Wave::environment`].
    pub environment: String,
    /// No wave of it opens before.
    pub earliest: Timestamp,
    /// How long before its window a wave is announced, at least.
    pub notice: Option<SignedDuration>,
}

/// A part of what the program upgrades.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The product.
    pub product: String,
    /// How it is hosted. May be empty.
    pub hosting: String,
}
