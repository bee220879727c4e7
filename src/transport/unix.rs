//! Unix sockets.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, SockRef, Type};

use super::{Listen, Socket, Stream, UnixAddress};
use crate::error::cannot;
use crate::log_target::LOG_TARGET;
use crate::{Config, Peer};

/// Most attempts to bind a path that has a stale socket.
const ATTEMPTS_MAX: usize = 3;

/// A listening Unix socket. Dropping it removes its file.
#[derive(Debug)]
pub struct UnixListener {
    socket: mio::net::UnixListener,
    address: UnixAddress,
    file: Option<SocketFile>,
}

/// The file of a socket. Dropping it removes the file, if the path still has this one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl UnixListener {
    /// Opens a listening socket on `address`.
    ///
    /// Of `config` it uses `backlog` and `unix_mode`. A stale socket is replaced: its server was killed and has left the file.
    ///
    /// # Errors
    ///
    /// - `AddrInUse`: a server listens on the address, or another that starts has taken the path.
    /// - `AlreadyExists`: the path has a file that is not a socket.
    /// - `PermissionDenied` and the other errors of connect(2): the path has a socket, and whether a server listens on it is not known.
    /// - The other errors of bind(2), chmod(2) and listen(2); the text names the address.
    pub fn bind(address: &UnixAddress, config: &Config) -> io::Result<Self> {
        bind(address, config).map_err(|error| cannot(format_args!("listen on {address}"), error))
    }

    /// Sets the sizes of the buffers that `config` has on a connection, as [`configure`](Listen::configure) does.
    ///
    /// # Errors
    ///
    /// - An option cannot be set.
    pub fn set_buffers(stream: &impl AsFd, config: &Config) -> io::Result<()> {
        let socket = SockRef::from(stream);
        if let Some(bytes) = config.recv_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = config.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        Ok(())
    }
}

fn bind(address: &UnixAddress, config: &Config) -> io::Result<UnixListener> {
    let (socket, file) = bind_file(address, config)?;
    listen(socket, file, address, config)
}

/// Binds the address. No client can connect yet.
fn bind_file(address: &UnixAddress, config: &Config) -> io::Result<(socket2::Socket, Option<SocketFile>)> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let mut file = None;
    match address.path() {
        None => socket.bind(&address.socket_address()?)?,
        Some(path) => {
            bind_path(&socket, address, path)?;
            file = Some(SocketFile::new(path)?);
            if let Some(mode) = config.unix_mode {
                // Before it listens: until then no client can connect.
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
        }
    }
    Ok((socket, file))
}

fn listen(
    socket: socket2::Socket,
    file: Option<SocketFile>,
    address: &UnixAddress,
    config: &Config,
) -> io::Result<UnixListener> {
    socket.listen(i32::try_from(config.backlog).unwrap_or(i32::MAX))?;
    // Until then another server that starts found this socket stale, and may have removed its file.
    if file.as_ref().is_some_and(|file| !is_at(&file.path, file.id)) {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server that starts has taken the path"));
    }
    let socket = mio::net::UnixListener::from_std(socket.into());
    Ok(UnixListener { socket, address: address.clone(), file })
}

/// Binds a path, in place of a stale socket.
fn bind_path(socket: &socket2::Socket, address: &UnixAddress, path: &Path) -> io::Result<()> {
    let socket_address = address.socket_address()?;
    for _ in 1..ATTEMPTS_MAX {
        match socket.bind(&socket_address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => remove_stale(&socket_address, path)?,
            bound => return bound,
        }
    }
    socket.bind(&socket_address)
}

/// Removes the file of a socket on which no server listens.
fn remove_stale(address: &SockAddr, path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => id(&metadata),
        Ok(_) => {
            let reason = "the file exists and is not a socket; remove it, or choose another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        // Its owner has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // With a full backlog a connect would wait.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::debug!(target: LOG_TARGET, "remove {}: no server listens on this socket", path.display());
            remove(path, found)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // EACCES, say: whether a server listens is not known.
        Err(error) if !is_pending(&error) => Err(cannot("connect to the socket that is there", error)),
        Ok(()) | Err(_) => {
            let reason = "a server listens on it; end that server, or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, reason))
        }
    }
}

/// Returns whether a connect waits for a server whose backlog is full: `EAGAIN` on Linux (connect(2)).
fn is_pending(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Removes a file, if the path still has this one: another server may have its own there.
fn remove(path: &Path, file: (u64, u64)) -> io::Result<()> {
    if is_at(path, file) { fs::remove_file(path) } else { Ok(()) }
}

fn is_at(path: &Path, file: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| id(&found) == file)
}

/// Returns the device of a file, and its number there.
fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        // The process may change its directory before it removes the file.
        let path = std::path::absolute(path)?;
        let id = id(&fs::symlink_metadata(&path)?);
        Ok(Self { path, id })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path, self.id) {
            log::warn!(target: LOG_TARGET, "cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        // Before the socket is closed: a server that finds the socket stale takes the path over.
        self.file = None;
    }
}

impl Listen for UnixListener {
    type Stream = Socket<UnixStream>;
    type Address = UnixAddress;

    fn local_addr(&self) -> io::Result<UnixAddress> {
        Ok(self.address.clone())
    }

    fn accept(&self) -> io::Result<(Socket<UnixStream>, SocketAddr)> {
        let (stream, _) = self.socket.accept()?;
        Ok((Socket::new(stream), Peer::NO_ADDRESS))
    }

    fn configure(&self, stream: &Socket<UnixStream>, config: &Config) -> io::Result<()> {
        Self::set_buffers(stream, config)
    }
}

/// A descriptor that a peer passes is closed by the system: recv(2) has no room for it (unix(7), `SCM_RIGHTS`). A read stops at it, so
/// a short read does not drain the socket.
impl Stream for Socket<UnixStream> {}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Source for UnixListener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// What happens between bind(2) and listen(2) of the first server cannot be timed from outside.
    #[test]
    fn of_two_servers_that_start_at_once_the_one_whose_file_is_there_listens() {
        let folder = tempfile::tempdir().unwrap();
        let address = UnixAddress::new(folder.path().join("echo.sock")).unwrap();
        let config = Config::default();
        let (socket, file) = bind_file(&address, &config).unwrap();
        let second = UnixListener::bind(&address, &config).unwrap();
        let error = listen(socket, file, &address, &config).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        std::os::unix::net::UnixStream::connect(address.path().unwrap()).unwrap();
        second.accept().unwrap();
    }
}
