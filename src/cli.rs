//! The command line and its subcommands.

#[cfg(feature = "load")]
mod advice;
#[cfg(feature = "load")]
mod barrier;
#[cfg(feature = "load")]
mod check;
#[cfg(feature = "load")]
mod compare;
mod descriptors;
#[cfg(feature = "load")]
mod doctor;
mod escape;
mod faults;
#[cfg(feature = "load")]
mod find_rate;
#[cfg_attr(not(feature = "load"), expect(dead_code, reason = "`serve` needs only a part"))]
mod format;
mod hints;
mod input;
#[cfg(feature = "load")]
mod jobs;
#[cfg(feature = "load")]
mod junit;
#[cfg(feature = "load")]
mod load;
#[cfg(feature = "load")]
mod load_options;
mod log;
mod log_observer;
mod manual;
#[cfg(feature = "load")]
mod merge;
mod metrics;
mod output;
#[cfg(feature = "load")]
mod page;
#[cfg(feature = "load")]
mod plot;
#[cfg(feature = "load")]
mod progress;
#[cfg(feature = "load")]
mod ranked_run;
#[cfg(feature = "load")]
mod ranks;
#[cfg(feature = "load")]
mod report_stream;
#[cfg(feature = "load")]
mod result_files;
mod serve;
mod signals;
mod sockets;
mod strip;
mod systemd;
#[cfg(feature = "load")]
mod table;
#[cfg(feature = "load")]
mod thresholds;
mod trace;
mod trace_observer;
mod values;

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
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
    Serve(Box<serve::Arguments>),
    /// Generate load on an echo server, and report the result
    #[cfg(feature = "load")]
    Load(Box<load::Arguments>),
    /// List the system limits that prevent N connections, and the commands that raise them
    #[cfg(feature = "load")]
    Doctor(doctor::Arguments),
    /// Merge the results of several load generators
    #[cfg(feature = "load")]
    Merge(merge::Arguments),
    /// Compare the results of two servers, or of two versions of one
    #[cfg(feature = "load")]
    Compare(Box<compare::Arguments>),
    /// Draw the steps of a server as a page, from the output of strace
    Strip(strip::Arguments),
    /// Grade any echo server
    #[cfg(feature = "load")]
    Check(check::Arguments),
    /// Print the completion script of a shell
    Completions(manual::CompletionsArguments),
    /// Write the man pages of ecoloop and its subcommands
    Man(manual::ManArguments),
}

impl Command {
    /// Returns whether the subcommand handles the signals that end it.
    fn handles_signals(&self) -> bool {
        #[cfg(feature = "load")]
        if let Self::Compare(arguments) = self {
            return arguments.is_live();
        }
        #[cfg(feature = "load")]
        if matches!(self, Self::Load(_) | Self::Check(_)) {
            return true;
        }
        matches!(self, Self::Serve(_))
    }
}

/// Options of the server that `-h` shows. `--help` shows all.
const COMMON: [&str; 11] = [
    "addresses",
    "max_connections",
    "allow",
    "drain_timeout",
    "idle_timeout",
    "rules",
    "report",
    "metrics",
    "log_connections",
    "verbose",
    "quiet",
];

#[cfg(feature = "load")]
const SHORT_HELP: &str = "\
ecoloop --help lists every option of the server, and ecoloop load -h the common ones of a load.

Examples:
  ecoloop -v :7000                     echo on port 7000, and log each message
  ecoloop load -c 50 127.0.0.1:7000    latency and throughput of 50 connections for 10 s";
#[cfg(not(feature = "load"))]
const SHORT_HELP: &str = "\
ecoloop --help lists every option of the server.

Examples:
  ecoloop                echo on every IPv4 address, port 5000
  ecoloop -v :7000       echo on port 7000, and log each message";

const SHORT_HELP_OF_SERVE: &str = "\
ecoloop serve --help lists every option, the forms of the values, exit statuses and examples.";

/// Similarity above which an unknown first argument is taken for a misspelled subcommand. clap uses the same.
const SIMILARITY_MIN: f64 = 0.7;

/// Exits as the parser does, on a usage error that the parser cannot see.
fn usage_error(subcommand: &str, reason: impl Display) -> ! {
    let mut cli = Cli::command();
    // The usage below the reason is then the subcommand's own.
    cli.build();
    let command = cli.find_subcommand_mut(subcommand).cloned();
    command.unwrap_or(cli).error(ErrorKind::ArgumentConflict, reason).exit()
}

/// Prints a line on standard error, and ignores that it cannot: `eprintln!` panics if standard error is closed or full.
pub(crate) fn print_error(line: &str) {
    let line = error_line(line) + "\n";
    let _ = output::write_whole(io::stderr(), &mut line.as_bytes());
}

/// Returns an error as it is printed. It may contain text from a file, or the name of one.
fn error_line(error: &str) -> String {
    format!("ecoloop: {}", format::strip_control(error))
}

/// Returns the exit status of a verdict.
#[cfg(feature = "load")]
fn exit_status(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::FAILURE,
        Verdict::Inconclusive => ExitCode::from(3),
        // 128 and the number of SIGINT, as a shell reports it.
        Verdict::Interrupted | Verdict::Running => ExitCode::from(130),
    }
}

/// Parses the command line and runs the subcommand. A usage error ends the process with exit status 2.
pub(crate) fn run() -> Result<ExitCode, Box<dyn Error>> {
    signals::set_mask().map_err(|error| format!("cannot set the signal mask: {error}"))?;
    let parser = command();
    // clap's own short help would make --help three times as long: two lines and a blank one for each option.
    let parser = if std::env::args_os().any(|argument| argument == "-h") { shorten_helps(parser) } else { parser };
    let matches = parser.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match matches {
        Ok(cli) => cli,
        Err(help) if !help.use_stderr() => return print_help(&help).map(|()| ExitCode::SUCCESS),
        Err(error) => match with_subcommand_first() {
            Some(line) => {
                Cli::command().error(ErrorKind::ArgumentConflict, format!("the subcommand comes first: {line}")).exit()
            }
            None => suggest_subcommand(without_control(error)).exit(),
        },
    };
    if cli.command.as_ref().is_some_and(|command| !command.handles_signals()) {
        signals::end_process_1()?;
    }
    match cli.command {
        None => serve::run(&cli.serve),
        Some(Command::Serve(arguments)) => serve::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Load(arguments)) => load::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Doctor(arguments)) => doctor::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Merge(arguments)) => merge::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Compare(arguments)) => compare::run(&arguments),
        Some(Command::Strip(arguments)) => strip::run(&arguments),
        #[cfg(feature = "load")]
        Some(Command::Check(arguments)) => check::run(&arguments),
        Some(Command::Completions(arguments)) => manual::print_completions(&arguments, command()),
        Some(Command::Man(arguments)) => manual::write_pages(&arguments, command()),
    }
}

/// Returns what the parser, the man pages and the completions know of the command line.
fn command() -> clap::Command {
    let command = accept_hyphen_values(Cli::command()).mut_subcommands(accept_hyphen_values);
    #[cfg(feature = "load")]
    let command = command.mut_subcommand("compare", compare::hide_load_options);
    command
}

/// Leaves the common options in the helps that are longer than a screen.
fn shorten_helps(command: clap::Command) -> clap::Command {
    let command = shorten_help(command, &COMMON, SHORT_HELP);
    let command = command.mut_subcommand("serve", |serve| shorten_help(serve, &COMMON, SHORT_HELP_OF_SERVE));
    #[cfg(feature = "load")]
    let command = command.mut_subcommand("load", |load| shorten_help(load, &load::COMMON, load::SHORT_HELP));
    command
}

fn shorten_help(command: clap::Command, common: &[&str], after: &'static str) -> clap::Command {
    let shorten = |argument: clap::Arg| {
        let is_hidden = argument.is_hide_set() || !common.contains(&argument.get_id().as_str());
        argument.hide(is_hidden)
    };
    command.mut_args(shorten).after_help(after)
}

/// Prints the help or the version. The parser itself would ignore that it cannot.
fn print_help(help: &clap::Error) -> Result<(), Box<dyn Error>> {
    if io::stdout().is_terminal() {
        return help.print().map_err(|error| format!("cannot write to standard output: {error}").into());
    }
    Ok(output::print(help.to_string().as_bytes())?)
}

/// Has the parser of each number say what is wrong with `-1`, which would be an unknown option otherwise.
fn accept_hyphen_values(command: clap::Command) -> clap::Command {
    /// Beginnings of names: one is `COUNT|auto`.
    const NUMBERS: [&str; 9] = ["COUNT", "RATE", "SIZE", "DURATION", "U64", "PID", "SOURCE", "PERCENT", "R/N"];
    let is_number = |name: &str| name == "N" || NUMBERS.iter().any(|number| name.starts_with(number));
    command.mut_args(|argument| {
        let names = argument.get_value_names().unwrap_or_default();
        let is_number = names.iter().any(|name| is_number(name.as_str()));
        argument.allow_hyphen_values(is_number)
    })
}

/// Returns the command line with its subcommand in the first place, if it is not there and the line is one then.
fn with_subcommand_first() -> Option<String> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let command = command();
    let is_subcommand = |name: &OsString| command.get_subcommands().any(|subcommand| name == subcommand.get_name());
    let at = arguments.iter().position(is_subcommand).filter(|&at| at > 0)?;
    let mut ordered = vec![OsString::from("ecoloop"), arguments[at].clone()];
    ordered
        .extend(arguments.iter().enumerate().filter(|&(place, _)| place != at).map(|(_, argument)| argument.clone()));
    if command.clone().try_get_matches_from(&ordered).is_err_and(|error| error.use_stderr()) {
        return None;
    }
    let words = ordered.iter().map(|word| quoted(&word.to_string_lossy()));
    Some(format::strip_control(&words.collect::<Vec<_>>().join(" ")))
}

/// Returns a word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+[]".contains(&byte);
    if word.bytes().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Replaces control characters in the arguments that a usage error names: a terminal would execute them.
fn without_control(mut error: clap::Error) -> clap::Error {
    let arguments: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(argument) => Some((kind, format::strip_control(argument))),
            _ => None,
        })
        .collect();
    for (kind, argument) in arguments {
        error.insert(kind, ContextValue::String(argument));
    }
    error
}

/// Adds a tip to a usage error if the first argument, which is taken for an address, resembles a subcommand.
fn suggest_subcommand(mut error: clap::Error) -> clap::Error {
    let first = std::env::args_os().nth(1).unwrap_or_default().to_string_lossy().into_owned();
    let command = Cli::command();
    let names = || command.get_subcommands().map(clap::Command::get_name);
    let is_word = !first.starts_with('-') && first.parse::<values::Address>().is_err();
    let is_unknown = is_word && !names().any(|name| name == first);
    let similarity = |name: &str| strsim::jaro(&first, name);
    let best = names().max_by(|one, other| similarity(one).total_cmp(&similarity(other)));
    if let Some(name) = best.filter(|name| is_unknown && similarity(name) > SIMILARITY_MIN) {
        let tip = format!("did you mean the subcommand '{name}'?");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}
