//! A TCP echo server on one thread and one readiness loop, to run, to embed and to read.
//!
//! Every byte that a client sends comes back, in order. When the client closes its direction, the server closes the other. A client
//! that stops reading stalls only itself: an idle connection costs 56 bytes, and one with pending output at most one buffer more.
//!
//! ```no_run
//! let report = ecoloop::Server::bind("127.0.0.1:5000", ecoloop::Config::default())?.run()?;
//! println!("{} connections", report.stats.accepted);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! [`Server`] is the echo server. [`Connection`] is one connection's echo over any non-blocking stream. [`Reactor`] is the loop
//! without a protocol.
//!
//! # Limits
//!
//! Every buffer and queue has a documented limit: see [`Config`]. An idle connection costs 56 bytes of this process's memory on a
//! 64-bit system, and the memory of a peak is returned to the system when the last connection has closed.
//!
//! # What it is not
//!
//! There is no TLS, no UDP, no async runtime and no second thread. Linux is tested; macOS and the BSDs are meant to build; nothing
//! else is promised.

#[cfg(not(unix))]
compile_error!("ecoloop builds on Unix only: an outer loop nests it by its file descriptor");

#[cfg(all(feature = "load", not(any(target_os = "linux", target_os = "android"))))]
compile_error!("the load generator paces with timerfd(2), of Linux: build with `--no-default-features --features cli`");

#[cfg(feature = "load")]
pub mod host;
#[cfg(feature = "load")]
pub mod load;
mod log_target;
mod memory;
mod reactor;
mod ready;
mod server;
mod socket;
#[cfg(any(feature = "cli", feature = "load"))]
pub mod units;

pub use reactor::{Handler, INTEREST, Next, Reactor};
pub use ready::Ready;
pub use server::{
    CloseReason, ClosedStats, Config, Connection, Handle, Observer, Outcome, Peer, Report, Running, Served, Server,
    Stats, Turn,
};
