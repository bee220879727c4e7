//! Backlogs of the modelled kernel, accept(2), and which clients must be served.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use super::checks::ACCEPT_RETRY;
use super::client::Verdict;
use super::kernel::{Kernel, SOURCES};
use crate::fault::{Connect, Effect};
use crate::{Fault, WhenFull};

/// A listening socket.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pub(super) waiting: VecDeque<usize>,
    pub(super) has_edge: bool,
    pub(super) token: Option<usize>,
    pub(super) is_closed: bool,
    /// Calls of accept(2) in this turn, and failed ones.
    pub(super) accepts: usize,
    pub(super) failures: usize,
    /// An accept of this turn has returned `WouldBlock`.
    pub(super) is_emptied: bool,
}

impl Kernel {
    pub(super) fn listen(&mut self, index: usize, token: usize) {
        self.backlogs[index].token = Some(token);
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        let backlog = &mut self.backlogs[index];
        let (accepts, failures, is_emptied) = (backlog.accepts, backlog.failures, backlog.is_emptied);
        (backlog.token, backlog.is_closed) = (None, true);
        let waiting = std::mem::take(&mut backlog.waiting);
        self.live.retain(|id| !waiting.contains(id));
        // A drain serves the clients that wait, where nothing prevents it.
        let is_limited = self.config.accept_rate.is_some()
            || self.connect_fault().is_some()
            || is_emptied
            || failures > 0
            || self.is_full()
            || accepts >= self.config.backlog as usize;
        let is_drain = self.drain_began_at.is_some() && !self.is_stopping;
        self.check(!is_drain || is_limited || waiting.is_empty(), |_| format!("a drain leaves {waiting:?} unserved"));
    }

    pub(super) fn is_full(&self) -> bool {
        self.config.when_full == WhenFull::Wait && self.held.len() >= self.config.max_connections
    }

    /// Returns what a rule does to the accepts now.
    pub(super) fn connect_fault(&self) -> Option<Connect> {
        let elapsed = self.now - self.started_at;
        let is_now = |fault: &&Fault| fault.selector.at.as_ref().is_none_or(|at| at.contains(&elapsed));
        let connects = self.config.faults.iter().filter_map(|fault| match fault.effect {
            Effect::Connect(connect) => Some((fault, connect)),
            _ => None,
        });
        connects.filter(|(fault, _)| is_now(fault)).map(|(_, connect)| connect).next()
    }

    /// Returns the next client of a backlog.
    pub(super) fn accept(&mut self, index: usize) -> io::Result<usize> {
        self.backlogs[index].accepts += 1;
        if self.backlogs[index].accepts == 1 {
            self.burst_began_at = self.now;
        }
        let (accepts, is_draining) = (self.backlogs[index].accepts, self.drain_began_at.is_some());
        self.check(is_draining || accepts <= self.config.accepts_per_turn, |_| format!("{accepts} accepts in a turn"));
        let is_early = !is_draining && self.backs_off_until.is_some_and(|until| self.now < until);
        self.check(!is_early, |_| "it accepts while it must back off".to_owned());
        let (errno, calls) = self.accept_failures;
        if calls > 0 {
            self.accept_failures.1 -= 1;
            let is_clients_own = matches!(errno, libc::ECONNABORTED | libc::EPROTO | libc::EPERM);
            if is_clients_own {
                let Some(id) = self.backlogs[index].waiting.pop_front() else {
                    self.backlogs[index].is_emptied = true;
                    return Err(ErrorKind::WouldBlock.into());
                };
                self.live.retain(|&live| live != id);
            }
            self.backlogs[index].failures += 1;
            let has_failed = !is_clients_own || self.backlogs[index].failures == self.config.accepts_per_turn;
            let has_rule = self.config.faults.iter().any(|fault| matches!(fault.effect, Effect::Connect(_)));
            if has_failed && !has_rule {
                self.backs_off_until = Some(self.now + ACCEPT_RETRY);
            }
            // A rate makes bursts shorter.
            let is_short = self.config.accept_rate.is_some() || has_rule;
            self.has_accept_failed = has_failed || is_short && self.backlogs[index].failures == accepts;
            self.books.accept_errors += 1;
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.has_accept_failed = false;
        let Some(id) = self.backlogs[index].waiting.pop_front() else {
            self.backlogs[index].is_emptied = true;
            return Err(ErrorKind::WouldBlock.into());
        };
        self.check(!self.is_full(), |kernel| format!("more than {} connections", kernel.config.max_connections));
        self.count_accept();
        Ok(id)
    }

    /// Decides what must become of a client that was accepted.
    pub(super) fn judge(&mut self, id: usize) {
        let verdict = self.verdict_at_accept(self.clients[id].source);
        let now = self.now;
        let client = &mut self.clients[id];
        (client.verdict, client.accepted_at, client.moved_at, client.excess) = (Some(verdict), now, now, self.excess);
        self.held.push(id);
    }

    /// Checks the rates of `accept_rate` and of `connect=TIME`.
    fn count_accept(&mut self) {
        let since = self.accepted_at.replace(self.now).map(|at| self.now - at);
        if let Some(rate) = self.config.accept_rate {
            let before = self.burst_before.replace(self.burst_began_at).unwrap_or(self.burst_began_at);
            let elapsed = (self.burst_began_at - before).as_secs_f64();
            self.accept_level = elapsed.mul_add(-rate, self.accept_level).max(0.0) + 1.0;
            let most = (rate / 10.0).max(1.0) + 1e-6;
            let level = self.accept_level;
            self.check(level <= most, |_| format!("{level} accepted in one burst at a rate of {rate}"));
        }
        if let (Some(Connect::Every(interval)), Some(since)) = (self.connect_fault(), since) {
            // The rule may have begun since.
            let has_begun = self.config.faults.iter().all(|fault| fault.selector.at.is_none());
            self.check(!has_begun || since >= interval, |_| format!("accepted {since:?} apart, not {interval:?}"));
        }
    }

    fn verdict_at_accept(&self, source: usize) -> Verdict {
        let admission = if self.config.proxy_protocol { Verdict::Served } else { self.admission(source) };
        if admission != Verdict::Served {
            admission
        } else if self.held.len() == self.config.max_connections {
            Verdict::Full
        } else if self.connect_fault() == Some(Connect::Reset) {
            Verdict::Fault
        } else {
            Verdict::Served
        }
    }

    /// Returns whether a source may connect.
    pub(super) fn admission(&self, source: usize) -> Verdict {
        let is_allowed = self.config.allow.is_empty() || SOURCES[source].3;
        match self.config.max_per_source {
            _ if !is_allowed => Verdict::NotAllowed,
            Some(limit) if self.groups[self.group(source)] >= limit.connections => Verdict::PerSource,
            _ => Verdict::Served,
        }
    }

    pub(super) fn group(&self, source: usize) -> usize {
        let is_wide = self.config.max_per_source.is_some_and(|limit| limit.ipv4_prefix == 24);
        if is_wide { SOURCES[source].2 } else { SOURCES[source].1 }
    }
}
