//! Tests of the profiles in Cargo.toml.

use std::hint::black_box;
use std::panic::catch_unwind;

#[test]
fn a_sum_that_does_not_fit_panics_in_each_profile() {
    assert!(catch_unwind(|| black_box(usize::MAX) + black_box(1)).is_err());
}
