//! The tests of the whole: one crate, one file a theme.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test a panic is the answer")]

mod echo;
mod support;
