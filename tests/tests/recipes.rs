//! The recipes as they are built (plugins/recipes/dist): each passes its cases, and imports nothing but
//! the contract; and the reference of the contract is the one that the program prints.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use wavegate_tests::harness::binary;
use wavegate_tests::tool;

/// A component larger than this is none for a repository.
const LARGEST: u64 = 340 * 1024;

fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")
}

/// What `wavegate plugin` says to that.
fn plugin(arguments: &[&str], file: &Path) -> String {
    let output = Command::new(binary()).arg("plugin").args(arguments).arg(file).output().unwrap();
    let said = tool::said(&output);
    assert!(output.status.success(), "{}: {said}", file.display());
    said
}

/// The recipes by name: each has a folder with cases.
fn recipes() -> Vec<String> {
    let folder = plugins().join("recipes");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| folder.join(name).join("Cargo.toml").is_file());
    names.sort();
    assert_eq!(names, ["canary", "error-freeze", "quiet-hours", "split", "warm-up"]);
    names
}

fn built(name: &str) -> PathBuf {
    plugins().join(format!("recipes/dist/{name}.wasm"))
}

#[test]
fn every_recipe_passes_its_cases() {
    for name in recipes() {
        let cases = plugins().join("recipes").join(&name).join("cases");
        let said = plugin(&["test", "--cases", cases.to_str().unwrap()], &built(&name));
        assert!(said.trim_end().ends_with(" 0 failed"), "{name}: {said}");
        assert!(!said.trim_end().ends_with(" 0 passed, 0 failed"), "{name}: {said}");
    }
}

#[test]
fn a_recipe_is_small_and_needs_nothing_but_the_contract() {
    for name in recipes() {
        let size = fs::metadata(built(&name)).unwrap().len();
        assert!(size <= LARGEST, "{name} has {size} bytes");
        let said = plugin(&["inspect", "--json"], &built(&name));
        let found: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(!said.contains("wasi:"), "{name}: {said}");
        assert_eq!(found["name"], name.as_str(), "{said}");
    }
}

/// What a configuration needs beside its policies.
const RELAY: &str = r#"
[relay]
hostname = "relay.example"
state_dir = "state"
[[listener]]
address = "127.0.0.1:0"
[[upstream]]
name = "legacy"
targets = ["127.0.0.1:2601"]
default = true
[[upstream]]
name = "cloud"
targets = ["127.0.0.1:2602"]
"#;

#[test]
fn every_recipe_is_explained_with_settings_that_it_takes() {
    let page = fs::read_to_string(plugins().join("recipes/README.md")).unwrap();
    let samples = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let samples: String = samples.collect();
    let folder = tempfile::tempdir().unwrap();
    for name in recipes() {
        let file = format!("{name}.wasm");
        assert!(samples.contains(&format!("plugin = \"{file}\"")), "no sample of {name}");
        fs::copy(built(&name), folder.path().join(file)).unwrap();
    }
    let config = folder.path().join("relay.toml");
    let check = |text: String| {
        fs::write(&config, text).unwrap();
        let mut command = Command::new(binary());
        command.args(["config", "check", "--config"]).arg(&config).output().unwrap()
    };
    let output = check(format!("{RELAY}{samples}"));
    assert!(output.status.success(), "{}", tool::said(&output));
    // It is the plugins that look at the settings.
    let wrong = samples.replace("Europe/Berlin", "Europe/Berln");
    let output = check(format!("{RELAY}{wrong}"));
    let said = tool::said(&output);
    assert!(!output.status.success() && said.contains("is no time zone"), "{said}");
}

#[test]
fn the_reference_is_the_one_that_the_program_prints() {
    let output =
        Command::new(binary()).args(["plugin", "contract", "--markdown"]).output().unwrap();
    assert!(output.status.success(), "{}", tool::said(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let there = fs::read_to_string(plugins().join("CONTRACT.md")).unwrap();
    assert!(
        printed == there,
        "plugins/CONTRACT.md is not current: wavegate plugin contract --markdown > plugins/CONTRACT.md"
    );
    let output = Command::new(binary()).args(["plugin", "contract"]).output().unwrap();
    let wit = plugins().join("../wit/1.0.0/policy.wit");
    assert_eq!(output.stdout, fs::read(wit).unwrap());
}
