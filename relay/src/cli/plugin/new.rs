//! `wavegate plugin new`: a project that builds. Floor 4.
//!
//! The program carries all that a project needs beside its language's toolchain: templates, the
//! contract, the crate that policies in Rust are written with. Templates are working projects
//! (`plugins/template`); only their name is put in place.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::{Failed, exit};

/// What the templates are called.
const PLACEHOLDER: &str = "my-policy";
/// The world of the JavaScript template.
const WORLD: &str = "freeze-policy";
/// The name of a project has at most so many bytes: it is part of names of files.
const MAX_NAME: usize = 64;

/// The version of the contract that new plugins are written for.
macro_rules! contract {
    () => {
        "1.0.0"
    };
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NewArgs {
    /// What the policy is called: lower case letters, digits and hyphens.
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// What it decides: whether mail may go, where to, or how fast.
    #[arg(long)]
    hook: Hook,
    /// What it is written in.
    #[arg(long, default_value = "rust")]
    lang: Language,
    /// Where to; by default a new directory of that name.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Hook {
    Freeze,
    Routing,
    Throttling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    Js,
}

/// A file of a project and what is in it.
type File = (&'static str, &'static str);

/// `file!(path in the project, path below plugins/)`.
macro_rules! file {
    ($path:expr, $from:expr) => {
        ($path, include_str!(concat!("../../../../plugins/", $from)))
    };
}

const RUST: [File; 4] = [
    file!("Cargo.toml", "template/rust/Cargo.toml"),
    file!("README.md", "template/rust/README.md"),
    file!(".gitignore", "template/rust/gitignore"),
    file!("tests/cases.rs", "template/rust/tests/cases.rs"),
];

const SDK: [File; 10] = [
    file!("wavegate/sdk/src/lib.rs", "sdk/src/lib.rs"),
    file!("wavegate/sdk/src/bindings.rs", "sdk/src/bindings.rs"),
    file!("wavegate/sdk/src/export.rs", "sdk/src/export.rs"),
    file!("wavegate/sdk/src/hooks.rs", "sdk/src/hooks.rs"),
    file!("wavegate/sdk/src/host.rs", "sdk/src/host.rs"),
    file!("wavegate/sdk/src/json.rs", "sdk/src/json.rs"),
    file!("wavegate/sdk/src/memory.rs", "sdk/src/memory.rs"),
    file!("wavegate/sdk/src/settings.rs", "sdk/src/settings.rs"),
    file!("wavegate/sdk/src/testing.rs", "sdk/src/testing.rs"),
    file!("wavegate/sdk/src/text.rs", "sdk/src/text.rs"),
];
/// Its manifest, and that of the workspace that it takes values from.
const SDK_MANIFEST: [&str; 2] = [
    include_str!("../../../../plugins/sdk/Cargo.toml"),
    include_str!("../../../../plugins/Cargo.toml"),
];

const JS: [File; 4] = [
    file!("package.json", "template/js/package.json"),
    file!("README.md", "template/js/README.md"),
    file!(".gitignore", "template/js/gitignore"),
    file!("wavegate/policy.js", "template/js/wavegate/policy.js"),
];

const CONTRACT: &str = include_str!(concat!("../../../../wit/", contract!(), "/policy.wit"));

/// What cases begin with where an engine runs the policy.
const JS_SETUP: &str = "memory = \"64MiB\"\n\n";

/// What a hook has of its own.
struct First {
    rust: &'static str,
    js: &'static str,
    schema: &'static str,
    cases: &'static [File],
}

impl Hook {
    fn as_str(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Routing => "routing",
            Self::Throttling => "throttling",
        }
    }

    fn first(self) -> First {
        macro_rules! first {
            ($hook:literal, $($case:literal),+) => {
                First {
                    rust: file!("", concat!("template/rust/src/", $hook, ".rs")).1,
                    js: file!("", concat!("template/js/src/", $hook, ".js")).1,
                    schema: file!("", concat!("template/", $hook, "/settings.schema.json")).1,
                    cases: &[$(file!(
                        concat!("cases/", $case, ".toml"),
                        concat!("template/", $hook, "/cases/", $case, ".toml")
                    )),+],
                }
            };
        }
        match self {
            Self::Freeze => first!("freeze", "window", "domains"),
            Self::Routing => first!("routing", "size", "nothing-set"),
            Self::Throttling => first!("throttling", "domains", "burst"),
        }
    }
}

/// Makes a project and says what to do with it.
pub(super) fn new(args: &NewArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let directory = args.directory.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    make_empty(&directory)?;
    for (path, text) in files(&args.name, args.hook, args.lang)? {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        let mut file = fs::File::create_new(&path).with_context(|| path.display().to_string())?;
        file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
    }
    let NewArgs { name, .. } = args;
    let policy = match args.lang {
        Language::Rust => "src/lib.rs",
        Language::Js => "policy.js",
    };
    writeln!(out, "{}: a {} policy; it is {policy}", directory.display(), args.hook.as_str())?;
    writeln!(out, "  cd {}", directory.display())?;
    writeln!(out, "  wavegate plugin build")?;
    writeln!(out, "  wavegate plugin test {name}.wasm --cases cases")?;
    Ok(0)
}

/// A directory with nothing in it: nobody's work is written over.
fn make_empty(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    match fs::read_dir(directory).with_context(|| directory.display().to_string())?.next() {
        None => Ok(()),
        Some(_) => {
            let directory = directory.display();
            let message = format!("{directory} is not empty: name a directory that is new");
            Err(Failed::new(exit::DATA, message).into())
        }
    }
}

/// All files of a project, by their paths in it.
fn files(name: &str, hook: Hook, language: Language) -> io::Result<Vec<(String, String)>> {
    let first = hook.first();
    let named = |text: &str| {
        let world = format!("{}-policy", hook.as_str());
        text.replace(WORLD, &world).replace(PLACEHOLDER, name)
    };
    let mut files: Vec<(String, String)> = Vec::new();
    let mut add = |path: &str, text: &str| files.push((path.to_owned(), text.to_owned()));
    match language {
        Language::Rust => {
            RUST.iter().for_each(|(path, text)| add(path, &named(text)));
            SDK.iter().for_each(|(path, text)| add(path, text));
            add("wavegate/sdk/Cargo.toml", &sdk_manifest()?);
            add("src/lib.rs", first.rust);
            add("src/settings.schema.json", first.schema);
            // Where the SDK looks for it.
            add(concat!("wit/", contract!(), "/policy.wit"), CONTRACT);
        }
        Language::Js => {
            JS.iter().for_each(|(path, text)| add(path, &named(text)));
            add("policy.js", first.js);
            add("settings.schema.json", first.schema);
            add("wit/policy.wit", CONTRACT);
        }
    }
    let setup = match language {
        Language::Rust => "",
        Language::Js => JS_SETUP,
    };
    first.cases.iter().for_each(|(path, text)| add(path, &format!("{setup}{text}")));
    Ok(files)
}

/// The SDK's manifest as that of a package that stands alone.
fn sdk_manifest() -> io::Result<String> {
    let [own, workspace] = SDK_MANIFEST.map(|text| text.parse::<toml::Table>());
    let (mut own, workspace) =
        (own.map_err(io::Error::other)?, workspace.map_err(io::Error::other)?);
    let given = workspace.get("workspace").and_then(|it| it.get("package"));
    if let Some(package) = own.get_mut("package").and_then(toml::Value::as_table_mut) {
        for (key, value) in package.iter_mut().filter(|(_, value)| value.is_table()) {
            if let Some(given) = given.and_then(|given| given.get(key)) {
                *value = given.clone();
            }
        }
    }
    own.remove("lints");
    own.remove("dev-dependencies");
    toml::to_string(&own).map_err(io::Error::other)
}

/// A name that Cargo, npm and a file system all take.
fn name(text: &str) -> Result<String, String> {
    /// What Cargo takes for something else.
    const TAKEN: [&str; 8] =
        ["test", "core", "std", "alloc", "proc-macro", "wavegate", "wavegate-policy", "deps"];
    /// Words of Rust; a crate cannot be called so.
    const WORDS: [&str; 52] = [
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
        "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
        "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
        "ref", "return", "self", "static", "struct", "super", "trait", "true", "try", "type",
        "typeof", "union", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    ];
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !first || !text.bytes().all(rest) || text.ends_with('-') || text.len() > MAX_NAME {
        return Err(format!("write 1 to {MAX_NAME} of a-z, 0-9 and -, a letter in front"));
    }
    if TAKEN.contains(&text) || WORDS.contains(&text) {
        return Err("is a word that the toolchain has a use for".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ALL: [(Hook, Language); 6] = [
        (Hook::Freeze, Language::Rust),
        (Hook::Routing, Language::Rust),
        (Hook::Throttling, Language::Rust),
        (Hook::Freeze, Language::Js),
        (Hook::Routing, Language::Js),
        (Hook::Throttling, Language::Js),
    ];

    #[test]
    fn names_are_what_all_toolchains_take() {
        for good in ["a", "quiet-hours", "warm-up2"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        let long = "a".repeat(MAX_NAME + 1);
        for wrong in ["", "A", "2a", "-a", "a-", "a_b", "a/b", "a b", "é", "fn", "std", &long] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
        assert!(name(&long[1..]).is_ok());
    }

    #[test]
    fn the_sdk_is_carried_whole_and_stands_alone() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/sdk/src");
        let mut there: Vec<_> = fs::read_dir(sdk)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        let mut carried = SDK.map(|(path, _)| path.rsplit_once('/').unwrap().1);
        carried.sort_unstable();
        assert_eq!(there, carried);
        let manifest = sdk_manifest().unwrap();
        assert!(!manifest.contains("workspace"), "{manifest}");
        let bindings = SDK.iter().find(|(path, _)| path.ends_with("bindings.rs")).unwrap().1;
        assert!(bindings.contains(concat!("\"../../wit/", contract!(), "\"")));
        assert_eq!(contract!(), crate::policy::Version::NEWEST.as_str());
    }

    #[test]
    fn the_name_is_everywhere_and_a_policy_is_no_more_than_a_page() {
        for (hook, language) in ALL {
            let files = files("quiet-hours", hook, language).unwrap();
            for (path, text) in &files {
                let ours = path.starts_with("wavegate/") || path.starts_with("wit/");
                assert!(ours || !text.contains(PLACEHOLDER), "{path}");
                assert!(ours || text.lines().count() <= 72, "{path} is more than a page");
            }
            let of = |wanted: &str| files.iter().any(|(path, _)| path == wanted);
            assert!(of("README.md") && of(".gitignore"));
            assert!(files.iter().filter(|(path, _)| path.starts_with("cases/")).count() >= 2);
        }
        let package = files("quiet-hours", Hook::Routing, Language::Js).unwrap();
        let package = &package.iter().find(|(path, _)| path == "package.json").unwrap().1;
        assert!(package.contains("routing-policy") && package.contains("\"quiet-hours\""));
    }

    #[test]
    fn schemas_are_json_and_closed() {
        for hook in [Hook::Freeze, Hook::Routing, Hook::Throttling] {
            let schema: serde_json::Value = serde_json::from_str(hook.first().schema).unwrap();
            assert_eq!(schema["additionalProperties"], false, "{hook:?}");
        }
    }

    #[test]
    fn a_directory_with_something_in_it_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Some(dir.path().join("new"));
        let args =
            NewArgs { name: "a".into(), hook: Hook::Freeze, lang: Language::Rust, directory };
        new(&args, &mut Vec::new()).unwrap();
        let again = new(&args, &mut Vec::new()).unwrap_err().to_string();
        assert!(again.contains("not empty"), "{again}");
    }
}
