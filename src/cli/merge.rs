//! `ecoloop merge`: merges the results of several load generators.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ecoloop::load::{self, Report, Threshold};

use super::advice::print_failure;
use super::ranks::GENERATORS;
use super::report_stream::{print_other_lines, read_reports};
use super::result_files::{self, REPORT};
use super::{exit_status, print_error};

const HELP: &str = "\
EXPR  METRIC, one of > >= < <=, and a value, such as p99>5ms or rate<99%: see ecoloop load --help

Exit status:
  0    pass: no threshold failed
  1    fail: a threshold failed; or runtime error, such as reports that do not fit together
  2    usage error
  3    inconclusive: nothing failed, but a generator was late or saturated
  130  one of the runs was interrupted: no threshold is evaluated

Examples:
  ecoloop merge one.json two.json
      the merged result as a table
  ecoloop merge --json - --fail-if 'p99>5ms' *.json
      the merged result as JSON, which fails if the 99th percentile exceeds 5 ms
  kubectl logs --prefix --selector job-name=load --tail -1 | ecoloop merge -
      the merged result of a job's pods, whose reports are in their logs";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Reports of ecoloop load --json, also among other lines; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Fail if a condition holds for the merged result (repeatable)
    #[arg(help_heading = REPORT, long = "fail-if", value_name = "EXPR")]
    thresholds: Vec<Threshold>,

    /// Merge although ranks are missing or there twice, and print which
    #[arg(long, help_heading = GENERATORS)]
    partial: bool,

    #[command(flatten)]
    output: result_files::Arguments,
}

/// Reads, merges and writes reports, and returns the exit status of the merged run.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let outputs = arguments.output.open("merge", None)?;
    let mut reports = Vec::new();
    for path in &arguments.files {
        let name = path.display().to_string();
        let found = read_reports(path, "merge")?;
        let is_one = found.reports.len() == 1;
        if !arguments.output.quiet {
            print_other_lines(&name, &found);
        }
        let name_of = |line| if is_one { name.clone() } else { format!("{name}, line {line}") };
        reports.extend(found.reports.into_iter().map(|(line, report)| (name_of(line), report)));
    }
    check_completeness(&reports, arguments.partial)?;
    let merged = load::merge(&reports, &arguments.thresholds).map_err(|error| format!("cannot merge {error}"))?;
    outputs.write(&merged)?;
    if arguments.output.quiet {
        print_failure(&merged);
    }
    Ok(exit_status(merged.verdict))
}

/// Refuses a run of which a rank is missing or there twice; with `partial`, prints a warning.
fn check_completeness(reports: &[(String, Report)], partial: bool) -> Result<(), String> {
    match load::report::check_ranks(reports).map_err(|error| format!("cannot merge {error}"))? {
        Some(gaps) if partial => print_error(&gaps),
        Some(gaps) => return Err(format!("cannot merge a part of a run: {gaps}; --partial merges what is there")),
        None => {}
    }
    Ok(())
}
