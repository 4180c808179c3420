//! What authors of plugins do: a new project, a build with a real toolchain, `check`, `inspect`. The
//! templates must build as they are.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use wavegate_tests::harness::binary;
use wavegate_tests::tool::{require, said};

/// `wavegate plugin ...` in a folder.
fn plugin(folder: &Path, arguments: &str) -> Output {
    let mut command = Command::new(binary());
    command.arg("plugin").args(arguments.split(' ')).current_dir(folder).stdin(Stdio::null());
    // What was compiled for one template is used for the next.
    command.env("CARGO_TARGET_DIR", shared());
    command.output().unwrap()
}

fn good(folder: &Path, arguments: &str) -> String {
    let output = plugin(folder, arguments);
    assert!(output.status.success(), "{arguments}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with that code; what it said.
fn bad(folder: &Path, arguments: &str, code: i32) -> String {
    let output = plugin(folder, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments}: {}", said(&output));
    said(&output)
}

fn shared() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins")
}

fn dist(name: &str) -> String {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/dist");
    dist.join(name).canonicalize().unwrap().display().to_string()
}

/// What every built template must be.
fn is_what_its_template_says(folder: &Path, name: &str, hook: &str, memory: &str) {
    let told: Value =
        serde_json::from_str(&good(folder, &format!("inspect {name}.wasm --json"))).unwrap();
    assert_eq!(told["name"], name);
    assert_eq!(told["hooks"], serde_json::json!([hook]));
    assert_eq!(told["stubs"], serde_json::json!([]), "it needs nothing of WASI");
    assert_eq!(told["settings"]["additionalProperties"], false);
    let checked = good(folder, &format!("check {name}.wasm --memory {memory}"));
    assert!(checked.contains("good, 0 warnings"), "{checked}");
    fs::write(folder.join("wrong.toml"), "no_such_setting = 1\n").unwrap();
    let wrong =
        bad(folder, &format!("check {name}.wasm --memory {memory} --settings wrong.toml"), 78);
    assert!(wrong.contains("no_such_setting") && wrong.contains("0 warnings"), "{wrong}");
}

#[test]
#[ignore = "long: three projects with a standard library of their own"]
fn templates_in_rust_build() {
    if require("wasm-ld-22").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for hook in ["freeze", "routing", "throttling"] {
        let name = format!("a-{hook}");
        good(dir.path(), &format!("new {name} --hook {hook}"));
        let folder = dir.path().join(&name);
        let built = good(&folder, "build");
        assert!(built.contains(&format!("{name}.wasm: ")), "{built}");
        is_what_its_template_says(&folder, &name, hook, "16MiB");
        let bytes = fs::read(folder.join(format!("{name}.wasm"))).unwrap();
        let here = folder.as_os_str().as_encoded_bytes();
        assert!(!bytes.windows(here.len()).any(|part| part == here), "the folder is in the bytes");
    }
}

#[test]
#[ignore = "long: three snapshots of an engine"]
fn templates_in_javascript_build() {
    if require("npm").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut modules: Option<PathBuf> = None;
    for hook in ["freeze", "routing", "throttling"] {
        let name = format!("a-{hook}");
        good(dir.path(), &format!("new {name} --hook {hook} --lang js"));
        let folder = dir.path().join(&name);
        // Installed once: the first build does it.
        if let Some(modules) = &modules {
            std::os::unix::fs::symlink(modules, folder.join("node_modules")).unwrap();
        }
        good(&folder, "build");
        modules.get_or_insert_with(|| folder.join("node_modules"));
        is_what_its_template_says(&folder, &name, hook, "64MiB");
    }
}

#[test]
fn a_project_is_made_once_and_only_of_good_names() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), "new quiet --hook freeze");
    assert!(bad(dir.path(), "new quiet --hook freeze", 65).contains("not empty"));
    bad(dir.path(), "new Quiet --hook freeze", 64);
    bad(dir.path(), "new quiet2", 64);
    assert!(bad(dir.path(), "build nowhere", 66).contains("nowhere"));
    assert!(bad(dir.path(), "build .", 66).contains("neither Cargo.toml nor package.json"));
}

#[test]
fn a_toolchain_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), "new quiet --hook freeze --lang js");
    let folder = dir.path().join("quiet");
    let mut command = Command::new(binary());
    let output =
        command.args(["plugin", "build"]).current_dir(&folder).env("PATH", "/nowhere").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("Node 18"), "{}", said(&output));
}

#[test]
fn settings_are_checked_as_the_relay_does() {
    let dir = tempfile::tempdir().unwrap();
    let freeze = dist("freeze.wasm");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("good.json", r#"{ "in_window": "defer" }"#);
    write("bad.toml", "in_window = \"drop\"\n");
    write("broken.json", "{");
    assert!(good(dir.path(), &format!("check {freeze} --settings good.json")).contains("good"));
    let wrong = bad(dir.path(), &format!("check {freeze} --settings bad.toml"), 78);
    assert!(wrong.contains("settings.in_window"), "{wrong}");
    bad(dir.path(), &format!("check {freeze} --settings broken.json"), 65);
    bad(dir.path(), &format!("check {freeze} --settings nowhere.json"), 66);
    bad(dir.path(), "check nowhere.wasm", 66);
    bad(dir.path(), "inspect good.json", 65);
    let config = format!(
        "[relay]\nhostname = \"edge.example\"\nstate_dir = \"state\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"bulk\"\ntargets = [\"127.0.0.1:1\"]\n\
         [[policy]]\nname = \"route\"\nplugin = \"{}\"\n\
         settings = {{ rules = [ {{ upstream = \"bulk\" }} ] }}\n",
        dist("routing.wasm")
    );
    write("relay.toml", &config);
    let routing = dist("routing.wasm");
    good(dir.path(), &format!("check {routing} --config relay.toml --policy route"));
    let wrong = bad(dir.path(), &format!("check {routing} --config relay.toml --policy rout"), 64);
    assert!(wrong.contains("there are: route"), "{wrong}");
    // Another plugin in its place does not know these settings.
    let wrong = bad(dir.path(), &format!("check {freeze} --config relay.toml --policy route"), 78);
    assert!(wrong.contains("rules"), "{wrong}");
}
