//! Connections that misbehave on purpose beside those that are measured: which they are, when each continues, and how it ended.

mod client;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

pub(super) use self::client::{FaultedClient, Progress, Shared};
use super::config::Config;
use super::report::FaultFigures;
use crate::ValueError;
use crate::fault::{Fault, Kind, Rules};
use crate::timers::Timers;

/// The kinds that a client can have. The others change the bytes of a server or its listening sockets.
const KINDS: [Kind; 4] = [Kind::Rate, Kind::Stall, Kind::Reset, Kind::Fin];

/// How a connection with a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server sent FIN.
    Closed,
    /// The server sent RST.
    Reset,
    /// It sent FIN or RST itself.
    Own,
}

/// The rules of a run, and what they did.
#[derive(Debug)]
pub(super) struct Faults {
    in_order: Vec<Fault>,
    rules: Rules,
    /// The numbers of the connections that a rule may choose are below: one that is opened anew is measured.
    numbers_end: u64,
    figures: Vec<FaultFigures>,
    /// When connections continue that wait for a time, in nanoseconds of the run, each with its key.
    pub(super) timers: Timers<u64>,
}

impl Faults {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            in_order: config.faults.clone(),
            rules: Rules::new(&config.faults, config.seed, Instant::now()),
            numbers_end: config.rank().nth(config.connections.into()),
            figures: config.faults.iter().map(|fault| FaultFigures::new(fault.to_string())).collect(),
            timers: Timers::new(),
        }
    }

    /// Checks that each rule is one for a client, and that those which can meet on a connection add up.
    pub(super) fn check(faults: &[Fault]) -> Result<(), ValueError> {
        for fault in faults {
            let name = fault.kind().name();
            if !KINDS.contains(&fault.kind()) {
                return Err(format!("{name} is a fault of a server: a client has rate, stall, reset and fin").into());
            }
            let keys = [("from", fault.selector.from.is_some()), ("at", fault.selector.at.is_some())];
            if let Some((key, _)) = keys.into_iter().find(|(_, is_given)| *is_given) {
                return Err(format!(
                    "{key} does not apply to a client's {name}, which takes p, first, after and every"
                )
                .into());
            }
        }
        Fault::check_all(faults)
    }

    /// Returns how many of the connections of this generator a rule chooses.
    pub(super) fn count_chosen(&self, config: &Config) -> u64 {
        if self.in_order.is_empty() {
            return 0;
        }
        (0..config.connections.into()).filter(|&index| self.chooses(config.rank().nth(index))).count() as u64
    }

    /// Returns whether a rule chooses connection `number`, from 0 on.
    pub(super) fn chooses(&self, number: u64) -> bool {
        !self.in_order.is_empty() && number < self.numbers_end && !self.draw(number).is_empty()
    }

    /// Returns the rules that choose connection `number`, from 0 on.
    fn draw(&self, number: u64) -> Vec<Fault> {
        // The address decides nothing: `check` refuses `from`.
        self.rules.draw(number + 1, IpAddr::V4(Ipv4Addr::UNSPECIFIED)).faults
    }

    /// Draws the rules of connection `number`, which is established, and returns them with their places.
    pub(super) fn begin(&mut self, number: u64) -> (Vec<Fault>, Vec<usize>) {
        let drawn = self.draw(number);
        let places: Vec<_> =
            drawn.iter().filter_map(|fault| self.in_order.iter().position(|rule| rule == fault)).collect();
        for &place in &places {
            self.figures[place].connections += 1;
            self.figures[place].open += 1;
        }
        (drawn, places)
    }

    /// Records how a connection of the rules at `places` ended.
    pub(super) fn record_end(&mut self, places: &[usize], outcome: Outcome) {
        for &place in places {
            let figures = &mut self.figures[place];
            figures.open -= 1;
            *match outcome {
                Outcome::Closed => &mut figures.closed,
                Outcome::Reset => &mut figures.reset,
                Outcome::Own => &mut figures.own_end,
            } += 1;
        }
    }

    pub(super) fn figures(&self) -> &[FaultFigures] {
        &self.figures
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::rank::Rank;
    use super::*;
    use crate::socket_address::AnyAddress;

    fn config(rules: &[&str]) -> Config {
        let faults = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Config { connections: 11, faults, ..Config::new(Vec::<AnyAddress>::new()) }
    }

    #[test]
    fn rules_choose_among_the_first_connections_and_leave_those_opened_anew() {
        let mut config = config(&["rate=1KiB,every=3"]);
        let chosen = |faults: &Faults| (0..40).filter(|&number| faults.chooses(number)).collect::<Vec<_>>();
        // Every third of 11. The one after the last of them would be the twelfth.
        let faults = Faults::new(&config);
        assert_eq!((chosen(&faults), faults.count_chosen(&config)), (vec![2, 5, 8], 3));
        // The second of two ranks opens 1, 3 and so on up to 21.
        config.rank = Some(Rank { index: 1, count: 2 });
        let faults = Faults::new(&config);
        assert_eq!((chosen(&faults), faults.count_chosen(&config)), (vec![2, 5, 8, 11, 14, 17, 20], 3));
        config.faults.clear();
        let faults = Faults::new(&config);
        assert_eq!((chosen(&faults), faults.count_chosen(&config)), (vec![], 0));
    }

    #[test]
    fn the_connections_that_ranks_measure_together_are_those_that_no_rule_chooses() {
        let mut config = config(&["rate=1KiB,first=3"]);
        for rank in [None, Some(Rank { index: 1, count: 2 })] {
            config.rank = rank;
            assert_eq!(config.measured_connections(), 8, "{rank:?}");
        }
        config.faults.clear();
        assert_eq!(config.measured_connections(), 11);
    }

    #[test]
    fn a_connection_is_in_the_figures_of_each_of_its_rules() {
        let mut faults = Faults::new(&config(&["rate=1KiB,every=3", "reset=1KiB,first=3"]));
        let places = [2, 5, 8].map(|number| faults.begin(number).1);
        assert_eq!(places, [vec![0, 1], vec![0], vec![0]]);
        for (places, outcome) in places.iter().zip([Outcome::Own, Outcome::Closed]) {
            faults.record_end(places, outcome);
        }
        let new = |rule: &str| FaultFigures::new(rule.to_owned());
        let slow = FaultFigures { connections: 3, open: 1, closed: 1, own_end: 1, ..new("rate=1KiB,every=3") };
        let reset = FaultFigures { connections: 1, own_end: 1, ..new("reset=1KiB,first=3") };
        assert_eq!(faults.figures(), [slow, reset]);
    }
}
