//! The stages of a connection, and how many connections are in each.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The handshake is in progress.
    Connecting,
    /// The first message is outstanding.
    Opening,
    /// At least one message was verified.
    Steady,
    /// Nothing more is sent; the close waits for its turn.
    Finished,
    /// FIN was sent; the peer's FIN is awaited.
    Closing,
}

impl Stage {
    const COUNT: usize = Self::Closing as usize + 1;

    /// Returns whether the measurement of this connection is over.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Closing)
    }
}

/// The connections of a run, counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// The configured number of connections, without those with faults.
    pub(super) requested: u64,
    /// Connections that a rule of a fault chooses, which are opened with the others and are in no stage after their handshake.
    pub(super) faulted: u64,
    /// Connections that are opened in place of others that have ended.
    pub(super) replaced: u64,
    /// Connects that began or could not begin. It is the next connection's number.
    pub(super) opened: u64,
    /// Of `opened`, the connects of connections that a rule of a fault chooses.
    pub(super) opened_faulted: u64,
    /// Connections that have finished their handshake.
    pub(super) established: u64,
    /// Connections that have verified their first message.
    pub(super) verified: u64,
    /// Verified connections that were open at the end of the measurement.
    pub(super) held: u64,
    /// Held connections that had a late reply.
    pub(super) late: u64,
    /// Held connections that had no second reply.
    pub(super) unasked: u64,
    by_stage: [u64; Stage::COUNT],
}

impl Counts {
    pub(super) fn new(requested: u64) -> Self {
        Self {
            requested,
            faulted: 0,
            replaced: 0,
            opened: 0,
            opened_faulted: 0,
            established: 0,
            verified: 0,
            held: 0,
            late: 0,
            unasked: 0,
            by_stage: [0; Stage::COUNT],
        }
    }

    /// Returns whether the connect of every requested connection began.
    pub(super) fn all_opened(&self) -> bool {
        self.opened >= self.total()
    }

    /// Returns how many connections are opened in all.
    pub(super) fn total(&self) -> u64 {
        self.requested + self.faulted + self.replaced
    }

    /// Returns how many connects of measured connections began or could not begin.
    pub(super) fn opened_measured(&self) -> u64 {
        self.opened - self.opened_faulted
    }

    /// Leaves `faulted` of the requested connections out of the measured ones.
    pub(super) fn exclude(&mut self, faulted: u64) {
        (self.requested, self.faulted) = (self.requested - faulted, faulted);
    }

    /// Returns how many connections are open or connecting.
    pub(super) fn open(&self) -> u64 {
        self.by_stage.iter().sum()
    }

    /// Returns how many connections are open: their handshake is complete.
    pub(super) fn connected(&self) -> u64 {
        self.open() - self.at(Stage::Connecting)
    }

    /// Returns how many connections are in `stage`.
    pub(super) fn at(&self, stage: Stage) -> u64 {
        self.by_stage[stage as usize]
    }

    /// Moves a connection from one stage to another. `from` is `None` when its connect begins, and `to` when it ends.
    pub(super) fn change(&mut self, from: Option<Stage>, to: Option<Stage>) {
        if let Some(from) = from {
            self.by_stage[from as usize] -= 1;
        }
        if let Some(to) = to {
            self.by_stage[to as usize] += 1;
        }
        match to {
            Some(Stage::Opening) => self.established += 1,
            Some(Stage::Steady) => self.verified += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_counted_in_one_stage_at_a_time() {
        let mut counts = Counts::new(1);
        let stages = [Stage::Connecting, Stage::Opening, Stage::Steady, Stage::Finished, Stage::Closing];
        let mut from = None;
        for stage in stages {
            counts.change(from, Some(stage));
            assert_eq!((counts.open(), counts.at(stage)), (1, 1));
            assert_eq!(counts.connected(), u64::from(stage != Stage::Connecting));
            from = Some(stage);
        }
        counts.change(from, None);
        assert_eq!((counts.open(), counts.established, counts.verified), (0, 1, 1));
    }

    #[test]
    fn connections_with_faults_and_replacements_are_opened_beside_the_measured_ones() {
        let mut counts = Counts::new(10);
        counts.exclude(3);
        assert_eq!((counts.requested, counts.total()), (7, 10));
        counts.replaced = 2;
        counts.opened = 11;
        assert!(!counts.all_opened());
        counts.opened = 12;
        assert!(counts.all_opened());
    }
}
