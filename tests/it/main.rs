//! Integration tests: one crate, one file per theme.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod accepting;
mod admission;
#[cfg(feature = "load")]
mod barrier;
mod capture;
#[cfg(feature = "load")]
mod check;
mod clients;
mod command_line;
#[cfg(feature = "load")]
mod compare;
mod course;
mod documents;
mod draining;
mod echo;
mod endings;
mod examples;
mod fairness;
mod faults;
#[cfg(feature = "load")]
mod few_ports;
mod injected;
mod library;
mod limits;
#[cfg(feature = "load")]
mod load;
mod logging;
mod manual;
#[cfg(feature = "load")]
mod merge;
mod metrics;
mod narration;
mod observers;
mod panics;
#[cfg(feature = "load")]
mod proxies;
mod proxy_protocol;
mod public_api;
#[cfg(feature = "load")]
mod ranks;
mod reactor;
mod reliability;
mod scale;
mod signals;
#[cfg(feature = "load")]
mod streams;
mod support;
mod systemd;
mod tls;
mod trace;
mod transports;
mod unix;
