#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::trial::{Case, TrialError, junit, read};

const HOSTILE: &[u8] = include_bytes!("../../../../tests/guests/hostile.wasm");
const THROTTLE: &[u8] = include_bytes!("../../../../plugins/dist/throttle.wasm");

fn cases(text: &str) -> Vec<Case> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    std::fs::write(&file, text).unwrap();
    read(&file).unwrap()
}

fn test(wasm: &[u8], text: &str) -> Report {
    Plugin::new("p.wasm", wasm).unwrap().test(&cases(text)).unwrap()
}

/// What is wrong with each case, by its kind.
fn faults(report: &Report) -> Vec<Vec<&'static str>> {
    report.tried.iter().map(|one| one.faults.iter().map(Fault::kind).collect()).collect()
}

#[test]
fn what_is_not_pure_or_gives_no_answer_fails() {
    let case = |name: &str, expect: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\nsettings = {{ do = \"{name}\" }}\nexpect = {expect}\n"
        )
    };
    let text = [
        case("nothing", "\"proceed\""),
        case("impure", "\"hold\""),
        case("trap", "\"proceed\""),
        case("loop", "\"proceed\""),
        case("allocate", "\"proceed\""),
        case("configure-loop", "\"proceed\""),
        case("diagnostics", "\"proceed\""),
    ]
    .concat();
    let report = test(HOSTILE, &text);
    let names: Vec<_> = report.tried.iter().map(|one| one.case.name.as_str()).collect();
    assert_eq!(names[1..3], ["impure", "trap"], "cases stand in the order of their file");
    let kinds = faults(&report);
    assert_eq!(kinds[0], Vec::<&str>::new(), "{report}");
    assert!(kinds[1].contains(&"not-pure"), "{report}");
    for kind in &kinds[2..6] {
        assert_eq!(*kind, ["no-answer"], "{report}");
    }
    assert_eq!(kinds[6], ["refused"], "{report}");
    let told = report.to_string();
    for part in [
        "not pure  the same question again: an instance that had answered before",
        "failed    trap: ",
        "failed    timeout: ",
        "failed    memory: ",
        "failed    it failed in configure: timeout",
        "refused   { message = \"is not a rate\", path = \"limits[0].rate\" }",
        "6 of 7 cases failed",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
}

#[test]
fn refused_settings_are_what_a_case_may_expect() {
    let text = "
        settings = { do = \"diagnostics\" }
        [[case]]
        name = \"both\"
        expect = { settings = [{ message = \"else\" }, { path = \"limits[0].rate\" }] }
        [[case]]
        name = \"one of two\"
        expect = { settings = [{ path = \"limits[0].rate\" }] }
        [[case]]
        name = \"another\"
        expect = { settings = [{ path = \"x\" }, {}] }
        [[case]]
        name = \"accepted\"
        settings.do = \"nothing\"
        expect = { settings = [{}] }
    ";
    let report = test(HOSTILE, text);
    let none: &[&str] = &[];
    assert_eq!(faults(&report), [none, &["refused"], &["refused"], &["accepted"]], "{report}");
}

#[test]
fn what_a_policy_is_never_asked_is_no_case() {
    let text = "
        [[case]]
        name = \"no hook\"
        expect = \"proceed\"
        [[case]]
        name = \"no outcomes\"
        outcome = { keys = [\"0:\"], code = 421 }
        expect = \"none\"
        [[case]]
        name = \"no limits\"
        expect = \"none\"
    ";
    let report = test(THROTTLE, text);
    let none: &[&str] = &[];
    assert_eq!(faults(&report), [&["never-asked"], &["never-asked"], none], "{report}");
    assert!(report.to_string().contains("not asked it has no freeze hook"), "{report}");
}

#[test]
fn fuel_is_the_same_in_every_run() {
    let text = "[[case]]\nname = \"n\"\nexpect = \"proceed\"\n\
                [[case]]\nname = \"m\"\nexpect = { all = \"legacy\" }\n";
    let fuel = |report: Report| report.tried.iter().map(|one| one.fuel).collect::<Vec<_>>();
    let first = fuel(test(HOSTILE, text));
    assert!(first.iter().all(|fuel| fuel.unwrap() > 100), "{first:?}");
    assert_eq!(first, fuel(test(HOSTILE, text)));
    let measure = || {
        let plugin = Plugin::new("p.wasm", HOSTILE).unwrap();
        plugin.measure(&cases(text), 5).unwrap()
    };
    let (one, two) = (measure(), measure());
    assert_eq!(one.hooks.len(), 2);
    for (one, two) in one.hooks.iter().zip(&two.hooks) {
        assert_eq!((one.function, one.fuel), (two.function, two.fuel));
        assert!(one.time_ns.p50 > 0 && one.time_ns.p50 <= one.time_ns.max);
    }
    assert!(one.memory >= 65536 && one.load_ns > 0 && one.instance_ns.p50 > 0);
    let most = one.hooks[0].fuel.max;
    assert!(one.over(Some(most.max(one.hooks[1].fuel.max)), Some(1 << 30)).is_empty());
    let over = one.over(Some(most - 1), Some(65535));
    assert!(over[0].starts_with(&format!("freeze.decide takes {most} fuel, 1 more than")));
    assert!(over.last().unwrap().contains("more than 65535"), "{over:?}");
}

#[test]
fn what_fails_is_not_measured() {
    let text = "[[case]]\nname = \"n\"\nexpect = \"proceed\"\n\
                [[case]]\nname = \"t\"\nsettings.do = \"trap\"\nexpect = \"proceed\"\n\
                [[case]]\nname = \"d\"\nsettings.do = \"diagnostics\"\nexpect = \"proceed\"\n";
    let plugin = Plugin::new("p.wasm", HOSTILE).unwrap();
    let figures = plugin.measure(&cases(text), 5).unwrap();
    assert_eq!(figures.hooks[0].cases, 1);
    let names: Vec<_> = figures.failed.iter().map(|one| one.case.name.as_str()).collect();
    assert_eq!(names, ["d", "t"]);
}

#[test]
fn what_is_no_plugin_is_refused_whatever_the_cases_are() {
    let cases = cases("[[case]]\nname = \"n\"\nexpect = \"proceed\"\n");
    let error = Plugin::new("p", b"\0asm\x01\0\0\0").unwrap().test(&cases).unwrap_err();
    assert!(matches!(error, TrialError::Plugin(_)), "{error}");
    assert!(error.to_string().contains("this is a core WebAssembly module"), "{error}");
    let missing = Plugin::open("/nonexistent/p.wasm".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("cannot read /nonexistent/p.wasm"), "{missing}");
}

#[test]
fn the_standard_policies_pass_their_cases() {
    for (name, count) in [("freeze", 12), ("routing", 12), ("throttle", 12)] {
        let plugins = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins");
        let cases = read(&plugins.join(name).join("cases")).unwrap();
        assert!(cases.len() >= count, "{name} has {} cases", cases.len());
        let plugin = Plugin::open(&plugins.join(format!("dist/{name}.wasm"))).unwrap();
        let report = plugin.test(&cases).unwrap();
        assert!(report.passed(), "{report}");
        assert!(!junit(&report).contains("<failure"));
    }
}
