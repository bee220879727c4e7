//! How fields of the document are written and read that serde has no form for.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserializer, Serialize};

/// More labels than a command line has room for.
pub(super) const LABELS_MAX: usize = 1 << 16;

/// Serializes a whole number without a fraction: 2000, not 2000.0.
#[expect(clippy::ref_option, reason = "the signature that serde requires")]
pub(super) fn number<S: serde::Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match *value {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within the range that a float counts exactly")]
        Some(value) if value.fract() == 0.0 && value.abs() < 9e15 => serializer.serialize_i64(value as i64),
        value => value.serialize(serializer),
    }
}

/// Deserializes labels up to [`LABELS_MAX`]: a short one takes ten times its text.
pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Labels;

    impl<'de> Visitor<'de> for Labels {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "at most {LABELS_MAX} labels")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut labels = BTreeMap::new();
            while let Some((key, value)) = map.next_entry()? {
                labels.insert(key, value);
                if labels.len() > LABELS_MAX {
                    return Err(de::Error::invalid_length(labels.len(), &self));
                }
            }
            Ok(labels)
        }
    }

    deserializer.deserialize_map(Labels)
}

/// A time as RFC 3339 with milliseconds, in UTC.
pub(super) mod rfc3339 {
    use std::fmt::Write;
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(in super::super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        // humantime panics before 1970, where only a clock that was never set can be.
        let time = (*time).max(SystemTime::UNIX_EPOCH);
        // Not `to_string`, which panics after the year 9999.
        let mut text = String::new();
        write!(text, "{}", humantime::format_rfc3339_millis(time)).map_err(ser::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(|error| de::Error::custom(format!("{text:?} is not a time: {error}")))
    }
}
