//! `wavegate plugin test` and `bench`: what an author sees, and what continuous integration reads.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use wavegate_tests::harness::binary;
use wavegate_tests::tool;

/// Reads JUnit's XML as strictly as its common schema has it, and prints what is in it as JSON.
const JUNIT: &str = r#"
import json, re, sys, xml.etree.ElementTree as tree
number = re.compile(r"^[0-9]+$")
time = re.compile(r"^[0-9]+\.[0-9]+$")
def check(element, tag, text, numbers, children):
    assert element.tag == tag, element.tag
    assert set(element.attrib) == set(text) | set(numbers), element.attrib
    for name in numbers:
        form = time if name == "time" else number
        assert form.match(element.attrib[name]), (name, element.attrib[name])
    assert all(child.tag in children for child in element), tag
def counts(element, cases):
    assert int(element.attrib["tests"]) == len(cases)
    failed = [case for case in cases if case.find("failure") is not None]
    assert int(element.attrib["failures"]) == len(failed)
root = tree.parse(sys.argv[1]).getroot()
check(root, "testsuites", ["name"], ["tests", "failures", "errors", "time"], ["testsuite"])
counts(root, list(root.iter("testcase")))
found = []
for suite in root:
    check(suite, "testsuite", ["name"], ["tests", "failures", "errors", "skipped", "time"], ["testcase"])
    counts(suite, list(suite))
    for case in suite:
        check(case, "testcase", ["name", "classname"], ["time"], ["failure"])
        failure = case.find("failure")
        if failure is not None:
            check(failure, "failure", ["message", "type"], [], [])
        found.append([suite.attrib["name"], case.attrib["name"],
                      None if failure is None else [failure.attrib["type"], failure.text]])
print(json.dumps(found))
"#;

fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")
}

/// A folder with cases, and the standard policies beside it.
struct Author(TempDir);

impl Author {
    fn new(files: &[(&str, &str)]) -> Self {
        let author = Self(tempfile::tempdir().unwrap());
        for name in ["freeze.wasm", "routing.wasm", "throttle.wasm"] {
            fs::copy(plugins().join("dist").join(name), author.path(name)).unwrap();
        }
        fs::create_dir(author.path("cases")).unwrap();
        for (name, text) in files {
            fs::write(author.path("cases").join(name), text).unwrap();
        }
        author
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs it: the exit code, and what went to standard output and standard error.
    fn run(&self, arguments: &str) -> (i32, String, String) {
        let arguments = format!("plugin {arguments}");
        let output = Command::new(binary())
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    fn fails(&self, arguments: &str, code: i32, words: &str) {
        let (ended, out, said) = self.run(arguments);
        assert_eq!(ended, code, "{arguments}: {said}{out}");
        assert!(said.contains(words), "{arguments}: {said}");
    }
}

const MIXED: &str = r#"
transaction.instance.phase = "frozen"
[[case]]
name = "mail is held"
expect = "hold"
[[case]]
name = "a <wrong> & \"strange\" time"
transaction.instance.window.closes = 2026-03-01T22:00:00Z
expect = { hold = { until = 2026-03-01T23:00:00Z, reason = "upgraded" } }
[[case]]
name = "another decision"
expect = "proceed"
"#;

#[test]
fn the_standard_policies_pass_their_cases() {
    for name in ["freeze", "routing", "throttle"] {
        let cases = plugins().join(name).join("cases");
        let output = Command::new(binary())
            .args(["plugin", "test"])
            .arg(plugins().join(format!("dist/{name}.wasm")))
            .arg("--cases")
            .arg(cases)
            .output()
            .unwrap();
        let said = tool::said(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.ends_with(" passed, 0 failed\n") && said.contains("\n  ok    "), "{said}");
    }
}

#[test]
fn a_difference_is_told_in_the_words_of_the_case() {
    let author = Author::new(&[("a.toml", MIXED)]);
    let (code, out, said) = author.run("test freeze.wasm --cases cases");
    assert_eq!((code, said.as_str()), (1, ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "cases/a.toml");
    assert!(lines[1].starts_with("  ok    mail is held (") && lines[1].ends_with(" fuel)"));
    assert!(lines[2].starts_with("  FAIL  a <wrong> & \"strange\" time ("), "{out}");
    let rest: Vec<&str> = lines[3..].iter().map(|line| line.trim_start()).collect();
    assert_eq!(
        rest[0],
        "expected  { hold = { reason = \"upgraded\", until = \"2026-03-01T23:00:00Z\" } }"
    );
    assert_eq!(
        rest[1],
        "got       { hold = { reason = \"instance acme-prod-1 is being upgraded (wave wave-1)\", \
         until = \"2026-03-01T22:00:00Z\" } }"
    );
    assert_eq!(
        rest[2],
        "differs   hold.until: expected \"2026-03-01T23:00:00Z\", got \"2026-03-01T22:00:00Z\""
    );
    assert!(
        rest[4..6]
            == [
                "expected  \"proceed\"",
                "got       { hold = { reason = \"instance acme-prod-1 is being upgraded\" } }"
            ]
    );
    assert_eq!(rest.last(), Some(&"3 cases: 1 passed, 2 failed"));

    let (code, out, _) = author.run("test freeze.wasm --cases cases --json");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["ok"], &told["failed"]), (1, &false.into(), &2.into()));
    assert_eq!(told["results"][0]["line"], 3);
    assert_eq!(told["results"][1]["faults"][0]["kind"], "differs");
    assert_eq!(told["results"][1]["faults"][0]["differences"][0]["at"], "hold.until");
    let (code, out, _) = author.run("test freeze.wasm --cases cases/a.toml --filter held");
    assert_eq!((code, out.lines().last()), (0, Some("1 case: 1 passed, 0 failed")));
}

#[test]
fn junit_is_what_continuous_integration_reads() {
    let Some(python) = tool::require("python3") else { return };
    let json = r#"{ "case": [{ "name": "mail of no instance goes", "expect": "proceed" }] }"#;
    let author = Author::new(&[("a.toml", MIXED), ("b & c.json", json)]);
    let (code, _, said) = author.run("test freeze.wasm --cases cases --junit report.xml");
    assert_eq!(code, 1, "{said}");
    let checked =
        Command::new(python).args(["-c", JUNIT]).arg(author.path("report.xml")).output().unwrap();
    assert!(checked.status.success(), "{}", tool::said(&checked));
    let found: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let at = |case: usize, what: usize| &found[case][what];
    assert_eq!(
        (at(0, 0), at(0, 1), at(0, 2)),
        (&"cases/a.toml".into(), &"mail is held".into(), &Value::Null)
    );
    assert_eq!(at(1, 1), "a <wrong> & \"strange\" time");
    assert_eq!(at(1, 2)[0], "differs");
    let text = at(1, 2)[1].as_str().unwrap();
    assert!(text.contains("\ndiffers   hold.until: expected \"2026-03-01T23"), "{text}");
    assert_eq!((at(3, 0), at(3, 2)), (&"cases/b & c.json".into(), &Value::Null));
}

#[test]
fn what_cannot_be_tested_has_its_exit_code() {
    let author =
        Author::new(&[("a.toml", MIXED), ("b.toml", "[[case]]\nname = \"n\"\nexpct = 1\n")]);
    author.fails("test freeze.wasm", 64, "--cases <DIR>");
    author.fails("test freeze.wasm --cases cases", 65, "cases/b.toml:1: case \"n\": has no expect");
    author.fails("bench freeze.wasm --cases cases", 65, "cases/b.toml:1: case \"n\"");
    author.fails("test freeze.wasm --cases gone", 66, "cannot read gone: No such file");
    author.fails("test freeze.wasm --cases cases/a.toml --filter no-such", 66, "no case has");
    author.fails("test gone.wasm --cases cases/a.toml", 66, "cannot read gone.wasm: No such file");
    fs::create_dir(author.path("empty")).unwrap();
    author.fails("test freeze.wasm --cases empty", 66, "no cases: write them into files that end");
    let refused = "[[case]]\nname = \"n\"\nsettings.x = 1\nexpect.settings = [{}]\n";
    fs::write(author.path("refused.toml"), refused).unwrap();
    author.fails("bench freeze.wasm --cases refused.toml", 66, "there is nothing to measure");
    author.fails("test freeze.wasm --cases cases/a.toml --junit no/x.xml", 74, "cannot write no/x");
    fs::write(author.path("text.wasm"), "(component)").unwrap();
    let refused = "text.wasm: this is not a WebAssembly component";
    author.fails("test text.wasm --cases cases/a.toml", 78, refused);
    author.fails("bench text.wasm --cases cases/a.toml", 78, refused);
    author.fails("bench freeze.wasm --cases cases/a.toml --max-memory much", 64, "--max-memory");
}

#[test]
fn a_bench_fails_what_takes_too_much() {
    let author = Author::new(&[("a.toml", MIXED)]);
    let run = |more: &str| author.run(&format!("bench freeze.wasm --cases cases --rounds 5{more}"));
    let (code, out, said) = run(" --json");
    assert_eq!(code, 0, "{said}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let hook = &told["hooks"][0];
    assert_eq!((&hook["function"], &hook["cases"]), (&"freeze.decide".into(), &3.into()));
    let fuel = hook["fuel"]["max"].as_u64().unwrap();
    let again: Value = serde_json::from_str(&run(" --json").1).unwrap();
    assert_eq!(again["hooks"][0]["fuel"], hook["fuel"], "fuel is the same in every run");
    assert!(hook["time_ns"]["p50"].as_u64().unwrap() > 0 && told["memory"].as_u64().unwrap() > 0);
    let (code, out, _) = run(&format!(" --max-fuel {fuel} --max-memory 16MiB"));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("freeze.decide") && out.contains("bytes an instance"), "{out}");
    let (code, out, _) = run(&format!(" --max-fuel {} --max-memory 1kB", fuel - 10));
    assert_eq!(code, 1, "{out}");
    let over = format!("too much: freeze.decide takes {fuel} fuel, 10 more than {}", fuel - 10);
    assert!(out.contains(&over) && out.contains("bytes of memory, "), "{out}");
}
