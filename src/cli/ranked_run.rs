//! One rank of a run whose ranks meet at a barrier.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use ecoloop::load::{self, Config, Interrupt, ProgressCell, Rank, Report};

use super::advice::{advise, print_failure, warn_of_limits};
use super::barrier::{Barrier, Ending, Finished};
use super::load::with_hint;
use super::progress::ProgressDisplay;
use super::ranks::MeetingPoint;
use super::{descriptors, exit_status, print_error, result_files};

/// Runs one rank, and returns its exit status. Rank 0 writes the results of all.
pub(super) fn run(
    config: Config,
    rank: Rank,
    place: &MeetingPoint<'_>,
    (output, interval): (&result_files::Arguments, Option<Duration>),
    interrupt: &Interrupt,
) -> Result<ExitCode, Box<dyn Error>> {
    let is_first = rank.index == 0;
    let outputs = if is_first { Some(output.open(Some(rank))?) } else { None };
    let descriptor_limit = descriptors::raise_limit(print_error);
    if config.unresolved == 0 {
        warn_of_limits(&config.clone().share(), descriptor_limit);
    }
    let Some(barrier) = Barrier::open(place.address, place.timeout, (&config, rank), interrupt)? else {
        return Ok(ExitCode::from(130));
    };
    let thresholds = config.thresholds.clone();
    let progress = ProgressCell::default();
    let display = ProgressDisplay::start(progress.clone(), interval.filter(|_| is_first), is_first && !output.quiet)?;
    let report = load::run_with_start(config, interrupt, &progress, || barrier.start());
    display.finish();
    let report = report.map_err(with_hint).inspect_err(|error| barrier.fail(&error.to_string()))?;
    match barrier.finish(report, &thresholds)? {
        Finished::Merged(report, ending) => {
            let written = outputs.map_or(Ok(()), |outputs| outputs.write(&report));
            barrier.release();
            advise(&report);
            if output.quiet {
                print_failure(&report);
            }
            written?;
            fault(ending)?;
            Ok(exit_status(report.verdict))
        }
        Finished::Delivered(ending) => fault(ending).map(|()| ExitCode::SUCCESS),
        Finished::Undelivered(report, reason) => {
            keep(&report, rank, output)?;
            Err(reason.into())
        }
    }
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
    if report.phases_s.measure > 0.0 { output.of_rank(rank).open(Some(rank))?.write(report) } else { Ok(()) }
}
