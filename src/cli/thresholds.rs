//! Conditions that are wrong before a run: their metric cannot have a value, or they say the opposite of what was meant.

use ecoloop::load::Threshold;

pub(super) const HOLD: &str = "--mode hold";
/// Why lateness needs --rate.
pub(super) const NO_SCHEDULE: &str = ": a closed loop has no schedule";

/// Returns a usage error of the first of the conditions of `option` whose metric has no value with the options that are `given`.
pub(super) fn conflict(option: &str, conditions: &[Threshold], given: &[&str]) -> Option<String> {
    conditions.iter().map(ToString::to_string).find_map(|condition| {
        let (needed, reason) = needed(&condition, given)?;
        (!given.contains(&needed)).then(|| format!("{option} {condition} needs {needed}{reason}"))
    })
}

/// Returns the option that gives the metric of a condition its value, and why it does if the name does not say so.
fn needed(condition: &str, given: &[&str]) -> Option<(&'static str, &'static str)> {
    match metric(condition) {
        "found_rate" => Some(("--find-rate", "")),
        "server_cpu" => Some(("--server-pid", "")),
        "outages" | "longest_outage" => Some(("--reconnect", "")),
        name if name.starts_with("hold_") => Some((HOLD, "")),
        "rate" if condition.ends_with('%') => Some(("--rate", ", of which its percentage is")),
        // The last messages of hold have a schedule without --rate.
        name if (name == "schedule" || name.starts_with("lateness_")) && !given.contains(&HOLD) => {
            Some(("--rate", NO_SCHEDULE))
        }
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
