//! The binary: parses, calls the library, prints.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| {
        cli::print_error(&error.to_string());
        ExitCode::FAILURE
    })
}
