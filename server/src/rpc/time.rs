//! Times on the wire: integer milliseconds since 1970, or an RFC 3339 string on the way in.
//!
//! Invariant: a time that was taken in lies within the years −9999 to 9999, so that it can always be written as RFC 3339
//! again. It must not know what the time is for.

use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TsMs(pub i64);

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
/// From the beginning of the year −9999 to the end of the year 9999, UTC.
const ALLOWED_MS: std::ops::RangeInclusive<i64> = -377_705_116_800_000..=253_402_300_799_999;

const ALLOWED: &str =
    "integer milliseconds since 1970, or an RFC 3339 string such as \"2024-05-06T07:08:09Z\"";

impl TsMs {
    /// The time now.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// Parses RFC 3339; a fraction of a millisecond is cut off.
    ///
    /// # Errors
    /// When the text is not a date and time with an offset.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fail = || format!("`{}` is not a time; allowed: {ALLOWED}", shorten(text));
        // By its pieces: jiff's own `Timestamp` ends a day before the year 9999 does.
        let pieces = Pieces::parse(text).map_err(|_| fail())?;
        let (Some(time), Some(offset)) = (pieces.time(), pieces.to_numeric_offset()) else {
            return Err(fail());
        };
        let since = pieces.date().to_datetime(time).duration_since(EPOCH);
        let ms = since.as_secs() * 1000 + i64::from(since.subsec_millis());
        // A fraction before 1970 counts backwards: cut off towards the past, as after 1970.
        let ms = if since.subsec_nanos() % 1_000_000 < 0 { ms - 1 } else { ms };
        Self::checked(ms - i64::from(offset.seconds()) * 1000)
    }

    fn checked(ms: i64) -> Result<Self, String> {
        if ALLOWED_MS.contains(&ms) {
            Ok(Self(ms))
        } else {
            Err(format!("{ms} ms lies outside the years -9999 to 9999"))
        }
    }
}

/// The beginning of a client's text, fit for an error message.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    let mut short: String = text.chars().take(MOST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl<'de> Deserialize<'de> for TsMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TsVisitor;
        impl Visitor<'_> for TsVisitor {
            type Value = TsMs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(ALLOWED)
            }
            fn visit_i64<E: Error>(self, ms: i64) -> Result<TsMs, E> {
                TsMs::checked(ms).map_err(E::custom)
            }
            fn visit_u64<E: Error>(self, ms: u64) -> Result<TsMs, E> {
                TsMs::checked(i64::try_from(ms).unwrap_or(i64::MAX)).map_err(E::custom)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<TsMs, E> {
                TsMs::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TsVisitor)
    }
}

impl JsonSchema for TsMs {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Integer milliseconds since 1970, or (as a parameter only) an RFC 3339 string.",
            "oneOf": [{ "type": "integer" }, { "type": "string", "format": "date-time" }]
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_taken_as_milliseconds_or_rfc_3339() {
        for (json, want) in [
            ("0", Ok(0)),
            ("-1", Ok(-1)),
            ("1714979289000", Ok(1_714_979_289_000)),
            (r#""2024-05-06T07:08:09Z""#, Ok(1_714_979_289_000)),
            (r#""2024-05-06T09:08:09+02:00""#, Ok(1_714_979_289_000)),
            (r#""2024-05-06T07:08:09.1239Z""#, Ok(1_714_979_289_123)),
            (r#""1969-12-31T23:59:59.9995Z""#, Ok(-1)),
            (r#""9999-12-31T23:59:59.999Z""#, Ok(253_402_300_799_999)),
            ("253402300799999", Ok(253_402_300_799_999)),
            ("253402300800000", Err("outside the years")),
            (r#""yesterday""#, Err("`yesterday` is not a time")),
            (r#""2024-05-06""#, Err("is not a time")),
            (r#""2024-05-06T07:08:09""#, Err("is not a time")),
            ("1.5", Err("integer milliseconds")),
            ("true", Err("integer milliseconds")),
            ("18446744073709551615", Err("outside the years")),
            ("-9223372036854775808", Err("outside the years")),
        ] {
            let got = serde_json::from_str::<TsMs>(json);
            match want {
                Ok(ms) => assert_eq!(got.unwrap(), TsMs(ms), "{json}"),
                Err(part) => {
                    let message = got.unwrap_err().to_string();
                    assert!(message.contains(part), "{json}: {message}");
                }
            }
        }
    }
}
