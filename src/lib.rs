//! A TCP echo server on one thread and one readiness loop, to run, to embed and to read.
//!
//! What a peer sends comes back to it, byte for byte and in order, until it ends its direction; then the server ends the other.
//! A peer that sends and does not read stalls itself and nobody else: it is not read from while its echo waits, so a connection
//! costs at most one buffer, and nothing while it is idle.
//!
//! ```no_run
//! let report = ecoloop::Server::bind("127.0.0.1:5000", ecoloop::Config::default())?.run()?;
//! println!("{} connections", report.stats.accepted);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! [`Server`] is the whole of it. [`Connection`] is one connection's echo over any non-blocking stream, and [`Reactor`] the loop that
//! knows no protocol, for those who build something else.
//!
//! # Limits
//!
//! Everything that grows has a bound, and [`Config`] holds it. A connection that is idle costs 56 bytes of this process's memory on a
//! 64-bit system, and the slab that holds them is given back when the last has gone.
//!
//! # What it is not
//!
//! There is no TLS, no UDP, no async runtime and no second thread. Linux is tested; macOS and the BSDs are meant to build; nothing
//! else is promised.

#[cfg(not(unix))]
compile_error!("ecoloop builds on Unix systems: an outer loop nests it by its file descriptor");

#[cfg(all(feature = "load", not(any(target_os = "linux", target_os = "android"))))]
compile_error!("the load generator paces with timerfd(2), of Linux: build with `--no-default-features --features cli`");

#[cfg(feature = "load")]
pub mod load;
mod reactor;
mod server;
mod socket;

pub use reactor::{Batch, INTEREST, Reactor, Readiness, Reported};
pub use server::{
    Closed, ClosedStats, Config, Connection, Handle, Observer, Peer, Progress, Report, Running, Server, Stats, Turn,
};

/// The target of every log record of this crate, whichever module it comes from.
const LOG_TARGET: &str = "ecoloop";
