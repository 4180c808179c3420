//! The policy host against components that no honest toolchain makes: bombs for the compiler, too
//! many of everything, code that runs before it is asked. They are the hostile guest with more
//! sections behind its own, put together from bytes here. That memory returns is shown where the
//! relay is a process of its own (`tests/tests/hostile_plugins.rs`).
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use wavegate::{
    config::{PluginSource, PolicyConfig},
    policy::{
        FailureKind, HostOptions, PolicyError, PolicyHost, PolicyProblem, PolicySet, WorkerPolicies,
    },
};

use crate::guest::{HOSTILE, transaction};

/// A host as the relay has it: what is not its own is compiled in another process.
struct Place {
    host: Arc<PolicyHost>,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self::compiling_by(env!("CARGO_BIN_EXE_wavegate"))
    }

    fn compiling_by(program: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = HostOptions {
            instances: 16,
            audit_every: 0,
            compile_apart: Some(program.into()),
            ..HostOptions::production(1)
        };
        let host = PolicyHost::new(Some(folder.path().join("compiled")), options).unwrap();
        Self { host, folder }
    }

    fn load(&self, wasm: &[u8], told: &str) -> Result<Arc<PolicySet>, Vec<PolicyError>> {
        let path = self.folder.path().join("policy.wasm");
        fs::write(&path, wasm).unwrap();
        self.load_file(path, told)
    }

    fn load_file(&self, path: PathBuf, told: &str) -> Result<Arc<PolicySet>, Vec<PolicyError>> {
        let policy = PolicyConfig {
            settings: format!("{{\"do\":\"{told}\"}}"),
            place: "relay.toml:7".to_owned(),
            ..PolicyConfig::new("p".to_owned(), PluginSource::File(path))
        };
        self.host.load(&[policy], &[], &["up".to_owned()], &|_| None)
    }

    /// The component is refused, with these words.
    fn refuses(&self, wasm: &[u8], words: &str) {
        let errors = self.load(wasm, "nothing").unwrap_err();
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(text.contains(words), "{words:?} is not in {text:?}");
        self.serves();
    }

    /// A good one is loaded and asked.
    fn serves(&self) {
        let set = self.load(HOSTILE, "nothing").unwrap();
        let mut worker = WorkerPolicies::new(Arc::clone(&self.host));
        worker.freeze(&set, 0, &transaction("1")).unwrap();
        worker.route(&set, 0, &transaction("1")).unwrap();
        worker.limits(&set, 0, &transaction("1"), "up", &[0]).unwrap();
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let compiled = fs::read_dir(self.folder.path().join("compiled")).unwrap();
        let files = compiled.map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_none_or(|it| it != "cwasm")).collect()
    }
}

/// A number as WebAssembly writes it.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(number & 0x7f).unwrap();
        number >>= 7;
        if number == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

fn module(sections: &[Vec<u8>]) -> Vec<u8> {
    [&b"\0asm\x01\0\0\0"[..], &sections.concat()].concat()
}

/// The hostile guest with one more module in it, instantiated so often.
fn with(module: &[u8], instances: usize) -> Vec<u8> {
    let mut wasm = HOSTILE.to_vec();
    let index = core_modules(HOSTILE);
    wasm.extend(section(1, module));
    if instances > 0 {
        let one = [&[0][..], &leb(index), &[0]].concat();
        wasm.extend(section(2, &[leb(instances), one.repeat(instances)].concat()));
    }
    wasm
}

/// How many core modules a component has.
fn core_modules(wasm: &[u8]) -> usize {
    let (mut at, mut found) = (8, 0);
    while at < wasm.len() {
        found += usize::from(wasm[at] == 1);
        let (mut length, mut shift) = (0, 0);
        loop {
            at += 1;
            length |= usize::from(wasm[at] & 0x7f) << shift;
            shift += 7;
            if wasm[at] < 0x80 {
                break;
            }
        }
        at += 1 + length;
    }
    found
}

/// A module of functions without parameters, with these bodies; `more` stands before the code.
fn functions(bodies: &[Vec<u8>], more: &[Vec<u8>]) -> Vec<u8> {
    let count = leb(bodies.len());
    let code: Vec<u8> =
        bodies.iter().flat_map(|body| [leb(body.len()), body.clone()].concat()).collect();
    let types = section(1, &[1, 0x60, 0, 0]);
    let declared = section(3, &[count.clone(), vec![0; bodies.len()]].concat());
    let code = section(10, &[count, code].concat());
    module(&[&[types, declared][..], more, &[code]].concat())
}

/// The start section, where a module runs before anybody calls it.
fn start() -> Vec<u8> {
    section(8, &[0])
}

/// A hundred kilobytes: many variables, all of which change within many loops. What the compiler
/// makes of that is their product.
fn loops(depth: usize, variables: usize) -> Vec<u8> {
    let mut body = [&[1][..], &leb(variables), &[0x7e]].concat();
    body.extend([0x03, 0x40].repeat(depth));
    for variable in 0..variables {
        let variable = leb(variable);
        body.extend([&[0x20][..], &variable, &[0x42, 1, 0x7c, 0x21], &variable].concat());
    }
    body.extend([0x41, 0, 0x0d, 0]);
    body.extend(vec![0x0b; depth + 1]);
    body
}

#[test]
fn a_bomb_for_the_compiler_meets_the_bound_of_its_memory_and_leaves_nothing() {
    let place = Place::new();
    place.serves();
    let bomb = with(&functions(&[loops(5000, 10_000)], &[]), 0);
    assert!(bomb.len() < 200_000);
    place.refuses(&bomb, "does not compile: compiling it takes more than 1024 MiB of memory");
    assert_eq!(place.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_hundred_megabytes_are_not_read_and_just_below_the_bound_is_read_and_refused() {
    let place = Place::new();
    let path = place.folder.path().join("large.wasm");
    let file = fs::File::create(&path).unwrap();
    file.set_len(100 << 20).unwrap();
    let errors = place.load_file(path.clone(), "nothing").unwrap_err();
    assert!(matches!(errors[0].problem, PolicyProblem::TooLarge), "{}", errors[0]);
    assert!(errors[0].to_string().contains("larger than the 64 MiB"), "{}", errors[0]);
    // Zeros behind the magic number, which no section is.
    fs::write(&path, b"\0asm\x0d\0\x01\0").unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((64 << 20) - 1).unwrap();
    let errors = place.load_file(path, "nothing").unwrap_err();
    assert!(matches!(errors[0].problem, PolicyProblem::Invalid(_)), "{}", errors[0]);
    // A name of sixty megabytes for the good one, which nobody has to read.
    let name = [leb(4), b"junk".to_vec(), vec![0x55; 60 << 20]].concat();
    let mut wasm = HOSTILE.to_vec();
    wasm.extend(section(0, &name));
    let set = place.load(&wasm, "nothing").unwrap();
    assert_eq!(set.policies().len(), 1);
}

#[test]
fn too_many_instances_memories_and_tables_are_refused() {
    let place = Place::new();
    let memory = module(&[section(5, &[1, 0, 1])]);
    let table = module(&[section(4, &[1, 0x70, 0, 1])]);
    place.refuses(&with(&module(&[]), 50), "exceeds the configured maximum of 20");
    place.refuses(&with(&memory, 10), "exceeds the configured maximum of 4");
    place.refuses(&with(&table, 10), "exceeds the configured maximum of 8");
    // More than the engine reads at all.
    place.refuses(&with(&memory, 5000), "instances count exceeds limit of 1000");
    // One that is too large by itself: it is refused when there is to be an instance.
    let pages = leb(1 << 15);
    let large = module(&[section(5, &[&[1, 0][..], &pages].concat())]);
    place.refuses(&with(&large, 1), "memory");
    let elements = leb(10_000_000);
    let large = module(&[section(4, &[&[1, 0x70, 0][..], &elements].concat())]);
    place.refuses(&with(&large, 1), "table");
}

#[test]
fn a_start_function_that_loops_or_traps_is_refused() {
    let place = Place::new();
    // loop br 0 end end
    let endless = functions(&[vec![0, 0x03, 0x40, 0x0c, 0, 0x0b, 0x0b]], &[start()]);
    place.refuses(&with(&endless, 1), "it failed in instantiation: timeout:");
    let trapping = functions(&[vec![0, 0, 0x0b]], &[start()]);
    place.refuses(&with(&trapping, 1), "it failed in instantiation: trap:");
}

#[test]
fn a_describe_that_traps_or_loops_is_refused() {
    let place = Place::new();
    for (word, failure) in [("traps..", "trap"), ("loops..", "timeout")] {
        let wasm = replaced(b"describe=answers", format!("describe={word}").as_bytes());
        let errors = place.load(&wasm, "nothing").unwrap_err();
        let words = format!("it failed in describe: {failure}:");
        assert!(errors[0].to_string().contains(&words), "{}", errors[0]);
    }
    let errors = place.load(HOSTILE, "configure-trap").unwrap_err();
    assert!(errors[0].to_string().contains("it failed in configure: trap:"), "{}", errors[0]);
    place.serves();
}

#[test]
fn missing_imports_and_wrong_versions_are_refused_by_name() {
    let place = Place::new();
    place.refuses(&replaced(b"lookup", b"lockup"), "lockup");
    place.refuses(&replaced(b"policy/tables@0.1.0", b"policy/fables@0.1.0"), "policy/fables@0.1.0");
    place.refuses(&replaced(b"policy/tables@0.1.0", b"policy/tables@9.9.9"), "policy/tables@9.9.9");
    let all = replaced(b"@0.1.0", b"@9.9.9");
    place.refuses(&all, "built for wavegate:policy/");
    place.refuses(&all, "@9.9.9; this relay has");
}

/// The hostile guest with other bytes in all places where these are.
fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut wasm = HOSTILE.to_vec();
    let places: Vec<_> = memchr::memmem::find_iter(HOSTILE, from).collect();
    assert!(!places.is_empty(), "{} is not there", from.escape_ascii());
    for place in places {
        wasm[place..place + to.len()].copy_from_slice(to);
    }
    wasm
}

#[test]
fn a_program_that_is_no_compiler_or_not_there_is_the_hosts_failure() {
    for program in ["/bin/false", "/nonexistent/wavegate", "/bin/true"] {
        let errors = Place::compiling_by(program).load(HOSTILE, "nothing").unwrap_err();
        assert!(matches!(errors[0].problem, PolicyProblem::Host(_)), "{program}: {}", errors[0]);
    }
}

#[test]
fn gigabytes_and_millions_in_answers_are_refused() {
    let place = Place::new();
    for (told, memory) in [
        ("gigabyte", 2000 << 20),
        ("gigabyte", 16 << 20),
        ("gigabyte-lie", 16 << 20),
        ("ten-million", 100 << 20),
        ("ten-million", 16 << 20),
    ] {
        let path = place.folder.path().join("policy.wasm");
        fs::write(&path, HOSTILE).unwrap();
        let policy = PolicyConfig {
            settings: format!("{{\"do\":\"{told}\"}}"),
            memory,
            timeout: Duration::from_secs(5),
            place: "relay.toml:7".to_owned(),
            ..PolicyConfig::new("p".to_owned(), PluginSource::File(path))
        };
        let set = place.host.load(&[policy], &[], &["up".to_owned()], &|_| None).unwrap();
        let mut worker = WorkerPolicies::new(Arc::clone(&place.host));
        let tx = transaction("1");
        let kinds = [FailureKind::BadAnswer, FailureKind::Memory];
        if told == "ten-million" {
            let route = worker.route(&set, 0, &tx).unwrap_err();
            assert!(kinds.contains(&route.kind), "{told}, {memory}: {route}");
            let limits = worker.limits(&set, 0, &tx, "up", &[0]).unwrap_err();
            assert!(kinds.contains(&limits.kind), "{told}, {memory}: {limits}");
        } else {
            let freeze = worker.freeze(&set, 0, &tx).unwrap_err();
            assert!(kinds.contains(&freeze.kind), "{told}, {memory}: {freeze}");
        }
    }
    place.serves();
}
