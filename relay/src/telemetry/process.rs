//! What the kernel knows of this process, from `/proc`. Floor 4.
//!
//! Own code of a few lines: the process feature of the metrics crate would bring two more crates
//! along. What cannot be read is left out.

use std::fs;

use super::families::Families;

/// Clock ticks a second in `/proc` (`USER_HZ`): part of the kernel's interface on every
/// architecture that policies can be compiled for.
const TICKS: f64 = 100.0;

/// Adds the families of the process, by the names that all exporters use.
pub(super) fn collect(families: &mut Families) {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            families.gauge(name, help).value(&[], value);
        }
    };
    gauge(
        "process_resident_memory_bytes",
        "Resident memory of the process.",
        field(&read("/proc/self/status"), "VmRSS:").map(|kilobytes| kilobytes * 1024.0),
    );
    let open = fs::read_dir("/proc/self/fd").ok();
    gauge(
        "process_open_fds",
        "Open file descriptors of the process.",
        // Reading the directory opens one more.
        open.and_then(|open| u32::try_from(open.count().saturating_sub(1)).ok()).map(f64::from),
    );
    gauge(
        "process_max_fds",
        "Most file descriptors that the process may open.",
        field(&read("/proc/self/limits"), "Max open files"),
    );
    let stat = read("/proc/self/stat");
    let boot = field(&read("/proc/stat"), "btime");
    gauge(
        "process_start_time_seconds",
        "Time when the process was started, in seconds since 1970.",
        ticks(&stat, 22).zip(boot).map(|(started, boot)| boot + started / TICKS),
    );
    if let Some((user, system)) = ticks(&stat, 14).zip(ticks(&stat, 15)) {
        families
            .counter(
                "process_cpu_seconds_total",
                "Processor time of the process, its own and the kernel's for it.",
            )
            .value(&[], (user + system) / TICKS);
    }
}

/// The number after a line's name.
fn field(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Field `number` of `/proc/self/stat`, counted from 1 as in proc(5). The second is the name in
/// parentheses, which may hold anything.
fn ticks(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4 5 0 0 0 31 11 0 0 20 0 3 0 4242 9 9";
        assert_eq!(ticks(stat, 14), Some(31.0));
        assert_eq!(ticks(stat, 15), Some(11.0));
        assert_eq!(ticks(stat, 22), Some(4242.0));
        assert_eq!(ticks(stat, 99), None);
        assert_eq!(ticks("", 14), None);
        assert_eq!(field("Max open files   1024   4096   files", "Max open files"), Some(1024.0));
        assert_eq!(field("Max open files   unlimited   4096", "Max open files"), None);
    }
}
