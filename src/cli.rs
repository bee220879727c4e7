//! The command line: which subcommand, and what its words mean.

#[cfg(feature = "load")]
mod doctor;
#[cfg_attr(not(feature = "load"), expect(dead_code, reason = "`serve` needs only the plurals"))]
mod format;
#[cfg(feature = "load")]
mod load;
mod log;
mod log_observer;
#[cfg(feature = "load")]
mod merge;
#[cfg(feature = "load")]
mod plot;
#[cfg(feature = "load")]
mod progress;
#[cfg(feature = "load")]
mod result_files;
mod serve;
#[cfg(feature = "load")]
mod table;
mod values;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

#[cfg(feature = "load")]
use clap::{CommandFactory, error::ErrorKind};
use clap::{Parser, Subcommand};
#[cfg(feature = "load")]
use ecoloop::load::report::Verdict;

/// TCP echo server on one event loop, and a load generator for such servers; without a subcommand it serves
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Arguments,
}

#[derive(Subcommand)]
enum Command {
    /// Run the echo server (the default without a subcommand)
    Serve(serve::Arguments),
    /// Generate load on an echo server, and report the result
    #[cfg(feature = "load")]
    Load(Box<load::Arguments>),
    /// List the system limits that prevent N connections, and the commands that raise them
    #[cfg(feature = "load")]
    Doctor(doctor::Arguments),
    /// Merge the results of several load generators
    #[cfg(feature = "load")]
    Merge(merge::Arguments),
}

/// Ends the process as the parser does, for a usage error that the parser cannot see.
#[cfg(feature = "load")]
fn usage_error(subcommand: &str, reason: &str) -> ! {
    let mut cli = Cli::command();
    // The usage below the reason is then the subcommand's own.
    cli.build();
    let command = cli.find_subcommand_mut(subcommand).cloned();
    command.unwrap_or(cli).error(ErrorKind::ArgumentConflict, reason).exit()
}

/// Prints a line on standard error, and ignores that it cannot: `eprintln!` panics if standard error is closed or full.
pub(crate) fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr(), "ecoloop: {line}");
}

/// Returns the exit status of a verdict.
#[cfg(feature = "load")]
fn exit_status(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::FAILURE,
        // 128 and the number of SIGINT, as a shell reports it.
        Verdict::Interrupted => ExitCode::from(130),
    }
}

/// Parses the command line and runs the subcommand. A usage error ends the process with exit status 2.
pub(crate) fn run() -> Result<ExitCode, Box<dyn Error>> {
    let cli = Cli::parse();
    match cli.command {
        None => serve::run(&cli.serve),
        Some(Command::Serve(arguments)) => serve::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Load(arguments)) => load::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Doctor(arguments)) => doctor::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Merge(arguments)) => merge::run(&arguments),
    }
}
