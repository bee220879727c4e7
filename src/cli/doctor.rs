//! `ecoloop doctor`: what limits the number of connections on this machine.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use ecoloop::address::ScopedIp;
use ecoloop::host::{Capacity, Limit, Plan, Purpose, is_local, limits};
use ecoloop::load::{SourceRange, count_pairs};
use ecoloop::transport::AnyAddress;

use super::format::{self, plural};
use super::load_options::CONNECTIONS;
use super::values::{Endpoint, TargetArguments, count};
use super::{output, usage_error};

const NAMES: &str = "Names";

const HELP: &str = "\
ADDR    IP:PORT, [IPv6]:PORT, NAME:PORT, or :PORT for 127.0.0.1; unix:PATH, unix:@NAME
COUNT   100, 10k, 1.5M
SOURCE  IP, IP-IP or IPv4/LEN

Exit status:
  0  no limit prevents the connections
  1  a limit prevents them; or runtime error, such as a name that does not resolve
  2  usage error

Examples:
  ecoloop doctor -c 100k --for serve
      can this machine serve 100,000 connections?
  ecoloop doctor -c 100k --for load --source 10.0.0.10-10.0.0.13 10.0.0.1:5000
      can it open as many to one server from four addresses?";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Servers that a load would connect to
    #[arg(value_name = "ADDR")]
    targets: Vec<Endpoint>,

    #[command(flatten, next_help_heading = NAMES)]
    target: TargetArguments,

    /// Number of connections
    #[arg(short, long, help_heading = CONNECTIONS, value_name = "COUNT", value_parser = count)]
    connections: u32,

    /// serve or load [default: load if every ADDR is remote, else both]
    #[arg(long = "for", help_heading = CONNECTIONS, value_name = "PURPOSE", hide_possible_values = true)]
    purpose: Option<For>,

    /// Source addresses of a load (repeatable) [default: set by the system]
    #[arg(long = "source", help_heading = CONNECTIONS, value_name = "SOURCE")]
    sources: Vec<SourceRange>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum For {
    Serve,
    Load,
}

/// Prints every limit, and how to raise each one that prevents N connections: then the exit status is 1.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let plan = arguments.plan()?;
    let limits = limits(&plan);
    let mut text = Vec::new();
    print(&mut text, &plan, &limits)?;
    output::print(&text)?;
    Ok(if limits.iter().any(|limit| limit.insufficient) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Arguments {
    fn plan(&self) -> io::Result<Plan> {
        let mut targets: Vec<Vec<AnyAddress>> = Vec::new();
        for address in &self.targets {
            match self.target.resolve(address) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => usage_error("doctor", error),
                resolved => targets.extend(resolved?),
            }
        }
        let sources = SourceRange::expand(&self.sources).unwrap_or_else(|reason| usage_error("doctor", &reason));
        let pairs = if targets.is_empty() {
            Ok(u32::try_from(sources.len()).unwrap_or(u32::MAX).max(1))
        } else {
            count_pairs(&sources, &targets)
        };
        let pairs = pairs.unwrap_or_else(|reason| usage_error("doctor", &reason));
        let is_here = |target: &AnyAddress| target.tcp().is_none_or(is_local);
        let is_remote = !targets.is_empty() && !targets.iter().flatten().any(is_here);
        let purpose = match self.purpose {
            Some(For::Serve) => Purpose::Serve,
            Some(For::Load) => Purpose::Load,
            // The server is on another machine.
            None if is_remote => Purpose::Load,
            None => Purpose::Both,
        };
        let mut plan = Plan::new(self.connections, purpose);
        plan.sources = sources.into_iter().map(ScopedIp::ip).collect();
        plan.targets = targets.concat();
        plan.pairs = pairs;
        Ok(plan)
    }
}

fn print(out: &mut impl Write, plan: &Plan, limits: &[Limit]) -> io::Result<()> {
    let mut rows = vec![["LIMIT", "HERE", "CONNECTIONS", ""].map(str::to_owned)];
    for limit in limits {
        let here = limit.value.clone().unwrap_or_else(|| "cannot be read".to_owned());
        let verdict = if limit.insufficient { "too few" } else { "" };
        rows.push([limit.name.to_owned(), here, limit.capacity.to_string(), verdict.to_owned()]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name, here, allows) = (width(0), width(1), width(2));
    for [limit, value, count, verdict] in &rows {
        let row = format!("{limit:name$}  {value:here$}  {count:>allows$}  {verdict}");
        writeln!(out, "{}", row.trim_end())?;
    }
    print_verdict(out, plan, limits)
}

fn print_verdict(out: &mut impl Write, plan: &Plan, limits: &[Limit]) -> io::Result<()> {
    let insufficient: Vec<_> = limits.iter().filter(|limit| limit.insufficient).collect();
    let connections = plural(format::count(plan.connections.into()), "connection", "connections");
    let purpose = match plan.purpose {
        Purpose::Serve => "for a server",
        Purpose::Load => "for a load",
        Purpose::Both => "for a server and its load on this machine",
    };
    if insufficient.is_empty() {
        return writeln!(out, "\nNo limit that could be read prevents {connections} {purpose}.");
    }
    let most = insufficient.iter().filter_map(|limit| match limit.capacity {
        Capacity::Connections(count) => Some(count),
        _ => None,
    });
    match most.min() {
        Some(most) => writeln!(out, "\n{connections} {purpose} are too many: the limit is {}.", format::count(most))?,
        None => writeln!(out, "\n{connections} {purpose} are too many to arrive at once.")?,
    }
    for limit in &insufficient {
        writeln!(out, "  {limit}")?;
    }
    writeln!(out, "\nCommands that raise the limits:")?;
    for limit in insufficient {
        for command in &limit.commands {
            writeln!(out, "  {command}")?;
        }
        if let Some(advice) = &limit.advice {
            let or = if limit.commands.is_empty() { "" } else { "or " };
            writeln!(out, "  # {}: {or}{advice}", limit.name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn printed(connections: u32) -> (String, Vec<Limit>) {
        let plan = Plan::new(connections, Purpose::Both);
        let limits = limits(&plan);
        let mut out = Vec::new();
        print(&mut out, &plan, &limits).unwrap();
        (String::from_utf8(out).unwrap(), limits)
    }

    #[test]
    fn columns_are_aligned() {
        let (text, limits) = printed(1);
        let table: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(table.len(), limits.len() + 1);
        let (here, connections) = (table[0].find("HERE").unwrap(), table[0].len());
        for (row, limit) in table[1..].iter().zip(&limits) {
            assert!(row.starts_with(limit.name), "{row}");
            assert!(row[..here].ends_with("  ") && !row[here..].starts_with(' '), "{row}");
            assert!(row[..connections].ends_with(&format!("  {}", limit.capacity)), "{row}");
        }
    }

    #[test]
    fn an_insufficient_limit_is_printed_with_its_remedy() {
        // More than the descriptors that any Linux gives a process.
        let (text, limits) = printed(i32::MAX.unsigned_abs());
        let stops: Vec<_> = limits.iter().filter(|limit| limit.insufficient).collect();
        assert!(!stops.is_empty());
        let (limits_text, remedies) = text.split_once("Commands that raise the limits:\n").unwrap();
        for limit in stops {
            assert!(limits_text.contains(&format!("\n  {limit}\n")), "{text}");
            assert!(limit.commands.iter().all(|command| remedies.contains(&format!("  {command}\n"))), "{text}");
            assert!(limit.advice.iter().all(|advice| remedies.contains(advice)), "{text}");
        }
        let (text, _) = printed(1);
        assert!(text.ends_with("prevents 1 connection for a server and its load on this machine.\n"), "{text}");
    }
}
