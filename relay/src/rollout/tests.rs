#![allow(clippy::unwrap_used, reason = "tests")]
use std::{io::Write as _, path::Path};

use proptest::prelude::*;

use super::*;
use crate::config::{Mode, PluginSource, PolicyConfig, signature_of};

const T: Timestamp = Timestamp(1_768_888_800_000);

fn digest(of: &str) -> String {
    blake3::hash(of.as_bytes()).to_hex().to_string()
}

fn release(of: &str, skipped: &[Skip]) -> Release {
    Release {
        digest: digest(of),
        at: T,
        by: "op".into(),
        reason: "a test".into(),
        skipped: skipped.to_vec(),
    }
}

fn begun(state: &mut State, of: &str, skipped: &[Skip]) -> Result<Stage, Refusal> {
    state.begin("freeze", "builtin:freeze", release(of, skipped), Bounds::default())
}

fn stage(state: &State) -> Stage {
    state.policies["freeze"].rollout.as_ref().unwrap().stage
}

fn in_shadow(bounds: Bounds) -> Rollout {
    let (stage, why) = (Stage::Shadow, String::new());
    Rollout { release: release("a", &[]), stage, since: T, bounds, why }
}

fn watched(bounds: Bounds) -> Rollout {
    Rollout { stage: Stage::Watched, ..in_shadow(bounds) }
}

fn compared(compared: u64, different: u64) -> Counted {
    let mut counted = Counted::default();
    counted.classes[Class::Same as usize] = compared - different;
    counted.classes[Class::Harder as usize] = different;
    counted
}

fn called(calls: u64, failures: u64) -> Counted {
    Counted { calls, failures, ..Counted::default() }
}

#[test]
fn a_shadow_goes_live_after_enough_answers_that_are_enough_alike() {
    let rollout = in_shadow(Bounds::default());
    let next = |counted| next(&rollout, &counted, T);
    assert_eq!(next(compared(0, 0)), None);
    assert_eq!(next(compared(999, 0)), None);
    assert_eq!(next(compared(999, 10)), None);
    assert!(matches!(next(compared(1000, 10)), Some(Step::Promote(_))));
    // Of a thousand at most ten: the eleventh decides, however early it comes.
    let Some(Step::Stop(why)) = next(compared(11, 11)) else { panic!("goes on") };
    assert!(why.contains("11 of 11 answers differ (harder 11), more than 1 % of 1000"), "{why}");
    assert!(matches!(next(compared(1000, 11)), Some(Step::Stop(_))));
    // More may be compared between two looks.
    assert!(matches!(next(compared(1100, 11)), Some(Step::Promote(_))));
    // What fails to be asked in time does not count for it.
    assert_eq!(next(called(5000, 0)), None);
}

#[test]
fn what_changes_nothing_for_a_message_is_no_difference() {
    let count = |class: Class| {
        let mut counted = Counted::default();
        counted.classes[class as usize] = 1;
        (counted.compared(), counted.different())
    };
    for class in Class::ALL {
        let expected = match class {
            Class::Same | Class::Text => (1, 0),
            Class::NotReplayable => (0, 0),
            _ => (1, 1),
        };
        assert_eq!(count(class), expected, "{}", class.as_str());
    }
}

#[test]
fn with_no_differences_allowed_the_first_one_stops_it() {
    let bounds = Bounds { max_differences: Percent::of(0), ..Bounds::default() };
    assert!(matches!(next(&in_shadow(bounds), &compared(1, 1), T), Some(Step::Stop(_))));
    let all = Bounds { max_differences: Percent::of(100), ..Bounds::default() };
    assert!(matches!(next(&in_shadow(all), &compared(1000, 1000), T), Some(Step::Promote(_))));
}

#[test]
fn what_fails_while_it_is_watched_goes_and_what_does_not_stays() {
    let rollout = watched(Bounds::default());
    let soon = T.saturating_add_ms(599_999);
    let late = T.saturating_add_ms(600_000);
    assert_eq!(next(&rollout, &called(LEAST_CALLS - 1, LEAST_CALLS - 1), soon), None);
    let Some(Step::RollBack(why)) = next(&rollout, &called(LEAST_CALLS, LEAST_CALLS), soon) else {
        panic!("stays")
    };
    assert!(why.contains("20 of 20 calls failed, more than 1 %"), "{why}");
    assert_eq!(next(&rollout, &called(1000, 10), soon), None);
    assert!(matches!(next(&rollout, &called(1000, 11), soon), Some(Step::RollBack(_))));
    assert!(matches!(next(&rollout, &called(1000, 10), late), Some(Step::Settle(_))));
    // Failing is looked at first.
    assert!(matches!(next(&rollout, &called(1000, 11), late), Some(Step::RollBack(_))));
    assert!(matches!(next(&rollout, &called(0, 0), late), Some(Step::Settle(_))));
}

#[test]
fn what_is_over_stays_so() {
    for over in [Stage::Settled, Stage::Stopped, Stage::RolledBack] {
        let rollout = Rollout { stage: over, ..in_shadow(Bounds::default()) };
        let all = Counted { calls: 1000, failures: 1000, ..compared(1000, 1000) };
        assert_eq!(next(&rollout, &all, T.saturating_add_ms(1 << 40)), None);
    }
}

proptest! {
    /// Whatever is counted, nothing goes live that differs too much or before it was compared.
    #[test]
    fn nothing_goes_live_that_should_not(
        calls in 1u64..10_000, answers in 0u64..20_000, differ in 0u64..20_000, percent in 0u8..=100,
    ) {
        let differ = differ.min(answers);
        let max_differences = Percent::of(percent);
        let bounds = Bounds { shadow_calls: calls, max_differences, ..Bounds::default() };
        let step = next(&in_shadow(bounds), &compared(answers, differ), T);
        if let Some(Step::Promote(_)) = step {
            prop_assert!(answers >= calls);
            prop_assert!(differ * 100 <= u64::from(percent) * answers);
        }
        // It never stops one that could still go live.
        if let Some(Step::Stop(_)) = step {
            prop_assert!(differ * 100 > u64::from(percent) * answers.max(calls));
        }
        // Nor is one forgotten.
        prop_assert!(answers < calls || step.is_some());
    }

    #[test]
    fn shares_are_read_as_they_are_written(hundredths in 0u16..=10_000) {
        let percent = Percent(hundredths);
        let text = percent.to_string();
        prop_assert_eq!(text.strip_suffix(" %").unwrap().parse::<Percent>(), Ok(percent));
        let json = serde_json::to_string(&percent).unwrap();
        prop_assert_eq!(serde_json::from_str::<Percent>(&json).unwrap(), percent);
    }
}

#[test]
fn no_other_text_is_a_share() {
    assert_eq!("0.5%".parse(), Ok(Percent(50)));
    for bad in ["", "%", "-1", "101", "100.01", "0.001", "1e1", "nan", "inf", "1,5", "1.2.3"] {
        assert!(bad.parse::<Percent>().is_err(), "{bad}");
    }
    for bad in ["-1", "100.5", "1e300", "\"1\"", "null"] {
        assert!(serde_json::from_str::<Percent>(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_way_of_a_release() {
    let mut state = State::default();
    assert_eq!(begun(&mut state, "a", &[]), Ok(Stage::Shadow));
    assert_eq!(state.live("freeze"), None);
    let second = begun(&mut state, "b", &[]).unwrap_err();
    assert!(matches!(second, Refusal::UnderWay { stage: "shadow", .. }), "{second}");
    state.promote("freeze", "alike", T);
    assert_eq!(stage(&state), Stage::Watched);
    assert_eq!(state.live("freeze").unwrap().digest, digest("a"));
    assert!(begun(&mut state, "b", &[]).is_err(), "while it is watched");
    state.end("freeze", Stage::Settled, "good", T);
    assert_eq!(state.live("freeze").unwrap().digest, digest("a"));
    assert_eq!(begun(&mut state, "b", &[]), Ok(Stage::Shadow));
    // A shadow that is given up leaves what is live.
    assert_eq!(state.roll_back("freeze", "no", T).unwrap().digest, digest("b"));
    assert_eq!(stage(&state), Stage::Stopped);
    assert_eq!(state.live("freeze").unwrap().digest, digest("a"));
    assert_eq!(state.roll_back("freeze", "no", T).unwrap().digest, digest("a"));
    assert_eq!(stage(&state), Stage::RolledBack);
    assert_eq!(state.live("freeze"), None);
    let nothing = state.roll_back("freeze", "no", T).unwrap_err();
    assert_eq!(nothing, Refusal::Nothing("freeze".into()));
    assert!(state.roll_back("routing", "no", T).is_err());
}

#[test]
fn steps_are_left_out_by_name_only() {
    for (skipped, expected) in [
        (&[][..], Stage::Shadow),
        (&[Skip::Verify], Stage::Shadow),
        (&[Skip::Watch], Stage::Shadow),
        (&[Skip::Shadow], Stage::Watched),
        (&[Skip::Shadow, Skip::Watch], Stage::Settled),
    ] {
        let mut state = State::default();
        assert_eq!(begun(&mut state, "a", skipped), Ok(expected), "{skipped:?}");
        assert_eq!(stage(&state), expected);
        assert_eq!(state.live("freeze").is_some(), expected != Stage::Shadow);
        state.promote("freeze", "alike", T);
        let after = if skipped.contains(&Skip::Watch) { Stage::Settled } else { Stage::Watched };
        assert_eq!(stage(&state), after, "{skipped:?}");
    }
    assert_eq!("shadow".parse(), Ok(Skip::Shadow));
    assert!("check".parse::<Skip>().is_err(), "checking cannot be left out");
}

#[test]
fn so_many_releases_are_kept_for_going_back_and_no_more() {
    let mut state = State::default();
    for number in 0..=RELEASES {
        let all = [Skip::Shadow, Skip::Watch];
        begun(&mut state, &number.to_string(), &all).unwrap();
    }
    let kept = state.policies["freeze"].installed.iter().map(|one| one.digest.clone());
    let expected = (1..=RELEASES).map(|number| digest(&number.to_string()));
    assert_eq!(kept.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    for number in (1..=RELEASES).rev() {
        let left = state.roll_back("freeze", "no", T).unwrap();
        assert_eq!(left.digest, digest(&number.to_string()));
    }
    assert!(state.roll_back("freeze", "no", T).is_err());
}

fn configured(name: &str, plugin: PluginSource) -> PolicyConfig {
    PolicyConfig {
        settings: "{}".into(),
        place: "relay.toml:1".into(),
        ..PolicyConfig::new(name, plugin)
    }
}

#[test]
fn what_is_installed_is_loaded_until_the_configuration_names_something_else() {
    let dir = Path::new("/state");
    let builtin = |name: &str| PluginSource::Builtin(name.into());
    let policies =
        vec![configured("freeze", builtin("freeze")), configured("routing", builtin("routing"))];
    let mut state = State::default();
    assert_eq!(overlay(&policies, &state, dir).policies, policies);

    begun(&mut state, "a", &[]).unwrap();
    let loaded = overlay(&policies, &state, dir);
    assert_eq!(loaded.policies[..2], policies);
    assert_eq!(loaded.policies[2].name, "freeze@candidate");
    let replaces = Some("freeze".to_owned());
    assert_eq!(loaded.policies[2].mode, Mode::Shadow { percent: 100, replaces });
    assert_eq!(bare(&loaded.policies), policies, "what is configured is found again");

    state.promote("freeze", "alike", T);
    let loaded = overlay(&policies, &state, dir);
    assert_eq!(loaded.policies.len(), 2, "no candidate any more");
    let PluginSource::Installed(installed) = &loaded.policies[0].plugin else { panic!("not live") };
    assert_eq!(installed.path, dir.join("plugins").join(format!("{}.wasm", digest("a"))));
    assert_eq!(installed.configured, builtin("freeze"));
    assert_eq!(loaded.policies[1], policies[1]);
    assert_eq!(bare(&loaded.policies), policies);
    assert!(loaded.superseded.is_empty());

    for other in [
        vec![configured("freeze", PluginSource::File("/etc/freeze.wasm".into()))],
        vec![configured("other", builtin("freeze"))],
    ] {
        let loaded = overlay(&other, &state, dir);
        assert_eq!(loaded.policies, other, "the configuration wins");
        assert_eq!(loaded.superseded, ["freeze"]);
        let warnings: Vec<_> = loaded.warnings(&state).collect();
        assert!(warnings[0].contains(&digest("a")), "{warnings:?}");
        assert!(warnings[0].contains("in place of builtin:freeze"), "{warnings:?}");
    }
    // Installed anew, the old place is forgotten.
    state.end("freeze", Stage::Settled, "good", T);
    let all = [Skip::Shadow, Skip::Watch];
    state.begin("freeze", "/etc/freeze.wasm", release("b", &all), Bounds::default()).unwrap();
    assert_eq!(state.policies["freeze"].installed.len(), 1);
}

fn kept(store: &Store, content: &str) -> Result<String, StoreError> {
    let mut file = store.upload()?;
    file.write_all(content.as_bytes()).unwrap();
    store.keep(file, &digest(content))?;
    Ok(digest(content))
}

#[test]
fn what_is_known_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(!folder.path().join(DIRECTORY).exists(), "nothing is made before it is needed");
    let a = kept(&store, "a").unwrap();
    store.keep_signature(&a, b"signed").unwrap();
    store.change(|state| begun(state, "a", &[Skip::Verify])).unwrap().unwrap();
    store.change(|state| state.promote("freeze", "alike", T)).unwrap();
    let again = Store::open(folder.path()).unwrap();
    assert_eq!(again.state(), store.state());
    assert_eq!(again.state().live("freeze").unwrap().skipped, [Skip::Verify]);
    let component = Store::component(folder.path(), &a);
    assert_eq!(std::fs::read(&component).unwrap(), b"a");
    assert_eq!(std::fs::read(signature_of(&component)).unwrap(), b"signed");
    store.forget(&["freeze".into()]);
    again.refresh().unwrap();
    assert_eq!(again.state(), State::default());
}

#[test]
fn what_is_not_understood_is_not_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    kept(&store, "a").unwrap();
    store.change(|state| begun(state, "a", &[])).unwrap().unwrap();
    let path = folder.path().join(DIRECTORY).join(STATE);
    let good = std::fs::read_to_string(&path).unwrap();
    for bad in [
        "",
        "{}",
        "[]",
        &good[..good.len() / 2],
        &good.replace("\"version\": 1", "\"version\": 2"),
        &good.replace(&digest("a"), "../../etc/passwd"),
        &good.replace("\"shadow\"", "\"asleep\""),
    ] {
        std::fs::write(&path, bad).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not understood"), "{error}");
        assert!(store.refresh().is_err());
    }
    std::fs::write(&path, good).unwrap();
    assert!(Store::open(folder.path()).is_ok());
}

#[test]
fn uploads_that_nobody_installed_go_when_room_is_needed_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let first = kept(&store, "first").unwrap();
    store.keep_signature(&first, b"signed").unwrap();
    let used = kept(&store, "used").unwrap();
    store.change(|state| begun(state, "used", &[])).unwrap().unwrap();
    for number in 2..FILES {
        kept(&store, &number.to_string()).unwrap();
    }
    let is_there = |digest: &str| Store::component(folder.path(), digest).exists();
    assert!(is_there(&first), "as many as may be");
    // The oldest by its time, which these were made too fast for.
    let old = std::fs::File::options().write(true).open(Store::component(folder.path(), &first));
    old.unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let used_file =
        std::fs::File::options().write(true).open(Store::component(folder.path(), &used));
    used_file.unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    kept(&store, "one more").unwrap();
    assert!(!is_there(&first) && is_there(&used) && is_there(&digest("one more")));
    assert!(!signature_of(&Store::component(folder.path(), &first)).exists());
    // The same once more needs no room.
    kept(&store, "one more").unwrap();
    assert!(is_there(&digest("2")) || is_there(&digest("3")));
}

#[test]
fn with_all_in_use_there_is_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let all = [Skip::Shadow, Skip::Watch];
    for number in 0..FILES {
        let name = number.to_string();
        kept(&store, &name).unwrap();
        let release = release(&name, &all);
        let begun = store.change(|state| {
            state.begin(&format!("policy-{number}"), "builtin:freeze", release, Bounds::default())
        });
        begun.unwrap().unwrap();
    }
    let error = kept(&store, "one more").unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("roll back"), "{error}");
}

#[test]
fn what_must_go_goes_though_nothing_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    kept(&store, "a").unwrap();
    store.change(|state| begun(state, "a", &[Skip::Shadow])).unwrap().unwrap();
    let directory = folder.path().join(DIRECTORY);
    let away = folder.path().join("away");
    std::fs::rename(&directory, &away).unwrap();
    std::fs::write(&directory, "no directory").unwrap();
    assert!(store.change(|state| state.promote("freeze", "x", T)).is_err());
    let (left, written) = store.insist(|state| state.roll_back("freeze", "no", T));
    assert_eq!(left.unwrap().digest, digest("a"));
    assert!(written.is_err());
    assert_eq!(store.state().live("freeze"), None);
    assert!(store.catch_up().is_err());
    std::fs::remove_file(&directory).unwrap();
    std::fs::rename(&away, &directory).unwrap();
    assert!(Store::open(folder.path()).unwrap().state().live("freeze").is_some());
    store.catch_up().unwrap();
    assert_eq!(Store::open(folder.path()).unwrap().state().live("freeze"), None);
}
