//! One connection's life: read, echo, keep what would not go out, end.
//!
//! There is no socket, no mio, no clock and no log here.

use std::io::{self, Read, Write};

use crate::Readiness;

/// epoll(7), question 9, says of streams that a short read has emptied them; kqueue(2) does not.
const SHORT_READ_DRAINS: bool = cfg!(any(target_os = "linux", target_os = "android"));

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
/// use ecoloop::{Connection, Moved, Progress, Readiness};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut client = TcpStream::connect(listener.local_addr()?)?;
/// let (stream, _) = listener.accept()?;
///
/// client.write_all(b"hola")?;
/// let mut connection = Connection::new(stream);
/// let readable = Readiness { readable: true, ..Readiness::default() };
/// let mut moved = Vec::new();
/// let progress = connection.serve(readable, &mut [0; 1024], 16, |step| match step {
///     Moved::Received(data) => moved.push(data.len()),
///     Moved::Sent(n) => moved.push(n),
///     Moved::Discarded(_) => unreachable!("nobody called `discard`"),
/// });
///
/// assert_eq!(progress, Progress::Waiting);
/// assert_eq!(moved, [4, 4]);
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
    /// The last readable edge is not spent.
    readable: bool,
    /// A read that returns less than it had room for has emptied the socket.
    short_read_drains: bool,
    discarding: bool,
    /// See [`Connection::grow_quiet`].
    quiet: u8,
}

/// Output that the stream did not take.
#[derive(Debug)]
struct Pending {
    bytes: Box<[u8]>,
    sent: usize,
}

/// Bytes that moved in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved<'a> {
    /// These came in, and are about to be echoed.
    Received(&'a [u8]),
    /// So many went out.
    Sent(usize),
    /// So many came in after [`Connection::discard`], and were thrown away.
    Discarded(usize),
}

/// What is to become of a connection after [`Connection::serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing can be done until the next event.
    Waiting,
    /// It has used up its reads, and its edge is not spent: serve it again without waiting for an event.
    Unfinished,
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
        Self {
            stream,
            pending: None,
            readable: false,
            short_read_drains: SHORT_READ_DRAINS,
            discarding: false,
            quiet: 0,
        }
    }

    /// Does what `readiness` allows: sends what is pending, then reads and echoes, through `buffer`, at most `reads_max` times.
    ///
    /// `moved` is told of every step that moved bytes; those received before they are echoed.
    ///
    /// Nothing is read while anything is pending. A call of the stream that was interrupted is tried again.
    ///
    /// `buffer` must not be empty: a read into nothing brings nothing, which is taken for the end of the stream
    /// ([`Progress::Ended`]).
    pub fn serve(
        &mut self,
        readiness: Readiness,
        buffer: &mut [u8],
        reads_max: usize,
        mut moved: impl FnMut(Moved<'_>),
    ) -> Progress {
        self.readable |= readiness.readable;
        // Data and the end of the stream that arrive together make one edge: a short read taken as the last would leave
        // the end unseen. And a read stops at urgent data, with more behind it.
        self.short_read_drains &= !readiness.read_closed && !readiness.priority;

        if self.pending.is_some()
            && let Some(progress) = self.flush(readiness.writable, &mut moved)
        {
            return progress;
        }
        let mut reads = 0;
        while self.readable {
            if reads == reads_max {
                return Progress::Unfinished;
            }
            reads += 1;
            let received = match step(|| self.stream.read(buffer)) {
                Step::Moved(0) => return Progress::Ended,
                Step::Moved(received) => received,
                Step::Blocked => {
                    self.readable = false;
                    self.short_read_drains = SHORT_READ_DRAINS;
                    return Progress::Waiting;
                }
                Step::Failed(kind) => return Progress::Failed(kind),
            };
            self.quiet = 0;
            if received < buffer.len() && self.short_read_drains {
                self.readable = false;
            }
            if self.discarding {
                moved(Moved::Discarded(received));
                continue;
            }
            let data = &buffer[..received];
            moved(Moved::Received(data));
            match self.send(data, &mut moved) {
                Ok(sent) if sent < received => {
                    self.pending = Some(Box::new(Pending { bytes: data[sent..].into(), sent: 0 }));
                    return Progress::Waiting;
                }
                Ok(_) => {}
                Err(kind) => return Progress::Failed(kind),
            }
        }
        Progress::Waiting
    }

    /// Sends what is pending, if it can; answers what is to become of the connection, if that is decided by it.
    #[cold]
    fn flush(&mut self, writable: bool, moved: &mut impl FnMut(Moved<'_>)) -> Option<Progress> {
        let mut pending = self.pending.take()?;
        if writable {
            match self.send(&pending.bytes[pending.sent..], moved) {
                Ok(0) => {}
                Ok(sent) => {
                    self.quiet = 0;
                    pending.sent += sent;
                }
                Err(kind) => return Some(Progress::Failed(kind)),
            }
        }
        if pending.sent == pending.bytes.len() {
            return None;
        }
        self.pending = Some(pending);
        Some(Progress::Waiting)
    }

    /// Writes `data` until it is all out or the stream blocks; answers how much went out.
    ///
    /// A short write is followed by another: only `WouldBlock` makes the kernel report when there is room again.
    #[inline]
    fn send(&mut self, data: &[u8], moved: &mut impl FnMut(Moved<'_>)) -> Result<usize, io::ErrorKind> {
        let mut sent = 0;
        loop {
            match step(|| self.stream.write(&data[sent..])) {
                Step::Moved(0) => return Err(io::ErrorKind::WriteZero),
                Step::Moved(n) => {
                    moved(Moved::Sent(n));
                    sent += n;
                    if sent >= data.len() {
                        return Ok(sent);
                    }
                }
                Step::Blocked => return Ok(sent),
                Step::Failed(kind) => return Err(kind),
            }
        }
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
