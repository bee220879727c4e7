//! The log lines about the server and its connections, in the notes' words.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};
use std::io;
use std::net::SocketAddr;

use clap::ValueEnum;
use ecoloop::transport::AnyAddress;
use ecoloop::{CloseReason, Fault, Handle, Observer, Peer, Report, Stats};
use log::{Level, Record};

use super::escape::Printable;
use super::format::plural;
use super::log::TARGET;
use super::metrics::TurnTimer;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    En,
    Es,
}

impl Language {
    /// Returns the locale's language, if that is Spanish, else English: the first of the three variables that is set and not
    /// empty (locale(7)).
    pub(super) fn from_environment() -> Self {
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty());
        if locale.is_some_and(|locale| locale.starts_with("es")) { Self::Es } else { Self::En }
    }

    pub(super) fn pick<T>(self, en: T, es: T) -> T {
        match self {
            Self::En => en,
            Self::Es => es,
        }
    }

    /// Returns why the server closed a connection, or `None` if the client did.
    fn server_reason(self, reason: CloseReason) -> Option<Cow<'static, str>> {
        let words = match reason {
            CloseReason::EndOfStream | CloseReason::Reset => return None,
            // Of a connection's own calls, none fails with this kind.
            CloseReason::Failed(io::ErrorKind::InvalidData) => {
                self.pick("its PROXY header is bad or missing", "su cabecera PROXY es invalida o no ha llegado")
            }
            CloseReason::Failed(kind) => return Some(format!("error: {}", io::Error::from(kind)).into()),
            CloseReason::Idle => self.pick("the idle timeout has expired", "ha vencido el plazo de inactividad"),
            CloseReason::Stalled => self.pick("the stall timeout has expired", "ha vencido el plazo de envio"),
            CloseReason::Drained => self.pick("the server is shutting down", "el servidor se apaga"),
            CloseReason::Cut => self.pick("the drain timeout has expired", "ha vencido el plazo de apagado"),
            CloseReason::Stopped => self.pick("the server was stopped", "se ha detenido el servidor"),
            CloseReason::Fault => self.pick("a fault on purpose", "un fallo a proposito"),
            // `CloseReason` is non-exhaustive: a new reason is logged by its name.
            other => return Some(format!("{other:?}").into()),
        };
        Some(words.into())
    }
}

/// Logs the addresses that the server listens on.
pub(super) fn log_start(language: Language, addresses: impl Iterator<Item = AnyAddress>) {
    for address in addresses {
        let Some(address) = address.tcp() else {
            let words = language.pick("Starting server on", "Iniciando servidor en");
            log::info!(target: TARGET, "{words} {address}");
            continue;
        };
        let (ip, port) = (address.ip(), address.port());
        match language {
            Language::En => log::info!(target: TARGET, "Starting server on IP {ip}, port {port}"),
            Language::Es => log::info!(target: TARGET, "Iniciando servidor en IP {ip}, con puerto {port}"),
        }
    }
    log_waiting(language);
}

fn log_waiting(language: Language) {
    log::info!(target: TARGET, "{}", language.pick("Waiting for connections...", "Esperando conexiones..."));
}

/// Logs where the metrics are.
pub(super) fn log_metrics(language: Language, address: SocketAddr) {
    match language {
        Language::En => log::info!(target: TARGET, "Metrics on http://{address}/metrics"),
        Language::Es => log::info!(target: TARGET, "Metricas en http://{address}/metrics"),
    }
}

/// Logs that the server shuts down.
pub(super) fn log_shutdown(language: Language, stats: &Stats) {
    let open = stats.open();
    match language {
        Language::En => {
            log::info!(target: TARGET, "Shutting down: {}", plural(open, "connection is open", "connections are open"));
        }
        Language::Es => {
            log::info!(target: TARGET, "Apagando: {}", plural(open, "conexion abierta", "conexiones abiertas"));
        }
    }
}

/// Logs the final figures.
pub(super) fn log_end(language: Language, report: &Report) {
    log::info!(target: TARGET, "{}: {}", language.pick("Done", "Fin"), figures(language, report));
}

/// Logs the counts since the start, at any level: SIGUSR1 requested them.
pub(super) fn log_so_far(language: Language, report: &Report) {
    let (open, figures) = (report.stats.open(), figures(language, report));
    let mut line = Record::builder();
    line.level(Level::Info).target(TARGET);
    match language {
        Language::En => log::logger().log(&line.args(format_args!("So far: {open} open, {figures}")).build()),
        Language::Es => log::logger()
            .log(&line.args(format_args!("Hasta ahora: {}, {figures}", plural(open, "abierta", "abiertas"))).build()),
    }
}

fn figures(language: Language, report: &Report) -> String {
    let (stats, closed) = (report.stats, report.stats.closed);
    let reasons = [
        (closed.end_of_stream, language.pick("end of stream", "fin de datos")),
        (closed.reset, language.pick("reset", "de forma abrupta")),
        (closed.failed, language.pick("failed", "por error")),
        (closed.idle, language.pick("idle", "por inactividad")),
        (closed.stalled, language.pick("stalled", "por no leer")),
        (closed.drained, language.pick("drained", "al terminar")),
        (closed.cut, language.pick("cut", if closed.cut == 1 { "cortada" } else { "cortadas" })),
        (closed.stopped, language.pick("stopped", "al parar")),
        (closed.fault, language.pick("fault", "por un fallo a proposito")),
    ];
    let mut words = String::new();
    for (count, reason) in reasons.into_iter().filter(|&(count, _)| count > 0) {
        let separator = if words.is_empty() { " (" } else { ", " };
        let _ = write!(words, "{separator}{count} {reason}");
    }
    if !words.is_empty() {
        words.push(')');
    }
    let refused = match (stats.refused.total(), language) {
        (0, _) => String::new(),
        (count, Language::En) => format!(", {count} refused"),
        (count, Language::Es) => format!(", {}", plural(count, "rechazada", "rechazadas")),
    };
    let (accepted, total, seconds) = (stats.accepted, closed.total(), report.elapsed.as_secs_f64());
    let (bytes_in, bytes_out) = (stats.bytes_in, stats.bytes_out);
    match language {
        Language::En => format!(
            "{} accepted, {total} closed{words}{refused}, {} in, {} out, {seconds:.3} s",
            plural(accepted, "connection", "connections"),
            plural(bytes_in, "byte", "bytes"),
            plural(bytes_out, "byte", "bytes"),
        ),
        Language::Es => format!(
            "{}, {}{words}{refused}, {}, {}, {seconds:.3} s",
            plural(accepted, "conexion aceptada", "conexiones aceptadas"),
            plural(total, "cerrada", "cerradas"),
            plural(bytes_in, "byte recibido", "bytes recibidos"),
            plural(bytes_out, "byte enviado", "bytes enviados"),
        ),
    }
}

#[cfg(feature = "load")]
impl From<Language> for ecoloop::check::Language {
    fn from(language: Language) -> Self {
        language.pick(Self::English, Self::Spanish)
    }
}

/// Logs the events of each connection, in the notes' words, and times the turns of the loop. Without `MESSAGES` a message costs
/// nothing.
#[derive(Debug)]
pub(super) struct LogObserver<const MESSAGES: bool> {
    language: Language,
    /// Tells whether the server is ending: then it no longer waits for connections.
    handle: Handle,
    /// Without, it logs nothing. A type of its own for that would be another copy of the loop.
    is_enabled: bool,
    open: usize,
    /// With `--metrics`. Another observer for it would be another copy of the loop.
    timer: Option<TurnTimer>,
}

impl<const MESSAGES: bool> LogObserver<MESSAGES> {
    pub(super) fn new(language: Language, handle: Handle, is_enabled: bool, timer: Option<TurnTimer>) -> Self {
        Self { language, handle, is_enabled, open: 0, timer }
    }

    /// Apart from the hot path, which does not log.
    #[cold]
    fn log_received(&self, peer: Peer, data: &[u8]) {
        let words = self.language.pick("Received", "Recibido");
        log::debug!(target: TARGET, "{} {words} {}", Bracketed(peer), Printable(data));
    }
}

impl<const MESSAGES: bool> Observer for LogObserver<MESSAGES> {
    fn waiting(&mut self) {
        if let Some(timer) = &mut self.timer {
            timer.waiting();
        }
    }

    fn woken(&mut self, _: usize) {
        if let Some(timer) = &mut self.timer {
            timer.woken();
        }
    }

    fn opened(&mut self, peer: Peer) {
        if !self.is_enabled {
            return;
        }
        self.open += 1;
        let words = self.language.pick("Connection from:", "Conexion desde:");
        log::info!(target: TARGET, "{words} {}", PeerName::from(peer));
    }

    fn faulted(&mut self, peer: Peer, fault: &Fault) {
        let words = self.language.pick("Fault:", "Fallo:");
        log::debug!(target: TARGET, "{} {words} {fault}", Bracketed(peer));
    }

    fn received(&mut self, peer: Peer, data: &[u8]) {
        if MESSAGES {
            self.log_received(peer, data);
        }
    }

    fn ended(&mut self, peer: Peer) {
        let words = self.language.pick("No more data", "No hay mas datos");
        log::debug!(target: TARGET, "{} {words}", Bracketed(peer));
    }

    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        if !self.is_enabled {
            return;
        }
        self.open -= 1;
        let key = peer.key;
        let peer = Bracketed(peer);
        log::trace!(target: TARGET, "{peer} key {key}: {reason:?}");
        if reason == CloseReason::Reset {
            let words = self.language.pick(
                "The client closed the connection abruptly",
                "El cliente ha cerrado la conexion de forma abrupta",
            );
            log::info!(target: TARGET, "{peer} {words}");
        }
        match self.language.server_reason(reason) {
            None => {
                let words = self.language.pick("The client closed the connection", "El cliente ha cerrado la conexion");
                log::info!(target: TARGET, "{peer} {words}");
            }
            Some(reason) => {
                let words = self.language.pick("Connection closed:", "La conexion se ha cerrado:");
                log::info!(target: TARGET, "{peer} {words} {reason}");
            }
        }
        if self.open == 0 && !self.handle.is_ending() {
            log_waiting(self.language);
        }
    }
}

/// A peer in one pair of brackets: the text of an IPv6 address has its own.
struct Bracketed(Peer);

impl Display for Bracketed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PeerName::from(self.0) {
            name @ PeerName::Address(SocketAddr::V6(_)) => name.fmt(formatter),
            name => write!(formatter, "[{name}]"),
        }
    }
}

/// A peer by its address, or by its key if it has none: `unix#7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerName {
    Address(SocketAddr),
    Unix { key: usize },
}

impl From<Peer> for PeerName {
    fn from(peer: Peer) -> Self {
        match peer.address {
            Peer::NO_ADDRESS => Self::Unix { key: peer.key },
            address => Self::Address(address),
        }
    }
}

impl Display for PeerName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Unix { key } => write!(formatter, "unix#{key}"),
        }
    }
}
