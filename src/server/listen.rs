//! Opens the listening sockets.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpListener;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::config::Config;
use super::connect_faults::drop_packets;
use crate::error::cannot;
use crate::fault::{Connect, listening_at_start};
#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::log_target::LOG_TARGET;

/// Whether an accepted socket inherits its listener's buffer sizes and `TCP_NODELAY`. tcp(7) promises it on Linux alone.
pub(super) const ACCEPTED_INHERITS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// The longest interval of keep-alive probes: the system's own (RFC 1122 and tcp(7)).
#[cfg(not(target_os = "openbsd"))]
const KEEPALIVE_INTERVAL_MAX: Duration = Duration::from_secs(75);

/// The longest `TCP_USER_TIMEOUT`: the kernel takes an `int` of milliseconds.
#[cfg(any(target_os = "linux", target_os = "android"))]
const USER_TIMEOUT_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// Opens a listening socket on each address: all are bound, then all listen. If one fails, none is left open.
pub(super) fn open(addresses: &[SocketAddr], config: &Config) -> io::Result<Vec<TcpListener>> {
    let mut sockets: Vec<(SocketAddr, Socket)> = Vec::new();
    for &address in addresses {
        // A name may resolve to one address twice.
        if address.port() != 0 && sockets.iter().any(|&(bound, _)| bound == address) {
            continue;
        }
        let socket = bind(address, config).map_err(|error| cannot_listen(address, error))?;
        sockets.push((address, socket));
    }
    let at_start = listening_at_start(&config.faults);
    sockets
        .into_iter()
        .map(|(address, socket)| {
            if at_start == Some(Connect::Hang) {
                // Before it listens, so that no connect gets through.
                drop_packets(&SockRef::from(&socket), true).map_err(|error| cannot_listen(address, error))?;
            }
            if at_start != Some(Connect::Refuse) {
                listen(&socket, config).map_err(|error| cannot_listen(address, error))?;
            }
            Ok(TcpListener::from_std(socket.into()))
        })
        .collect()
}

/// Listens on a bound socket.
pub(super) fn listen(socket: &Socket, config: &Config) -> io::Result<()> {
    socket.listen(i32::try_from(config.backlog).unwrap_or(i32::MAX))
}

/// Sets the options of a connection: on the listening socket where connections inherit them, else on each connection.
pub(crate) fn set_connection_options(socket: &SockRef<'_>, config: &Config) -> io::Result<()> {
    socket.set_tcp_nodelay(config.nodelay)?;
    if let Some(bytes) = config.recv_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = config.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(time) = config.keepalive {
        let keepalive = TcpKeepalive::new().with_time(time);
        #[cfg(not(target_os = "openbsd"))]
        let keepalive = keepalive.with_interval(time.min(KEEPALIVE_INTERVAL_MAX));
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(timeout) = config.stall_timeout {
        // An eighth longer, so that the hand is first where it can be: a socket that the kernel has given up sends no RST.
        let timeout = timeout.min(USER_TIMEOUT_MAX);
        socket.set_tcp_user_timeout(Some((timeout + timeout / 8).clamp(Duration::from_millis(1), USER_TIMEOUT_MAX)))?;
    }
    Ok(())
}

/// Warns if the system cuts the backlog, which listen(2) does not report.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn warn_if_backlog_is_cut(backlog: u32) {
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    if let Some(most) = somaxconn.and_then(|text| text.trim().parse::<u32>().ok()).filter(|&most| most < backlog) {
        log::warn!(
            target: LOG_TARGET,
            "the system cuts the backlog of {backlog} to {most}; `sysctl -w net.core.somaxconn={backlog}` raises the limit"
        );
    }
}

/// Does nothing where the limit is not in a file.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn warn_if_backlog_is_cut(_: u32) {}

/// Opens a socket, and binds it.
pub(super) fn bind(address: SocketAddr, config: &Config) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that `0.0.0.0:p` and `[::]:p` can both be bound, whatever the system's default.
        socket.set_only_v6(true)?;
    }
    if config.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if ACCEPTED_INHERITS {
        // Before `listen`: the window scale of a connection is fixed in its handshake (tcp(7)).
        set_connection_options(&SockRef::from(&socket), config)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> io::Error {
    cannot(format_args!("listen on {address}"), error)
}

/// Prepares a socket that the caller has opened. Fails if it does not listen, which accept(2) would report only later.
pub(super) fn adopt(listener: &std::net::TcpListener, config: &Config) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // Elsewhere the system does not tell.
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    if !socket.is_listener()? {
        let reason = "the socket does not listen; call listen(2) before";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    socket.set_nonblocking(true)?;
    if ACCEPTED_INHERITS {
        set_connection_options(&socket, config)?;
    }
    Ok(())
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::log_target::warnings_of;

    #[test]
    fn the_user_timeout_is_an_eighth_longer_than_the_stall_timeout_within_its_limits() {
        let longest = Duration::from_millis(i32::MAX as u64);
        for (stall, expected) in [
            (Duration::from_secs(8), Duration::from_secs(9)),
            (Duration::from_millis(16), Duration::from_millis(18)),
            (Duration::from_nanos(1), Duration::from_millis(1)),
            (longest, longest),
            (Duration::MAX, longest),
        ] {
            let config = Config { stall_timeout: Some(stall), ..Config::default() };
            let socket = bind("127.0.0.1:0".parse().unwrap(), &config).unwrap();
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(expected), "{stall:?}");
        }
    }

    #[test]
    fn a_backlog_above_the_limit_of_the_system_is_warned_of() {
        let limit: u32 = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        for (backlog, warnings) in [(limit - 1, 0), (limit, 0), (limit + 1, 1)] {
            let warned = warnings_of(|| warn_if_backlog_is_cut(backlog));
            assert_eq!(warned.len(), warnings, "{backlog}: {warned:?}");
        }
    }
}
