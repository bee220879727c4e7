//! What a connection's state machine costs by itself: no socket, no kernel.

use std::io::{self, Read, Write};

use divan::{Bencher, black_box};
use ecoloop::{Connection, Progress, Readiness};

const BUFFER_BYTES: usize = 1024;
const READABLE: Readiness = Readiness { readable: true, writable: true, read_closed: false, priority: false };
const ENDED: Readiness = Readiness { read_closed: true, ..READABLE };

fn main() {
    divan::main();
}

/// Has one message to read, and takes so much of each write.
#[derive(Clone, Copy)]
struct Script {
    message_bytes: Option<usize>,
    write_bytes: usize,
    /// Takes nothing this time, as after a write that was short.
    is_full: bool,
    ends: bool,
}

const WHOLE: Script = Script { message_bytes: Some(64), write_bytes: BUFFER_BYTES, is_full: false, ends: false };

impl Read for Script {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.message_bytes.take() {
            Some(bytes) => Ok(bytes),
            None if self.ends => Ok(0),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Script {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.is_full) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.is_full = self.write_bytes < data.len();
        Ok(self.write_bytes.min(data.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves until nothing is left to read or to send; answers what came of it and how many bytes went out.
fn serve_all(mut connection: Connection<Script>, readiness: Readiness) -> (Progress, usize) {
    let mut buffer = [0; BUFFER_BYTES];
    let mut sent = 0;
    loop {
        let progress = connection.serve(&readiness, &mut buffer, |_| {}, |length| sent += length);
        let is_over = progress != Progress::Unfinished && connection.pending() == 0;
        if is_over {
            return (progress, sent);
        }
    }
}

fn bench(bencher: Bencher<'_, '_>, readiness: Readiness, script: Script) {
    bencher
        .with_inputs(|| Connection::new(script))
        .bench_values(|connection| serve_all(black_box(connection), readiness));
}

/// A message that goes out as it came.
#[divan::bench(args = [64, 1024])]
fn one_message(bencher: Bencher<'_, '_>, message_bytes: usize) {
    bench(bencher, READABLE, Script { message_bytes: Some(message_bytes), ..WHOLE });
}

/// A message that goes out in pieces: it is kept, and sent as there is room.
#[divan::bench(args = [512, 128])]
fn short_writes(bencher: Bencher<'_, '_>, write_bytes: usize) {
    bench(bencher, READABLE, Script { message_bytes: Some(BUFFER_BYTES), write_bytes, ..WHOLE });
}

/// Data and the end of the stream in one edge.
#[divan::bench]
fn end_of_stream(bencher: Bencher<'_, '_>) {
    bench(bencher, ENDED, Script { ends: true, ..WHOLE });
}
