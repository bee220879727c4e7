//! The targets of `tests/fuzz`, compiled for it and for the tests. Each takes any bytes, and panics where a promise does not hold.

#![expect(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, reason = "a target fails by panicking")]

mod connection;
#[cfg(feature = "load")]
mod documents;
mod reactor;
mod text;
#[cfg(feature = "load")]
mod verifier;

pub use self::connection::{connection, faults};
#[cfg(feature = "load")]
pub use self::documents::{histogram, merge};
pub use self::reactor::run_queue;
pub use self::text::{parsers, proxy_header};
#[cfg(feature = "load")]
pub use self::verifier::verifier;
use crate::simulation::simulate;

/// Plays a script to a whole server over a modelled kernel.
pub fn server(script: &[u8]) {
    simulate(script, &mut None).unwrap_or_else(|failure| panic!("{failure}"));
}

/// The bytes of an input, from which a target takes one decision after the other. After the last one each is 0.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// Returns a number below `end`, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    #[cfg(feature = "load")]
    fn word(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;

    type Target = fn(&[u8]);

    /// The names of the folders in `tests/corpus`, each with its target.
    const TARGETS: [(&str, Target); 6] = [
        ("server", super::server),
        ("connection", super::connection),
        ("faults", super::faults),
        ("run_queue", super::run_queue),
        ("parsers", super::parsers),
        ("proxy_header", super::proxy_header),
    ];
    #[cfg(feature = "load")]
    const TARGETS_OF_LOAD: [(&str, Target); 3] =
        [("verifier", super::verifier), ("merge", super::merge), ("histogram", super::histogram)];
    #[cfg(not(feature = "load"))]
    const TARGETS_OF_LOAD: [(&str, Target); 0] = [];

    #[test]
    fn the_corpus_of_each_target_passes() {
        for (name, target) in TARGETS.into_iter().chain(TARGETS_OF_LOAD) {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
            let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(!files.is_empty(), "no input of {name}");
            for file in files {
                target(&fs::read(file).unwrap());
            }
        }
    }

    proptest! {
        // 4096 scripts, or 16 times as many as PROPTEST_CASES says.
        #![proptest_config(ProptestConfig {
            cases: 16 * ProptestConfig::default().cases, failure_persistence: None, ..ProptestConfig::default()
        })]

        /// A failure prints the shortest input that it finds: it belongs into the corpus.
        #[test]
        fn random_scripts_of_peers_kernels_faults_and_clocks_pass(script in vec(any::<u8>(), 0..400)) {
            super::connection(&script);
            super::faults(&script);
            super::run_queue(&script);
        }
    }
}
