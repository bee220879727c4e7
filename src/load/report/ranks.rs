//! Whether there is a report of each rank.

use std::collections::BTreeMap;
use std::io;

use super::document::Report;

/// Returns which ranks of a run are missing or there twice, as a sentence, or `None` if there is one report of each, or of a generator
/// without rank. Each report has the name of its file.
///
/// # Errors
///
/// - `InvalidInput`: the reports are not of one run: only some have a rank, or the numbers of ranks differ. The message names the file.
pub fn check_ranks(runs: &[(String, Report)]) -> io::Result<Option<String>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let Some((first_name, first)) = runs.first() else { return Ok(None) };
    let mut files: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (name, run) in runs {
        match (run.rank, first.rank) {
            (None, None) => {}
            (Some(rank), Some(of_first)) if rank.count == of_first.count => {
                if rank.index >= rank.count {
                    return Err(invalid(format!("{name}: rank {} of {} is impossible", rank.index, rank.count)));
                }
                files.entry(rank.index).or_default().push(name);
            }
            (Some(rank), Some(of_first)) => {
                let counts = format!("{} ranks, and {} in {first_name}", rank.count, of_first.count);
                return Err(invalid(format!("{name}: it is of a run of {counts}")));
            }
            (Some(_), None) => return Err(invalid(format!("{name}: it is of a rank, and {first_name} is not"))),
            (None, Some(_)) => return Err(invalid(format!("{name}: it is of no rank, and {first_name} is"))),
        }
    }
    Ok(first.rank.and_then(|rank| gaps(&files, rank.count)))
}

/// Returns the ranks of `count` that are missing in `files`, and those that are in several.
fn gaps(files: &BTreeMap<u32, Vec<&str>>, count: u32) -> Option<String> {
    let mut missing = Vec::new();
    let mut next = 0;
    for &rank in files.keys().chain([&count]) {
        match rank - next {
            0 => {}
            1 => missing.push(next.to_string()),
            _ => missing.push(format!("{next}-{}", rank - 1)),
        }
        next = rank.saturating_add(1);
    }
    let missing = match &missing[..] {
        [] => None,
        [only] if !only.contains('-') => Some(format!("rank {only} of {count} is missing")),
        several => Some(format!("ranks {} of {count} are missing", several.join(", "))),
    };
    let repeated = files.iter().filter(|(_, files)| files.len() > 1);
    let repeated = repeated
        .map(|(rank, files)| format!("rank {rank} of {count} is there {} times ({})", files.len(), files.join(", ")));
    let all: Vec<_> = missing.into_iter().chain(repeated).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_repeated_ranks_are_named() {
        let sentence = |present: &[(u32, &'static str)], count| {
            let mut files: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for &(rank, name) in present {
                files.entry(rank).or_default().push(name);
            }
            gaps(&files, count)
        };
        assert_eq!(sentence(&[(0, "a"), (1, "b")], 2), None);
        for (present, count, expected) in [
            (&[(0, "a"), (2, "b")][..], 3, "rank 1 of 3 is missing"),
            (&[(0, "a"), (3, "b")], 4, "ranks 1-2 of 4 are missing"),
            (&[(1, "a"), (4, "b")], 8, "ranks 0, 2-3, 5-7 of 8 are missing"),
            (&[(1, "a")], u32::MAX, "ranks 0, 2-4294967294 of 4294967295 are missing"),
            (&[(0, "a"), (0, "b")], 2, "rank 1 of 2 is missing; rank 0 of 2 is there 2 times (a, b)"),
        ] {
            assert_eq!(sentence(present, count).as_deref(), Some(expected));
        }
    }
}
