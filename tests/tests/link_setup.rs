//! A link is set up as README.md says: its commands, its configurations, by the real program.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use wavegate_tests::{harness::binary, tool};

const README: &str = include_str!("../../README.md");
/// What each side needs besides.
const REST: &str =
    "[relay]\nhostname = \"relay.example\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n";
const SERVERS: &str = "[[upstream]]\nname = \"mx\"\ntargets = [\"127.0.0.1:25\"]\ndefault = true\n";

/// The blocks of a kind in the section about the link.
fn blocks(kind: &str) -> Vec<String> {
    let section = README.split("\n## The link\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let begins = |line: &&str| line.trim_start() == format!("```{kind}");
    let mut lines = section.lines();
    let mut found = Vec::new();
    while lines.by_ref().find(begins).is_some() {
        let block = lines.by_ref().take_while(|line| line.trim_start() != "```");
        found.push(block.map(|line| format!("{}\n", line.trim_start())).collect());
    }
    found
}

fn shell(folder: &Path, commands: &str) {
    let mut command = Command::new("sh");
    command.args(["-euc", commands]).current_dir(folder).stdin(Stdio::null());
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{commands}\n{}", String::from_utf8_lossy(&ended.stderr));
}

/// What the program prints; it must end with this code.
fn wavegate(folder: &Path, arguments: &str, code: i32) -> String {
    let mut command = Command::new(binary());
    let ended = command.args(arguments.split(' ')).current_dir(folder).output().unwrap();
    let text = String::from_utf8(ended.stdout).unwrap() + &String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{arguments}: {text}");
    text
}

#[test]
fn what_the_readme_says_makes_an_edge_and_a_gateway() {
    if tool::require("openssl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let [recipe] = &blocks("sh")[..] else { panic!("one recipe") };
    shell(path, recipe);
    // The gateway's, in the same way.
    let (_authority, side) = recipe.split_once("# for each side").unwrap();
    let (_, side) = side.split_once('\n').unwrap();
    let names = [
        ("edge-1.example.net", "gateway.example.net"),
        ("edge-1", "gateway"),
        ("clientAuth", "serverAuth"),
    ];
    let side = names.iter().fold(side.to_owned(), |side, (from, to)| side.replace(from, to));
    shell(path, &side);

    let [edge, gateway] = &blocks("toml")[..] else { panic!("one for each side") };
    let edge = format!("{REST}{edge}").replace("handoff", "default = true\nhandoff");
    fs::write(path.join("edge.toml"), edge).unwrap();
    let gateway = format!("{REST}{gateway}{SERVERS}");
    fs::write(path.join("gateway.toml"), &gateway).unwrap();
    for side in ["edge", "gateway"] {
        let text = wavegate(path, &format!("config check --config {side}.toml"), 0);
        assert!(text.contains("good, 0 warnings"), "{text}");
    }
    let text = wavegate(path, "config check --config gateway.toml", 0);
    assert!(text.contains("from-edges on [::]:4443 (UDP), open to edge-1.example.net"), "{text}");
    // A key that others can read, a file that is no list.
    shell(path, "chmod 644 gateway.key");
    fs::write(
        path.join("gateway.toml"),
        gateway.replace(", peers", ", crl = \"edge-1.pem\", peers"),
    )
    .unwrap();
    let text = wavegate(path, "config check --config gateway.toml", 78);
    for said in ["gateway.key: the key is open to others", "edge-1.pem: has no list of revoked"] {
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_pin_is_the_one_that_openssl_computes() {
    if tool::require("openssl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (index, kind) in
        ["ec -pkeyopt ec_paramgen_curve:prime256v1", "rsa:2048", "ed25519"].iter().enumerate()
    {
        let name = format!("{index}.pem");
        shell(
            path,
            &format!(
                "openssl req -x509 -nodes -newkey {kind} -subj /CN=a -keyout {index}.key -out {name}\n\
                 openssl x509 -in {name} -pubkey -noout | openssl pkey -pubin -outform der | \
                 openssl dgst -sha256 -binary | openssl base64 -A >{index}.pin"
            ),
        );
        let pin = fs::read_to_string(path.join(format!("{index}.pin"))).unwrap();
        assert_eq!(wavegate(path, &format!("link pin {name}"), 0), format!("sha256/{pin}\n"));
    }
    assert!(wavegate(path, "link pin 0.key", 65).contains("has no certificate in PEM"));
    assert!(wavegate(path, "link pin none.pem", 66).contains("cannot be read"));
}
