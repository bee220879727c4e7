//! The figures of each target and of each source, where there are several.

use std::collections::BTreeMap;

use super::report::{Figures, Histogram, SourceFigures, TargetFigures};
use super::sources::Sources;
use crate::address::ScopedIp;
use crate::socket_address::AnyAddress;

/// Maximum number of targets, and of sources, that have figures: each takes 190 kB.
const PARTS_MAX: usize = 100;

#[derive(Clone, Debug)]
pub(super) struct Breakdown {
    targets: Parts<AnyAddress>,
    sources: Parts<ScopedIp>,
}

impl Breakdown {
    pub(super) fn new(sources: &Sources) -> Self {
        let pairs = || (0..sources.pair_count()).map(|pair| sources.pair(pair));
        Self {
            targets: Parts::new(pairs().map(|(_, target)| Some(target.clone()))),
            sources: Parts::new(pairs().map(|(source, _)| source)),
        }
    }

    /// Counts a connection of `pair` whose first message was verified.
    pub(super) fn record_verified(&mut self, pair: u32) {
        self.of_pair(pair).for_each(|part| part.connections += 1);
    }

    /// Counts a verified message, and its latency unless `is_first`.
    #[inline]
    pub(super) fn record_reply(&mut self, pair: u32, latency: u64, is_first: bool) {
        for part in self.of_pair(pair) {
            part.messages += 1;
            if !is_first {
                part.latency.record(latency);
            }
        }
    }

    /// Records the age of `count` messages that will never come back.
    pub(super) fn record_censored(&mut self, pair: u32, age: u64, count: u64) {
        self.of_pair(pair).for_each(|part| part.latency.record_censored_times(age, count));
    }

    /// Returns whether the connections of `pair` are part of any figures.
    pub(super) fn has_figures(&mut self, pair: u32) -> bool {
        self.of_pair(pair).next().is_some()
    }

    pub(super) fn record_error(&mut self, pair: u32) {
        self.of_pair(pair).for_each(|part| part.errors += 1);
    }

    /// Clears the counts that a report contains, except the connections.
    pub(super) fn reset(&mut self) {
        for part in self.targets.figures.iter_mut().chain(&mut self.sources.figures) {
            (part.messages, part.errors) = (0, 0);
            part.latency.clear();
        }
    }

    /// Returns the figures of each target in `used`, or nothing if there is only one.
    pub(super) fn targets(&self, used: &[AnyAddress]) -> Vec<TargetFigures> {
        let figures = self.targets.figures().filter(|(target, _)| used.len() > 1 && used.contains(target));
        figures.map(|(target, figures)| TargetFigures { target, figures }).collect()
    }

    pub(super) fn sources(&self) -> Vec<SourceFigures> {
        self.sources.figures().map(|(source, figures)| SourceFigures { source, figures }).collect()
    }

    #[inline]
    fn of_pair(&mut self, pair: u32) -> impl Iterator<Item = &mut Part> {
        self.targets.of_pair(pair).into_iter().chain(self.sources.of_pair(pair))
    }
}

/// The figures of each of several addresses.
#[derive(Clone, Debug)]
struct Parts<A> {
    addresses: Vec<A>,
    figures: Vec<Part>,
    /// The place of each pair's address; empty if there are no figures.
    place_of_pair: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Part {
    connections: u64,
    messages: u64,
    errors: u64,
    latency: Histogram,
}

impl<A: Clone + Ord> Parts<A> {
    fn new(address_of_pair: impl Iterator<Item = Option<A>>) -> Self {
        let (mut addresses, mut places, mut place_of_pair) = (Vec::new(), BTreeMap::new(), Vec::new());
        for address in address_of_pair.map_while(|address| address) {
            let place = *places.entry(address.clone()).or_insert_with(|| {
                addresses.push(address);
                addresses.len() - 1
            });
            place_of_pair.push(place);
            if addresses.len() > PARTS_MAX {
                break;
            }
        }
        if !(2..=PARTS_MAX).contains(&addresses.len()) {
            (addresses, place_of_pair) = (Vec::new(), Vec::new());
        }
        let new = |_: &A| Part { connections: 0, messages: 0, errors: 0, latency: Histogram::new() };
        let figures = addresses.iter().map(new).collect();
        Self { addresses, figures, place_of_pair }
    }

    #[inline]
    fn of_pair(&mut self, pair: u32) -> Option<&mut Part> {
        self.figures.get_mut(*self.place_of_pair.get(pair as usize)?)
    }

    fn figures(&self) -> impl Iterator<Item = (A, Figures)> {
        self.addresses.iter().cloned().zip(self.figures.iter().map(|part| {
            let latency_us = part.latency.summary();
            Figures {
                connections: part.connections,
                messages: part.messages,
                errors: part.errors,
                p50: latency_us.p50,
                p99: latency_us.p99,
                latency_us,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::load::rank::Rank;

    const ADDRESSES: [&str; 3] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];

    fn addresses() -> Vec<AnyAddress> {
        ADDRESSES.map(|address| address.parse().unwrap()).into()
    }

    fn breakdown() -> Breakdown {
        let targets: Vec<_> = addresses().into_iter().map(|address| vec![address]).collect();
        Breakdown::new(&Sources::new(&[], &targets, 1, Rank::ALONE).unwrap())
    }

    /// Returns the connections, messages, errors and latencies of each target.
    fn counts(breakdown: &Breakdown) -> Vec<[u64; 4]> {
        let count = |TargetFigures { figures, .. }: &TargetFigures| {
            [figures.connections, figures.messages, figures.errors, figures.latency_us.count]
        };
        breakdown.targets(&addresses()).iter().map(count).collect()
    }

    #[test]
    fn a_report_clears_the_figures_of_each_target_except_its_connections() {
        let mut breakdown = breakdown();
        (0..3).for_each(|pair| breakdown.record_verified(pair));
        breakdown.record_verified(1);
        breakdown.record_reply(1, 1000, true);
        breakdown.record_reply(1, 1000, false);
        breakdown.record_error(2);
        assert_eq!(counts(&breakdown), [[1, 0, 0, 0], [2, 2, 0, 1], [1, 0, 1, 0]]);
        breakdown.reset();
        assert_eq!(counts(&breakdown), [[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0]]);
    }

    #[test]
    fn only_several_targets_that_are_used_have_figures() {
        let (breakdown, addresses) = (breakdown(), addresses());
        let targets = |used: &[AnyAddress]| -> Vec<_> {
            breakdown.targets(used).into_iter().map(|TargetFigures { target, .. }| target).collect()
        };
        assert_eq!(targets(&addresses[1..]), addresses[1..]);
        assert!(targets(&addresses[..1]).is_empty());
    }
}
