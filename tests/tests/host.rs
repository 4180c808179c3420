//! The relay as a service: what it tells the service manager, the watchdog, sockets that were
//! there before it, and its units.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use tempfile::TempDir;
use wavegate_tests::{
    harness::{Client, Config, PATIENCE, binary, recording, until},
    tool,
};

/// A relay as a service manager starts it, and what it is told.
struct Service {
    child: Child,
    folder: TempDir,
    told: UnixDatagram,
}

/// What a service manager hands over.
#[derive(Default)]
struct Given<'a> {
    watchdog: Option<Duration>,
    /// Sockets by name.
    sockets: &'a [(&'a str, BorrowedFd<'a>)],
    /// Whether its standard error is said to be the journal.
    journal: bool,
}

impl Service {
    fn start(config: &str, given: &Given<'_>) -> Self {
        let folder = tempfile::Builder::new().prefix("wavegate-test-").tempdir().unwrap();
        fs::write(folder.path().join("relay.toml"), config).unwrap();
        let told = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = spawn(folder.path(), given);
        Self { child, folder, told }
    }

    /// The next process in the same folder, after the last one has ended.
    fn again(&mut self, given: &Given<'_>) {
        let _ended_already = self.child.kill();
        self.child.wait().unwrap();
        self.child = spawn(self.folder.path(), given);
    }

    /// What it says next, without what says only how things are.
    fn next(&self) -> String {
        loop {
            let heard = self.hear();
            if heard != "WATCHDOG=1\n" && !heard.starts_with("STATUS=") {
                return heard;
            }
        }
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.told.recv(&mut buffer).expect("the service manager is told");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Forgets what it has said until now.
    fn forget(&self) {
        self.told.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while self.told.recv(&mut buffer).is_ok() {}
        self.told.set_nonblocking(false).unwrap();
    }

    fn ready(&self) {
        let heard = self.next();
        assert!(heard.starts_with("READY=1\nSTATUS=taking mail"), "{heard}\n{}", self.log());
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn ended(&mut self) -> ExitStatus {
        until("the relay's end", || self.child.try_wait().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Where a listener is, from the log of the process that runs now.
    fn listener(&self, name: &str) -> SocketAddr {
        let text = (format!("listening listener=\"{name}\" address="), '\n');
        let json =
            (format!("\"message\":\"listening\",\"listener\":\"{name}\",\"address\":\""), '"');
        until("the listener's address", || {
            let log = self.log();
            [&text, &json].into_iter().find_map(|(before, after)| {
                let (_, rest) = log.rsplit_once(before.as_str())?;
                rest.split_once(*after)?.0.trim().parse().ok()
            })
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

/// Starts it the way that a service manager does: its sockets are descriptors from 3 on. They come
/// to the shell as standard input and output.
fn spawn(folder: &Path, given: &Given<'_>) -> Child {
    assert!(given.sockets.len() <= 2, "a child inherits no more than these");
    let mut copies = given.sockets.iter().map(|(_, fd)| fd.try_clone_to_owned().unwrap());
    let log = File::create(folder.join("log")).unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-c", "exec 3<&0 4>&1 </dev/null >&2; LISTEN_PID=$$ exec \"$@\"", "bash"])
        .arg(binary())
        .args(["run", "--config"])
        .arg(folder.join("relay.toml"))
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .env("NO_COLOR", "1")
        .env_remove("WAVEGATE_LOG")
        .stdin(copies.next().map_or(Stdio::null(), Stdio::from))
        .stdout(copies.next().map_or(Stdio::null(), Stdio::from))
        .stderr(log);
    let names: Vec<_> = given.sockets.iter().map(|(name, _)| *name).collect();
    if !names.is_empty() {
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    }
    if let Some(watchdog) = given.watchdog {
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }
    if given.journal {
        let log = folder.join("log").metadata().unwrap();
        command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
    }
    command.spawn().unwrap()
}

fn config(sink: SocketAddr) -> String {
    Config::to(&[sink]).relay("workers = 2").listener("name = \"in\"").to_string()
}

#[test]
fn the_service_manager_hears_of_start_reload_and_stop() {
    let sink = recording();
    let text = config(sink.addr());
    let mut service = Service::start(&text, &Given::default());
    service.ready();
    // Ready means that it takes mail.
    Client::greeted(service.listener("in")).expect("QUIT", "221");

    let reload = |expected: &str| {
        service.signal(Signal::SIGHUP);
        let heard = service.next();
        let time = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&heard);
        assert!(time.trim().parse::<u64>().unwrap() > 0, "{heard}");
        let heard = service.next();
        assert!(heard.starts_with("READY=1\nSTATUS=taking mail"), "{heard}");
        assert!(heard.contains(expected), "{heard}");
    };
    reload("was taken anew");
    fs::write(service.folder.path().join("relay.toml"), "[relay]\n").unwrap();
    // The change is noticed too: that reload has its own pair.
    reload("REFUSED");

    service.signal(Signal::SIGTERM);
    until("STOPPING=1", || service.next().starts_with("STOPPING=1\nSTATUS=").then_some(()));
    assert_eq!(service.ended().code(), Some(0));
}

/// The ids of its workers.
fn workers(service: &Service) -> Vec<Pid> {
    let tasks = format!("/proc/{}/task", service.child.id());
    let tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path());
    let is_worker = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-"))
    };
    let id = |task: PathBuf| task.file_name().unwrap().to_str().unwrap().parse().unwrap();
    tasks.filter(is_worker).map(id).map(Pid::from_raw).collect()
}

#[test]
fn the_watchdog_is_fed_only_while_every_worker_answers() {
    const HUNG: &str = "a worker does not answer";
    let sink = recording();
    let given = Given { watchdog: Some(Duration::from_millis(600)), ..Given::default() };
    let service = Service::start(&config(sink.addr()), &given);
    service.ready();
    let fed = || until("the watchdog is fed", || (service.hear() == "WATCHDOG=1\n").then_some(()));
    (0..3).for_each(|_| fed());
    assert!(!service.log().contains(HUNG));

    // One worker hangs, the process does not.
    let workers = workers(&service);
    assert_eq!(workers.len(), 2);
    let hung = workers[1];
    ptrace::seize(hung, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(hung).unwrap();
    waitpid(hung, Some(WaitPidFlag::__WALL)).unwrap();
    let seen = |count: usize| (service.log().matches(HUNG).count() >= count).then_some(());
    until("it is noticed", || seen(1));
    service.forget();
    until("it is noticed again", || seen(3));
    service.told.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    while let Ok(length) = service.told.recv(&mut buffer) {
        assert_ne!(&buffer[..length], b"WATCHDOG=1\n", "fed while a worker hangs");
    }
    service.told.set_nonblocking(false).unwrap();
    ptrace::detach(hung, None).unwrap();
    fed();
}

#[test]
fn sockets_that_were_there_before_outlive_the_process() {
    let sink = recording();
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = first.local_addr().unwrap();
    let text = format!(
        "{}\n[[listener]]\nname = \"by-address\"\naddress = \"{}\"\n[[listener]]\n\
         name = \"own\"\naddress = \"127.0.0.1:0\"\n",
        config(sink.addr()),
        second.local_addr().unwrap()
    );
    let sockets = [("in", first.as_fd()), ("wavegate.socket", second.as_fd())];
    let given = Given { sockets: &sockets, ..Given::default() };
    // Whoever connects before it runs waits, and is served.
    let early = std::net::TcpStream::connect(at).unwrap();
    let mut service = Service::start(&text, &given);
    service.ready();
    assert_eq!(service.listener("in"), at);
    assert_eq!(service.listener("by-address"), second.local_addr().unwrap());
    assert_ne!(service.listener("own").port(), 0);
    let mut reader = io::BufReader::new(early);
    let mut greeting = String::new();
    io::BufRead::read_line(&mut reader, &mut greeting).unwrap();
    assert!(greeting.starts_with("220 "), "{greeting}");
    drop(reader);
    Client::greeted(service.listener("own")).expect("QUIT", "221");
    // A reload keeps them.
    service.signal(Signal::SIGHUP);
    assert!(service.next().starts_with("RELOADING=1\n"));
    service.ready();
    Client::greeted(at).expect("QUIT", "221");

    service.signal(Signal::SIGTERM);
    assert!(service.next().starts_with("STOPPING=1\n"));
    assert_eq!(service.ended().code(), Some(0));
    // Nobody runs, and nobody is refused.
    let waiting = std::net::TcpStream::connect(at).unwrap();
    service.again(&given);
    service.ready();
    let mut reader = io::BufReader::new(waiting);
    greeting.clear();
    io::BufRead::read_line(&mut reader, &mut greeting).unwrap();
    assert!(greeting.starts_with("220 "), "{greeting}");
}

/// Whatever becomes of the test, it is ended.
struct Process(Pid);

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn a_new_process_takes_the_services_place_when_it_could_start() {
    let sink = recording();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let sockets = [("in", socket.as_fd())];
    let watchdog = Some(Duration::from_secs(20));
    let given = Given { sockets: &sockets, watchdog, ..Given::default() };
    let mut service = Service::start(&config(sink.addr()), &given);
    service.ready();
    let good = fs::read_to_string(service.folder.path().join("relay.toml")).unwrap();
    // It reads no broken file itself: what it runs with stays, and so does it.
    fs::write(service.folder.path().join("relay.toml"), "[relay]\n").unwrap();
    assert!(service.next().starts_with("RELOADING=1\n"));
    service.ready();
    service.signal(Signal::SIGUSR2);
    let failed = "has not taken over";
    until("the new process fails", || service.log().contains(failed).then_some(()));
    Client::greeted(at).expect("QUIT", "221");
    fs::write(service.folder.path().join("relay.toml"), good).unwrap();
    assert!(service.next().starts_with("RELOADING=1\n"));
    service.ready();

    let mut half = Client::greeted(at);
    half.expect("EHLO client.example", "250");
    half.begin_data();
    service.signal(Signal::SIGUSR2);
    until("the hand-over", || service.log().contains("handing over").then_some(()));
    // Nobody takes it now, and it is not refused.
    let waiting = std::net::TcpStream::connect(at).unwrap();
    half.send("Subject: x\r\n\r\nx\r\n.\r\n");
    half.expect_reply("250");
    half.expect_reply("421 4.3.2");
    let heard = service.next();
    let (patience, process) = heard.trim_end().split_once("\nMAINPID=").expect(&heard);
    assert_eq!(patience, "WATCHDOG_USEC=900000000");
    let new = Process(Pid::from_raw(process.parse().unwrap()));
    assert_ne!(new.0, service.pid());
    assert_eq!(service.ended().code(), Some(0));
    let heard = service.next();
    assert!(heard.starts_with("READY=1\nSTATUS=taking mail\nWATCHDOG_USEC=20000000"), "{heard}");
    let mut reader = io::BufReader::new(waiting);
    let mut greeting = String::new();
    io::BufRead::read_line(&mut reader, &mut greeting).unwrap();
    assert!(greeting.starts_with("220 "), "{greeting}");
    // It has the service manager's socket for good: also when the listener goes and comes back.
    kill(new.0, Signal::SIGHUP).unwrap();
    assert!(service.next().starts_with("RELOADING=1\n"));
    service.ready();
    Client::greeted(at).expect("QUIT", "221");
    kill(new.0, Signal::SIGTERM).unwrap();
    until("its end", || service.next().starts_with("STOPPING=1\n").then_some(()));
}

#[test]
fn a_socket_that_no_listener_wants_keeps_it_from_starting() {
    let sink = recording();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = stranger.local_addr().unwrap();
    let sockets = [("wavegate.socket", stranger.as_fd())];
    let given = Given { sockets: &sockets, ..Given::default() };
    let mut service = Service::start(&config(sink.addr()), &given);
    assert_eq!(service.ended().code(), Some(78));
    let log = service.log();
    assert!(log.contains(&format!("passes it for {at}, and nothing wants it")), "{log}");
    assert!(log.contains("take it out of the socket unit"), "{log}");

    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sockets = [("in", datagrams.as_fd())];
    service.again(&Given { sockets: &sockets, ..Given::default() });
    assert_eq!(service.ended().code(), Some(78));
    let log = service.log();
    assert!(log.contains("passes \"in\", which is no listening TCP socket"), "{log}");
}

/// Has a relay log something of each kind: starting, a message, a warning with text from outside.
fn logged(text: &str, journal: bool) -> Vec<String> {
    let mut service = Service::start(text, &Given { journal, ..Given::default() });
    service.ready();
    Client::greeted(service.listener("in")).expect("QUIT", "221");
    fs::write(service.folder.path().join("relay.toml"), "[relay]\n\"a\\nb\" = 1\n").unwrap();
    service.signal(Signal::SIGHUP);
    until("a refused reload", || service.log().contains("reload refused").then_some(()));
    service.signal(Signal::SIGTERM);
    assert_eq!(service.ended().code(), Some(0));
    let lines: Vec<_> = service.log().lines().map(str::to_owned).collect();
    assert!(lines.len() > 4, "{lines:?}");
    lines
}

#[test]
fn the_journal_gets_priorities_and_no_times() {
    let sink = recording();
    let text = config(sink.addr());
    let lines = logged(&text, true);
    let is = |line: &&String, begins: &str, words: &str| {
        line.starts_with(begins) && line.contains(words)
    };
    assert!(lines.iter().any(|line| is(&line, "<6> INFO ", "listening listener=")), "{lines:?}");
    assert!(lines.iter().any(|line| is(&line, "<3>ERROR ", "reload refused")), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with('<')), "{lines:?}");
    // Elsewhere a line has its time and no priority.
    let lines = logged(&text, false);
    assert!(lines.iter().all(|line| line.starts_with("20")), "{lines:?}");
}

#[test]
fn log_lines_can_be_json() {
    let sink = recording();
    let text =
        Config::to(&[sink.addr()]).relay("log = \"json\"").listener("name = \"in\"").to_string();
    for journal in [false, true] {
        let lines = logged(&text, journal);
        let lines = lines.iter().map(|line| match journal {
            true => &line[line.find('>').unwrap() + 1..],
            false => line,
        });
        let lines: Vec<serde_json::Value> =
            lines.map(|line| serde_json::from_str(line).expect(line)).collect();
        for line in &lines {
            assert!(line["time"].as_str().unwrap().starts_with("20"), "{line}");
            assert!(line["module"].as_str().unwrap().starts_with("wavegate::"), "{line}");
            assert!(line["message"].is_string(), "{line}");
        }
        let of = |message: &str| {
            lines
                .iter()
                .find(|line| line["message"] == message)
                .unwrap_or_else(|| panic!("{lines:?}"))
        };
        let listening = of("listening");
        assert_eq!((&listening["level"], &listening["listener"]), (&"info".into(), &"in".into()));
        assert!(listening["address"].as_str().unwrap().starts_with("127.0.0.1:"));
        let found = of("found at the reload");
        assert_eq!(found["level"], "error");
        assert!(found["suppressed"].is_null() && found["error"].is_string(), "{found}");
        assert!(of("reload refused, the old one stays")["findings"].is_u64());
    }
}

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/systemd")
}

#[test]
fn the_unit_is_sandboxed() {
    let Some(analyze) = tool::require("systemd-analyze") else { return };
    let unit = units().join("wavegate.service");
    let rate = |most: &str| {
        let rated = Command::new(&analyze)
            .args(["security", "--offline=true", "--no-pager", most])
            .arg(&unit)
            .output()
            .unwrap();
        (rated.status.success(), String::from_utf8(rated.stdout).unwrap())
    };
    // Below 2.0.
    let (good, table) = rate("--threshold=19");
    assert!(good && table.contains("Overall exposure level"), "{table}");
    assert!(!rate("--threshold=1").0, "nothing is that safe: the threshold means nothing");
}

#[test]
fn the_units_are_sound() {
    let Some(analyze) = tool::require("systemd-analyze") else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("wavegate.service.d")).unwrap();
    let redirect = "wavegate.service.d/redirect.conf";
    for (name, to) in [
        ("wavegate.service", "wavegate.service"),
        ("wavegate.socket", "wavegate.socket"),
        ("redirect.conf", redirect),
    ] {
        let text = fs::read_to_string(units().join(name)).unwrap();
        // The program is not installed here.
        let text = text.replace("/usr/bin/wavegate", binary().to_str().unwrap());
        fs::write(folder.path().join(to), text).unwrap();
    }
    let verify = || {
        Command::new(&analyze)
            .args(["verify", "--man=no"])
            .args(["wavegate.service", "wavegate.socket"].map(|name| folder.path().join(name)))
            .output()
            .unwrap()
    };
    let found = verify();
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(found.status.success() && !said.contains("wavegate."), "{said}");
    // It would say so.
    for (file, right, wrong) in [
        ("wavegate.service", "WatchdogSec=", "WatchDogSecs="),
        (redirect, "ExecStopPost=", "ExecStoppedPost="),
    ] {
        let file = folder.path().join(file);
        let text = fs::read_to_string(&file).unwrap().replace(right, wrong);
        fs::write(&file, text).unwrap();
        assert!(String::from_utf8_lossy(&verify().stderr).contains(wrong.trim_end_matches('=')));
    }
}
