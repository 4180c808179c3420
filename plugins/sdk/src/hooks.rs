//! The traits that a policy implements, and how one is made from its settings. Owns no glue to
//! the contract: that is [`crate::export`].

pub use crate::bindings::lifecycle::exports::wavegate::policy::lifecycle::{Diagnostic, Needs};
use crate::json;
use crate::settings::{Problems, Table};

/// What every policy has: a name, a version, settings.
pub trait Policy: Sized + Send + Sync + 'static {
    /// The name that the policy goes by where the operator gives it none.
    const NAME: &'static str;
    /// Its version, at most 24 bytes, as its author counts.
    const VERSION: &'static str;
    /// JSON Schema of its settings. It must refuse what [`Policy::configure`] reports.
    const SETTINGS_SCHEMA: &'static str;
    /// The counters that it may add to: `[a-z][a-z0-9_]*`, at most 16.
    const METRICS: &'static [&'static str] = &[];

    /// Reads the settings. What is wrong with them is reported on the fields themselves
    /// ([`crate::settings::Field::wrong`]); after that the returned value is thrown away, so any
    /// stand-in will do. Keys that were not asked for are reported by the caller.
    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self;

    /// What it wants to be told beside the core of a transaction.
    fn needs(&self) -> Needs {
        Needs { attributes: Vec::new(), upstreams: Vec::new(), outcomes: false }
    }
}

/// May this message go now?
pub mod freeze {
    pub use crate::bindings::freeze::exports::wavegate::policy::freeze::{Decision, Hold};
    use crate::types::Transaction;

    /// A policy that exports `freeze`.
    pub trait Policy: super::Policy {
        /// Answers for one message. The host makes the strictest of several answers count.
        fn decide(&self, message: &Transaction) -> Decision;
    }
}

/// Where does it go?
pub mod routing {
    pub use crate::bindings::routing::exports::wavegate::policy::routing::{
        Decision, Share, Target,
    };
    use crate::types::Transaction;

    /// A policy that exports `routing`.
    pub trait Policy: super::Policy {
        /// Answers for one message. The first policy that does not abstain is followed.
        fn route(&self, message: &Transaction) -> Decision;
    }
}

/// How fast may it go?
pub mod throttling {
    pub use crate::bindings::throttling::exports::wavegate::policy::throttling::{
        Attempt, ConcurrencyLimit, Lesson, LimitSet, Outcome, Pause, RateLimit, Slow,
    };

    /// The most rates that one answer may name.
    pub const MAX_RATES: usize = 64;
    /// The most concurrency limits that one answer may name.
    pub const MAX_CONCURRENCY: usize = 16;
    /// The most lessons of one outcome.
    pub const MAX_LESSONS: usize = 16;

    /// A policy that exports `throttling`.
    pub trait Policy: super::Policy {
        /// Names the limits of one hand-off; the host keeps them.
        fn limits(&self, attempt: &Attempt) -> LimitSet;

        /// What the reply to a hand-off teaches. Asked only where [`super::Policy::needs`] says
        /// `outcomes`.
        fn observe(&self, _outcome: &Outcome) -> Vec<Lesson> {
            Vec::new()
        }
    }
}

/// A policy made from settings as the host gives them: JSON text, empty for none.
pub fn configured<P: Policy>(settings: &str, upstreams: &[String]) -> Result<P, Vec<Diagnostic>> {
    let problems = Problems::default();
    let value = match json::parse(if settings.trim().is_empty() { "{}" } else { settings }) {
        Ok(value) => value,
        Err(message) => return Err(vec![Diagnostic { path: String::new(), message }]),
    };
    let mut made = None;
    if let Some(table) = Table::whole_of(&value, &problems) {
        made = Some(P::configure(&table, upstreams));
        table.report_unknown();
    }
    let problems = problems.into_inner();
    match made {
        Some(policy) if problems.is_empty() => Ok(policy),
        _ => Err(problems),
    }
}
