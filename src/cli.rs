//! The command line: which subcommand, and what its words mean.

mod log;
mod narration;
mod serve;
mod values;

use std::error::Error;

use clap::{Parser, Subcommand};

/// A TCP echo server on one thread and one readiness loop.
///
/// Without a subcommand it serves.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Arguments,
}

#[derive(Subcommand)]
enum Command {
    /// Echo what every peer sends (what a bare `ecoloop` does too)
    #[command(after_help = AFTER_HELP)]
    Serve(serve::Arguments),
}

const AFTER_HELP: &str = "\
ADDR      IP:PORT, [IPv6]:PORT, NAME:PORT, or :PORT for every IPv4 address; port 0 takes a free one and prints it
SIZE      1024, 64KiB, 1MiB     COUNT  4096, 10k, 1M     DURATION  500ms, 5s, 1m

SIGINT and SIGTERM drain: no new connections, the echo of all that comes, FIN to those that fall silent. A second one
ends at once. SIGHUP is ignored.

Exit status: 0 done; 1 the machine refuses (an address in use, a name that does not resolve); 2 wrong use.";

/// Parses the command line and does what it says. Wrong use ends the process here, with exit status 2.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Serve(arguments)) => serve::run(&arguments),
        None => serve::run(&cli.serve),
    }
}
