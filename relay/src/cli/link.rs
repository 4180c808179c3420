//! `wavegate link`: links between an edge and a gateway, and what they need. Floor 4.

mod ping;
mod status;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Subcommand;

use super::{Failed, exit};
use crate::tls::link::pin_of_file;

#[derive(Debug, Subcommand)]
pub(super) enum LinkCommand {
    /// Say how the links of a running relay fare, to gateways and of edges.
    Status(status::StatusArgs),
    /// Ask whether the gateways of a link are there, and how far away they are.
    Ping(ping::PingArgs),
    /// Print the pin of a certificate's key, for `pins` of the other side.
    Pin {
        /// The certificate in PEM; of several the first.
        #[arg(value_name = "CERTIFICATE")]
        certificate: PathBuf,
    },
}

pub(super) fn link(command: &LinkCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        LinkCommand::Status(args) => status::status(args, out),
        LinkCommand::Ping(args) => ping::ping(args, out),
        LinkCommand::Pin { certificate } => pin(certificate, out),
    }
}

fn pin(certificate: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let pin = pin_of_file(certificate).map_err(|found| {
        let code = if certificate.is_file() { exit::DATA } else { exit::NO_INPUT };
        Failed::new(code, found.to_string())
    })?;
    writeln!(out, "{pin}")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn pin(file: &str) -> Result<String, u8> {
        let certificate =
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/link")).join(file);
        let mut out = Vec::new();
        match link(&LinkCommand::Pin { certificate }, &mut out) {
            Ok(_) => Ok(String::from_utf8(out).unwrap()),
            Err(error) => Err(error.downcast::<Failed>().unwrap().code),
        }
    }

    #[test]
    fn a_certificate_has_a_pin_and_nothing_else_has() {
        let line = "sha256/iLuHA7OtNJm9ILHZjfXJ+AIqsVxkh78AfSxyiMTCU6s=\n";
        assert_eq!(pin("edge.pem").unwrap(), line);
        assert_eq!(pin("edge.key"), Err(exit::DATA));
        assert_eq!(pin("crl.pem"), Err(exit::DATA));
        assert_eq!(pin("none.pem"), Err(exit::NO_INPUT));
    }
}
