//! The options of several generators that share a run.

use std::env;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use clap::Args;
use ecoloop::load::Rank;

use super::usage_error;
use super::values::{Address, count, timeout};

/// The heading of their options in the help.
pub(super) const GENERATORS: &str = "Several generators";

/// Time for which ranks wait for each other without `--barrier-timeout`.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(60);

// The subcommand that flattens these arguments has a group of this name already.
#[derive(Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Processes that share the run; auto: one per core [default: 1]
    #[arg(short, long, help_heading = GENERATORS, value_name = "COUNT|auto")]
    jobs: Option<JobCount>,

    /// Set by --jobs for the processes that it starts
    #[arg(long, hide = true)]
    is_job: bool,

    /// This is generator R (from 0) of N; auto: as the launcher says
    #[arg(long, help_heading = GENERATORS, value_name = "R/N|auto")]
    rank: Option<RankName>,

    /// Number of generators, for launchers that do not set it
    #[arg(long, help_heading = GENERATORS, value_name = "COUNT", requires = "rank", value_parser = count)]
    ranks: Option<u32>,

    /// Where rank 0 listens; all start together, and it reports for all
    #[arg(long, help_heading = GENERATORS, value_name = "ADDR", requires = "rank")]
    barrier: Option<Address>,

    /// Time for which ranks or jobs wait for each other [default: 60s]
    #[arg(long, help_heading = GENERATORS, value_name = "DURATION", value_parser = barrier_timeout)]
    barrier_timeout: Option<Duration>,
}

/// Parses the time for which ranks wait for each other. A quarter of it is an interval of keep-alive, at most 32767 s.
fn barrier_timeout(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(24 * 3600);
    timeout(text).and_then(|time| if time <= MAX { Ok(time) } else { Err("it must be at most 24h".to_owned()) })
}

/// Where the ranks of a run meet, and how long they wait for each other.
pub(super) struct MeetingPoint {
    pub(super) address: Address,
    pub(super) timeout: Duration,
    /// The ranks are processes of one machine, which rank 0 starts.
    pub(super) has_jobs: bool,
}

#[derive(Clone, Copy)]
enum JobCount {
    Auto,
    Number(u32),
}

impl FromStr for JobCount {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            Ok(Self::Auto)
        } else {
            count(text).map(Self::Number).map_err(|_| "expected a number of at least 1, or auto")
        }
    }
}

#[derive(Clone, Copy)]
enum RankName {
    Auto,
    Rank(Rank),
}

impl FromStr for RankName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { Ok(Self::Rank(text.parse()?)) }
    }
}

impl Arguments {
    /// Returns a usage error that the parser cannot see: options that exclude each other.
    pub(super) fn conflict(&self) -> Option<&'static str> {
        if self.starts_jobs() && (self.rank.is_some() || self.barrier.is_some()) {
            return Some("--jobs cannot be combined with --rank and --barrier: it starts ranks of its own");
        }
        if self.barrier_timeout.is_some() && self.barrier.is_none() && !self.starts_jobs() {
            return Some("--barrier-timeout needs --barrier or --jobs: without them no generator waits for another");
        }
        let is_chosen_by_system = self.barrier.as_ref().is_some_and(|address| address.to_string().ends_with(":0"));
        is_chosen_by_system.then_some("--barrier needs a port above 0, which every rank knows before the run")
    }

    /// Returns the rank of this generator in a run of `connections`. A usage error ends the process.
    pub(super) fn rank(&self, connections: u32) -> Option<Rank> {
        if let Some(jobs) = self.jobs.filter(|_| !self.is_job) {
            let count = match jobs {
                // Each has at least one connection.
                JobCount::Auto => cores().min(connections),
                JobCount::Number(count) if count > connections => usage_error(
                    "load",
                    format!("--jobs {count} needs --connections of at least {count}: each process has one or more"),
                ),
                JobCount::Number(count) => count,
            };
            return (count > 1).then_some(Rank { index: 0, count });
        }
        match self.rank? {
            RankName::Auto => {
                let variable = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
                let rank = Rank::from_environment(variable, self.ranks);
                Some(rank.unwrap_or_else(|reason| usage_error("load", format!("--rank auto: {reason}"))))
            }
            RankName::Rank(_) if self.ranks.is_some() => {
                usage_error("load", "--ranks is for --rank auto: --rank R/N has the number")
            }
            RankName::Rank(rank) => Some(rank),
        }
    }

    /// Returns the barrier at which the ranks wait for each other.
    pub(super) fn barrier(&self) -> Option<MeetingPoint> {
        let has_jobs = self.jobs.is_some();
        let loopback = Address::Socket((Ipv4Addr::LOCALHOST, 0).into());
        let address = if self.starts_jobs() { loopback } else { self.barrier.clone()? };
        let timeout = self.barrier_timeout.unwrap_or(BARRIER_TIMEOUT);
        Some(MeetingPoint { address, timeout, has_jobs })
    }

    pub(super) fn has_rank(&self) -> bool {
        self.rank.is_some()
    }

    /// Returns whether another process has started this one.
    pub(super) fn is_job(&self) -> bool {
        self.is_job
    }

    /// Returns whether this process starts others.
    pub(super) fn starts_jobs(&self) -> bool {
        self.jobs.is_some() && !self.is_job
    }
}

/// Returns how many cores this process may use.
fn cores() -> u32 {
    thread::available_parallelism().ok().and_then(|cores| u32::try_from(cores.get()).ok()).unwrap_or(1)
}
