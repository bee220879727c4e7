//! The ports of a pair: the one that was used least recently comes first.

use std::collections::VecDeque;

/// The ports of one pair. Those that are neither untried nor free are in use.
#[derive(Debug)]
pub(super) struct PairPorts {
    /// The next port that was never used, as an index.
    next: usize,
    untried: usize,
    /// Used before, the longest ago first.
    pub(super) free: VecDeque<u16>,
    /// A full round of the ports has found none.
    pub(super) exhausted: bool,
    /// Connects that have failed later because their port was taken.
    pub(super) taken_later: usize,
}

impl PairPorts {
    pub(super) fn new(random: u64, ports: usize) -> Self {
        let next = usize::try_from(random % (ports.max(1) as u64)).unwrap_or(0);
        Self { next, untried: ports, free: VecDeque::new(), exhausted: false, taken_later: 0 }
    }

    /// How many ports there are to try.
    pub(super) fn available(&self) -> usize {
        self.untried + self.free.len()
    }

    /// The port that was used least recently.
    pub(super) fn take(&mut self, ports: &[u16]) -> Option<u16> {
        if self.untried == 0 {
            return self.free.pop_front();
        }
        let port = ports.get(self.next).copied();
        self.untried -= 1;
        self.next = (self.next + 1) % ports.len();
        port
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is taken and given back: no port twice at once, each that is not in use can be had, and of those the one
        /// that was used least recently.
        #[test]
        fn the_port_used_least_recently_is_taken(random: u64, takes in prop::collection::vec(any::<Option<u8>>(), 1..200)) {
            let ports: Vec<u16> = (100..107).collect();
            let mut pair = PairPorts::new(random, ports.len());
            let mut in_use: Vec<u16> = Vec::new();
            // A port that was never used was used at time 0.
            let mut used_at = [0; 7];
            for (now, given_back) in (1..).zip(takes) {
                match given_back {
                    Some(index) if !in_use.is_empty() => {
                        let port = in_use.remove(usize::from(index) % in_use.len());
                        used_at[usize::from(port) - 100] = now;
                        pair.free.push_back(port);
                    }
                    _ => {
                        prop_assert_eq!(pair.available(), ports.len() - in_use.len());
                        let oldest = ports.iter().filter(|port| !in_use.contains(port)).map(|&port| used_at[usize::from(port) - 100]).min();
                        let port = pair.take(&ports);
                        prop_assert_eq!(port.map(|port| used_at[usize::from(port) - 100]), oldest);
                        prop_assert!(port.is_none_or(|port| !in_use.contains(&port)));
                        in_use.extend(port);
                    }
                }
            }
        }
    }
}
