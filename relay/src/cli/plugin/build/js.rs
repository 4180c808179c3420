//! JavaScript to a component: componentize-js, which puts an engine around it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::{Built, Failed, ended, exit, find, missing, not_started, read};

/// The oldest Node that componentize-js runs on.
const NODE: u32 = 18;
const TOOL: &str = "node_modules/@bytecodealliance/componentize-js/src/cli.js";
/// What of WASI the engine would import; without it a policy imports the contract alone.
const DISABLED: [&str; 5] = ["stdio", "random", "clocks", "http", "fetch-event"];

/// What is read of `package.json`.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    wavegate: Settings,
}

#[derive(Debug, Deserialize)]
struct Settings {
    /// The world of `wit/` that the policy is one of.
    world: String,
}

pub(super) fn build(directory: &Path) -> anyhow::Result<Built> {
    let file = directory.join("package.json");
    let package: Package = parse(&file, "name, version and wavegate.world are needed")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if package.name.is_empty() || !package.name.bytes().all(plain) || package.name.starts_with('.')
    {
        let message = format!("{}: the name must be of letters, digits, - _ .", file.display());
        return Err(Failed::new(exit::DATA, message).into());
    }
    let node = find("node")
        .ok_or_else(|| missing(format!("node is not here: Node {NODE} or newer is needed")))?;
    let version = said(Command::new(&node).arg("--version"));
    if major(&version).is_none_or(|major| major < NODE) {
        let message = format!("{} is {version:?}: Node {NODE} or newer is needed", node.display());
        return Err(missing(message).into());
    }
    if !directory.join(TOOL).is_file() {
        install(directory)?;
    }
    about(directory, &package)?;
    let made = directory.join("build/component.wasm");
    let mut command = Command::new(&node);
    command.current_dir(directory).args([TOOL, "policy.js", "--wit", "wit"]);
    command.args(["--world-name", &package.wavegate.world, "--out", "build/component.wasm"]);
    command.arg("--disable").args(DISABLED);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    ended("componentize-js", status.map_err(|error| not_started(&command, &error))?)?;
    let component = fs::read(&made).with_context(|| made.display().to_string())?;
    Ok(Built { name: package.name, component })
}

/// What the policy says of itself, as a module of JavaScript.
fn about(directory: &Path, package: &Package) -> anyhow::Result<()> {
    let schema: Value = parse(&directory.join("settings.schema.json"), "JSON is needed")?;
    let value = |value: &str| Value::from(value).to_string();
    let text = format!(
        "// Made by `wavegate plugin build`.\nexport const name = {};\nexport const version = {};\n\
         export const schema = {schema};\n",
        value(&package.name),
        value(&package.version),
    );
    let folder = directory.join("build");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let file = folder.join("about.js");
    fs::write(&file, text).with_context(|| file.display().to_string())
}

fn install(directory: &Path) -> anyhow::Result<()> {
    let npm = find("npm").ok_or_else(|| {
        missing("componentize-js is not installed, and npm, which installs it, is not here")
    })?;
    let mut command = Command::new(npm);
    command.current_dir(directory).args(["install", "--no-audit", "--no-fund"]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.map_err(|error| not_started(&command, &error))?;
    match status.success() && directory.join(TOOL).is_file() {
        true => Ok(()),
        false => Err(missing(format!(
            "componentize-js is not installed (npm install: {status}): it must be among the \
             devDependencies of package.json"
        ))
        .into()),
    }
}

fn parse<T: for<'a> Deserialize<'a>>(file: &Path, wanted: &str) -> Result<T, Failed> {
    serde_json::from_str(&read(file)?)
        .map_err(|error| Failed::new(exit::DATA, format!("{}: {error}; {wanted}", file.display())))
}

fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

/// The first number of `v20.1.0`.
fn major(version: &str) -> Option<u32> {
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_node() {
        assert_eq!(major("v20.20.2"), Some(20));
        assert_eq!(major("v8"), Some(8));
        assert_eq!(major("20.1"), None);
        assert_eq!(major(""), None);
    }
}
