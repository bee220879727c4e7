//! The options of a load: connections, messages, time and sockets.

use std::io;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ecoloop::load::{ArrivalProcess, Close, Config, Mode, ProxyVersion, RateStage, SourceRange, count_pairs};
use ecoloop::transport::AnyAddress;

use super::advice::warn_of_unpaired;
use super::values::{Endpoint, Rates, SocketArguments, TargetArguments, count, duration, rate, sizes, timeout};
use super::{print_error, usage_error};

pub(super) const CONNECTIONS: &str = "Connections";
pub(super) const MESSAGES: &str = "Messages";
pub(super) const TIME: &str = "Time";

#[derive(Args)]
pub(super) struct LoadOptions {
    #[command(flatten, next_help_heading = CONNECTIONS)]
    target: TargetArguments,

    /// Number of connections
    #[arg(short, long, help_heading = CONNECTIONS, value_name = "COUNT", default_value = "1", value_parser = count)]
    connections: u32,

    /// What each connection does
    #[arg(long, help_heading = CONNECTIONS, value_name = "echo|hold|churn", default_value = "echo", hide_possible_values = true)]
    mode: ModeName,

    /// Source addresses, each with all its free ports (repeatable)
    #[arg(long = "source", help_heading = CONNECTIONS, value_name = "SOURCE")]
    sources: Vec<SourceRange>,

    /// Connects per second; not in churn, see -r [default: unlimited]
    #[arg(long, help_heading = CONNECTIONS, value_name = "RATE", value_parser = rate)]
    connect_rate: Option<f64>,

    /// Maximum connects in progress
    #[arg(long, help_heading = CONNECTIONS, value_name = "COUNT", default_value = "1000", value_parser = count)]
    max_connecting: u32,

    /// Timeout of a connect
    #[arg(long, help_heading = CONNECTIONS, value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    connect_timeout: Duration,

    /// Close with FIN or RST
    #[arg(long, help_heading = CONNECTIONS, value_name = "fin|rst", default_value = "fin", hide_possible_values = true)]
    close: CloseName,

    /// Begin each connection with a PROXY header
    #[arg(long, help_heading = CONNECTIONS, value_name = "v1|v2", hide_possible_values = true)]
    proxy_protocol: Option<ProxyVersionName>,

    /// Message size, or a uniform range: 64..4KiB
    #[arg(short, long, help_heading = MESSAGES, value_name = "SIZE", default_value = "64", value_parser = sizes)]
    size: (usize, Option<usize>),

    /// Maximum in flight per connection [default: 1; echo -r: any]
    #[arg(short = 'p', long, help_heading = MESSAGES, value_name = "COUNT", value_parser = count)]
    pipeline: Option<u32>,

    /// Messages per second in all, whatever the replies do
    #[arg(short, long, help_heading = MESSAGES, value_name = "RATE")]
    rate: Option<Rates>,

    /// Spacing of messages of -r
    #[arg(long, help_heading = MESSAGES, value_name = "even|poisson", default_value = "even", hide_possible_values = true)]
    arrivals: ArrivalName,

    /// Messages per connection, in echo instead of -d [churn: 1]
    #[arg(short, long, help_heading = MESSAGES, value_name = "COUNT", value_parser = count)]
    messages_per_connection: Option<u32>,

    /// Timeout of a reply, from its scheduled time
    #[arg(long, help_heading = MESSAGES, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    timeout: Duration,

    /// Seed of the payload, of sizes and of arrivals
    #[arg(long, help_heading = MESSAGES, value_name = "U64", default_value = "1")]
    seed: u64,

    /// Length of the measured window; not with stages [default: 10s]
    #[arg(short, long, help_heading = TIME, value_name = "DURATION", value_parser = timeout)]
    pub(super) duration: Option<Duration>,

    /// Traffic before the measured window
    #[arg(long, help_heading = TIME, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    warmup: Duration,

    #[command(flatten)]
    socket: SocketArguments,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeName {
    Echo,
    Hold,
    Churn,
}

#[derive(Clone, Copy, ValueEnum)]
enum ArrivalName {
    Even,
    Poisson,
}

#[derive(Clone, Copy, ValueEnum)]
enum CloseName {
    Fin,
    Rst,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProxyVersionName {
    V1,
    V2,
}

impl LoadOptions {
    pub(super) fn is_echo(&self) -> bool {
        matches!(self.mode, ModeName::Echo)
    }

    pub(super) fn is_churn(&self) -> bool {
        matches!(self.mode, ModeName::Churn)
    }

    /// Returns the range of rates of a search.
    pub(super) fn rate_range(&self) -> Option<(f64, f64)> {
        match self.rate {
            Some(Rates::Range(low, high)) => Some((low, high)),
            _ => None,
        }
    }

    fn stages(&self) -> &[RateStage] {
        if let Some(Rates::Stages(stages)) = &self.rate { stages } else { &[] }
    }

    /// Returns the option that a search does not allow, if it is given.
    pub(super) fn not_searchable(&self) -> Option<&'static str> {
        let options = [
            ("--mode", !self.is_echo()),
            ("--duration (use --window)", self.duration.is_some()),
            ("--messages-per-connection", self.messages_per_connection.is_some()),
            ("--warmup", !self.warmup.is_zero()),
        ];
        options.into_iter().find(|(_, is_given)| *is_given).map(|(name, _)| name)
    }

    /// Returns a usage error that the parser cannot see: options that exclude each other.
    pub(super) fn conflict(&self) -> Option<&'static str> {
        let in_stages = !self.stages().is_empty();
        match self.mode {
            _ if in_stages && self.duration.is_some() => {
                Some("--duration cannot be combined with stages of --rate: their lengths add up to it")
            }
            _ if in_stages && !self.warmup.is_zero() => {
                Some("--warmup cannot be combined with stages of --rate: the first stage can be the warm-up")
            }
            ModeName::Hold if in_stages => {
                Some("--rate has no stages in --mode hold: it paces the last messages, which follow the window")
            }
            ModeName::Hold if matches!(self.arrivals, ArrivalName::Poisson) => {
                Some("--arrivals has no effect in --mode hold: nothing is sent in the window")
            }
            _ if matches!(self.arrivals, ArrivalName::Poisson) && self.rate.is_none() => {
                Some("--arrivals needs --rate: in a closed loop a message is due when a reply arrives")
            }
            ModeName::Echo if in_stages && self.messages_per_connection.is_some() => Some(
                "--messages-per-connection and stages of --rate cannot be combined in --mode echo: each ends the run",
            ),
            ModeName::Echo if self.duration.is_some() && self.messages_per_connection.is_some() => {
                Some("--duration and --messages-per-connection cannot be combined in --mode echo: each ends the run")
            }
            ModeName::Hold if self.messages_per_connection.is_some() => Some(
                "--messages-per-connection has no effect in --mode hold: each connection sends a first and a last message",
            ),
            ModeName::Hold if self.pipeline.is_some() => {
                Some("--pipeline has no effect in --mode hold: each connection sends a first and a last message")
            }
            ModeName::Churn if self.connect_rate.is_some() => {
                Some("--connect-rate has no effect in --mode churn: use -r, --rate, which counts connections there")
            }
            _ => None,
        }
    }

    /// Returns a usage error of a run that reconnects connections.
    pub(super) fn reconnect_conflict(&self) -> Option<&'static str> {
        match self.mode {
            ModeName::Churn => {
                Some("--reconnect has no effect in --mode churn, which replaces each connection that has ended")
            }
            _ if self.messages_per_connection.is_some() => Some(
                "--reconnect and --messages-per-connection cannot be combined: outages are measured for a --duration",
            ),
            _ => None,
        }
    }

    /// Returns the settings of a run against `addresses`.
    ///
    /// Prints and counts each name that does not resolve: the report lists it as an error.
    pub(super) fn config(&self, subcommand: &str, addresses: &[Endpoint]) -> Config {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        for address in addresses {
            match self.target.resolve(address) {
                Ok(targets) => config.targets.extend(targets),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => usage_error(subcommand, error),
                Err(error) => {
                    print_error(&error.to_string());
                    config.unresolved += 1;
                }
            }
        }
        config.sources = SourceRange::expand(&self.sources).unwrap_or_else(|reason| usage_error(subcommand, &reason));
        if config.unresolved == 0 {
            count_pairs(&config.sources, &config.targets).unwrap_or_else(|reason| usage_error(subcommand, &reason));
            warn_of_unpaired(&config);
        }
        if self.socket.nagle && config.targets.iter().flatten().any(AnyAddress::is_unix) {
            usage_error(subcommand, "--nagle cannot be used with a Unix socket: TCP alone has Nagle's algorithm");
        }
        config.connections = self.connections;
        config.mode = match self.mode {
            ModeName::Echo => Mode::Echo,
            ModeName::Hold => Mode::Hold,
            ModeName::Churn => Mode::Churn,
        };
        config.connect_rate = self.connect_rate;
        config.max_connecting = self.max_connecting;
        config.connect_timeout = self.connect_timeout;
        config.timeout = self.timeout;
        (config.size, config.size_max) = self.size;
        config.pipeline = self.pipeline;
        match self.rate {
            Some(Rates::One(rate) | Rates::Range(rate, _)) => config.rate = Some(rate),
            Some(Rates::Stages(ref stages)) => config.stages.clone_from(stages),
            None => {}
        }
        config.arrivals = match self.arrivals {
            ArrivalName::Even => ArrivalProcess::Even,
            ArrivalName::Poisson => ArrivalProcess::Poisson,
        };
        config.duration = self.duration.unwrap_or(config.duration);
        config.messages_per_connection = self.messages_per_connection.map(u64::from);
        config.warmup = self.warmup;
        config.close = match self.close {
            CloseName::Fin => Close::Fin,
            CloseName::Rst => Close::Rst,
        };
        config.proxy_protocol = self.proxy_protocol.map(|version| match version {
            ProxyVersionName::V1 => ProxyVersion::V1,
            ProxyVersionName::V2 => ProxyVersion::V2,
        });
        config.seed = self.seed;
        config.recv_buffer = self.socket.recv_buffer;
        config.send_buffer = self.socket.send_buffer;
        config.nodelay = !self.socket.nagle;
        config
    }
}
