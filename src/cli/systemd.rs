//! What systemd passes to a service.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use listenfd::ListenFd;

/// Takes the listening sockets that were passed to this process (`sd_listen_fds(3)`), if there are any.
///
/// It removes the variables from the environment, so it must run before a thread is started.
pub(super) fn take_listeners() -> Result<Vec<TcpListener>, String> {
    let failed = |reason: &str| format!("cannot serve a socket of LISTEN_FDS: {reason}; pass listening TCP sockets");
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        let listener = passed.take_tcp_listener(index).map_err(|error| failed(&error.to_string()))?;
        listeners.extend(listener);
    }
    match listeners.iter().find(|listener| !is_listening(listener)) {
        Some(socket) => Err(failed(&format!("fd {} does not listen", socket.as_raw_fd()))),
        None => Ok(listeners),
    }
}

/// Returns false for a socket on which accept(2) must fail, such as the connection of a unit with `Accept=yes`.
#[cfg(any(target_os = "android", target_os = "freebsd", target_os = "linux"))]
fn is_listening(socket: &TcpListener) -> bool {
    socket2::SockRef::from(socket).is_listener().unwrap_or(true)
}

/// Other systems do not tell.
#[cfg(not(any(target_os = "android", target_os = "freebsd", target_os = "linux")))]
fn is_listening(_: &TcpListener) -> bool {
    true
}
