//! Conditions whose metric needs an option.

use ecoloop::load::Threshold;

/// Returns a usage error of the first of the conditions of `option` that needs an option which is not `given`.
pub(super) fn conflict(option: &str, conditions: &[Threshold], given: &[&str]) -> Option<String> {
    conditions.iter().find_map(|condition| {
        let needed = needed(condition).filter(|needed| !given.contains(needed))?;
        Some(format!("{option} {condition} needs {needed}"))
    })
}

/// Returns the option without which nothing measures the metric of a condition. A metric of the mode or of the loop needs none, so that
/// one set of conditions serves several kinds of runs: where it has no value, it fails.
fn needed(condition: &Threshold) -> Option<&'static str> {
    match condition.metric() {
        "found_rate" => Some("--find-rate"),
        "server_cpu" => Some("--server-pid"),
        "outages" | "longest_outage" => Some("--reconnect"),
        _ => None,
    }
}
