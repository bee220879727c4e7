//! A TCP echo server, a load generator that tests echo servers, a grader of them, and the event loop of all. Each runs on one thread.
//!
//! The server returns every byte that a client sends, in order. When the client closes its direction, the server closes the other. A
//! client that stops reading stalls only itself.
//!
//! ```no_run
//! let report = ecoloop::Server::bind("127.0.0.1:5000", ecoloop::Config::default())?.run()?;
//! println!("{} connections", report.stats.accepted);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! - [`Server`] is the echo server: on your thread, on its own, or one turn at a time in another event loop.
//! - [`transport`] is what it listens on: TCP, Unix sockets, or a transport of your own, such as TLS.
//! - [`Connection`] is one connection's echo over any non-blocking stream.
//! - [`Reactor`] is the event loop without a protocol.
//! - [`fault`] has rules by which the server misbehaves on purpose, for tests of clients and proxies.
//! - `load`, with the feature `load`, is the load generator. `check`, with the same feature, is a grader of echo servers, and `host`
//!   finds the limits of this machine. On systems other than Linux and Android the feature has no effect.
//!
//! # Limits
//!
//! Every buffer and queue has a documented limit: see [`Config`]. An idle connection takes 56 bytes of this process on a 64-bit
//! system, and one with pending output at most one buffer more. When the last connection has closed, the memory of a peak is returned
//! to the system. With glibc it stays with the allocator, for the next peak, if the process has freed a larger block before; setting
//! `MALLOC_MMAP_THRESHOLD_` in the environment prevents that (mallopt(3), `M_MMAP_THRESHOLD`).
//!
//! # What it is not
//!
//! There is no TLS but in an example, no UDP and no async runtime. Linux is tested. FreeBSD and macOS are type-checked.

#[cfg(not(unix))]
compile_error!("ecoloop builds on Unix only: an outer loop nests it by its file descriptor");

#[cfg(any(feature = "cli", feature = "load"))]
pub mod address;
#[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
pub mod check;
pub mod fault;
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
pub mod fuzzing;
#[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
pub mod host;
#[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
pub mod load;
mod log_target;
mod memory;
mod network;
mod reactor;
mod ready;
mod server;
mod socket;
pub mod transport;
pub mod units;

pub use fault::Fault;
pub use ipnet::IpNet;
pub use reactor::{Handler, INTEREST, Next, Reactor};
pub use ready::Ready;
pub use server::{
    AcceptErrorStats, CloseReason, ClosedStats, Config, Connection, FaultStats, Handle, Observer, Outcome, Peer,
    RefusedStats, Report, Running, Served, Server, SourceLimit, Stats, Turn, WhenFull,
};
