//! The binary: parses, calls the library, prints.

mod cli;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(status) => status,
        Err(error) => {
            // Not `eprintln!`, which panics where standard error is closed or full.
            let _ = writeln!(std::io::stderr(), "ecoloop: {error}");
            ExitCode::FAILURE
        }
    }
}
