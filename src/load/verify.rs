//! Verifies the bytes that come back on a connection.

mod diagnosis;

pub(crate) use self::diagnosis::Corruption;
use self::diagnosis::Diagnosis;
use super::pattern::Pattern;
use super::report::FindingKind;

/// Bytes of evidence that decide, unless more than this is missing.
const EVIDENCE: usize = 4 << 10;
/// Bytes of each excerpt.
const EXCERPT: usize = 16;
/// Maximum bytes of evidence.
const EVIDENCE_MAX: usize = 64 << 10;

/// Compares the bytes that come back on a connection with those sent.
///
/// Every connection has one, so the memory for a mismatch is allocated only when there is one.
#[derive(Debug)]
pub(crate) struct Verifier {
    connection: u64,
    /// Number of bytes that came back intact.
    verified: u64,
    suspicion: Option<Box<Suspicion>>,
}

/// The bytes received from the first wrong one on.
#[derive(Debug, Default)]
struct Suspicion {
    evidence: Vec<u8>,
    /// Number of bytes that decide.
    enough: usize,
}

/// The result of verifying the bytes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Checked {
    /// They are those sent.
    Right,
    /// They are wrong; the following bytes decide in which way.
    Undecided,
    /// They are corrupted.
    Wrong(Corruption),
}

/// Why no more bytes will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server sent FIN: bytes that are missing are lost.
    Fin,
    /// A timeout, a reset or an interruption: bytes that are missing may be on their way.
    Cut,
}

impl Verifier {
    pub(crate) fn new(connection: u64) -> Self {
        Self { connection, verified: 0, suspicion: None }
    }

    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Expects byte `position` of the pattern next. Nothing that was sent is outstanding.
    pub(crate) fn skip_to(&mut self, position: u64) {
        self.verified = position;
    }

    /// Returns whether wrong bytes came whose kind is still undecided.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Returns the number of bytes that came back intact; after a corruption, its offset.
    pub(crate) fn verified(&self) -> u64 {
        self.verified
    }

    /// Returns the bytes that were expected from the first wrong one on, and those that came, after a corruption. There are fewer if
    /// fewer were sent or came.
    pub(crate) fn excerpts(&self, pattern: &Pattern, sent: u64) -> (Vec<u8>, Vec<u8>) {
        let mut expected = [0; EXCERPT];
        pattern.fill(self.connection, self.verified, &mut expected);
        let length = usize::try_from(sent.saturating_sub(self.verified)).map_or(EXCERPT, |left| left.min(EXCERPT));
        let evidence = self.suspicion.as_ref().map_or(&[][..], |suspicion| &suspicion.evidence);
        (expected[..length].to_vec(), evidence[..evidence.len().min(EXCERPT)].to_vec())
    }

    /// Verifies the bytes of a read, when `sent` bytes of the stream are sent and the run has opened `opened` connections.
    #[inline]
    pub(crate) fn receive(&mut self, pattern: &Pattern, data: &[u8], sent: u64, opened: u64) -> Checked {
        if self.suspicion.is_some() {
            return self.suspect(pattern, data, sent, opened);
        }
        // Bytes that are not sent yet cannot come back, even if they continue the stream.
        let expected = usize::try_from(sent - self.verified).map_or(data.len(), |left| left.min(data.len()));
        let right = pattern.count_right(self.connection, self.verified, &data[..expected]);
        self.verified += right as u64;
        if right == data.len() {
            return Checked::Right;
        }
        self.suspect(pattern, &data[right..], sent, opened)
    }

    /// Decides with the bytes received, because no more will come.
    pub(crate) fn conclude(&mut self, pattern: &Pattern, sent: u64, opened: u64, end: End) -> Option<Corruption> {
        if let Some(suspicion) = &self.suspicion {
            return Some(self.diagnosis(pattern, &suspicion.evidence, sent, opened).classify());
        }
        let lost_bytes = sent - self.verified;
        (end == End::Fin && lost_bytes > 0)
            .then(|| Corruption { lost_bytes, ..Corruption::new(FindingKind::Truncated, self.verified) })
    }

    #[cold]
    fn suspect(&mut self, pattern: &Pattern, data: &[u8], sent: u64, opened: u64) -> Checked {
        if self.verified >= sent {
            let corruption = self.diagnosis(pattern, data, sent, opened).classify_surplus();
            let evidence = data[..data.len().min(EXCERPT)].to_vec();
            self.suspicion = Some(Box::new(Suspicion { evidence, enough: 0 }));
            return Checked::Wrong(corruption);
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
                self.suspicion = Some(suspicion);
                return Checked::Wrong(corruption);
            }
            // The bytes that seem lost may follow as many others: wait for these.
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
