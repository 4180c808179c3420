//! The reference of the contract for policy authors, as Markdown. Floor 2.
//!
//! It knows no fact of its own: what is asked and answered comes from the comments of the contract,
//! bounds from the constants that hold them. The words around them are in `reference.txt`.

mod wit;

use super::{Version, bindings, engine, failure, instance, load};

/// The contract that new policies are written for, as released.
pub const CONTRACT: &str = include_str!("../../../wit/1.0.0/policy.wit");

/// What the contract does not say of itself; `{name}` is where a value goes.
const WORDS: &str = include_str!("reference/words.txt");

/// The whole reference.
pub fn markdown() -> String {
    let mut text = WORDS.to_owned();
    for (name, value) in values() {
        text = text.replace(&format!("{{{name}}}"), &value);
    }
    text
}

/// What goes into the words, by name.
fn values() -> Vec<(&'static str, String)> {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    let all = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let (package, interfaces) = wit::markdown(CONTRACT);
    vec![
        ("version", Version::NEWEST.to_string()),
        ("versions", all(&Version::ALL.map(Version::as_str)).join(", ")),
        ("package", package),
        ("interfaces", interfaces),
        ("component", mib(load::MAX_COMPONENT)),
        ("metrics", load::MAX_METRICS.to_string()),
        ("attributes", load::MAX_ATTRIBUTES.to_string()),
        ("attribute-names", all(&load::ATTRIBUTES).join(", ")),
        ("upstreams", load::MAX_UPSTREAMS.to_string()),
        ("diagnostics", load::MAX_DIAGNOSTICS.to_string()),
        ("text", bindings::MAX_TEXT.to_string()),
        ("rates", bindings::MAX_RATES.to_string()),
        ("concurrency", bindings::MAX_CONCURRENCY.to_string()),
        ("fallbacks", bindings::MAX_FALLBACKS.to_string()),
        ("lessons", bindings::MAX_LESSONS.to_string()),
        ("key", bindings::MAX_KEY.to_string()),
        ("answer", kib(instance::HOSTCALL_FUEL)),
        ("log-lines", instance::MAX_LOG_LINES.to_string()),
        ("log-line", kib(instance::MAX_LOG_LINE)),
        ("stack", kib(engine::GUEST_STACK)),
        ("tick", format!("{} ms", engine::TICK.as_millis())),
        ("fuel", engine::FUEL_PER_MS.to_string()),
        ("park", failure::PARK_AFTER.to_string()),
        ("condemn-messages", failure::CONDEMN_MESSAGES.to_string()),
        ("condemn-percent", (100 / failure::CONDEMN_SHARE).to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_place() {
        for (name, value) in values() {
            assert!(WORDS.contains(&format!("{{{name}}}")), "words.txt has no {{{name}}}");
            assert!(!value.is_empty(), "{name}");
        }
    }

    #[test]
    fn no_place_is_left_empty() {
        let text = markdown();
        let names = |from: &str| -> Vec<String> {
            let places = from.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
            let is_name = |name: &str| name.bytes().all(|b| b == b'-' || b.is_ascii_lowercase());
            places.map(|(name, _)| name.to_owned()).filter(|name| is_name(name)).collect()
        };
        let known: Vec<_> = values().into_iter().map(|(name, _)| name).collect();
        for name in names(WORDS) {
            assert!(known.contains(&name.as_str()), "{{{name}}} is no value");
        }
        assert!(names(&text).is_empty(), "{:?}", names(&text));
    }

    #[test]
    fn the_contract_is_the_newest() {
        assert!(CONTRACT.contains(&format!("package wavegate:policy@{};", Version::NEWEST)));
    }
}
