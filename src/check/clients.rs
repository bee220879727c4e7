//! Level 2: several clients at once.

use super::Check;
use super::attempt::{Attempt, HELLO, Outcome, SECONDS, Stop};
use super::client::Client;
use super::words::{self, Words};

/// Clients of `several-clients`: an accept queue of 5 is enough.
const CLIENTS: u32 = 5;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "second-client",
        level: 2,
        chapter: words::SECOND_CLIENT,
        connections: 2,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "a client is served while another is connected and silent",
            "se atiende a un cliente mientras otro está conectado y callado",
        ),
        sends: Words::new(
            "nothing on a first connection, and `hola` on a second one",
            "nada por una primera conexión, y `hola` por una segunda",
        ),
        matters: Words::new(
            "a server that waits for one client in recv keeps all others waiting, for hours if that client is silent",
            "un servidor que espera a un cliente en recv hace esperar a todos los demás, durante horas si ese cliente calla",
        ),
        run: second_client,
    },
    Check {
        name: "several-clients",
        level: 2,
        chapter: words::ONE_WAIT,
        connections: CLIENTS,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("each of 5 clients gets its own bytes", "cada uno de 5 clientes recibe sus propios bytes"),
        sends: Words::new(
            "five times a line on each of 5 connections, read once all are sent",
            "cinco veces una línea por cada una de 5 conexiones, leídas cuando todas han salido",
        ),
        matters: Words::new(
            "connections are open at the same time, and a buffer shared by mistake sends one client's bytes to another",
            "las conexiones están abiertas a la vez, y un buffer compartido por error manda a un cliente los bytes de otro",
        ),
        run: several_clients,
    },
];

fn second_client(attempt: &Attempt<'_>) -> Outcome {
    let _silent = attempt.connect()?;
    attempt.connect()?.exchange(HELLO)
}

fn several_clients(attempt: &Attempt<'_>) -> Outcome {
    let mut clients = (0..CLIENTS).map(|_| attempt.connect()).collect::<Result<Vec<Client<'_>>, Stop>>()?;
    for round in 0..5 {
        let message = |number: usize| format!("client {number}, round {round}\n").into_bytes();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&message(number))?;
        }
        // In the other order: a server that answers in the order of arrival keeps none waiting.
        for (number, client) in clients.iter_mut().enumerate().rev() {
            client.receive(&message(number))?;
        }
    }
    Ok(())
}
