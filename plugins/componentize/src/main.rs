//! `componentize MODULE COMPONENT`: makes a component of a core module that was built with
//! `wavegate-policy`, and refuses one that imports anything but the policy contract.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use wit_component::{ComponentEncoder, DecodedWasm};

/// What a policy may import; `types` has no functions.
const ALLOWED: [&str; 4] = [
    "wavegate:policy/types@1.0.0",
    "wavegate:policy/log@1.0.0",
    "wavegate:policy/metrics@1.0.0",
    "wavegate:policy/tables@1.0.0",
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match arguments.as_slice() {
        [module, component] => componentize(Path::new(module), Path::new(component)),
        _ => Err(anyhow::anyhow!("usage: componentize MODULE COMPONENT")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "a command line tool reports there")]
            {
                eprintln!("componentize: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn componentize(module: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(module).with_context(|| format!("read {}", module.display()))?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|encoder| encoder.encode())
        .with_context(|| format!("make a component of {}", module.display()))?;
    check(&component).with_context(|| format!("{}", module.display()))?;
    std::fs::write(to, component).with_context(|| format!("write {}", to.display()))
}

/// Refuses a component that the relay would refuse.
fn check(component: &[u8]) -> anyhow::Result<()> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else {
        bail!("is no component");
    };
    let world = &resolve.worlds[world];
    for key in world.imports.keys() {
        let name = resolve.name_world_key(key);
        ensure!(ALLOWED.contains(&name.as_str()), "imports {name}, which is not in the contract");
    }
    let exports: Vec<_> = world.exports.keys().map(|key| resolve.name_world_key(key)).collect();
    ensure!(
        exports.iter().any(|name| name == "wavegate:policy/lifecycle@1.0.0"),
        "does not export lifecycle; it exports {exports:?}"
    );
    ensure!(exports.len() > 1, "exports no hook");
    Ok(())
}
