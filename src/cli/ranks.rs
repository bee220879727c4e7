//! The options of several generators that share a run.

use std::env;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use ecoloop::load::Rank;

use super::usage_error;
use super::values::{Address, count};

const GENERATORS: &str = "Several generators";

// The subcommand that flattens these arguments has a group of this name already.
#[derive(Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Generator R (from 0) of N, which share -c, -r, --connect-rate, --max-connecting and --source; auto: as the launcher says. {rank} in
    /// the name of a file is R
    #[arg(long, help_heading = GENERATORS, value_name = "R/N|auto")]
    rank: Option<RankName>,

    /// Number of generators, for --rank auto under launchers that do not set it
    #[arg(long, help_heading = GENERATORS, value_name = "COUNT", requires = "rank", value_parser = count)]
    ranks: Option<u32>,

    /// Address at which rank 0 listens: all ranks start together, and rank 0 alone writes the results of all
    #[arg(long, help_heading = GENERATORS, value_name = "ADDR", requires = "rank")]
    barrier: Option<Address>,

    /// Time for which ranks wait for each other at the barrier
    #[arg(long, help_heading = GENERATORS, value_name = "DURATION", default_value = "60s", requires = "barrier",
        value_parser = humantime::parse_duration)]
    barrier_timeout: Duration,
}

/// Where the ranks of a run meet, and how long they wait for each other.
pub(super) struct MeetingPoint<'a> {
    pub(super) address: &'a Address,
    pub(super) timeout: Duration,
}

#[derive(Clone, Copy)]
enum RankName {
    Auto,
    Rank(Rank),
}

impl FromStr for RankName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Rank) }
    }
}

impl Arguments {
    /// Returns the rank of this generator. A usage error ends the process.
    pub(super) fn rank(&self) -> Option<Rank> {
        match self.rank? {
            RankName::Auto => {
                let variable = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
                let rank = Rank::from_environment(variable, self.ranks);
                Some(rank.unwrap_or_else(|reason| usage_error("load", &format!("--rank auto: {reason}"))))
            }
            RankName::Rank(_) if self.ranks.is_some() => {
                usage_error("load", "--ranks is for --rank auto: --rank R/N has the number")
            }
            RankName::Rank(rank) => Some(rank),
        }
    }

    /// Returns the barrier at which the ranks wait for each other.
    pub(super) fn barrier(&self) -> Option<MeetingPoint<'_>> {
        let (address, timeout) = (self.barrier.as_ref()?, self.barrier_timeout);
        if timeout.is_zero() {
            usage_error("load", "--barrier-timeout must be above zero");
        }
        Some(MeetingPoint { address, timeout })
    }

    pub(super) fn has_rank(&self) -> bool {
        self.rank.is_some()
    }
}
