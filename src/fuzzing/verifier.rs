//! The verifier of the load generator.

use std::sync::LazyLock;

use super::Input;
use crate::load::pattern::Pattern;
use crate::load::verify::{Checked, End, Verifier};

static PATTERN: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(1));
const CONNECTIONS: u64 = 8;
const SENT_MAX: usize = 16 << 10;

/// Returns what came back, of `sent` bytes, changed as the input says.
fn altered(connection: u64, sent: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while !input.is_empty() && at < sent.len() {
        let length = (1 + usize::from(input.byte())).min(sent.len() - at);
        let part = &sent[at..at + length];
        match input.below(8) {
            // It is lost, is doubled, or comes with a wrong byte.
            0 => {}
            1 => out.extend(part.repeat(2)),
            2 => {
                out.extend(part);
                let last = out.len() - 1;
                out[last] ^= input.byte();
            }
            // What another connection sent comes, and then its own.
            3 => {
                let mut other = vec![0; length];
                PATTERN.fill((connection + 1 + u64::from(input.byte()) % 2) % CONNECTIONS, at as u64, &mut other);
                out.extend(other);
                out.extend(part);
            }
            _ => out.extend(part),
        }
        at += length;
    }
    if input.is_empty() {
        out.extend(&sent[at..]);
    }
    out
}

/// Has what came back verified, in pieces: the verifier finds a difference exactly where there is one.
pub fn verifier(data: &[u8]) {
    let mut input = Input(data);
    let connection = u64::from(input.byte()) % CONNECTIONS;
    let mut sent = vec![0; (1 + usize::from(input.byte()) * 64).min(SENT_MAX)];
    PATTERN.fill(connection, 0, &mut sent);
    let piece = 1 + usize::from(input.byte()) * 8;
    let received = altered(connection, &sent, &mut input);

    let mut verifier = Verifier::new(connection);
    let mut found = None;
    for part in received.chunks(piece) {
        match verifier.receive(&PATTERN, part, sent.len() as u64, CONNECTIONS) {
            Checked::Right => assert!(!verifier.is_suspicious()),
            Checked::Undecided => assert!(verifier.is_suspicious()),
            Checked::Wrong(corruption) => {
                found = Some(corruption);
                break;
            }
        }
    }
    let found = found.or_else(|| verifier.conclude(&PATTERN, sent.len() as u64, CONNECTIONS, End::Fin));
    let right = usize::try_from(verifier.verified()).unwrap();
    assert_eq!(received[..right], sent[..right]);
    let next = (received.get(right), sent.get(right));
    assert!(next.0 != next.1 || next == (None, None), "byte {right} is right, and not verified");
    assert_eq!(found.is_some(), received != sent);
    let (expected, came) = verifier.excerpts(&PATTERN, sent.len() as u64);
    assert!(sent[right..].starts_with(&expected) && received[right..].starts_with(&came));
}
