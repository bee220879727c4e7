//! `ecoloop strip`: draws the steps of any server, from what strace wrote of it.

mod strace;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use self::strace::{Event, Head, Line, Outcome, RESTART, Socket};
use super::format::{self, count};
use super::input::Input;
use super::log_observer::PeerName;
use super::output::Output;
use super::print_error;
use super::trace::{Format, Kind, STEPS_MAX, Source, Step, Trace};

/// Longest line that is read: strace shows 32 bytes of a message, or what its option -s says.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Most calls that have not returned at one time, one a thread.
const UNFINISHED_MAX: usize = 1 << 16;
/// Any other call is drawn if its thread spent this long in it, and could not serve meanwhile.
const LONG_NS: u64 = 1_000_000;

/// The way out if a file cannot be drawn.
const MAKE: &str = "strace -f -ttt -T -yy -o FILE COMMAND makes such a file";

const HELP: &str = "\
FILE is what strace wrote: strace -f -ttt -T -yy -o FILE COMMAND, or -p PID for a server that runs. The page has a row for each
thread and each TCP connection, and a column for each step: a poll, an accept, a read, a write, a close.

Exit status:
  0  the page is written
  1  runtime error, such as a file that strace did not write
  2  usage error

Examples:
  strace -f -ttt -T -yy -o notes.strace python3 docs/blocking_server.py
      trace the blocking server of the notes; end it with Ctrl-C
  ecoloop strip notes.strace -o notes.html
      draw what it did";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Output of strace -f -ttt -T -yy; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Page to write; - is standard output
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
}

/// Reads the output of strace and writes the page.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let output = Output::open(&arguments.output)?;
    let path = &arguments.file;
    let title = format::strip_control(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy());
    let input: io::Result<Box<dyn Read>> =
        if path == Path::new("-") { Ok(Box::new(Input)) } else { File::open(path).map(|file| Box::new(file) as _) };
    let mut parser = Parser::new(title);
    input
        .and_then(|input| parser.read(BufReader::new(input)))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let trace = parser.finish().map_err(|reason| format!("cannot draw {}: {reason}", path.display()))?;
    output.write(&trace.document(Format::Html))?;
    if trace.dropped > 0 {
        let (kept, dropped) = (count(STEPS_MAX as u64), count(trace.dropped));
        print_error(&format!("{}: the page has the first {kept} steps; {dropped} more are left out", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes steps of the lines of strace.
#[derive(Debug)]
struct Parser {
    trace: Trace,
    /// The times of the first line and of the last.
    start_ns: Option<u64>,
    now_ns: u64,
    /// Whether a call had a duration: without -T none has.
    has_duration: bool,
    threads: HashMap<u32, Thread>,
    unfinished: HashMap<u32, Head>,
    /// The latest connection of a pair of addresses, and of a descriptor in a table.
    by_addresses: HashMap<(SocketAddr, SocketAddr), u32>,
    by_descriptor: HashMap<(u32, u32), u32>,
    /// How each connection would end, were it closed now.
    ends: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    place: Option<u32>,
    /// The table of descriptors: threads of a process share one. It is named by the first thread.
    table: u32,
    has_socket: bool,
}

impl Parser {
    fn new(title: String) -> Self {
        Self {
            trace: Trace::new(title, Source::Strace),
            start_ns: None,
            now_ns: 0,
            has_duration: false,
            threads: HashMap::new(),
            unfinished: HashMap::new(),
            by_addresses: HashMap::new(),
            by_descriptor: HashMap::new(),
            ends: Vec::new(),
        }
    }

    /// Reads every line. What is no line of strace is skipped, and so is a line above the limit.
    fn read(&mut self, mut input: impl BufRead) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(());
            }
            if bytes.len() as u64 == LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
                input.skip_until(b'\n')?;
            } else if let Some(line) = str::from_utf8(&bytes).ok().and_then(strace::parse) {
                self.line(line);
            }
        }
    }

    fn line(&mut self, Line { thread, time_ns, event }: Line) {
        self.start_ns.get_or_insert(time_ns);
        self.now_ns = self.now_ns.max(time_ns);
        match event {
            Event::Call(head, outcome) => self.call(thread, &head, &outcome),
            Event::Unfinished(head) if self.unfinished.len() < UNFINISHED_MAX => {
                self.unfinished.insert(thread, head);
            }
            Event::Resumed(name, outcome) => {
                // Another name: a line between them is lost.
                let head = self.unfinished.remove(&thread).filter(|head| head.name == name || name == RESTART);
                if let Some(head) = head {
                    self.call(thread, &head, &outcome);
                }
            }
            Event::Unfinished(_) | Event::Other => {}
        }
    }

    fn call(&mut self, id: u32, head: &Head, outcome: &Outcome) {
        // A line that strace has cut, and another call of the thread after it.
        self.unfinished.remove(&id);
        self.has_duration |= outcome.duration_ns.is_some();
        // A new socket is not the connection that had its descriptor.
        if head.name == "socket"
            && let Some(socket) = outcome.socket
        {
            let key = (self.table(id), socket.descriptor);
            self.by_descriptor.remove(&key);
        }
        let is_new = matches!(head.name.as_str(), "clone" | "clone3" | "fork" | "vfork");
        if let (true, Some(child)) = (is_new && !self.trace.is_full(), outcome.value) {
            let table = if head.shares_files { self.table(id) } else { child };
            self.threads.entry(child).or_default().table = table;
        }
        if let Some(connection) =
            head.socket.filter(|_| head.sets_nonblocking).and_then(|socket| self.known(id, socket))
        {
            self.trace.connections[connection as usize].nonblocking = true;
        }
        let end_ns = outcome.duration_ns.map(|duration| head.start_ns.saturating_add(duration));
        self.now_ns = self.now_ns.max(end_ns.unwrap_or_default());
        self.step(id, head, Some(outcome), end_ns);
    }

    /// Adds the step of a call, if it is one to draw.
    fn step(&mut self, id: u32, head: &Head, outcome: Option<&Outcome>, end_ns: Option<u64>) {
        let has_socket = head.socket.is_some() || outcome.is_some_and(|outcome| outcome.socket.is_some());
        if has_socket && !self.trace.is_full() {
            self.threads.entry(id).or_default().has_socket = true;
        }
        let is_long = end_ns.is_none_or(|end_ns| end_ns - head.start_ns >= LONG_NS);
        let kind = match (strace::kind(&head.name), head.socket) {
            _ if head.name.starts_with("exit") => return,
            (Kind::Wait, _) => Kind::Wait,
            (kind @ (Kind::Accept | Kind::Connect), Some(_)) => kind,
            (kind @ (Kind::Read | Kind::Write | Kind::Shutdown | Kind::Close), Some(socket)) if !socket.is_listener => {
                kind
            }
            // Before its first socket a thread only starts up.
            (_, None) if is_long && self.threads.get(&id).is_some_and(|thread| thread.has_socket) => Kind::Other,
            _ => return,
        };
        if self.trace.is_full() {
            self.trace.dropped += 1;
            return;
        }
        let connection = self.connection(id, kind, head, outcome);
        if connection.is_none() && matches!(kind, Kind::Read | Kind::Write | Kind::Shutdown | Kind::Close) {
            return;
        }
        let Some(call) = self.trace.call(&head.name, kind) else { return };
        let error = outcome.and_then(|outcome| outcome.error);
        let result = outcome.filter(|outcome| outcome.error.is_none()).and_then(|outcome| outcome.value);
        if let Some(connection) = connection {
            self.note_end(connection, kind, result, error);
        }
        let origin_ns = self.start_ns.unwrap_or_default();
        let step = Step {
            start_ns: head.start_ns.saturating_sub(origin_ns),
            end_ns: end_ns.map(|end_ns| end_ns.saturating_sub(origin_ns)),
            thread: self.place(id),
            call,
            connection,
            result,
            error: error.and_then(|error| self.trace.error(error)),
            // After an error that ends the connection nothing is left to send.
            pending: outcome
                .and(head.requested)
                .filter(|_| error.is_none_or(is_harmless))
                .map(|all| all.saturating_sub(result.unwrap_or_default())),
        };
        self.trace.push(step);
    }

    /// Returns the connection of a step. accept(2) and connect(2) open one, and so does the first call on one whose accept is not in
    /// the trace.
    fn connection(&mut self, id: u32, kind: Kind, head: &Head, outcome: Option<&Outcome>) -> Option<u32> {
        let (socket, peer) = match kind {
            Kind::Wait | Kind::Other => return None,
            Kind::Accept => {
                let socket = outcome?.socket?;
                (socket, socket.addresses.map(|(_, peer)| peer).or(outcome?.peer))
            }
            _ => (head.socket?, head.socket?.addresses.map(|(_, peer)| peer).or(head.peer)),
        };
        let connection = match self.known(id, socket) {
            Some(connection) if kind != Kind::Accept => connection,
            _ if kind == Kind::Accept || peer.is_some() => {
                self.ends.push("closed");
                self.trace.open(peer.map(PeerName::Address), head.sets_nonblocking)
            }
            _ => return None,
        };
        if let Some(addresses) = socket.addresses {
            self.by_addresses.insert(addresses, connection);
        }
        self.by_descriptor.insert((self.table(id), socket.descriptor), connection);
        Some(connection)
    }

    /// Returns the connection of a socket, if the trace has shown it before.
    fn known(&self, id: u32, socket: Socket) -> Option<u32> {
        let by_descriptor = self.by_descriptor.get(&(self.table(id), socket.descriptor)).copied();
        match socket.addresses {
            Some(addresses) => self.by_addresses.get(&addresses).copied().or_else(|| {
                // connect(2) opened it before the socket had addresses.
                let peer = Some(PeerName::Address(addresses.1));
                by_descriptor.filter(|&serial| self.trace.connections[serial as usize].peer == peer)
            }),
            // A socket without a connection any more, or not yet: its descriptor has to tell.
            None => by_descriptor,
        }
    }

    /// Notes what a step says about the end of its connection. A close is the end, until a step follows: then it closed a copy.
    fn note_end(&mut self, connection: u32, kind: Kind, result: Option<u32>, error: Option<&str>) {
        let place = connection as usize;
        match (kind, result, error) {
            (Kind::Read, Some(0), _) => self.ends[place] = "end_of_stream",
            (_, _, Some("ECONNRESET" | "EPIPE")) => self.ends[place] = "reset",
            (_, _, Some(error)) if !is_harmless(error) => self.ends[place] = "failed",
            _ => {}
        }
        self.trace.connections[place].end = (kind == Kind::Close).then_some(self.ends[place]);
    }

    fn table(&self, id: u32) -> u32 {
        self.threads.get(&id).map_or(0, |thread| thread.table)
    }

    fn place(&mut self, id: u32) -> u32 {
        let thread = self.threads.entry(id).or_default();
        *thread.place.get_or_insert_with(|| self.trace.add_thread(id))
    }

    /// Returns the trace, with the calls that have not returned, or what its lines lack.
    fn finish(mut self) -> Result<Trace, String> {
        let mut unfinished: Vec<_> = std::mem::take(&mut self.unfinished).into_iter().collect();
        // Only such a call lasts until the last line. A step that is left out has no time on the page.
        if !unfinished.is_empty() && !self.trace.is_full() {
            self.trace.end_ns = self.now_ns.saturating_sub(self.start_ns.unwrap_or_default());
        }
        unfinished.sort_by_key(|(id, head)| (head.start_ns, *id));
        for (id, head) in unfinished {
            self.step(id, &head, None, None);
        }
        let served: HashSet<_> =
            self.threads.values().filter(|thread| thread.has_socket).filter_map(|thread| thread.place).collect();
        if self.start_ns.is_none() {
            return Err(format!("it is no output of strace with times; {MAKE}"));
        }
        if !self.has_duration {
            return Err(format!("its calls have no durations (option -T); {MAKE}"));
        }
        if served.is_empty() {
            return Err(format!(
                "it has no call on a TCP socket, or does not say which sockets are (option -yy); {MAKE}"
            ));
        }
        self.trace.keep_threads(&served);
        Ok(self.trace)
    }
}

/// Returns whether a connection goes on after this error.
fn is_harmless(error: &str) -> bool {
    matches!(error, "EAGAIN" | "EINTR" | "ENOTCONN" | "EINPROGRESS" | "EALREADY" | "EISCONN")
        || error.starts_with("ERESTART")
}
