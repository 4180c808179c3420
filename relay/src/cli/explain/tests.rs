#![allow(clippy::unwrap_used, reason = "tests")]
use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

/// The configuration that is shipped.
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/relay.toml");

/// Explains a message of `from` with these further arguments.
fn run(from: &str, more: &str) -> anyhow::Result<String> {
    let mut words = vec!["wavegate", "explain", "--to", "someone@example.com"];
    words.extend(["--from", from, "--config", CONFIG]);
    words.extend(more.split(' '));
    let Command::Explain(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not explain")
    };
    let mut out = Vec::new();
    explain(&args, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

const FROZEN: &str = "  message     from <news@mkt.acme.example> to <someone@example.com>
  client      127.0.0.1 (client.invalid) by listener-1
  at          2026-01-20T06:10:00Z
  instance    acme-prod-1 (campaign-classic, production)
  phase       frozen
  window      wave prod-01: freezes 2026-01-20T05:59:00Z, opens 2026-01-20T06:00:00Z, closes 2026-01-20T06:45:00Z
  upstreams   before legacy, after cloud
";

#[test]
fn in_a_window_it_is_held() {
    let text =
        run("news@mkt.acme.example", "--client 127.0.0.1 --at 2026-01-20T06:10:00Z").unwrap();
    assert!(text.starts_with(FROZEN), "{text}");
    assert!(
        text.contains("\n  freeze      freeze says: hold until 2026-01-20T06:45:00Z: "),
        "{text}"
    );
    assert!(text.contains("\n  freeze      the relay says: hold: "), "{text}");
    let end = text.split("\n\n").last().unwrap();
    assert!(end.starts_with("It would be held: "), "{text}");
    assert!(end.ends_with("\n  until       2026-01-20T06:45:00Z\n"), "{text}");
}

#[test]
fn after_the_window_it_goes_to_the_cloud_with_its_limits() {
    let more = "--client 127.0.0.1 --json --at 2026-01-20T06:45:00Z";
    let answer: serde_json::Value =
        serde_json::from_str(&run("news@mkt.acme.example", more).unwrap()).unwrap();
    assert_eq!(answer["instance"]["phase"], "migrated");
    let outcome = &answer["outcome"];
    assert_eq!(outcome["verdict"], "deliver");
    assert_eq!(outcome["upstream"]["name"], "cloud");
    assert_eq!(outcome["upstream"]["targets"][1], "127.0.0.1:2603");
    assert_eq!(outcome["limits"][0]["kind"], "rate");
    assert_eq!(outcome["limits"][0]["burst"], 500);
    assert!(outcome["reply"].is_null());
    let hooks: Vec<&str> = answer["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|note| note["hook"].as_str().unwrap())
        .collect();
    assert_eq!(hooks, ["freeze", "routing", "throttling"]);
}

#[test]
fn before_the_window_and_without_an_instance_it_goes_to_legacy() {
    for from in ["news@mkt.acme.example", "a@b.example"] {
        // A millisecond before: however long an answer takes, it is about this moment.
        let text = run(from, "--client 127.0.0.1 --at 2026-01-20T05:58:59.999Z").unwrap();
        assert!(text.contains("It would be handed to legacy at once"), "{text}");
        assert!(text.contains("\n  upstream    legacy: 127.0.0.1:2601\n"), "{text}");
    }
    let text = run("a@b.example", "--client 127.0.0.1 --at 2026-01-20T05:58:59Z").unwrap();
    assert!(text.contains("\n  instance    none: "), "{text}");
}

#[test]
fn redirected_mail_goes_where_its_client_wanted_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let text = "[relay]\nhostname = 'a.example'\n[[listener]]\naddress = '[::]:2525'\n\
        mode = 'redirect'\n[[upstream]]\nname = 'today'\ntype = 'original-destination'\n\
        default = true\nnetworks = ['192.0.2.0/24']\n\
        [[upstream]]\nname = 'cloud'\ntargets = ['198.51.100.1:25']\n";
    let said = |more: &str, destination: &str| {
        std::fs::write(&path, text.replace("default", &format!("{more}default"))).unwrap();
        let line = format!("wavegate explain --config {} {destination}", path.display());
        let line = format!("{line} --client 127.0.0.1 --from a@b.example --to c@d.example");
        let words = line.split_whitespace();
        let Command::Explain(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not explain")
        };
        let mut out = Vec::new();
        explain(&args, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let to = said("", "--destination 192.0.2.7:25");
    assert!(to.contains("\n  destination 192.0.2.7:25 before it was redirected\n"), "{to}");
    assert!(to.contains("handed to today/192.0.2.7:25 at once; the client gets"), "{to}");
    let elsewhere = said("fallback = 'cloud'\n", "--destination 203.0.113.1:25");
    assert!(
        elsewhere.contains("451 4.3.5 wavegate: upstream today may not continue to"),
        "{elsewhere}"
    );
    let nowhere = said("", "");
    assert!(nowhere.contains("451 4.3.5 wavegate: it was not redirected"), "{nowhere}");
    let fallback = said("fallback = 'cloud'\n", "");
    assert!(fallback.contains("wanted to go; its fallback: cloud\n"), "{fallback}");
    assert!(fallback.contains("\n  upstream    cloud: 198.51.100.1:25\n"), "{fallback}");
}

#[test]
fn a_link_is_told_with_its_fallback() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let text = "[relay]\nhostname = 'edge.example'\n\
                [[listener]]\naddress = '127.0.0.1:2525'\nallow = ['127.0.0.1']\n\
                [[upstream]]\ntype = 'link'\nname = 'cloud'\ndefault = true\n\
                targets = ['192.0.2.1:4443']\nfallback = 'mx'\n\
                link = { certificate = 'a.pem', key = 'a.key', ca = 'ca.pem', name = 'gateway.example' }\n\
                [[upstream]]\nname = 'mx'\ntargets = ['192.0.2.2:25']\n";
    std::fs::write(&path, text).unwrap();
    let line = format!("wavegate explain --config {} --client 127.0.0.1", path.display());
    let line = line + " --from a@b.example --to c@d.example";
    let Command::Explain(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
        panic!("not explain")
    };
    let mut out = Vec::new();
    explain(&args, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let told =
        "\n  upstream    cloud: 192.0.2.1:4443\n  fallback    mx, while no gateway answers\n";
    assert!(text.contains(told), "{text}");
}

#[test]
fn mail_of_no_instance_from_a_frozen_network_is_held() {
    let text = run("a@b.example", "--client 127.0.0.1 --at 2026-01-20T06:10:00Z").unwrap();
    assert!(text.contains("from a network of frozen instance acme-prod-1"), "{text}");
    assert!(text.contains("It would be held: "), "{text}");
}

#[test]
fn a_client_that_may_not_relay_is_told_so() {
    let text = run("a@b.example", "--client 192.0.2.1 --at 2026-01-20T05:00:00Z").unwrap();
    assert!(text.contains("\n  reply       550 5.7.1 wavegate: Relaying denied\n"), "{text}");
    assert!(text.contains("lets only 127.0.0.0/8, ::1/128 relay"), "{text}");
}

#[test]
fn a_listener_that_is_not_there_is_a_wrong_command_line() {
    let error = run("a@b.example", "--client ::1 --listener other").unwrap_err();
    assert_eq!(crate::cli::exit_code(&error), exit::USAGE);
    assert!(error.to_string().contains("there are: listener-1"), "{error}");
}
