//! One rank of a run whose ranks meet at a barrier.

use std::error::Error;
use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ecoloop::load::{self, Config, Interrupt, Progress, ProgressCell, Rank, Report};

use super::advice::{advise, print_failure, warn_of_limits};
use super::barrier::{Barrier, Ending, Finished};
use super::load::with_hint;
use super::progress::ProgressDisplay;
use super::ranks::MeetingPoint;
use super::{descriptors, exit_status, metrics, print_error, result_files};

/// How often a process of `--jobs` says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How a run is watched.
pub(super) struct Display {
    /// Time between two lines of progress.
    pub(super) interval: Option<Duration>,
    /// The sockets of `--metrics`.
    pub(super) metrics: Vec<TcpListener>,
}

/// Runs one rank, and returns its exit status. Rank 0 writes the results of all.
pub(super) fn run(
    config: Config,
    rank: Rank,
    place: &MeetingPoint,
    (output, display): (&result_files::Arguments, Display),
    interrupt: &Interrupt,
) -> Result<ExitCode, Box<dyn Error>> {
    let is_first = rank.index == 0;
    let outputs = if is_first { Some(output.open("load", Some(rank))?) } else { None };
    let descriptor_limit = descriptors::raise_limit(print_error);
    if config.unresolved == 0 {
        if place.has_jobs {
            warn_of_limits(&config, rank.count, descriptor_limit);
        } else {
            warn_of_limits(&config.clone().share(), 1, descriptor_limit);
        }
    }
    let Some(barrier) = Barrier::open(place, (&config, rank), interrupt)? else {
        return Ok(ExitCode::from(130));
    };
    let jobs = if place.has_jobs { barrier.start_jobs(rank.count)? } else { None };
    let thresholds = config.thresholds.clone();
    let progress = ProgressCell::default();
    let requested = (is_first && place.has_jobs).then(|| config.measured_connections());
    let total = || total_progress(&barrier, requested);
    let (latest, total_of_latest) = (progress.clone(), total());
    metrics::start_load(display.metrics, output.quiet, move || latest.latest().map(&total_of_latest))
        .map_err(|error| format!("cannot start --metrics: {error}"))?;
    let interval = display.interval.filter(|_| is_first);
    let display = ProgressDisplay::start_total(progress.clone(), interval, is_first && !output.quiet, total())?;
    let report = run_reporting_progress(config, interrupt, &progress, &barrier);
    display.finish();
    let report = report.map_err(with_hint).inspect_err(|error| barrier.fail(&error.to_string()))?;
    match barrier.finish(report, &thresholds)? {
        Finished::Merged(report, ending) => {
            let written = outputs.map_or(Ok(()), |outputs| outputs.write(&report));
            barrier.release();
            if let Some(jobs) = jobs {
                jobs.finish();
            }
            advise(&report);
            if output.quiet {
                print_failure(&report);
            }
            written?;
            // Ctrl-C reaches every process of this terminal: which one it was does not matter.
            fault(ending.filter(|ending| ending.is_fault || !place.has_jobs))?;
            Ok(exit_status(report.verdict))
        }
        Finished::Delivered(ending) => fault(ending).map(|()| ExitCode::SUCCESS),
        Finished::Undelivered(report, reason) => {
            keep(&report, rank, output)?;
            Err(reason.into())
        }
    }
}

/// Returns what makes the progress of rank 0 that of all jobs, whose connections are those `requested`. Ranks on several machines say
/// nothing in the window.
fn total_progress(barrier: &Barrier, requested: Option<u64>) -> impl Fn(Progress) -> Progress + Send + Sync + 'static {
    let of_all = barrier.total_progress();
    move |own| {
        requested.map_or(own, |requested| {
            let mut total = of_all(own);
            total.requested = requested;
            total
        })
    }
}

/// Runs, and tells rank 0 how far this rank is, if that wants to know.
fn run_reporting_progress(
    config: Config,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    barrier: &Barrier,
) -> io::Result<Report> {
    let run = || load::run_with_start(config, interrupt, progress, || barrier.start());
    if !barrier.wants_progress() {
        return run();
    }
    let (stop, stopped) = mpsc::channel::<()>();
    let tell = move || {
        while stopped.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Some(progress) = progress.take() {
                barrier.report_progress(progress);
            }
        }
    };
    thread::scope(|scope| {
        thread::Builder::new().name("progress".to_owned()).spawn_scoped(scope, tell)?;
        let report = run();
        drop(stop);
        report
    })
}

/// Returns why a run ended early as an error, unless the user ended it.
fn fault(ending: Option<Ending>) -> Result<(), Box<dyn Error>> {
    match ending {
        Some(Ending { reason, is_fault: true }) => Err(reason.into()),
        Some(Ending { reason, is_fault: false }) => {
            print_error(&reason);
            Ok(())
        }
        None => Ok(()),
    }
}

/// Writes the results of this rank alone, if it has any, because rank 0 cannot write those of all.
fn keep(report: &Report, rank: Rank, output: &result_files::Arguments) -> Result<(), String> {
    if report.phases_s.measure > 0.0 { output.of_rank(rank).open("load", Some(rank))?.write(report) } else { Ok(()) }
}
