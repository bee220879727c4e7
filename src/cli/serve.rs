//! `ecoloop serve`: the echo server as a process.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{ArgAction, Args};
use ecoloop::{Config, Handle, Report, Server};
use log::LevelFilter;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::log::TARGET;
use super::log_observer::{Language, LogObserver};
use super::values::{Address, SocketArguments, count, size};

/// Descriptors for what is not a connection: standard streams, the poll, listeners, the report, and a reserve.
const DESCRIPTORS_KEPT: u64 = 64;

#[derive(Args)]
pub(super) struct Arguments {
    /// Where to listen
    #[arg(value_name = "ADDR", default_value = "0.0.0.0:5000")]
    addresses: Vec<Address>,

    /// The buffer that every read goes through, and the most that a connection keeps pending
    #[arg(long, value_name = "SIZE", default_value = "1024", value_parser = size)]
    buffer_size: usize,

    /// Connections that the kernel holds until they are accepted
    #[arg(long, value_name = "COUNT", default_value = "4096", value_parser = count)]
    backlog: u32,

    /// Connections open at once; more wait in the backlog [default: the descriptor limit less 64]
    #[arg(long, value_name = "COUNT", value_parser = count)]
    max_connections: Option<u32>,

    /// How long to poll without waiting before each wait: lone messages are answered sooner, and a core is kept busy
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    spin: Duration,

    /// From the signal to drain to the end of those that have not
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,

    #[command(flatten)]
    socket: SocketArguments,

    /// Share the port with other processes that say the same
    #[arg(long)]
    reuse_port: bool,

    /// Write the final figures there as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// The language of the log [default: the locale's]
    #[arg(long)]
    lang: Option<Language>,

    /// Log what comes in, too; twice, why each connection closed
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,

    /// Log nothing but warnings and errors
    #[arg(short, conflicts_with = "verbose")]
    quiet: bool,
}

/// Serves until a signal ends the process.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let report_file = arguments.report.as_ref().map(|path| {
        // Not truncated yet: a server that cannot listen keeps the previous report.
        match OpenOptions::new().write(true).create(true).truncate(false).open(path) {
            Ok(file) => Ok((path, file)),
            Err(error) => Err(format!("cannot create {}: {error}", path.display())),
        }
    });
    let report_file = report_file.transpose()?;
    // Before the address is bound: a process that accepts connections can be shut down gracefully.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| format!("cannot handle signals: {error}"))?;
    let log_writer = super::log::start(arguments.level()).map_err(|error| format!("cannot start the log: {error}"))?;

    let server = arguments.bind()?;
    if let Some((path, file)) = &report_file {
        truncate(file).map_err(|error| format!("cannot truncate {}: {error}", path.display()))?;
    }
    let handle = server.handle();
    let observer = LogObserver::new(arguments.lang.unwrap_or_else(Language::from_environment), handle.clone());
    observer.log_start(server.local_addrs());
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || handle_signals(signals, &handle))
        .map_err(|error| format!("cannot start the thread that waits for signals: {error}"))?;
    let mut server = server.with_observer(observer);
    let ended = server.run();

    let report = server.report();
    log::info!(target: TARGET, "{}", server.observer().summary(&report));
    let lost = log_writer.finish();
    if let Some((path, file)) = report_file {
        write_report(file, &report, lost).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    ended.map_err(|error| format!("cannot wait for events: {error}"))?;
    Ok(ExitCode::SUCCESS)
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

    fn bind(&self) -> io::Result<Server> {
        let mut config = Config::default();
        config.buffer_size = self.buffer_size;
        config.backlog = self.backlog;
        config.max_connections = self.max_connections()?;
        config.spin = self.spin;
        config.drain_timeout = self.drain_timeout;
        config.recv_buffer = self.socket.recv_buffer;
        config.send_buffer = self.socket.send_buffer;
        config.nodelay = !self.socket.nagle;
        config.reuse_port = self.reuse_port;
        let mut addresses = Vec::new();
        for address in &self.addresses {
            addresses.extend(address.resolve(Ipv4Addr::UNSPECIFIED.into())?);
        }
        Server::bind(&addresses[..], config).map_err(with_hint)
    }

    /// Raises the soft descriptor limit to the hard one, and returns `--max-connections` or what that limit allows.
    fn max_connections(&self) -> io::Result<usize> {
        let limit = rlimit::increase_nofile_limit(u64::MAX)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read the descriptor limit: {error}")))?;
        let most = limit.saturating_sub(DESCRIPTORS_KEPT).max(1);
        if let Some(requested) = self.max_connections.filter(|&requested| u64::from(requested) > most) {
            log::warn!(
                target: TARGET,
                "--max-connections {requested} exceeds the descriptor limit of {limit}: raise it (ulimit -Hn)"
            );
        }
        Ok(usize::try_from(self.max_connections.map_or(most, u64::from)).unwrap_or(usize::MAX))
    }
}

/// Adds to a bind error what to do about it.
fn with_hint(error: io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "end the other server, choose another port, or start both with --reuse-port",
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has this address; ip address lists those that exist"
        }
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {hint}"))
}

/// Drains at the first signal and stops at the next. Ignores SIGHUP.
fn handle_signals(mut signals: Signals, handle: &Handle) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => {}
            _ if handle.is_ending() => handle.stop(),
            _ => handle.drain(),
        }
    }
}

/// Truncates a regular file. A device or a pipe has nothing to truncate.
fn truncate(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(0) } else { Ok(()) }
}

fn write_report(mut file: File, report: &Report, log_lines_lost: u64) -> io::Result<()> {
    let (stats, closed) = (report.stats, report.stats.closed);
    let json = serde_json::json!({
        "accepted": stats.accepted,
        "closed": {
            "end_of_stream": closed.end_of_stream,
            "reset": closed.reset,
            "failed": closed.failed,
            "idle": closed.idle,
            "drained": closed.drained,
            "cut": closed.cut,
            "stopped": closed.stopped,
        },
        "bytes_in": stats.bytes_in,
        "bytes_out": stats.bytes_out,
        "discarded": stats.discarded,
        "log_lines_lost": log_lines_lost,
        "seconds": report.elapsed.as_secs_f64(),
    });
    writeln!(file, "{json:#}")
}
