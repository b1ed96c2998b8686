//! Values of the command line that are more than a word: times, intervals and JSON objects.
//!
//! Keeps: a JSON object goes to the daemon as it was written, line breaks between its tokens aside. Must not know
//! which option it is for.

/// A JSON object, kept as it was written.
#[derive(Debug, Clone)]
pub struct JsonObject(pub Box<serde_json::value::RawValue>);

impl serde::Serialize for JsonObject {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

pub(super) fn parse_object(text: &str) -> Result<JsonObject, String> {
    // Line breaks between tokens may become spaces; inside JSON strings there are none.
    let line = text.trim().replace(['\n', '\r'], " ");
    let raw = serde_json::value::RawValue::from_string(line).map_err(|error| error.to_string())?;
    if !raw.get().starts_with('{') {
        return Err("a JSON object is needed, such as {\"role\": {\"eq\": \"user\"}}".to_owned());
    }
    Ok(JsonObject(raw))
}

/// Milliseconds since 1970 from the same, an RFC 3339 time, or a date (its first moment in UTC).
pub(super) fn parse_time(text: &str) -> Result<i64, String> {
    if let Ok(ms) = text.parse::<i64>() {
        return jiff::Timestamp::from_millisecond(ms)
            .map(|time| time.as_millisecond())
            .map_err(|error| error.to_string());
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    text.parse::<jiff::civil::Date>()
        .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC))
        .map(|time| time.timestamp().as_millisecond())
        .map_err(|_| {
            "use milliseconds since 1970, a time such as 2024-05-06T07:08:09Z, or a date such as 2024-05-06"
                .to_owned()
        })
}

/// Seconds between two looks.
pub(super) fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("use a number of seconds from 0.1 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_and_objects_are_checked() {
        assert_eq!(parse_time("-5"), Ok(-5));
        assert_eq!(parse_time("1970-01-01T00:00:01+00:00"), Ok(1000));
        assert_eq!(parse_time("1970-01-02"), Ok(86_400_000));
        for bad in ["", "noon", "2024-13-01", "9223372036854775807"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_interval("0.1"), parse_interval("60")), (Ok(0.1), Ok(60.0)));
        for bad in ["0", "-1", "nan", "inf", "3601", "2s"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_object(" {\n\"a\": 1.50} ").unwrap().0.get(), "{ \"a\": 1.50}");
        for bad in ["", "[]", "7", "{", "{}{}"] {
            assert!(parse_object(bad).is_err(), "{bad}");
        }
    }
}
