//! The verification of what comes back on one connection, and what a server did to it that is not an echo.

mod diagnosis;

pub(crate) use self::diagnosis::Corruption;
use self::diagnosis::Diagnosis;
use super::pattern::Pattern;
use super::report::FindingKind;

/// So much evidence is certain, unless more is missing than this.
const EVIDENCE: usize = 4 << 10;
/// No more evidence is kept than this.
const EVIDENCE_MAX: usize = 64 << 10;
/// Compares what comes back on a connection with what it sent.
///
/// One stands in every connection held: what a mismatch needs is allocated when there is one.
#[derive(Debug)]
pub(crate) struct Verifier {
    connection: u64,
    /// Bytes that came back right.
    verified: u64,
    suspicion: Option<Box<Suspicion>>,
}

/// What came in from the first wrong byte on.
#[derive(Debug, Default)]
struct Suspicion {
    evidence: Vec<u8>,
    /// How much of it is enough to decide.
    enough: usize,
}

/// What was read is ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Checked {
    /// ... what was sent.
    Right,
    /// ... wrong, and what comes next will say in which way.
    Undecided,
    Wrong(Corruption),
}

/// Why no more will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer ended its direction: what is missing now is lost.
    Fin,
    /// A timeout, a reset or an interruption: it may have been on its way.
    Cut,
}

impl Verifier {
    pub(crate) fn new(connection: u64) -> Self {
        Self { connection, verified: 0, suspicion: None }
    }

    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Whether wrong bytes came, and it is not decided yet what they are.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspicion.is_some()
    }

    /// How many bytes came back right; at a corruption, its offset.
    pub(crate) fn verified(&self) -> u64 {
        self.verified
    }

    /// Takes what was read next, when `sent` bytes of the stream have been sent, and `opened` connections were opened in this run.
    pub(crate) fn receive(&mut self, pattern: &Pattern, data: &[u8], sent: u64, opened: u64) -> Checked {
        if self.suspicion.is_some() {
            return self.suspect(pattern, data, sent, opened);
        }
        // What was not sent yet cannot come back, even if it is what the stream goes on with.
        let expected = usize::try_from(sent - self.verified).map_or(data.len(), |left| left.min(data.len()));
        let right = pattern.count_right(self.connection, self.verified, &data[..expected]);
        self.verified += right as u64;
        if right == data.len() {
            return Checked::Right;
        }
        self.suspect(pattern, &data[right..], sent, opened)
    }

    /// No more will come: what there is must do.
    pub(crate) fn conclude(&mut self, pattern: &Pattern, sent: u64, opened: u64, end: End) -> Option<Corruption> {
        if let Some(suspicion) = self.suspicion.take() {
            return Some(self.diagnosis(pattern, &suspicion.evidence, sent, opened).classify());
        }
        let lost_bytes = sent - self.verified;
        (end == End::Fin && lost_bytes > 0)
            .then(|| Corruption { lost_bytes, ..Corruption::new(FindingKind::Truncated, self.verified) })
    }

    #[cold]
    fn suspect(&mut self, pattern: &Pattern, data: &[u8], sent: u64, opened: u64) -> Checked {
        if self.verified >= sent {
            return Checked::Wrong(self.diagnosis(pattern, data, sent, opened).classify_surplus());
        }
        let mut suspicion =
            self.suspicion.take().unwrap_or_else(|| Box::new(Suspicion { evidence: Vec::new(), enough: EVIDENCE }));
        let evidence = &mut suspicion.evidence;
        evidence.extend_from_slice(&data[..data.len().min(EVIDENCE_MAX - evidence.len())]);
        let accounted_for = self.verified + evidence.len() as u64 >= sent;
        if accounted_for || evidence.len() >= suspicion.enough {
            let corruption = self.diagnosis(pattern, evidence, sent, opened).classify();
            let follows = usize::try_from(2 * corruption.lost_bytes).unwrap_or(EVIDENCE_MAX).min(EVIDENCE_MAX);
            if accounted_for || evidence.len() >= follows {
                return Checked::Wrong(corruption);
            }
            // What seems lost may follow the bytes that came in its place, which are often as many.
            suspicion.enough = follows;
        }
        self.suspicion = Some(suspicion);
        Checked::Undecided
    }

    fn diagnosis<'a>(&self, pattern: &'a Pattern, evidence: &'a [u8], sent: u64, opened: u64) -> Diagnosis<'a> {
        Diagnosis { pattern, connection: self.connection, offset: self.verified, evidence, sent, opened }
    }
}

#[cfg(test)]
mod tests;
