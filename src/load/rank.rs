//! Which of several generators of one run this is.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ValueError;

/// Environment variables of launchers: the index, the number of ranks (`None` where the launcher sets none), and the first index.
const LAUNCHERS: [(&str, Option<&str>, u32); 7] = [
    ("JOB_COMPLETION_INDEX", None, 0),
    ("SLURM_PROCID", Some("SLURM_NTASKS"), 0),
    ("OMPI_COMM_WORLD_RANK", Some("OMPI_COMM_WORLD_SIZE"), 0),
    ("PMI_RANK", Some("PMI_SIZE"), 0),
    ("PARALLEL_SEQ", None, 1),
    ("AWS_BATCH_JOB_ARRAY_INDEX", Some("AWS_BATCH_JOB_ARRAY_SIZE"), 0),
    ("CLOUD_RUN_TASK_INDEX", Some("CLOUD_RUN_TASK_COUNT"), 0),
];

/// One of several generators that share a run.
///
/// # Examples
///
/// ```
/// use ecoloop::load::Rank;
///
/// let rank: Rank = "1/3".parse()?;
/// assert_eq!((rank.index, rank.count), (1, 3));
/// # Ok::<(), ecoloop::ValueError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// Its number, from 0.
    pub index: u32,
    /// The number of generators.
    pub count: u32,
}

impl Rank {
    /// The only generator of a run.
    pub(super) const ALONE: Self = Self { index: 0, count: 1 };

    /// Returns the rank that a launcher has set in the environment, which `variable` reads: the first one whose index and count are
    /// both there. `ranks` is the count for launchers that set none.
    ///
    /// # Errors
    ///
    /// - No launcher has set both, the values are not a rank, or `ranks` differs from the launcher's count.
    ///
    /// # Examples
    ///
    /// ```
    /// use ecoloop::load::Rank;
    ///
    /// let slurm = |name: &str| match name {
    ///     "SLURM_PROCID" => Some("2".to_owned()),
    ///     "SLURM_NTASKS" => Some("4".to_owned()),
    ///     _ => None,
    /// };
    /// assert_eq!(Rank::from_environment(slurm, None)?, Rank { index: 2, count: 4 });
    /// # Ok::<(), ecoloop::ValueError>(())
    /// ```
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>, ranks: Option<u32>) -> Result<Self, ValueError> {
        let number = |name: &str, text: &str| {
            text.parse::<u32>().map_err(|_| format!("{name} is {text:?}, expected a whole number"))
        };
        let mut halves = Vec::new();
        for (index_name, count_name, first) in LAUNCHERS {
            let index = variable(index_name);
            let (count, count_name) = match count_name {
                Some(name) => (variable(name).map(|text| number(name, &text)).transpose()?, name),
                None => (ranks, "--ranks"),
            };
            match (index, count) {
                (Some(index), Some(count)) => {
                    if let Some(ranks) = ranks.filter(|&ranks| ranks != count) {
                        return Err(format!("--ranks is {ranks}, and {count_name} is {count}").into());
                    }
                    let index = number(index_name, &index)?;
                    return index.checked_sub(first).and_then(|index| Self { index, count }.checked()).ok_or_else(
                        || {
                            format!("{index_name} is {index} and {count_name} is {count}: not one of these ranks")
                                .into()
                        },
                    );
                }
                (Some(_), None) => halves.push(format!("{index_name} is set, and {count_name} is not")),
                (None, Some(_)) if count_name != "--ranks" => {
                    halves.push(format!("{count_name} is set, and {index_name} is not"));
                }
                (None, _) => {}
            }
        }
        let names: Vec<_> = LAUNCHERS
            .map(|(index, count, _)| format!("{index} with {}", count.unwrap_or("--ranks")))
            .into_iter()
            .collect();
        let found = if halves.is_empty() { "none is set".to_owned() } else { halves.join("; ") };
        Err(format!("the environment has no rank: {found}; expected one of {}", names.join(", ")).into())
    }

    /// Returns `self` if it is one of its count.
    pub(super) fn checked(self) -> Option<Self> {
        (self.index < self.count).then_some(self)
    }

    /// Returns the number, among the events of all ranks, of this rank's event `event`.
    pub(super) fn nth(self, event: u64) -> u64 {
        event * u64::from(self.count) + u64::from(self.index)
    }

    /// Returns this rank's part of `total`. The low ranks have the remainder.
    pub(super) fn share(self, total: u32) -> u32 {
        total / self.count + u32::from(self.index < total % self.count)
    }
}

impl FromStr for Rank {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = |text: &str| text.parse().ok();
        let rank = text
            .split_once('/')
            .and_then(|(index, count)| Self { index: number(index)?, count: number(count)? }.checked());
        rank.ok_or_else(|| "expected R/N with R from 0 to N - 1, such as 0/3, or auto".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(set: &[(&str, &str)], ranks: Option<u32>) -> Result<Rank, ValueError> {
        let variable = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Rank::from_environment(variable, ranks)
    }

    #[test]
    fn shares_add_up_and_the_low_ranks_have_the_remainder() {
        let shares = |total| [0, 1, 2].map(|index| Rank { index, count: 3 }.share(total));
        assert_eq!((shares(9), shares(10), shares(11), shares(2)), ([3; 3], [4, 3, 3], [4, 4, 3], [1, 1, 0]));
    }

    #[test]
    fn each_launcher_is_known() {
        for (set, ranks, index) in [
            (&[("JOB_COMPLETION_INDEX", "2")][..], Some(3), 2),
            (&[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "3")], None, 1),
            (&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")], None, 1),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "3")], Some(3), 0),
            (&[("PARALLEL_SEQ", "1")], Some(3), 0),
            (&[("AWS_BATCH_JOB_ARRAY_INDEX", "2"), ("AWS_BATCH_JOB_ARRAY_SIZE", "3")], None, 2),
            (&[("CLOUD_RUN_TASK_INDEX", "0"), ("CLOUD_RUN_TASK_COUNT", "3")], None, 0),
        ] {
            assert_eq!(detect(set, ranks), Ok(Rank { index, count: 3 }), "{set:?}");
        }
    }

    #[test]
    fn the_first_complete_pair_counts() {
        let set = [("JOB_COMPLETION_INDEX", "5"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "3"), ("PMI_RANK", "0")];
        assert_eq!(detect(&set, None), Ok(Rank { index: 1, count: 3 }));
    }

    #[test]
    fn what_is_no_rank_is_refused_by_name() {
        for (set, ranks, reason) in [
            (&[][..], None, "none is set; expected one of JOB_COMPLETION_INDEX with --ranks, SLURM_PROCID with"),
            (&[], Some(3), "none is set"),
            (&[("SLURM_PROCID", "1")], None, "SLURM_PROCID is set, and SLURM_NTASKS is not"),
            (&[("PMI_SIZE", "1")], None, "PMI_SIZE is set, and PMI_RANK is not"),
            (&[("PARALLEL_SEQ", "1")], None, "PARALLEL_SEQ is set, and --ranks is not"),
            (&[("PARALLEL_SEQ", "0")], Some(3), "PARALLEL_SEQ is 0 and --ranks is 3"),
            (&[("PMI_RANK", "3"), ("PMI_SIZE", "3")], None, "PMI_RANK is 3 and PMI_SIZE is 3"),
            (&[("PMI_RANK", "-1"), ("PMI_SIZE", "3")], None, "PMI_RANK is \"-1\""),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "3")], Some(4), "--ranks is 4, and PMI_SIZE is 3"),
        ] {
            let error = detect(set, ranks).map_err(|error| error.to_string()).err().unwrap_or_default();
            assert!(error.contains(reason), "{error}");
        }
    }
}
