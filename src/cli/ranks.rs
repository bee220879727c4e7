//! The options of several generators that share a run.

use std::env;
use std::str::FromStr;

use clap::Args;
use ecoloop::load::Rank;

use super::usage_error;
use super::values::count;

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

    pub(super) fn has_rank(&self) -> bool {
        self.rank.is_some()
    }
}
