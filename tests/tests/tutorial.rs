//! "Your first policy in ten minutes" (plugins/TUTORIAL.md), done exactly as the page says: what it has
//! to be typed is typed, its commands are run, and what it shows must have been said.
//!
//! Only the port is another one: 2525 may be in use here.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    env, fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use wavegate_tests::harness::{binary, free, until};
use wavegate_tests::tool;

/// What the page promises.
const COMMANDS: usize = 10;
const LINES: usize = 30;

/// One thing that the page has the reader do.
#[derive(Debug, PartialEq)]
enum Step {
    /// Run it.
    Command(String),
    /// Write the file.
    Write { path: String, text: String },
    /// Put the text above the one line of the file that has this in it.
    Insert { path: String, above: String, text: String },
    /// See that the last command said this.
    See(String),
}

/// The steps of the page, in its order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut words = "";
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            if !line.is_empty() {
                words = line;
            }
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        // `code` in the sentence above the block.
        let code: Vec<&str> = words.split('`').skip(1).step_by(2).collect();
        let text = format!("{}\n", block.join("\n"));
        match language {
            "sh" => steps.extend(block.iter().map(|line| Step::Command((*line).to_owned()))),
            "text" => steps.extend(block.iter().map(|line| Step::See((*line).to_owned()))),
            _ if words.contains("Write `") => {
                let path = (*code.last().unwrap()).to_owned();
                steps.push(Step::Write { path, text });
            }
            _ => {
                assert!(words.ends_with(':') && words.contains("`, above `"), "{words}");
                let [path, above] = code[..] else { panic!("{words}") };
                let (path, above) = (path.to_owned(), above.to_owned());
                steps.push(Step::Insert { path, above, text });
            }
        }
    }
    steps
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/TUTORIAL.md");
    fs::read_to_string(path).unwrap()
}

#[test]
fn it_is_as_short_as_it_promises() {
    let steps = steps(&page());
    let commands = steps.iter().filter(|step| matches!(step, Step::Command(_))).count();
    let typed = steps.iter().map(|step| match step {
        Step::Write { text, .. } | Step::Insert { text, .. } => {
            text.lines().filter(|line| !line.trim().is_empty()).count()
        }
        Step::Command(_) | Step::See(_) => 0,
    });
    let typed: usize = typed.sum();
    assert!(commands <= COMMANDS, "{commands} commands");
    assert!(typed <= LINES, "{typed} lines to type");
    assert!(steps.iter().any(|step| matches!(step, Step::See(_))), "nothing would be checked");
}

/// The reader: where he is, what he was told last, and what runs.
struct Reader {
    directory: PathBuf,
    path: std::ffi::OsString,
    said: String,
    running: Option<Child>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(child) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Reader {
    fn new(directory: &Path) -> Self {
        let mut path = vec![binary().parent().unwrap().to_owned()];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        Reader {
            directory: directory.to_owned(),
            path: env::join_paths(path).unwrap(),
            said: String::new(),
            running: None,
        }
    }

    fn does(&mut self, step: &Step, port: u16) {
        match step {
            Step::Write { path, text } => fs::write(self.directory.join(path), text).unwrap(),
            Step::Insert { path, above, text } => self.inserts(path, above, text),
            Step::See(words) => assert!(self.said.contains(words), "{words}: {}", self.said),
            Step::Command(line) => match line.split_once(' ') {
                Some(("cd", directory)) => self.directory.push(directory),
                _ => self.runs(line, port),
            },
        }
    }

    fn inserts(&self, path: &str, above: &str, text: &str) {
        let file = self.directory.join(path);
        let old = fs::read_to_string(&file).unwrap();
        let places: Vec<usize> = old.match_indices(above).map(|(at, _)| at).collect();
        assert_eq!(places.len(), 1, "{path} has {above} {} times", places.len());
        let at = old[..places[0]].rfind('\n').map_or(0, |end| end + 1);
        fs::write(file, format!("{}{text}{}", &old[..at], &old[at..])).unwrap();
    }

    fn runs(&mut self, line: &str, port: u16) {
        let mut command = Command::new("sh");
        command.current_dir(&self.directory).env("PATH", &self.path);
        // Not what this test itself was built with.
        for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "CARGO"] {
            command.env_remove(name);
        }
        if let Some(line) = line.strip_suffix('&') {
            let log = fs::File::create(self.directory.join("log")).unwrap();
            command.args(["-c", &format!("exec {line}")]).stdin(Stdio::null());
            command.stdout(log.try_clone().unwrap()).stderr(log);
            self.running = Some(command.spawn().unwrap());
            until("the relay listens", || TcpStream::connect(("127.0.0.1", port)).ok());
            return;
        }
        let output = command.args(["-c", line]).output().unwrap();
        self.said = tool::said(&output);
        assert!(output.status.success(), "{line}: {}: {}", output.status, self.said);
    }
}

#[test]
fn it_leads_to_a_policy_that_holds_mail() {
    // What the page itself asks for; of the two toolchains the one that tests/run installs.
    let tools = ["curl", "wasm-ld-22"].map(tool::require);
    if tools.iter().any(Option::is_none) {
        return;
    }
    let port = free().port();
    let page = page().replace(":2525", &format!(":{port}"));
    let folder = tempfile::tempdir().unwrap();
    let mut reader = Reader::new(folder.path());
    for step in steps(&page) {
        reader.does(&step, port);
    }
}

#[test]
fn a_step_that_cannot_be_done_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "one\ntwo\ntwo\n").unwrap();
    let steps = steps(
        "In `a`, above `one`:\n\n```rust\nzero\n```\n\n```sh\ncat a\n```\n```text\nzero\n```\n",
    );
    let insert = |above: &str| Step::Insert {
        path: "a".to_owned(),
        above: above.to_owned(),
        text: "zero\n".to_owned(),
    };
    assert_eq!(steps[0], insert("one"));
    let mut reader = Reader::new(folder.path());
    for step in &steps {
        reader.does(step, 0);
    }
    assert!(reader.said.starts_with("zero\none\n"), "{}", reader.said);
    let fails = |step: Step| {
        let mut reader = Reader::new(folder.path());
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reader.does(&step, 0))).is_err()
    };
    assert!(fails(insert("two")), "twice");
    assert!(fails(insert("three")), "never");
    assert!(fails(Step::Command("false".to_owned())));
    assert!(fails(Step::See("nothing was said".to_owned())));
}
