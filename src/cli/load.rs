//! `ecoloop load`: drives an echo server, and reports.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, stdin};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use ecoloop::host::{Plan, Purpose, warnings};
use ecoloop::load::report::{Ended, ErrorName, Report, Verdict};
use ecoloop::load::{self, Close, Config, Interrupt, Mode, ProgressCell, Session, SourceRange, Threshold, count_pairs};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::descriptors;
use super::format::plural;
use super::progress::ProgressDisplay;
use super::result_files::{self, REPORT};
use super::values::{Address, SocketArguments, count, rate, size};
use super::{exit_status, print_error, table, usage_error};

const CONNECTIONS: &str = "Connections";
const MESSAGES: &str = "Messages";
const TIME: &str = "Time";

/// Descriptors that a run opens besides its connections: its poll, its timer and its waker.
const RUN_DESCRIPTORS: u64 = 3;

const HELP: &str = "\
ADDR      IP:PORT, [IPv6]:PORT, NAME:PORT, or :PORT for 127.0.0.1
SIZE      bytes: 64, 4KiB, 1MiB
COUNT     100, 10k, 1.5M
RATE      COUNT per second: 0.5, 2000, 10k/s
DURATION  500us, 20ms, 5s, 1m, 1h
SOURCE    IP, IP-IP or IPv4/LEN
MODE      echo: exchange messages until the window ends
          hold: send a first message, stay idle for the window, send a last message
          churn: connect, exchange messages, close, and again until the window ends
EXPR      METRIC, one of > >= < <=, and a value: p99>5ms, rate<9k, errors>10
          DURATION  p50 p90 p99 p99.9 p99.99 max mean connect_p99 lateness_p99
          RATE      rate
          COUNT     connections errors unanswered

A run also fails if fewer connections than requested are held at its end, on any error, unanswered message or wrong byte,
and if no message is verified. --fail-if on connections, errors or unanswered replaces that condition.

Exit status:
  0    pass: no threshold failed
  1    fail: a threshold failed; or runtime error, such as a file that cannot be created
  2    usage error
  130  interrupted; the report covers the time until then

Examples:
  ecoloop load -c 50 127.0.0.1:5000
      latency and throughput of 50 connections for 10 s, closed loop
  ecoloop load -c 10k -r 50k -d 1m --fail-if 'p99>5ms' --json report.json server:5000
      50,000 messages per second over 10,000 connections for a minute, which fails if the 99th percentile exceeds 5 ms
  ecoloop load --mode hold -c 100k --source 10.0.0.10-10.0.0.13 -d 10m 10.0.0.1:5000
      100,000 connections from four addresses, idle for ten minutes: which of them survive?";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Servers; connections rotate over all source/target pairs
    #[arg(value_name = "ADDR", required = true)]
    addresses: Vec<Address>,

    /// Number of connections
    #[arg(short, long, help_heading = CONNECTIONS, value_name = "COUNT", default_value = "1", value_parser = count)]
    connections: u32,

    /// What each connection does
    #[arg(long, help_heading = CONNECTIONS, default_value = "echo")]
    mode: ModeName,

    /// Source addresses, each with all its free ports (repeatable) [default: set by the system]
    #[arg(long = "source", help_heading = CONNECTIONS, value_name = "SOURCE")]
    sources: Vec<SourceRange>,

    /// Connects per second; not in churn, see --rate [default: unlimited]
    #[arg(long, help_heading = CONNECTIONS, value_name = "RATE", value_parser = rate)]
    connect_rate: Option<f64>,

    /// Maximum connects in progress
    #[arg(long, help_heading = CONNECTIONS, value_name = "COUNT", default_value = "1000", value_parser = count)]
    max_connecting: u32,

    /// Timeout of a connect
    #[arg(long, help_heading = CONNECTIONS, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,

    /// Close with FIN or RST
    #[arg(long, help_heading = CONNECTIONS, default_value = "fin")]
    close: CloseName,

    /// Size of a message
    #[arg(short, long, help_heading = MESSAGES, value_name = "SIZE", default_value = "64", value_parser = size)]
    size: usize,

    /// Maximum messages in flight per connection [default: 1; unlimited with --rate]
    #[arg(short = 'p', long, help_heading = MESSAGES, value_name = "COUNT", value_parser = count)]
    pipeline: Option<u32>,

    /// Messages per second over all connections, in churn connections per second, independent of answers (open loop)
    #[arg(short, long, help_heading = MESSAGES, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,

    /// Messages per connection, instead of --duration [default in churn: 1]
    #[arg(short, long, help_heading = MESSAGES, value_name = "COUNT", value_parser = count)]
    messages_per_connection: Option<u32>,

    /// Timeout of an answer, from the scheduled send time of its message
    #[arg(long, help_heading = MESSAGES, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Payload seed
    #[arg(long, help_heading = MESSAGES, value_name = "U64", default_value = "1")]
    seed: u64,

    /// Length of the measured window [default: 10s]
    #[arg(short, long, help_heading = TIME, value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// Traffic before the measured window
    #[arg(long, help_heading = TIME, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    warmup: Duration,

    /// Measure one window per line of standard input; needs --json -
    #[arg(long, help_heading = TIME)]
    repeat: bool,

    /// Start time, such as 2026-11-22T08:00:00Z, for several generators
    #[arg(long, help_heading = TIME, value_name = "RFC3339", value_parser = humantime::parse_rfc3339)]
    start_at: Option<SystemTime>,

    #[command(flatten)]
    socket: SocketArguments,

    /// Fail if a condition holds, such as p99>5ms (repeatable)
    #[arg(long = "fail-if", help_heading = REPORT, value_name = "EXPR")]
    thresholds: Vec<Threshold>,

    /// Label stored in the report (repeatable)
    #[arg(long = "label", help_heading = REPORT, value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,

    /// Process ID of the server on this machine: report its CPU time and memory
    #[arg(long, help_heading = REPORT, value_name = "PID")]
    server_pid: Option<u32>,

    /// Interval of progress lines on standard error [default: none]
    #[arg(long, help_heading = REPORT, value_name = "DURATION", value_parser = humantime::parse_duration)]
    interval: Option<Duration>,

    #[command(flatten)]
    output: result_files::Arguments,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeName {
    Echo,
    Hold,
    Churn,
}

#[derive(Clone, Copy, ValueEnum)]
enum CloseName {
    Fin,
    Rst,
}

impl Arguments {
    /// Returns a usage error that the parser cannot see: options that exclude each other.
    fn conflict(&self) -> Option<&'static str> {
        if self.interval.is_some_and(|interval| interval.is_zero()) {
            return Some("--interval must be above zero");
        }
        if self.repeat && !matches!(self.mode, ModeName::Echo) {
            return Some("--repeat needs --mode echo: in the other modes no connection outlasts a window");
        }
        if self.repeat && !self.output.is_json_on_stdout_alone() {
            return Some(
                "--repeat needs --json -, without --hgrm and --plot: it writes one JSON document for each window",
            );
        }
        if self.repeat && self.start_at.is_some() {
            return Some(
                "--repeat and --start-at cannot be combined: with --repeat each line of standard input starts a window",
            );
        }
        match self.mode {
            ModeName::Echo if self.duration.is_some() && self.messages_per_connection.is_some() => {
                Some("--duration and --messages-per-connection cannot be combined in --mode echo: each ends the run")
            }
            ModeName::Hold if self.messages_per_connection.is_some() => Some(
                "--messages-per-connection has no effect in --mode hold: each connection sends a first and a last message",
            ),
            ModeName::Churn if self.connect_rate.is_some() => {
                Some("--connect-rate has no effect in --mode churn: use -r, --rate, which counts connections there")
            }
            _ => None,
        }
    }

    /// Prints and counts each name that does not resolve: the report lists it as an error.
    fn config(&self) -> Config {
        let mut config = Config::new(Vec::new());
        for address in &self.addresses {
            match address.resolve(Ipv4Addr::LOCALHOST.into()) {
                Ok(targets) => config.targets.extend(targets),
                Err(error) => {
                    print_error(&error.to_string());
                    config.unresolved += 1;
                }
            }
        }
        config.sources = SourceRange::expand(&self.sources).unwrap_or_else(|reason| usage_error("load", &reason));
        if config.unresolved == 0 {
            count_pairs(&config.sources, &config.targets).unwrap_or_else(|reason| usage_error("load", &reason));
        }
        config.connections = self.connections;
        config.mode = match self.mode {
            ModeName::Echo => Mode::Echo,
            ModeName::Hold => Mode::Hold,
            ModeName::Churn => Mode::Churn,
        };
        config.connect_rate = self.connect_rate;
        config.max_connecting = self.max_connecting;
        config.connect_timeout = self.connect_timeout;
        config.timeout = self.timeout;
        config.size = self.size;
        config.pipeline = self.pipeline;
        config.rate = self.rate;
        config.duration = self.duration.unwrap_or(config.duration);
        config.messages_per_connection = self.messages_per_connection.map(u64::from);
        config.warmup = self.warmup;
        config.close = match self.close {
            CloseName::Fin => Close::Fin,
            CloseName::Rst => Close::Rst,
        };
        config.start_at = self.start_at;
        config.seed = self.seed;
        config.labels = self.labels.iter().cloned().collect::<BTreeMap<_, _>>();
        config.server_pid = self.server_pid;
        config.recv_buffer = self.socket.recv_buffer;
        config.send_buffer = self.socket.send_buffer;
        config.nodelay = !self.socket.nagle;
        config.thresholds.clone_from(&self.thresholds);
        config
    }
}

/// Runs, writes the results, and returns the exit status.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(conflict) = arguments.conflict() {
        usage_error("load", conflict);
    }
    let config = arguments.config();
    config.validate().unwrap_or_else(|error| usage_error("load", &error.to_string()));
    let outputs = arguments.output.open()?;
    let descriptor_limit = descriptors::raise_limit(print_error);
    let interrupt = Interrupt::default();
    let (requests, requested) = mpsc::sync_channel(1);
    handle_signals(interrupt.clone(), requests.clone())?;
    if config.unresolved == 0 {
        warn_of_limits(&config, descriptor_limit);
    }
    let progress = ProgressCell::default();
    // With --repeat, a redrawn line would mix with the messages about a window.
    let draw = !arguments.output.quiet && !arguments.repeat;
    let display = ProgressDisplay::start(progress.clone(), arguments.interval, draw)?;
    if arguments.repeat {
        thread::Builder::new().name("lines".to_owned()).spawn(move || read_lines(&requests))?;
        let verdict = Session::connect(config, &interrupt, &progress)
            .map_err(|error| with_hint(error).into())
            .and_then(|session| measure_repeatedly(session, &requested));
        display.finish();
        return Ok(exit_status(verdict?));
    }
    let report = load::run(config, &interrupt, &progress);
    display.finish();
    let report = report.map_err(with_hint)?;
    outputs.write(&report)?;
    advise(&report);
    Ok(exit_status(report.verdict))
}

/// Adds to an error of a run which options cause it.
fn with_hint(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::OutOfMemory => {
            io::Error::new(error.kind(), format!("{error}; choose smaller --connections or --pipeline"))
        }
        _ => error,
    }
}

/// Starts a thread for SIGINT and SIGTERM: the first interrupts the run, which then reports; the second ends the process.
fn handle_signals(interrupt: Interrupt, requests: SyncSender<io::Result<bool>>) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| format!("cannot handle signals: {error}"))?;
    let wait = move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            interrupt.set();
            // If the channel is full, the request in it ends the wait.
            let _ = requests.try_send(Ok(false));
        }
        if signals.next().is_some() {
            std::process::exit(130);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}

/// Sends `true` for each line of standard input, and `false` at its end.
fn read_lines(requests: &SyncSender<io::Result<bool>>) {
    let mut input = stdin().lock();
    loop {
        let is_line = input.skip_until(b'\n').map(|length| length > 0);
        let is_last = !matches!(is_line, Ok(true));
        if requests.send(is_line).is_err() || is_last {
            return;
        }
    }
}

/// Measures a window for each request, and returns the worst verdict.
fn measure_repeatedly(mut session: Session, requested: &Receiver<io::Result<bool>>) -> Result<Verdict, Box<dyn Error>> {
    let (mut worst, mut when) = (Verdict::Pass, "");
    while requested.recv()?.map_err(|error| format!("cannot read standard input: {error}"))? {
        let report = session.measure()?;
        result_files::print_document(&report)?;
        advise(&report);
        worst = worst.max(report.verdict);
        when = "after the last window: ";
        if report.ended == Ended::Interrupted {
            break;
        }
    }
    // No document covers the time after the last window.
    let rest = session.close()?;
    for what in rest.errors.iter().map(table::error).chain(rest.verify.findings.iter().map(table::finding)) {
        print_error(&format!("{when}{what}"));
    }
    advise(&rest);
    let verdict_of_rest = match rest.ended {
        Ended::Interrupted => rest.verdict,
        Ended::Complete if rest.errors.is_empty() => Verdict::Pass,
        Ended::Complete => Verdict::Fail,
    };
    Ok(worst.max(verdict_of_rest))
}

/// Warns about system limits below what the run needs.
fn warn_of_limits(config: &Config, descriptor_limit: Option<u64>) {
    let plan = Plan {
        connections: config.connections,
        purpose: Purpose::Load,
        sources: config.sources.clone(),
        targets: config.targets.clone(),
        pairs: count_pairs(&config.sources, &config.targets).unwrap_or(1),
        other_descriptors: descriptor_limit.and_then(descriptors::count_open).map(|open| open + RUN_DESCRIPTORS),
    };
    for warning in warnings(&plan) {
        print_error(&warning);
    }
}

/// Prints what restricts the figures, and a remedy for each error that has one.
fn advise(report: &Report) {
    if report.schedule.kept == Some(false) {
        print_error(
            "the schedule was not kept: this generator sent messages late or not at all, so the figures are not the server's alone",
        );
    }
    if report.generator.saturated == Some(true) {
        print_error(
            "this generator was saturated: it ran or waited for a CPU over 90 % of the time, so the figures may be its own limit, not the server's",
        );
    }
    for error in &report.errors {
        let remedy = match error.error {
            ErrorName::NoDescriptors => "raise the descriptor limit (ulimit -n, ulimit -Hn)",
            ErrorName::NoPorts => {
                "name this machine's own address with --source, whose ports in TIME_WAIT can be used again; or add addresses or \
                 targets, or widen net.ipv4.ip_local_port_range"
            }
            ErrorName::NotLocal => "use a --source that ip address lists, or add it with ip address add",
            ErrorName::NoMemory => "check net.ipv4.tcp_mem and the free memory",
            ErrorName::Refused => "no server listens there, or its backlog is full",
            _ => continue,
        };
        let times = plural(error.count, "time", "times");
        print_error(&format!("{} {} {times}: {remedy}", error.phase.name(), error.error.name()));
    }
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected K=V")?;
    if key.is_empty() { Err("expected K=V") } else { Ok((key.to_owned(), value.to_owned())) }
}
