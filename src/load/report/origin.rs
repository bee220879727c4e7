//! How a report was made: the machine, the command line, and the options that are not in the settings.

use serde::{Deserialize, Serialize};

use crate::host;
use crate::load::config::{Close, Config};

/// How a report was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// Name of the machine.
    pub host: Option<String>,
    /// Release of its kernel.
    pub kernel: Option<String>,
    /// The command line of the process that sends the load, also if that is your own program: it may have secrets.
    pub command: Vec<String>,
    /// The options that [`Settings`](super::Settings) does not have.
    pub options: Options,
}

/// The options of a run that [`Settings`](super::Settings) does not have. Times are in seconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Options {
    /// Connections opened per second; `None` has no limit.
    pub connect_rate: Option<f64>,
    /// Most connections that are being opened at a time.
    pub max_connecting: u32,
    /// Time in which a connection must be open.
    pub connect_timeout: f64,
    /// Time in which a reply must come.
    pub timeout: f64,
    /// Length of the measured window.
    pub duration: f64,
    /// Whether a lost connection is opened again.
    #[serde(default)]
    pub reconnect: bool,
    /// Time before the measured window in which messages are sent and not counted.
    pub warmup: f64,
    /// `fin` or `rst`.
    pub close: String,
    /// `SO_RCVBUF` of each connection, if it was set.
    pub recv_buffer: Option<u64>,
    /// `SO_SNDBUF` of each connection, if it was set.
    pub send_buffer: Option<u64>,
    /// Whether Nagle's algorithm is on: no `TCP_NODELAY`.
    pub nagle: bool,
}

impl Origin {
    pub(in crate::load) fn of(config: &Config) -> Self {
        Self {
            host: host::name(),
            kernel: host::kernel(),
            command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            options: Options {
                connect_rate: config.connect_rate.map(|rate| config.share_of_rate(rate)),
                max_connecting: config.max_connecting,
                connect_timeout: config.connect_timeout.as_secs_f64(),
                timeout: config.timeout.as_secs_f64(),
                duration: config.window().as_secs_f64(),
                reconnect: config.reconnect,
                warmup: config.warmup.as_secs_f64(),
                close: match config.close {
                    Close::Fin => "fin",
                    Close::Rst => "rst",
                }
                .to_owned(),
                recv_buffer: config.recv_buffer.map(|bytes| bytes as u64),
                send_buffer: config.send_buffer.map(|bytes| bytes as u64),
                nagle: !config.nodelay,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket_address::AnyAddress;

    #[test]
    fn the_options_of_a_report_are_those_of_the_run() {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        let options = Origin::of(&config).options;
        assert_eq!((&options.close[..], options.nagle, options.reconnect), ("fin", false, false));
        (config.close, config.nodelay, config.reconnect) = (Close::Rst, false, true);
        let options = Origin::of(&config).options;
        assert_eq!((&options.close[..], options.nagle, options.reconnect), ("rst", true, true));
    }
}
