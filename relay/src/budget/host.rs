//! What the host gives: how much memory there is, and how much the process has.

use std::{fs, path::Path};

/// Of the memory that there is, so much is ours: the senders run on the same host.
const SHARE: u64 = 2;
/// But at least this much: with less the relay does not start to do anything useful.
const LEAST: u64 = 256 << 20;

/// The budget where none is configured: half of the memory of the host, or of the control groups
/// that the process is in.
pub fn available() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = of_groups(&groups, Path::new("/sys/fs/cgroup"));
    let all = [of_host(), of_groups].into_iter().flatten().min()?;
    usize::try_from((all / SHARE).max(LEAST)).ok()
}

/// Bytes of memory of this process, as the kernel counts them.
pub fn resident() -> Option<usize> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = pages.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size())
}

/// A sandbox may hide `/proc/meminfo`, so the C library is asked.
#[allow(unsafe_code, reason = "there is no safe way that needs no file")]
fn of_host() -> Option<u64> {
    // SAFETY: sysconf takes a number, touches no memory of ours, and answers with a number.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages).ok()?.checked_mul(rustix::param::page_size() as u64)
}

/// The tightest bound of the groups in `/proc/self/cgroup`, and of those above them.
fn of_groups(groups: &str, root: &Path) -> Option<u64> {
    let bounds = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (root, files): (_, &[&str]) = match controllers {
            "" => (root.to_owned(), &["memory.max", "memory.high"]),
            named if named.split(',').any(|one| one == "memory") => {
                (root.join("memory"), &["memory.limit_in_bytes"])
            }
            _ => return None,
        };
        let own = Path::new(path.trim_start_matches('/'));
        let all = own.ancestors().flat_map(|group| files.iter().map(move |file| group.join(file)));
        let bound = |file| fs::read_to_string(root.join(file)).ok()?.trim().parse::<u64>().ok();
        all.filter_map(bound).min()
    });
    bounds.min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn this_process_has_memory_and_may_have_more() {
        let (resident, available) = (resident().unwrap(), available().unwrap());
        assert!(resident > 1 << 20 && available as u64 >= LEAST, "{resident} {available}");
        assert!(available as u64 <= of_host().unwrap().max(LEAST));
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |groups: &str| of_groups(groups, root.path());
        assert_eq!(of("0::/system.slice/wavegate.service\n"), None);
        write("system.slice/memory.max", "4000\n");
        write("system.slice/wavegate.service/memory.max", "max\n");
        assert_eq!(of("0::/system.slice/wavegate.service\n"), Some(4000));
        write("system.slice/wavegate.service/memory.high", "3000\n");
        assert_eq!(of("0::/system.slice/wavegate.service\n"), Some(3000));
        assert_eq!(of("0::/\n"), None);
        // The older kind.
        write("memory/mail/memory.limit_in_bytes", "2000\n");
        assert_eq!(of("5:cpu,memory:/mail/relay\n4:pids:/mail\n0::/\n"), Some(2000));
        assert_eq!(of("nonsense\n:\n"), None);
    }
}
