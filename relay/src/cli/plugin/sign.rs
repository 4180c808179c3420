//! `wavegate plugin sign`: writes the signature of a plugin beside it. Floor 4.

use std::{
    io::{Read as _, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use ct_codecs::{Base64, Decoder as _};
use minisign::{PublicKey, SecretKey, SecretKeyBox};
use zeroize::Zeroizing;

use super::{
    super::{Failed, exit, output::field},
    password, read,
};
use crate::{
    config::signature_of,
    policy::signature::key_id,
    world::{SystemClock, WallClock as _},
};

/// Bytes of a secret key, and of the checksum at its end.
const SECRET_KEY: usize = 158;
const CHECKSUM: usize = 32;
/// Bytes of a secret key's file.
const SECRET_KEY_MAX: u64 = 4096;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct SignArgs {
    /// The secret key: of `wavegate plugin keygen`, or of minisign.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Its password, as the only line of a file; by default it is asked for where there is one.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where to write the signature; by default FILE.wasm.minisig, where it is looked for.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The plugin.
    #[arg(value_name = "FILE.wasm")]
    plugin: PathBuf,
}

pub(super) fn sign(args: &SignArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let wasm = read(&args.plugin)?;
    if !wasm.starts_with(b"\0asm") {
        let text = format!("{} is no WebAssembly: name a component", args.plugin.display());
        return Err(Failed::new(exit::DATA, text).into());
    }
    let key = secret_key(&args.key, args.password_file.as_ref())?;
    let digest = blake3::hash(&wasm).to_hex();
    let failed = |error: minisign::PError| Failed::new(exit::SOFTWARE, error.to_string());
    let public = PublicKey::from_secret_key(&key).map_err(failed)?;
    let id = key_id(public.keynum());
    let comment = format!(
        "timestamp:{}\tfile:{}\thashed\tblake3:{digest}",
        SystemClock.now().0 / 1000,
        plain_name(&args.plugin)
    );
    let untrusted = format!("signature of a wavegate plugin by the key {id}");
    let made = minisign::sign(Some(&public), &key, &wasm[..], Some(&comment), Some(&untrusted));
    let signature = made.map_err(failed)?;
    let path = args.out.clone().unwrap_or_else(|| signature_of(&args.plugin));
    write(&path, signature.to_string().as_bytes())?;
    field(out, "signature", path.display())?;
    field(out, "key", id)?;
    field(out, "digest", digest)?;
    Ok(0)
}

/// The name of a file, as one line of text.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_default().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Reads a secret key; one that is not encrypted needs no password.
fn secret_key(path: &Path, password_file: Option<&PathBuf>) -> Result<SecretKey, Failed> {
    let shown = path.display();
    let unreadable = |error| Failed::new(exit::NO_INPUT, format!("cannot read {shown}: {error}"));
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(SECRET_KEY_MAX).read_to_string(&mut text).map_err(unreadable)?;
    if let Some(key) = unencrypted(&text) {
        return Ok(key);
    }
    let boxed = || SecretKeyBox::from(text.to_string());
    let wrong = |error: minisign::PError| {
        let text = format!(
            "{shown} cannot be used ({error}): is it a secret key of minisign, and the password \
             its own?"
        );
        Failed::new(exit::DATA, text)
    };
    // Nobody is asked for the password of what is no key.
    if !text.lines().nth(1).is_some_and(|line| line.starts_with("RW")) {
        let text = format!("{shown} is no secret key of minisign");
        return Err(Failed::new(exit::DATA, text));
    }
    let password = password::of(password_file, false)?;
    boxed().into_secret_key(Some(password.to_string())).map_err(wrong)
}

/// A secret key that nobody encrypted.
fn unencrypted(text: &str) -> Option<SecretKey> {
    if let Ok(key) = SecretKeyBox::from(text.to_owned()).into_unencrypted_secret_key() {
        return Some(key);
    }
    // minisign writes no checksum into those that it makes. That the two halves belong together is
    // seen when a signature is made: it is verified.
    let line = text.lines().nth(1)?.trim();
    let bytes = Zeroizing::new(Base64::decode_to_vec(line, None).ok()?);
    let is_plain = bytes.len() == SECRET_KEY && bytes.starts_with(b"Ed\0\0");
    let has_no_checksum = bytes.ends_with(&[0; CHECKSUM]);
    (is_plain && has_no_checksum).then(|| SecretKey::from_bytes(&bytes).ok())?
}

/// Writes a file whole, or leaves what was there.
fn write(path: &Path, content: &[u8]) -> Result<(), Failed> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
        file.write_all(content)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|error| Failed::new(exit::IO, format!("{}: {error}", path.display())))
}
