//! `wavegate plugin build`: a project to a component. Floor 4.
//!
//! Owns which toolchains there are and how they are called; `rust` and `js` do the work. What a tool
//! says goes to standard error, as it comes.

mod js;
mod rust;

use std::{
    env, fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::Context as _;
use clap::Args;

use super::{Failed, exit};

#[derive(Debug, Args)]
pub(in crate::cli) struct BuildArgs {
    /// The project; by default the one of this directory.
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Where to write the component; by default to NAME.wasm in the project.
    #[arg(long, value_name = "FILE.wasm")]
    out: Option<PathBuf>,
}

/// A component, and what the project calls it.
struct Built {
    name: String,
    component: Vec<u8>,
}

/// Builds a project and says what came of it.
pub(super) fn build(args: &BuildArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let directory = args.directory.canonicalize().map_err(|error| {
        Failed::new(exit::NO_INPUT, format!("{}: {error}", args.directory.display()))
    })?;
    let built = match (directory.join("Cargo.toml"), directory.join("package.json")) {
        (manifest, _) if manifest.is_file() => rust::build(&directory)?,
        (_, package) if package.is_file() => js::build(&directory)?,
        _ => {
            let message = format!(
                "{} has neither Cargo.toml nor package.json: name the directory of a project, or make \
                 one with `wavegate plugin new`",
                directory.display()
            );
            return Err(Failed::new(exit::NO_INPUT, message).into());
        }
    };
    let file = args.out.clone().unwrap_or_else(|| args.directory.join(built.name + ".wasm"));
    fs::write(&file, &built.component).with_context(|| file.display().to_string())?;
    let digest = blake3::hash(&built.component).to_hex();
    writeln!(out, "{}: {} bytes, blake3 {digest}", file.display(), built.component.len())?;
    Ok(0)
}

/// A program of the search path.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|it| is_program(it))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// A toolchain that is not here: what is missing, and what brings it.
fn missing(message: impl Into<String>) -> Failed {
    Failed::new(exit::UNAVAILABLE, message)
}

/// A tool that was found and could not be started: the machine's fault.
fn not_started(command: &Command, error: &std::io::Error) -> Failed {
    Failed::new(exit::OS, format!("{}: {error}", command.get_program().display()))
}

/// A tool that ended in failure has said why.
fn ended(what: &str, status: ExitStatus) -> Result<(), Failed> {
    if status.success() {
        return Ok(());
    }
    Err(Failed::new(exit::DATA, format!("{what} failed ({status}); what it said stands above")))
}

/// A file of the project.
fn read(file: &Path) -> Result<String, Failed> {
    fs::read_to_string(file)
        .map_err(|error| Failed::new(exit::NO_INPUT, format!("{}: {error}", file.display())))
}
