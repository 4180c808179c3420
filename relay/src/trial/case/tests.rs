#![allow(clippy::unwrap_used, reason = "tests")]
use std::net::IpAddr;

use super::*;
use crate::{
    decision::record::TransactionRecord,
    plan::{Phase, Timestamp},
};

fn cases(text: &str) -> Vec<Case> {
    parse("a.toml", text, Notation::Toml).unwrap()
}

/// The question of a file with one case.
fn question(text: &str) -> Question {
    let Check::Answer { question, .. } = cases(text).remove(0).check else { panic!("no question") };
    *question
}

fn transaction(text: &str) -> TransactionRecord {
    question(text).transaction().unwrap().clone()
}

/// The one mistake in a file.
fn wrong(text: &str) -> String {
    let mistakes = parse("a.toml", text, Notation::Toml).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    mistakes[0].to_string()
}

const ONE: &str = "[[case]]\nname = \"n\"\nexpect = \"proceed\"\n";

#[test]
fn a_case_needs_a_name_and_what_is_right() {
    let case = cases(ONE).remove(0);
    assert_eq!((case.name.as_str(), case.line, case.file.as_str()), ("n", Some(1), "a.toml"));
    let setup = case.setup;
    assert_eq!((setup.settings.as_str(), setup.memory), ("{}", 16 << 20));
    assert_eq!((setup.upstreams, setup.timeout), (vec!["legacy".into(), "cloud".into()], TIMEOUT));
    assert_eq!(question(ONE), Question::Decide { transaction: TransactionRecord::default() });
}

#[test]
fn a_case_changes_what_its_file_begins_with() {
    let text = "
        settings = { a = 1, b = { c = 2, d = [1, 2] } }
        memory = \"64MiB\"
        [transaction]
        now = 2026-03-01T22:10:00+01:00
        attributes = { helo = \"mx\", \"header:X-Tag\" = [\"one\", \"two\"] }
        [transaction.instance]
        phase = \"frozen\"
        [transaction.instance.window]
        closes = 2026-03-01T23:00:00Z
        [[case]]
        name = \"one\"
        expect = \"hold\"
        settings.b = { d = [3] }
        transaction = { instance = { name = \"x\" }, client = \"::1\" }
        [[case]]
        name = \"two\"
        expect = \"hold\"
        timeout = \"200ms\"
        tables = { vip = { \"acme.example\" = \"gold\" } }
        transaction.instance = false
        [[case]]
        name = \"three\"
        expect = \"hold\"
        transaction.instance.window = false
    ";
    let cases = cases(text);
    assert_eq!(cases[0].setup.settings, "{\"a\":1,\"b\":{\"c\":2,\"d\":[3]}}");
    assert_eq!(cases[1].setup.settings, "{\"a\":1,\"b\":{\"c\":2,\"d\":[1,2]}}");
    assert_eq!((cases[2].setup.memory, cases[2].line), (64 << 20, Some(22)));
    assert_eq!(cases[1].setup.timeout, Duration::from_millis(200));
    assert_eq!(cases[1].setup.tables["vip"]["acme.example"], "gold");
    let of = |case: &Case| match &case.check {
        Check::Answer { question, .. } => question.transaction().unwrap().clone(),
        Check::Refused(_) => panic!("no question"),
    };
    let first = of(&cases[0]);
    assert_eq!(first.now, Timestamp(1_772_399_400_000));
    assert_eq!(first.client, "::1".parse::<IpAddr>().unwrap());
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let pairs = [pair("header:x-tag", "one"), pair("header:x-tag", "two"), pair("helo", "mx")];
    assert_eq!(first.attributes, pairs);
    let instance = first.instance.unwrap();
    assert_eq!((instance.name.as_str(), instance.phase), ("x", Phase::Frozen));
    let window = instance.window.unwrap();
    assert_eq!((window.wave.as_str(), window.opens), ("wave-1", first.now));
    assert_eq!(of(&cases[1]).instance, None);
    assert_eq!(of(&cases[2]).instance.unwrap().window, None);
}

#[test]
fn the_question_follows_from_the_answer() {
    let route = question("[[case]]\nname = \"n\"\nexpect = { all = \"cloud\" }\n");
    assert_eq!(route.function(), "routing.route");
    let limits = question(
        "transaction.recipients = [\"a@b.example\", \"c@d.example\"]\n\
         [[case]]\nname = \"n\"\nexpect = \"none\"\n",
    );
    let Question::Limits { upstream, recipients, .. } = limits else { panic!("{limits:?}") };
    assert_eq!((upstream.as_str(), recipients), ("legacy", vec![0, 1]));
    let observe = question(
        "[[case]]\nname = \"n\"\nexpect = \"none\"\n\
         outcome = { upstream = \"cloud\", keys = [\"k\"], code = 421 }\n",
    );
    assert_eq!(observe.function(), "throttling.observe");
    let text = "ask = \"observe\"\noutcome = { keys = [\"k\"], code = 0 }\n\
                [[case]]\nname = \"n\"\nexpect = \"none\"\n";
    assert_eq!(
        question(text),
        Question::Observe {
            upstream: "legacy".into(),
            keys: vec!["k".into()],
            code: 0,
            text: String::new(),
            now: TransactionRecord::default().now,
        }
    );
}

#[test]
fn upstreams_are_up_unless_it_is_said_otherwise() {
    let text = "[transaction.upstreams]\ncloud = { attempts = 9, broken = 9 }\n\
                legacy = { up = false }\n";
    let states = transaction(&format!("{text}{ONE}")).upstreams;
    assert!(states[0].up && states[0].name == "cloud" && states[0].broken == 9);
    assert!(!states[1].up && states[1].name == "legacy");
    let logged = "transaction.upstreams = [{ name = \"cloud\", up = false }]\n\
                  transaction.attributes = [[\"helo\", \"mx\"]]\n";
    let logged = transaction(&format!("{logged}{ONE}"));
    assert!(!logged.upstreams[0].up);
    assert_eq!(logged.attributes[0].1, "mx");
}

#[test]
fn json_says_the_same() {
    let text = r#"{ "settings": { "a": 1 }, "case": [
        { "name": "n", "expect": { "hold": { "until": "2026-03-01T22:00:00Z" } } } ] }"#;
    let case = parse("a.json", text, Notation::Json).unwrap().remove(0);
    assert_eq!((case.setup.settings.as_str(), case.line), ("{\"a\":1}", None));
    for (text, part) in [
        ("{", "a.json:1: not JSON"),
        ("[]", "is no object with a member \"case\""),
        ("{}", "write them as objects in a list, \"case\""),
        ("{ \"case\": [5] }", "a case is an object"),
    ] {
        let mistakes = parse("a.json", text, Notation::Json).unwrap_err();
        assert!(mistakes[0].to_string().contains(part), "{}", mistakes[0]);
    }
}

#[test]
fn a_mistake_names_file_line_and_case() {
    let with = |more: &str| format!("\n\n{ONE}{more}");
    for (more, message) in [
        ("setings = {}", "there is no member \"setings\"; did you mean \"settings\"?"),
        ("transaction = { senders = \"x\" }", "transaction: unknown field `senders`, expected"),
        ("transaction = { now = \"noon\" }", "transaction: \"noon\" is no time; write it as"),
        ("transaction = { now = 2026-03-01T22:00:00 }", "is no time; write it as 2026-03-01T22"),
        ("transaction = { bucket = 10000 }", "must be 0 to 9999"),
        ("transaction = { recipients = [] }", "every message has one"),
        ("transaction = { instance.phase = \"frosty\" }", "is no phase; there are unscheduled"),
        ("transaction = { instance.window = {} }", "missing field `closes`"),
        ("transaction = { attributes = { helo = 5 } }", "a table of texts, such as"),
        ("transaction = { upstreams = { cloud = 5 } }", "a table by name, such as"),
        ("settings = 5", "settings must be a table"),
        ("upstreams = []", "upstreams is empty"),
        ("upstreams = \"cloud\"", "upstreams: invalid type"),
        ("tables = { vip = 5 }", "tables: invalid type"),
        ("memory = \"64 MiB\"", "memory: \"64 MiB\" is not a size"),
        ("memory = 5", "memory must be 1 MiB to 1 GiB"),
        ("timeout = \"1h\"", "timeout must be 1 ms to 10 s"),
        ("ask = \"freeze\"", "there are decide, route, limits, observe"),
        ("ask = \"route\"", "asks route, but expects what answers decide"),
    ] {
        let text = wrong(&with(more));
        assert!(text.starts_with("a.toml:3: case \"n\": "), "{text}");
        assert!(text.contains(message), "{text}");
    }
    for (text, message) in [
        ("[[case]]\nname = \"n\"\n", "a.toml:1: case \"n\": has no expect: say what is right"),
        ("[[case]]\nexpect = \"hold\"\n", "a.toml:1: case 1 has no name: say in one line"),
        ("settings = {}\n", "a.toml: has no cases: write each as [[case]]"),
        ("case = 5\n", "a.toml:1: has no cases"),
        ("a = \n", "a.toml:1: not TOML: "),
        ("\nx = inf\n[[case]]\n", "a.toml:2: inf has no JSON form"),
        ("expect = \"hold\"\n[[case]]\nname = \"n\"\n", "a.toml: there is no member \"expect\""),
        ("transaction.size = -1\n[[case]]\nname = \"n\"\n", "a.toml: transaction: invalid value"),
        (
            "[[case]]\nname = \"n\"\nexpect = \"none\"\nupstream = \"x\"\n",
            "\"x\" is none of upstreams; there are legacy, cloud",
        ),
        (
            "[[case]]\nname = \"n\"\nexpect = \"none\"\nrecipients = [1]\n",
            "there is no 1: they are indexes",
        ),
        (
            "ask = \"observe\"\n[[case]]\nname = \"n\"\nexpect = \"none\"\n",
            "has no outcome: say what came of the attempt",
        ),
    ] {
        let found = wrong(text);
        assert!(found.contains(message), "{found}");
    }
    let twice = wrong(&format!("{ONE}{ONE}"));
    assert_eq!(twice, "a.toml:4: case \"n\": is there twice: one name, one case");
}

#[test]
fn files_are_read_in_order_and_all_mistakes_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(matches!(read(&at("gone")), Err(Mistakes::Read { .. })));
    assert!(matches!(read(dir.path()), Err(Mistakes::None(_))));
    let json = "{ \"case\": [{ \"name\": \"j\", \"expect\": \"proceed\" }] }";
    fs::write(at("b.json"), json).unwrap();
    fs::write(at("a.toml"), ONE).unwrap();
    fs::write(at("README.md"), "none").unwrap();
    let names: Vec<_> = read(dir.path()).unwrap().into_iter().map(|case| case.name).collect();
    assert_eq!(names, ["n", "j"]);
    assert_eq!(read(&at("b.json")).unwrap().len(), 1);
    fs::write(at("a.toml"), "[[case]]").unwrap();
    fs::write(at("b.json"), "{}").unwrap();
    let Err(Mistakes::Wrong(mistakes)) = read(dir.path()) else { panic!("no mistakes") };
    assert_eq!(mistakes.len(), 2);
    fs::write(at("c.toml"), vec![b'#'; 4 * 1024 * 1024 + 1]).unwrap();
    assert!(read(&at("c.toml")).unwrap_err().to_string().contains("larger than 4 MiB"));
}
