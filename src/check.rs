//! A grader of echo servers, over TCP or a Unix socket: sends what real clients send, and checks that it comes back.
//!
//! The checks have levels, from one client to a server without descriptors. Each opens its own connections, closes them all at its
//! end, and has a limit in time. After each check, a new client must still be served.
//!
//! # Examples
//!
//! ```
//! use ecoloop::check::Grader;
//!
//! let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
//! let report = Grader::new(vec![server.local_addr()]).up_to_level(2).spawn()?.join()?;
//! assert!(report.passed(), "{report}");
//! # Ok::<(), std::io::Error>(())
//! ```

mod attempt;
mod client;
mod clients;
mod crowd;
mod echo;
mod endings;
mod fairness;
mod many;
mod pressure;
mod problem;
mod report;
mod running;
#[cfg(test)]
mod scene;
mod shortage;
mod streams;
mod target;
mod words;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::attempt::{Attempt, HELLO, Outcome, Stop};
use self::problem::{Problem, Skip};
pub use self::report::Report;
pub use self::running::{Progress, Running};
use self::target::Target;
pub use self::words::{LEVELS, Language, Words};
use crate::ValueError;
use crate::socket_address::AnyAddress;

/// Longest run of a [`Grader`].
pub const TIME_MAX: Duration = Duration::from_secs(60);
/// A check passes late if the server kept it, or the client after it, waiting for longer than this.
pub const LATE: Duration = Duration::from_secs(1);

/// A check does not start with less than this left of [`TIME_MAX`]: too little to tell a slow server from a wrong one.
const TIME_LEFT_MIN: Duration = Duration::from_secs(4);
/// A check has at most this part of the time that is left, so that those after it have some.
const SHARE: u32 = 3;

/// One check: what it sends, and what must come back.
pub struct Check {
    name: &'static str,
    level: u8,
    /// The chapter of the course that explains a failure.
    chapter: words::Chapter,
    /// Maximum number of connections open at a time.
    connections: u32,
    needs_pid: bool,
    /// Most seconds that it takes.
    seconds: u64,
    proves: Words,
    sends: Words,
    matters: Words,
    run: fn(&Attempt<'_>) -> Outcome,
}

impl Check {
    /// Returns the name, such as `half-close`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the level, from 1 to 8: an index into [`LEVELS`], plus 1.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Returns the maximum number of connections that it has open at a time.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Returns whether it is skipped without [`Grader::pid`].
    #[must_use]
    pub fn needs_pid(&self) -> bool {
        self.needs_pid
    }

    /// Returns what a server that passes does.
    #[must_use]
    pub fn proves(&self) -> Words {
        self.proves
    }

    /// Returns what the check sends, or does to the server.
    #[must_use]
    pub fn sends(&self) -> Words {
        self.sends
    }

    /// Returns why a failure matters.
    #[must_use]
    pub fn matters(&self) -> Words {
        self.matters
    }

    /// Returns where a failure is explained.
    #[must_use]
    pub fn read(&self, language: Language) -> String {
        self.chapter.name(language)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Check").field(&self.name).finish()
    }
}

/// Returns every check, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Check> {
    let levels: [&'static [Check]; 8] = [
        echo::CHECKS,
        clients::CHECKS,
        streams::CHECKS,
        pressure::CHECKS,
        endings::CHECKS,
        fairness::CHECKS,
        many::CHECKS,
        shortage::CHECKS,
    ];
    levels.into_iter().flatten()
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// Everything was right.
    Ok,
    /// Something was wrong, or did not come.
    Fails,
    /// Everything was right, but the server kept the check, or the client after it, waiting for longer than [`LATE`], or the time of one
    /// of them was over before all had come.
    Late,
    /// The check could not run.
    Skipped,
}

impl Grade {
    /// Returns the word for it in documents: `ok`, `fails`, `late` or `skipped`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fails => "fails",
            Self::Late => "late",
            Self::Skipped => "skipped",
        }
    }
}

/// A check that has run or was skipped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Graded {
    /// The check.
    pub check: &'static Check,
    /// Its result.
    pub grade: Grade,
    /// How long it took.
    pub elapsed: Duration,
    is_unix: bool,
    finding: Finding,
}

#[derive(Debug)]
enum Finding {
    Nothing,
    Waited(Duration),
    Slow,
    Problem(Problem),
    /// Afterwards, a new client is not served.
    NoLongerServes(Problem),
    Skip(Skip),
}

impl Graded {
    /// Returns what the check sent, or did to the server: as [`Check::sends`], but a close for the RST that a Unix socket does not have.
    #[must_use]
    pub fn sent(&self, language: Language) -> &'static str {
        self.check.sends.about(self.is_unix).get(language)
    }

    /// Returns what happened, or why it was late or skipped; `None` if it is ok.
    #[must_use]
    pub fn came(&self, language: Language) -> Option<String> {
        match &self.finding {
            Finding::Nothing => None,
            Finding::Waited(waited) => Some(problem::waited(*waited, language)),
            Finding::Slow => Some(problem::SLOW.get(language).to_owned()),
            Finding::Problem(problem) | Finding::NoLongerServes(problem) => Some(problem.words(language).to_owned()),
            Finding::Skip(skip) => Some(skip.words(language)),
        }
    }
}

/// Runs checks against one server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Grader {
    /// The server's addresses: the first that accepts a connection is used.
    pub addresses: Vec<AnyAddress>,
    /// The server's process on this machine, for the checks that need it. They stop and continue it, lower its descriptor limit for a
    /// moment, and the last one ends it with SIGTERM: these are skipped if it is this process.
    pub pid: Option<u32>,
    /// The checks, in order. At first all.
    pub checks: Vec<&'static Check>,
    /// Most time of a check, if its own limit is not shorter. At first [`TIME_MAX`].
    pub check_timeout: Duration,
    /// The language of the report as a document. At first English.
    pub language: Language,
}

impl Grader {
    /// Returns a grader with every check, and without a process.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = impl Into<AnyAddress>>) -> Self {
        let addresses = addresses.into_iter().map(Into::into).collect();
        Self { addresses, pid: None, checks: all().collect(), check_timeout: TIME_MAX, language: Language::English }
    }

    /// Keeps the checks of levels 1 to `level`.
    #[must_use]
    pub fn up_to_level(mut self, level: u8) -> Self {
        self.checks.retain(|check| check.level() <= level);
        self
    }

    /// Keeps the checks with these names.
    ///
    /// # Errors
    ///
    /// - A name is that of no check.
    ///
    /// # Examples
    ///
    /// ```
    /// use ecoloop::check::Grader;
    ///
    /// let address = std::net::SocketAddr::from(([127, 0, 0, 1], 5000));
    /// let grader = Grader::new([address]).only(["half-close", "reset"])?;
    /// assert_eq!(grader.checks.len(), 2);
    /// assert!(grader.only(["half-open"]).is_err());
    /// # Ok::<(), ecoloop::ValueError>(())
    /// ```
    pub fn only<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Result<Self, ValueError> {
        let names: Vec<_> = names.into_iter().collect();
        if let Some(name) = names.iter().find(|&&name| all().all(|check| check.name != name)) {
            return Err(format!("there is no check {name:?}").into());
        }
        self.checks.retain(|check| names.contains(&check.name));
        Ok(self)
    }

    /// Starts the run on a thread of its own.
    ///
    /// # Errors
    ///
    /// - No thread can be started.
    pub fn spawn(self) -> io::Result<Running> {
        Running::start(self)
    }

    /// Runs the checks on this thread, calls `graded` after each, and returns the results. Takes at most [`TIME_MAX`].
    ///
    /// Setting `interrupt` ends the run within half a second: the check that is running has no result then.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: there is no address.
    /// - The server cannot be connected to.
    /// - There is no process [`pid`](Self::pid), it may not be signaled, or it listens on no socket of the address's kind.
    pub fn run(&self, interrupt: &AtomicBool, graded: impl FnMut(&Graded)) -> io::Result<Report> {
        // From before the first connect, which may take seconds.
        let end = Instant::now() + TIME_MAX;
        let results = match Target::open(&self.addresses, self.pid, interrupt)? {
            Some(target) => self.run_against(&target, end, interrupt, graded),
            None => Vec::new(),
        };
        let target = self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Ok(Report { target, interrupted: interrupt.load(Ordering::Acquire), results, language: self.language })
    }

    fn run_against(
        &self,
        target: &Target,
        end: Instant,
        interrupt: &AtomicBool,
        mut graded: impl FnMut(&Graded),
    ) -> Vec<Graded> {
        let mut results = Vec::new();
        let mut gone = None;
        for &check in &self.checks {
            let start = Instant::now();
            let skip = skip_reason(check, target, gone, end.saturating_duration_since(start));
            let (grade, finding) = match skip {
                Some(skip) => (Grade::Skipped, Finding::Skip(skip)),
                None => match self.grade(check, target, interrupt, end) {
                    Some(result) => result,
                    None => break,
                },
            };
            if let Finding::NoLongerServes(_) = finding {
                gone = Some(check.name);
            }
            let (elapsed, is_unix) = (start.elapsed(), target.address.is_unix());
            results.push(Graded { check, grade, elapsed, is_unix, finding });
            results.last().into_iter().for_each(&mut graded);
        }
        results
    }

    /// Runs one check, and then a new client. Returns `None` if it was interrupted.
    fn grade(&self, check: &Check, target: &Target, interrupt: &AtomicBool, end: Instant) -> Option<(Grade, Finding)> {
        let limit = |seconds| {
            let now = Instant::now();
            now + (end.saturating_duration_since(now) / SHARE).min(Duration::from_secs(seconds)).min(self.check_timeout)
        };
        let attempt = Attempt::new(target, interrupt, limit(check.seconds));
        let outcome = (check.run)(&attempt);
        let after = Attempt::new(target, interrupt, limit(check.seconds));
        let aftermath = if check.name == shortage::LAST {
            Ok(())
        } else {
            after.connect().and_then(|mut client| client.exchange(HELLO))
        };
        let waited = attempt.longest_wait().max(after.longest_wait());
        Some(match (outcome, aftermath) {
            (Err(Stop::Interrupted), _) | (_, Err(Stop::Interrupted)) => return None,
            (outcome, Err(Stop::Fail(_))) => {
                (Grade::Fails, Finding::NoLongerServes(Problem::no_longer_serves(outcome)))
            }
            (Err(Stop::Fail(problem)), _) => (Grade::Fails, Finding::Problem(problem)),
            (Err(Stop::Slow), _) | (_, Err(Stop::Slow)) => (Grade::Late, Finding::Slow),
            (Err(Stop::Skip(skip)), _) | (_, Err(Stop::Skip(skip))) => (Grade::Skipped, Finding::Skip(skip)),
            (Ok(()), Ok(())) if waited > LATE => (Grade::Late, Finding::Waited(waited)),
            (Ok(()), Ok(())) => (Grade::Ok, Finding::Nothing),
        })
    }
}

/// Returns why a check cannot run.
fn skip_reason(check: &Check, target: &Target, gone: Option<&'static str>, left: Duration) -> Option<Skip> {
    if let Some(since) = gone {
        return Some(Skip::Gone { since });
    }
    if check.name == many::OF_SYNS && target.address.is_unix() {
        return Some(Skip::NoSyn);
    }
    if check.needs_pid && target.process.is_none() {
        return Some(Skip::NoPid);
    }
    (left < TIME_LEFT_MIN).then_some(Skip::NoTime)
}

#[cfg(test)]
mod tests {
    use super::scene::Scene;
    use super::*;

    #[test]
    fn without_a_process_exactly_the_checks_that_need_one_are_skipped() {
        let tcp = Scene::tcp();
        for check in all() {
            let skip = skip_reason(check, &tcp.target, None, TIME_MAX);
            assert_eq!(matches!(skip, Some(Skip::NoPid)), check.needs_pid(), "{check:?}: {skip:?}");
            assert_eq!(skip.is_some(), check.needs_pid(), "{check:?}: {skip:?}");
        }
        let of_processes: Vec<_> = all().filter(|check| check.needs_pid()).map(Check::name).collect();
        assert_eq!(of_processes, ["memory", "pause", "gone-before-accept", "descriptors", "drain"]);
    }

    #[test]
    fn a_check_without_time_a_server_or_a_syn_is_skipped() {
        let (tcp, unix) = (Scene::tcp(), Scene::unix());
        for check in all().filter(|check| !check.needs_pid()) {
            assert!(skip_reason(check, &tcp.target, None, TIME_LEFT_MIN).is_none(), "{check:?}");
            let no_time = skip_reason(check, &tcp.target, None, TIME_LEFT_MIN.saturating_sub(Duration::from_nanos(1)));
            assert!(matches!(no_time, Some(Skip::NoTime)), "{check:?}: {no_time:?}");
            let gone = skip_reason(check, &tcp.target, Some("reset"), TIME_MAX);
            assert!(matches!(gone, Some(Skip::Gone { since: "reset" })), "{check:?}: {gone:?}");
            let no_syn = skip_reason(check, &unix.target, None, TIME_MAX);
            assert_eq!(matches!(no_syn, Some(Skip::NoSyn)), check.name() == "burst", "{check:?}: {no_syn:?}");
        }
    }
}
