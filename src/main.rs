//! The binary: parses, calls the library, prints.

#[cfg(all(feature = "load", not(any(target_os = "linux", target_os = "android"))))]
compile_error!("`ecoloop load` paces with timerfd(2), of Linux: build with `--no-default-features --features cli`");
#[cfg(not(all(feature = "load", not(any(target_os = "linux", target_os = "android")))))]
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| {
        cli::print_error(&error.to_string());
        ExitCode::FAILURE
    })
}
