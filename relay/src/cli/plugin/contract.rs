//! `wavegate plugin contract`: what plugins are written for. Floor 4.

use std::io::Write;

use clap::Args;

use crate::policy::reference;

#[derive(Debug, Args)]
pub(in crate::cli) struct ContractArgs {
    /// The reference, with all that the contract itself does not say: limits, failures, versions.
    #[arg(long)]
    markdown: bool,
}

/// Prints the contract, or its reference.
pub(super) fn contract(args: &ContractArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let text = if args.markdown { reference::markdown() } else { reference::CONTRACT.to_owned() };
    out.write_all(text.as_bytes())?;
    Ok(0)
}
