//! Load generators that stay connected from window to window.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::peers::Server;
use crate::processes::{Coprocess, Job, exit_reason, pinned, with_realtime_priority};
use crate::workloads::Workload;

const ECOLOOP_BINARY: &str = "../../target/release/ecoloop";
const C_CLIENT: &str = "../floor/epoll_client";
pub(crate) const CLIENT_CORE: u32 = 1;
/// The exit status of a run without a failure whose load generator was late or saturated.
const INCONCLUSIVE: i32 = 3;
/// Time allowed beyond the window, for up to 19,000 connects and the last replies.
pub(crate) const TIMEOUT_MARGIN: Duration = Duration::from_secs(60);
/// Windows that are not counted, in which a server compiles its code and grows its buffers.
const WARM_UP_WINDOWS: usize = 5;
/// Time allowed for closing the connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// `ecoloop load --repeat` or the client in C, connected. Between windows it blocks on its standard input.
pub(crate) struct Generator {
    coprocess: Coprocess,
    timeout: Duration,
}

impl Generator {
    /// Starts `ecoloop load`, and returns after its warm-up.
    pub(crate) fn start(
        workload: &Workload,
        server: &Server,
        window: Duration,
        rate: Option<f64>,
    ) -> Result<Self, String> {
        let mut command = pinned(CLIENT_CORE, ECOLOOP_BINARY);
        command.args(["load", "--repeat", "-q", "--json", "-", "--close", "rst"]);
        command.args(["-c", &workload.connections.to_string(), "-d", &format!("{}us", window.as_micros())]);
        command.args(workload.load.split_ascii_whitespace());
        command.args(rate.iter().flat_map(|rate| ["-r".to_owned(), rate.to_string()]));
        command.arg(server.address.to_string());
        // An open loop has a schedule to keep. A closed loop with this priority would never yield the core.
        if rate.is_some() {
            command = with_realtime_priority(&command);
        }
        let mut generator = Self::spawn(&mut command, window)?;
        for _ in 0..WARM_UP_WINDOWS {
            generator.next_report()?;
        }
        Ok(generator)
    }

    /// Starts the client in C, and returns after its first window, which it measures without a request.
    pub(crate) fn start_c_client(workload: &Workload, server: &Server, window: Duration) -> Result<Self, String> {
        let mut command = pinned(CLIENT_CORE, C_CLIENT);
        command.env("FLOOR_REPEAT", "1");
        command.args([server.address.port().to_string(), workload.connections.to_string(), "64".to_owned()]);
        command.args([window.as_secs_f64().to_string(), server.process.id().to_string()]);
        let mut generator = Self::spawn(&mut command, window)?;
        generator.coprocess.next_line(generator.timeout)?;
        Ok(generator)
    }

    fn spawn(command: &mut Command, window: Duration) -> Result<Self, String> {
        Ok(Self { coprocess: Coprocess::start(command)?, timeout: window + TIMEOUT_MARGIN })
    }

    /// Measures one window and returns the report of `ecoloop load`, with two values that are computed here.
    ///
    /// The rate is that of all messages of the window, up to the last reply, which arrives after the window ends: with
    /// 10,000 messages in flight the replies after its end are many. The server's CPU time is read while the server sleeps,
    /// because only then is the kernel's account of it exact.
    pub(crate) fn measure(&mut self, server: &Server) -> Result<Value, String> {
        let before = server.wait_until_idle()?;
        let mut report = self.next_report()?;
        let cpu_time = server.wait_until_idle()?.saturating_sub(before);
        let number = |pointer: &str| {
            report
                .pointer(pointer)
                .and_then(Value::as_f64)
                .ok_or_else(|| format!("ecoloop load: no {pointer} in its JSON"))
        };
        let messages = number("/messages/verified")?;
        let seconds = number("/phases_s/measure")? + number("/phases_s/drain")?;
        report["rate_per_s"] = json!(messages / seconds);
        // With several processes it would be the CPU time of one of them.
        if server.is_one_process {
            report["server"] = json!({ "cpu_us_per_message": cpu_time.as_secs_f64() * 1e6 / messages });
        }
        Ok(report)
    }

    /// Runs one window of `ecoloop load` and returns its report, or an error if a threshold failed. An inconclusive window is no
    /// error.
    pub(crate) fn next_report(&mut self) -> Result<Value, String> {
        let text = self.coprocess.request(self.timeout).map_err(|error| format!("ecoloop load: {error}"))?;
        let report: Value = serde_json::from_str(&text).map_err(|error| format!("ecoloop load: {error}"))?;
        if report["verdict"] == "pass" || report["verdict"] == "inconclusive" {
            return Ok(report);
        }
        let failure = failure(&report).unwrap_or_else(|| format!("the verdict is {}", report["verdict"]));
        Err(format!("ecoloop load: {failure}"))
    }

    /// Measures one window with the client in C, and returns its values under the names of `ecoloop load`. The client warms up
    /// before each window, and reads the server's CPU time itself.
    pub(crate) fn measure_c_client(&mut self) -> Result<Value, String> {
        let text = self.coprocess.request(self.timeout).map_err(|error| format!("epoll_client: {error}"))?;
        let report: Value = serde_json::from_str(&text).map_err(|error| format!("epoll_client: {error}"))?;
        let field = |name: &str| report[name].as_f64().ok_or_else(|| format!("epoll_client: no {name} in its JSON"));
        let cpu_us_per_message = field("server_cpu_seconds")? * 1e6 / field("messages")?;
        Ok(json!({
            "server": { "cpu_us_per_message": cpu_us_per_message },
            "rate_per_s": field("messages_per_second")?,
        }))
    }

    /// Closes the connections. Returns an error if the generator exits with one, such as bytes after the last window. An
    /// inconclusive run is no error.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        self.coprocess.finish(CLOSE_TIMEOUT, &[INCONCLUSIVE]).map_err(|error| format!("load generator: {error}"))
    }
}

/// Returns what failed in a report: its errors, or the thresholds that failed if it has no errors.
fn failure(report: &Value) -> Option<String> {
    let join = |list: &str, words: fn(&Value) -> Option<String>| {
        let list = report.get(list)?.as_array()?.iter().filter_map(words).collect::<Vec<_>>();
        Some(list.join(", ")).filter(|list| !list.is_empty())
    };
    let errors = join("errors", |error| {
        Some(format!("{} {} {} times", error["phase"].as_str()?, error["error"].as_str()?, error["count"]))
    });
    errors.or_else(|| {
        join("thresholds", |threshold| {
            (threshold["failed"] == true).then(|| threshold["expr"].as_str().unwrap_or_default().to_owned())
        })
    })
}

/// Returns a command that runs `ecoloop load` on `core`. A server of several processes gets no `--server-pid`, because the
/// report would be about one of them.
pub(crate) fn load_command(core: u32, connections: u32, load: &str, server: &Server, arguments: &[&str]) -> Command {
    let mut command = pinned(core, ECOLOOP_BINARY);
    command.args(["load", "-q", "--json", "-", "--close", "rst", "-c", &connections.to_string()]);
    command.args(load.split_ascii_whitespace()).args(arguments);
    if server.is_one_process {
        command.args(["--server-pid", &server.process.id().to_string()]);
    }
    command.arg(server.address.to_string());
    command
}

/// Waits for `ecoloop load` and returns its report, or an error if a threshold failed. An inconclusive run is no error.
pub(crate) fn finish_load(job: Job, timeout: Duration) -> Result<Value, String> {
    let output = job.wait(timeout).map_err(|error| format!("ecoloop load: {error}"))?;
    let report = serde_json::from_str::<Value>(&output.text);
    if output.status.success() || output.status.code() == Some(INCONCLUSIVE) {
        return report.map_err(|error| format!("ecoloop load: {error}"));
    }
    let reason = report.as_ref().ok().and_then(failure).unwrap_or_else(|| exit_reason(output.status, &output.errors));
    Err(format!("ecoloop load: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_lists_errors_before_thresholds() {
        let thresholds = json!([{ "expr": "errors>0", "failed": true }, { "expr": "verified<1", "failed": false }]);
        let errors = json!([{ "phase": "receive", "error": "reset", "count": 2 }]);
        assert_eq!(
            failure(&json!({ "errors": errors, "thresholds": thresholds })).as_deref(),
            Some("receive reset 2 times")
        );
        assert_eq!(failure(&json!({ "errors": [], "thresholds": thresholds })).as_deref(), Some("errors>0"));
        assert_eq!(failure(&json!({ "errors": [], "thresholds": [] })), None);
    }
}
