//! Metrics as they leave the program: OpenMetrics text, and the same as JSON.
//!
//! Invariant: both formats are made from one list, so neither can say what the other does not. The text is written by the
//! `prometheus-client` crate. It must not know where the numbers come from.

use super::histogram::Reading;
use crate::rpc::results::{HistogramOut, MetricsReading};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt::{Error, Write};

/// Of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What every name begins with.
const PREFIX: &str = "flashbulb";

/// Upper edges of the text's buckets in microseconds: 1, 2, 5 a decade, and closer around the promise of 10 ms. Each is an
/// edge of the histogram's own buckets, so the counts are exact. 10 µs is left out: the specification wants it written as
/// 1e-05, and the encoder does not.
const EDGES_US: &[u64] = &[
    20,
    50,
    100,
    200,
    500,
    1_000,
    1_500,
    2_000,
    2_500,
    3_000,
    4_000,
    5_000,
    6_000,
    7_000,
    8_000,
    9_000,
    10_000,
    11_000,
    12_000,
    15_000,
    20_000,
    30_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

/// Names and values that tell one series of a family from the others; constants of the program, never a client's.
pub type Labels = Vec<(&'static str, &'static str)>;

/// Metrics of one name.
#[derive(Debug)]
pub struct Family {
    /// Without the prefix, the unit and a counter's `_total`.
    pub name: &'static str,
    /// What it counts, without a full stop.
    pub help: &'static str,
    /// The numbers.
    pub series: Series,
}

/// The numbers of a family.
#[derive(Debug)]
pub enum Series {
    /// Counts that only grow.
    Counters(Vec<(Labels, u64)>),
    /// What is now.
    Gauges(Vec<(Labels, f64)>),
    /// Durations; the family's unit is seconds.
    Seconds(Vec<(Labels, Reading)>),
}

/// All families.
#[derive(Debug)]
pub struct Exposition(pub Vec<Family>);

impl Exposition {
    /// The OpenMetrics text, `# EOF` included.
    ///
    /// # Errors
    /// When the text cannot be written, which memory alone could cause.
    pub fn text(self) -> Result<String, Error> {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }

    /// The same with every bucket there is; `at_ms` is the time of the reading.
    #[must_use]
    pub fn reading(&self, at_ms: i64) -> MetricsReading {
        let mut reading = MetricsReading { at_ms, ..MetricsReading::default() };
        for Family { name, series, .. } in &self.0 {
            match series {
                Series::Counters(series) => {
                    let named = |(labels, value): &(Labels, u64)| {
                        (format!("{PREFIX}_{name}_total{}", shown(labels)), *value)
                    };
                    reading.counters.extend(series.iter().map(named));
                }
                Series::Gauges(series) => {
                    let named = |(labels, value): &(Labels, f64)| {
                        (format!("{PREFIX}_{name}{}", shown(labels)), *value)
                    };
                    reading.gauges.extend(series.iter().map(named));
                }
                Series::Seconds(series) => {
                    let name = format!("{PREFIX}_{name}_seconds");
                    let out = |(labels, reading): &(Labels, Reading)| HistogramOut {
                        name: name.clone(),
                        labels: labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
                        count: reading.count(),
                        sum_us: reading.sum_ns() / 1_000,
                        buckets: reading.filled().collect(),
                    };
                    reading.histograms.extend(series.iter().map(out));
                }
            }
        }
        reading
    }
}

/// Labels as the text has them.
fn shown(labels: &Labels) -> String {
    let mut out = String::new();
    for (at, (name, value)) in labels.iter().enumerate() {
        let lead = if at == 0 { '{' } else { ',' };
        // Writing to a string does not fail.
        let _ = write!(out, "{lead}{name}=\"{value}\"");
    }
    if !out.is_empty() {
        out.push('}');
    }
    out
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        for family in &self.0 {
            encode_family(family, &mut encoder)?;
        }
        Ok(())
    }
}

fn encode_family(family: &Family, encoder: &mut DescriptorEncoder) -> Result<(), Error> {
    let Family { name, help, series } = family;
    match series {
        Series::Counters(series) => {
            let mut to = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, value) in series {
                with(&mut to, labels, |to| to.encode_counter::<NoLabelSet, _, u64>(value, None))?;
            }
        }
        Series::Gauges(series) => {
            let mut to = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, value) in series {
                with(&mut to, labels, |to| to.encode_gauge(value))?;
            }
        }
        Series::Seconds(series) => {
            let unit = Some(&Unit::Seconds);
            let mut to = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
            for (labels, reading) in series {
                with(&mut to, labels, |to| encode_seconds(to, reading))?;
            }
        }
    }
    Ok(())
}

fn with(
    to: &mut MetricEncoder,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder) -> Result<(), Error>,
) -> Result<(), Error> {
    if labels.is_empty() { encode(to) } else { encode(&mut to.encode_family(labels)?) }
}

fn encode_seconds(to: &mut MetricEncoder, reading: &Reading) -> Result<(), Error> {
    let edges = EDGES_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = edges.zip(reading.coarse(EDGES_US)).collect();
    let sum = reading.sum_ns() as f64 / 1e9;
    to.encode_histogram::<NoLabelSet>(sum, reading.count(), &buckets, None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::service::metrics::Histogram;
    use std::time::Duration;

    fn exposition() -> Exposition {
        let histogram = Histogram::default();
        for us in [9_999, 10_000, 10_001, 200_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        Exposition(vec![
            Family {
                name: "requests",
                help: "Requests",
                series: Series::Counters(vec![
                    (vec![("method", "a.b"), ("outcome", "ok")], 3),
                    (vec![("method", "a.b"), ("outcome", "busy")], 0),
                ]),
            },
            Family {
                name: "connections",
                help: "Connections",
                series: Series::Gauges(vec![(Labels::new(), 2.0)]),
            },
            Family {
                name: "request_duration",
                help: "Durations",
                series: Series::Seconds(vec![(vec![("method", "a.b")], histogram.read())]),
            },
        ])
    }

    #[test]
    fn the_text_is_exact_at_its_edges() {
        let text = exposition().text().unwrap();
        for line in [
            "# TYPE flashbulb_requests counter",
            r#"flashbulb_requests_total{method="a.b",outcome="ok"} 3"#,
            "flashbulb_connections 2.0",
            "# UNIT flashbulb_request_duration_seconds seconds",
            r#"flashbulb_request_duration_seconds_count{method="a.b"} 4"#,
            r#"flashbulb_request_duration_seconds_bucket{le="0.009",method="a.b"} 0"#,
            r#"flashbulb_request_duration_seconds_bucket{le="0.01",method="a.b"} 2"#,
            r#"flashbulb_request_duration_seconds_bucket{le="0.011",method="a.b"} 3"#,
            r#"flashbulb_request_duration_seconds_bucket{le="100.0",method="a.b"} 3"#,
            r#"flashbulb_request_duration_seconds_bucket{le="+Inf",method="a.b"} 4"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_edge_of_the_text_is_the_edge_of_a_bucket() {
        for (at, &edge) in EDGES_US.iter().enumerate() {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(edge));
            histogram.record_many(Duration::from_nanos(edge * 1_000 + 1), 2);
            let counts = histogram.read().coarse(EDGES_US);
            assert_eq!(counts[at..at + 2], [1, 2], "{edge} us");
        }
    }

    #[test]
    fn json_says_the_same_with_finer_buckets() {
        let reading = exposition().reading(7);
        assert_eq!(reading.at_ms, 7);
        let name = r#"flashbulb_requests_total{method="a.b",outcome="ok"}"#;
        assert_eq!(reading.counters[name], 3);
        assert_eq!(reading.gauges["flashbulb_connections"], 2.0);
        let histogram = &reading.histograms[0];
        assert_eq!(histogram.name, "flashbulb_request_duration_seconds");
        assert_eq!((histogram.count, histogram.sum_us), (4, 200_030_000));
        assert_eq!(histogram.buckets, [(Some(10_000.0), 2), (Some(11_000.0), 1), (None, 1)]);
    }
}
