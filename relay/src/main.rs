//! The program `wavegate`: see the module `cli`.

fn main() -> std::process::ExitCode {
    wavegate::cli::main()
}
