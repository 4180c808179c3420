//! A policy that misbehaves on request. `{"do": "NAME"}` in its settings picks how; without it,
//! it answers properly: `proceed`, the first upstream, one rate. What it does before it has
//! settings is picked by a mark in its data, which a test writes over.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

wit_bindgen::generate!({
    path: "../../../wit/0.1.0",
    world: "policy",
});

use exports::wavegate::policy::{
    freeze::{self, Hold},
    lifecycle::{self, Description, Diagnostic, Needs},
    routing::{self, Share, Target},
    throttling::{
        self, Attempt, ConcurrencyLimit, Lesson, LimitSet, Outcome, Pause, RateLimit, Slow,
    },
};
use wavegate::policy::{
    log, metrics, tables,
    types::{Reply, Transaction},
};

/// `describe` has no settings: what it does is what stands behind the equals sign.
static DESCRIBE: [u8; 24] = *b"hostile-describe=answers";

struct Hostile;
export!(Hostile);

thread_local! {
    static SETTINGS: RefCell<(String, String)> = RefCell::default();
}

/// What no pure policy has.
static CALLS: AtomicU64 = AtomicU64::new(0);

fn told(name: &str) -> bool {
    SETTINGS.with_borrow(|(settings, _)| settings.contains(&format!("\"{name}\"")))
}

fn upstream() -> String {
    SETTINGS.with_borrow(|(_, upstream)| upstream.clone())
}

impl lifecycle::Guest for Hostile {
    fn describe() -> Description {
        // Read as a test has left it, not as the compiler has seen it.
        match unsafe { std::ptr::read_volatile(&DESCRIBE) }[17..] {
            [b't', b'r', b'a', b'p', ..] => trap(),
            [b'l', b'o', b'o', b'p', ..] => spin(),
            _ => {}
        }
        Description {
            name: "hostile".into(),
            version: "1.0.0".into(),
            settings_schema: "{}".into(),
            metrics: vec!["seen_total".into()],
        }
    }

    fn configure(settings: String, upstreams: Vec<String>) -> Result<Needs, Vec<Diagnostic>> {
        let upstream = upstreams.first().cloned().unwrap_or_default();
        SETTINGS.set((settings, upstream));
        if told("diagnostics") {
            let wrong = |path: &str, message: &str| Diagnostic {
                path: path.into(),
                message: message.into(),
            };
            return Err(vec![
                wrong("limits[0].rate", "is not a rate"),
                wrong("", "something\r\nelse"),
            ]);
        }
        if told("no-reason") {
            return Err(Vec::new());
        }
        misbehave("configure");
        let mut attributes = vec!["helo".to_owned(), "header:Subject".into(), "helo".into()];
        if told("many-attributes") {
            attributes = (0..17).map(|header| format!("header:x-{header}")).collect();
        }
        if told("strange-attribute") {
            attributes = vec!["favourite-colour".into()];
        }
        Ok(Needs { attributes, outcomes: true })
    }
}

impl freeze::Guest for Hostile {
    fn decide(tx: Transaction) -> freeze::Decision {
        let calls = CALLS.fetch_add(1, Relaxed);
        let hold = |reason: String| freeze::Decision::Hold(Hold { until: None, reason });
        let reply = |code, enhanced: &str, text: &str| Reply {
            code,
            enhanced: enhanced.into(),
            text: text.into(),
        };
        if told("loop") {
            spin();
        }
        if told("trap") || (told("trap-on-poison") && tx.sender.contains("poison")) {
            trap();
        }
        if told("allocate") {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 20]);
                std::hint::black_box(&hoard);
            }
        }
        misbehave("decide");
        if told("fill") {
            let mut memory = vec![0u8; 8 << 20];
            let mut turn = 0u8;
            loop {
                // One instruction, `memory.fill`, as often as there is time.
                memory.fill(turn);
                std::hint::black_box(&memory);
                turn = turn.wrapping_add(1);
            }
        }
        if told("loop-on-poison") && tx.sender.contains("poison") {
            spin();
        }
        if told("gigabyte") {
            // In memory that is really there, if it has so much.
            return hold(String::from_utf8(vec![0; 1 << 30]).unwrap_or_default());
        }
        if told("gigabyte-lie") {
            // Of which not a byte is there.
            return hold(unsafe { String::from_raw_parts(8 as *mut u8, 1 << 30, 1 << 30) });
        }
        if told("recurse") {
            return hold(recurse(tx.size + 1).to_string());
        }
        if told("huge") {
            return hold("x".repeat(8 << 20));
        }
        if told("impure") {
            return hold(format!("call {calls}"));
        }
        if told("echo") {
            return hold(format!("{tx:?}").replace(['{', '}'], "|"));
        }
        if told("control") {
            return hold("one\r\n250 two\u{202e}\u{1b}[31m".into());
        }
        if told("long-reason") {
            return hold("\u{e9}".repeat(1000));
        }
        if told("defer") {
            return freeze::Decision::Defer(reply(451, "4.7.1", "come back later"));
        }
        if told("refuse") {
            return freeze::Decision::Refuse(reply(550, "5.7.1", "never"));
        }
        if told("reply-class") {
            return freeze::Decision::Defer(reply(550, "5.7.1", "never"));
        }
        if told("reply-421") {
            return freeze::Decision::Defer(reply(421, "4.7.1", "bye"));
        }
        if told("reply-250") {
            return freeze::Decision::Refuse(reply(250, "2.0.0", "taken"));
        }
        if told("reply-enhanced") {
            return freeze::Decision::Refuse(reply(550, "4.7.1", "never"));
        }
        if told("reply-form") {
            return freeze::Decision::Refuse(reply(550, "5.7.1 250", "never"));
        }
        if told("reply-text") {
            return freeze::Decision::Refuse(reply(550, "5.7.1", "never\r\n250 taken"));
        }
        if told("reply-long") {
            return freeze::Decision::Refuse(reply(550, "5.7.1", &"x".repeat(401)));
        }
        if told("chatter") {
            for line in 0..100 {
                log::log(log::Level::Info, &format!("line {line}\r\nforged"));
            }
            log::log(log::Level::Info, &"x".repeat(2000));
            metrics::add("seen_total", 3);
            metrics::add("undeclared_total", 1);
        }
        if told("table") {
            let found = tables::lookup("colours", &tx.sender);
            return hold(found.unwrap_or_else(|| "nothing".into()));
        }
        freeze::Decision::Proceed
    }
}

impl routing::Guest for Hostile {
    fn route(tx: Transaction) -> routing::Decision {
        let to = |upstream: &str| Target { upstream: upstream.into(), fallbacks: Vec::new() };
        let share =
            |recipients: &[u32]| Share { recipients: recipients.into(), target: to(&upstream()) };
        let all: Vec<u32> = (0..).take(tx.recipients.len()).collect();
        misbehave("route");
        if told("ten-million") {
            let recipients = vec![0; 10_000_000];
            return routing::Decision::Split(vec![Share { recipients, target: to(&upstream()) }]);
        }
        if told("abstain") {
            return routing::Decision::Abstain;
        }
        if told("split") {
            return routing::Decision::Split(all.iter().map(|&one| share(&[one])).collect());
        }
        if told("split-missing") {
            return routing::Decision::Split(vec![share(&all[1..])]);
        }
        if told("split-double") {
            return routing::Decision::Split(vec![share(&all), share(&[0])]);
        }
        if told("split-beyond") {
            return routing::Decision::Split(vec![share(&all), share(&[u32::MAX])]);
        }
        if told("split-empty") {
            return routing::Decision::Split(vec![share(&all), share(&[])]);
        }
        if told("unknown-upstream") {
            return routing::Decision::All(to("nowhere"));
        }
        if told("fallbacks") {
            let fallbacks = vec![upstream(); 9];
            return routing::Decision::All(Target { upstream: upstream(), fallbacks });
        }
        routing::Decision::All(to(&upstream()))
    }
}

impl throttling::Guest for Hostile {
    fn limits(attempt: Attempt) -> LimitSet {
        misbehave("limits");
        if told("ten-million") {
            // None of them is there.
            let rates = unsafe { Vec::from_raw_parts(8 as *mut RateLimit, 10_000_000, 10_000_000) };
            return LimitSet { rates, concurrency: Vec::new() };
        }
        if told("no-limits") {
            return LimitSet { rates: Vec::new(), concurrency: Vec::new() };
        }
        let rate =
            |key: String, cost| RateLimit { key, quantity: 10, per_ms: 1000, burst: 5, cost };
        let cap = |limit| ConcurrencyLimit { key: attempt.upstream.clone(), limit };
        let rates = |rates| LimitSet { rates, concurrency: Vec::new() };
        if told("many-rates") {
            return rates((0..65).map(|key| rate(key.to_string(), 1)).collect());
        }
        if told("cost") {
            return rates(vec![rate("key".into(), 6)]);
        }
        if told("no-cost") {
            return rates(vec![rate("key".into(), 0)]);
        }
        if told("no-period") {
            return rates(vec![RateLimit { per_ms: 0, ..rate("key".into(), 1) }]);
        }
        if told("long-key") {
            return rates(vec![rate("k".repeat(257), 1)]);
        }
        if told("many-caps") {
            return LimitSet { rates: Vec::new(), concurrency: vec![cap(1); 17] };
        }
        if told("no-cap") {
            return LimitSet { rates: Vec::new(), concurrency: vec![cap(0)] };
        }
        let key = format!("{}/{}", attempt.upstream, attempt.transaction.recipients.len());
        LimitSet { rates: vec![rate(key, 1)], concurrency: vec![cap(3)] }
    }

    fn observe(outcome: Outcome) -> Vec<Lesson> {
        misbehave("observe");
        if told("ten-million") {
            return unsafe { Vec::from_raw_parts(8 as *mut Lesson, 10_000_000, 10_000_000) };
        }
        let until = outcome.now + 1000;
        if told("many-lessons") {
            return (0..17)
                .map(|key| Lesson::Pause(Pause { key: key.to_string(), until }))
                .collect();
        }
        if told("faster") {
            return vec![Lesson::Slow(Slow { key: "k".into(), factor: 999, until })];
        }
        let pause = |key: &String| Lesson::Pause(Pause { key: key.clone(), until });
        outcome.keys.iter().map(pause).collect()
    }
}

/// What can be told to each hook: to trap, to loop, to take longer than others.
fn misbehave(hook: &str) {
    if told(&format!("{hook}-trap")) {
        trap();
    }
    if told(&format!("{hook}-loop")) {
        spin();
    }
    if told(&format!("{hook}-slow")) {
        // Some ten milliseconds.
        for turn in 0..20_000_000u32 {
            std::hint::black_box(turn);
        }
    }
}

fn spin() -> ! {
    let mut turns = 0u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

/// Never ends, and is no loop that a compiler could make of it.
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 32]);
    recurse(frame[0] + 1) + frame[31]
}
