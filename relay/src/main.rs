//! The program `wavegate`: see the module `cli`.

/// A message is some eighty short-lived allocations on one thread: a third of what the C library's
/// allocator takes for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    wavegate::cli::main()
}
