//! A TCP echo server, a load generator that tests echo servers, a grader of them, and the event loop of all. Each runs on one thread.
//!
//! The server returns every byte that a client sends, in order. When the client closes its direction, the server closes the other. A
//! client that stops reading stalls only itself.
//!
//! This page is the manual: each section has an example to start from, and names the types with the details.
//!
//! # A first server
//!
//! [`Server::bind`] opens the listening sockets, and [`Server::spawn`] serves on a thread of its own. The [`Running`] that it returns
//! has the address and the counters, and stops the server when it is dropped: that is a server for a test.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//!
//! use ecoloop::{Config, Server};
//!
//! let server = Server::bind("127.0.0.1:0", Config::default())?.spawn()?;
//!
//! let mut client = TcpStream::connect(server.local_addr())?;
//! client.write_all(b"hola")?;
//! let mut echo = [0; 4];
//! client.read_exact(&mut echo)?;
//! assert_eq!(&echo, b"hola");
//! assert_eq!(server.stats().accepted, 1);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! [`Server::run`] serves on the thread that calls it. [`Server::from_listener`] takes a socket that listens already.
//!
//! # In your own loop
//!
//! [`Server::turn`] takes one turn: it waits at most for the time that it is given, and serves what is ready. To nest the server in
//! another event loop, wait there for the descriptor of [`Server::as_fd`](std::os::fd::AsFd::as_fd) and until
//! [`Server::next_deadline`], and call `turn` without a wait:
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use ecoloop::{Config, Server, Turn};
//!
//! let mut server = Server::bind("127.0.0.1:0", Config::default())?;
//! let handle = server.handle();
//! while server.turn(Some(Duration::ZERO))? == Turn::Running {
//!     let wait = server.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
//!     // Here the outer loop waits for `server.as_fd()` and its own sources, at most for `wait`.
//!     # assert!(wait.is_none_or(|wait| wait < Duration::from_secs(1)));
//!     # handle.stop();
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! An outer poll that is edge-triggered (mio, tokio's `AsyncFd`) must not block while `next_deadline` is *now*.
//!
//! # Watching
//!
//! [`Handle::stats`] and [`Running::stats`] return the counters from any thread. An [`Observer`] is called for each connection and
//! each read, on the server's thread. Boxes, references, tuples and `Arc<Mutex<_>>` of observers are observers too.
//!
//! ```
//! use std::io::Write;
//! use std::net::{Shutdown, TcpStream};
//!
//! use ecoloop::{CloseReason, Config, Observer, Peer, Server};
//!
//! #[derive(Default)]
//! struct Log(Vec<String>);
//!
//! impl Observer for Log {
//!     fn received(&mut self, _: Peer, data: &[u8]) {
//!         self.0.push(format!("{} bytes", data.len()));
//!     }
//!
//!     fn closed(&mut self, _: Peer, reason: CloseReason) {
//!         self.0.push(format!("{reason:?}"));
//!     }
//! }
//!
//! let server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(Log::default()).spawn()?;
//! let mut client = TcpStream::connect(server.local_addr())?;
//! client.write_all(b"hola")?;
//! client.shutdown(Shutdown::Write)?;
//! let (_, log) = server.shutdown()?;
//! assert_eq!(log.0, ["4 bytes", "EndOfStream"]);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Failures of the system, such as a lack of descriptors, are logged with the crate `log`, under the target `ecoloop`.
//!
//! # Stopping
//!
//! [`Handle::drain`] shuts down gracefully: the server accepts the connections that wait already and no more, keeps echoing, closes
//! each connection once no byte has moved for 100 ms, and the rest at [`Config::drain_timeout`]. [`Handle::stop`] closes every connection immediately.
//! [`Running::shutdown`] drains, waits, and returns the counters and the observer. Each connection is closed for a [`CloseReason`],
//! which is counted.
//!
//! # Limits
//!
//! Every buffer and queue has a documented limit: see [`Config`], which also limits connections, sources, rates and times.
//!
//! ```
//! use std::time::Duration;
//!
//! use ecoloop::{Config, Server, SourceLimit, WhenFull};
//!
//! let mut config = Config::default();
//! config.max_connections = 10_000;
//! config.when_full = WhenFull::Reset;
//! config.max_per_source = Some(SourceLimit::new(100));
//! config.idle_timeout = Some(Duration::from_secs(60));
//! let server = Server::bind("127.0.0.1:0", config)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! An idle connection takes 56 bytes of this process on a 64-bit system, and one with pending output at most one buffer more. When the
//! last connection has closed, the memory of a peak is returned to the system. With glibc it stays with the allocator, for the next
//! peak, if the process has freed a larger block before; setting `MALLOC_MMAP_THRESHOLD_` in the environment prevents that
//! (mallopt(3), `M_MMAP_THRESHOLD`).
//!
//! # Faults
//!
//! [`Config::faults`] has rules by which the server misbehaves on purpose, for tests of clients and proxies: see [`fault`].
//!
//! ```
//! use ecoloop::{Config, Server};
//!
//! let mut config = Config::default();
//! config.faults = vec!["reset=1000,p=5%".parse()?, "delay=5ms..20ms".parse()?];
//! let server = Server::bind("127.0.0.1:0", config)?.spawn()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Other transports
//!
//! `Server::bind_unix` listens on Unix sockets, and [`Server::from_transport`] on what you write: see [`transport`]. [`Connection`] is
//! the echo of one connection over any non-blocking stream, such as a script of short reads in a test. [`Reactor`] is the event loop
//! without a protocol.
//!
//! # Load
//!
//! With the feature `load`, [`load`] drives an echo server over TCP or a Unix socket, verifies every byte, and measures latency from
//! the scheduled send time:
//!
//! ```
//! # #[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))] {
//! use std::time::Duration;
//!
//! use ecoloop::load::Run;
//!
//! let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
//! let load = Run::new([server.local_addr()]).connections(10).duration(Duration::from_millis(100)).fail_if("p99>5s")?;
//! let report = load.spawn()?.join()?;
//! assert!(!report.failed(), "{report}");
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Check
//!
//! With the same feature, [`check`] grades any echo server, and [`host`] lists the limits of this machine that prevent a
//! number of connections.
//!
//! ```
//! # #[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))] {
//! use ecoloop::check::Grader;
//!
//! let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
//! let report = Grader::new(vec![server.local_addr()]).up_to_level(1).spawn()?.join()?;
//! assert!(report.passed(), "{report}");
//! # }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `load` | yes | [`load`], [`check`], [`host`] and `address`, on Linux and Android |
//! | `serde` | with `load` or `cli` | [`Stats`] and [`Report`] as documents, with the field names of `ecoloop serve --report` |
//! | `raw-syscalls` | with `load` or `cli` | on Linux and Android, recv(2) and send(2) that bypass the C library: less CPU for a message |
//! | `cli` | yes | the program `ecoloop`; of the library `address`, `serde` and `raw-syscalls` |
//!
//! The server alone needs seven crates:
//!
//! ```toml
//! [dependencies]
//! ecoloop = { path = "../ecoloop", default-features = false }
//! ```
//!
//! # Stability
//!
//! Versions follow [Semantic Versioning](https://semver.org): before 1.0, a change that breaks a user's build is a new minor version.
//!
//! - Types of other crates in the public interface are part of it: those of [`mio`] that [`Reactor`] and [`transport`] use, and
//!   [`IpNet`] of the crate `ipnet`. Both are re-exported. Their next major version is a breaking change of this crate.
//! - What the documentation does not show (`#[doc(hidden)]`) is for the program `ecoloop`, and may change in any version.
//! - The texts of errors and of the log may change in any version. The names in reports, such as those of
//!   [`ClosedStats::by_reason`], do not.
//!
//! # Minimum supported Rust version
//!
//! Rust 1.88. A newer one is required only by a new minor version.
//!
//! # What it is not
//!
//! There is no TLS but in an example, no UDP and no async runtime. Linux is tested. FreeBSD and macOS are type-checked.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Some links of the manual need the feature `load`.
#![cfg_attr(not(feature = "load"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(not(unix))]
compile_error!("ecoloop builds on Unix only: an outer loop nests it by its file descriptor");

/// The programs of the page are tests of the documentation.
#[cfg(all(doctest, feature = "load"))]
#[doc = include_str!("../docs/embedding.md")]
mod embedding {}

#[cfg(any(feature = "cli", feature = "load"))]
pub mod address;
#[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
pub mod check;
mod clock;
mod error;
pub mod fault;
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
pub mod fuzzing;
#[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
pub mod host;
mod interrupted;
#[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
pub mod load;
mod log_target;
mod memory;
mod network;
#[cfg(all(test, feature = "load", any(target_os = "linux", target_os = "android")))]
mod process_start;
#[cfg(test)]
mod profiles;
mod reactor;
mod ready;
mod server;
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
mod simulation;
mod socket;
mod socket_address;
mod splitmix;
mod timers;
pub mod transport;
// Of the binary, which parses its options with it.
#[doc(hidden)]
pub mod units;
mod worker;

pub use error::ValueError;
pub use fault::Fault;
pub use ipnet::IpNet;
pub use mio;
pub use reactor::{Handler, INTEREST, Next, Reactor};
pub use ready::Ready;
pub use server::{
    AcceptErrorStats, CloseReason, ClosedStats, Config, Connection, FaultStats, Handle, Observer, Outcome, Peer,
    RefusedStats, Report, Running, Served, Server, SourceLimit, Stats, Turn, WhenFull,
};
