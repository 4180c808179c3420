//! A policy for wasm32-wasip2 that asks its standard library for what a policy must not have. It does
//! what its settings say: `{ "do": "look" }`.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wavegate_policy::Policy;
use wavegate_policy::freeze::{self, Decision, Hold};
use wavegate_policy::settings::Table;
use wavegate_policy::types::Transaction;

struct Wasi {
    told: String,
}

wavegate_policy::export!(Wasi: freeze);

impl Policy for Wasi {
    const NAME: &'static str = "wasi";
    const VERSION: &'static str = "1.0.0";
    const SETTINGS_SCHEMA: &'static str = "{}";

    fn configure(settings: &Table<'_>, _upstreams: &[String]) -> Self {
        let told = settings.get("do").and_then(|field| field.text()).unwrap_or_default();
        Wasi { told: told.to_owned() }
    }
}

impl freeze::Policy for Wasi {
    fn decide(&self, message: &Transaction) -> Decision {
        let reason = match self.told.as_str() {
            "look" => look(),
            "write" => write(),
            "exit" => std::process::exit(3),
            "panic" => panic!("on request"),
            "handles" => handles(),
            "random" => random(),
            _ => return Decision::Proceed,
        };
        Decision::Hold(Hold { until: None, reason: format!("{} {reason}", message.id) })
    }
}

/// All that the standard library can see of a machine.
fn look() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::MAX);
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(3600));
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    let seeded: HashMap<u32, u32> = (0..100).map(|number| (number, number)).collect();
    format!(
        "variables {}, arguments {}, time {}, slept {}, input {:?}, file {}, written {}, made {}, map {}",
        std::env::vars().count(),
        std::env::args().count(),
        since.as_millis(),
        begun.elapsed().as_millis(),
        read.ok(),
        std::fs::read("/etc/passwd").is_ok(),
        std::fs::write("/tmp/wavegate", "x").is_ok(),
        std::fs::create_dir("wavegate").is_ok(),
        seeded.values().sum::<u32>(),
    )
}

fn write() -> String {
    println!("to the output");
    eprintln!("to the errors");
    "written".to_owned()
}

/// Handles that are never given back.
fn handles() -> String {
    for _ in 0..100_000 {
        std::mem::forget(wasip2::clocks::monotonic_clock::subscribe_duration(0));
    }
    "held".to_owned()
}

/// The same bytes each time, and more than anybody needs.
fn random() -> String {
    let some = wasip2::random::random::get_random_bytes(16);
    let again = wasip2::random::random::get_random_bytes(16);
    assert_eq!(some, again);
    let all = wasip2::random::random::get_random_bytes(u64::MAX);
    format!("{} bytes", all.len())
}
