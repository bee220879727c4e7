//! `ecoloop compare --live`: measures windows of two servers in turn.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use ecoloop::load::compare::RelativeThreshold;
use ecoloop::load::report::Ended;
use ecoloop::load::{Config, Interrupt, ProgressCell, Report, Session};

use crate::cli::advice::{advise, warn_of_limits};
use crate::cli::load::{handle_signals, with_hint};
use crate::cli::load_options::LoadOptions;
use crate::cli::progress::ProgressDisplay;
use crate::cli::values::{Endpoint, count};
use crate::cli::{descriptors, print_error, table, usage_error};

/// The option on which the options of a load depend.
pub(super) const LIVE: &str = "live";

const HEADING: &str = "Live";
const COMPARE: &str = "compare";
/// Length of a window without --duration.
const WINDOW: Duration = Duration::from_secs(1);

// The subcommand that flattens these arguments has a group of this name already.
#[derive(Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Measure two servers now, with options of ecoloop load too
    #[arg(long, help_heading = HEADING)]
    live: bool,

    /// Windows of each server
    #[arg(long, help_heading = HEADING, value_name = "COUNT", default_value = "20", value_parser = count, requires = LIVE)]
    windows: u32,

    /// Process IDs of both servers on this machine: compare their CPU
    #[arg(long = "server-pids", help_heading = HEADING, value_name = "PID", num_args = 2, requires = LIVE)]
    server_pids: Vec<u32>,

    #[command(flatten)]
    load: LoadOptions,
}

/// The windows of both servers, each with its name for messages.
pub(super) struct Windows {
    pub(super) sides: [Vec<(String, Report)>; 2],
    pub(super) is_interrupted: bool,
}

impl Arguments {
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Measures the windows of both addresses.
    pub(super) fn measure(
        &self,
        addresses: [&String; 2],
        thresholds: &[RelativeThreshold],
        quiet: bool,
    ) -> Result<Windows, Box<dyn Error>> {
        if !self.load.is_echo() {
            usage_error(COMPARE, "--live needs --mode echo: in the other modes no connection outlasts a window");
        }
        if self.load.rate_range().is_some() {
            usage_error(COMPARE, "--live compares at one --rate, not in a range");
        }
        if let Some(conflict) = self.load.conflict() {
            usage_error(COMPARE, conflict);
        }
        for condition in thresholds {
            if condition.metric() == "server_cpu" && self.server_pids.is_empty() {
                usage_error(COMPARE, format!("--fail-if {condition} needs --server-pids"));
            }
            if condition.metric().starts_with("connect_") {
                usage_error(
                    COMPARE,
                    format!("--fail-if {condition} needs reports of several runs: --live connects once"),
                );
            }
        }
        let interrupt = Interrupt::default();
        let (requests, _requested) = mpsc::sync_channel(1);
        let configs = [self.config(addresses[0], 0)?, self.config(addresses[1], 1)?];
        handle_signals(Arc::new(AtomicBool::new(true)), interrupt.clone(), requests)?;
        let descriptor_limit = descriptors::raise_limit(print_error);
        // This process holds the connections to both.
        let mut both = configs[0].clone();
        both.connections = both.connections.saturating_mul(2);
        both.targets.extend_from_slice(&configs[1].targets);
        warn_of_limits(&both, 1, descriptor_limit);
        let progress = ProgressCell::default();
        let display = ProgressDisplay::start(progress.clone(), None, !quiet)?;
        let windows = self.alternate(configs, addresses, &interrupt, &progress);
        display.finish();
        windows
    }

    fn config(&self, address: &str, side: usize) -> Result<Config, Box<dyn Error>> {
        let address: Endpoint = address.parse().unwrap_or_else(|reason: String| {
            usage_error(COMPARE, format!("--live cannot measure '{address}': {reason}"))
        });
        let mut config = self.load.config(COMPARE, &[address]);
        if config.unresolved > 0 {
            return Err("cannot compare with a server without an address".into());
        }
        if self.load.duration.is_none() {
            config.duration = WINDOW;
        }
        config.server_pid = self.server_pids.get(side).copied();
        config.validate().unwrap_or_else(|error| usage_error(COMPARE, error));
        Ok(config)
    }

    /// Connects to both servers, and measures their windows in turn, in the order old, new, new, old: a machine that becomes slower
    /// does so for both.
    fn alternate(
        &self,
        configs: [Config; 2],
        addresses: [&String; 2],
        interrupt: &Interrupt,
        progress: &ProgressCell,
    ) -> Result<Windows, Box<dyn Error>> {
        let connect = |config| Session::connect(config, interrupt, progress).map_err(with_hint);
        let [old, new] = configs;
        let mut sessions = [connect(old)?, connect(new)?];
        let mut sides = [Vec::new(), Vec::new()];
        for round in 0..self.windows {
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let report = sessions[side].measure()?;
                if report.ended == Ended::Interrupted {
                    return Ok(Windows { sides, is_interrupted: true });
                }
                if report.connections.held == 0 {
                    advise(&report);
                    let cause = report.errors.first().map(table::error).unwrap_or_default();
                    return Err(format!("no connection to {} is left: {cause}", addresses[side]).into());
                }
                sides[side].push((addresses[side].clone(), report));
            }
        }
        for (session, address) in sessions.into_iter().zip(addresses) {
            let rest = session.close()?;
            for what in rest.errors.iter().map(table::error).chain(rest.verify.findings.iter().map(table::finding)) {
                print_error(&format!("{address}: after the last window: {what}"));
            }
        }
        Ok(Windows { sides, is_interrupted: false })
    }
}
