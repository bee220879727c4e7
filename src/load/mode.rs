//! What the connections of a run do in each mode.

mod churn;
mod echo;
mod hold;
mod workload;

use self::churn::ChurnMode;
use self::echo::EchoMode;
use self::hold::HoldMode;
pub(super) use self::workload::{Reaction, Status, Traffic, Workload};
use super::config::Config;
use super::report::Mode;

/// Returns the decisions of the configured mode.
pub(super) fn new_workload(config: &Config) -> Box<dyn Workload> {
    match config.mode {
        Mode::Echo => Box::new(EchoMode::new(config)),
        Mode::Hold => Box::new(HoldMode::new(config)),
        Mode::Churn => Box::new(ChurnMode::new(config)),
    }
}
