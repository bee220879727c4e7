//! Rank 0 of a barrier: it gathers the others, starts all, and takes their reports.
//!
//! A thread for each rank reads what it sends. In the window no rank sends anything, so all of them sleep.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::load::report::Ended;
use ecoloop::load::{Interrupt, Progress, Rank, Report};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Ending;
use super::wire::{self, Counts, FromRank, FromRankZero, GREETING_MAX, Hello, Line, REPORT_MAX};
use crate::cli::hints::with_descriptor_hint;

/// How often a waiting thread checks the time and the interrupt.
const TICK: Duration = Duration::from_millis(50);
/// How long a newcomer may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of newcomers that have not greeted.
const NEWCOMERS_MAX: usize = 256;
/// Ranks, and refusals, that the reason of an end names: another rank reads at most `GREETING_MAX` bytes of it.
const NAMES_MAX: usize = 10;
/// Maximum characters of a refusal, which contains what the other program said.
const REFUSAL_MAX: usize = 200;

/// The barrier of rank 0. Clones share it.
#[derive(Clone)]
pub(in crate::cli) struct RankZero {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// When all must have come.
    gathered_by: Instant,
}

struct Shared {
    hello: Hello,
    timeout: Duration,
    /// How long the warm-up and the window last, unless a number of messages ends the window.
    window: Option<Duration>,
    interrupt: Interrupt,
    wants_progress: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ranks: BTreeMap<u32, Peer>,
    newcomers: usize,
    /// Why ranks were refused, by their number.
    refusals: BTreeMap<u32, String>,
    /// When all began.
    started: Option<Instant>,
    ending: Option<Ending>,
}

/// Another rank.
struct Peer {
    stream: TcpStream,
    address: SocketAddr,
    is_ready: bool,
    is_gone: bool,
    progress: Option<Counts>,
    report: Option<Report>,
    /// Its report was taken.
    is_collected: bool,
}

impl RankZero {
    /// Begins to take in the other ranks.
    pub(super) fn new(
        listener: TcpListener,
        hello: Hello,
        (timeout, window): (Duration, Option<Duration>),
        interrupt: Interrupt,
        wants_progress: bool,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { hello, timeout, window, interrupt, wants_progress, state, changed });
        let gathering = Arc::clone(&shared);
        thread::Builder::new().name("barrier".to_owned()).spawn(move || gathering.gather(&listener))?;
        Ok(Self { shared, address, gathered_by: Instant::now() + timeout })
    }

    /// Returns the address at which rank 0 listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds the progress of the other ranks to that of rank 0.
    pub(super) fn total(&self, own: Progress) -> Progress {
        let state = self.shared.state();
        let others: Vec<_> = state.ranks.values().filter_map(|peer| peer.progress).collect();
        let mut total = own;
        // What a stranger says may not fit.
        let sum = |own: u64, of: fn(&Counts) -> u64| others.iter().map(of).fold(own, u64::saturating_add);
        total.open = sum(own.open, |counts| counts.open);
        total.opened = sum(own.opened, |counts| counts.opened);
        for messages in others.iter().map(|counts| counts.messages) {
            total.messages += messages;
        }
        total.errors = sum(own.errors, |counts| counts.errors);
        total.rate = own.rate.map(|rate| sum(rate, |counts| counts.rate.unwrap_or(0)));
        // Percentiles do not add up.
        (total.p50, total.p99) = (None, None);
        total
    }

    /// Ends all because the process of a rank has exited before it joined.
    pub(super) fn process_ended(&self, index: u32, status: ExitStatus) {
        let mut state = self.shared.state();
        if !state.ranks.contains_key(&index) {
            let reason = format!("job {index} of {} ended before the run: {status}", self.shared.hello.rank.count);
            // Ctrl-C reaches every process of the terminal, and one that has not joined exits with 130.
            let is_interrupted = self.shared.interrupt.is_set() || status.code() == Some(130);
            self.shared.end(&mut state, reason, !is_interrupted);
        }
    }

    /// Waits until all ranks are ready and starts them, or ends them if one is not in time.
    pub(super) fn start(&self) {
        let deadline = Instant::now() + self.shared.timeout;
        let mut state = self.shared.state();
        loop {
            if state.ending.is_some() || self.shared.interrupt.is_set() {
                return;
            }
            let now = Instant::now();
            if state.ranks.len() + 1 == self.shared.hello.rank.count as usize {
                if state.ranks.values().all(|peer| peer.is_ready) {
                    break;
                }
                if now >= deadline {
                    let late = state.name_where(|peer| !peer.is_ready);
                    self.shared.end(&mut state, self.shared.late(&late, "not ready"), true);
                }
            } else if now >= self.gathered_by {
                let reason = self.shared.absent(&state);
                self.shared.end(&mut state, reason, true);
            }
            state = self.shared.wait(state);
        }
        state.started = Some(Instant::now());
        for peer in state.ranks.values() {
            // One that is gone is found by its reader.
            let _ = wire::write(&peer.stream, &FromRankZero::Start);
        }
    }

    /// Returns the reports of all ranks, that of rank 0 first, and why the run ended early, if it did.
    pub(super) fn collect(&self, own: Report) -> (Vec<(String, Report)>, Option<Ending>) {
        let mut state = self.shared.state();
        let deadline = self.shared.reports_by(&state);
        let interrupted = || "rank 0 was interrupted".to_owned();
        if own.ended == Ended::Interrupted {
            self.shared.end(&mut state, interrupted(), false);
        }
        while state.ending.is_none() && state.awaits_report() {
            if self.shared.interrupt.is_set() {
                self.shared.end(&mut state, interrupted(), false);
            } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let late = state.name_where(Peer::is_awaited);
                self.shared.end(&mut state, self.shared.late(&late, "without a report"), true);
            } else {
                state = self.shared.wait(state);
            }
        }
        // A rank that was ended early reports what it has, and has the same time once more for that.
        let deadline = Instant::now() + self.shared.timeout;
        while state.awaits_report() && Instant::now() < deadline {
            state = self.shared.wait(state);
        }
        let mut reports = vec![("rank 0".to_owned(), own)];
        for (index, peer) in &mut state.ranks {
            peer.is_collected = peer.report.is_some();
            reports.extend(peer.report.take().map(|report| (format!("rank {index}"), report)));
        }
        (reports, state.ending.clone())
    }

    /// Ends the other ranks because rank 0 cannot run.
    pub(super) fn fail(&self, reason: &str) {
        let mut state = self.shared.state();
        self.shared.end(&mut state, format!("rank 0 failed: {reason}"), true);
    }

    /// Tells the other ranks that every result is written. One whose report is not in it is not told, and keeps its own.
    pub(super) fn release(&self) {
        for peer in self.shared.state().ranks.values().filter(|peer| peer.is_collected) {
            let _ = wire::write(&peer.stream, &FromRankZero::Done);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole even if a thread panicked while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends every rank, unless that was done before.
    fn end(&self, state: &mut State, reason: String, is_fault: bool) {
        if state.ending.is_some() {
            return;
        }
        for peer in state.ranks.values() {
            let _ = wire::write(&peer.stream, &FromRankZero::End { reason: reason.clone(), is_fault });
        }
        state.ending = Some(Ending { reason, is_fault });
        self.interrupt.set();
        self.changed.notify_all();
    }

    /// Returns by when all must have reported. A number of messages may take another rank far longer than this one: then there is no
    /// such time, and keep-alive finds a machine that is gone.
    fn reports_by(&self, state: &State) -> Option<Instant> {
        // Without a connection, rank 0 has ended before the window has.
        let window_end = state.started?.checked_add(self.window?)?;
        window_end.max(Instant::now()).checked_add(self.timeout)
    }

    fn late(&self, ranks: &str, what: &str) -> String {
        let timeout = humantime::format_duration(self.timeout);
        format!("{ranks}: {what} within {timeout} (--barrier-timeout) of rank 0")
    }

    fn absent(&self, state: &State) -> String {
        let Rank { count, .. } = self.hello.rank;
        let absent: Vec<_> = (1..count).filter(|index| !state.ranks.contains_key(index)).collect();
        let names: Vec<_> = absent.iter().take(NAMES_MAX).map(ToString::to_string).collect();
        let more = if absent.len() > names.len() { ", ..." } else { "" };
        let refusals: Vec<_> = state.refusals.values().take(NAMES_MAX).map(|reason| format!("; {reason}")).collect();
        let noun = if absent.len() == 1 { "rank" } else { "ranks" };
        let timeout = humantime::format_duration(self.timeout);
        format!(
            "{noun} {}{more} of {count} did not come within {timeout} (--barrier-timeout){}",
            names.join(", "),
            refusals.concat()
        )
    }

    /// Takes in the other ranks, until all are there.
    fn gather(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let state = self.state();
            let is_full = state.ranks.len() + 1 >= self.hello.rank.count as usize;
            let is_crowded = state.newcomers >= NEWCOMERS_MAX;
            if is_full {
                return;
            }
            drop(state);
            if is_crowded {
                thread::sleep(TICK);
                continue;
            }
            let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
            // An error of the wait is that of the next accept.
            let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
            let (stream, address) = match listener.accept() {
                Ok(newcomer) => newcomer,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    let reason = format!("rank 0 cannot accept another rank: {}", with_descriptor_hint(error));
                    return self.end(&mut self.state(), reason, true);
                }
                Err(error) => {
                    // While the error lasts, the poll does not wait.
                    if error.kind() != io::ErrorKind::WouldBlock {
                        thread::sleep(TICK);
                    }
                    continue;
                }
            };
            self.state().newcomers += 1;
            let greeting = Arc::clone(self);
            let greet = move || greeting.serve(stream, address);
            if thread::Builder::new().name("rank".to_owned()).spawn(greet).is_err() {
                self.state().newcomers -= 1;
            }
        }
    }

    /// Greets a newcomer and, if it is a rank of this run, reads what it says until it is gone. Nothing happens to a stranger.
    fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let line = self.greet(stream, address);
        self.state().newcomers -= 1;
        let Some((index, mut line)) = line else { return };
        let reason = loop {
            match line.read(REPORT_MAX, None) {
                Ok(Some(message)) => self.hear(index, message),
                Ok(None) => break "it is gone".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        let mut state = self.state();
        let Some(peer) = state.ranks.get_mut(&index) else { return };
        peer.is_gone = true;
        if !peer.has_reported() {
            self.end(&mut state, format!("rank {index} ({address}) is lost: {reason}"), true);
        }
        self.changed.notify_all();
    }

    fn greet(&self, stream: TcpStream, address: SocketAddr) -> Option<(u32, Line)> {
        stream.set_nonblocking(false).ok()?;
        let mut line = Line::new(stream, self.timeout).ok()?;
        let hello: Hello = line.read(GREETING_MAX, Some(Instant::now() + GREETING_TIMEOUT)).ok()??;
        let stream = line.writer().ok()?;
        let mut state = self.state();
        let index = hello.rank.index;
        if let Some(reason) = self.refusal(&state, &hello) {
            let reason: String = reason.chars().take(REFUSAL_MAX).collect();
            let _ = wire::write(&stream, &FromRankZero::Refused(reason.clone()));
            // What a stranger says is no rank of this run.
            if index < self.hello.rank.count {
                state.refusals.insert(index, format!("rank {index} ({address}) was refused: {reason}"));
            }
            return None;
        }
        wire::write(&stream, &FromRankZero::Welcome { wants_progress: self.wants_progress }).ok()?;
        state.ranks.insert(index, Peer::new(stream, address));
        self.changed.notify_all();
        Some((index, line))
    }

    /// Returns why a rank does not belong to this run.
    fn refusal(&self, state: &State, other: &Hello) -> Option<String> {
        let (own, index) = (&self.hello, other.rank.index);
        if own.ecoloop != other.ecoloop {
            return Some(format!("its version is {}, and {} here", other.ecoloop, own.ecoloop));
        }
        if own.rank.count != other.rank.count || index >= own.rank.count {
            return Some(format!("it is rank {index} of {}, and this run has {}", other.rank.count, own.rank.count));
        }
        let differs = |(name, value): &(&String, &String)| other.settings.get(*name) != Some(*value);
        if let Some((name, value)) = own.settings.iter().find(differs) {
            let theirs = other.settings.get(name).map_or("unknown", |value| value);
            return Some(format!("its {name} is {theirs}, and {value} here"));
        }
        if let Some(ending) = &state.ending {
            return Some(format!("the run has ended: {}", ending.reason));
        }
        let there = match state.ranks.get(&index) {
            Some(peer) => peer.address.to_string(),
            None if index == 0 => "this process".to_owned(),
            None => return None,
        };
        Some(format!("rank {index} is there already ({there}): it was started twice, or two runs use one port"))
    }

    fn hear(&self, index: u32, message: FromRank) {
        let mut state = self.state();
        let Some(peer) = state.ranks.get_mut(&index) else { return };
        let address = peer.address;
        match message {
            FromRank::Ready => peer.is_ready = true,
            FromRank::Progress(counts) => peer.progress = Some(counts),
            FromRank::Report(report) => {
                let is_interrupted = report.ended == Ended::Interrupted;
                peer.report = Some(*report);
                if is_interrupted {
                    self.end(&mut state, format!("rank {index} ({address}) was interrupted"), false);
                }
            }
            FromRank::Failed(reason) => {
                peer.is_gone = true;
                self.end(&mut state, format!("rank {index} ({address}) failed: {reason}"), true);
            }
        }
        self.changed.notify_all();
    }
}

impl State {
    fn awaits_report(&self) -> bool {
        self.ranks.values().any(Peer::is_awaited)
    }

    /// Names at most `NAMES_MAX` ranks for which a condition holds.
    fn name_where(&self, condition: impl Fn(&Peer) -> bool) -> String {
        let those = self.ranks.iter().filter(|(_, peer)| condition(peer)).take(NAMES_MAX + 1);
        let mut names: Vec<_> = those.map(|(index, peer)| format!("rank {index} ({})", peer.address)).collect();
        if names.len() > NAMES_MAX {
            names.truncate(NAMES_MAX);
            names.push("...".to_owned());
        }
        names.join(", ")
    }
}

impl Peer {
    fn new(stream: TcpStream, address: SocketAddr) -> Self {
        Self { stream, address, is_ready: false, is_gone: false, progress: None, report: None, is_collected: false }
    }

    fn has_reported(&self) -> bool {
        self.report.is_some() || self.is_collected
    }

    fn is_awaited(&self) -> bool {
        !self.has_reported() && !self.is_gone
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_first_ten_of_many_ranks_are_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = || Peer::new(TcpStream::connect(address).unwrap(), address);
        let ten = (1..=10).map(|index| format!("rank {index} ({address})")).collect::<Vec<_>>().join(", ");
        let mut state = State { ranks: (1..=10).map(|index| (index, peer())).collect(), ..State::default() };
        assert_eq!(state.name_where(|peer| !peer.is_ready), ten);
        state.ranks.insert(11, peer());
        assert_eq!(state.name_where(|peer| !peer.is_ready), ten + ", ...");
    }
}
