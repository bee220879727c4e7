//! Load generators that stay connected from slice to slice.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::peers::Server;
use crate::processes::{Dialogue, before_others, pinned};
use crate::workloads::Workload;

pub(crate) const ECOLOOP: &str = "../../target/release/ecoloop";
const C_CLIENT: &str = "../floor/epoll_client";
pub(crate) const CLIENT_CORE: u32 = 1;
/// What a slice may take longer than its measured window: ten thousand connects, and the last answers.
pub(crate) const OVERTIME: Duration = Duration::from_secs(60);
/// They do not count: what compiles as it goes, or grows its buffers, has begun to.
const WARM_UP_SLICES: usize = 5;
/// In which a generator closes its connections.
const END_LIMIT: Duration = Duration::from_secs(20);

/// `ecoloop load --repeat` or the plain client in C, connected. Between its slices it waits for its input and does nothing else.
pub(crate) struct Generator {
    dialogue: Dialogue,
    limit: Duration,
}

impl Generator {
    /// `ecoloop load`, connected and warm.
    pub(crate) fn start(
        workload: &Workload,
        server: &Server,
        slice: Duration,
        rate: Option<f64>,
    ) -> Result<Self, String> {
        let mut command = pinned(CLIENT_CORE, ECOLOOP);
        command.args(["load", "--repeat", "-q", "--json", "-", "--close", "rst"]);
        command.args(["-c", &workload.connections.to_string(), "-d", &format!("{}us", slice.as_micros())]);
        command.args(workload.load.split_ascii_whitespace());
        command.args(rate.iter().flat_map(|rate| ["-r".to_owned(), rate.to_string()]));
        command.arg(server.address.to_string());
        // One with a rate has a schedule to keep; one without would keep the core.
        if rate.is_some() {
            command = before_others(&command);
        }
        let mut generator = Self::of(&mut command, slice)?;
        for _ in 0..WARM_UP_SLICES {
            generator.ask()?;
        }
        Ok(generator)
    }

    /// The client in C, after its first slice, for which it does not wait to be asked.
    pub(crate) fn start_in_c(workload: &Workload, server: &Server, slice: Duration) -> Result<Self, String> {
        let mut command = pinned(CLIENT_CORE, C_CLIENT);
        command.env("FLOOR_SLICES", "1");
        command.args([server.address.port().to_string(), workload.connections.to_string(), "64".to_owned()]);
        command.args([slice.as_secs_f64().to_string(), server.process.id().to_string()]);
        let mut generator = Self::of(&mut command, slice)?;
        generator.dialogue.answer(generator.limit)?;
        Ok(generator)
    }

    fn of(command: &mut Command, slice: Duration) -> Result<Self, String> {
        Ok(Self { dialogue: Dialogue::start(command)?, limit: slice + OVERTIME })
    }

    /// A slice: its document, if no threshold failed, with two figures of all its messages, from the first to the last answer, which
    /// comes after the window. The rate, for ten thousand messages in flight when the window ends are many beside those that
    /// came back in it. And the server's CPU, read while the server sleeps: only then is the kernel's account of it exact.
    pub(crate) fn measure(&mut self, server: &Server) -> Result<Value, String> {
        let before = server.settle()?;
        let mut document = self.ask()?;
        let time = server.settle()?.saturating_sub(before);
        let number = |pointer: &str| {
            document
                .pointer(pointer)
                .and_then(Value::as_f64)
                .ok_or_else(|| format!("ecoloop load: there is no {pointer}"))
        };
        let messages = number("/messages/verified")?;
        let seconds = number("/phases_s/measure")? + number("/phases_s/drain")?;
        document["rate_per_s"] = json!(messages / seconds);
        // That of one of several processes would not be the server's.
        if server.is_one_process {
            document["server"] = json!({ "cpu_us_per_message": time.as_secs_f64() * 1e6 / messages });
        }
        Ok(document)
    }

    /// The next document of `ecoloop load`.
    pub(crate) fn ask(&mut self) -> Result<Value, String> {
        let text = self.dialogue.ask(self.limit).map_err(|why| format!("ecoloop load: {why}"))?;
        let document: Value = serde_json::from_str(&text).map_err(|error| format!("ecoloop load: {error}"))?;
        if document["verdict"] == "pass" {
            return Ok(document);
        }
        let failure = failure(&document).unwrap_or_else(|| format!("the verdict is {}", document["verdict"]));
        Err(format!("ecoloop load: {failure}"))
    }

    /// A slice of the client in C, in the words of the other. It warms up in each, and reads the server's CPU by itself.
    pub(crate) fn measure_in_c(&mut self) -> Result<Value, String> {
        let text = self.dialogue.ask(self.limit).map_err(|why| format!("epoll_client: {why}"))?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("epoll_client: {error}"))?;
        let field = |name: &str| answer[name].as_f64().ok_or_else(|| format!("epoll_client: there is no {name}"));
        let cpu_us_per_message = field("server_cpu_seconds")? * 1e6 / field("messages")?;
        Ok(json!({
            "server": { "cpu_us_per_message": cpu_us_per_message },
            "rate_per_s": field("messages_per_second")?,
        }))
    }

    /// Lets it close its connections. An error is what it found after its last slice, or has reported before.
    pub(crate) fn end(self) -> Result<(), String> {
        self.dialogue.end(END_LIMIT).map_err(|why| format!("the end of the load generator: {why}"))
    }
}

/// What failed in a document: its errors, else the thresholds that failed.
pub(crate) fn failure(document: &Value) -> Option<String> {
    let of = |list: &str, what: fn(&Value) -> Option<String>| {
        let list = document.get(list)?.as_array()?.iter().filter_map(what).collect::<Vec<_>>();
        Some(list.join(", ")).filter(|list| !list.is_empty())
    };
    let errors = of("errors", |error| {
        Some(format!("{} {} {} times", error["phase"].as_str()?, error["error"].as_str()?, error["count"]))
    });
    errors.or_else(|| {
        of("thresholds", |threshold| {
            (threshold["failed"] == true).then(|| threshold["expr"].as_str().unwrap_or_default().to_owned())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_named_by_its_errors_before_its_thresholds() {
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
