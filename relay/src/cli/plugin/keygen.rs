//! `wavegate plugin keygen`: a pair of keys in the form of minisign. Floor 4.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use minisign::KeyPair;

use super::{
    super::{Failed, exit, output::field},
    password,
};
use crate::policy::signature::{key_files, key_id};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct KeygenArgs {
    /// Where: PATH.key is the secret key, PATH.pub the public one.
    #[arg(value_name = "PATH", default_value = "plugin")]
    prefix: PathBuf,
    /// The password that encrypts the secret key, as the only line of a file; by default it is
    /// asked for.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Leave the secret key unencrypted: whoever can read it can sign.
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
}

pub(super) fn keygen(args: &KeygenArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let (secret_file, public_file) = key_files(&args.prefix);
    // Before a password is asked for; what is there may be the only copy of a key.
    for file in [&secret_file, &public_file] {
        if std::fs::symlink_metadata(file).is_ok() {
            let text = format!("{} is there already: choose another PATH", file.display());
            return Err(Failed::new(exit::USAGE, text).into());
        }
    }
    let failed = |error: minisign::PError| Failed::new(exit::OS, error.to_string());
    let pair = match args.no_password {
        true => KeyPair::generate_unencrypted_keypair(),
        false => {
            let password = password::of(args.password_file.as_ref(), true)?;
            KeyPair::generate_encrypted_keypair(Some(password.to_string()))
        }
    };
    let pair = pair.map_err(failed)?;
    let id = key_id(pair.pk.keynum());
    let comment = format!("wavegate secret key {id}");
    let secret = pair.sk.to_box(Some(&comment)).map_err(failed)?;
    let public = pair.pk.to_box().map_err(failed)?;
    write(&secret_file, 0o600, secret.to_string().as_bytes())?;
    write(&public_file, 0o644, public.to_string().as_bytes())?;
    field(out, "secret key", secret_file.display())?;
    field(out, "public key", public_file.display())?;
    field(out, "id", id)?;
    writeln!(out, "\nRelays trust it by these lines of their configuration:\n")?;
    let name = args.prefix.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let name = name.unwrap_or_else(|| "plugins".to_owned());
    let key = pair.pk.to_base64();
    writeln!(out, "[plugins]\ntrusted_keys = {{ {name} = \"{key}\" }}\nrequire_signatures = true")?;
    Ok(0)
}

/// Writes a file that was not there.
fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), Failed> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| Failed::new(exit::IO, format!("{}: {error}", path.display())))
}
