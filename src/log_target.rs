/// The target of every log record of this crate.
pub(crate) const LOG_TARGET: &str = "ecoloop";
