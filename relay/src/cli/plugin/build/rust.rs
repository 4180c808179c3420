//! Rust to a component: Cargo for `wasm32-unknown-unknown`, then `wit-component` in this process.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde::Deserialize;
use wit_component::ComponentEncoder;

use super::{Built, Failed, ended, exit, find, is_program, missing, not_started};

const TARGET: &str = "wasm32-unknown-unknown";

/// What compiles, and how it comes by the standard library.
#[derive(Debug)]
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    sysroot: PathBuf,
    /// Only where the standard library is built from its sources.
    from_source: Option<FromSource>,
}

#[derive(Debug)]
struct FromSource {
    linker: PathBuf,
    library: PathBuf,
}

pub(super) fn build(directory: &Path) -> anyhow::Result<Built> {
    let toolchain = rustup(directory).or_else(debian).ok_or_else(|| {
        missing(format!(
            "no Rust toolchain for {TARGET}. One of these brings it:\n  rustup target add {TARGET}\n  \
             apt-get install rustc-web cargo-web rust-web-src lld-22    (Debian)"
        ))
    })?;
    let module = compile(&toolchain, directory)?;
    let bytes = fs::read(&module).with_context(|| module.display().to_string())?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| {
            let message = format!(
                "{} cannot be made a component: {error:#}. Is it written with wavegate-policy, and is \
                 `export!` in it?",
                module.display()
            );
            Failed::new(exit::DATA, message)
        })?;
    let name = module.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
    Ok(Built { name, component })
}

/// Rustup's, or any other that has the target's standard library.
fn rustup(directory: &Path) -> Option<Toolchain> {
    let (rustc, cargo) = (find("rustc")?, find("cargo")?);
    // In the project, because a file there may choose the toolchain.
    let libraries = said(&rustc, directory, &["--print", "target-libdir", "--target", TARGET])?;
    let is_std = |name: OsString| name.to_string_lossy().starts_with("libstd-");
    fs::read_dir(libraries).ok()?.flatten().find(|entry| is_std(entry.file_name()))?;
    let sysroot = PathBuf::from(said(&rustc, directory, &["--print", "sysroot"])?);
    Some(Toolchain { rustc, cargo, sysroot, from_source: None })
}

/// Debian's packages: they have the sources of the standard library.
fn debian() -> Option<Toolchain> {
    let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
    if !is_program(&rustc) || !is_program(&cargo) {
        return None;
    }
    let sysroot = PathBuf::from(said(&rustc, Path::new("/"), &["--print", "sysroot"])?);
    let library = sysroot.join("lib/rustlib/src/rust").canonicalize().ok()?;
    library.join("library/std").is_dir().then_some(())?;
    let linker = linker(&env::var_os("PATH")?)?;
    Some(Toolchain { rustc, cargo, sysroot, from_source: Some(FromSource { linker, library }) })
}

/// `wasm-ld-NN` with the greatest number.
fn linker(path: &OsString) -> Option<PathBuf> {
    let version = |file: &PathBuf| -> Option<u32> {
        file.file_name()?.to_str()?.strip_prefix("wasm-ld-")?.parse().ok()
    };
    let files = env::split_paths(path).filter_map(|directory| fs::read_dir(directory).ok());
    let files = files.flatten().flatten().map(|entry| entry.path());
    files.filter(|file| version(file).is_some() && is_program(file)).max_by_key(version)
}

/// What a compiler says to a question, in one line.
fn said(rustc: &Path, directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(rustc)
        .args(arguments)
        .current_dir(directory)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

/// Compiles the project; says where its core module is.
fn compile(toolchain: &Toolchain, directory: &Path) -> anyhow::Result<PathBuf> {
    let mut command = Command::new(&toolchain.cargo);
    command.current_dir(directory).args(["build", "--lib", "--release", "--target", TARGET]);
    command.arg("--message-format=json-render-diagnostics");
    // The compiler that was found and no other, and no settings from outside.
    for variable in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env_remove(variable);
    }
    command.env("RUSTC", &toolchain.rustc);
    if let Some(bin) = toolchain.rustc.parent() {
        let rest = env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(bin.to_owned()).chain(env::split_paths(&rest));
        command.env("PATH", env::join_paths(path)?);
    }
    if toolchain.from_source.is_some() {
        command.arg("-Zbuild-std=std,panic_abort").env("RUSTC_BOOTSTRAP", "1");
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain, directory));
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| not_started(&command, &error))?;
    ended("cargo build", output.status)?;
    artifact(&output.stdout, directory).ok_or_else(|| {
        let message = "the project has no library of crate-type \"cdylib\": write \
                       `crate-type = [\"cdylib\", \"rlib\"]` below [lib] in Cargo.toml";
        Failed::new(exit::DATA, message).into()
    })
}

/// Paths of this machine must not reach the bytes.
fn flags(toolchain: &Toolchain, directory: &Path) -> OsString {
    let mut flags: Vec<OsString> = Vec::new();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(directory, "/plugin");
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    if let Some(cargo_home) = env::var_os("CARGO_HOME").map(PathBuf::from).or(home) {
        remap(&cargo_home, "/cargo");
    }
    remap(&toolchain.sysroot, "/rust");
    if let Some(FromSource { linker, library }) = &toolchain.from_source {
        remap(library, "/rust/lib/rustlib/src/rust");
        let mut flag = OsString::from("-Clinker=");
        flag.push(linker);
        // A policy that panics traps; nobody would read the message.
        flags.extend([flag, "-Zunstable-options".into(), "-Cpanic=immediate-abort".into()]);
    }
    flags.join(&OsString::from("\x1f"))
}

/// A line of Cargo's messages; others have other members.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    crate_types: Vec<String>,
}

/// The project's own core module among what was compiled.
fn artifact(messages: &[u8], directory: &Path) -> Option<PathBuf> {
    let messages = messages.split(|&byte| byte == b'\n');
    let messages = messages.filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    let manifest = directory.join("Cargo.toml");
    messages
        .filter(|it| {
            it.reason == "compiler-artifact" && it.manifest_path.as_ref() == Some(&manifest)
        })
        .filter(|it| {
            let types = it.target.iter().flat_map(|target| &target.crate_types);
            types.into_iter().any(|one| one == "cdylib")
        })
        .flat_map(|it| it.filenames)
        .find(|file| file.extension().is_some_and(|ending| ending == "wasm"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_projects_own_module_is_found_among_the_messages() {
        let messages = br#"{"reason":"build-script-executed","package_id":"x"}
{"reason":"compiler-artifact","manifest_path":"/p/dep/Cargo.toml","target":{"crate_types":["cdylib"]},"filenames":["/t/dep.wasm"]}
{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"crate_types":["bin"]},"filenames":["/t/b.wasm"]}
{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"crate_types":["cdylib","rlib"]},"filenames":["/t/libp.rlib","/t/p.wasm"]}
no JSON
{"reason":"build-finished","success":true}"#;
        assert_eq!(artifact(messages, Path::new("/p")), Some(PathBuf::from("/t/p.wasm")));
        assert_eq!(artifact(messages, Path::new("/q")), None);
    }

    #[test]
    fn the_newest_linker_is_taken() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in
            [("wasm-ld-9", 0o755), ("wasm-ld-22", 0o755), ("wasm-ld-30", 0o644), ("wasm-ld", 0o755)]
        {
            let file = dir.path().join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = env::join_paths([Path::new("/nowhere"), dir.path()]).unwrap();
        assert_eq!(linker(&path), Some(dir.path().join("wasm-ld-22")));
    }
}
