//! Servers of others with a configuration of their own: Postfix and HAProxy.
//!
//! Owns starting and ending them; what is asked of them is the tests'. The system's own are not touched.
//! Floor: none.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Group, Pid, User};

use super::{TLS_FILES, until};

/// Where Debian has Postfix's daemons.
const MASTER: &str = "/usr/lib/postfix/sbin/master";

/// A port that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A Postfix of its own: queue, configuration, log; the system's is not touched.
pub struct Postfix {
    master: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    folder: tempfile::TempDir,
}

impl Postfix {
    /// Starts one; all that it takes goes to `transport`.
    pub fn start(transport: &str) -> Self {
        Self::start_with(transport, "")
    }

    /// The same with more lines of configuration; `@TLS@` in them is the folder of certificates.
    pub fn start_with(transport: &str, lines: &str) -> Self {
        let user = User::from_name("postfix").unwrap().expect("a user postfix");
        let drop = Group::from_name("postdrop").unwrap().expect("a group postdrop");
        let folder = tempfile::Builder::new().prefix("wavegate-postfix-").tempdir().unwrap();
        let dir = folder.path();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let addr = free();
        fs::create_dir(dir.join("config")).unwrap();
        fs::create_dir(dir.join("tls")).unwrap();
        for (name, bytes) in TLS_FILES {
            fs::write(dir.join("tls").join(name), bytes).unwrap();
        }
        let main = include_str!("../../tests/postfix/main.cf").to_owned() + lines;
        for (name, text) in
            [("main.cf", &*main), ("master.cf", include_str!("../../tests/postfix/master.cf"))]
        {
            let text = text
                .replace("@TLS@", "@DIR@/tls")
                .replace("@DIR@", dir.to_str().unwrap())
                .replace("@LISTEN@", &addr.port().to_string())
                .replace("@TRANSPORT@", transport);
            fs::write(dir.join("config").join(name), text).unwrap();
        }
        let (uid, gid) = (user.uid.as_raw(), drop.gid.as_raw());
        let make = |name: &str, mode: u32, group: Option<u32>| {
            let path = dir.join(name);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            chown(&path, Some(uid), group).unwrap();
        };
        make("data", 0o700, None);
        make("log", 0o755, None);
        fs::create_dir_all(dir.join("queue/pid")).unwrap();
        for name in [
            "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming",
            "private", "saved", "trace",
        ] {
            make(&format!("queue/{name}"), 0o700, None);
        }
        make("queue/maildrop", 0o730, Some(gid));
        make("queue/public", 0o710, Some(gid));
        let output = File::create(dir.join("output")).unwrap();
        let mut master = Command::new(MASTER)
            .arg("-c")
            .arg(dir.join("config"))
            .arg("-d")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        until("Postfix greets", || {
            if let Some(status) = master.try_wait().unwrap() {
                let said = fs::read_to_string(dir.join("output")).unwrap();
                panic!("Postfix ended: {status}: {said}");
            }
            TcpStream::connect(addr).is_ok().then_some(())
        });
        Self { master, addr, folder }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log/mail.log")).unwrap_or_default()
    }

    /// Messages in its queue.
    pub fn queued(&self) -> usize {
        fn files(folder: &Path) -> usize {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|one| if one.path().is_dir() { files(&one.path()) } else { 1 }).sum()
        }
        let queue = self.folder.path().join("queue");
        ["maildrop", "incoming", "active", "deferred"]
            .iter()
            .map(|one| files(&queue.join(one)))
            .sum()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // The master ends its children when it is told to end, not when it is killed.
        let _ended_already =
            kill(Pid::from_raw(i32::try_from(self.master.id()).unwrap()), Signal::SIGTERM);
        let _reaped = self.master.wait();
        if std::thread::panicking() {
            #[allow(clippy::print_stderr, reason = "the test runner shows it with the failure")]
            {
                eprintln!("Postfix's log:\n{}", self.log());
            }
        }
    }
}

/// An HAProxy in front of one server.
pub struct Haproxy {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Haproxy {
    /// Starts one, with options of its side toward clients and of that toward the server.
    pub fn start(program: &Path, server: SocketAddr, bind: &str, options: &str) -> Self {
        let addr = free();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("haproxy.cfg");
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen smtp\n bind {addr} {bind}\n server next {server} {options}\n"
        );
        fs::write(&file, text).unwrap();
        let child = Command::new(program)
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("HAProxy listens", || TcpStream::connect(addr).ok());
        Self { child, addr, _folder: folder }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
