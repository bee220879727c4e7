//! An echo, plain and with faults, over a stream whose peer and kernel do what the input says.

use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Input;
use crate::fault::{End, FaultyStream};
use crate::simulation::Socket;
use crate::{Connection, Fault, Outcome, Ready, Served};

const BUFFER_SIZE: usize = 8;
/// Turns after the last action of a peer that then reads everything: far more than its bytes need.
const TURNS_MAX: usize = 20_000;
/// Rules of which an input chooses. The first seven change only when the bytes come back.
const RULES: [&str; 18] = [
    "delay=5ms",
    "delay=1ms..9ms,hold=20",
    "rate=700",
    "chunk=3",
    "chunk=1,gap=2ms",
    "stall=10,for=7ms",
    "stall=0,for=1s",
    "stall=5",
    "mute=9",
    "reset=6",
    "reset=4ms",
    "fin=11",
    "fin=3ms",
    "flip=4",
    "lose=5",
    "duplicate=3",
    "swap=6",
    "reset=0",
];
const RULES_OF_TIME: usize = 7;

/// Takes one action of the peer, or of the kernel.
fn act(socket: &mut Socket, kind: usize, input: &mut Input<'_>) {
    match kind {
        0 => socket.send(1 + input.below(40) as u64),
        1 => socket.receive(input.below(20) as u64),
        2 => socket.half_close(),
        3 => socket.reset(),
        4 => socket.interrupts = input.below(4),
        5 => socket.write_max = 1 + input.below(12),
        _ => {}
    }
}

/// Plays the input to a connection: every byte comes back in order, and the end is seen, with one report of each edge.
pub fn connection(data: &[u8]) {
    let mut input = Input(data);
    // As a socket of the system, or as any stream, whose short reads say nothing.
    let is_socket = input.byte() & 1 == 0;
    let mut connection = Connection::new(Socket::new(0));
    let (mut again, mut buffer, mut turns) = (false, [0; BUFFER_SIZE], 0);
    let (mut received, mut sent) = (0, 0);
    let outcome = loop {
        let has_ended = input.is_empty();
        if has_ended {
            connection.get_mut().half_close();
            connection.get_mut().receive(u64::MAX);
            turns += 1;
            assert!(turns < TURNS_MAX, "it does not end: {connection:?}");
        } else {
            match input.below(8) {
                6 => connection.discard(),
                kind => act(connection.get_mut(), kind, &mut input),
            }
        }
        let ready = connection.get_mut().report();
        if !again && ready.is_none() {
            assert_not_forgotten(&connection);
            continue;
        }
        let mut served = Served { received: 0, sent: 0, outcome: Outcome::Wait };
        if is_socket {
            served.outcome = connection.serve_socket(ready, &mut buffer, &mut served);
        } else {
            served = connection.serve(ready, &mut buffer);
        }
        received += served.received;
        sent += served.sent;
        assert!(connection.pending() <= BUFFER_SIZE);
        again = served.outcome == Outcome::Again;
        if !again && served.outcome != Outcome::Wait {
            break served.outcome;
        }
    };
    let (is_discarding, socket) = (connection.is_discarding(), connection.into_inner());
    assert_eq!((received as u64, sent as u64), (socket.read, socket.written));
    assert!(socket.is_faithful);
    match outcome {
        Outcome::Ended => assert!(is_discarding || socket.written == socket.sent),
        Outcome::Failed(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => assert!(socket.is_reset),
        outcome => panic!("{outcome:?}"),
    }
}

fn assert_not_forgotten(connection: &Connection<Socket>) {
    let socket = connection.get_ref();
    let can_go_on = if connection.pending() > 0 { socket.is_writable() } else { socket.is_readable() };
    assert!(!can_go_on, "forgotten with {} bytes pending", connection.pending());
}

/// Plays the input to a connection with faults, which it chooses too. Those that only change when bytes come back lose none.
pub fn faults(data: &[u8]) {
    let mut input = Input(data);
    // Of each kind one: the names of kinds end at the equals sign.
    let kind = |rule: usize| RULES[rule].split('=').next();
    let mut chosen: Vec<usize> = (0..=input.below(3)).map(|_| input.below(RULES.len())).collect();
    chosen.sort_by_key(|&rule| kind(rule));
    chosen.dedup_by_key(|rule| kind(*rule));
    let rules: Vec<Fault> = chosen.iter().map(|&rule| RULES[rule].parse().unwrap()).collect();
    let (now, start) = (Rc::new(Cell::new(Duration::ZERO)), Instant::now());
    let time = Rc::clone(&now);
    let stream = FaultyStream::new(Socket::new(0), &rules, u64::from(input.byte()), move || start + time.get());
    let mut connection = Connection::new(stream);
    let (mut again, mut is_lifted, mut buffer, mut turns) = (false, false, [0; BUFFER_SIZE], 0);
    let has_closed = loop {
        let (has_ended, socket) = (input.is_empty(), connection.get_mut().get_mut());
        if has_ended {
            socket.half_close();
            socket.receive(u64::MAX);
            turns += 1;
            assert!(turns < TURNS_MAX, "it does not end, with {rules:?}");
            if let Some(deadline) = connection.get_ref().next_deadline() {
                now.set(now.get().max(deadline - start));
            }
        } else {
            match input.below(8) {
                6 => now.set(now.get() + Duration::from_micros(100 * u64::from(input.byte()))),
                7 if input.byte() == 0 => {
                    // The hand of a drain serves it after that.
                    (is_lifted, again) = (true, true);
                    connection.get_mut().lift();
                }
                kind => act(socket, kind, &mut input),
            }
        }
        let ready = connection.get_mut().get_mut().report();
        let is_due = connection.get_ref().next_deadline().is_some_and(|deadline| deadline <= start + now.get());
        if !again && !is_due && ready.is_none() {
            if has_ended {
                break false;
            }
            continue;
        }
        // What `Faulted` of the server does.
        let stream = connection.get_mut();
        if stream.advance(ready.is_writable()).is_err() {
            break true;
        }
        if stream.can_resume() {
            connection.expect_input();
        }
        let mut served = Served { received: 0, sent: 0, outcome: Outcome::Wait };
        let outcome = connection.serve_socket(ready | Ready::WRITABLE, &mut buffer, &mut served);
        let stream = connection.get_mut();
        again = match (stream.take_end(), outcome) {
            (Some(End::Reset { .. }), _) | (_, Outcome::Failed(_)) | (None, Outcome::Ended) => break true,
            (Some(End::Fin), _) => {
                stream.discard();
                connection.discard();
                connection.expect_input();
                true
            }
            (None, Outcome::Again) => true,
            (None, Outcome::Wait) => stream.can_resume() || stream.can_send(),
        };
    };
    let socket = connection.get_ref().get_ref();
    let only_time = chosen.iter().all(|&rule| rule < RULES_OF_TIME);
    if only_time {
        assert!(has_closed, "it does not end, with {rules:?}");
        assert!(socket.is_faithful);
        // An orderly end throws away what a stall withholds.
        let is_whole = socket.written == socket.sent;
        assert!(
            is_whole || socket.is_reset || is_lifted,
            "{} of {} bytes, with {rules:?}",
            socket.written,
            socket.sent
        );
    }
    assert!(has_closed || connection.get_ref().is_stalled(), "left open with {rules:?}");
}
