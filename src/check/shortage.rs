//! Level 8: what the system can do to a server. These checks need its process.

use std::time::{Duration, Instant};

use super::Check;
use super::attempt::{Attempt, HELLO, Outcome, SECONDS};
use super::client::Client;
use super::problem::Problem;
use super::words::{self, Words};

/// The check that ends the server.
pub(super) const LAST: &str = "drain";

/// Connections that wait for a stopped server, or without a descriptor: an accept queue of 5 is enough.
const WAITING: usize = 5;
/// Descriptors that are left to the server.
const DESCRIPTORS_LEFT: usize = 3;
/// How long the server's CPU time is watched.
const WATCHED: Duration = Duration::from_secs(1);

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "pause",
        level: 8,
        chapter: words::STOPPING,
        connections: 2,
        needs_pid: true,
        seconds: SECONDS,
        proves: Words::new("SIGSTOP and SIGCONT lose nothing", "SIGSTOP y SIGCONT no pierden nada"),
        sends: Words::new(
            "SIGSTOP, `hola` on an open connection and on a new one, SIGCONT",
            "SIGSTOP, `hola` por una conexión abierta y por una nueva, SIGCONT",
        ),
        matters: Words::new(
            "a wait that a signal interrupts returns EINTR: the server has to wait again, not to end",
            "una espera que una señal interrumpe devuelve EINTR: el servidor tiene que volver a esperar, no terminar",
        ),
        run: pause,
    },
    Check {
        name: "gone-before-accept",
        level: 8,
        chapter: words::DESCRIPTORS,
        connections: 6,
        needs_pid: true,
        seconds: SECONDS,
        proves: Words::new(
            "a client that is gone before accept harms no other",
            "un cliente que se va antes de accept no daña a otro",
        ),
        sends: Words::new(
            "SIGSTOP, 5 connections that are reset, SIGCONT, and `hola` on a new one; 4 times",
            "SIGSTOP, 5 conexiones terminadas con RST, SIGCONT, y `hola` por una nueva; 4 veces",
        )
        .on_unix(
            "SIGSTOP, 5 connections that are closed, SIGCONT, and `hola` on a new one; 4 times",
            "SIGSTOP, 5 conexiones que se cierran, SIGCONT, y `hola` por una nueva; 4 veces",
        ),
        matters: Words::new(
            "accept, or the first call on what it returns, then fails: an error of one client, not of the server",
            "accept, o la primera llamada sobre lo que devuelve, falla entonces: un error de un cliente, no del servidor",
        ),
        run: gone_before_accept,
    },
    Check {
        name: "descriptors",
        level: 8,
        chapter: words::DESCRIPTORS,
        connections: 9,
        needs_pid: true,
        seconds: SECONDS,
        proves: Words::new(
            "without descriptors the server lives, idles, and goes on later",
            "sin descriptores el servidor vive, descansa y después sigue",
        ),
        sends: Words::new(
            "a descriptor limit that leaves 3, then `hola` on 8 new connections; a second later the limit is back",
            "un límite de descriptores que deja 3, luego `hola` por 8 conexiones nuevas; un segundo después vuelve el límite",
        ),
        matters: Words::new(
            "accept fails with EMFILE and the client stays in the queue: a server may end, spin, or forget that client",
            "accept falla con EMFILE y el cliente sigue en la cola: un servidor puede terminar, dar vueltas sin fin u olvidarlo",
        ),
        run: descriptors,
    },
    Check {
        name: LAST,
        level: 8,
        chapter: words::STOPPING,
        connections: 1,
        needs_pid: true,
        seconds: SECONDS,
        proves: Words::new(
            "SIGTERM ends the server after what has arrived is echoed",
            "SIGTERM termina el servidor después de devolver lo que ya llegó",
        ),
        sends: Words::new(
            "SIGSTOP, `hola` on an open connection, SIGTERM, SIGCONT",
            "SIGSTOP, `hola` por una conexión abierta, SIGTERM, SIGCONT",
        ),
        matters: Words::new(
            "each new version of a server starts with a SIGTERM to the old one: what it drops, its clients lose",
            "cada versión nueva de un servidor empieza con un SIGTERM a la anterior: lo que esta suelta, sus clientes lo pierden",
        ),
        run: drain,
    },
];

fn pause(attempt: &Attempt<'_>) -> Outcome {
    let process = attempt.process()?;
    let mut open = attempt.connect()?;
    open.exchange(HELLO)?;
    let paused = process.pause(attempt)?;
    open.send(HELLO)?;
    let mut new = attempt.connect()?;
    new.send(HELLO)?;
    drop(paused);
    open.receive(HELLO)?;
    new.receive(HELLO)
}

fn gone_before_accept(attempt: &Attempt<'_>) -> Outcome {
    let process = attempt.process()?;
    for _ in 0..4 {
        let paused = process.pause(attempt)?;
        for _ in 0..WAITING {
            attempt.connect()?.reset();
        }
        drop(paused);
        attempt.connect()?.exchange(HELLO)?;
    }
    Ok(())
}

fn descriptors(attempt: &Attempt<'_>) -> Outcome {
    let process = attempt.process()?;
    let mut open = attempt.connect()?;
    open.exchange(HELLO)?;
    let lowered = process.leave_descriptors(DESCRIPTORS_LEFT)?;
    let mut clients = Vec::new();
    for _ in 0..DESCRIPTORS_LEFT + WAITING {
        let client = attempt.connect()?;
        client.offer(HELLO);
        clients.push(client);
    }
    attempt.sleep(WATCHED / 4)?;
    let (start, cpu, queued) = (Instant::now(), process.cpu_time()?, process.queued_time());
    attempt.sleep(WATCHED)?;
    if !process.is_alive() {
        return Err(Problem::died().into());
    }
    let (time, cpu) = (start.elapsed(), process.cpu_time()?.saturating_sub(cpu));
    if is_busy(time, cpu, process.queued_time().saturating_sub(queued)) {
        return Err(Problem::busy(cpu, time).into());
    }
    open.exchange(HELLO)?;
    drop(lowered);
    // What those leave that were served is free again: some servers look only after a close.
    clients.retain(|client| !client.is_answered());
    expect_answers(&clients)
}

/// Returns whether a process has used the CPU in a way that no idle one does: for a fifth of the time, or, where it has to share the CPU
/// with many others, whenever it could.
fn is_busy(time: Duration, cpu: Duration, queued: Duration) -> bool {
    cpu > time / 5 || (cpu > time / 20 && cpu + queued > time * 4 / 5)
}

/// Expects that each client is served or closed: a server may refuse clients, but it must not forget them.
fn expect_answers(clients: &[Client<'_>]) -> Outcome {
    let mut forgotten = 0;
    for client in clients {
        forgotten += usize::from(!client.await_answer()?);
    }
    if forgotten > 0 { Err(Problem::forgotten(forgotten).into()) } else { Ok(()) }
}

fn drain(attempt: &Attempt<'_>) -> Outcome {
    let process = attempt.process()?;
    let mut client = attempt.connect()?;
    client.exchange(HELLO)?;
    let paused = process.pause(attempt)?;
    client.send(HELLO)?;
    process.terminate()?;
    drop(paused);
    client.receive(HELLO)?;
    client.half_close();
    client.expect_end()?;
    if attempt.eventually(|| !process.is_alive())? { Ok(()) } else { Err(Problem::not_ended().into()) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write;

    use super::super::scene::{Scene, words};
    use super::*;

    #[test]
    fn a_server_is_busy_if_it_uses_a_fifth_of_the_time_or_a_twentieth_and_waits_for_the_rest() {
        let is_busy = |cpu_ms, queued_ms| {
            let [cpu, queued] = [cpu_ms, queued_ms].map(Duration::from_millis);
            is_busy(Duration::from_secs(1), cpu, queued)
        };
        for (cpu_ms, queued_ms) in [(201, 0), (1000, 0), (51, 750), (200, 601)] {
            assert!(is_busy(cpu_ms, queued_ms), "{cpu_ms} ms of CPU time, {queued_ms} ms in the run queue");
        }
        for (cpu_ms, queued_ms) in [(0, 0), (0, 1000), (50, 950), (51, 0), (51, 749), (200, 0), (200, 600)] {
            assert!(!is_busy(cpu_ms, queued_ms), "{cpu_ms} ms of CPU time, {queued_ms} ms in the run queue");
        }
    }

    #[test]
    fn clients_that_are_neither_served_nor_closed_are_counted() {
        let scene = Scene::unix();
        let attempt = scene.attempt_at_its_end();
        let (clients, mut servers): (Vec<_>, Vec<_>) = std::iter::repeat_with(|| scene.pair()).take(4).unzip();
        let clients: Vec<_> = clients.into_iter().map(|stream| Client::new(&attempt, stream)).collect();
        servers[0].write_all(HELLO).unwrap();
        drop(servers.pop());
        let forgotten = "with descriptors free again, 2 clients are still neither served nor closed";
        assert_eq!(words(expect_answers(&clients)), forgotten);
        drop(servers);
        expect_answers(&clients).unwrap();
    }
}
