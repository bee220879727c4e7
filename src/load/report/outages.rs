//! How long connections were down that ended and were opened anew.

use serde::{Deserialize, Serialize};

use super::summary::Summary;

/// The outages of connections that are opened anew when they end.
///
/// An outage begins when the first message was due that has no reply, or when the connection ended if it awaited none. It ends with the
/// first reply on the connection that replaces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outages {
    /// Verified connections that ended before the measured window did.
    pub count: u64,
    /// Outages that ended before the measured window did.
    pub recovered: u64,
    /// Connects that were begun, successful or not.
    pub attempts: u64,
    /// The longest outage, in microseconds; one that lasts is counted up to the end of the window.
    pub longest_us: u64,
    /// The lengths of the outages. Those that were not over at the end of the window are in it with their age, and counted as `censored`.
    pub recovery_us: Summary,
}
