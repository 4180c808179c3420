//! The standard routing policy: the operator's rules first, then the upstream that the
//! instance's phase calls for.
//!
//! Owns which upstream a message goes to. Which ones exist, and whether they answer, is the
//! relay's; so is the default for mail of no instance.

mod rule;

use rule::{Rule, rules};
use wavegate_policy::routing::{self, Decision, Share, Target};
use wavegate_policy::settings::Table;
use wavegate_policy::types::{Instance, Transaction};
use wavegate_policy::{Needs, Policy};

/// The policy with its settings.
pub struct Routing {
    rules: Vec<Rule>,
}

wavegate_policy::export!(Routing: routing);

impl Policy for Routing {
    const NAME: &'static str = "routing";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SETTINGS_SCHEMA: &'static str = include_str!("settings.schema.json");

    fn configure(settings: &Table<'_>, upstreams: &[String]) -> Self {
        Routing { rules: settings.get("rules").map_or_else(Vec::new, |f| rules(&f, upstreams)) }
    }

    fn needs(&self) -> Needs {
        let attributes = rule::attributes(&self.rules);
        Needs { attributes, upstreams: Vec::new(), outcomes: false }
    }
}

impl routing::Policy for Routing {
    fn route(&self, message: &Transaction) -> Decision {
        if self.rules.is_empty() {
            return message.instance.as_ref().map_or(Decision::Abstain, |instance| {
                Decision::All(Target { upstream: by_phase(instance).into(), fallbacks: Vec::new() })
            });
        }
        self.by_rules(message)
    }
}

impl Routing {
    /// Every recipient goes where the first rule says that is met by the message and by it, and
    /// where none is, to the default. Rules that agree make one share.
    fn by_rules(&self, message: &Transaction) -> Decision {
        let mut rest: Vec<u32> = (0..).zip(&message.recipients).map(|(index, _)| index).collect();
        let mut shares: Vec<Share> = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.takes_message(message)) {
            let taken = take(&mut rest, |index| {
                message.recipients.get(index).is_some_and(|to| rule.takes_recipient(to))
            });
            add(&mut shares, taken, &rule.target);
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            // A split must name all recipients. Where this one knows no place for some, it has
            // no opinion about the message.
            let Some(instance) = &message.instance else { return Decision::Abstain };
            let target = Target { upstream: by_phase(instance).into(), fallbacks: Vec::new() };
            add(&mut shares, rest, &target);
        }
        match shares.len() {
            0 => Decision::Abstain,
            1 => Decision::All(shares.remove(0).target),
            _ => Decision::Split(shares),
        }
    }
}

/// Where an instance's mail belongs in its phase. In a window that is `after` already: nothing
/// leaves then, and what is asked about is where it will go. A phase that we do not know holds
/// the mail; until we know better it belongs where it was.
fn by_phase(instance: &Instance) -> &str {
    match instance.phase.as_str() {
        "frozen" | "checked" | "releasing" | "migrated" => &instance.after,
        _ => &instance.before,
    }
}

/// Moves what `wanted` says out of `from`.
fn take(from: &mut Vec<u32>, wanted: impl Fn(usize) -> bool) -> Vec<u32> {
    let (taken, left) = from.iter().partition(|&&index| wanted(index as usize));
    *from = left;
    taken
}

/// Gives `recipients` to `target`, in the share that it has already or in a new one.
fn add(shares: &mut Vec<Share>, mut recipients: Vec<u32>, target: &Target) {
    if recipients.is_empty() {
        return;
    }
    let same = |share: &&mut Share| {
        share.target.upstream == target.upstream && share.target.fallbacks == target.fallbacks
    };
    match shares.iter_mut().find(same) {
        Some(share) => share.recipients.append(&mut recipients),
        None => shares.push(Share { recipients, target: target.clone() }),
    }
}

#[cfg(test)]
mod tests;
