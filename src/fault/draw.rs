//! Which rules hold for a connection.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Connect, Effect, Fault, Kind, Selector};
use crate::clock;
use crate::network;
use crate::splitmix::splitmix64;

/// The rules of a server.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    faults: Vec<Fault>,
    seed: u64,
    started: Instant,
}

/// What a connection has drawn: its rules, and a seed for what is random on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drawn {
    pub(crate) faults: Vec<Fault>,
    pub(crate) seed: u64,
}

impl Rules {
    pub(crate) fn new(faults: &[Fault], seed: u64, started: Instant) -> Self {
        Self { faults: faults.to_vec(), seed, started }
    }

    /// Draws for connection `number`, from 1 on: of each kind the first rule that chooses it. The connection comes from `ip`.
    pub(crate) fn draw(&self, number: u64, ip: IpAddr) -> Drawn {
        if self.faults.is_empty() {
            return Drawn::default();
        }
        self.draw_at(number, ip, clock::now().saturating_duration_since(self.started))
    }

    fn draw_at(&self, number: u64, ip: IpAddr, elapsed: Duration) -> Drawn {
        let mut faults: Vec<Fault> = Vec::new();
        for (rule, fault) in self.faults.iter().enumerate() {
            let is_new = !faults.iter().any(|earlier| earlier.kind() == fault.kind());
            if is_new && fault.kind() != Kind::Connect && self.chooses(rule, number, ip, elapsed) {
                faults.push(fault.clone());
            }
        }
        Drawn { faults, seed: self.connection_seed(number) }
    }

    /// Returns the rule that resets accept `number` right after the handshake, if there is one.
    pub(crate) fn draw_reset(&self, number: u64) -> Option<&Fault> {
        if self.faults.is_empty() {
            return None;
        }
        let elapsed = clock::now().saturating_duration_since(self.started);
        let is_chosen = |&(rule, fault): &(usize, &Fault)| {
            fault.selector.percent.is_none_or(|percent| self.percentile(rule, number) < percent)
        };
        let (_, fault) = connect_rules(&self.faults, elapsed).find(is_chosen)?;
        (fault.effect == Effect::Connect(Connect::Reset)).then_some(fault)
    }

    /// Returns what holds for the listening sockets: the first rule of its kind whose time it is.
    pub(crate) fn listening(&self, now: Instant) -> Option<Connect> {
        listening_after(&self.faults, now.saturating_duration_since(self.started))
    }

    /// Returns the next time, after `now`, at which [`listening`](Self::listening) may change.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        self.next_change_after(now.saturating_duration_since(self.started)).map(|time| self.started + time)
    }

    fn next_change_after(&self, elapsed: Duration) -> Option<Duration> {
        let connects = self.faults.iter().filter(|fault| fault.kind() == Kind::Connect);
        let times = connects.filter_map(|fault| fault.selector.at.as_ref()).flat_map(|at| [at.start, at.end]);
        times.filter(|&time| time > elapsed).min()
    }

    /// Returns a seed for what is random on connection `number`.
    fn connection_seed(&self, number: u64) -> u64 {
        splitmix64(self.seed ^ splitmix64(number))
    }

    fn chooses(&self, rule: usize, number: u64, ip: IpAddr, elapsed: Duration) -> bool {
        let Selector { percent, first, after, every, from, at } = &self.faults[rule].selector;
        percent.is_none_or(|percent| self.percentile(rule, number) < percent)
            && first.is_none_or(|first| number <= first)
            && after.is_none_or(|after| number > after)
            && every.is_none_or(|every| number.is_multiple_of(every))
            && from.is_none_or(|from| network::canonical(from).contains(&ip.to_canonical()))
            && at.as_ref().is_none_or(|at| at.contains(&elapsed))
    }

    /// Returns a hash of the seed, the rule and the connection, from 0 to less than 100.
    fn percentile(&self, rule: usize, number: u64) -> f64 {
        let hash = splitmix64(self.connection_seed(number) ^ splitmix64(rule as u64 + 1));
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let fraction = (hash >> 11) as f64 / (1_u64 << 53) as f64;
        fraction * 100.0
    }
}

/// Returns what holds for the listening sockets before they listen.
pub(crate) fn listening_at_start(faults: &[Fault]) -> Option<Connect> {
    listening_after(faults, Duration::ZERO)
}

fn listening_after(faults: &[Fault], elapsed: Duration) -> Option<Connect> {
    // A rule with a percentage leaves the connections that it does not choose to the next one.
    match connect_rules(faults, elapsed).find(|(_, fault)| fault.selector.percent.is_none())?.1.effect {
        Effect::Connect(connect) => Some(connect),
        _ => None,
    }
}

/// Returns the rules of the listening sockets whose time it is, with their numbers.
fn connect_rules(faults: &[Fault], elapsed: Duration) -> impl Iterator<Item = (usize, &Fault)> {
    let holds = move |selector: &Selector| selector.at.as_ref().is_none_or(|at| at.contains(&elapsed));
    faults.iter().enumerate().filter(move |(_, fault)| fault.kind() == Kind::Connect && holds(&fault.selector))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn rules(texts: &[&str], seed: u64) -> Rules {
        let faults: Vec<Fault> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Rules::new(&faults, seed, Instant::now())
    }

    /// Returns the numbers up to `most` that the rules choose, for a connection from 10.0.0.1 after 1 s.
    fn chosen(rules: &Rules, most: u64) -> Vec<u64> {
        let ip = "10.0.0.1".parse().unwrap();
        (1..=most).filter(|&number| !rules.draw_at(number, ip, Duration::from_secs(1)).faults.is_empty()).collect()
    }

    #[test]
    fn every_selector_of_a_rule_must_hold() {
        for (selectors, expected) in [
            ("", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12][..]),
            ("first=3", &[1, 2, 3]),
            ("after=10", &[11, 12]),
            ("every=5", &[5, 10]),
            ("every=1,first=2", &[1, 2]),
            ("every=3,after=3,first=9", &[6, 9]),
            ("from=10.0.0.0/8,first=2", &[1, 2]),
            ("from=::ffff:10.0.0.0/104,first=1", &[1]),
            ("from=10.0.0.2", &[]),
            ("at=1s..2s,first=1", &[1]),
            ("at=0s..1s", &[]),
            ("p=0%", &[]),
            ("p=100%,first=2", &[1, 2]),
            ("p=0%,first=2", &[]),
        ] {
            let rule = format!("mute,{selectors}").trim_end_matches(',').to_owned();
            assert_eq!(chosen(&rules(&[&rule], 1), 12), expected, "{rule}");
        }
    }

    #[test]
    fn a_percentage_repeats_with_its_seed_and_each_rule_draws_for_itself() {
        let five = chosen(&rules(&["mute,p=5%"], 1), 100_000);
        assert!((4500..5500).contains(&five.len()), "{}", five.len());
        assert_eq!(five, chosen(&rules(&["mute,p=5%"], 1), 100_000));
        assert_ne!(five, chosen(&rules(&["mute,p=5%"], 2), 100_000));
        for seed in [0, u64::MAX] {
            let five = chosen(&rules(&["mute,p=5%"], seed), 100_000);
            assert!((4500..5500).contains(&five.len()), "{} with the seed {seed}", five.len());
        }
        let both = rules(&["mute,p=20%", "delay=1ms,p=20%"], 1);
        let ip = "10.0.0.1".parse().unwrap();
        let count = (1..=100_000).filter(|&number| both.draw_at(number, ip, Duration::ZERO).faults.len() == 2).count();
        assert!((3500..4500).contains(&count), "{count} of 100,000 have both rules");
    }

    #[test]
    fn a_seed_chooses_the_same_connections_in_every_version() {
        // Computed with an implementation of `SplitMix64` in another language.
        assert_eq!(chosen(&rules(&["mute,p=5%"], 1), 100), [3, 15, 41, 45, 58, 68, 73, 92]);
        assert_eq!(chosen(&rules(&["rate=1,at=5s..6s", "mute,p=5%"], 1), 100), [58, 75], "the second rule");
        // With this seed the hash of connection 1 is 0.
        let least = 0x7201_eb68_e9b1_3d04;
        assert_eq!(chosen(&rules(&["mute,p=0%"], least), 1), [0; 0]);
        assert_eq!(chosen(&rules(&["mute,p=0.000000000000001%"], least), 1), [1]);
    }

    #[test]
    fn a_connection_draws_its_rules_and_a_seed_of_its_own() {
        let (rules, ip) = (rules(&["mute,first=1", "delay=1ms..2ms"], 1), "::1".parse().unwrap());
        let (one, two) = (rules.draw(1, ip), rules.draw(2, ip));
        assert_eq!((&one.faults, &two.faults), (&rules.faults, &rules.faults[1..].to_vec()));
        assert_ne!(one.seed, two.seed);
        assert_eq!(one.seed, rules.draw(1, ip).seed);
    }

    #[test]
    fn of_each_kind_the_first_rule_that_chooses_holds() {
        let rules = rules(&["delay=1ms,first=1", "rate=1KiB,after=2", "delay=2ms", "delay=3ms", "rate=2KiB"], 1);
        let texts = |number| {
            let drawn = rules.draw_at(number, "::1".parse().unwrap(), Duration::ZERO);
            drawn.faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(1), ["delay=1ms,first=1", "rate=2KiB"]);
        assert_eq!(texts(2), ["delay=2ms", "rate=2KiB"]);
        assert_eq!(texts(3), ["rate=1KiB,after=2", "delay=2ms"]);
    }

    #[test]
    fn the_listening_sockets_change_at_the_times_of_their_rules() {
        let rules =
            rules(&["connect=hang,at=1s..2s", "mute,at=3s..4s", "connect=refuse,at=1500ms..5s", "delay=1ms"], 1);
        let (mut now, mut states) = (rules.started, vec![listening_at_start(&rules.faults)]);
        let mut times = Vec::new();
        while let Some(next) = rules.next_change(now) {
            now = next;
            times.push((now - rules.started).as_millis());
            states.push(rules.listening(now));
        }
        assert_eq!(times, [1000, 1500, 2000, 5000]);
        let (hang, refuse) = (Some(Connect::Hang), Some(Connect::Refuse));
        assert_eq!(states, [None, hang, hang, refuse, None]);
        assert!(
            rules
                .draw_at(1, "::1".parse().unwrap(), Duration::ZERO)
                .faults
                .iter()
                .all(|fault| fault.kind() == Kind::Delay)
        );
    }

    #[test]
    fn a_rule_of_the_first_moment_holds_before_the_listening_sockets_listen() {
        let at_start = |rule: &str| listening_at_start(&[rule.parse().unwrap()]);
        assert_eq!(at_start("connect=refuse,at=0s..1s"), Some(Connect::Refuse));
        assert_eq!(at_start("connect=hang"), Some(Connect::Hang));
    }

    #[test]
    fn what_a_percentage_of_resets_does_not_choose_is_left_to_the_next_rule() {
        let paced = rules(&["connect=reset,p=50%", "connect=100ms"], 1);
        assert_eq!(paced.listening(paced.started), Some(Connect::Every(Duration::from_millis(100))));
        let two = rules(&["connect=reset,p=50%", "connect=reset,p=50%"], 1);
        let count = (1..=1000).filter(|&number| two.draw_reset(number).is_some()).count();
        assert!((700..800).contains(&count), "{count}");
    }

    #[test]
    fn a_percentage_of_the_connections_is_reset_at_their_accept() {
        let count = |text: &str| {
            let rules = Rules::new(&[text.parse().unwrap()], 0, clock::now());
            (1..=1000).filter(|&number| rules.draw_reset(number).is_some()).count()
        };
        assert_eq!([count("connect=reset,p=0%"), count("connect=reset,p=100%")], [0, 1000]);
        assert!((200..300).contains(&count("connect=reset,p=25%")));
    }
}
