//! Level 1: one client at a time.

use super::Check;
use super::attempt::{Attempt, HELLO, Outcome, SECONDS};
use super::words::{self, Words};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "echo",
        level: 1,
        chapter: words::CALLS,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("a line comes back", "una línea vuelve"),
        sends: Words::new("`hola` and a newline", "`hola` y un salto de línea"),
        matters: Words::new("this is what an echo server is for", "para esto existe un servidor de eco"),
        run: echo,
    },
    Check {
        name: "one-byte",
        level: 1,
        chapter: words::MESSAGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("one byte comes back at once", "un byte vuelve enseguida"),
        sends: Words::new("the byte `x`, with no newline after it", "el byte `x`, sin salto de línea"),
        matters: Words::new(
            "TCP carries bytes, not lines: a server that waits for a newline waits forever for many clients",
            "TCP lleva bytes, no líneas: un servidor que espera el salto de línea espera para siempre a muchos clientes",
        ),
        run: one_byte,
    },
    Check {
        name: "binary",
        level: 1,
        chapter: words::MESSAGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("control characters come back unchanged", "los caracteres de control vuelven intactos"),
        sends: Words::new("the bytes 0 to 127 and a newline", "los bytes 0 a 127 y un salto de línea"),
        matters: Words::new(
            "zero bytes, line ends and control characters are data: C strings and terminals change them",
            "los bytes cero, los fines de línea y los caracteres de control son datos: las cadenas de C y las terminales los cambian",
        ),
        run: binary,
    },
    Check {
        name: "empty",
        level: 1,
        chapter: words::ENDINGS,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "a client that sends nothing is closed without a byte",
            "a un cliente que no envía nada se le cierra sin un byte",
        ),
        sends: Words::new("no byte, and FIN", "ningún byte, y FIN"),
        matters: Words::new(
            "port scanners and health checks do this all day: each would leave a connection open",
            "los escáneres de puertos y los chequeos de salud lo hacen todo el día: cada uno dejaría una conexión abierta",
        ),
        run: empty,
    },
    Check {
        name: "megabyte",
        level: 1,
        chapter: words::EDGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("1 MiB comes back whole", "1 MiB vuelve entero"),
        sends: Words::new(
            "1 MiB in pieces of 16 KiB, each once the one before has come back",
            "1 MiB en trozos de 16 KiB, cada uno cuando ha vuelto el anterior",
        ),
        matters: Words::new(
            "a message larger than the server's buffer takes several reads: after only one, the rest hangs",
            "un mensaje mayor que el buffer del servidor necesita varias lecturas: con una sola, el resto se queda colgado",
        ),
        run: megabyte,
    },
];

fn echo(attempt: &Attempt<'_>) -> Outcome {
    attempt.connect()?.exchange(HELLO)
}

fn one_byte(attempt: &Attempt<'_>) -> Outcome {
    attempt.connect()?.exchange(b"x")
}

fn binary(attempt: &Attempt<'_>) -> Outcome {
    let bytes: Vec<u8> = (0..128).chain(*b"\n").collect();
    attempt.connect()?.exchange(&bytes)
}

fn empty(attempt: &Attempt<'_>) -> Outcome {
    let mut client = attempt.connect()?;
    client.half_close();
    client.expect_end()
}

/// In lockstep: a server is never asked to keep more than one piece, which is another check.
fn megabyte(attempt: &Attempt<'_>) -> Outcome {
    let mut client = attempt.connect()?;
    text(1 << 20).chunks(16 << 10).try_for_each(|piece| client.exchange(piece))
}

/// Returns `length` bytes of ASCII in which a missing, repeated or moved byte shows. No buffer has the length of their period.
pub(super) fn text(length: usize) -> Vec<u8> {
    const PERIOD: usize = 8191;
    let period: Vec<u8> = (0..PERIOD).flat_map(|line| format!("{line:07x}\n").into_bytes()).collect();
    let mut text = period.repeat(length.div_ceil(period.len()));
    text.truncate(length);
    text
}
