//! `cargo test` builds the plugin and runs its cases, as the relay would ask it. Where `wavegate` is
//! not in the path, the variable `WAVEGATE` says where it is.

use std::process::Command;

#[test]
fn cases() {
    let plugin = concat!(env!("CARGO_PKG_NAME"), ".wasm");
    wavegate(&["plugin", "build"]);
    wavegate(&["plugin", "test", plugin, "--cases", "cases"]);
}

fn wavegate(arguments: &[&str]) {
    let program = std::env::var_os("WAVEGATE").unwrap_or_else(|| "wavegate".into());
    let mut command = Command::new(&program);
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = command.status().unwrap_or_else(|error| panic!("{program:?}: {error}"));
    assert!(status.success(), "wavegate {}: {status}", arguments.join(" "));
}
