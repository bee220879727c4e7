//! Conditions that are wrong before a run: their metric needs an option, or they say the opposite of what was meant.

use ecoloop::load::Threshold;

/// Returns a usage error of the first of the conditions of `option` that needs an option which is not `given`.
pub(super) fn conflict(option: &str, conditions: &[Threshold], given: &[&str]) -> Option<String> {
    conditions.iter().map(ToString::to_string).find_map(|condition| {
        let needed = needed(&condition).filter(|needed| !given.contains(needed))?;
        Some(format!("{option} {condition} needs {needed}"))
    })
}

/// Returns the option without which nothing measures the metric of a condition. A metric of the mode or of the loop needs none, so that
/// one set of conditions serves several kinds of runs: where it has no value, it fails.
fn needed(condition: &str) -> Option<&'static str> {
    match metric(condition) {
        "found_rate" => Some("--find-rate"),
        "server_cpu" => Some("--server-pid"),
        "outages" | "longest_outage" => Some("--reconnect"),
        _ => None,
    }
}

/// Returns the goal of a search that was meant by a condition in the sense of `--fail-if`.
pub(super) fn meant_goal(condition: &Threshold) -> Option<String> {
    let condition = condition.to_string();
    let at = condition.find(['<', '>'])?;
    let value = condition[at + 1..].trim_start_matches('=');
    let is_above = condition[at..].starts_with('>');
    let includes_value = condition[at + 1..].starts_with('=');
    let is_better_higher = ["rate", "connections"].contains(&metric(&condition));
    if is_above == is_better_higher {
        return None;
    }
    // No count is below 0.
    let is_count = value.trim_end().ends_with(|last: char| last.is_ascii_digit() || "%kM".contains(last));
    let sign = match (is_above, is_count && !includes_value) {
        (true, false) => "<",
        (true, true) => "<=",
        (false, false) => ">",
        (false, true) => ">=",
    };
    Some(format!("{}{sign}{}", condition[..at].trim_end(), value.trim_start()))
}

/// Returns the metric of a condition, without the number of a stage.
pub(super) fn metric(condition: &str) -> &str {
    condition.split(['<', '>', '[']).next().unwrap_or_default().trim_end()
}
