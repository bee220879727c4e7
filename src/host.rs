//! The limits of this machine on TCP connections, and what Linux reports in `/proc` about processes and sockets.

mod cgroup;
#[cfg(test)]
mod fake_proc;
mod limits;
mod procfs;

#[doc(hidden)]
pub use self::limits::is_local;
pub use self::limits::{Capacity, Limit, Plan, Purpose, limits, warnings};
pub(crate) use self::procfs::{Process, SocketStatistics, ThreadTime, kernel, local_ports, name};
