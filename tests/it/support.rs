//! Shared by the tests: servers in this process and as child processes, clients, and waiting with a timeout.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Handle, Observer, Peer, Report, Running, Server, Turn};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::{NamedTempFile, TempPath};

/// How long a test waits for an event. Far more than any event takes, so that no test fails on a loaded machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Spawns a server on a free port of 127.0.0.1.
#[track_caller]
pub(crate) fn serve(config: Config) -> Running {
    Server::bind("127.0.0.1:0", config).unwrap().spawn().unwrap()
}

/// Connects a client whose reads and writes fail after [`TIMEOUT`].
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Connects as [`connect`] from an address of the loopback interface.
#[track_caller]
pub(crate) fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.set_write_timeout(Some(TIMEOUT)).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Sends `message`, and asserts that it comes back.
#[track_caller]
pub(crate) fn assert_echoes(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).unwrap();
    assert_receives(stream, message);
}

/// Asserts that the next bytes are `expected`.
#[track_caller]
pub(crate) fn assert_receives(stream: &mut TcpStream, expected: &[u8]) {
    let mut echo = vec![0; expected.len()];
    stream.read_exact(&mut echo).unwrap();
    // `assert_eq` would print megabytes.
    assert!(echo == expected, "the echo of {} bytes differs", expected.len());
}

/// Asserts that the server's FIN comes next, with no data before it.
#[track_caller]
pub(crate) fn assert_ended(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // Unlike `read` it retries after EINTR, which suspending the machine causes (signal(7)).
    stream.take(64).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

/// Asserts that the server resets the connection, and sends nothing before.
#[track_caller]
pub(crate) fn assert_reset(mut client: TcpStream) {
    let mut rest = Vec::new();
    // As above, it retries after EINTR.
    assert_eq!(client.read_to_end(&mut rest).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(rest, b"");
}

/// Sends FIN, and keeps reading possible.
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

/// Returns `length` bytes in which a missing, repeated or moved byte shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length.div_ceil(4)).flat_map(|word| u32::try_from(word).unwrap().to_be_bytes()).take(length).collect()
}

/// Waits until `condition` holds, for example of a counter, by polling it. Panics with `what` after [`TIMEOUT`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs turns of a server on this thread until `condition` holds. Panics after [`TIMEOUT`].
#[track_caller]
pub(crate) fn turn_until<O: Observer>(server: &mut Server<O>, mut condition: impl FnMut(&Server<O>) -> bool) {
    let start = Instant::now();
    while !condition(server) {
        assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}");
        // A short wait: a deadline may have made the condition true before the poll.
        assert_eq!(server.turn(Some(Duration::from_millis(10))).unwrap(), Turn::Running);
    }
}

/// The binary as a child process, which is killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Receiver<String>,
}

/// The exit status of a process, and its unread output.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The lines that the test has not waited for.
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

/// Returns a command that runs the binary, with its log in English in any locale.
pub(crate) fn ecoloop(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecoloop"));
    command.args(arguments).env_remove("LC_ALL").env_remove("LC_MESSAGES").env_remove("LANG").stdin(Stdio::null());
    command
}

/// Returns the command of a browser without a window, which is killed after [`TIMEOUT`].
pub(crate) fn chromium(profile: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg(TIMEOUT.as_secs().to_string());
    command.args(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.arg(format!("--user-data-dir={}", profile.join("profile").display()));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Returns `command` with `kib` KiB of address space (`ulimit -v`): what it cannot allocate fails.
pub(crate) fn limited(kib: u64, command: &Command) -> Command {
    with_limit(&format!("-v {kib}"), command)
}

/// Returns `command` with a descriptor limit, soft and hard (`ulimit -n`): the binary raises the soft one to the hard one.
pub(crate) fn with_descriptors(limit: u32, command: &Command) -> Command {
    with_limit(&format!("-n {limit}"), command)
}

/// Returns `command` with a limit of the shell.
fn with_limit(limit: &str, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]);
    wrapped(limited, command)
}

/// Returns `outer` with `inner` as the command that it runs: its program, arguments and environment.
pub(crate) fn wrapped(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Returns a command that runs a program of the course or of `docs/examples`, in the dev profile. `cargo test --test it` does not build
/// them: the first call does.
pub(crate) fn example(name: &str) -> Command {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        build.args(["build", "--quiet", "--examples", "--manifest-path", manifest]);
        assert!(build.status().unwrap().success(), "cannot build the examples");
        std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("debug/examples")
    });
    Command::new(programs.join(name))
}

/// A control group whose processes share a fifth of a core. It is removed when it is dropped.
pub(crate) struct CpuQuota(PathBuf);

impl CpuQuota {
    #[track_caller]
    pub(crate) fn fifth_of_a_core() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (root, limits) = if Path::new("/sys/fs/cgroup/cpu").is_dir() {
            ("/sys/fs/cgroup/cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "20000")][..])
        } else {
            ("/sys/fs/cgroup", &[("cpu.max", "20000 100000")][..])
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Path::new(root).join(format!("ecoloop-{}-{number}", std::process::id()));
        fs::create_dir(&group).unwrap();
        for (file, value) in limits {
            fs::write(group.join(file), value).unwrap();
        }
        Self(group)
    }

    /// Returns `command` within the group.
    pub(crate) fn limited(&self, command: &Command) -> Command {
        let mut limited = Command::new("sh");
        limited.args(["-c", "echo $$ > \"$0\"/cgroup.procs; exec \"$@\""]).arg(&self.0);
        wrapped(limited, command)
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        // A process that has exited may still be in it for a moment.
        let deadline = Instant::now() + TIMEOUT;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Process {
    /// Starts `command`, and reads its standard output and error.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        let stderr = read_lines(child.stderr.take().unwrap());
        Self { child, lines, stderr }
    }

    /// Starts a server on a free port of 127.0.0.1, and returns it with its address once it listens.
    #[track_caller]
    pub(crate) fn serve(arguments: &[&str]) -> (Self, SocketAddr) {
        let mut process = Self::start(ecoloop(&[&["127.0.0.1:0"], arguments].concat()));
        let address = process.listening();
        (process, address)
    }

    /// Waits for the next logged address that the server listens on, and returns it.
    #[track_caller]
    pub(crate) fn listening(&mut self) -> SocketAddr {
        let line = self.line_with("on IP ");
        let (ip, port) = line.split_once("on IP ").unwrap().1.split_once(", port ").unwrap();
        SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
    }

    /// Waits for the next line of standard output that contains `words`, and returns it without the lines before it.
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

    /// Waits for the next line of standard error that contains `words`, and returns it without the lines before it.
    #[track_caller]
    pub(crate) fn error_with(&mut self, words: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.stderr.recv_timeout(left).unwrap_or_else(|error| panic!("no line with {words:?}: {error}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Returns whether a line of standard output that was printed since the last one read contains `words`. It reads them.
    pub(crate) fn has_line_with(&mut self, words: &str) -> bool {
        self.lines.try_iter().any(|line| line.contains(words))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Sends a signal until the process has exited: a repeat within 0.3 s is ignored.
    #[track_caller]
    pub(crate) fn signal_until_ended(&mut self, signal: Signal) {
        eventually("the exit of the process", || {
            self.signal(signal);
            self.has_ended()
        });
    }

    /// Waits until the process has exited.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        eventually("the exit of the process", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        Ended { status, stdout: self.lines.iter().collect(), stderr: self.stderr.iter().collect() }
    }

    /// Sends SIGTERM, and waits until the process has exited.
    #[track_caller]
    pub(crate) fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if the process has exited already.
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
    /// Sends SIGSTOP, and waits until the process is stopped.
    #[track_caller]
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    /// Continues the process after [`pause`](Self::pause).
    #[track_caller]
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Returns the open descriptors of the process.
    #[track_caller]
    pub(crate) fn descriptors(&self) -> BTreeSet<u64> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        directory.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }
}

impl Ended {
    /// Returns the last line of the log, with the counts. Asserts that the exit status is 0.
    #[track_caller]
    pub(crate) fn summary(&self) -> &str {
        assert!(self.status.success(), "{self:?}");
        self.stdout.iter().find(|line| line.contains("] Done: ")).expect("no summary")
    }
}

/// A load that is over in a moment may be inconclusive: a loaded machine can keep the generator from its core, of which a line of standard
/// error tells.
#[cfg(feature = "load")]
impl Ended {
    /// Asserts that a load has measured, and that nothing failed.
    #[track_caller]
    pub(crate) fn assert_measured(&self) {
        assert!(self.has_measured(), "{self:?}");
    }

    pub(crate) fn has_measured(&self) -> bool {
        matches!(self.status.code(), Some(0 | 3))
    }

    /// Returns standard error without that line.
    pub(crate) fn stderr_without_saturation(&self) -> Vec<&str> {
        self.stderr.iter().filter(|line| !line.contains("this generator was saturated")).map(String::as_str).collect()
    }
}

/// Waits until a server that drains or stops has finished.
#[track_caller]
pub(crate) fn join<O: Send + 'static>(running: Running<O>) -> Report {
    let (sender, report) = mpsc::channel();
    thread::spawn(move || {
        // Fails if the test has given up.
        let _ = sender.send(running.join().unwrap());
    });
    report.recv_timeout(TIMEOUT).expect("the server has not finished")
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

/// The server's socket of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerEnd {
    pub(crate) state: TcpState,
    /// Unread bytes in the receive queue; urgent data and FIN count as a byte each.
    pub(crate) unread: usize,
    /// False in the backlog.
    pub(crate) is_accepted: bool,
}

/// The TCP states that tests wait for (`include/net/tcp_states.h` of Linux).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpState {
    Established,
    /// The server has sent FIN, which the client has not acknowledged yet.
    FinWait1,
    FinWait2,
    /// The client's FIN has arrived, and all data before it.
    CloseWait,
    Other,
}

/// Returns the server's socket of `client`, if there is one.
#[track_caller]
pub(crate) fn server_end(client: &TcpStream) -> Option<ServerEnd> {
    server_end_between(client.peer_addr().ok()?, client.local_addr().ok()?)
}

/// Returns the server's socket of a connection, from its row of `/proc/net/tcp`, if there is one (proc(5)).
#[track_caller]
fn server_end_between(server: SocketAddr, client: SocketAddr) -> Option<ServerEnd> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let (server, client) = (port(server), port(client));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&server) && row[2].ends_with(&client))?;
    Some(ServerEnd {
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

/// Closes with RST, and waits until it has arrived.
#[track_caller]
pub(crate) fn await_reset(client: TcpStream) {
    let (server, local) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
    reset(client);
    eventually("the arrival of RST", || server_end_between(server, local).is_none());
}

/// Waits until the server's receive queue holds `bytes` bytes.
#[track_caller]
pub(crate) fn await_unread(client: &TcpStream, bytes: usize) {
    eventually("the data in the receive queue", || {
        server_end(client).is_some_and(|end| end.state == TcpState::Established && end.unread == bytes)
    });
}

/// Waits until the server's socket is in `state`.
#[track_caller]
pub(crate) fn await_state(client: &TcpStream, state: TcpState) {
    eventually(&format!("{state:?}"), || server_end(client).is_some_and(|end| end.state == state));
}

/// Size of each socket buffer of a [`narrow`] connection: full soon, and yet not slow.
const NARROW: usize = 64 * 1024;

/// Returns a configuration with which a client that does not read stalls after a few hundred kilobytes.
pub(crate) fn narrow() -> Config {
    let mut config = Config::default();
    config.recv_buffer = Some(NARROW);
    config.send_buffer = Some(NARROW);
    config
}

/// Connects a client with small socket buffers.
#[track_caller]
pub(crate) fn connect_narrow(address: SocketAddr) -> TcpStream {
    connect_with_buffers(address, NARROW)
}

/// Connects a client with socket buffers of `bytes` bytes, which must be set before the connect (tcp(7)).
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

/// Sends from `message`, without reading, until the server has pending output for `client`. Returns the number of bytes sent.
///
/// During a round trip of `other` the server does all that it can do: bytes that are received and still not sent are pending.
#[track_caller]
pub(crate) fn stall(mut client: &TcpStream, message: &[u8], other: &mut TcpStream, handle: &Handle) -> usize {
    let mut sent = 0;
    client.set_nonblocking(true).unwrap();
    eventually("pending output", || {
        while let Ok(n) = client.write(&message[sent..]) {
            assert_ne!(n, 0, "{} bytes do not stall the client", message.len());
            sent += n;
        }
        let before = handle.stats();
        // One byte may be pending. A single difference of 1 may also be a snapshot between the updates of the two counters.
        let pending = (0..3).all(|_| {
            assert_echoes(other, b"x");
            let stats = handle.stats();
            stats.bytes_in > stats.bytes_out
        });
        let after = handle.stats();
        pending && (after.bytes_in - before.bytes_in, after.bytes_out - before.bytes_out) == (3, 3)
    });
    client.set_nonblocking(false).unwrap();
    sent
}

impl Process {
    /// Starts `command` without redirecting its outputs, and reads the pipes among them.
    #[track_caller]
    pub(crate) fn adopt(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = child.stdout.take().map_or_else(|| mpsc::channel().1, read_lines);
        let stderr = child.stderr.take().map_or_else(|| mpsc::channel().1, read_lines);
        Self { child, lines, stderr }
    }

    /// Returns the standard input, which must be a pipe.
    #[track_caller]
    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    #[track_caller]
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the next line of standard output that contains `words`, and returns it with the lines before it.
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

/// Binds a port of 127.0.0.1 without listening: a connect is refused, and only a server with `--reuse-port` can listen on it.
/// Returns the socket, which keeps the port, and the address.
#[track_caller]
pub(crate) fn reserve_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Returns a free port of a loopback address that no other test uses, for a program that must be told where to listen.
#[track_caller]
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low] = u16::try_from(std::process::id() % (1 << 16)).unwrap().to_be_bytes();
    let ip = Ipv4Addr::new(127, 128 | high, low, NEXT.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// Connects a client once the server listens.
#[track_caller]
pub(crate) fn connect_eventually(address: SocketAddr) -> TcpStream {
    eventually("a listening server", || is_listening(address));
    connect(address)
}

/// Returns whether a socket listens on this IPv4 address. Makes no connection, which the server would count.
#[track_caller]
pub(crate) fn is_listening(address: SocketAddr) -> bool {
    let SocketAddr::V4(v4) = address else { panic!("{address} is not of IPv4") };
    // The kernel prints the address as a word in the machine's byte order (proc(5)).
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|row| row.contains(&format!(": {local} 00000000:0000 0A")))
}

/// Waits until no socket listens on this IPv4 address. A process that another test starts has a copy of each socket of this process
/// until its exec, and the kernel accepts connections for it that long.
#[track_caller]
pub(crate) fn await_not_listening(address: SocketAddr) {
    eventually("the end of listening", || !is_listening(address));
}

/// Calls `wait`, which must return within [`TIMEOUT`]: if not, calls `wake` to end it, and panics.
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
    let result = wait();
    drop(done);
    assert!(!watch.join().unwrap(), "no return within {TIMEOUT:?}");
    result
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

/// Returns a command of strace that lacks the program, which [`wrapped`] adds. It injects `fault` into system calls of the program, and
/// writes its trace to the file `trace`.
///
/// With `-D` the child process is the program, not strace, so that the program ends with the test. Without `-f` strace traces only the
/// main thread.
#[track_caller]
pub(crate) fn strace(fault: &str, trace: &str) -> Command {
    let (calls, _) = fault.split_once(':').unwrap();
    let mut command = Command::new("strace");
    command.args(["-D", "-qq", "-o", trace]);
    command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={fault}")]);
    command
}

/// Waits until a trace of strace has a call into which a failure or a delay was injected. strace may exit after the process.
#[track_caller]
pub(crate) fn await_injected(trace: &Scratch) {
    eventually("an injected fault", || {
        let calls = fs::read_to_string(trace.path()).unwrap();
        calls.contains("(INJECTED)") || calls.contains("(DELAYED)")
    });
}

/// Descriptors of this process that a test with thousands of connections needs: both ends of 2,000, and those of the tests beside it.
const DESCRIPTORS_MIN: u64 = 5000;

/// Serializes the tests with thousands of connections, two of which together could exceed the descriptor limit, and raises that limit.
#[track_caller]
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    let serial = HEAVY.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptors();
    serial
}

/// Raises the soft descriptor limit of this process to the hard one, and returns it.
#[track_caller]
pub(crate) fn raise_descriptors() -> u64 {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(limit >= DESCRIPTORS_MIN, "the hard limit of {limit} descriptors is too low for this test");
    limit
}

/// Sets the soft descriptor limit of a running process.
#[cfg(target_os = "linux")]
#[track_caller]
pub(crate) fn limit_descriptors(server: &Process, limit: Option<u64>) {
    let limit = Rlimit { current: limit, maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();
}
