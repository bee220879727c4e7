//! What the tests share: a server in this process or in one of its own, clients, and waiting with an end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Handle, Observer, Peer, Report, Running, Server};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::{NamedTempFile, TempPath};

/// How long anything may take that is bound to happen. Far above what it takes, so that a loaded machine fails no test.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A server in this process, on a port of its own, on a thread of its own.
#[track_caller]
pub(crate) fn serve(config: Config) -> Running {
    Server::bind("127.0.0.1:0", config).unwrap().spawn().unwrap()
}

/// A client whose reads give up after [`TIMEOUT`] instead of hanging.
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends `message` and reads as much back, which must be the same.
#[track_caller]
pub(crate) fn assert_echoes(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).unwrap();
    assert_receives(stream, message);
}

/// Reads as many bytes as `expected` has, which must be those.
#[track_caller]
pub(crate) fn assert_receives(stream: &mut TcpStream, expected: &[u8]) {
    let mut echo = vec![0; expected.len()];
    stream.read_exact(&mut echo).unwrap();
    // Not `assert_eq`: a megabyte that differs is not worth printing.
    assert!(echo == expected, "the echo of {} bytes differs", expected.len());
}

/// The other end must have ended its direction, with nothing more before it.
#[track_caller]
pub(crate) fn assert_ended(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // Unlike `read` it tries again when interrupted, which a read with a timeout is where the machine is suspended (signal(7)).
    stream.take(64).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

/// Ends this direction; the other goes on.
#[track_caller]
pub(crate) fn half_close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Closes with RST.
#[track_caller]
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Bytes in which none that is missing, doubled or moved goes unseen.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length.div_ceil(4)).flat_map(|word| u32::try_from(word).unwrap().to_be_bytes()).take(length).collect()
}

/// Waits until `condition` holds. For what sends no event that a test could wait for, such as a counter.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The binary, as a process of its own. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Receiver<String>,
}

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The lines of standard output that nobody had waited for.
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

/// The binary with these arguments; the log in English, whatever the machine's locale.
pub(crate) fn ecoloop(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecoloop"));
    command.args(arguments).env_remove("LC_ALL").env_remove("LC_MESSAGES").env_remove("LANG").stdin(Stdio::null());
    command
}

impl Process {
    /// Starts `command`, with both its outputs read to here.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        let stderr = read_lines(child.stderr.take().unwrap());
        Self { child, lines, stderr }
    }

    /// A server on a free port of 127.0.0.1, and its address once it listens.
    #[track_caller]
    pub(crate) fn serve(arguments: &[&str]) -> (Self, SocketAddr) {
        let mut process = Self::start(ecoloop(&[&["127.0.0.1:0"], arguments].concat()));
        let address = process.listening();
        (process, address)
    }

    /// Waits for the next address that it says it listens on.
    #[track_caller]
    pub(crate) fn listening(&mut self) -> SocketAddr {
        let line = self.line_with("on IP ");
        let (ip, port) = line.split_once("on IP ").unwrap().1.split_once(", port ").unwrap();
        SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
    }

    /// Waits for the next line of standard output that contains `words`, and passes over those before it.
    #[track_caller]
    pub(crate) fn line_with(&mut self, words: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(words) => return line,
                Ok(_) => {}
                Err(error) => {
                    panic!("no line with {words:?}: {error}; stderr: {:?}", self.stderr.try_iter().collect::<Vec<_>>())
                }
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        eventually("the end of the process", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        Ended { status, stdout: self.lines.iter().collect(), stderr: self.stderr.iter().collect() }
    }

    /// Ends it with SIGTERM, and waits.
    #[track_caller]
    pub(crate) fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

impl Process {
    /// Stops it with SIGSTOP, and waits until it stands still.
    #[track_caller]
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    /// Lets it go on after [`pause`](Self::pause).
    #[track_caller]
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// The descriptors that it has open.
    #[track_caller]
    pub(crate) fn descriptors(&self) -> BTreeSet<u64> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        directory.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }
}

impl Ended {
    /// The line that says what it has done. Its exit status must be 0.
    #[track_caller]
    pub(crate) fn summary(&self) -> &str {
        assert!(self.status.success(), "{self:?}");
        self.stdout.iter().find(|line| line.contains("] Done: ")).expect("a summary")
    }
}

/// Waits for the end of a server that was told to end.
#[track_caller]
pub(crate) fn join(running: Running) -> Report {
    let (sender, report) = mpsc::channel();
    thread::spawn(move || sender.send(running.join().unwrap()));
    report.recv_timeout(TIMEOUT).expect("the end of the server")
}

/// A call of an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Opened,
    Received(usize),
    Ended,
    Closed(CloseReason),
}

/// Records every event, in order. Its clones share the record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<(Peer, Event)>>>);

impl Recorder {
    /// Returns the events since the last call.
    pub(crate) fn take(&self) -> Vec<(Peer, Event)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    fn record(&self, peer: Peer, event: Event) {
        self.0.lock().unwrap().push((peer, event));
    }
}

impl Observer for Recorder {
    fn opened(&mut self, peer: Peer) {
        self.record(peer, Event::Opened);
    }

    fn received(&mut self, peer: Peer, data: &[u8]) {
        self.record(peer, Event::Received(data.len()));
    }

    fn ended(&mut self, peer: Peer) {
        self.record(peer, Event::Ended);
    }

    fn closed(&mut self, peer: Peer, why: CloseReason) {
        self.record(peer, Event::Closed(why));
    }
}

/// The server's end of a connection, as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FarEnd {
    pub(crate) state: TcpState,
    /// Bytes that have arrived and were not read, urgent ones and FIN included.
    pub(crate) unread: usize,
    /// Not so: it waits in the backlog.
    pub(crate) is_accepted: bool,
}

/// The states that a test looks for (Linux: `include/net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpState {
    Established,
    /// It has sent FIN, with or without data before it that the client has no room for.
    FinWait1,
    FinWait2,
    /// The client's FIN has arrived, and all before it.
    CloseWait,
    Other,
}

/// The server's end of `client`, unless that is gone: a row of `/proc/net/tcp` (proc(5)).
#[track_caller]
pub(crate) fn far_end(client: &TcpStream) -> Option<FarEnd> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let (server, client) = (port(client.peer_addr().ok()?), port(client.local_addr().ok()?));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&server) && row[2].ends_with(&client))?;
    Some(FarEnd {
        state: match row[3] {
            "01" => TcpState::Established,
            "04" => TcpState::FinWait1,
            "05" => TcpState::FinWait2,
            "08" => TcpState::CloseWait,
            _ => TcpState::Other,
        },
        unread: usize::from_str_radix(row[4].split_once(':').unwrap().1, 16).unwrap(),
        is_accepted: row[9] != "0",
    })
}

/// Waits until so many bytes have arrived at a server that does not read now.
#[track_caller]
pub(crate) fn await_unread(client: &TcpStream, bytes: usize) {
    eventually("the arrival of what was sent", || {
        far_end(client).is_some_and(|end| end.state == TcpState::Established && end.unread == bytes)
    });
}

/// Waits until the server's end is in `state`.
#[track_caller]
pub(crate) fn await_state(client: &TcpStream, state: TcpState) {
    eventually(&format!("{state:?}"), || far_end(client).is_some_and(|end| end.state == state));
}

/// What the kernel holds of a [`narrow`] connection, for each direction of each end: enough to be quick, and soon full.
const NARROW: usize = 64 * 1024;

/// A configuration with which a peer that does not read stalls after a few hundred kilobytes.
pub(crate) fn narrow() -> Config {
    let mut config = Config::default();
    config.recv_buffer = Some(NARROW);
    config.send_buffer = Some(NARROW);
    config
}

/// A client that is narrow too.
#[track_caller]
pub(crate) fn connect_narrow(address: SocketAddr) -> TcpStream {
    connect_with_buffers(address, NARROW)
}

/// A client with socket buffers of this size, which a connected one could not shrink any more (tcp(7)).
#[track_caller]
pub(crate) fn connect_with_buffers(address: SocketAddr, bytes: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    socket.set_send_buffer_size(bytes).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.set_write_timeout(Some(TIMEOUT)).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Sends of `message`, and reads nothing, until the server has output pending for `client`; answers how much was sent.
///
/// While a round trip of `other` completes, so does what the server was about to do: what it has received and still
/// not sent then is pending. One byte of it may be the last round trip's, which is counted after it was sent.
#[track_caller]
pub(crate) fn stall(mut client: &TcpStream, message: &[u8], other: &mut TcpStream, handle: &Handle) -> usize {
    let mut sent = 0;
    client.set_nonblocking(true).unwrap();
    eventually("output that is pending", || {
        while let Ok(n) = client.write(&message[sent..]) {
            assert_ne!(n, 0, "{} bytes do not stall it", message.len());
            sent += n;
        }
        let before = handle.stats();
        assert_echoes(other, b"x");
        let after = handle.stats();
        let moved = (after.bytes_in - before.bytes_in, after.bytes_out - before.bytes_out);
        before.bytes_in > before.bytes_out + 1 && moved == (1, 1)
    });
    client.set_nonblocking(false).unwrap();
    sent
}

impl Process {
    /// Starts `command` with its outputs as they are: the lines are read here of those that are piped and not taken.
    #[track_caller]
    pub(crate) fn adopt(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = child.stdout.take().map_or_else(|| mpsc::channel().1, read_lines);
        let stderr = child.stderr.take().map_or_else(|| mpsc::channel().1, read_lines);
        Self { child, lines, stderr }
    }

    /// Its standard input, if `command` had it piped.
    #[track_caller]
    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    #[track_caller]
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the next line of standard output that contains `words`: that one, and all before it.
    #[track_caller]
    pub(crate) fn lines_through(&mut self, words: &str) -> Vec<String> {
        let deadline = Instant::now() + TIMEOUT;
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains(words)) {
            let left = deadline.saturating_duration_since(Instant::now());
            lines.push(
                self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("{error}: no {words:?} in {lines:?}")),
            );
        }
        lines
    }
}

/// A port of 127.0.0.1 that stays ours: a server with `--reuse-port` can be told to take it, one that says nowhere where it
/// listens. The socket does not listen, so no connection is lost to it.
#[track_caller]
pub(crate) fn reserve_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A client of a server that may not listen yet.
#[track_caller]
pub(crate) fn connect_eventually(address: SocketAddr) -> TcpStream {
    eventually("a server that listens", || is_listening(address));
    connect(address)
}

/// Whether some socket listens on this IPv4 address, without a connection that the server would count.
#[track_caller]
pub(crate) fn is_listening(address: SocketAddr) -> bool {
    let SocketAddr::V4(v4) = address else { panic!("{address} is not of IPv4") };
    // The address as the kernel prints it: a word in the machine's byte order (proc(5)).
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|row| row.contains(&format!(": {local} 00000000:0000 0A")))
}

/// Does what may wait for ever, and must end by itself: after [`TIMEOUT`] `wake` ends it, and the test fails.
#[track_caller]
pub(crate) fn ends_by_itself<T>(wake: impl FnOnce() + Send + 'static, wait: impl FnOnce() -> T) -> T {
    let (done, is_done) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let is_over = is_done.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout);
        if is_over {
            wake();
        }
        is_over
    });
    let answer = wait();
    drop(done);
    assert!(!watch.join().unwrap(), "it did not end by itself within {TIMEOUT:?}");
    answer
}

/// A temporary file, which is deleted when dropped.
pub(crate) struct Scratch(TempPath);

impl Scratch {
    /// Creates an empty one, whose name begins with `name`.
    #[track_caller]
    pub(crate) fn new(name: &str) -> Self {
        Self(NamedTempFile::with_prefix(name).unwrap().into_temp_path())
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Parses its content.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&fs::read(&self.0).unwrap()).unwrap()
    }
}

/// Sets the soft limit of the living process.
#[cfg(target_os = "linux")]
#[track_caller]
pub(crate) fn limit_descriptors(server: &Process, limit: Option<u64>) {
    let limit = Rlimit { current: limit, maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();
}
