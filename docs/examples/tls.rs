//! An echo server over TLS: a transport of your own, with rustls.
//!
//! `cargo run --example tls -- 127.0.0.1:5443` serves until it is killed; `openssl s_client -quiet -connect 127.0.0.1:5443` is a
//! client. Without an address the program is its own client, and ends.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ecoloop::mio::event::Source;
use ecoloop::mio::net::{TcpListener, TcpStream};
use ecoloop::mio::{Interest, Registry, Token};
use ecoloop::transport::{Listen, Stream, bind_tcp};
use ecoloop::{Config, Server};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// A listening TCP socket whose connections speak TLS.
#[derive(Debug)]
pub(crate) struct TlsListener {
    socket: TcpListener,
    config: Arc<ServerConfig>,
}

/// A TLS session over a TCP connection. Its first reads make the handshake: a client that never finishes it is an idle connection.
#[derive(Debug)]
pub(crate) struct TlsStream(StreamOwned<ServerConnection, TcpStream>);

impl TlsListener {
    /// Listens on `address`, with the backlog and the socket options of `config`.
    pub(crate) fn bind(address: SocketAddr, config: &Config, tls: &Arc<ServerConfig>) -> io::Result<Vec<Self>> {
        let sockets = bind_tcp(&[address], config)?;
        Ok(sockets.into_iter().map(|socket| Self { socket, config: Arc::clone(tls) }).collect())
    }
}

impl Listen for TlsListener {
    type Stream = TlsStream;
    type Address = SocketAddr;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn accept(&self) -> io::Result<(TlsStream, SocketAddr)> {
        let (stream, address) = self.socket.accept()?;
        let session = ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        Ok((TlsStream(StreamOwned::new(session, stream)), address))
    }
}

impl Stream for TlsStream {
    /// Says goodbye, so that the client can tell the end from an attack that cuts the connection.
    fn shutdown(&mut self) -> io::Result<()> {
        self.0.conn.send_close_notify();
        self.0.flush()
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for TlsStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for TlsListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for TlsStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.sock.as_fd()
    }
}

impl Source for TlsListener {
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

impl Source for TlsStream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.0.sock.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.0.sock.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.sock.deregister(registry)
    }
}

/// Returns the configuration of a server with a new certificate for `localhost`, and that of a client that trusts it alone.
pub(crate) fn new_certificate() -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), Box<dyn Error>> {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate: CertificateDer<'static> = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key.into())?;
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok((Arc::new(server), Arc::new(client)))
}

#[cfg_attr(test, expect(dead_code, reason = "the tests use the transport alone"))]
fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let (tls, client) = new_certificate()?;
    let config = Config::default();
    let listeners = TlsListener::bind(address.as_deref().unwrap_or("127.0.0.1:0").parse()?, &config, &tls)?;
    let mut server = Server::from_transport(listeners, config)?;
    if address.is_some() {
        println!("TLS on {}", server.local_addr());
        server.run()?;
        return Ok(());
    }
    let server = server.spawn()?;
    let session = ClientConnection::new(client, "localhost".try_into()?)?;
    let mut client = StreamOwned::new(session, StdTcpStream::connect(server.local_addr())?);
    client.write_all(b"hola")?;
    let mut echo = [0; 4];
    client.read_exact(&mut echo)?;
    println!("{} came back over {:?}", String::from_utf8_lossy(&echo), client.conn.protocol_version());

    client.conn.send_close_notify();
    client.flush()?;
    client.sock.shutdown(Shutdown::Write)?;
    // Without the goodbye of the server this is an error.
    println!("{} bytes follow", client.read(&mut echo)?);
    Ok(())
}
