//! The program `flashbulb`. Everything is in the library, so that tests and benchmarks reach it.

fn main() -> std::process::ExitCode {
    flashbulb::cli::main()
}
