//! Configurations that must load and how, configurations that must not and what is said of them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::plan::{Phase, Timestamp};

/// Bad configurations and everything that is said of them.
const BAD_CASES: &str = include_str!("tests/bad_cases.txt");

const SAMPLE: &str = include_str!("tests/sample_relay.toml");
const SAMPLE_PLAN: &str = include_str!("tests/sample_waves.toml");

/// Before all windows of these files, and early enough for every notice.
const EARLY: When = When { now: Timestamp(1_756_684_800_000), checks: Checks::Relay };

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self) -> Result<Config, Diagnostics> {
        read_at(&self.path("relay.toml"), EARLY)
    }

    /// What is said, a line each, without the directory.
    fn said(&self) -> String {
        let found = match self.read() {
            Ok(config) => config.warnings,
            Err(found) => found.0,
        };
        let dir = format!("{}/", self.0.path().display());
        found.iter().map(|one| format!("{one}\n").replace(&dir, "")).collect()
    }
}

fn examples() -> PathBuf {
    std::path::absolute(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")).unwrap()
}

#[test]
fn the_sample_loads_as_it_stands() {
    let dir = Dir::new(&[("relay.toml", SAMPLE), ("waves.toml", SAMPLE_PLAN)]);
    let config = dir.read().unwrap();
    assert_eq!(config.warnings, []);
    assert_eq!(config.relay.hostname, "edge-1.example.net");
    assert_eq!(config.relay.state_dir, dir.path("state"));
    assert_eq!(config.relay.unmatched, Unmatched::Before);
    assert_eq!(config.limits, Limits::default());
    let files = ["relay.toml", "waves.toml", "waves.lock"].map(|name| dir.path(name));
    assert_eq!(config.files, files);
    assert_eq!(config.plan_file, Some(dir.path("waves.toml")));
    let listener = &config.listeners[0];
    assert_eq!(listener.address, "127.0.0.1:2525".parse().unwrap());
    assert_eq!(listener.allow, ["127.0.0.0/8".parse().unwrap()]);
    assert_eq!(listener.name, "listener-1");
    let [legacy, cloud] = &config.upstreams[..] else { panic!("{:?}", config.upstreams) };
    assert_eq!((legacy.name.as_str(), legacy.handoff), ("legacy", Handoff::Auto));
    assert_eq!((cloud.name.as_str(), cloud.handoff), ("cloud", Handoff::Direct));
    assert_eq!(cloud.targets.len(), 2);
    assert_eq!(cloud.connections, 50);
    assert_eq!(config.default_upstream(), None);
    assert_eq!(config.unmatched_upstream(), Some("legacy"));
    let names: Vec<_> = config.policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["freeze", "routing", "throttle"]);
    assert_eq!(config.policies[0].settings, "{}");
    assert_eq!(
        config.policies[2].settings,
        r#"{"limits":[{"burst":500,"per":["upstream","recipient-domain"],"rate":"5000/s"}]}"#
    );
    assert!(config.policies[2].place.ends_with("relay.toml:24"), "{}", config.policies[2].place);
    assert_eq!(config.admin.as_ref().unwrap().address, "127.0.0.1:8025".parse().unwrap());
    let plan = &config.plan;
    assert_eq!(plan.freeze_lead_ms, 60_000);
    let opens: jiff::Timestamp = "2026-01-20T06:00:00Z".parse().unwrap();
    let opens = Timestamp(u64::try_from(opens.as_millisecond()).unwrap());
    assert_eq!(plan.phase(0, opens.saturating_sub_ms(60_001)), Phase::Scheduled);
    assert_eq!(plan.phase(0, opens.saturating_sub_ms(60_000)), Phase::Freezing);
    assert_eq!(plan.phase(0, opens), Phase::Frozen);
    assert_eq!(plan.phase(0, opens.saturating_add_ms(45 * 60_000)), Phase::Migrated);
    assert_eq!((config.before(0), config.after(0)), (Some("legacy"), Some("cloud")));
}

#[test]
fn an_only_upstream_needs_nothing_else() {
    let dir = Dir::new(&[(
        "relay.toml",
        "[relay]\nhostname = 'a.example'\n[[listener]]\naddress = '[::1]:0'\n[[upstream]]\nname = \
         'next'\ntargets = ['[::1]:2601']",
    )]);
    let config = dir.read().unwrap();
    assert_eq!(config.default_upstream(), Some("next"));
    assert_eq!(config.unmatched_upstream(), Some("next"));
    assert_eq!(config.listeners[0].allow.len(), 2, "loopback only");
    assert_eq!(config.plan.instances, []);
}

#[test]
fn values_in_every_spelling() {
    let plan = SAMPLE_PLAN
        .replace("\"2026-01-20T06:00:00Z\"", "2026-01-20T07:00:00+01:00")
        .replace("\"60s\"", "\"2min\"");
    let relay = SAMPLE.replace(
        "[migration]",
        "[limits]\nmessage_size = '1MB'\nmessage_memory = 65536\ndirect_wait = '1s'\n\
         command_timeout = '1h'\nmemory = '1GiB'\nmemory_total = '2GiB'\n\
         client_connection_rate = '100/s'\nclient_message_rate = '5/10s'\n[migration]",
    );
    let dir = Dir::new(&[("relay.toml", &relay), ("waves.toml", &plan)]);
    let config = dir.read().unwrap();
    assert_eq!(config.limits.message_size, 1_000_000);
    assert_eq!(config.limits.message_memory, 65_536);
    assert_eq!(config.limits.memory, 1 << 30);
    assert_eq!(config.limits.memory_total, Some(2 << 30));
    let rate = |count, per_ms| Some(Rate { count, per_ms });
    assert_eq!(config.limits.client_connection_rate, rate(100, 1000));
    assert_eq!(config.limits.client_message_rate, rate(5, 10_000));
    assert_eq!(config.limits.direct_wait, Duration::from_secs(1));
    assert_eq!(config.limits.command_timeout, Duration::from_secs(3600));
    assert_eq!(config.plan.freeze_lead_ms, 120_000);
    assert_eq!(config.plan.waves[0].window.opens.to_string(), "2026-01-20T06:00:00Z");
}

const LINK: &str = include_str!("tests/sample_link.toml");

#[test]
fn a_gateway_needs_no_other_listener() {
    let config = Dir::new(&[("relay.toml", LINK)]).read().unwrap();
    assert_eq!(config.warnings, []);
    assert_eq!(config.listeners, []);
    let [link] = &config.links[..] else { panic!("{:?}", config.links) };
    assert_eq!((link.name.as_str(), link.address.port()), ("listener-1", 4443));
    assert_eq!((link.connections, link.streams, link.seen), (1000, 1000, 500_000));
    assert_eq!((link.idle_timeout, link.congestion), (Duration::from_secs(8), Congestion::Bbr));
    assert_eq!(link.upstreams, ["mx"]);
    let [one, two] = &link.peers[..] else { panic!("{:?}", link.peers) };
    assert_eq!((one.name.as_str(), one.pins.len()), ("edge-1.example", 0));
    assert_eq!((two.name.as_str(), two.pins.len()), ("edge-2", 2));
    assert_eq!(link.trust.pins, two.pins);
    assert_eq!(two.pins[0].0[..2], [0x88, 0xbb]);
    assert_eq!(
        two.pins[0].to_string(),
        "sha256/iLuHA7OtNJm9ILHZjfXJ+AIqsVxkh78AfSxyiMTCU6s=",
        "as it is written"
    );
}

#[test]
fn an_edge_has_its_own_defaults() {
    let dir = Dir::new(&[("relay.toml", LINK)]);
    let config = dir.read().unwrap();
    let cloud = &config.upstreams[0];
    let link = cloud.link.as_ref().unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((cloud.connections, cloud.connect_timeout), (4, seconds(3)));
    assert_eq!((cloud.eject_for, cloud.eject_max), (seconds(1), seconds(2)));
    assert_eq!((cloud.idle_timeout, link.idle_timeout), (seconds(8), seconds(8)));
    assert_eq!((link.streams, link.keep_alive), (1000, seconds(2)));
    assert_eq!((link.congestion, link.fallback.as_deref()), (Congestion::Bbr, Some("mx")));
    assert_eq!((cloud.handoff, cloud.verify), (Handoff::Auto, Verify::None));
    assert_eq!(link.trust.crl, Some(dir.path("crl.pem")));
    // All files are watched, each side's.
    for file in ["edge.pem", "edge.key", "ca.pem", "crl.pem", "gateway.pem", "gateway.key"] {
        assert!(config.files.contains(&dir.path(file)), "{file}");
    }
    // Mail that is already there may go round; a link that leads to itself is told of elsewhere.
    let own = |upstream| config.own_address(upstream, "127.0.0.1:4443".parse().unwrap());
    assert_eq!(own("cloud").as_deref(), Some("listener \"listener-1\""));
    assert_eq!(own("mx"), None);
}

#[test]
fn links_at_their_bounds_load() {
    let low = "connections = 1\nstreams = 1\nidle_timeout = '20ms'\nkeep_alive = '10ms'\n\
               congestion = 'cubic'\n";
    let high = "connections = 100\nstreams = 100_000\nidle_timeout = '1h'\n\
                keep_alive = '59min'\ncongestion = 'bbr'\n";
    let low_gateway = "connections = 1\nstreams = 1\nseen = 2\nidle_timeout = '10ms'\n";
    let high_gateway = "connections = 100_000\nstreams = 100_000\nseen = 10_000_000\n\
                        idle_timeout = '1h'\ncongestion = 'cubic'\n";
    for (edge, gateway, streams) in [(low, low_gateway, 1), (high, high_gateway, 100_000)] {
        let text = LINK.replace("# the edge's\n", edge).replace("# the gateway's\n", gateway);
        let config = Dir::new(&[("relay.toml", &text)]).read().unwrap();
        assert_eq!(config.links[0].streams, streams);
        assert_eq!(config.upstreams[0].link.as_ref().unwrap().streams, streams as usize);
        assert_eq!(config.warnings, []);
    }
    // A short time to wait makes a short time to ask.
    let text = LINK.replace("# the edge's\n", "idle_timeout = '1s'\n");
    let config = Dir::new(&[("relay.toml", &text)]).read().unwrap();
    let link = config.upstreams[0].link.as_ref().unwrap();
    assert_eq!(link.keep_alive, Duration::from_millis(500));
}

#[test]
fn a_plan_knows_listeners_of_links() {
    let relay = LINK.replace("[relay]", "[relay]\nplan = 'waves.toml'")
        + "[migration]\nbefore = 'mx'\nafter = 'cloud'\n[[policy]]\nplugin = 'builtin:freeze'\n";
    let by = |listener: &str| format!("match = {{ listeners = ['{listener}'],");
    let plan = |listener: &str| SAMPLE_PLAN.replace("match = {", &by(listener));
    let said = |plan: &str| Dir::new(&[("relay.toml", &relay), ("waves.toml", plan)]).said();
    assert_eq!(said(&plan("listener-1")), "");
    assert!(said(&plan("listener-2")).contains("\"listener-2\" is not a known listener"));
}

#[test]
fn a_link_can_be_played_as_smtp() {
    let config = Dir::new(&[("relay.toml", LINK)]).read().unwrap().without_links();
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.name.as_str(), &listener.upstreams[..]),
        ("listener-1", &["mx".into()][..])
    );
    for anybody in ["192.0.2.1", "2001:db8::1"] {
        let anybody: IpAddr = anybody.parse().unwrap();
        assert!(listener.allow.iter().any(|all| all.contains(&anybody)));
    }
    assert!(config.links.is_empty() && config.upstreams.iter().all(|one| one.link.is_none()));
}

#[test]
fn limits_at_their_bounds_load() {
    let low = "connections = 1\nconnections_per_client = 1\nmessage_size = '64KiB'\n\
               message_memory = '1KiB'\nmemory = '1MiB'\nspill = '1MiB'\n\
               command_timeout = '10ms'\ndata_timeout = '10ms'\ndata_rate = 1\n\
               direct_wait = '1ms'\ndirect_queue = 1\n\
               limit_keys = 1\nshutdown_timeout = '10ms'\n";
    let high = "connections = 1_000_000\nconnections_per_client = 1_000_000\n\
                message_size = '1TiB'\nmessage_memory = '64MiB'\nmemory = '1TiB'\n\
                spill = '64TiB'\ncommand_timeout = '1h'\ndata_timeout = '1h'\n\
                data_rate = '64MiB'\ndirect_wait = '60s'\ndirect_queue = 1_000_000\n\
                limit_keys = 10_000_000\nshutdown_timeout = '1h'\n";
    for (limits, spill) in [(low, 1 << 20), (high, 64 << 40)] {
        let relay = format!("{SAMPLE}[limits]\n{limits}");
        let dir = Dir::new(&[("relay.toml", &relay), ("waves.toml", SAMPLE_PLAN)]);
        let config = dir.read().unwrap();
        assert_eq!(config.limits.spill, spill);
        assert_eq!(config.warnings, []);
    }
}

#[test]
fn the_commented_examples_load() {
    let config = read_at(&examples().join("relay.toml"), EARLY).unwrap();
    let warned: Vec<_> = config.warnings.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(warned, ["instance[1]"], "only the instance that waits for a wave");
    assert_eq!(config.plan.instances.len(), 2);
    // What is installed starts as it is, and is open to nobody else.
    let installed = read_at(&examples().join("debian/relay.toml"), EARLY).unwrap();
    assert_eq!(installed.warnings, []);
    assert!(installed.listeners[0].address.ip().is_loopback());
    assert_eq!(installed.relay.state_dir, PathBuf::from("/var/lib/wavegate"));
}

/// Removes the `#` from every commented default.
fn uncomment(text: &str) -> String {
    let is_key = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        end > 0 && rest[end..].starts_with(" = ")
    };
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if is_key(rest) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn commented_defaults_are_the_defaults() {
    let text = |name: &str| std::fs::read_to_string(examples().join(name)).unwrap();
    let (relay, plan) = (text("relay.toml"), text("waves.toml"));
    let dir = Dir::new(&[("relay.toml", &relay), ("waves.toml", &plan)]);
    // The plan apart: its index has no order to print.
    let parts = |mut config: Config| {
        let plan = std::mem::take(&mut config.plan);
        (plan, format!("{config:#?}"))
    };
    let before = parts(dir.read().unwrap());
    let (relay, plan) = (uncomment(&relay), uncomment(&plan));
    assert!(relay.contains("\nspill = ") && plan.contains("\nfreeze_lead = "));
    std::fs::write(dir.path("relay.toml"), relay).unwrap();
    std::fs::write(dir.path("waves.toml"), plan).unwrap();
    assert_eq!(before, parts(dir.read().unwrap()));
}

#[test]
fn the_examples_name_every_key() {
    let relay = std::fs::read_to_string(examples().join("relay.toml")).unwrap();
    let plan = std::fs::read_to_string(examples().join("waves.toml")).unwrap();
    let unknown = |text: &str| {
        let mut changed = String::from("zzzzzzzz = 0\n");
        for line in text.lines() {
            writeln!(changed, "{line}").unwrap();
            if line.starts_with('[') {
                changed.push_str("zzzzzzzz = 0\n");
            }
        }
        changed
    };
    let dir = Dir::new(&[("relay.toml", &unknown(&relay)), ("waves.toml", &unknown(&plan))]);
    let found = dir.read().unwrap_err();
    let mut sections = 0;
    for one in found.0.iter().filter(|one| one.is_error()) {
        let keys = one.message.strip_prefix("unknown key; known here: ").unwrap();
        let text = if one.file.ends_with("relay.toml") { &relay } else { &plan };
        sections += 1;
        for key in keys.split(", ") {
            let spelled = [format!("{key} = "), format!("[{key}]"), format!("[[{key}]]")];
            assert!(spelled.iter().any(|spelled| text.contains(spelled)), "{key} of {}", one.key);
        }
    }
    assert_eq!(sections, 25, "{found}");
}

/// The same of tables that stand in a line.
#[test]
fn the_examples_name_every_key_of_inline_tables() {
    let examples = std::fs::read_to_string(examples().join("relay.toml")).unwrap();
    let unknown = "zzzzzzzz = 0";
    let text = format!(
        "[relay]\nhostname = \"a.example\"\nstate_dir = \"state\"\n\
         [[listener]]\nname = \"smtp\"\naddress = \"127.0.0.1:0\"\nauth = {{ {unknown} }}\n\
         tls = {{ {unknown}, certificates = [{{ {unknown} }}] }}\n\
         [[listener]]\nname = \"link\"\ntype = \"link\"\naddress = \"127.0.0.1:0\"\n\
         link = {{ {unknown}, peers = [{{ {unknown} }}] }}\n\
         [[upstream]]\nname = \"a\"\ntargets = [\"192.0.2.1\"]\ndefault = true\n\
         tls = {{ {unknown} }}\nauth = {{ {unknown} }}\n\
         [[upstream]]\nname = \"b\"\ntype = \"link\"\ntargets = [\"192.0.2.1:1\"]\n\
         link = {{ {unknown} }}\n"
    );
    let found = Dir::new(&[("relay.toml", &text)]).read().unwrap_err();
    let known = found.0.iter().filter_map(|one| {
        let keys = one.message.strip_prefix("unknown key; known here: ")?;
        Some((&one.key, keys.split(", ")))
    });
    let mut tables = 0;
    for (table, keys) in known {
        tables += 1;
        for key in keys {
            // Some stand in what is said of the others.
            let mut words = examples.split(|one: char| !(one.is_alphanumeric() || one == '_'));
            assert!(words.any(|word| word == key), "{key} of {table}");
        }
    }
    assert_eq!(tables, 8, "{found}");
}

#[test]
fn what_is_said_of_bad_configurations() {
    let mut said = String::new();
    let mut cases = 0;
    for case in BAD_CASES.split("=== ").skip(1) {
        cases += 1;
        let (name, rest) = case.split_once('\n').unwrap();
        let (input, _) = rest.split_once("--- said\n").unwrap();
        let (relay, plan) = match input.split_once("--- waves.toml\n") {
            Some((relay, plan)) => (relay, Some(plan)),
            None => (input, None),
        };
        let relay = relay.strip_prefix("--- relay.toml\n").unwrap_or(SAMPLE);
        let plan = plan.unwrap_or(SAMPLE_PLAN);
        let dir = Dir::new(&[("relay.toml", relay), ("waves.toml", plan)]);
        writeln!(said, "=== {name}\n{input}--- said\n{}", dir.said()).unwrap();
    }
    assert!(cases >= 40, "{cases}");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/tests/bad_cases.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(golden, &said).unwrap();
    }
    let golden = std::fs::read_to_string(golden).unwrap();
    if let Some((is, was)) = said.lines().zip(golden.lines()).find(|(is, was)| is != was) {
        panic!("with BLESS=1 the file is written anew\n said: {is}\nfile: {was}");
    }
    assert_eq!(said.len(), golden.len());
}

#[test]
fn files_that_cannot_be_read() {
    let dir = Dir::new(&[]);
    assert_eq!(
        dir.said(),
        "relay.toml: cannot read relay.toml: No such file or directory (os error 2); check the \
         path and its permissions\n"
    );
    std::fs::create_dir(dir.path("relay.toml")).unwrap();
    assert_eq!(dir.said(), "relay.toml: relay.toml is not a regular file; name a TOML file\n");

    let dir = Dir::new(&[("relay.toml", SAMPLE)]);
    assert_eq!(
        dir.said(),
        "relay.toml:4:8: relay.plan: cannot read waves.toml: No such file or directory (os error \
         2); check the path and its permissions\n"
    );
    std::fs::write(dir.path("waves.toml"), b"# one\n\xff").unwrap();
    assert_eq!(
        dir.said(),
        "relay.toml:4:8: relay.plan: waves.toml is not UTF-8 (line 2); save it as UTF-8\n"
    );
    let fits = format!("{SAMPLE_PLAN}#{}", " ".repeat((16 << 20) - SAMPLE_PLAN.len() - 1));
    std::fs::write(dir.path("waves.toml"), &fits).unwrap();
    assert_eq!(dir.said(), "");
    std::fs::write(dir.path("waves.toml"), fits + " ").unwrap();
    assert_eq!(
        dir.said(),
        "relay.toml:4:8: relay.plan: waves.toml is larger than \"16MiB\"; make it smaller\n"
    );
}

#[test]
fn hooks_are_checked_when_plugins_are_loaded() {
    let dir = Dir::new(&[("relay.toml", SAMPLE), ("waves.toml", SAMPLE_PLAN)]);
    let mut config = dir.read().unwrap();
    let freeze = Hooks { freeze: true, ..Hooks::default() };
    let routing = Hooks { routing: true, ..Hooks::default() };
    let throttling = Hooks { throttling: true, ..Hooks::default() };
    assert_eq!(check_hooks(&config, &[freeze, routing, throttling]), Ok(()));
    let found = check_hooks(&config, &[throttling; 3]).unwrap_err();
    assert_eq!(found.errors(), 2, "{found}");
    config.policies[1].fail = Some(FailMode::Ignore);
    assert_eq!(check_hooks(&config, &[freeze, routing, throttling]), Ok(()));
    let found = check_hooks(&config, &[routing, freeze, throttling]).unwrap_err();
    assert!(found.to_string().contains("relay.toml:22: policy \"routing\": fail:"), "{found}");
}

#[test]
fn a_state_directory_is_made_private_or_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new(&[("file", "")]);
    let made = dir.path("a/state");
    check_state_dir(&made).unwrap();
    assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
    check_state_dir(&made).unwrap();
    assert_eq!(std::fs::read_dir(&made).unwrap().count(), 0, "nothing stays behind");
    let said = |path: &str| check_state_dir(&dir.path(path)).unwrap_err().message;
    assert_eq!(said("file"), "is not a directory; set `relay.state_dir` to one");
    assert!(said("file/state").starts_with("cannot be looked at"));
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o770)).unwrap();
    assert_eq!(said("a/state"), "can be written by others; make it private: chmod 700");
}

#[test]
fn diagnostics_as_json() {
    let found = Dir::new(&[("relay.toml", "relay = 1")]).read().unwrap_err();
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json[0]["severity"], "error");
    assert_eq!(json[0]["key"], "listener");
    assert_eq!(json[2]["line"], 1);
    assert_eq!(json[2]["message"], "must be a table: `[relay]`, not an integer");
}

/// Pieces of configurations, put together at random.
fn nearly_toml() -> impl Strategy<Value = String> {
    let pieces: Vec<String> = [SAMPLE, SAMPLE_PLAN]
        .iter()
        .flat_map(|text| text.split_inclusive(['\n', ' ', '"']))
        .map(str::to_owned)
        .collect();
    let piece = prop_oneof![4 => proptest::sample::select(pieces), 1 => any::<String>()];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(relay in nearly_toml(), plan in nearly_toml(), cut in any::<proptest::sample::Index>()) {
        let cut = cut.index(SAMPLE.len() + 1);
        let mixed = format!("{}{relay}{}", &SAMPLE[..cut], &SAMPLE[cut..]);
        for relay in [relay, mixed, SAMPLE.to_owned()] {
            let _ = Dir::new(&[("relay.toml", &relay), ("waves.toml", &plan)]).said();
        }
    }

    #[test]
    fn values_read_back_as_shown(ms in 0..u64::MAX / 2, bytes in any::<u64>()) {
        let duration = Duration::from_millis(ms);
        prop_assert_eq!(values::duration(values::show_duration(duration).trim_matches('"')), Ok(duration));
        prop_assert_eq!(size(values::show_size(bytes).trim_matches('"')), Ok(bytes));
    }
}
