//! The wasmtime engine and the thread that ticks its epochs. Floor 2.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails, WasmFeatures,
};

/// One epoch. A call's deadline is a whole number of them, one more than its timeout asks for,
/// because the current one has already begun. Short, because a call that takes longer than a worker
/// may wait is noticed only at the end of one (see `aside`).
pub(super) const TICK: Duration = Duration::from_millis(2);

/// Fuel for each millisecond of a policy's timeout, where fuel bounds a call. A unit is about
/// one WebAssembly instruction; a processor does more than this in a millisecond, so that fuel
/// is the stricter of the two.
pub(super) const FUEL_PER_MS: u64 = 500_000;

/// Stack of a guest. A worker's own stack is 2 MiB.
pub(super) const GUEST_STACK: usize = 512 * 1024;

/// Elements of one table of a guest; a large guest has a few thousand functions in it.
pub(super) const TABLE_ELEMENTS: usize = 20_000;

/// Core instances in one component: a Rust guest has three, a JavaScript one about ten.
pub(super) const CORE_INSTANCES: u32 = 20;

/// Linear memories in one component.
pub(super) const MEMORIES: u32 = 4;

/// Tables in one component.
pub(super) const TABLES: u32 = 8;

/// What bounds the time of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metering {
    /// Wall time, in steps of 2 ms, at about a tenth of a call's cost: for production.
    Epochs,
    /// Instructions: the same on every machine and in every run, for simulation and benches.
    Fuel,
}

impl Metering {
    /// The word for it on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Epochs => "epochs",
            Self::Fuel => "fuel",
        }
    }
}

/// Makes the engine. `instances` is how many guests may live at once in the process; each takes
/// 4 GiB of address space (not of memory), which spares the guest every bounds check.
pub(super) fn build(metering: Metering, instances: u32) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(5))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(2))
        .table_elements(TABLE_ELEMENTS)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        // A slot that is given up keeps none of its pages for the next guest.
        .max_unused_warm_slots(16);
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // It doubles the cost of a call, and the contract has nothing asynchronous.
        .concurrency_support(false)
        .cranelift_opt_level(OptLevel::Speed)
        // A policy must answer the same on every machine.
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_features(WasmFeatures::THREADS, false)
        .max_wasm_stack(GUEST_STACK)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    match metering {
        Metering::Epochs => config.epoch_interruption(true),
        Metering::Fuel => config.consume_fuel(true),
    };
    Engine::new(&config)
}

/// Ticks the engine's epochs until it is dropped.
#[derive(Debug)]
pub(super) struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread.
    pub(super) fn start(engine: &Engine) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let engine = engine.weak();
        let thread = thread::Builder::new().name("policy-epochs".to_owned()).spawn(move || {
            loop {
                match stopped.recv_timeout(TICK) {
                    Err(RecvTimeoutError::Timeout) => match engine.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => return,
                    },
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing that could panic; were it to, there is nobody left to tell.
            let _ = thread.join();
        }
    }
}
