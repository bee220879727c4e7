//! `Connection` over streams that are not TCP sockets: a TLS session, and a Unix socket that passes descriptors.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::slice;
use std::sync::{Arc, mpsc};
use std::thread;

use ecoloop::{Connection, Outcome, Ready};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

use crate::support::{TIMEOUT, connect_with_buffers, pattern};

/// No divisor of a TLS record, which holds 16 KiB, so that the last read of each record is short.
const BUFFER_SIZE: usize = 1000;

/// Returns a poll with `stream` registered.
#[track_caller]
fn poll_of(stream: &impl AsRawFd, interest: Interest) -> Poll {
    let poll = Poll::new().unwrap();
    poll.registry().register(&mut SourceFd(&stream.as_raw_fd()), Token(0), interest).unwrap();
    poll
}

/// Serves `connection` on each event of `poll`, until it is to be closed.
#[track_caller]
fn serve_until_closed<S: Read + Write>(connection: &mut Connection<S>, poll: &mut Poll) -> Outcome {
    let (mut events, mut buffer) = (Events::with_capacity(8), [0; BUFFER_SIZE]);
    loop {
        poll.poll(&mut events, Some(TIMEOUT)).unwrap();
        assert!(!events.is_empty(), "no event within {TIMEOUT:?}");
        for event in &events {
            let mut outcome = connection.serve(Ready::from(event), &mut buffer).outcome;
            while outcome == Outcome::Again {
                outcome = connection.serve(Ready::NONE, &mut buffer).outcome;
            }
            if outcome != Outcome::Wait {
                return outcome;
            }
        }
    }
}

/// Returns the configurations of a server with a self-signed certificate for `localhost`, and of a client that trusts it.
fn tls_configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (certified.cert.der(), PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key.into());
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (Arc::new(server.unwrap()), Arc::new(client))
}

/// Asserts that 100,000 bytes, which arrive as one edge, are echoed over TLS, and that `close_notify` ends the session. The
/// sockets take about `socket_buffer` bytes of the echo at a time.
#[track_caller]
fn assert_tls_echoes(socket_buffer: usize) {
    let message = pattern(100_000);
    let (server_config, client_config) = tls_configs();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_recv_buffer_size(2 * message.len()).unwrap();
    SockRef::from(&listener).set_send_buffer_size(socket_buffer).unwrap();
    let client = connect_with_buffers(listener.local_addr().unwrap(), socket_buffer);
    let (mut stream, _) = listener.accept().unwrap();
    let mut session = ServerConnection::new(server_config).unwrap();
    let (sender, sent) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let session = ClientConnection::new(client_config, "localhost".try_into().unwrap()).unwrap();
            let mut client = StreamOwned::new(session, client);
            client.write_all(&message).unwrap();
            sender.send(()).unwrap();
            let mut echo = vec![0; message.len()];
            client.read_exact(&mut echo).unwrap();
            assert!(echo == message, "the echo differs");

            client.conn.send_close_notify();
            client.flush().unwrap();
            // Without the server's close_notify this is an error.
            assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
        });
        while session.is_handshaking() {
            session.complete_io(&mut stream).unwrap();
        }
        sent.recv_timeout(TIMEOUT).unwrap();

        stream.set_nonblocking(true).unwrap();
        let mut poll = poll_of(&stream, Interest::READABLE | Interest::WRITABLE);
        let mut connection = Connection::new(StreamOwned::new(session, stream));
        assert_eq!(serve_until_closed(&mut connection, &mut poll), Outcome::Ended);
        let stream = connection.get_mut();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    });
}

/// A read of the session is short at the end of a TLS record, and yet more records follow in the socket.
#[test]
fn a_tls_session_is_echoed() {
    assert_tls_echoes(1 << 20);
}

#[test]
fn a_tls_session_is_echoed_through_full_socket_buffers() {
    assert_tls_echoes(4096);
}

/// A Unix socket that receives descriptors with the bytes that it reads, and sends them with the bytes that it writes.
struct DescriptorStream {
    stream: UnixStream,
    descriptors: VecDeque<OwnedFd>,
}

impl Read for DescriptorStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::empty())?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(received.bytes)
    }
}

impl Write for DescriptorStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptor = self.descriptors.front().map(AsFd::as_fd);
        if let Some(descriptor) = &descriptor {
            assert!(control.push(SendAncillaryMessage::ScmRights(slice::from_ref(descriptor))));
        }
        let sent = rustix::net::sendmsg(&self.stream, &[IoSlice::new(data)], &mut control, SendFlags::empty())?;
        self.descriptors.pop_front();
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A read stops after the bytes of a descriptor: it is short, and yet more data follows.
#[test]
fn descriptors_and_the_data_after_them_are_echoed_over_a_unix_socket() {
    let (client, stream) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut pipe, writer) = io::pipe().unwrap();
    let mut client = DescriptorStream { stream: client, descriptors: VecDeque::from([writer.into()]) };
    let messages = [&b"with a descriptor"[..], b" and after it"];
    for message in messages {
        client.write_all(message).unwrap();
    }
    assert!(client.descriptors.is_empty());

    // With `WRITABLE` each read of the client would be an event, and hide that the edge was not drained.
    let mut poll = poll_of(&stream, Interest::READABLE);
    let mut connection = Connection::new(DescriptorStream { stream, descriptors: VecDeque::new() });
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut echo = vec![0; messages.concat().len()];
            client.read_exact(&mut echo).unwrap();
            assert_eq!(echo, messages.concat());
            // It is the writing end of the pipe that comes back.
            let mut returned = PipeWriter::from(client.descriptors.pop_front().unwrap());
            returned.write_all(b"hola").unwrap();
            client.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
        });
        assert_eq!(serve_until_closed(&mut connection, &mut poll), Outcome::Ended);
        drop(connection.into_inner());
    });
    let mut received = [0; 4];
    pipe.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hola");
}
