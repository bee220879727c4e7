//! End of stream, reset, broken pipe.

use std::io::Write;
use std::net::TcpStream;

use ecoloop::{CloseReason, Config, Server};

use crate::support::{
    Event, Process, Recorder, TcpState, assert_echoes, assert_ended, assert_receives, await_reset, await_state,
    await_unread, connect, connect_narrow, eventually, half_close, narrow, pattern, reset, serve, stall,
};

#[test]
fn end_of_stream_closes_only_that_connection() {
    let end = |mut client: TcpStream| {
        half_close(&client);
        assert_ended(&mut client);
    };
    assert_closes_only_that_connection(end, &[Event::Ended, Event::Closed(CloseReason::EndOfStream)]);
}

#[test]
fn a_reset_closes_only_that_connection() {
    assert_closes_only_that_connection(reset, &[Event::Closed(CloseReason::Reset)]);
}

/// Asserts that `end` leads to the events `expected`, and that another connection is served on.
#[track_caller]
fn assert_closes_only_that_connection(end: impl FnOnce(TcpStream), expected: &[Event]) {
    let recorder = Recorder::default();
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap().with_observer(recorder.clone());
    let server = server.spawn().unwrap();
    let mut other = connect(server.local_addr());
    assert_echoes(&mut other, b"hola");
    eventually("the turn of this echo", || server.handle().stats().bytes_in == 4);
    recorder.take();

    let mut client = connect(server.local_addr());
    assert_echoes(&mut client, b"hola");
    end(client);
    eventually("the close", || server.handle().stats().closed.total() == 1);
    assert_echoes(&mut other, b"adios");
    eventually("the turn of this echo", || server.handle().stats().bytes_in == 13);

    let events: Vec<_> = recorder.take().into_iter().map(|(_, event)| event).collect();
    assert_eq!(events, [&[Event::Opened, Event::Received(4)], expected, &[Event::Received(5)]].concat());
    assert_eq!(server.handle().stats().open(), 1);
}

#[test]
fn a_reset_with_pending_output_closes_only_that_connection() {
    assert_a_reset_of_a_stalled_client_closes_only_that_connection(|_| {});
}

#[test]
fn a_reset_after_a_half_close_with_pending_output_closes_only_that_connection() {
    assert_a_reset_of_a_stalled_client_closes_only_that_connection(half_close);
}

#[track_caller]
fn assert_a_reset_of_a_stalled_client_closes_only_that_connection(before: impl FnOnce(&TcpStream)) {
    let server = serve(narrow());
    let handle = server.handle();
    let mut other = connect(server.local_addr());
    let client = connect_narrow(server.local_addr());
    stall(&client, &pattern(2 << 20), &mut other, &handle);
    before(&client);
    reset(client);
    eventually("the close", || handle.stats().closed.reset == 1);
    assert_echoes(&mut other, b"hola");
    assert_eq!(handle.stats().closed.total(), 1);
}

#[test]
fn two_thousand_resets_before_any_data_leak_no_descriptor() {
    let (server, address) = Process::serve(&[]);
    let mut other = connect(address);
    assert_echoes(&mut other, b"hola");
    let descriptors = server.descriptors();
    for _ in 0..2000 {
        reset(connect(address));
    }
    // Connections are accepted in their order: once this one is echoed, all resets were accepted.
    let mut last = connect(address);
    assert_echoes(&mut last, b"hola");
    drop(last);
    eventually("only the descriptors of before", || server.descriptors() == descriptors);
    assert_echoes(&mut other, b"hola");
    drop(other);
    let ended = server.terminate();
    let counts = "2002 connections accepted, 2002 closed (2 end of stream, 2000 reset), 12 bytes in, 12 bytes out";
    assert!(ended.summary().contains(counts), "{}", ended.summary());
}

/// They make one readable event, and none follows.
#[test]
fn data_and_fin_in_one_edge_are_both_handled() {
    let (server, address) = Process::serve(&[]);
    let lengths = [1, 1023, 1024, 1025, 2048, 20_000];
    for length in lengths {
        let message = pattern(length);
        let mut known = connect(address);
        assert_echoes(&mut known, b"hola");
        server.pause();
        let mut unknown = connect(address);
        for client in [&mut known, &mut unknown] {
            client.write_all(&message).unwrap();
            half_close(client);
            await_state(client, TcpState::CloseWait);
        }
        server.resume();
        for client in [&mut known, &mut unknown] {
            assert_receives(client, &message);
            assert_ended(client);
        }
    }
    let ended = server.terminate();
    assert!(ended.summary().contains(", 12 closed (12 end of stream), "), "{}", ended.summary());
}

/// The client's FIN arrives before its RST, so the write fails with `EPIPE`.
#[test]
fn a_broken_pipe_counts_as_a_reset_of_that_connection_only() {
    let (server, address) = Process::serve(&[]);
    let mut other = connect(address);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    server.pause();
    client.write_all(b"adios").unwrap();
    half_close(&client);
    await_state(&client, TcpState::CloseWait);
    await_reset(client);
    server.resume();
    assert_echoes(&mut other, b"hola");
    drop(other);
    let ended = server.terminate();
    let counts = "2 closed (1 end of stream, 1 reset), 13 bytes in, 8 bytes out";
    assert!(ended.summary().contains(counts), "{}", ended.summary());
}

#[test]
fn a_reset_after_unread_data_is_detected() {
    let (server, address) = Process::serve(&[]);
    let mut other = connect(address);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    server.pause();
    client.write_all(b"adios").unwrap();
    await_unread(&client, 5);
    await_reset(client);
    server.resume();
    assert_echoes(&mut other, b"hola");
    drop(other);
    let ended = server.terminate();
    assert!(ended.summary().contains("2 closed (1 end of stream, 1 reset), "), "{}", ended.summary());
}
