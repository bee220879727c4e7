//! Records the steps of the server's loop.

use std::io;
use std::mem;
use std::process;
use std::time::Instant;

use ecoloop::transport::Listen;
use ecoloop::{CloseReason, Fault, Observer, Peer, Report, Server};

use super::format::count;
use super::log::TARGET;
use super::output::Output;
use super::trace::{Format, Kind, STEPS_MAX, Source, Step, Trace, TraceFile};

/// A write that the socket did not take, as strace names it.
const WOULD_BLOCK: &str = "EAGAIN";

/// The trace of a server: its file, and what the file will have.
pub(super) struct Tracing {
    output: Output,
    format: Format,
    /// Its steps have their memory before the server listens.
    trace: Trace,
    document: String,
}

impl Tracing {
    /// Opens the file. Its content stays until the server listens.
    pub(super) fn open(file: &TraceFile) -> Result<Self, String> {
        let output = Output::open(&file.path)?;
        let mut trace = Trace::new(String::new(), Source::Observer);
        trace.reserve().map_err(|error| format!("cannot allocate the steps of the trace: {error}"))?;
        Ok(Self { output, format: file.format, trace, document: String::new() })
    }

    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    /// Writes what the file has if the server is killed, records what it does while `serve` runs, and keeps the document for
    /// [`write`](Self::write): the log may still be writing.
    pub(super) fn record<L: Listen>(
        &mut self,
        server: Server<(), L>,
        inner: Box<dyn Observer>,
        serve: impl FnOnce(&mut Server<TraceObserver, L>) -> (io::Result<()>, Report),
    ) -> Result<(io::Result<()>, Report), String> {
        let addresses: Vec<_> = server.local_addrs().iter().map(ToString::to_string).collect();
        let title = format!("ecoloop serve {}", addresses.join(" "));
        let running = Trace::of_running_server(title.clone());
        // A pipe takes one document.
        if matches!(self.output, Output::File(_)) {
            self.output.replace(&running.document(self.format))?;
        }
        let mut trace = mem::replace(&mut self.trace, running);
        trace.title = title;
        let mut server = server.with_observer(TraceObserver::new(trace, inner));
        let result = serve(&mut server);
        let trace = &server.observer().trace;
        if trace.dropped > 0 {
            let (kept, dropped) = (count(STEPS_MAX as u64), count(trace.dropped));
            log::warn!(target: TARGET, "the trace has the first {kept} steps; {dropped} more are left out");
        }
        self.document = trace.document(self.format);
        Ok(result)
    }

    /// Writes the document of a server that has ended.
    pub(super) fn write(&self) -> Result<(), String> {
        self.output.write(&self.document)
    }
}

/// Makes a step of what the server does between two calls of its observer, and passes the calls on to another one.
///
/// It is dispatched at run time: a server with a trace is one more kind of server, whatever is logged.
pub(super) struct TraceObserver {
    inner: Box<dyn Observer>,
    trace: Trace,
    started: Instant,
    /// When the last step ended.
    mark_ns: u64,
    /// The open connections by their keys.
    open: Vec<Open>,
    /// The step of a visit that has moved no byte, until it is known why.
    held: Option<Step>,
    visit: Visit,
}

#[derive(Clone, Copy, Debug, Default)]
struct Open {
    /// `None` if there was no room for its first step.
    serial: Option<u32>,
    /// Bytes that were received and not sent.
    pending: u32,
    /// Injected faults decide when it sends, and how much: what it has not sent is not what the client has not read.
    is_faulted: bool,
}

/// What the present visit of a connection has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    Nothing,
    Received,
    Sent,
}

impl TraceObserver {
    /// Returns an observer that passes everything on to `inner`.
    fn new(mut trace: Trace, inner: Box<dyn Observer>) -> Self {
        trace.add_thread(process::id());
        let (started, open) = (Instant::now(), Vec::new());
        Self { inner, trace, started, mark_ns: 0, open, held: None, visit: Visit::Nothing }
    }

    /// Starts the next step now. Reads no clock when there is no room for it.
    fn mark(&mut self) {
        if !self.trace.is_full() {
            self.mark_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        }
    }

    /// Returns the step from the last mark until now.
    fn step(&mut self, kind: Kind, connection: Option<u32>) -> Step {
        let start_ns = self.mark_ns;
        self.mark();
        Step {
            start_ns,
            end_ns: Some(self.mark_ns),
            thread: 0,
            call: self.call(kind),
            connection,
            result: None,
            error: None,
            pending: None,
        }
    }

    fn call(&mut self, kind: Kind) -> u16 {
        // There are as many names as kinds.
        self.trace.call(kind.name(), kind).unwrap_or_default()
    }

    /// Adds the step of a visit that has moved no byte. `ended` is what it has found out: the result and the error of its read.
    fn push_held(&mut self, ended: Option<(Option<u32>, Option<&str>)>) {
        let Some(mut step) = self.held.take() else { return };
        if let Some((result, error)) = ended {
            // A write that failed leaves nothing to send.
            if step.pending.take().is_none() {
                (step.call, step.result) = (self.call(Kind::Read), result);
            }
            step.error = error.and_then(|error| self.trace.error(error));
        }
        self.trace.push(step);
    }

    /// Returns the entry of a connection, which is made at its first use.
    fn open_mut(&mut self, key: usize) -> &mut Open {
        if self.open.len() <= key {
            self.open.resize(key + 1, Open::default());
        }
        &mut self.open[key]
    }

    fn serial(&mut self, peer: Peer) -> Option<u32> {
        self.open_mut(peer.key).serial
    }

    fn open(&mut self, peer: Peer) -> Option<u32> {
        (!self.trace.is_full()).then(|| self.trace.open(Some(peer.into()), true))
    }
}

impl Observer for TraceObserver {
    fn waiting(&mut self) {
        self.push_held(None);
        self.inner.waiting();
        self.mark();
    }

    fn woken(&mut self, events: usize) {
        let mut step = self.step(Kind::Wait, None);
        step.result = Some(clamp(events));
        self.trace.push(step);
        self.inner.woken(events);
    }

    fn serving(&mut self, key: usize) {
        self.push_held(None);
        self.visit = Visit::Nothing;
        self.inner.serving(key);
        self.mark();
    }

    fn opened(&mut self, peer: Peer) {
        self.push_held(None);
        let serial = self.open(peer);
        *self.open_mut(peer.key) = Open { serial, ..Open::default() };
        let step = self.step(Kind::Accept, serial);
        self.trace.push(step);
        self.inner.opened(peer);
        self.mark();
    }

    fn faulted(&mut self, peer: Peer, fault: &Fault) {
        self.open_mut(peer.key).is_faulted = true;
        self.inner.faulted(peer, fault);
        self.mark();
    }

    fn received(&mut self, peer: Peer, data: &[u8]) {
        let serial = self.serial(peer);
        let mut step = self.step(Kind::Read, serial);
        step.result = Some(clamp(data.len()));
        self.trace.push(step);
        self.open_mut(peer.key).pending = clamp(data.len());
        self.visit = Visit::Received;
        self.inner.received(peer, data);
        self.mark();
    }

    fn sent(&mut self, peer: Peer, length: usize) {
        let open = self.open_mut(peer.key);
        open.pending = open.pending.saturating_sub(clamp(length));
        let Open { serial, pending, is_faulted } = *open;
        let mut step = self.step(Kind::Write, serial);
        (step.result, step.pending) = (Some(clamp(length)), (!is_faulted).then_some(pending));
        self.trace.push(step);
        self.visit = Visit::Sent;
        self.inner.sent(peer, length);
        self.mark();
    }

    fn served(&mut self, key: usize) {
        let Open { serial, pending, is_faulted } = *self.open_mut(key);
        self.held = match self.visit {
            Visit::Nothing => Some(self.step(Kind::Visit, serial)),
            Visit::Received if !is_faulted => {
                let error = self.trace.error(WOULD_BLOCK);
                Some(Step { pending: Some(pending), error, ..self.step(Kind::Write, serial) })
            }
            Visit::Received | Visit::Sent => None,
        };
        self.inner.served(key);
        self.mark();
    }

    fn ended(&mut self, peer: Peer) {
        self.push_held(Some((Some(0), None)));
        self.inner.ended(peer);
        self.mark();
    }

    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        let (end, error) = (reason.name(), failure(reason));
        let serial = self.serial(peer);
        // The hand closes a connection without a visit: what is held may be another one's.
        let is_its_visit = self.held.is_some_and(|step| step.connection == serial);
        self.push_held(error.filter(|_| is_its_visit).map(|error| (None, Some(error))));
        let step = self.step(Kind::Close, serial);
        self.trace.push(step);
        if let Some(serial) = serial {
            self.trace.connections[serial as usize].end = Some(end);
        }
        self.inner.closed(peer, reason);
        self.mark();
    }
}

/// Returns what the last read or write returned, if that failed.
fn failure(reason: CloseReason) -> Option<&'static str> {
    matches!(reason, CloseReason::Reset | CloseReason::Failed(_)).then(|| reason.name())
}

fn clamp(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
