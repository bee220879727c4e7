//! Level 4: a client that sends and does not read.

use super::Check;
use super::attempt::{Attempt, HELLO, Outcome, SECONDS};
use super::echo::text;
use super::problem::Problem;
use super::words::{self, Words};

/// Bytes that a client offers without reading.
const OFFERED: usize = 64 << 20;
/// The server's memory may grow by this much for one client: a runtime's noise, but no copy of what was offered.
const GROWTH_MAX: u64 = 16 << 20;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "silent-reader",
        level: 4,
        chapter: words::SENDALL,
        connections: 2,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "a client that does not read stalls only itself",
            "un cliente que no lee se frena solo a sí mismo",
        ),
        sends: Words::new(
            "up to 8 MiB without reading on one connection, then `hola` ten times on another",
            "hasta 8 MiB sin leer por una conexión, y luego diez veces `hola` por otra",
        ),
        matters: Words::new(
            "a server that waits in send for one client, or tries it again and again, serves nobody else",
            "un servidor que espera en send a un cliente, o lo reintenta sin pausa, no atiende a nadie más",
        ),
        run: silent_reader,
    },
    Check {
        name: "all-comes-back",
        level: 4,
        chapter: words::PAUSE,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "everything comes back once a slow client reads",
            "todo vuelve cuando un cliente lento se pone a leer",
        ),
        sends: Words::new(
            "8 MiB, without reading until the server takes no more",
            "8 MiB, sin leer hasta que el servidor deja de aceptar",
        ),
        matters: Words::new(
            "send takes only what fits: a server must keep the rest, pause, and resume, or bytes are lost or stuck",
            "send acepta solo lo que cabe: el servidor debe guardar el resto, pausar y reanudar, o se pierden o se atascan bytes",
        ),
        run: all_comes_back,
    },
    Check {
        name: "memory",
        level: 4,
        chapter: words::SENDALL,
        connections: 1,
        needs_pid: true,
        seconds: SECONDS,
        proves: Words::new(
            "the server's memory does not grow with what a client sends",
            "la memoria del servidor no crece con lo que envía un cliente",
        ),
        sends: Words::new("up to 64 MiB without reading", "hasta 64 MiB sin leer"),
        matters: Words::new(
            "a server that keeps all that a client does not read lets any client take all its memory",
            "un servidor que guarda todo lo que un cliente no lee deja que cualquiera le ocupe toda la memoria",
        ),
        run: memory,
    },
];

fn silent_reader(attempt: &Attempt<'_>) -> Outcome {
    let mut silent = attempt.connect_narrow()?;
    silent.send_until_stalled(&text(8 << 20))?;
    let mut other = attempt.connect()?;
    let replies = (0..10).try_for_each(|_| other.exchange(HELLO));
    silent.leave()?;
    replies
}

fn all_comes_back(attempt: &Attempt<'_>) -> Outcome {
    let mut client = attempt.connect_narrow()?;
    let message = text(8 << 20);
    let sent = client.send_until_stalled(&message)?;
    client.finish(&message, sent)
}

fn memory(attempt: &Attempt<'_>) -> Outcome {
    let process = attempt.process()?;
    let mut client = attempt.connect_narrow()?;
    // A process or thread of its own, if the server starts one, is there once the client is served.
    client.exchange(HELLO)?;
    let before = process.resident_bytes()?;
    let taken = client.send_until_stalled(&text(OFFERED))?;
    let grown = process.resident_bytes()?.saturating_sub(before);
    client.leave()?;
    if grown > GROWTH_MAX { Err(Problem::memory(grown, taken).into()) } else { Ok(()) }
}
