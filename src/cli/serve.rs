//! `ecoloop serve`: the echo server as a process.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use clap::{ArgAction, Args, ValueEnum};
use ecoloop::transport::{AnyAddress, Listen, UnixAddress};
use ecoloop::{Config, Handle, IpNet, Observer, Report, Server, SourceLimit, Turn, WhenFull};
use log::LevelFilter;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::descriptors;
use super::faults::{self, FaultArguments};
use super::hints::with_bind_hint;
use super::log::{TARGET, Writer, print_on_stderr};
use super::log_observer::{Language, LogObserver, log_end, log_shutdown, log_so_far, log_start};
use super::metrics::{self, TurnTimer};
use super::output::{self, Output};
use super::signals::Requests;
use super::sockets;
use super::systemd::{self, Notifier, Watchdog};
use super::trace::TraceFile;
use super::trace_observer::Tracing;
use super::values::{
    Address, Endpoint, SOCKETS, SocketArguments, count, duration, keepalive, mode, network, rate, size, source_limit,
    timeout,
};
use super::{error_line, usage_error};

/// Where a server listens without an `ADDR`, as in the notes.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5000);
/// Descriptors for what is not a connection: standard streams, the poll, listeners, the report, and a reserve.
const DESCRIPTORS_KEPT: u64 = 64;

/// A signal within this time after the end is a repeat of the request for it.
const WRITING: Duration = Duration::from_millis(300);

const TIMING: &str = "Limits and timing";
const OUTPUT: &str = "Output";

const HELP: &str = "\
ADDR      IP:PORT, [IPv6]:PORT, NAME:PORT, or :PORT for every IPv4 address; port 0 takes a free port;
          unix:PATH, or unix:@NAME for a name without a file (Linux)
SIZE      bytes: 1024, 64KiB, 1MiB
COUNT     4096, 10k, 1M
RATE      2000, 10k, 0.5/s
DURATION  500us, 20ms, 5s, 1m
NETWORK   IP, or IP/LEN: 192.0.2.7, 10.0.0.0/8, 2001:db8::/32

SIGINT and SIGTERM shut down gracefully: ecoloop accepts the connections that already wait, and no more, keeps echoing,
and closes each connection once it is idle. A second signal, at least 0.3 s later, ends the process immediately.
SIGUSR1 logs the counts since the start. SIGHUP is ignored.

Exit status:
  0  ended by a signal
  1  runtime error, such as an address in use or a name that does not resolve
  2  usage error

Examples:
  ecoloop serve                                   on every IPv4 address, port 5000
  ecoloop serve -v '[::1]:7000' 127.0.0.1:7000    on two addresses, logging each message
  ecoloop serve unix:/run/echo.sock :5000         on a Unix socket, and on every IPv4 address
  ecoloop serve -q --max-connections 1M :5000     for a million connections, logging only warnings";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Addresses to listen on [default: 0.0.0.0:5000, or the sockets that systemd passes]
    #[arg(value_name = "ADDR")]
    addresses: Vec<Endpoint>,

    /// Size of the read buffer, and maximum pending output of a connection
    #[arg(long, help_heading = TIMING, value_name = "SIZE", default_value = "1024", value_parser = size)]
    buffer_size: usize,

    /// Maximum number of connections that wait to be accepted
    #[arg(long, help_heading = TIMING, value_name = "COUNT", default_value = "4096", value_parser = count)]
    backlog: u32,

    /// Maximum number of open connections [default: descriptor limit - 64, with --metrics - 128]
    #[arg(long, help_heading = TIMING, value_name = "COUNT", value_parser = count)]
    max_connections: Option<u32>,

    /// At --max-connections, let further clients wait in the backlog, or accept and reset them
    #[arg(long, help_heading = TIMING, value_name = "wait|reset", default_value = "wait", hide_possible_values = true)]
    when_full: WhenFullName,

    /// Serve only clients in this network, and reset others (repeatable) [default: all]
    #[arg(long, help_heading = TIMING, value_name = "NETWORK", value_parser = network)]
    allow: Vec<IpNet>,

    /// Maximum number of open connections from one IPv4 address or network of V4LEN bits, and one IPv6 network of V6LEN
    /// bits (64); others are reset [default: none]
    #[arg(long, help_heading = TIMING, value_name = "COUNT[/V4LEN[:V6LEN]]", value_parser = source_limit)]
    max_per_source: Option<SourceLimit>,

    /// Maximum number of connections accepted per second; more wait in the backlog [default: unlimited]
    #[arg(long, help_heading = TIMING, value_name = "RATE", value_parser = rate)]
    accept_rate: Option<f64>,

    /// Busy-poll this long before blocking: lower latency at low load, more CPU
    #[arg(long, help_heading = TIMING, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    spin: Duration,

    /// Grace period after SIGTERM; connections still open after it are closed
    #[arg(long, help_heading = TIMING, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    drain_timeout: Duration,

    /// Close a connection on which no byte moved for this long [default: none]
    #[arg(long, help_heading = TIMING, value_name = "DURATION", value_parser = timeout)]
    idle_timeout: Option<Duration>,

    /// Reset a connection whose client does not read: its pending output has not shrunk for this long [default: none]
    #[arg(long, help_heading = TIMING, value_name = "DURATION", value_parser = timeout)]
    stall_timeout: Option<Duration>,

    #[arg(
        long, help_heading = TIMING,
        help = "Probe a connection that was silent for this long: finds clients that vanished (SO_KEEPALIVE) [default: off]",
        value_name = "DURATION", value_parser = keepalive)]
    keepalive: Option<Duration>,

    #[command(flatten)]
    faults: FaultArguments,

    #[command(flatten)]
    socket: SocketArguments,

    #[arg(long, help_heading = SOCKETS, help = "Share the port with other processes that set this option (SO_REUSEPORT)")]
    reuse_port: bool,

    /// Mode of the file of each Unix socket: to connect, a client needs the permission to write [default: 0777 less umask]
    #[arg(long, help_heading = SOCKETS, value_name = "MODE", value_parser = mode)]
    unix_mode: Option<u32>,

    #[arg(
        long, help_heading = SOCKETS,
        help = "Take a PROXY header, v1 or v2, out of each connection, and its address as the client's; reset others")]
    proxy_protocol: bool,

    /// Write the final figures to FILE as JSON; - is standard output
    #[arg(long, help_heading = OUTPUT, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Record the steps of the loop, and write them at the end: as a page, or as JSON for Perfetto
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.html|FILE.json")]
    trace: Option<TraceFile>,

    /// Serve metrics for Prometheus on this address, at /metrics, and the server's health at /healthz [default: none]
    #[arg(long, help_heading = OUTPUT, value_name = "ADDR")]
    metrics: Option<Address>,

    /// Language of the log; warnings and errors are in English [default: from the locale]
    #[arg(long, help_heading = OUTPUT, value_name = "en|es", hide_possible_values = true)]
    lang: Option<Language>,

    /// Log the connections, or none: probes of a load balancer then cost no lines
    #[arg(long, help_heading = OUTPUT, value_name = "none|all", default_value = "all", hide_possible_values = true)]
    log_connections: LogConnections,

    /// Log each message; with -vv also why each connection closed
    #[arg(short, long, help_heading = OUTPUT, action = ArgAction::Count)]
    verbose: u8,

    /// Log only warnings and errors
    #[arg(short, long, help_heading = OUTPUT, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenFullName {
    Wait,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogConnections {
    None,
    All,
}

/// Serves until a signal ends the process.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if arguments.verbose > 0 && arguments.log_connections == LogConnections::None {
        usage_error("serve", "-v logs what connections do: it cannot be used with --log-connections none");
    }
    if arguments.faults.help_faults {
        output::print(faults::help().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(error) = arguments.faults.check() {
        usage_error("serve", &error);
    }
    let passed = systemd::take_listeners()?;
    if !passed.is_empty() && arguments.faults.change_listeners() {
        usage_error(
            "serve",
            "connect=hang and connect=refuse cannot be used with the sockets of LISTEN_FDS: they are systemd's",
        );
    }
    if !passed.is_empty() && !arguments.addresses.is_empty() {
        usage_error("serve", "the sockets of LISTEN_FDS are served: ADDR cannot be used with them");
    }
    let unix = arguments.unix();
    if !unix.is_empty() && arguments.faults.change_listeners() {
        usage_error("serve", "connect=hang and connect=refuse cannot be used with Unix sockets");
    }
    if unix.is_empty() && arguments.unix_mode.is_some() {
        usage_error("serve", "--unix-mode needs an ADDR that begins with unix:");
    }
    let outputs = arguments.open_outputs()?;
    let stage = Arc::new(Stage::default());
    let language = arguments.lang.unwrap_or_else(Language::from_environment);
    let logs_shutdown = arguments.log_connections == LogConnections::None;
    handle_signals(Arc::clone(&stage), language, logs_shutdown)?;
    let log_writer = super::log::start(arguments.level()).map_err(|error| format!("cannot start the log: {error}"))?;

    let config = arguments.config();
    let addresses = if passed.is_empty() { arguments.resolve()? } else { Vec::new() };
    let metrics = arguments.bind_metrics()?;
    stage.is_binding.store(true, Ordering::Release);
    let start = Start { language, stage, log_writer, max_connections: config.max_connections, metrics, outputs };
    let hinted = |error| with_bind_hint(error, &addresses);
    if !unix.is_empty() {
        start.run(sockets::bind(&addresses, &unix, config).map_err(hinted)?, arguments)
    } else if passed.is_empty() {
        start.run(Server::bind(&addresses[..], config).map_err(hinted)?, arguments)
    } else {
        start.run(Server::from_listeners(passed, config).map_err(hinted)?, arguments)
    }
}

/// What a server needs that is about to start.
struct Start {
    language: Language,
    stage: Arc<Stage>,
    log_writer: Writer,
    max_connections: usize,
    metrics: Option<Vec<TcpListener>>,
    outputs: (Option<Output>, Option<Tracing>),
}

impl Start {
    /// Serves until a signal ends the process, and writes the results.
    fn run<L>(self, server: Server<(), L>, arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>>
    where
        L: Listen<Address: Into<AnyAddress>>,
    {
        let Self { language, stage, log_writer, max_connections, metrics, outputs: (report_output, mut tracing) } =
            self;
        if let Some(output) = &report_output {
            output.clear()?;
        }
        let handle = server.handle();
        log_start(language, server.local_addrs().iter().cloned().map(Into::into));
        let timer = metrics.map(|listeners| {
            metrics::start(listeners, language, handle.clone(), max_connections, log_writer.lost_lines())
        });
        let timer = timer.transpose().map_err(|error| format!("cannot start --metrics: {error}"))?;
        let notifier = Notifier::start(handle.clone())
            .map_err(|error| format!("cannot start the thread that sends to systemd: {error}"))?;
        let _ = stage.service.set(Service { handle: handle.clone(), notifier: notifier.clone() });
        let (ended, report) =
            observe(server, arguments, language, timer.as_ref(), notifier.as_ref(), tracing.as_mut())?;
        log_end(language, &report);
        if let Some(notifier) = notifier {
            notifier.finish();
        }
        let log = log_writer.finish();
        let _ = stage.ended_at.set(Instant::now());
        // Each is tried, even if another fails.
        let traced = tracing.map_or(Ok(()), |tracing| tracing.write());
        let reported = match report_output {
            Some(Output::Stdout) if !log.is_written => {
                Err("cannot write to standard output: the log waits for its reader".to_owned())
            }
            Some(output) => output.write(&document(&report, log.lost_lines)),
            None => Ok(()),
        };
        let ended = ended.map_err(|error| format!("cannot wait for events: {error}"));
        let errors: Vec<_> = [ended, traced, reported].into_iter().filter_map(Result::err).collect();
        if errors.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        // `main` would wait for the reader of standard error, which may be that of the log, and have stopped.
        print_on_stderr(error_line(&errors.join("; ")));
        Ok(ExitCode::FAILURE)
    }
}

/// Serves with the observer that the options ask for. Without a trace it is known when the server is compiled.
fn observe<L: Listen>(
    server: Server<(), L>,
    arguments: &Arguments,
    language: Language,
    timer: Option<&TurnTimer>,
    notifier: Option<&Notifier>,
    tracing: Option<&mut Tracing>,
) -> Result<(io::Result<()>, Report), String> {
    let handle = server.handle();
    let is_enabled = arguments.log_connections == LogConnections::All;
    let short = |handle| LogObserver::<false>::new(language, handle, is_enabled, timer.cloned());
    let long = |handle| LogObserver::<true>::new(language, handle, true, timer.cloned());
    let is_long = arguments.verbose > 0;
    if let Some(tracing) = tracing {
        let inner: Box<dyn Observer> = if is_long { Box::new(long(handle)) } else { Box::new(short(handle)) };
        return tracing.record(server, inner, |server| serve(server, notifier));
    }
    Ok(if is_long {
        serve(&mut server.with_observer(long(handle)), notifier)
    } else {
        serve(&mut server.with_observer(short(handle)), notifier)
    })
}

/// Serves until a signal ends the server.
fn serve<L: Listen>(server: &mut Server<impl Observer, L>, notifier: Option<&Notifier>) -> (io::Result<()>, Report) {
    let watchdog = notifier.and_then(Notifier::watchdog);
    let timeout = watchdog.map(Watchdog::wait_max);
    // One loop for both: a second one would be another copy of the turn.
    let ended = loop {
        match (server.turn(timeout), watchdog) {
            (Ok(Turn::Running), None) => {}
            (Ok(Turn::Running), Some(watchdog)) => watchdog.count_turn(),
            (ended, _) => break ended.map(drop),
        }
    };
    (ended, server.report())
}

impl Arguments {
    fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Warn,
            (false, 0) => LevelFilter::Info,
            (false, 1) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.buffer_size = self.buffer_size;
        config.backlog = self.backlog;
        config.max_connections = self.max_connections();
        config.when_full = match self.when_full {
            WhenFullName::Wait => WhenFull::Wait,
            WhenFullName::Reset => WhenFull::Reset,
        };
        config.allow.clone_from(&self.allow);
        config.max_per_source = self.max_per_source;
        config.accept_rate = self.accept_rate;
        config.spin = self.spin;
        config.drain_timeout = self.drain_timeout;
        config.idle_timeout = self.idle_timeout;
        config.stall_timeout = self.stall_timeout;
        config.keepalive = self.keepalive;
        config.recv_buffer = self.socket.recv_buffer;
        config.send_buffer = self.socket.send_buffer;
        config.nodelay = !self.socket.nagle;
        config.reuse_port = self.reuse_port;
        config.unix_mode = self.unix_mode;
        config.proxy_protocol = self.proxy_protocol;
        config.faults.clone_from(&self.faults.rules);
        config.fault_seed = self.faults.seed;
        config
    }

    fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if self.addresses.is_empty() {
            return Ok(vec![DEFAULT_ADDRESS]);
        }
        let mut addresses = Vec::new();
        for endpoint in &self.addresses {
            if let Endpoint::Ip(address) = endpoint {
                addresses.extend(address.resolve(Ipv4Addr::UNSPECIFIED.into())?);
            }
        }
        Ok(addresses)
    }

    /// Returns the Unix sockets among the addresses.
    fn unix(&self) -> Vec<UnixAddress> {
        let unix =
            |endpoint: &Endpoint| if let Endpoint::Unix(address) = endpoint { Some(address.clone()) } else { None };
        self.addresses.iter().filter_map(unix).collect()
    }

    fn open_outputs(&self) -> Result<(Option<Output>, Option<Tracing>), String> {
        let report = self.report.as_deref().map(Output::open).transpose()?;
        let tracing = self.trace.as_ref().map(Tracing::open).transpose()?;
        let traced = tracing.as_ref().map(Tracing::output);
        if let Some(conflict) = output::conflict(&[("--report", report.as_ref()), ("--trace", traced)]) {
            usage_error("serve", conflict);
        }
        Ok((report, tracing))
    }

    /// Binds the addresses of `--metrics`.
    fn bind_metrics(&self) -> Result<Option<Vec<TcpListener>>, Box<dyn Error>> {
        let Some(address) = &self.metrics else { return Ok(None) };
        Ok(Some(metrics::bind(&address.resolve(Ipv4Addr::UNSPECIFIED.into())?)?))
    }

    /// Raises the soft descriptor limit to the hard one, and returns `--max-connections` or what that limit allows.
    fn max_connections(&self) -> usize {
        let limit = descriptors::raise_limit(|warning| log::warn!(target: TARGET, "{warning}"));
        let kept = DESCRIPTORS_KEPT + if self.metrics.is_some() { metrics::CLIENTS_MAX as u64 } else { 0 };
        let most = limit.map(|limit| limit.saturating_sub(kept).max(1));
        let requested = self.max_connections.map(u64::from);
        if let (Some(limit), Some(requested)) = (limit, requested)
            && requested > limit.saturating_sub(kept)
        {
            log::warn!(
                target: TARGET,
                "--max-connections {requested} leaves fewer than {kept} of the {limit} descriptors for other files: raise the limit \
                 (ulimit -Hn)"
            );
        }
        let count = requested.or(most).and_then(|count| usize::try_from(count).ok());
        count.unwrap_or(Config::default().max_connections)
    }
}

/// How far the start has come, for the thread that handles signals.
#[derive(Default)]
struct Stage {
    /// From here on a client may have connected.
    is_binding: AtomicBool,
    service: OnceLock<Service>,
    /// When the log had ended. The results are then written, to a pipe for as long as its reader takes.
    ended_at: OnceLock<Instant>,
}

/// What a signal has an effect on.
struct Service {
    handle: Handle,
    notifier: Option<Notifier>,
}

/// Starts a thread for signals: the first drains the server, and the next stops it. Until the server binds its addresses, a signal ends
/// the process. SIGUSR1 logs the counts since the start, and SIGHUP is ignored.
fn handle_signals(stage: Arc<Stage>, language: Language, logs_shutdown: bool) -> Result<(), String> {
    let requests = Requests::new(&[SIGINT, SIGTERM], &[SIGHUP, SIGUSR1])?;
    let handle_each = move || {
        for signal in requests {
            if signal == SIGHUP {
                continue;
            }
            if !stage.is_binding.load(Ordering::Acquire) {
                if signal == SIGUSR1 {
                    continue;
                }
                process::exit(0);
            }
            let Service { handle, notifier } = stage.service.wait();
            if signal == SIGUSR1 {
                log_so_far(language, &handle.report());
            } else if stage.ended_at.get().is_some_and(|ended| ended.elapsed() > WRITING) {
                output::exit(1);
            } else if handle.is_ending() {
                handle.stop();
            } else {
                if logs_shutdown {
                    log_shutdown(language, &handle.stats());
                }
                // Before the drain, which may end the process at once.
                if let Some(notifier) = notifier {
                    notifier.stopping();
                }
                handle.drain();
            }
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(handle_each)
        .map_err(|error| format!("cannot start the thread that waits for signals: {error}"))?;
    Ok(())
}

/// Returns the final figures as JSON.
fn document(report: &Report, log_lines_lost: u64) -> String {
    let mut json = serde_json::json!(report);
    if let Some(fields) = json.as_object_mut() {
        fields.remove("accept_errors");
        fields.insert("log_lines_lost".to_owned(), log_lines_lost.into());
    }
    format!("{json:#}\n")
}
