//! The standard freeze policy: mail of an instance that is being upgraded waits.
//!
//! Owns the answer that such mail gets. That nothing leaves in a window is the relay's own
//! promise, whatever is said here.

use wavegate_policy::freeze::{self, Decision, Hold};
use wavegate_policy::settings::Table;
use wavegate_policy::types::{Instance, Transaction};
use wavegate_policy::{Policy, text};

/// The policy with its settings.
pub struct Freeze {
    in_window: Answer,
    /// The operator's words instead of ours.
    text: Option<String>,
}

enum Answer {
    Hold,
    Defer,
    Refuse,
}

wavegate_policy::export!(Freeze: freeze);

impl Policy for Freeze {
    const NAME: &'static str = "freeze";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, _upstreams: &[String]) -> Self {
        let answer = settings.get("in_window");
        let in_window = match answer.and_then(|field| field.one_of(&["hold", "defer", "refuse"])) {
            Some("defer") => Answer::Defer,
            Some("refuse") => Answer::Refuse,
            _ => Answer::Hold,
        };
        let text = settings.get("text").and_then(|field| {
            let text = field.text()?;
            if text.is_empty()
                || text.len() > text::MAX_REPLY
                || !text.chars().all(text::is_printable)
            {
                field.wrong("must be 1 to 400 characters of printable ASCII");
            }
            Some(text.to_owned())
        });
        Freeze { in_window, text }
    }
}

impl freeze::Policy for Freeze {
    fn decide(&self, message: &Transaction) -> Decision {
        let Some(instance) = message.instance.as_ref().filter(|instance| is_frozen(instance))
        else {
            return Decision::Proceed;
        };
        let reason = self.text.clone().unwrap_or_else(|| reason(instance));
        match self.in_window {
            Answer::Hold => Decision::Hold(Hold { until: until(instance, message.now), reason }),
            Answer::Defer => Decision::Defer(text::defer("4.7.0", &reason)),
            Answer::Refuse => Decision::Refuse(text::refuse("5.7.0", &reason)),
        }
    }
}

/// A phase that we do not know is a later relay's, and counts as frozen: holding loses nothing.
fn is_frozen(instance: &Instance) -> bool {
    !matches!(
        instance.phase.as_str(),
        "unscheduled" | "scheduled" | "releasing" | "migrated" | "rolled-back"
    )
}

/// The end of the window, where that is still to come. A window that ran over ends with a change
/// of phase, which wakes what is held.
fn until(instance: &Instance, now: u64) -> Option<u64> {
    instance.window.as_ref().map(|window| window.closes).filter(|&closes| closes > now)
}

fn reason(instance: &Instance) -> String {
    let mut reason = String::with_capacity(128);
    reason.push_str("instance ");
    reason.push_str(&instance.name);
    reason.push_str(" is being upgraded");
    if let Some(window) = &instance.window {
        reason.push_str(" (wave ");
        reason.push_str(&window.wave);
        reason.push(')');
    }
    reason
}

#[cfg(test)]
mod tests;
