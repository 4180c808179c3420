//! Mail servers of others under measurement: a configuration and a queue of their own, so that the
//! system's are not touched.
//!
//! Owns what each needs before it can be started. Exim and OpenSMTPD cannot be installed beside
//! Postfix: their Debian packages are unpacked, and `tests/bench/isolated` has only them see the
//! files. Floor: none.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{Group, User};

use super::peer::Waiting;
use super::process::Process;
use super::relay::Fill;

/// How long the packages of a peer may take to come.
const DOWNLOAD: Duration = Duration::from_secs(120);

/// What is started, and where its queue is.
type Ready = (Command, Option<Waiting>);

/// A configuration and queue of its own; the system's Postfix is not touched.
pub(super) fn postfix(fill: &Fill<'_>, dir: &Path) -> anyhow::Result<Ready> {
    postfix_with(fill, dir, ("postfix/main.cf", "postfix/master.cf"))
}

/// The same with other files as `main.cf` and `master.cf`.
pub(super) fn postfix_with(
    fill: &Fill<'_>,
    dir: &Path,
    (main, master): (&str, &str),
) -> anyhow::Result<Ready> {
    let user = User::from_name("postfix")?.context("there is no user postfix: is it installed?")?;
    let drop = Group::from_name("postdrop")?.context("there is no group postdrop")?;
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "Postfix's master needs root");
    let config = dir.join("config");
    let queue = dir.join("queue");
    fs::create_dir_all(&config)?;
    fill.copy(main, &config.join("main.cf"))?;
    fill.copy(master, &config.join("master.cf"))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let (uid, gid) = (user.uid.as_raw(), drop.gid.as_raw());
    let make = |path: PathBuf, mode, group: Option<u32>| -> anyhow::Result<()> {
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(chown(path, Some(uid), group)?)
    };
    make(dir.join("data"), 0o700, None)?;
    fs::create_dir_all(queue.join("pid"))?;
    let private = [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ];
    for name in private {
        make(queue.join(name), 0o700, None)?;
    }
    make(queue.join("maildrop"), 0o730, Some(gid))?;
    make(queue.join("public"), 0o710, Some(gid))?;
    let mut command = Command::new("/usr/lib/postfix/sbin/master");
    command.arg("-c").arg(config).arg("-d");
    let folders = ["maildrop", "incoming", "active"].iter().map(|name| queue.join(name)).collect();
    Ok((command, Some(Waiting { folders, failed: Some(queue.join("deferred")) })))
}

/// Exim, a process a message, which delivers as soon as it has taken it.
pub(super) fn exim(fill: &Fill<'_>, dir: &Path, state: &Path) -> anyhow::Result<Ready> {
    let isolated = Isolated::new("exim", fill, dir, state, &["exim4-daemon-light", "libidn12"])?;
    fs::create_dir_all(dir.join("etc/exim4"))?;
    fill.copy("exim/exim4.conf", &dir.join("etc/exim4/exim4.conf"))?;
    let spool = dir.join("spool/exim4");
    for name in ["input", "db", "msglog", "log"] {
        fs::create_dir_all(spool.join(name))?;
    }
    let user = isolated.user("Debian-exim")?;
    for path in ["", "input", "db", "msglog", "log"] {
        chown(spool.join(path), Some(user), Some(user))?;
    }
    let mut command = isolated.command("/usr/sbin/exim4");
    command.arg("-bdf");
    Ok((command, Some(Waiting { folders: vec![spool.join("input")], failed: None })))
}

/// OpenSMTPD, which makes its queue itself.
pub(super) fn opensmtpd(fill: &Fill<'_>, dir: &Path, state: &Path) -> anyhow::Result<Ready> {
    let isolated = Isolated::new("opensmtpd", fill, dir, state, &["opensmtpd"])?;
    fill.copy("opensmtpd/smtpd.conf", &dir.join("etc/smtpd.conf"))?;
    let mut command = isolated.command("/usr/sbin/smtpd");
    command.arg("-F");
    let queue = dir.join("spool/smtpd");
    let folders = ["incoming", "queue"].map(|name| queue.join(name)).to_vec();
    Ok((command, Some(Waiting { folders, failed: None })))
}

/// A peer that runs from unpacked packages.
struct Isolated {
    script: PathBuf,
    files: PathBuf,
    dir: PathBuf,
}

impl Isolated {
    /// Lays out `dir` for `tests/bench/isolated`, with the users of `name`; the packages are unpacked
    /// in `state` once.
    fn new(
        name: &str,
        fill: &Fill<'_>,
        dir: &Path,
        state: &Path,
        packages: &[&str],
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(nix::unistd::geteuid().is_root(), "{name} needs root");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        for folder in ["etc", "spool"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        for file in ["passwd", "group"] {
            fill.copy(&format!("{name}/{file}"), &dir.join(file))?;
        }
        let files = state.join("packages").join(name);
        if !files.is_dir() {
            unpack(packages, &files)?;
        }
        let script = fs::canonicalize(fill.source("isolated"))?;
        Ok(Self { script, files, dir: dir.to_owned() })
    }

    /// The number of a user, who does not exist beyond the peer's own view.
    fn user(&self, name: &str) -> anyhow::Result<u32> {
        let users = fs::read_to_string(self.dir.join("passwd"))?;
        let line = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":x:"));
        let number = line.and_then(|line| line.split(':').next()?.parse().ok());
        number.with_context(|| format!("passwd has no {name}"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(&self.files).arg(&self.dir).arg(program);
        command
    }
}

/// Fetches Debian packages and unpacks them into `files`, which is there if all of it went well.
fn unpack(packages: &[&str], files: &Path) -> anyhow::Result<()> {
    let beside = files.with_extension("part");
    fs::create_dir_all(beside.join("files"))?;
    let mut download = Command::new("apt-get");
    // It would drop its rights and then not be able to write here.
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(packages);
    download.current_dir(&beside);
    run(download, &beside)?;
    for entry in fs::read_dir(&beside)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(path).arg(beside.join("files"));
            run(unpack, &beside)?;
        }
    }
    // Whoever runs from them is not root all the time.
    for folder in files.ancestors().skip(1).take(2).chain([&*beside]) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(fs::rename(beside.join("files"), files)?)
}

fn run(command: Command, folder: &Path) -> anyhow::Result<()> {
    let mut process = Process::start(command, folder)?;
    let status = process.wait(DOWNLOAD)?;
    anyhow::ensure!(status.success(), "the package cannot be had: {status}; {}", process.output());
    Ok(())
}
