//! One connection's life: read, echo, keep what the stream does not take, end. No socket, no mio, no clock and no log.

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};

use crate::ready::{Ready, SHORT_READ_DRAINS};

/// An echo over any non-blocking stream.
///
/// Call [`serve`](Self::serve) with the stream's readiness; it returns what was moved and what to do next. Output that the stream
/// does not take is kept, at most one buffer's worth. While output is pending nothing is read, so a peer that only writes stalls
/// itself.
///
/// Nothing is assumed of the stream but that it does not block: it is read until `WouldBlock`, and flushed after each write. So it
/// may be a TLS session, a Unix socket or a mock.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::{TcpListener, TcpStream};
///
/// use ecoloop::{Connection, Outcome, Ready};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut client = TcpStream::connect(listener.local_addr()?)?;
/// let (stream, _) = listener.accept()?;
/// stream.set_nonblocking(true)?;
///
/// client.write_all(b"hola")?;
/// let (mut connection, mut buffer) = (Connection::new(stream), [0; 1024]);
/// let mut served = connection.serve(Ready::READABLE, &mut buffer);
/// assert_eq!((served.received, served.sent), (4, 4));
/// while served.outcome == Outcome::Again {
///     served = connection.serve(Ready::NONE, &mut buffer);
/// }
/// assert_eq!(served.outcome, Outcome::Wait);
///
/// let mut echo = [0; 4];
/// client.read_exact(&mut echo)?;
/// assert_eq!(&echo, b"hola");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Boxed, so that an idle connection carries a pointer and no buffer.
    pending: Option<Box<Pending>>,
    read_state: ReadState,
    /// The stream has bytes of its own that a flush did not send.
    unflushed: bool,
    discarding: bool,
    /// See [`Connection::tick_idle`].
    idle_ticks: u8,
}

/// What is known of the last readable edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadState {
    /// A read has found the end of what there was.
    Drained,
    /// There may be something to read, and a short read drains the edge.
    Ready,
    /// There may be something to read, until a read returns `WouldBlock`.
    ReadyUntilWouldBlock,
}

/// Output that the stream did not take.
#[derive(Debug)]
struct Pending {
    bytes: Box<[u8]>,
    sent: usize,
}

/// What a call of [`Connection::serve`] has moved, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Served {
    /// Bytes received: they are the first ones of the buffer.
    pub received: usize,
    /// Bytes sent, those that were pending included.
    pub sent: usize,
    /// What to do next.
    pub outcome: Outcome,
}

/// What to do with a connection after [`Connection::serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Outcome {
    /// Wait for the next event.
    Wait,
    /// Serve it again without waiting for an event: its edge is not drained.
    Again,
    /// Close it: the peer has closed its direction, and every byte that it sent was echoed.
    Ended,
    /// Close it: a read or a write failed.
    Failed(ErrorKind),
}

/// The result of one call of `read`, `write` or `flush`.
enum Call {
    Moved(usize),
    Blocked,
    Failed(ErrorKind),
}

/// What is called with the bytes that a connection moves.
pub(crate) trait Sink {
    /// Bytes were received, and are about to be echoed.
    fn received(&mut self, data: &[u8]);

    /// Bytes were received after [`Connection::discard`].
    fn discarded(&mut self, length: usize);

    /// Bytes were sent.
    fn sent(&mut self, length: usize);
}

impl Sink for Served {
    fn received(&mut self, data: &[u8]) {
        self.received += data.len();
    }

    fn discarded(&mut self, length: usize) {
        self.received += length;
    }

    fn sent(&mut self, length: usize) {
        self.sent += length;
    }
}

impl<S: Read + Write> Connection<S> {
    /// Returns a connection over `stream`, which must not block.
    pub fn new(stream: S) -> Self {
        let read_state = ReadState::Drained;
        Self { stream, pending: None, read_state, unflushed: false, discarding: false, idle_ticks: 0 }
    }

    /// Sends what is pending, then reads once, through `buffer`, and writes that back.
    ///
    /// Nothing is read while anything is pending. An interrupted call of the stream is retried.
    ///
    /// # Panics
    ///
    /// If `buffer` is empty: a read into it would return 0, the end of the stream.
    pub fn serve(&mut self, ready: Ready, buffer: &mut [u8]) -> Served {
        assert!(!buffer.is_empty(), "a connection needs a buffer to read into");
        let mut served = Served { received: 0, sent: 0, outcome: Outcome::Wait };
        served.outcome = self.serve_any(ready, buffer, &mut served);
        served
    }

    /// As [`serve`](Self::serve), with the bytes passed to `sink`.
    pub(crate) fn serve_any(&mut self, ready: Ready, buffer: &mut [u8], sink: &mut impl Sink) -> Outcome {
        // A stream that is not a plain socket may need to write before it can read, and to read before it can write.
        if !ready.is_none() {
            self.read_state = ReadState::ReadyUntilWouldBlock;
        }
        if self.unflushed && ready.is_writable() {
            // The peer has taken some of it.
            self.idle_ticks = 0;
        }
        self.serve_stream::<true>(!ready.is_none(), buffer, sink)
    }

    /// As [`serve`](Self::serve) for a TCP socket of the system: a short read drains the edge, an event for one direction says
    /// nothing of the other, and there is nothing to flush.
    #[expect(clippy::inline_always, reason = "as a call it costs a message a sixth more instructions")]
    #[inline(always)]
    pub(crate) fn serve_socket(&mut self, ready: Ready, buffer: &mut [u8], sink: &mut impl Sink) -> Outcome {
        if ready.outlasts_short_read() || ready.is_readable() && !SHORT_READ_DRAINS {
            self.read_state = ReadState::ReadyUntilWouldBlock;
        } else if ready.is_readable() && self.read_state == ReadState::Drained {
            self.read_state = ReadState::Ready;
        }
        self.serve_stream::<false>(ready.is_writable(), buffer, sink)
    }

    /// The steps of `serve`, with a flush after each write where `FLUSHES`.
    #[expect(clippy::inline_always, reason = "as a call it costs a message a sixth more instructions")]
    #[inline(always)]
    fn serve_stream<const FLUSHES: bool>(
        &mut self,
        writable: bool,
        buffer: &mut [u8],
        sink: &mut impl Sink,
    ) -> Outcome {
        if self.pending.is_some() || FLUSHES && self.unflushed {
            let outcome = self.send_pending::<FLUSHES>(writable, sink);
            if !matches!(outcome, Outcome::Again) {
                return outcome;
            }
        }
        if self.read_state == ReadState::Drained {
            return Outcome::Wait;
        }
        let received = match retry_interrupted(|| self.stream.read(buffer)) {
            Call::Moved(0) => return Outcome::Ended,
            Call::Moved(received) => received,
            Call::Blocked => {
                self.read_state = ReadState::Drained;
                return Outcome::Wait;
            }
            Call::Failed(kind) => return Outcome::Failed(kind),
        };
        self.idle_ticks = 0;
        if self.discarding {
            sink.discarded(received);
            return Outcome::Again;
        }
        let data = if received < buffer.len() {
            if self.read_state == ReadState::Ready {
                self.read_state = ReadState::Drained;
            }
            &buffer[..received]
        } else {
            buffer
        };
        sink.received(data);
        match retry_interrupted(|| self.stream.write(data)) {
            Call::Moved(written) if written == data.len() => {
                sink.sent(written);
                self.after_write::<FLUSHES>()
            }
            Call::Moved(0) => Outcome::Failed(ErrorKind::WriteZero),
            Call::Moved(written) => self.send_rest::<FLUSHES>(data, written, sink),
            Call::Blocked => self.keep(data),
            Call::Failed(kind) => Outcome::Failed(kind),
        }
    }

    /// Returns what follows when everything was written.
    #[inline]
    fn after_write<const FLUSHES: bool>(&mut self) -> Outcome {
        if FLUSHES {
            let outcome = self.flush();
            if !matches!(outcome, Outcome::Again) {
                return outcome;
            }
        }
        if self.read_state == ReadState::Drained { Outcome::Wait } else { Outcome::Again }
    }

    /// Sends what is pending, if the stream takes it. Returns `Again` if nothing is left.
    #[cold]
    fn send_pending<const FLUSHES: bool>(&mut self, writable: bool, sink: &mut impl Sink) -> Outcome {
        if !writable {
            return Outcome::Wait;
        }
        if let Some(mut pending) = self.pending.take() {
            let (sent, failed) = self.send(&pending.bytes[pending.sent..], 0);
            if sent > 0 {
                self.idle_ticks = 0;
                sink.sent(sent);
            }
            pending.sent += sent;
            if pending.sent < pending.bytes.len() {
                self.pending = Some(pending);
                return failed.map_or(Outcome::Wait, Outcome::Failed);
            }
        }
        if FLUSHES { self.flush() } else { Outcome::Again }
    }

    /// Continues after a short write, and keeps what the stream does not take.
    #[cold]
    fn send_rest<const FLUSHES: bool>(&mut self, data: &[u8], written: usize, sink: &mut impl Sink) -> Outcome {
        let (written, failed) = self.send(data, written);
        sink.sent(written);
        match failed {
            Some(kind) => Outcome::Failed(kind),
            None if written < data.len() => self.keep(&data[written..]),
            None => self.after_write::<FLUSHES>(),
        }
    }

    #[cold]
    fn keep(&mut self, rest: &[u8]) -> Outcome {
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(rest.len()).is_err() {
            return Outcome::Failed(ErrorKind::OutOfMemory);
        }
        bytes.extend_from_slice(rest);
        self.pending = Some(Box::new(Pending { bytes: bytes.into(), sent: 0 }));
        Outcome::Wait
    }

    /// Flushes the stream. Returns `Again` if nothing is left in it, and `Wait` if it blocks: its bytes are pending output then.
    fn flush(&mut self) -> Outcome {
        let flushed = retry_interrupted(|| self.stream.flush().map(|()| 0));
        self.unflushed = matches!(flushed, Call::Blocked);
        match flushed {
            Call::Moved(_) => Outcome::Again,
            Call::Blocked => Outcome::Wait,
            Call::Failed(kind) => Outcome::Failed(kind),
        }
    }

    /// Writes `data` from `sent` on, until it is sent or the stream blocks. Returns how much of it is sent, and what failed.
    ///
    /// A short write is followed by another: only after `WouldBlock` does the kernel report that there is room again.
    fn send(&mut self, data: &[u8], mut sent: usize) -> (usize, Option<ErrorKind>) {
        while sent < data.len() {
            match retry_interrupted(|| self.stream.write(&data[sent..])) {
                Call::Moved(0) => return (sent, Some(ErrorKind::WriteZero)),
                Call::Moved(n) => sent += n,
                Call::Blocked => break,
                Call::Failed(kind) => return (sent, Some(kind)),
            }
        }
        (sent, None)
    }
}

impl<S> Connection<S> {
    /// Returns the stream.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Returns the stream. Reading from it or writing to it alters the echo.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Returns the stream. Pending output is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Returns how many bytes were received and not yet sent: at most one buffer's worth.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes.len() - pending.sent)
    }

    /// Reads and discards from now on: call this when this end has closed its direction.
    pub fn discard(&mut self) {
        self.discarding = true;
    }

    /// Reads until `WouldBlock` when it is next served, as if an event had been reported.
    pub fn expect_input(&mut self) {
        self.read_state = ReadState::ReadyUntilWouldBlock;
    }

    /// Flushes the stream when it is next writable.
    pub(crate) fn expect_flush(&mut self) {
        self.unflushed = true;
    }

    /// Returns whether the stream has bytes of its own that a flush did not send.
    pub(crate) fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Returns whether the last read has found the end of what there was.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.read_state == ReadState::Drained
    }

    /// Returns whether [`discard`](Self::discard) was called.
    #[must_use]
    pub fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// Resets the idle counter: a byte has moved that the connection does not know of.
    pub(crate) fn reset_idle(&mut self) {
        self.idle_ticks = 0;
    }

    /// Increments the idle counter and returns it. Any byte resets it.
    ///
    /// Called once a period, it measures how long a connection has been idle without a clock on the path of a message: after `n`
    /// calls at least `n - 1` periods have passed.
    pub fn tick_idle(&mut self) -> u8 {
        self.idle_ticks = self.idle_ticks.saturating_add(1);
        self.idle_ticks
    }
}

/// A loop of its own: with that of the other calls a message takes 3 instructions more.
#[inline]
fn retry_interrupted(mut call: impl FnMut() -> io::Result<usize>) -> Call {
    loop {
        match call() {
            Ok(n) => return Call::Moved(n),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Call::Blocked,
                kind => return Call::Failed(kind),
            },
        }
    }
}
