//! The transport of a simulated server: its calls go to the modelled kernel, and its observer writes into the kernel's books.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use proxy_header::{ProxiedAddress, ProxyHeader};
use socket2::{Domain, SockRef, Type};

use super::client::Header;
use super::kernel::{Kernel, SOURCES};
use crate::transport::{Listen, Stream};
use crate::{CloseReason, Fault, Observer, Peer};

thread_local! {
    /// Sockets that serve as descriptors of modelled ones.
    static SPARE: RefCell<Vec<socket2::Socket>> = const { RefCell::new(Vec::new()) };
}

pub(super) type SharedKernel = Rc<RefCell<Kernel>>;

/// Returns the address of a client: its port is its number.
pub(super) fn address(source: usize, id: usize) -> SocketAddr {
    let ip: IpAddr = SOURCES[source].0.parse().unwrap();
    (ip, u16::try_from(id + 1).unwrap()).into()
}

/// Returns what a client sends first.
pub(super) fn header_bytes(header: Header, id: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let announce = |source| {
        let address = address(source, id);
        ProxyHeader::with_address(ProxiedAddress::stream(address, address))
    };
    match header {
        Header::V1(source) => announce(source).encode_v1(&mut bytes).unwrap(),
        Header::V2(source) => announce(source).encode_v2(&mut bytes).unwrap(),
        Header::Local => bytes.extend(b"PROXY UNKNOWN\r\n"),
        Header::Bad => bytes.extend(b"GET / HTTP/1.1\r\n"),
    }
    bytes
}

/// A descriptor for a modelled socket, and what the server does to it by system calls.
#[derive(Debug)]
enum Descriptor {
    /// It takes the options: `SO_LINGER` of a reset.
    Spare(Option<socket2::Socket>),
    /// The server reads a PROXY header from the first. The model writes to the second what the server has looked at.
    Pair(Rc<UnixStream>, UnixStream),
}

impl Descriptor {
    fn spare() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self::Spare(Some(spare.unwrap_or_else(|| socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap())))
    }

    fn pair() -> Self {
        let (server, model) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        Self::Pair(Rc::new(server), model)
    }

    /// Returns whether closing it sends RST.
    fn is_reset(&self) -> bool {
        SockRef::from(self).linger().unwrap().is_some()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Spare(Some(socket)) => socket.as_fd(),
            Self::Spare(None) => unreachable!("it is taken only to be dropped"),
            Self::Pair(server, _) => server.as_fd(),
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Self::Spare(socket) = self
            && let Some(socket) = socket.take()
        {
            socket.set_linger(None).unwrap();
            SPARE.with_borrow_mut(|spare| spare.push(socket));
        }
    }
}

/// A modelled listening socket.
#[derive(Debug)]
pub(super) struct Listener<const TCP: bool> {
    kernel: SharedKernel,
    index: usize,
    descriptor: Descriptor,
}

impl<const TCP: bool> Listener<TCP> {
    pub(super) fn new(kernel: &SharedKernel, index: usize) -> Self {
        Self { kernel: Rc::clone(kernel), index, descriptor: Descriptor::spare() }
    }
}

impl<const TCP: bool> Listen for Listener<TCP> {
    type Stream = ModelStream<TCP>;
    type Address = usize;

    fn local_addr(&self) -> io::Result<usize> {
        Ok(self.index)
    }

    fn accept(&self) -> io::Result<(ModelStream<TCP>, SocketAddr)> {
        let mut kernel = self.kernel.borrow_mut();
        let accepted = kernel.accept(self.index);
        kernel.end_call();
        let id = accepted?;
        kernel.judge(id);
        let descriptor = if kernel.config.proxy_protocol { Descriptor::pair() } else { Descriptor::spare() };
        if let Descriptor::Pair(server, _) = &descriptor {
            kernel.clients[id].descriptor = Some(Rc::clone(server));
        }
        let stream = ModelStream { kernel: Rc::clone(&self.kernel), id, descriptor };
        Ok((stream, address(kernel.clients[id].source, id)))
    }
}

impl<const TCP: bool> AsFd for Listener<TCP> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl<const TCP: bool> Source for Listener<TCP> {
    fn register(&mut self, _: &Registry, token: Token, _: Interest) -> io::Result<()> {
        self.kernel.borrow_mut().listen(self.index, token.0);
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

impl<const TCP: bool> Drop for Listener<TCP> {
    fn drop(&mut self) {
        self.kernel.borrow_mut().close_listener(self.index);
    }
}

/// Reads everything, and returns how much it was.
pub(super) fn drain(mut stream: &UnixStream) -> usize {
    let (mut rest, mut length) = ([0; 4096], 0);
    while let Ok(n @ 1..) = stream.read(&mut rest) {
        length += n;
    }
    length
}

/// The server's end of a modelled connection.
#[derive(Debug)]
pub(super) struct ModelStream<const TCP: bool> {
    kernel: SharedKernel,
    id: usize,
    descriptor: Descriptor,
}

impl<const TCP: bool> Read for ModelStream<TCP> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().read(self.id, buffer)
    }
}

impl<const TCP: bool> Write for ModelStream<TCP> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().write(self.id, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<const TCP: bool> AsFd for ModelStream<TCP> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl<const TCP: bool> Source for ModelStream<TCP> {
    fn register(&mut self, _: &Registry, token: Token, _: Interest) -> io::Result<()> {
        self.kernel.borrow_mut().register(self.id, token.0)
    }

    /// The server registers again only to hear when everything was sent.
    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        self.kernel.borrow_mut().clients[self.id].socket.await_empty();
        Ok(())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

impl<const TCP: bool> Stream for ModelStream<TCP> {
    const IS_TCP_SOCKET: bool = TCP;

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut kernel = self.kernel.borrow_mut();
        let peeked = kernel.peek(self.id, buffer)?;
        if let Descriptor::Pair(server, model) = &self.descriptor {
            // What an earlier call has looked at.
            drain(server);
            (&*model).write_all(&buffer[..peeked])?;
            kernel.clients[self.id].peeked = peeked;
        }
        Ok(peeked)
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.kernel.borrow_mut().shutdown(self.id);
        Ok(())
    }
}

impl<const TCP: bool> Drop for ModelStream<TCP> {
    fn drop(&mut self) {
        let is_reset = self.descriptor.is_reset();
        self.kernel.borrow_mut().drop_stream(self.id, is_reset);
    }
}

/// The observer of a simulated server.
#[derive(Debug)]
pub(super) struct Recorder(pub(super) SharedKernel);

impl Observer for Recorder {
    fn opened(&mut self, peer: Peer) {
        self.0.borrow_mut().open(peer);
    }

    fn faulted(&mut self, peer: Peer, fault: &Fault) {
        let mut kernel = self.0.borrow_mut();
        match kernel.client_at(peer.key) {
            Some(client) => client.rules.push(fault.clone()),
            None => kernel.check(false, |_| format!("a fault of {peer:?}, which is not open")),
        }
    }

    fn received(&mut self, _: Peer, data: &[u8]) {
        self.0.borrow_mut().books.observed_in += data.len() as u64;
    }

    fn sent(&mut self, _: Peer, length: usize) {
        self.0.borrow_mut().books.observed_out += length as u64;
    }

    fn ended(&mut self, peer: Peer) {
        let mut kernel = self.0.borrow_mut();
        match kernel.client_at(peer.key) {
            Some(client) => client.has_ended = true,
            None => kernel.check(false, |_| format!("the end of {peer:?}, which is not open")),
        }
    }

    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        self.0.borrow_mut().told_closed(peer, reason);
    }
}
