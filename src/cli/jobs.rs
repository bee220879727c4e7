//! The processes of `load --jobs`: ranks on this machine, which meet this process at a barrier on loopback.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long this process waits for the others to exit after its own work is done.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The running processes.
pub(super) struct Jobs {
    watchers: Vec<JoinHandle<()>>,
}

impl Jobs {
    /// Starts ranks 1 to `count` - 1 with the arguments of this process, and calls `ended` on another thread when one has exited.
    ///
    /// # Errors
    ///
    /// - A process cannot be started. None is left running.
    pub(super) fn start(
        count: u32,
        barrier: SocketAddr,
        ended: impl Fn(u32, ExitStatus) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let mut children = Vec::new();
        for index in 1..count {
            match start_one(index, count, barrier) {
                Ok(child) => children.push((index, child)),
                Err(error) => {
                    for (_, child) in &mut children {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                    return Err(io::Error::new(error.kind(), format!("cannot start job {index} of {count}: {error}")));
                }
            }
        }
        let watch = |(index, mut child): (u32, Child)| {
            let ended = ended.clone();
            let watch = move || {
                if let Ok(status) = child.wait() {
                    ended(index, status);
                }
            };
            thread::Builder::new().name("job".to_owned()).spawn(watch)
        };
        Ok(Self { watchers: children.into_iter().map(watch).collect::<io::Result<_>>()? })
    }

    /// Waits until every process has exited, but not for long: without this process they exit by themselves.
    pub(super) fn finish(self) {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while self.watchers.iter().any(|watcher| !watcher.is_finished()) && Instant::now() < deadline {
            thread::sleep(EXIT_POLL_INTERVAL);
        }
    }
}

fn start_one(index: u32, count: u32, barrier: SocketAddr) -> io::Result<Child> {
    let mut arguments = env::args_os().skip(1);
    let mut command = Command::new(env::current_exe()?);
    // The subcommand is the first argument.
    command.args(arguments.next());
    command.args(["--is-job", "--rank", &format!("{index}/{count}"), "--barrier", &barrier.to_string()]);
    // This process alone prints.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}
