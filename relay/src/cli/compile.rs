//! `wavegate compile-plugin`: what the relay calls itself with, see `policy/apart.rs`. Floor 4.

use std::io::{self, Write};

use clap::Args;

use super::{Failed, exit};
use crate::policy::{Metering, compile_here};

#[derive(Debug, Args)]
pub(super) struct CompileArgs {
    /// What is to bound its calls: epochs or fuel.
    #[arg(long, value_parser = metering)]
    metering: Metering,
    /// Threads that compile.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

pub(super) fn compile(args: &CompileArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    match compile_here(args.metering, args.threads, &mut io::stdin().lock(), out) {
        Ok(Ok(())) => Ok(0),
        Ok(Err((code, reason))) => {
            // Not as an error of the program is told: the relay reads it.
            writeln!(io::stderr(), "{reason}")?;
            Ok(code)
        }
        Err(error) => Err(Failed::new(exit::OS, error.to_string()).into()),
    }
}

fn metering(word: &str) -> Result<Metering, String> {
    let all = [Metering::Epochs, Metering::Fuel];
    let found = all.into_iter().find(|metering| metering.as_str() == word);
    found.ok_or_else(|| "epochs or fuel".to_owned())
}
