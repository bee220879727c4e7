//! A capture that Wireshark opens, of what the server has received and sent. It needs no privilege.
//!
//! `cargo run --example capture -- echo.pcapng 127.0.0.1:5000` serves until it is killed; `wireshark echo.pcapng` shows its connections.
//! Without an address the program is its own client, and ends.
//!
//! The packets are made from the calls of an observer. Addresses, ports and data are true, and a packet has the time of the read or
//! write. Handshakes, acknowledgments and the end of a connection are made up, and there is no retransmission. Bytes that a fault alters
//! are in the capture as they were received.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::SystemTime;

use ecoloop::{CloseReason, Config, Observer, Peer, Server, Turn};
use etherparse::{PacketBuilder, TcpHeader};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, PcapError};

/// Payload of a segment, in bytes: with its headers it fits into a packet of Ethernet.
const SEGMENT_MAX: usize = 1440;
const HOP_LIMIT: u8 = 64;

/// Writes a packet for each event of a connection. Connections without two IP addresses of one family are left out.
pub(crate) struct Capture<W: Write> {
    file: PcapNgWriter<W>,
    connections: HashMap<usize, Connection>,
    packets: u64,
    /// What has ended the capture: an observer cannot return it.
    error: Option<io::Error>,
}

struct Connection {
    client: End,
    server: End,
    /// Received, and not yet sent: the observer gets only the number of the bytes sent.
    pending: VecDeque<u8>,
}

/// One end of a connection, and the number of the next byte that it sends.
#[derive(Clone, Copy)]
struct End {
    address: SocketAddr,
    sequence: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    Syn,
    SynAck,
    Ack,
    FinAck,
    RstAck,
}

impl<W: Write> Capture<W> {
    /// Begins a capture with its header.
    pub(crate) fn new(writer: W) -> io::Result<Self> {
        let mut file = PcapNgWriter::new(writer).map_err(to_io_error)?;
        // The crate writes nanoseconds, and the format's default is microseconds.
        let options = vec![InterfaceDescriptionOption::IfTsResol(9)];
        // Packets of IP without a link layer: that of the connections is not known.
        let interface = InterfaceDescriptionBlock { linktype: DataLink::RAW, snaplen: 0, options };
        file.write_pcapng_block(interface).map_err(to_io_error)?;
        Ok(Self { file, connections: HashMap::new(), packets: 0, error: None })
    }

    /// Writes what is buffered, or returns the error that has ended the capture.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.file.get_mut().flush(),
        }
    }

    fn client_sends(&mut self, key: usize, flags: Flags, data: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&key) {
            let packet = packet(&mut connection.client, &connection.server, flags, data);
            self.write(packet);
        }
    }

    fn server_sends(&mut self, key: usize, flags: Flags, data: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&key) {
            let packet = packet(&mut connection.server, &connection.client, flags, data);
            self.write(packet);
        }
    }

    fn write(&mut self, packet: io::Result<Vec<u8>>) {
        if self.error.is_none() {
            match packet.and_then(|packet| self.write_block(packet)) {
                Ok(()) => self.packets += 1,
                Err(error) => self.error = Some(error),
            }
        }
    }

    fn write_block(&mut self, packet: Vec<u8>) -> io::Result<()> {
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: SystemTime::UNIX_EPOCH.elapsed().map_err(io::Error::other)?,
            original_len: u32::try_from(packet.len()).map_err(io::Error::other)?,
            data: Cow::Owned(packet),
            options: Vec::new(),
        };
        self.file.write_pcapng_block(block).map_err(to_io_error)?;
        Ok(())
    }
}

/// Returns a packet from one end to the other, and advances the sequence number of the first.
fn packet(from: &mut End, to: &End, flags: Flags, data: &[u8]) -> io::Result<Vec<u8>> {
    let builder = match (from.address.ip(), to.address.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT),
        _ => return Err(io::Error::other("the ends have addresses of two families")),
    };
    let mut tcp = TcpHeader::new(from.address.port(), to.address.port(), from.sequence, u16::MAX);
    tcp.syn = matches!(flags, Flags::Syn | Flags::SynAck);
    tcp.fin = flags == Flags::FinAck;
    tcp.rst = flags == Flags::RstAck;
    tcp.psh = !data.is_empty();
    if flags != Flags::Syn {
        tcp.ack = true;
        tcp.acknowledgment_number = to.sequence;
    }
    // SYN and FIN count as a byte each (RFC 9293).
    let length = u32::try_from(data.len()).map_err(io::Error::other)? + u32::from(tcp.syn) + u32::from(tcp.fin);
    from.sequence = from.sequence.wrapping_add(length);
    let mut packet = Vec::new();
    builder.tcp_header(tcp).write(&mut packet, data).map_err(io::Error::other)?;
    Ok(packet)
}

fn to_io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        error => io::Error::other(error),
    }
}

impl<W: Write> Observer for Capture<W> {
    fn needs_local_address(&self) -> bool {
        true
    }

    fn opened(&mut self, peer: Peer) {
        let Some(local_address) = peer.local_address.filter(|local| local.is_ipv4() == peer.address.is_ipv4()) else {
            return;
        };
        let end = |address| End { address, sequence: 0 };
        let (client, server) = (end(peer.address), end(local_address));
        self.connections.insert(peer.key, Connection { client, server, pending: VecDeque::new() });
        self.client_sends(peer.key, Flags::Syn, &[]);
        self.server_sends(peer.key, Flags::SynAck, &[]);
        self.client_sends(peer.key, Flags::Ack, &[]);
    }

    fn received(&mut self, peer: Peer, data: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&peer.key) {
            connection.pending.extend(data);
        }
        for segment in data.chunks(SEGMENT_MAX) {
            self.client_sends(peer.key, Flags::Ack, segment);
        }
    }

    fn sent(&mut self, peer: Peer, length: usize) {
        let Some(connection) = self.connections.get_mut(&peer.key) else { return };
        let length = length.min(connection.pending.len());
        let data: Vec<_> = connection.pending.drain(..length).collect();
        for segment in data.chunks(SEGMENT_MAX) {
            self.server_sends(peer.key, Flags::Ack, segment);
        }
    }

    fn ended(&mut self, peer: Peer) {
        self.client_sends(peer.key, Flags::FinAck, &[]);
    }

    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        match reason {
            CloseReason::Reset => self.client_sends(peer.key, Flags::RstAck, &[]),
            CloseReason::Failed(_) | CloseReason::Stalled | CloseReason::Fault => {
                self.server_sends(peer.key, Flags::RstAck, &[]);
            }
            _ => {
                self.server_sends(peer.key, Flags::FinAck, &[]);
                self.client_sends(peer.key, Flags::Ack, &[]);
            }
        }
        self.connections.remove(&peer.key);
    }
}

#[cfg_attr(test, expect(dead_code, reason = "the tests use the observer alone"))]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (path, address) = match &arguments[..] {
        [path] => (path, None),
        [path, address] => (path, Some(address)),
        _ => return Err("usage: capture FILE [ADDRESS]".into()),
    };
    let capture = Capture::new(BufWriter::new(File::create(path)?))?;
    if let Some(address) = address {
        let mut server = Server::bind(address, Config::default())?.with_observer(capture);
        while server.turn(None)? == Turn::Running {
            // The file is whole while the server waits.
            server.observer_mut().flush()?;
        }
        return Ok(());
    }

    let server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(capture).spawn()?;
    let mut client = TcpStream::connect(server.local_addr())?;
    client.write_all(b"hola")?;
    client.read_exact(&mut [0; 4])?;
    client.shutdown(Shutdown::Write)?;
    client.read_to_end(&mut Vec::new())?;
    let (_, mut capture) = server.shutdown()?;
    capture.flush()?;
    println!("{} packets", capture.packets);
    Ok(())
}
