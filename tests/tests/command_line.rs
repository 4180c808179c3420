//! Exit codes of the real program, and that it says what is wrong: one test for each code that
//! the README names, but for 70, a bug.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use wavegate_tests::harness::{Client, binary};

/// The configuration that is shipped, in a folder of its own, with changes.
struct Site(TempDir);

impl Site {
    fn new(changes: &[(&str, &str)]) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
        // Ports that are free.
        let free = [(":2525\"", ":0\""), (":8025\"", ":0\""), (":8026\"", ":0\"")];
        for name in ["relay.toml", "waves.toml"] {
            let mut text = fs::read_to_string(shipped.join(name)).unwrap();
            for (from, to) in changes.iter().chain(&free) {
                text = text.replace(from, to);
            }
            site.write(name, text);
        }
        site.write("api.token", "0123456789abcdef0123456789abcdef");
        let owner = fs::Permissions::from_mode(0o600);
        fs::set_permissions(site.0.path().join("api.token"), owner).unwrap();
        site
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), content).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments.split(' ')).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it: the exit code, and what went to standard output and standard error.
    fn run(&self, arguments: &str) -> (i32, String, String) {
        result(self.command(arguments).output().unwrap())
    }

    /// Runs it: it must end with this code, and say this on standard error.
    #[track_caller]
    fn fails(&self, arguments: &str, code: i32, words: &str) {
        let (ended, out, said) = self.run(arguments);
        assert_eq!(ended, code, "{arguments}: {said}{out}");
        assert!(said.contains(words), "{arguments}: {said}");
    }
}

fn result(output: Output) -> (i32, String, String) {
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    let code = output.status.code().unwrap_or_else(|| panic!("{}: {said}", output.status));
    (code, String::from_utf8(output.stdout).unwrap(), said)
}

const EXPLAIN: &str =
    "explain --config relay.toml --client 127.0.0.1 --from a@mkt.acme.example --to b@example.org";

#[test]
fn what_is_done_is_0() {
    let site = Site::new(&[]);
    for (arguments, words) in [
        ("--version", "wavegate "),
        ("--help", "Usage: wavegate"),
        ("run --help", "--config"),
        ("config check --config relay.toml", "relay.toml: good"),
        ("config check --config relay.toml --json", "\"ok\": true"),
        (EXPLAIN, "acme-prod-1"),
    ] {
        let (code, out, said) = site.run(arguments);
        assert_eq!(code, 0, "{arguments}: {said}");
        assert!(out.contains(words), "{arguments}: {out}");
    }
    site.write("good.eml", "Subject: s\n\nbody\n");
    assert_eq!(site.run(&format!("{EXPLAIN} good.eml")).0, 0);
    // Whoever reads the output has seen enough.
    let mut child = site.command("config check --config relay.toml").spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(result(child.wait_with_output().unwrap()).0, 0);
}

#[test]
fn sigterm_and_sigint_end_the_relay_with_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let site = Site::new(&[]);
        let mut child = site.command("run --config relay.toml").spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        read_until(&mut log, "listening");
        interrupt(&child, signal);
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
        assert!(rest.contains("stopped"), "{rest}");
    }
}

fn interrupt(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Reads up to the line with these words in it, and gives that.
fn read_until(from: &mut impl BufRead, words: &str) -> String {
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        assert_ne!(from.read_line(&mut line).unwrap(), 0, "ended before: {words}");
    }
    line
}

#[test]
fn wrong_arguments_are_64() {
    let site = Site::new(&[]);
    for arguments in ["serve", "run", "run --config", "config check", "demo --duration 1"] {
        site.fails(arguments, 64, "error: ");
    }
    site.fails(&EXPLAIN.replace("127.0.0.1", "localhost"), 64, "localhost");
    site.fails(&format!("{EXPLAIN} --at noon"), 64, "RFC 3339");
    site.fails(&format!("{EXPLAIN} --listener other"), 64, "listener-1");
    let bare = Command::new(binary()).output().unwrap();
    assert_eq!(result(bare).0, 64);
}

#[test]
fn a_message_that_no_relay_takes_is_65_and_one_that_cannot_be_read_66() {
    let site = Site::new(&[]);
    site.write("nul.eml", "Subject: s\n\nnul\0\n");
    site.write("bare.eml", "Subject: s\r\n\r\nbare\n");
    site.fails(&format!("{EXPLAIN} nul.eml"), 65, "nul.eml: ");
    site.fails(&format!("{EXPLAIN} bare.eml"), 65, "550 5.6.0");
    site.fails(&format!("{EXPLAIN} missing.eml"), 66, "missing.eml: No such file");
    site.fails(&format!("{EXPLAIN} ."), 66, ".: ");
}

#[test]
fn an_address_that_is_taken_is_69() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("\"{}\"", taken.local_addr().unwrap());
    for (shipped, what) in
        [("\"127.0.0.1:2525\"", "(listener listener-1)"), ("\"127.0.0.1:8025\"", "(admin)")]
    {
        let site = Site::new(&[(shipped, &address)]);
        let words = format!("cannot listen on {} {what}", address.trim_matches('"'));
        site.fails("run --config relay.toml", 69, &words);
        let (_, _, said) = site.run("run --config relay.toml");
        assert_eq!(said.matches("Address already in use").count(), 1, "said once: {said}");
    }
}

#[test]
fn a_machine_that_refuses_is_71() {
    let site = Site::new(&[("# workers = 2", "workers = 64")]);
    // 64 workers need more files than the shell lets it have.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$0\" run --config relay.toml"]).arg(binary());
    let output = command.current_dir(site.0.path()).output().unwrap();
    let (code, _, said) = result(output);
    assert_eq!(code, 71, "{said}");
    assert!(said.contains("Too many open files"), "{said}");
}

#[test]
fn output_that_cannot_be_written_is_74() {
    let site = Site::new(&[]);
    for arguments in ["config check --config relay.toml", EXPLAIN, "demo"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = site.command(arguments).stdout(full).output().unwrap();
        let (code, _, said) = result(output);
        assert_eq!(code, 74, "{arguments}: {said}");
        assert!(said.contains("No space left"), "{arguments}: {said}");
    }
}

#[test]
fn what_is_configured_wrongly_is_78() {
    let shipped = "plugin = \"builtin:routing\"";
    let plugin = |with: &str| Site::new(&[(shipped, with)]);
    let no_component = plugin("plugin = \"text.wasm\"");
    no_component.write("text.wasm", "no component");
    let foreign = Site::new(&[]);
    fs::create_dir(foreign.0.path().join("state")).unwrap();
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(foreign.0.path().join("state"), everybody).unwrap();
    let sites = [
        (Site::new(&[("[relay]", "[relay")]), "relay.toml:"),
        (Site::new(&[("[relay]", "[relay]\nhostnam = \"x\"")]), "hostname"),
        (Site::new(&[("06:45:00Z", "05:45:00Z")]), "waves.toml:"),
        (Site::new(&[("plan = \"waves.toml\"", "plan = \"none.toml\"")]), "none.toml"),
        (plugin("plugin = \"builtin:nothing\""), "nothing"),
        (plugin("plugin = \"none.wasm\""), "none.wasm"),
        (no_component, "policy \"text\": this is not"),
        (foreign, "state"),
    ];
    for (site, words) in &sites {
        site.fails("run --config relay.toml", 78, words);
        let (code, out, said) = site.run("config check --config relay.toml");
        assert_eq!(code, 78, "{out}{said}");
        assert!(out.contains(words), "{words}: {out}");
        let (code, out, _) = site.run("config check --config relay.toml --json");
        assert_eq!(code, 78, "{out}");
        assert!(out.contains("\"ok\": false"), "{out}");
    }
    let site = Site::new(&[]);
    site.fails("run --config none.toml", 78, "none.toml");
    site.fails(&EXPLAIN.replace("relay.toml", "none.toml"), 78, "none.toml");
}

#[test]
fn plans_have_their_exit_codes() {
    // Far ahead, so that there is notice enough whenever this runs.
    let site = Site::new(&[("2026-01-20T", "2126-01-20T")]);
    for (arguments, code, words) in [
        ("plan check --config relay.toml", 0, "relay.toml: good, 1 warning"),
        ("plan check --plan waves.toml --json", 0, "\"ok\": true"),
        ("plan check --plan waves.toml --at 2126-01-01T00:00:00Z", 78, "asks for 30d of notice"),
        ("plan estimate --plan waves.toml", 0, "prod-01\n"),
        ("plan affected --plan waves.toml --customer acme", 0, "announced   not yet"),
        ("plan affected --plan waves.toml --customer initech", 1, "0 instances"),
        ("plan announce prod-01 --plan waves.toml", 0, "wave prod-01 is announced"),
        ("plan announce prod-01 --config relay.toml", 0, "nothing to do"),
        ("plan affected --config relay.toml --customer acme", 0, "announced   20"),
    ] {
        let (ended, out, said) = site.run(arguments);
        assert_eq!(ended, code, "{arguments}: {out}{said}");
        assert!(out.contains(words), "{arguments}: {out}");
    }
    site.fails("plan estimate --plan waves.toml prod-02", 64, "there are: prod-01");
    site.fails("plan announce prod-02 --plan waves.toml", 64, "there are: prod-01");
    site.fails("plan announce prod-01 --late --plan waves.toml", 64, "--reason");
    site.fails("plan affected --plan none.toml", 78, "none.toml");
    let waves = fs::read_to_string(site.0.path().join("waves.toml")).unwrap();
    site.write("waves.toml", waves.replace("06:45:00Z", "06:44:00Z"));
    site.fails("plan announce prod-01 --plan waves.toml", 78, "which cannot be changed");
    site.fails("run --config relay.toml", 78, "which cannot be changed");
    let (code, out, _) = site.run("config check --config relay.toml");
    assert_eq!((code, out.contains("waves.lock:")), (78, true), "{out}");
    site.write(
        "relay.toml",
        "[relay]\nhostname = \"a.example\"\n[[listener]]\naddress = \
        \"127.0.0.1:0\"\n[[upstream]]\nname = \"u\"\ntargets = [\"127.0.0.1:1\"]\n",
    );
    site.fails("plan affected --config relay.toml", 78, "names no plan");
}

/// The demonstration, up to where it says its address.
fn demo(arguments: &str) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let site = Site::new(&[]);
    let mut child = site.command(arguments).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let line = read_until(&mut out, "SMTP on ");
    let address = line.trim_start_matches("SMTP on ").split(',').next().unwrap().trim().to_owned();
    (child, out, address)
}

#[test]
fn a_demo_that_does_not_add_up_is_1() {
    let (mut child, mut out, address) = demo("demo --duration 6 --rate 5");
    // Mail that no sender of the demonstration has sent.
    let mut client = Client::greeted(address.parse().unwrap());
    client.expect("EHLO client.example", "250");
    client.envelope("x@news.globex.example", "customer@example.org");
    client.expect("DATA", "354");
    client.send("X-Demo-Message: globex-prod-1/999999999\r\n\r\nforged\r\n.\r\n");
    client.expect_reply("250");
    let mut report = String::new();
    out.read_to_string(&mut report).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{report}");
    assert!(report.contains("It does NOT add up"), "{report}");
    assert!(report.contains("1 unexplained"), "{report}");
}

#[test]
fn a_demo_that_is_interrupted_is_130() {
    let (mut child, _out, _) = demo("demo --duration 60");
    interrupt(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
