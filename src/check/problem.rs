//! What went wrong in a check, in words for the author of the server.

use std::io;
use std::time::Duration;

use super::attempt::{Outcome, Stop};
use super::words::{Language, Words};
use super::{TIME_LEFT_MIN, TIME_MAX};

/// What came instead of what was expected, in both languages.
#[derive(Debug)]
pub(super) struct Problem {
    en: String,
    es: String,
}

impl Problem {
    fn new(en: impl Into<String>, es: impl Into<String>) -> Self {
        Self { en: en.into(), es: es.into() }
    }

    pub(super) fn words(&self, language: Language) -> &str {
        match language {
            Language::English => &self.en,
            Language::Spanish => &self.es,
        }
    }

    pub(super) fn not_connected(error: &io::Error) -> Self {
        Self::new(format!("the connect fails: {error}"), format!("la conexión falla: {error}"))
    }

    pub(super) fn failed(error: &io::Error) -> Self {
        Self::new(format!("error of the connection: {error}"), format!("error de la conexión: {error}"))
    }

    pub(super) fn silent(received: usize, expected: usize) -> Self {
        Self::new(
            format!("{received} of {expected} bytes came back, and then nothing"),
            format!("volvieron {received} de {expected} bytes, y después nada"),
        )
    }

    pub(super) fn closed(received: usize, expected: usize) -> Self {
        Self::new(
            format!("the server closed after {received} of {expected} bytes had come back"),
            format!("el servidor cerró tras devolver {received} de {expected} bytes"),
        )
    }

    pub(super) fn reset(received: usize, expected: usize) -> Self {
        Self::new(
            format!("the server reset the connection (RST) after {received} of {expected} bytes had come back"),
            format!("el servidor abortó la conexión (RST) tras devolver {received} de {expected} bytes"),
        )
    }

    pub(super) fn reset_at_the_end() -> Self {
        Self::new(
            "everything came back, but at the end the server sent RST instead of FIN",
            "volvió todo, pero al final el servidor mandó RST en vez de FIN",
        )
    }

    /// A reset on a Unix socket, which has no RST.
    pub(super) fn closed_unread(received: usize, expected: usize) -> Self {
        Self::new(
            format!("the server closed without reading all, after {received} of {expected} bytes had come back"),
            format!("el servidor cerró sin leer todo, tras devolver {received} de {expected} bytes"),
        )
    }

    pub(super) fn closed_unread_at_the_end() -> Self {
        Self::new(
            "everything came back, but at the end the server closed without reading all",
            "volvió todo, pero al final el servidor cerró sin leer todo",
        )
    }

    pub(super) fn differs(at: usize, sent: u8, came: u8) -> Self {
        Self::new(
            format!("byte {at} differs: {sent:#04x} was sent, {came:#04x} came back"),
            format!("el byte {at} no es el mismo: salió {sent:#04x} y volvió {came:#04x}"),
        )
    }

    pub(super) fn surplus() -> Self {
        Self::new("bytes came that were not sent", "llegaron bytes que nadie había enviado")
    }

    pub(super) fn not_closed() -> Self {
        Self::new(
            "everything came back, but the server does not close (its FIN does not come)",
            "volvió todo, pero el servidor no cierra (no llega su FIN)",
        )
    }

    pub(super) fn not_taken(taken: usize, of: usize) -> Self {
        Self::new(
            format!("the server stopped reading: it took {taken} of {of} bytes"),
            format!("el servidor dejó de leer: aceptó {taken} de {of} bytes"),
        )
    }

    /// The others of a crowd got their bytes. `example` is what happened to one that did not, and `limit` the server's descriptor
    /// limit, if it is known.
    pub(super) fn unserved(served: usize, of: usize, example: Option<&io::Error>, limit: Option<u64>) -> Self {
        let (en, es) = example.map_or(("got nothing".to_owned(), "no recibieron nada".to_owned()), |error| {
            (format!("failed, such as: {error}"), format!("fallaron, por ejemplo: {error}"))
        });
        let limit = limit.map(|limit| format!(" (RLIMIT_NOFILE: {limit})")).unwrap_or_default();
        Self::new(
            format!("{served} of {of} clients got their bytes back; the others {en}{limit}"),
            format!("{served} de {of} clientes recibieron sus bytes; los demás {es}{limit}"),
        )
    }

    pub(super) fn memory(grown_bytes: u64, taken_bytes: usize) -> Self {
        let (grown, taken) = (grown_bytes >> 20, taken_bytes >> 20);
        Self::new(
            format!("the server took {taken} MiB, and its memory grew by {grown} MiB"),
            format!("el servidor aceptó {taken} MiB y su memoria creció {grown} MiB"),
        )
    }

    pub(super) fn busy(cpu: Duration, time: Duration) -> Self {
        let (cpu, time) = (cpu.as_millis(), time.as_millis());
        Self::new(
            format!("the server used {cpu} ms of CPU time in {time} ms, with nothing to do"),
            format!("el servidor usó {cpu} ms de CPU en {time} ms, sin nada que hacer"),
        )
    }

    pub(super) fn died() -> Self {
        Self::new("the server's process ended", "el proceso del servidor terminó")
    }

    pub(super) fn descriptors(left: usize) -> Self {
        Self::new(
            format!("the server has {left} more descriptors open than before, and every client is gone"),
            format!("el servidor tiene {left} descriptores más que antes, y ya no hay clientes"),
        )
    }

    /// Clients that connected while no descriptor was free.
    pub(super) fn forgotten(clients: usize) -> Self {
        Self::new(
            format!("with descriptors free again, {clients} clients are still neither served nor closed"),
            format!("con descriptores libres otra vez, {clients} clientes siguen sin respuesta y sin cierre"),
        )
    }

    pub(super) fn not_stopped() -> Self {
        Self::new("the process did not stop on SIGSTOP", "el proceso no se detuvo con SIGSTOP")
    }

    pub(super) fn not_ended() -> Self {
        Self::new("the process still runs after SIGTERM", "el proceso sigue vivo después de SIGTERM")
    }

    /// A new client is not served after the check, which ended so.
    pub(super) fn no_longer_serves(outcome: Outcome) -> Self {
        let before = match outcome {
            Err(Stop::Fail(problem)) => problem,
            Err(Stop::Slow) => Self::new(SLOW.get(Language::English), SLOW.get(Language::Spanish)),
            Err(Stop::Skip(skip)) => Self::new(skip.words(Language::English), skip.words(Language::Spanish)),
            Ok(()) | Err(Stop::Interrupted) => Self::new("everything came back", "volvió todo"),
        };
        Self::new(
            format!("{}; afterwards a new client is not served", before.en),
            format!("{}; después, a un cliente nuevo no se le atiende", before.es),
        )
    }
}

/// Why a check did not run.
#[derive(Debug)]
pub(super) enum Skip {
    NoPid,
    NoTime,
    /// The check is about SYNs, and the server is on a Unix socket.
    NoSyn,
    /// The server does not serve since an earlier check.
    Gone {
        since: &'static str,
    },
    /// A socket of the grader's own could not be opened.
    Own(io::Error),
    /// Linux does not report what the check needs.
    Unreadable,
    /// The server is in the grader's process, which would stop or end itself.
    OwnProcess,
}

impl Skip {
    pub(super) fn words(&self, language: Language) -> String {
        let es = language == Language::Spanish;
        match self {
            Self::NoPid if es => "necesita --pid".into(),
            Self::NoPid => "needs --pid".into(),
            Self::NoTime if es => {
                format!("quedan menos de {} s de los {} s", TIME_LEFT_MIN.as_secs(), TIME_MAX.as_secs())
            }
            Self::NoTime => {
                format!("less than {} s of the {} s are left", TIME_LEFT_MIN.as_secs(), TIME_MAX.as_secs())
            }
            Self::NoSyn if es => "solo TCP tiene SYN: en un socket Unix el cliente espera".into(),
            Self::NoSyn => "TCP alone has SYNs: the client of a Unix socket waits".into(),
            Self::Gone { since } if es => format!("desde {since} el servidor no atiende"),
            Self::Gone { since } => format!("the server does not serve since {since}"),
            Self::Own(error) if es => format!("este equipo no puede abrir más conexiones: {error}"),
            Self::Own(error) => format!("this machine cannot open more connections: {error}"),
            Self::Unreadable if es => "Linux no informa de lo que hace falta sobre el proceso".into(),
            Self::Unreadable => "Linux does not report what is needed about the process".into(),
            Self::OwnProcess if es => "el servidor está en el proceso de esta prueba".into(),
            Self::OwnProcess => "the server is in the process of this check".into(),
        }
    }
}

/// The words of a check whose time was over while bytes were still coming.
pub(super) const SLOW: Words = Words::new(
    "all that came was right, but the time of this check was over",
    "todo lo que llegó era correcto, pero se acabó el tiempo de esta prueba",
);

/// Returns the words of a check that passed late.
pub(super) fn waited(waited: Duration, language: Language) -> String {
    let seconds = waited.as_secs_f64();
    match language {
        Language::Spanish => format!("todo bien, pero una espera duró {seconds:.1} s"),
        Language::English => format!("all right, but one wait took {seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_in_mebibytes() {
        let problem = Problem::memory(20_971_520, 67_108_864);
        assert_eq!(problem.words(Language::English), "the server took 64 MiB, and its memory grew by 20 MiB");
        assert_eq!(problem.words(Language::Spanish), "el servidor aceptó 64 MiB y su memoria creció 20 MiB");
    }

    #[test]
    fn each_reason_to_skip_is_given_in_the_language_asked_for() {
        for (skip, en, es) in [
            (Skip::NoPid, "needs --pid", "necesita --pid"),
            (Skip::NoTime, "less than 4 s of the 60 s are left", "quedan menos de 4 s de los 60 s"),
            (
                Skip::NoSyn,
                "TCP alone has SYNs: the client of a Unix socket waits",
                "solo TCP tiene SYN: en un socket Unix el cliente espera",
            ),
            (
                Skip::Gone { since: "reset" },
                "the server does not serve since reset",
                "desde reset el servidor no atiende",
            ),
            (
                Skip::Own(io::ErrorKind::AddrNotAvailable.into()),
                "this machine cannot open more connections: address not available",
                "este equipo no puede abrir más conexiones: address not available",
            ),
            (
                Skip::Unreadable,
                "Linux does not report what is needed about the process",
                "Linux no informa de lo que hace falta sobre el proceso",
            ),
            (
                Skip::OwnProcess,
                "the server is in the process of this check",
                "el servidor está en el proceso de esta prueba",
            ),
        ] {
            assert_eq!([skip.words(Language::English), skip.words(Language::Spanish)], [en, es]);
        }
    }
}
