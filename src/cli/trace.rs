//! The steps of a server: a bounded record of its calls, and the documents that show them.

mod chrome;

use std::collections::{HashMap, HashSet, TryReserveError};
use std::ffi::OsStr;
use std::fmt::{self, Display, Write as _};
use std::path::PathBuf;
use std::str::FromStr;

use super::log_observer::PeerName;

/// Steps that a trace keeps: it counts the rest.
pub(super) const STEPS_MAX: usize = 1 << 20;
/// Names of calls and of errors that a trace keeps of each. A system has about 400 calls, and 130 errors.
const NAMES_MAX: usize = 512;

/// The page, with [`DATA`] where the trace goes.
const PAGE: &str = include_str!("strip.html");
const DATA: &str = "@DATA@";

/// Which document to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The strip, a page.
    Html,
    /// Chrome's Trace Event Format.
    Json,
}

/// A file for the trace of a server. Its name says in which format.
#[derive(Clone, Debug)]
pub(super) struct TraceFile {
    pub(super) path: PathBuf,
    pub(super) format: Format,
}

impl FromStr for TraceFile {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = PathBuf::from(text);
        let format = match path.extension().and_then(OsStr::to_str) {
            Some("html") => Format::Html,
            Some("json") => Format::Json,
            _ => return Err("the name must end in .html, for a page, or in .json, for Perfetto"),
        };
        Ok(Self { path, format })
    }
}

/// What the steps are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The output of strace.
    Strace,
    /// What the server's observer sees. There is one thread, the loop's.
    Observer,
}

/// What a server did, in the order in which its calls returned.
#[derive(Debug)]
pub(super) struct Trace {
    /// What was traced: the name of a file, or a command.
    pub(super) title: String,
    source: Source,
    /// Whether the server has ended. The document of one that was killed says no.
    is_complete: bool,
    /// The thread's ID, which the page shows if there is more than one.
    threads: Vec<u32>,
    pub(super) connections: Vec<Connection>,
    calls: Vec<Call>,
    errors: Vec<String>,
    steps: Vec<Step>,
    /// When the trace ended, if a call had not returned. Otherwise 0: its last step has its end.
    pub(super) end_ns: u64,
    /// Steps that there was no room for.
    pub(super) dropped: u64,
}

/// A connection. Its place in [`Trace::connections`] is its serial number.
#[derive(Debug)]
pub(super) struct Connection {
    /// `None` if the trace does not show it.
    pub(super) peer: Option<PeerName>,
    /// How it ended. `None` while it is open.
    pub(super) end: Option<&'static str>,
    /// Its calls do not wait.
    pub(super) nonblocking: bool,
}

/// The name of a system call, and what it does.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    name: String,
    kind: Kind,
}

/// What a call does. The page draws each kind in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Wait,
    Accept,
    Connect,
    Read,
    Write,
    Shutdown,
    Close,
    /// The loop came to a connection, and moved no byte.
    Visit,
    /// Any other call, which kept its thread from the rest.
    Other,
}

/// One call. Times are from the start of the trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) start_ns: u64,
    /// `None`: the call had not returned when the trace ended.
    pub(super) end_ns: Option<u64>,
    pub(super) thread: u32,
    pub(super) call: u16,
    pub(super) connection: Option<u32>,
    /// What the call returned: bytes, or events. `None`: it failed, or has not returned.
    pub(super) result: Option<u32>,
    pub(super) error: Option<u16>,
    /// Bytes of a write that the socket did not take.
    pub(super) pending: Option<u32>,
}

const _: () = assert!(size_of::<Step>() <= 64, "docs/trace.md says how much memory a trace takes");

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Read => "read",
            Self::Write => "write",
            Self::Shutdown => "shutdown",
            Self::Close => "close",
            Self::Visit => "visit",
            Self::Other => "other",
        }
    }
}

impl Trace {
    pub(super) fn new(title: String, source: Source) -> Self {
        Self {
            title,
            source,
            is_complete: true,
            threads: Vec::new(),
            connections: Vec::new(),
            calls: Vec::new(),
            errors: Vec::new(),
            steps: Vec::new(),
            end_ns: 0,
            dropped: 0,
        }
    }

    /// Returns what a server writes at its start: it may be killed before the end.
    pub(super) fn of_running_server(title: String) -> Self {
        Self { is_complete: false, ..Self::new(title, Source::Observer) }
    }

    /// Reserves the memory of all steps, so that none of them is moved later. A page of it costs memory once it is used.
    pub(super) fn reserve(&mut self) -> Result<(), TryReserveError> {
        self.steps.try_reserve_exact(STEPS_MAX)
    }

    /// Returns whether there is no room for another step.
    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= STEPS_MAX
    }

    pub(super) fn push(&mut self, step: Step) {
        if self.is_full() {
            self.dropped += 1;
        } else {
            self.steps.push(step);
        }
    }

    /// Adds a connection, and returns its serial number.
    pub(super) fn open(&mut self, peer: Option<PeerName>, nonblocking: bool) -> u32 {
        self.connections.push(Connection { peer, end: None, nonblocking });
        place(self.connections.len() - 1)
    }

    /// Adds a thread, and returns its place.
    pub(super) fn add_thread(&mut self, id: u32) -> u32 {
        self.threads.push(id);
        place(self.threads.len() - 1)
    }

    /// Leaves out all other threads and their steps. The rest gets new places, in the same order.
    pub(super) fn keep_threads(&mut self, kept: &HashSet<u32>) {
        let mut places = HashMap::new();
        let mut threads = Vec::new();
        for (old, &id) in self.threads.iter().enumerate() {
            if kept.contains(&place(old)) {
                places.insert(place(old), place(threads.len()));
                threads.push(id);
            }
        }
        self.threads = threads;
        self.steps.retain_mut(|step| {
            let new = places.get(&step.thread);
            step.thread = new.copied().unwrap_or_default();
            new.is_some()
        });
    }

    /// Returns the place of a call, or `None` if there are too many names. One name may have two kinds: `write` to a socket, or to a file.
    pub(super) fn call(&mut self, name: &str, kind: Kind) -> Option<u16> {
        let known = self.calls.iter().position(|call| call.name == name && call.kind == kind);
        let call = || Call { name: name.to_owned(), kind };
        known.or_else(|| push_name(&mut self.calls, call())).and_then(|place| u16::try_from(place).ok())
    }

    /// Returns the place of an error, or `None` if there are too many names.
    pub(super) fn error(&mut self, name: &str) -> Option<u16> {
        let known = self.errors.iter().position(|error| error == name);
        known.or_else(|| push_name(&mut self.errors, name.to_owned())).and_then(|place| u16::try_from(place).ok())
    }

    fn kind(&self, step: &Step) -> Kind {
        self.calls[usize::from(step.call)].kind
    }

    /// Returns the trace as a document.
    pub(super) fn document(&self, format: Format) -> String {
        match format {
            Format::Html => self.page(),
            Format::Json => chrome::document(self),
        }
    }

    /// Returns the page that draws the steps. It needs no other file and no network.
    fn page(&self) -> String {
        let (before, after) = PAGE.split_once(DATA).unwrap_or((PAGE, ""));
        // In JSON these characters occur in strings alone. Without them no text ends the element that holds it.
        let head = self.head().replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
        let mut page = [before, &head].concat();
        self.push_steps(&mut page);
        page.push_str(after);
        page
    }

    /// Returns the begin of the trace as JSON, up to the steps. Each step is an array, whose `columns` it names.
    fn head(&self) -> String {
        let calls: Vec<_> = self.calls.iter().map(|call| [call.name.as_str(), call.kind.name()]).collect();
        let connection = |connection: &Connection| {
            let peer = connection.peer.map(|peer| peer.to_string());
            serde_json::json!({ "peer": peer, "end": connection.end, "nonblocking": connection.nonblocking })
        };
        let connections: Vec<_> = self.connections.iter().map(connection).collect();
        let head = serde_json::json!({
            "version": 1,
            "title": self.title,
            "source": match self.source {
                Source::Strace => "strace",
                Source::Observer => "observer",
            },
            "complete": self.is_complete,
            "dropped": self.dropped,
            "end_us": self.end_ns / 1000,
            "threads": self.threads,
            "calls": calls,
            "errors": self.errors,
            "connections": connections,
            "columns": ["call", "thread", "connection", "start_us", "end_us", "result", "pending", "error"],
        });
        let head = head.to_string();
        format!("{},\"steps\":[", &head[..head.len() - 1])
    }

    /// Adds the steps, and the end of the JSON. They are most of a page, so they are not copied.
    fn push_steps(&self, json: &mut String) {
        for (index, step) in self.steps.iter().enumerate() {
            json.push_str(if index == 0 { "\n" } else { ",\n" });
            step.write_json(json);
        }
        json.push_str("]}\n");
    }
}

impl Step {
    fn write_json(&self, json: &mut String) {
        let _ = write!(json, "[{},{}", self.call, self.thread);
        push_cell(json, self.connection);
        push_cell(json, Some(Microseconds(self.start_ns)));
        push_cell(json, self.end_ns.map(Microseconds));
        push_cell(json, self.result);
        push_cell(json, self.pending);
        push_cell(json, self.error);
        json.push(']');
    }
}

fn push_cell(json: &mut String, value: Option<impl Display>) {
    let _ = match value {
        Some(value) => write!(json, ",{value}"),
        None => write!(json, ",null"),
    };
}

/// Nanoseconds that are shown as microseconds, with a fraction only where there is one.
struct Microseconds(u64);

impl Display for Microseconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 1000, self.0 % 1000) {
            (whole, 0) => write!(formatter, "{whole}"),
            (whole, fraction) => write!(formatter, "{whole}.{fraction:03}"),
        }
    }
}

/// Adds a name, and returns its place, unless there are too many.
fn push_name<T>(names: &mut Vec<T>, name: T) -> Option<usize> {
    (names.len() < NAMES_MAX).then(|| {
        names.push(name);
        names.len() - 1
    })
}

/// Returns a place in a list that is not longer than the steps.
fn place(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
