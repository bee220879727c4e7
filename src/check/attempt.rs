//! One attempt at a check: its target, its deadline, and how long the server kept it waiting.

use std::cell::Cell;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Socket, Type};

use super::client::Client;
use super::problem::{Problem, Skip};
use super::target::{Process, Target};

/// Most seconds of a check that opens few connections.
pub(super) const SECONDS: u64 = 8;
/// What every client sends that only wants to know whether it is served.
pub(super) const HELLO: &[u8] = b"hola\n";

/// A server that sent nothing for this long at a deadline is not slow, but silent. An attempt that has less than one and a half times
/// as long takes two thirds of its time.
const SILENCE: Duration = Duration::from_secs(2);
/// The interrupt is looked at this often.
const SLICE: Duration = Duration::from_millis(100);

/// A connect that found the backlog of a Unix socket full is tried again after this time.
const RETRY: Duration = Duration::from_millis(1);

/// How a check ends.
pub(super) type Outcome = Result<(), Stop>;

/// Why a check ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    Fail(Problem),
    /// The time is over, and the server did not keep the check waiting for long enough to be wrong.
    Slow,
    Skip(Skip),
    Interrupted,
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Fail(problem)
    }
}

pub(super) struct Attempt<'a> {
    target: &'a Target,
    interrupt: &'a AtomicBool,
    deadline: Instant,
    silence: Duration,
    longest_wait: Cell<Duration>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(target: &'a Target, interrupt: &'a AtomicBool, deadline: Instant) -> Self {
        let time = deadline.saturating_duration_since(Instant::now());
        Self { target, interrupt, deadline, silence: SILENCE.min(time * 2 / 3), longest_wait: Cell::default() }
    }

    /// Returns an attempt whose time is over, and was long enough for a silence.
    #[cfg(test)]
    pub(super) fn at_its_end(target: &'a Target, interrupt: &'a AtomicBool) -> Self {
        let now = Instant::now();
        Self { deadline: now, ..Self::new(target, interrupt, now + 2 * SILENCE) }
    }

    pub(super) fn is_unix(&self) -> bool {
        self.target.address.is_unix()
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the server's process, which checks that need one have.
    pub(super) fn process(&self) -> Result<&'a Process, Stop> {
        self.target.process.as_ref().ok_or(Stop::Skip(Skip::NoPid))
    }

    /// Returns the longest time that the server kept this attempt waiting.
    pub(super) fn longest_wait(&self) -> Duration {
        self.longest_wait.get()
    }

    pub(super) fn record_wait(&self, waited: Duration) {
        self.longest_wait.set(self.longest_wait.get().max(waited));
    }

    /// Returns how a check ends whose deadline has come, when nothing has come since `since`.
    pub(super) fn expired(&self, since: Instant, problem: Problem) -> Stop {
        if since.elapsed() < self.silence { Stop::Slow } else { Stop::Fail(problem) }
    }

    pub(super) fn check_interrupt(&self) -> Outcome {
        if self.interrupt.load(Ordering::Acquire) { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// Returns the time to wait until the interrupt or the deadline has to be looked at.
    pub(super) fn slice(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).min(SLICE)
    }

    /// Sleeps, at most until the deadline.
    pub(super) fn sleep(&self, time: Duration) -> Outcome {
        let end = (Instant::now() + time).min(self.deadline);
        loop {
            self.check_interrupt()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
    }

    /// Waits until `condition` holds, which no event announces. Returns whether it does before the deadline.
    pub(super) fn eventually(&self, mut condition: impl FnMut() -> bool) -> Result<bool, Stop> {
        let start = Instant::now();
        while !condition() {
            if Instant::now() >= self.deadline {
                return Ok(false);
            }
            self.sleep(Duration::from_millis(2))?;
        }
        self.record_wait(start.elapsed());
        Ok(true)
    }

    /// Waits until `socket` is ready. Returns whether it is before `until`.
    pub(super) fn wait(&self, socket: impl AsFd, flags: PollFlags, until: Instant) -> Result<bool, Stop> {
        loop {
            self.check_interrupt()?;
            let left = until.saturating_duration_since(Instant::now());
            let slice = Timespec { tv_sec: 0, tv_nsec: left.min(SLICE).subsec_nanos().into() };
            match poll(&mut [PollFd::new(&socket, flags)], Some(&slice)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(Problem::failed(&error.into()).into()),
            }
        }
    }

    /// Connects a client.
    pub(super) fn connect(&self) -> Result<Client<'_>, Stop> {
        self.connect_with(|_| Ok(()))
    }

    /// Connects a client whose receive and send buffers are small, so that they fill soon. A window below a segment of the loopback
    /// interface (64 KiB) would wait for timers.
    pub(super) fn connect_narrow(&self) -> Result<Client<'_>, Stop> {
        const NARROW: usize = 128 * 1024;
        self.connect_with(|socket| {
            socket.set_recv_buffer_size(NARROW)?;
            socket.set_send_buffer_size(NARROW)
        })
    }

    fn connect_with(&self, set: impl FnOnce(&Socket) -> io::Result<()>) -> Result<Client<'_>, Stop> {
        let start = Instant::now();
        let stream = match self.try_connect(set)? {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(self.expired(start, Problem::not_connected(&error)));
            }
            connected => connected.map_err(connect_failure)?,
        };
        self.record_wait(start.elapsed());
        Ok(Client::new(self, stream))
    }

    /// Starts to connect a client of a reactor.
    pub(super) fn begin_connect(&self) -> Result<mio::net::TcpStream, Stop> {
        let begun = match self.target.address.tcp() {
            Some(address) => mio::net::TcpStream::connect(address),
            // There is no progress to wait for: it connects at once.
            None => self.try_connect(|_| Ok(()))?.map(mio::net::TcpStream::from_std),
        };
        begun.map_err(connect_failure)
    }

    /// Connects, and returns the error of the connect if it fails. It is interrupted as every wait is.
    pub(super) fn try_connect(
        &self,
        set: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> Result<io::Result<TcpStream>, Stop> {
        let open = || {
            let address = self.target.address.socket_address()?;
            let socket = Socket::new(address.domain(), Type::STREAM, None)?;
            // Buffer sizes count at the connect: they decide on the window (tcp(7)).
            set(&socket)?;
            socket.set_nonblocking(true)?;
            if !self.is_unix() {
                socket.set_tcp_nodelay(true)?;
            }
            Ok((socket, address))
        };
        let (socket, address) = match open() {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            match socket.connect(&address) {
                // The backlog of a Unix socket is full, and no event tells when it has room (connect(2)).
                Err(error) if self.is_unix() && error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= self.deadline {
                        return Ok(Err(io::ErrorKind::TimedOut.into()));
                    }
                    self.sleep(RETRY)?;
                }
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Ok(Err(error)),
                _ => break,
            }
        }
        if !self.wait(&socket, PollFlags::OUT, self.deadline)? {
            return Ok(Err(io::ErrorKind::TimedOut.into()));
        }
        if let Some(error) = socket.take_error().unwrap_or_else(Some) {
            return Ok(Err(error));
        }
        let stream = TcpStream::from(socket);
        // A connect to a port of the ephemeral range on which nothing listens can reach itself, and that echoes perfectly.
        let is_own = stream.local_addr().is_ok_and(|local| Some(local) == self.target.address.tcp());
        Ok(if is_own { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(stream) })
    }
}

/// Returns what ends a check whose own socket cannot be opened.
pub(super) fn own_failure(error: io::Error) -> Stop {
    Stop::Skip(Skip::Own(error))
}

/// Returns what ends a check that cannot connect: this machine's shortage is not the server's fault.
fn connect_failure(error: io::Error) -> Stop {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL | libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => own_failure(error),
        _ => Problem::not_connected(&error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::Scene;
    use super::*;

    #[test]
    fn a_condition_is_waited_for_until_the_time_is_over() {
        let scene = Scene::tcp();
        let mut looks = 0;
        let holds_at_the_third_look = scene.attempt().eventually(|| {
            looks += 1;
            looks == 3
        });
        assert!(matches!(holds_at_the_third_look, Ok(true)), "{holds_at_the_third_look:?}");
        assert_eq!(looks, 3);
        let never = scene.attempt_at_its_end().eventually(|| false);
        assert!(matches!(never, Ok(false)), "{never:?}");
    }

    #[test]
    fn a_connect_that_waited_for_less_than_a_silence_is_slow() {
        let outcome = Scene::full_backlog().attempt_at_its_end().connect().map(|_| ());
        assert!(matches!(outcome, Err(Stop::Slow)), "{outcome:?}");
    }

    #[test]
    fn a_shortage_of_this_machine_is_no_failure_of_the_server() {
        for error in [libc::EADDRNOTAVAIL, libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            let stop = connect_failure(io::Error::from_raw_os_error(error));
            assert!(matches!(stop, Stop::Skip(Skip::Own(_))), "{stop:?}");
        }
        let stop = connect_failure(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert!(matches!(stop, Stop::Fail(_)), "{stop:?}");
    }
}
