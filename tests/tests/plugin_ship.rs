//! Plugins from their author to the running relay: signed with our program and with minisign,
//! installed, watched, rolled back by hand and by themselves. Real mail goes on all the while.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use wavegate_tests::harness::{
    Client, Config, Relay, binary, plan_of_held, recording, until, variant,
};
use wavegate_tests::load::{self, LoadOptions};
use wavegate_tests::sink::SinkHandle;
use wavegate_tests::tool;

const FREEZE: &[u8] = include_bytes!("../../plugins/dist/freeze.wasm");
const ROUTING: &[u8] = include_bytes!("../../plugins/dist/routing.wasm");
const HOSTILE: &[u8] = include_bytes!("../guests/hostile.wasm");
/// Where builds of the freeze policy differ: the words that held mail gets.
const WORDS: &str = "instance  is being upgraded";
/// What the hostile policy does not know in a build that differs there.
const POISON: &str = "trap-on-poison";

/// What the program said, and its exit code.
fn wavegate(line: &str, more: &[&str]) -> (i32, String) {
    let output = Command::new(binary()).args(line.split(' ')).args(more).output().unwrap();
    let text = tool::said(&output);
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code().unwrap(), text)
}

#[track_caller]
fn done(line: &str, more: &[&str]) -> String {
    let (code, text) = wavegate(line, more);
    assert_eq!(code, 0, "{line} {more:?}: {text}");
    text
}

/// Asks a relay by its configuration.
fn on(relay: &Relay, line: &str) -> (i32, String) {
    let config = relay.folder().join("relay.toml");
    wavegate(line, &["--config", config.to_str().unwrap()])
}

#[track_caller]
fn ok(relay: &Relay, line: &str) -> String {
    let (code, text) = on(relay, line);
    assert_eq!(code, 0, "{line}: {text}");
    text
}

#[track_caller]
fn refused(relay: &Relay, line: &str, code: i32, words: &str) -> String {
    let (ended, text) = on(relay, line);
    assert!(ended == code && text.contains(words), "{line}: {ended} {text}");
    text
}

/// What a relay says of a policy.
fn policy(relay: &Relay, name: &str) -> Value {
    let list: Value = serde_json::from_str(&ok(relay, "plugin list --json")).unwrap();
    let all = list["policies"].as_array().unwrap().clone();
    all.into_iter().find(|one| one["policy"] == name).unwrap()
}

fn stage(relay: &Relay, name: &str) -> String {
    policy(relay, name)["rollout"]["stage"].as_str().unwrap_or("-").to_owned()
}

/// A file in a folder, and its path as an argument.
fn file(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Keys without a password: `NAME.key` and `NAME.pub`.
fn keys(folder: &Path, name: &str) -> String {
    let prefix = folder.join(name).to_str().unwrap().to_owned();
    done(&format!("plugin keygen {prefix} --no-password"), &[]);
    prefix
}

fn digest(component: &[u8]) -> String {
    blake3::hash(component).to_hex().to_string()
}

/// A relay whose held mail hears words of the freeze policy.
fn relay_with(sink: &SinkHandle, plugins: &str) -> Relay {
    let config = Config::to(&[sink.addr()])
        .relay("plan = \"waves.toml\"")
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]")
        .section("plugin = \"builtin:freeze\"\nsettings = { in_window = \"defer\" }")
        .section("[[policy]]\nplugin = \"builtin:routing\"")
        .section(plugins);
    let waves = plan_of_held();
    Relay::start_with(&config.to_string(), &[("waves.toml", waves.as_bytes())])
}

/// What held mail hears.
fn held(client: &mut Client) -> String {
    client.envelope("a@held.example", "b@example.org");
    client.expect("DATA", "354");
    client.send("x\r\n.\r\n");
    client.reply()
}

fn hears(relay: &Relay, words: &str) {
    // A message that was not taken forgives no errors; a fresh session has made none.
    let said = held(&mut relay.hello());
    assert!(said.starts_with("451 4.7.0") && said.contains(words), "{said}");
}

/// The same, once what leads to it has taken effect: a step is written down first, and a file that
/// changes is noticed beside the signal.
fn comes_to_hear(relay: &Relay, words: &str) {
    until(words, || held(&mut relay.hello()).contains(words).then_some(()));
}

#[test]
fn signatures_are_those_of_minisign_both_ways() {
    let Some(minisign) = tool::require("minisign") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let plugin = file(folder.path(), "freeze.wasm", FREEZE);
    let run = |arguments: &[&str], input: &str| {
        use std::io::Write as _;
        let mut child = Command::new(&minisign)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), tool::said(&output))
    };
    let password = file(folder.path(), "password", b"correct horse\n");
    let open = keys(folder.path(), "open");
    let closed = at("closed");
    done(&format!("plugin keygen {closed}"), &["--password-file", &password]);
    // minisign's own keys, without a password: with one they take a gigabyte of memory.
    let theirs = at("theirs");
    let (made, said) =
        run(&["-G", "-W", "-p", &format!("{theirs}.pub"), "-s", &format!("{theirs}.key")], "");
    assert!(made, "{said}");
    for (pair, more, input) in [
        (&open, &[][..], ""),
        (&closed, &["--password-file", &*password], "correct horse\n"),
        (&theirs, &[], ""),
    ] {
        let (key, public) = (format!("{pair}.key"), format!("{pair}.pub"));
        let _ = fs::remove_file(format!("{plugin}.minisig"));
        done(&format!("plugin sign {plugin} --key {key}"), more);
        let (good, said) = run(&["-V", "-p", &public, "-m", &plugin], "");
        assert!(good, "{pair}, ours: {said}");
        assert!(said.contains("file:freeze.wasm") && said.contains(&digest(FREEZE)), "{said}");
        fs::remove_file(format!("{plugin}.minisig")).unwrap();
        let (good, said) = run(&["-S", "-s", &key, "-m", &plugin], input);
        assert!(good, "{pair}, theirs: {said}");
        let text = fs::read_to_string(&public).unwrap();
        let line = text.lines().nth(1).unwrap();
        for key in [&*public, line] {
            let said = done(&format!("plugin verify {plugin}"), &["--public-key", key]);
            assert!(said.contains(&digest(FREEZE)), "{said}");
        }
    }
    // Not what is older than hashes.
    let (made, said) = run(&["-S", "-l", "-s", &format!("{open}.key"), "-m", &plugin], "");
    assert!(made, "{said}");
    let (code, said) = wavegate(&format!("plugin verify {plugin} --public-key {open}.pub"), &[]);
    assert!(code == 65 && said.contains("old form"), "{code} {said}");
}

#[test]
fn what_is_wrong_with_keys_and_signatures_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = file(folder.path(), "freeze.wasm", FREEZE);
    let (alice, bob) = (keys(folder.path(), "alice"), keys(folder.path(), "bob"));
    let (code, said) = wavegate(&format!("plugin keygen {alice} --no-password"), &[]);
    assert!(code == 64 && said.contains("is there already"), "{code} {said}");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(format!("{alice}.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let verify = |key: &str| wavegate(&format!("plugin verify {plugin} --public-key {key}"), &[]);
    let (code, said) = verify(&format!("{alice}.pub"));
    assert!(code == 65 && said.contains("freeze.wasm.minisig is not there"), "{code} {said}");
    done(&format!("plugin sign {plugin} --key {alice}.key"), &[]);
    assert_eq!(verify(&format!("{alice}.pub")).0, 0);
    let (code, said) = verify(&format!("{bob}.pub"));
    assert!(code == 65 && said.contains("is not trusted"), "{code} {said}");
    let (code, said) = verify(&format!("{alice}.key"));
    assert!(code == 66 && said.contains("no public key"), "{code} {said}");
    let json = done(&format!("plugin verify {plugin} --json --public-key {alice}.pub"), &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["ok"], &json["digest"]), (&true.into(), &digest(FREEZE).into()));
    // One bit of the plugin.
    let mut changed = FREEZE.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&plugin, changed).unwrap();
    let (code, said) = verify(&format!("{alice}.pub"));
    assert!(code == 65 && said.contains("was changed since"), "{code} {said}");
    // Wrong passwords and what is no key.
    let password = file(folder.path(), "password", b"right\n");
    let wrong = file(folder.path(), "wrong", b"wrong\n");
    let closed = folder.path().join("closed").to_str().unwrap().to_owned();
    done(&format!("plugin keygen {closed} --password-file {password}"), &[]);
    let sign = |key: &str| {
        wavegate(&format!("plugin sign {plugin} --password-file {wrong} --key {key}"), &[])
    };
    let (code, said) = sign(&format!("{closed}.key"));
    assert!(code == 65 && said.contains("password"), "{code} {said}");
    let (code, said) = sign(&plugin);
    assert!(code == 66 || code == 65, "{code} {said}");
    assert_eq!(sign(&format!("{alice}.pub")).0, 65);
}

#[test]
fn signatures_are_looked_at_at_every_load() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let alice = keys(folder.path(), "alice");
    let public = fs::read(format!("{alice}.pub")).unwrap();
    let config = Config::to(&[sink.addr()])
        .section("[plugins]\ntrusted_keys = { alice = \"file:alice.pub\" }")
        .section("[[policy]]\nplugin = \"freeze.wasm\"");
    let open = config.to_string();
    let relay = Relay::start_with(&open, &[("freeze.wasm", FREEZE), ("alice.pub", &public)]);
    assert_eq!(policy(&relay, "freeze")["signed_by"], Value::Null);
    let strict = open.replace("[plugins]", "[plugins]\nrequire_signatures = true");
    relay.write("relay.toml", &strict);
    let said = relay.reload_refused();
    assert!(said.contains("freeze.wasm.minisig is not there"), "{said}");
    let plugin = relay.folder().join("freeze.wasm");
    done(&format!("plugin sign {} --key {alice}.key", plugin.display()), &[]);
    until("the signed plugin is taken", || {
        relay.reload();
        (policy(&relay, "freeze")["signed_by"] == "alice").then_some(())
    });
    ok(&relay, &format!("plugin verify {}", plugin.display()));
    // Without requiring it, a wrong one of hers is still refused.
    relay.write("freeze.wasm", variant(FREEZE, WORDS, 1));
    relay.write("relay.toml", &open);
    let said = relay.reload_refused();
    assert!(said.contains("by the key alice"), "{said}");
    assert_eq!(policy(&relay, "freeze")["digest"], digest(FREEZE));
    let (code, said) = on(&relay, "config check");
    assert!(code == 78 && said.contains("by the key alice"), "{code} {said}");
}

#[test]
fn a_wrong_plugin_is_refused_and_the_old_one_stays() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let (alice, mallory) = (keys(folder.path(), "alice"), keys(folder.path(), "mallory"));
    let key = fs::read_to_string(format!("{alice}.pub")).unwrap();
    let key = key.lines().nth(1).unwrap().to_owned();
    // Its settings are those that the hostile candidate wants nothing to do with.
    let docile = variant(HOSTILE, "no-reason", 0);
    let config = Config::to(&[sink.addr()])
        .upstream("handoff = \"queued\"")
        .section("[[policy]]\nname = \"own\"\nplugin = \"own.wasm\"")
        .section("settings = { do = \"no-reason\" }\n[[policy]]\nplugin = \"builtin:freeze\"")
        .section(&format!("[plugins]\ntrusted_keys = {{ alice = \"{key}\" }}"))
        .to_string();
    let mut relay = Relay::start_with(&config, &[("own.wasm", &docile)]);
    let stays = |relay: &Relay, what: &str| {
        assert_eq!(policy(relay, "own")["digest"], digest(&docile), "{what}");
        assert_eq!(policy(relay, "freeze")["source"], "builtin", "{what}");
        assert!(relay.hello().small().starts_with("250"), "{what}");
    };
    let version = replaced(FREEZE, b"@1.0.0", b"@9.1.0");
    let large = folder.path().join("large.wasm");
    fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let cut = FREEZE[..FREEZE.len() / 2].to_vec();
    for (name, content, of, words) in [
        ("text", b"not a component".to_vec(), "freeze", "not a WebAssembly component"),
        ("empty", Vec::new(), "freeze", "not a WebAssembly component"),
        ("module", b"\0asm\x01\0\0\0".to_vec(), "freeze", "core WebAssembly module"),
        ("cut", cut, "freeze", "does not compile"),
        ("version", version, "freeze", "9.1.0"),
        ("hooks", ROUTING.to_vec(), "freeze", "it has the hooks routing"),
        ("settings", HOSTILE.to_vec(), "own", "refused the settings"),
    ] {
        let path = file(folder.path(), &format!("{name}.wasm"), &content);
        let install = format!("plugin install {path} --policy {of} --skip verify,shadow");
        refused(&relay, &install, 65, words);
        stays(&relay, name);
    }
    let install = format!("plugin install {} --policy freeze", large.display());
    refused(&relay, &install, 65, "larger than the 64 MiB");
    // Signatures: none, a stranger's, one of other bytes; each says what would be right.
    let plugin = file(folder.path(), "freeze.wasm", &variant(FREEZE, WORDS, 1));
    let install = format!("plugin install {plugin} --policy freeze --skip shadow");
    let said = refused(&relay, &install, 65, "freeze.wasm.minisig is not there");
    assert!(said.contains("--skip verify") && said.contains("wavegate plugin sign"), "{said}");
    done(&format!("plugin sign {plugin} --key {mallory}.key"), &[]);
    refused(&relay, &install, 65, "which is not trusted (trusted are: alice (");
    done(&format!("plugin sign {plugin} --key {alice}.key"), &[]);
    fs::write(&plugin, variant(FREEZE, WORDS, 2)).unwrap();
    refused(&relay, &install, 65, "one of them was changed since");
    // Leaving verification out does not take what is forged.
    refused(&relay, &format!("{install} --skip verify"), 65, "one of them was changed since");
    stays(&relay, "signatures");
    refused(&relay, "plugin install none.wasm --policy freeze", 66, "none.wasm");
    refused(&relay, &install.replace("--policy freeze", "--policy other"), 66, "there are: own");
    refused(&relay, &install.replace("--skip shadow", "--skip check"), 64, "verify, shadow");
    refused(&relay, "plugin rollback freeze", 75, "nothing is installed for freeze");
    // Where signatures are required, that step cannot be left out.
    relay.write("relay.toml", config.replace("[plugins]", "[plugins]\nrequire_signatures = true"));
    let said = relay.reload_refused();
    assert!(said.contains("own.wasm.minisig"), "{said}");
    let own = relay.folder().join("own.wasm");
    done(&format!("plugin sign {} --key {alice}.key", own.display()), &[]);
    until("a strict relay", || {
        relay.reload();
        (policy(&relay, "own")["signed_by"] == "alice").then_some(())
    });
    fs::remove_file(format!("{plugin}.minisig")).unwrap();
    refused(&relay, &format!("{install} --skip verify"), 65, "cannot be left out");
    stays(&relay, "required");
    relay.assert_alive();
}

/// All places of `from` replaced by as many bytes.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<_> = memchr::memmem::find_iter(&bytes, from).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn a_good_one_goes_live_under_load_and_comes_through_reloads_and_restarts() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let alice = keys(folder.path(), "alice");
    let public = fs::read_to_string(format!("{alice}.pub")).unwrap();
    let trusted = format!(
        "[plugins]\ntrusted_keys = {{ alice = \"{}\" }}\nrequire_signatures = true",
        public.lines().nth(1).unwrap()
    );
    let mut relay = relay_with(&sink, &trusted);
    hears(&relay, "is being upgraded");
    let build = |number: usize| {
        let content = variant(FREEZE, WORDS, number);
        let path = file(folder.path(), &format!("freeze-{number}.wasm"), &content);
        done(&format!("plugin sign {path} --key {alice}.key"), &[]);
        (path, digest(&content))
    };
    let installed = |relay: &Relay, number: usize, more: &str| {
        let (path, digest) = build(number);
        let line = format!("plugin install {path} --policy freeze --skip shadow {more}");
        let said = ok(relay, line.trim_end());
        assert!(said.contains("it is live") && said.contains("alice"), "{said}");
        hears(relay, &format!("is being upgrad{number:02}"));
        assert_eq!(policy(relay, "freeze")["digest"], digest.as_str());
        digest
    };
    let (stop, target) = (AtomicBool::new(false), relay.addr());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::SeqCst) {
                let options = LoadOptions {
                    sessions: 4,
                    body_size: 2000,
                    time_limit: Duration::from_secs(20),
                    ..LoadOptions::new(target, 200)
                };
                let report = load::run(&options).unwrap();
                assert!(report.is_clean(), "{report}");
                sent += report.accepted;
            }
            sent
        });
        for number in 1..6 {
            installed(&relay, number, "--skip watch");
        }
        installed(&relay, 6, "--watch 1s");
        stop.store(true, Ordering::SeqCst);
        assert!(load.join().unwrap() > 0, "mail went on");
    });
    assert_eq!(relay.reloads().1, 0, "nothing was refused");
    until("the watch is over", || (stage(&relay, "freeze") == "settled").then_some(()));
    let status = policy(&relay, "freeze");
    assert_eq!((&status["source"], &status["signed_by"]), (&"installed".into(), &"alice".into()));
    assert_eq!(status["configured"], "builtin:freeze");
    assert_eq!(status["rollout"]["skipped"], serde_json::json!(["shadow"]));
    let text = ok(&relay, "plugin list");
    assert!(text.contains("left out    shadow") && text.contains("settled since"), "{text}");
    let log = fs::read_to_string(relay.folder().join("state/audit.log")).unwrap();
    assert!(log.contains("plugin install") && log.contains("without shadow"), "{log}");
    // The same again is nothing to do.
    let (path, _) = build(6);
    refused(&relay, &format!("plugin install {path} --policy freeze"), 75, "in force");
    relay.reload();
    hears(&relay, "is being upgrad06");
    relay.restart();
    hears(&relay, "is being upgrad06");
    assert_eq!(stage(&relay, "freeze"), "settled");
    ok(&relay, "config check");
    // Back, as far as is kept, and then to the configuration.
    for number in [5, 4, 3] {
        ok(&relay, "plugin rollback freeze");
        hears(&relay, &format!("is being upgrad{number:02}"));
    }
    ok(&relay, "plugin rollback freeze --dry-run");
    hears(&relay, "is being upgrad03");
    let said = ok(&relay, "plugin rollback freeze");
    assert!(said.contains("what the configuration names is in force again"), "{said}");
    hears(&relay, "is being upgraded");
    assert_eq!(stage(&relay, "freeze"), "rolled-back");
    relay.restart();
    hears(&relay, "is being upgraded");
    // What is watched is watched on after a restart.
    installed(&relay, 7, "--watch 1h");
    relay.restart();
    hears(&relay, "is being upgrad07");
    assert_eq!(stage(&relay, "freeze"), "watched");
    let other = build(8).0;
    refused(&relay, &format!("plugin install {other} --policy freeze"), 75, "in stage watched");
    // The configuration names something else: that is meant.
    let (other, _) = build(9);
    let config = fs::read_to_string(relay.folder().join("relay.toml")).unwrap();
    relay.write("relay.toml", config.replace("builtin:freeze", &other));
    relay.reload();
    comes_to_hear(&relay, "is being upgrad09");
    assert!(relay.log().contains("was installed in place of builtin:freeze"), "{}", relay.log());
    // And it stays so: what was installed is forgotten.
    relay.write("relay.toml", config);
    relay.reload();
    comes_to_hear(&relay, "is being upgraded");
    relay.assert_alive();
}

#[test]
fn going_back_does_not_wait_for_a_configuration_that_is_being_written() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let relay = relay_with(&sink, "");
    let path = file(folder.path(), "freeze.wasm", &variant(FREEZE, WORDS, 1));
    ok(&relay, &format!("plugin install {path} --policy freeze --skip verify,shadow"));
    hears(&relay, "is being upgrad01");
    let socket = relay.folder().join("state/control.sock");
    relay.write("relay.toml", "[relay\n");
    let place = ["--socket", socket.to_str().unwrap()];
    done("plugin rollback freeze", &place);
    hears(&relay, "is being upgraded");
}

#[test]
fn one_that_traps_once_it_is_live_is_rolled_back_by_itself() {
    goes_by_itself("verify,shadow", "watched");
}

#[test]
fn one_that_traps_when_nobody_watches_it_goes_with_its_set() {
    goes_by_itself("verify,shadow,watch", "settled");
}

/// One that traps at some messages is installed, and is in this stage then.
fn goes_by_itself(skip: &str, live: &str) {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let docile = variant(HOSTILE, POISON, 0);
    let config = Config::to(&[sink.addr()])
        .upstream("handoff = \"direct\"")
        .admin()
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"")
        .section("[[policy]]\nname = \"own\"\nplugin = \"own.wasm\"")
        .section(&format!("settings = {{ do = \"{POISON}\" }}"))
        .section(
            "[[policy]]\nplugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"",
        );
    let mut relay = Relay::start_with(&config.to_string(), &[("own.wasm", &docile)]);
    let poison = |client: &mut Client| {
        client.envelope("poison@example.com", "b@example.org");
        client.expect("DATA", "354");
        client.send("x\r\n.\r\n");
        client.reply()
    };
    let is_held = |reply: &str| reply.starts_with("250 2.0.0 wavegate: queued as ");
    let said = poison(&mut relay.hello());
    assert!(!is_held(&said), "the one that is configured answers: {said}");
    let path = file(folder.path(), "own.wasm", HOSTILE);
    ok(&relay, &format!("plugin install {path} --policy own --skip {skip}"));
    assert_eq!(stage(&relay, "own"), live);
    let mut client = relay.hello();
    let mut messages = 0;
    until("it is rolled back", || {
        poison(&mut client);
        messages += 1;
        (stage(&relay, "own") == "rolled-back").then_some(())
    });
    assert!(messages > 1, "one failure is no rate");
    let status = policy(&relay, "own");
    assert_eq!((&status["digest"], &status["source"]), (&digest(&docile).into(), &"file".into()));
    let why = status["rollout"]["why"].as_str().unwrap();
    let whys = ["calls failed", "given up", "the policies before came back"];
    assert!(whys.iter().any(|one| why.contains(one)), "{why}");
    until("the one before answers", || (!is_held(&poison(&mut relay.hello()))).then_some(()));
    let metrics = relay.get("/metrics").unwrap().1;
    let sample = "wavegate_plugin_rollout_stage{policy=\"own\",stage=\"rolled-back\"} 1";
    assert!(metrics.contains(sample), "{metrics}");
    relay.restart();
    assert_eq!(policy(&relay, "own")["digest"], digest(&docile));
    assert_eq!(stage(&relay, "own"), "rolled-back");
    relay.assert_alive();
}

#[test]
fn what_was_changed_in_the_state_directory_is_not_run() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let mut relay = relay_with(&sink, "");
    let build = variant(FREEZE, WORDS, 1);
    let path = file(folder.path(), "freeze.wasm", &build);
    ok(&relay, &format!("plugin install {path} --policy freeze --skip verify,shadow,watch"));
    let kept = relay.folder().join(format!("state/plugins/{}.wasm", digest(&build)));
    assert_eq!(fs::read(&kept).unwrap(), build);
    fs::write(&kept, variant(FREEZE, WORDS, 2)).unwrap();
    let said = relay.reload_refused();
    assert!(said.contains("is not what was installed any more"), "{said}");
    hears(&relay, "is being upgrad01");
    relay.spawn_again();
    assert_eq!(relay.wait_ended().code(), Some(78));
    assert!(relay.log().contains("is not what was installed any more"), "{}", relay.log());
    fs::write(&kept, build).unwrap();
    relay.restart();
    hears(&relay, "is being upgrad01");
    let state = relay.folder().join("state/plugins/rollouts.json");
    fs::write(&state, "{").unwrap();
    relay.spawn_again();
    assert_eq!(relay.wait_ended().code(), Some(78));
    assert!(relay.log().contains("is not understood"), "{}", relay.log());
    fs::remove_file(&state).unwrap();
    relay.restart();
    hears(&relay, "is being upgraded");
}

#[test]
fn a_component_that_is_not_what_it_is_said_to_be_is_not_kept() {
    let Some(curl) = tool::require("curl") else { return };
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let relay = relay_with(&sink, "");
    let path = file(folder.path(), "freeze.wasm", FREEZE);
    let socket = relay.folder().join("state/control.sock");
    let put = |name: &str, more: &[&str]| {
        let url = format!("http://relay/v1/components/{name}");
        let output = Command::new(&curl)
            .args(["-sS", "-X", "PUT", "--unix-socket", socket.to_str().unwrap(), &url])
            .args(more)
            .output()
            .unwrap();
        tool::said(&output)
    };
    let body = format!("@{path}");
    let body = ["--data-binary", &*body];
    let plugins = relay.folder().join("state/plugins");
    let files = || -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&plugins) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    for name in ["x", &"A".repeat(64), "..%2f..%2frelay.toml", &digest(FREEZE)[1..]] {
        let said = put(name, &body);
        assert!(said.contains("is not a BLAKE3 hash"), "{name}: {said}");
    }
    let said = put(&digest(ROUTING), &body);
    assert!(said.contains(&format!("has the BLAKE3 {}", digest(FREEZE))), "{said}");
    assert_eq!(files(), Vec::<PathBuf>::new());
    let said = put(&digest(FREEZE), &body);
    assert!(said.contains("\"size\""), "{said}");
    assert_eq!(files().len(), 1);
    // Promised and not sent: nothing is left of it.
    let said = put(&digest(ROUTING), &["-H", "Content-Length: 9999", "-m", "1", "-d", "x"]);
    assert!(!said.contains("\"size\""), "{said}");
    until("nothing is left of it", || (files().len() == 1).then_some(()));
}

/// Mail of no instance: the freeze policies have nothing against it.
fn sends(relay: &Relay, messages: usize) {
    let mut client = relay.hello();
    for _ in 0..messages {
        assert!(client.small().starts_with("250"));
    }
}

#[test]
fn one_that_answers_alike_in_shadow_goes_live_by_itself() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let mut relay = relay_with(&sink, "");
    let build = variant(FREEZE, WORDS, 1);
    let path = file(folder.path(), "freeze.wasm", &build);
    let line = format!("plugin install {path} --policy freeze --skip verify --shadow-calls 40");
    let said = ok(&relay, &format!("{line} --watch 1s"));
    assert!(said.contains("asked beside the live one"), "{said}");
    let shadow = policy(&relay, "freeze@candidate");
    assert_eq!((&shadow["mode"], &shadow["digest"]), (&"shadow".into(), &digest(&build).into()));
    // Other words for people are no difference; nobody hears them yet.
    hears(&relay, "is being upgraded");
    sends(&relay, 10);
    until("ten are compared", || {
        let compared = policy(&relay, "freeze")["rollout"]["compared"].as_u64().unwrap();
        (compared >= 10).then_some(())
    });
    // A restart in this stage: what was compared is not known any more.
    relay.restart();
    assert_eq!(stage(&relay, "freeze"), "shadow");
    assert!(policy(&relay, "freeze")["rollout"]["compared"].as_u64().unwrap() < 10);
    hears(&relay, "is being upgraded");
    // A reload keeps it.
    relay.reload();
    until("it is live", || {
        sends(&relay, 5);
        (stage(&relay, "freeze") != "shadow").then_some(())
    });
    comes_to_hear(&relay, "is being upgrad01");
    until("it stays", || (stage(&relay, "freeze") == "settled").then_some(()));
    assert_eq!(policy(&relay, "freeze")["digest"], digest(&build));
    let list = ok(&relay, "plugin list");
    assert!(!list.contains("@candidate"), "{list}");
    relay.assert_alive();
}

#[test]
fn one_that_answers_otherwise_in_shadow_is_stopped() {
    let sink = recording();
    let folder = tempfile::tempdir().unwrap();
    let docile = variant(HOSTILE, POISON, 0);
    let config = Config::to(&[sink.addr()])
        .section("[migration]\nbefore = \"up\"\nafter = \"up\"")
        .section("[[policy]]\nname = \"own\"\nplugin = \"own.wasm\"")
        .section(&format!("settings = {{ do = \"{POISON}\" }}"))
        .section("[[policy]]\nplugin = \"builtin:routing\"");
    let mut relay = Relay::start_with(&config.to_string(), &[("own.wasm", &docile)]);
    let path = file(folder.path(), "own.wasm", HOSTILE);
    ok(&relay, &format!("plugin install {path} --policy own --skip verify --shadow-calls 100"));
    let mut client = relay.hello();
    until("it is stopped", || {
        client.envelope("poison@example.com", "b@example.org");
        client.expect("DATA", "354");
        client.send("x\r\n.\r\n");
        // The live one answers, whatever becomes of the other.
        let said = client.reply();
        assert!(said.starts_with("250"), "{said}");
        (stage(&relay, "own") == "stopped").then_some(())
    });
    let status = policy(&relay, "own");
    let why = status["rollout"]["why"].as_str().unwrap();
    assert!(why.contains("answers differ (") && why.contains("error "), "{why}");
    assert_eq!(status["digest"], digest(&docile));
    let list = ok(&relay, "plugin list");
    assert!(!list.contains("@candidate"), "{list}");
    // It may be tried again, and be given up by hand.
    ok(&relay, &format!("plugin install {path} --policy own --skip verify"));
    assert_eq!(stage(&relay, "own"), "shadow");
    ok(&relay, "plugin rollback own");
    assert_eq!(stage(&relay, "own"), "stopped");
    assert_eq!(policy(&relay, "own")["digest"], digest(&docile));
    relay.assert_alive();
}
