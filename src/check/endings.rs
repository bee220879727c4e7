//! Level 5: the ways in which a connection ends.

use std::time::Duration;

use super::Check;
use super::attempt::{Attempt, HELLO, Outcome, SECONDS};
use super::echo::text;
use super::problem::Problem;
use super::target::Process;
use super::words::{self, Words};

/// Resets of the storm, and how many are sent before a client looks whether the server keeps up: an accept queue of 5 is enough.
const RESETS: usize = 2000;
const RESETS_AT_ONCE: usize = 4;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "half-close",
        level: 5,
        chapter: words::ENDINGS,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "FIN from a client is answered with FIN",
            "al FIN de un cliente, el servidor responde con FIN",
        ),
        sends: Words::new("`hola`, and FIN once it has come back", "`hola`, y FIN cuando ha vuelto"),
        matters: Words::new(
            "a server that never closes leaks a descriptor for each client, and the client waits forever",
            "un servidor que nunca cierra pierde un descriptor por cliente, y el cliente espera para siempre",
        ),
        run: half_close,
    },
    Check {
        name: "fin-with-data",
        level: 5,
        chapter: words::EDGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "what was sent before FIN comes back, and then FIN",
            "lo enviado antes del FIN vuelve, y después FIN",
        ),
        sends: Words::new(
            "20 times 3000 bytes and FIN in one segment; then up to 8 MiB and FIN, read only afterwards",
            "20 veces 3000 bytes y FIN en un segmento; luego hasta 8 MiB y FIN, leídos solo después",
        ),
        matters: Words::new(
            "FIN ends one direction only: a server that closes at once cuts off the end of every upload",
            "FIN termina una sola dirección: un servidor que cierra enseguida corta el final de cada envío",
        ),
        run: fin_with_data,
    },
    Check {
        name: "reset",
        level: 5,
        chapter: words::ENDINGS,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("a reset ends only its own connection", "un cierre abrupto termina solo su propia conexión"),
        sends: Words::new(
            "RST: at once, after `hola`, and after `hola` and FIN; 20 times each",
            "RST: enseguida, después de `hola`, y después de `hola` y FIN; 20 veces cada uno",
        )
        .on_unix(
            "a close: at once, after `hola`, and after `hola` and FIN; 20 times each",
            "un cierre: enseguida, después de `hola`, y después de `hola` y FIN; 20 veces cada uno",
        ),
        matters: Words::new(
            "recv and send then fail with ECONNRESET or EPIPE: an error of that client, not of the server",
            "recv y send fallan entonces con ECONNRESET o EPIPE: un error de ese cliente, no del servidor",
        ),
        run: reset,
    },
    Check {
        name: "reset-storm",
        level: 5,
        chapter: words::ENDINGS,
        connections: 5,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("2000 resets leave nothing behind", "2000 cierres abruptos no dejan nada atrás"),
        sends: Words::new(
            "2000 connections that are reset, and `hola` on a new one after every 4",
            "2000 conexiones terminadas con RST, y `hola` por una nueva cada 4",
        )
        .on_unix(
            "2000 connections that are closed, and `hola` on a new one after every 4",
            "2000 conexiones que se cierran, y `hola` por una nueva cada 4",
        ),
        matters: Words::new(
            "a descriptor or thread left behind by each is a server that stops after a day",
            "un descriptor o un hilo olvidado por cada una es un servidor que se detiene al cabo de un día",
        ),
        run: reset_storm,
    },
    Check {
        name: "vanished",
        level: 5,
        chapter: words::ENDINGS,
        connections: 2,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "a client that is gone in the middle of its echo harms no other",
            "un cliente que desaparece en medio de su eco no daña a otro",
        ),
        sends: Words::new(
            "up to 8 MiB without reading, then RST, while another client stays connected",
            "hasta 8 MiB sin leer, y luego RST, mientras otro cliente sigue conectado",
        )
        .on_unix(
            "up to 8 MiB without reading, then a close, while another client stays connected",
            "hasta 8 MiB sin leer, y luego un cierre, mientras otro cliente sigue conectado",
        ),
        matters: Words::new(
            "the server finds out while it writes: with an error, or with SIGPIPE, which ends the process if it is not ignored",
            "el servidor se entera al escribir: con un error, o con SIGPIPE, que termina el proceso si no se ignora",
        ),
        run: vanished,
    },
];

fn half_close(attempt: &Attempt<'_>) -> Outcome {
    let mut client = attempt.connect()?;
    client.exchange(HELLO)?;
    client.half_close();
    client.expect_end()
}

fn fin_with_data(attempt: &Attempt<'_>) -> Outcome {
    let message = text(3000);
    for _ in 0..20 {
        let mut client = attempt.connect()?;
        client.send_with_fin(&message)?;
        client.receive(&message)?;
        client.expect_end()?;
    }
    let message = text(8 << 20);
    let mut client = attempt.connect_narrow()?;
    let sent = client.send_until_stalled(&message)?;
    client.half_close();
    // The server has the time to do something wrong.
    attempt.sleep(Duration::from_millis(100))?;
    client.receive(&message[..sent])?;
    client.expect_end()
}

fn reset(attempt: &Attempt<'_>) -> Outcome {
    for _ in 0..20 {
        attempt.connect()?.reset();
        let mut client = attempt.connect()?;
        client.send(HELLO)?;
        client.reset();
        let mut client = attempt.connect()?;
        client.send(HELLO)?;
        client.half_close();
        client.reset();
        attempt.connect()?.exchange(HELLO)?;
    }
    Ok(())
}

fn reset_storm(attempt: &Attempt<'_>) -> Outcome {
    let process = attempt.process().ok();
    let before = process.map(Process::descriptors).transpose()?.map(|open| open.len());
    for storm in 0..RESETS / RESETS_AT_ONCE {
        for _ in 0..RESETS_AT_ONCE {
            let mut client = attempt.connect()?;
            if storm % 2 == 0 {
                client.send(HELLO)?;
            }
            client.reset();
        }
        attempt.connect()?.exchange(HELLO)?;
    }
    let (Some(process), Some(before)) = (process, before) else { return Ok(()) };
    let mut left = 0;
    let is_clean = attempt.eventually(|| {
        left = process.descriptors().map_or(0, |open| open.len()).saturating_sub(before);
        left < RESETS / 100
    })?;
    if is_clean { Ok(()) } else { Err(Problem::descriptors(left).into()) }
}

fn vanished(attempt: &Attempt<'_>) -> Outcome {
    let mut other = attempt.connect()?;
    other.exchange(HELLO)?;
    let mut client = attempt.connect_narrow()?;
    client.send_until_stalled(&text(8 << 20))?;
    client.reset();
    other.exchange(HELLO)
}
