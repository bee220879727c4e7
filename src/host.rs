//! The limits of this machine on TCP connections, and what Linux reports in `/proc` about processes and sockets.

mod cgroup;
#[cfg(test)]
mod fake_proc;
mod limits;
mod procfs;

pub use self::limits::{Capacity, Limit, Plan, Purpose, is_local, limits, warnings};
pub(crate) use self::procfs::{Process, SocketStatistics, ThreadTime, kernel, local_ports, name};
