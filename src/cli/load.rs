//! `ecoloop load`: drives an echo server, and reports.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;
use ecoloop::fault::Fault;
use ecoloop::load::report::{Ended, Report, Verdict};
use ecoloop::load::{self, Config, Interrupt, ProgressCell, Session, Threshold};

use super::advice::{advise, print_failure, warn_of_late_start, warn_of_limits};
use super::descriptors;
use super::find_rate;
use super::hints::with_descriptor_hint;
use super::input::Input;
use super::load_options::{CONNECTIONS, LoadOptions, TIME};
use super::metrics;
use super::output::{self, exit_interrupted};
use super::progress::ProgressDisplay;
use super::ranked_run;
use super::ranks;
use super::result_files::{self, Outputs, REPORT};
use super::signals::Requests;
use super::thresholds;
use super::values::{Address, Endpoint, time, timeout};
use super::{exit_status, print_error, table, usage_error};

/// How often a run rewrites its JSON file.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long an interrupted run waits for a reader of standard output.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);
const PRINT_POLL_INTERVAL: Duration = Duration::from_millis(50);

const HELP: &str = "\
ADDR      IP:PORT, [IPv6]:PORT, NAME:PORT, or :PORT for 127.0.0.1; link-local: [fe80::1%eth0]:PORT;
          unix:PATH, or unix:@NAME for a name without a file
SIZE      bytes: 64, 4KiB, 1MiB; of messages also a range: 64..4KiB
COUNT     100, 10k, 1.5M
RATE      COUNT per second: 0.5, 2000, 10k/s; with --find-rate a range: 1k..100k
          -r: of messages over all connections, at their times whatever the replies do (open loop);
          in churn, of connections; in stages, each with its length: 0..10k@30s,10k@2m,10k..0@30s
DURATION  500us, 20ms, 5s, 1m, 1h
SOURCE    IP, IP-IP or IPv4/LEN
--mode    echo: exchange messages until the window ends
          hold: send a first message, stay idle for the window, send a last message
          churn: connect, exchange messages, close, and again until the window ends
RULE      rate=SIZE (a slow reader), stall[=SIZE], reset=SIZE|DURATION or fin=SIZE|DURATION;
          p=PERCENT, first=, after= or every=COUNT after a comma chooses connections, which are
          reported apart
R/N       the generators share -c, -r, --connect-rate, --max-connecting and --source;
          {rank} in the name of a file is R
EXPR      METRIC, one of > >= < <=, and a value: p99>5ms, rate<99%, errors>10
          DURATION  any percentile, such as p50 or p99.99, max, mean; with connect_
                    or lateness_ before it, of these; server_cpu, with --server-pid;
                    longest_outage, with --reconnect
          RATE      rate; its percentage is of --rate; found_rate, of --find-rate
          COUNT     connections, outages, hold_alive, hold_late, hold_reset, hold_closed,
                    hold_silent, hold_unasked; percentages are of the connections requested,
                    without those of --fault
                    errors; its percentage is of all connects
                    unanswered, unsent, deferred; percentages are of the messages due
          schedule alone, without a value, fails if the schedule was not kept
          of a stage, its number from 1 follows the metric: p99[2]>5ms, errors[1]>0

A run also fails if fewer connections than requested are held at its end (not in churn), on any
error, unanswered message or wrong byte, and if no message is verified. --fail-if on connections,
errors or unanswered replaces that condition; with --reconnect, one on outages or longest_outage
replaces those on errors and unanswered.

SIGINT, SIGTERM and SIGHUP end the run, and it reports. A second signal, at least 0.3 s later, ends
the process immediately. The file of --json is rewritten every minute, with the verdict running, but
not with --jobs, --barrier or --find-rate.

Exit status:
  0    pass: no threshold failed
  1    fail: a threshold failed; or runtime error, such as a file that cannot be created
  2    usage error
  3    inconclusive: nothing failed, but the generator was late or saturated
  130  interrupted: no threshold is evaluated, and the report covers the time until then

Examples:
  ecoloop load -c 50 127.0.0.1:5000
      latency and throughput of 50 connections for 10 s, closed loop
  ecoloop load -c 10k -r 50k -d 1m --fail-if 'p99>5ms' --json report.json server:5000
      50,000 messages per second over 10,000 connections for a minute; fails if p99 exceeds 5 ms
  ecoloop load -c 50 -r 1k..100k --find-rate 'p99<5ms' 127.0.0.1:5000
      the highest rate at which the 99th percentile is under 5 ms
  ecoloop load --mode hold -c 100k --source 10.0.0.10-10.0.0.13 -d 10m 10.0.0.1:5000
      100,000 connections from four addresses, idle for ten minutes: which of them survive?";

/// Options and arguments that `-h` shows. `--help` shows all.
pub(super) const COMMON: [&str; 24] = [
    "addresses",
    "barrier",
    "connections",
    "duration",
    find_rate::FIND_RATE,
    "help",
    "html",
    "jobs",
    "json",
    "labels",
    "messages_per_connection",
    "metrics",
    "mode",
    "pipeline",
    "plot",
    "quiet",
    "rank",
    "rate",
    "size",
    "sources",
    "thresholds",
    "timeout",
    "warmup",
    "window",
];

pub(super) const SHORT_HELP: &str = "\
EXPR  METRIC, one of > >= < <=, and a value: p99>5ms, rate<99%, errors>10

ecoloop load --help lists every option, the forms of the values, exit statuses and examples.";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Servers; connections rotate over all source/target pairs
    #[arg(value_name = "ADDR", required = true)]
    addresses: Vec<Endpoint>,

    #[command(flatten)]
    load: LoadOptions,

    /// Reconnect connections that end, and report outages; not in churn
    #[arg(long, help_heading = CONNECTIONS)]
    reconnect: bool,

    /// Have connections misbehave: rate=1KiB,first=10 (repeatable)
    #[arg(long = "fault", help_heading = CONNECTIONS, value_name = "RULE")]
    faults: Vec<Fault>,

    /// Measure one window per line of standard input; needs --json -
    #[arg(long, help_heading = TIME)]
    repeat: bool,

    /// Start time for several generators: 2026-11-22T08:00:00Z
    #[arg(long, help_heading = TIME, value_name = "RFC3339", value_parser = time)]
    start_at: Option<SystemTime>,

    #[command(flatten)]
    search: find_rate::Arguments,

    #[command(flatten)]
    ranks: ranks::Arguments,

    /// Fail if a condition holds, such as p99>5ms (repeatable)
    #[arg(long = "fail-if", help_heading = REPORT, value_name = "EXPR")]
    thresholds: Vec<Threshold>,

    /// Label stored in the report (repeatable)
    #[arg(long = "label", help_heading = REPORT, value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,

    /// Process ID of the server on this machine, to report its CPU and memory
    #[arg(long, help_heading = REPORT, value_name = "PID")]
    server_pid: Option<u32>,

    /// Interval of progress lines on standard error [default: none]
    #[arg(long, help_heading = REPORT, value_name = "DURATION", value_parser = timeout)]
    interval: Option<Duration>,

    /// Address at which to serve the running figures for Prometheus
    #[arg(long, help_heading = REPORT, value_name = "ADDR")]
    metrics: Option<Address>,

    #[command(flatten)]
    output: result_files::Arguments,
}

impl Arguments {
    /// Binds the addresses of `--metrics`. A process that another one has started has none.
    fn bind_metrics(&self) -> Result<Vec<TcpListener>, Box<dyn Error>> {
        let Some(address) = self.metrics.as_ref().filter(|_| !self.ranks.is_job()) else { return Ok(Vec::new()) };
        Ok(metrics::bind(&address.resolve(Ipv4Addr::UNSPECIFIED.into())?)?)
    }

    /// Returns a usage error that the parser cannot see: options that exclude each other.
    fn conflict(&self) -> Option<&'static str> {
        if self.repeat && !self.load.is_echo() {
            return Some("--repeat needs --mode echo: in the other modes no connection outlasts a window");
        }
        if self.repeat && !self.output.is_json_on_stdout_alone() {
            return Some(
                "--repeat needs --json -, without --hgrm, --plot and --html: it writes one JSON document for each window",
            );
        }
        if self.repeat && self.start_at.is_some() {
            return Some(
                "--repeat and --start-at cannot be combined: with --repeat each line of standard input starts a window",
            );
        }
        if let Some(conflict) = self.ranks.conflict() {
            return Some(conflict);
        }
        let shares_run = self.ranks.has_rank() || self.ranks.starts_jobs();
        if self.repeat && shares_run {
            return Some("--repeat cannot be combined with --rank and --jobs: a rank has one report");
        }
        if self.start_at.is_some()
            && !self.ranks.starts_jobs()
            && self.ranks.barrier().is_some_and(|place| !place.has_jobs)
        {
            return Some("--start-at and --barrier cannot be combined: the barrier starts all ranks together");
        }
        if self.output.has_rank() && !self.ranks.has_rank() {
            return Some("{rank} in the name of a file needs --rank");
        }
        if shares_run && self.labels.iter().any(|(key, _)| key == "rank") {
            return Some("--label rank=... cannot be combined with --rank and --jobs, which set this label");
        }
        if self.search.is_search() && (self.repeat || shares_run) {
            return Some(
                "--find-rate cannot be combined with --repeat, --rank and --jobs: one generator decides the next rate",
            );
        }
        if self.reconnect && (self.repeat || self.search.is_search()) {
            return Some(
                "--reconnect cannot be combined with --repeat and --find-rate: it measures outages in a run of one window",
            );
        }
        if !self.faults.is_empty() && (self.repeat || self.search.is_search()) {
            return Some(
                "--fault cannot be combined with --repeat and --find-rate: connections misbehave in a run of one window",
            );
        }
        if !self.faults.is_empty() && self.load.is_churn() {
            return Some("--fault has no effect in --mode churn, whose connections end by themselves");
        }
        self.load.conflict().or_else(|| self.load.reconnect_conflict().filter(|_| self.reconnect))
    }

    /// Returns a usage error of a condition whose metric needs an option that is missing.
    fn threshold_conflict(&self) -> Option<String> {
        let given = [
            ("--find-rate", self.search.is_search()),
            // It can be the option of another generator, on the server's machine.
            ("--server-pid", self.server_pid.is_some() || self.ranks.has_rank()),
            ("--reconnect", self.reconnect),
        ];
        let given: Vec<_> = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect();
        let goal = || thresholds::conflict("--find-rate", self.search.goal(), &given);
        thresholds::conflict("--fail-if", &self.thresholds, &given).or_else(goal)
    }

    fn config(&self) -> Config {
        let mut config = self.load.config("load", &self.addresses);
        config.start_at = self.start_at;
        config.rank = self.ranks.rank(config.connections);
        config.labels = self.labels.iter().cloned().collect::<BTreeMap<_, _>>();
        config.server_pid = self.server_pid;
        config.reconnect = self.reconnect;
        config.faults.clone_from(&self.faults);
        config.thresholds.clone_from(&self.thresholds);
        config
    }
}

/// Runs, writes the results, and returns the exit status.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(conflict) = arguments.conflict() {
        usage_error("load", conflict);
    }
    if let Some(conflict) = arguments.search.conflict(&arguments.load).or_else(|| arguments.threshold_conflict()) {
        usage_error("load", &conflict);
    }
    let interrupt = Interrupt::default();
    let (requests, requested) = mpsc::sync_channel(1);
    let has_begun = Arc::new(AtomicBool::new(false));
    handle_signals(Arc::clone(&has_begun), interrupt.clone(), requests.clone())?;
    let config = arguments.config();
    config.validate().unwrap_or_else(|error| usage_error("load", error));
    let search = arguments.search.search(&arguments.load);
    if let Some(search) = &search {
        search.validate(&config).unwrap_or_else(|error| usage_error("load", error));
    }
    has_begun.store(true, Ordering::Release);
    // A job's standard error is not read: the process that started it warns.
    if !arguments.ranks.is_job() {
        warn_of_late_start(config.start_at);
    }
    if let Some((rank, place)) = config.rank.zip(arguments.ranks.barrier()) {
        let display = ranked_run::Display { interval: arguments.interval, metrics: arguments.bind_metrics()? };
        return ranked_run::run(config, rank, &place, (&arguments.output, display), &interrupt);
    }
    let outputs = arguments.output.open("load", config.rank)?;
    let metrics = arguments.bind_metrics()?;
    let descriptor_limit = descriptors::raise_limit(print_error);
    if config.unresolved == 0 {
        warn_of_limits(&config.clone().share(), 1, descriptor_limit);
    }
    let progress = ProgressCell::default();
    let latest = progress.clone();
    metrics::start_load(metrics, arguments.output.quiet, move || latest.latest())
        .map_err(|error| format!("cannot start --metrics: {error}"))?;
    // A redrawn line would mix with the messages about a window.
    let draw = !arguments.output.quiet && !arguments.repeat && search.is_none();
    let display = ProgressDisplay::start(progress.clone(), arguments.interval, draw)?;
    if arguments.repeat {
        thread::Builder::new().name("lines".to_owned()).spawn(move || read_lines(&requests))?;
        let verdict = Session::connect(config, &interrupt, &progress)
            .map_err(|error| with_hint(error).into())
            .and_then(|session| measure_repeatedly(session, &requested, &interrupt));
        display.finish();
        return Ok(exit_status(verdict?));
    }
    let is_rank = config.rank.is_some();
    let report = match &search {
        Some(search) => find_rate::run(config, search, &interrupt, &progress, outputs.prints_table()),
        None => run_and_save(config, &interrupt, &progress, &outputs),
    };
    display.finish();
    let report = report.map_err(with_hint)?;
    let written = outputs.write(&report);
    advise(&report);
    if arguments.output.quiet {
        print_failure(&report);
    }
    written?;
    // The merged run has a verdict; a launcher would end the other ranks if one failed.
    Ok(if is_rank { ExitCode::SUCCESS } else { exit_status(report.verdict) })
}

/// Adds to an error of a run what to do about it.
pub(super) fn with_hint(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::OutOfMemory => {
            io::Error::new(error.kind(), format!("{error}; choose smaller --connections or --pipeline"))
        }
        _ => with_descriptor_hint(error),
    }
}

/// Runs, and rewrites the JSON file from a thread, so that a run which is killed leaves something.
fn run_and_save(
    config: Config,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    outputs: &Outputs,
) -> io::Result<Report> {
    if !outputs.has_json_file() {
        return load::run(config, interrupt, progress);
    }
    let (sender, reports) = mpsc::sync_channel::<Report>(1);
    let save = move || {
        for failure in reports.iter().filter_map(|report| outputs.write_running(&report).err()) {
            print_error(&failure);
        }
    };
    thread::scope(|scope| {
        thread::Builder::new().name("save".to_owned()).spawn_scoped(scope, save)?;
        // Does not wait for a slow disk: the next report contains this one.
        load::run_with_reports(config, interrupt, progress, SAVE_INTERVAL, move |report| {
            let _ = sender.try_send(report);
        })
    })
}

/// Starts a thread for SIGINT, SIGTERM and SIGHUP: the first interrupts the run, which then reports; the second ends the process. Until
/// the run has begun, the first ends it.
pub(super) fn handle_signals(
    has_begun: Arc<AtomicBool>,
    interrupt: Interrupt,
    requests: SyncSender<io::Result<bool>>,
) -> Result<(), Box<dyn Error>> {
    let mut signals = Requests::to_end_a_run(&[])?;
    let wait = move || {
        if signals.next().is_some() && has_begun.load(Ordering::Acquire) {
            interrupt.set();
            // If the channel is full, the request in it ends the wait.
            let _ = requests.try_send(Ok(false));
            signals.next();
        }
        exit_interrupted();
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}

/// Sends `true` for each line of standard input, and `false` at its end.
fn read_lines(requests: &SyncSender<io::Result<bool>>) {
    let mut input = BufReader::new(Input);
    loop {
        let is_line = input.skip_until(b'\n').map(|length| length > 0);
        let is_last = !matches!(is_line, Ok(true));
        if requests.send(is_line).is_err() || is_last {
            return;
        }
    }
}

/// Measures a window for each request, and returns the worst verdict.
fn measure_repeatedly(
    mut session: Session,
    requested: &Receiver<io::Result<bool>>,
    interrupt: &Interrupt,
) -> Result<Verdict, Box<dyn Error>> {
    let (mut worst, mut when) = (Verdict::Pass, "");
    while requested.recv()?.map_err(|error| format!("cannot read standard input: {error}"))? {
        let report = session.measure()?;
        print_unless_interrupted(result_files::document(&report)?, interrupt)?;
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

/// Writes a document to standard output. Once the run is interrupted, waits at most `PRINT_TIMEOUT` for a reader.
fn print_unless_interrupted(text: String, interrupt: &Interrupt) -> Result<(), Box<dyn Error>> {
    let (sender, printed) = mpsc::channel();
    let print = move || sender.send(output::print_document(text.as_bytes()));
    thread::Builder::new().name("print".to_owned()).spawn(print)?;
    let mut waited = Duration::ZERO;
    loop {
        match printed.recv_timeout(PRINT_POLL_INTERVAL) {
            Err(RecvTimeoutError::Timeout) if waited < PRINT_TIMEOUT => {
                waited += if interrupt.is_set() { PRINT_POLL_INTERVAL } else { Duration::ZERO };
            }
            Err(_) => return Err("cannot write to standard output: its reader does not read".into()),
            Ok(printed) => return Ok(printed?),
        }
    }
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected K=V")?;
    if key.is_empty() { Err("expected K=V") } else { Ok((key.to_owned(), value.to_owned())) }
}
