//! The repository tests itself: floors, what the protocol core may use, what lies at the top,
//! links, sizes, and that what the documents say is what the code has.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The longest source file of the relay. 500 lines are the aim; over this, split it.
const LINES: usize = 700;

/// What may lie at the top, beside dotted files of tools and what `.gitignore` names.
const TOP: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "config",
    "plugins",
    "relay",
    "tests",
    "wit",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below `directory` with this ending, as paths from the root, sorted.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(directory)];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" {
                left.push(path);
            } else if name.ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} below {directory}");
    found
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} found:\n{}", problems.len(), problems.join("\n"));
}

/// A module of the relay and its floor, as `lib.rs` has them: in the order of the floors.
struct Module {
    name: String,
    floor: u8,
}

fn modules() -> Vec<Module> {
    let mut floor = None;
    let mut found = Vec::new();
    for line in read("relay/src/lib.rs").lines() {
        if let Some(rest) = line.strip_prefix("// Floor ") {
            floor = rest.split(':').next().unwrap().parse().ok();
        } else if let Some(name) = module_name(line) {
            let floor = floor.expect("a floor stands above the first module");
            found.push(Module { name: name.to_owned(), floor });
        }
    }
    assert!(found.is_sorted_by_key(|module| module.floor), "floors in lib.rs are out of order");
    found
}

fn module_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "))?;
    rest.strip_suffix(';')
}

/// The modules of the crate root that a file names, each with its line. `module` is the file's
/// own path of modules.
fn uses(text: &str, module: &[String]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // Comments name what they like. Positions stay, so that lines can be counted.
    let code: String =
        text.lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or(""))).collect();
    // rustfmt puts the brace that ends an inline module at the beginning of a line.
    let mut inline = 0;
    let mut at = 0;
    for (number, line) in code.lines().enumerate() {
        if line.trim_end().ends_with('{') && line.contains("mod ") && !line.starts_with(' ') {
            inline = 1;
        } else if line == "}" {
            inline = 0;
        }
        let supers = "super::".repeat(module.len() + inline);
        for from_root in ["crate::", "wavegate::", &supers] {
            for (start, _) in line.match_indices(from_root) {
                let before = line[..start].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let rest = &code[at + start + from_root.len()..];
                for (offset, name) in first_names(rest) {
                    let lines = rest[..offset].matches('\n').count();
                    found.push((number + 1 + lines, name));
                }
            }
        }
        at += line.len() + 1;
    }
    found
}

/// `a::b` is `a`; `{a::b, c::{d, e}}` is `a` and `c`.
fn first_names(rest: &str) -> Vec<(usize, String)> {
    let ident = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    if !rest.starts_with('{') {
        return vec![(0, ident(rest))];
    }
    let mut found = Vec::new();
    let (mut depth, mut fresh) = (0, false);
    for (offset, c) in rest.char_indices() {
        match c {
            '{' => {
                depth += 1;
                fresh = depth == 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' => fresh = depth == 1,
            c if fresh && !c.is_whitespace() => {
                found.push((offset, ident(&rest[offset..])));
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

/// `relay/src/gate/attributes.rs` is `gate`, `attributes`.
fn module_path(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix("relay/src").unwrap().with_extension("");
    let mut path: Vec<String> =
        inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// What one file uses that stands below it in the list.
fn floor_problems(file: &Path, text: &str, order: &[Module]) -> Vec<String> {
    let module = module_path(file);
    let place = |name: &str| order.iter().position(|module| module.name == name);
    let Some(own) = place(&module[0]) else {
        return vec![format!("{}: {} is not in lib.rs", file.display(), module[0])];
    };
    uses(text, &module)
        .into_iter()
        .filter(|(_, name)| place(name).is_some_and(|used| used > own))
        .map(|(line, name)| {
            let own = &module[0];
            format!("{}:{line}: {own} uses {name}, which stands below it in lib.rs", file.display())
        })
        .collect()
}

#[test]
fn imports_point_to_lower_floors_only() {
    let order = modules();
    let problems: Vec<String> = files("relay/src", ".rs")
        .iter()
        .filter(|file| !file.ends_with("lib.rs") && !file.ends_with("main.rs"))
        .flat_map(|file| floor_problems(file, &read(file), &order))
        .collect();
    report(&problems);
}

#[test]
fn a_use_of_a_higher_floor_is_found_however_it_is_written() {
    let order = ["plan", "world", "gate", "session"];
    let order: Vec<Module> =
        order.iter().map(|name| Module { name: (*name).to_owned(), floor: 0 }).collect();
    let found = |file: &str, text: &str| floor_problems(Path::new(file), text, &order);
    let world = "relay/src/world/stream.rs";
    assert_eq!(found(world, "use crate::plan::Plan;\n"), Vec::<String>::new());
    assert_eq!(found(world, "// use crate::gate::ask;\nuse crate::world::X;\n").len(), 0);
    assert_eq!(found(world, "use gate::plan;\nuse super::gate;\n").len(), 0);
    let several = "use crate::{\n    plan::Plan,\n    world::{self, gate},\n    session,\n};\n";
    assert_eq!(
        found(world, several),
        ["relay/src/world/stream.rs:4: world uses session, which stands below it in lib.rs"]
    );
    assert_eq!(found(world, "fn f() { crate::gate::ask() }\n").len(), 1);
    assert_eq!(found(world, "use super::super::gate;\n").len(), 1);
    assert_eq!(found("relay/src/plan.rs", "use super::world;\n").len(), 1);
    let inline = "mod tests {\n    use super::world;\n    use super::super::gate;\n}\n";
    assert_eq!(found("relay/src/plan.rs", inline).len(), 1);
    assert_eq!(found("relay/src/unknown.rs", "").len(), 1);
}

#[test]
fn every_module_says_its_floor() {
    let mut problems = Vec::new();
    for Module { name, floor } in modules() {
        let flat = format!("relay/src/{name}.rs");
        let file =
            if root().join(&flat).exists() { flat } else { format!("relay/src/{name}/mod.rs") };
        let text = read(&file);
        let docs: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        if !docs.iter().any(|line| line.contains(&format!("Floor {floor}."))) {
            problems.push(format!("{file}: its docs do not say \"Floor {floor}.\" as lib.rs does"));
        }
    }
    report(&problems);
}

#[test]
fn the_architecture_lists_the_modules_as_the_code_has_them() {
    let document = read("relay/ARCHITECTURE.md");
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| ")).collect();
    let order = modules();
    for floor in 0..=order.last().unwrap().floor {
        let start = format!("| {floor} |");
        let row = rows.iter().find(|row| row.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("relay/ARCHITECTURE.md has no row {start}"));
        let said: Vec<&str> =
            row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2).collect();
        let real = order.iter().filter(|module| module.floor == floor);
        let mut real: Vec<&str> = real.map(|module| module.name.as_str()).collect();
        if floor == 0 {
            real.splice(0..0, ["wavegate-smtp", "wavegate-link", "wavegate-notice"]);
        }
        assert_eq!(said, real, "floor {floor} in relay/ARCHITECTURE.md, then in lib.rs");
    }
}

#[test]
fn the_protocol_cores_do_no_io() {
    let mut problems = Vec::new();
    for (core, only) in [
        ("relay/smtp", &["memchr", "thiserror", "zeroize"][..]),
        ("relay/link", &["wavegate-smtp", "thiserror"]),
    ] {
        let manifest = read(format!("{core}/Cargo.toml"));
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        let names: Vec<&str> = dependencies
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(n, _)| n.trim())
            .collect();
        assert_eq!(names, only, "dependencies of {core}");
        for file in files(&format!("{core}/src"), ".rs") {
            for (number, line) in read(&file).lines().enumerate() {
                for banned in io_in(line.split("//").next().unwrap()) {
                    problems.push(format!("{}:{}: {banned}", file.display(), number + 1));
                }
            }
        }
    }
    report(&problems);
}

/// What does I/O, or knows the time, in a line of code. Addresses are values; sockets are not.
fn io_in(code: &str) -> impl Iterator<Item = &'static str> {
    let addresses = [
        "std::net::{Ipv4Addr, Ipv6Addr}",
        "std::net::{IpAddr, Ipv4Addr, Ipv6Addr}",
        "std::net::{IpAddr, Ipv6Addr, SocketAddr}",
    ];
    let code = addresses.iter().fold(code.to_owned(), |code, one| code.replace(one, ""));
    let banned = ["tokio", "quinn", "std::net", "std::fs", "std::time", "std::thread", "std::io"];
    banned.into_iter().filter(move |banned| code.contains(banned))
}

#[test]
fn notices_know_nothing_of_the_relay_or_the_world() {
    let manifest = read("relay/notice/Cargo.toml");
    assert!(!manifest.contains("path ="), "relay/notice depends on another part of the relay");
    let mut problems = Vec::new();
    for file in files("relay/notice/src", ".rs") {
        for (number, line) in read(&file).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for banned in
                ["tokio", "std::net", "std::fs", "std::env", "::now()", "TimeZone::system"]
            {
                if code.contains(banned) {
                    problems.push(format!("{}:{}: {banned}", file.display(), number + 1));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn the_top_of_the_repository_has_nothing_else() {
    let ignored = read(".gitignore");
    let ignored: BTreeSet<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !ignored.contains(name.as_str()) {
            seen.insert(name);
        }
    }
    let expected: BTreeSet<String> = TOP.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(seen, expected);
}

#[test]
fn every_suite_is_in_the_program_of_its_folder() {
    let mut problems = Vec::new();
    for folder in ["relay/tests", "tests/tests"] {
        let all = read(format!("{folder}/all.rs"));
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let is_suite = match path.is_dir() {
                true => ["main.rs", "mod.rs"].iter().any(|file| path.join(file).exists()),
                false => path.extension().is_some_and(|ending| ending == "rs") && name != "all",
            };
            if is_suite && !all.contains(&format!("\nmod {name};\n")) {
                problems.push(format!("{folder}/all.rs does not run {name}"));
            }
        }
    }
    report(&problems);
}

#[test]
fn no_source_file_is_too_long() {
    let mut problems = Vec::new();
    for file in ["relay/src", "relay/smtp/src", "relay/link/src", "relay/notice/src"]
        .map(|at| files(at, ".rs"))
        .concat()
    {
        let lines = read(&file).lines().count();
        if lines > LINES {
            problems.push(format!("{}: {lines} lines, over {LINES}", file.display()));
        }
    }
    report(&problems);
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("README.md")];
    for directory in ["relay", "plugins", "wit", "config", "tests"] {
        let mut left = vec![root().join(directory)];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                    left.push(path);
                } else if path.extension().is_some_and(|ending| ending == "md") {
                    found.push(path.strip_prefix(root()).unwrap().to_path_buf());
                }
            }
        }
    }
    found
}

/// The place that a heading can be linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn link_problem(document: &Path, target: &str) -> Option<String> {
    let (path, place) = target.split_once('#').unwrap_or((target, ""));
    let linked = if path.is_empty() {
        root().join(document)
    } else {
        root().join(document).parent().unwrap().join(path)
    };
    if !linked.exists() {
        return Some("there is no such file".to_owned());
    }
    let has_place = place.is_empty()
        || fs::read_to_string(&linked).is_ok_and(|text| {
            text.lines().any(|line| line.starts_with('#') && anchor(line) == place)
        });
    (!has_place).then(|| "there is no such heading".to_owned())
}

#[test]
fn links_between_documents_resolve() {
    let documents = documents();
    assert!(documents.iter().any(|path| path.ends_with("ARCHITECTURE.md")));
    let mut problems = Vec::new();
    let mut checked = 0;
    for document in documents {
        for (number, line) in read(&document).lines().enumerate() {
            for piece in line.split("](").skip(1) {
                let target = piece.split(')').next().unwrap();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                checked += 1;
                if let Some(problem) = link_problem(&document, target) {
                    let at = format!("{}:{}", document.display(), number + 1);
                    problems.push(format!("{at}: {target}: {problem}"));
                }
            }
        }
    }
    assert!(checked > 0);
    report(&problems);
    assert!(link_problem(Path::new("README.md"), "relay/NO-SUCH.md").is_some());
    assert!(link_problem(Path::new("README.md"), "#no-such-heading").is_some());
}

#[test]
fn the_configuration_in_the_readme_is_the_one_that_the_tests_load() {
    let readme = read("README.md");
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    for sample in ["sample_relay.toml", "sample_waves.toml"] {
        let loaded = read(Path::new("relay/src/config/tests").join(sample));
        assert!(
            blocks.iter().any(|block| block.trim_end() == loaded.trim_end()),
            "README.md has no toml block that is relay/src/config/tests/{sample}"
        );
    }
}

#[test]
fn scripts_are_executable_and_say_what_they_do() {
    use std::os::unix::fs::PermissionsExt as _;
    for script in ["tests/run", "tests/package", ".ci/run", "plugins/build", "config/debian/build"]
    {
        let mode = root().join(script).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
        let text = read(script);
        assert!(text.starts_with("#!/usr/bin/env bash\n# "), "{script} has no opening comment");
        assert!(text.contains("set -euo pipefail\n"), "{script} goes on after an error");
    }
}

#[test]
fn the_licence_is_the_one_that_the_manifests_name() {
    let licence = read("LICENSE");
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
    for manifest in ["Cargo.toml", "plugins/Cargo.toml"] {
        assert!(read(manifest).contains("license = \"Apache-2.0\""), "{manifest}");
    }
}
