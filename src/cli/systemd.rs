//! What systemd passes to a service, and what a service tells it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::Handle;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use socket2::{Domain, SockAddr, Socket, Type};

use super::format::plural;
use super::log::TARGET;

/// The variable that names the socket of the service manager.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How old the number of connections in the status may be.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// How long the process waits at its end for the last message.
const FINISH_TIMEOUT: Duration = Duration::from_millis(100);

/// Takes the listening sockets that were passed to this process (`sd_listen_fds(3)`), if there are any.
///
/// It removes the variables from the environment, so it must run before a thread is started.
pub(super) fn take_listeners() -> Result<Vec<TcpListener>, String> {
    let failed = |reason: &str| format!("cannot serve a socket of LISTEN_FDS: {reason}; pass listening TCP sockets");
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        let listener = passed.take_tcp_listener(index).map_err(|error| failed(&error.to_string()))?;
        listeners.extend(listener);
    }
    if let Some(socket) = listeners.iter().find(|listener| !is_listening(listener)) {
        return Err(failed(&format!("fd {} does not listen", socket.as_raw_fd())));
    }
    #[cfg(any(target_os = "android", target_os = "linux"))]
    for listener in &listeners {
        // The socket of a unit outlives its servers: an earlier one may have set it, for --stall-timeout.
        socket2::SockRef::from(listener).set_tcp_user_timeout(None).map_err(|error| failed(&error.to_string()))?;
    }
    Ok(listeners)
}

/// Returns false for a socket on which accept(2) must fail, such as the connection of a unit with `Accept=yes`.
#[cfg(any(target_os = "android", target_os = "freebsd", target_os = "linux"))]
fn is_listening(socket: &TcpListener) -> bool {
    socket2::SockRef::from(socket).is_listener().unwrap_or(true)
}

/// Other systems do not tell.
#[cfg(not(any(target_os = "android", target_os = "freebsd", target_os = "linux")))]
fn is_listening(_: &TcpListener) -> bool {
    true
}

/// Tells systemd the state of the server (`sd_notify(3)`), on a thread of its own: a message blocks while the queue of the socket is full.
#[derive(Clone)]
pub(super) struct Notifier {
    messages: Sender<Message>,
    /// `None` if systemd does not watch this process.
    watchdog: Option<Watchdog>,
}

enum Message {
    Stopping,
    /// Receives a value once every earlier message was sent.
    Finish(Sender<()>),
}

impl Notifier {
    /// Starts the thread, and reports that the server listens. Returns `None` without `NOTIFY_SOCKET`.
    pub(super) fn start(handle: Handle) -> io::Result<Option<Self>> {
        let Some(path) = std::env::var_os(NOTIFY_SOCKET).filter(|path| !path.is_empty()) else { return Ok(None) };
        let watchdog = Watchdog::from_environment();
        let watch = watchdog.clone().map(Watch::new);
        let reporter = Reporter { handle, watch, connections: 0, path, socket: None, has_failed: false };
        let (messages, receiver) = mpsc::channel();
        thread::Builder::new().name("systemd".to_owned()).spawn(move || reporter.run(&receiver))?;
        Ok(Some(Self { messages, watchdog }))
    }

    /// Returns the watchdog, if systemd watches this process.
    pub(super) fn watchdog(&self) -> Option<&Watchdog> {
        self.watchdog.as_ref()
    }

    /// Reports that the server shuts down.
    pub(super) fn stopping(&self) {
        let _ = self.messages.send(Message::Stopping);
    }

    /// Waits at most 100 ms until every message was sent.
    pub(super) fn finish(&self) {
        let (sender, done) = mpsc::channel();
        let _ = self.messages.send(Message::Finish(sender));
        let _ = done.recv_timeout(FINISH_TIMEOUT);
    }
}

/// systemd ends a service that does not report in time, and the service reports only if its loop turns.
#[derive(Clone)]
pub(super) struct Watchdog {
    /// Half of `WATCHDOG_USEC`: the interval of the reports.
    interval: Duration,
    turns: Arc<AtomicU64>,
}

impl Watchdog {
    /// Returns `None` if systemd does not watch this process.
    fn from_environment() -> Option<Self> {
        sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero()).map(Self::new)
    }

    fn new(timeout: Duration) -> Self {
        // A wait of the poll takes whole milliseconds.
        Self { interval: (timeout / 2).max(Duration::from_millis(2)), turns: Arc::default() }
    }

    /// Returns how long a turn may wait, so that at least two come per interval, also without events.
    pub(super) fn wait_max(&self) -> Duration {
        self.interval / 2
    }

    pub(super) fn count_turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }
}

/// The thread of a [`Notifier`].
struct Reporter {
    handle: Handle,
    watch: Option<Watch>,
    /// The number of connections in the last status.
    connections: u64,
    path: OsString,
    /// It is kept: a server without a free descriptor must be able to feed its watchdog.
    socket: Option<Socket>,
    /// A message could not be sent, which is logged once.
    has_failed: bool,
}

impl Reporter {
    fn run(mut self, messages: &Receiver<Message>) {
        self.send(&NotifyState::Ready);
        self.send_status();
        let mut status_at = Instant::now() + STATUS_INTERVAL;
        loop {
            let next = self.watch.as_ref().map_or(status_at, |watch| watch.due.min(status_at));
            match messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Message::Stopping) => self.send(&NotifyState::Stopping),
                Ok(Message::Finish(done)) => {
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if now >= status_at {
                status_at = now + STATUS_INTERVAL;
                if self.handle.stats().open() != self.connections {
                    self.send_status();
                }
            }
            if self.watch.as_mut().is_some_and(|watch| watch.has_turned(now)) {
                self.send(&NotifyState::Watchdog);
            }
        }
    }

    fn send_status(&mut self) {
        self.connections = self.handle.stats().open();
        let status = plural(self.connections, "connection", "connections");
        self.send(&NotifyState::Status(&status));
    }

    fn send(&mut self, state: &NotifyState<'_>) {
        if let Err(error) = self.try_send(state)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            log::warn!(target: TARGET, "cannot send {state} to NOTIFY_SOCKET {}: {error}", self.path.display());
        }
    }

    fn try_send(&mut self, state: &NotifyState<'_>) -> io::Result<()> {
        let message = format!("{state}\n");
        if let Some(socket) = &self.socket
            && socket.send(message.as_bytes()).is_ok()
        {
            return Ok(());
        }
        // The first message, or the service manager has bound its socket anew.
        let socket = connect(&self.path)?;
        socket.send(message.as_bytes())?;
        self.socket = Some(socket);
        Ok(())
    }
}

/// Connects to the socket of the service manager: a path, or `@` and a name of the abstract namespace (`sd_notify(3)`).
fn connect(path: &OsStr) -> io::Result<Socket> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat()))?,
        _ => SockAddr::unix(path)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.connect(&address)?;
    Ok(socket)
}

/// Looks at the turns of the loop.
struct Watch {
    watchdog: Watchdog,
    /// The turns when they were last looked at.
    turns: u64,
    due: Instant,
}

impl Watch {
    fn new(watchdog: Watchdog) -> Self {
        Self { due: Instant::now() + watchdog.interval, watchdog, turns: 0 }
    }

    /// Returns true once per interval, if the loop has turned in it.
    fn has_turned(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        let turns = self.watchdog.turns.load(Ordering::Relaxed);
        let has_turned = std::mem::replace(&mut self.turns, turns) != turns;
        // A loop that is late is looked at again soon.
        self.due = now + if has_turned { self.watchdog.interval } else { self.watchdog.interval / 8 };
        has_turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_turns_feeds_the_watchdog_once_in_half_of_its_time() {
        let watchdog = Watchdog::new(Duration::from_secs(10));
        assert_eq!((watchdog.interval, watchdog.wait_max()), (Duration::from_secs(5), Duration::from_millis(2500)));
        let start = Instant::now();
        let mut watch = Watch::new(watchdog.clone());
        watchdog.count_turn();
        assert!(!watch.has_turned(start + Duration::from_millis(4999)));
        assert!(watch.has_turned(watch.due));
        let due = watch.due;
        assert!(!watch.has_turned(due), "it has not turned since");
        assert_eq!(watch.due, due + Duration::from_millis(625), "a loop that is late is looked at again soon");
    }
}
