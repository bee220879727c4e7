//! Level 7: thousands of clients.

use super::Check;
use super::attempt::{Attempt, Outcome};
use super::crowd::gather;
use super::words::{self, Words};

/// The check of the accept queue, which is about SYNs.
pub(super) const OF_SYNS: &str = "burst";

/// Clients of `thousand`, `burst` and `ten-thousand`.
const THOUSAND: u32 = 1000;
const BURST: u32 = 2000;
const TEN_THOUSAND: u32 = 10_000;
/// Clients that wait to be served for the first time, where it is no burst: an accept queue of 5 is enough.
const WAITING: u32 = 5;

/// Most seconds of one of these checks.
const SECONDS: u64 = 15;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "thousand",
        level: 7,
        chapter: words::ONE_WAIT,
        connections: THOUSAND,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("1000 clients are served at once", "se atiende a 1000 clientes a la vez"),
        sends: Words::new(
            "8 bytes on each of 1000 connections, and again once all are open",
            "8 bytes por cada una de 1000 conexiones, y otra vez cuando todas están abiertas",
        ),
        matters: Words::new(
            "select stops at 1024 descriptors, and a thread or process for each client costs memory",
            "select se acaba en 1024 descriptores, y un hilo o proceso por cliente cuesta memoria",
        ),
        run: |attempt| crowd(attempt, THOUSAND, WAITING),
    },
    Check {
        name: OF_SYNS,
        level: 7,
        chapter: words::SECOND_CLIENT,
        connections: BURST,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "2000 clients that connect at once need no second SYN",
            "2000 clientes que se conectan a la vez no necesitan un segundo SYN",
        ),
        sends: Words::new(
            "2000 connects at once, and 8 bytes on each",
            "2000 conexiones a la vez, y 8 bytes por cada una",
        ),
        matters: Words::new(
            "when the accept queue is full (listen's backlog), Linux drops the SYN, and the client repeats it after 1 s",
            "cuando la cola de accept está llena (el backlog de listen), Linux descarta el SYN, y el cliente lo repite tras 1 s",
        ),
        run: |attempt| crowd(attempt, BURST, BURST),
    },
    Check {
        name: "ten-thousand",
        level: 7,
        chapter: words::DESCRIPTORS,
        connections: TEN_THOUSAND,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("10,000 clients are served at once", "se atiende a 10,000 clientes a la vez"),
        sends: Words::new(
            "8 bytes on each of 10,000 connections, and again once all are open",
            "8 bytes por cada una de 10,000 conexiones, y otra vez cuando todas están abiertas",
        ),
        matters: Words::new(
            "each connection needs a descriptor: raise the limit (ulimit -n), and use a call whose cost does not grow with idle clients",
            "cada conexión necesita un descriptor: sube el límite (ulimit -n), y usa una llamada cuyo costo no crezca con los clientes inactivos",
        ),
        run: |attempt| crowd(attempt, TEN_THOUSAND, WAITING),
    },
];

fn crowd(attempt: &Attempt<'_>, clients: u32, waiting: u32) -> Outcome {
    gather(attempt, clients as usize, waiting as usize)
}
