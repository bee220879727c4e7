//! One connection's life: read, echo, keep what would not go out, end.
//!
//! There is no socket, no mio, no clock and no log here.

use std::io::{self, Read, Write};

use crate::reactor::{Readiness, SHORT_READ_DRAINS};

/// An echo over any non-blocking stream.
///
/// It is played what the stream is ready for, and answers what is to become of it. What it could not write it keeps, at
/// most one buffer's worth, and until that is gone it reads nothing more: what a peer that only writes stalls is itself.
///
/// # Examples
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use std::io::{Read, Write};
/// use ecoloop::{Connection, Progress, Readiness};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut client = TcpStream::connect(listener.local_addr()?)?;
/// let (stream, _) = listener.accept()?;
///
/// client.write_all(b"hola")?;
/// let mut connection = Connection::new(stream);
/// let readable = Readiness { readable: true, ..Readiness::default() };
/// let mut counted = (0, 0);
/// let progress = connection.serve(&readable, &mut [0; 1024], |data| counted.0 += data.len(), |sent| counted.1 += sent);
///
/// assert_eq!(progress, Progress::Waiting);
/// assert_eq!(counted, (4, 4));
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
    edge: Edge,
    discarding: bool,
    /// See [`Connection::grow_quiet`].
    quiet: u8,
}

/// What is known of the last readable edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    /// A read has found the end of what there was.
    Spent,
    /// There may be something to read, and a read that returns less than it had room for has emptied the stream.
    Readable,
    /// There may be something to read, until a read finds nothing.
    ReadableToTheEnd,
}

impl From<&Readiness> for Edge {
    /// Data and the end of the stream that arrive together make one edge: a short read taken as the last would leave the end
    /// unseen. And a read stops at urgent data, with more behind it.
    #[expect(clippy::inline_always, reason = "so that the hints are not packed into a word, and unpacked again")]
    #[inline(always)]
    fn from(readiness: &Readiness) -> Self {
        if readiness.read_closed || readiness.priority {
            Self::ReadableToTheEnd
        } else if !readiness.readable {
            Self::Spent
        } else if SHORT_READ_DRAINS {
            Self::Readable
        } else {
            Self::ReadableToTheEnd
        }
    }
}

/// Output that the stream did not take.
#[derive(Debug)]
struct Pending {
    bytes: Box<[u8]>,
    sent: usize,
}

/// What is to become of a connection after [`Connection::serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing can be done until the next event.
    Waiting,
    /// Its edge is not spent: serve it again without waiting for an event.
    Unfinished,
    /// So many bytes came in after [`Connection::discard`] and were thrown away. Serve it again without waiting for an event.
    Discarded(usize),
    /// The peer has ended its direction, and all that it sent has gone back.
    Ended,
    /// A read or a write failed.
    Failed(io::ErrorKind),
}

/// What one call of `read` or `write` answered.
enum Step {
    Moved(usize),
    Blocked,
    Failed(io::ErrorKind),
}

impl<S: Read + Write> Connection<S> {
    /// A connection over `stream`, which must not block.
    pub fn new(stream: S) -> Self {
        Self { stream, pending: None, edge: Edge::Spent, discarding: false, quiet: 0 }
    }

    /// Does what `readiness` allows: sends what is pending, then reads once, through `buffer`, and writes that back.
    ///
    /// `received` is told what came in before it is echoed, `sent` how many bytes went out.
    ///
    /// Nothing is read while anything is pending. A call of the stream that was interrupted is tried again.
    ///
    /// `buffer` must not be empty: a read into nothing brings nothing, which is taken for the end of the stream
    /// ([`Progress::Ended`]).
    #[expect(clippy::inline_always, reason = "as a call it costs a message a sixth more instructions")]
    #[inline(always)]
    pub fn serve(
        &mut self,
        readiness: &Readiness,
        buffer: &mut [u8],
        received: impl FnOnce(&[u8]),
        mut sent: impl FnMut(usize),
    ) -> Progress {
        self.edge = self.edge.max(readiness.into());
        if self.pending.is_some() {
            let (length, progress) = self.flush(readiness.writable);
            if length > 0 {
                sent(length);
            }
            if progress != Progress::Unfinished {
                return progress;
            }
        }
        if self.edge == Edge::Spent {
            return Progress::Waiting;
        }
        let length = match step(|| self.stream.read(buffer)) {
            Step::Moved(0) => return Progress::Ended,
            Step::Moved(length) => length,
            Step::Blocked => {
                self.edge = Edge::Spent;
                return Progress::Waiting;
            }
            Step::Failed(kind) => return Progress::Failed(kind),
        };
        self.quiet = 0;
        if self.discarding {
            return Progress::Discarded(length);
        }
        let data = if length < buffer.len() {
            if self.edge == Edge::Readable {
                self.edge = Edge::Spent;
            }
            &buffer[..length]
        } else {
            buffer
        };
        received(data);
        match step(|| self.stream.write(data)) {
            Step::Moved(written) if written == data.len() => {
                sent(written);
                self.rest()
            }
            Step::Moved(0) => Progress::Failed(io::ErrorKind::WriteZero),
            Step::Moved(written) => {
                let (written, progress) = self.send_rest(data, written);
                sent(written);
                progress
            }
            Step::Blocked => self.keep(data),
            Step::Failed(kind) => Progress::Failed(kind),
        }
    }

    /// What is to become of a connection on which nothing is pending.
    #[inline]
    fn rest(&self) -> Progress {
        if self.edge == Edge::Spent { Progress::Waiting } else { Progress::Unfinished }
    }

    /// Sends what is pending, if it can; answers how much went out, and `Unfinished` if nothing is left.
    #[cold]
    fn flush(&mut self, writable: bool) -> (usize, Progress) {
        let Some(mut pending) = self.pending.take() else { return (0, Progress::Unfinished) };
        let (mut length, mut failed) = (0, None);
        if writable {
            (length, failed) = self.send(&pending.bytes[pending.sent..], 0);
            pending.sent += length;
        }
        if length > 0 {
            self.quiet = 0;
        }
        let progress = if let Some(kind) = failed {
            Progress::Failed(kind)
        } else if pending.sent == pending.bytes.len() {
            Progress::Unfinished
        } else {
            self.pending = Some(pending);
            Progress::Waiting
        };
        (length, progress)
    }

    /// Goes on after a short write, and keeps what the stream will not have; answers how much went out.
    #[cold]
    fn send_rest(&mut self, data: &[u8], written: usize) -> (usize, Progress) {
        let (written, failed) = self.send(data, written);
        let progress = match failed {
            Some(kind) => Progress::Failed(kind),
            None if written == data.len() => self.rest(),
            None => self.keep(&data[written..]),
        };
        (written, progress)
    }

    #[cold]
    fn keep(&mut self, rest: &[u8]) -> Progress {
        self.pending = Some(Box::new(Pending { bytes: rest.into(), sent: 0 }));
        Progress::Waiting
    }

    /// Writes `data` from `sent` on until it is all out or the stream blocks; answers how much of it is out, and what failed.
    ///
    /// A short write is followed by another: only `WouldBlock` makes the kernel report when there is room again.
    fn send(&mut self, data: &[u8], mut sent: usize) -> (usize, Option<io::ErrorKind>) {
        while sent < data.len() {
            match step(|| self.stream.write(&data[sent..])) {
                Step::Moved(0) => return (sent, Some(io::ErrorKind::WriteZero)),
                Step::Moved(n) => sent += n,
                Step::Blocked => break,
                Step::Failed(kind) => return (sent, Some(kind)),
            }
        }
        (sent, None)
    }
}

impl<S> Connection<S> {
    /// The stream.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// How many bytes were received and not yet sent: at most one buffer's worth.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes.len() - pending.sent)
    }

    /// From now on, what comes in is thrown away: this direction has been ended.
    pub fn discard(&mut self) {
        self.discarding = true;
    }

    /// Whether [`discard`](Self::discard) was called.
    #[must_use]
    pub fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// Counts a call during which no byte has moved, and answers how many there were in a row.
    ///
    /// Called at a steady pace, it tells how long a connection has been quiet, and the path of a message needs no clock:
    /// after `n` calls at least `n - 1` periods have passed.
    pub fn grow_quiet(&mut self) -> u8 {
        self.quiet = self.quiet.saturating_add(1);
        self.quiet
    }

    /// Begins to count anew.
    pub fn reset_quiet(&mut self) {
        self.quiet = 0;
    }
}

#[inline]
fn step(mut call: impl FnMut() -> io::Result<usize>) -> Step {
    loop {
        match call() {
            Ok(n) => return Step::Moved(n),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Step::Blocked,
                kind => return Step::Failed(kind),
            },
        }
    }
}
