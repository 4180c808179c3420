//! Rehearsals with figures that can be worked out by hand, and what must come out where
//! something is wrong.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::sync::Arc;

use super::{report::tell, *};
use crate::config;

/// 2026-01-20T05:00:00Z
const FROM: Timestamp = Timestamp(1_768_885_200_000);
const MINUTE: u64 = 60_000;

fn instances(count: usize) -> String {
    let one = |number: usize| {
        format!(
            "[[instance]]\nname = \"i{number}\"\nproduct = \"p\"\nenvironment = \"prod\"\n\
             match = {{ clients = [\"10.0.{number}.0/24\"], senders = [\"i{number}.example\"] }}\n"
        )
    };
    "freeze_lead = \"60s\"\n".to_owned() + &(1..=count).map(one).collect::<String>()
}

fn wave(id: &str, instance: usize, opens: &str, closes: &str) -> String {
    format!(
        "[[wave]]\nid = \"{id}\"\nenvironment = \"prod\"\ninstances = [\"i{instance}\"]\n\
         opens = \"2026-01-20T{opens}Z\"\ncloses = \"2026-01-20T{closes}Z\"\n"
    )
}

/// A configuration with this plan; `freeze` is put behind the freeze policy.
fn config(plan: &str, freeze: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[relay]\nhostname = \"relay.example\"\nplan = \"waves.toml\"\n[[listener]]\naddress = \
         \"127.0.0.1:2525\"\nallow = [\"10.0.0.0/8\"]\n[[upstream]]\nname = \"legacy\"\ntargets = \
         [\"127.0.0.1:2601\"]\n[[upstream]]\nname = \"cloud\"\ntargets = [\"127.0.0.1:2602\", \
         \"127.0.0.1:2603\"]\n[migration]\nbefore = \"legacy\"\nafter = \"cloud\"\n[[policy]]\n\
         plugin = \"builtin:freeze\"\n{freeze}\n[[policy]]\nplugin = \"builtin:routing\"\n"
    );
    std::fs::write(directory.path().join("relay.toml"), text).unwrap();
    std::fs::write(directory.path().join("waves.toml"), plan).unwrap();
    config::read(&directory.path().join("relay.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn span(minutes: u64) -> Span {
    Span { from: FROM, to: FROM.saturating_add_ms(minutes * MINUTE) }
}

fn strength(rate: u32, latency: u64) -> Strength {
    let latency = Duration::from_millis(latency);
    Strength { rate: NonZeroU32::new(rate).unwrap(), latency }
}

fn trace(config: &Config, span: Span, text: &str) -> Result<Traffic, String> {
    read_trace(config, span, "t.csv", text.as_bytes(), 1).map_err(|error| error.to_string())
}

fn rehearse(config: Config, span: Span, traffic: Traffic, strength: Strength) -> Report {
    run(Rehearsal { config, span, traffic, strength, seed: 1, cache: None }).unwrap()
}

#[test]
fn figures_of_a_small_plan_are_those_worked_out_by_hand() {
    let plan = instances(2) + &wave("w", 1, "06:00:00", "06:30:00");
    let config = config(&plan, "");
    let span = span(210);
    // Of i1 two before freezing (59 minutes), one in the lead, four in the window, one after it.
    let text = "time,instance,recipient_domain,size\n10,i1,a.example,100\n3539,i1,a.example,100\n\
                3541,i1,a.example,1000\n3600,i1,b.example,2000\n3700,i1,b.example,3000\n\
                3800,i1,b.example,4000\n4000,i1,b.example,5000\n5410,i1,b.example,100\n\
                4000,i2,b.example,700\n";
    let traffic = trace(&config, span, text).unwrap();
    let report = rehearse(config, span, traffic, strength(10, 100));
    assert!(report.is_good(), "{report:?}");
    let wave = &report.waves[0];
    assert_eq!((wave.sent, wave.held.messages, wave.held.bytes), (8, 5, 15_000));
    assert_eq!(wave.barrier_ms, Some(0), "nothing was under way when freezing began");
    let peak = &wave.peak;
    assert_eq!((peak.messages, peak.bytes), (5, 15_000));
    assert!(peak.at.as_deref().unwrap().starts_with("2026-01-20T06:06:40"), "{peak:?}");
    assert!(wave.release_delay_ms.unwrap() <= 10);
    // Five at ten a second, each with 100 ms before its reply: the last after 4 * 100 + 100 ms.
    let drain = wave.drain_ms.unwrap();
    assert!((500..=520).contains(&drain), "{drain}");
    assert_eq!((wave.left, wave.leaked, &wave.not_drained_before), (0, 0, &None));
    let totals = &report.totals;
    assert_eq!((totals.sent, totals.delivered, totals.bytes), (9, 9, 16_000));
    assert_eq!((totals.waiting, totals.lost, totals.duplicated, totals.leaked), (0, 0, 0, 0));
    assert_eq!((totals.peak.messages, totals.peak.bytes), (5, 15_000));
    assert_eq!(totals.others.sent, 1);
    assert!((100..=110).contains(&totals.others.longest_ms), "{totals:?}");
    assert_eq!(report.backlog.iter().max(), Some(&5));
    let svg = draw(&report, FROM);
    assert!(svg.starts_with("<svg") && svg.contains("peak 5, drained in 0.5"), "{svg}");
}

#[test]
fn one_seed_is_one_report() {
    let made = |seed: u64| {
        let plan = instances(4)
            + &wave("w1", 1, "06:00:00", "06:30:00")
            + &wave("w2", 2, "06:15:00", "07:00:00");
        let config = config(&plan, "");
        let span = span(240);
        let traffic = synthetic(&config, span, &[(0, span.length_ms())], 3000, seed);
        assert_eq!(traffic.letters.len(), 3000);
        let strength = strength(50, 20);
        let rehearsal = Rehearsal { config, span, traffic, strength, seed, cache: None };
        let report = run(rehearsal).unwrap();
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.totals.delivered, 3000);
        assert!(report.waves.iter().any(|wave| wave.held.messages > 0), "{report:?}");
        (serde_json::to_string(&report).unwrap(), draw(&report, FROM))
    };
    let (first, again, other) = (made(7), made(7), made(8));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

/// Two waves, the second of which opens five minutes after the first has closed, and 400 messages
/// held by the first.
fn slow(minutes: u64) -> Report {
    let plan = instances(2)
        + &wave("w1", 1, "05:10:00", "05:30:00")
        + &wave("w2", 2, "05:35:00", "05:50:00");
    let config = config(&plan, "");
    let span = span(minutes);
    let line = |number: u64| format!("{},i1,a.example,100\n", 700 + number);
    let text = "time,instance,recipient_domain,size\n".to_owned()
        + &(0..400).map(line).collect::<String>();
    let traffic = trace(&config, span, &text).unwrap();
    rehearse(config, span, traffic, strength(1, 20))
}

#[test]
fn an_upstream_too_slow_to_drain_before_the_next_wave_is_told() {
    let report = slow(170);
    let wave = &report.waves[0];
    assert_eq!((wave.held.messages, wave.left, report.totals.delivered), (400, 0, 400));
    // One a second.
    let drain = wave.drain_ms.unwrap();
    assert!((399_000..=402_000).contains(&drain), "{drain}");
    assert_eq!(wave.not_drained_before.as_deref(), Some("w2"));
    assert_eq!(report.waves[1].not_drained_before, None);
    assert!(report.notes.iter().any(|note| note == "wave w1 had not drained when w2 opened"));
    assert!(report.is_good(), "slow is not wrong");
}

#[test]
fn what_is_left_at_the_end_waits_and_is_not_lost() {
    // The rehearsal ends a minute after the release.
    let report = slow(31);
    let (wave, totals) = (&report.waves[0], &report.totals);
    assert_eq!(wave.drain_ms, None);
    assert!((1..400).contains(&wave.left), "{wave:?}");
    assert!(totals.waiting > 0 && totals.lost == 0, "{totals:?}");
    assert_eq!(totals.sent, totals.delivered + totals.waiting);
    assert!(report.is_good());
}

#[test]
fn a_policy_that_defers_in_the_window_leaves_mail_with_its_senders() {
    let plan = instances(1) + &wave("w", 1, "05:10:00", "05:30:00");
    let config = config(&plan, "settings = { in_window = \"defer\" }");
    let span = span(60);
    let text = "{\"time\":700,\"instance\":\"i1\",\"recipient_domain\":\"a.example\",\"size\":9}\n\
                {\"time\":\"2026-01-20T05:50:00Z\",\"sender\":\"x@i1.example\",\"client\":\
                \"10.0.1.7\",\"recipient_domain\":\"a.example\",\"size\":9}\n";
    let traffic = trace(&config, span, text).unwrap();
    assert_eq!(traffic.instance_of(&traffic.letters[1]), Some(0));
    let report = rehearse(config, span, traffic, strength(500, 20));
    let totals = &report.totals;
    // At 700, 1000, 1300 and 1600 s it was deferred; at 1900 the window is over.
    assert_eq!((totals.sent, totals.delivered, totals.deferrals), (2, 2, 4));
    assert_eq!(report.waves[0].held.messages, 0);
    assert!(report.is_good());
}

#[test]
fn a_leak_a_loss_and_a_duplicate_are_found() {
    let plan = instances(1) + &wave("w", 1, "05:10:00", "05:30:00");
    let config = config(&plan, "");
    let span = span(60);
    let text = "time,instance,recipient_domain,size\n0,i1,a.example,1\n1,i1,a.example,1\n\
                2,i1,a.example,1\n";
    let traffic = Arc::new(trace(&config, span, text).unwrap());
    let story = |fates: Vec<Fate>, again| Story {
        plan: Arc::clone(&config.plan),
        span,
        traffic: Arc::clone(&traffic),
        strength: strength(1, 1),
        seed: 1,
        upstreams: vec!["legacy".into()],
        quota: 1 << 30,
        waves: vec![0],
        seen: vec![Seen { released: Some(30 * MINUTE), ..Seen::default() }],
        books: Books { fates, again, ..Books::default() },
    };
    let fate = |at: u64| Fate {
        taken: Some(at),
        arrived: Some(Arrival { at, upstream: 0 }),
        done: Some(at),
        ..Fate::default()
    };
    let (before, opens, closes) = (fate(10 * MINUTE - 1), fate(10 * MINUTE), fate(30 * MINUTE));
    let good = tell(story(vec![before.clone(), before.clone(), closes], Vec::new()));
    assert!(good.is_good() && good.totals.leaked == 0, "{good:?}");
    let leaky = tell(story(vec![before.clone(), opens, before.clone()], Vec::new()));
    assert!(!leaky.is_good());
    assert_eq!((leaky.totals.leaked, leaky.waves[0].leaked, leaky.leaked[0].message), (1, 1, 1));
    let lost = Fate { taken: Some(5), ..Fate::default() };
    let lossy = tell(story(vec![before.clone(), lost, before.clone()], Vec::new()));
    assert!(!lossy.is_good());
    assert_eq!((lossy.totals.lost, lossy.totals.waiting), (1, 0));
    let again = vec![(2, Arrival { at: 20 * MINUTE, upstream: 0 })];
    let double = tell(story(vec![before.clone(), before.clone(), before], again));
    assert!(!double.is_good());
    assert_eq!((double.totals.duplicated, double.totals.leaked), (1, 1), "the second is in it");
}

#[test]
fn wrong_lines_of_traces_are_named() {
    let config = config(&(instances(1) + &wave("w", 1, "06:00:00", "06:30:00")), "");
    let head = "time,instance,sender,client,recipient_domain,size\n";
    let long = format!("{head}1,i1,,,{},9\n", "a".repeat(9000));
    for (text, wanted) in [
        ("", "t.csv: has no messages"),
        ("time,instance,colour\n", "t.csv:1: \"colour\" is no column; the first line names"),
        ("time,time\n", "t.csv:1: the column \"time\" is there twice"),
        (&format!("{head}1,i1,,,a.example\n"), "t.csv:2: has 5 fields, not 6"),
        (&format!("{head}noon,i1,,,a.example,9\n"), "t.csv:2: time: \"noon\" is neither RFC 3339"),
        (&format!("{head}-1,i1,,,a.example,9\n"), "t.csv:2: time: -1 is no number of seconds"),
        (&format!("{head}NaN,i1,,,a.example,9\n"), "t.csv:2: time: NaN is no number of seconds"),
        (&format!("{head}1,i9,,,a.example,9\n"), "t.csv:2: instance: the plan has no \"i9\""),
        (&format!("{head}1,,,,a.example,9\n"), "t.csv:2: needs `instance`, or `sender` and"),
        (&format!("{head}1,i1,a@b.example,10.0.0.1,a.example,9\n"), "t.csv:2: needs `instance`"),
        (&format!("{head}1,,a@b.example,10.0.0.256,a.example,9\n"), "t.csv:2: client: \"10.0.0."),
        (&format!("{head}1,,a@,10.0.0.1,a.example,9\n"), "t.csv:2: sender: \"a@\": "),
        (&format!("{head}1,i1,,,\"x> SIZE=1\",9\n"), "t.csv:2: recipient_domain: "),
        (&format!("{head}1,i1,,,a.example,-9\n"), "t.csv:2: size: \"-9\" is no number"),
        (&format!("{head}1,i1,,,a.example,99999999999999\n"), "t.csv:2: size: 99999999999999 is"),
        (&format!("{head}1,i1,,,\"a.example,9\n"), "t.csv:2: a quote is not closed"),
        (&format!("{head}1,i1,,,\"a\"b,9\n"), "t.csv:2: something follows a closing quote"),
        (&long, "t.csv:2: is longer than 8192 bytes"),
        ("{\"time\":1}\n", "t.csv:1: has no `size`"),
        ("{\"time\":1,\"color\":2}\n", "t.csv:1: unknown field `color`"),
        ("{\"time\":{}}\n", "t.csv:1: "),
        ("{\n", "t.csv:1: EOF while parsing"),
        (
            &format!("{head}2020-01-01T00:00:00Z,i1,,,a.example,9\n"),
            "t.csv: all of its 1 messages are outside of 2026-01-20T05:00:00Z to",
        ),
    ] {
        let error = trace(&config, span(60), text).unwrap_err();
        assert!(error.starts_with(wanted), "{text:?}: {error}");
    }
    let not_text = [head.as_bytes(), b"1,i1,,,\xff,9\n"].concat();
    let error = read_trace(&config, span(60), "t", &not_text[..], 1).unwrap_err().to_string();
    assert_eq!(error, "t:2: is not UTF-8");
    // Good lines between wrong ones do not hide them, and floods are counted.
    let flood = head.to_owned() + &"x,i1,,,a.example,9\n1,i1,,,a.example,9\n".repeat(30);
    let error = trace(&config, span(60), &flood).unwrap_err();
    assert_eq!(error.lines().count(), 21);
    assert!(error.contains("t.csv:40: ") && error.ends_with("and 10 more wrong lines"), "{error}");
}

#[test]
fn a_trace_is_read_as_it_is_meant() {
    let config = config(&(instances(2) + &wave("w", 1, "06:00:00", "06:30:00")), "");
    let text = "\u{feff}size,\"recipient_domain\",client,sender,time\r\n\
                7,b.example,10.0.2.9,\"x@i2.example\",2026-01-20T06:00:01+01:00\r\n\r\n\
                8,b.example,10.9.9.9,<>,0.25\r\n9,b.example,10.0.1.1,y@i1.example,3600\r\n";
    let traffic = trace(&config, span(60), text).unwrap();
    let told: Vec<_> =
        traffic.letters.iter().map(|one| (one.at, one.size, traffic.instance_of(one))).collect();
    // The last is at the end, which is not in it.
    assert_eq!(told, [(250, 8, None), (1000, 7, Some(1))]);
    assert_eq!(traffic.notes.len(), 1, "{:?}", traffic.notes);
    assert_eq!(traffic.source(&traffic.letters[0]).sender, "");
}

#[test]
fn made_up_mail_is_its_instances_however_these_are_known() {
    let matchers = [
        "clients = [\"10.64.0.0/10\"]",
        "clients = [\"10.64.0.0/24\"]",
        "clients = [\"10.1.1.1\"], senders = [\"a.example\"]",
        "senders = [\".b.example\"]",
        "headers = { \"X-Instance\" = \"one\" }",
        "listeners = [\"listener-1\"], senders = [\"c.example\"]",
        // No client from there may relay.
        "clients = [\"192.0.2.0/24\"]",
    ];
    let mut plan = String::new();
    for (number, matcher) in matchers.iter().enumerate() {
        plan += &format!(
            "[[instance]]\nname = \"i{number}\"\nproduct = \"p\"\nenvironment = \"prod\"\n\
             match = {{ {matcher} }}\n"
        );
    }
    let config = config(&plan, "");
    for (index, matcher) in matchers.iter().enumerate().take(matchers.len() - 1) {
        let source = traffic::source_of(&config, index).unwrap();
        assert_eq!(traffic::attribute(&config.plan, &source), Some(index), "{matcher}");
    }
    assert_eq!(traffic::source_of(&config, matchers.len() - 1), None);
    let made = synthetic(&config, span(60), &[(0, 60 * MINUTE)], 1000, 1);
    assert_eq!((made.letters.len(), made.sources.len()), (1000, matchers.len() - 1));
    assert!(made.notes[0].starts_with("1 of the instances send nothing"), "{:?}", made.notes);
    assert!(made.letters.is_sorted_by_key(|one| one.at));
    assert!(made.letters.iter().all(|one| one.at < 60 * MINUTE));
}

#[test]
#[ignore = "takes half a minute"]
fn two_hundred_thousand_messages_and_a_hundred_waves() {
    let count = 200_000;
    let mut plan = instances(250);
    for number in 1..=100_u64 {
        // From 00:30 on, one every 13 minutes, 45 minutes each.
        let at = |minutes: u64| format!("{:02}:{:02}:00", minutes / 60, minutes % 60);
        let opens = 30 + number * 13;
        let number = usize::try_from(number).unwrap();
        plan += &wave(&format!("w{number}"), number, &at(opens), &at(opens + 45));
    }
    let config = config(&plan, "");
    let from = FROM.saturating_sub_ms(5 * 60 * MINUTE);
    let span = Span { from, to: from.saturating_add_ms(24 * 60 * MINUTE) };
    let traffic = synthetic(&config, span, &[(0, span.length_ms())], count, 1);
    #[allow(clippy::disallowed_methods, reason = "this is about the time that it really takes")]
    let begun = std::time::Instant::now();
    let report = rehearse(config, span, traffic, strength(500, 20));
    let took = begun.elapsed();
    #[allow(clippy::print_stdout, reason = "whoever runs it wants to know")]
    {
        println!("{count} messages, {} waves: {took:?}", report.waves.len());
    }
    assert!(report.is_good(), "{:?}", report.totals);
    assert_eq!((report.waves.len(), report.totals.delivered), (100, count));
    assert!(report.waves.iter().map(|wave| wave.held.messages).sum::<u64>() > 1000);
    assert!(
        report.waves.iter().all(|wave| wave.barrier_ms.is_some_and(|ms| ms < 60_000)),
        "in the lead"
    );
    assert!(took < Duration::from_secs(120), "{took:?}");
}
