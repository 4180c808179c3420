//! Processor time: what something has cost, which is the same on a busy machine. Floor 1.
//!
//! It is no clock: it says nothing about when, and stands still while others are served.

use std::time::Duration;

/// Of the calling thread.
pub fn of_thread() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Of all threads of the process.
pub fn of_process() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[allow(unsafe_code, reason = "the C library's call, given a place that is ours to write to")]
fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call, and is all that it writes to.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert!(failed == 0, "Linux has had these clocks since 2.6.12");
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}
