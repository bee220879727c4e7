//! Benchmarks `Connection` alone, without a socket or a system call.

use std::io::{self, Read, Write};

use divan::{Bencher, black_box};
use ecoloop::{Connection, Outcome, Ready, Served};

const BUFFER_BYTES: usize = 1024;

fn main() {
    divan::main();
}

/// A stream with one message to read, which takes `write_bytes` of each write.
#[derive(Clone, Copy)]
struct Script {
    message_bytes: Option<usize>,
    write_bytes: usize,
    /// The next write returns `WouldBlock`, as after a short write.
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

/// Serves until nothing is left to read or to send. Returns the outcome and the number of bytes sent.
fn serve_all(mut connection: Connection<Script>, ready: Ready) -> (Outcome, usize) {
    let mut buffer = [0; BUFFER_BYTES];
    let mut sent_bytes = 0;
    loop {
        let Served { sent, outcome, .. } = connection.serve(ready, &mut buffer);
        sent_bytes += sent;
        if outcome != Outcome::Again && connection.pending() == 0 {
            return (outcome, sent_bytes);
        }
    }
}

fn bench(bencher: Bencher<'_, '_>, ready: Ready, script: Script) {
    bencher.with_inputs(|| Connection::new(script)).bench_values(|connection| serve_all(black_box(connection), ready));
}

/// A message that one write takes.
#[divan::bench(args = [64, 1024])]
fn one_message(bencher: Bencher<'_, '_>, message_bytes: usize) {
    bench(bencher, Ready::READABLE, Script { message_bytes: Some(message_bytes), ..WHOLE });
}

/// A message that takes several writes, so that the connection keeps the rest as pending output.
#[divan::bench(args = [512, 128])]
fn short_writes(bencher: Bencher<'_, '_>, write_bytes: usize) {
    bench(bencher, Ready::READABLE, Script { message_bytes: Some(BUFFER_BYTES), write_bytes, ..WHOLE });
}

/// Data and the end of stream in one edge.
#[divan::bench]
fn end_of_stream(bencher: Bencher<'_, '_>) {
    bench(bencher, Ready::READABLE | Ready::READ_CLOSED, Script { ends: true, ..WHOLE });
}
