//! The echo: messages and buffers of any size, pending output, half-close, urgent data.

use std::io::Write;
use std::net::TcpStream;
use std::thread;

use ecoloop::{Config, Handle};
use socket2::SockRef;

use crate::support::{
    Process, TcpState, assert_echoes, assert_ended, assert_receives, await_state, await_unread, connect,
    connect_narrow, half_close, narrow, pattern, serve, stall,
};

#[test]
fn messages_of_any_length_are_echoed() {
    let server = serve(Config::default());
    let mut client = connect(server.local_addr());
    for length in [1, 64, 1023, 1024, 1025, 3000, 100_000] {
        assert_echoes(&mut client, &pattern(length));
    }
    half_close(&client);
    assert_ended(&mut client);
}

#[test]
fn any_buffer_size_echoes_the_same_bytes() {
    for (buffer_size, length) in [(1, 5000), (3, 5000), (7, 7), (1000, 100_000), (1023, 100_000), (100_001, 1_000_000)]
    {
        let mut config = Config::default();
        config.buffer_size = buffer_size;
        let server = serve(config);
        let client = connect(server.local_addr());
        exchange(&client, &pattern(length), 0);
    }
}

#[test]
fn one_event_one_accept_and_one_read_per_turn_serve_all_clients() {
    let mut config = Config::default();
    config.events_per_turn = 1;
    config.accepts_per_turn = 1;
    config.reads_per_turn = 1;
    let server = serve(config);
    let mut clients: Vec<_> = (0..20).map(|_| connect(server.local_addr())).collect();
    let message = pattern(20_000);
    for client in &mut clients {
        client.write_all(&message).unwrap();
        half_close(client);
    }
    for client in &mut clients {
        assert_receives(client, &message);
        assert_ended(client);
    }
}

#[test]
fn all_data_before_a_half_close_is_echoed() {
    let server = serve(Config::default());
    let mut client = connect(server.local_addr());
    let message = pattern(16 << 20);
    let mut writer = client.try_clone().unwrap();
    let sent = message.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        half_close(&writer);
    });
    assert_receives(&mut client, &message);
    assert_ended(&mut client);
    writer.join().unwrap();
}

#[test]
fn pending_output_is_flushed_after_a_half_close() {
    // With the default socket buffers, which hold megabytes.
    let server = serve(Config::default());
    let mut other = connect(server.local_addr());
    let mut client = connect(server.local_addr());
    let message = pattern(1 << 20).repeat(80);
    let sent = stall(&client, &message, &mut other, &server.handle());
    half_close(&client);
    assert_receives(&mut client, &message[..sent]);
    assert_ended(&mut client);
}

#[test]
fn a_client_that_never_reads_stalls_only_itself() {
    let server = serve(narrow());
    let handle = server.handle();
    let mut other = connect(server.local_addr());
    let client = connect_narrow(server.local_addr());
    let message = pattern(2 << 20);
    let sent = stall(&client, &message, &mut other, &handle);

    for length in [1, 1000, 10_000] {
        for _ in 0..100 {
            assert_echoes(&mut other, &pattern(length));
            // The counters may include the echo of `other`.
            assert!(pending(&handle) <= 1024 + length as u64, "{:?}", handle.stats());
        }
    }

    // Once it reads, it receives every byte.
    exchange(&client, &message, sent);
}

/// Returns the bytes that were received and not yet sent.
fn pending(handle: &Handle) -> u64 {
    let stats = handle.stats();
    stats.bytes_in.saturating_sub(stats.bytes_out)
}

/// Sends `message[sent..]` and FIN, and at the same time reads the echo of the whole message and FIN.
#[track_caller]
fn exchange(client: &TcpStream, message: &[u8], sent: usize) {
    let mut reader = client.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = client;
            writer.write_all(&message[sent..]).unwrap();
            half_close(writer);
        });
        assert_receives(&mut reader, message);
        assert_ended(&mut reader);
    });
}

#[test]
fn data_after_urgent_data_is_echoed() {
    let server = serve(Config::default());
    let mut client = connect(server.local_addr());
    for _ in 0..100 {
        send_around_urgent_data(&mut client);
        assert_receives(&mut client, b"before and after");
    }
    half_close(&client);
    assert_ended(&mut client);
}

/// A read stops at the urgent mark: it is short, and yet more data follows.
#[test]
fn data_after_urgent_data_in_the_same_edge_is_echoed() {
    let (server, address) = Process::serve(&[]);
    let mut known = connect(address);
    assert_echoes(&mut known, b"hola");
    for ends in [false, true] {
        server.pause();
        let mut unknown = connect(address);
        for client in [&mut known, &mut unknown] {
            send_around_urgent_data(client);
            if ends {
                half_close(client);
                await_state(client, TcpState::CloseWait);
            } else {
                await_unread(client, "before! and after".len());
            }
        }
        server.resume();
        for client in [&mut known, &mut unknown] {
            assert_receives(client, b"before and after");
            if ends {
                assert_ended(client);
            }
        }
    }
}

/// The urgent byte is not part of the stream without `SO_OOBINLINE` (tcp(7)).
#[track_caller]
fn send_around_urgent_data(client: &mut TcpStream) {
    client.write_all(b"before").unwrap();
    assert_eq!(SockRef::from(&*client).send_out_of_band(b"!").unwrap(), 1);
    client.write_all(b" and after").unwrap();
}
