//! What the tests share: a server in this process or in one of its own, clients, and waiting with an end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{Config, Running, Server};
use rustix::process::{Pid, Signal, kill_process};
use socket2::SockRef;

/// How long anything may take that is bound to happen. Far above what it takes, so that a loaded machine fails no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server in this process, on a port of its own, on a thread of its own.
#[track_caller]
pub(crate) fn serve(config: Config) -> Running {
    Server::bind("127.0.0.1:0", config).unwrap().spawn().unwrap()
}

/// A client whose reads give up after [`PATIENCE`] instead of hanging.
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
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
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0);
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
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
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
        let deadline = Instant::now() + PATIENCE;
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
