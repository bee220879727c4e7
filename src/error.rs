//! Errors with the operation and its operand.

use std::error::Error;
use std::fmt::{self, Display};
use std::io;

/// What is wrong with a value, or with the text of one: an address, a rule of a fault, a range of sources, a threshold, a rank.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "load")] {
/// use ecoloop::{ValueError, load::Threshold};
///
/// let error: ValueError = "p99".parse::<Threshold>().unwrap_err();
/// assert_eq!(error.to_string(), "expected METRIC, one of < > <= >=, and a value, such as p99>5ms");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueError(String);

impl Display for ValueError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Error for ValueError {}

impl From<String> for ValueError {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

impl From<&str> for ValueError {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl From<ValueError> for String {
    fn from(error: ValueError) -> Self {
        error.0
    }
}

/// An error of the system, and the operation that it has ended.
#[derive(Debug)]
struct Failed {
    operation: String,
    source: io::Error,
}

impl Display for Failed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot {}: {}", self.operation, self.source)
    }
}

impl Error for Failed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Returns an error of the same kind that names the operation, with its operand, and has the other one as its source.
pub(crate) fn cannot(operation: impl Display, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Failed { operation: operation.to_string(), source })
}
