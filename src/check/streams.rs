//! Level 3: a stream of bytes has no messages.

use std::time::Duration;

use super::Check;
use super::attempt::{Attempt, Outcome, SECONDS};
use super::words::{self, Words};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "split",
        level: 3,
        chapter: words::MESSAGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("a message in pieces comes back whole", "un mensaje en pedazos vuelve entero"),
        sends: Words::new("`hola` and a newline, a byte every 20 ms", "`hola` y un salto de línea, un byte cada 20 ms"),
        matters: Words::new(
            "the network may deliver a message in pieces of any size, and the end of a read is not the end of a message",
            "la red puede entregar un mensaje en pedazos de cualquier tamaño, y el final de una lectura no es el final de un mensaje",
        ),
        run: split,
    },
    Check {
        name: "merged",
        level: 3,
        chapter: words::MESSAGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "messages that arrive together all come back",
            "los mensajes que llegan juntos vuelven todos",
        ),
        sends: Words::new("500 lines in one write", "500 líneas en una sola escritura"),
        matters: Words::new(
            "the network may merge messages: a server that answers the first of a read loses the others",
            "la red puede juntar mensajes: un servidor que contesta solo el primero de una lectura pierde los demás",
        ),
        run: merged,
    },
    Check {
        name: "border",
        level: 3,
        chapter: words::MESSAGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new(
            "a letter of two bytes survives the end of a buffer",
            "una letra de dos bytes sobrevive al final de un buffer",
        ),
        sends: Words::new(
            "one `a`, 16,000 times `ñ`, and a newline: every buffer of an even size ends in the middle of a `ñ`",
            "una `a`, 16,000 veces `ñ` y un salto de línea: todo buffer de tamaño par termina en medio de una `ñ`",
        ),
        matters: Words::new(
            "half a letter cannot be decoded: a server that decodes each read loses it, or ends with an exception",
            "media letra no se puede decodificar: un servidor que decodifica cada lectura la pierde, o termina con una excepción",
        ),
        run: border,
    },
    Check {
        name: "not-utf8",
        level: 3,
        chapter: words::MESSAGES,
        connections: 1,
        needs_pid: false,
        seconds: SECONDS,
        proves: Words::new("bytes that are no text come back unchanged", "los bytes que no son texto vuelven intactos"),
        sends: Words::new(
            "the bytes 128 to 255 and a newline: not UTF-8",
            "los bytes 128 a 255 y un salto de línea: no son UTF-8",
        ),
        matters: Words::new(
            "images and compressed files are not text: a server that decodes them changes them, or ends with an exception",
            "las imágenes y los archivos comprimidos no son texto: un servidor que los decodifica los cambia, o termina con una excepción",
        ),
        run: not_utf8,
    },
];

fn split(attempt: &Attempt<'_>) -> Outcome {
    let mut client = attempt.connect()?;
    for byte in b"hola\n" {
        client.send(&[*byte])?;
        attempt.sleep(Duration::from_millis(20))?;
    }
    client.receive(b"hola\n")
}

fn merged(attempt: &Attempt<'_>) -> Outcome {
    let lines: Vec<u8> = (0..500).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    attempt.connect()?.exchange(&lines)
}

fn border(attempt: &Attempt<'_>) -> Outcome {
    let text = format!("a{}\n", "ñ".repeat(16_000));
    attempt.connect()?.exchange(text.as_bytes())
}

fn not_utf8(attempt: &Attempt<'_>) -> Outcome {
    let bytes: Vec<u8> = (128..=255).chain(*b"\n").collect();
    attempt.connect()?.exchange(&bytes)
}
