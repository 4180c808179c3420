//! Processor time, memory and disk writes of other processes.
//!
//! Owns the reading of `/proc` and of process clocks; starts nothing. Floor: none.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// User and system time of a process and all its descendants, the ended ones included; and of its
/// process group, for descendants whose parents have ended, which are ours as zombies then.
///
/// A process is read from its own clock, to the nanosecond; children that have ended and were waited
/// for are in their parent's `cutime` and `cstime`, in ticks (10 ms). Children that a parent has the
/// kernel reap are in nobody's figures: Exim does so with deliveries, so its time is more than it says.
pub fn tree_time(root: u32) -> anyhow::Result<Duration> {
    let root_pid = i32::try_from(root)?;
    let mut total = own_time(root_pid).with_context(|| format!("process {root} is gone"))?;
    total += ended_children(root_pid).unwrap_or_default();
    for pid in descendants(root_pid) {
        // One that ends meanwhile is counted by its parent in the next reading.
        total += own_time(pid).unwrap_or_default() + ended_children(pid).unwrap_or_default();
    }
    Ok(total)
}

/// Resident memory of one process, in bytes.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    parse_resident(&status).with_context(|| format!("process {pid} has no VmRSS"))
}

/// Bytes that a process and all its descendants had written to a disk, the ended ones included.
///
/// proc(5): what was to be written when a page was changed, less what was taken back before it was,
/// because its file was cut or removed. Children that were waited for are in their parent's figures.
pub fn tree_written(root: u32) -> anyhow::Result<u64> {
    let root_pid = i32::try_from(root)?;
    let mut total = written(root_pid).with_context(|| format!("process {root} has no `io`"))?;
    for pid in descendants(root_pid) {
        // One that ends meanwhile is counted by its parent in the next reading.
        total += written(pid).unwrap_or_default();
    }
    Ok(total)
}

/// The processor time of this process.
pub fn own() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Every descendant of `root` and every process of its group that lives now.
pub(super) fn descendants(root: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut known = HashSet::from([root]);
    let processes: Vec<(i32, Stat)> =
        all_processes().filter_map(|pid| Some((pid, parse_stat(&stat(pid)?)?))).collect();
    loop {
        let before = found.len();
        for (pid, stat) in &processes {
            let pid = *pid;
            if (known.contains(&stat.parent) || stat.group == root) && known.insert(pid) {
                found.push(pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

fn all_processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn own_time(pid: i32) -> anyhow::Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?;
    Ok(clock_gettime(clock)?.into())
}

fn ended_children(pid: i32) -> Option<Duration> {
    let ticks = parse_stat(&stat(pid)?)?.ended_children;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn written(pid: i32) -> Option<u64> {
    parse_written(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?)
}

fn parse_written(io: &str) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        io.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    Some(number("write_bytes:")?.saturating_sub(number("cancelled_write_bytes:")?))
}

fn stat(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    group: i32,
    /// cutime and cstime, ticks.
    ended_children: u64,
}

/// proc(5): the name in parentheses may hold anything, so fields count from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let parent = fields.get(1)?.parse().ok()?;
    let group = fields.get(2)?.parse().ok()?;
    Some(Stat { parent, group, ended_children: number(16)? + number(17)? })
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop here")]
    use super::*;
    use std::process::Command;

    #[test]
    fn stat_is_read_behind_any_name() {
        let text = "7 (a) S 1 (b) R 3 7 7 0 -1 0 1 2 3 4 50 60 700 800 20 0 1 0 5 6 7";
        assert_eq!(parse_stat(text), Some(Stat { parent: 3, group: 7, ended_children: 1500 }));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn resident_is_read() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    12 kB\n"), Some(12 * 1024));
        assert_eq!(parse_resident("Name:\tx\n"), None);
        assert!(resident(std::process::id()).unwrap() > 100_000);
    }

    #[test]
    fn what_was_written_is_less_what_was_taken_back() {
        let io = "wchar: 9\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n";
        assert_eq!(parse_written(io), Some(4096));
        assert_eq!(parse_written("write_bytes: 8192\n"), None);
        let before = tree_written(std::process::id()).unwrap();
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        fs::write(file.path(), vec![1; 1 << 20]).unwrap();
        file.as_file().sync_all().unwrap();
        assert!(tree_written(std::process::id()).unwrap() >= before + (1 << 20));
    }

    #[test]
    fn work_of_a_child_is_counted_alive_and_ended() {
        // The shell's own children burn time, end, and are waited for by the shell.
        let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let script = format!("(sh -c '{burn}'); {burn}; echo done; read end");
        let mut shell = Command::new("sh")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let whole = tree_time(shell.id()).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let ended = ended_children(pid).unwrap();
        let own = own_time(pid).unwrap();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(ended >= Duration::from_millis(10), "{ended:?}");
        assert!(own >= Duration::from_millis(10), "{own:?}");
        assert!(whole >= own && whole <= own + ended + Duration::from_millis(50), "{whole:?}");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        tree_time(child.id()).unwrap_err();
        resident(child.id()).unwrap_err();
    }
}
