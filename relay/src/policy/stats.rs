//! What is counted about a policy, as atomics that telemetry reads. Floor 2.
//!
//! Counters belong to a policy's name, not to a generation: a reload must not set them back.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    failure::FailureKind,
    shadow::{ShadowCounts, ShadowReport, ShadowStats},
};

/// Upper bounds of the buckets of a call's time, in nanoseconds; one more bucket takes the rest.
pub const TIME_BUCKETS_NS: [u64; 14] = [
    1_000,
    2_000,
    4_000,
    8_000,
    16_000,
    32_000,
    64_000,
    128_000,
    256_000,
    1_000_000,
    4_000_000,
    16_000_000,
    64_000_000,
    256_000_000,
];

/// Custom counters of one policy name over the life of the process. A build declares at most
/// 16; this is room for four different sets of names.
const MAX_CUSTOM: usize = 64;

/// Everything counted about the policies of one name.
#[derive(Debug)]
pub struct PolicyStats {
    name: String,
    calls: AtomicU64,
    failures: [AtomicU64; FailureKind::ALL.len()],
    parked_messages: AtomicU64,
    slow: AtomicU64,
    instances: AtomicU64,
    recycled: AtomicU64,
    audit_runs: AtomicU64,
    audit_differences: AtomicU64,
    audit_dropped: AtomicU64,
    audit_inconclusive: AtomicU64,
    log_dropped: AtomicU64,
    metrics_ignored: AtomicU64,
    time_sum_ns: AtomicU64,
    time_buckets: [AtomicU64; TIME_BUCKETS_NS.len() + 1],
    custom: Mutex<Vec<(String, Arc<AtomicU64>)>>,
    /// What came of it as a shadow.
    pub(super) shadow: ShadowStats,
    /// Second of the last failure that was logged, so that a storm of them is one line a second.
    pub(super) last_log: AtomicU64,
}

impl PolicyStats {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            calls: AtomicU64::default(),
            failures: Default::default(),
            parked_messages: AtomicU64::default(),
            slow: AtomicU64::default(),
            instances: AtomicU64::default(),
            recycled: AtomicU64::default(),
            audit_runs: AtomicU64::default(),
            audit_differences: AtomicU64::default(),
            audit_dropped: AtomicU64::default(),
            audit_inconclusive: AtomicU64::default(),
            log_dropped: AtomicU64::default(),
            metrics_ignored: AtomicU64::default(),
            time_sum_ns: AtomicU64::default(),
            time_buckets: Default::default(),
            custom: Mutex::default(),
            shadow: ShadowStats::default(),
            last_log: AtomicU64::default(),
        }
    }

    /// Name of the policy.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls of a hook, those that failed too, but not those refused because the message is
    /// parked.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Failures of one kind.
    pub fn failures(&self, kind: FailureKind) -> u64 {
        self.failures[kind as usize].load(Relaxed)
    }

    /// Messages that this policy failed on three times and is not asked about again.
    pub fn parked_messages(&self) -> u64 {
        self.parked_messages.load(Relaxed)
    }

    /// Calls that took so long that they were asked again off the thread that carries mail.
    pub fn slow(&self) -> u64 {
        self.slow.load(Relaxed)
    }

    /// Instances built: the first of each worker, those after a failure, those recycled.
    pub fn instances(&self) -> u64 {
        self.instances.load(Relaxed)
    }

    /// Instances given up only because they had answered enough calls.
    pub fn recycled(&self) -> u64 {
        self.recycled.load(Relaxed)
    }

    /// Calls repeated in a fresh instance.
    pub fn audit_runs(&self) -> u64 {
        self.audit_runs.load(Relaxed)
    }

    /// Repeated calls whose answer was another one: the policy is not a pure function.
    pub fn audit_differences(&self) -> u64 {
        self.audit_differences.load(Relaxed)
    }

    /// Calls that were to be repeated while the queue was full.
    pub fn audit_dropped(&self) -> u64 {
        self.audit_dropped.load(Relaxed)
    }

    /// Repeated calls that ran out of time, which says nothing at low priority.
    pub fn audit_inconclusive(&self) -> u64 {
        self.audit_inconclusive.load(Relaxed)
    }

    /// Log lines over the limit of a call, and lines that were cut.
    pub fn log_dropped(&self) -> u64 {
        self.log_dropped.load(Relaxed)
    }

    /// Additions to a counter that the policy did not declare.
    pub fn metrics_ignored(&self) -> u64 {
        self.metrics_ignored.load(Relaxed)
    }

    /// Records how long one call took. The caller measures, and not every call.
    pub fn observe_time(&self, nanoseconds: u64) {
        self.time_sum_ns.fetch_add(nanoseconds, Relaxed);
        let bucket = TIME_BUCKETS_NS.partition_point(|&bound| bound < nanoseconds);
        self.time_buckets[bucket].fetch_add(1, Relaxed);
    }

    /// Sum of the recorded times in nanoseconds.
    pub fn time_sum_ns(&self) -> u64 {
        self.time_sum_ns.load(Relaxed)
    }

    /// Calls in each bucket of [`TIME_BUCKETS_NS`], not cumulative; the last takes the rest.
    pub fn time_buckets(&self) -> [u64; TIME_BUCKETS_NS.len() + 1] {
        std::array::from_fn(|bucket| self.time_buckets[bucket].load(Relaxed))
    }

    /// The counters that the policy declared, with their values.
    pub fn custom(&self) -> Vec<(String, u64)> {
        let custom = self.custom.lock().unwrap_or_else(PoisonError::into_inner);
        custom.iter().map(|(name, value)| (name.clone(), value.load(Relaxed))).collect()
    }

    /// What was counted of it as a shadow, for as long as the process lives.
    pub fn shadow(&self) -> ShadowCounts {
        self.shadow.counts()
    }

    /// The same with its failures and time; none where it never was one.
    pub fn shadow_totals(&self) -> Option<ShadowReport> {
        self.shadow.totals()
    }

    /// What came of it as a shadow, since the component or its settings were last others; none
    /// where it never was one.
    pub fn shadow_report(&self) -> Option<ShadowReport> {
        self.shadow.report()
    }

    /// The cells of the declared counters, made where they are new. What is over the bound gets
    /// no cell and is ignored.
    pub(super) fn declare(&self, names: &[String]) -> Vec<(String, Arc<AtomicU64>)> {
        let mut custom = self.custom.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cells = Vec::with_capacity(names.len());
        for name in names {
            if let Some(known) = custom.iter().find(|(known, _)| known == name) {
                cells.push(known.clone());
            } else if custom.len() < MAX_CUSTOM {
                let cell = (name.clone(), Arc::default());
                custom.push(cell.clone());
                cells.push(cell);
            }
        }
        cells
    }

    pub(super) fn count(&self, what: Count) {
        let counter = match what {
            Count::Call => &self.calls,
            Count::Failure(kind) => &self.failures[kind as usize],
            Count::ParkedMessage => &self.parked_messages,
            Count::Slow => &self.slow,
            Count::Instance => &self.instances,
            Count::Recycled => &self.recycled,
            Count::AuditRun => &self.audit_runs,
            Count::AuditDifference => &self.audit_differences,
            Count::AuditDropped => &self.audit_dropped,
            Count::AuditInconclusive => &self.audit_inconclusive,
            Count::LogDropped => &self.log_dropped,
            Count::MetricIgnored => &self.metrics_ignored,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// What happened once more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    Call,
    Failure(FailureKind),
    ParkedMessage,
    Slow,
    Instance,
    Recycled,
    AuditRun,
    AuditDifference,
    AuditDropped,
    AuditInconclusive,
    LogDropped,
    MetricIgnored,
}
