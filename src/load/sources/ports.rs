//! The local ports of a source/target pair. The least recently used port is taken first.

use std::collections::VecDeque;

/// The ports of one pair. A port that is neither untried nor free is in use.
#[derive(Debug)]
pub(super) struct PairPorts {
    /// Index of the next port that was never used.
    next: usize,
    untried: usize,
    /// Ports that were used and released, least recently used first.
    pub(super) free: VecDeque<u16>,
    /// Whether a full round of the ports has found none.
    pub(super) exhausted: bool,
    /// Number of connects that have failed since because their port was taken.
    pub(super) taken_later: usize,
}

impl PairPorts {
    pub(super) fn new(random: u64, ports: usize) -> Self {
        let next = usize::try_from(random % (ports.max(1) as u64)).unwrap_or(0);
        Self { next, untried: ports, free: VecDeque::new(), exhausted: false, taken_later: 0 }
    }

    /// Returns the number of ports to try.
    pub(super) fn available(&self) -> usize {
        self.untried + self.free.len()
    }

    /// Takes the least recently used port.
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
        /// In any order of takes and releases: no port is taken twice, and the least recently used one is taken first.
        #[test]
        fn the_least_recently_used_port_is_taken(random: u64, takes in prop::collection::vec(any::<Option<u8>>(), 1..200)) {
            let ports: Vec<u16> = (100..107).collect();
            let mut pair = PairPorts::new(random, ports.len());
            let mut in_use: Vec<u16> = Vec::new();
            // 0 for a port that was never used.
            let mut used_at = [0; 7];
            for (now, release) in (1..).zip(takes) {
                match release {
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
