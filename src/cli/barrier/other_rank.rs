//! A rank other than 0 at a barrier.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::load::{Interrupt, Progress, Report};

use super::Ending;
use super::wire::{self, Counts, FromRank, FromRankZero, GREETING_MAX, Hello, Line};

/// How often a rank that waits looks at the time and at the interrupt.
const TICK: Duration = Duration::from_millis(50);
/// Time between two attempts to reach rank 0.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The barrier of another rank.
pub(in crate::cli) struct OtherRank {
    /// Of the thread that runs and of the one that reports the progress.
    stream: Mutex<TcpStream>,
    wants_progress: bool,
    address: SocketAddr,
    interrupt: Interrupt,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

/// What rank 0 has said.
#[derive(Default)]
struct Heard {
    has_started: bool,
    is_done: bool,
    ending: Option<Ending>,
    /// Why rank 0 is lost.
    lost: Option<String>,
}

impl OtherRank {
    /// Connects to rank 0, and retries until the timeout.
    ///
    /// # Errors
    ///
    /// - Rank 0 cannot be reached, is another program, or refuses this rank. `None` if the interrupt is set before.
    pub(super) fn connect(
        resolve: impl Fn() -> io::Result<Vec<SocketAddr>>,
        hello: &Hello,
        timeout: Duration,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>, String> {
        let deadline = Instant::now() + timeout;
        let mut failure = String::new();
        while Instant::now() < deadline {
            if interrupt.is_set() {
                return Ok(None);
            }
            match resolve().and_then(|addresses| reach(&addresses, deadline)) {
                Ok((stream, address)) => match greet(stream, hello, deadline, timeout) {
                    Ok((line, wants_progress)) => {
                        return Self::new(line, wants_progress, address, interrupt)
                            .map(Some)
                            .map_err(|error| error.to_string());
                    }
                    Err(Refusal::Final(reason)) => return Err(format!("{address} {reason}")),
                    Err(Refusal::Passing(reason)) => failure = format!("{address} {reason}"),
                },
                Err(error) => failure = error.to_string(),
            }
            thread::sleep(RETRY_INTERVAL);
        }
        let timeout = humantime::format_duration(timeout);
        Err(format!("rank 0 was not there within {timeout} (--barrier-timeout): {failure}"))
    }

    fn new(mut line: Line, wants_progress: bool, address: SocketAddr, interrupt: &Interrupt) -> io::Result<Self> {
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let (stream, interrupt) = (line.writer()?, interrupt.clone());
        let (hearing, interrupting) = (Arc::clone(&heard), interrupt.clone());
        let listen = move || {
            loop {
                let message = line.read(GREETING_MAX, None);
                let (state, changed) = &*hearing;
                let mut state = lock(state);
                match message {
                    Ok(Some(FromRankZero::Start)) => state.has_started = true,
                    Ok(Some(FromRankZero::Done)) => state.is_done = true,
                    Ok(Some(FromRankZero::End { reason, is_fault })) => {
                        state.ending = Some(Ending { reason, is_fault });
                        interrupting.set();
                    }
                    Ok(Some(FromRankZero::Welcome { .. } | FromRankZero::Refused(_))) => {}
                    Ok(None) => state.lost = Some("it is gone".to_owned()),
                    Err(error) => state.lost = Some(error.to_string()),
                }
                changed.notify_all();
                if state.lost.is_some() {
                    interrupting.set();
                    return;
                }
            }
        };
        thread::Builder::new().name("barrier".to_owned()).spawn(listen)?;
        Ok(Self { stream: Mutex::new(stream), wants_progress, address, interrupt, heard })
    }

    /// Says that this rank is ready, and waits for the start.
    pub(super) fn start(&self) {
        if self.interrupt.is_set() || self.say(&FromRank::Ready).is_err() {
            return;
        }
        self.wait(|heard| heard.has_started || heard.ending.is_some() || self.interrupt.is_set());
    }

    /// Hands in the report and waits until rank 0 has written its own. Returns why the run ended early, if it did.
    ///
    /// # Errors
    ///
    /// - Rank 0 is lost.
    pub(super) fn deliver(&self, report: &Report) -> Result<Option<Ending>, String> {
        let sent = self.say(&FromRank::Report(Box::new(report.clone())));
        if sent.is_ok() {
            self.wait(|heard| heard.is_done);
        }
        let heard = lock(&self.heard.0);
        if heard.is_done {
            return Ok(heard.ending.clone());
        }
        let reason = match (&heard.lost, sent) {
            (Some(reason), _) => reason.clone(),
            (None, Err(error)) => error.to_string(),
            (None, Ok(())) => "it is gone".to_owned(),
        };
        let ending = heard.ending.as_ref().map(|ending| format!("; {}", ending.reason)).unwrap_or_default();
        Err(format!("rank 0 ({}) is lost: {reason}{ending}", self.address))
    }

    /// Says that this rank cannot run.
    pub(super) fn fail(&self, reason: &str) {
        let _ = self.say(&FromRank::Failed(reason.to_owned()));
    }

    /// Says how far this rank is, if rank 0 wants to know.
    pub(super) fn report_progress(&self, progress: Progress) {
        let Progress { open, opened, messages, rate, errors, .. } = progress;
        let counts = Counts { open, opened, messages, rate, errors };
        // The reader finds out that rank 0 is lost.
        let _ = self.say(&FromRank::Progress(counts));
    }

    pub(super) fn wants_progress(&self) -> bool {
        self.wants_progress
    }

    fn say(&self, message: &FromRank) -> io::Result<()> {
        wire::write(&self.stream.lock().unwrap_or_else(PoisonError::into_inner), message)
    }

    /// Waits until a condition holds or rank 0 is lost. There is no timeout: rank 0 may still connect, or measure, or close, and says when
    /// it no longer waits for a rank.
    fn wait(&self, condition: impl Fn(&Heard) -> bool) {
        let (state, changed) = &*self.heard;
        let mut heard = lock(state);
        while !condition(&heard) && heard.lost.is_none() {
            heard = changed.wait_timeout(heard, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock(state: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    // What was heard is whole even if a thread panicked while it held the lock.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why rank 0 did not take in this rank.
enum Refusal {
    /// It will not.
    Final(String),
    /// It may later.
    Passing(String),
}

fn reach(addresses: &[SocketAddr], deadline: Instant) -> io::Result<(TcpStream, SocketAddr)> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(address, left.min(Duration::from_secs(5))) {
            // A connect to a free port of this machine can be given that port as its own.
            Ok(stream) if stream.local_addr()? == *address => {
                failure = io::Error::new(io::ErrorKind::ConnectionRefused, format!("{address}: nothing listens there"));
            }
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => failure = io::Error::new(error.kind(), format!("cannot connect to {address}: {error}")),
        }
    }
    Err(failure)
}

fn greet(stream: TcpStream, hello: &Hello, deadline: Instant, timeout: Duration) -> Result<(Line, bool), Refusal> {
    let passing = |error: io::Error| Refusal::Passing(error.to_string());
    let mut line = Line::new(stream, timeout).map_err(passing)?;
    wire::write(&line.writer().map_err(passing)?, hello).map_err(passing)?;
    match line.read(GREETING_MAX, Some(deadline)) {
        Ok(Some(FromRankZero::Welcome { wants_progress })) => Ok((line, wants_progress)),
        Ok(Some(FromRankZero::Refused(reason))) => Err(Refusal::Final(format!("refused this rank: {reason}"))),
        Ok(Some(_)) => Err(Refusal::Final("is not rank 0 of this run".to_owned())),
        Ok(None) => {
            Err(Refusal::Passing("closed the connection: rank 0 is not there, or another program is".to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Refusal::Final(format!("is not rank 0, but another program: {error}")))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(Refusal::Passing("is not rank 0, but another program: it says nothing".to_owned()))
        }
        Err(error) => Err(passing(error)),
    }
}
