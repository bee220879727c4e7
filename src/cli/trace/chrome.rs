//! A trace in Chrome's Trace Event Format, which Perfetto and speedscope show.
//!
//! The source of the rules: "Trace Event Format" by the Chromium project. A viewer drops a slice that is not inside the slice that
//! it begins in, so the slices of a track nest; Perfetto takes the thread whose ID is the process's for its main thread.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Kind, Microseconds, Step, Trace};

/// The process, and the track of the loop, its main thread. The tracks of the connections follow.
const PROCESS: usize = 1;
const FIRST_CONNECTION: usize = PROCESS + 1;

/// Returns the trace of one thread as JSON.
pub(super) fn document(trace: &Trace) -> String {
    let state = if trace.is_complete { "" } else { " (killed, or still running: its steps are written when it ends)" };
    let other = serde_json::json!({ "complete": trace.is_complete, "dropped": trace.dropped });
    let mut events = Events(format!("{{\"displayTimeUnit\":\"ns\",\"otherData\":{other},\"traceEvents\":[\n"));
    events.push_name("process_name", PROCESS, &format!("{}{state}", trace.title));
    events.push_name("thread_name", PROCESS, "loop");
    for ((track, connection), life) in (FIRST_CONNECTION..).zip(&trace.connections).zip(lives(trace)) {
        let peer = connection.peer.map(|peer| peer.to_string()).unwrap_or_default();
        events.push_name("thread_name", track, &peer);
        let arguments = serde_json::json!({ "end": connection.end.unwrap_or("open") });
        events.push_slice("connection", track, life, &arguments);
    }
    push_pending(trace, &mut events);
    for step in &trace.steps {
        let mut arguments = serde_json::json!({
            "result": step.result,
            "pending": step.pending,
            "error": step.error.map(|error| &trace.errors[usize::from(error)]),
        });
        if let Some(arguments) = arguments.as_object_mut() {
            arguments.retain(|_, value| !value.is_null());
        }
        events.push_slice(trace.kind(step).name(), track(trace, step), (step.start_ns, end_ns(step)), &arguments);
    }
    events.0.truncate(events.0.trim_end_matches(",\n").len());
    events.0.push_str("\n]}\n");
    events.0
}

/// The document, as far as it is written.
struct Events(String);

impl Events {
    fn push_name(&mut self, event: &str, track: usize, name: &str) {
        let event =
            serde_json::json!({ "ph": "M", "pid": PROCESS, "tid": track, "name": event, "args": { "name": name } });
        let _ = writeln!(self.0, "{event},");
    }

    fn push_slice(&mut self, name: &str, track: usize, (start_ns, end_ns): (u64, u64), arguments: &Value) {
        let (start, duration) = (Microseconds(start_ns), Microseconds(end_ns.saturating_sub(start_ns)));
        let _ = writeln!(
            self.0,
            "{{\"ph\":\"X\",\"pid\":{PROCESS},\"tid\":{track},\"name\":\"{name}\",\"ts\":{start},\"dur\":{duration},\"args\":{arguments}}},"
        );
    }
}

fn end_ns(step: &Step) -> u64 {
    step.end_ns.unwrap_or(step.start_ns)
}

/// Returns the track of a step. An accept is in the loop's: the connection begins when it returns.
fn track(trace: &Trace, step: &Step) -> usize {
    let connection = step.connection.filter(|_| trace.kind(step) != Kind::Accept);
    connection.map_or(PROCESS, |serial| FIRST_CONNECTION + serial as usize)
}

/// Returns when each connection began, and when it ended, or the trace.
fn lives(trace: &Trace) -> Vec<(u64, u64)> {
    let end_of_trace = trace.steps.last().map_or(0, end_ns);
    let mut lives = vec![(end_of_trace, end_of_trace); trace.connections.len()];
    for step in &trace.steps {
        let Some(serial) = step.connection else { continue };
        match trace.kind(step) {
            Kind::Accept => lives[serial as usize].0 = end_ns(step),
            Kind::Close => lives[serial as usize].1 = end_ns(step),
            _ => {}
        }
    }
    lives
}

/// Adds a slice for each time in which output was pending: from the end of the write that left some to the beginning of the step that
/// sent the rest, or closed, so that it nests with both.
fn push_pending(trace: &Trace, events: &mut Events) {
    const NAME: &str = "pending output: not read";
    let mut since = vec![None; trace.connections.len()];
    let mut push =
        |serial: usize, slice| events.push_slice(NAME, FIRST_CONNECTION + serial, slice, &serde_json::json!({}));
    for step in &trace.steps {
        let Some(serial) = step.connection.map(|serial| serial as usize) else { continue };
        let is_pending = step.pending.is_some_and(|pending| pending > 0);
        let is_over = step.pending == Some(0) || trace.kind(step) == Kind::Close;
        match since[serial] {
            None if is_pending => since[serial] = Some(end_ns(step)),
            Some(start_ns) if is_over => {
                push(serial, (start_ns, step.start_ns));
                since[serial] = None;
            }
            _ => {}
        }
    }
    let end_of_trace = trace.steps.last().map_or(0, end_ns);
    for (serial, start_ns) in since.into_iter().enumerate() {
        if let Some(start_ns) = start_ns {
            push(serial, (start_ns, end_of_trace));
        }
    }
}
