//! The barrier at which the ranks of a run wait for each other, so that they start together without a common clock.
//!
//! Rank 0 listens, and the others connect. Nobody says anything in the measured window.

mod other_rank;
mod rank_zero;
mod wire;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::load::report::Ended;
use ecoloop::load::{self, Config, Interrupt, Progress, Rank, Report, Threshold};

use self::other_rank::OtherRank;
use self::rank_zero::RankZero;
use self::wire::Hello;
use super::jobs::Jobs;
use super::ranks::MeetingPoint;
use super::values::Address;

/// Time between two attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// One rank's side of a barrier.
pub(super) enum Barrier {
    RankZero(RankZero),
    OtherRank(OtherRank),
}

/// How a rank's part of a run ended.
pub(super) enum Finished {
    /// This is rank 0: the report of all, and why the run ended early, if it did. Call [`Barrier::release`] once it is written.
    Merged(Box<Report>, Option<Ending>),
    /// Rank 0 has written the report of all.
    Delivered(Option<Ending>),
    /// Rank 0 is lost, for this reason: the report of this rank is the only trace of what it measured.
    Undelivered(Box<Report>, String),
}

/// Why a run ended early.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) reason: String,
    /// It is not the user's wish.
    pub(super) is_fault: bool,
}

impl Barrier {
    /// Listens as rank 0, or connects to rank 0, and retries until the timeout. Returns `None` if the interrupt is set before.
    ///
    /// # Errors
    ///
    /// - Rank 0 cannot listen, or another rank cannot reach it or is refused.
    pub(super) fn open(
        place: &MeetingPoint,
        (config, rank): (&Config, Rank),
        interrupt: &Interrupt,
    ) -> Result<Option<Self>, String> {
        let MeetingPoint { ref address, timeout, has_jobs } = *place;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = Hello { ecoloop: version, rank, settings: wire::settings(config) };
        if rank.index > 0 {
            let resolve = || address.resolve(Ipv4Addr::LOCALHOST.into());
            let other = OtherRank::connect(resolve, &hello, timeout, interrupt);
            return other
                .map(|other| other.map(Self::OtherRank))
                .map_err(|reason| format!("cannot join the barrier: {reason}"));
        }
        let Some(listener) = listen(address, timeout, interrupt)? else { return Ok(None) };
        let times = (timeout, config.planned_time());
        let zero = RankZero::new(listener, hello, times, interrupt.clone(), has_jobs);
        zero.map(|zero| Some(Self::RankZero(zero))).map_err(|error| format!("cannot open the barrier: {error}"))
    }

    /// Starts the other ranks as processes of this machine.
    ///
    /// # Errors
    ///
    /// - The errors of [`Jobs::start`].
    pub(super) fn start_jobs(&self, count: u32) -> io::Result<Option<Jobs>> {
        let Self::RankZero(zero) = self else { return Ok(None) };
        let watching = zero.clone();
        Jobs::start(count, zero.address(), move |index, status| watching.process_ended(index, status)).map(Some)
    }

    /// Returns what adds the progress of the other ranks to that of rank 0, as far as it is known.
    pub(super) fn total_progress(&self) -> impl Fn(Progress) -> Progress + Send + Sync + 'static {
        let zero = if let Self::RankZero(zero) = self { Some(zero.clone()) } else { None };
        move |own| zero.as_ref().map_or(own, |zero| zero.total(own))
    }

    /// Says how far this rank is, if rank 0 wants to know.
    pub(super) fn report_progress(&self, progress: Progress) {
        if let Self::OtherRank(other) = self {
            other.report_progress(progress);
        }
    }

    /// Returns whether rank 0 wants to know how far this rank is.
    pub(super) fn wants_progress(&self) -> bool {
        if let Self::OtherRank(other) = self { other.wants_progress() } else { false }
    }

    /// Waits until all ranks are ready, and returns when they start. If they do not, the interrupt is set.
    pub(super) fn start(&self) {
        match self {
            Self::RankZero(zero) => zero.start(),
            Self::OtherRank(other) => other.start(),
        }
    }

    /// Tells the other ranks that this one cannot run.
    pub(super) fn fail(&self, reason: &str) {
        match self {
            Self::RankZero(zero) => zero.fail(reason),
            Self::OtherRank(other) => other.fail(reason),
        }
    }

    /// Collects the reports as rank 0, or hands in the report.
    ///
    /// # Errors
    ///
    /// - The errors of [`load::merge_ranks`].
    pub(super) fn finish(&self, report: Report, thresholds: &[Threshold]) -> io::Result<Finished> {
        match self {
            Self::RankZero(zero) => {
                let (mut reports, ending) = zero.collect(report);
                if ending.is_some() {
                    // A part of a run is not the run.
                    reports[0].1.ended = Ended::Interrupted;
                }
                let merged = load::merge_ranks(reports, thresholds)?;
                Ok(Finished::Merged(Box::new(merged), ending))
            }
            Self::OtherRank(other) => Ok(match other.deliver(&report) {
                Ok(ending) => Finished::Delivered(ending),
                Err(reason) => Finished::Undelivered(Box::new(report), reason),
            }),
        }
    }

    /// Ends the other ranks, because every result is written.
    pub(super) fn release(&self) {
        if let Self::RankZero(zero) = self {
            zero.release();
        }
    }
}

/// Listens on the first address of rank 0 that is of this machine. A name may become known later.
fn listen(address: &Address, timeout: Duration, interrupt: &Interrupt) -> Result<Option<TcpListener>, String> {
    let deadline = Instant::now() + timeout;
    loop {
        let listener =
            address.resolve(Ipv4Addr::UNSPECIFIED.into()).and_then(|addresses| TcpListener::bind(&addresses[..]));
        match listener {
            Ok(listener) => return Ok(Some(listener)),
            Err(_) if interrupt.is_set() => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(format!(
                    "cannot listen on {address} as rank 0: {error}; another run or program has this port: choose one outside net.ipv4.ip_local_port_range"
                ));
            }
            Err(error) if !matches!(address, Address::Name(_)) || Instant::now() >= deadline => {
                return Err(format!(
                    "cannot listen on {address} as rank 0: {error}; --barrier names the machine of rank 0"
                ));
            }
            Err(_) => thread::sleep(RETRY_INTERVAL),
        }
    }
}
