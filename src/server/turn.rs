//! One turn of the loop: timers, the wait, what is ready, and the end.

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use super::drain::{Lifecycle, Turn};
use super::echo::{Echo, EchoReactor};
use super::handle::Command;
use super::observer::{CloseReason, Observer};
use crate::clock;
use crate::transport::Listen;

/// The reactor, and what serves its entries.
#[derive(Debug)]
pub(super) struct EventLoop<O, L: Listen> {
    pub(super) reactor: EchoReactor<L>,
    pub(super) echo: Echo<O, L>,
}

impl<O: Observer, L: Listen> EventLoop<O, L> {
    /// See [`Server::turn`](crate::Server::turn).
    pub(super) fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        let wake = WakeOnPanic(self);
        let turn = wake.0.take_turn(timeout);
        mem::forget(wake);
        turn
    }

    fn take_turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        let timeout = self.run_timers(timeout);
        if self.echo.core.lifecycle.is_finished() {
            return Ok(Turn::Finished);
        }
        self.echo.observer.waiting();
        self.wait(timeout)?;
        self.echo.observer.woken(self.reactor.event_count());
        if self.echo.core.handle.is_ending() {
            self.handle_command();
        }
        self.reactor.serve(self.echo.core.config.reads_per_turn, &mut self.echo);
        self.resume_listeners();
        if self.echo.core.connections == 0 {
            if self.echo.core.lifecycle.is_draining() {
                self.echo.finish(&mut self.reactor, CloseReason::Drained);
            } else if self.echo.core.connections_peak > 0 {
                self.echo.trim(&mut self.reactor);
            }
        }
        Ok(self.echo.core.lifecycle.into())
    }

    /// Closes every connection as stopped, and tells the observer.
    pub(super) fn close(&mut self) {
        if !self.echo.core.lifecycle.is_finished() {
            self.echo.finish(&mut self.reactor, CloseReason::Stopped);
        }
    }

    /// Waits for events, at most for `timeout`. Polls without blocking first, for the configured time.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.echo.core.config.spin.is_zero() { self.reactor.wait(timeout).map(drop) } else { self.spin(timeout) }
    }

    #[inline(never)]
    fn spin(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let spin = self.echo.core.config.spin.min(timeout.unwrap_or(Duration::MAX));
        let start = clock::now();
        loop {
            let is_ready = self.reactor.wait(Some(Duration::ZERO))?;
            let elapsed = clock::now() - start;
            if is_ready || timeout.is_some_and(|timeout| elapsed >= timeout) {
                return Ok(());
            }
            if elapsed >= spin {
                return self.reactor.wait(timeout.map(|timeout| timeout.saturating_sub(elapsed))).map(drop);
            }
        }
    }

    #[cold]
    fn handle_command(&mut self) {
        match (self.echo.core.handle.command(), self.echo.core.lifecycle) {
            (Command::Drain, Lifecycle::Serving) => self.echo.begin_drain(&mut self.reactor),
            (Command::Stop, _) => self.echo.finish(&mut self.reactor, CloseReason::Stopped),
            _ => {}
        }
    }

    /// Runs expired timers and returns the poll timeout. Reads no clock if no timer is set.
    pub(super) fn run_timers(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.echo.core.deadlines().iter().any(Option::is_some) { self.run_expired(timeout) } else { timeout }
    }

    #[inline(never)]
    fn run_expired(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let now = clock::now();
        let is_expired = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_expired(self.echo.core.acceptor.retry_at()) {
            self.echo.core.acceptor.resume();
        }
        if is_expired(self.echo.core.hand.map(|hand| hand.deadline())) {
            self.echo.advance_hand(&mut self.reactor, now);
            if self.echo.core.connections == 0 {
                // Before the wait, which may be long.
                self.echo.trim(&mut self.reactor);
            }
        }
        if is_expired(self.echo.core.timers.next_at()) {
            self.echo.serve_expired(&mut self.reactor, now);
        }
        if is_expired(self.echo.core.connect_faults.next_at) {
            self.echo.apply_connect_faults(&mut self.reactor, now);
        }
        if is_expired(self.echo.core.lifecycle.deadline()) {
            self.echo.finish(&mut self.reactor, CloseReason::Cut);
        }
        self.resume_listeners();
        let wait = self.echo.core.earliest_deadline().map(|at| at.saturating_duration_since(now));
        [timeout, wait].into_iter().flatten().min()
    }

    /// Queues the listeners, if connections were left in their backlogs for the next turn.
    fn resume_listeners(&mut self) {
        for key in self.echo.core.acceptor.take_unfinished() {
            self.reactor.resume(key);
        }
    }
}

/// Lets the next turn begin without a wait. Dropped only by a panic of the observer, which may leave something to do.
struct WakeOnPanic<'a, O, L: Listen>(&'a mut EventLoop<O, L>);

impl<O, L: Listen> Drop for WakeOnPanic<'_, O, L> {
    fn drop(&mut self) {
        self.0.echo.core.acceptor.accept_again();
        self.0.echo.core.handle.wake();
    }
}
