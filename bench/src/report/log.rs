//! Interval logs read back.
//!
//! Invariant: what was not written by the log's writer is an error, never left out.

use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use crate::Failure;
use crate::stats::histogram;

/// One interval of a log.
pub struct Interval {
    /// From the begin of the load.
    pub at: Duration,
    /// Microseconds.
    pub response: Histogram<u64>,
}

/// Reads a log.
///
/// # Errors
/// If the file cannot be read or is no interval log.
pub fn read(path: &Path) -> Result<Vec<Interval>, Failure> {
    use base64::Engine as _;
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let mut deserializer = Deserializer::new();
    let mut out = Vec::new();
    for entry in IntervalLogIterator::new(&bytes) {
        match entry {
            Ok(LogEntry::Interval(interval)) => {
                let encoded = interval.encoded_histogram();
                let raw = base64::engine::general_purpose::STANDARD
                    .decode(encoded)
                    .map_err(|e| format!("{shown}: an interval is no base64: {e}"))?;
                let response = deserializer
                    .deserialize(&mut raw.as_slice())
                    .map_err(|e| format!("{shown}: an interval is no histogram: {e}"))?;
                out.push(Interval { at: interval.start_timestamp(), response });
            }
            Ok(_) => {}
            Err(e) => return Err(format!("{shown} is no interval log: {e:?}").into()),
        }
    }
    Ok(out)
}

/// All intervals as one histogram.
///
/// # Errors
/// If a value is out of range.
pub fn merged(intervals: &[Interval]) -> Result<Histogram<u64>, Failure> {
    let mut all = histogram()?;
    for interval in intervals {
        all.add(&interval.response)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_no_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.hlog");
        for (text, part) in [
            ("hello\n", "no interval log"),
            ("0.0,1.0,5.0,!!!!\n", "no base64"),
            ("0.0,1.0,5.0,aGVsbG8=\n", "no histogram"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).err().unwrap().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(read(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn merged_histograms_count_every_sample() {
        let interval = |us: u64| {
            let mut response = histogram().unwrap();
            response.record(us).unwrap();
            Interval { at: Duration::ZERO, response }
        };
        let all = merged(&[interval(5), interval(500), interval(5)]).unwrap();
        assert_eq!((all.len(), all.count_at(5), all.max()), (3, 2, 500));
    }
}
