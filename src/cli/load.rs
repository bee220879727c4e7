//! `ecoloop load`: drives an echo server, and reports.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, IsTerminal, Write, stderr, stdin};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use ecoloop::host::{Plan, Purpose, warnings};
use ecoloop::load::report::{Ended, ErrorName, Report, Verdict};
use ecoloop::load::{
    self, Close, Config, Interrupt, Mode, Progress, ProgressCell, Session, SourceRange, Threshold, count_pairs,
};
use indicatif::ProgressBar;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::format::{plural, time};
use super::table;
use super::values::{Address, SocketArguments, count, rate, size};
use super::{exit_status, output, usage_error};

/// How often a terminal is drawn anew, at most.
const REDRAW: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(super) struct Arguments {
    /// The servers; several are dealt with the sources
    #[arg(value_name = "ADDR", required = true)]
    addresses: Vec<Address>,

    /// Connections at once
    #[arg(short, long, value_name = "COUNT", default_value = "1", value_parser = count)]
    connections: u32,

    /// What they do: messages to and fro; silence between a first and a last message; or connect, messages, close, and again
    #[arg(long, default_value = "echo")]
    mode: ModeName,

    /// Connects begun in a second [default: as fast as it goes]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    connect_rate: Option<f64>,

    /// Connects outstanding at most
    #[arg(long, value_name = "COUNT", default_value = "1000", value_parser = count)]
    max_connecting: u32,

    /// From the connect to the end of the handshake
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,

    /// From when a message was due to its answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Connect from these: IP, IP-IP or IPv4/LEN, with every free port of each [default: the system chooses]
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<SourceRange>,

    /// Bytes of a message
    #[arg(short, long, value_name = "SIZE", default_value = "64", value_parser = size)]
    size: usize,

    /// Messages in flight on a connection [default: 1; unlimited with --rate]
    #[arg(short = 'p', long, value_name = "COUNT", value_parser = count)]
    pipeline: Option<u32>,

    /// Messages due in a second, over all connections, whatever the answers do (an open loop)
    #[arg(short, long, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,

    /// The measured window [default: 10s]
    #[arg(short, long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// Messages of each connection, instead of --duration [default in churn: 1, beside --duration]
    #[arg(short, long, value_name = "COUNT", value_parser = count)]
    messages_per_connection: Option<u32>,

    /// Traffic before the measured window
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    warmup: Duration,

    /// Measure a window for each line of standard input, all over the same connections; it needs --json -
    #[arg(long)]
    repeat: bool,

    /// How to close
    #[arg(long, default_value = "fin")]
    close: CloseName,

    /// When to begin, such as 2026-11-22T08:00:00Z, so that several machines begin together
    #[arg(long, value_name = "RFC3339", value_parser = humantime::parse_rfc3339)]
    start_at: Option<SystemTime>,

    /// What the bytes are made of
    #[arg(long, value_name = "U64", default_value = "1")]
    seed: u64,

    /// Words for the report
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,

    /// The server's process on this machine: report its CPU and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,

    #[command(flatten)]
    socket: SocketArguments,

    /// Fail if this holds: p50 p90 p99 p99.9 p99.99 max mean `connect_p99` `lateness_p99` rate connections errors unanswered,
    /// then > < >= or <=, then a value
    #[arg(long = "fail-if", value_name = "EXPR")]
    thresholds: Vec<Threshold>,

    /// Print a line of progress on standard error every so often
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    interval: Option<Duration>,

    #[command(flatten)]
    output: output::Arguments,
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
    /// What the parser cannot see: words that do not go together.
    fn conflict(&self) -> Option<&'static str> {
        if self.interval.is_some_and(|interval| interval.is_zero()) {
            return Some("--interval must be above zero");
        }
        if self.repeat && !matches!(self.mode, ModeName::Echo) {
            return Some("--repeat is for --mode echo, whose connections outlast a window");
        }
        if self.repeat && !self.output.is_json_on_stdout_alone() {
            return Some("--repeat writes a document for each window: it needs --json -, without --hgrm and --plot");
        }
        if self.repeat && self.start_at.is_some() {
            return Some("--repeat begins a window at each line of standard input, and --start-at at a time: give one");
        }
        match self.mode {
            ModeName::Echo if self.duration.is_some() && self.messages_per_connection.is_some() => {
                Some("--duration and --messages-per-connection each end an echo: give one")
            }
            ModeName::Hold if self.messages_per_connection.is_some() => {
                Some("--messages-per-connection has no meaning in --mode hold: it sends one at each end")
            }
            ModeName::Churn if self.rate.is_some() => {
                Some("--rate has no meaning in --mode churn: --connect-rate paces it")
            }
            _ => None,
        }
    }

    /// A name that does not resolve is said, and counted: the report has it.
    fn config(&self) -> Config {
        let mut config = Config::new(Vec::new());
        for address in &self.addresses {
            match address.resolve(Ipv4Addr::LOCALHOST.into()) {
                Ok(targets) => config.targets.extend(targets),
                Err(error) => {
                    say(&error.to_string());
                    config.unresolved += 1;
                }
            }
        }
        config.sources = SourceRange::expand(&self.sources).unwrap_or_else(|words| usage_error("load", &words));
        if config.unresolved == 0 {
            count_pairs(&config.sources, &config.targets).unwrap_or_else(|words| usage_error("load", &words));
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

/// Runs, writes what was asked for, and answers the exit status.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(conflict) = arguments.conflict() {
        usage_error("load", conflict);
    }
    let config = arguments.config();
    config.validate().unwrap_or_else(|error| usage_error("load", &error.to_string()));
    let outputs = arguments.output.open()?;
    rlimit::increase_nofile_limit(u64::MAX).map_err(|error| format!("cannot read the descriptor limit: {error}"))?;
    if config.unresolved == 0 {
        warn_of_limits(&config);
    }

    let interrupt = Interrupt::default();
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| format!("cannot handle signals: {error}"))?;
    let of_signals = interrupt.clone();
    let (ask, asked) = mpsc::sync_channel(1);
    let ask_no_more = ask.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            of_signals.set();
            // Where there is no room, something is there already that ends the wait.
            let _ = ask_no_more.try_send(Ok(false));
        }
        if signals.next().is_some() {
            // Whoever asks twice does not want to wait for the report.
            std::process::exit(130);
        }
    })?;
    let slot = ProgressCell::default();
    let watcher = Watcher::start(slot.clone(), arguments)?;
    if arguments.repeat {
        thread::Builder::new().name("lines".to_owned()).spawn(move || read_lines(&ask))?;
        let verdict = Session::connect(config, &interrupt, &slot)
            .map_err(Into::into)
            .and_then(|session| measure_repeatedly(session, &asked));
        watcher.finish();
        return Ok(exit_status(verdict?));
    }
    let report = load::run(config, &interrupt, &slot);
    watcher.finish();
    let report = report?;
    outputs.write(&report)?;
    advise(&report);
    Ok(exit_status(report.verdict))
}

/// Tells of each line of standard input that a window is asked for, and at its end that none is.
fn read_lines(ask: &SyncSender<io::Result<bool>>) {
    let mut input = stdin().lock();
    loop {
        let is_line = input.skip_until(b'\n').map(|length| length > 0);
        let is_last = !matches!(is_line, Ok(true));
        if ask.send(is_line).is_err() || is_last {
            return;
        }
    }
}

/// Returns the worst verdict of all windows.
fn measure_repeatedly(mut session: Session, asked: &Receiver<io::Result<bool>>) -> Result<Verdict, Box<dyn Error>> {
    let (mut worst, mut when) = (Verdict::Pass, "");
    while asked.recv()?.map_err(|error| format!("cannot read standard input: {error}"))? {
        let report = session.measure()?;
        output::print_document(&report)?;
        advise(&report);
        worst = worst.max(report.verdict);
        when = "after the last window: ";
        if report.ended == Ended::Interrupted {
            break;
        }
    }
    // No document has it: there is one for each window, and this is behind the last.
    let rest = session.close()?;
    for what in rest.errors.iter().map(table::error).chain(rest.verify.findings.iter().map(table::finding)) {
        say(&format!("{when}{what}"));
    }
    advise(&rest);
    let of_the_rest = match rest.ended {
        Ended::Interrupted => rest.verdict,
        Ended::Complete if rest.errors.is_empty() => Verdict::Pass,
        Ended::Complete => Verdict::Fail,
    };
    Ok(worst.max(of_the_rest))
}

/// Says beforehand what on this machine will stand in the way.
fn warn_of_limits(config: &Config) {
    let plan = Plan {
        connections: config.connections,
        purpose: Purpose::Load,
        sources: config.sources.len(),
        pairs: count_pairs(&config.sources, &config.targets).unwrap_or(1),
        loopback: config.targets.iter().any(|target| target.ip().is_loopback()),
    };
    for warning in warnings(&plan) {
        say(&warning);
    }
}

/// Says what a reader of the figures has to know, and what lifts what was in the way.
fn advise(report: &Report) {
    if report.schedule.kept == Some(false) {
        say(
            "the schedule was not kept: this generator was late, or did not send; its figures are not the server's alone",
        );
    }
    if report.generator.saturated == Some(true) {
        say("this generator was saturated: it needed over 90 % of a core, and may be itself what was measured");
    }
    for error in &report.errors {
        let remedy = match error.error {
            ErrorName::NoDescriptors => "raise the descriptor limit (`ulimit -n`, `ulimit -Hn`)",
            ErrorName::NoPorts => "give more --source addresses or more targets, or widen net.ipv4.ip_local_port_range",
            ErrorName::NotLocal => "give a --source that `ip address` lists, or add it with `ip address add`",
            ErrorName::NoMemory => "see net.ipv4.tcp_mem and the free memory",
            ErrorName::Refused => "nobody listens there, or its backlog is full",
            _ => continue,
        };
        let times = plural(error.count, "time", "times");
        say(&format!("{} {} {times}: {remedy}", error.phase.name(), error.error.name()));
    }
}

/// A line on standard error. That it cannot be written is no reason to end.
fn say(line: &str) {
    let _ = writeln!(stderr(), "ecoloop: {line}");
}

/// Draws what a run tells of itself, on a thread of its own: a frozen terminal cannot hold up the schedule.
struct Watcher {
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(slot: ProgressCell, arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let (end, ended) = mpsc::channel();
        let interval = arguments.interval;
        // With --repeat, what there is to say of a window would come in between.
        let draws = interval.is_none() && !arguments.output.quiet && !arguments.repeat && stderr().is_terminal();
        if !draws && interval.is_none() {
            return Ok(Self { end, thread: None });
        }
        let watch = move || {
            let spinner = if draws { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
            let mut last = None;
            while ended.recv_timeout(interval.unwrap_or(REDRAW)) == Err(RecvTimeoutError::Timeout) {
                last = slot.take().or(last);
                let Some(progress) = last else { continue };
                if draws {
                    spinner.set_message(line(&progress));
                    spinner.tick();
                } else {
                    say(&line(&progress));
                }
            }
            spinner.finish_and_clear();
        };
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(watch)?;
        Ok(Self { end, thread: Some(thread) })
    }

    /// Clears the line. A terminal that is frozen is left as it is.
    fn finish(self) {
        drop(self.end);
        if let Some(thread) = self.thread {
            let deadline = std::time::Instant::now() + REDRAW * 2;
            while !thread.is_finished() && std::time::Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn line(progress: &Progress) -> String {
    let mut words = vec![
        progress.step.name().to_owned(),
        format!("{}/{} open", progress.open, progress.requested),
        plural(progress.errors, "error", "errors"),
    ];
    if let Some(rate) = progress.rate {
        words.push(format!("{rate}/s"));
    }
    if let (Some(p50), Some(p99)) = (progress.p50, progress.p99) {
        words.push(format!("p50 {} p99 {}", time(p50), time(p99)));
    }
    if let Some(left) = progress.left {
        words.push(format!("{} s left", left.as_secs()));
    }
    words.join(", ")
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected K=V")?;
    if key.is_empty() { Err("expected K=V") } else { Ok((key.to_owned(), value.to_owned())) }
}
