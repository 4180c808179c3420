//! The commands on files, with a time given where they take one.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use clap::Parser as _;
use serde_json::Value;

use super::*;

const ENVIRONMENT: &str = "[program]\nname = \"Upgrade\"\nprovider = \"Example Mail\"\n\
    [[environment]]\nname = \"production\"\nnotice = \"30d\"\nwindow = { max = \"30min\" }\n\
    duration = { fixed = \"10min\", each = \"10min\", parallel = 2 }\n";

fn instance(name: &str, hosting: &str) -> String {
    format!(
        "[[instance]]\nname = \"{name}\"\ncustomer = \"acme\"\nproduct = \"classic\"\n\
         environment = \"production\"\nhosting = \"{hosting}\"\n\
         match = {{ headers = {{ \"X-Instance\" = \"{name}\" }} }}\n"
    )
}

fn wave(id: &str, instances: &[&str], opens: &str) -> String {
    format!(
        "[[wave]]\nid = \"{id}\"\nenvironment = \"production\"\ninstances = {instances:?}\nopens = \
         \"{opens}\"\n"
    )
}

/// Nine instances, of which seven are in a wave that takes too long for one.
fn too_long() -> String {
    let all: Vec<String> = (1..=9).map(|number| format!("i{number}")).collect();
    let of: Vec<&str> = all.iter().map(String::as_str).collect();
    let instances: String = of.iter().map(|name| instance(name, "hosted")).collect();
    let waves = wave("w", &of[..7], "2126-03-01T06:00:00Z")
        + &wave("w-2", &of[7..8], "2126-03-02T06:00:00Z");
    format!("{ENVIRONMENT}{instances}{waves}")
}

fn sound() -> String {
    let instances =
        instance("i1", "hosted") + &instance("i2", "managed") + &instance("i3", "hybrid");
    let waves =
        wave("w", &["i1"], "2126-03-01T06:00:00Z") + &wave("v", &["i2"], "2026-03-01T06:00:00Z");
    format!("{ENVIRONMENT}{instances}{waves}")
}

#[derive(clap::Parser)]
struct Line {
    #[command(subcommand)]
    command: PlanCommand,
}

/// Runs a command on `waves.toml` of a directory: the exit code and what it prints or says.
pub(super) fn run_in(dir: &Path, arguments: &str) -> (u8, String) {
    let file = dir.join("waves.toml").display().to_string();
    let arguments = arguments.split(' ').chain(["--plan", &file]);
    let line = Line::try_parse_from(std::iter::once("plan").chain(arguments)).unwrap();
    let mut out = Vec::new();
    let (code, text) = match plan(&line.command, &mut out) {
        Ok(code) => (code, String::from_utf8(out).unwrap()),
        Err(error) => (error.downcast_ref::<Failed>().unwrap().code, error.to_string()),
    };
    (code, text.replace(&dir.display().to_string(), "DIR"))
}

fn run(text: &str, arguments: &str) -> (u8, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("waves.toml"), text).unwrap();
    run_in(dir.path(), arguments)
}

fn run_json(text: &str, arguments: &str) -> (u8, Value) {
    let (code, text) = run(text, arguments);
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[test]
fn a_sound_plan_is_summed_up() {
    let (code, text) = run(&sound(), "check --at 2025-12-01T00:00:00Z");
    assert_eq!(code, 0, "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("warning: ")).collect();
    assert_eq!(lines[0], "DIR/waves.toml: good, 3 warnings");
    assert_eq!(lines[2], "  program     Upgrade");
    assert_eq!(lines[3], "  bounds for  production");
    assert_eq!(lines[4], "  instances   3");
    assert_eq!(
        lines[5],
        "  waves       v: 1 instance, about 20min, from 2026-03-01T06:00:00Z to \
         2026-03-01T06:20:00Z, not announced"
    );
    let (code, found) = run_json(&sound(), "check --json --at 2026-03-01T06:20:00Z");
    assert_eq!((code, &found["ok"]), (0, &Value::Bool(true)));
    assert_eq!(found["summary"]["waves"][0]["over"], true);
    assert_eq!(found["summary"]["waves"][1]["over"], false);
    assert_eq!(found["summary"]["waves"][1]["estimate_ms"], 1_200_000);
    assert_eq!(found["summary"]["digest"].as_str().unwrap().len(), 16);
}

#[test]
fn a_plan_that_is_wrong_is_78() {
    let (code, text) = run(&sound(), "check --at 2026-02-01T00:00:00Z");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("wave[1].opens: is in 28d 6h and not announced"), "{text}");
    assert!(text.ends_with("DIR/waves.toml: 1 error, 3 warnings\n"), "{text}");
    let (code, found) = run_json(&too_long(), "check --json");
    assert_eq!(code, exit::CONFIG);
    assert!(found["summary"].is_null());
    let errors = found["diagnostics"].as_array().unwrap().iter();
    let errors: Vec<_> = errors.filter(|found| found["severity"] == "error").collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0]["key"], "wave[0].opens");
    assert_eq!(run("[[wave]", "affected").0, exit::CONFIG);
}

#[test]
fn a_wave_that_is_too_long_is_split_by_name() {
    let (code, text) = run(&too_long(), "estimate w");
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        text,
        "w\n  environment production\n  instances   7\n  window      50min, from \
         2126-03-01T06:00:00Z to 2126-03-01T06:50:00Z\n  longest     30min\n  estimate    50min \
         (10min and 10min for every 2 of them): longer than the longest window\n  split       into \
         2 waves\n              w-1: 4 instances, about 30min: i1, i2, i3, i4\n              w-3: \
         3 instances, about 30min: i5, i6, i7\n"
    );
    let (_, found) = run_json(&too_long(), "estimate --json");
    assert_eq!(found[1]["wave"], "w-2");
    assert_eq!((&found[1]["fits"], &found[0]["fits"]), (&true.into(), &false.into()));
    assert_eq!(found[0]["split"][1]["instances"][2], "i7");
    let (code, text) = run(&too_long(), "estimate nothing");
    assert_eq!(
        (code, text.as_str()),
        (exit::USAGE, "there is no wave \"nothing\"; there are: w, w-2")
    );
}

#[test]
fn estimates_that_do_not_fit_otherwise() {
    let of = |from: &str, to: &str| {
        let plan = too_long();
        assert!(plan.contains(from), "{from}");
        run(&plan.replace(from, to), "estimate w").1
    };
    let closes = "06:00:00Z\"\ncloses = \"2126-03-01T06:40:00Z\"\n[[wave]]\nid = \"w-2\"";
    let text = of("06:00:00Z\"\n[[wave]]\nid = \"w-2\"", closes);
    assert!(text.contains("window      40min") && text.contains("w-3:"), "{text}");
    let longer = of("max = \"30min\"", "max = \"50min\"");
    assert!(longer.contains("every 2 of them): fits\n"), "{longer}");
    let never = of("max = \"30min\"", "max = \"19min\"");
    assert!(never.contains("window.max"), "an error of the environment: {never}");
    let without = too_long().replace("duration", "# duration");
    let (code, text) = run(&without, "estimate w");
    assert_eq!(code, exit::CONFIG, "neither an end nor an estimate: {text}");
}

#[test]
fn who_is_affected() {
    let (code, text) = run(&sound(), "affected --hosting hosted --at 2026-02-01T00:00:00Z");
    assert_eq!(code, 0);
    assert_eq!(
        text,
        "i1\n  what        classic, production, hosted\n  customer    acme\n  wave        w\n  \
         window      2126-03-01T06:00:00Z to 2126-03-01T06:20:00Z (20min)\n  announced   not yet\n\
         1 instance\n"
    );
    let count = |arguments: &str| {
        let (code, found) = run_json(&sound(), &format!("affected --json {arguments}"));
        let count = found.as_array().unwrap().len();
        assert_eq!(code, u8::from(count == 0), "{arguments}");
        count
    };
    assert_eq!(count("--product classic"), 3);
    assert_eq!(count("--instance i1 --instance i2 --instance i9"), 2);
    assert_eq!(count("--instance i1 --hosting managed"), 0);
    assert_eq!(count("--customer acme --environment production"), 3);
    assert_eq!(count("--product on-demand"), 0);
    let (_, found) = run_json(&sound(), "affected --json --at 2026-03-01T06:10:00Z");
    assert_eq!(found[1]["phase"], "frozen");
    assert_eq!(found[1]["waves"][0]["id"], "v");
    assert_eq!(found[2]["waves"].as_array().unwrap().len(), 0, "in no wave");
}

#[test]
fn announcing_is_recorded_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("waves.toml"), sound()).unwrap();
    let lock = dir.path().join("waves.lock");
    let (code, text) = run_in(dir.path(), "announce w --reason notices-sent");
    assert_eq!(code, 0, "{text}");
    assert!(
        text.starts_with("wave w is announced: 1 instance, from 2126-03-01T06:00:00Z"),
        "{text}"
    );
    let written = std::fs::read_to_string(&lock).unwrap();
    assert!(written.contains("instances = [\"i1\"]\n"), "{written}");
    assert!(written.contains("reason = \"notices-sent\"\n"), "{written}");
    assert!(!written.contains("late"), "{written}");
    let (code, text) = run_in(dir.path(), "announce w");
    assert_eq!(code, 0);
    assert!(
        text.starts_with("wave w was announced 20") && text.contains("nothing to do"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), written);
    let (_, text) = run_in(dir.path(), "affected --instance i1");
    assert!(text.contains("announced   20"), "{text}");
    // From now on it stands.
    let moved = sound().replace("2126-03-01T06:00:00Z", "2126-03-01T07:00:00Z");
    std::fs::write(dir.path().join("waves.toml"), moved).unwrap();
    let (code, text) = run_in(dir.path(), "check");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("waves.toml:34:9: wave[0].opens: was announced 20"), "{text}");
    assert!(text.contains(": 1 error, "), "its end follows from its beginning: {text}");
    let (code, text) = run_in(dir.path(), "announce w");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("which cannot be changed"), "{text}");
}

#[test]
fn what_is_not_announced() {
    let dir = tempfile::tempdir().unwrap();
    let soon = SystemClock.now().saturating_add_ms(29 * 86_400_000).to_string();
    let plan = sound().replace("2026-03-01T06:00:00Z", &soon) + &instance("i4", "hosted");
    let plan = plan + &wave("past", &["i4"], "2020-03-01T06:00:00Z");
    std::fs::write(dir.path().join("waves.toml"), plan).unwrap();
    let (code, text) = run_in(dir.path(), "announce v");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("asks for 30d of notice") && text.contains("--late --reason"), "{text}");
    let (code, text) = run_in(dir.path(), "announce past --late --reason x");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("wave past is over since 2020-03-01T06:20:00Z"), "{text}");
    let (code, text) = run_in(dir.path(), "announce nothing");
    assert_eq!((code, text.contains("there are: past, v, w")), (exit::USAGE, true), "{text}");
    assert!(!dir.path().join("waves.lock").exists());
    let (code, text) = run_in(dir.path(), "announce v --late --reason agreed --json");
    assert_eq!(code, 0, "{text}");
    let done: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&done["changed"], &done["announced"]["late"]), (&true.into(), &true.into()));
    assert_eq!(done["announced"]["reason"], "agreed");
    let (code, text) = run_in(dir.path(), "check");
    assert_eq!(code, 0, "a late one that was recorded is no error: {text}");
}

#[test]
fn announcements_at_the_same_time_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..8).map(|number| format!("i{number}")).collect();
    let mut plan = ENVIRONMENT.to_owned();
    for name in &names {
        plan += &instance(name, "hosted");
    }
    for name in &names {
        plan += &wave(&format!("w-{name}"), &[name], "2126-03-01T06:00:00Z");
    }
    std::fs::write(dir.path().join("waves.toml"), plan).unwrap();
    std::thread::scope(|scope| {
        for name in &names {
            let dir = dir.path();
            scope.spawn(move || assert_eq!(run_in(dir, &format!("announce w-{name}")).0, 0));
        }
    });
    let (_, text) = run_in(dir.path(), "affected");
    assert_eq!(text.matches("announced   20").count(), 8, "{text}");
}

#[test]
fn a_plan_alone_is_rehearsed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("waves.toml"), sound()).unwrap();
    let svg = dir.path().join("backlog.svg");
    let arguments = format!("simulate --synthetic 300 --svg {}", svg.display());
    let (code, text) = run_in(dir.path(), &arguments);
    assert_eq!(code, 0, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "DIR/waves.toml: rehearsed, good");
    // The wave of 2126 alone: the other is over.
    assert!(lines[1].contains("2126-03-01T05:00:00Z to 2126-03-01T08:20:00Z, seed 1"), "{text}");
    assert!(lines[3].contains("300 messages, ") && lines[3].contains("as declared"), "{text}");
    assert!(lines[6].starts_with("  w     03-01 06:00:00  03-01 06:20:00  0.000 s "), "{text}");
    for line in ["  sent        300", "  delivered   300", "  lost        0", "  leaked      0"] {
        assert!(lines.contains(&line), "{line} in {text}");
    }
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("time (UTC)"), "{drawn}");
    let (code, again) = run_in(dir.path(), "simulate --synthetic 300");
    assert_eq!((code, again), (0, text));
}

#[test]
fn a_rehearsal_says_what_it_cannot_do() {
    let (code, text) = run("", "simulate --synthetic 10");
    assert_eq!((code, text.as_str()), (64, "the plan has no wave; give --from and --to"));
    let far = wave("x", &["i3"], "2126-06-01T06:00:00Z");
    let (code, text) = run(&(sound() + &far), "simulate --synthetic 10");
    assert!(code == 64 && text.contains("is longer than 31 days; give --from and --to"), "{text}");
    let (code, text) = run(&sound(), "simulate --synthetic 10 --to 2126-02-28T00:00:00Z");
    assert!(code == 64 && text.contains("is no time"), "{text}");
    let (code, text) = run(&sound(), "simulate --trace /nonexistent/trace.csv");
    assert!(code == 66 && text.starts_with("/nonexistent/trace.csv: "), "{text}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("waves.toml"), sound()).unwrap();
    std::fs::write(
        dir.path().join("t.csv"),
        "time,instance,recipient_domain,size\n1,x,y.example,1",
    )
    .unwrap();
    let trace = dir.path().join("t.csv").display().to_string();
    let (code, text) = run_in(dir.path(), &format!("simulate --trace {trace}"));
    assert_eq!((code, text.as_str()), (65, "DIR/t.csv:2: instance: the plan has no \"x\""));
}
